"""What a modality is. Light on purpose: params.yaml is checked with it, and some stages do without torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ifm.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class SampleError(UserError, ValueError):
    """A model's samples are no numbers."""


def _as_they_are(samples: "np.ndarray", described: "Mapping[str, Any]") -> "np.ndarray":
    return samples


@dataclass(frozen=True)
class Modality:
    """What samples are: images, points.

    axes: of one sample, e.g. ("C", "H", "W"). dtype: of samples at rest, in files. to_model, to_rest: between that and
    the floats a model computes in; to_rest raises SampleError at a value that is not finite. shape: of one sample, as
    params.yaml has it. extractors: which fit, the default first. mirrors: whether a sample's mirror image is
    as good a sample. preview: what the report shows, grids of pictures [n, C, H, W] (uint8, made by `pictures`), a
    scatter plot of two dimensions, or texts. by_shape: whether the number of axes tells it; else descriptions name it
    (`ifm.modalities.recorded`). figures: which its samples have, of the kinds of the catalogue of metrics. own: samples
    at rest in the form that the data had, by what is recorded beside their shape: points in their units, texts as
    strings; from_own: the inverse, for samples that are judged from files. audible: whether they are played
    (`ifm.modalities.wav`).
    """

    name: str
    one: str
    noun: str  # of several
    axes: tuple[str, ...]
    dtype: str
    range: str | None  # of the model's values, where there is one
    to_model: "Callable[[Tensor], Tensor]"
    to_rest: "Callable[[Tensor], np.ndarray]"
    shape: "Callable[[Any], tuple[int, ...]]"
    extractors: tuple[str, ...]
    mirrors: bool
    preview: Literal["grids", "scatter", "text"]
    pictures: "Callable[[np.ndarray], np.ndarray] | None" = None
    by_shape: bool = True
    figures: Literal["images", "points", "text"] = "images"
    own: "Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]" = _as_they_are
    from_own: "Callable[[np.ndarray, Mapping[str, Any]], np.ndarray] | None" = None
    audible: bool = False

    def owns(self, shape: tuple[int, ...]) -> bool:
        """Whether a sample of that shape is of this kind."""
        return len(shape) == len(self.axes)

    def described(self, shape: tuple[int, ...]) -> str:
        """e.g. "images [3, 32, 32]"."""
        return f"{self.noun} [{', '.join(map(str, shape))}]"


def check_finite(x: "Tensor") -> None:
    """Raises SampleError at a value that is not finite."""
    if not bool(x.isfinite().all()):
        raise SampleError("samples hold NaN or infinity; the model has diverged; train it with a lower lr")
