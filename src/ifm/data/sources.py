"""From any source to one raw form: parquet files of encoded images, each known to be readable, and labels.

A folder holds:
    {train,test}-{00000}.parquet   image: struct<bytes, path>, label: int64 (absent without labels)
    metadata.json                  where it came from, counts, class names, a digest
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ifm.config import DataConfig
from ifm.data.arrays import METADATA
from ifm.data.preprocessing import RAW_IMAGE, WORKERS, decode, flatten
from ifm.errors import UserError, in_a_line
from ifm.files import fresh_folder, write_json
from ifm.progress import progress
from ifm.random import stream

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
ROWS_PER_FILE = 50_000
# What is held in memory at once, and so the size of a row group.
_CHUNK_ROWS, _CHUNK_BYTES, _READ_ROWS = 256, 2**26, 64
_SHOWN = 5


class FetchError(UserError, RuntimeError):
    """The source cannot be brought in; the message names the key, its value and what to do."""


@dataclass(frozen=True)
class FetchResult:
    """What was written. splits: images by split. skipped: unreadable images. ignored: other files seen."""

    folder: Path
    splits: dict[str, int]
    classes: list[str] | None
    skipped: int
    ignored: int
    sha256: str


@dataclass(frozen=True)
class Encoded:
    """One image file. data: its bytes, None where they cannot be read. path: a name for it, not absolute."""

    data: bytes | None
    path: str | None


@dataclass(frozen=True)
class Split:
    """One split of a source. images: the encoded images of given rows, int64 [m] and ascending."""

    count: int
    labels: list[Any] | None  # [count], as the source has them
    images: Callable[[np.ndarray], Iterable[Encoded]]


@dataclass(frozen=True)
class Source:
    """A data set as found. names: class names where the source states them. ignored: files passed over."""

    splits: dict[str, Split]  # "train", and "test" where the source has its own
    names: list[str] | None = None
    ignored: int = 0


def fetch(config: DataConfig, out: Path) -> FetchResult:
    """Brings `config.source` to the raw form in folder `out`.

    The encoded bytes stay untouched; each image is decoded once to find the unreadable ones. With max_images,
    rows are drawn before that. Raises FetchError; `out` stays as it was then.
    """
    if config.test_split is not None and config.test_split == config.train_split:
        raise FetchError(
            f"data.test_split = {config.test_split!r}: is the same as data.train_split; name another, or null"
        )
    source = _SOURCES[config.source](config)
    classes, labels = _resolve(source, config)
    rows = {name: _subset(split.count, config) for name, split in source.splits.items()}
    for name, split in source.splits.items():
        if not split.count:
            raise FetchError(f"{_origin(config)}: the {name} split is empty")
    total = sum(len(r) for r in rows.values())
    with fresh_folder(out) as folder, closing(_Writer(folder)) as writer:
        with ThreadPoolExecutor(WORKERS) as pool, progress(total=total, label="fetch", unit="img") as bar:
            for name, split in source.splits.items():
                start = 0
                for chunk in _chunks(split.images(rows[name])):
                    here = rows[name][start : start + len(chunk)]
                    start += len(chunk)
                    chosen = None if labels is None else labels[name][here]
                    writer.write(name, here, chunk, chosen, list(pool.map(_fault, chunk)))
                    bar.update(len(chunk))
                writer.close()
        _judge(writer, total, config)
        result = FetchResult(out, writer.counts, classes, len(writer.faults), source.ignored, writer.digest.hexdigest())
        write_json(folder / METADATA, _metadata(config, result))
    return result


def _metadata(config: DataConfig, result: FetchResult) -> dict[str, Any]:
    digits = config.source == "digits"
    return {
        "source": config.source,
        "name": "digits" if digits else _display_name(config.name or config.path),
        "revision": config.revision,
        "image_column": None if digits else config.image_column,
        "label_column": None if digits else config.label_column,
        "splits": result.splits,
        "classes": result.classes,
        "skipped": result.skipped,
        "ignored": result.ignored,
        "sha256": result.sha256,
    }


def _display_name(name: str) -> str:
    """Of a local path the last part: a raw form made from the same files is the same wherever they lie."""
    return Path(name).resolve().name if Path(name).exists() else name


def _origin(config: DataConfig) -> str:
    """The key that names the source, with its value."""
    key = {"digits": "source", "hub": "name"}.get(config.source, "path")
    return f"data.{key} = {getattr(config, key)!r}"


def _subset(count: int, config: DataConfig) -> np.ndarray:
    """Rows to take, ascending: int64 [min(count, max_images)]."""
    if config.max_images is None or config.max_images >= count:
        return np.arange(count)
    return np.sort(stream(config.split_seed, "split", index=1).permutation(count)[: config.max_images])


# Writing


def _chunks(images: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    """Groups of at most _CHUNK_ROWS images that end at about _CHUNK_BYTES."""
    chunk, size = [], 0
    for image in images:
        chunk.append(image)
        size += len(image.data or b"")
        if len(chunk) == _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _fault(image: Encoded) -> str | None:
    """Why the image cannot be used, or None."""
    if image.data is None:
        return "no bytes"
    try:
        flatten(decode(image.data))
    except ValueError as error:
        return str(error)
    return None


class _Writer:
    """Parquet files of at most about ROWS_PER_FILE rows, one row group for each chunk."""

    def __init__(self, folder: Path) -> None:
        self.counts: dict[str, int] = {}
        self.faults: list[str] = []
        self.digest = hashlib.sha256()
        self._folder = folder
        self._files: dict[str, int] = {}
        self._open: pq.ParquetWriter | None = None
        self._open_rows = 0

    def write(
        self,
        split: str,
        rows: np.ndarray,
        chunk: list[Encoded],
        labels: np.ndarray | None,
        faults: list[str | None],
    ) -> None:
        """Appends the images of a chunk that have no fault and notes the others. rows, labels: int64 [m]."""
        self.counts.setdefault(split, 0)
        good = [i for i, fault in enumerate(faults) if fault is None]
        for image, row, fault in zip(chunk, rows, faults, strict=True):
            if fault is not None:
                self.faults.append(f"{image.path or f'{split} row {row}'} ({fault})")
        if not good:
            return
        for i in good:
            self.digest.update(len(chunk[i].data).to_bytes(8, "little") + chunk[i].data)
            self.digest.update(b"" if labels is None else int(labels[i]).to_bytes(8, "little"))
        cells = [{"bytes": chunk[i].data, "path": chunk[i].path} for i in good]
        columns = {"image": pa.array(cells, RAW_IMAGE)}
        if labels is not None:
            columns["label"] = pa.array(labels[good], pa.int64())
        self._append(split, pa.table(columns))
        self.counts[split] += len(good)

    def _append(self, split: str, table: pa.Table) -> None:
        if self._open is None or self._open_rows >= ROWS_PER_FILE:
            self.close()
            number = self._files.get(split, 0)
            self._files[split] = number + 1
            path = self._folder / f"{split}-{number:05d}.parquet"
            # The images are compressed already.
            self._open = pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        self._open.write_table(table)
        self._open_rows += len(table)

    def close(self) -> None:
        """Finishes the open file; the next rows begin another."""
        if self._open is not None:
            self._open.close()
        self._open, self._open_rows = None, 0


def _judge(writer: _Writer, total: int, config: DataConfig) -> None:
    """Raises FetchError where unreadable images are not to be left out, or nothing is left; else warns."""
    if not writer.faults:
        return
    shown = "; ".join(writer.faults[:_SHOWN]) + ("; ..." if len(writer.faults) > _SHOWN else "")
    found = f"{_origin(config)}: {len(writer.faults)} of {total} images cannot be read: {shown}"
    if config.on_bad_image == "error":
        raise FetchError(f"{found}. Set data.on_bad_image: skip to leave them out")
    empty = [split for split, count in writer.counts.items() if not count]
    if empty:
        raise FetchError(f"{found}. No image is left in the {empty[0]} split")
    print(f"warning: {found}; left out", file=sys.stderr)


# Labels


def _resolve(source: Source, config: DataConfig) -> tuple[list[str] | None, dict[str, np.ndarray] | None]:
    """Class names and, by split, labels int64 [count] in 0..k-1. Raises FetchError for a missing label."""
    if all(split.labels is None for split in source.splits.values()):
        return None, None
    labels = {name: split.labels for name, split in source.splits.items()}
    for name, values in labels.items():
        _check_present(name, values, source.names, config)
    if source.names is not None:
        return source.names, {name: np.array(values, np.int64) for name, values in labels.items()}
    distinct = sorted(set().union(*labels.values()))
    index = {value: i for i, value in enumerate(distinct)}
    return [str(value) for value in distinct], {
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
        shown = ", ".join(f"row {i}: {labels[i]!r}" for i in bad[:_SHOWN])
        raise FetchError(
            f"{key}: {len(bad)} of {len(labels)} images of the {split} split have no usable label ({shown}; "
            f"{allowed}). Complete them, or set data.label_column: null"
        )


# Sources


def _digits(config: DataConfig) -> Source:
    """The 1,797 handwritten digits that scikit-learn ships: 8x8, 17 grey values."""
    from sklearn.datasets import load_digits

    if config.test_split is not None:
        raise FetchError(
            f"data.test_split = {config.test_split!r}: digits has no test split; set it to null, and "
            "data.test_fraction of the images are held out"
        )
    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)  # [n, 8, 8]

    def encoded(rows: np.ndarray) -> Iterator[Encoded]:
        for i in rows:
            buffer = io.BytesIO()
            Image.fromarray(images[i]).save(buffer, format="PNG")
            yield Encoded(buffer.getvalue(), f"{i:04d}.png")

    split = Split(len(images), bunch.target.tolist(), encoded)
    return Source({"train": split}, [str(i) for i in range(10)])


def _hub(config: DataConfig) -> Source:
    """A data set of the hub, or a local folder that `load_dataset` understands. None of its code is run."""
    import datasets
    import huggingface_hub

    parts = {}
    for name, split in _split_names(config).items():
        try:
            parts[name] = datasets.load_dataset(config.name, revision=config.revision, split=split)
        # The library, its file readers and the network each raise their own kinds.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FetchError(
                f"data.name = {config.name!r}: cannot load split {split!r} of revision {config.revision!r}: "
                f"{reason}. Check the name, the splits and the connection; set HF_HUB_OFFLINE=1 to use what "
                "is in the cache already; or use data.source: parquet or imagefolder with local files"
            ) from error
    for part in parts.values():
        _check_columns(part.features.arrow_schema, config)
    caches = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    roots = [Path(place).resolve() for place in (*caches, config.name) if Path(place).is_dir()]

    def split_of(part: datasets.Dataset) -> Split:
        def encoded(rows: np.ndarray) -> Iterator[Encoded]:
            # As arrow tables the cells come as they are stored, not decoded.
            column = part.select_columns([config.image_column]).with_format("arrow").select(rows)
            for table in column.iter(_READ_ROWS):
                yield from (_encoded(cell, None, within=roots) for cell in table.column(0).to_pylist())

        labels = None
        if config.label_column is not None:
            column = part.select_columns([config.label_column]).with_format("arrow")
            labels = column[:].column(0).to_pylist()
        return Split(len(part), labels, encoded)

    names = [_class_names(part.features.arrow_schema, config) for part in parts.values()]
    return Source({name: split_of(part) for name, part in parts.items()}, _same_names(names, config))


def _parquet(config: DataConfig) -> Source:
    """Local parquet files, with or without the `datasets` library's description of the columns."""
    splits, names = {}, []
    for name, files in _parquet_files(config).items():
        schemas = []
        for path in files:
            with _readable(path):
                schemas.append(pq.read_schema(path))
            _check_columns(schemas[-1], config)
        names += [_class_names(schema, config) for schema in schemas]
        splits[name] = _parquet_split(files, config)
    return Source(splits, _same_names(names, config))


