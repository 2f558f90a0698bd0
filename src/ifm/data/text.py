"""Text: windows of symbols at rest as uint8 [n, C, L] of 0 and 255, by the same folders and checksums as images.

The raw form is a folder of train.txt (and test.txt where the source has its own test split), the bytes of all documents
with a line break between them, and metadata.json; the processed form is that of ifm.data.arrays.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ifm.config import DataConfig
from ifm.data.arrays import (
    METADATA,
    DataError,
    ProcessedSplit,
    SampleSet,
    StoredMetadata,
    count_duplicates,
    raw_description,
    row_digests,
)
from ifm.data.found import Texts
from ifm.data.needs import Counts
from ifm.files import fresh_folder, new_array, write_json
from ifm.modalities.alphabet import CHARACTERS, ONE_HOT, Alphabet, code_points
from ifm.random import stream

SHARD_BYTES, BLOCK_ROWS = 2**30, 2**14
MOST_SYMBOLS = {"bits": 2**16, "one_hot": 2**10}


@dataclass(frozen=True)
class FetchedTexts:
    """What was written. splits: bytes by split. origin: the key that names them, with its value."""

    folder: Path
    splits: dict[str, int]
    documents: int
    origin: str

    def in_a_line(self) -> str:
        """What was taken."""
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.splits.items())
        return f"{self.documents} document{'s' * (self.documents != 1)} of {self.origin}, in bytes: {sizes}"


def write_raw(out: Path, found: Texts, *, source: str, name: str, origin: str) -> FetchedTexts:
    """Writes the raw form in `out`. source: as in data.source; name: what the data set is called."""
    digest, splits = hashlib.sha256(), {}
    with fresh_folder(out) as folder:
        for split, documents in found.splits.items():
            whole = b"".join(document + b"\n" * (not document.endswith(b"\n")) for document in documents)
            (folder / f"{split}.txt").write_bytes(whole)
            splits[split] = len(whole)
            digest.update(whole)
        described = {"source": source, "name": name, "splits": splits, "sha256": digest.hexdigest()}
        write_json(folder / METADATA, described | ({} if found.commit is None else {"commit": found.commit}))
    return FetchedTexts(out, splits, sum(map(len, found.splits.values())), origin)


@dataclass(frozen=True)
class TextMetadata(StoredMetadata):
    """metadata.json of processed text. text: `Alphabet.described`. stride: symbols between the training windows."""

    source: str
    name: str
    modality: str
    shape: list[int]  # [C, L]
    stride: int
    symbols: dict[str, int]  # how many there are, by split
    splits: dict[str, ProcessedSplit]
    text: dict[str, Any]
    test_in_train: int | None = None
    classes: None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, L)."""
        return tuple(self.shape)


def preprocess_text(
    config: DataConfig, raw: Path, out: Path, *, check: Callable[[Counts], None] | None = None
) -> TextMetadata:
    """Cuts the raw text into windows of data.text.length symbols: the processed form in `out`.

    Without a test split of the source the last data.test_fraction of the text is held out in one piece, so that no test
    window overlaps a training window. Training windows begin every data.text.stride symbols, test windows every
    data.text.length. data.max_images draws of these. The same input gives the same bytes. check: is told how much there
    is, before anything is written. Raises DataError.
    """
    keys, text = {"source", "name", "splits"}, config.text
    described = raw_description(raw, source=config.source, keys=keys, noun="text")
    contents = {name: _content(raw / f"{name}.txt", text.unit) for name in described["splits"]}
    if "test" not in contents:
        cut = round(len(contents["train"]) * (1 - config.test_fraction))
        contents = {"train": contents["train"][:cut], "test": contents["train"][cut:]}
    alphabet = _alphabet(contents, config, raw)
    ids = {name: alphabet.numbers(content) for name, content in contents.items()}
    stride = text.stride or text.length
    windows = {name: _windows(ids[name], stride if name == "train" else text.length, config, raw, name) for name in ids}
    if windows["train"].min() == windows["train"].max():
        raise DataError(f"{raw}: the training text is one symbol, again and again; there is nothing to learn of it")
    if check is not None:
        check(Counts({name: len(rows) for name, rows in windows.items()}, None, None))
    digests = {name: row_digests(rows) for name, rows in windows.items()}
    with fresh_folder(out) as folder:
        metadata = TextMetadata(
            source=described["source"],
            name=described["name"],
            modality="text",
            shape=[alphabet.channels, text.length],
            stride=stride,
            symbols={name: len(content) for name, content in ids.items()},
            splits={
                name: _write_split(folder, name, rows, alphabet, duplicates=count_duplicates(digests[name]))
                for name, rows in windows.items()
            },
            text=alphabet.described(),
            test_in_train=int(np.isin(digests["test"], digests["train"], kind="sort").sum()),
        )
        metadata.write(folder)
    return metadata


