"""`python -m benchmarks.gpu_step --out FILE`: variants of training step, sampling and paths on one GPU, within a limit.

Each group of measurements has a process and a time limit of its own. All are started at once and wait for their turn,
so that imports cost nothing; compilers work beside the others. Each result is a line of JSON in FILE at once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
# Name: (seconds at most, whether it runs beside the others from the start). In order of their turns.
GROUPS: dict[str, tuple[float, bool]] = {
    "cold-regions": (120, True),
    "cold-norms": (120, True),
    "cold-whole": (130, True),
    "cold-small": (120, True),
    "jpeg": (45, False),
    "small": (30, False),
    "sampling": (25, False),
    "cifar10": (22, False),
    "paths": (22, False),
    "warm-regions": (25, False),
    "warm-norms": (20, False),
    "warm-small": (20, False),
    "project": (20, False),
    "warm-whole": (25, False),
}


class Book:
    """Where results go: a line of JSON each, and the screen."""

    def __init__(self, out: Path, group: str) -> None:
        self.out, self.group = out, group

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
        clean()


def line(row: dict[str, Any]) -> str:
    rest = {k: v for k, v in row.items() if k not in ("group", "name", "table")}
    shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items())
    return f"[{row['group']}] {row['name']}: {shown}"


def clean() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def seconds_of(work: Callable[[], Any], device, *, budget: float = 1.2, warm_ups: int = 3) -> dict[str, float]:
    """Median seconds of a call over blocks of calls, the host's seconds to hand one out, and memory's peak in GB."""
    import torch

    sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    first = time.perf_counter()
    work()
    sync()
    first = time.perf_counter() - first
    if "--tiny" in sys.argv:  # one call is enough to see that it runs
        return {"ms": 1e3 * first, "host_ms": 1e3 * first, "first_s": first}
    for _ in range(warm_ups - 1):
        work()
    sync()
    began = time.perf_counter()
    work()
    sync()
    calls = max(1, min(50, int(budget / 5 / max(1e-6, time.perf_counter() - began))))
    blocks, host = [], []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        host.append((time.perf_counter() - began) / calls)
        sync()
        blocks.append((time.perf_counter() - began) / calls)
    found = {"ms": 1e3 * statistics.median(blocks), "host_ms": 1e3 * statistics.median(host), "first_s": first}
    if device.type == "cuda":
        found["gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


class Bench:
    """What a group needs: device, subjects, sizes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        from benchmarks.subjects import ROOT, Subject
        from ifm.config import parse
        from pipeline.tools.preset import apply, parse_yaml

        self.device, self.tiny = torch.device(arguments.device), arguments.tiny
        self.book = Book(arguments.out, arguments.group)
        torch.backends.cudnn.benchmark = True
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")

        def subject(name: str) -> Subject:
            values = parse_yaml(apply(name, text, data="." if name == "cifar10-jpeg" else None))
            return Subject(name, self._sized(parse(values, source=f"preset {name}")), 4, steps=2)

        self.subject = subject

    def _sized(self, config: Any) -> Any:
        if not self.tiny:
            return config
        size = {"channels": [4, 8], "layers_per_block": 1, "norm_groups": 2}
        network = config.network.model_copy(update=size | {"attention": [False, any(config.network.attention)]})
        data = config.data.model_copy(update={"image_size": 4})
        return config.model_copy(update={"network": network, "data": data})

    def batch(self, n: int) -> int:
        return min(n, 4) if self.tiny else n

    def train(self, name: str, subject: str, batch: int, precision: str = "bf16", **how: Any) -> None:
        from benchmarks.gpu_variants import Training, Variant

        variant, batch = Variant(**how), self.batch(batch)

        def work() -> dict[str, Any]:
            training = Training(self.subject(subject), self.device, precision=precision, batch=batch, how=variant)
            training.prepare()
            found = seconds_of(training.step, self.device, budget=0.05 if self.book.group.startswith("cold") else 1.0)
            told = {"batch": batch, "precision": precision, **{k: v for k, v in how.items() if v is not True}}
            return {"images_s": batch / found["ms"] * 1e3, **found, **told}

        self.book.attempt(f"train {subject} {name}", work)


