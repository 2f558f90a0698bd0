"""From raw recordings to spectrograms float16 [n, C, F, T], normalised by the statistics of the train split."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ifm.config import DataConfig
from ifm.data import raw as raw_form
from ifm.data.ahead import Workers
from ifm.data.arrays import DataError, ProcessedSplit, SampleSet, StoredMetadata, count_duplicates, row_digests
from ifm.data.decoding import WORKERS
from ifm.data.needs import Counts
from ifm.data.placing import counts_of, place
from ifm.data.recordings import prepared, soundfile
from ifm.files import fresh_folder
from ifm.modalities.spectrograms import Normalised, Spectrograms
from ifm.progress import progress

SHARD_BYTES = 2**30
BLOCK_ROWS = 256
DIGITS = 6  # significant, of the recorded statistics
PREPARED = "prepared"  # under "sound": the keys of data.audio by which recordings of any form became sounds of one
PREPARES = ("sample_rate", "seconds", "longer", "shorter", "shortest", "trim_db", "normalise")


@dataclass(frozen=True)
class SoundMetadata(StoredMetadata):
    """metadata.json of processed sounds. sound: `ifm.modalities.spectrograms.Normalised.describe`."""

    modality: str
    source: str
    name: str | None
    shape: list[int]  # [C, F, T]
    classes: list[str] | None
    sound: dict[str, Any]
    splits: dict[str, ProcessedSplit]
    test_in_train: int | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, F, T)."""
        return tuple(self.shape)


class SoundSet(SampleSet):
    """Sounds: float16 [n, C, F, T]."""

    Metadata, dtype, noun = SoundMetadata, np.float16, "sounds"


def preprocess_sound(
    config: DataConfig, raw: Path, out: Path, *, check: Callable[[Counts], None] | None = None
) -> SoundMetadata:
    """Makes the processed form in `out` of the raw form in `raw`; the same input gives the same bytes.

    check: is told how much there is, before anything is decoded. Raises DataError where `raw` is missing, damaged or
    too small, or its training sounds are all the same; `out` stays as it was then.
    """
    soundfile()  # said before any work
    source = raw_form.read_metadata(raw)
    raw_form.check_counts(raw, source["splits"])
    placements = place(source["splits"], config)
    counts = counts_of(placements)
    if check is not None:
        is_test = {split: placement.is_test for split, placement in placements.items()}
        check(Counts(counts, source["classes"], raw_form.class_counts(raw, is_test, source["classes"])))
    form = Spectrograms.of(config.audio)
    with fresh_folder(out) as folder:
        found = {name: np.empty((count, *form.shape), np.float16) for name, count in counts.items()}
        labels = {name: np.empty(count, np.int64) for name, count in counts.items()}
        mean, deviation = _statistics(config, raw, source, placements, form)
        normalised = Normalised(form, mean, deviation)
        for split, rows, waves, of_rows in _waves(config, raw, source, placements, label="preprocess"):
            arrays = normalised.at_rest(form.analyse(waves))
            placed = placements[split]
            for name in counts:
                here = placed.is_test[rows] == (name == "test")
                found[name][placed.position[rows][here]] = arrays[here]
                if of_rows is not None:
                    labels[name][placed.position[rows][here]] = of_rows[here]
        digests = {name: row_digests(arrays) for name, arrays in found.items()}
        train = digests["train"]
        if len(train) > 1 and (train == train[0]).all():
            raise DataError(
                f"{raw}: all {len(train)} training sounds are the same: there is nothing to learn and no figure to "
                "have; give sounds that differ"
            )
        splits = {
            name: _write_split(folder, name, arrays, labels[name], source["classes"], count_duplicates(digests[name]))
            for name, arrays in found.items()
        }
        metadata = SoundMetadata(
            modality="sound",
            source=source["source"],
            name=source["name"],
            shape=list(form.shape),
            classes=source["classes"],
            sound=normalised.describe() | {PREPARED: {name: getattr(config.audio, name) for name in PREPARES}},
            splits=splits,
            test_in_train=int(np.isin(digests["test"], train, kind="sort").sum()),
        )
        metadata.write(folder)
    return metadata


