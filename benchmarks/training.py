"""Training: the step itself, the loop around it, and the same network under other projects' steps."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers
from benchmarks.results import Result, Skipped, Target, short
from benchmarks.subjects import Options, Subject, preset, subjects
from benchmarks.timing import (
    Apart,
    Contestant,
    LoopClock,
    Spread,
    StepClock,
    fresh_process,
    interleave,
    speed_ratio,
    timed,
)
from ifm import anchors
from ifm.errors import in_a_line
from ifm.hardware.devices import Rows, memory_format
from ifm.hardware.memory import peak_memory
from ifm.model import IntegrationFlow, Teacher
from ifm.objectives.trajectory import trajectory_phase
from ifm.random import Streams
from ifm.training.flow import train_flow
from ifm.training.loop import FitResult, Loss, TrainSettings
from ifm.training.teacher import train_teacher
from ifm.trajectories import StoredTrajectories

Train = Callable[[int], Any]  # of so many steps
STORED_TIMES = 4
CPU = torch.device("cpu")
CLOSE = 2  # times the rounds, where a few per cent are in question


def settings_for(subject: Subject, steps: int) -> TrainSettings:
    """The preset's, for `steps` steps of the subject's batch, with one line of log at the end."""
    settings = TrainSettings.from_config(subject.config.teacher)
    return replace(settings, steps=steps, batch_size=subject.batch_size, log_every=steps, checkpoint_every=steps)


def teacher_training(subject: Subject, options: Options) -> tuple[Teacher, Train]:
    """A fresh teacher and how it is trained."""
    teacher, images, accelerator = subject.teacher(), subject.images(), options.accelerator()

    def train(steps: int) -> None:
        train_teacher(accelerator, teacher, images, settings=settings_for(subject, steps), random_flip=False, seed=0)

    return teacher, train


def random_paths(subject: Subject, count: int) -> np.ndarray:
    """The states after x_T: float16 [count, STORED_TIMES - 1, C, S, S]."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, STORED_TIMES - 1, *subject.shape), np.float32).astype(np.float16)


def flow_training(subject: Subject, options: Options, *, states: Rows | None = None) -> tuple[IntegrationFlow, Train]:
    """A fresh flow and how it is trained: objective trajectory, anchor policy self; by default on 500 random paths."""
    flow, accelerator, config = subject.flow(), options.accelerator(), subject.config
    paths = StoredTrajectories(
        random_paths(subject, 500) if states is None else states,
        flow.dynamics,
        times=flow.dynamics.solver_times(STORED_TIMES - 1),
        shape=subject.shape,
        seed=0,
        device=accelerator.device,
    )
    phase = trajectory_phase(
        accelerator,
        flow,
        paths,
        t_max_share=config.flow.t_max_share,
        distance=config.flow.distance,
        huber_c=config.flow.huber_c,
    )
    policy = anchors.build("self", self_probability=config.anchor.self_probability)

    def train(steps: int) -> None:
        train_flow(accelerator, flow, [phase], policy=policy, settings=settings_for(subject, steps), seed=0)

    return flow, train


TRAINED = {"teacher": teacher_training, "flow": flow_training}
WARM = 8  # steps on a GPU until all that is recorded is


def clocked(network: nn.Module, train: Train, *, steps: int, device: torch.device, recorded: bool = True) -> Contestant:
    """Seconds of a whole step, over `steps` of them. recorded: by the project's loop, which records steps on a GPU.

    On a GPU the first steps are left out: what they prepare is paid once in a training.
    """
    on_gpu = device.type == "cuda"
    warm = WARM if on_gpu else 0

    def once() -> float:
        step = StepClock(network, steps=steps, device=device, warm=warm)
        with LoopClock(warm, steps, device) if recorded and on_gpu else step as clock:
            train(warm + steps + 1)
        return clock.seconds

    return once


def flops_of_step(train: Train) -> int:
    """Floating-point operations of one step's matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        train(1)
    return counter.get_total_flops()


def matmul(options: Options) -> Contestant:
    """Seconds for a floating-point operation of a large matrix product in training's dtype."""
    n = (512 if options.quick else 2048) if options.device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=options.device, dtype=options.dtype) for _ in range(2))
    product = timed(lambda: a @ b, device=options.device, calls=3)
    return lambda: product() / (2 * n**3)


