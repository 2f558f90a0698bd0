"""What samples are: the table of modalities, one file each. Whoever must tell images from points asks here."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ifm.modalities.base import Modality, SampleError
from ifm.modalities.images import IMAGES
from ifm.modalities.points import POINTS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["MODALITIES", "Modality", "SampleError", "at_rest", "at_work", "of"]

MODALITIES: dict[str, Modality] = {modality.name: modality for modality in (IMAGES, POINTS)}


def of(found: Sequence[int] | Mapping[str, Any]) -> Modality:
    """The modality of one sample's shape, or of what metadata.json or ifm.json says of data, samples or a model.

    Raises ValueError where there is none.
    """
    if isinstance(found, Mapping):
        if found.get("modality") in MODALITIES:
            return MODALITIES[found["modality"]]
        found = _shape(found)
    owner = next((modality for modality in MODALITIES.values() if modality.owns(tuple(found))), None)
    if owner is None:
        known = ", ".join(f"{m.noun} [{', '.join(m.axes)}]" for m in MODALITIES.values())
        raise ValueError(f"samples of shape {list(found)} are none of {known}")
    return owner


def _shape(described: Mapping[str, Any]) -> Sequence[int]:
    """Of one sample, by the names that it has had in our files."""
    for key in ("image_shape", "shape"):
        if isinstance(described.get(key), list | tuple):
            return described[key]
    if {"channels", "image_size"} <= described.keys():
        return described["channels"], described["image_size"], described["image_size"]
    return ()


def at_work(x: "Tensor") -> "Tensor":
    """Samples [n, ...] at rest in the form that a model computes in: images in [-1, 1], points as they are."""
    return of(x.shape[1:]).to_model(x)


def at_rest(x: "Tensor") -> "np.ndarray":
    """A model's samples [n, ...] in the form they are kept in: uint8 images, float32 points.

    Raises SampleError at a value that is not finite.
    """
    return of(x.shape[1:]).to_rest(x)
