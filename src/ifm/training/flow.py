"""Training the integration flow: on the teacher's trajectories (objective `trajectory`) or on images (`data`)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm import objectives
from ifm.anchors import AnchorPolicy, BankAnchor, Visit
from ifm.dynamics import Dynamics, expand
from ifm.images import at_work
from ifm.model import IntegrationFlow
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
    mirrored: Tensor | None = None  # [b], which images are shown left-right mirrored


# (rows [b], the step, its anchor streams) -> examples
Draw = Callable[[np.ndarray, int, Streams], Examples]


def time_weight(dynamics: Dynamics, t: Tensor, *, kind: str) -> Tensor | None:
    """lambda(t) [B]: "none" is 1 (given as None), "inverse_scale" is 1 / error_scale(t).

    error_scale is the error to be expected at t: EDM's c_out for ve and pfgmpp (t for small t), t for rf.
    """
    if kind not in TIME_WEIGHTS:
        raise ValueError(f"unknown time weight {kind!r}; known: {', '.join(TIME_WEIGHTS)}")
    return None if kind == "none" else 1 / dynamics.error_scale(t)


TIME_WEIGHTS = ("none", "inverse_scale")


def train_flow(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    trajectories: Rows,
    *,
    times: Tensor,
    policy: AnchorPolicy,
    settings: TrainSettings,
    t_max_share: float,
    distance: str,
    huber_c: float | None,
    seed: int,
    weighting: str = "none",
    checkpoints: Checkpoints | None = None,
    on_log: OnLog | None = None,
) -> FitResult:
    """Fits the flow to trajectories (float16 [n, K, C, H, W], at `times` [K]) in place; it ends with averaged weights.

    Each sample is one stored point (x_t, t) of a path and the path's end x_0, of which it is a function: the
    regression is well posed. The global batch of a step depends on (seed, step) alone.
    """
    read = row_reader(trajectories, accelerator.device)
    stored_times = times.float().to(accelerator.device)

    def draw(rows: np.ndarray, step: int, streams: Streams) -> Examples:
        path = read(rows).float()  # [b, K, C, H, W]
        k = draw_stored_index(streams.uniform(), stored=len(times), t_max_share=t_max_share).to(path.device)
        return Examples(path[torch.arange(len(k), device=k.device), k], stored_times[k], path[:, -1])

    return _fit_flow(
        accelerator,
        flow,
        draw,
        objective="trajectory",
        size=len(trajectories),
        policy=policy,
        settings=settings,
        distance=distance,
        huber_c=huber_c,
        weighting=weighting,
        mixed=False,
        seed=seed,
        checkpoints=checkpoints,
        on_log=on_log,
    )


def train_flow_on_data(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    images: Rows,
    *,
    random_flip: bool,
    policy: AnchorPolicy,
    settings: TrainSettings,
    t_max_share: float,
    distance: str,
    huber_c: float | None,
    weighting: str,
    mixed: bool,
    seed: int,
    checkpoints: Checkpoints | None = None,
    on_log: OnLog | None = None,
) -> FitResult:
    """The paper's algorithm: fits the flow to images (uint8 [n, C, H, W]) or points (float32 [n, d]) in place.

    It ends with averaged weights.

    Each sample is an image x_0, perturbed by fresh z to a fresh t: t_max with probability t_max_share, else by the
    dynamics' training law. x_0_hat = g(x_0^(n), x_t, t) is held to x_0 and, if `mixed`, with weight 1 - 1/n to
    x_0^(n); then, under policy `bank`, x_0^(n+1) = x_0_hat. All draws depend on (seed, step) alone.

    Raises ValueError if `mixed` is asked of a policy that keeps no anchors.
    """
    dynamics = flow.dynamics
    positions = local_positions(accelerator, settings.batch_size)
    read = row_reader(images, accelerator.device)

    def draw(rows: np.ndarray, step: int, streams: Streams) -> Examples:
        x_0 = at_work(read(rows))  # [b, C, H, W]
        noise = Streams(seed, "noise", positions, step=step)
        t = dynamics.draw_time(generator=noise)  # [b]
        t = torch.where(streams.uniform() < t_max_share, dynamics.t_max, t).to(x_0.device)
        z = dynamics.draw_noise(tuple(x_0.shape[1:]), generator=noise).to(x_0.device)  # [b, C, H, W]
        mirrored = None
        if random_flip:
            mirrored = noise.uniform().to(x_0.device) < 0.5
            x_0 = torch.where(expand(mirrored, x_0).bool(), x_0.flip(-1), x_0)
        return Examples(dynamics.perturb(x_0, z=z, t=t), t, x_0, mirrored)

    return _fit_flow(
        accelerator,
        flow,
        draw,
        objective="data",
        size=len(images),
        policy=policy,
        settings=settings,
        distance=distance,
        huber_c=huber_c,
        weighting=weighting,
        mixed=mixed,
        seed=seed,
        checkpoints=checkpoints,
        on_log=on_log,
    )


def _fit_flow(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    draw: Draw,
    *,
    objective: str,
    size: int,
    policy: AnchorPolicy,
    settings: TrainSettings,
    distance: str,
    huber_c: float | None,
    weighting: str,
    mixed: bool,
    seed: int,
    checkpoints: Checkpoints | None,
    on_log: OnLog | None,
) -> FitResult:
    """What both objectives share: batches, anchors, distance and weight."""
    if mixed and not isinstance(policy, BankAnchor):
        raise ValueError("the mixed schedule holds x_0_hat to its sample's own anchor: it needs anchor policy bank")
    positions = local_positions(accelerator, settings.batch_size)
    in_batch = torch.from_numpy(positions)
    order = EndlessShuffle(size, settings.batch_size, seed=seed)

    def loss(model: nn.Module, step: int) -> Tensor:
        rows = order.batch(step)  # [B]
        streams = Streams(seed, "anchor", positions, step=step)
        at = draw(rows[positions], step, streams)
        visit = Visit(rows, order.visits(step), at.mirrored)
        x_anchor = policy(flow, at.x_t, at.t, generator=streams, positions=in_batch, visit=visit)
        x_0_hat = model(at.x_t, at.t, x_anchor=x_anchor)
        policy.refresh(x_0_hat.detach())
        weight = time_weight(flow.dynamics, at.t, kind=weighting)
        c = huber_c
        if distance == "adaptive_huber":
            c = accelerator.reduce(objectives.adaptive_huber_c(x_0_hat, at.x_0), reduction="mean")
        if objective == "trajectory":
            return objectives.trajectory(x_0_hat, x_0=at.x_0, distance=distance, c=c, weight=weight)
        n = policy.visits(in_batch, visit) if mixed else None
        return objectives.data(x_0_hat, x_0=at.x_0, x_anchor=x_anchor, n=n, distance=distance, c=c, weight=weight)

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
