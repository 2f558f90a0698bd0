"""Two states of the pipeline, side by side: which rows belong together, and what differs.

Nothing is hard-coded about the summary but its key columns: every other column of numbers is a metric, and one called
`<metric>_sd` is the spread of `<metric>`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ifm.metrics import catalogue
from ifm.metrics.metric import SPREAD
from ifm.tracking import flatten
from pipeline.graph import is_code

TEXT_KEYS = ("data", "extractor", "dynamics", "model", "objective", "anchor", "sampler")
KEYS = (*TEXT_KEYS, "nfe", "seed")
REQUIRED = tuple(key for key in KEYS if key != "extractor")
LOOSE = ("data", "extractor", "objective", "anchor", "seed")  # may be what the two sides differ in
OF_THE_FLOW = ("objective", "anchor")
EQUAL, WITHIN, BEYOND, DIFFERS = "equal", "within the spread", "beyond the spread", "differs"
ONLY_A, ONLY_B = "only in A", "only in B"


@dataclass(frozen=True)
class Side:
    """What Git keeps of one state. A file that is not there leaves its field empty and a line in `missing`."""

    label: str  # as it was asked for
    commit: str
    date: str
    subject: str
    kind: str  # "revision", "experiment", "workspace" or "workspace with uncommitted changes"
    summary: pd.DataFrame  # the KEYS, and whatever metrics there are
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by file name without .json
    diagnostics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # by stage, e.g. flow-ve: step, loss
    lock: Mapping[str, Any] = field(default_factory=dict)  # dvc.lock's stages
    versions: Mapping[str, str] = field(default_factory=dict)  # pinned in constraints.txt
    grids: Mapping[str, bytes] = field(default_factory=dict)  # by dynamics: PNG of the flow's samples in one step
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """A finite figure, and its standard deviation where there is one."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Row:
    """One measured sampler: its key, and its record on each side that has it."""

    key: Mapping[str, Any]
    a: Mapping[str, Any] | None
    b: Mapping[str, Any] | None


@dataclass(frozen=True)
class StageChange:
    """A stage of dvc.lock that is not the same on both sides: paths and dotted names of what differs."""

    name: str
    only: str | None  # ONLY_A, ONLY_B, or None where both have it
    code: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()
    same_outs: tuple[str, ...] = ()


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def value_of(record: Mapping[str, Any] | None, metric: str) -> Value | None:
    """A record's figure with its spread; None where it was not measured."""
    mean = number(record.get(metric)) if record else None
    return None if mean is None else Value(mean, number(record.get(metric + SPREAD)))


def difference(a: Value | None, b: Value | None) -> float | None:
    """B − A."""
    return b.mean - a.mean if a and b else None


def ratio(a: Value | None, b: Value | None) -> float | None:
    """B / A; None where A is not positive or B negative: such a quotient says nothing."""
    return b.mean / a.mean if a and b and a.mean > 0 and b.mean >= 0 else None


def change(a: Value | None, b: Value | None) -> str | None:
    """What the two figures say of each other; within the spread: |B − A| < 2 sqrt(sd_A^2 + sd_B^2)."""
    if a is None or b is None:
        return ONLY_A if a else ONLY_B if b else None
    if a.mean == b.mean:
        return EQUAL
    if a.deviation is None or b.deviation is None:
        return DIFFERS
    return WITHIN if abs(b.mean - a.mean) < 2 * math.hypot(a.deviation, b.deviation) else BEYOND


def loose_keys(a: pd.DataFrame, b: pd.DataFrame) -> dict[str, tuple[Any, Any]]:
    """Key columns with one value on each side and not the same one, as (A's, B's): rows are matched without them."""
    found = {}
    for column in LOOSE:
        of_a, of_b = (values_of(rows, column) for rows in (a, b))
        if len(of_a) == len(of_b) == 1 and of_a != of_b:
            found[column] = (of_a[0], of_b[0])
    return found


def values_of(rows: pd.DataFrame, column: str) -> list[Any]:
    """The distinct values of a key column, sorted as text; of the flow's keys, those of the flow."""
    mine = rows[rows["model"] == "flow"] if column in OF_THE_FLOW else rows
    return sorted(set(mine[column]), key=str)


def paired(a: pd.DataFrame, b: pd.DataFrame) -> list[Row]:
    """Every row of either side, beside the other side's of the same key; in A's order, then B's."""
    columns = [key for key in KEYS if key not in loose_keys(a, b)]
    of_a, of_b = _keyed(a, columns), _keyed(b, columns)
    rows = []
    for key in dict.fromkeys([*of_a, *of_b]):
        mine, other = of_a.get(key), of_b.get(key)
        rows.append(Row({column: (mine or other)[column] for column in KEYS}, mine, other))
    return rows


