"""Training the integration flow: on the teacher's trajectories (objective `trajectory`), or on data without a teacher.

`data` is the paper's algorithm; `consistency` and `interval` hold the flow to identities along the path.
"""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifm import objectives
from ifm.anchors import AnchorPolicy, BankAnchor, Visit, evenly_chosen
from ifm.dynamics import Dynamics, expand
from ifm.images import at_work
from ifm.model import IntegrationFlow, IntervalFlow
from ifm.random import EndlessShuffle, Streams
from ifm.training.checkpoint import Checkpoints
from ifm.training.engine import Rows, local_positions, row_reader
from ifm.training.loop import FitResult, OnLog, TrainSettings, fit


def draw_stored_index(uniform: Tensor, *, stored: int, t_max_share: float) -> Tensor:
    """Which stored time each sample trains at: 0 (t_max) with probability t_max_share, else 1 .. stored - 2 evenly.

    uniform: U[0, 1) [B]. The last stored state is x_0 itself, the target; with two stored times only t_max is left.
    """
    others = stored - 2
    if not others:
        return torch.zeros_like(uniform, dtype=torch.int64)
    rest = (uniform - t_max_share) / max(1 - t_max_share, 1e-12)
    inner = 1 + (rest * others).long().clamp(0, others - 1)
    return torch.where(uniform < t_max_share, 0, inner)


@dataclass(frozen=True)
class Examples:
    """This process's part of a batch: points, and the end that the flow is to find."""

    x_t: Tensor  # [b, C, H, W]
    t: Tensor  # [b]
    x_0: Tensor  # [b, C, H, W]
    z: Tensor | None = None  # [b, C, H, W], the noise of a pair's path
    s: Tensor | None = None  # [b], where an interval ends
    mirrored: Tensor | None = None  # [b], which images are shown left-right mirrored


@dataclass(frozen=True)
class Batch:
    """Everything a loss may need of one step, besides the model."""

    step: int  # of the phase
    steps: int  # the phase has
    at: Examples
    x_anchor: Tensor | None  # [b, C, H, W]
    streams: Streams  # one for each example, for further draws
    visits: Callable[[], Tensor] | None  # n of each anchor, from 1: int64 [b]; bank alone


# (rows [b], the step, its anchor streams) -> examples
Draw = Callable[[np.ndarray, int, Streams], Examples]
# (model, batch) -> x_0_hat [b, C, H, W] for the anchor policy (None where the loss makes none), loss (scalar)
FlowLoss = Callable[[nn.Module, Batch], tuple[Tensor | None, Tensor]]


@dataclass(frozen=True)
class Comparison:
    """How far apart two estimates of x_0 are: params.yaml's flow.distance and flow.huber_c."""

    accelerator: Accelerator
    distance: str
    huber_c: float | None

    def options(self, x_0_hat: Tensor, target: Tensor) -> dict[str, Any]:
        """`distance` and `c` for this batch; an adaptive c is the mean over all processes."""
        c = self.huber_c
        if self.distance == "adaptive_huber":
            c = self.accelerator.reduce(objectives.adaptive_huber_c(x_0_hat, target), reduction="mean")
        return {"distance": self.distance, "c": c}


def time_weight(dynamics: Dynamics, t: Tensor, *, kind: str) -> Tensor | None:
    """lambda(t) [B]: "none" is 1 (given as None), "inverse_scale" is 1 / error_scale(t).

    error_scale is the error to be expected at t: EDM's c_out for ve and pfgmpp (t for small t), t for rf.
    """
    if kind not in TIME_WEIGHTS:
        raise ValueError(f"unknown time weight {kind!r}; known: {', '.join(TIME_WEIGHTS)}")
    return None if kind == "none" else 1 / dynamics.error_scale(t)


TIME_WEIGHTS = ("none", "inverse_scale")


@dataclass(frozen=True)
class Phase:
    """An objective on its data: how many samples there are, a batch's examples, and the loss."""

    size: int
    draw: Draw
    loss: FlowLoss


