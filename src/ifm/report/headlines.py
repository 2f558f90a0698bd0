"""The flow against the teacher at its best: a line for each dynamics, and the figures as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ifm.metrics import catalogue, teachers
from ifm.metrics.metric import Metric
from ifm.report import names
from ifm.report.rounding import MISSING, measured, significant, spread_decimals
from ifm.report.summary import read_summary


@dataclass(frozen=True)
class Estimate:
    """A measured value over seeds: mean, standard deviation (None below two), number of seeds."""

    mean: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Steps:
    """The flow at one number of evaluations, by the best of its samplers that were drawn."""

    nfe: int
    sampler: str
    fid: Estimate
    ratio: Estimate | None  # see `over_teacher`
    nearest: Estimate | None  # the distance to the nearest training image


@dataclass(frozen=True)
class Headline:
    """One dynamics in one line. A value that was not measured is None."""

    dynamics: str
    variant: str  # objective and anchor policy, "" where the page has only one pair
    flow_fid: Estimate | None
    teacher_fid: Estimate | None  # at its best NFE
    teacher_nfe: tuple[int, ...]  # that NFE; several where seeds of training have their own
    ratio: Estimate | None  # see `over_teacher`
    single_fid: Estimate | None  # teacher with one evaluation
    speed_up: float | None  # teacher's seconds per image at its best NFE / flow's
    # The distance to the nearest training image: of the flow's samples in one step, the teacher's at its best, and
    # images that training has not seen.
    nearest: tuple[Estimate | None, Estimate | None, Estimate | None] = (None, None, None)
    steps: tuple[Steps, ...] = ()  # of the flow, by number of evaluations; the one step first


def headlines(summary: pd.DataFrame) -> list[Headline]:
    """One line for each dynamics and (objective, anchor policy) pair of its flow; of one data set and extractor.

    Where there is no FID, the fields called fid hold the distance that `names.judged` takes.
    """
    judge = catalogue.judge(names.kind(summary))
    summary = names.judged(names.of_models(summary))
    variants = names.flow_variants(summary) or [("", "")]
    lines = []
    for dynamics in names.ordered(list(summary["dynamics"])):
        mine = summary[summary["dynamics"] == dynamics]
        for objective, anchor in variants:
            same = (mine["objective"].fillna("") == objective) & (mine["anchor"].fillna("") == anchor)
            flow = mine[same & (mine["model"] == "flow")]
            if (flow["sampler"] == "one_step").any() or len(variants) == 1:
                variant = names.variant_title(objective, anchor) if len(variants) > 1 else ""
                lines.append(_headline(dynamics, variant, flow, mine[mine["model"] == "teacher"], judge))
    return lines


def _headline(dynamics: str, variant: str, flow: pd.DataFrame, teacher: pd.DataFrame, judge: Metric) -> Headline:
    one_step, best = flow[flow["sampler"] == "one_step"], best_teachers(teacher, judge=judge)
    flow_fid, teacher_fid = estimate(one_step), estimate(best)
    return Headline(
        dynamics=dynamics,
        variant=variant,
        flow_fid=flow_fid,
        teacher_fid=teacher_fid,
        teacher_nfe=tuple(sorted({int(nfe) for nfe in best["nfe"]})),
        ratio=over_teacher(one_step, teacher, judge=judge) if flow_fid and teacher_fid else None,
        single_fid=estimate(teacher[teacher["nfe"] == 1]),
        speed_up=_quotient(estimate(best, "seconds_per_image"), estimate(one_step, "seconds_per_image")),
        nearest=(
            estimate(one_step, "train_distance"),
            estimate(best, "train_distance"),
            estimate(one_step, "unseen_distance") or estimate(best, "unseen_distance"),
        ),
        steps=_by_steps(flow, teacher, judge),
    )


def _by_steps(flow: pd.DataFrame, teacher: pd.DataFrame, judge: Metric) -> tuple[Steps, ...]:
    """The flow at each number of evaluations; of several samplers the one with the best mean over seeds."""
    found = []
    for nfe in sorted(set(flow["nfe"])):
        drawn = {sampler: rows for sampler, rows in flow[flow["nfe"] == nfe].groupby("sampler", sort=False)}
        means = [{"nfe": 0, "sampler": s, "fid": e.mean} for s, rows in drawn.items() if (e := estimate(rows))]
        chosen = teachers.best(means, judge, column="fid")
        if chosen is not None:
            rows = drawn[chosen["sampler"]]
            nearest = estimate(rows, "train_distance")
            ratio = over_teacher(rows, teacher, judge=judge)
            found.append(Steps(int(nfe), chosen["sampler"], estimate(rows), ratio, nearest))
    return tuple(found)


def best_teachers(teacher: pd.DataFrame, column: str = "fid", *, judge: Metric | None = None) -> pd.DataFrame:
    """A teacher's rows at its best NFE, one for each seed of training that has the figure.

    judge: what stands in the column, where `names.judged` put it there.
    """
    judge = judge or catalogue.get(column)
    groups = [rows.to_dict("records") for _, rows in teacher.groupby("seed", dropna=False)]
    found = [row for rows in groups if (row := teachers.best(rows, judge, column=column))]
    return pd.DataFrame(found, columns=teacher.columns)


def over_teacher(
    flow: pd.DataFrame, teacher: pd.DataFrame, column: str = "fid", *, judge: Metric | None = None
) -> Estimate | None:
    """The flow's figure over the teacher's at its best: the mean over seeds of their ratio, not the ratio of means.

    flow: rows of one sampler; teacher: its rows at all NFE. The summary's `ratio` has it over sampling seeds, from the
    same prior draws; seeds of training are averaged in turn. Where it is not there, or was taken against the teacher at
    another NFE, it is had by seed of training from rows of one set of samples each, and from no others.
    """
    if flow.empty or teacher.empty:
        return None
    stored = _stored_ratios(flow, teacher, column, judge=judge)
    if stored and not any(each.outdated for each in stored):
        return estimate(pd.DataFrame(stored), "ratio")
    best = best_teachers(teacher, column, judge=judge)
    single = [rows[rows.get("seeds", pd.Series(1, rows.index)).fillna(1) == 1] for rows in (flow, best)]
    both = single[0].merge(single[1], on="seed", suffixes=("", "_of_teacher"))
    under = both[f"{column}_of_teacher"].astype(float)
    return estimate(pd.DataFrame({"ratio": (both[column].astype(float) / under)[under > 0]}), "ratio")


@dataclass(frozen=True)
class _Stored:
    """A row's ratio as the summary has it, the teacher's NFE that it was taken against, and the teacher's best one."""

    ratio: float
    ratio_sd: float
    against: int | None
    best: int | None

    @property
    def outdated(self) -> bool:
        return self.best is not None and self.against != self.best


