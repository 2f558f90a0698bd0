"""Several experiments at a time, each in a folder of its own, and no stage made by two of them at once.

DVC's own queue (`dvc queue start -j`) makes a stage that two experiments share twice, and gives its workers one
environment. Here no two run at once that would make the same stage, and each worker has its GPU. One starts after the
other: DVC keeps what it is about to start in one place.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ifm.progress import progress

POLL = 0.2  # seconds


@dataclass(frozen=True)
class Job:
    """An experiment, or the stages that several of them share."""

    name: str  # of the experiment
    label: str
    settings: Mapping[str, Any]  # by dotted name: what differs from params.yaml
    makes: frozenset[str]  # keys of its stages (pipeline/studies/shared.py)
    targets: tuple[str, ...] = ()  # none: the whole graph
    shared: bool = False
    weight: int = 1  # how much work it is beside others of its kind: the number of its dynamics
    kind: str = ""  # jobs of one kind take about as long for the same weight


class Process(Protocol):
    """A job that runs."""

    def ended(self) -> bool: ...
    def started(self) -> bool: ...  # whether DVC has taken it up
    def message(self) -> str: ...  # why it failed
    def at(self) -> str: ...  # the stage it is at, or ""
    def end(self) -> None: ...


class Experiments(Protocol):
    """Where jobs run and their results lie; experiments go by their names."""

    def finished(self) -> set[str]: ...
    def start(self, job: Job, environment: Mapping[str, str]) -> Process: ...
    def metrics(self, name: str, files: Sequence[str]) -> dict[str, Any]: ...  # by file; raises UserError
    def records(self, name: str) -> dict[str, Any]: ...  # {"flow-ve": run.json, ...} of what DVC's cache holds
    def forget(self, names: Iterable[str]) -> None: ...


@dataclass
class Pool:
    """Workers that take jobs in their order, except for those that wait for a stage that another is making.

    What fails in shared stages is said of every job that needs them, and these are not tried.
    """

    experiments: Experiments
    slots: Sequence[Mapping[str, str]]  # the environment of each worker
    say: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    made: set[str] = field(default_factory=set)  # keys of stages that lie in DVC's cache by now
    failed: dict[str, str] = field(default_factory=dict)  # why, by the job's name
    _waiting: list[Job] = field(default_factory=list)
    _running: dict[int, tuple[Job, Process, float]] = field(default_factory=dict)  # by slot; since when
    _broken: list[Job] = field(default_factory=list)  # shared ones that failed
    _again: set[str] = field(default_factory=set)
    _spent: list[tuple[Job, float]] = field(default_factory=list)  # seconds
    _total: int = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs what is not finished; `failed` says why the others are not. Ends all that runs, after an error too."""
        done = self.experiments.finished()
        self.made |= {key for job in jobs if job.name in done for key in job.makes}
        self._waiting = [job for job in jobs if job.name not in done and not (job.shared and job.makes <= self.made)]
        self._total = len(self._waiting)
        try:
            with progress(label="experiments", unit="exp", total=self._total) as bar:
                while self._waiting or self._running:
                    self._take_in()
                    self._start_one()
                    bar.n = self._total - len(self._waiting) - len(self._running)
                    bar.set_postfix_str(", ".join(process.at() for _, process, _ in self._running.values()))
                    self.sleep(POLL)
        finally:
            for _, process, _ in self._running.values():
                process.end()
            self._running.clear()

    def _take_in(self) -> None:
        for slot in [slot for slot, (_, process, _) in self._running.items() if process.ended()]:
            job, process, since = self._running.pop(slot)
            if job.name in self.experiments.finished():
                self.made |= job.makes
                self._spent.append((job, self.clock() - since))
                self._tell(job, f"{duration(self._spent[-1][1])}{self._left()}")
            elif not process.started() and job.name not in self._again:
                # Another `dvc exp run` that ended just then took it up.
                self._again.add(job.name)
                self._waiting.insert(0, job)
            else:
                self._fail(job, process.message())

    def _start_one(self) -> None:
        """Starts the first job whose stages nobody is making, once the one before has started."""
        if not all(process.started() or process.ended() for _, process, _ in self._running.values()):
            return
        free = next((slot for slot in range(len(self.slots)) if slot not in self._running), None)
        busy = {key for job, _, _ in self._running.values() for key in job.makes} - self.made
        job = next((job for job in self._waiting if not job.makes & busy), None)
        if free is None or job is None:
            return
        self._waiting.remove(job)
        cause = next((one for one in self._broken if one.makes <= job.makes), None)
        if cause:
            self._fail(job, f"not run: {cause.label} failed: {self.failed[cause.name]}")
            return
        self.say(f"{job.label} ...")
        self._running[free] = (job, self.experiments.start(job, self.slots[free]), self.clock())

    def _fail(self, job: Job, message: str) -> None:
        self.failed[job.name] = message
        if job.shared:
            self._broken.append(job)
        self._tell(job, f"failed: {message}")

    def _tell(self, job: Job, text: str) -> None:
        ended = self._total - len(self._waiting) - len(self._running)
        self.say(f"[{ended}/{self._total}] {job.label}: {text}")

    def _left(self) -> str:
        """About how long the rest takes."""
        rest = [*self._waiting, *(job for job, _, _ in self._running.values())]
        seconds = sum(job.weight * self._seconds(job.kind) for job in rest) / len(self.slots)
        return f"; about {duration(seconds)} left" if rest else ""

    def _seconds(self, kind: str) -> float:
        """Of a unit of weight: the mean over what ran of this kind, else over all."""
        spent = [one for one in self._spent if one[0].kind == kind] or self._spent
        return sum(seconds for _, seconds in spent) / sum(job.weight for job, _ in spent)


def duration(seconds: float) -> str:
    """45 s, 3 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
