"""How samples become files that people open: by modality and suffix ("/": a folder), beside .npy, which all have.

A writer takes (path, batches, n, shape): batches of (members, samples [m, ...] in the data's own form,
`Modality.own`), n samples in all; shape: of a sample at rest.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ifm import modalities
from ifm.errors import either
from ifm.files import atomic_path, fresh_folder, new_array
from ifm.modalities import wav
from ifm.modalities.base import Modality

Batches = Iterable[tuple[range, np.ndarray]]
Writer = Callable[[Path, Batches, int, tuple[int, ...]], None]
Pictures = Callable[[np.ndarray], np.ndarray]  # samples at rest -> uint8 [n, C, H, W]
COLUMNS = 8  # of a grid
BETWEEN = "-" * 20  # texts in a .txt


def write_array(out: Path, drawn: Batches, n: int, shape: tuple[int, ...]) -> None:
    """One .npy of all samples."""
    with atomic_path(out) as temporary:
        array = None
        for members, samples in drawn:
            if array is None:
                array = new_array(temporary, samples.dtype, (n, *samples.shape[1:]))
            array[members.start : members.stop] = samples
        array.flush()


def write_grid(out: Path, drawn: Batches, n: int, shape: tuple[int, ...], *, pictures: Pictures = np.asarray) -> None:
    """One PNG of all images, or of what pictures shows of samples, side by side."""
    from ifm.modalities.pictures import save_grid

    save_grid(pictures(np.concatenate([images for _, images in drawn])), out, columns=min(COLUMNS, n))


def write_class_grid(
    out: Path,
    drawn: Batches,
    n: int,
    shape: tuple[int, ...],
    *,
    labels: Sequence[int],
    classes: Sequence[str],
    pictures: Pictures = np.asarray,
) -> None:
    """One PNG with a row for each class, behind its name. labels: of the n images; classes: all names."""
    from ifm.modalities.pictures import save_rows

    images, of = pictures(np.concatenate([images for _, images in drawn])), np.array(labels)
    save_rows([(classes[label], images[of == label]) for label in dict.fromkeys(labels)], out)


def write_images(out: Path, drawn: Batches, n: int, shape: tuple[int, ...]) -> None:
    """A folder with a PNG of each image."""
    from PIL import Image

    with fresh_folder(out) as folder:
        for members, images in drawn:
            for i, image in zip(members, images, strict=True):
                pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)  # [H, W] or [H, W, 3]
                Image.fromarray(pixels).save(folder / f"{i:06d}.png")


def write_table(
    out: Path, drawn: Batches, n: int, shape: tuple[int, ...], *, columns: Sequence[str] | None = None
) -> None:
    """A CSV with a column for each coordinate, in as many digits as give the same float back. columns: their names."""
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(columns or _coordinates(shape))
        for _, points in drawn:
            np.savetxt(file, points, fmt="%.9g" if points.dtype == np.float32 else "%.17g", delimiter=",")


def write_parquet(
    out: Path, drawn: Batches, n: int, shape: tuple[int, ...], *, columns: Sequence[str] | None = None
) -> None:
    """A parquet file with a column for each coordinate. columns: their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    points = np.concatenate([points for _, points in drawn])  # [n, d]
    with atomic_path(out) as temporary:
        pq.write_table(pa.table(dict(zip(columns or _coordinates(shape), points.T, strict=True))), temporary)


def _coordinates(shape: tuple[int, ...]) -> list[str]:
    return [f"x_{i}" for i in range(shape[0])]


def write_lines(out: Path, drawn: Batches, n: int, shape: tuple[int, ...]) -> None:
    """The texts as people read them, with a line of BETWEEN between them; their own line breaks stay."""
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for members, texts in drawn:
            for i, text in zip(members, texts, strict=True):
                file.write(f"\n{BETWEEN}\n" * (i > 0) + str(text))
        file.write("\n")


def write_json_lines(out: Path, drawn: Batches, n: int, shape: tuple[int, ...]) -> None:
    """The texts as programs read them: a JSON object {"text": ...} in each line."""
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for _, texts in drawn:
            file.writelines(json.dumps({"text": str(text)}, ensure_ascii=False) + "\n" for text in texts)


WRITERS: dict[str, dict[str, Writer]] = {
    "images": {".png": write_grid, "/": write_images},
    "points": {".csv": write_table, ".parquet": write_parquet},
    "text": {".txt": write_lines, ".jsonl": write_json_lines},
}


