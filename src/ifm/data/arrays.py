"""The processed form and its reading side: uint8 shards that are memory-mapped, never loaded whole.

A folder holds:
    {split}-{00000}.npy   uint8 [n, C, S, S]
    {split}-labels.npy    int64 [n], where there are classes
    metadata.json         ProcessedMetadata
"""

import hashlib
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ifm import modalities
from ifm.errors import UserError, in_a_line
from ifm.files import inside, read_dataclass, read_json, write_json
from ifm.modalities import Modality

METADATA = "metadata.json"
_STAGE = "preprocess"
STRICT = {"extra": "forbid", "allow_inf_nan": False}  # how pydantic reads the dataclasses of metadata.json
MAPPED_BYTES = 2**27  # sets up to this size stay mapped once they are read
_AT_ONCE = 4096  # samples, where all are gone through
ROWS_AT_ONCE = 64  # of larger ones: Linux maps up to 2 MB around each row that is read


class DataError(UserError, ValueError):
    """Stored data cannot be used; the message names the file and the command that makes it again."""


@dataclass(frozen=True)
class ProcessedSplit:
    """One split: `sha256` is over the image bytes in order, then the labels as little-endian int64.

    duplicates: rows that are equal to an earlier one; None: not counted.
    """

    __pydantic_config__: ClassVar = STRICT
    count: int
    shards: list[str]
    class_counts: list[int] | None
    sha256: str
    duplicates: int | None = None


class StoredMetadata:
    """What metadata.json of every processed form shares; a dataclass that has `splits` and `test_in_train`."""

    __pydantic_config__: ClassVar = STRICT

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one sample at rest."""
        return self.image_shape

    @property
    def duplicates(self) -> dict[str, int] | None:
        """Repeated rows of "train" and of "test", and rows of test that are in train too; None: not counted."""
        found = {name: split.duplicates for name, split in self.splits.items()} | {"test_in_train": self.test_in_train}
        return None if None in found.values() else found

    def write(self, folder: Path) -> None:
        """Writes metadata.json."""
        write_json(folder / METADATA, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads metadata.json. Raises DataError where it is missing or has another form."""
        path = folder / METADATA
        try:
            found = read_dataclass(path, cls)
            for split, described in found.splits.items():
                if not described.shards:
                    raise ValueError(f"{split!r} has no shards")
                for name in described.shards:
                    inside(folder, name)
            return found
        except FileNotFoundError as error:
            raise _broken(path, "is missing", _STAGE) from error
        except (ValueError, OSError) as error:
            raise _broken(path, f"does not describe a processed data set ({in_a_line(error)})", _STAGE) from error


@dataclass(frozen=True)
class ProcessedMetadata(StoredMetadata):
    """metadata.json of processed images. mean, std: one per channel, of the train split in [-1, 1]."""

    source: str
    name: str | None
    image_size: int
    channels: int
    classes: list[str] | None
    random_flip: bool
    splits: dict[str, ProcessedSplit]
    mean: list[float]
    std: list[float]
    test_in_train: int | None = None  # test images that are training images too

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        return self.channels, self.image_size, self.image_size


