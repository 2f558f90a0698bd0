"""The two forms a sample has here: uint8 images (float32 points) at rest, float tensors (images in [-1, 1]) at work."""

import numpy as np
import torch
from torch import Tensor

from ifm.errors import UserError


class SampleError(UserError, ValueError):
    """A model's samples are no numbers."""


def to_unit(images: np.ndarray) -> Tensor:
    """uint8 [..., C, H, W] -> float32 in [-1, 1]."""
    return torch.from_numpy(np.require(images, requirements=["C", "W"])).float() / 127.5 - 1


def to_uint8(x: Tensor) -> np.ndarray:
    """[-1, 1] -> uint8, rounded to the nearest and clipped. Raises SampleError at a value that is not finite."""
    if not bool(torch.isfinite(x).all()):
        raise SampleError("samples hold NaN or infinity; the model has diverged; train it with a lower lr")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def at_work(x: Tensor) -> Tensor:
    """The form samples are computed in: uint8 images as float32 in [-1, 1], points as they are."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x


def at_rest(x: Tensor) -> np.ndarray:
    """The form samples are kept in: uint8 for images [n, C, H, W], float32 for points [n, d].

    Raises SampleError at a value that is not finite.
    """
    if x.ndim == 4:
        return to_uint8(x)
    if not bool(torch.isfinite(x).all()):
        raise SampleError("samples hold NaN or infinity; the model has diverged; train it with a lower lr")
    return x.float().cpu().numpy()
