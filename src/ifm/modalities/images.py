"""Images: uint8 [C, H, W] at rest, floats in [-1, 1] for the model."""

from typing import TYPE_CHECKING

from ifm.modalities.base import Modality, check_finite

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def to_unit(images: "np.ndarray") -> "Tensor":
    """uint8 [..., C, H, W] -> float32 in [-1, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.require(images, requirements=["C", "W"])).float() / 127.5 - 1


def to_uint8(x: "Tensor") -> "np.ndarray":
    """[-1, 1] -> uint8, rounded to the nearest and clipped. Raises SampleError at a value that is not finite."""
    check_finite(x)
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


IMAGES = Modality(
    "images",
    one="image",
    noun="images",
    axes=("C", "H", "W"),
    dtype="uint8",
    range="[-1, 1]",
    to_model=lambda x: x.float() / 127.5 - 1 if not x.is_floating_point() else x,
    to_rest=to_uint8,
    shape=lambda data: (data.channels, data.image_size, data.image_size),
    extractors=("classifier", "inception", "dinov2", "pixels"),
    mirrors=True,
    preview="grids",
    pictures=lambda images: images,
)
