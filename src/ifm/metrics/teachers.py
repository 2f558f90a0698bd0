"""Which of a teacher's numbers of evaluations (NFE) a flow is held against: the best one, whichever it is.

More evaluations follow the ODE more closely, but the samples need not get better: the teacher's own error shows.
"""

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from ifm.metrics.metric import Better, Metric

AGAINST = "teacher_nfe"  # of a flow's figures: the NFE of the teacher that its ratio is taken against


def best(rows: Iterable[Mapping[str, Any]], metric: Metric, *, column: str | None = None) -> Mapping[str, Any] | None:
    """Of a teacher's rows the one whose figure is best; of equal ones the one with fewest evaluations.

    column: where the rows have the figure, if not under the metric's key. None: no row has it.
    """
    key, sign = column or metric.key, -1 if metric.better is Better.HIGHER else 1
    known = (row for row in rows if _finite(row.get(key)))
    return min(known, key=lambda row: (sign * row[key], row["nfe"]), default=None)


def compared_with(row: Mapping[str, Any], teachers: Iterable[Mapping[str, Any]]) -> int | None:
    """The NFE of the teacher that the ratio of a flow's row is taken against; None where there is no teacher.

    Results from before `teacher_nfe` was kept beside the ratio have it against the teacher's largest NFE.
    """
    if _finite(row.get(AGAINST)):
        return int(row[AGAINST])
    return max((int(teacher["nfe"]) for teacher in teachers), default=None)


def ratio_of(
    row: Mapping[str, Any], teachers: Iterable[Mapping[str, Any]], metric: Metric, *, column: str | None = None
) -> float | None:
    """The ratio of a flow's row, if it is taken against the teacher at its best."""
    teachers = list(teachers)
    held = best(teachers, metric, column=column)
    known = held is not None and compared_with(row, teachers) == held["nfe"]
    return row.get("ratio") if known else None


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