def convolution(options: Options) -> Contestant:
    """The same of a large convolution: on CPUs another library does it, which may be faster than the product's."""
    channels, side = 128 if options.device.type == "cpu" else 512, 64
    x, weight = torch.randn(8, channels, side, side), torch.randn(channels, channels, 3, 3)
    placed = {"device": options.device, "dtype": options.dtype, "memory_format": torch.channels_last}
    x, weight = x.to(**placed), weight.to(**placed)
    flops = 2 * 9 * channels**2 * 8 * (side - 2) ** 2
    product = timed(lambda: nn.functional.conv2d(x, weight), device=options.device, calls=3)
    return lambda: product() / flops


PEAKS = {"matmul": matmul, "convolution": convolution}


def step(options: Options) -> Iterator[Result]:
    """Images/s, share of the device's peak and memory, of teacher and flow."""
    for subject in subjects(options):
        for kind in TRAINED:
            yield from _rate_and_share(kind, subject, options)
            yield _memory(kind, subject, options)


def _rate_and_share(kind: str, subject: Subject, options: Options) -> Iterator[Result]:
    model, train = TRAINED[kind](subject, options)
    flops = flops_of_step(train)
    contestants = {name: make(options) for name, make in PEAKS.items()}
    contestants["step"] = clocked(model, train, steps=subject.steps, device=options.device)
    seconds = interleave(contestants, rounds=options.rounds)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    yield Result.rate(
        f"training step: {kind}, {subject.name}",
        "images/s",
        amount=subject.batch_size,
        seconds=seconds["step"],
        note=f"{short(millions)} million parameters, batch {subject.batch_size}, {options.dtype}".replace("torch.", ""),
    )
    best = min(PEAKS, key=lambda name: Spread.of(seconds[name]).median)
    share = speed_ratio(seconds["step"], [s * flops for s in seconds[best]])
    rate = {name: short(1e-9 / Spread.of(seconds[name]).median) for name in PEAKS}
    yield Result.of(
        f"model FLOPs utilisation: {kind}, {subject.name}",
        share.median,
        "of peak",
        note=f"quartiles {short(share.low)} to {short(share.high)}; {short(flops / subject.batch_size / 1e6)} MFLOP an "
        f"image; peak: the faster of a large matrix product, {rate['matmul']} GFLOP/s, and a large convolution, "
        f"{rate['convolution']} GFLOP/s",
    )


def _memory(kind: str, subject: Subject, options: Options) -> Result:
    name = f"peak memory: {kind}, {subject.name}"
    # In a process of its own: in this one freed memory would be used again, and not be counted.
    steps = 2 if options.device.type == "cpu" else WARM
    with fresh_process() as pool:
        megabytes = pool.submit(_peak_of_training, kind, subject, options, steps).result()
    if megabytes is None:
        return Result.skipped(name, "this system does not tell it")
    return Result.of(
        name, megabytes, "MB", note=f"of {steps} steps in a fresh process, over what the model's making took"
    )


def _peak_of_training(kind: str, subject: Subject, options: Options, steps: int) -> float | None:
    _, train = TRAINED[kind](subject, options)
    with peak_memory(options.device) as peak:
        train(steps)
    return peak.megabytes


def bare_fit(accelerator: Any, model: nn.Module, *, loss: Loss, settings: TrainSettings, **unused: Any) -> FitResult:
    """In place of `ifm.training.loop.fit`: the same work in a plain loop, without schedule, log or checkpoints."""
    model.train().to(accelerator.device, memory_format=memory_format(accelerator.device))
    peers.plain_loop(model, lambda m, step: next(loss(m, step)), settings=settings, device=accelerator.device)
    return FitResult()


def overhead(options: Options) -> Iterator[Result]:
    """`fit` against a plain loop, both on the teacher's own loss, data order and draws."""
    for subject in subjects(options):
        kwargs = {"steps": subject.steps, "device": options.device}
        teacher, train = teacher_training(subject, options)
        other, train_other = teacher_training(subject, options)

        def bare(steps: int, train: Train = train_other) -> None:
            with mock.patch("ifm.training.teacher.fit", bare_fit):
                train(steps)

        contestants = {
            "fit": clocked(teacher, train, **kwargs),
            "bare": clocked(other, bare, **kwargs, recorded=False),
        }
        seconds = interleave(contestants, rounds=CLOSE * options.rounds)
        yield Result.rate(
            f"training loop: {subject.name}",
            "images/s",
            amount=subject.batch_size,
            seconds=seconds["fit"],
            peer="plain PyTorch loop",
            peers=seconds["bare"],
            target=Target("ratio", ">=", 0.95),
        )


