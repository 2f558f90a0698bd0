"""A folder of image files; with labels, the first-level subfolder of each is its class."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ifm.data.local import SUFFIXES, image_files, is_split_like, relative, split_folders, subfolders, walk
from ifm.data.sources.base import SHOWN, DataSection, Encoded, FetchError, Images, Source, Split, content, few, shown
from ifm.files import readable

if TYPE_CHECKING:
    import numpy as np


def read(config: DataSection, *, suffixes: tuple[str, ...] = SUFFIXES, noun: str = "images") -> Images:
    """The whole folder, or a folder for each split. suffixes: of the files that are read; noun: what they are."""
    root = Path(config.path)
    if not root.is_dir():
        raise FetchError(f"data.path = {config.path!r}: no such folder")
    wanted = split_folders(root, train_split=config.train_split, test_split=config.test_split)
    splits, passed_over = {}, Counter()
    for name, sub in wanted.items():
        if not (root / sub).is_dir():
            raise FetchError(
                f"data.{name}_split = {sub!r}: no such folder in data.path = {config.path!r}; with "
                "data.test_split: null the whole folder is used"
            )
        if not (root / sub).resolve().is_relative_to(root.resolve()):
            raise FetchError(
                f"data.{name}_split = {sub!r}: leads out of data.path = {config.path!r} (a link?); name the folder "
                f"that holds the {noun} itself"
            )
        found = image_files(root / sub, suffixes)
        passed_over += found.passed_over
        if not found.paths:
            raise FetchError(
                f"data.path = {config.path!r}: no {', '.join(suffixes)} files in the folder of the {name} "
                f"split ({_other_files(found.passed_over)})"
            )
        splits[name] = _folder_split(root / sub, found.paths, config, noun)
        paths = found.paths
    whole = wanted == {"train": "."}
    unused = [] if "." in wanted.values() else _unused(root, set(wanted.values()), suffixes)
    warnings = _of_splits_in_one(paths, config, noun) if whole else _of_unused(unused, wanted, config)
    return Images(splits, None, passed_over, shown(unused), warnings=warnings)


def _other_files(passed_over: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {readable(kind)}" for kind, count in passed_over.most_common(SHOWN))
    return f"passed over: {kinds}" if kinds else "the folder is empty; hidden folders and links are not entered"


def _unused(root: Path, used: set[str], suffixes: tuple[str, ...]) -> list[str]:
    """Folders beside those of the splits that hold such files too."""
    inside = {PurePath(name).parts[0] for name in used if PurePath(name).parts}
    return [
        name
        for name in subfolders(root)
        if name not in inside and any(path.suffix.lower() in suffixes for path in walk(root / name))
    ]


def _of_unused(unused: list[str], wanted: dict[str, str], config: DataSection) -> list[str]:
    """A warning where one folder alone is the train split and others hold images too."""
    if not unused or "test" in wanted:
        return []
    if all(map(is_split_like, unused)):
        mend = f"to test on one of them set data.test_split, e.g. {readable(_best_test(unused))}"
    else:
        mend = "to take the whole folder set data.train_split: ."
    return [
        f"data.path = {config.path!r}: only its folder {readable(wanted['train'])} is read (data.train_split = "
        f"{config.train_split!r}), not {few(shown(unused), SHOWN)}; {mend}"
    ]


def _of_splits_in_one(paths: list[PurePath], config: DataSection, noun: str) -> list[str]:
    """A warning where folders that are called as splits are read as one set."""
    for depth in (0, 1):
        parents = {path.parts[: depth + 1] for path in paths if len(path.parts) > depth + 1}
        found = sorted(PurePath(*parts).as_posix() for parts in parents if is_split_like(parts[-1]))
        if not found:
            continue
        named = few(shown(found), SHOWN)
        kind = "classes called" if depth == 0 and config.label_column is not None else "folders"
        above = {PurePath(name).parent for name in found}
        train = [name for name in found if PurePath(name).name.casefold().startswith("train")]
        if len(above) == 1 and train:
            place = "" if depth == 0 else f"set data.path to its folder {readable(above.pop().as_posix())}, "
            test = [name for name in found if name not in train]
            mend = f"{place}set data.train_split: {readable(PurePath(train[0]).name)}"
            mend += f" and data.test_split: {readable(PurePath(_best_test(test)).name)}" if test else ""
        else:
            mend = f"move the {noun} into one folder for each split, with the classes' folders in it"
        return [
            f"data.path = {config.path!r}: {kind} {named} look like splits, and are read as one set; if they are "
            f"splits, {mend}"
        ]
    return []


def _best_test(names: list[str]) -> str:
    """Of folders that look like splits the one to test on."""
    return min(names, key=lambda name: (not PurePath(name).name.casefold().startswith("test"), name))


def _folder_split(folder: Path, paths: list[PurePath], config: DataSection, noun: str) -> Split:
    labels = None
    if config.label_column is not None:
        loose = [readable(path.name) for path in paths if len(path.parts) == 1]
        if loose:
            raise FetchError(
                f"data.path = {config.path!r}: {len(loose)} {noun} lie in no class folder: "
                f"{', '.join(loose[:SHOWN])}. Move them into one folder for each class, or set "
                "data.label_column: null"
            )
        labels = [path.parts[0] for path in paths]

    def encoded(rows: "np.ndarray") -> Iterator[Encoded]:
        return (Encoded(content(folder / paths[i]), readable(paths[i].as_posix())) for i in rows)

    return Split(len(paths), labels, encoded)


def files(
    place: Path, data: Mapping[str, Any], *, suffixes: tuple[str, ...] = SUFFIXES
) -> Iterator[tuple[bytes, Path]]:
    """The images in the folders of the splits."""
    splits = split_folders(place, train_split=str(data["train_split"]), test_split=data.get("test_split"))
    for name, sub in splits.items():
        yield from relative(place / sub, image_files(place / sub, suffixes).paths, prefix=f"{name}/")


SOURCE = Source("imagefolder", read, key="path", files=files)
