"""`python -m benchmarks`: measures, prints each row, and on a whole run writes results and docs/benchmarks.md."""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.growth import Growth
    from benchmarks.results import Result
    from benchmarks.subjects import Options

RESULTS = Path(__file__).parent / "results"
ROUNDS = 7
GROWTH = "growth"  # the part that has a file and a page of its own


def benchmarks() -> "dict[str, Callable[[Options], Iterator[Result | Growth]]]":
    """By name, in the order of a run: peak memory is measured in a process that has held nothing yet."""
    from benchmarks import data, evaluation, graph, growth, sampling, training, trajectories

    return {
        "step": training.step,
        "loop": training.overhead,
        "peers": training.against_peers,
        "draws": training.keyed_draws,
        "sampling": sampling.one_step,
        "solvers": sampling.solvers,
        "multistep": sampling.multistep,
        "trajectories": trajectories.trajectories,
        "frechet": evaluation.frechet,
        "classifier": evaluation.classifier,
        "shards": data.shards,
        "waiting": data.waiting,
        "many": data.many,
        "bank": data.bank,
        "start-up": graph.start_up,
        "no-change": graph.no_change,
        GROWTH: growth.growth,
    }


def result_file(gpu: str | None) -> Path:
    """benchmarks/results/cpu.json, or a name made of the GPU's, e.g. nvidia-h100-80gb-hbm3.json."""
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', gpu.lower()).strip('-') if gpu else 'cpu'}.json"


def main(words: list[str] | None = None) -> None:
    """Runs the benchmarks that are asked for."""
    words = sys.argv[1:] if words is None else words
    arguments = parse(words)
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # accelerate takes what it sees
    import torch

    from benchmarks import growth_page, results, table
    from benchmarks.subjects import Options
    from ifm.files import write_json

    if arguments.threads:
        _limit_threads(arguments.threads)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    known = benchmarks()
    if unknown := set(arguments.only) - set(known):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    options = Options(device, rounds=2 if arguments.quick else ROUNDS, quick=arguments.quick, edm=arguments.edm)
    hardware, parts = results.hardware(device), {"": [], f"{GROWTH}-": []}
    for name, benchmark in known.items():
        if arguments.only and name not in arguments.only:
            continue
        began = time.perf_counter()
        for row in benchmark(options):
            parts[f"{GROWTH}-" if name == GROWTH else ""].append(row)
            print(row.line() if name == GROWTH else table.line(row), flush=True)
        print(f"-- {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    parts = {prefix: rows for prefix, rows in parts.items() if rows}
    for prefix, rows in parts.items():
        whole = not arguments.quick and (prefix or not arguments.only)
        out = arguments.out or (result_file(hardware["gpu"]) if whole else None)
        if out is None:
            print("a part of a run or a quick one: nothing is written without --out", file=sys.stderr)
            continue
        if len(parts) > 1 or not arguments.out:
            out = out.with_name(prefix + out.name)
        made = {"hardware": hardware, "versions": results.versions(), "command": _command(words)}
        write_json(out, results.document(rows, **made))
        if out.parent == RESULTS:
            (growth_page if prefix else table).write()


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of these alone, e.g. step frechet")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: what there is")
    parser.add_argument("--threads", type=int, help="of torch and BLAS; 1 where other work keeps the cores busy")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default for a whole run: benchmarks/results/cpu.json, growth-cpu.json"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and two rounds, to see that it works")
    parser.add_argument("--edm", type=Path, metavar="PATH", help="a checkout of EDM, whose loss is timed beside ours")
    return parser.parse_args(words)


def _limit_threads(threads: int) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that are started
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def _command(words: list[str]) -> str:
    """As it was given, folders by their last part."""
    return shlex.join(["python", "-m", "benchmarks", *(Path(w).name if "/" in w else w for w in words)])


if __name__ == "__main__":
    main()