def trajectory_phase(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    trajectories: Rows,
    *,
    times: Tensor,
    t_max_share: float,
    distance: str,
    huber_c: float | None,
    weighting: str = "none",
) -> Phase:
    """Objective `trajectory`, on trajectories (float16 [n, K, C, H, W], at `times` [K]).

    Each sample is one stored point (x_t, t) of a path and the path's end x_0, of which it is a function: the
    regression is well posed.
    """
    read = row_reader(trajectories, accelerator.device)
    stored_times = times.float().to(accelerator.device)
    comparison = Comparison(accelerator, distance, huber_c)

    def draw(rows: np.ndarray, step: int, streams: Streams) -> Examples:
        path = read(rows).float()  # [b, K, C, H, W]
        k = draw_stored_index(streams.uniform(), stored=len(times), t_max_share=t_max_share).to(path.device)
        return Examples(path[torch.arange(len(k), device=k.device), k], stored_times[k], path[:, -1])

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        at = batch.at
        x_0_hat = model(at.x_t, at.t, x_anchor=batch.x_anchor)
        weight = time_weight(flow.dynamics, at.t, kind=weighting)
        how = comparison.options(x_0_hat, at.x_0)
        return x_0_hat, objectives.trajectory(x_0_hat, x_0=at.x_0, weight=weight, **how)

    return Phase(len(trajectories), draw, loss)


def data_phase(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    images: Rows,
    *,
    distance: str,
    huber_c: float | None,
    weighting: str = "none",
    mixed: bool = False,
    **pairs: Any,
) -> Phase:
    """The paper's algorithm, on images (uint8 [n, C, H, W]) or points (float32 [n, d]); pairs: see `draw_pairs`.

    Each sample is an image x_0, perturbed by fresh z to a fresh t: t_max with probability t_max_share, else by the
    dynamics' training law. x_0_hat = g(x_0^(n), x_t, t) is held to x_0 and, if `mixed`, with weight 1 - 1/n to
    x_0^(n); then, under policy `bank`, x_0^(n+1) = x_0_hat.
    """
    comparison = Comparison(accelerator, distance, huber_c)

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        at = batch.at
        x_0_hat = model(at.x_t, at.t, x_anchor=batch.x_anchor)
        weight = time_weight(flow.dynamics, at.t, kind=weighting)
        n, how = _visits(batch) if mixed else None, comparison.options(x_0_hat, at.x_0)
        return x_0_hat, objectives.data(x_0_hat, x_0=at.x_0, x_anchor=batch.x_anchor, n=n, weight=weight, **how)

    return Phase(len(images), draw_pairs(accelerator, flow.dynamics, images, **pairs), loss)


def _visits(batch: Batch) -> Tensor:
    if batch.visits is None:
        raise ValueError("the mixed schedule holds x_0_hat to its sample's own anchor: it needs anchor policy bank")
    return batch.visits()


def consistency_phase(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    images: Rows,
    *,
    distance: str,
    huber_c: float | None,
    intervals: tuple[int, int],
    **pairs: Any,
) -> Phase:
    """Consistency training (Song & Dhariwal 2023): g(., x_t, t) is held to g(., x_r, r) at the same pair's earlier r.

    The path's angle is cut into as many equal intervals as `consistency_intervals` says for a step, from
    `intervals[0]` to `intervals[1]`; r lies one of them before t. At r = 0 the target is x_0 itself. The target is the
    flow in training mode with the same anchor, without gradient. images, pairs: as in `data_phase`.
    """
    dynamics, comparison = flow.dynamics, Comparison(accelerator, distance, huber_c)
    widest = float(dynamics.angle(torch.tensor([dynamics.t_max], dtype=torch.float64)))

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        at = batch.at
        longest = widest / consistency_intervals(batch.step, steps=batch.steps, first=intervals[0], last=intervals[1])
        theta = dynamics.angle(at.t)
        r = dynamics.time_at((theta - longest).clamp_min(0))
        with torch.no_grad():
            target = flow(dynamics.perturb(at.x_0, z=at.z, t=r), r, x_anchor=batch.x_anchor)
        x_0_hat = model(at.x_t, at.t, x_anchor=batch.x_anchor)
        interval = ((theta - dynamics.angle(r)) / longest).clamp_min(LEAST_INTERVAL)
        how = comparison.options(x_0_hat, target)
        return x_0_hat, objectives.consistency(x_0_hat, target=target, interval=interval, **how)

    return Phase(len(images), draw_pairs(accelerator, dynamics, images, even_share=EVEN_SHARE, **pairs), loss)


