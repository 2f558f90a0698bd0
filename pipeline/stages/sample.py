"""sample@d: images or points from flow and teacher, all from the same prior draws."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from ifm import modalities, pretrained
from ifm.files import fresh_folder, new_array, write_json
from ifm.guidance import Guidance
from ifm.hardware.memory import peak_memory
from ifm.hardware.processes import make_accelerator
from ifm.modalities import Modality
from ifm.modalities.pictures import COLUMNS, save_grid, save_rows, side_by_side, side_by_side_choice
from ifm.modalities.wav import wavs
from ifm.networks.asking import prepare
from ifm.progress import progress
from ifm.sampling import (
    Sampler,
    asked_of,
    draw_samples,
    flow_sampler,
    seconds_per_image,
    teacher_sampler,
)
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main

TIMED_BATCHES = (1, 8, 64, 256, 1024)  # of one evaluation of the flow
ROWS = 10  # of the grid by class: more classes are shown evenly
PLAYED = 10  # sounds of each sampler
ONE_STEP = "flow-one_step-nfe001"


def params(stage: Stage) -> dict:
    return stage.sections("seed", "sample", "evaluate.teacher_nfe", "evaluate.guidance_scales")


@dataclass(frozen=True)
class AtScale:
    """A sampler at a guidance scale of evaluate.guidance_scales, which it is drawn at besides."""

    sampler: Sampler
    w: float

    @property
    def name(self) -> str:
        return f"{self.sampler.name}-w{self.w:g}"

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.sampler.describe() | {"name": self.name, "guidance": self.w}


@dataclass(frozen=True)
class Plan:
    """What is drawn: of every sampler all sets, and besides of some the first set at other guidance scales."""

    samplers: list[Sampler]  # the teacher's by NFE, then the flow's by steps
    at_scales: list[AtScale]
    common: dict[str, Any]  # what they all share, the condition's kind included
    described: dict[str, Any]  # image_shape, and what is recorded beside it
    w: float | None  # the guidance scale of `samplers`; None: there is no guidance

    @property
    def outside(self) -> tuple[int, ...]:
        """The shape of one sample: latents are decoded."""
        return tuple(self.described["image_shape"])

    @property
    def modality(self) -> Modality:
        """What is drawn."""
        return modalities.of(self.described)


def planned(stage: Stage, accelerator: Accelerator) -> Plan:
    """The samplers of flow and teacher. Where there is guidance the teacher is led as the flow is."""
    config, d = stage.config, stage.dynamics
    teacher, flow = pretrained.load_both(teacher=paths.teacher(d), flow=paths.flow(d), device=accelerator.device)
    guidance, kind = Guidance.of(flow.guidance), flow.condition_kind
    w = None
    if guidance is not None:
        w = config.sample.guidance
        w = w if w is not None else kind.usual_scale if guidance.range else guidance.scale
        if teacher is not None:
            teacher = pretrained.guided(teacher, paths.teacher(d), replace(guidance, scale=w))
    for model in (teacher, flow):
        if model is not None:
            prepare(model, config.sample.precision, recorded=True)
    nfes = sorted(config.evaluate.teacher_nfe)
    samplers = [teacher_sampler(teacher, nfe=nfe) for nfe in nfes if teacher]
    for steps in sorted(config.sample.flow_steps):
        kinds = ["one_step"] if steps == 1 else config.sample.flow_samplers
        samplers += [flow_sampler(flow, kind=kind, steps=steps) for kind in kinds]
    at_scales = []
    for scale in sorted(config.evaluate.guidance_scales) if guidance is not None else ():
        if scale != w and kind.scale is not None and kind.scale[0] <= scale <= kind.scale[1]:
            at_scales.append(AtScale(flow_sampler(flow, kind="one_step", steps=1), scale))
        if teacher is not None:  # at its most evaluations: with fewer the guided ODE is not solved, and w seems smaller
            at_scales.append(AtScale(teacher_sampler(teacher.at(scale), nfe=nfes[-1]), scale))
    made = pretrained.describe(paths.flow(d))
    common = {"dynamics": flow.dynamics, "shape": pretrained.state_shape(made), "device": accelerator.device}
    described = {"image_shape": made["image_shape"], **flow.of_data}
    return Plan(samplers, at_scales, common | ({} if kind is None else {"condition": kind}), described, w)


def work(stage: Stage) -> None:
    """Draws sample.seeds sets of sample.count samples with every sampler, times them, lays some images out as grids."""
    config, d = stage.config, stage.dynamics
    accelerator = make_accelerator("no", seed=config.seed)
    plan = planned(stage, accelerator)
    samplers, common = plan.samplers, plan.common
    with fresh_folder(paths.samples(d)) if accelerator.is_main_process else nullcontext() as out:
        draw_all(stage, accelerator, plan, out=out)
        if out is None:
            return
        asked = save_asked(stage, plan, out=out) if "condition" in common else {}
        if plan.modality.preview == "grids":
            _lay_out(plan, out, shown=config.sample.grid_images)
        if plan.modality.audible:
            _play(stage, plan, out)
        time_batches(stage, samplers, common)
        write_json(
            out / "metadata.json",
            {
                "dynamics": d,
                "seed": config.seed,
                "seeds": config.sample.seeds,
                "count": config.sample.count,
                **plan.described,
                "samplers": [s.describe() for s in samplers],
                "teacher": pretrained.describe(paths.teacher(d)).get("sha256"),
                "flow": pretrained.describe(paths.flow(d))["sha256"],
                **asked,
            },
        )
    if plan.modality.preview == "grids":
        stage.run.log_artifact(paths.samples(d) / "grids" / "side_by_side.png", "grids")
    if plan.modality.audible:
        sounds = paths.samples(d) / "sounds"
        for file in sorted(sounds.rglob("*.wav")):
            stage.run.log_artifact(file, f"sounds/{file.parent.name}")


def save_asked(stage: Stage, plan: Plan, *, out: Path) -> dict[str, Any]:
    """Writes what each sample was asked to be, the same for all samplers, and returns what metadata.json says of it.

    labels.npy, int64 [seeds count]; of classes and images also a grid.
    """
    kind = plan.common["condition"]
    asked = _asked(stage, plan, plan.w)["condition"].tensors()
    for name, tensor in asked.items():
        if name != "w":  # the same of all samples: in the metadata
            np.save(out / f"{name}.npy", tensor.numpy(), allow_pickle=False)
    one_step = out / f"{ONE_STEP}.npy"
    if "labels" in asked and one_step.is_file():
        _lay_out_classes(np.load(one_step, mmap_mode="r", allow_pickle=False), asked["labels"].numpy(), plan, out)
    found = {"condition": kind.describe()}
    if plan.w is None:
        return found
    return found | {"guidance": plan.w, "guided": [s.describe() for s in plan.at_scales]}


def _play(stage: Stage, plan: Plan, out: Path) -> None:
    """A few samples of every sampler as WAV files, the same draws of each, and which they are: sounds/shown.json."""
    rows, names = list(range(PLAYED)), None
    if "condition" in plan.common:
        asked = _asked(stage, plan, plan.w)["condition"].tensors().get("labels")
        if asked is not None:  # the first sample of each class
            names = plan.common["condition"].classes
            classes, first = np.unique(asked.numpy(), return_index=True)
            rows = [int(row) for _, row in zip(classes, first, strict=True)][:PLAYED]
            names = [names[int(asked[row])] for row in rows]
    rows = rows[: len(np.load(out / f"{plan.samplers[0].name}.npy", mmap_mode="r", allow_pickle=False))]
    for sampler in plan.samplers:
        samples = np.load(out / f"{sampler.name}.npy", mmap_mode="r", allow_pickle=False)[rows]
        for row, sound in zip(rows, wavs(np.asarray(samples), plan.described[plan.modality.name]), strict=True):
            file = out / "sounds" / sampler.name / f"{row:06d}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sound)
    write_json(out / "sounds" / "shown.json", {"rows": rows, "names": names})


def _asked(stage: Stage, plan: Plan, w: float | None) -> dict[str, Any]:
    """The condition of all samples at a guidance scale, as `draw_samples` takes it; {} where there is none."""
    if "condition" not in plan.common:
        return {}
    total = range(stage.config.sample.seeds * stage.config.sample.count)
    return {"condition": asked_of(plan.common["condition"], total, seed=stage.config.seed, w=w)}


def draw_all(stage: Stage, accelerator: Accelerator, plan: Plan, *, out: Path | None) -> None:
    """Draws with every sampler, straight into its file; set k has the prior draws k count .. (k + 1) count - 1.

    out: the main process's folder; the others' is None.
    """
    config, common = stage.config, plan.common
    main = [(s.name, s, config.sample.seeds, plan.w) for s in plan.samplers]
    besides = [(s.name, s.sampler, 1, s.w) for s in plan.at_scales]
    for name, sampler, sets, w in progress([*main, *besides], label=f"sample {stage.dynamics}", unit="sampler"):
        file, total = None, sets * config.sample.count
        if out is not None:
            file = new_array(out / f"{name}.npy", plan.modality.dtype, (total, *plan.outside))
        if out is not None:  # before its memory is measured: a first call makes what all others use
            stage.run.timings[f"seconds_batch_1.{name}"] = seconds_per_image(sampler, **common, batch_size=1)
        with peak_memory(common["device"]) as peak:
            drawn = draw_samples(
                sampler,
                **(common | _asked(stage, plan, w)),
                count=total,
                batch_size=config.sample.batch_size,
                seed=config.seed,
                out=file,
                modality=plan.modality.name,
                accelerator=accelerator,
            )
        if file is None:
            continue
        file.flush()
        timings = stage.run.timings
        timings[f"seconds_per_image.{name}"] = drawn.seconds_per_image
        if peak.megabytes is not None:
            timings[f"peak_memory_mb.{name}"] = peak.megabytes


def time_batches(stage: Stage, samplers: list[Sampler], common: dict) -> None:
    """How long an image of the one-step flow takes in batches of several sizes."""
    one_step = next((s for s in samplers if s.sampler == "one_step"), None)
    for size in TIMED_BATCHES if one_step else ():
        taken = seconds_per_image(one_step, **common, batch_size=size)
        stage.run.timings[f"seconds_in_batches_of.{size}"] = taken


def _lay_out_classes(samples: np.ndarray, labels: np.ndarray, plan: Plan, out: Path) -> None:
    """A row of the first samples asked to be of each class, of ROWS classes at most; nothing for points."""
    modality, kind = plan.modality, plan.common["condition"]
    if modality.preview != "grids":
        return
    count = len(kind.classes)
    rows = []
    for k in np.unique(np.linspace(0, count - 1, min(ROWS, count)).round().astype(int)):
        first = np.flatnonzero(labels == k)[:COLUMNS]
        if len(first):
            rows.append((kind.classes[k], modality.pictures(np.asarray(samples[first]))))
    save_rows(rows, out / "grids" / "classes.png")


def _lay_out(plan: Plan, out: Path, *, shown: int) -> None:
    """The first images of each sampler as a grid, and the flow's beside the teacher's."""
    samplers, show = plan.samplers, plan.modality.pictures
    pictures = {s.name: np.load(out / f"{s.name}.npy", mmap_mode="r", allow_pickle=False)[:shown] for s in samplers}
    pictures = {name: show(np.asarray(samples)) for name, samples in pictures.items()}
    for name, images in pictures.items():
        save_grid(images, out / "grids" / f"{name}.png", columns=COLUMNS)
    titles = {s.name: s.title for s in samplers}
    chosen = side_by_side_choice([s.describe() for s in samplers])
    panels = [(titles[s["name"]], pictures[s["name"]]) for s in chosen]
    side_by_side(panels, out / "grids" / "side_by_side.png", columns=COLUMNS)


if __name__ == "__main__":
    main(work, module="sample", params=params, per_dynamics=True, parallel=True)
