"""Statistics of real images as they are published: mean `mu` [d] and covariance `sigma` [d, d] in an .npz.

EDM's fid.py, clean-fid and pytorch-fid write this form. It does not say which extractor made the features, nor how the
images were resized: whoever uses such a file has to. Files of `write_statistics` say it in a third entry, which the
other readers pass over.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ifm.config import MOST_FEATURES
from ifm.errors import UserError, in_a_line
from ifm.files import atomic_path
from ifm.metrics.comparison import Real
from ifm.metrics.distances import Moments

MEAN, COVARIANCE, SAID = "mu", "sigma", "ifm"
CLEAN, LEGACY, PYTORCH = "clean", "legacy", "pytorch"
MODES = (CLEAN, LEGACY, PYTORCH)  # how Inception's 299 x 299 are made
EXTRACTORS = ("inception", "dinov2", "pixels")  # that need no folder of the pipeline
STATED = ("extractor", "checksum", "mode")  # what two sides must share
_ASYMMETRY = 1e-3  # of the largest entry: float32 files are symmetric to rounding


@dataclass(frozen=True)
class Statistics:
    """Moments of features, and what is known of their making: extractor, checksum, mode, count, image_shape."""

    moments: Moments
    said: Mapping[str, Any] = field(default_factory=dict)  # empty: the file does not say


@dataclass(frozen=True)
class KnownMoments(Real):
    """Real data of which the moments alone are known: features are [0, d]."""

    known: Moments | None = None

    @property
    def moments(self) -> Moments:
        return self.known


def is_statistics(path: Path) -> bool:
    """Whether a file is an .npz of statistics. One that holds images too (arr_0, as ADM's) is one of images."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):  # its reader says what is wrong
        return False
    return {f"{MEAN}.npy", f"{COVARIANCE}.npy"} <= names and "arr_0.npy" not in names


def read_statistics(path: Path) -> Statistics:
    """The statistics of a file; nothing is unpickled. Raises UserError where they are none."""
    try:
        with zipfile.ZipFile(path) as archive:
            d = _shape(archive, MEAN)
            if len(d) != 1 or not 0 < d[0] <= MOST_FEATURES or _shape(archive, COVARIANCE) != (*d, *d):
                raise UserError(
                    f"--reference {path}: {MEAN} has shape {list(d)}, {COVARIANCE} "
                    f"{list(_shape(archive, COVARIANCE))}; they must be [d] and [d, d], d at most {MOST_FEATURES:,}"
                )
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in (MEAN, COVARIANCE))
            said = json.loads(str(arrays[SAID])) if SAID in arrays else {}
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--reference {path}: cannot be read ({in_a_line(error)}); fetch or write it again") from error
    _check(path, mean, covariance)
    if not isinstance(said, dict) or not all(isinstance(said.get(key), str | None) for key in STATED):
        raise UserError(f"--reference {path}: its entry `{SAID}` has another form; write the file again")
    return Statistics(Moments(mean, covariance), said)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Writes float64 mu and sigma, and what is known of their making; the same bytes for the same statistics."""
    said = np.array(json.dumps(dict(statistics.said), sort_keys=True))
    values = {MEAN: statistics.moments.mean, COVARIANCE: statistics.moments.covariance, SAID: said}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:  # np.savez would pickle objects
        for name, array in values.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


def agreed(path: Path, statistics: Statistics, *, extractor: str | None, mode: str | None) -> tuple[str, str | None]:
    """The extractor and Inception's mode that samples must be judged with: the file's, else what the user states.

    Raises UserError where they differ, or cannot be known.
    """
    for option, given, key in (("--extractor", extractor, "extractor"), ("--resize", mode, "mode")):
        said = statistics.said.get(key)
        if said is not None and given not in (None, said):
            raise UserError(f"{option} {given}: --reference {path} was made with {said}; leave the option out")
    name, way = extractor or statistics.said.get("extractor"), mode or statistics.said.get("mode")
    if name is None:
        raise UserError(
            f"--reference {path}: statistics do not say which extractor made them; state it: --extractor inception "
            f"--resize {CLEAN} (clean-fid's default) or --resize {LEGACY} (EDM, StyleGAN, clean-fid's "
            "legacy_tensorflow), or --extractor dinov2"
        )
    if name not in EXTRACTORS or way not in (None, CLEAN, LEGACY):
        raise UserError(
            f"--reference {path}: was made with {name}{f' ({way})' if way else ''}, which only the folder that made it "
            f"has; give that folder, or statistics of {', '.join(EXTRACTORS)}"
        )
    if name == "inception" and way is None:
        raise UserError(
            f"--reference {path}: statistics do not say how images became 299 x 299, and figures differ by it; state "
            f"it: --resize {CLEAN} (clean-fid's default) or --resize {LEGACY} (EDM, StyleGAN, legacy_tensorflow)"
        )
    return name, way


def check_against(path: Path, statistics: Statistics, facts: Mapping[str, Any], *, width: int) -> None:
    """facts: what `facts_of` says of the extractor at hand. Raises UserError where it is another than the file's."""
    d = len(statistics.moments.mean)
    if d != width:
        raise UserError(
            f"--reference {path}: holds statistics of {d} features, --extractor {facts['extractor']} has {width}; "
            "they were made with another extractor, or of images of another size"
        )
    said = statistics.said.get("checksum")
    if said not in (None, facts["checksum"]):
        raise UserError(
            f"--reference {path}: was made with weights of sha256 {said}, those at hand have {facts['checksum']}; give "
            "the same file by --weights and --weights-sha256"
        )


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape that an array's header states, before anything is unpacked. Raises ValueError."""
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{name}: version {version} of the format")
        shape, _, dtype = readers[version](stream)
    if dtype.kind != "f":
        raise ValueError(f"{name} holds {dtype}, not floats")
    return shape


def _check(path: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Raises UserError where the two are no mean and covariance."""
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"--reference {path}: {MEAN} or {COVARIANCE} holds NaN or infinity; fetch or write it again")
    uneven = np.abs(covariance - covariance.T).max() > _ASYMMETRY * np.abs(covariance).max()
    if uneven or (np.diagonal(covariance) < 0).any():
        raise UserError(f"--reference {path}: {COVARIANCE} is no covariance (not symmetric, or a variance below 0)")
