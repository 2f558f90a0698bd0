"""What a model's output says of x_0 and z, by its prediction type.

w = cos(phi) x_0 + sin(phi) z is the state (`ifm.adapters.schedules`). Each entry solves it, together with what the
output stands for, for both.
"""

from collections.abc import Callable

from torch import Tensor

Solved = tuple[Tensor, Tensor]  # x_0_hat, z_hat: [B, C, H, W]


def _epsilon(w: Tensor, out: Tensor, cos: Tensor, sin: Tensor, s: float) -> Solved:
    """out = z."""
    return (w - sin * out) / cos, out


def _sample(w: Tensor, out: Tensor, cos: Tensor, sin: Tensor, s: float) -> Solved:
    """out = x_0."""
    return out, (w - cos * out) / sin


def _v(w: Tensor, out: Tensor, cos: Tensor, sin: Tensor, s: float) -> Solved:
    """out = cos(phi) z - sin(phi) x_0 (Salimans & Ho 2022)."""
    return cos * w - sin * out, sin * w + cos * out


def _flow(w: Tensor, out: Tensor, cos: Tensor, sin: Tensor, s: float) -> Solved:
    """out = z - x_0."""
    return (w - sin * out) / (cos + sin), (w + cos * out) / (cos + sin)


def _edm(w: Tensor, out: Tensor, cos: Tensor, sin: Tensor, s: float) -> Solved:
    """x_0 = c_skip x + c_out out with EDM's coefficients for data of deviation s (Karras et al. 2022, table 1).

    With n^2 = sin^2 + s^2 cos^2: x_0 = s (s cos w + sin n out) / n^2 and z = (sin w - s cos n out) / n^2.
    """
    square = sin**2 + (s * cos) ** 2
    root = square.sqrt()
    return s * (s * cos * w + sin * root * out) / square, (sin * w - s * cos * root * out) / square


def _edm_v(w: Tensor, out: Tensor, cos: Tensor, sin: Tensor, s: float) -> Solved:
    """As `_edm`, with the other sign of c_out, as diffusers has it."""
    return _edm(w, -out, cos, sin, s)


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Solved]] = {
    "epsilon": _epsilon,
    "sample": _sample,
    "v_prediction": _v,
    "flow": _flow,
    "edm_epsilon": _edm,
    "edm_v_prediction": _edm_v,
}
