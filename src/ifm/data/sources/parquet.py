"""Local parquet files, with or without the `datasets` library's description of the columns."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifm.data.local import BARE, SOUNDS, SUFFIXES, image_files, parquet_files, relative
from ifm.data.sources.base import SHOWN, DataSection, Encoded, FetchError, Images, Source, Split, split_names
from ifm.files import readable

if TYPE_CHECKING:
    import numpy as np


READ_ROWS = 64


def read(config: DataSection) -> Images:
    """The files of each split, one after the other, sorted by name."""
    from ifm.data.sources import columns

    splits, names, origin = {}, [], SOURCE.origin(config)
    for name, files in _files(config).items():
        schemas = []
        for path in files:
            with columns.opened(path) as file:
                schemas.append(file.schema_arrow)
            columns.check(schemas[-1], config, origin=origin)
        names += [columns.class_names(schema, config) for schema in schemas]
        splits[name] = _split(files, config)
    root, used = Path(config.path), {file for files in _files(config).values() for file in files}
    passed_over, unused = Counter(), []
    if root.is_dir():
        beside = sorted(path for path in root.iterdir() if path not in used and not path.name.startswith("."))
        unused = [readable(path.name) for path in beside if path.suffix == ".parquet" or path.is_dir()]
        passed_over.update(path.suffix.lower() or BARE for path in beside if readable(path.name) not in unused)
    return Images(splits, columns.same_names(names, config, origin=origin), passed_over, unused)


def _files(config: DataSection) -> dict[str, list[Path]]:
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
    files = {name: parquet_files(path, split) for name, split in split_names(config).items()}
    for name, split in split_names(config).items():
        if not files[name]:
            raise FetchError(
                f"data.{name}_split = {split!r}: no {split}*.parquet in data.path = {config.path!r}; it has "
                f"{', '.join(readable(file.name) for file in found[:SHOWN]) or 'no parquet files'}"
            )
    shared = set(files["train"]) & set(files.get("test", []))
    if shared:
        raise FetchError(
            f"data.train_split = {config.train_split!r}, data.test_split = {config.test_split!r}: both take "
            f"{readable(min(shared).name)}; use names of which none begins with the other"
        )
    return files


def _split(files: list[Path], config: DataSection) -> Split:
    import numpy as np
    import pyarrow as pa

    from ifm.data.sources import columns

    count, labels = 0, None if config.label_column is None else []
    for path in files:
        with columns.opened(path) as file:
            count += file.metadata.num_rows
            if labels is not None:
                labels += file.read([config.label_column]).column(0).to_pylist()

    def encoded(rows: "np.ndarray") -> Iterator[Encoded]:
        start = 0
        for path in files:
            with columns.opened(path) as file:
                for batch in file.iter_batches(READ_ROWS, columns=[columns.media_column(config)[1]]):
                    first, last = np.searchsorted(rows, [start, start + len(batch)])
                    here = pa.array(rows[first:last] - start)
                    start += len(batch)
                    cells = batch.column(0).take(here).to_pylist()
                    yield from (columns.encoded(cell, path.parent, within=[path.parent.resolve()]) for cell in cells)

    return Split(count, labels, encoded)


def files(place: Path, data: Mapping[str, Any]) -> Iterator[tuple[bytes, Path]]:
    """The parquet files of the splits, and the images and sounds beside them, which cells may name."""
    named = {
        file.relative_to(place)
        for split in (str(data["train_split"]), data.get("test_split"))
        if split
        for file in parquet_files(place, split)
    }
    return relative(place, [*named, *image_files(place, (*SUFFIXES, *SOUNDS)).paths])


SOURCE = Source("parquet", read, key="path", files=files, recordings=True)
