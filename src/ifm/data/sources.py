"""From any source to one raw form: parquet files of encoded images, each known to be readable, and labels.

A folder holds:
    {train,test}-{00000}.parquet   image: struct<bytes, path>, label: int64 (absent without labels)
    metadata.json                  where it came from, counts, class names, a digest
"""

import hashlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ifm.config import DataConfig
from ifm.data.arrays import METADATA
from ifm.data.local import (
    BARE,
    SUFFIXES,
    image_files,
    is_split_like,
    parquet_files,
    split_folders,
    subfolders,
    walk,
)
from ifm.data.preprocessing import RAW_IMAGE, WORKERS, decode, deep_maximum, flatten, has_more_frames
from ifm.errors import UserError, in_a_line
from ifm.files import fresh_folder, readable, write_json
from ifm.progress import progress
from ifm.random import stream

ROWS_PER_FILE = 50_000
# What is held in memory at once, and so the size of a row group.
_CHUNK_ROWS, _CHUNK_BYTES, _READ_ROWS = 256, 2**26, 64
_SHOWN = 5
_DARK = 2**14  # 16-bit images below are called dark: cameras and microscopes count to 4095 or 16383


class FetchError(UserError, RuntimeError):
    """The source cannot be brought in; the message names the key, its value and what to do."""


@dataclass(frozen=True)
class FetchResult:
    """What was written. splits: images by split. skipped: unreadable images. ignored: other files seen.

    available: images of the source's splits. passed_over: the other files by suffix or kind. unused: splits, folders
    or files of the source that were not read. commit: what data.revision stood for.
    """

    folder: Path
    splits: dict[str, int]
    classes: list[str] | None
    skipped: int
    ignored: int
    sha256: str
    available: int
    passed_over: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    several_frames: int = 0
    commit: str | None = None
    revision: str | None = None

    def in_a_line(self) -> str:
        """What was taken and what was not."""
        taken = sum(self.splits.values())
        counts = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        apart = f" ({counts})" if len(self.splits) > 1 else ""
        some = f" of {self.available}" if taken < self.available else ""
        parts = [f"{taken}{some} images{apart}"]
        if self.classes is None:
            parts.append("no classes (data.label_column: null)")
        else:
            noun = "class" if len(self.classes) == 1 else "classes"
            parts.append(f"{len(self.classes)} {noun}: {_few(self.classes, 10)}")
        if self.skipped:
            parts.append(f"{self.skipped} unreadable, left out")
        if self.several_frames:
            parts.append(f"{self.several_frames} with several frames, of which the first is taken")
        if self.passed_over:
            kinds = [f"{count} {readable(kind)}" for kind, count in self.passed_over.most_common()]
            parts.append(f"passed over: {_few(kinds, 8)}")
        if self.unused:
            parts.append(f"not used: {_few(self.unused, 8)}")
        if self.commit:
            parts.append(f"commit {self.commit}, which data.revision: {self.revision or 'null'} stands for")
        return "; ".join(parts)


