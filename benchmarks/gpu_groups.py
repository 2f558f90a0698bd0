"""The groups of measurements of benchmarks.gpu_step: the project's own training, sampling and paths on one device."""

import copy
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.subjects import ROOT, Options, Subject
from benchmarks.timing import LoopClock, wait
from benchmarks.training import flow_training, teacher_training
from ifm import random
from ifm.config import parse
from ifm.hardware.devices import to_device
from ifm.networks.asking import prepare
from ifm.solver import at_time, solve_ode
from pipeline.tools.preset import apply, parse_yaml

SWITCHES = ("IFM_GRAPHS", "IFM_KERNELS", "IFM_COMPILE")
FAST, KERNELS, PLAIN = ("on", "on", "off"), ("off", "on", "off"), ("off", "off", "off")
COMPILED = ("off", "off", "on")
NAMES = {FAST: "kernels and graphs", KERNELS: "kernels", PLAIN: "plain", COMPILED: "compiled"}
TOP = 25  # kernels that a profile shows


@contextmanager
def switches(values: tuple[str, ...]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(zip(SWITCHES, values, strict=True))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@dataclass(frozen=True)
class Bench:
    """Where results go, and the sizes: a line of JSON for each result, and the screen."""

    out: Path
    group: str
    device: torch.device
    tiny: bool

    def add(self, name: str, **values: Any) -> None:
        row = {"group": self.group, "name": name, **values}
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)

    def attempt(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Adds what `work` gives, or what it raised."""
        began = time.perf_counter()
        try:
            values = work()
        except Exception as error:  # the next measurements still count
            values = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        self.add(name, **values, took=round(time.perf_counter() - began, 1))
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, float]:
        return {"gb": torch.cuda.max_memory_allocated() / 1e9} if self.device.type == "cuda" else {}

    def subject(self, name: str, batch: int, steps: int) -> Subject:
        """A preset's networks; tiny ones where that was asked."""
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        values = parse_yaml(apply(name, text, data="." if name == "cifar10-jpeg" else None))
        config = parse(values, source=f"preset {name}")
        if self.tiny:
            size = {"channels": [4, 8], "layers_per_block": 1, "norm_groups": 2}
            network = config.network.model_copy(update=size | {"attention": [False, any(config.network.attention)]})
            data = config.data.model_copy(update={"image_size": 4})
            config = config.model_copy(update={"network": network, "data": data})
        return Subject(name, config, 4 if self.tiny else batch, steps=2 if self.tiny else steps)


def line(row: dict[str, Any]) -> str:
    """A result in words."""
    rest = {k: v for k, v in row.items() if k not in ("group", "name", "table")}
    shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items())
    return f"[{row['group']}] {row['name']}: {shown}"


def seconds_of(work: Callable[[], Any], device: torch.device, *, budget: float) -> dict[str, float]:
    """Median milliseconds of a call, those the host takes to hand it out, and the first call's seconds."""
    first = time.perf_counter()
    work()
    wait(device)
    first = time.perf_counter() - first
    if "--tiny" in sys.argv:
        return {"ms": 1e3 * first, "first_s": first}
    for _ in range(4):  # a recording is made in the fourth call
        work()
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    calls = max(1, min(50, int(budget / 5 / (time.perf_counter() - began))))
    blocks, host = [], []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        host.append(1e3 * (time.perf_counter() - began) / calls)
        wait(device)
        blocks.append(1e3 * (time.perf_counter() - began) / calls)
    return {"ms": statistics.median(blocks), "host_ms": statistics.median(host), "first_s": first}


def training(bench: Bench, name: str, kind: str, batch: int, how: tuple[str, ...], *, steps: int) -> None:
    """The project's own training: draws, reading and all; the first steps, with all that is prepared in them, apart."""
    subject = bench.subject(name, batch, steps)

    def work() -> dict[str, Any]:
        make = {"teacher": teacher_training, "flow": flow_training}[kind]
        _, train = make(subject, Options(bench.device, rounds=1, quick=bench.tiny))
        first, warm = time.perf_counter(), 2 if bench.tiny else 8
        with switches(how), LoopClock(warm, subject.steps, bench.device) as clock:
            train(warm + subject.steps + 1)
        seconds = clock.seconds
        rest = {"images_s": subject.batch_size / seconds, "ms": 1e3 * seconds, "host_ms": 1e3 * clock.host}
        return rest | {"first_s": clock.began - first, "batch": subject.batch_size, **bench.memory()}

    bench.attempt(f"train {kind} {name}: {NAMES[how]}", work)


def kernels(bench: Bench, name: str, batch: int, how: tuple[str, ...]) -> None:
    """The kernels that take most of a step."""
    subject = bench.subject(name, batch, 1)
    _, train = teacher_training(subject, Options(bench.device, rounds=1, quick=bench.tiny))
    on_gpu = bench.device.type == "cuda"
    with switches(how):
        train(1)
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
            train(1)
            wait(bench.device)
    rows: dict[str, tuple[int, float]] = {}
    for event in profiled.events():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        calls, total = rows.get(event.name, (0, 0.0))
        rows[event.name] = calls + 1, total + spent / 1e3
    top = sorted(rows.items(), key=lambda item: -item[1][1])[:TOP]
    table = [{"kernel": kernel[:110], "calls": calls, "ms": round(ms, 3)} for kernel, (calls, ms) in top]
    total = sum(ms for _, ms in rows.values())
    bench.add(f"kernels of a step {name}: {NAMES[how]}", total_ms=total, table=table)
    for row in table:
        print(f"    {row['ms']:9.3f} ms {row['calls']:5d}  {row['kernel']}", flush=True)


