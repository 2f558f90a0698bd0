"""The figures that DVC shows: `dvc exp show`, `dvc metrics show` and `dvc metrics diff`. All others are data."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def headline(figures: Mapping[str, Row]) -> dict[str, Any]:
    """A handful of a dynamics' figures, of its reports/metrics/d.json; None where there is none.

    The flow's in one evaluation, the teacher's at its most evaluations, and their ratio over the sets of samples.
    """
    flow = next((row for row in figures.values() if row["sampler"] == "one_step"), {})
    teachers = [row for row in figures.values() if row["model"] == "teacher"]
    teacher = max(teachers, key=lambda row: row["nfe"], default={})
    measure = "fid" if any("fid" in row for row in figures.values()) else "sliced_wasserstein"
    found = {
        measure: flow.get(measure),
        f"teacher_{measure}": teacher.get(measure),
        "teacher_nfe": teacher.get("nfe"),
        "ratio": flow.get("ratio"),
    }
    return found if measure != "fid" else found | {"recall": flow.get("recall")}
