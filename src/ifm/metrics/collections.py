"""Images made elsewhere: a folder of image files, one .npy array, or an .npz archive; decoded as they are asked for.

Nothing is unpickled, and no file is held in memory whole.
"""

import hashlib
import math
import shutil
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ifm.data.decoding import WORKERS, decode, flatten, to_array
from ifm.data.local import SUFFIXES, image_files
from ifm.errors import UserError
from ifm.files import readable
from ifm.hardware.parallel import shared_batches
from ifm.modalities.images import to_uint8
from ifm.progress import progress

if TYPE_CHECKING:
    from accelerate import Accelerator

RANGES = {"unit": (0.0, 1.0), "signed": (-1.0, 1.0)}
KINDS = {1: "grey", 3: "colour"}
_CHANNELS = {"L": 1, "RGB": 3}
_LOOK = 256  # images looked at between two exchanges of processes
_SHOWN = 3


class ImagesError(UserError, ValueError):
    """The images cannot be used; the message names the file and the mend."""


@dataclass(frozen=True)
class Resize:
    """The largest centred square, antialiased to `size` (see `ifm.data.decoding.to_array`)."""

    size: int
    resample: str


class Pictures(ABC):
    """Images as they are stored: decoded, not yet brought to one size."""

    path: Path
    passed_over: int = 0  # other files and links that leave the folder

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """What a message calls image i."""

    @abstractmethod
    def picture(self, i: int) -> Image.Image:
        """Image i, mode L or RGB. Raises ImagesError."""


class FolderPictures(Pictures):
    """Image files of a folder and of those in it, sorted by path."""

    def __init__(self, path: Path) -> None:
        """Raises ImagesError where there are none."""
        self.path = path
        found = image_files(path)
        self._files, self.passed_over = found.paths, found.passed_over.total()
        if not self._files:
            arrays = sorted(file.name for file in path.glob("*.np[yz]"))
            mend = f"name one of its arrays: {', '.join(arrays[:_SHOWN])}" if arrays else "name a folder that has some"
            raise ImagesError(f"{path}: no {', '.join(SUFFIXES)} files ({self.passed_over} other files); {mend}")

    def __len__(self) -> int:
        return len(self._files)

    def name(self, i: int) -> str:
        return readable(str(self.path / self._files[i]))

    def picture(self, i: int) -> Image.Image:
        try:
            return flatten(decode((self.path / self._files[i]).read_bytes()))
        except (OSError, ValueError) as error:
            raise ImagesError(f"{self.name(i)}: is no readable image ({error}); mend or remove it") from error


class ArrayPictures(Pictures):
    """Rows of an array [n, C, H, W], [n, H, W, C] or [n, H, W]: uint8, or floats in a range that was stated."""

    def __init__(self, path: Path, array: np.ndarray, *, value_range: str | None) -> None:
        """value_range: one of RANGES, for floats. Raises ImagesError at another layout or dtype."""
        self.path, self._range = path, value_range
        self._array = _channels_last(array, path)  # [n, H, W, C]
        self.is_float = np.issubdtype(array.dtype, np.floating)
        if not self.is_float and array.dtype != np.uint8:
            raise ImagesError(f"{path}: holds {array.dtype}; save uint8 in 0..255, or floats and say --range")
        if self.is_float and value_range is None:
            raise ImagesError(
                f"{path}: holds {array.dtype}, whose white is not known; say --range unit for values in [0, 1] or "
                "--range signed for [-1, 1]"
            )

    @property
    def signed(self) -> bool:
        """Whether the values were said to be in [-1, 1]."""
        return self.is_float and self._range == "signed"

    def __len__(self) -> int:
        return len(self._array)

    def name(self, i: int) -> str:
        return f"{self.path}, image {i}"

    def picture(self, i: int) -> Image.Image:
        pixels = self._bytes(i) if self.is_float else np.ascontiguousarray(self._array[i])  # uint8 [H, W, C]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def _bytes(self, i: int) -> np.ndarray:
        """Floats [H, W, C] -> uint8, rounded as the pipeline's own samples are. Raises ImagesError."""
        values = np.array(self._array[i], np.float32)
        low, high = RANGES[self._range]
        if not np.isfinite(values).all():
            raise ImagesError(f"{self.name(i)}: holds NaN or infinity; leave such images out or mend what made them")
        if values.min() < low or values.max() > high:
            raise ImagesError(
                f"{self.name(i)}: values in [{values.min():g}, {values.max():g}] are outside --range {self._range}, "
                f"which is [{low:g}, {high:g}]; give the range they have, or clip them"
            )
        return to_uint8(torch.from_numpy(values if low < 0 else 2 * values - 1))


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


