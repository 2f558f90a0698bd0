"""dvc.lock where several `dvc repro` run side by side: read whole, and in the order that plain `dvc repro` gives it.

DVC writes the file in place, under the lock of its repository, and appends what is new in the order in which stages
end. Side by side they end in any order; the file is put in order without another change to its text.
"""

import fcntl
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ifm.files import write_json, write_text

LOCK = Path("dvc.lock")
REPOSITORY = Path(".dvc/tmp/lock")  # what DVC holds while it writes
PATIENCE = 10.0  # seconds; a stage that is saved holds it
STAGES = "stages:\n"
ENTRY = re.compile(r"^  (?=[^\s#])", re.MULTILINE)


@contextmanager
def held(*, alone: bool, patience: float = PATIENCE) -> Iterator[bool]:
    """DVC's lock for a moment, if it can be had in time; with other readers, or alone, to write."""
    if not REPOSITORY.is_file():  # no DVC here, or none has run yet
        yield False
        return
    how = (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB
    deadline = time.monotonic() + patience
    with open(REPOSITORY, "rb") as file:
        has = False
        while not has and time.monotonic() < deadline:
            try:
                fcntl.flock(file, how)
                has = True
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:  # a file system without locks
                break
        yield has


def read(path: Path = LOCK) -> str:
    """The text of dvc.lock while no DVC writes it; empty where there is none."""
    with held(alone=False), suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    return ""


def names(text: str) -> list[str]:
    """The stages of a dvc.lock, in its order."""
    return [entry.partition(":\n")[0].strip("'\"") for entry in _split(text)[1]]


def ordered(text: str, order: Sequence[str]) -> str:
    """The same entries, those of `order` first and in it."""
    head, entries, tail = _split(text)
    rank = {name: i for i, name in enumerate(order)}
    entries.sort(key=lambda entry: rank.get(entry.partition(":\n")[0].strip("'\""), len(rank)))
    return head + "".join(f"  {entry}" for entry in entries) + tail


def final_order(order: Sequence[str], *, note: Path) -> list[str]:
    """The order that plain `dvc repro` leaves: what there is keeps its place, what is new comes in the graph's order.

    note: keeps what there was at first; it stays after a run that was killed, and belongs to the next one as well.
    """
    there = names(read())
    with suppress(OSError, ValueError, TypeError):
        there = [name for name in json.loads(note.read_text(encoding="utf-8")) if name in there]
    write_json(note, there)
    return [*there, *(name for name in order if name not in there)]


def put_in_order(order: Sequence[str], path: Path = LOCK) -> None:
    """Rewrites the file where its stages are in another order."""
    with held(alone=True) as has, suppress(FileNotFoundError):
        text = path.read_text(encoding="utf-8")
        if has and (wanted := ordered(text, order)) != text:
            write_text(path, wanted)


def mend(folder: Path = REPOSITORY.parent) -> None:
    """Removes DVC's list of files in use where a kill has left half of it: no DVC would start any more."""
    guard, file = folder / "rwlock.lock", folder / "rwlock"
    if not (guard.is_file() and file.is_file()):
        return
    with open(guard, "rb") as held_by_dvc, suppress(OSError):
        fcntl.flock(held_by_dvc, fcntl.LOCK_EX)  # while DVC writes the list
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            file.unlink()


def _split(text: str) -> tuple[str, list[str], str]:
    """What is before the stages, each stage without its indent, and what is after."""
    head, found, rest = text.partition(STAGES)
    if not found or (head and not head.endswith("\n")):
        return text, [], ""
    end = re.search(r"^\S", rest, re.MULTILINE)
    body, tail = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    return head + found, ENTRY.split(body)[1:], tail
