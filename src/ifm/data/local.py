"""Local files that a data set may be read from: images below a folder, folders of splits, parquet files.

Light on purpose: stage `source` asks at the beginning of every `dvc repro`.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm",
)  # fmt: skip
SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".mp3")
SPLIT_LIKE = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
HIDDEN, LINKS, BARE = "hidden", "links and special files", "without a suffix"


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder. paths: relative to it, sorted. passed_over: other files by suffix or kind."""

    paths: list[PurePath]
    passed_over: Counter[str] = field(default_factory=Counter)


def image_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> ImageFiles:
    """The files with an image's suffix, or one of others, and what else there is.

    Hidden files and folders are no images: previews and notebook copies live there. Links out of the folder are not
    followed.
    """
    paths, passed_over, root = [], Counter(), folder.resolve()
    for place, names in _places(folder, passed_over):
        inside = os.path.relpath(place, folder)
        for name in names:
            kind = _kind(place, name, root, suffixes)
            if kind in suffixes:
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


def _kind(place: str, name: str, root: Path, suffixes: tuple[str, ...]) -> str:
    """The suffix in small letters, or why it is no image."""
    if name.startswith("."):
        return HIDDEN
    suffix = os.path.splitext(name)[1].lower().rstrip(".") or BARE
    if suffix not in suffixes:
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
    train_split, test_split = (name and str(PurePath(name)) for name in (train_split, test_split))  # "./" is "."
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


def relative(folder: Path, paths: Iterable[PurePath], prefix: str = "") -> Iterator[tuple[bytes, Path]]:
    """Files below a folder, each by a name that does not tell where the folder lies."""
    return ((os.fsencode(prefix + path.as_posix()), folder / path) for path in paths)
