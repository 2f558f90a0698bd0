"""Known laws of points.

Every law is written at the scale of the data, so that nothing is normalised afterwards and closed forms hold:

| law | what | root mean square of a coordinate |
|---|---|---|
| `eight_gaussians` | N(c_k, 0.07^2 I), centres on a circle of radius 0.7; N(0, 0.5^2) in further dimensions | 0.5 |
| `two_moons` | two half circles of radius 0.7, one turned over, noise 0.035 | 0.5 |
| `checkerboard` | uniform on the dark squares of a 4 x 4 board of side sqrt(3) | 0.5 |
| `spiral` | one arm of two turns out to radius 1, uniform over the disc's area, noise 0.02 | 0.5 |
| `gaussian` | N(mu, diag(s^2)), mu = 0.2, -0.2, 0.2, ..., s from 0.6 down to 0.3 | about 0.5 |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ifm.random import stream

RADIUS, MODE_SD, REST_SD = 0.7, 0.07, 0.5
CLASSES = [str(i) for i in range(8)]  # the modes of `eight_gaussians`


@dataclass(frozen=True)
class Drawn:
    """points: float64 [n, d]; labels: the mode of each, int64 [n], where the law has modes."""

    points: np.ndarray
    labels: np.ndarray | None = None


def mode_centres(dimensions: int = 2) -> np.ndarray:
    """The centres of `eight_gaussians`: float64 [8, d], on a circle in the first two dimensions, 0 in the others."""
    angle = np.arange(8) * math.pi / 4
    centres = np.zeros((8, dimensions))
    centres[:, :2] = RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres


def gaussian_moments(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """mu and s of `gaussian`, the law whose flow map is known: float64 [d], [d]."""
    return 0.2 * (-1.0) ** np.arange(dimensions), np.linspace(0.6, 0.3, dimensions)


def _eight_gaussians(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    mode = rng.integers(8, size=n)
    spread = np.full(dimensions, REST_SD)
    spread[:2] = MODE_SD
    return Drawn(mode_centres(dimensions)[mode] + spread * rng.standard_normal((n, dimensions)), mode)


def _two_moons(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    """(cos a, sin a) or (1 - cos a, 1/2 - sin a), a in [0, pi], about their mean (1/2, 1/4), times 0.7."""
    angle, lower = rng.uniform(0, math.pi, n), rng.random(n) < 0.5
    x = np.where(lower, 1 - np.cos(angle), np.cos(angle)) - 0.5
    y = np.where(lower, 0.5 - np.sin(angle), np.sin(angle)) - 0.25
    return Drawn(0.7 * np.stack([x, y], axis=1) + 0.035 * rng.standard_normal((n, 2)))


def _checkerboard(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    """Column i in 0..3, a row of the other parity half of the time: each of the 8 dark squares has share 1/8."""
    column, row = rng.integers(4, size=n), 2 * rng.integers(2, size=n)
    row += column % 2
    unit = (np.stack([column, row], axis=1) + rng.random((n, 2))) / 4  # [0, 1)^2
    return Drawn(math.sqrt(3) * (unit - 0.5))


def _spiral(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    """Angle 4 pi r at radius r, r^2 uniform in [0, 1]."""
    r = np.sqrt(rng.random(n))
    arm = r[:, None] * np.stack([np.cos(4 * math.pi * r), np.sin(4 * math.pi * r)], axis=1)
    return Drawn(arm + 0.02 * rng.standard_normal((n, 2)))


def _gaussian(n: int, dimensions: int, rng: np.random.Generator) -> Drawn:
    mu, s = gaussian_moments(dimensions)
    return Drawn(mu + s * rng.standard_normal((n, dimensions)))


LAWS: dict[str, Callable[[int, int, np.random.Generator], Drawn]] = {
    "eight_gaussians": _eight_gaussians,
    "two_moons": _two_moons,
    "checkerboard": _checkerboard,
    "spiral": _spiral,
    "gaussian": _gaussian,
}


def draw_points(law: str, *, count: int, dimensions: int, seed: int) -> Drawn:
    """`count` independent points of a law; depends on the arguments alone."""
    if law not in LAWS:
        raise ValueError(f"unknown law {law!r}; known: {', '.join(LAWS)}")
    # index 0 of the purpose places the test split, index 1 takes subsets of images.
    return LAWS[law](count, dimensions, stream(seed, "split", index=2))
