"""preprocess: decoded, cropped, resized, split: uint8 arrays that are memory-mapped (points: float32), and latents."""

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ifm import latents
from ifm.config import Config
from ifm.data import needs
from ifm.data.arrays import ImageSet, duplicates_in_words
from ifm.data.preprocessing import preprocess
from ifm.latents import inputs
from ifm.tracking import project_root
from pipeline.runner import paths
from pipeline.runner.stage import Stage, from_main_process, main

if TYPE_CHECKING:
    from accelerate import Accelerator


def work(stage: Stage) -> None:
    """Makes data/processed, uint8 arrays [n, C, H, W] or float32 [n, d] by split, from data/raw.

    With data.encoder also the latents of the images, which several processes share. What later stages need of the data
    is checked here, before anything is decoded or trained.
    """
    data, kind = stage.config.data, stage.config.data.modality.noun
    check, options = partial(needs.check, stage.config, where=paths.RAW), {}
    if data.encoder is not None:
        found = latents.look_up(data.encoder, revision=data.encoder_revision, root=project_root())
        check = partial(check, latents=found.shape(data.shape))
        accelerator = _accelerator()
        options["add"] = partial(_encode, stage, found, accelerator)
        if not accelerator.is_main_process:
            _encode(stage, found, accelerator, None)
            return
        print(f"{stage.name}: {found.in_a_line(data.shape)}", flush=True)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    root = project_root()
    local = inputs.look(data.model_dump(), root=root, memory=root / paths.SEEN_ENCODER)  # before they are read
    inputs.note(paths.ENCODER, local or inputs.Inputs())
    made = preprocess(data, paths.RAW, paths.PROCESSED, check=check, **options)
    counts = {name: split.count for name, split in made.splits.items()}
    stage.run.log_metrics({f"{kind}.{name}": count for name, count in counts.items()})
    stage.run.log_metrics({f"duplicates.{name}": count for name, count in made.duplicates.items()})
    if any(made.duplicates.values()):
        print(f"{stage.name}: {duplicates_in_words(made.duplicates, counts, noun=kind)}", flush=True)


def _accelerator() -> "Accelerator":
    """torch is for latents alone: images need none."""
    from ifm.hardware.processes import PATIENCE, make_accelerator

    return make_accelerator("no", seed=0, patience=PATIENCE)


def _encode(stage: Stage, found: latents.Found, accelerator: "Accelerator", folder: Path | None) -> None:
    """Adds latents to the processed images in `folder`, which the main process tells the others (None)."""
    from ifm.latents import encoding

    folder = Path(from_main_process(None if folder is None else str(folder)))
    images = {split: ImageSet.open(folder, split) for split in ("train", "test")}
    made_of = {name: split.metadata.splits[name].sha256 for name, split in images.items()}
    made_of |= {"encoder": encoding.digest(found), "config": json.dumps(dict(found.config), sort_keys=True)}
    work_folder = stage.work_folder(params=stage.sections("data"), inputs=made_of)
    shards = encoding.encode(images, found, work_folder, accelerator=accelerator)
    if accelerator.is_main_process:
        made = encoding.finish(images, found, shards, folder)
        print(f"{stage.name}: latents {made.shape}, mean {_short(made.mean)}, deviation {_short(made.std)}", flush=True)


def _short(values: list[float]) -> str:
    return f"[{', '.join(f'{value:.3g}' for value in values)}]"


def _shares(config: Config) -> bool:
    """Whether several processes have work to share."""
    return config.data.encoder is not None


if __name__ == "__main__":
    main(work, module="preprocess", params=lambda stage: stage.sections("data"), parallel=_shares)