def _keyed(rows: pd.DataFrame, columns: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    """Records by key; rows of one key are told apart by their order."""
    seen: Counter[tuple] = Counter()
    found = {}
    for record in rows.to_dict("records"):
        key = tuple(record[column] for column in columns)
        found[(*key, seen[key])] = record
        seen[key] += 1
    return found


def metric_columns(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Columns of numbers that are no keys, no counts of samples and no spreads: B's order, then A's own."""
    columns = list(dict.fromkeys([*b.columns, *a.columns]))
    measured = []
    for column in columns:
        of_another = column.endswith(SPREAD) and column.removesuffix(SPREAD) in columns
        if column in (*KEYS, "n_samples") or of_another:
            continue
        values = [rows[column].dropna() for rows in (a, b) if column in rows]
        if any(len(v) for v in values) and all(pd.api.types.is_numeric_dtype(v) for v in values if len(v)):
            measured.append(column)
    return measured


def judged_by(rows: Sequence[Row]) -> str:
    """What the headline shows: of what pages are judged by the first that both sides have, else that either has."""
    judges = [metric.key for metric in catalogue.judges()]
    for sides in (all, any):
        for metric in judges:
            if sides(any(value_of(record, metric) for record in side) for side in _sides(rows)):
                return metric
    return judges[0]


def _sides(rows: Sequence[Row]) -> tuple[list, list]:
    return [row.a for row in rows], [row.b for row in rows]


def over_rows(records: Sequence[Mapping[str, Any] | None], metric: str) -> Value | None:
    """One row's figure with its spread; of several rows (seeds) their mean and standard deviation."""
    found = [value for record in records if (value := value_of(record, metric))]
    if len(found) < 2:
        return found[0] if found else None
    means = pd.Series([value.mean for value in found])
    return Value(float(means.mean()), float(means.std()))


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, A's, B's) of what is not the same; a key that is not there is `...`."""
    a, b = flatten(a), flatten(b)
    pairs = [(key, a.get(key, ...), b.get(key, ...)) for key in dict.fromkeys([*a, *b])]
    return [(key, x, y) for key, x, y in pairs if x != y or isinstance(x, bool) != isinstance(y, bool)]


def stage_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[StageChange]:
    """The stages of two dvc.lock that differ in code, data, params or outputs; records of runs are not compared."""
    found = []
    for name in dict.fromkeys([*b, *a]):
        if name not in a or name not in b:
            found.append(StageChange(name, ONLY_A if name in a else ONLY_B))
            continue
        deps, _ = _compared(a[name].get("deps"), b[name].get("deps"))
        outs, same_outs = _compared(a[name].get("outs"), b[name].get("outs"))
        one = StageChange(
            name,
            None,
            code=tuple(path for path in deps if is_code(path)),
            data=tuple(path for path in deps if not is_code(path) and path != "params.yaml"),
            params=tuple(key for key, _, _ in differing(locked_params(a[name]), locked_params(b[name]))),
            outs=outs,
            same_outs=same_outs,
        )
        if one.code or one.data or one.params or one.outs:
            found.append(one)
    return found


def locked_params(stage: Mapping[str, Any]) -> dict[str, Any]:
    """The params a stage was last run with, by dotted name."""
    return flatten((stage.get("params") or {}).get("params.yaml") or {})


def _compared(a: Sequence[Mapping] | None, b: Sequence[Mapping] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths with other bytes (or on one side alone), and with the same; a run's record holds its time: left out."""
    of_a, of_b = ({e["path"]: e.get(e.get("hash", "md5")) for e in entries or ()} for entries in (a, b))
    known = [path for path in dict.fromkeys([*of_b, *of_a]) if not _is_record(path)]
    equal = [path for path in known if path in of_a and path in of_b and of_a[path] == of_b[path]]
    return tuple(path for path in known if path not in equal), tuple(equal)


def _is_record(path: str) -> bool:
    return path.startswith("reports/runs") or path in ("reports/report-run.json", "reports/track.json")


def scalars(side: Side) -> dict[tuple[str, str], float]:
    """(folder/name, dotted key) -> number, of metrics and diagnostics: what the summary has no column for."""
    found = {}
    for folder in ("metrics", "diagnostics"):
        for name, content in getattr(side, folder).items():
            for key, value in flatten(content).items():
                if number(value) is not None and key.rsplit(".", 1)[-1] not in (*side.summary.columns, "nfe"):
                    found[f"{folder}/{name}", key] = float(value)
    return found
