"""Columns of numbers that are at hand: .npy, .npz or parquet files of [n, d], with labels or without."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifm.data.local import relative
from ifm.data.sources.base import DataSection, FetchError, Points, Source, few
from ifm.errors import in_a_line
from ifm.files import readable

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SUFFIXES = (".npy", ".npz", ".parquet")


def read(config: DataSection) -> Points:
    """The rows of all files, one after the other, sorted by name, as float64 [n, d]; see docs/vectors.md."""
    import numpy as np

    parts, labels, names = [], [], None
    for file in _files(config):
        values, columns, of_rows = _READERS[file.suffix](file, config)
        if names is not None and columns != names:
            raise FetchError(f"{_shown(file)}: has columns {few(columns, 5)}, the files before have {few(names, 5)}")
        if of_rows is not None and np.shape(of_rows) != (len(values),):
            found = f"shape {list(np.shape(of_rows))}" if np.ndim(of_rows) != 1 else f"{len(of_rows)} labels"
            raise FetchError(f"{_labels_key(config)}: has {found}, {_shown(file)} has {len(values)} rows")
        _check(values, columns, file)
        names = columns
        parts.append(values)
        labels.append(of_rows)
    values = np.concatenate(parts)
    for name, low, high in zip(names, values.min(axis=0), values.max(axis=0), strict=True):
        if low == high:
            raise FetchError(f"{SOURCE.origin(config)}: column {name} is constant ({low:g}); leave it out")
    if labels[0] is None:
        return Points(values, columns=names)
    classes, numbers = _classes(np.concatenate(labels), config)
    return Points(values, numbers, classes, columns=names)


def _shown(file: Path) -> str:
    return readable(str(file))


def _labels_key(config: DataSection) -> str:
    return f"data.array.labels = {config.array.labels!r}"


def _found(place: Path) -> list[Path]:
    """The files that are read: one, or all of a folder's."""
    if not place.is_dir():
        return [place] if place.is_file() else []
    return sorted(f for f in place.iterdir() if f.suffix in SUFFIXES and f.is_file() and not f.name.startswith("."))


def beside(place: Path) -> list[Path]:
    """Files that may hold the labels of one .npy file."""
    if place.suffix != ".npy":
        return []
    return [f for f in place.parent.glob("*.npy") if f.is_file() and f != place and not f.name.startswith(".")]


def _files(config: DataSection) -> list[Path]:
    place, labels = Path(config.path), config.array.labels
    found = [file for file in _found(place) if not (file.suffix == ".npy" and place.is_dir() and file.name == labels)]
    kinds = {file.suffix for file in found}
    if not found or not kinds <= set(SUFFIXES):
        raise FetchError(
            f"data.path = {config.path!r}: must be a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, or a folder "
            "of such files"
        )
    if len(kinds) > 1:
        raise FetchError(f"data.path = {config.path!r}: holds {' and '.join(sorted(kinds))} files; keep one kind")
    if labels is not None and kinds == {".npy"} and len(found) > 1:
        raise FetchError(f"{_labels_key(config)}: one file of labels is for one .npy file, there are {len(found)}")
    return found


def _npy(file: Path, config: DataSection) -> tuple["np.ndarray", list[str], "np.ndarray | None"]:
    """The array, and the labels of the file beside it that data.array.labels names."""
    labels = None
    if config.array.labels is not None:
        labels = _loaded(file.parent / config.array.labels)
    values, columns = _matrix(_loaded(file), _shown(file))
    return values, _chosen(columns, file, config), labels


def _npz(file: Path, config: DataSection) -> tuple["np.ndarray", list[str], "np.ndarray | None"]:
    """The array that data.array.key names, or the only one; labels by their key."""
    wanted, labels = config.array.key, config.array.labels
    arrays = _loaded(file, asked={wanted, labels} - {None} if wanted is not None else None)
    if labels is not None and labels not in arrays:
        raise FetchError(f"{_labels_key(config)}: {_shown(file)} has no such array; it has {few(list(arrays), 8)}")
    names = [name for name in arrays if name != labels]
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted not in names:
        raise FetchError(f"data.array.key = {wanted!r}: {_shown(file)} has {few(names, 8)}; name one of them")
    values, columns = _matrix(arrays[wanted], f"{_shown(file)}: {wanted}")
    return values, _chosen(columns, file, config), None if labels is None else arrays[labels]


def _chosen(columns: list[str], file: Path, config: DataSection) -> list[str]:
    if config.array.columns is not None:
        raise FetchError(f"data.array.columns: {_shown(file)} has no names of columns; set it to null")
    return columns


def _loaded(file: Path, *, asked: set[str] | None = None) -> Any:
    """The array of a .npy file, or {name: array} of a .npz file; asked: these alone are read, the others are None."""
    import numpy as np

    try:
        found = np.load(file, allow_pickle=False)
        if hasattr(found, "files") != (file.suffix == ".npz"):
            raise ValueError(f"its content is not that of a {file.suffix} file")
        if not hasattr(found, "files"):
            return found
        return {name: found[name] if asked is None or name in asked else None for name in found.files}
    except FileNotFoundError as error:
        raise FetchError(f"{_shown(file)}: no such file") from error
    except Exception as error:  # NumPy answers damaged headers with nearly any kind
        mend = "save text as np.array(names, dtype=str)" if "Object arrays" in str(error) else "save it again"
        raise FetchError(f"{_shown(file)}: cannot be read as an array ({in_a_line(error)}); {mend}") from error