def _parquet_files(config: DataConfig) -> dict[str, list[Path]]:
    """The files of each split, sorted by name."""
    path = Path(config.path)
    if path.is_file():
        if config.test_split is not None:
            raise FetchError(
                f"data.path = {config.path!r}: is one file, which is the train split; set "
                "data.test_split: null or give the folder that holds the files of both splits"
            )
        return {"train": [path]}
    if not path.is_dir():
        raise FetchError(f"data.path = {config.path!r}: no such file or folder")
    found = sorted(file for file in path.iterdir() if file.suffix == ".parquet" and file.is_file())
    files = {
        name: [file for file in found if file.name.startswith(split)] for name, split in _split_names(config).items()
    }
    for name, split in _split_names(config).items():
        if not files[name]:
            raise FetchError(
                f"data.{name}_split = {split!r}: no {split}*.parquet in data.path = {config.path!r}; it has "
                f"{', '.join(file.name for file in found[:_SHOWN]) or 'no parquet files'}"
            )
    shared = set(files["train"]) & set(files.get("test", []))
    if shared:
        raise FetchError(
            f"data.train_split = {config.train_split!r}, data.test_split = {config.test_split!r}: both take "
            f"{min(shared).name}; use names of which none begins with the other"
        )
    return files


def _parquet_split(files: list[Path], config: DataConfig) -> Split:
    count, labels = 0, None if config.label_column is None else []
    for path in files:
        with _readable(path), pq.ParquetFile(path) as file:
            count += file.metadata.num_rows
            if labels is not None:
                labels += file.read([config.label_column]).column(0).to_pylist()

    def encoded(rows: np.ndarray) -> Iterator[Encoded]:
        start = 0
        for path in files:
            with _readable(path), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_READ_ROWS, columns=[config.image_column]):
                    first, last = np.searchsorted(rows, [start, start + len(batch)])
                    here = pa.array(rows[first:last] - start)
                    start += len(batch)
                    cells = batch.column(0).take(here).to_pylist()
                    yield from (_encoded(cell, path.parent, within=[path.parent.resolve()]) for cell in cells)

    return Split(count, labels, encoded)


