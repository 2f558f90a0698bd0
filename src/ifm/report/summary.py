"""summary.csv and summary.json: a row for each measured sampler, the columns of the catalogue."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from ifm.errors import UserError, in_a_line
from ifm.metrics import catalogue

IDENTITY = (  # what a row is
    "data", "extractor", "checksum", "reference", "dynamics", "model", "objective", "anchor", "sampler", "nfe",
    "seed", "seeds", "n_samples",
)  # fmt: skip
COUNTS = ("nfe", "seed", "seeds", "n_samples")  # those of IDENTITY that are numbers
WARNINGS = "warnings"


def summary_columns() -> list[str]:
    """The columns in their order: what a row is, figures, costs, what speaks against its figures."""
    return [*IDENTITY, *catalogue.summary_columns(), WARNINGS]


def text_columns() -> list[str]:
    """The columns that hold text."""
    return [*(key for key in IDENTITY if key not in COUNTS), WARNINGS]


def summary_csv(summary: pd.DataFrame) -> str:
    """The summary as CSV in the order of `summary_columns`; six significant digits, a missing value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(summary_columns())
    writer.writerows(record.values() for record in _records(summary))
    return text.getvalue()


def summary_json(summary: pd.DataFrame) -> str:
    """The summary as a JSON list of records; six significant digits, a missing or infinite value is null."""
    return json.dumps(_records(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_summary(file: Path) -> pd.DataFrame:
    """A summary.csv of this version or an earlier one, whose missing columns are empty.

    Raises UserError where it is not there or cannot be read.
    """
    try:
        found = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({in_a_line(error)}); `dvc repro` makes it") from error
    missing = [column for column in IDENTITY if column not in found]
    if missing:
        raise UserError(f"{file}: has no column {missing[0]}, so it is no summary; `dvc repro` makes it")
    return found.reindex(columns=summary_columns())


def check(summary: pd.DataFrame) -> None:
    """Raises ValueError where a column is missing."""
    missing = [column for column in summary_columns() if column not in summary.columns]
    if missing:
        raise ValueError(f"the summary lacks the columns {missing}")


def _records(summary: pd.DataFrame) -> list[dict[str, Any]]:
    check(summary)
    columns, texts, whole = summary_columns(), text_columns(), [*COUNTS, *catalogue.whole_numbers()]
    rows = summary[columns].itertuples(index=False, name=None)
    return [
        {c: _plain(v, text=c in texts, whole=c in whole) for c, v in zip(columns, row, strict=True)} for row in rows
    ]


def _plain(value: Any, *, text: bool, whole: bool) -> str | int | float | None:
    if pd.isna(value):
        return None
    if text:
        return str(value)
    if not math.isfinite(value):
        return None
    return int(value) if whole else float(f"{value:.6g}")