class ShardedArray:
    """Rows of one array kept in several .npy files: memory-mapped, gathered by row number across the files.

    Pickling keeps the paths alone, so that a worker process maps the files itself.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        stage: str,
        row_shape: tuple[int, ...] | None = None,
        dtype: np.dtype | type | str | None = None,
    ) -> None:
        """Maps the shards, in the given order.

        stage: the DVC stage that wrote them, for the messages. row_shape, dtype: what each shard must hold;
        those of the first shard where None. Raises ValueError that names a shard which is missing, damaged
        or different.
        """
        if not paths:
            raise DataError(f"no shards were given; run `dvc repro {stage}` again")
        self.paths = tuple(Path(path) for path in paths)
        self._stage = stage
        self._shards = [_map(path, stage) for path in self.paths]
        first = self._shards[0]
        self.dtype = first.dtype if dtype is None else np.dtype(dtype)
        self._row_shape = tuple(first.shape[1:] if row_shape is None else row_shape)
        for path, shard in zip(self.paths, self._shards, strict=True):
            if shard.dtype != self.dtype or shard.shape[1:] != self._row_shape:
                wanted = f"{self.dtype} [n, {', '.join(map(str, self._row_shape))}]"
                raise _broken(path, f"holds {shard.dtype} {list(shard.shape)}, not {wanted}", stage)
        self._starts = np.cumsum([0] + [len(shard) for shard in self._shards])  # [shards + 1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.paths, self._stage, self._row_shape, self.dtype)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, *row shape)."""
        return len(self), *self._row_shape

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, on disk and when loaded."""
        return sum(shard.nbytes for shard in self._shards)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Copies of rows int [m], repeats allowed: [m, *row shape].

        Raises IndexError for a row outside 0..n-1 (a negative one too), TypeError for fractions.
        """
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise TypeError(f"rows must be whole numbers of shape [m], got {rows.dtype} {list(rows.shape)}")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must be in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}")
        rows = rows.astype(np.int64, copy=False)
        out = np.empty((len(rows), *self._row_shape), self.dtype)
        large = self.nbytes > MAPPED_BYTES
        at_once = ROWS_AT_ONCE if large else max(1, len(rows))
        for start in range(0, len(rows), at_once):
            self._gather(rows[start : start + at_once], out[start : start + at_once], forget=large)
        return out

    def _gather(self, rows: np.ndarray, out: np.ndarray, *, forget: bool) -> None:
        """Copies rows into `out`. forget: hand the pages back, which count as this process's memory until then."""
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1  # [m]
        for i in np.unique(shard_of):
            here = shard_of == i
            out[here] = self._shards[i][rows[here] - self._starts[i]]
            if forget and hasattr(mmap, "MADV_DONTNEED"):
                self._shards[i]._mmap.madvise(mmap.MADV_DONTNEED)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All rows in order, `size` at a time, the last batch shorter: [<= size, *row shape]."""
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        for start in range(0, len(self), size):
            yield self[np.arange(start, min(start + size, len(self)))]


@dataclass(frozen=True, eq=False)
class SampleSet:
    """One split of processed images or points."""

    Metadata: ClassVar[type[StoredMetadata]]
    dtype: ClassVar[type]
    noun: ClassVar[str]
    random_flip: ClassVar[bool] = False
    gaussian: ClassVar[None] = None  # mu and s, for points of that law
    decoder: ClassVar[Path | None] = None  # the folder of what makes images of a model's samples, for latents

    array: ShardedArray  # [n, *shape]
    labels: np.ndarray | None  # int64 [n]
    metadata: Any

    @classmethod
    def open(cls, folder: Path, split: str) -> Self:
        """Maps the split and checks it against metadata.json.

        Raises DataError that names the file at fault and the command that makes it again.
        """
        return cls.mapped(folder, split, cls.Metadata.read(folder))

    @classmethod
    def mapped(cls, folder: Path, split: str, metadata: Any) -> Self:
        """`open` of what `metadata` describes."""
        if split not in metadata.splits:
            raise DataError(f"{folder / METADATA}: has no split {split!r}; it has {sorted(metadata.splits)}")
        known = metadata.splits[split]
        shards = [folder / name for name in known.shards]
        array = ShardedArray(shards, stage=_STAGE, row_shape=metadata.row_shape, dtype=cls.dtype)
        if len(array) != known.count:
            what = f"counts {known.count} {split} {cls.noun}, the shards hold {len(array)}"
            raise _broken(folder / METADATA, what, _STAGE)
        labels = None
        if metadata.classes is not None:
            labels = _labels(folder / f"{split}-labels.npy", known.count, len(metadata.classes))
        return cls(array, labels, metadata)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image, (d,) of one point."""
        return self.metadata.image_shape

    @property
    def modality(self) -> Modality:
        """What the samples are."""
        return modalities.of(self.shape, self.recorded.get("modality"))

    @property
    def recorded(self) -> dict[str, Any]:
        """What descriptions of models and samples take over: see `ifm.modalities.recorded`."""
        return modalities.recorded(asdict(self.metadata))

    @property
    def facts(self) -> dict[str, Any]:
        """What a model's ifm.json says of the data's shape."""
        return {"image_shape": list(self.shape), **self.recorded}

    @property
    def sigma_data(self) -> float:
        """The deviation of all values that a model sees, to four digits: ode.sigma_data where that is null.

        Of the train split where the description has mean and std, else of these samples.
        """
        if hasattr(self.metadata, "mean"):
            mean, std = np.array(self.metadata.mean), np.array(self.metadata.std)
            first, second = float(mean.mean()), float((std**2 + mean**2).mean())
        else:
            first, second = self._moments()
        return float(f"{math.sqrt(second - first**2):.4g}")

    def _moments(self) -> tuple[float, float]:
        """Means of all values and of their squares, as a model sees them."""
        import torch

        total, count = np.zeros(2), 0
        for batch in self.batches(_AT_ONCE):
            x = self.modality.to_model(torch.from_numpy(np.ascontiguousarray(batch))).double()
            total += float(x.sum()), float(x.square().sum())
            count += x.numel()
        return float(total[0] / count), float(total[1] / count)

    @property
    def classes(self) -> list[str] | None:
        """Class names (of points: the law's modes) by label, or None."""
        return self.metadata.classes

    @property
    def nbytes(self) -> int:
        """Bytes of all samples."""
        return self.array.nbytes

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """[len(rows), *shape]; see ShardedArray."""
        return self.array[rows]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All samples in order: [<= size, *shape]."""
        return self.array.batches(size)


class ImageSet(SampleSet):
    """Images: uint8 [n, C, S, S]."""

    Metadata, dtype, noun = ProcessedMetadata, np.uint8, "images"

    @property
    def random_flip(self) -> bool:
        """Whether training mirrors images left-right half of the time."""
        return self.metadata.random_flip


def raw_description(raw: Path, *, source: str, keys: set[str], noun: str) -> dict[str, Any]:
    """metadata.json of a raw form of points or text. Raises DataError where it lacks a key or is of another source."""
    path = raw / METADATA
    try:
        described = read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing; run `dvc repro fetch`") from error
    if not isinstance(described, dict) or not keys <= described.keys() or not isinstance(described["name"], str):
        raise _broken(path, f"does not describe raw {noun}", "fetch")
    if described["source"] != source:
        raise _broken(raw, f"holds {in_a_line(described['source'])}, not {source}", "fetch")
    return described


def row_digests(rows: np.ndarray) -> np.ndarray:
    """64 bits for the bytes of each row of [m, ...]: uint64 [m]; a million rows have two by chance in 3e-8 of cases."""
    digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in np.ascontiguousarray(rows))
    return np.frombuffer(digests, "<u8")


def count_duplicates(digests: np.ndarray) -> int:
    """How many of some rows, by their digests [n], are equal to an earlier one."""
    return len(digests) - len(np.unique(digests))


def duplicates_in_words(duplicates: Mapping[str, int], counts: Mapping[str, int], *, noun: str) -> str:
    """What StoredMetadata.duplicates says, in one line. counts: of "train" and "test"."""
    return (
        f"{duplicates['train']:,} of {counts['train']:,} train {noun} and {duplicates['test']:,} of "
        f"{counts['test']:,} test {noun} repeat another of their split; {duplicates['test_in_train']:,} test {noun} "
        "are in the train split too"
    )


def _broken(path: Path, what: str, stage: str) -> DataError:
    return DataError(f"{path}: {what}; run `dvc repro {stage}` again")


def _open_again(paths: tuple[Path, ...], stage: str, row_shape: tuple[int, ...], dtype: np.dtype) -> ShardedArray:
    return ShardedArray(paths, stage=stage, row_shape=row_shape, dtype=dtype)


def _map(path: Path, stage: str) -> np.memmap:
    """One .npy file, mapped read-only. Raises DataError where it is missing or not as long as it says."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise _broken(path, "is missing", stage) from error
    # NumPy parses the header as Python text, and takes a file that begins as a zip archive does for one.
    except Exception as error:
        raise _broken(path, f"is damaged ({in_a_line(error)})", stage) from error
    if not isinstance(array, np.memmap) or array.ndim < 1:
        raise _broken(path, "is not an array of rows in a .npy file", stage)
    if path.stat().st_size != array.offset + array.nbytes:
        raise _broken(path, "is longer than its header says", stage)
    return array


def _labels(path: Path, count: int, classes: int) -> np.ndarray:
    """int64 [count], each in 0..classes-1, loaded."""
    labels = np.array(_map(path, _STAGE))
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise _broken(path, f"holds {labels.dtype} {list(labels.shape)}, not int64 [{count}]", _STAGE)
    if count and (labels.min() < 0 or labels.max() >= classes):
        raise _broken(path, f"holds labels {labels.min()}..{labels.max()}, not 0..{classes - 1}", _STAGE)
    return labels