def writers(modality: str, of_data: Mapping[str, Any] | None = None) -> dict[str, Writer]:
    """Those of one modality, by suffix. of_data: what a model's description says beside the shape of its samples."""
    found = {".npy": write_array} | WRITERS.get(modality, {})
    if units := (of_data or {}).get("points"):
        for suffix in (".csv", ".parquet"):
            found[suffix] = partial(found[suffix], columns=units["columns"])
    kind = modalities.MODALITIES[modality]
    if kind.audible:
        described = (of_data or {}).get(modality)
        found[".png"] = partial(write_grid, pictures=kind.pictures)
        found |= {
            ".wav": partial(wav.write_one, described=described),
            "/": partial(wav.write_folder, described=described),
        }
    return found


def read_table(path: Path, columns: Sequence[str] | None = None) -> np.ndarray:
    """The inverse of `write_table`, whose line of names may be missing: float64 [n, d]. Raises ValueError.

    columns: the data's, where they are recorded: a line of them is one of names even where they look like numbers, and
    their order in the file may be another. Other names are refused.
    """
    with path.open(encoding="utf-8", newline="") as file:
        first = next(csv.reader(file), [])
    ordered = columns is not None and sorted(first) == sorted(columns)
    named = ordered or not all(map(_is_number, first))
    if named and not ordered and columns is not None and len(first) == len(columns):
        raise ValueError(f"it has the columns {', '.join(first)}, the data {', '.join(columns)}")
    found = np.loadtxt(path, delimiter=",", skiprows=int(named), ndmin=2)
    return found[:, [first.index(name) for name in columns]] if ordered else found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_json_lines(path: Path) -> np.ndarray:
    """The inverse of `write_json_lines`: str [n]. Raises ValueError."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]  # U+2028 ends no line
    try:
        return np.array([json.loads(line)["text"] for line in lines], dtype=str)
    except (KeyError, TypeError) as error:
        raise ValueError('each line must be an object {"text": ...}') from error


READERS: dict[str, dict[str, Callable[[Path], np.ndarray]]] = {
    "points": {".csv": read_table},
    "text": {".jsonl": read_json_lines},
}


def read(path: Path, modality: Modality, of_data: Mapping[str, Any] | None = None) -> np.ndarray:
    """Samples at rest [n, ...] from a file that `writers` names. Raises OSError, or ValueError for anything else.

    of_data: what is recorded beside their shape, by which samples in the data's own form (tables, texts, recordings,
    .npy of another type than at rest) are brought to rest.
    """
    if modality.audible and path.is_dir():
        from ifm.data.sound_folder import read_folder

        return read_folder(path, (of_data or {}).get(modality.name))
    reader, dtype = READERS.get(modality.name, {}).get(path.suffix.lower()), np.dtype(modality.dtype)
    if reader is None and path.suffix.lower() != ".npy":
        folder = ["/"] if modality.audible else []
        raise ValueError(f"it must be {in_words(['.npy', *READERS.get(modality.name, {}), *folder])}")
    if reader is read_table:
        reader = partial(read_table, columns=((of_data or {}).get("points") or {}).get("columns"))
    found = np.load(path, allow_pickle=False) if reader is None else reader(path)
    if modality.from_own is not None and (reader is not None or found.dtype != dtype):
        found = modality.from_own(found, of_data or {})
    if found.ndim != 1 + len(modality.axes) or found.dtype.kind != dtype.kind:
        axes = ", ".join(modality.axes)
        raise ValueError(f"it holds {found.dtype} {list(found.shape)}, {modality.noun} are {dtype} [n, {axes}]")
    return found.astype(dtype, copy=False)


def holds_points(path: Path) -> bool:
    """Whether a file is one of points, by its name or its shape."""
    if path.suffix.lower() == ".csv":
        return True
    if path.suffix.lower() != ".npy":
        return False
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.ndim == 2 and found.dtype.kind == "f"


def in_words(suffixes: Iterable[str]) -> str:
    """e.g. "a NAME.npy, a NAME.png or a folder"."""
    ordered = sorted(suffixes, key=lambda suffix: (suffix == "/", suffix))
    return either(["a folder" if suffix == "/" else f"a NAME{suffix}" for suffix in ordered])