def interval_phase(
    accelerator: Accelerator,
    flow: IntervalFlow,
    images: Rows,
    *,
    batch_size: int,
    same_share: float,
    whole_share: float,
    power: float,
    **pairs: Any,
) -> Phase:
    """Mean velocities over [s, t] in the path's angle (MeanFlow, Geng et al. 2025; docs/interval.md).

    A share `same_share` of a batch has s = t, where the target is the pair's own velocity. Of the others a share
    `whole_share` has s = t_min, and the rest two draws of the time law in order; their target takes a forward-mode
    derivative of the flow. images, pairs: as in `data_phase`.
    """
    # torch's forward mode uses its own deprecated compiler on the first call, and says so.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
    dynamics = flow.dynamics
    positions = torch.from_numpy(local_positions(accelerator, batch_size))
    apart = ~evenly_chosen(positions, same_share)  # [b]
    # Which of the others go the whole way: by their number among all of the batch's others.
    number = positions - (positions.double() * same_share).floor().long()
    whole = apart & evenly_chosen(number, whole_share)
    rows_apart = apart.nonzero().squeeze(1).to(accelerator.device)
    apart, whole = apart.to(accelerator.device), whole.to(accelerator.device)
    draw_pair = draw_pairs(accelerator, dynamics, images, batch_size=batch_size, even_share=EVEN_SHARE, **pairs)

    def draw(rows: np.ndarray, step: int, streams: Streams) -> Examples:
        at = draw_pair(rows, step, streams)
        other = draw_time(dynamics, streams, streams, even_share=EVEN_SHARE).to(at.t.device)  # [b]
        other = torch.where(whole, torch.full_like(other, dynamics.t_min), other)
        t = torch.where(apart, torch.maximum(at.t, other), at.t)
        s = torch.where(apart, torch.minimum(at.t, other), at.t)
        return replace(at, x_t=dynamics.perturb(at.x_0, z=at.z, t=t), t=t, s=s)

    def loss(model: nn.Module, batch: Batch) -> tuple[None, Tensor]:
        at, x_anchor = batch.at, batch.x_anchor
        theta, theta_s = dynamics.angle(at.t), dynamics.angle(at.s)
        target = dynamics.angular_velocity(at.x_0, z=at.z, theta=theta)
        if len(rows_apart):
            y = at.x_t / expand(dynamics.scale(at.t), at.x_t)
            given = {"theta_s": theta_s[rows_apart], "x_anchor": None if x_anchor is None else x_anchor[rows_apart]}
            with sdpa_kernel(SDPBackend.MATH):  # the other attention kernels have no forward mode
                target[rows_apart] = objectives.mean_velocity_target(
                    lambda y, theta: flow.mean_velocity(y, theta, **given),
                    y[rows_apart],
                    velocity=target[rows_apart],
                    theta=theta[rows_apart],
                    theta_s=theta_s[rows_apart],
                )
        u_hat = model(at.x_t, at.t, x_anchor=x_anchor, s=at.s, mean_velocity=True)
        return None, objectives.interval(u_hat, target=target, power=power)

    return Phase(len(images), draw, loss)


