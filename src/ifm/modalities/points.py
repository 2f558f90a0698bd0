"""Points: float32 [d], at rest and for the model."""

from typing import TYPE_CHECKING

from ifm.modalities.base import Modality, check_finite

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def to_rest(x: "Tensor") -> "np.ndarray":
    """float32 [..., d]. Raises SampleError at a value that is not finite."""
    check_finite(x)
    return x.float().cpu().numpy()


POINTS = Modality(
    "points",
    one="point",
    noun="points",
    axes=("d",),
    dtype="float32",
    range=None,
    to_model=lambda x: x,
    to_rest=to_rest,
    shape=lambda data: (data.points.dimensions,),
    extractors=("coordinates",),
    mirrors=False,
    preview="scatter",
    figures="points",
)