def parts(bench: Bench, subject: str, batch: int, precision: str = "bf16", **how: Any) -> None:
    """Milliseconds of the parts of a step, and the kernels that take most of it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.gpu_variants import Training, Variant

    training = Training(
        bench.subject(subject), bench.device, precision=precision, batch=bench.batch(batch), how=Variant(**how)
    )
    for _ in range(3):
        training.whole()
    forward = seconds_of(training.loss, bench.device, budget=0.3)["ms"]

    def backward() -> None:
        training.loss().backward()
        for p in training.low:
            p.grad = None

    both = seconds_of(backward, bench.device, budget=0.4)["ms"]
    training.loss().backward()
    update = seconds_of(training.update, bench.device, budget=0.2)["ms"]
    average = seconds_of(lambda: training.average(training.ema, training.parameters, None), bench.device, budget=0.1)
    label = " ".join(f"{v}" for v in how.values()) or "eager"
    bench.book.add(
        f"parts {subject} {label}", forward_ms=forward, both_ms=both, update_ms=update, average_ms=average["ms"]
    )
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    with profile(activities=kinds) as profiled:
        training.whole()
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
    rows = {}
    for event in profiled.events():
        on_device = str(event.device_type).endswith("CUDA")
        if on_device == (bench.device.type == "cuda"):
            spent = event.self_device_time_total if on_device else event.self_cpu_time_total
            calls, total = rows.get(event.name, (0, 0.0))
            rows[event.name] = calls + 1, total + spent / 1e3
    top = sorted(rows.items(), key=lambda item: -item[1][1])[:25]
    table = [{"kernel": name[:110], "calls": calls, "ms": round(ms, 3)} for name, (calls, ms) in top]
    total, kernels = sum(ms for _, ms in rows.values()), sum(calls for calls, _ in rows.values())
    bench.book.add(f"kernels {subject} {label}", total_ms=total, launches=kernels, table=table)
    for row in table:
        print(f"    {row['ms']:9.3f} ms {row['calls']:5d}  {row['kernel']}", flush=True)


def jpeg(bench: Bench) -> None:
    train = partial(bench.train, subject="cifar10-jpeg", batch=256)
    train("now")
    train("fused norm", norm="fused")
    bench.book.attempt("parts jpeg", lambda: parts(bench, "cifar10-jpeg", 256) or {})
    train("fused norm, bf16 copies", norm="fused", weights="bf16")
    train("fused norm, step graph", norm="fused", graph="step")
    bench.book.attempt("parts jpeg fused", lambda: parts(bench, "cifar10-jpeg", 256, norm="fused") or {})
    train("fused norm, no dropout", norm="fused", dropout=False)
    train("low norm", norm="low")
    train("low norm, contiguous", norm="low", channels_last=False)
    train("contiguous", channels_last=False)
    train("low norm, bf16 copies", norm="low", weights="bf16")
    train("float32 (TF32 convolutions)", precision="no")
    train("float32, fused norm", precision="no", norm="fused")


def small(bench: Bench) -> None:
    for precision in ("no", "bf16"):
        for batch in (64, 128):
            train = partial(bench.train, subject="digits", batch=batch, precision=precision)
            train("now")
            train("step graph", graph="step")
            train("fused norm, step graph", norm="fused", graph="step")
            if batch == 64:
                train("fused norm", norm="fused")
                train("contiguous, step graph", channels_last=False, graph="step")
                train("model graph", graph="model")
                train("foreach optimizer", optimizer="foreach")
    bench.book.attempt("parts digits", lambda: parts(bench, "digits", 64, "no") or {})
    bench.book.attempt("errors of fused norm", lambda: fused_error(bench))
    draws(bench)


def fused_error(bench: Bench) -> dict[str, float]:
    """Gradients with the fused norm against plain float32 without TF32, and bf16's own error beside it."""
    import torch

    from benchmarks.gpu_variants import Training, Variant

    def gradient(precision: str, norm: str, *, exact: bool) -> torch.Tensor:
        torch.backends.cudnn.allow_tf32 = not exact
        torch.manual_seed(1)
        how = Variant(norm=norm, dropout=False)
        training = Training(
            bench.subject("cifar10-jpeg"), bench.device, precision=precision, batch=bench.batch(16), how=how
        )
        training.loss().backward()
        return torch.cat([p.grad.flatten().double() for p in training.low])

    want = gradient("no", "plain", exact=True)
    kinds = {"float32 fused": ("no", "fused", True), "tf32": ("no", "plain", False)}
    kinds |= {"bf16 now": ("bf16", "plain", False), "bf16 fused": ("bf16", "fused", False)}
    kinds |= {"bf16 low": ("bf16", "low", False)}
    return {
        name: float((gradient(precision, norm, exact=exact) - want).norm() / want.norm())
        for name, (precision, norm, exact) in kinds.items()
    }


