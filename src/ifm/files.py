"""Files that are written whole or not at all."""

import errno
import hashlib
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ifm.errors import UserError, in_a_line

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}


class FileError(UserError, ValueError):
    """A file of the project has wrong content. The message names it and how to mend it."""


class StorageError(UserError, OSError):
    """The disk is full or read-only. The message names the file and the space it needs."""


@contextmanager
def atomic_path(path: Path, *, size: int | None = None) -> Iterator[Path]:
    """Yields a temporary path beside `path`. At the end the file is flushed to disk and renamed into place.

    On an error the temporary file is removed and the old content of `path` stays. size: bytes to be written, if known,
    for the message of the StorageError that a full or read-only disk raises.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in FULL | REFUSED or isinstance(error, StorageError):
            raise
        raise unwritable(path, error, size=size) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError, *, size: int | None) -> StorageError:
    """The error for a disk that is full or read-only."""
    needs = f"; it needs {in_words(size)}" if size else ""
    free = free_bytes(path)
    left = f"; {in_words(free)} are free there" if free is not None else ""
    mend = "free some space" if error.errno in FULL else "make the folder writable"
    again = "run the same command again: what was made before is kept"
    return StorageError(f"{path}: cannot be written ({error.strerror}{needs}{left}); {mend} and {again}")


def free_bytes(path: Path) -> int | None:
    """Free bytes for this user at the place of `path`; None if the system does not tell."""
    for folder in (path, *path.absolute().parents):
        if folder.is_dir():
            try:
                return shutil.disk_usage(folder).free
            except OSError:
                return None
    return None


def warn_of_space(folder: Path, size: int, *, what: str) -> None:
    """Warns on stderr, before the work starts, if `size` bytes do not fit on the disk of `folder`."""
    free = free_bytes(folder)
    if free is not None and size > free:
        print(
            f"warning: {what} need {in_words(size)} at {folder}, where {in_words(free)} are free: "
            "the work will stop when the disk is full",
            file=sys.stderr,
            flush=True,
        )


def in_words(size: int) -> str:
    """A number of bytes, e.g. "18.4 GB"."""
    amount, units = float(size), ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.3g} {units[0]}"


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: indented, keys in the given order, a newline at the end. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON. Raises FileNotFoundError, or FileError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: not valid JSON ({error}); delete it and run `dvc repro` again") from error


def read_dataclass(path: Path, kind: type[T]) -> T:
    """Reads what `write_json(path, asdict(...))` wrote: exactly the same keys, each of its type.

    Raises FileNotFoundError, or ValueError that says what is wrong without the file's name.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(in_a_line(f"{key!r}: {first['msg']}" if key else first["msg"])) from None


def inside(folder: Path, name: str) -> Path:
    """The path of a file that a description names. Raises ValueError if it would be outside the folder."""
    if not name.isprintable() or Path(name).name != name or "\\" in name or name in ("", ".."):
        raise ValueError(f"{name!r} is no plain file name")
    return folder / name


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that replaces `path` as a whole at the end. After an error nothing is left of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in FULL | REFUSED or isinstance(error, StorageError):
            raise
        raise unwritable(path, error, size=None) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> "np.memmap":
    """A .npy file of zeros, mapped for writing. Raises OSError where the disk has no room for it."""
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    # A full disk met while writing through the map would kill the process without a word.
    if hasattr(os, "posix_fallocate") and array.nbytes:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
    return array


def located(path: str, root: Path) -> Path:
    """A path that a person wrote: ~ is the home folder, and a relative path starts in `root`."""
    return root / os.path.expanduser(path)


def readable(name: str) -> str:
    """The name of a file or class as one line, with escapes for control characters and bytes that are not UTF-8."""
    return "".join(map(_readable_character, name))


def _readable_character(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # how Python holds a byte of a file's name that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    turns = "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"  # the direction of the text that follows
    if turns or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp"):
        return c.encode("unicode_escape").decode("ascii")
    return c


def joint_sha256(paths: Iterable[Path]) -> str:
    """sha256 of one file; of several, sha256 over the hex digests of all, by file name."""
    digests = [file_sha256(path) for path in sorted(paths)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
