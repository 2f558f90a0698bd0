"""From a source's own labels to classes 0..k-1 with names."""

from typing import Any

import numpy as np

from ifm.config import DataConfig
from ifm.data.sources.base import SHOWN, FetchError, Images
from ifm.files import readable


def resolve(source: Images, config: DataConfig) -> tuple[list[str] | None, dict[str, np.ndarray] | None]:
    """Class names and, by split, labels int64 [count] in 0..k-1. Raises FetchError for a missing label."""
    if all(split.labels is None for split in source.splits.values()):
        return None, None
    labels = {name: split.labels for name, split in source.splits.items()}
    for name, values in labels.items():
        _check_present(name, values, source.names, config)
    if source.names is not None:
        return list(map(readable, source.names)), {name: np.array(values, np.int64) for name, values in labels.items()}
    distinct = sorted(set().union(*labels.values()))
    index = {value: i for i, value in enumerate(distinct)}
    return [readable(str(value)) for value in distinct], {
        name: np.array([index[value] for value in values], np.int64) for name, values in labels.items()
    }


def _check_present(split: str, labels: list[Any], names: list[str] | None, config: DataConfig) -> None:
    """Raises FetchError unless all labels are strings, or whole numbers, of 0..k-1 with k names."""
    key = f"data.label_column = {config.label_column!r}"
    kinds = {type(label) for label in labels} - {type(None)}
    if kinds - {int, str, bool} or len(kinds) > 1 or (names is not None and kinds - {int}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise FetchError(f"{key}: labels must be whole numbers or strings, the {split} split holds {found}")
    if names is not None:
        allowed = f"allowed: 0..{len(names) - 1}"
        bad = [i for i, label in enumerate(labels) if label is None or not 0 <= label < len(names)]
    else:
        # -1 is how public data sets hide the labels of a test split: no class of its own.
        allowed = "null, -1 and the empty string are no labels"
        bad = [i for i, label in enumerate(labels) if label is None or label == -1 or label == ""]
    if bad:
        shown = ", ".join(f"row {i}: {labels[i]!r}" for i in bad[:SHOWN])
        raise FetchError(
            f"{key}: {len(bad)} of {len(labels)} images of the {split} split have no usable label ({shown}; "
            f"{allowed}). Complete them, or set data.label_column: null"
        )
