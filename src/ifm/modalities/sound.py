"""Sounds: spectrograms [C, F, T] of one length, float16 at rest, normalised to standard deviation 0.5 for the model."""

from typing import TYPE_CHECKING, Any

from ifm.modalities.base import Modality, check_finite

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def to_rest(x: "Tensor") -> "np.ndarray":
    """float16 [..., C, F, T]. Raises SampleError at a value that is not finite."""
    from ifm.modalities.spectrograms import LARGEST

    check_finite(x)
    return x.float().clamp(-LARGEST, LARGEST).half().cpu().numpy()


def shape(data: Any) -> tuple[int, ...]:
    """(C, F, T), as data.audio asks for."""
    from ifm.modalities.spectrograms import Spectrograms

    return Spectrograms.of(data.audio).shape


def pictures(samples: "np.ndarray") -> "np.ndarray":
    """See `ifm.modalities.spectrograms.pictures`."""
    from ifm.modalities.spectrograms import pictures

    return pictures(samples)


SOUND = Modality(
    "sound",
    one="sound",
    noun="sounds",
    axes=("C", "F", "T"),
    dtype="float16",
    range=None,
    to_model=lambda x: x.float(),
    to_rest=to_rest,
    shape=shape,
    extractors=("classifier", "clap", "pixels"),
    mirrors=False,
    preview="grids",
    pictures=pictures,
    by_shape=False,
    audible=True,
)