def _matrix(array: "np.ndarray", named: str) -> tuple["np.ndarray", list[str]]:
    """Numbers [n] or [n, d] -> float64 [n, d], and the columns' names x_0, x_1, ..."""
    import numpy as np

    if array.dtype.kind not in "biuf":
        raise FetchError(f"{named}: holds {array.dtype}, not real numbers; save it as one array of float32 or float64")
    if array.ndim not in (1, 2) or not array.size:
        raise FetchError(f"{named}: must have shape [n, d], got {list(array.shape)}")
    values = np.asarray(array, np.float64).reshape(len(array), -1)
    return values, [f"x_{i}" for i in range(values.shape[1])]


def _parquet(file: Path, config: DataSection) -> tuple["np.ndarray", list[str], "np.ndarray | None"]:
    """The columns that data.array.columns names, or all but the labels. A column of lists of one length is as many."""
    import numpy as np
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except Exception as error:  # damaged files: ArrowException, OSError and more
        raise FetchError(f"{_shown(file)}: cannot be read as parquet ({in_a_line(error)})") from error
    given, labels = config.array.columns, config.array.labels
    wanted = given if given is not None else [name for name in table.column_names if name != labels]
    for key, name in [*(("columns", name) for name in wanted), *([("labels", labels)] if labels is not None else [])]:
        if name not in table.column_names:
            known = few(table.column_names, 8)
            raise FetchError(f"data.array.{key}: {_shown(file)} has no column {name!r}; it has {known}")
    parts, columns = [], []
    for name in wanted:
        block, names = _column(table.column(name).combine_chunks(), name, file)
        parts.append(block)
        columns += names
    if not parts or not len(table):
        raise FetchError(f"{_shown(file)}: has no rows of numbers")
    if twice := next((c for c in columns if columns.count(c) > 1), None):
        raise FetchError(f"{_shown(file)}: two columns are called {twice}; rename one")
    of_rows = None if labels is None else np.array(table.column(labels).to_pylist(), dtype=object)
    return np.concatenate(parts, axis=1), columns, of_rows


def _column(cells: "pa.Array", name: str, file: Path) -> tuple["np.ndarray", list[str]]:
    """One parquet column as float64 [n, k], and the names of its k columns. Nulls become NaN."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    t, kind = pa.types, cells.type
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        lengths = pc.unique(pc.list_value_length(cells)).to_pylist()
        if len(lengths) != 1 or not lengths[0]:
            raise FetchError(f"{_shown(file)}: column {name} holds lists of different lengths, or empty ones")
        width, cells, kind = lengths[0], pc.list_flatten(cells), kind.value_type
        names = [f"{name}_{i}" for i in range(width)]
    else:
        width, names = 1, [name]
    if not (t.is_integer(kind) or t.is_floating(kind) or t.is_boolean(kind) or t.is_decimal(kind)):
        raise FetchError(
            f"{_shown(file)}: column {name} holds {kind}, not numbers; name the columns of numbers in "
            "data.array.columns"
        )
    values = cells.cast(pa.float64(), safe=False) if not t.is_boolean(kind) else cells.cast(pa.int8())
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64).reshape(-1, width), names


def _check(values: "np.ndarray", columns: list[str], file: Path) -> None:
    """Raises FetchError at the first column with a value that is no number."""
    import numpy as np

    bad = ~np.isfinite(values)
    if bad.any():
        column = int(bad.any(axis=0).argmax())
        rows = np.flatnonzero(bad[:, column])
        raise FetchError(
            f"{_shown(file)}: column {columns[column]} holds NaN, null or infinity in {len(rows)} of {len(values)} "
            f"rows, the first is row {rows[0]}; fill these or leave them out"
        )


def _classes(labels: "np.ndarray", config: DataSection) -> tuple[list[str], "np.ndarray"]:
    """Names of the classes, sorted, and int64 [n] of each row. Raises FetchError at labels of several kinds."""
    import numpy as np

    given = labels.tolist()
    if bad := [i for i, label in enumerate(given) if label is None or label == ""]:
        raise FetchError(
            f"{_labels_key(config)}: {len(bad)} of {len(given)} rows have no label, the first is row {bad[0]}; "
            "complete them, or set data.array.labels: null"
        )
    kinds = {type(label).__name__ for label in given}
    if labels.ndim != 1 or kinds not in ({"int"}, {"str"}, {"bool"}):
        raise FetchError(
            f"{_labels_key(config)}: must be whole numbers or strings [n], got {' and '.join(sorted(kinds))}"
        )
    distinct = sorted(set(given))
    index = {value: i for i, value in enumerate(distinct)}
    return [readable(str(value)) for value in distinct], np.array([index[value] for value in given], np.int64)


def files(place: Path, data: Mapping[str, Any]) -> Iterator[tuple[bytes, Path]]:
    """The files of numbers and labels."""
    return relative(place, [file.relative_to(place) for file in _found(place)])


_READERS = {".npy": _npy, ".npz": _npz, ".parquet": _parquet}
UNKNOWN = 64  # columns, for what is estimated before the files are read
SOURCE = Source(
    "array",
    read,
    modality="points",
    key="path",
    files=files,
    beside=beside,
    columns=False,
    labelled=lambda data: data.array.labels is not None,
    labels_key="array.labels",
    test_split=False,
    section="array",
    shape=lambda data: (len(data.array.columns or [None] * UNKNOWN),),
)
