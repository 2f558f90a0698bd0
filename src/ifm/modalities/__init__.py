"""What samples are: the table of modalities, one file each. Whoever must tell images from points asks here."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ifm.modalities.base import Modality, SampleError
from ifm.modalities.images import IMAGES
from ifm.modalities.points import POINTS
from ifm.modalities.sound import SOUND
from ifm.modalities.text import TEXT

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["MODALITIES", "Modality", "SampleError", "at_rest", "at_work", "of", "recorded"]

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

    name: of their modality, where it is recorded.
    """
    return of(x.shape[1:], name).to_model(x)


def at_rest(x: "Tensor", name: str | None = None) -> "np.ndarray":
    """A model's samples [n, ...] in the form they are kept in: uint8 images, float32 points.

    name: of their modality, where it is recorded. Raises SampleError at a value that is not finite.
    """
    return of(x.shape[1:], name).to_rest(x)
