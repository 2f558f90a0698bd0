"""teacher@d: the denoiser whose ODE is to be integrated."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ifm import conditions, dynamics, pretrained
from ifm.adapters import inputs, places
from ifm.adapters.folder import read
from ifm.conditions.base import varying
from ifm.config import Config, NetworkConfig
from ifm.data.arrays import SampleSet
from ifm.data.splits import open_states
from ifm.exact import ExactTeacher
from ifm.files import read_json, write_json
from ifm.hardware.processes import make_accelerator
from ifm.modalities import at_work, mirrored
from ifm.model import Teacher
from ifm.networks import build_network
from ifm.networks.smaller import with_changes
from ifm.tracking import project_root
from ifm.training.checkpoint import Checkpoints
from ifm.training.loop import TrainSettings, write_curve
from ifm.training.teacher import train_teacher
from pipeline.runner import paths
from pipeline.runner.stage import Stage, from_main_process, main

SMALLER = "smaller"  # the folder of its checkpoints, in the stage's


def params(stage: Stage) -> dict:
    ode = ("ode.sigma_data", f"ode.{stage.dynamics}")
    weaker = ("guidance.weaker", "guidance.weaker_network")
    return stage.sections("seed", "condition", *weaker, *ode, "network", "teacher")


def work(stage: Stage) -> None:
    """Trains the teacher of one dynamics on data/processed, writes the exact one, adapts a public one, or none."""
    config, d = stage.config, stage.dynamics
    images = open_states(paths.PROCESSED, "train")
    if int(os.environ.get("RANK", "0")) == 0:  # before they are read
        root = project_root()
        local = inputs.look(config.teacher.model_dump(), root=root, memory=root / paths.SEEN_PUBLIC)
        inputs.note(paths.PUBLIC, local or inputs.Inputs())
    if config.teacher.kind == "none":
        _write_none(stage, images)
        return
    if config.teacher.kind == "exact":
        _write_exact(stage, images)
        return
    if config.teacher.kind == "pretrained":
        _write_pretrained(stage, images)
        return
    accelerator = make_accelerator(config.teacher.precision, seed=config.seed)
    kind, drop = conditions.of_data(config.condition.kind, images), config.condition.drop_probability
    if kind is not None:
        kind = kind.told_to(drops=drop > 0, scale=None)
    changes, smaller = config.guidance.weaker_network, None
    if changes:
        smaller = type(config.network).model_validate(with_changes(config.network.model_dump(), changes))

    def untrained(network: NetworkConfig) -> Teacher:
        of_data = {"shape": images.shape, "modality": images.modality.name}
        built = build_network(**of_data, takes_anchor=False, condition=kind, **network.model_dump())
        return Teacher(built, dynamics.of_params(d, config.ode, data=images))

    train = partial(
        train_teacher,
        accelerator,
        images=images,
        random_flip=images.random_flip,
        seed=config.seed,
        read_condition=None if kind is None else partial(kind.read, images),
        vary=varying(kind, drop=drop),
        modality=images.modality.name,
    )
    settings, weaker_steps = TrainSettings.from_config(config.teacher), _weaker_steps(config)
    teacher = untrained(config.network)  # first: its initial weights are the same with and without a smaller one
    trained_on = _inputs(images)
    work_folder = stage.work_folder(params=params(stage), inputs=trained_on)
    record = {**images.facts, "trained_on": trained_on}

    def smaller_one(network: NetworkConfig, made: Path) -> None:
        """Trains it, unless an attempt that was stopped later has."""
        weaker, of_it = untrained(network), replace(settings, steps=weaker_steps)
        if from_main_process(made.is_dir()):
            return
        scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
        found = train(weaker, settings=of_it, checkpoints=Checkpoints(work_folder / SMALLER), label="weaker teacher")
        if scaler is not None:
            accelerator.scaler.load_state_dict(scaler)  # the teacher starts as if it were alone
        if accelerator.is_main_process:
            write_json(took, found.seconds)
            train_images = of_it.steps * of_it.batch_size
            pretrained.save_model(weaker, made, record=record | {"train_images": train_images})

    made, took = work_folder / pretrained.WEAKER, work_folder / f"{SMALLER}.json"
    if smaller is not None:
        smaller_one(smaller, made)
    result = train(
        teacher,
        settings=settings,
        checkpoints=Checkpoints(work_folder),
        on_log=stage.run.log_row,
        keep_after=weaker_steps if smaller is None else None,
    )
    if not accelerator.is_main_process:
        return
    record |= {"train_images": settings.steps * settings.batch_size}
    weaker = result.kept if smaller is None else made
    pretrained.save_model(teacher, paths.teacher(d), record=record, weaker=weaker, decoder=images.decoder)
    write_curve(paths.curve(stage.name), result.history)
    of_the_smaller = 0.0 if smaller is None else read_json(took)
    stage.run.timings["train_seconds"] = of_the_smaller + result.seconds
    stage.run.log_metrics({"final_loss": result.history[-1]["loss"], "resumed_from": result.resumed_from})
    stage.run.log_model(stage.name, folder=paths.teacher(d), description=pretrained.describe(paths.teacher(d)))


def _weaker_steps(config: Config) -> int | None:
    """How many steps the weaker teacher of autoguidance is trained; None: there is none."""
    share, steps = config.guidance.weaker, config.teacher.steps
    return None if share is None else max(1, round(share * steps))


def _inputs(images: SampleSet) -> dict[str, str]:
    return {"images": images.metadata.splits["train"].sha256}


def _write_none(stage: Stage, images: SampleSet) -> None:
    """No teacher: its place is marked, for the stages that would compare with it."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    print(f"{stage.name}: teacher.kind is none: nothing to train")
    record = {**images.facts, "train_images": 0, "trained_on": {}}
    pretrained.save_no_teacher(paths.teacher(stage.dynamics), record=record)
    write_curve(paths.curve(stage.name), [])
    stage.run.timings["train_seconds"] = 0.0