def draws(bench: Bench) -> None:
    """The host's work for a step: draws keyed by sample, and their way to the device."""
    import torch

    from ifm import random
    from ifm.hardware.devices import to_device

    for name, batch, shape in (("digits", 64, (1, 8, 8)), ("jpeg", 256, (3, 32, 32)), ("cifar10", 512, (3, 32, 32))):
        for threads in (1, 4, 8):
            random.THREADS, before = min(threads, os.cpu_count() or 1), random.THREADS

            def draw(batch: int = batch, shape: tuple[int, ...] = shape) -> torch.Tensor:
                streams = random.Streams(0, "noise", range(batch), step=1)
                streams.normal(())
                z = streams.normal(shape)
                streams.uniform()
                return z

            bench.book.add(f"draws {name}, {threads} threads", **seconds_of(draw, torch.device("cpu"), budget=0.2))
            random.THREADS = before
        z = torch.randn(batch, *shape)
        bench.book.add(
            f"to device {name}", **seconds_of(lambda z=z: to_device(z, bench.device), bench.device, budget=0.1)
        )


def cifar10(bench: Bench) -> None:
    train = partial(bench.train, subject="cifar10", batch=128)
    train("fused norm", norm="fused")
    train("now")
    train("fused norm, step graph", norm="fused", graph="step")
    train("fused norm, bf16 copies", norm="fused", weights="bf16")
    bench.train("fused norm, batch 256", subject="cifar10", batch=256, norm="fused")


def network_at(bench: Bench, model: Any, precision: str, how: str) -> Any:
    """A copy of a teacher or flow: precision no | autocast | bf16 | fp16; how: plain | fused | regions."""
    import copy

    import torch

    from benchmarks.gpu_variants import Low, change

    model = copy.deepcopy(model).to(bench.device, memory_format=torch.channels_last).eval()
    if precision in ("bf16", "fp16"):
        model.network = Low(model.network, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    change(model, norm="fused" if how == "fused" else "plain", compiled="regions" if how == "regions" else "")
    return model


def captured(call: Callable[[], Any]) -> Callable[[], None]:
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def sampling(bench: Bench) -> None:
    import torch

    from ifm.solver import at_time

    subject = bench.subject("cifar10-jpeg")
    flow = subject.flow()
    torch.manual_seed(0)
    x = 80 * torch.randn(bench.batch(1024), *subject.shape, device=bench.device)
    anchor = torch.randn_like(x)
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        plain = network_at(bench, flow, "no", "plain")
        want = plain(x[:64], at_time(x[:64], 80.0), x_anchor=anchor[:64])
    torch.backends.cudnn.allow_tf32 = True
    cases = [("no", "plain"), ("bf16", "fused"), ("fp16", "fused"), ("autocast", "plain"), ("bf16", "plain"),
             ("no", "fused"), ("fp16", "plain")]  # fmt: skip
    for precision, how in cases:
        model = network_at(bench, flow, precision, how)

        @torch.no_grad()
        def call(n: int, model: Any = model, auto: bool = precision == "autocast") -> torch.Tensor:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=auto, cache_enabled=False):
                return model(x[:n], at_time(x[:n], 80.0), x_anchor=anchor[:n])

        def error(call: Any = call) -> dict[str, float]:
            got = call(64)
            return {"relative": float((got - want).norm() / want.norm())}

        bench.book.attempt(f"sample error {precision} {how}", error)
        for n in (1024, 256, 64, 1):
            n = bench.batch(n)

            def work(n: int = n, call: Any = call) -> dict[str, Any]:
                found = seconds_of(partial(call, n), bench.device, budget=0.2)
                return {"images_s": n / found["ms"] * 1e3, **found}

            bench.book.attempt(f"sample {precision} {how} batch {n}", work)
            if n in (1, 64) and bench.device.type == "cuda" and how == "fused":

                def replay(n: int = n, call: Any = call) -> dict[str, Any]:
                    found = seconds_of(captured(partial(call, n)), bench.device, budget=0.1)
                    return {"images_s": n / found["ms"] * 1e3, **found}

                bench.book.attempt(f"sample {precision} {how} batch {n} graph", replay)


