"""The figures that DVC shows: `dvc exp show`, `dvc metrics show` and `dvc metrics diff`. All others are data."""

from collections.abc import Mapping
from typing import Any

from ifm.metrics import catalogue, teachers

Row = Mapping[str, Any]


def headline(figures: Mapping[str, Row]) -> dict[str, Any]:
    """A handful of a dynamics' figures, of its reports/metrics/d.json; None where there is none.

    The flow's in one evaluation, the teacher's at the number of evaluations where it is best, and their ratio over the
    sets of samples; None where an earlier version took the ratio against another number.
    """
    flow = next((row for row in figures.values() if row["sampler"] == "one_step"), {})
    of_teacher = [row for row in figures.values() if row["model"] == "teacher"]
    judge = catalogue.judge_of(key for row in figures.values() for key in row)
    best = teachers.best(of_teacher, judge) or {}
    also = [m.key for m in catalogue.of() if m.headline and set(m.kinds) & set(judge.kinds)]
    return {
        judge.key: flow.get(judge.key),
        f"teacher_{judge.key}": best.get(judge.key),
        teachers.AGAINST: best.get("nfe"),
        "ratio": teachers.ratio_of(flow, of_teacher, judge),
    } | {key: flow.get(key) for key in also}
