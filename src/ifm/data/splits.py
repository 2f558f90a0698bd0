"""A processed split, whatever it holds."""

from pathlib import Path

from ifm.data.arrays import METADATA, DataError, ImageSet, SampleSet
from ifm.data.points import PointSet
from ifm.files import read_json


def open_split(folder: Path, split: str) -> SampleSet:
    """Images uint8 [n, C, H, W] or points float32 [n, d], as metadata.json says. Raises DataError."""
    try:
        points = read_json(folder / METADATA).get("source") == "points"
    except (FileNotFoundError, AttributeError) as error:
        raise DataError(f"{folder / METADATA}: is missing; run `dvc repro preprocess`") from error
    return (PointSet if points else ImageSet).open(folder, split)
