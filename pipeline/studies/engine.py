"""The one engine of sweeps and studies: experiments wait in a queue, what several share is made once, several run at a
time, and their results come back as rows.

An experiment's name ends in a hash of its params and of the code, so that a repeated command finds what is finished,
wherever the branch stands, and never takes an old result for a new one.
"""

import argparse
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from filelock import FileLock, Timeout
from tqdm import tqdm

from ifm.config import Config, ConfigError
from ifm.errors import UserError
from ifm.files import write_text
from ifm.tracking import digest, flatten
from pipeline.runner.slots import slots
from pipeline.runner.stage import terminate
from pipeline.studies import shared
from pipeline.studies.shared import Node
from pipeline.studies.workers import Experiments, Job, Pool

LOGS = Path(".ifm")  # LOGS/{study}: the experiments' logs, what failed, the lock
NOT_FINISHED = "not finished"


@dataclass(frozen=True, kw_only=True)
class Experiment(Job):
    """One configuration under a seed."""

    seed: int
    config: Config
    nodes: Mapping[str, Node]  # the stages that it makes, by name

    @property
    def described(self) -> str:
        return f"{self.label}  ({self.name})"


Of = TypeVar("Of", bound=Experiment)
Row = dict[str, Any]


@dataclass(frozen=True)
class Left:
    """An experiment without a result, and why."""

    label: str
    reason: str


def differing(values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The values that another params.yaml has not, by dotted name."""
    before = flatten(base)
    return {key: value for key, value in flatten(values).items() if key not in before or before[key] != value}


def shared_jobs(wanted: Sequence[Experiment], *, study: str, code: str) -> list[Job]:
    """What at least two of the experiments share, as jobs that go before them. code: hash of the stages' code."""
    jobs = []
    for who, stages in shared.shared([one.nodes for one in wanted]):
        first = wanted[who[0]]
        makes = shared.keys(shared.needed(first.nodes, stages))
        seed = f" (seed {first.seed})" if len({one.seed for one in wanted}) > 1 and len(who) < len(wanted) else ""
        jobs.append(
            Job(
                f"{study}-shared-{digest([code, sorted(makes)])}",
                f"shared by {len(who)}: {', '.join(stages)}{seed}",
                first.settings,
                makes,
                tuple(stages),
                shared=True,
                kind=first.kind,
            )
        )
    return jobs


@dataclass(frozen=True)
class Failures:
    """What failed before, which is not tried again without being asked: a file for each experiment."""

    folder: Path

    def read(self, names: Sequence[str]) -> dict[str, str]:
        files = {name: self.folder / f"{name}.txt" for name in names}
        return {name: file.read_text(encoding="utf-8").strip() for name, file in files.items() if file.is_file()}

    def write(self, messages: Mapping[str, str]) -> None:
        for name, message in messages.items():
            write_text(self.folder / f"{name}.txt", message + "\n")

    def forget(self, names: Sequence[str]) -> None:
        for name in names:
            (self.folder / f"{name}.txt").unlink(missing_ok=True)


@dataclass
class Engine:
    """Runs experiments of one study and reads them."""

    study: str  # what their names begin with
    code: str
    pool: Pool
    failures: Failures
    _why: dict[str, str] = field(default_factory=dict)  # experiments failed, by name

    @classmethod
    def of(cls, study: str, experiments: Experiments, *, code: str, jobs: int | None = None) -> "Engine":
        """jobs: experiments at a time; None: one for each GPU, one without."""
        return cls(study, code, Pool(experiments, slots(jobs), say=say), Failures(LOGS / study / "failed"))

    def run(self, wanted: Sequence[Experiment], *, retry: bool) -> None:
        """Runs what is neither finished nor failed before. retry: also what failed."""
        names = [one.name for one in wanted]
        if retry:
            self.failures.forget(names)
        before = self.failures.read(names)
        finished = self.pool.experiments.finished()
        waiting = [one for one in wanted if one.name not in {*finished, *before}]
        ahead = shared_jobs(waiting, study=self.study, code=self.code) if len(self.pool.slots) > 1 else []
        try:
            self.pool.run([*ahead, *waiting])
        finally:
            new = {one.name: self.pool.failed[one.name] for one in waiting if one.name in self.pool.failed}
            self.failures.write(new)
            self._why |= before | new

    def collect(self, wanted: Sequence[Of], rows: Callable[[Of], list[Row]]) -> tuple[list[Row], dict[str, str]]:
        """The rows of what is finished, and why the others have none, by name.

        One that cannot be read (UserError) does not cost the others.
        """
        done, found, without = self.pool.experiments.finished(), [], {}
        for one in wanted:
            if one.name not in done:
                without[one.name] = self._why.get(one.name, NOT_FINISHED)
                continue
            try:
                found += rows(one)
            except UserError as error:
                without[one.name] = str(error)
        return found, without

    def forget_shared(self) -> None:
        """Removes the experiments of shared stages, whose results the others have."""
        prefix = f"{self.study}-shared-"
        self.pool.experiments.forget(name for name in self.pool.experiments.finished() if name.startswith(prefix))

    def summary(self, wanted: Sequence[Experiment]) -> str:
        """28 experiments, 3 finished before, 25 to run, 2 at a time"""
        finished = self.pool.experiments.finished()
        before = sum(one.name in finished for one in wanted)
        count = len(self.pool.slots)
        counts = f"{len(wanted)} experiments, {before} finished before, {len(wanted) - before} to run"
        return counts + (f", {count} at a time" if count > 1 else "")

    def described(self, wanted: Sequence[Experiment], *, retry: bool) -> tuple[list[str], int]:
        """What would run and what would be made once for several, a line each; how many experiments would run."""
        finished = self.pool.experiments.finished()
        failed = {} if retry else self.failures.read([one.name for one in wanted])
        states = ["finished" if o.name in finished else "failed" if o.name in failed else "to run" for o in wanted]
        lines = [f"{state:<9} {one.described}" for state, one in zip(states, wanted, strict=True)]
        waiting = [one for state, one in zip(states, wanted, strict=True) if state == "to run"]
        once = shared_jobs(waiting, study=self.study, code=self.code)
        return [*lines, *(f"once      {job.label}" for job in once)], len(waiting)


# --- commands ---------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """A line above the progress bar."""
    tqdm.write(line)
    sys.stdout.flush()


def status(left: Sequence[Left]) -> int:
    """Says what has no result; the command's exit status."""
    for one in left:
        print(f"failed: {one.label}: {one.reason}", file=sys.stderr)
    return 1 if left else 0


def count(text: str) -> int:
    """A command's number from 1 on."""
    if not re.fullmatch(r"\d{1,6}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def command(work: Callable[[], int], name: str, folder: Path, *, alone: bool) -> NoReturn:
    """Runs a command's work and exits with its status; what a user can mend is one line. alone: one such at a time."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # of nohup
            signal.signal(number, terminate)
    try:
        if not alone:
            sys.exit(work())
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=0):
            sys.exit(work())
    except Timeout:
        sys.exit(f"the study {name} is already running in this folder")
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (UserError, ConfigError) as error:
        sys.exit(str(error))
    except PermissionError as error:
        sys.exit(f"{error.filename}: {error.strerror}; make it writable, or work in a copy of your own")