def _waves(
    config: DataConfig, raw: Path, source: dict[str, Any], placements: dict[str, Any], *, label: str
) -> Iterator[tuple[str, slice, np.ndarray, np.ndarray | None]]:
    """Of every raw split in order: its name, some rows, their sounds [m, samples], and labels int64 [m] or None."""
    total = sum(source["splits"].values())
    with Workers(total, threads=WORKERS) as workers, progress(total=total, label=label, unit="sound") as bar:
        for split, placement in placements.items():
            start, labels = 0, deque()

            def cells(split: str = split, count: int = len(placement.position), labels: deque = labels) -> Iterator:
                for part in raw_form.parts(raw, split, count, rows=BLOCK_ROWS, classes=source["classes"]):
                    labels.append(part.column("label").to_numpy() if "label" in part.column_names else None)
                    yield part.column("image").to_pylist()

            to_sound = partial(_to_sound, audio=config.audio)
            for _, waves in workers.each(to_sound, cells(), size=_bytes, gather=np.stack):
                yield split, slice(start, start + len(waves)), waves, labels.popleft()
                start += len(waves)
                bar.update(len(waves))


def _to_sound(cell: dict[str, Any], *, audio: Any) -> np.ndarray:
    """One cell of the raw form -> float64 [samples]."""
    try:
        if cell is None or cell["bytes"] is None:
            raise ValueError("no bytes")
        return prepared(cell["bytes"], audio)
    except ValueError as error:
        cell = cell or {"path": None}
        raise DataError(f"sound {cell['path']!r}: {error}; run `dvc repro fetch` again") from error


def _bytes(group: list[dict[str, Any]]) -> int:
    return sum(len((cell or {}).get("bytes") or b"") for cell in group)


def _statistics(
    config: DataConfig, raw: Path, source: dict[str, Any], placements: dict[str, Any], form: Spectrograms
) -> tuple[np.ndarray, float]:
    """Of the train split: the mean of each channel and frequency [C, F], and the standard deviation around it."""
    first, second, count = np.zeros(form.shape[:2]), np.zeros(form.shape[:2]), 0
    for split, rows, waves, _ in _waves(config, raw, source, placements, label="statistics"):
        arrays = form.analyse(waves[~placements[split].is_test[rows]]).astype(np.float64)
        first += arrays.sum(axis=(0, 3))
        second += (arrays**2).sum(axis=(0, 3))
        count += len(arrays) * form.shape[2]
    mean = np.array([[float(f"{value:.{DIGITS}g}") for value in row] for row in first / count])
    inside = slice(0, form.frequencies)
    variance = (second / count - 2 * mean * first / count + mean**2)[:, inside].mean()
    deviation = float(f"{np.sqrt(max(float(variance), 0)):.{DIGITS}g}")
    if not deviation > 0:
        raise DataError(f"{raw}: the training sounds are silent; give others")
    return mean, deviation


def _write_split(
    folder: Path, name: str, arrays: np.ndarray, labels: np.ndarray, classes: list[str] | None, duplicates: int
) -> ProcessedSplit:
    """Shards and labels of one split. The digest is over the arrays' bytes, then the labels' as little-endian."""
    digest, shards = hashlib.sha256(), []
    per_shard = max(1, SHARD_BYTES // arrays[0].nbytes)
    for start in range(0, len(arrays), per_shard):
        block = np.ascontiguousarray(arrays[start : start + per_shard], "<f2")
        shards.append(f"{name}-{len(shards):05d}.npy")
        np.save(folder / shards[-1], block, allow_pickle=False)
        digest.update(block)
    counts = None
    if classes is not None:
        np.save(folder / f"{name}-labels.npy", labels, allow_pickle=False)
        digest.update(labels.astype("<i8"))
        counts = np.bincount(labels, minlength=len(classes)).tolist()
    return ProcessedSplit(
        count=len(arrays), shards=shards, class_counts=counts, sha256=digest.hexdigest(), duplicates=duplicates
    )
