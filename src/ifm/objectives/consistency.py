"""Objective `consistency`: the flow's own estimate at an earlier point of the path (Song & Dhariwal 2023)."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm import losses
from ifm.conditions.base import told
from ifm.dynamics.base import expand
from ifm.hardware.devices import RowReader, Rows
from ifm.hardware.sharded import asked
from ifm.model import IntegrationFlow
from ifm.objectives.base import Batch, Comparison, Ingredients, Mean, Phase, comparing
from ifm.objectives.pairs import EVEN_SHARE, averaged, draw_pairs, earlier

TARGETS = ("online", "average")
LEAST_INTERVAL = 1e-3  # of the longest: keeps 1 / (theta_t - theta_r) finite where t = r = t_min


def loss(
    x_0_hat: Tensor,
    *,
    target: Tensor,
    interval: Tensor,
    distance: str = "pseudo_huber",
    c: float | Tensor | None = None,
) -> Tensor:
    """d(g(x_anchor, x_t, t), g(x_anchor, x_r, r)) / (theta_t - theta_r), averaged over the batch: a scalar.

    target: g at x_r, the same pair's point at the earlier r, without gradient. Both in units of the error to be
    expected at t, `dynamics.error_scale(t)`: in x_0's, times near the data would hardly count.
    interval: theta_t - theta_r [B] in units of its longest, so that short last steps near the data count as much.
    The weight 1 / (t - r) and the pseudo-Huber distance are iCT's (Song & Dhariwal 2023, sec. 3.3 and 3.4).
    """
    return losses.average(losses.measure(x_0_hat, target, distance=distance, c=c), 1 / interval)


def consistency_intervals(step: int, *, steps: int, first: int, last: int) -> int:
    """N(k): `first`, doubled at equal distances in training until `last` (Song & Dhariwal 2023, sec. 3.4)."""
    stages = math.ceil(math.log2(last / first)) + 1
    return min(first * 2 ** min(stages - 1, step * stages // steps), last)


@contextmanager
def same_dropout(flow: nn.Module, device: torch.device) -> Iterator[None]:
    """What is drawn within is drawn again afterwards: target and estimate drop out the same, as in iCT's code.

    A mask of its own would be an error of the target, and one that is passed on from interval to interval. A compiled
    estimate (IFM_COMPILE=on) has random numbers of its own.
    """
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in flow.modules())
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=drops):
        yield


def consistency_phase(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    images: Rows,
    *,
    distance: str,
    huber_c: float | None,
    intervals: tuple[int, int],
    target: str,
    mean: Mean | None = None,
    **pairs: Any,
) -> Phase:
    """Consistency training (Song & Dhariwal 2023): g(., x_t, t) is held to g(., x_r, r) at the same pair's earlier r.

    The path's angle is cut into as many equal intervals as `consistency_intervals` says for a step, from
    `intervals[0]` to `intervals[1]`; r lies one of them before t, and not before the dynamics' t_min. `target` says who
    gives it, with the same anchor and without gradient: the flow as it is trained ("online"), or its average over
    steps ("average", Song et al. 2023). Errors are in units of what is to be expected at t.
    With `mean` x_r is the marginal ODE's, by a step of second order, and few intervals are enough.
    mean: see `averaged`. images, pairs: as in `data_phase`.
    """
    dynamics, comparison = flow.dynamics, Comparison(accelerator, distance, huber_c)
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
    average = copy.deepcopy(flow) if target == "average" else None
    widest = float(dynamics.angle(torch.tensor([dynamics.t_max], dtype=torch.float64)))

    def step_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        at, given = batch.at, {"x_anchor": batch.x_anchor, **told(batch.at.condition)}
        longest = widest / consistency_intervals(batch.step, steps=batch.steps, first=intervals[0], last=intervals[1])
        theta = dynamics.angle(at.t)
        r = dynamics.time_at((theta - longest).clamp_min(0))
        teaching = asked(model, flow) if average is None else average
        with torch.no_grad():
            x_r = earlier(dynamics, at, r)
            with same_dropout(flow, at.x_t.device):
                target_hat = teaching(x_r, r, **given)
        x_0_hat = model(at.x_t, at.t, **given)
        interval = ((theta - dynamics.angle(r)) / longest).clamp_min(LEAST_INTERVAL)
        scale = expand(dynamics.error_scale(at.t), target_hat)
        how = comparison.options(x_0_hat / scale, target_hat / scale)
        return x_0_hat, loss(x_0_hat / scale, target=target_hat / scale, interval=interval, **how)

    read = RowReader(images, accelerator.device)
    draw = draw_pairs(accelerator, dynamics, read, even_share=EVEN_SHARE, **pairs)
    return Phase(len(images), averaged(draw, dynamics, mean), step_loss, read.expect, average)


def phase(given: Ingredients) -> Phase:
    """The phase that params.yaml asks for."""
    config, own = given.config, given.config.consistency
    options = {"intervals": (own.first_intervals, own.last_intervals), "target": own.target, "mean": given.mean()}
    return consistency_phase(
        given.accelerator, given.flow, given.images(), **options, **comparing(config), **given.pairs()
    )
