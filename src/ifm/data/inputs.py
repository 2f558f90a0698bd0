"""Local files as an input of the graph: which they are, and a digest that tells when they change.

Light on purpose: stage `source` asks at the beginning of every `dvc repro`.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ifm import watched
from ifm.data.sources import SOURCES
from ifm.files import located


@dataclass(frozen=True)
class Inputs:
    """data/source.json. watched: the key of `data` that names local files, for dvc.yaml; none for other sources."""

    watched: list[str] = field(default_factory=list)
    files: int | None = None
    sha256: str | None = None  # of their names and contents, not of times or the place where they lie


def note(file: Path, found: Inputs) -> None:
    """Writes the file unless it says so already."""
    watched.note(file, asdict(found))


def look(data: Mapping[str, Any], *, root: Path, memory: Path | None = None) -> Inputs | None:
    """What section `data` of params.yaml reads from this machine's disk; None where that is not there.

    root: the folder that relative paths begin in. memory: see `ifm.watched.digest`.
    """
    source = SOURCES.get(data["source"])
    key = source.watched if source else None
    given = data.get(key) if key else None
    if not isinstance(given, str):
        return Inputs()
    place = located(given, root)
    if not place.exists():
        # Else a data set of the Hub, which is called as a folder might be.
        return None if key == "path" or given.startswith(("/", "~", ".")) else Inputs()
    if place.is_file():
        named = [(b"", place), *((os.fsencode(file.name), file) for file in sorted(source.beside(place)))]
    else:
        named = sorted(source.files(place, data), key=lambda item: item[0])
    return Inputs([key], len(named), watched.digest(named, memory))
