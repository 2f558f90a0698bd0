"""From encoded images to arrays of one size: decode, orient, flatten, crop, resize, split."""

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from ifm.config import DataConfig
from ifm.data.arrays import (
    METADATA,
    DataError,
    ProcessedMetadata,
    ProcessedSplit,
    count_duplicates,
    row_digests,
)
from ifm.data.needs import Counts
from ifm.errors import in_a_line
from ifm.files import fresh_folder, read_json
from ifm.progress import progress
from ifm.random import stream

SHARD_BYTES = 2**30
WORKERS = min(8, os.cpu_count() or 1)
# Named, because Pillow has openers that start other programs (EPS) or that nobody's image files need.
_AVIF = ("AVIF",) if find_spec("PIL._avif") else ()  # from Pillow 11.3 on, as it was built
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *_AVIF)
_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}
_GREY, _DEEP_GREY = ("1", "L"), ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TIFF_PHOTOMETRIC = 262
_COLOUR = ("P", "RGB", "RGBX", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV")
_BLOCK_BYTES = 2**24
RAW_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # a cell of the raw form's image column


# One image


def decode(data: bytes) -> Image.Image:
    """Encoded bytes -> the first frame, fully loaded. Raises ValueError with the reason where that fails."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{pixels} pixels are more than the limit of {Image.MAX_IMAGE_PIXELS}")
        if image.mode in _DEEP_GREY and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0:
            # Pillow would take it for black.
            raise ValueError("a 16-bit TIFF whose zero is white; save it with zero as black")
        image.load()
    # Pillow's decoders answer damaged bytes with nearly any exception.
    except Exception as error:
        # Pillow names the in-memory file by its address, which says nothing and differs from run to run.
        raise ValueError(_unknown(data) if "cannot identify" in str(error) else in_a_line(error)) from error
    return image


def _unknown(data: bytes) -> str:
    """What to say of bytes that no decoder takes, by their beginning."""
    if not data:
        return "an empty file"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a TIFF with pixels of a kind that Pillow does not read"
    if data[4:12] in (b"ftypavif", b"ftypavis") and not _AVIF:
        return "AVIF, which this Pillow has no decoder for; version 11.3 or newer has"
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        return "HEIC or another format that Pillow does not read; convert it to PNG or JPEG"
    return "no known image format"


def has_more_frames(image: Image.Image) -> bool:
    """Whether a decoded file is an animation or a stack, of which the first picture was taken."""
    try:
        # Telephones put a second picture, for depth or brightness, behind a JPEG.
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame is damaged
        return False


def deep_maximum(image: Image.Image) -> int | None:
    """The highest value of a grey image with more than 8 bits, else None."""
    return int(np.asarray(image).max()) if image.mode in _DEEP_GREY else None


def flatten(image: Image.Image) -> Image.Image:
    """Upright, 8 bits, no palette, what is transparent on white: mode L or RGB.

    Raises ValueError for a pixel mode with no such meaning, as floating point.
    """
    image = _upright(image)
    if image.mode in _DEEP_GREY:
        return _eight_bits(image)
    if image.mode not in _GREY + _COLOUR:
        allowed = ", ".join(_GREY + _DEEP_GREY + _COLOUR)
        raise ValueError(f"pixel mode {image.mode} is not supported; allowed: {allowed}; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in _GREY else "RGB")


def to_array(image: Image.Image, *, size: int, channels: int, resample: str) -> np.ndarray:
    """Any image -> uint8 [C, S, S]: flatten, grey or RGB, largest centred square, antialiased resize.

    An image that has the right size and channels already keeps its pixels. Raises ValueError as `flatten`.
    """
    image = flatten(image).convert({1: "L", 3: "RGB"}[channels])
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), _FILTERS[resample])
    array = np.asarray(image)  # [S, S] or [S, S, 3]
    return np.ascontiguousarray(np.atleast_3d(array).transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says. EXIF that cannot be read has no orientation: the pixels stand."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey [0, 65535] -> L by round(v / 257): white stays white, a transparent grey becomes white."""
    values = np.asarray(image).astype(np.int64)  # [H, W]
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixel mode {image.mode} holds {values.min()}..{values.max()}, outside 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


# The whole data set


@dataclass(frozen=True)
class _Placement:
    """Where the rows of one raw split go: row i to `position[i]` of test or train."""

    is_test: np.ndarray  # bool [n]
    position: np.ndarray  # int64 [n]


@dataclass(frozen=True)
class _Statistics:
    """Of one written split. histogram: int64 [C, 256]; digests: uint64 [n]."""

    histogram: np.ndarray
    sha256: str
    digests: np.ndarray


def preprocess(
    config: DataConfig, raw: Path, out: Path, *, check: Callable[[Counts], None] | None = None
) -> ProcessedMetadata:
    """Makes the processed form (see ifm.data.arrays) in `out` of the raw form in `raw`.

    The same input gives the same bytes. check: is told how much there is, before any image is decoded. Raises
    ValueError where `raw` is missing, damaged or too small, or its training images are all the same; `out` stays as it
    was then.
    """
    source = _raw_metadata(raw)
    _check_counts(raw, source["splits"])
    placements = _place(source["splits"], config)
    if check is not None:
        check(Counts(_counts(placements), source["classes"], _class_counts(raw, placements, source["classes"])))
    with fresh_folder(out) as folder:
        writers = {
            name: _SplitWriter(folder, name, count, config, labelled=source["classes"] is not None)
            for name, count in _counts(placements).items()
        }
        total = sum(source["splits"].values())
        with (
            ThreadPoolExecutor(WORKERS) as pool,
            progress(total=total, label="preprocess", unit="img") as bar,
        ):
            for split, placement in placements.items():
                start = 0
                for part in _parts(raw, split, len(placement.position), config, classes=source["classes"]):
                    rows = slice(start, start + len(part))
                    start += len(part)
                    _spread(part, placement.is_test[rows], placement.position[rows], writers, pool, config)
                    bar.update(len(part))
        statistics = {name: writer.finish() for name, writer in writers.items()}
        train, test = (statistics[name].digests for name in ("train", "test"))
        if len(train) > 1 and (train == train[0]).all():
            raise DataError(
                f"{raw}: all {len(train)} training images are the same at data.image_size = {config.image_size}: there "
                "is nothing to learn and no figure to have; give images that differ"
            )
        mean, std = _moments(statistics["train"].histogram)
        metadata = ProcessedMetadata(
            source=source["source"],
            name=source["name"],
            image_size=config.image_size,
            channels=config.channels,
            classes=source["classes"],
            random_flip=config.random_flip,
            splits={name: writer.described(statistics[name], source["classes"]) for name, writer in writers.items()},
            mean=mean,
            std=std,
            test_in_train=int(np.isin(test, train, kind="sort").sum()),
        )
        metadata.write(folder)
    return metadata


def _spread(
    part: pa.Table,
    is_test: np.ndarray,
    position: np.ndarray,
    writers: dict[str, "_SplitWriter"],
    pool: ThreadPoolExecutor,
    config: DataConfig,
) -> None:
    """Decodes raw rows for the writer of their split. is_test bool [m], position int64 [m]."""
    to_row = partial(_to_row, size=config.image_size, channels=config.channels, resample=config.resample)
    images = np.stack(list(pool.map(to_row, part.column("image").to_pylist())))  # [m, C, S, S]
    labels = part.column("label").to_numpy() if "label" in part.column_names else None
    for name, writer in writers.items():
        here = is_test == (name == "test")
        writer.write(position[here], images[here], None if labels is None else labels[here])


def _raw_metadata(raw: Path) -> dict[str, Any]:
    try:
        found = read_json(raw / METADATA)
    except FileNotFoundError as error:
        raise DataError(f"{raw / METADATA}: is missing; run `dvc repro fetch`") from error
    if not _describes_images(found):
        raise DataError(f"{raw / METADATA}: does not describe raw images; run `dvc repro fetch` again")
    return found


def _describes_images(found: Any) -> bool:
    if not isinstance(found, dict) or not {"source", "name", "classes", "splits"} <= found.keys():
        return False
    classes, splits = found["classes"], found["splits"]
    return (
        isinstance(found["source"], str)
        and isinstance(found["name"], str | None)
        and (classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes)))
        and isinstance(splits, dict)
        and splits.keys() in ({"train"}, {"train", "test"})
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in splits.values())
    )


