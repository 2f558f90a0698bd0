"""Reads and checks a stage's run.json: it may come from a cache that others write to."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ifm.errors import in_a_line
from ifm.files import FileError, read_json

MEND = "delete it and run `dvc repro` again"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(each) for each in value.values())


FORM: dict[str, Callable[[Any], bool]] = {
    "stage": _is_text,
    "run_id": lambda value: value is None or _is_text(value),
    "started": _is_number,
    "timings": _are_numbers,
    "params": lambda value: isinstance(value, dict),
    "metrics": _are_numbers,
    "tags": lambda value: isinstance(value, dict) and all(_is_text(each) for each in value.values()),
}


def read_record(path: Path) -> dict[str, Any]:
    """The record that `ifm.tracking.stage_run` wrote. Raises FileError if it is missing or has other content."""
    return _read(path, *FORM)


def read_timings(path: Path) -> dict[str, float]:
    """The timings of a record, in seconds. Raises FileError if they are missing or wrong."""
    return _read(path, "timings")["timings"]


def train_seconds(path: Path) -> float:
    """The training time in a record, in seconds. Raises FileError if it has none."""
    timings = read_timings(path)
    if "train_seconds" not in timings:
        raise FileError(f"{path}: has no timings.train_seconds; {MEND}")
    return timings["train_seconds"]


def _read(path: Path, *keys: str) -> dict[str, Any]:
    try:
        found = read_json(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({in_a_line(error.strerror)}); {MEND}") from error
    for key in keys:
        if not isinstance(found, dict) or key not in found or not FORM[key](found[key]):
            raise FileError(f"{path}: is no record of a stage's run ({key} is missing or has another form); {MEND}")
    return found
