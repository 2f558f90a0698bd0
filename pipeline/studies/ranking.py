"""The ranking of a sweep: which figure counts, the rows it is read from, and the configurations by it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ifm.config import Config
from ifm.errors import UserError
from ifm.metrics import catalogue, cautions, teachers
from ifm.report import names
from ifm.report.headlines import nfe_text
from ifm.report.rounding import mean_and_deviation, significant
from pipeline.runner import paths
from pipeline.runner.stage import data_name
from pipeline.studies.axes import column
from pipeline.studies.engine import Experiment
from pipeline.studies.experiments import override_text

HIGHER_IS_BETTER = catalogue.ranking()  # what can be ranked by
SAMPLERS = tuple(names.SAMPLERS)


@dataclass(frozen=True)
class Measure:
    """What configurations are ranked by: a figure of one sampler, over dynamics and seeds."""

    metric: str
    sampler: str
    nfe: int | None  # None: the flow's most that there are; the teacher's best

    @property
    def higher(self) -> bool:
        return HIGHER_IS_BETTER[self.metric]

    def steps(self, config: Config) -> int:
        """Evaluations of the sampler in a configuration. Raises UserError where it is not sampled."""
        if self.sampler == "one_step":
            there = [1]
        elif self.sampler == "heun":
            there = [] if config.teacher.kind == "none" else config.evaluate.teacher_nfe
        else:
            there = [n for n in config.sample.flow_steps if n > 1 and self.sampler in config.sample.flow_samplers]
        if not there or self.nfe not in (None, *there):
            where = "evaluate.teacher_nfe" if self.sampler == "heun" else "sample.flow_samplers and sample.flow_steps"
            asked = self.sampler + (f" at {self.nfe} evaluations" if self.nfe else "")
            raise UserError(f"--sampler {asked}: is not sampled; see {where} in {paths.PARAMS}")
        return self.nfe or max(there)

    def row(self, metrics: Mapping[str, Mapping[str, Any]], config: Config) -> Mapping[str, Any] | None:
        """The sampler's figures among those of one dynamics."""
        model, steps = "teacher" if self.sampler == "heun" else "flow", self.steps(config)
        if model == "teacher" and self.nfe is None:
            return teachers.best((r for r in metrics.values() if r["model"] == model), catalogue.get(self.metric))
        key = (model, self.sampler, steps)
        return next((r for r in metrics.values() if (r["model"], r["sampler"], r["nfe"]) == key), None)


def kind(config: Config) -> str:
    """What sort of data a configuration has, as the catalogue of metrics calls it."""
    return config.data.modality.figures


def rows(
    values: Mapping[str, Any], run: Experiment, measure: Measure, results: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row for each dynamics that has the figure to rank by: what is varied, seed, and the sampler's figures.

    values: of the axes; results: the evaluate stages' figures, by dynamics. Raises UserError where none has it.
    """
    varied = {column(key): override_text(value) for key, value in values.items()}
    common = {"data": data_name(run.config), "sampler": measure.sampler}
    found = []
    for d in run.config.dynamics:
        row = measure.row(results[d], run.config) or {}
        figures = {metric: row.get(metric) for metric in HIGHER_IS_BETTER}
        figures |= {"nfe": row.get("nfe", measure.steps(run.config))}
        of_run = {"experiment": run.name, "warnings": cautions.cell(cautions.told(row))}
        found.append(varied | common | {"dynamics": d, "seed": run.seed, **figures, **of_run})
    having = [row for row in found if row[measure.metric] is not None]
    if not having:
        reasons = ", ".join(row["warnings"] for row in found if row["warnings"])
        said = f"finished, but {', '.join(run.config.dynamics)} has no {measure.metric} of {measure.sampler}"
        raise UserError(f"{said}: {reasons}" if reasons else said)
    return having


def score(rows: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """The mean over dynamics and seeds; None where there is none."""
    values = [row[metric] for row in rows if row[metric] is not None and math.isfinite(row[metric])]
    return sum(values) / len(values) if values else None


def ranked(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], measure: Measure) -> pd.DataFrame:
    """One row for each configuration and dynamics, the best configuration first: means and deviations over seeds.

    `score` is the mean over the dynamics, which the rank goes by, `score_sd` the deviation of that mean over seeds;
    deviations are empty with one seed. `experiments` are in the order of the seeds.
    """
    table = pd.DataFrame(rows).assign(whole=0)  # something to group by where nothing is varied
    table["warnings"] = table.get("warnings")
    table[list(HIGHER_IS_BETTER)] = table[list(HIGHER_IS_BETTER)].astype(float)
    of = [*axes, "whole"]
    means = table.groupby([*of, "seed"], sort=False)[measure.metric].mean().groupby(of, sort=False)
    scores = pd.DataFrame({"score": means.mean(), "score_sd": means.std()}).reset_index()
    scores = scores.sort_values("score", ascending=not measure.higher, kind="stable", ignore_index=True)
    scores["rank"] = scores.index + 1
    shown = [metric for metric in HIGHER_IS_BETTER if table[metric].notna().any()]
    shown.sort(key=lambda metric: metric != measure.metric)
    groups = table.groupby([*of, "data", "dynamics", "sampler"], sort=False)
    summary = pd.DataFrame({"seeds": groups["seed"].nunique(), "experiments": groups["experiment"].agg(" ".join)})
    summary["nfe"] = groups["nfe"].agg(lambda nfe: nfe_text(list(nfe)))
    summary["warnings"] = groups["warnings"].agg(lambda cells: cautions.cell(cautions.of_cells(cells)))
    for name in shown:
        summary[name], summary[f"{name}_sd"] = groups[name].mean(), groups[name].std()
    found = summary.reset_index().merge(scores, on=of).sort_values("rank", kind="stable", ignore_index=True)
    figures = [column for name in shown for column in (name, f"{name}_sd")]
    before = ["rank", *axes, "data", "dynamics", "sampler", "nfe", "score", "score_sd", "seeds"]
    return found[[*before, *figures, "experiments", "warnings"]]


def terminal(table: pd.DataFrame, axes: Sequence[str], metric: str) -> str:
    """The configurations by rank, a line each."""
    several = table["dynamics"].nunique() > 1
    lines = []
    for rank, rows in table.groupby("rank", sort=True):
        first = rows.iloc[0]
        line = {"rank": rank, **{key: first[key] for key in axes}}
        line[f"{metric}, mean" if several else metric] = with_deviation(first["score"], first["score_sd"])
        if several:
            line |= {d: significant(value) for d, value in zip(rows["dynamics"], rows[metric], strict=True)}
        lines.append(line | {"seeds": first["seeds"], "experiment": first["experiments"].split()[0]})
    return pd.DataFrame(lines).fillna("").to_string(index=False)


def with_deviation(mean: float, deviation: float) -> str:
    """0.453 ± 0.048, or the mean alone where there is no deviation."""
    return " ".join(mean_and_deviation(mean, deviation)).rstrip()
