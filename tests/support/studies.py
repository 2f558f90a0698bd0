"""Sweeps and studies without their experiments: jobs that take no time, what stages would write, a folder to be in."""

import argparse
from pathlib import Path

import pytest

from ifm.errors import UserError
from pipeline.studies import study, workers
from pipeline.studies.engine import Engine, Failures
from pipeline.studies.study import Task
from pipeline.studies.workers import Pool

ROOT = Path(__file__).parents[2]


class FakeProcess:
    """A job that lasts some polls."""

    def __init__(self, runner, job):
        self.runner, self.job, self.left, self.stopped = runner, job, runner.polls, False
        self.taken = job.name in runner.taken  # by another `dvc exp run`, which loses it
        runner.taken.discard(job.name)

    def ended(self):
        self.left -= 1
        if self.left == 0 and not self.taken and not self.runner.is_bad(self.job):
            self.runner.done.add(self.job.name)
        return self.left <= 0

    def started(self):
        return self.left < self.runner.polls - 1 and not self.taken

    def message(self):
        return f"{self.job.name} broke"

    def at(self):
        return "flow@rf"

    def end(self):
        self.stopped = True


class FakeExperiments:
    """Jobs that last some polls; it notes who ran beside whom.

    bad: names of those that fail, of experiments or of a study's variants; taken: names of those that another
    `dvc exp run` takes up once; killed_at: at how many jobs Ctrl-C comes.
    """

    def __init__(self, polls=12, bad=(), taken=(), killed_at=None):
        self.polls, self.bad, self.taken, self.killed_at = polls, set(bad), set(taken), killed_at
        self.done, self.started, self.beside, self.environments = set(), [], [], []
        self.processes, self.jobs, self.unreadable = [], {}, set()

    def is_bad(self, job):
        return job.name in self.bad or getattr(getattr(job, "variant", None), "name", None) in self.bad

    def finished(self):
        return set(self.done)

    def start(self, job, environment):
        if len(self.started) == self.killed_at:
            raise KeyboardInterrupt
        running = [p for p in self.processes if p.left > 0]
        assert all(p.started() for p in running), "one at a time is taken up"
        made = set().union(*(p.job.makes for p in self.processes if p.job.name in self.done))
        assert not [p.job.name for p in running if (p.job.makes & job.makes) - made], "made twice"
        self.beside.append({p.job.name for p in running} | {job.name})
        self.started.append(job.name)
        self.environments.append(environment)
        self.processes.append(FakeProcess(self, job))
        self.jobs[job.name] = job
        return self.processes[-1]

    def metrics(self, name, files):
        if name in self.unreadable:
            raise UserError(f"experiment {name}: {files[0]}.json is no JSON")
        return results_of(self.jobs[name])

    def records(self, name):
        return {}

    def forget(self, names):
        self.done -= set(names)


def results_of(task: Task, value=lambda task, d, nfe: 1.0) -> dict:
    """What the evaluate stages of an experiment write."""
    points = task.config.data.source == "points"

    def row(model, sampler, nfe, d):
        quality = value(task, d, nfe) * (1.0 if model == "flow" else 50.0 if nfe == 1 else 0.5)
        metrics = {"sliced_wasserstein": quality, "energy_distance": quality / 10} if points else {"fid": quality}
        return {"model": model, "sampler": sampler, "nfe": nfe, "n_samples": 2000, "class_shares": [1.0], **metrics}

    samplers = [("teacher", "heun", 1), ("teacher", "heun", 35), ("flow", "one_step", 1), ("flow", "anchor", 2)]
    return {"reference": {"extractor": task.config.evaluate.extractor}} | {
        d: {f"{m}-{s}-nfe{n:03d}": row(m, s, n, d) for m, s, n in samplers} for d in task.dynamics
    }


def pool(experiments, count=2, say=lambda line: None, **options) -> Pool:
    """Workers that do not wait."""
    slots = [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(count)]
    return Pool(experiments, slots, say=say, sleep=lambda seconds: None, **options)


def engine(experiments, folder, *, study="ablation", count=1, **options) -> Engine:
    """folder: where failures are kept."""
    return Engine(study, "c0de", pool(experiments, count, **options), Failures(folder))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in which `run_study` believes itself in a clean commit, and writes; experiments do not wait."""
    for name in ("params.yaml", "dvc.yaml", "pipeline", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "check_checkout", lambda: "0123456789abcdef")
    monkeypatch.setattr(workers, "POLL", 0)
    return tmp_path


def arguments(**changes):
    made = {"presets": ["points"], "seeds": [0, 1], "only": None, "set": [], "jobs": None, "dry_run": False}
    return argparse.Namespace(**(made | changes))
