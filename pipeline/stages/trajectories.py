"""trajectories@d: the teacher's paths from x_T to x_0, at some of their times."""

import os

import torch

from ifm import pretrained
from ifm.data.trajectories import TrajectoryMetadata
from ifm.files import fresh_folder
from ifm.sampling import solver_nfe
from ifm.training.engine import make_accelerator
from ifm.trajectories import generate, move_shards
from pipeline import paths
from pipeline.stage import Stage, main


def params(stage: Stage) -> dict:
    return stage.sections("seed", "trajectories", "flow.objective", "flow.phases")


def work(stage: Stage) -> None:
    """Solves the teacher's ODE and stores the paths in data/trajectories/{dynamics}."""
    config, d = stage.config, stage.dynamics
    settings = config.trajectories
    if "trajectory" not in config.flow.objectives:
        _write_none(stage)
        return
    accelerator = make_accelerator("no", seed=config.seed)
    teacher, description = pretrained.load_teacher(paths.teacher(d)), pretrained.describe(paths.teacher(d))
    folder = stage.work_folder(params=params(stage), inputs={"teacher": description["sha256"]})
    shards, times = generate(
        accelerator,
        teacher.to(accelerator.device, memory_format=torch.channels_last),
        teacher.dynamics,
        shape=tuple(description["image_shape"]),
        seed=config.seed,
        work=folder,
        **settings.model_dump(),
    )
    if not accelerator.is_main_process:
        return
    metadata = TrajectoryMetadata(
        dynamics=d,
        count=settings.count,
        times=times.tolist(),
        solver_steps=settings.solver_steps,
        nfe=solver_nfe(settings.solver_steps),
        seed=config.seed,
        teacher=description["sha256"],
        shards=[shard.name for shard in shards],
        image_shape=description["image_shape"],
    )
    with fresh_folder(paths.trajectories(d)) as out:
        move_shards(shards, out)
        metadata.write(out)
    folder.rmdir()
    stage.run.log_metrics({"trajectories": settings.count, "evaluations": settings.count * metadata.nfe})


def _write_none(stage: Stage) -> None:
    """No paths, where the flow does not train on any."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    named = " and ".join(stage.config.flow.objectives)
    print(f"{stage.name}: the flow's objective is {named}, which needs no paths: nothing to solve")
    described = pretrained.describe(paths.teacher(stage.dynamics))
    with fresh_folder(paths.trajectories(stage.dynamics)) as out:
        TrajectoryMetadata(
            dynamics=stage.dynamics, count=0, times=[], solver_steps=0, nfe=0, seed=stage.config.seed,
            teacher=described.get("sha256", ""), shards=[], image_shape=described["image_shape"],
        ).write(out)  # fmt: skip


if __name__ == "__main__":
    main(work, module="trajectories", params=params, per_dynamics=True, parallel=True)
