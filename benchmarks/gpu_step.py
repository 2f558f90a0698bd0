"""`python -m benchmarks.gpu_step --out FILE`: training, sampling and paths on one GPU, in variants, within a limit.

Each group of measurements has a process and a time limit of its own. The next one imports while this one measures; what
compiles works beside the others. Each result is at once a line of JSON in FILE.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BEGAN = time.perf_counter()
BESIDE = "cold"  # the group that works beside the others
# Seconds at most, in the order of their turns; "cold" is started first, "warm" waits for it.
GROUPS = {"cold": 115, "small": 30, "jpeg": 50, "sampling": 25, "paths": 25, "cifar10": 30, "warm": 30}


class Child:
    """A process that has imported what it needs and waits for its turn."""

    def __init__(self, name: str, words: list[str], environment: dict[str, str]) -> None:
        self.name, self._process = name, None
        self._make = lambda: subprocess.Popen(
            [*words, "--group", name], stdin=subprocess.PIPE, text=True, env=environment
        )

    def start(self) -> None:
        self._process = self._process or self._make()

    def go(self) -> None:
        self.start()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Ends it, if it was started and has not ended."""
        if self._process and self._process.poll() is None:
            self._process.kill()

    def wait(self, seconds: float) -> None:
        """Ends it after so many seconds, if it has not ended."""
        try:
            status = self._process.wait(timeout=max(0.1, seconds))
            if status:
                print(f"[{self.name}] failed: status {status}", flush=True)
        except subprocess.TimeoutExpired:
            self._process.kill()
            print(f"[{self.name}] stopped after its limit", flush=True)


def child(arguments: argparse.Namespace) -> None:
    """One group: imports, waits for a line on standard input, works."""
    import torch

    from benchmarks.gpu_groups import WORK, Bench

    bench = Bench(arguments.out, arguments.group, torch.device(arguments.device), arguments.tiny)
    if bench.device.type == "cuda":
        torch.zeros(1, device=bench.device)
    torch.backends.cudnn.benchmark = True
    sys.stdin.readline()
    began = time.perf_counter()
    WORK[arguments.group](bench)
    bench.add("done", seconds=round(time.perf_counter() - began, 1))


def parent(arguments: argparse.Namespace) -> None:
    """Gives each group its turn and its limit."""
    arguments.out.write_text("")
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(), "TORCHINDUCTOR_COMPILE_THREADS": "6"}
    if arguments.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    words = [sys.executable, "-m", "benchmarks.gpu_step", "--device", arguments.device, "--out", str(arguments.out)]
    words += ["--tiny"] if arguments.tiny else []
    chosen = [Child(name, words, environment) for name in GROUPS if not arguments.only or name in arguments.only]

    def limit(name: str) -> float:
        return min(GROUPS[name] * arguments.patience, arguments.limit - (time.perf_counter() - BEGAN))

    beside = next((each for each in chosen if each.name == BESIDE), None)
    if beside:
        beside.go()
    began, turns = time.perf_counter(), [each for each in chosen if each is not beside]
    for i, each in enumerate(turns):
        if limit(each.name) < 5:
            break
        if each.name == "warm" and beside:
            beside.wait(min(GROUPS[BESIDE] * arguments.patience - (time.perf_counter() - began), limit("warm") - 10))
        each.go()
        for following in turns[i + 1 : i + 2]:
            following.start()
        each.wait(limit(each.name))
    for each in chosen:
        each.end()
    summary(arguments.out)


def summary(out: Path) -> None:
    """All results once more, without tables."""
    import json

    from benchmarks.gpu_groups import line

    print(f"\n==== summary, after {time.perf_counter() - BEGAN:.0f} s")
    for text in out.read_text().splitlines():
        print(line(json.loads(text)))


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
    (child if arguments.group else parent)(arguments)


if __name__ == "__main__":
    main()
