"""`make objectives`: what a flow can be trained by, at equal numbers of network evaluations (see study.py).

The budget of a preset is what its teacher, paths and flow take together; the values and steps that each objective gets
for it stand in pipeline/presets/objectives. Where no teacher is needed one is trained all the same, beside the flow and
with the whole budget where that is cheap (`COMPARED`), to compare with.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ifm import objectives
from ifm.config import Config
from ifm.dynamics import PAPER
from ifm.solver import solver_nfe
from pipeline.studies import study
from pipeline.studies.pages import objectives as objectives_page
from pipeline.studies.study import METRICS, TEACHERS, Study, Task
from pipeline.tools import preset

KEY_COLUMNS = ("data", "extractor", "dynamics", "objective", "seed", "sampler", "steps")
COLUMNS = (
    *KEY_COLUMNS, "train_steps", "train_batch", "evaluations", "train_seconds", "peak_memory_mb", "n_samples", *METRICS,
    "min_class_share", "teacher_evaluations", *TEACHERS, "warnings",
)  # fmt: skip
# Of teachers that are trained to compare with alone: as many steps as make the preset's whole budget.
COMPARED = {"points": {"teacher.steps": 4600}}


def needs_teacher(config: Config) -> bool:
    """Whether the flow is trained on a teacher's paths, from its weights, by its velocities, or led by it."""
    flow, by_teacher, guided = config.flow, config.flow.velocity == "teacher", config.guidance.kind != "none"
    asks = any(
        (by_teacher and each.takes_velocities) or (guided and not (each.leads_itself and not by_teacher))
        for each in objectives.of(flow).values()
    )
    return objectives.needs_paths(flow) or flow.init == "teacher" or asks


def flow_evaluations(config: Config) -> float:
    """Network evaluations in training the flow: the objectives' own (`Objective.cost`) and the anchor's.

    Policy self takes an extra pass for a share of each batch.
    """
    flow, guided = config.flow, _guided(config)
    asked = objectives.of(flow).values()
    anchor = config.anchor.self_probability if config.anchor.policy == "self" else 0
    own = sum(each.cost(flow) + guided * each.guided_cost(flow) for each in asked) / len(asked)
    per_step = own + anchor
    return per_step * flow.steps * flow.batch_size


def teacher_evaluations(config: Config) -> float:
    """Network evaluations in training the teacher, and a smaller one of autoguidance."""
    if config.teacher.kind != "network":
        return 0
    share = config.guidance.weaker if config.guidance.weaker_network else 0
    return round((1 + share) * config.teacher.steps) * config.teacher.batch_size


def evaluations(config: Config) -> float:
    """Network evaluations that one dynamics' flow needs in all: with its teacher's and its paths' where it has them."""
    total = flow_evaluations(config)
    if needs_teacher(config):
        total += teacher_evaluations(config)
    if objectives.needs_paths(config.flow):
        solved = config.trajectories.count
        if config.trajectories.store == "none":
            solved = config.flow.steps // len(objectives.of(config.flow)) * config.flow.batch_size
        total += solved * solver_nfe(config.trajectories.solver_steps) * (2 if _guided(config) else 1)
    return total


def _guided(config: Config) -> bool:
    """Whether a denoiser costs two evaluations. guidance.interval, outside of which it costs one, is not looked at."""
    return config.guidance.kind != "none" and config.guidance.scale != 1


@dataclass(frozen=True)
class Objective:
    """One row of the table: an objective with the values that its preset gives it, and a teacher to compare with."""

    name: str
    title: str  # on the page
    colour: str
    sampler: str = "renoise"  # from two evaluations on
    samplers: tuple[str, ...] = ("renoise",)  # all that are drawn from then on
    dynamics: tuple[str, ...] = PAPER

    @property
    def with_teacher(self) -> bool:
        """Whether the flow needs one; where it does not, one is trained to compare with alone."""
        return any(objectives.OBJECTIVES[part].needs_paths for part in self.name.split("-"))

    def params(self, preset_name: str) -> dict[str, Any]:
        values = preset.objective_values(self.name, preset_name) | {"sample.flow_samplers": list(self.samplers)}
        if values.get("teacher.kind") == "none":
            values |= {"teacher.kind": "network"} | COMPARED.get(preset_name, {})
        return values

    def facts(self, task: Task, dynamics: str, records: Mapping[str, Any]) -> dict[str, Any]:
        config, flow = task.config, records.get(f"flow-{dynamics}", {})
        used = ["flow"] + ["teacher"] * needs_teacher(config) + ["trajectories"] * objectives.needs_paths(config.flow)
        timings = [records.get(f"{stage}-{dynamics}", {}).get("timings", {}) for stage in used]
        seconds = [t.get("train_seconds", t.get("stage_seconds")) for t in timings]
        return {
            "objective": self.name,
            "train_batch": config.flow.batch_size,
            "evaluations": round(evaluations(config)),
            "train_seconds": None if None in seconds else sum(seconds),
            "peak_memory_mb": flow.get("memory", {}).get("peak_memory_mb"),
            "teacher_evaluations": round(teacher_evaluations(config)),
        }


# Colours: Okabe & Ito's.
OBJECTIVES = (
    Objective("trajectory", "trajectory", "#0072B2", samplers=("anchor", "renoise")),
    Objective("trajectory-consistency", "trajectory, consistency", "#56B4E9"),
    Objective("consistency", "consistency", "#009E73"),
    Objective("interval", "interval", "#D55E00", sampler="chain", samplers=("chain", "renoise")),
    Objective("data", "data (the paper’s)", "#CC79A7", sampler="anchor", samplers=("anchor", "renoise")),
)

STUDY = Study(
    name="objectives",
    variants=OBJECTIVES,
    variant_column="objective",
    key_columns=KEY_COLUMNS,
    columns=COLUMNS,
    budget=("n_samples",),
    render=partial(objectives_page.render, objectives=OBJECTIVES),
)


def parser() -> argparse.ArgumentParser:
    return study.parser(STUDY, module="pipeline.studies.objectives", about=main.__doc__)


def main() -> None:
    """Trains a flow by every objective and writes reports/objectives.csv and objectives.html."""
    study.main(STUDY, parser().parse_args())


if __name__ == "__main__":
    main()
