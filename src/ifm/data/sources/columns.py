"""Columns of encoded images and labels, as `hub` and `parquet` have them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ifm.data.sources.base import DataSection, Encoded, FetchError, content
from ifm.errors import in_a_line
from ifm.files import readable


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The open file. Turns what a damaged one raises into a FetchError that names it."""
    try:
        # Arrow itself opens no file whose name is not UTF-8.
        with open(path, "rb") as file, pq.ParquetFile(file) as opened:
            yield opened
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        named = readable(str(path))
        raise FetchError(f"{named}: cannot be read as parquet ({in_a_line(error)}); bring the file again") from error


def media_column(config: DataSection) -> tuple[str, str]:
    """The key that names the column of encoded files, and the column: of recordings, or of images."""
    if config.audio.column is not None:
        return "audio.column", config.audio.column
    return "image_column", config.image_column


def check(schema: pa.Schema, config: DataSection, *, origin: str) -> None:
    """Raises FetchError where a column is missing or the image column holds no encoded images."""
    key, media = media_column(config)
    wanted = {key: media, "label_column": config.label_column}
    for name, column in wanted.items():
        if column is not None and column not in schema.names:
            raise FetchError(f"data.{name} = {column!r}: no such column; {origin} has {schema.names}")
    kind = schema.field(media).type
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if not fields & {"bytes", "path"} and not _holds_bytes_or_paths(kind):
        what = "images" if key == "image_column" else "recordings"
        raise FetchError(f"data.{key} = {media!r}: holds {kind}, not encoded {what}")


def _holds_bytes_or_paths(kind: pa.DataType) -> bool:
    t = pa.types
    tests = (t.is_binary, t.is_large_binary, t.is_binary_view, t.is_string, t.is_large_string)
    return any(test(kind) for test in tests)


def class_names(schema: pa.Schema, config: DataSection) -> list[str] | None:
    """The names that the `datasets` library's description of the label column gives, or None."""
    try:
        description = json.loads(schema.metadata[b"huggingface"])["info"]["features"][config.label_column]
        names = description["names"] if description["_type"] == "ClassLabel" else None
    except (TypeError, KeyError, ValueError):
        return None
    return names and [str(name) for name in names]


def same_names(found: list[list[str] | None], config: DataSection, *, origin: str) -> list[str] | None:
    """The one list of names. Raises FetchError where files or splits number the classes differently."""
    if any(names != found[0] for names in found):
        raise FetchError(
            f"data.label_column = {config.label_column!r}: the files or splits of {origin} disagree "
            "on the class names; write them again with one list of names"
        )
    return found[0]


def encoded(cell: Any, folder: Path | None, *, within: list[Path]) -> Encoded:
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
        data = content(file) if _lies_within(file, within) else None
    return Encoded(data, readable(PurePath(path).name))


def _lies_within(file: Path, folders: list[Path]) -> bool:
    """Whether it is a file, no pipe or device, and lies in one of the folders when its links are followed."""
    try:
        found = file.resolve()
        return found.is_file() and any(found.is_relative_to(folder) for folder in folders)
    except (OSError, RuntimeError, ValueError):  # a loop of links; a zero byte
        return False
