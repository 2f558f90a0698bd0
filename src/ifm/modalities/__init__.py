"""What samples are: the table of modalities, one file each. Whoever must tell images from points asks here."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ifm.modalities import latents
from ifm.modalities.base import Modality, SampleError
from ifm.modalities.images import IMAGES
from ifm.modalities.points import POINTS
from ifm.modalities.sound import SOUND
from ifm.modalities.text import TEXT

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = [
    "MODALITIES", "Modality", "SampleError", "at_rest", "at_work", "mirrored", "of", "recorded", "shown", "state_shape",
]  # fmt: skip

MODALITIES: dict[str, Modality] = {modality.name: modality for modality in (IMAGES, POINTS, TEXT, SOUND)}


def of(found: Sequence[int] | Mapping[str, Any], name: str | None = None) -> Modality:
    """The modality of one sample's shape, or of what metadata.json or ifm.json says of data, samples or a model.

    name: what was recorded of samples of that shape (`recorded`); None: the number of axes tells. Raises ValueError
    where there is none.
    """
    if isinstance(found, Mapping):
        found, name = _shape(found), found.get("modality", name)
    if name is not None and name in MODALITIES:
        return MODALITIES[name]
    told = (modality for modality in MODALITIES.values() if modality.by_shape and modality.owns(tuple(found)))
    owner = next(told, None) if name is None else None
    if owner is None:
        known = ", ".join(f"{m.noun} [{', '.join(m.axes)}]" for m in MODALITIES.values())
        raise ValueError(
            f"samples{'' if name is None else f' called {name!r}'} of shape {list(found)} are none of {known}"
        )
    return owner


def recorded(described: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a description says of its samples beside their shape, for the next one: the modality's name, and under that
    name what turns its samples into files that people open. {}: the number of axes tells all.
    """
    name = (described or {}).get("modality")
    if name is None:
        return {}
    return {"modality": name} | ({name: described[name]} if name in described else {})


def _shape(described: Mapping[str, Any]) -> Sequence[int]:
    """Of one sample, by the names that it has had in our files."""
    for key in ("image_shape", "shape"):
        if isinstance(described.get(key), list | tuple):
            return described[key]
    if {"channels", "image_size"} <= described.keys():
        return described["channels"], described["image_size"], described["image_size"]
    return ()


def at_work(x: "Tensor", name: str | None = None) -> "Tensor":
    """Samples [n, ...] at rest in the form that a model computes in: images in [-1, 1], points as they are.

    Of latents it is the posterior's mean. name: of their modality, where it is recorded.
    """
    return latents.drawn(x) if latents.owns(x.shape[1:]) else of(x.shape[1:], name).to_model(x)


def at_rest(x: "Tensor", name: str | None = None) -> "np.ndarray":
    """A model's samples [n, ...] in the form they are kept in: uint8 images, float32 points.

    name: of their modality, where it is recorded. Raises SampleError at a value that is not finite.
    """
    return of(x.shape[1:], name).to_rest(x)


def shown(x: "Tensor", normal: "Callable[[tuple[int, ...]], Tensor]", name: str | None = None) -> "Tensor":
    """`at_work` as a training step shows it: latents are drawn from their posterior. normal: shape -> N(0, 1)."""
    if not latents.owns(x.shape[1:]):
        return at_work(x, name)
    return latents.drawn(x, normal(tuple(x.shape[3:])) if x.shape[2] > 1 else None)


def mirrored(x: "Tensor") -> "Tensor":
    """The mirror images of samples at rest, in the same form: [n, ...]."""
    return latents.mirrored(x) if latents.owns(x.shape[1:]) else x.flip(-1)


def state_shape(x: "Tensor") -> tuple[int, ...]:
    """Of one sample at rest as a model computes with it."""
    return tuple(x.shape[3:] if latents.owns(x.shape[1:]) else x.shape[1:])
