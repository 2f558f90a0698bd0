"""Sweeps on a cluster, by submitit's local executor: real jobs, of a stand-in for `dvc exp run`."""

import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from ifm.errors import UserError
from pipeline.studies import submitted, workers
from pipeline.studies.experiments import STARTED
from pipeline.studies.submitted import Submitted, Work, cluster_options
from pipeline.studies.workers import Job, Pool

pytest.importorskip("submitit", reason="needs the extra .[cluster]")
WAITS = 1.0  # seconds until DVC has taken an experiment up


@dataclass(frozen=True)
class StandIn(Submitted):
    """DVC's place is taken by a few lines that note when they began, and end as they are told."""

    notes: Path = field(default_factory=Path)

    def finished(self):
        return {file.stem for file in self.notes.glob("*.done")}

    def command(self, job):
        code = f"""
import os, sys, time
from pathlib import Path
notes = Path({str(self.notes)!r})
(notes / "{job.name}.begun").write_text(f"{{time.time()}} {{os.environ.get('GIVEN')}}")
time.sleep({WAITS})
(notes / "{job.name}.taken").write_text(str(time.time()))
print({STARTED!r}, flush=True)
if "bad" in "{job.name}":
    sys.exit("ERROR: it broke")
while "long" in "{job.name}":
    time.sleep(0.2)
(notes / "{job.name}.done").touch()
"""
        return [sys.executable, "-c", code]


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "POLL", 0.05)
    return StandIn("sweep-", tmp_path / "logs", "local", {"timeout_min": 5}, notes=tmp_path)


def job(name):
    return Job(name, name, {}, frozenset([name]))


def test_jobs_run_on_the_cluster_and_start_one_after_the_other(experiments):
    names = ["one", "two", "bad"]
    pool = Pool(experiments, [{"GIVEN": "7"}] * 3, say=lambda line: None)
    pool.run([job(name) for name in names])
    assert experiments.finished() == {"one", "two"}
    assert list(pool.failed) == ["bad"]
    assert pool.failed["bad"].startswith("Reproducing experiment; ERROR: it broke (log: ")
    begun = {name: (experiments.notes / f"{name}.begun").read_text().split() for name in names}
    assert {given for _, given in begun.values()} == {"7"}
    order = sorted(names, key=lambda name: float(begun[name][0]))
    for before, after in pairwise(order):
        assert float((experiments.notes / f"{before}.taken").read_text()) <= float(begun[after][0])


def test_a_stopped_sweep_cancels_its_jobs(experiments):
    pool, process = Pool(experiments, [{}]), experiments.start(job("long"), {})
    deadline = time.monotonic() + 60
    while not (experiments.notes / "long.taken").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.started()
    assert not process.ended()
    assert process.at().startswith("job ")
    pool._running[0] = (job("long"), process, 0.0)
    process.end()
    process.job.wait()
    assert process.ended()
    assert experiments.finished() == set()


def test_a_job_that_is_cut_off_is_queued_again_as_it_was(tmp_path):
    from submitit.helpers import DelayedSubmission

    work = Work(["x"], {}, str(tmp_path / "log"), str(tmp_path / "lock"))
    again = work.checkpoint()
    assert isinstance(again, DelayedSubmission)
    assert again.function == work


def test_options_are_yaml_and_what_is_wrong_is_one_line(tmp_path):
    assert cluster_options(["slurm_partition=gpu", "timeout_min=720", "slurm_additional_parameters={account: me}"]) == {
        "slurm_partition": "gpu", "timeout_min": 720, "slurm_additional_parameters": {"account": "me"},
    }  # fmt: skip
    with pytest.raises(UserError, match="--cluster-set gpus: must be KEY=VALUE"):
        cluster_options(["gpus"])
    with pytest.raises(UserError, match=r"--cluster local: .*no_such_option"):
        submitted.of("sweep-", tmp_path, cluster="local", words=["no_such_option=1"])
    with pytest.raises(UserError, match="--cluster slurm: "):
        submitted.of("sweep-", tmp_path, cluster="slurm", words=[])
