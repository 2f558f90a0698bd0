"""What `ifm evaluate` is asked, and the checks that it fits, before any feature is taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifm.errors import UserError
from ifm.files import read_json
from ifm.metrics.collections import Images, Resize, same_shape
from ifm.metrics.comparison import Measures, least_samples
from ifm.metrics.reference import METADATA
from ifm.metrics.statistics import PYTORCH, Statistics
from ifm.metrics.stored import Pictures, open_pictures

_NEEDED = {"checksum", "dimension", "split", "n_train", "n_test", "image_shape"}
OTHERS = {"coordinates": "points", "symbols": "texts"}  # by extractor


@dataclass(frozen=True)
class Request:
    """What to judge, and how."""

    samples: Path | None  # None: only the statistics of the reference are asked for
    reference: Path  # images, a folder that the stage `reference` made, or an .npz of statistics
    measures: Measures
    train: Path | None = None
    unseen: Path | None = None
    extractor: str | None = None  # None: the reference folder's, else inception
    mode: str | None = None  # how Inception's 299 x 299 are made; None: the reference's, else clean
    weights: Path | None = None
    weights_sha256: str | None = None
    resize: Resize | None = None
    value_range: str | None = None  # of arrays of floats
    sets: int = 1
    batch_size: int = 256
    pairs: bool = False


def reference_metadata(folder: Path) -> dict[str, Any] | None:
    """metadata.json of a folder that the stage `reference` made; None: it is none."""
    file = folder / METADATA
    if not file.is_file():
        return None
    try:
        values = read_json(file)
    except ValueError as error:
        raise UserError(f"--reference {error}") from error
    if not isinstance(values, dict) or "extractor" not in values:
        return None
    missing = _NEEDED - values.keys()
    if missing:
        raise UserError(f"--reference {file}: has no {min(missing)}; run `dvc repro --force reference`")
    return values


def check_request(request: Request, made: Mapping[str, Any] | None, stated: Statistics | None = None) -> None:
    """Raises UserError where options contradict each other or the reference: a folder, or statistics."""
    _check_mode(request, made)
    if stated is not None:
        _check_options_of_statistics(request)
    if request.unseen is not None and request.train is None and made is None:
        raise UserError("--unseen is compared with the training images; give --train too")
    if request.train is not None and request.unseen is None and made is None and not request.pairs:
        raise UserError("--train alone changes no figure; give held-out images by --unseen, or --pairs")
    if request.pairs and request.train is None:
        raise UserError("--pairs shows training images; give them by --train (of the pipeline: data/processed/*.npy)")
    if request.weights is not None and not request.weights.exists():
        raise UserError(f"--weights {request.weights}: no such file or folder")
    if request.measures.neighbour_samples <= request.measures.neighbours:
        raise UserError(
            f"--neighbour-samples {request.measures.neighbour_samples} must be above --neighbours "
            f"{request.measures.neighbours}"
        )
    if made is None:
        if request.extractor == "classifier":
            raise UserError(
                f"--extractor classifier needs the classifier of a reference folder (data/reference), and --reference "
                f"{request.reference} is none; use inception, dinov2 or pixels"
            )
        return
    name, checksum = made["extractor"], made["checksum"]
    if name in OTHERS:
        raise UserError(
            f"--reference {request.reference}: was made of {OTHERS[name]} and has the shape of images; run "
            "`dvc repro --force reference`"
        )
    if request.extractor not in (None, name):
        raise UserError(
            f"--extractor {request.extractor}: --reference {request.reference} was made with {name}; leave the option "
            "out, or give the reference as images"
        )
    if request.weights_sha256 not in (None, checksum):
        raise UserError(
            f"--weights-sha256 {request.weights_sha256}: --reference {request.reference} was made with {checksum}; "
            "leave the option out, or give the reference as images"
        )


def _check_mode(request: Request, made: Mapping[str, Any] | None) -> None:
    if request.mode == PYTORCH:
        raise UserError(
            "--resize pytorch: pytorch-fid has a network file and a resizing of its own, which are not here; give the "
            "reference as images, or statistics that clean-fid or EDM's fid.py made"
        )
    if request.mode is None:
        return
    name = request.extractor or (made["extractor"] if made else "inception")
    if name != "inception":
        raise UserError(f"--resize {request.mode}: is of --extractor inception, not of {name}; leave it out")
    if made is not None:
        raise UserError(
            f"--resize {request.mode}: --reference {request.reference} has features of its own resizing (clean); leave "
            "the option out, or give the reference as images"
        )


def _check_options_of_statistics(request: Request) -> None:
    """Raises UserError at options that need more than a mean and a covariance."""
    for name in ("train", "unseen", "pairs"):
        if getattr(request, name):
            raise UserError(
                f"--{name}: --reference {request.reference} holds a mean and a covariance alone, and only FID and the "
                "inception score are computed; leave the option out, or give the reference as images"
            )
    if request.samples is None:
        raise UserError("--write-statistics: --reference holds statistics already; give images, or --samples too")


def opened_pictures(
    request: Request, made: Mapping[str, Any] | None, stated: Statistics | None = None
) -> dict[str, Pictures]:
    """The sets of images that were given, by name. Raises UserError with the option before the message."""
    given = {"samples": request.samples, "train": request.train, "unseen": request.unseen}
    if made is None and stated is None:
        given["reference"] = request.reference
    opened = {}
    for name, path in given.items():
        if path is not None:
            try:
                opened[name] = open_pictures(path, value_range=request.value_range)
            except UserError as error:
                raise UserError(f"--{name} {error}") from error
    if request.value_range is not None and not any(getattr(p, "is_float", False) for p in opened.values()):
        raise UserError(f"--range {request.value_range}: is for arrays of floats, and none was given; leave it out")
    return opened


def check_counts(
    request: Request, opened: Mapping[str, Pictures], made: Mapping[str, Any] | None, stated: Statistics | None = None
) -> None:
    """Raises UserError where a set of images is too small for the figures."""
    if request.samples is None:
        if made is None and len(opened["reference"]) < 2:
            raise UserError(f"--reference {request.reference}: one image has no covariance; give more")
        return
    k = request.measures.neighbours
    least = max(least_samples(request.measures), 2 * k, 4)
    count = len(opened["samples"])
    if count % request.sets:
        raise UserError(f"--sets {request.sets}: {count} samples cannot be cut into {request.sets} equal sets")
    if stated is not None:
        if count // request.sets < 2:
            raise UserError(f"--samples {request.samples}: {count // request.sets} image in a set has no covariance")
        return
    real = len(opened["reference"]) if made is None else made[f"n_{made['split']}"]
    for name, n in (("samples", count // request.sets), ("reference", real)):
        if n < least:
            what = " in a set" if name == "samples" and request.sets > 1 else ""
            raise UserError(
                f"--{name} {getattr(request, name)}: {n} images{what}, the figures need {least}; give more, or lower "
                f"--neighbours ({k}) or --sets ({request.sets})"
            )


def check_shapes(request: Request, images: Mapping[str, Images], made: Mapping[str, Any] | None) -> None:
    """Raises UserError where the sets of images differ in size or channels."""
    shapes = {f"--{name} {part.pictures.path}": part.shape for name, part in images.items()}
    mend = "say what to resize both to with --image-size"
    if made is not None:
        shapes[f"--reference {request.reference}"] = tuple(made["image_shape"])
        mend = f"resize to the reference's with --image-size {shapes[f'--reference {request.reference}'][-1]}"
    if not shapes:
        return
    (first, shape), *others = shapes.items()
    for name, other in others:
        same_shape(first, shape, name, other, mend=mend)
