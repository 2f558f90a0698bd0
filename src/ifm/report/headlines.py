"""One step against the teacher: a line for each dynamics, and the figures as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ifm.report import names
from ifm.report.rounding import MISSING, measured, significant, spread_decimals


@dataclass(frozen=True)
class Estimate:
    """A measured value over seeds: mean, standard deviation (None below two), number of seeds."""

    mean: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Headline:
    """One dynamics in one line. A value that was not measured is None."""

    dynamics: str
    variant: str  # objective and anchor policy, "" where the page has only one pair
    flow_fid: Estimate | None
    teacher_fid: Estimate | None
    teacher_nfe: int | None
    ratio: Estimate | None  # see `over_teacher`
    single_fid: Estimate | None  # teacher with one evaluation
    speed_up: float | None  # teacher's seconds per image / flow's


def headlines(summary: pd.DataFrame) -> list[Headline]:
    """One line for each dynamics and (objective, anchor policy) pair of its flow; of one data set and extractor.

    Where there is no FID, the fields called fid hold the distance that `names.judged` takes.
    """
    summary = names.judged(names.of_models(summary))
    variants = names.flow_variants(summary) or [("", "")]
    lines = []
    for dynamics in names.ordered(list(summary["dynamics"])):
        mine = summary[summary["dynamics"] == dynamics]
        for objective, anchor in variants:
            same = (mine["objective"].fillna("") == objective) & (mine["anchor"].fillna("") == anchor)
            one_step = mine[same & (mine["model"] == "flow") & (mine["sampler"] == "one_step")]
            if len(one_step) or len(variants) == 1:
                variant = names.variant_title(objective, anchor) if len(variants) > 1 else ""
                lines.append(_headline(dynamics, variant, one_step, mine[mine["model"] == "teacher"]))
    return lines


def _headline(dynamics: str, variant: str, one_step: pd.DataFrame, teacher: pd.DataFrame) -> Headline:
    nfe = int(teacher["nfe"].max()) if len(teacher) else None
    best = teacher[teacher["nfe"] == nfe]
    flow_fid, teacher_fid = estimate(one_step), estimate(best)
    return Headline(
        dynamics=dynamics,
        variant=variant,
        flow_fid=flow_fid,
        teacher_fid=teacher_fid,
        teacher_nfe=nfe,
        ratio=over_teacher(one_step, best) if flow_fid and teacher_fid else None,
        single_fid=estimate(teacher[teacher["nfe"] == 1]),
        speed_up=_quotient(estimate(best, "seconds_per_image"), estimate(one_step, "seconds_per_image")),
    )


def over_teacher(flow: pd.DataFrame, teacher: pd.DataFrame, column: str = "fid") -> Estimate | None:
    """The flow's figure over the teacher's: the mean over seeds of their ratio, not the ratio of their means.

    The summary's `ratio` has it over sampling seeds, from the same prior draws; seeds of training are averaged in turn.
    Where it is not there, it is had by seed of training from rows of one set of samples each, and from no others.
    """
    stored = estimate(flow, "ratio") if "ratio" in flow else None
    if stored or flow.empty or teacher.empty:
        return stored
    single = [rows[rows.get("seeds", pd.Series(1, rows.index)).fillna(1) == 1] for rows in (flow, teacher)]
    both = single[0].merge(single[1], on="seed", suffixes=("", "_of_teacher"))
    under = both[f"{column}_of_teacher"].astype(float)
    return estimate(pd.DataFrame({"ratio": (both[column].astype(float) / under)[under > 0]}), "ratio")


def estimate(rows: pd.DataFrame, column: str = "fid") -> Estimate | None:
    """Over seeds of training; of a single one over its sampling seeds."""
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
    return [
        {
            "name": names.DYNAMICS.get(line.dynamics, line.dynamics),
            "colour": names.css_colour(line.dynamics),
            "variant": line.variant,
            "nfe": line.teacher_nfe,
            "flow": written(line.flow_fid, decimals),
            "teacher": written(line.teacher_fid, decimals),
            "single": written(line.single_fid, single),
            "ratio": written(line.ratio, ratio),
            "speed_up": MISSING if line.speed_up is None else f"{significant(line.speed_up)}×",
        }
        for line in lines
    ]


def decimals_of(estimates: Sequence[Estimate], *, least: int | None = None) -> int:
    """Two decimals; fewer beyond four digits, more where the smallest or its deviation would show too little."""
    positive = [estimate.mean for estimate in estimates if estimate.mean > 0]
    power = math.floor(math.log10(min(positive))) if positive else 0
    least = min(max(min(2, 3 - power), 1 - power, 0), 5) if least is None else least
    return min(max([least, *(spread_decimals(estimate.deviation) for estimate in estimates)]), least + 2)


def written(estimate: Estimate | None, decimals: int) -> str:
    """A mean and its deviation; a dash where there is none."""
    return MISSING if estimate is None else measured(estimate.mean, estimate.deviation, decimals=decimals)