def _imagefolder(config: DataConfig) -> Source:
    """A folder of image files; with labels, the first-level subfolder of each is its class."""
    root = Path(config.path)
    if not root.is_dir():
        raise FetchError(f"data.path = {config.path!r}: no such folder")
    wanted = _split_names(config)
    if config.test_split is None and not (root / config.train_split).is_dir():
        wanted = {"train": "."}
    splits, ignored = {}, 0
    for name, sub in wanted.items():
        if not (root / sub).is_dir():
            raise FetchError(
                f"data.{name}_split = {sub!r}: no such folder in data.path = {config.path!r}; with "
                "data.test_split: null the whole folder is used"
            )
        if not (root / sub).resolve().is_relative_to(root.resolve()):
            raise FetchError(
                f"data.{name}_split = {sub!r}: leads out of data.path = {config.path!r} (a link?); name the folder "
                "that holds the images itself"
            )
        paths, others = image_files(root / sub)
        ignored += others
        if not paths:
            raise FetchError(
                f"data.path = {config.path!r}: no {', '.join(SUFFIXES)} files in the folder of the {name} "
                f"split ({others} other files, hidden ones and links out of the folder are passed over)"
            )
        splits[name] = _folder_split(root / sub, paths, config)
    return Source(splits, ignored=ignored)


