"""A processed split, whatever it holds."""

from pathlib import Path

from ifm.data.arrays import METADATA, DataError, ImageSet, SampleSet
from ifm.data.points import PointSet
from ifm.files import read_json


def open_split(folder: Path, split: str) -> SampleSet:
    """Images uint8 [n, C, H, W] or points float32 [n, d], as metadata.json says. Raises DataError."""
    path = folder / METADATA
    try:
        points = read_json(path).get("source") == "points"
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing; run `dvc repro preprocess`") from error
    except (ValueError, OSError, AttributeError) as error:
        raise DataError(f"{path}: does not describe a processed data set; run `dvc repro preprocess` again") from error
    return (PointSet if points else ImageSet).open(folder, split)
