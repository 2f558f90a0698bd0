"""Local files that a data set is read from: which they are, and a digest that tells when they change.

Light on purpose: stage `source` asks at the beginning of every `dvc repro`.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ifm.files import located, read_json, write_json

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm",
)  # fmt: skip
SPLIT_LIKE = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
HIDDEN, LINKS, BARE = "hidden", "links and special files", "without a suffix"
KEYS = {"imagefolder": "path", "parquet": "path", "hub": "name"}  # of `data`, what may name local files


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder. paths: relative to it, sorted. passed_over: other files by suffix or kind."""

    paths: list[PurePath]
    passed_over: Counter[str] = field(default_factory=Counter)


def image_files(folder: Path) -> ImageFiles:
    """The files with an image's suffix, and what else there is.

    Hidden files and folders are no images: previews and notebook copies live there. Links out of the folder are not
    followed.
    """
    paths, passed_over, root = [], Counter(), folder.resolve()
    for place, names in _places(folder, passed_over):
        inside = os.path.relpath(place, folder)
        for name in names:
            kind = _kind(place, name, root)
            if kind in SUFFIXES:
                paths.append(PurePath(inside, name))
            else:
                passed_over[kind] += 1
    return ImageFiles(sorted(paths, key=lambda path: path.parts), passed_over)


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder; no hidden or linked folder is entered."""
    return (Path(place, name) for place, names in _places(folder, Counter()) for name in names)


def _places(folder: Path, passed_over: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder below, itself included, with the names of its files. Linked folders are counted."""
    for place, folders, files in os.walk(folder):
        # os.walk enters no linked folder, but lists it.
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        if linked:
            passed_over[LINKS] += len(linked)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
        yield place, files


def _kind(place: str, name: str, root: Path) -> str:
    """The suffix in small letters, or why it is no image."""
    if name.startswith("."):
        return HIDDEN
    suffix = os.path.splitext(name)[1].lower().rstrip(".") or BARE
    if suffix not in SUFFIXES:
        return suffix
    # A pipe or a device would have the reader wait for ever.
    mode = os.lstat(os.path.join(place, name)).st_mode
    if stat.S_ISLNK(mode):
        target = Path(place, name)
        return suffix if target.is_file() and target.resolve().is_relative_to(root) else LINKS
    return suffix if stat.S_ISREG(mode) else LINKS


def is_split_like(name: str) -> bool:
    """Whether a folder is called as the parts of a data set are: train, Test, validation, ..."""
    return name.casefold() in SPLIT_LIKE


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, hidden and linked ones left out, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))


def split_folders(root: Path, *, train_split: str, test_split: str | None) -> dict[str, str]:
    """The folder of each split below the root of an image folder: the whole root ("."), or as the splits are named.

    Case does not count where just one folder has the name and, without a test_split, all look like splits.
    """
    if test_split is not None:
        return {"train": _called(root, train_split), "test": _called(root, test_split)}
    if (root / train_split).is_dir():
        return {"train": train_split}
    called = _called(root, train_split)
    if called != train_split and all(map(is_split_like, subfolders(root))):
        return {"train": called}
    return {"train": "."}


def _called(root: Path, name: str) -> str:
    """The name of the folder, or of the only one that differs from it in case alone."""
    if (root / name).is_dir() or not root.is_dir():
        return name
    same = [other for other in subfolders(root) if other.casefold() == name.casefold()]
    return same[0] if len(same) == 1 else name


def parquet_files(root: Path, split: str) -> list[Path]:
    """The parquet files of a split in a folder, sorted by name; a file is its own train split."""
    if not root.is_dir():
        return [root] if root.is_file() else []
    return sorted(f for f in root.iterdir() if f.suffix == ".parquet" and f.is_file() and f.name.startswith(split))


# As an input of the graph


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
    key = KEYS.get(data["source"])
    given = data.get(key) if key else None
    if not isinstance(given, str):
        return Inputs()
    place = located(given, root)
    if not place.exists():
        # Else a data set of the Hub, which is called as a folder might be.
        return None if key == "path" or given.startswith(("/", "~", ".")) else Inputs()
    named = sorted(_named(place, data), key=lambda item: item[0])
    return Inputs([key], len(named), _digest(named, memory))


def _named(place: Path, data: Mapping[str, Any]) -> Iterator[tuple[bytes, Path]]:
    """What is read, by a name without the place where it lies."""
    train, test = str(data["train_split"]), data.get("test_split")
    if place.is_file():
        yield b"", place
    elif data["source"] == "imagefolder":
        for name, sub in split_folders(place, train_split=train, test_split=test).items():
            yield from _relative(place / sub, image_files(place / sub).paths, prefix=f"{name}/")
    elif data["source"] == "parquet":
        files = {file.relative_to(place) for split in (train, test) if split for file in parquet_files(place, split)}
        yield from _relative(place, [*files, *image_files(place).paths])  # cells may name images beside
    else:
        yield from _relative(place, (f.relative_to(place) for f in walk(place) if not f.name.startswith(".")))


def _relative(folder: Path, paths: Iterable[PurePath], prefix: str = "") -> Iterator[tuple[bytes, Path]]:
    return ((os.fsencode(prefix + path.as_posix()), folder / path) for path in paths)


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
