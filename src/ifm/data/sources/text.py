"""Text: local files, or a column of strings in parquet files (`text`) or in a data set of the Hub (`text_hub`)."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ifm.data.local import relative
from ifm.data.sources.base import SHOWN, DataSection, FetchError, Source, Texts, split_names
from ifm.errors import in_a_line
from ifm.files import readable

SUFFIXES = (".txt", ".text", ".md", ".parquet")


def read(config: DataSection) -> Texts:
    """The files of each split, sorted by name: a document each, or one in each row of a parquet file."""
    return Texts({name: _documents(files, config) for name, files in _files(config).items()})


def _files(config: DataSection) -> dict[str, list[Path]]:
    place = Path(config.path)
    if place.is_file():
        if config.test_split is not None:
            raise FetchError(
                f"data.path = {config.path!r}: is one file, which is the train split; set data.test_split: null or "
                "give the folder that holds the files of both splits"
            )
        return {"train": [place]}
    if not place.is_dir():
        raise FetchError(f"data.path = {config.path!r}: no such file or folder")
    found = _found(place)
    if config.test_split is None:
        # The files of data.train_split where some are called so, else all.
        files = {"train": [file for file in found if file.name.startswith(config.train_split)] or found}
    else:
        files = {name: [f for f in found if f.name.startswith(split)] for name, split in split_names(config).items()}
    for name, here in files.items():
        if not here:
            named = f"data.{name}_split = {split_names(config)[name]!r}: no such file in " if len(files) > 1 else ""
            has = ", ".join(readable(file.name) for file in found[:SHOWN]) or f"no {', '.join(SUFFIXES)}"
            raise FetchError(f"{named}data.path = {config.path!r}: it has {has}")
    return files


def _found(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place] if place.is_file() else []
    files = (f for f in place.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
    return sorted(
        file for file in files if not file.name.startswith(".") and not file.name.lower().startswith("readme")
    )


def _documents(files: Iterable[Path], config: DataSection) -> list[bytes]:
    documents = []
    for file in files:
        if file.suffix.lower() == ".parquet":
            documents += _rows(file, config)
            continue
        try:
            documents.append(_checked(file.read_bytes(), config, named=readable(str(file))))
        except OSError as error:
            raise FetchError(f"{readable(str(file))}: cannot be read ({error.strerror})") from error
    return documents


def _checked(document: bytes, config: DataSection, *, named: str) -> bytes:
    """The bytes. Where characters are counted: UTF-8 without a mark at the start, and lines that end in LF."""
    if config.text.unit != "characters":
        return document
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FetchError(
            f"{named}: is not UTF-8 (byte {error.start}); save it so, or set data.text.unit: bytes"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n").encode()


def _rows(file: Path, config: DataSection) -> list[bytes]:
    """The rows of data.text.column that are not null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    named, column = readable(str(file)), config.text.column
    try:
        schema = pq.read_schema(file)
        if column in schema.names:
            cells = pq.read_table(file, columns=[column]).column(0)
    except Exception as error:  # damaged files: ArrowException, OSError and more
        raise FetchError(f"{named}: cannot be read as parquet ({in_a_line(error)})") from error
    _check_column(schema, column, named)
    if pa.types.is_large_string(cells.type):
        cells = cells.cast(pa.large_binary())
    elif pa.types.is_string(cells.type):  # which nobody has checked to be UTF-8
        cells = cells.cast(pa.binary())
    return [
        _checked(cell if isinstance(cell, bytes) else cell.encode(), config, named=f"{named}, row {i}")
        for i, cell in enumerate(cells.to_pylist())
        if cell is not None
    ]


def _check_column(schema: Any, column: str, named: str) -> None:
    import pyarrow as pa

    if column not in schema.names:
        raise FetchError(f"data.text.column = {column!r}: no such column; {named} has {schema.names}")
    kind, t = schema.field(column).type, pa.types
    if not any(test(kind) for test in (t.is_string, t.is_large_string, t.is_string_view, t.is_binary)):
        raise FetchError(f"data.text.column = {column!r}: holds {kind}, not text; {named} has {schema.names}")


def read_hub(config: DataSection) -> Texts:
    """data.text.column of the splits that data.train_split and data.test_split name."""
    from ifm.data.sources.hub import load_splits

    parts, commit = load_splits(config)
    column, found = config.text.column, {}
    for name, part in parts.items():
        _check_column(part.features.arrow_schema, column, HUB.origin(config))
        cells = part.select_columns([column])
        found[name] = [
            row[column] if isinstance(row[column], bytes) else row[column].encode()
            for row in cells
            if row[column] is not None
        ]
    return Texts(found, commit)


def files(place: Path, data: Mapping[str, Any]) -> Iterator[tuple[bytes, Path]]:
    """The files that may be read."""
    return relative(place, [file.relative_to(place) for file in _found(place)])


SOURCE = Source(
    "text",
    read,
    modality="text",
    key="path",
    files=files,
    columns=False,
    labelled=False,
    labels_key=None,
    section="text",
)
HUB = Source(
    "text_hub",
    read_hub,
    modality="text",
    key="name",
    columns=False,
    labelled=False,
    labels_key=None,
    revisions=True,
    section="text",
)