def _stored_ratios(
    flow: pd.DataFrame, teacher: pd.DataFrame, column: str = "fid", *, judge: Metric | None = None
) -> list[_Stored]:
    """Of the flow's rows that have a ratio, each beside the teacher of its own seed of training."""
    judge = judge or catalogue.get(column)
    by_seed = {seed: rows.to_dict("records") for seed, rows in teacher.groupby("seed")}
    found = []
    for row in flow.to_dict("records"):
        mine = by_seed.get(row["seed"], [])
        best = teachers.best(mine, judge, column=column)
        if pd.notna(row.get("ratio", np.nan)):
            against = teachers.compared_with(row, mine)
            found.append(_Stored(row["ratio"], row.get("ratio_sd", np.nan), against, best and int(best["nfe"])))
    return found


def outdated(summary: pd.DataFrame) -> list[str]:
    """A sentence for each dynamics whose ratio is not against the teacher at its best, as earlier versions had it.

    summary: of one data set and extractor.
    """
    judge = catalogue.judge(names.kind(summary))
    summary, found = names.judged(names.of_models(summary)), []
    for dynamics in names.ordered(list(summary["dynamics"])):
        mine = summary[summary["dynamics"] == dynamics]
        stored = _stored_ratios(mine[mine["model"] == "flow"], mine[mine["model"] == "teacher"], judge=judge)
        stale = next((each for each in stored if each.outdated), None)
        if stale:
            found.append(
                f"{names.DYNAMICS.get(dynamics, dynamics)}: the stored ratio is over the teacher at {stale.against} "
                f"evaluations, its best is {stale.best}; the ratio is left out until the figures are made again."
            )
    return found


def estimate(rows: pd.DataFrame, column: str = "fid") -> Estimate | None:
    """Over seeds of training; of a single one over its sampling seeds. None: not measured."""
    if column not in rows:
        return None
    finite = rows[np.isfinite(rows[column].astype(float))]
    if finite.empty:
        return None
    values = finite[column].astype(float)
    if len(finite) > 1:
        return Estimate(float(values.mean()), float(values.std()), len(finite))
    deviation = finite.get(f"{column}_sd", pd.Series([np.nan])).astype(float).iloc[0]
    return Estimate(float(values.iloc[0]), deviation if math.isfinite(deviation) else None, 1)


