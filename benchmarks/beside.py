"""Branches of the graph side by side, one thread each, alone and beside a process that keeps a core busy."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from benchmarks.results import Result, Target
from benchmarks.subjects import Options, digits
from benchmarks.timing import Contestant, fresh_process, interleave
from benchmarks.training import teacher_training

LOST = 2  # times as slow as a branch's share of the cores says, at most

_train: Callable[[], None]  # in a branch's process


def beside(options: Options) -> Iterator[Result]:
    """Training by as many branches as there are cores, against the same with one busy process more."""
    cores, subject = len(os.sched_getaffinity(0)), digits(options)
    share = cores / (cores + 1)
    with ExitStack() as stack:
        branches = [stack.enter_context(fresh_process()) for _ in range(cores)]
        for branch in [branch.submit(_prepare, options) for branch in branches]:
            branch.result()
        contestants = {"alone": _together(branches), "beside": _beside_other_work(_together(branches))}
        seconds = interleave(contestants, rounds=options.rounds)
    yield Result.rate(
        f"{cores} branches beside a busy process: {subject.name}",
        "images/s",
        amount=cores * subject.steps * subject.batch_size,
        seconds=seconds["beside"],
        peer="the same branches alone",
        peers=seconds["alone"],
        target=Target("ratio", ">=", share / LOST),
        note=f"one thread each; the branches' share of the cores is {share:.2f}",
    )


def _prepare(options: Options) -> None:
    global _train
    torch.set_num_threads(1)
    subject = digits(options)
    _, train = teacher_training(subject, options)
    _train = partial(train, subject.steps)
    _train()


def _run() -> None:
    _train()


def _together(branches: list[ProcessPoolExecutor]) -> Contestant:
    def once() -> float:
        began = time.perf_counter()
        for running in [branch.submit(_run) for branch in branches]:
            running.result()
        return time.perf_counter() - began

    return once


def _beside_other_work(contestant: Contestant) -> Contestant:
    def once() -> float:
        with busy():
            return contestant()

    return once


@contextmanager
def busy() -> Iterator[None]:
    """A process that computes without end."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()
