"""DVC for one stage, in a process of its own. DVC is imported once, here; each process is a fork, ready at once.

A process does what `dvc --wait-for-lock repro --single-item STAGE` does: it skips what did not change, takes outputs
from the run cache, and else runs the stage. It leads a group of its own, which is ended as a whole, and it ends with
this process (pipeline.runner.parent), as its stage does with it.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from ifm.errors import UserError, in_a_line
from pipeline.runner import groups, lockfile, warm
from pipeline.runner.parent import STARTER, end_with_parent
from pipeline.runner.schedule import Graph


@dataclass(frozen=True)
class Plan:
    """What DVC says of the graph before anything runs."""

    graph: Graph
    commands: Mapping[str, str]
    unchanged: frozenset[str]
    always: frozenset[str]  # stages that run at every `dvc repro`, and wait for none that changed
    outputs: Mapping[str, str]  # by stage, in one text


@dataclass
class Process:
    """DVC at work on a stage."""

    name: str
    pid: int
    log: Path
    began: float
    status: int | None = None

    def poll(self) -> int | None:
        """The exit status, once it has ended; of one ended by signal n, -n."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def signal(self, number: int) -> None:
        """To the whole group: DVC, the stage, and what it started there."""
        groups.tell(self.pid, number)


def load() -> None:
    """Imports what every process needs, before the first fork."""
    import dvc.cli
    import dvc.commands.repro
    import dvc.repo.index
    import dvc.repo.reproduce  # noqa: F401


def repro(name: str, log: Path, environment: Mapping[str, str], order: Sequence[str]) -> Process:
    """Starts DVC for a stage. log: gets all output. order: of dvc.lock, which is put right at the end."""

    def work() -> int:
        os.environ.update(environment)
        if (waiting := warm.fork()) is not None:
            warm.lend(waiting)
        status = _dvc("--wait-for-lock", "repro", "--single-item", name)
        lockfile.put_in_order(order)
        return status

    return _forked(name, log, work)


def check(names: Sequence[str], log: Path, order: Sequence[str]) -> Process:
    """Starts DVC for stages one after the other, as plain `dvc repro` goes through them."""

    def work() -> int:
        status = _dvc("--wait-for-lock", "repro", "--single-item", *names)
        lockfile.put_in_order(order)
        return status

    return _forked("check", log, work)


def plan(targets: Sequence[str], *, done: Sequence[str] = ()) -> Plan:
    """What is to do for targets (none: everything). done: stages that ran already, so that they count as unchanged.

    Raises UserError with DVC's words where it cannot read the project or does not know a target.
    """
    reading, writing = os.pipe()

    def work() -> int:
        os.close(reading)
        with os.fdopen(writing, "w", encoding="utf-8") as out:
            try:
                found: Any = _read(targets, frozenset(done))
            except Exception as error:  # DVC's, of many kinds
                found = {"error": in_a_line(error)}
            json.dump(found, out)
        return 0

    process = _forked("plan", Path(os.devnull), work)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as stream:
        text = stream.read()
    os.waitpid(process.pid, 0)
    found = json.loads(text) if text else {"error": "DVC ended while it read dvc.yaml"}
    if "error" in found:
        raise UserError(found["error"])
    needs = {name: frozenset(above) for name, above in found["needs"].items()}
    graph = Graph(tuple(found["order"]), needs)
    return Plan(graph, found["commands"], frozenset(found["unchanged"]), frozenset(found["always"]), found["outputs"])


def _read(targets: Sequence[str], done: frozenset[str]) -> dict[str, Any]:
    from dvc.repo import Repo, lock_repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
        graph = get_active_graph(repo.index.graph)
        stages = plan_repro(graph, collect_stages(repo, targets or ["dvc.yaml"]))
        needs = {stage: [one for one in graph.successors(stage) if one in stages] for stage in stages}
        unchanged, always = set(), []
        for stage in stages:
            if not set(needs[stage]) <= unchanged:
                continue
            if stage.addressing in done or not stage.changed():
                unchanged.add(stage)
            elif stage.always_changed:
                always.append(stage)
        return {
            "order": [stage.addressing for stage in stages],
            "needs": {stage.addressing: [one.addressing for one in needs[stage]] for stage in stages},
            "commands": {stage.addressing: str(stage.cmd or "") for stage in stages},
            "unchanged": [stage.addressing for stage in unchanged],
            "outputs": {stage.addressing: " ".join(map(str, stage.outs)) for stage in stages},
            "always": [stage.addressing for stage in always],
        }


def _dvc(*words: str) -> int:
    from dvc.cli import main

    sys.argv = ["dvc", *words]  # DVC notes it beside the files that it locks
    return main(list(words)) or 0


def _forked(name: str, log: Path, work: Callable[[], int]) -> Process:
    """Runs `work` in a fork, in a group of its own, with nothing to read and `log` for all that it writes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    this, began = os.getpid(), monotonic()
    pid = os.fork()
    if pid == 0:
        _child(this, log, work)
    with suppress(OSError):  # the child does it too; whoever is first
        os.setpgid(pid, pid)
    return Process(name, pid, log, began)


def _child(parent: int, log: Path, work: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)
        end_with_parent()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.getppid() == parent:  # it might have ended before `end_with_parent`
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.environ[STARTER] = str(os.getpid())
            status = work()
    except BaseException:  # nothing of this process may go on in the fork
        with suppress(Exception):
            traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
