"""PFGM++ (Xu et al. 2023) with D augmented dimensions, written in sigma = t: r = t sqrt(D)."""

from typing import Any

from torch import Tensor

from ifm.dynamics.base import NoiseSource, expand
from ifm.dynamics.ve import VarianceExploding


class PFGMPlusPlus(VarianceExploding):
    """x_t = x_0 + t z with z multivariate Student-t of D degrees of freedom; D -> infinity is `ve`.

    The perturbation of PFGM++, R = r sqrt(b / (1 - b)) with b ~ Beta(N/2, D/2) in a uniform direction, is the same
    law: |N(0, I_N)|^2 / chi2_D is N/D times an F variable, and so is D/N b/(1 - b).
    """

    name = "pfgmpp"

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
