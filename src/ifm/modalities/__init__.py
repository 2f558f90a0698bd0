"""What samples are: the table of modalities, one file each. Whoever must tell images from points asks here."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ifm.modalities import latents
from ifm.modalities.base import Modality, SampleError
from ifm.modalities.images import IMAGES
from ifm.modalities.points import POINTS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["MODALITIES", "Modality", "SampleError", "at_rest", "at_work", "mirrored", "of", "shown", "state_shape"]

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
    """Samples [n, ...] at rest in the form that a model computes in: images in [-1, 1], points as they are.

    Of latents it is the posterior's mean.
    """
    return latents.drawn(x) if latents.owns(x.shape[1:]) else of(x.shape[1:]).to_model(x)


def at_rest(x: "Tensor") -> "np.ndarray":
    """A model's samples [n, ...] in the form they are kept in: uint8 images, float32 points.

    Raises SampleError at a value that is not finite.
    """
    return of(x.shape[1:]).to_rest(x)


def shown(x: "Tensor", normal: "Callable[[tuple[int, ...]], Tensor]") -> "Tensor":
    """`at_work` as a training step shows it: latents are drawn from their posterior. normal: shape -> N(0, 1)."""
    if not latents.owns(x.shape[1:]):
        return at_work(x)
    return latents.drawn(x, normal(tuple(x.shape[3:])) if x.shape[2] > 1 else None)


def mirrored(x: "Tensor") -> "Tensor":
    """The mirror images of samples at rest, in the same form: [n, ...]."""
    return latents.mirrored(x) if latents.owns(x.shape[1:]) else x.flip(-1)


def state_shape(x: "Tensor") -> tuple[int, ...]:
    """Of one sample at rest as a model computes with it."""
    return tuple(x.shape[3:] if latents.owns(x.shape[1:]) else x.shape[1:])