def _folder_split(folder: Path, paths: list[PurePath], config: DataConfig) -> Split:
    labels = None
    if config.label_column is not None:
        loose = [path.name for path in paths if len(path.parts) == 1]
        if loose:
            raise FetchError(
                f"data.path = {config.path!r}: {len(loose)} images lie in no class folder: "
                f"{', '.join(loose[:_SHOWN])}. Move them into one folder for each class, or set "
                "data.label_column: null"
            )
        labels = [path.parts[0] for path in paths]

    def encoded(rows: np.ndarray) -> Iterator[Encoded]:
        return (Encoded(_read(folder / paths[i]), paths[i].as_posix()) for i in rows)

    return Split(len(paths), labels, encoded)


def image_files(folder: Path) -> tuple[list[PurePath], int]:
    """Paths of image files relative to `folder`, sorted, and the number of other files and links passed over.

    Hidden files and folders are no images: previews and notebook copies live there.
    """
    paths, ignored, root = [], 0, folder.resolve()
    for place, folders, files in os.walk(folder):
        # os.walk enters no linked folder, but lists it.
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        ignored += len(linked)
        folders[:] = [name for name in folders if not name.startswith(".") and name not in linked]
        for name in files:
            path = Path(place, name)
            hidden = name.startswith(".") or path.suffix.lower() not in SUFFIXES
            # A pipe or a device would have the reader wait for ever.
            if hidden or not path.is_file() or (path.is_symlink() and not path.resolve().is_relative_to(root)):
                ignored += 1
            else:
                paths.append(PurePath(path.relative_to(folder)))
    return sorted(paths, key=lambda path: path.parts), ignored