def _write_exact(stage: Stage, images: SampleSet) -> None:
    """The closed-form denoiser of the training data, mirrored images included: no network, an empty curve."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    config, folder = stage.config, paths.teacher(stage.dynamics)
    rows = np.arange(len(images))
    at_rest = torch.from_numpy(images[rows])  # uint8 [n, C, H, W] or float32 [n, d]
    kind = conditions.of_data(config.condition.kind, images)
    kind = None if kind is None else kind.told_to(drops=True, scale=None)  # in closed form it knows no class too
    have = None if kind is None else kind.read(images, rows)
    if images.random_flip:
        at_rest = torch.cat([at_rest, mirrored(at_rest)])
        have = None if have is None else have.map(lambda x: torch.cat([x, x]))
    data = at_rest if images.decoder is None else at_work(at_rest)  # of latents the posteriors' means
    teacher = ExactTeacher(data, dynamics.of_params(stage.dynamics, config.ode, data=images), kind=kind, have=have)
    record = {**images.facts, "train_images": 0, "trained_on": _inputs(images)}
    pretrained.save_exact_teacher(teacher, folder, record=record, decoder=images.decoder)
    write_curve(paths.curve(stage.name), [])
    stage.run.timings["train_seconds"] = 0.0
    stage.run.log_model(stage.name, folder=folder, description=pretrained.describe(folder))


def _write_pretrained(stage: Stage, images: SampleSet) -> None:
    """A public model as the teacher of this dynamics, without training: an empty curve."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    config, folder = stage.config.teacher, paths.teacher(stage.dynamics)
    how = {"revision": config.revision, "scheduler": config.scheduler, "root": project_root()}
    found, origin = places.look_up(config.path, **how)
    ode = dynamics.of_params(stage.dynamics, stage.config.ode, data=images)
    kind = conditions.of_data(stage.config.condition.kind, images)
    if kind is not None:
        kind = kind.told_to(drops=stage.config.condition.drop_probability > 0, scale=None)
    network = read(found, shape=tuple(images.shape), sigma_data=ode.sigma_data, clock=ode.clock, condition=kind)
    print(f"{stage.name}: {network.in_a_line()}", flush=True)
    record = {**images.facts, "train_images": 0, "trained_on": {}, "origin": origin}
    pretrained.save_model(Teacher(network, ode), folder, record=record, decoder=images.decoder)
    write_curve(paths.curve(stage.name), [])
    stage.run.timings["train_seconds"] = 0.0
    stage.run.log_model(stage.name, folder=folder, description=pretrained.describe(folder))


if __name__ == "__main__":
    main(work, module="teacher", params=params, per_dynamics=True, parallel=True)
