"""A sweep's experiments as jobs of a cluster, by submitit: each is `dvc exp run --temp` on the node that it gets.

All nodes see the checkout (a shared file system). DVC keeps what it is about to start in one place, so jobs start one
after the other, by a lock in the checkout; then they run side by side. A job that the cluster cuts off is queued again,
and its training goes on from its checkpoint.
"""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from ifm.errors import UserError, in_a_line
from pipeline.studies.experiments import DvcExperiments, DvcProcess, current_stage, last_lines
from pipeline.studies.workers import Job
from pipeline.tools.preset import parse_yaml

CLUSTERS = ("slurm", "local")
JOBS = 64  # queued or running at a time, where --jobs does not say
POLL, SETTLE = 0.5, 30.0  # seconds


def cluster_options(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE as of `--cluster-set`, values as YAML. Raises UserError."""
    found = {}
    for word in words:
        key, is_there, value = word.partition("=")
        if not is_there or not key.isidentifier():
            raise UserError(f"--cluster-set {word}: must be KEY=VALUE, e.g. slurm_partition=gpu or timeout_min=720")
        found[key] = parse_yaml(value)
    return found


@dataclass(frozen=True)
class Submitted(DvcExperiments):
    """`DvcExperiments` that a cluster runs. options: of submitit's `update_parameters`."""

    cluster: str = "slurm"
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises UserError where submitit, the cluster or an option is not known: before any work."""
        if importlib.util.find_spec("submitit") is None:
            raise UserError("--cluster needs submitit: pip install -e '.[cluster]' -c constraints.txt")
        self._executor()

    def start(self, job: Job, environment: Mapping[str, str]) -> "SubmittedProcess":
        """Queues the experiment."""
        log = self.logs / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")
        work = Work(self.command(job), dict(environment), str(log), str(self.logs / "start.lock"))
        executor = self._executor()
        executor.update_parameters(name=job.name)
        return SubmittedProcess(executor.submit(work), log, settle=0.0 if self.cluster == "local" else SETTLE)

    def _executor(self) -> Any:
        import submitit

        try:
            made = submitit.AutoExecutor(folder=self.logs / "jobs", cluster=self.cluster)
            made.update_parameters(**self.options)
        except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
            raise UserError(f"--cluster {self.cluster}: {in_a_line(error)}") from error
        return made


@dataclass(frozen=True)
class Work:
    """What a node does. submitit pickles it, and calls `checkpoint` where the cluster cuts the job off."""

    words: Sequence[str]
    environment: Mapping[str, str]
    log: str
    lock: str

    def __call__(self) -> int:
        """DVC's exit status. The lock is held until DVC has taken the experiment up."""
        with FileLock(self.lock):
            process = DvcProcess.begin(self.words, self.environment, Path(self.log))
            while not (process.started() or process.ended()):
                time.sleep(POLL)
        try:
            return process.process.wait()
        finally:
            process.end()

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass
class SubmittedProcess:
    """A job of a cluster, as the pool watches it (`workers.Process`)."""

    job: Any  # submitit's
    log: Path
    settle: float = 0.0  # seconds in which a network file system shows here what the node wrote last
    _done: float | None = None  # when its end was seen

    def ended(self) -> bool:
        if self._done is None and self.job.done():
            self._done = time.monotonic()
        return self._done is not None and time.monotonic() - self._done >= self.settle

    def started(self) -> bool:
        """The pool need not wait: jobs start one after the other by a lock."""
        return True

    def message(self) -> str:
        text = self._text()
        if text.strip():
            return f"{last_lines(text)} (log: {self.log})"
        error = self.job.exception()
        told = str(error).strip().splitlines()[-1:] if error is not None else []
        return f"{'; '.join(told) or 'ended without a word'} (job {self.job.job_id}: {self.job.paths.stderr})"

    def at(self) -> str:
        return current_stage(self._text()) or f"job {self.job.job_id}"

    def end(self) -> None:
        if not self.job.done():
            self.job.cancel()

    def _text(self) -> str:
        return self.log.read_bytes().decode(errors="replace") if self.log.is_file() else ""


def of(prefix: str, logs: Path, *, cluster: str, words: Sequence[str]) -> Submitted:
    """The experiments of a study on a cluster, checked. words: of --cluster-set."""
    made = Submitted(prefix, logs.absolute(), cluster, cluster_options(words))
    made.check()
    return made