_SOURCES = {"digits": _digits, "hub": _hub, "parquet": _parquet, "imagefolder": _imagefolder}


# What hub and parquet share


def _split_names(config: DataConfig) -> dict[str, str]:
    """The source's own names of the splits, by ours."""
    names = {"train": config.train_split}
    return names if config.test_split is None else names | {"test": config.test_split}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into a FetchError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise FetchError(f"{path}: cannot be read as parquet ({in_a_line(error)}); bring the file again") from error


def _check_columns(schema: pa.Schema, config: DataConfig) -> None:
    """Raises FetchError where a column is missing or the image column holds no encoded images."""
    wanted = {"image_column": config.image_column, "label_column": config.label_column}
    for key, column in wanted.items():
        if column is not None and column not in schema.names:
            raise FetchError(f"data.{key} = {column!r}: no such column; {_origin(config)} has {schema.names}")
    kind = schema.field(config.image_column).type
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if not fields & {"bytes", "path"} and not _holds_bytes_or_paths(kind):
        raise FetchError(f"data.image_column = {config.image_column!r}: holds {kind}, not encoded images")


def _holds_bytes_or_paths(kind: pa.DataType) -> bool:
    t = pa.types
    tests = (t.is_binary, t.is_large_binary, t.is_binary_view, t.is_string, t.is_large_string)
    return any(test(kind) for test in tests)


def _class_names(schema: pa.Schema, config: DataConfig) -> list[str] | None:
    """The names that the `datasets` library's description of the label column gives, or None."""
    try:
        description = json.loads(schema.metadata[b"huggingface"])["info"]["features"][config.label_column]
        names = description["names"] if description["_type"] == "ClassLabel" else None
    except (TypeError, KeyError, ValueError):
        return None
    return names and [str(name) for name in names]


def _same_names(found: list[list[str] | None], config: DataConfig) -> list[str] | None:
    """The one list of names. Raises FetchError where files or splits number the classes differently."""
    if any(names != found[0] for names in found):
        raise FetchError(
            f"data.label_column = {config.label_column!r}: the files or splits of {_origin(config)} disagree "
            "on the class names; write them again with one list of names"
        )
    return found[0]


def _encoded(cell: Any, folder: Path | None, *, within: list[Path]) -> Encoded:
    """One cell of an image column: {bytes, path}, bytes, a path or null.

    Paths begin in `folder` (None: the working folder) and lead nowhere but to files within some resolved folders: a
    data file does not choose what is read.
    """
    if isinstance(cell, bytes):
        return Encoded(cell, None)
    if isinstance(cell, str):
        cell = {"bytes": None, "path": cell}
    if cell is None:
        return Encoded(None, None)
    data, path = cell.get("bytes"), cell.get("path")
    if path is None:
        return Encoded(data, None)
    if data is None:
        file = (folder or Path()) / path
        data = _read(file) if _lies_within(file, within) else None
    return Encoded(data, PurePath(path).name)


def _lies_within(file: Path, folders: list[Path]) -> bool:
    """Whether it is a file, no pipe or device, and lies in one of the folders when its links are followed."""
    try:
        found = file.resolve()
        return found.is_file() and any(found.is_relative_to(folder) for folder in folders)
    except (OSError, RuntimeError, ValueError):  # a loop of links; a zero byte
        return False


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