def consistency_intervals(step: int, *, steps: int, first: int, last: int) -> int:
    """N(k): `first`, doubled at equal distances in training until `last` (Song & Dhariwal 2023, sec. 3.4)."""
    stages = math.floor(math.log2(last / first)) + 1
    return min(first * 2 ** min(stages - 1, step * stages // steps), last)


# Of the times of `consistency` and `interval`, this share is even in the angle. The rest is by the teacher's law, which
# hardly ever comes near t_max: ve's is above a quarter of t_max = 20 once in a hundred times.
EVEN_SHARE = 0.5
LEAST_INTERVAL = 1e-3  # of the longest: keeps 1 / (theta_t - theta_r) finite where t = r = t_min


def draw_time(
    dynamics: Dynamics, law: Streams, choice: Streams, *, t_max_share: float = 0.0, even_share: float = 0.0
) -> Tensor:
    """t_max with probability t_max_share; of the others a share even in the angle, the rest by the training law: [b].

    law, choice: what the training law and the choice draw from.
    """
    t = dynamics.draw_time(generator=law)
    if even_share:
        even = choice.uniform() / even_share
        widest = dynamics.angle(torch.tensor([dynamics.t_max]))
        t = torch.where(even < 1, dynamics.time_at(even * widest), t)
    return torch.where(choice.uniform() < t_max_share, dynamics.t_max, t)


def draw_pairs(
    accelerator: Accelerator,
    dynamics: Dynamics,
    images: Rows,
    *,
    random_flip: bool,
    batch_size: int,
    seed: int,
    t_max_share: float = 0.0,
    even_share: float = 0.0,
) -> Draw:
    """Images or points x_0 [b, ...], perturbed by fresh z to a fresh t; all draws depend on (seed, step) alone.

    t_max_share, even_share: see `draw_time`.
    """
    positions = local_positions(accelerator, batch_size)
    read = row_reader(images, accelerator.device)

    def draw(rows: np.ndarray, step: int, streams: Streams) -> Examples:
        x_0 = at_work(read(rows))  # [b, C, H, W]
        noise = Streams(seed, "noise", positions, step=step)
        t = draw_time(dynamics, noise, streams, t_max_share=t_max_share, even_share=even_share).to(x_0.device)  # [b]
        z = dynamics.draw_noise(tuple(x_0.shape[1:]), generator=noise).to(x_0.device)  # [b, C, H, W]
        mirrored = None
        if random_flip:
            mirrored = noise.uniform().to(x_0.device) < 0.5
            x_0 = torch.where(expand(mirrored, x_0).bool(), x_0.flip(-1), x_0)
        return Examples(dynamics.perturb(x_0, z=z, t=t), t, x_0, z, mirrored=mirrored)

    return draw


def train_flow(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    phases: Sequence[Phase],
    *,
    policy: AnchorPolicy,
    settings: TrainSettings,
    seed: int,
    checkpoints: Checkpoints | None = None,
    on_log: OnLog | None = None,
) -> FitResult:
    """Fits the flow in place by one phase after the other, each an equal part of the steps.

    It ends with averaged weights. Phases share optimizer, average and the schedule of the learning rate. The global
    batch of a step depends on (seed, step) alone.

    Raises ValueError for policy bank with several phases, whose samples are not the same.
    """
    if isinstance(policy, BankAnchor) and len(phases) > 1:
        raise ValueError("anchor policy bank keeps an anchor for each sample of one phase; use self or noise")
    positions = local_positions(accelerator, settings.batch_size)
    in_batch = torch.from_numpy(positions)
    orders = [EndlessShuffle(phase.size, settings.batch_size, seed=seed) for phase in phases]
    starts = [settings.steps * i // len(phases) for i in range(len(phases) + 1)]

    def loss(model: nn.Module, step: int) -> Tensor:
        i = bisect_right(starts, step) - 1
        rows = orders[i].batch(step)  # [B]
        streams = Streams(seed, "anchor", positions, step=step)
        at = phases[i].draw(rows[positions], step, streams)
        visit = Visit(rows, orders[i].visits(step), at.mirrored)
        x_anchor = policy(flow, at.x_t, at.t, generator=streams, positions=in_batch, visit=visit)
        visits = partial(policy.visits, in_batch, visit) if isinstance(policy, BankAnchor) else None
        batch = Batch(step - starts[i], starts[i + 1] - starts[i], at, x_anchor, streams, visits)
        x_0_hat, value = phases[i].loss(model, batch)
        if x_0_hat is not None:
            policy.refresh(x_0_hat.detach())
        return value

    return fit(
        accelerator,
        flow,
        loss=loss,
        settings=settings,
        checkpoints=checkpoints,
        on_log=on_log,
        memory=policy,
        label=f"flow {flow.dynamics.name}",
    )
