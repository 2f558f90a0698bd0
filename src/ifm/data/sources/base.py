"""What a data source is. Light on purpose: params.yaml is checked with it, and stage `source` begins every `dvc repro`.

A source's own file imports NumPy, pyarrow and the like inside the functions that need them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from ifm.data.found import DataSection, Encoded, Images, Points, Split, Texts
from ifm.data.local import relative, walk
from ifm.errors import UserError
from ifm.files import readable

__all__ = [
    "SHOWN",
    "DataSection",
    "Encoded",
    "FetchError",
    "Images",
    "Points",
    "Source",
    "Split",
    "Texts",
    "content",
    "few",
    "shown",
    "split_names",
]

SHOWN = 5  # names in a message


class FetchError(UserError, RuntimeError):
    """The source cannot be brought in; the message names the key, its value and what to do."""


def _nothing(place: Path) -> list[Path]:
    return []


def _all_files(place: Path, data: Mapping[str, Any]) -> Iterator[tuple[bytes, Path]]:
    return relative(place, (file.relative_to(place) for file in walk(place) if not file.name.startswith(".")))


@dataclass(frozen=True)
class Source:
    """One value of `data.source`.

    read: finds the data set; raises FetchError. modality: what it gives (ifm.modalities), and so what `read` returns:
    Images, Points or Texts. key: of `data`, what names the data set, dotted; None: there is just one. `path` and `name`
    must be set, may lie on this machine's disk and are watched there: `files` gives the files below a folder, each by a
    name without the place where it lies.
    """

    name: str
    read: "Callable[[DataSection], Images | Points | Texts]"
    modality: str = "images"
    key: str | None = None
    files: Callable[[Path, Mapping[str, Any]], Iterator[tuple[bytes, Path]]] = _all_files
    beside: Callable[[Path], list[Path]] = _nothing  # what may be read beside a path that is a file
    columns: bool = True  # data.image_column and data.label_column say what is read
    recordings: bool = False  # data.audio.column may name a column of them
    # Whether there are classes, where `data` tells otherwise than by label_column.
    labelled: "bool | Callable[[DataSection], bool] | None" = None
    labels_key: str | None = "label_column"  # of `data`, what says where labels are; None: nothing does
    test_split: bool = True  # data.test_split may name one
    revisions: bool = False  # data.revision picks a state of it
    count: "Callable[[DataSection], int] | None" = None  # how many samples, where that is known without a look
    section: str | None = None  # of `data`, that must be there
    shape: "Callable[[DataSection], tuple[int, ...]] | None" = (
        None  # of a sample, where the modality's rule does not hold
    )
    size_key: str | None = None  # of `data`, what sets how many samples there are, dotted

    @property
    def watched(self) -> str | None:
        """The key of `data` that may name local files."""
        return self.key if self.key in ("path", "name") else None

    def origin(self, data: DataSection) -> str:
        """The key that names the data set, with its value, for messages."""
        key = self.key or "source"
        return f"data.{key} = {attrgetter(key)(data)!r}"

    def label(self, data: DataSection) -> str | None:
        """What the data set is called where neither data.name nor data.path says so."""
        if self.watched:
            return None
        return str(attrgetter(self.key)(data)) if self.key else self.name


def split_names(config: DataSection) -> dict[str, str]:
    """The source's own names of the splits, by ours."""
    names = {"train": config.train_split}
    return names if config.test_split is None else names | {"test": config.test_split}


def few(names: list[str], most: int) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def content(path: Path) -> bytes | None:
    """The bytes of a file, None where they cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def shown(names: Iterable[object]) -> list[str]:
    """Names from outside, fit for a terminal."""
    return [readable(str(name)) for name in names]