def _place(splits: dict[str, int], config: DataConfig) -> dict[str, _Placement]:
    """The source's own test split where it has one, else the first part of a seeded shuffle."""
    if "test" in splits:
        return {name: _Placement(np.full(n, name == "test"), np.arange(n)) for name, n in splits.items()}
    n = splits["train"]
    if n < 2:
        raise DataError(f"a train and a test split need at least 2 images, the data set has {n}")
    tests = min(max(round(config.test_fraction * n), 1), n - 1)
    order = stream(config.split_seed, "split").permutation(n)
    is_test, position = np.zeros(n, bool), np.empty(n, np.int64)
    is_test[order[:tests]] = True
    position[order[:tests]] = np.arange(tests)
    position[order[tests:]] = np.arange(n - tests)
    return {"train": _Placement(is_test, position)}


def _counts(placements: dict[str, _Placement]) -> dict[str, int]:
    tests = sum(int(p.is_test.sum()) for p in placements.values())
    return {"train": sum(len(p.is_test) for p in placements.values()) - tests, "test": tests}


def _class_counts(raw: Path, placements: dict[str, _Placement], classes: list[str] | None) -> list[int] | None:
    """Training images of each class, from the labels alone."""
    if classes is None:
        return None
    counts = np.zeros(len(classes), np.int64)
    for split, placement in placements.items():
        start = 0
        for path in sorted(raw.glob(f"{split}-*.parquet")):
            with _undamaged(path), pq.ParquetFile(path) as file:
                if "label" not in file.schema_arrow.names:
                    return None  # what is wrong with the rows is said where they are read
                labels = file.read(columns=["label"]).column("label").to_numpy()
            here = labels[~placement.is_test[start : start + len(labels)]]
            start += len(labels)
            if len(here) and (here.dtype != np.int64 or here.min() < 0 or here.max() >= len(classes)):
                return None
            counts += np.bincount(here.astype(np.int64), minlength=len(classes))
    return counts.tolist()


