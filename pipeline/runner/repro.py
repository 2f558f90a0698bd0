"""`ifm repro`: what `dvc repro` does, with the branches of the graph side by side.

Each stage is run by a DVC of its own (pipeline.runner.dvc_process), as soon as the stages that it needs have ended,
with its share of the cores or a GPU of its own. dvc.lock is that of plain `dvc repro`, which finds nothing to do
afterwards. What stages print is in .ifm/repro/STAGE.log.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ifm import checkout
from ifm.cli.options import at_least
from ifm.errors import UserError, in_a_line
from ifm.files import FileError, write_json
from ifm.progress import in_words
from ifm.tracking import locallog, store
from pipeline.runner import dvc_process, groups, lockfile, paths, records, show, warm
from pipeline.runner.branches import FOLDER, ORDER, PATIENCE, POLL, Runner, asked_to_stop, log_file, read
from pipeline.runner.dvc_process import Plan
from pipeline.runner.schedule import Graph
from pipeline.runner.slots import default_jobs, slots

SECONDS = FOLDER / "seconds.json"  # how long each stage took the last time
ENDING = 3.0  # seconds for the processes of a runner that was killed to end, too: they hold its lock


class Stopped(Exception):
    """A signal asked for the end while no stage ran."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def repro(targets: Sequence[str], *, jobs: int | None, screen: show.Show) -> int:
    """The exit status: 0, 1 where a stage failed, 128 + n after signal n."""
    began = time.monotonic()
    dvc_process.load()
    lockfile.mend()
    plan = dvc_process.plan(targets)
    seconds = _seconds(plan.graph)
    jobs = jobs or default_jobs(len(plan.graph.branches()))
    always = plan.always
    if always:  # what they find decides what else is to do
        runner = Runner(_only(plan, always), jobs, screen, seconds)
        if status := _run(runner):
            return status
        plan = dvc_process.plan(targets, done=sorted(always))
    rest = [name for name in plan.graph.order if name not in plan.unchanged]
    if rest:
        screen.line(_beginning(plan, rest, jobs))
        warm.load([plan.commands[name] for name in rest], slots(jobs)[0])
        runner = Runner(plan, jobs, screen, seconds, unchanged=plan.unchanged)
        if status := _run(runner):
            return status
        if runner.ran and (again := _checked(plan, runner, without=always)):
            screen.line(f"ran once more, because what they read had changed meanwhile: {', '.join(again)}")
        screen.line(f"{len(rest)} stages in {in_words(time.monotonic() - began)}")
    else:
        screen.line(f"nothing changed: all {len(plan.graph.order)} stages are up to date")
    ORDER.unlink(missing_ok=True)
    for line in show.table(show.headlines(plan.graph.branches())):
        screen.line(line)
    if (page := paths.REPORTS / "index.html").is_file():
        screen.line(f"report: {page.absolute()}")
    return 0


def _run(runner: Runner) -> int:
    """Runs, notes how long stages took, and says what failed."""
    screen = runner.screen
    with asked_to_stop(runner):
        try:
            runner.run()
        finally:
            screen.close()
            with suppress(OSError):
                write_json(SECONDS, _kept(SECONDS) | {name: runner.seconds[name] for name in runner.ran})
    if runner.stopped:
        return 128 + runner.stopped
    if runner.ran or runner.reasons:
        _deliver_logs(screen)
    if not runner.reasons:
        return 0
    if skipped := runner.schedule.skipped():
        screen.line(f"not run, because they need what failed: {', '.join(skipped)}")
    for name, reason in runner.reasons.items():
        screen.line(f"failed: {name}: {reason} (all it said: {log_file(name)})")
    return 1


def _checked(plan: Plan, runner: Runner, *, without: frozenset[str]) -> list[str]:
    """Lets DVC go through all stages, as a plain `dvc repro` after this would: what it ran, which should be nothing."""
    names = [name for name in plan.graph.order if name not in without]
    process = dvc_process.check(names, log_file("check"), runner.order)
    with asked_to_stop(runner):
        while process.poll() is None and not runner.stopped:
            time.sleep(POLL)
        if runner.stopped:
            groups.end(process.pid, signal.SIGTERM, patience=PATIENCE)
            raise Stopped(runner.stopped)
    if process.status:
        raise UserError(f"the check after the run ended with: {show.why(read(process.log), process.status)}")
    return show.ran(read(process.log))


def _only(plan: Plan, names: frozenset[str]) -> Plan:
    graph = Graph(tuple(name for name in plan.graph.order if name in names), {name: frozenset() for name in names})
    return Plan(graph, plan.commands, frozenset(), plan.always, plan.outputs)


def _beginning(plan: Plan, rest: Sequence[str], jobs: int) -> str:
    kept = f", {len(plan.unchanged)} did not change" if plan.unchanged else ""
    at_once = f"{jobs} at a time" if jobs > 1 else "one after the other"
    return f"{len(rest)} stages to do{kept}; {at_once}; what they print is in {FOLDER}"


def _seconds(graph: Graph) -> dict[str, float]:
    """How long stages took the last time: here, else where their results were made."""
    found = {}
    for name in graph.order:
        with suppress(FileError, OSError, ValueError):
            found[name] = records.read_timings(paths.run_record(name.replace("@", "-")))["stage_seconds"]
    return {name: float(value) for name, value in (found | _kept(SECONDS)).items() if name in graph.needs}


def _kept(path: Path) -> dict[str, float]:
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
    return {}


def _deliver_logs(screen: show.Show) -> None:
    """What `track` did not bring to MLflow, because it did not run: after a failure, or for targets before it."""
    if store.unavailable() or not locallog.all_logs():
        return
    words = [sys.executable, "-m", "ifm", "track", "--sync"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        screen.once(f"tracking: {in_a_line((done.stderr or done.stdout).strip())}")


@contextmanager
def _alone() -> Iterator[None]:
    """One `ifm repro` at a time in a checkout. Raises UserError where another runs."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + ENDING
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(POLL)
                    continue
                file.seek(0)
                raise UserError(f"another `ifm repro` runs in this folder (process {file.read().strip()})") from None
            except OSError:  # a file system without locks
                break
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _check_params() -> None:
    """Says what is wrong with params.yaml before DVC reads it, which names no key."""
    from ifm.config import load

    load(paths.PARAMS)


def parser() -> argparse.ArgumentParser:
    """The options of `ifm repro`."""
    made = argparse.ArgumentParser(prog="ifm repro", description=checkout.COMMANDS["repro"], allow_abbrev=False)
    made.add_argument("targets", nargs="*", metavar="TARGET", help="stages, e.g. evaluate@ve; none: the whole graph")
    made.add_argument("--jobs", type=at_least(1), metavar="N", help="stages at a time; docs/running.md has the default")
    return made


def main(check: Callable[[], None] = _check_params) -> None:
    """Runs from the command line and exits with its status. check: raises UserError where the run cannot begin."""
    given = parser().parse_args()
    # Stages call `python`: this one, in an environment that is not activated too.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    screen = show.Show()
    try:
        check()
        with _alone():
            status = repro(given.targets, jobs=given.jobs, screen=screen)
    except (KeyboardInterrupt, Stopped) as stop:
        print("ifm repro: stopped; the same command starts again", file=sys.stderr)
        status = 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except UserError as error:
        sys.exit(f"ifm repro: {error}")
    except OSError as error:
        sys.exit(f"ifm repro: {error.filename or FOLDER}: {error.strerror or in_a_line(error)}")
    finally:
        screen.close()
    sys.exit(status)


if __name__ == "__main__":
    main()
