"""flow@d: the integration flow, noise to image in one evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ifm import anchors, pretrained
from ifm.data.arrays import SampleSet, ShardedArray
from ifm.data.splits import open_split
from ifm.data.trajectories import TrajectoryMetadata
from ifm.model import IntegrationFlow
from ifm.networks import build_network, copy_weights
from ifm.training.checkpoint import Checkpoints
from ifm.training.engine import ProcessExchange, make_accelerator
from ifm.training.flow import train_flow, train_flow_on_data
from ifm.training.loop import FitResult, TrainSettings, write_curve
from pipeline import paths
from pipeline.stage import Stage, main


def params(stage: Stage) -> dict:
    return stage.sections("seed", "network", "flow", "anchor")


@dataclass(frozen=True)
class TrainingSet:
    """What the objective trains on: data/trajectories/{dynamics}, or the training images for objective `data`."""

    rows: ShardedArray | SampleSet
    image_shape: tuple[int, ...]  # (C, H, W) or (d,)
    digest: dict[str, str]  # what was trained on, for the checkpoint's key and the record
    train: Callable[..., FitResult]  # with what this objective alone needs


def open_training_set(stage: Stage) -> TrainingSet:
    """Opens what flow.objective needs, and nothing else."""
    d, flow = stage.dynamics, stage.config.flow
    if flow.objective == "data":
        images = open_split(paths.PROCESSED, "train")
        train = partial(train_flow_on_data, random_flip=images.random_flip, mixed=flow.schedule == "mixed")
        digest = {
            "teacher": pretrained.describe(paths.teacher(d))["sha256"],
            "images": images.metadata.splits["train"].sha256,
        }
        return TrainingSet(images, images.shape, digest, train)
    metadata = TrajectoryMetadata.read(paths.trajectories(d))
    rows = ShardedArray(metadata.paths(paths.trajectories(d)), stage=f"trajectories@{d}")
    train = partial(train_flow, times=torch.tensor(metadata.times))
    digest = {"teacher": metadata.teacher, "trajectories": metadata.digest(paths.trajectories(d))}
    return TrainingSet(rows, tuple(metadata.image_shape), digest, train)


def work(stage: Stage) -> None:
    """Trains the flow of one dynamics on data/trajectories/{dynamics}, or on data/processed (objective `data`)."""
    config, d = stage.config, stage.dynamics
    data = open_training_set(stage)
    accelerator = make_accelerator(config.flow.precision, seed=config.seed)
    teacher = pretrained.load_teacher(paths.teacher(d))
    policy = anchors.build(
        config.anchor.policy,
        self_probability=config.anchor.self_probability,
        reset_probability=config.anchor.reset_probability,
        make_bank=lambda: anchors.AnchorBank(
            len(data.rows), data.image_shape, seed=config.seed, exchange=ProcessExchange(accelerator)
        ),
    )
    network = build_network(
        shape=data.image_shape,
        takes_anchor=policy.takes_anchor,
        anchor_input=config.anchor.input,
        **config.network.model_dump(),
    )
    if config.flow.init == "teacher":
        copy_weights(teacher.network, network)
    flow = IntegrationFlow(
        network,
        teacher.dynamics,
        scheme=config.flow.scheme,
        takes_anchor=policy.takes_anchor,
        anchor_input=config.anchor.input,
    )
    checkpoints = Checkpoints(stage.work_folder(params=params(stage), inputs=data.digest))
    result = data.train(
        accelerator,
        flow,
        data.rows,
        policy=policy,
        settings=TrainSettings.from_config(config.flow),
        t_max_share=config.flow.t_max_share,
        distance=config.flow.distance,
        huber_c=config.flow.huber_c,
        weighting=config.flow.time_weight,
        seed=config.seed,
        checkpoints=checkpoints,
        on_log=stage.run.log_row,
    )
    if not accelerator.is_main_process:
        return
    record = {
        "objective": config.flow.objective,
        "anchor": config.anchor.policy,
        "image_shape": list(data.image_shape),
        "train_images": config.flow.steps * config.flow.batch_size,
        "trained_on": data.digest,
    }
    pretrained.save_model(flow, paths.flow(d), record=record)
    write_curve(paths.curve(stage.name), result.history)
    stage.run.timings["train_seconds"] = result.seconds
    stage.run.log_metrics({"final_loss": result.history[-1]["loss"], "resumed_from": result.resumed_from})
    stage.run.log_model(stage.name, folder=paths.flow(d), description=pretrained.describe(paths.flow(d)))
    checkpoints.clear()


if __name__ == "__main__":
    main(work, module="flow", params=params, per_dynamics=True, parallel=True)