def against_peers(options: Options) -> Iterator[Result]:
    """The teacher's step against other projects' on a copy of its network and the same batch size.

    On a GPU against the fastest of them, compiled, too.
    """
    on_gpu = options.device.type == "cuda"
    target = Target("ratio", ">=", 1.2) if on_gpu else NOT_SLOWER
    losses = dict(peers.TRAINING)
    if options.edm:
        losses["EDM"] = partial(peers.edm_loss, folder=options.edm)
    for subject in subjects(options):
        ratios = {}
        for peer, make_loss in losses.items():
            row = _against(peer, make_loss, subject, options, target=target)
            if row.ratio is not None:
                ratios[peer] = row.ratio
            yield row
        if on_gpu and ratios:
            fastest = min(ratios, key=ratios.get)
            yield _against(fastest, losses[fastest], subject, options, target=NOT_SLOWER, compiled=True)
    if not options.edm:
        yield Result.skipped("training step against EDM", "no --edm PATH was given", peer="EDM", target=target)


NOT_SLOWER = Target("ratio", ">=", 1.0)


def _against(
    peer: str, make_loss: peers.MakeLoss, subject: Subject, options: Options, *, target: Target, compiled: bool = False
) -> Result:
    name = f"training step against {peer}{', compiled' * compiled}: {subject.name}"
    teacher, train = teacher_training(subject, options)
    ours = clocked(teacher, train, steps=subject.steps, device=options.device)
    try:
        with Apart(partial(_peer, make_loss, subject, options, compiled=compiled)) as theirs:
            seconds = interleave({"ours": ours, "peer": theirs}, rounds=CLOSE * options.rounds)
    except Skipped as reason:
        return Result.skipped(name, reason, peer=peer, target=target)
    except Exception as error:
        if not compiled:
            raise
        return Result.skipped(name, f"torch.compile failed ({in_a_line(error)[:200]})", peer=peer, target=target)
    return Result.rate(
        name,
        "images/s",
        amount=subject.batch_size,
        seconds=seconds["ours"],
        peer=peer,
        peers=seconds["peer"],
        target=target,
    )


def _peer(make_loss: peers.MakeLoss, subject: Subject, options: Options, *, compiled: bool = False) -> Contestant:
    torch.backends.cudnn.benchmark = True  # as `make_accelerator` has it for us
    loss = make_loss(peers.Batches(subject.images(), subject.batch_size, options.device))
    network = subject.teacher().network.train().to(options.device)
    if compiled:
        network.forward = torch.compile(network.forward, dynamic=False)  # in the round that does not count

    def train(steps: int) -> None:
        peers.plain_loop(network, loss, settings=settings_for(subject, steps), device=options.device)

    return clocked(network, train, steps=subject.steps, device=options.device, recorded=False)


def keyed_draws(options: Options) -> Iterator[Result]:
    """Noise and times of a batch from a stream for each sample, against one generator for all."""
    for name in ("digits", "cifar10"):
        config = preset(name)
        n, shape = config.teacher.batch_size, (config.data.channels, config.data.image_size, config.data.image_size)

        def ours(n: int = n, shape: tuple[int, ...] = shape) -> tuple[Tensor, Tensor]:
            draws = Streams(0, "noise", range(n), step=1)
            return draws.normal(()), draws.normal(shape)

        def simple(n: int = n, shape: tuple[int, ...] = shape) -> tuple[Tensor, Tensor]:
            return torch.randn(n), torch.randn(n, *shape)

        contestants = {kind: timed(draw, device=CPU, calls=5) for kind, draw in (("ours", ours), ("torch", simple))}
        seconds = interleave(contestants, rounds=options.rounds)
        yield Result.rate(
            f"draws keyed by sample: {name}",
            "samples/s",
            amount=n,
            seconds=seconds["ours"],
            peer="torch.randn",
            peers=seconds["torch"],
            note=f"on the host; {short(1e3 * Spread.of(seconds['ours']).median)} ms for the preset's batch of {n}",
        )
