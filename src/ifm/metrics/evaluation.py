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
from ifm.metrics.points import energy_distance, mean_distance, nearest_shares, sliced_wasserstein
from ifm.metrics.reference import BATCH, Reference

MEND = "run `dvc repro --force sample@...`"


def evaluate_samples(
    folder: Path,
    reference: Reference,
    *,
    kid_subsets: int,
    kid_subset_size: int,
    seed: int,
    sliced_projections: int = 256,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, dict[str, Any]]:
    """{sampler name: {model, sampler, nfe, n_samples, fid, kid, endpoint_rms, class_shares, min_class_share}}.

    Points have sliced_wasserstein and energy_distance in the place of fid and kid, and the shares of the law's modes.

    endpoint_rms: root mean square difference, in units of data in [-1, 1], from the teacher at its largest NFE started
    at the same x_T; averaged over samples, for the flow's samplers. Raises UserError at samples that cannot be judged.
    """
    metadata = read_json(folder / "metadata.json")
    expected = tuple(reference.metadata["image_shape"])
    if tuple(metadata["image_shape"]) != expected:
        raise UserError(f"{folder}: images of shape {metadata['image_shape']}, the reference has {list(expected)}")
    teachers = [s for s in metadata["samplers"] if s["model"] == "teacher"]
    best = _load(folder, max(teachers, key=lambda s: s["nfe"])["name"], expected) if teachers else None

    distance = (
        _point_distances(reference, projections=sliced_projections)
        if reference.extractor.name == "coordinates"
        else _feature_distances(reference, subsets=kid_subsets, subset_size=kid_subset_size, seed=seed)
    )

    figures: dict[str, dict[str, Any]] = {}
    for sampler in progress(metadata["samplers"]):
        images = _load(folder, sampler["name"], expected)
        found = features(reference.extractor, batches(images, BATCH))
        row = {
            "model": sampler["model"],
            "sampler": sampler["sampler"],
            "nfe": sampler["nfe"],
            "n_samples": len(images),
        } | distance(found)
        if sampler["model"] == "flow" and best is not None:
            if len(images) != len(best):
                raise UserError(
                    f"{folder}: {sampler['name']} has {len(images)} images, the teacher {len(best)}; {MEND}"
                )
            row["endpoint_rms"] = endpoint_rms(images, best)
        shares = _class_shares(reference, images)
        if shares is not None:
            row |= {"min_class_share": float(shares.min()), "class_shares": shares.tolist()}
        figures[sampler["name"]] = row
    return figures


def _feature_distances(
    reference: Reference, *, subsets: int, subset_size: int, seed: int
) -> Callable[[np.ndarray], dict[str, float]]:
    return lambda found: {
        "fid": fid(moments(found), reference.moments),
        "kid": kid(found, reference.features, subsets=subsets, subset_size=subset_size, seed=seed),
    }


def _point_distances(reference: Reference, *, projections: int) -> Callable[[np.ndarray], dict[str, float]]:
    within = mean_distance(reference.features, reference.features)
    return lambda found: {
        "sliced_wasserstein": sliced_wasserstein(found, reference.features, projections=projections),
        "energy_distance": energy_distance(found, reference.features, within_b=within),
    }


def _class_shares(reference: Reference, samples: np.ndarray) -> np.ndarray | None:
    """The share of each class among images by the classifier, of each mode among points by the nearest centre."""
    if reference.centres is not None:
        return nearest_shares(np.asarray(samples), reference.centres)
    if reference.classifier is None:
        return None
    classes = len(reference.metadata["classes"])
    return np.bincount(classify(reference.classifier, samples), minlength=classes) / len(samples)


def endpoint_rms(images: np.ndarray, paired: np.ndarray) -> float:
    """Mean over samples of |x - y| / sqrt(N), for points or for uint8 images [n, C, H, W] read as [-1, 1]."""
    difference = images.astype(np.float64) - paired
    if images.dtype == np.uint8:
        difference /= 127.5
    return float(np.sqrt((difference**2).reshape(len(images), -1).mean(axis=1)).mean())


def batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The images `size` at a time."""
    for start in range(0, len(images), size):
        yield np.asarray(images[start : start + size])


def _load(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The samples of one sampler: uint8 images [n >= 2, C, H, W] or float32 points [n >= 2, d]."""
    dtype = np.dtype(np.uint8 if len(shape) == 3 else np.float32)
    path = folder / f"{name}.npy"
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {MEND}") from error
    if images.dtype != dtype or images.shape[1:] != shape or len(images) < 2:
        raise UserError(
            f"{path}: must be {dtype} [n >= 2, {', '.join(map(str, shape))}], "
            f"got {images.dtype} {list(images.shape)}; {MEND}"
        )
    return images
