"""Figures of a folder of samples against the reference, sampler by sampler."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ifm.errors import UserError
from ifm.files import read_json
from ifm.metrics.classifier import classify
from ifm.metrics.distances import fid, kid, moments
from ifm.metrics.extractors import features
from ifm.metrics.reference import BATCH, Reference

MEND = "run `dvc repro --force sample@...`"


def evaluate_samples(
    folder: Path,
    reference: Reference,
    *,
    kid_subsets: int,
    kid_subset_size: int,
    seed: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, dict[str, Any]]:
    """{sampler name: {model, sampler, nfe, n_samples, fid, kid, endpoint_rms, class_shares, min_class_share}}.

    endpoint_rms: root mean square difference, in units of data in [-1, 1], from the teacher at its largest NFE started
    at the same x_T; averaged over samples, for the flow's samplers. Raises UserError at samples that cannot be judged.
    """
    metadata = read_json(folder / "metadata.json")
    expected = tuple(reference.metadata["image_shape"])
    if tuple(metadata["image_shape"]) != expected:
        raise UserError(f"{folder}: images of shape {metadata['image_shape']}, the reference has {list(expected)}")
    teachers = [s for s in metadata["samplers"] if s["model"] == "teacher"]
    best = _load(folder, max(teachers, key=lambda s: s["nfe"])["name"], expected) if teachers else None

    figures: dict[str, dict[str, Any]] = {}
    for sampler in progress(metadata["samplers"]):
        images = _load(folder, sampler["name"], expected)
        found = features(reference.extractor, batches(images, BATCH))
        row = {
            "model": sampler["model"],
            "sampler": sampler["sampler"],
            "nfe": sampler["nfe"],
            "n_samples": len(images),
            "fid": fid(moments(found), reference.moments),
            "kid": kid(found, reference.features, subsets=kid_subsets, subset_size=kid_subset_size, seed=seed),
        }
        if sampler["model"] == "flow" and best is not None:
            if len(images) != len(best):
                raise UserError(
                    f"{folder}: {sampler['name']} has {len(images)} images, the teacher {len(best)}; {MEND}"
                )
            row["endpoint_rms"] = endpoint_rms(images, best)
        if reference.classifier is not None:
            classes = len(reference.metadata["classes"])
            shares = np.bincount(classify(reference.classifier, images), minlength=classes) / len(images)
            row |= {"min_class_share": float(shares.min()), "class_shares": shares.tolist()}
        figures[sampler["name"]] = row
    return figures


def endpoint_rms(images: np.ndarray, paired: np.ndarray) -> float:
    """Mean over samples of |x - y| / sqrt(N), for uint8 images [n, C, H, W] read as [-1, 1]."""
    difference = (images.astype(np.float64) - paired) / 127.5
    return float(np.sqrt((difference**2).reshape(len(images), -1).mean(axis=1)).mean())


def batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The images `size` at a time."""
    for start in range(0, len(images), size):
        yield np.asarray(images[start : start + size])


def _load(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The images of one sampler: uint8 [n >= 2, *shape]."""
    path = folder / f"{name}.npy"
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {MEND}") from error
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) < 2:
        raise UserError(
            f"{path}: must be uint8 [n >= 2, {', '.join(map(str, shape))}], "
            f"got {images.dtype} {list(images.shape)}; {MEND}"
        )
    return images
