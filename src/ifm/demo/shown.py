"""What the page shows of samples, by modality: a picture, the sounds or the texts, and the file to download."""

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ifm.demo.drawing import Answer
from ifm.modalities import files
from ifm.modalities.pictures import grid_png

SIDE = 512  # pixels of a picture of points
REACH = 1.2  # its edge, in units of the data: the laws' points
STANDARDISED = 3.5  # of columns of numbers, in standard deviations
PICTURE = 96  # the least pixels of an image's side


@dataclass(frozen=True)
class Shown:
    """A picture (images, spectrograms, points), a WAV file of all sounds, or a TXT file of all texts; else None."""

    picture: Image.Image | None = None
    wav: bytes | None = None
    txt: bytes | None = None


def show(answer: Answer, *, columns: int = 4) -> Shown:
    """Samples as people look at, listen to or read them. The files are those of `ifm sample --out`."""
    kind = answer.modality
    if kind.preview == "text":
        return Shown(txt=written(answer, ".txt"))
    return Shown(picture(answer, columns=columns), wav=written(answer, ".wav") if kind.audible else None)


def written(answer: Answer, suffix: str) -> bytes:
    """The file that `ifm sample --out NAME.suffix` writes of the samples."""
    samples = answer.modality.own(answer.samples, answer.of_data)
    write = files.writers(answer.modality.name, answer.of_data)[suffix]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"samples{suffix}"
        write(out, [(range(len(samples)), samples)], len(samples), answer.samples.shape[1:])
        return out.read_bytes()


def picture(answer: Answer, *, columns: int = 4) -> Image.Image:
    """A grid of images or spectrograms, or points in the plane of their first two coordinates."""
    kind = answer.modality
    if kind.preview == "scatter":
        return scatter(answer.samples, reach=STANDARDISED if "modality" in answer.of_data else REACH)
    pictures = kind.pictures(answer.samples)
    scale = max(1, PICTURE // pictures.shape[-1])
    return Image.open(io.BytesIO(grid_png(pictures, columns=columns, scale=scale)))


def scatter(points: np.ndarray, *, reach: float = REACH) -> Image.Image:
    """float32 [n, d] as dots of a square of 2 * reach."""
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(canvas)
    for x, y in _plane(points, reach):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill="#3949ab")
    return canvas


def _plane(points: np.ndarray, reach: float) -> Iterator[tuple[float, float]]:
    second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    for x, y in zip(points[:, 0], second, strict=True):
        yield SIDE * (0.5 + float(x) / (2 * reach)), SIDE * (0.5 - float(y) / (2 * reach))