def paths(bench: Bench) -> None:
    import torch

    from ifm.solver import solve_ode

    subject = bench.subject("cifar10-jpeg")
    teacher = subject.teacher()
    times = teacher.dynamics.solver_times(2)
    x = 80 * torch.randn(bench.batch(4000), *subject.shape, device=bench.device)
    for precision, how, sizes in [("bf16", "fused", (1000, 4000, 200)), ("no", "plain", (1000, 200)),
                                  ("fp16", "fused", (1000,)), ("bf16", "plain", (1000, 4000)), 
                                  ("no", "fused", (1000,))]:  # fmt: skip
        model = network_at(bench, teacher, precision, how)
        for n in sizes:
            n = bench.batch(n)

            @torch.no_grad()
            def work(model: Any = model, n: int = n) -> dict[str, Any]:
                solve = partial(solve_ode, model, x[:n], dynamics=teacher.dynamics, times=times)
                found = seconds_of(solve, bench.device, budget=0.5, warm_ups=1)
                return {"evaluations_s": 3 * n / found["ms"] * 1e3, **found}

            bench.book.attempt(f"paths {precision} {how} batch {n}", work)


def compiled(bench: Bench, kind: str) -> None:
    """The first steps and the rate, of a compiled step; the second time it comes from the cache."""
    import torch

    subject, batch, precision = ("digits", 64, "no") if kind == "small" else ("cifar10-jpeg", 256, "bf16")
    way = "regions" if kind == "small" else kind
    bench.train(f"compiled {kind}", subject, batch, precision, compiled=way)
    if bench.book.group.startswith("cold"):
        return
    if kind == "small":
        bench.train(f"compiled {kind}, step graph", subject, batch, precision, compiled=way, graph="step")
    if kind == "regions":
        bench.train("compiled regions, bf16 copies", subject, batch, precision, compiled=way, weights="bf16")
    torch._dynamo.reset()


def project(bench: Bench) -> None:
    """The project's own loop: draws, reading and all."""
    from dataclasses import replace

    from benchmarks.subjects import Options
    from benchmarks.timing import StepClock
    from benchmarks.training import flow_training, teacher_training

    for name, batch, steps in (("cifar10-jpeg", 256, 12), ("digits", 128, 60)):
        subject = replace(bench.subject(name), batch_size=bench.batch(batch), steps=2 if bench.tiny else steps)
        options = Options(bench.device, rounds=1, quick=bench.tiny)
        for kind, make in (("teacher", teacher_training), ("flow", flow_training)):

            def work(subject=subject, options=options, make=make) -> dict[str, Any]:
                model, train = make(subject, options)
                train(3)
                with StepClock(model.network, steps=subject.steps, device=bench.device) as clock:
                    train(subject.steps + 1)
                return {"images_s": subject.batch_size / clock.seconds, "ms": 1e3 * clock.seconds}

            bench.book.attempt(f"project's fit: {kind} {name} batch {subject.batch_size}", work)


