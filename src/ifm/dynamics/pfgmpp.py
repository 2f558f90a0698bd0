"""PFGM++ (Xu et al. 2023) with D augmented dimensions, written in sigma = t: r = t sqrt(D)."""

from typing import Any

import torch
from torch import Tensor

from ifm.dynamics.base import NoiseSource, expand
from ifm.dynamics.ve import VarianceExploding


class PFGMPlusPlus(VarianceExploding):
    """x_t = x_0 + t z with z multivariate Student-t of D degrees of freedom; D -> infinity is `ve`.

    The perturbation of PFGM++, R = r sqrt(b / (1 - b)) with b ~ Beta(N/2, D/2) in a uniform direction, is the same
    law: |N(0, I_N)|^2 / chi2_D is N/D times an F variable, and so is D/N b/(1 - b).
    """

    name = "pfgmpp"
    gaussian = False

    def __init__(self, *, augmented_dimensions: float = 128.0, **ve: Any) -> None:
        if augmented_dimensions <= 0:
            raise ValueError(f"augmented_dimensions must be positive, got {augmented_dimensions}")
        super().__init__(**ve)
        self.augmented_dimensions = augmented_dimensions

    def draw_noise(self, shape: tuple[int, ...], *, generator: NoiseSource) -> Tensor:
        """z = N(0, I) / sqrt(chi2_D / D), ONE chi2 draw per sample: [B, *shape]."""
        D = self.augmented_dimensions
        normal = generator.normal(shape)
        return normal * expand((generator.chi_square(D) / D).rsqrt(), normal)

    def log_density(self, squared_norm: Tensor, *, dimensions: int) -> Tensor:
        """Student-t: -(N + D) / 2 log(1 + |z|^2 / D)."""
        D = self.augmented_dimensions
        return -(dimensions + D) / 2 * torch.log1p(squared_norm / D)
