"""Logged entries, kept on disk until a store has them: .ifm/tracking/<log>/, in the main checkout.

    log.jsonl    one entry a line, appended and passed to the system at once: a kill loses at most the last line
    artifacts/   copies, because the folder of an experiment may be gone at delivery
    lock         held by the process that writes or delivers; the system frees it when the process dies

The first entry, `start` (a run) or `state` (a parent run), says whose log it is. {"delivered": n} says that a store has
the first n entries. Without it all entries are delivered again, which changes nothing. A fully delivered log is
removed.
"""

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifm.tracking.store import project_root

Entry = dict[str, Any]
FILE = "log.jsonl"


def logs_folder() -> Path:
    return project_root() / ".ifm" / "tracking"


def shown(folder: Path) -> str:
    """A log's folder as messages name it, relative to the project's folder."""
    return f".ifm/tracking/{folder.name}"


def now() -> int:
    """Milliseconds since the epoch, as in MLflow."""
    return int(time.time() * 1000)


def new_id(name: str) -> str:
    """A new log's name. Names sort by age."""
    return f"{now()}-{name}-{uuid.uuid4().hex[:8]}"


class LocalLog:
    """The writing side of one log, locked while it is open."""

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / "lock")
        self._lock.acquire(timeout=0)
        _drop_torn_line(folder / FILE)
        self._file = open(folder / FILE, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    @property
    def id(self) -> str:
        return self.folder.name

    def append(self, entry: Entry) -> None:
        """Writes one line. It has left this process before anything else is done."""
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def keep(self, path: Path) -> str:
        """Copies a file; returns where it is inside the log's folder."""
        kept = Path("artifacts") / uuid.uuid4().hex[:8] / path.name
        (self.folder / kept).parent.mkdir(parents=True)
        shutil.copyfile(path, self.folder / kept)
        return kept.as_posix()

    def mark(self, delivered: int) -> None:
        """Records that a store has the first entries."""
        self.append({"delivered": delivered})

    def close(self) -> None:
        self._file.close()
        self._lock.release()

    def remove(self) -> None:
        """Removes a fully delivered log."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


def _drop_torn_line(path: Path) -> None:
    """Removes the incomplete last line of a killed process, so that the next entry starts a new line."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)


@dataclass(frozen=True)
class Pending:
    """The reading side of a log."""

    folder: Path
    entries: list[Entry]
    delivered: int  # how many of them a store is known to have

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def head(self) -> Entry:
        return self.entries[0]

    @property
    def ended(self) -> bool:
        return self.head["op"] == "state" or any(entry["op"] == "end" for entry in self.entries)


def read(folder: Path) -> Pending:
    """A log's entries, without an incomplete last line. Raises ValueError for a line that is not an entry."""
    entries, delivered = [], 0
    *lines, _torn = (folder / FILE).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{folder / FILE}: line {number} is not JSON; mend or remove it") from error
        if "delivered" in value:
            delivered = value["delivered"]
        else:
            entries.append(value)
    return Pending(folder, entries, delivered)


def all_logs() -> list[Path]:
    """The folders of all logs, oldest first."""
    return sorted(path.parent for path in logs_folder().glob(f"*/{FILE}"))


@contextmanager
def opened(folder: Path) -> Iterator[LocalLog | None]:
    """A log that no other process holds; None if it is still written (or was removed meanwhile)."""
    from filelock import Timeout

    try:
        log = LocalLog(folder)
    except Timeout:
        yield None
        return
    if (folder / FILE).stat().st_size == 0:  # killed before its first line, or removed and made again by the lock
        log.remove()
        yield None
        return
    try:
        yield log
    finally:
        log.close()