def _quotient(over: Estimate | None, under: Estimate | None) -> float | None:
    return over.mean / under.mean if over and under and under.mean > 0 else None


def headline_cells(lines: Sequence[Headline]) -> list[dict[str, Any]]:
    """Headlines as text. The flow's FIDs and the teacher's share their decimals, for the eye to compare."""
    decimals = decimals_of([e for line in lines for e in (line.flow_fid, line.teacher_fid) if e])
    single = decimals_of([line.single_fid for line in lines if line.single_fid])
    ratio = decimals_of([line.ratio for line in lines if line.ratio], least=2)
    steps = decimals_of([step.fid for line in lines for step in line.steps])
    return [
        {
            "name": names.DYNAMICS.get(line.dynamics, line.dynamics),
            "colour": names.css_colour(line.dynamics),
            "variant": line.variant,
            "nfe": nfe_text(line.teacher_nfe),
            "flow": written(line.flow_fid, decimals),
            "teacher": written(line.teacher_fid, decimals),
            "single": written(line.single_fid, single),
            "ratio": written(line.ratio, ratio),
            "speed_up": MISSING if line.speed_up is None else f"{significant(line.speed_up)}×",
            "nearest": [
                (name, significant(found.mean))
                for name, found in zip(("flow", "teacher", "unseen"), line.nearest, strict=True)
                if found
            ],
            "steps": {step.nfe: _step_cell(step, steps) for step in line.steps},
        }
        for line in lines
    ]


def _step_cell(step: Steps, decimals: int) -> dict[str, str]:
    return {
        "fid": written(step.fid, decimals),
        "sampler": names.sampler_title(step.sampler),
        "ratio": "" if step.ratio is None else f"{step.ratio.mean:.2f}",
        "nearest": "" if step.nearest is None else significant(step.nearest.mean),
    }


def nfe_text(nfe: Sequence[int]) -> str:
    """17; 9 to 17 where seeds of training have several; "" for none."""
    return " to ".join(str(n) for n in dict.fromkeys((min(nfe), max(nfe)))) if nfe else ""


def decimals_of(estimates: Sequence[Estimate], *, least: int | None = None) -> int:
    """Two decimals; fewer beyond four digits, more where the smallest or its deviation would show too little."""
    positive = [estimate.mean for estimate in estimates if estimate.mean > 0]
    power = math.floor(math.log10(min(positive))) if positive else 0
    least = min(max(min(2, 3 - power), 1 - power, 0), 5) if least is None else least
    return min(max([least, *(spread_decimals(estimate.deviation) for estimate in estimates)]), least + 2)


def written(estimate: Estimate | None, decimals: int) -> str:
    """A mean and its deviation; a dash where there is none."""
    return MISSING if estimate is None else measured(estimate.mean, estimate.deviation, decimals=decimals)


def as_text(folder: Path) -> str:
    """The headline as plain text, from summary.csv in `folder`; a block for each data set and extractor.

    Raises UserError where there is no summary that can be read.
    """
    summary = read_summary(folder / "summary.csv")
    groups = [rows for _, rows in names.of_models(summary).groupby(["data", "extractor"], sort=False)]
    return "\n\n".join("\n".join(_text_lines(rows)) for rows in groups)


def _text_lines(summary: pd.DataFrame) -> list[str]:
    """One table: a line for each dynamics and number of evaluations of its flow, and one for its teacher."""
    lines, quality = headlines(summary), names.quality(summary)
    rows = [("", "evaluations", quality, "over the teacher's", f"nearest training {names.unit(summary)}")]
    unseen = None
    for line, cells in zip(lines, headline_cells(lines), strict=True):
        name = " ".join([cells["name"], cells["variant"]]).strip()
        nearest = dict(cells["nearest"])
        unseen = nearest.get("unseen") or unseen
        for nfe, step in cells["steps"].items():
            rows.append((f"{name}, {step['sampler']}", str(nfe), step["fid"], step["ratio"], step["nearest"]))
        if line.teacher_fid:
            rows.append(
                (f"{name}, teacher at its best", cells["nfe"], cells["teacher"], "", nearest.get("teacher", ""))
            )
    if unseen:
        rows.append((f"{names.unit(summary)}s that training has not seen", "", "", "", unseen))
    kept = [k for k in range(5) if any(row[k] for row in rows[1:])]
    widths = {k: max(len(row[k]) for row in rows) for k in kept}
    found = [
        "  ".join(row[k].rjust(widths[k]) if k else row[k].ljust(widths[k]) for k in kept).rstrip() for row in rows
    ]
    return [*found, *outdated(summary)]
