"""`python -m benchmarks`: measures, prints each row, and on a whole run writes results and docs/benchmarks.md."""

import argparse
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.growth import Growth
    from benchmarks.results import Result
    from benchmarks.subjects import Options

RESULTS = Path(__file__).parent / "results"
ROUNDS = 7
GPU_ROUNDS = 3  # a GPU has nothing else to do: its times hardly spread
GROWTH = "growth"  # the part that has a file and a page of its own
# On a GPU a whole run measures these, the most important first: it may be lent for minutes. The rest is the host's.
ON_GPU = (
    *("step", "peers", "sampling", "trajectories", "classifier", "neighbours", "loop", "multistep", "solvers"),
    *("draws", "waiting"),
)
GPU_MINUTES = 8.0
SETS = {"short": ("step", "sampling", "trajectories", "classifier")}  # of --only, for four minutes on a GPU


def benchmarks() -> "dict[str, Callable[[Options], Iterator[Result | Growth]]]":
    """By name, in the order of a run: peak memory is measured in a process that has held nothing yet."""
    from benchmarks import beside, data, evaluation, graph, growth, sampling, training, trajectories

    return {
        "step": training.step,
        "loop": training.overhead,
        "peers": training.against_peers,
        "beside": beside.beside,
        "draws": training.keyed_draws,
        "sampling": sampling.one_step,
        "classes": sampling.by_class,
        "solvers": sampling.solvers,
        "multistep": sampling.multistep,
        "trajectories": trajectories.trajectories,
        "frechet": evaluation.frechet,
        "classifier": evaluation.classifier,
        "neighbours": evaluation.neighbours,
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
    from ifm.errors import in_a_line
    from ifm.files import write_json

    if arguments.threads:
        _limit_threads(arguments.threads)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    known = benchmarks()
    asked = [one for name in arguments.only for one in SETS.get(name, (name,))]
    if unknown := set(asked) - set(known):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join([*known, *SETS])}")
    on_gpu = device.type == "cuda"
    rounds = 2 if arguments.quick else GPU_ROUNDS if on_gpu else ROUNDS
    options = Options(device, rounds=rounds, quick=arguments.quick, edm=arguments.edm)
    minutes = arguments.minutes or (GPU_MINUTES if on_gpu else float("inf"))
    names = [name for name in (ON_GPU if on_gpu else known) if not asked or name in asked]
    names += [name for name in asked if name not in names]  # of the host, asked for on a GPU
    hardware, made = results.hardware(device), {"versions": results.versions(), "command": _command(words)}
    parts: dict[str, list] = {"": [], f"{GROWTH}-": []}
    started, failed = time.perf_counter(), []
    for name in names:
        began, rows = time.perf_counter(), parts[f"{GROWTH}-" if name == GROWTH else ""]
        if began - started > 60 * minutes:
            rows.append(results.Result.skipped(name, f"{minutes:g} minutes were over"))
        else:
            try:
                for row in known[name](options):
                    rows.append(row)
                    print(row.line() if name == GROWTH else table.line(row), flush=True)
            except Exception as error:  # the others go on
                failed.append(name)
                traceback.print_exc()
                rows.append(results.Result.skipped(name, f"failed: {in_a_line(error)}"))
            print(f"-- {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        for prefix, found in parts.items():  # at once: a machine may be taken away
            out = _place(arguments, prefix, hardware["gpu"], several=all(parts.values()))
            if out is not None and found:
                write_json(out, results.document(found, hardware=hardware, **made))
    for prefix, found in parts.items():
        out = _place(arguments, prefix, hardware["gpu"], several=all(parts.values()))
        if found and out is None:
            print("a part of a run or a quick one: nothing is written without --out", file=sys.stderr)
        elif found and out.parent == RESULTS:
            (growth_page if prefix else table).write()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _place(arguments: argparse.Namespace, prefix: str, gpu: str | None, *, several: bool) -> Path | None:
    """The file of a part of the results; None: it is not written."""
    whole = not arguments.quick and (prefix or not arguments.only)
    out = arguments.out or (result_file(gpu) if whole else None)
    if out is None:
        return None
    return out.with_name(prefix + out.name) if several or not arguments.out else out


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    of_these = "of these alone, e.g. step frechet; short: what a GPU measures in 4 minutes"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=of_these)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: what there is")
    parser.add_argument("--threads", type=int, help="of torch and BLAS; 1 where other work keeps the cores busy")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default for a whole run: benchmarks/results/cpu.json, growth-cpu.json"
    )
    parser.add_argument("--minutes", type=float, help="nothing starts after them; default on a GPU: 8, else no end")
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