def open_pictures(path: Path, *, value_range: str | None) -> Pictures:
    """A folder, an .npy or an .npz, by its name. Raises ImagesError that says what may be given instead."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise ImagesError(f"{path}: no such file or folder")
    openers = {".npy": _open_npy, ".npz": _open_npz}
    if path.suffix.lower() not in openers or not path.is_file():
        raise ImagesError(
            f"{path}: is no set of images; give a folder of {', '.join(SUFFIXES)} files, an .npy or an .npz"
        )
    try:
        array = openers[path.suffix.lower()](path)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImagesError(f"{path}: cannot be read ({reason}); write it again with numpy.save or savez") from error
    return ArrayPictures(path, array, value_range=value_range)


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


# Folders and files


def _open_folder(path: Path) -> Pictures:
    arrays = sorted(path.glob("*.npy"))
    if arrays and (path / "metadata.json").is_file():
        images = [file for file in arrays if not file.name.startswith("features-")]
        mend = f"name one of its arrays, e.g. {images[0]}" if images else "it goes with --reference only"
        raise ImagesError(f"{path}: is a folder of the pipeline (metadata.json), not of images; {mend}")
    return FolderPictures(path)


def _open_npy(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        shape, order, dtype = _header(file, path.stat().st_size, path)
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def _open_npz(path: Path) -> np.ndarray:
    """The archive's one array, or its arr_0: mapped where it is stored as it is, else from a nameless copy on disk."""
    with zipfile.ZipFile(path) as archive:
        entry = _entry(archive, path)
        with archive.open(entry) as member:
            shape, order, dtype = _header(member, entry.file_size, path)
            offset = member.tell()
        if entry.compress_type == zipfile.ZIP_STORED:
            return np.memmap(path, dtype, "r", _data_start(path, entry) + offset, shape, order)
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if entry.file_size > free:
            raise ImagesError(
                f"{path}: {entry.filename} needs {entry.file_size} bytes unpacked, {tempfile.gettempdir()} has {free}; "
                "name a larger disk in TMPDIR, or save it as .npy"
            )
        with archive.open(entry) as member, tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(member, copy)
            copy.flush()
            return np.memmap(copy, dtype, "r", offset, shape, order)


def _entry(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    entries = {info.filename: info for info in archive.infolist() if info.filename.endswith(".npy")}
    if len(entries) == 1:
        return next(iter(entries.values()))
    if "arr_0.npy" in entries:
        return entries["arr_0.npy"]
    found = ", ".join(sorted(name.removesuffix(".npy") for name in entries)[:_SHOWN]) or "none"
    raise ImagesError(f"{path}: must hold one array, or images as arr_0; it has {found}")


def _data_start(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind a local header of 30 bytes, its name and its extra field."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset + 26)
        lengths = file.read(4)
    return entry.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _header(stream: IO[bytes], length: int, path: Path) -> tuple[tuple[int, ...], str, np.dtype]:
    """Shape, order and dtype of an .npy stream of `length` bytes, which is left where the data begin.

    Raises ValueError, ImagesError where the data are Python objects or not as long as they say.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ImagesError(f"{path}: holds pickled Python objects, which can run code; save uint8 images")
    if not math.prod(shape):
        raise ImagesError(f"{path}: holds no images, shape {list(shape)}")
    expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if expected != length:
        raise ImagesError(f"{path}: has {length} bytes, its header says {expected}; write or copy it again")
    return shape, "F" if fortran else "C", dtype


def _channels_last(array: np.ndarray, path: Path) -> np.ndarray:
    """A view [n, H, W, C] with 1 or 3 channels. Raises ImagesError where the shape does not tell which axis that is."""
    shape = array.shape
    if array.ndim == 3 and shape[2] not in KINDS:
        return array[..., None]
    if array.ndim == 4 and (shape[1] in KINDS) != (shape[3] in KINDS):
        return array if shape[3] in KINDS else array.transpose(0, 2, 3, 1)
    raise ImagesError(
        f"{path}: shape {list(shape)}; images are [n, C, H, W] or [n, H, W, C] with 1 or 3 channels, or [n, H, W]"
    )


def _text(size: tuple[int, ...]) -> str:
    """(H, W) as people say it."""
    return f"{size[1]} x {size[0]} pixels"
