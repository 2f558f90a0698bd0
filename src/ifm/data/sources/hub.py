"""A data set of the Hub, or a local folder that `datasets.load_dataset` understands. None of its code is run."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ifm.data.sources.base import DataSection, Encoded, FetchError, Images, Source, Split, shown, split_names
from ifm.files import readable

if TYPE_CHECKING:
    import datasets
    import numpy as np


READ_ROWS = 64


def read(config: DataSection) -> Images:
    """The splits that data.train_split and data.test_split name, at the commit that data.revision stands for."""
    import datasets
    import huggingface_hub

    from ifm.data.sources import columns

    parts, commit = load_splits(config)
    for part in parts.values():
        columns.check(part.features.arrow_schema, config, origin=SOURCE.origin(config))
    caches = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    roots = [Path(place).resolve() for place in (*caches, config.name) if Path(place).is_dir()]

    def split_of(part: "datasets.Dataset") -> Split:
        def encoded(rows: "np.ndarray") -> Iterator[Encoded]:
            # As arrow tables the cells come as they are stored, not decoded.
            column = part.select_columns([columns.media_column(config)[1]]).with_format("arrow").select(rows)
            for table in column.iter(READ_ROWS):
                yield from (columns.encoded(cell, None, within=roots) for cell in table.column(0).to_pylist())

        labels = None
        if config.label_column is not None:
            column = part.select_columns([config.label_column]).with_format("arrow")
            labels = column[:].column(0).to_pylist()
        return Split(len(part), labels, encoded)

    names = [columns.class_names(part.features.arrow_schema, config) for part in parts.values()]
    others = set().union(*(part.info.splits or {} for part in parts.values())) - set(split_names(config).values())
    return Images(
        {name: split_of(part) for name, part in parts.items()},
        columns.same_names(names, config, origin=SOURCE.origin(config)),
        unused=[f"split {name}" for name in shown(sorted(others))],
        commit=commit,
    )


def load_splits(config: DataSection) -> tuple[dict[str, "datasets.Dataset"], str | None]:
    """The splits by our names, and the commit that data.revision stands for."""
    import datasets

    parts, commit = {}, _commit(config)
    for name, split in split_names(config).items():
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
    return parts, commit


def _commit(config: DataSection) -> str | None:
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


SOURCE = Source("hub", read, key="name", revisions=True, recordings=True)