def jpeg(bench: Bench) -> None:
    for how in (FAST, KERNELS, PLAIN):
        training(bench, "cifar10-jpeg", "teacher", 256, how, steps=16)
    training(bench, "cifar10-jpeg", "flow", 256, FAST, steps=16)
    kernels(bench, "cifar10-jpeg", 256, KERNELS)
    kernels(bench, "cifar10-jpeg", 256, PLAIN)


def small(bench: Bench) -> None:
    for how in (FAST, PLAIN):
        training(bench, "digits", "teacher", 128, how, steps=60)
        training(bench, "digits", "flow", 64, how, steps=60)
    training(bench, "digits", "teacher", 128, KERNELS, steps=40)
    draws(bench)


def cifar10(bench: Bench) -> None:
    training(bench, "cifar10", "teacher", 128, FAST, steps=12)
    training(bench, "cifar10", "teacher", 512, FAST, steps=6)
    training(bench, "cifar10", "teacher", 128, PLAIN, steps=8)


def compiled(bench: Bench) -> None:
    training(bench, "cifar10-jpeg", "teacher", 256, COMPILED, steps=12)


def draws(bench: Bench) -> None:
    """The host's work for a step: draws keyed by sample, and their way to the device."""
    for name, batch, shape in (("digits", 64, (1, 8, 8)), ("jpeg", 256, (3, 32, 32)), ("cifar10", 512, (3, 32, 32))):
        before = random.THREADS
        for threads in (1, 8):
            random.THREADS = threads

            def draw(batch: int = batch, shape: tuple[int, ...] = shape) -> Tensor:
                streams = random.Streams(0, "noise", range(batch), step=1)
                streams.normal(())
                return streams.normal(shape)

            bench.add(f"draws {name}, {threads} threads", **seconds_of(draw, torch.device("cpu"), budget=0.1))
        random.THREADS = before
        z = torch.randn(batch, *shape)
        bench.add(f"to device {name}", **seconds_of(partial(to_device, z, bench.device), bench.device, budget=0.05))


def _prepared(bench: Bench, model: Any, precision: str, how: tuple[str, ...], *, recorded: bool) -> Any:
    model = copy.deepcopy(model).to(bench.device, memory_format=torch.channels_last).eval()
    with switches(how):
        return prepare(model, precision, recorded=recorded)


def sampling(bench: Bench) -> None:
    subject = bench.subject("cifar10-jpeg", 256, 1)
    flow = subject.flow()
    torch.manual_seed(0)
    sizes = (4, 2) if bench.tiny else (1024, 256, 64, 1)
    x = 80 * torch.randn(sizes[0], *subject.shape, device=bench.device)
    anchor = torch.randn_like(x)

    @torch.inference_mode()
    def ask(model: Any, n: int) -> Tensor:
        return model(x[:n], at_time(x[:n], 80.0), x_anchor=anchor[:n])

    torch.backends.cudnn.allow_tf32 = False
    want = ask(_prepared(bench, flow, "no", PLAIN, recorded=False), sizes[1])
    torch.backends.cudnn.allow_tf32 = True
    for precision, how in (("bf16", FAST), ("fp16", FAST), ("no", FAST), ("no", PLAIN), ("bf16", PLAIN)):
        model = _prepared(bench, flow, precision, how, recorded=True)

        def error(model: Any = model) -> dict[str, float]:
            got = ask(model, sizes[1])
            return {"relative": float((got - want).norm() / want.norm())}

        bench.attempt(f"sample error {precision}, {NAMES[how]}", error)
        for n in sizes:

            def work(n: int = n, model: Any = model) -> dict[str, Any]:
                found = seconds_of(partial(ask, model, n), bench.device, budget=0.2)
                return {"images_s": n / found["ms"] * 1e3, **found, **bench.memory()}

            bench.attempt(f"sample {precision}, {NAMES[how]}, batch {n}", work)


def paths(bench: Bench) -> None:
    subject = bench.subject("cifar10-jpeg", 256, 1)
    teacher, sizes = subject.teacher(), (4, 2, 2) if bench.tiny else (1000, 4000, 200)
    times = teacher.dynamics.solver_times(2)
    x = 80 * torch.randn(max(sizes), *subject.shape, device=bench.device)
    for precision, how in (("bf16", FAST), ("fp16", FAST), ("no", FAST), ("no", PLAIN), ("bf16", PLAIN)):
        model = _prepared(bench, teacher, precision, how, recorded=False)
        for n in sizes if precision != "no" else sizes[:1]:

            @torch.inference_mode()
            def solve(n: int = n, model: Any = model) -> Tensor:
                return solve_ode(model, x[:n], dynamics=teacher.dynamics, times=times)

            def work(n: int = n, solve: Any = solve) -> dict[str, Any]:
                found = seconds_of(solve, bench.device, budget=0.5)
                return {"evaluations_s": 3 * n / found["ms"] * 1e3, **found, **bench.memory()}

            bench.attempt(f"paths {precision}, {NAMES[how]}, batch {n}", work)


WORK: dict[str, Callable[[Bench], None]] = {
    "cold": compiled,
    "small": small,
    "jpeg": jpeg,
    "sampling": sampling,
    "paths": paths,
    "cifar10": cifar10,
    "warm": compiled,
}