def _content(path: Path, unit: str) -> str | bytes:
    try:
        content = path.read_bytes()
        return content.decode("utf-8") if unit == CHARACTERS else content
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run `dvc repro fetch` again") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 (byte {error.start}); set data.text.unit: bytes, or run `dvc repro fetch` again"
        ) from error


def _alphabet(contents: dict[str, str | bytes], config: DataConfig, raw: Path) -> Alphabet:
    """The symbols of both splits: a test text may have one that the training text has not."""
    unit, representation = config.text.unit, config.text.representation
    if unit != CHARACTERS:
        return Alphabet(unit, representation)
    if empty := [split for split, content in contents.items() if not content]:
        raise DataError(f"{raw}: the {empty[0]} split has no text; give some, and run `dvc repro fetch` again")
    points = np.unique(np.concatenate([np.unique(code_points(content)) for content in contents.values()]))
    most = MOST_SYMBOLS[representation]
    if len(points) > most:
        mend = "bits, or data.text.unit: bytes" if representation == ONE_HOT else "one_hot with data.text.unit: bytes"
        raise DataError(
            f"{raw}: has {len(points):,} different characters, data.text.representation: {representation} is for at "
            f"most {most:,}; set it to {mend}"
        )
    if points[0] == 0:
        raise DataError(f"{raw}: has NUL characters, so it is hardly text; remove them, or set data.text.unit: bytes")
    return Alphabet(unit, representation, "".join(map(chr, points)))


def _windows(ids: np.ndarray, stride: int, config: DataConfig, raw: Path, split: str) -> np.ndarray:
    """int32 [n, L]."""
    length = config.text.length
    if len(ids) < length:
        raise DataError(
            f"{raw}: the {split} split has {len(ids):,} {config.text.unit}, data.text.length = {length} needs as many; "
            "lower it, or give more text"
        )
    found = np.lib.stride_tricks.sliding_window_view(ids, length)[::stride]
    if config.max_images is not None and config.max_images < len(found):
        chosen = stream(config.split_seed, "split", index=1).permutation(len(found))[: config.max_images]
        found = found[np.sort(chosen)]
    return np.ascontiguousarray(found)


def _write_split(
    folder: Path, name: str, windows: np.ndarray, alphabet: Alphabet, *, duplicates: int
) -> ProcessedSplit:
    """Shards of one split: windows int32 [n, L] as uint8 [n, C, L]."""
    shape = (alphabet.channels, windows.shape[1])
    digest, shards, per_shard = hashlib.sha256(), [], max(BLOCK_ROWS, SHARD_BYTES // (shape[0] * shape[1]))
    for start in range(0, len(windows), per_shard):
        here = windows[start : start + per_shard]
        shards.append(f"{name}-{len(shards):05d}.npy")
        shard = new_array(folder / shards[-1], np.uint8, (len(here), *shape))
        for i in range(0, len(here), BLOCK_ROWS):
            block = alphabet.encoded(here[i : i + BLOCK_ROWS])
            shard[i : i + BLOCK_ROWS] = block
            digest.update(block)
        shard.flush()
    return ProcessedSplit(
        count=len(windows), shards=shards, class_counts=None, sha256=digest.hexdigest(), duplicates=duplicates
    )


class TextSet(SampleSet):
    """Windows of text: uint8 [n, C, L]."""

    Metadata, dtype, noun = TextMetadata, np.uint8, "texts"
