"""Local files as an input of the graph: a digest that tells when they change, and the note of it. Light on purpose."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ifm.files import read_json, write_json


def note(file: Path, found: Mapping[str, Any]) -> None:
    """Writes the file unless it says so already."""
    with suppress(OSError, ValueError):
        if read_json(file) == found:
            return
    write_json(file, dict(found))


def digest(named: Sequence[tuple[bytes, Path]], memory: Path | None) -> str:
    """Of names and contents. memory: a file that keeps the last digest with sizes and times; what has not changed since
    is not read again.
    """
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
    found = hashlib.sha256()
    for name, path in named:
        found.update(b"%d %s %s\n" % (len(name), name, _content(path)))
    if memory is not None:
        write_json(memory, {"seen": seen.hexdigest(), "sha256": found.hexdigest()})
    return found.hexdigest()


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
