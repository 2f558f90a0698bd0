"""Local files as an input of the graph: which they are, and a digest that tells when they change.

Light on purpose: stage `source` asks at the beginning of every `dvc repro`.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ifm.data.sources import SOURCES
from ifm.files import located, read_json, write_json


@dataclass(frozen=True)
class Inputs:
    """data/source.json. watched: the key of `data` that names local files, for dvc.yaml; none for other sources."""

    watched: list[str] = field(default_factory=list)
    files: int | None = None
    sha256: str | None = None  # of their names and contents, not of times or the place where they lie


def note(file: Path, found: Inputs) -> None:
    """Writes the file unless it says so already."""
    with suppress(OSError, ValueError):
        if read_json(file) == asdict(found):
            return
    write_json(file, asdict(found))


def look(data: Mapping[str, Any], *, root: Path, memory: Path | None = None) -> Inputs | None:
    """What section `data` of params.yaml reads from this machine's disk; None where that is not there.

    root: the folder that relative paths begin in. memory: a file that keeps the last digest with sizes and times, so
    that files which have not changed are not read again.
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
    named = sorted([(b"", place)] if place.is_file() else source.files(place, data), key=lambda item: item[0])
    return Inputs([key], len(named), _digest(named, memory))


def _digest(named: list[tuple[bytes, Path]], memory: Path | None) -> str:
    seen = hashlib.sha256()
    for name, path in named:
        # The time of the last change of a file's entry cannot be set back, as that of its content can.
        try:
            at = os.stat(path)
            seen.update(b"%d %s %d %d %d\n" % (len(name), name, at.st_size, at.st_mtime_ns, at.st_ctime_ns))
        except OSError:
            seen.update(b"%d %s gone\n" % (len(name), name))
    known = _remembered(memory)
    if known.get("seen") == seen.hexdigest() and isinstance(known.get("sha256"), str):
        return known["sha256"]
    digest = hashlib.sha256()
    for name, path in named:
        digest.update(b"%d %s %s\n" % (len(name), name, _content(path)))
    if memory is not None:
        write_json(memory, {"seen": seen.hexdigest(), "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _remembered(memory: Path | None) -> dict[str, Any]:
    try:
        known = read_json(memory) if memory else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _content(path: Path) -> bytes:
    """The digest of a file, or that it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest().encode()
    except OSError:
        return b"unreadable"
