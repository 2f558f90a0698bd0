"""Fair times on a machine that does other work too: contestants take turns, and ratios are taken within a turn."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from unittest import mock

import numpy as np
import torch
from torch import nn

from ifm.training.averages import ema_decay

Contestant = Callable[[], float]  # does its work once and gives the seconds that count
Clock = Callable[[], float]


def interleave(contestants: Mapping[str, Contestant], *, rounds: int, warmups: int = 1) -> dict[str, list[float]]:
    """Seconds of each contestant in each round: A B A B ..., after `warmups` rounds that are not counted.

    Raises ValueError for no rounds.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-warmups, rounds):
        for name, contestant in contestants.items():
            taken = contestant()
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def timed(
    work: Callable[[], Any], *, device: torch.device, calls: int = 1, clock: Clock = time.perf_counter
) -> Contestant:
    """A contestant that does `work` `calls` times and gives the mean seconds of a call, the device's work included."""

    def once() -> float:
        wait(device)
        began = clock()
        for _ in range(calls):
            work()
        wait(device)
        return (clock() - began) / calls

    return once


def fresh_process() -> ProcessPoolExecutor:
    """A process that has held and set up nothing yet."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


class Apart:
    """A contestant in a process of its own, as its users run it: how we set up ours does not touch it.

    make: gives the contestant, in that process; what it raises is raised here.
    """

    def __init__(self, make: Callable[[], Contestant]) -> None:
        self._pool = fresh_process()
        try:
            self._pool.submit(_make, make).result()
        except BaseException:
            self._pool.shutdown()
            raise

    def __call__(self) -> float:
        return self._pool.submit(_call).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()


_made: list[Contestant] = []  # in the process apart


def _make(make: Callable[[], Contestant]) -> None:
    _made.append(make())


def _call() -> float:
    return _made[-1]()


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Self:
        low, high = np.percentile(values, [25, 75]).tolist()
        return cls(low, statistics.median(values), high)


def speed_ratio(ours: list[float], peers: list[float]) -> Spread:
    """How many times as fast as the peer we are, round by round: above 1 we are faster.

    A ratio of neighbours in time stays what it is when the whole machine slows down for a while.
    """
    return Spread.of([peer / own for own, peer in zip(ours, peers, strict=True)])


class StepClock:
    """Seconds of `steps` whole training steps after `warm` others, from forward pass to forward pass with gradient.

    Whatever loop it is, set-up and end are outside. Passes without gradient (an anchor's) count as part of a step.
    """

    def __init__(
        self, network: nn.Module, *, steps: int, device: torch.device, warm: int = 0, clock: Clock = time.perf_counter
    ) -> None:
        self._network, self._steps, self._device, self._clock = network, steps, device, clock
        self._warm = warm
        self._passes, self._began, self._ended = 0, 0.0, None

    def __enter__(self) -> Self:
        self._handle = self._network.register_forward_pre_hook(self._tick)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _tick(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():
            return
        if self._passes in (self._warm, self._warm + self._steps):
            wait(self._device)
            if self._passes > self._warm:
                self._ended = self._clock()
            else:
                self._began = self._clock()
        self._passes += 1

    @property
    def seconds(self) -> float:
        """Of one step. Raises ValueError where there were too few: `steps` of them need one more to end."""
        if self._ended is None:
            need = self._warm + self._steps + 1
            raise ValueError(f"{self._steps} steps need {need} passes to be timed, got {self._passes}")
        return (self._ended - self._began) / self._steps


class LoopClock:
    """Seconds of a step of the project's own loop, over `steps` of them after `warm` others; one more ends them.

    It counts where the loop asks for the average's decay, once in a step: on a GPU steps are recorded after some plain
    ones, and a replayed step calls no hook of a module. host: seconds of a step until it was handed to the device.
    """

    def __init__(self, warm: int, steps: int, device: torch.device) -> None:
        self._warm, self._steps, self._device, self._count = warm, steps, device, 0
        self.began = self.seconds = self.host = 0.0

    def __enter__(self) -> Self:
        self._patch = mock.patch("ifm.training.averages.ema_decay", self._tick)
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()

    def _tick(self, step: int, decay: float) -> float:
        last = self._count == self._warm + self._steps
        if last:
            self.host = (time.perf_counter() - self.began) / self._steps
        if last or self._count == self._warm:
            wait(self._device)
            now = time.perf_counter()
            self.began, self.seconds = (self.began, (now - self.began) / self._steps) if last else (now, 0.0)
        self._count += 1
        return ema_decay(step, decay)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
