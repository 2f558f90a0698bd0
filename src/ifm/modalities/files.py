"""How samples become files that people open: by modality and suffix ("/": a folder), beside .npy, which all have.

A writer takes (path, batches, n, shape): batches of (members, samples at rest [m, *shape]), n samples in all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ifm import modalities
from ifm.files import atomic_path, fresh_folder
from ifm.modalities import wav

Batches = Iterable[tuple[range, np.ndarray]]
Writer = Callable[[Path, Batches, int, tuple[int, ...]], None]
Pictures = Callable[[np.ndarray], np.ndarray]  # samples at rest -> uint8 [n, C, H, W]
COLUMNS = 8  # of a grid


def write_array(out: Path, drawn: Batches, n: int, shape: tuple[int, ...], *, dtype: str) -> None:
    """One .npy [n, *shape]."""
    with atomic_path(out) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", dtype=np.dtype(dtype), shape=(n, *shape))
        for members, samples in drawn:
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


def write_table(out: Path, drawn: Batches, n: int, shape: tuple[int, ...]) -> None:
    """A CSV with a column for each coordinate, in as many digits as give the same float32 back."""
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(f"x_{i}" for i in range(shape[0])) + "\n")
        for _, points in drawn:
            np.savetxt(file, points, fmt="%.9g", delimiter=",")


WRITERS: dict[str, dict[str, Writer]] = {
    "images": {".png": write_grid, "/": write_images},
    "points": {".csv": write_table},
}


def writers(modality: str, of_data: Mapping[str, Any] | None = None) -> dict[str, Writer]:
    """Those of one modality, by suffix. of_data: what a model's description says beside the shape of its samples."""
    kind = modalities.MODALITIES[modality]
    found = {".npy": partial(write_array, dtype=kind.dtype)} | WRITERS.get(modality, {})
    if kind.audible:
        described = (of_data or {}).get(modality)
        found[".png"] = partial(write_grid, pictures=kind.pictures)
        found |= {
            ".wav": partial(wav.write_one, described=described),
            "/": partial(wav.write_folder, described=described),
        }
    return found


def in_words(suffixes: Iterable[str]) -> str:
    """e.g. "a NAME.npy, a NAME.png or a folder"."""
    ordered = sorted(suffixes, key=lambda suffix: (suffix == "/", suffix))
    *first, last = ["a folder" if suffix == "/" else f"a NAME{suffix}" for suffix in ordered]
    return f"{', '.join(first)} or {last}" if first else last