def _few(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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
    """A data set as found. names: class names where the source states them. The others are FetchResult's."""

    splits: dict[str, Split]  # "train", and "test" where the source has its own
    names: list[str] | None = None
    passed_over: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    commit: str | None = None
    warnings: list[str] = field(default_factory=list)


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
                    writer.write(name, here, chunk, chosen, list(pool.map(_checked, chunk)))
                    bar.update(len(chunk))
                writer.close()
        warnings = source.warnings + _judge(writer, total, config)
        result = FetchResult(
            out,
            writer.counts,
            classes,
            skipped=len(writer.faults),
            ignored=source.passed_over.total(),
            sha256=writer.digest.hexdigest(),
            available=sum(split.count for split in source.splits.values()),
            passed_over=source.passed_over,
            unused=source.unused,
            several_frames=writer.several_frames,
            commit=source.commit,
            revision=config.revision,
        )
        write_json(folder / METADATA, _metadata(config, result))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return result


def _metadata(config: DataConfig, result: FetchResult) -> dict[str, Any]:
    digits = config.source == "digits"
    return {
        "source": config.source,
        "name": "digits" if digits else _display_name(config.name or config.path),
        "revision": config.revision,
        **({"commit": result.commit} if config.source == "hub" else {}),
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
    return readable(Path(name).resolve().name if Path(name).exists() else name)


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


@dataclass(frozen=True)
class _Checked:
    """What a look at an image found. fault: why it cannot be used. deepest: the highest value of 16-bit grey."""

    fault: str | None = None
    several_frames: bool = False
    deepest: int | None = None


def _checked(image: Encoded) -> _Checked:
    if image.data is None:
        return _Checked("no bytes")
    try:
        decoded = decode(image.data)
        flatten(decoded)
    except ValueError as error:
        return _Checked(str(error))
    return _Checked(None, has_more_frames(decoded), deep_maximum(decoded))


class _Writer:
    """Parquet files of at most about ROWS_PER_FILE rows, one row group for each chunk."""

    def __init__(self, folder: Path) -> None:
        self.counts: dict[str, int] = {}
        self.faults: list[str] = []
        self.several_frames = 0
        self.deep: list[int] = []  # the highest value of each 16-bit image
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
        checked: list[_Checked],
    ) -> None:
        """Appends the images of a chunk that have no fault and notes the others. rows, labels: int64 [m]."""
        self.counts.setdefault(split, 0)
        good = [i for i, one in enumerate(checked) if one.fault is None]
        for image, row, one in zip(chunk, rows, checked, strict=True):
            if one.fault is not None:
                self.faults.append(f"{image.path or f'{split} row {row}'} ({one.fault})")
        self.several_frames += sum(one.several_frames for one in checked)
        self.deep += [one.deepest for one in checked if one.deepest is not None]
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


def _judge(writer: _Writer, total: int, config: DataConfig) -> list[str]:
    """What to warn of. Raises FetchError where unreadable images are not to be left out, or nothing is left."""
    warnings = []
    if writer.deep and max(writer.deep) < _DARK:
        bits = max(max(writer.deep).bit_length(), 1)
        warnings.append(
            f"{_origin(config)}: {len(writer.deep)} grey images of 16 bits hold no value above {max(writer.deep)} of "
            f"65535 and come out nearly black; if they count in {bits} bits, multiply them by {2 ** (16 - bits)}"
        )
    if not writer.faults:
        return warnings
    shown = "; ".join(writer.faults[:_SHOWN]) + ("; ..." if len(writer.faults) > _SHOWN else "")
    found = f"{_origin(config)}: {len(writer.faults)} of {total} images cannot be read: {shown}"
    if config.on_bad_image == "error":
        raise FetchError(f"{found}. Set data.on_bad_image: skip to leave them out")
    empty = [split for split, count in writer.counts.items() if not count]
    if empty:
        raise FetchError(f"{found}. No image is left in the {empty[0]} split")
    return [*warnings, f"{found}; left out"]


# Labels


def _resolve(source: Source, config: DataConfig) -> tuple[list[str] | None, dict[str, np.ndarray] | None]:
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

    parts, commit = {}, _commit(config)
    for name, split in _split_names(config).items():
        try:
            parts[name] = datasets.load_dataset(config.name, revision=commit or config.revision, split=split)
        # The library, its file readers and the network each raise their own kinds.
        except Exception as error:
            reason = readable(" ".join(str(error).split())) or type(error).__name__
            raise FetchError(
                f"data.name = {config.name!r}: cannot load split {split!r} of revision {commit or config.revision!r}: "
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
    others = set().union(*(part.info.splits or {} for part in parts.values())) - set(_split_names(config).values())
    return Source(
        {name: split_of(part) for name, part in parts.items()},
        _same_names(names, config),
        unused=[f"split {readable(str(name))}" for name in sorted(others)],
        commit=commit,
    )


def _commit(config: DataConfig) -> str | None:
    """The commit of the Hub that data.revision (null: main) stands for now; without the Hub, the only one in its cache.

    None for a local folder, and where neither tells: load_dataset says what is wrong.
    """
    from huggingface_hub import HfApi, constants

    if Path(config.name).exists():
        return None
    if re.fullmatch("[0-9a-f]{40}", config.revision or ""):
        return config.revision
    try:
        return HfApi().dataset_info(config.name, revision=config.revision).sha
    # The library and the network each raise their own kinds.
    except Exception:
        folder = Path(constants.HF_HUB_CACHE, f"datasets--{config.name.replace('/', '--')}", "snapshots")
        with suppress(OSError):
            cached = [place for place in folder.iterdir() if re.fullmatch("[0-9a-f]{40}", place.name)]
            return cached[0].name if len(cached) == 1 and config.revision is None else None
    return None


def _parquet(config: DataConfig) -> Source:
    """Local parquet files, with or without the `datasets` library's description of the columns."""
    splits, names = {}, []
    for name, files in _parquet_files(config).items():
        schemas = []
        for path in files:
            with _parquet_file(path) as file:
                schemas.append(file.schema_arrow)
            _check_columns(schemas[-1], config)
        names += [_class_names(schema, config) for schema in schemas]
        splits[name] = _parquet_split(files, config)
    root, used = Path(config.path), {file for files in _parquet_files(config).values() for file in files}
    passed_over, unused = Counter(), []
    if root.is_dir():
        beside = sorted(path for path in root.iterdir() if path not in used and not path.name.startswith("."))
        unused = [readable(path.name) for path in beside if path.suffix == ".parquet" or path.is_dir()]
        passed_over.update(path.suffix.lower() or BARE for path in beside if readable(path.name) not in unused)
    return Source(splits, _same_names(names, config), passed_over, unused)


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
    found = parquet_files(path, "")
    files = {name: parquet_files(path, split) for name, split in _split_names(config).items()}
    for name, split in _split_names(config).items():
        if not files[name]:
            raise FetchError(
                f"data.{name}_split = {split!r}: no {split}*.parquet in data.path = {config.path!r}; it has "
                f"{', '.join(readable(file.name) for file in found[:_SHOWN]) or 'no parquet files'}"
            )
    shared = set(files["train"]) & set(files.get("test", []))
    if shared:
        raise FetchError(
            f"data.train_split = {config.train_split!r}, data.test_split = {config.test_split!r}: both take "
            f"{readable(min(shared).name)}; use names of which none begins with the other"
        )
    return files


def _parquet_split(files: list[Path], config: DataConfig) -> Split:
    count, labels = 0, None if config.label_column is None else []
    for path in files:
        with _parquet_file(path) as file:
            count += file.metadata.num_rows
            if labels is not None:
                labels += file.read([config.label_column]).column(0).to_pylist()

    def encoded(rows: np.ndarray) -> Iterator[Encoded]:
        start = 0
        for path in files:
            with _parquet_file(path) as file:
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
    wanted = split_folders(root, train_split=config.train_split, test_split=config.test_split)
    splits, passed_over = {}, Counter()
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
        found = image_files(root / sub)
        passed_over += found.passed_over
        if not found.paths:
            raise FetchError(
                f"data.path = {config.path!r}: no {', '.join(SUFFIXES)} files in the folder of the {name} "
                f"split ({_other_files(found.passed_over)})"
            )
        splits[name] = _folder_split(root / sub, found.paths, config)
        paths = found.paths
    whole = wanted == {"train": "."}
    unused = [] if "." in wanted.values() else _unused(root, set(wanted.values()))
    warnings = _of_splits_in_one(paths, config) if whole else _of_unused(unused, wanted, config)
    return Source(splits, None, passed_over, [readable(name) for name in unused], warnings=warnings)


def _other_files(passed_over: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {readable(kind)}" for kind, count in passed_over.most_common(_SHOWN))
    return f"passed over: {kinds}" if kinds else "the folder is empty; hidden folders and links are not entered"


def _unused(root: Path, used: set[str]) -> list[str]:
    """Folders beside those of the splits that hold images too."""
    inside = {PurePath(name).parts[0] for name in used}
    return [
        name
        for name in subfolders(root)
        if name not in inside and any(path.suffix.lower() in SUFFIXES for path in walk(root / name))
    ]


def _of_unused(unused: list[str], wanted: dict[str, str], config: DataConfig) -> list[str]:
    """A warning where one folder alone is the train split and others hold images too."""
    if not unused or "test" in wanted:
        return []
    if all(map(is_split_like, unused)):
        mend = f"to test on one of them set data.test_split, e.g. {readable(_best_test(unused))}"
    else:
        mend = "to take the whole folder set data.train_split: ."
    return [
        f"data.path = {config.path!r}: only its folder {readable(wanted['train'])} is read (data.train_split = "
        f"{config.train_split!r}), not {_few([readable(name) for name in unused], _SHOWN)}; {mend}"
    ]


def _of_splits_in_one(paths: list[PurePath], config: DataConfig) -> list[str]:
    """A warning where folders that are called as splits are read as one set."""
    for depth in (0, 1):
        parents = {path.parts[: depth + 1] for path in paths if len(path.parts) > depth + 1}
        found = sorted(PurePath(*parts).as_posix() for parts in parents if is_split_like(parts[-1]))
        if not found:
            continue
        shown = _few([readable(name) for name in found], _SHOWN)
        kind = "classes called" if depth == 0 and config.label_column is not None else "folders"
        above = {PurePath(name).parent for name in found}
        train = [name for name in found if PurePath(name).name.casefold().startswith("train")]
        if len(above) == 1 and train:
            place = "" if depth == 0 else f"set data.path to its folder {readable(above.pop().as_posix())}, "
            test = [name for name in found if name not in train]
            mend = f"{place}set data.train_split: {readable(PurePath(train[0]).name)}"
            mend += f" and data.test_split: {readable(PurePath(_best_test(test)).name)}" if test else ""
        else:
            mend = "move the images into one folder for each split, with the classes' folders in it"
        return [
            f"data.path = {config.path!r}: {kind} {shown} look like splits, and are read as one set; if they are "
            f"splits, {mend}"
        ]
    return []


def _best_test(names: list[str]) -> str:
    """Of folders that look like splits the one to test on."""
    return min(names, key=lambda name: (not PurePath(name).name.casefold().startswith("test"), name))


def _folder_split(folder: Path, paths: list[PurePath], config: DataConfig) -> Split:
    labels = None
    if config.label_column is not None:
        loose = [readable(path.name) for path in paths if len(path.parts) == 1]
        if loose:
            raise FetchError(
                f"data.path = {config.path!r}: {len(loose)} images lie in no class folder: "
                f"{', '.join(loose[:_SHOWN])}. Move them into one folder for each class, or set "
                "data.label_column: null"
            )
        labels = [path.parts[0] for path in paths]

    def encoded(rows: np.ndarray) -> Iterator[Encoded]:
        return (Encoded(_read(folder / paths[i]), readable(paths[i].as_posix())) for i in rows)

    return Split(len(paths), labels, encoded)


_SOURCES = {"digits": _digits, "hub": _hub, "parquet": _parquet, "imagefolder": _imagefolder}


# What hub and parquet share


def _split_names(config: DataConfig) -> dict[str, str]:
    """The source's own names of the splits, by ours."""
    names = {"train": config.train_split}
    return names if config.test_split is None else names | {"test": config.test_split}


@contextmanager
def _parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """The open file. Turns what a damaged one raises into a FetchError that names it."""
    try:
        # Arrow itself opens no file whose name is not UTF-8.
        with open(path, "rb") as file, pq.ParquetFile(file) as opened:
            yield opened
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        named = readable(str(path))
        raise FetchError(f"{named}: cannot be read as parquet ({in_a_line(error)}); bring the file again") from error


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
    return Encoded(data, readable(PurePath(path).name))


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
