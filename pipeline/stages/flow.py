"""flow@d: the integration flow, noise to image in one evaluation."""

from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from ifm import anchors, dynamics, pretrained
from ifm.data.arrays import SampleSet
from ifm.data.splits import open_split
from ifm.data.trajectories import TrajectoryMetadata
from ifm.exact import ExactTeacher
from ifm.model import IntegrationFlow, Teacher, build_flow
from ifm.networks import build_network, copy_weights
from ifm.training.checkpoint import Checkpoints
from ifm.training.engine import ProcessExchange, make_accelerator
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings, write_curve
from ifm.training.phases import (
    Mean,
    Phase,
    consistency_phase,
    data_phase,
    interval_phase,
    mean_over_reference,
    trajectory_phase,
)
from ifm.trajectories import open_trajectories
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main


def params(stage: Stage) -> dict:
    return stage.sections("seed", "ode.sigma_data", f"ode.{stage.dynamics}", "network", "flow", "anchor")


def build(stage: Stage, *, shape: tuple[int, ...]) -> tuple[IntegrationFlow, dict[str, str]]:
    """The untrained flow, and the checksum of the teacher's weights where it starts from them (flow.init)."""
    config, d, start = stage.config, stage.dynamics, {}
    two_times = "interval" in config.flow.objectives
    anchor = {"takes_anchor": config.anchor.policy != "none", "anchor_input": config.anchor.input}
    network = build_network(shape=shape, two_times=two_times, **anchor, **config.network.model_dump())
    if config.flow.init == "teacher":
        copy_weights(pretrained.load_teacher(paths.teacher(d)).network, network)
        start = {"teacher": pretrained.describe(paths.teacher(d))["sha256"]}
    ode = dynamics.build(d, **config.ode.options(d))
    return build_flow(network, ode, scheme=config.flow.scheme, two_times=two_times, **anchor), start


def open_mean(
    stage: Stage, accelerator: Accelerator, flow: IntegrationFlow, images: SampleSet, pairs: dict[str, Any]
) -> tuple[Mean | None, dict[str, str]]:
    """Where consistency and interval take velocities from (flow.velocity), and the teacher's checksum if from it."""
    config = stage.config.flow
    if config.velocity == "pair":
        return None, {}
    if config.velocity == "reference":
        return mean_over_reference(accelerator, flow.dynamics, images, size=config.reference_batch, **pairs), {}
    teacher = _teacher_of(stage.dynamics, accelerator.device)
    return lambda step: teacher, {"teacher": pretrained.describe(paths.teacher(stage.dynamics))["sha256"]}


def _teacher_of(d: str, device: torch.device) -> Teacher | ExactTeacher:
    """The teacher of a dynamics, to be asked and not trained."""
    return pretrained.load_teacher(paths.teacher(d)).to(device, memory_format=torch.channels_last).requires_grad_(False)


def open_phases(stage: Stage, accelerator: Accelerator, flow: IntegrationFlow) -> tuple[list[Phase], dict[str, str]]:
    """The phases that flow.objective or flow.phases ask for, and the checksums of what they train on."""
    config, d = stage.config.flow, stage.dynamics
    compare = {"distance": config.distance, "huber_c": config.huber_c}
    phases, digest = [], {}
    for objective in config.objectives:
        if objective == "trajectory":
            metadata, device = TrajectoryMetadata.read(paths.trajectories(d)), accelerator.device
            digest |= {"trajectories": metadata.sha256, "teacher": metadata.teacher}
            ask = partial(_teacher_of, d, device)
            stored = open_trajectories(paths.trajectories(d), metadata, flow.dynamics, load_teacher=ask, device=device)
            options = {"t_max_share": config.t_max_share, "weighting": config.time_weight, **compare}
            phases.append(trajectory_phase(accelerator, flow, stored, **options))
            continue
        images = open_split(paths.PROCESSED, "train")
        digest["images"] = images.metadata.splits["train"].sha256
        pairs = {"random_flip": images.random_flip, "batch_size": config.batch_size, "seed": stage.config.seed}
        mean = None
        if objective != "data":
            mean, of_teacher = open_mean(stage, accelerator, flow, images, pairs)
            digest |= of_teacher
        make = {
            "data": partial(
                data_phase,
                t_max_share=config.t_max_share,
                mixed=config.schedule == "mixed",
                weighting=config.time_weight,
                **compare,
            ),
            "consistency": partial(
                consistency_phase,
                intervals=config.consistency.range,
                target=config.consistency.target,
                mean=mean,
                **compare,
            ),
            "interval": partial(interval_phase, mean=mean, **config.interval.model_dump()),
        }[objective]
        phases.append(make(accelerator, flow, images, **pairs))
    return phases, digest


def work(stage: Stage) -> None:
    """Trains the flow of one dynamics, on data/trajectories/{dynamics} or, without a teacher, on data/processed."""
    config, d = stage.config, stage.dynamics
    shape = tuple(open_split(paths.PROCESSED, "train").shape)
    accelerator = make_accelerator(config.flow.precision, seed=config.seed)
    flow, start = build(stage, shape=shape)
    phases, digest = open_phases(stage, accelerator, flow)
    policy = anchors.build(
        config.anchor.policy,
        self_probability=config.anchor.self_probability,
        reset_probability=config.anchor.reset_probability,
        make_bank=lambda: anchors.AnchorBank(
            phases[0].size, shape, seed=config.seed, exchange=ProcessExchange(accelerator)
        ),
    )
    checkpoints = Checkpoints(stage.work_folder(params=params(stage), inputs=start | digest))
    result = train_flow(
        accelerator,
        flow,
        phases,
        policy=policy,
        settings=TrainSettings.from_config(config.flow),
        seed=config.seed,
        checkpoints=checkpoints,
        on_log=stage.run.log_row,
    )
    if not accelerator.is_main_process:
        return
    record = {
        "objective": "+".join(config.flow.objectives),
        "anchor": config.anchor.policy,
        "image_shape": list(shape),
        "train_images": config.flow.steps * config.flow.batch_size,
        "trained_on": start | digest,
    }
    pretrained.save_model(flow, paths.flow(d), record=record)
    write_curve(paths.curve(stage.name), result.history)
    stage.run.timings["train_seconds"] = result.seconds
    stage.run.log_metrics({"final_loss": result.history[-1]["loss"], "resumed_from": result.resumed_from})
    stage.run.log_model(stage.name, folder=paths.flow(d), description=pretrained.describe(paths.flow(d)))


if __name__ == "__main__":
    main(work, module="flow", params=params, per_dynamics=True, parallel=True)
