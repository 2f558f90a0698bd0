"""Generation of the teacher's trajectories, against the network's bare forward passes."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.results import Result, short
from benchmarks.subjects import Options, placed, subjects
from benchmarks.timing import Spread, interleave, speed_ratio, timed
from ifm.solver import solver_nfe
from ifm.trajectories import generate


def trajectories(options: Options) -> Iterator[Result]:
    """Trajectories/s, and network evaluations/s as share of what bare forward passes reach."""
    for subject in subjects(options):
        values, accelerator = subject.config.trajectories, options.accelerator()
        teacher = placed(subject.teacher(), options, values.precision)
        size = values.batch_size
        count, nfe = size if options.quick or size >= 1000 else 2 * size, solver_nfe(values.solver_steps)
        x, t = torch.randn(size, *subject.shape, device=options.device), torch.ones(size, device=options.device)

        def ours(teacher=teacher, values=values, count=count, shape=subject.shape, accelerator=accelerator) -> None:
            with tempfile.TemporaryDirectory() as folder:
                generate(
                    accelerator,
                    teacher,
                    teacher.dynamics,
                    shape=shape,
                    count=count,
                    stored_times=values.stored_times,
                    solver_steps=values.solver_steps,
                    rho=values.rho,
                    batch_size=values.batch_size,
                    shard_size=count,
                    seed=0,
                    work=Path(folder),
                )

        @torch.no_grad()
        def forward(teacher=teacher, x=x, t=t) -> None:
            teacher(x, t)

        passes = count // size * nfe
        contestants = {
            "ours": timed(ours, device=options.device),
            "forward": timed(forward, device=options.device, calls=passes),
        }
        seconds = interleave(contestants, rounds=options.rounds)
        yield Result.rate(
            f"trajectories: {subject.name}",
            "trajectories/s",
            amount=count,
            seconds=seconds["ours"],
            note=f"{nfe} evaluations each, batch {size}, files included",
        )
        share = speed_ratio(seconds["ours"], [s * passes for s in seconds["forward"]])
        yield Result.of(
            f"evaluations in trajectories: {subject.name}",
            count * nfe / Spread.of(seconds["ours"]).median,
            "evaluations/s",
            peer="bare forward passes",
            ratio=share.median,
            note=f"quartiles of the ratio {short(share.low)} to {short(share.high)}",
        )
