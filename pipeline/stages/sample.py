"""sample@d: images or points from flow and teacher, all from the same prior draws."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from ifm import modalities, pretrained
from ifm.conditions.base import ConditionKind
from ifm.files import fresh_folder, write_json
from ifm.hardware.memory import peak_memory
from ifm.hardware.processes import make_accelerator
from ifm.modalities.pictures import COLUMNS, save_grid, save_rows, side_by_side, side_by_side_choice
from ifm.networks.asking import prepare
from ifm.progress import progress
from ifm.sampling import (
    Sampler,
    asked_of,
    draw_samples,
    flow_sampler,
    sample_dtype,
    seconds_per_image,
    teacher_sampler,
)
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main

TIMED_BATCHES = (1, 8, 64, 256, 1024)  # of one evaluation of the flow
ROWS = 10  # of the grid by class: more classes are shown evenly
ONE_STEP = "flow-one_step-nfe001"


def params(stage: Stage) -> dict:
    return stage.sections("seed", "sample", "evaluate.teacher_nfe")


def samplers_of(stage: Stage, accelerator: Accelerator) -> tuple[list[Sampler], dict]:
    """The teacher's samplers by NFE, then the flow's by steps; and what they all share."""
    config, d = stage.config, stage.dynamics
    teacher, flow = pretrained.load_both(teacher=paths.teacher(d), flow=paths.flow(d), device=accelerator.device)
    for model in (teacher, flow):
        if model is not None:
            prepare(model, config.sample.precision, recorded=True)
    samplers = [teacher_sampler(teacher, nfe=nfe) for nfe in sorted(config.evaluate.teacher_nfe) if teacher]
    for steps in sorted(config.sample.flow_steps):
        kinds = ["one_step"] if steps == 1 else config.sample.flow_samplers
        samplers += [flow_sampler(flow, kind=kind, steps=steps) for kind in kinds]
    shape = tuple(pretrained.describe(paths.flow(d))["image_shape"])
    common = {"dynamics": flow.dynamics, "shape": shape, "device": accelerator.device}
    return samplers, common | ({} if flow.condition_kind is None else {"condition": flow.condition_kind})


def work(stage: Stage) -> None:
    """Draws sample.seeds sets of sample.count samples with every sampler, times them, lays some images out as grids."""
    config, d = stage.config, stage.dynamics
    accelerator = make_accelerator("no", seed=config.seed)
    samplers, common = samplers_of(stage, accelerator)
    with fresh_folder(paths.samples(d)) if accelerator.is_main_process else nullcontext() as out:
        draw_all(stage, accelerator, samplers, common, out=out)
        if out is None:
            return
        kind = common.get("condition")
        asked = {} if kind is None else save_asked(stage, kind, out=out)
        if modalities.of(common["shape"]).preview == "grids":
            _lay_out(samplers, out, shown=config.sample.grid_images)
        time_batches(stage, samplers, common)
        write_json(
            out / "metadata.json",
            {
                "dynamics": d,
                "seed": config.seed,
                "seeds": config.sample.seeds,
                "count": config.sample.count,
                "image_shape": list(common["shape"]),
                "samplers": [s.describe() for s in samplers],
                "teacher": pretrained.describe(paths.teacher(d)).get("sha256"),
                "flow": pretrained.describe(paths.flow(d))["sha256"],
                **asked,
            },
        )
    if modalities.of(common["shape"]).preview == "grids":
        stage.run.log_artifact(paths.samples(d) / "grids" / "side_by_side.png", "grids")


def save_asked(stage: Stage, kind: ConditionKind, *, out: Path) -> dict[str, Any]:
    """Writes what each sample was asked to be, the same for all samplers, and returns what metadata.json says of it.

    A file for each of the condition's tensors: labels.npy, int64 [seeds count]. Of classes and images also a grid.
    """
    config = stage.config
    asked = asked_of(kind, range(config.sample.seeds * config.sample.count), seed=config.seed)
    for name, tensor in asked.tensors().items():
        np.save(out / f"{name}.npy", tensor.numpy(), allow_pickle=False)
    one_step = out / f"{ONE_STEP}.npy"
    if "labels" in asked.tensors() and one_step.is_file():
        _lay_out_classes(np.load(one_step, mmap_mode="r", allow_pickle=False), asked.labels.numpy(), kind, out)
    return {"condition": kind.describe()}


def draw_all(
    stage: Stage, accelerator: Accelerator, samplers: list[Sampler], common: dict, *, out: Path | None
) -> None:
    """Draws with every sampler, straight into its file; set k has the prior draws k count .. (k + 1) count - 1.

    out: the main process's folder; the others' is None.
    """
    config, shape, device = stage.config, common["shape"], common["device"]
    total = config.sample.seeds * config.sample.count
    for sampler in progress(samplers, label=f"sample {stage.dynamics}", unit="sampler"):
        file = None
        if out is not None:
            file = np.lib.format.open_memmap(
                out / f"{sampler.name}.npy", "w+", dtype=sample_dtype(shape), shape=(total, *shape)
            )
        if out is not None:  # before its memory is measured: a first call makes what all others use
            stage.run.timings[f"seconds_batch_1.{sampler.name}"] = seconds_per_image(sampler, **common, batch_size=1)
        with peak_memory(device) as peak:
            drawn = draw_samples(
                sampler,
                **common,
                count=total,
                batch_size=config.sample.batch_size,
                seed=config.seed,
                out=file,
                accelerator=accelerator,
            )
        if file is None:
            continue
        file.flush()
        timings = stage.run.timings
        timings[f"seconds_per_image.{sampler.name}"] = drawn.seconds_per_image
        if peak.megabytes is not None:
            timings[f"peak_memory_mb.{sampler.name}"] = peak.megabytes


def time_batches(stage: Stage, samplers: list[Sampler], common: dict) -> None:
    """How long an image of the one-step flow takes in batches of several sizes."""
    one_step = next((s for s in samplers if s.sampler == "one_step"), None)
    for size in TIMED_BATCHES if one_step else ():
        taken = seconds_per_image(one_step, **common, batch_size=size)
        stage.run.timings[f"seconds_in_batches_of.{size}"] = taken


def _lay_out_classes(samples: np.ndarray, labels: np.ndarray, kind: ConditionKind, out: Path) -> None:
    """A row of the first samples asked to be of each class, of ROWS classes at most; nothing for points."""
    modality = modalities.of(samples.shape[1:])
    if modality.preview != "grids":
        return
    count = len(kind.classes)
    rows = []
    for k in np.unique(np.linspace(0, count - 1, min(ROWS, count)).round().astype(int)):
        first = np.flatnonzero(labels == k)[:COLUMNS]
        if len(first):
            rows.append((kind.classes[k], modality.pictures(np.asarray(samples[first]))))
    save_rows(rows, out / "grids" / "classes.png")


def _lay_out(samplers: list[Sampler], out: Path, *, shown: int) -> None:
    """The first images of each sampler as a grid, and the flow's beside the teacher's."""
    pictures = {s.name: np.load(out / f"{s.name}.npy", mmap_mode="r", allow_pickle=False)[:shown] for s in samplers}
    show = modalities.of(next(iter(pictures.values())).shape[1:]).pictures
    pictures = {name: show(np.asarray(samples)) for name, samples in pictures.items()}
    for name, images in pictures.items():
        save_grid(images, out / "grids" / f"{name}.png", columns=COLUMNS)
    titles = {s.name: s.title for s in samplers}
    chosen = side_by_side_choice([s.describe() for s in samplers])
    panels = [(titles[s["name"]], pictures[s["name"]]) for s in chosen]
    side_by_side(panels, out / "grids" / "side_by_side.png", columns=COLUMNS)


if __name__ == "__main__":
    main(work, module="sample", params=params, per_dynamics=True, parallel=True)
