"""Sets of images made elsewhere: looked at once, brought to one shape, decoded as they are asked for."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from ifm.data.decoding import WORKERS, to_array
from ifm.hardware.parallel import shared_batches
from ifm.metrics.stored import KINDS, ArrayPictures, ImagesError, Pictures
from ifm.progress import progress

if TYPE_CHECKING:
    from accelerate import Accelerator

_CHANNELS = {"L": 1, "RGB": 3}
_LOOK = 256  # images looked at between two exchanges of processes


@dataclass(frozen=True)
class Resize:
    """The largest centred square, antialiased to `size` (see `ifm.data.decoding.to_array`)."""

    size: int
    resample: str


@dataclass(frozen=True)
class Images:
    """A set of images of one size, uint8 [n, C, H, W]; a slice decodes just its images."""

    pictures: Pictures
    channels: int
    size: tuple[int, int]  # (H, W)
    resize: Resize | None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, *self.size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """uint8 [m, C, H, W]."""
        return self.take(range(*rows.indices(len(self))))

    def take(self, rows: Sequence[int]) -> np.ndarray:
        """Some images: uint8 [len(rows), C, H, W]."""
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(self._array, rows))
        return np.stack(found) if found else np.empty((0, *self.shape), np.uint8)

    def _array(self, i: int) -> np.ndarray:
        """uint8 [C, H, W]."""
        picture = self.pictures.picture(i)
        if self.resize is not None:
            return to_array(picture, size=self.resize.size, channels=self.channels, resample=self.resize.resample)
        pixels = np.asarray(picture.convert({1: "L", 3: "RGB"}[self.channels]))
        return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


@dataclass(frozen=True)
class Look:
    """What a look at some images finds, before anything is computed from them."""

    channels: int = 1  # the most of any: a grey image among colour ones is repeated
    darkest: int = 255
    flat: bool = True  # each image has one colour
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)  # (H, W): the first that has it; two at most
    digests: frozenset[bytes] = frozenset()  # of the images' pixels; two at most
    fault: str | None = None

    def __or__(self, other: "Look") -> "Look":
        return Look(
            max(self.channels, other.channels),
            min(self.darkest, other.darkest),
            self.flat and other.flat,
            dict(sorted((other.sizes | self.sizes).items(), key=lambda size: size[1])[:2]),
            frozenset(sorted(self.digests | other.digests)[:2]),
            self.fault or other.fault,
        )


def inspected(pictures: Pictures, *, resize: Resize | None, accelerator: "Accelerator | None" = None) -> Images:
    """Looks at every image once, shared out over the processes, and brings the set to one shape.

    Raises ImagesError, in every process, at images that cannot be read or have no law: all the same, or without
    content; and at several sizes where no `resize` makes them one.
    """
    seen = _look(pictures, accelerator)
    path = pictures.path
    if len(seen.sizes) > 1 and resize is None:
        (one, i), (two, j) = seen.sizes.items()
        raise ImagesError(
            f"{path}: images of several sizes, {pictures.name(i)} is {_text(one)}, {pictures.name(j)} {_text(two)}; "
            "say what to resize them to with --image-size"
        )
    if len(seen.digests) == 1:
        raise ImagesError(f"{path}: all {len(pictures)} images are the same; figures need images that differ")
    if seen.flat:
        raise ImagesError(f"{path}: every image is one constant colour; look at what made them")
    if isinstance(pictures, ArrayPictures) and pictures.signed and seen.darkest > 127:
        raise ImagesError(f"{path}: --range signed, but no value is below 0; values in [0, 1] are --range unit")
    size = next(iter(seen.sizes)) if resize is None else (resize.size, resize.size)
    return Images(pictures, seen.channels, size, resize)


def same_shape(one: str, a: tuple[int, ...], other: str, b: tuple[int, ...], *, mend: str) -> None:
    """Raises ImagesError, naming both, where two sets of images [C, H, W] have another size or other channels."""
    if a[0] != b[0]:
        raise ImagesError(f"{one} is {KINDS[a[0]]}, {other} is {KINDS[b[0]]}; convert one of them")
    if a != b:
        raise ImagesError(f"{one} has images of {_text(a[1:])}, {other} of {_text(b[1:])}; {mend}")


def _look(pictures: Pictures, accelerator: "Accelerator | None") -> Look:
    """Raises ImagesError at the first image that cannot be read."""

    def at(i: int) -> Look:
        picture = pictures.picture(i)
        extrema = picture.getextrema()
        bands = [extrema] if picture.mode == "L" else extrema
        size = (picture.height, picture.width)
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16, key=f"{picture.mode}{size}".encode()).digest()
        return Look(
            _CHANNELS[picture.mode],
            min(low for low, _ in bands),
            all(low == high for low, high in bands),
            {size: i},
            frozenset([digest]),
        )

    def of(rows: range) -> Look:
        # A fault is handed on, not raised: the other processes wait for this one's answer.
        try:
            with ThreadPoolExecutor(WORKERS) as pool:
                return reduce(Look.__or__, pool.map(at, rows))
        except ImagesError as error:
            return Look(fault=str(error))

    seen = Look()
    with progress(total=len(pictures), label=f"look at {pictures.path.name}", unit="img") as bar:
        for rows, part in shared_batches(of, count=len(pictures), batch_size=_LOOK, accelerator=accelerator):
            seen |= part
            bar.update(len(rows))
            if seen.fault is not None:
                raise ImagesError(seen.fault)
    return seen


def _text(size: tuple[int, ...]) -> str:
    """(H, W) as people say it."""
    return f"{size[1]} x {size[0]} pixels"
