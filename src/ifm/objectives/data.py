"""Objective `data`: the paper's algorithm, on the data themselves."""

from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from ifm import losses
from ifm.conditions.base import told
from ifm.hardware.devices import RowReader, Rows
from ifm.model import IntegrationFlow
from ifm.objectives.base import Batch, Comparison, Ingredients, Mean, Phase, comparing, time_weight
from ifm.objectives.pairs import averaged, draw_pairs


def loss(
    x_0_hat: Tensor,
    *,
    x_0: Tensor,
    x_anchor: Tensor | None = None,
    n: Tensor | None = None,
    distance: str = "pseudo_huber",
    c: float | Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The paper's loss for x_0_hat = g(x_0^(n), x_t, t), averaged over the batch: a scalar.

    Data only (n None): lambda(t) d(x_0_hat, x_0).
    Mixed: lambda(t) [1/n d(x_0_hat, x_0) + (1 - 1/n) d(x_0_hat, x_0^(n))], with x_anchor = x_0^(n) the sample's
    anchor at its n-th visit, n [B] from 1: all weight on the data at first, on the anchor in the end. The second term
    is smallest where g copies its anchor.

    x_0 is no function of (x_t, t): over all data the best g is the conditional mean (L2) or the geometric median
    (pseudo-Huber, c -> 0) of x_0 given (x_t, t, x_anchor). weight: lambda(t) [B], 1 if None.
    """
    to_data = losses.measure(x_0_hat, x_0, distance=distance, c=c)  # [B]
    if n is None:
        return losses.average(to_data, weight)
    if x_anchor is None:
        raise ValueError("the mixed schedule needs the anchors x_0^(n)")
    share = mixed_share(n).to(to_data.device, to_data.dtype)  # [B]
    to_anchor = losses.measure(x_0_hat, x_anchor, distance=distance, c=c)  # [B]
    return losses.average(share * to_data + (1 - share) * to_anchor, weight)


def mixed_share(n: Tensor) -> Tensor:
    """1/n, the weight of the data at a sample's n-th visit: float64, n's shape. Raises ValueError below n = 1."""
    if bool((n < 1).any()):
        raise ValueError(f"visits count from 1, got {int(n.min())}")
    return 1 / n.double()


def data_phase(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    images: Rows,
    *,
    distance: str,
    huber_c: float | None,
    weighting: str = "none",
    mixed: bool = False,
    mean: Mean | None = None,
    **pairs: Any,
) -> Phase:
    """The paper's algorithm, on images (uint8 [n, C, H, W]) or points (float32 [n, d]); pairs: see `draw_pairs`.

    Each sample is an image x_0, perturbed by fresh z to a fresh t: t_max with probability t_max_share, else by the
    dynamics' training law. x_0_hat = g(x_0^(n), x_t, t) is held to x_0 and, if `mixed`, with weight 1 - 1/n to
    x_0^(n); then, under policy `bank`, x_0^(n+1) = x_0_hat. mean: a guided denoiser, whose D_w takes the place of x_0,
    as E[x_0 | x_t] would: the plain algorithm leads towards that one.
    """
    comparison = Comparison(accelerator, distance, huber_c)

    def step_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        at = batch.at
        x_0_hat = model(at.x_t, at.t, x_anchor=batch.x_anchor, **told(at.condition))
        weight = time_weight(flow.dynamics, at.t, kind=weighting)
        n, how = _visits(batch) if mixed else None, comparison.options(x_0_hat, at.x_0)
        return x_0_hat, loss(x_0_hat, x_0=at.x_0, x_anchor=batch.x_anchor, n=n, weight=weight, **how)

    read = RowReader(images, accelerator.device)
    draw = averaged(draw_pairs(accelerator, flow.dynamics, read, **pairs), flow.dynamics, mean)
    return Phase(len(images), draw, step_loss, read.expect)


def _visits(batch: Batch) -> Tensor:
    if batch.visits is None:
        raise ValueError("the mixed schedule holds x_0_hat to its sample's own anchor: it needs anchor policy bank")
    return batch.visits


def phase(given: Ingredients) -> Phase:
    """The phase that params.yaml asks for."""
    config = given.config
    options = {"t_max_share": config.t_max_share, "mixed": config.schedule == "mixed", "weighting": config.time_weight}
    options |= {"mean": given.mean() if given.guidance else None}
    return data_phase(given.accelerator, given.flow, given.images(), **options, **comparing(config), **given.pairs())
