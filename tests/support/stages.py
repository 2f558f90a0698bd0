"""The graph's stages run in this process, one after the other, in the current folder."""

import json
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import yaml

from ifm.config import parse, read_params
from pipeline.runner import paths
from pipeline.runner.stage import Stage
from pipeline.stages import (
    diagnose,
    evaluate,
    fetch,
    flow,
    preprocess,
    reference,
    report,
    sample,
    select,
    teacher,
    trajectories,
)
from pipeline.tools import preset

ROOT = Path(__file__).parents[2]
SINGLE = (fetch, preprocess, reference)
BRANCHED = (teacher, trajectories, flow, select, sample, evaluate, diagnose)
TINY_POINTS = {
    "data.points.count": 400, "network.mlp": {"width": 16, "layers": 1},
    "teacher.steps": 20, "teacher.batch_size": 16, "teacher.log_every": 10, "teacher.checkpoint_every": 10,
    "trajectories.count": 64, "trajectories.shard_size": 32, "trajectories.batch_size": 16,
    "trajectories.solver_steps": 4, "trajectories.stored_times": 3,
    "flow.steps": 20, "flow.batch_size": 16, "flow.log_every": 10, "flow.checkpoint_every": 10,
    "flow.reference_batch": 32, "select.count": 50, "select.levels": 3,
    "sample.seeds": 1, "sample.count": 100, "sample.batch_size": 50,
    "sample.flow_steps": [1, 2], "evaluate.teacher_nfe": [1, 5], "diagnose.paths": 8, "diagnose.solver_steps": 4,
    "diagnose.jacobian_paths": 2, "diagnose.jacobian_times": 2, "diagnose.anchor_refinements": 3,
}  # fmt: skip


class Untracked(Stage):
    """A stage whose checkpoints stay in a folder of the current one."""

    def work_folder(self, *, params, inputs):
        return Path("work") / self.name


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """params.yaml's values with some keys ("flow.steps") set, made where they are missing."""
    values = json.loads(json.dumps(values))
    for key, value in changes.items():
        *way, last = key.split(".")
        at = values
        for part in way:
            at = at.setdefault(part, {})
        at[last] = value
    return values


def points(**changes: Any) -> dict[str, Any]:
    """The points preset at its smallest, with further keys changed (`flow__steps`)."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return changed(values_of("points"), TINY_POINTS | named)


@cache
def values_of(name: str) -> dict[str, Any]:
    """A preset's values, for `changed`, which leaves them as they are."""
    return preset.parse_yaml(preset.apply(name, (ROOT / "params.yaml").read_text(encoding="utf-8")))


def run_stage(module: Any, values: dict[str, Any], dynamics: str | None = None) -> None:
    """One stage, with everything that it would log thrown away, and its run.json. What is timed is timed once."""
    name = module.__name__.rpartition(".")[2]
    made = Untracked(f"{name}-{dynamics}" if dynamics else name, name, parse(values), values, dynamics)
    made.run = SimpleNamespace(
        timings={}, log_metrics=lambda m: None, log_row=lambda row: None, log_model=lambda *a, **k: None,
        log_artifact=lambda *a: None, log_tags=lambda tags: None,
    )  # fmt: skip
    with mock.patch.object(sample, "seconds_per_image", partial(sample.seconds_per_image, repeats=1)):
        module.work(made)
    paths.RUNS.mkdir(parents=True, exist_ok=True)
    paths.run_record(made.name).write_text(json.dumps({"timings": made.run.timings}))


def run_graph(values: dict[str, Any], *, up_to: Any = report) -> None:
    """All stages on these values, in the current folder, which is left with all that they make."""
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert read_params(Path("params.yaml")) == values
    branches = [(module, d) for d in values["dynamics"] for module in BRANCHED]
    for module, d in [*((module, None) for module in SINGLE), *branches, (report, None)]:
        run_stage(module, values, d)
        if module is up_to:
            return
