"""Points: float32 [d], at rest and for the model: standardised where the data are columns in their own units."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ifm.modalities.base import Modality, check_finite

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


def from_units(x: "np.ndarray", described: Mapping[str, Any]) -> "np.ndarray":
    """The inverse of `in_units`. Raises ValueError where the columns are not as many."""
    from ifm.modalities.units import Units

    units = Units.read(described)
    if units is None or x.ndim != 2:
        return x
    if x.shape[1] != len(units.columns):
        raise ValueError(f"it has {x.shape[1]} columns, the data {len(units.columns)}: {', '.join(units.columns)}")
    return units.standardised(x)


POINTS = Modality(
    "points",
    one="point",
    noun="points",
    axes=("d",),
    dtype="float32",
    range=None,
    to_model=lambda x: x,
    to_rest=to_rest,
    shape=lambda data: data.origin.shape(data) if data.origin.shape else (data.points.dimensions,),
    extractors=("coordinates",),
    mirrors=False,
    preview="scatter",
    figures="points",
    own=in_units,
    from_own=from_units,
)
