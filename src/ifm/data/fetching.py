"""From any source to one raw form.

Images as parquet files (ifm.data.raw), points as arrays (ifm.data.points), text as it is
(ifm.data.text).
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ifm.config import DataConfig
from ifm.data import recordings, text
from ifm.data.ahead import Workers
from ifm.data.arrays import METADATA
from ifm.data.decoding import WORKERS
from ifm.data.labels import resolve
from ifm.data.points import write_raw
from ifm.data.raw import Checked, Writer, checked
from ifm.data.recordings import soundfile
from ifm.data.sources import SOURCES, Encoded, FetchError
from ifm.data.sources.base import SHOWN, few
from ifm.data.sources.columns import media_column
from ifm.files import fresh_folder, readable, write_json
from ifm.progress import progress
from ifm.random import stream

# What is held in memory at once, and so the size of a row group.
_CHUNK_ROWS, _CHUNK_BYTES = 256, 2**26
_DARK = 2**14  # 16-bit images below are called dark: cameras and microscopes count to 4095 or 16383


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
    lengths: str | None = None  # of recordings, in words
    commit: str | None = None
    revision: str | None = None
    noun: str = "images"

    def in_a_line(self) -> str:
        """What was taken and what was not."""
        taken = sum(self.splits.values())
        counts = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        apart = f" ({counts})" if len(self.splits) > 1 else ""
        some = f" of {self.available}" if taken < self.available else ""
        parts = [f"{taken}{some} {self.noun}{apart}"]
        if self.classes is None:
            parts.append("no classes (data.label_column: null)")
        else:
            noun = "class" if len(self.classes) == 1 else "classes"
            parts.append(f"{len(self.classes)} {noun}: {few(self.classes, 10)}")
        if self.skipped:
            parts.append(f"{self.skipped} unreadable, left out")
        if self.several_frames:
            parts.append(f"{self.several_frames} with several frames, of which the first is taken")
        if self.lengths is not None:
            parts.append(self.lengths)
        if self.passed_over:
            kinds = [f"{count} {readable(kind)}" for kind, count in self.passed_over.most_common()]
            parts.append(f"passed over: {few(kinds, 8)}")
        if self.unused:
            parts.append(f"not used: {few(self.unused, 8)}")
        if self.commit:
            parts.append(f"commit {self.commit}, which data.revision: {self.revision or 'null'} stands for")
        return "; ".join(parts)


def _lengths(seconds: list[float], rates: Counter[int], config: DataConfig) -> str | None:
    """How long recordings are, how many are cropped, and their rates; None where there are none."""
    if not seconds:
        return None
    cropped = sum(one > config.audio.seconds for one in seconds)
    cut = " without their silent ends" if config.audio.trim_db is not None else ""
    middle = float(np.median(seconds))
    ends = f"{_plain(min(seconds))} to {_plain(max(seconds))} s"
    return (
        f"{ends} long{cut} (median {_plain(middle)}), {cropped} longer than "
        f"data.audio.seconds = {config.audio.seconds:g}; at {few([f'{rate} Hz' for rate, _ in rates.most_common()], 3)}"
    )


def _plain(seconds: float) -> str:
    """Two digits, or all of a whole number of seconds."""
    return f"{seconds:.2g}" if seconds < 99.5 else f"{seconds:.0f}"


@dataclass(frozen=True)
class FetchedPoints:
    """What was written. splits: points by split. origin: the key that names them, with its value."""

    folder: Path
    splits: dict[str, int]
    origin: str

    def in_a_line(self) -> str:
        """What was taken."""
        return f"{sum(self.splits.values())} points of {self.origin}"


def fetch(config: DataConfig, out: Path) -> FetchResult | FetchedPoints | text.FetchedTexts:
    """Brings the data set of `config.source` to the raw form in folder `out`. Raises FetchError; `out` stays then."""
    return FETCHERS[config.modality.name](config, out)


def fetch_images(config: DataConfig, out: Path) -> FetchResult:
    """See `fetch_encoded`."""
    return fetch_encoded(config, out, look=checked, noun="images")


def fetch_sounds(config: DataConfig, out: Path) -> FetchResult:
    """See `fetch_encoded`."""
    soundfile()  # said before any work
    return fetch_encoded(config, out, look=partial(recordings.checked, audio=config.audio), noun="sounds")


def fetch_encoded(config: DataConfig, out: Path, *, look: Callable[[Encoded], Checked], noun: str) -> FetchResult:
    """Brings images, or other encoded files, to the raw form in `out`. look: decodes one to see if it can be used.

    The encoded bytes stay untouched; each image is decoded once to find the unreadable ones. With max_images,
    rows are drawn before that. Raises FetchError; `out` stays as it was then.
    """
    if config.test_split is not None and config.test_split == config.train_split:
        raise FetchError(
            f"data.test_split = {config.test_split!r}: is the same as data.train_split; name another, or null"
        )
    origin = SOURCES[config.source].origin(config)
    source = SOURCES[config.source].read(config)
    classes, labels = resolve(source, config)
    rows = {name: _subset(split.count, config) for name, split in source.splits.items()}
    for name, split in source.splits.items():
        if not split.count:
            raise FetchError(f"{origin}: the {name} split is empty")
    total = sum(len(r) for r in rows.values())
    with fresh_folder(out) as folder, closing(Writer(folder)) as writer:
        with Workers(total, threads=WORKERS) as workers, progress(total=total, label="fetch", unit=noun) as bar:
            for name, split in source.splits.items():
                start = 0
                for chunk, found in workers.each(look, _chunks(split.images(rows[name])), size=_bytes):
                    here = rows[name][start : start + len(chunk)]
                    start += len(chunk)
                    chosen = None if labels is None else labels[name][here]
                    writer.write(name, here, chunk, chosen, found)
                    bar.update(len(chunk))
                writer.close()
        warnings = source.warnings + _judge(writer, total, config, origin=origin, noun=noun)
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
            lengths=_lengths(writer.seconds, writer.rates, config),
            commit=source.commit,
            revision=config.revision,
            noun=noun,
        )
        write_json(folder / METADATA, _metadata(config, result))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return result


def fetch_points(config: DataConfig, out: Path) -> FetchedPoints:
    """Brings points to the raw form in `out`, as one split."""
    source = SOURCES[config.source]
    found = source.read(config)
    if found.columns is not None and config.max_images is not None:
        rows = _subset(len(found.points), config)
        labels = None if found.labels is None else found.labels[rows]
        found = replace(found, points=found.points[rows], labels=labels)
    name = source.label(config) or _display_name(config.name or config.path)
    write_raw(out, found, source=source.name, name=name)
    return FetchedPoints(out, {"train": len(found.points)}, source.origin(config))


def _metadata(config: DataConfig, result: FetchResult) -> dict[str, Any]:
    source = SOURCES[config.source]
    return {
        "source": config.source,
        "name": source.label(config) or _display_name(config.name or config.path),
        "revision": config.revision,
        **({"commit": result.commit} if source.revisions else {}),
        "image_column": media_column(config)[1] if source.columns else None,
        "label_column": config.label_column if source.columns else None,
        "splits": result.splits,
        "classes": result.classes,
        "skipped": result.skipped,
        "ignored": result.ignored,
        "sha256": result.sha256,
    }


def _display_name(name: str) -> str:
    """Of a local path the last part: a raw form made from the same files is the same wherever they lie."""
    return readable(Path(name).resolve().name if Path(name).exists() else name)


def _subset(count: int, config: DataConfig) -> np.ndarray:
    """Rows to take, ascending: int64 [min(count, max_images)]."""
    if config.max_images is None or config.max_images >= count:
        return np.arange(count)
    return np.sort(stream(config.split_seed, "split", index=1).permutation(count)[: config.max_images])


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


def _bytes(chunk: list[Encoded]) -> int:
    return sum(len(image.data or b"") for image in chunk)


def _judge(writer: Writer, total: int, config: DataConfig, *, origin: str, noun: str) -> list[str]:
    """What to warn of. Raises FetchError where unreadable images are not to be left out, or nothing is left."""
    warnings = []
    if writer.deep and max(writer.deep) < _DARK:
        bits = max(max(writer.deep).bit_length(), 1)
        warnings.append(
            f"{origin}: {len(writer.deep)} grey images of 16 bits hold no value above {max(writer.deep)} of "
            f"65535 and come out nearly black; if they count in {bits} bits, multiply them by {2 ** (16 - bits)}"
        )
    if not writer.faults:
        return warnings
    shown = "; ".join(writer.faults[:SHOWN]) + ("; ..." if len(writer.faults) > SHOWN else "")
    found = f"{origin}: {len(writer.faults)} of {total} {noun} cannot be read: {shown}"
    if config.on_bad_image == "error":
        raise FetchError(f"{found}. Set data.on_bad_image: skip to leave them out")
    empty = [split for split, count in writer.counts.items() if not count]
    if empty:
        raise FetchError(f"{found}. No {noun.removesuffix('s')} is left in the {empty[0]} split")
    return [*warnings, f"{found}; left out"]


def fetch_text(config: DataConfig, out: Path) -> text.FetchedTexts:
    """Brings text to the raw form in `out`."""
    source = SOURCES[config.source]
    name = source.label(config) or _display_name(config.name if source.key == "name" else config.path)
    found = source.read(config)
    if empty := [split for split, documents in found.splits.items() if not any(documents)]:
        raise FetchError(f"{source.origin(config)}: the {empty[0]} split has no text; give some")
    return text.write_raw(out, found, source=source.name, name=name, origin=source.origin(config))


FETCHERS: dict[str, Callable] = {  # by modality
    "images": fetch_images,
    "points": fetch_points,
    "text": fetch_text,
    "sound": fetch_sounds,
}
