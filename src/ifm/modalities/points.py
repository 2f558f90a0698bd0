"""Points: float32 [d], at rest and for the model: standardised where the data are columns in their own units."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ifm.modalities.base import Modality, check_finite

UNKNOWN = 64  # columns, for what is estimated before the files are read

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def to_rest(x: "Tensor") -> "np.ndarray":
    """float32 [..., d]. Raises SampleError at a value that is not finite."""
    check_finite(x)
    return x.float().cpu().numpy()


def in_units(x: "np.ndarray", described: Mapping[str, Any]) -> "np.ndarray":
    """Points [n, d] in the units of the data, float64, where a model or a data set records them; else as they are."""
    from ifm.modalities.units import Units

    units = Units.read(described)
    return x if units is None else units.original(x)


def _columns(data: Any) -> list[str]:
    """Of source: array, as far as params.yaml tells: the files do."""
    return (data.array and data.array.columns) or [""] * UNKNOWN


POINTS = Modality(
    "points",
    one="point",
    noun="points",
    axes=("d",),
    dtype="float32",
    range=None,
    to_model=lambda x: x,
    to_rest=to_rest,
    shape=lambda data: (data.points.dimensions if data.source == "points" else len(_columns(data)),),
    extractors=("coordinates",),
    mirrors=False,
    preview="scatter",
    figures="points",
    own=in_units,
)
