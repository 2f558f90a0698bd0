"""What a kill leaves behind: work folders with checkpoints, temporary files, children without a parent.

A work folder is .ifm/checkpoints/<stage>-<hash> in the main checkout, so that a queued experiment finds it too. The
hash covers parameters, the stage's code and its inputs' checksums, so a changed stage never uses an old checkpoint. The
process that works there locks the folder. If another process already does the same work (a stage that two experiments
share), the next one takes <stage>-<hash>-2. made-of.json in the folder lists what the hash covers.
"""

import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ifm.files import read_json, write_json
from ifm.tracking import digest, flatten

MADE_OF = "made-of.json"
PATIENCE = 2.0  # seconds to wait for an ending process to release its folder


@dataclass
class WorkFolder:
    """A folder that this process holds locked, until `finish` or its own end."""

    path: Path
    _lock: int | None  # a descriptor of the folder

    @classmethod
    def open(cls, root: Path, stage: str, made_of: Mapping[str, Mapping[str, Any]]) -> "WorkFolder":
        """The first of <stage>-<hash>, <stage>-<hash>-2, ... that no living process works in."""
        base = f"{stage}-{digest(made_of)}"
        for number in count(1):
            path = root / (base if number == 1 else f"{base}-{number}")
            lock = _lock(path, patience=PATIENCE)
            if lock is not None:
                write_json(path / MADE_OF, made_of)
                return cls(path, None if lock < 0 else lock)
        raise AssertionError("unreachable")

    def finish(self) -> None:
        """Removes the folder with its content, once the work is done."""
        with suppress(FileNotFoundError):
            # After a disk error another process may have made the folder anew. That one is not ours.
            if self._lock is None or _same(self._lock, self.path):
                shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(folder: Path, *, patience: float = 0.0) -> int | None:
    """Makes and locks a folder: its descriptor, -1 if the file system has no locks, None if another holds it."""
    deadline = time.monotonic() + patience
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # its owner has just finished
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(descriptor, folder):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)
            continue
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL, errno.ENOSYS):
                return -1
            raise
        os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    return os.path.samestat(os.fstat(descriptor), path.stat())


def left(root: Path, stage: str, made_of: Mapping[str, Mapping[str, Any]]) -> list[tuple[Path, str]]:
    """Checkpoint folders of a stage that no process uses and this work cannot use: (folder, what differs).

    Newest first. Folders without a checkpoint, of processes killed early, are removed.
    """
    found = []
    same = f"{stage}-{digest(made_of)}"
    for folder in sorted(root.glob(f"{stage}-*"), key=_changed, reverse=True):
        if folder.name.startswith(same):
            continue
        lock = _lock(folder) if folder.is_dir() else None
        if lock is None:
            continue
        try:
            if not any(path.name != MADE_OF and not path.name.startswith(".") for path in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
            else:
                found.append((folder, _difference(folder, made_of)))
        finally:
            if lock >= 0:
                os.close(lock)
    return found


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _difference(folder: Path, made_of: Mapping[str, Mapping[str, Any]]) -> str:
    """E.g. "other parameters (teacher.lr)"."""
    try:
        old = read_json(folder / MADE_OF)
        kinds = {"parameters": "params", "code": "code", "inputs": "inputs"}
        changed = {name: _changed_keys(old[key], made_of[key]) for name, key in kinds.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "an earlier version of this project"
    parts = [f"{name} ({', '.join(keys)})" for name, keys in changed.items() if keys]
    return "other " + ", ".join(parts)


def _changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = flatten(old), flatten(new)
    missing = object()
    return sorted(k for k in before.keys() | after.keys() if before.get(k, missing) != after.get(k, missing))


def tell(stage: str, found: list[tuple[Path, str]], *, root: Path) -> None:
    """Writes one line on stderr about the newest unused checkpoint, and how to remove it."""
    if not found:
        return
    folder, difference = found[0]
    more = f" ({len(found) - 1} more there)" if len(found) > 1 else ""
    shown = folder.relative_to(root.parents[1])
    print(
        f"{stage}: a checkpoint of {difference} is left at {shown}{more}; it is not used; rm -r {shown} removes it",
        file=sys.stderr,
        flush=True,
    )


def goes_on(folder: Path | None) -> str:
    """The message after a stop: `dvc repro` continues from a step, after some shards, or with the whole stage."""
    steps = sorted(path.stem.partition("-")[2] for path in folder.glob("step-*.safetensors")) if folder else []
    shards = len(list(folder.glob("shard-*.npy"))) if folder else 0
    again = "the same command" if os.environ.get("DVC_EXP_NAME") else "`dvc repro`"
    if steps:
        return f"stopped; {again} goes on from step {int(steps[-1])}"
    if shards:
        return f"stopped; {again} goes on after {shards} shards"
    return f"stopped; {again} goes on with this stage"


def worked_in(root: Path, stage: str) -> Path | None:
    """The folder of a stage in which a living process works."""
    for folder in sorted(root.glob(f"{stage}-*"), key=_changed, reverse=True):
        lock = _lock(folder) if folder.is_dir() else None
        if lock is None:
            return folder
        if lock >= 0:
            os.close(lock)
    return None


def remove_temporaries(outs: list[Path]) -> None:
    """Removes temporary files that a killed process left beside `outs` (ifm.files: .<name>.<pid>.tmp)."""
    for out in outs:
        for path in out.parent.glob(f".{out.name}.*.tmp"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
