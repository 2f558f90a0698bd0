"""Figures of samples that are no images, of points for example, as `ifm evaluate` judges them: the stage's own.

Samples are read from the files that `ifm sample` writes. The reference is a folder of the stage `reference`, whose
extractor judges, or of points a file of them.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import ifm
from ifm import modalities
from ifm.errors import UserError, in_a_line
from ifm.metrics.evaluation import Judging
from ifm.metrics.extractors import CoordinateExtractor, FeatureError
from ifm.metrics.reference import Reference
from ifm.metrics.request import Request
from ifm.modalities import Modality, files
from ifm.modalities.points import POINTS

if TYPE_CHECKING:
    from accelerate import Accelerator

LEAST = 2  # samples in a set


def kind_of(request: Request, made: Mapping[str, Any] | None) -> Modality | None:
    """What is to be judged: of the reference folder `made`, or of the reference's file; None: images, or unknown."""
    if made is not None:
        try:
            found = modalities.of(made)
        except (TypeError, ValueError):
            return None  # said where the folder is read
        return None if found.name == "images" else found
    return POINTS if request.reference.is_file() and files.holds_points(request.reference) else None


def check(request: Request, kind: Modality, made: Mapping[str, Any] | None) -> None:
    """Raises UserError at an option that is of images alone. Weights are also of the reference folder of `clap`."""
    takes_weights = made is not None and made.get("extractor") == "clap"
    for option, value in (
        ("extractor", request.extractor if request.extractor not in kind.extractors else None),
        ("resize", request.mode),
        ("weights", None if takes_weights else request.weights),
        ("weights-sha256", request.weights_sha256),
        ("image-size", request.resize),
        ("range", request.value_range),
        ("train", request.train),
        ("unseen", request.unseen),
        ("pairs", request.pairs or None),
    ):
        if value is not None:
            raise UserError(f"--{option}: is for images, and --reference {request.reference} holds {kind.noun}")
    if request.samples is None:
        raise UserError(f"--samples is missing: statistics are written of images, not of {kind.noun}")


def judge(
    request: Request,
    kind: Modality,
    reference: Reference | None,
    *,
    device: torch.device,
    accelerator: "Accelerator | None" = None,
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(protocol, figures, warnings). reference: the folder's, None: made of the file's points.

    Raises UserError where the samples are too few or of another shape.
    """
    if reference is None:
        reference = _of_file(request, kind, device)
    shape = tuple(reference.metadata["image_shape"])
    samples = _read("--samples", request.samples, kind, reference.metadata)
    if samples.shape[1:] != shape:
        found, wanted = kind.described(samples.shape[1:]), kind.described(shape)
        raise UserError(f"--samples {request.samples}: holds {found}, --reference {request.reference} {wanted}")
    if len(samples) % request.sets or len(samples) // request.sets < LEAST:
        raise UserError(
            f"--sets {request.sets}: {len(samples)} samples cannot be cut into {request.sets} equal sets of at least "
            f"{LEAST}"
        )
    judging = Judging(reference, reference.real(request.measures), kind.figures, None, None, accelerator)
    try:
        row, _, _ = judging.judge({"model": "samples", "sampler": "", "nfe": 0}, samples, seeds=request.sets)
    except FeatureError as error:
        raise UserError(f"--samples {request.samples}: {error}") from error
    about = ("model", "sampler", "nfe", "n_samples", "seeds", "warnings")
    figures = {key: value for key, value in row.items() if key not in about}
    return _protocol(request, kind, reference, samples), figures, row["warnings"]


def _of_file(request: Request, kind: Modality, device: torch.device) -> Reference:
    """A reference of points that somebody gives."""
    points = _read("--reference", request.reference, kind)
    if len(points) < LEAST:
        raise UserError(f"--reference {request.reference}: has {len(points)} points, at least {LEAST} are needed")
    metadata = {"image_shape": list(points.shape[1:]), "split": "train", "classes": None, "warnings": []}
    metadata["dimension"] = int(np.prod(points.shape[1:]))
    return Reference(
        CoordinateExtractor(device=device), {"train": points, "test": points[:0]}, None, None, None, metadata
    )


def _read(option: str, path: Path, kind: Modality, of_data: Mapping[str, Any] | None = None) -> np.ndarray:
    """Samples at rest [n, ...]; of_data: what the reference records of them. Raises UserError."""
    try:
        found = files.read(path, kind, of_data)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{option} {path}: cannot be read as {kind.noun} ({in_a_line(error)})") from error
    if not np.isfinite(found).all():
        raise UserError(f"{option} {path}: holds NaN or infinity; leave such {kind.noun} out")
    return found


def _protocol(request: Request, kind: Modality, reference: Reference, samples: np.ndarray) -> dict[str, Any]:
    """What the figures depend on: plain values for JSON."""
    split, real = reference.metadata["split"], reference.features
    told = {"shape": list(samples.shape[1:])} | ({} if kind.by_shape else {"modality": kind.name})
    return {
        "samples": {"path": str(request.samples), "count": len(samples), **told},
        "reference": {"path": str(request.reference), "count": len(real), **told, "split": split},
        **reference.extractor.describe(),
        "dimension": int(real.shape[1]),
        "sets": request.sets,
        "samples_per_set": len(samples) // request.sets,
        "sliced_projections": request.measures.sliced_projections,
        "device": reference.extractor.device.type,
        "versions": {"ifm": ifm.__version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "scipy")},
    }
