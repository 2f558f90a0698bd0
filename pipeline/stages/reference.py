"""reference: the evaluation extractor and its statistics of the real data."""

from collections.abc import Callable

import numpy as np
import torch

from ifm import modalities
from ifm.data import needs
from ifm.data.splits import open_split, open_states
from ifm.files import write_json
from ifm.hardware.processes import PATIENCE, make_accelerator
from ifm.latents import find
from ifm.latents.autoencoder import Autoencoder
from ifm.metrics.reference import build_reference
from ifm.random import posterior
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main


def work(stage: Stage) -> None:
    """Builds (for `classifier`: trains) the extractor and writes its features of the real data."""
    train, test = (open_split(paths.PROCESSED, name) for name in ("train", "test"))
    counts = {"train": len(train), "test": len(test)}
    described = train.metadata.splits["train"].class_counts
    states = open_states(paths.PROCESSED, "train")
    latents = None if states.decoder is None else states.shape
    # `preprocess` has checked this; params that it does not list may have changed since.
    needs.check(stage.config, needs.Counts(counts, train.classes, described), where=paths.PROCESSED, latents=latents)
    accelerator = make_accelerator("no", seed=0, patience=PATIENCE)
    figures = build_reference(
        stage.config.evaluate,
        train=train,
        test=test,
        out=paths.REFERENCE,
        device=accelerator.device,
        on_log=stage.run.log_row if accelerator.is_main_process else None,
        duplicates=train.metadata.duplicates,
        reconstruct=None if states.decoder is None else _reconstruct(stage, accelerator.device),
        accelerator=accelerator,
    )
    if figures is None:
        return
    if "reconstruction_fid" in figures:
        print(f"{stage.name}: FID of encoder and decoder alone: {figures['reconstruction_fid']:.4g}", flush=True)
    write_json(paths.METRICS / "reference.json", figures)
    stage.run.log_metrics({key: value for key, value in figures.items() if isinstance(value, int | float)})
    stage.warn(figures["warnings"])


def _reconstruct(stage: Stage, device: torch.device) -> Callable[[range], np.ndarray]:
    """Rows of the reference split, drawn from their posteriors and decoded: uint8 [n, C, H, W]."""
    states = open_states(paths.PROCESSED, stage.config.evaluate.reference_split)
    decoder = Autoencoder.read(find(states.decoder, named=str(states.decoder)))

    def rows(members: range) -> np.ndarray:
        at_rest = torch.from_numpy(states[np.array(members)]).to(device)
        return modalities.at_rest(decoder.decode(modalities.shown(at_rest, posterior(0, members, step=0))))

    return rows


if __name__ == "__main__":
    main(
        work,
        module="reference",
        params=lambda s: s.sections(
            "evaluate.extractor",
            "evaluate.inception_path",
            "evaluate.dinov2_path",
            "evaluate.clap_path",
            "evaluate.weights_sha256",
            "evaluate.classifier",
            "evaluate.reference_split",
            "evaluate.sliced_projections",
        ),
        parallel=True,
    )
