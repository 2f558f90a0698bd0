"""Grids of images as PNG files."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ifm.files import atomic_path

COLUMNS = 8  # of the pipeline's grids
ROW, ROW_FONT, LONGEST_NAME = 16, 14, 24  # of rows with names: tiles at most, size of letters, length in letters


def grid(images: np.ndarray, *, columns: int, pad: int = 1) -> np.ndarray:
    """Tiles uint8 [n, C, H, W] into one picture, row by row: uint8 [H', W', 3]. Unused tiles stay white."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = pad + (i // columns) * (h + pad), pad + (i % columns) * (w + pad)
        canvas[top : top + h, left : left + w] = np.broadcast_to(image.transpose(1, 2, 0), (h, w, 3))
    return canvas


def grid_png(images: np.ndarray, *, columns: int, scale: int | None = None) -> bytes:
    """uint8 [n, C, H, W] as a PNG of tiles, each pixel `scale` wide; None: tiles of 32 pixels or a little more."""
    return _png(_tiles(images, columns=columns, scale=scale))


def save_grid(images: np.ndarray, path: Path, *, columns: int, scale: int | None = None) -> None:
    """Writes `grid_png` to a file, atomically."""
    _write(path, grid_png(images, columns=columns, scale=scale))


def side_by_side(
    pairs: Sequence[tuple[str, np.ndarray]], path: Path, *, columns: int, scale: int | None = None
) -> None:
    """Writes one PNG: for each (title, uint8 [n, C, H, W]) a panel of tiles under its title, left to right."""
    if not pairs:
        raise ValueError("side_by_side needs at least one panel")
    panels = [_titled(title, _tiles(images, columns=columns, scale=scale)) for title, images in pairs]
    gap, lead = 24, max(title.height for title, _ in panels)
    width = sum(picture.width for _, picture in panels) + gap * (len(panels) + 1)
    canvas = Image.new("RGB", (width, lead + max(picture.height for _, picture in panels) + gap), "white")
    left = gap
    for title, picture in panels:
        canvas.paste(title, (left, lead - title.height))
        canvas.paste(picture, (left, lead))
        left += picture.width + gap
    _write(path, _png(canvas))


def save_rows(rows: Sequence[tuple[str, np.ndarray]], path: Path, *, scale: int | None = None) -> None:
    """Writes one PNG: for each (name, uint8 [n, C, H, W]) a row of tiles behind its name, top to bottom.

    A row of more than ROW images goes on below. A long name is cut.
    """
    if not rows:
        raise ValueError("save_rows needs at least one row")
    columns = min(ROW, max(len(images) for _, images in rows))
    parts = [(_cut(name), _tiles(images, columns=columns, scale=scale)) for name, images in rows]
    font, gap = ImageFont.load_default(ROW_FONT), 4
    lead = math.ceil(max(font.getlength(name) for name, _ in parts)) + 2 * gap
    height = sum(max(picture.height, 2 * ROW_FONT) + gap for _, picture in parts) - gap
    canvas = Image.new("RGB", (lead + max(picture.width for _, picture in parts), height), "white")
    top = 0
    for name, picture in parts:
        tall = max(picture.height, 2 * ROW_FONT)
        ImageDraw.Draw(canvas).text((gap, top + tall / 2), name, fill="#1a1a1a", font=font, anchor="lm")
        canvas.paste(picture, (lead, top))
        top += tall + gap
    _write(path, _png(canvas))


def _cut(name: str) -> str:
    """In one line of bounded length."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 3]}..."


def shrink_png(png: bytes, factor: float) -> bytes:
    """The picture at `factor` times its width and height, each new pixel a mean of the old ones it covers."""
    with Image.open(io.BytesIO(png)) as picture:
        size = tuple(max(1, round(side * factor)) for side in picture.size)
        return _png(picture.convert("RGB").resize(size, Image.Resampling.BOX))


def side_by_side_choice(samplers: list[dict[str, Any]], *, best: int | None = None) -> list[dict[str, Any]]:
    """The flow at its fewest evaluations, the teacher at `best` and, where it has others, at its fewest.

    samplers: as `Sampler.describe` gives them ("name", "model", "sampler", "nfe"); best: NFE, None: the teacher's most.
    """
    flows = sorted((s for s in samplers if s["model"] == "flow"), key=lambda s: s["nfe"])
    teachers = sorted((s for s in samplers if s["model"] == "teacher"), key=lambda s: s["nfe"])
    shown = [s for s in teachers if s["nfe"] == best] or teachers[-1:]
    return [*flows[:1], *shown[:1], *(s for s in teachers[:1] if s not in shown)]


def _tiles(images: np.ndarray, *, columns: int, scale: int | None) -> Image.Image:
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) == 0:
        raise ValueError(f"images must be uint8 [n, C, H, W] with n > 0, got {images.dtype} {images.shape}")
    scale = scale or max(1, -(-32 // max(images.shape[2:])))
    enlarged = images.repeat(scale, axis=2).repeat(scale, axis=3)
    picture = grid(enlarged, columns=columns, pad=2)
    return Image.fromarray(picture[2:-2, 2:-2])  # no frame: the tiles align with what surrounds them


def _titled(title: str, picture: Image.Image, *, size: int = 17) -> tuple[Image.Image, Image.Image]:
    """The title as a picture, wrapped to the tiles' width; tiles narrower than a word get white on their right."""
    font = ImageFont.load_default(size)
    words = title.split()
    width = max([picture.width, *(math.ceil(font.getlength(word)) for word in words)])
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    step = round(size * 1.35)
    band = Image.new("RGB", (width, step * len(lines) + 22), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(band).text((0, 14 + i * step), line, fill="#1a1a1a", font=font)
    widened = Image.new("RGB", (width, picture.height), "white")
    widened.paste(picture)
    return band, widened


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return data.getvalue()


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