def _check_counts(raw: Path, splits: dict[str, int]) -> None:
    """Raises DataError where the files hold other numbers of rows, before memory is taken for them."""
    for split, count in splits.items():
        seen = 0
        for path in sorted(raw.glob(f"{split}-*.parquet")):
            with _undamaged(path), pq.ParquetFile(path) as file:
                seen += file.metadata.num_rows
        if seen != count:
            raise DataError(
                f"{raw / METADATA}: counts {count} {split} images, the files hold {seen}; run `dvc repro fetch` again"
            )


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into a DataError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: is damaged ({in_a_line(error)}); run `dvc repro fetch` again") from error


def _check_columns(path: Path, part: pa.Table, classes: list[str] | None) -> None:
    """Raises DataError where rows are not as `fetch` writes them: image {bytes, path}, label 0..classes-1."""
    fault = None
    if "image" not in part.column_names or part.column("image").type != RAW_IMAGE:
        fault = f"has no column image of {RAW_IMAGE}"
    elif classes is not None:
        if "label" not in part.column_names or part.column("label").type != pa.int64():
            fault = "has no column label of int64"
        else:
            labels = part.column("label")
            ends = (pc.min(labels).as_py(), pc.max(labels).as_py())
            if labels.null_count or (len(part) and (ends[0] < 0 or ends[1] >= len(classes))):
                missing = f" ({labels.null_count} missing)" if labels.null_count else ""
                fault = f"has labels {ends[0]}..{ends[1]}{missing}, not 0..{len(classes) - 1}"
    if fault:
        raise DataError(f"{path}: {fault}; run `dvc repro fetch` again")


