"""The table of all rows: how each column is written, in which order, and what is folded into the caption."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ifm.metrics import catalogue
from ifm.metrics.metric import SPREAD, Aligned, Count, Metric, Probability, Sized
from ifm.report import names
from ifm.report.rounding import MISSING, fixed, measured, significant
from ifm.report.summary import COUNTS, IDENTITY, text_columns


@dataclass(frozen=True)
class Cell:
    """A table cell: what is read, and what it is sorted by."""

    text: str
    key: str


@dataclass(frozen=True)
class Column:
    """A table column: its heading, whether it is sorted as numbers, how values and their deviations are written."""

    title: str  # {sample}: what one sample is called
    numeric: bool
    write: Callable[[pd.Series, pd.Series | None], list[str]]
    better: str | None = None  # "lower", "higher"
    hint: str = ""  # a tooltip


TITLES = {
    "data": "Data", "extractor": "Extractor", "checksum": "Checksum", "reference": "Reference", "dynamics": "Dynamics",
    "model": "Model", "objective": "Objective", "anchor": "Anchor", "sampler": "Sampler", "nfe": "NFE", "seed": "Seed",
    "seeds": "Sampling seeds", "n_samples": "Samples a seed",
}  # fmt: skip
WORDS = {
    "dynamics": names.DYNAMICS,
    "sampler": {"heun": "Heun", "one_step": "one step", "renoise": "re-noise", "chain": "sub-intervals"},  # data: split
}
FOLDED = (
    "data", "extractor", "checksum", "reference", "seed", "seeds", "n_samples", "objective", "anchor", "parameters",
    "train_seconds",
)  # fmt: skip  # to the caption, if constant
FLOW_ONLY = ("objective", "anchor")


def full_table(summary: pd.DataFrame) -> dict[str, Any]:
    """Columns, rows and the constants of the table of all rows; a column without a figure is left out.

    What the rows are judged by stands behind what they are. A column with a deviation beside it is written with it.
    """
    columns = _columns(summary)
    constant = [key for key in FOLDED if _is_constant(key, summary)]
    shown = [key for key in columns if key not in constant and (_has_figures(summary[key], key) or key == "nfe")]
    written = [_cells(columns[key], summary[key], summary.get(key + SPREAD)) for key in shown]
    sample = names.unit(summary)
    return {
        "columns": [replace(columns[key], title=columns[key].title.format(sample=sample)) for key in shown],
        "rows": list(zip(*written, strict=True)),
        "constants": [_constant(key, columns[key], summary[key]) for key in constant],
    }


def _columns(summary: pd.DataFrame) -> dict[str, Column]:
    """By key, in the order of the table: what a row is, what it is judged by, all else."""
    of_rows = {
        key: Column(title, key in COUNTS, _counts if key in COUNTS else _words(WORDS.get(key, {})))
        for key, title in TITLES.items()
    }
    metrics = {
        m.key: Column(m.title, True, _writer(m), m.better, m.hint) for m in catalogue.in_tables(names.kind(summary))
    }
    judging = dict.fromkeys(catalogue.judging_columns(names.kind(summary)))
    first = [key for key in IDENTITY if key not in COUNTS or key == "nfe"]
    order = [*first, *judging, *COUNTS, *metrics]
    return {key: (of_rows | metrics)[key] for key in dict.fromkeys(order)}


def _writer(metric: Metric) -> Callable[..., list[str]]:
    how = metric.format
    if isinstance(how, Aligned):
        return _aligned(how)
    if isinstance(how, Sized):
        return _sized(how)
    return {Count: _counts, Probability: _probabilities}[type(how)]


def _aligned(how: Aligned) -> Callable[..., list[str]]:
    """One number of decimals for a column, such that the smallest value shows its significant digits.

    A deviation that would read 0 with them takes more.
    """

    def write(values: pd.Series, deviations: pd.Series | None = None) -> list[str]:
        scaled = values.astype(float) * how.scale
        spreads = [None] * len(scaled) if deviations is None else deviations.astype(float) * how.scale
        sizes = scaled[np.isfinite(scaled) & (scaled != 0)].abs()
        needed = how.digits - 1 - math.floor(math.log10(sizes.min())) if len(sizes) else 0
        decimals = min(max(needed, how.least), how.most)
        return [measured(value, spread, decimals=decimals) for value, spread in zip(scaled, spreads, strict=True)]

    return write


def _sized(how: Sized) -> Callable[..., list[str]]:
    """Each value with its own significant digits, for a column of several powers of ten; "<" below the least."""

    def text(value: float) -> str:
        return f"< {how.least:g}" if 0 < value < how.least else significant(value, how.digits)

    return lambda values, deviations=None: [text(value) for value in values.astype(float) * how.scale]


def _words(names: Mapping[str, str]) -> Callable[..., list[str]]:
    return lambda values, deviations=None: [
        MISSING if pd.isna(v) or v == "" else names.get(str(v), str(v)) for v in values
    ]


def _counts(values: pd.Series, deviations: pd.Series | None = None) -> list[str]:
    return [MISSING if pd.isna(value) else f"{int(value):,}" for value in values]


def _probabilities(values: pd.Series, deviations: pd.Series | None = None) -> list[str]:
    return ["< 0.001" if 0 <= value < 1e-3 else fixed(value, 3) for value in values.astype(float)]


def _has_figures(values: pd.Series, column: str) -> bool:
    """Whether a column says something: all missing is nothing, and so is no memory at all."""
    if column in text_columns():
        return bool((values.notna() & (values != "")).any())
    values = values.astype(float)
    return bool((np.isfinite(values) & ((values != 0) | (column != "peak_memory_mb"))).any())


def _cells(column: Column, values: pd.Series, deviations: pd.Series | None = None) -> list[Cell]:
    texts = column.write(values, deviations)
    return [Cell(text, _sort_key(v, text, column.numeric)) for text, v in zip(texts, values, strict=True)]


def _sort_key(value: Any, text: str, numeric: bool) -> str:
    """A number in full, a word as it is read; "" where missing, which sorts last."""
    if pd.isna(value) or (numeric and not math.isfinite(value)):
        return ""
    return f"{value:.12g}" if numeric else text


def _is_constant(column: str, summary: pd.DataFrame) -> bool:
    """One value in all rows of models, or in all of the flow's where the teacher has none."""
    summary = names.of_models(summary)
    values = summary[column] if column not in FLOW_ONLY else summary.loc[summary["model"] == "flow", column]
    return bool(values.notna().all()) and values.nunique() == 1


def _constant(key: str, column: Column, values: pd.Series) -> tuple[str, str]:
    title = ("flow’s " if key in FLOW_ONLY else "") + column.title.lower()
    return title, column.write(values.dropna(), None)[0]