WORK: dict[str, Callable[[Bench], None]] = {
    "jpeg": jpeg,
    "small": small,
    "cifar10": cifar10,
    "sampling": sampling,
    "paths": paths,
    "project": project,
} | {
    f"{when}-{kind}": partial(compiled, kind=kind)
    for when in ("cold", "warm")
    for kind in ("regions", "norms", "whole", "small")
}


def child(arguments: argparse.Namespace) -> None:
    """One group: imports, waits for a line on standard input, works."""
    import torch

    import benchmarks.gpu_variants  # noqa: F401

    bench = Bench(arguments)
    if bench.device.type == "cuda":
        torch.zeros(1, device=bench.device)
    sys.stdin.readline()
    began = time.perf_counter()
    WORK[arguments.group](bench)
    bench.book.add("done", seconds=round(time.perf_counter() - began, 1))


def parent(arguments: argparse.Namespace) -> None:
    """Starts all groups and gives each its turn and its limit."""
    arguments.out.write_text("")
    cache = tempfile.mkdtemp(prefix="inductor-")
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "6"}
    if arguments.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    chosen = [name for name in GROUPS if not arguments.only or name in arguments.only]
    words = [sys.executable, "-m", "benchmarks.gpu_step", "--device", arguments.device, "--out", str(arguments.out)]
    words += ["--tiny"] if arguments.tiny else []
    running = {
        name: subprocess.Popen([*words, "--group", name], stdin=subprocess.PIPE, text=True, env=environment)
        for name in chosen
    }

    def left() -> float:
        return arguments.limit - (time.perf_counter() - BEGAN)

    def turn(name: str) -> None:
        process, book, limit = running[name], Book(arguments.out, name), GROUPS[name][0] * arguments.patience
        try:
            process.stdin.write("go\n")
            process.stdin.flush()
            process.wait(timeout=max(0.1, min(limit, left())))
            if process.returncode:
                book.add("failed", status=process.returncode)
        except subprocess.TimeoutExpired:
            process.kill()
            book.add("stopped", limit=round(limit, 1), left=round(left(), 1))
        except OSError as error:
            book.add("failed", error=str(error))

    beside = [threading.Thread(target=turn, args=(name,)) for name in chosen if GROUPS[name][1]]
    for thread in beside:
        thread.start()
    waiting = [name for name in chosen if not GROUPS[name][1]]
    while waiting and left() > 5:
        ready = [name for name in waiting if not still_cold(running, name)]
        if ready:  # what compiles beside the others keeps its turn for later
            waiting.remove(ready[0])
            turn(ready[0])
        else:
            time.sleep(0.2)
    for thread in beside:
        thread.join()
    for process in running.values():
        if process.poll() is None:
            process.kill()
    summary(arguments.out)


def still_cold(running: dict[str, subprocess.Popen], name: str) -> bool:
    """Whether the process that compiles what this group measures is still at it."""
    cold = running.get(name.replace("warm", "cold")) if name.startswith("warm") else None
    return cold is not None and cold.poll() is None


def summary(out: Path) -> None:
    """All results once more, without tables."""
    print(f"\n==== summary, after {time.perf_counter() - BEGAN:.0f} s")
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    for group in GROUPS:
        for row in rows:
            if row["group"] == group:
                print(line({k: v for k, v in row.items() if k not in ("took",)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that every path runs")
    parser.add_argument("--limit", type=float, default=150, help="seconds in all")
    parser.add_argument("--patience", type=float, default=1, help="times each group's limit")
    parser.add_argument("--only", nargs="+", default=[], choices=list(GROUPS))
    parser.add_argument("--group", choices=list(GROUPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.group:
        child(arguments)
    else:
        parent(arguments)


if __name__ == "__main__":
    main()
