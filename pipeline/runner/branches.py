"""The branches of the graph side by side: stages start, end, fail, wait for another DVC, and are stopped together."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ifm.progress import BESIDE, in_words
from ifm.tracking.delivery import AFTER
from pipeline.runner import dvc_process, groups, lockfile, show
from pipeline.runner.dvc_process import Plan, Process
from pipeline.runner.schedule import Schedule
from pipeline.runner.slots import slots

FOLDER = Path(".ifm/repro")
ORDER = FOLDER / "order.json"  # of dvc.lock before the first of several runs that did not come to their end
POLL = 0.1  # seconds
REDRAWN = 0.5
PATIENCE = 25.0  # seconds that stages have to end after Ctrl-C or SIGTERM
AGAIN = 2.0  # seconds until a stage is tried again that another DVC kept from starting, ...
TRACKED_AFTER = os.environ.get(AFTER, "60")  # MLflow is imported once, by `track`, and not by every short stage
LONGEST_WAIT = 60.0  # ... for so long


@dataclass
class Runner:
    """Runs the stages of a plan. `stopped`: the signal that asked for the end."""

    plan: Plan
    jobs: int
    screen: show.Show
    seconds: dict[str, float]
    unchanged: frozenset[str] = frozenset()
    stopped: int = 0
    ran: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # why a stage failed
    _running: dict[int, Process] = field(default_factory=dict)  # by slot
    _waiting: dict[str, float] = field(default_factory=dict)  # stages that another DVC kept from starting; until when
    _since: dict[str, float] = field(default_factory=dict)  # when they were kept first

    def __post_init__(self) -> None:
        self.slots = slots(self.jobs)
        self.schedule = Schedule(self.plan.graph, self.seconds, done=set(self.unchanged))
        self.order = lockfile.final_order(self.plan.graph.order, note=ORDER)

    def run(self) -> None:
        """Until all that can be done is done, or `stopped` is set. Ends what it started in any case."""
        drawn = 0.0
        try:
            while not self.stopped and (self._running or self._waiting or not self.schedule.over):
                self._start()
                self._take_in()
                if time.monotonic() - drawn >= REDRAWN:
                    self.screen.now([self._row(process) for process in self._running.values()])
                    drawn = time.monotonic()
                time.sleep(POLL)
        finally:
            self.end()

    def end(self) -> None:
        """Ends what runs: as asked, and by force what has not ended in time or is asked again."""
        asked, self.stopped = self.stopped, 0
        # A terminal that was closed is no reason to lose the steps since the last checkpoint: stages know Ctrl-C.
        told = {0: signal.SIGTERM, signal.SIGHUP: signal.SIGINT}.get(asked, asked)
        for process in self._running.values():
            process.signal(told)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not self.stopped:
            # DVC ends at once, its stage when it has kept a checkpoint and closed its run.
            if not any([process.poll() is None or groups.lives(process.pid) for process in self._running.values()]):
                break
            time.sleep(POLL)
        for process in self._running.values():
            process.signal(signal.SIGKILL)
            while process.poll() is None:
                time.sleep(0.01)
            if said := [line for line in show.own_lines(read(process.log)) if ": stopped; " in line]:
                self.screen.line(said[-1])
        self._running.clear()
        self.stopped = asked

    def _start(self) -> None:
        now = time.monotonic()
        for slot, environment in enumerate(self.slots):
            if slot in self._running:
                continue
            name = next((one for one, due in self._waiting.items() if due <= now), None)
            if name:
                del self._waiting[name]
                lockfile.mend()
            elif len(self._running) + len(self._waiting) >= len(self.slots):
                return
            else:
                name = self.schedule.next()
                if name is None:
                    return
                what = show.phrase(self.plan.commands[name])
                self.screen.line(f"{name}: {what}" if what else name)
            beside = {BESIDE: str(now_file(name).absolute()), AFTER: TRACKED_AFTER}
            self._running[slot] = dvc_process.repro(name, log_file(name), environment | beside, self.order)

    def _take_in(self) -> None:
        for slot, process in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[slot]
            now_file(process.name).unlink(missing_ok=True)
            if process.status == 0:
                self._ended(process)
            elif not self.stopped:
                self._failed(process)

    def _ended(self, process: Process) -> None:
        name, text, took = process.name, read(process.log), time.monotonic() - process.began
        self.schedule.ended(name, well=True)
        for line in show.worth_passing_on(name, text):
            self.screen.once(line)
        if name in show.ran(text):
            self.ran.append(name)
            self.seconds[name] = round(took, 1)
            what = f"done in {in_words(took)}"
        else:
            what = "taken from the cache" if show.cached(text) else "did not change"
        self.screen.line(f"{name}: {what}{self._left()}")
        branch = name.partition("@")[2]
        if branch and f"headline/{branch}" in self.plan.outputs.get(name, ""):
            for line in show.table(show.headlines([branch])):
                self.screen.line(f"  {line}")

    def _failed(self, process: Process) -> None:
        name, text, now = process.name, read(process.log), time.monotonic()
        if show.blocked(text) and now - self._since.setdefault(name, now) < LONGEST_WAIT:
            self._waiting[name] = now + AGAIN
            return
        self.schedule.ended(name, well=False)
        self.reasons[name] = show.why(text, process.status)
        self.screen.line(f"{name}: failed: {self.reasons[name]}")

    def _left(self) -> str:
        """E.g. "; 5 of 22 done, about 9 min left"."""
        graph, done = self.plan.graph, len(self.schedule.done)
        if done == len(graph.order):
            return ""
        elapsed = {process.name: time.monotonic() - process.began for process in self._running.values()}
        left = self.schedule.left(elapsed, jobs=self.jobs)
        return f"; {done} of {len(graph.order)} done" + (f", about {in_words(left)} left" if left else "")

    def _row(self, process: Process) -> str:
        said = read(now_file(process.name)).partition(": ")[2]
        took = in_words(time.monotonic() - process.began)
        usual = self.schedule.estimate(process.name)
        return f"{process.name}: {said or took + (f' of about {in_words(usual)}' if usual else '')}"


@contextmanager
def asked_to_stop(runner: Runner) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal end the stages, too, and then this process; a second one at once.

    What this process was started to ignore it goes on ignoring: SIGHUP under nohup, SIGINT in a shell's background.
    """

    def stop(number: int, frame: object) -> None:
        runner.stopped = number

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_file(name: str) -> Path:
    return FOLDER / f"{name.replace('/', '_')}.log"


def now_file(name: str) -> Path:
    return FOLDER / f"{name.replace('/', '_')}.now"


def read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
