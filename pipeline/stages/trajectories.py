"""trajectories@d: the teacher's paths from x_T to x_0, at some of their times."""

import os

import torch

from ifm import objectives, pretrained
from ifm.data.trajectories import TrajectoryMetadata, digest
from ifm.files import fresh_folder
from ifm.guidance import Guidance, solver_evaluations
from ifm.hardware.processes import make_accelerator
from ifm.networks.asking import prepare
from ifm.trajectories import (
    generate,
    move_shards,
    open_trajectories,
    save_conditions,
    save_first,
    stored_times,
)
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main


def params(stage: Stage) -> dict:
    return stage.sections("seed", "guidance", "trajectories", "flow.objective")


def work(stage: Stage) -> None:
    """Solves the teacher's ODE and stores the paths in data/trajectories/{dynamics}."""
    config, d = stage.config, stage.dynamics
    if not objectives.needs_paths(config.flow):
        _write_none(stage)
        return
    accelerator = make_accelerator("no", seed=config.seed)
    teacher, description = pretrained.load_teacher(paths.teacher(d)), pretrained.describe(paths.teacher(d))
    guidance, kind = Guidance.of(config.guidance), teacher.condition_kind
    if guidance is not None:
        kind = kind.told_to(drops=kind.drops, scale=guidance.range)
    teacher = pretrained.guided(teacher, paths.teacher(d), guidance)
    teacher = teacher.to(accelerator.device, memory_format=torch.channels_last)
    prepare(teacher, config.trajectories.precision)
    folder = stage.work_folder(params=params(stage), inputs=pretrained.weights_of(paths.teacher(d), guidance))
    settings = config.trajectories.model_dump()
    precision = settings.pop("precision")
    if (store := settings.pop("store")) == "disk":
        shape = pretrained.state_shape(description)
        if kept := len(list(folder.glob("shard-*.npy"))):
            accelerator.print(f"{stage.name}: goes on after {kept} shards")
        common = {"shape": shape, "seed": config.seed, "work": folder, "kind": kind}
        shards = generate(accelerator, teacher, teacher.dynamics, **common, **settings)
    else:
        accelerator.print(f"{stage.name}: trajectories.store is none: training solves each path when it needs it")
        shards = []
    if not accelerator.is_main_process:
        return
    steps = settings["solver_steps"]
    metadata = TrajectoryMetadata(
        dynamics=d,
        count=settings["count"],
        times=stored_times(teacher.dynamics, settings).tolist(),
        solver_steps=settings["solver_steps"],
        rho=settings["rho"],
        nfe=solver_evaluations(teacher.dynamics, teacher.dynamics.solver_times(steps, rho=settings["rho"]), guidance),
        seed=config.seed,
        teacher=description["sha256"],
        shards=[shard.name for shard in shards],
        image_shape=list(pretrained.state_shape(description)),
        sha256=digest(shards),
        precision=precision,
        condition=None if kind is None else kind.describe(),
        guidance=None if guidance is None else guidance.describe(),
    )
    with fresh_folder(paths.trajectories(d)) as out:
        if shards:
            save_conditions(kind, settings["count"], out, seed=config.seed)
        save_first(
            open_trajectories(
                folder,
                metadata,
                teacher.dynamics,
                load_teacher=lambda: teacher,
                device=accelerator.device,
                conditions_in=out,
            ),
            out,
        )
        metadata.write(out)
        move_shards(shards, out)
    solved = settings["count"] if store == "disk" else 0
    stage.run.log_metrics({"trajectories": settings["count"], "evaluations": solved * metadata.nfe})


def _write_none(stage: Stage) -> None:
    """No paths, where the flow does not train on any."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    named = " and ".join(objectives.of(stage.config.flow))
    print(f"{stage.name}: the flow's objective is {named}, which needs no paths: nothing to solve")
    described = pretrained.describe(paths.teacher(stage.dynamics))
    with fresh_folder(paths.trajectories(stage.dynamics)) as out:
        TrajectoryMetadata(
            dynamics=stage.dynamics, count=0, times=[], solver_steps=0, rho=None, nfe=0, seed=stage.config.seed,
            teacher=described.get("sha256", ""), shards=[], sha256="",
            image_shape=list(pretrained.state_shape(described)),
        ).write(out)  # fmt: skip


if __name__ == "__main__":
    main(work, module="trajectories", params=params, per_dynamics=True, parallel=True)
