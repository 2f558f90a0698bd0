"""The figures that DVC shows: `dvc exp show`, `dvc metrics show` and `dvc metrics diff`. All others are data."""

from collections.abc import Mapping
from typing import Any

from ifm.metrics import catalogue

Row = Mapping[str, Any]


def headline(figures: Mapping[str, Row]) -> dict[str, Any]:
    """A handful of a dynamics' figures, of its reports/metrics/d.json; None where there is none.

    The flow's in one evaluation, the teacher's at its most evaluations, and their ratio over the sets of samples.
    """
    flow = next((row for row in figures.values() if row["sampler"] == "one_step"), {})
    teachers = [row for row in figures.values() if row["model"] == "teacher"]
    teacher = max(teachers, key=lambda row: row["nfe"], default={})
    judge = catalogue.judge_of(key for row in figures.values() for key in row)
    also = [m.key for m in catalogue.of() if m.headline and set(m.kinds) & set(judge.kinds)]
    return {
        judge.key: flow.get(judge.key),
        f"teacher_{judge.key}": teacher.get(judge.key),
        "teacher_nfe": teacher.get("nfe"),
        "ratio": flow.get("ratio"),
    } | {key: flow.get(key) for key in also}