def _parts(raw: Path, split: str, count: int, config: DataConfig, *, classes: list[str] | None) -> Iterator[pa.Table]:
    """The raw rows of a split in order, few enough at a time to hold: `fetch` keeps the row groups small."""
    rows = max(WORKERS, _BLOCK_BYTES // int(np.prod(_row_shape(config))))
    seen = 0
    for path in sorted(raw.glob(f"{split}-*.parquet")):
        with _undamaged(path), pq.ParquetFile(path) as file:
            for i in range(file.num_row_groups):
                group = file.read_row_group(i)
                _check_columns(path, group, classes)
                seen += len(group)
                if seen <= count:
                    yield from (group.slice(start, rows) for start in range(0, len(group), rows))
    if seen != count:
        raise DataError(
            f"{raw / METADATA}: counts {count} {split} images, the files hold {seen}; run `dvc repro fetch` again"
        )


def _row_shape(config: DataConfig) -> tuple[int, int, int]:
    return config.channels, config.image_size, config.image_size


def _to_row(cell: dict[str, Any], *, size: int, channels: int, resample: str) -> np.ndarray:
    """One cell of the raw image column -> uint8 [C, S, S]."""
    try:
        if cell is None or cell["bytes"] is None:
            raise ValueError("no bytes")
        return to_array(decode(cell["bytes"]), size=size, channels=channels, resample=resample)
    except ValueError as error:
        cell = cell or {"path": None}
        raise DataError(f"image {cell['path']!r}: {error}; run `dvc repro fetch` again") from error


class _SplitWriter:
    """The shards and labels of one split, filled in any order. The shards are mapped: they need no memory."""

    def __init__(self, folder: Path, split: str, count: int, config: DataConfig, *, labelled: bool) -> None:
        row_shape = _row_shape(config)
        self._per_shard = max(1, SHARD_BYTES // int(np.prod(row_shape)))
        self._count = count
        starts = range(0, count, self._per_shard)
        self._names = [f"{split}-{i:05d}.npy" for i in range(len(starts))]
        self._shards = [
            _new_shard(folder / name, (min(self._per_shard, count - start), *row_shape))
            for name, start in zip(self._names, starts, strict=True)
        ]
        self._labels = np.empty(count, np.int64) if labelled else None
        self._labels_path = folder / f"{split}-labels.npy"

    def write(self, positions: np.ndarray, images: np.ndarray, labels: np.ndarray | None) -> None:
        """images uint8 [m, C, S, S] and labels int64 [m] to rows positions int64 [m]."""
        shard_of, row = np.divmod(positions, self._per_shard)
        for i in np.unique(shard_of):
            self._shards[i][row[shard_of == i]] = images[shard_of == i]
        if self._labels is not None:
            self._labels[positions] = labels

    def finish(self) -> _Statistics:
        """Writes what is left, and reads the split once for its statistics."""
        channels, *rest = self._shards[0].shape[1:]
        rows = max(1, _BLOCK_BYTES // int(np.prod([channels, *rest])))
        histogram, digest, digests = np.zeros((channels, 256), np.int64), hashlib.sha256(), []
        for shard in self._shards:
            shard.flush()
            for start in range(0, len(shard), rows):
                block = np.ascontiguousarray(shard[start : start + rows])
                digest.update(block)
                digests.append(row_digests(block))
                for c in range(channels):
                    histogram[c] += np.bincount(block[:, c].ravel(), minlength=256)
        if self._labels is not None:
            np.save(self._labels_path, self._labels, allow_pickle=False)
            digest.update(self._labels.astype("<i8"))
        return _Statistics(histogram, digest.hexdigest(), np.concatenate(digests))

    def described(self, found: _Statistics, classes: list[str] | None) -> ProcessedSplit:
        """The split's entry in metadata.json."""
        return ProcessedSplit(
            count=self._count,
            shards=self._names,
            class_counts=None if classes is None else np.bincount(self._labels, minlength=len(classes)).tolist(),
            sha256=found.sha256,
            duplicates=count_duplicates(found.digests),
        )


def _new_shard(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A .npy file of zeros, uint8, mapped for writing. Raises OSError where the disk has no room for it."""
    shard = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    # A full disk met while writing through the map would kill the process without a word.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, shard.offset + shard.nbytes)
    return shard


def _moments(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel in [-1, 1] from counts int64 [C, 256].

    In whole numbers up to the last division, so that every machine writes the same digits.
    """
    mean, std = [], []
    for counts in histogram.tolist():
        n = sum(counts)
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        mean.append(first / n / 127.5 - 1)
        std.append(math.sqrt((n * second - first * first) / (n * n)) / 127.5)
    return mean, std
