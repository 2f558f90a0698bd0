"""One encoded image to an array: decode, orient, flatten, crop, resize."""

import io
import os
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageOps

from ifm.errors import in_a_line

WORKERS = min(8, os.cpu_count() or 1)  # threads that decode
# Named, because Pillow has openers that start other programs (EPS) or that nobody's image files need.
_AVIF = ("AVIF",) if find_spec("PIL._avif") else ()  # from Pillow 11.3 on, as it was built
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *_AVIF)
_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}
_GREY, _DEEP_GREY = ("1", "L"), ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TIFF_PHOTOMETRIC = 262
_COLOUR = ("P", "RGB", "RGBX", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV")


def decode(data: bytes) -> Image.Image:
    """Encoded bytes -> the first frame, fully loaded. Raises ValueError with the reason where that fails."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{pixels} pixels are more than the limit of {Image.MAX_IMAGE_PIXELS}")
        if image.mode in _DEEP_GREY and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0:
            # Pillow would take it for black.
            raise ValueError("a 16-bit TIFF whose zero is white; save it with zero as black")
        image.load()
    # Pillow's decoders answer damaged bytes with nearly any exception.
    except Exception as error:
        # Pillow names the in-memory file by its address, which says nothing and differs from run to run.
        raise ValueError(_unknown(data) if "cannot identify" in str(error) else in_a_line(error)) from error
    return image


def _unknown(data: bytes) -> str:
    """What to say of bytes that no decoder takes, by their beginning."""
    if not data:
        return "an empty file"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a TIFF with pixels of a kind that Pillow does not read"
    if data[4:12] in (b"ftypavif", b"ftypavis") and not _AVIF:
        return "AVIF, which this Pillow has no decoder for; version 11.3 or newer has"
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        return "HEIC or another format that Pillow does not read; convert it to PNG or JPEG"
    return "no known image format"


def has_more_frames(image: Image.Image) -> bool:
    """Whether a decoded file is an animation or a stack, of which the first picture was taken."""
    try:
        # Telephones put a second picture, for depth or brightness, behind a JPEG.
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame is damaged
        return False


def deep_maximum(image: Image.Image) -> int | None:
    """The highest value of a grey image with more than 8 bits, else None."""
    return int(np.asarray(image).max()) if image.mode in _DEEP_GREY else None


def flatten(image: Image.Image) -> Image.Image:
    """Upright, 8 bits, no palette, what is transparent on white: mode L or RGB.

    Raises ValueError for a pixel mode with no such meaning, as floating point.
    """
    image = _upright(image)
    if image.mode in _DEEP_GREY:
        return _eight_bits(image)
    if image.mode not in _GREY + _COLOUR:
        allowed = ", ".join(_GREY + _DEEP_GREY + _COLOUR)
        raise ValueError(f"pixel mode {image.mode} is not supported; allowed: {allowed}; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in _GREY else "RGB")


def to_array(image: Image.Image, *, size: int, channels: int, resample: str) -> np.ndarray:
    """Any image -> uint8 [C, S, S]: flatten, grey or RGB, largest centred square, antialiased resize.

    An image that has the right size and channels already keeps its pixels. Raises ValueError as `flatten`.
    """
    image = flatten(image).convert({1: "L", 3: "RGB"}[channels])
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), _FILTERS[resample])
    array = np.asarray(image)  # [S, S] or [S, S, 3]
    return np.ascontiguousarray(np.atleast_3d(array).transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says. EXIF that cannot be read has no orientation: the pixels stand."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey [0, 65535] -> L by round(v / 257): white stays white, a transparent grey becomes white."""
    values = np.asarray(image).astype(np.int64)  # [H, W]
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixel mode {image.mode} holds {values.min()}..{values.max()}, outside 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)
