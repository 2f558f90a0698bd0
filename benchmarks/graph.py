"""What the pipeline costs where it has nothing to do: DVC's walk over the graph, and stages' imports."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks.results import Result, Skipped, Target, short
from benchmarks.subjects import ROOT, Options
from benchmarks.timing import Spread, interleave, timed

CPU = torch.device("cpu")
DVC = [sys.executable, "-m", "dvc"]


def start_up(options: Options) -> Iterator[Result]:
    """Seconds until each stage's module is imported, in a process of its own."""
    modules = sorted(p.stem for p in (ROOT / "pipeline" / "stages").glob("*.py") if p.stem != "__init__")
    modules = modules[:2] if options.quick else modules
    commands = {name: [sys.executable, "-c", f"import pipeline.stages.{name}"] for name in modules}
    commands["torch"] = [sys.executable, "-c", "import torch"]
    contestants = {name: timed(partial(_run, words, ROOT), device=CPU) for name, words in commands.items()}
    seconds = interleave(contestants, rounds=min(options.rounds, 5))
    alone = Spread.of(seconds.pop("torch")).median
    for name, taken in seconds.items():
        spread = Spread.of(taken)
        note = f"quartiles {short(spread.low)} to {short(spread.high)}; `import torch` alone {short(alone)} s"
        yield Result.of(f"start-up of stage {name}", spread.median, "s", note=note)


def no_change(options: Options) -> Iterator[Result]:
    """`dvc repro` and `dvc status` of the whole graph with nothing to do, in a temporary clone."""
    target = Target("value", "<=", 1.5)
    if options.quick:
        yield Result.skipped("dvc repro, no change", "left out by --quick", target=target)
        return
    try:
        with settled_clone() as (clone, made_of):
            commands = {"repro": [*DVC, "repro"], "status": [*DVC, "status"], "start": [*DVC, "--version"]}
            contestants = {name: timed(partial(_run, words, clone), device=CPU) for name, words in commands.items()}
            seconds = interleave(contestants, rounds=options.rounds)
    except Skipped as reason:
        yield Result.skipped("dvc repro, no change", reason, target=target)
        return
    start = f"`dvc --version` alone {short(Spread.of(seconds['start']).median)} s"
    for command in ("repro", "status"):
        spread = Spread.of(seconds[command])
        yield Result.of(
            f"dvc {command}, no change",
            spread.median,
            "s",
            target=target if command == "repro" else None,
            note=f"quartiles {short(spread.low)} to {short(spread.high)}; {start}; {made_of}",
        )


@contextmanager
def settled_clone() -> Iterator[tuple[Path, str]]:
    """A temporary clone of the last commit in which every stage is up to date, and what its results are.

    They come from this checkout's cache where that has them all. Otherwise each output is a file of a few bytes that
    `dvc commit` records: DVC walks the same graph, and reads less. Raises Skipped where it cannot be made.
    """
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        try:
            _run(["git", "clone", "--quiet", str(ROOT), str(clone)], Path(folder))
            if _has_results(clone):
                yield clone, "the results themselves"
                return
            _place_holders(clone)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Skipped(f"no clone with nothing to do could be made ({type(error).__name__})") from None
        yield clone, "outputs stood in for by small files"


def _has_results(clone: Path) -> bool:
    """Whether this checkout's cache gives the clone everything that its dvc.lock names."""
    cache = subprocess.run([*DVC, "cache", "dir"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(cache).is_dir():
        return False
    _run([*DVC, "cache", "dir", "--local", cache], clone)
    try:
        _run([*DVC, "checkout", "--quiet"], clone)
    except subprocess.CalledProcessError:
        return False
    status = subprocess.run([*DVC, "status", "--quiet"], cwd=clone, capture_output=True, check=False)
    return status.returncode == 0


def _place_holders(clone: Path) -> None:
    from dvc.repo import Repo

    with Repo(str(clone)) as repo:
        outs = [Path(out.fs_path) for out in repo.index.outs]
    _run([*DVC, "cache", "dir", "--local", str(clone.parent / "cache")], clone)
    for out in outs:
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(f"in place of {out.relative_to(clone)}\n", encoding="utf-8")
    _run([*DVC, "commit", "--quiet", "--force"], clone)
    done = subprocess.run([*DVC, "status", "--quiet"], cwd=clone, capture_output=True, check=False)
    if done.returncode:
        raise Skipped("`dvc commit` left something to do in the temporary clone")


def _run(words: list[str], folder: Path) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "true", "IFM_TRACKING": "off"}
    subprocess.run(words, cwd=folder, env=environment, capture_output=True, check=True)
