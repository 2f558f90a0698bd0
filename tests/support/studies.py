"""A study without its experiments: a runner that takes no time, what stages would write, a folder to write in."""

import argparse
from pathlib import Path

import pytest

from ifm.errors import UserError
from pipeline.studies import study
from pipeline.studies.study import Task

ROOT = Path(__file__).parents[2]


class FakeRunner:
    """Experiments that take no time: some fail, one may be cut off."""

    def __init__(self, *, fails=(), killed_at=None):
        self.done, self.ran, self.fails, self.killed_at = {}, [], fails, killed_at

    def finished(self):
        return set(self.done)

    def run(self, task):
        if len(self.ran) == self.killed_at:
            raise KeyboardInterrupt
        self.ran.append(task.name)
        if task.variant.name in self.fails:
            raise UserError("ERROR: failed to reproduce 'flow@ve'")
        self.done[task.name] = results_of(task)

    def read(self, task):
        return self.done[task.name]

    def records(self, task):
        return {}


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


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in which `run_study` believes itself in a clean commit, and writes."""
    for name in ("params.yaml", "dvc.yaml", "pipeline", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "check_checkout", lambda: "0123456789abcdef")
    return tmp_path


def arguments(**changes):
    made = {"presets": ["points"], "seeds": [0, 1], "only": None, "set": [], "dry_run": False}
    return argparse.Namespace(**(made | changes))
