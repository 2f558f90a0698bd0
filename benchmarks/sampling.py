"""Sampling: the flow's one step against Heun's 35 evaluations, batch sizes, and other projects' solvers."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks import peers
from benchmarks.results import Result, Skipped, Target
from benchmarks.subjects import Options, digits, placed, subjects
from benchmarks.timing import Contestant, interleave, timed
from ifm.conditions.classes import Classes
from ifm.sampling import Draws, Sampler, flow_sampler, teacher_sampler
from ifm.solver import solve_ode

HEUN_NFE = 35
CLOSE = 3  # times the rounds, where one takes milliseconds


@torch.inference_mode()
def _run(sampler: Sampler, draws: Draws) -> None:
    sampler.run(draws)


def _contestant(
    sampler: Sampler, dynamics, shape, size: int, options: Options, *, calls: int = 1, condition=None
) -> Contestant:
    draws = Draws.of(dynamics, shape, range(size), seed=0, device=options.device, condition=condition)
    return timed(partial(_run, sampler, draws), device=options.device, calls=calls)


def one_step(options: Options) -> Iterator[Result]:
    """The flow in one evaluation against the teacher in 35, and the flow in batches of several sizes."""
    for subject in subjects(options):
        precision = subject.config.sample.precision
        teacher, flow = (placed(m, options, precision, recorded=True) for m in (subject.teacher(), subject.flow()))
        quick, heun = flow_sampler(flow, kind="one_step", steps=1), teacher_sampler(teacher, nfe=HEUN_NFE)
        common = (flow.dynamics, subject.shape)
        size = subject.config.sample.batch_size if options.device.type == "cpu" else 512
        contestants = {
            "flow": _contestant(quick, *common, size, options, calls=8),
            "heun": _contestant(heun, *common, size, options),
        }
        seconds = interleave(contestants, rounds=options.rounds)
        yield Result.rate(
            f"one-step sampling: {subject.name}",
            "images/s",
            amount=size,
            seconds=seconds["flow"],
            peer=f"Heun, {HEUN_NFE} evaluations",
            peers=seconds["heun"],
            target=Target("ratio", ">=", 33),
            note=f"batch {size}; both networks in one size, the flow's with an anchor",
        )
        yield from _batches(subject.name, quick, common, options)


def _batches(name: str, sampler: Sampler, common: tuple, options: Options) -> Iterator[Result]:
    """Images/s in batches of 1, of 64 and of the best size."""
    sizes = (1, 64) if options.quick else (1, 16, 64, 256, 1024)
    if options.device.type == "cuda" and not options.quick:
        sizes += (4096,)
    contestants = {str(n): _contestant(sampler, *common, n, options, calls=max(1, math.ceil(64 / n))) for n in sizes}
    seconds = interleave(contestants, rounds=options.rounds)
    rows = {
        n: Result.rate(f"one-step sampling in batches of {n}: {name}", "images/s", amount=n, seconds=seconds[str(n)])
        for n in sizes
    }
    best = max(sizes, key=lambda n: rows[n].value)
    yield from (rows[n] for n in dict.fromkeys((1, 64, best)))


def by_class(options: Options) -> Iterator[Result]:
    """One step of a flow by class, which takes the guidance scale as an input, against one without classes."""
    subject, size = digits(options), digits(options).config.sample.batch_size
    kind = Classes(classes=list("0123456789"), shares=[0.1] * 10, scale=[1.0, 4.0])
    flows = {"by class": subject.flow(condition=kind), "without": subject.flow()}
    contestants = {
        name: _contestant(
            flow_sampler(flow.to(options.device).eval(), kind="one_step", steps=1),
            flow.dynamics, subject.shape, size, options, calls=8, condition=flow.condition_kind,
        )
        for name, flow in flows.items()
    }  # fmt: skip
    seconds = interleave(contestants, rounds=CLOSE * options.rounds)
    yield Result.rate(
        f"one-step sampling by class: {subject.name}",
        "images/s",
        amount=size,
        seconds=seconds["by class"],
        peer="the same flow without classes",
        peers=seconds["without"],
        target=Target("ratio", ">=", 0.97),
        note=f"batch {size}; ten classes, w as an input",
    )


def solvers(options: Options) -> Iterator[Result]:
    """The teacher's ODE by Euler's method against other projects' samplers with as many evaluations."""
    subject = digits(options)
    teacher = subject.teacher().to(options.device).eval()
    size, nfe = 64, 5 if options.quick else HEUN_NFE
    x_T = torch.randn(size, *subject.shape, device=options.device)
    times = teacher.dynamics.solver_times(nfe)

    @torch.inference_mode()
    def ours() -> None:
        solve_ode(teacher, x_T, dynamics=teacher.dynamics, times=times, method="euler")

    for peer, solve in peers.SOLVERS.items():
        yield _against(
            f"{nfe} Euler steps against {peer}: {subject.name}",
            peer,
            timed(ours, device=options.device),
            timed(_peer(solve, teacher.network, x_T, nfe), device=options.device),
            amount=size,
            rounds=options.rounds,
            note=f"batch {size}",
        )


STEPS = 4  # of multistep sampling


def multistep(options: Options) -> Iterator[Result]:
    """The flow's re-noised sampling against diffusers' consistency scheduler, on networks without an anchor."""
    subject, size = digits(options), 64
    flow = subject.flow(takes_anchor=False).to(options.device).eval()
    sampler = flow_sampler(flow, kind="renoise", steps=STEPS)
    x_T = torch.randn(size, *subject.shape, device=options.device)
    peer = "diffusers consistency"
    yield _against(
        f"{STEPS} re-noised steps against {peer}: {subject.name}",
        peer,
        _contestant(sampler, flow.dynamics, subject.shape, size, options),
        timed(_peer(peers.consistency, flow.network, x_T, STEPS), device=options.device),
        amount=size,
        rounds=CLOSE * options.rounds,
        note=f"batch {size}, {STEPS} evaluations each; our noise is keyed by sample",
    )


def _against(
    name: str, peer: str, ours: Contestant, theirs: Contestant, *, amount: int, rounds: int, note: str
) -> Result:
    """Images/s of ours over the peer's, or why the peer could not be measured."""
    try:
        seconds = interleave({"ours": ours, "peer": theirs}, rounds=rounds)
    except Skipped as reason:
        return Result.skipped(name, reason, peer=peer)
    taken = {"seconds": seconds["ours"], "peers": seconds["peer"]}
    return Result.rate(name, "images/s", amount=amount, peer=peer, note=note, **taken)


def _peer(solve: peers.Solver, network: nn.Module, x_T: torch.Tensor, nfe: int):
    @torch.inference_mode()
    def work() -> None:
        solve(network, x_T, nfe)

    return work
