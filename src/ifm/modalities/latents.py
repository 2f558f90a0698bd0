"""Latents at rest: float16 [m, s, c, h, w] of each image, scaled as a model has them.

m: the image and, with data.random_flip, its mirror image; s: the posterior's mean and deviation, or a point alone.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

AXES = ("m", "s", "c", "h", "w")


def owns(shape: tuple[int, ...]) -> bool:
    """Whether one sample at rest has such a shape."""
    return len(shape) == len(AXES)


def drawn(x: "Tensor", eps: "Tensor | None" = None) -> "Tensor":
    """mean + deviation * eps of the image itself: [n, c, h, w] in float32. eps: [n, c, h, w]; None: the mean."""
    own = x[:, 0].float()
    return own[:, 0] if eps is None or own.shape[1] == 1 else own[:, 0] + own[:, 1] * eps.to(own.device)


def mirrored(x: "Tensor") -> "Tensor":
    """The mirror image in the image's place. Raises ValueError where only the image was encoded."""
    if x.shape[1] != 2:
        raise ValueError("these latents have no mirror images; set data.random_flip and run preprocess again")
    return x.flip(1)
