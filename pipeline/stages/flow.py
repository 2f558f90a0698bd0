"""flow@d: the integration flow, noise to image in one evaluation."""

import torch

from ifm import anchors, pretrained
from ifm.data.arrays import ShardedArray
from ifm.data.trajectories import TrajectoryMetadata
from ifm.model import IntegrationFlow
from ifm.networks import build_network, copy_weights
from ifm.training.checkpoint import Checkpoints
from ifm.training.engine import make_accelerator
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings, write_curve
from pipeline import paths
from pipeline.stage import Stage, main


def params(stage: Stage) -> dict:
    return stage.sections("seed", "network", "flow", "anchor")


def work(stage: Stage) -> None:
    """Trains the flow of one dynamics on data/trajectories/{dynamics}."""
    config, d = stage.config, stage.dynamics
    metadata = TrajectoryMetadata.read(paths.trajectories(d))
    trajectories = ShardedArray(metadata.paths(paths.trajectories(d)), stage=f"trajectories@{d}")
    accelerator = make_accelerator(config.flow.precision, seed=config.seed)
    teacher = pretrained.load_teacher(paths.teacher(d))
    policy = anchors.build(config.anchor.policy, self_probability=config.anchor.self_probability)
    shape = tuple(metadata.image_shape)
    network = build_network(shape=shape, takes_anchor=policy.takes_anchor, **config.network.model_dump())
    if config.flow.init == "teacher":
        copy_weights(teacher.network, network)
    flow = IntegrationFlow(network, teacher.dynamics, scheme=config.flow.scheme, takes_anchor=policy.takes_anchor)
    inputs = {"teacher": metadata.teacher, "trajectories": metadata.digest(paths.trajectories(d))}
    checkpoints = Checkpoints(stage.work_folder(params=params(stage), inputs=inputs))
    result = train_flow(
        accelerator,
        flow,
        trajectories,
        times=torch.tensor(metadata.times),
        policy=policy,
        settings=TrainSettings.from_config(config.flow),
        t_max_share=config.flow.t_max_share,
        distance=config.flow.distance,
        huber_c=config.flow.huber_c,
        seed=config.seed,
        checkpoints=checkpoints,
        on_log=stage.run.log_row,
    )
    if not accelerator.is_main_process:
        return
    record = {
        "objective": config.flow.objective,
        "anchor": config.anchor.policy,
        "image_shape": list(metadata.image_shape),
        "train_images": config.flow.steps * config.flow.batch_size,
        "trained_on": inputs,
    }
    pretrained.save_model(flow, paths.flow(d), record=record)
    write_curve(paths.curve(stage.name), result.history)
    stage.run.timings["train_seconds"] = result.seconds
    stage.run.log_metrics({"final_loss": result.history[-1]["loss"], "resumed_from": result.resumed_from})
    stage.run.log_model(stage.name, folder=paths.flow(d), description=pretrained.describe(paths.flow(d)))
    checkpoints.clear()


if __name__ == "__main__":
    main(work, module="flow", params=params, per_dynamics=True, parallel=True)
