"""What a flow is trained by: for each objective a phase, its batches' examples and its loss.

`trajectory` learns a teacher's paths; `data` is the paper's algorithm; `consistency` and `interval` hold the flow to
identities along the path, without a teacher.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifm import objectives
from ifm.anchors import evenly_chosen
from ifm.dynamics import Dynamics, expand
from ifm.exact import ExactTeacher
from ifm.hardware.devices import RowReader, Rows, to_device
from ifm.modalities import at_work
from ifm.model import IntegrationFlow, IntervalFlow
from ifm.random import EndlessShuffle, Streams
from ifm.training.engine import LaunchError, local_positions
from ifm.training.sharded import asked, shards


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


Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t [b, C, H, W], t [b]) -> E[x_0 | x_t] [b, C, H, W]


@dataclass(frozen=True)
class Examples:
    """This process's part of a batch: points, and the end that the flow is to find."""

    x_t: Tensor  # [b, C, H, W]
    t: Tensor  # [b]
    x_0: Tensor  # [b, C, H, W]
    z: Tensor | None = None  # [b, C, H, W], the noise of a pair's path
    s: Tensor | None = None  # [b], where an interval ends
    mirrored: Tensor | None = None  # [b], which images are shown left-right mirrored
    denoiser: Denoiser | None = None  # where x_0 and z are the mean pair: what x_0 was asked from

    def part(self, rows: slice) -> "Examples":
        """Some of them."""
        return replace(self, **_tensors_of(self, rows))


@dataclass(frozen=True)
class Batch:
    """Everything a loss may need of one step, besides the model."""

    step: int  # of the phase
    steps: int  # the phase has
    at: Examples
    x_anchor: Tensor | None  # [b, C, H, W]
    positions: Tensor  # where its examples stand in the global batch: int64 [b], on the host
    visits: Tensor | None  # n of each anchor, from 1: int64 [b], on the host; bank alone

    def part(self, rows: slice) -> "Batch":
        """Some of its examples."""
        return replace(self, at=self.at.part(rows), **_tensors_of(self, rows))


def _tensors_of(holder: Any, rows: slice) -> dict[str, Tensor]:
    """A dataclass's tensors, all of which have a row for each example, cut down to some rows."""
    values = {f.name: getattr(holder, f.name) for f in fields(holder)}
    return {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}


# (rows [b], the step, its anchor streams) -> examples
Draw = Callable[[np.ndarray, int, Streams], Examples]
# (model, batch) -> x_0_hat [b, C, H, W] for the anchor policy (None where the loss makes none), loss (scalar)
FlowLoss = Callable[[nn.Module, Batch], tuple[Tensor | None, Tensor]]
Mean = Callable[[int], Denoiser]  # of a step


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


class Trajectories(Protocol):
    """A teacher's paths, stored or solved as they are needed: `ifm.trajectories` has both."""

    times: Tensor  # float64 [K], falling from t_max to 0

    def __len__(self) -> int: ...
    def expect(self, rows: np.ndarray) -> None: ...
    def points(self, rows: np.ndarray, k: Tensor) -> tuple[Tensor, Tensor]: ...


TIME_WEIGHTS = ("none", "inverse_scale")
TARGETS = ("online", "average")  # of consistency


@dataclass(frozen=True)
class Phase:
    """An objective on its data: how many samples there are, a batch's examples, and the loss."""

    size: int
    draw: Draw
    loss: FlowLoss
    expect: Callable[[np.ndarray], None]  # says which rows [b] the next draw will ask for
    average: IntegrationFlow | None = None  # what the loss asks for targets; training keeps it the averaged flow


def trajectory_phase(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    trajectories: Trajectories,
    *,
    t_max_share: float,
    distance: str,
    huber_c: float | None,
    weighting: str = "none",
) -> Phase:
    """Objective `trajectory`, on a teacher's paths.

    Each sample is one stored point (x_t, t) of a path and the path's end x_0, of which it is a function: the
    regression is well posed.
    """
    stored_times = trajectories.times.float()
    comparison = Comparison(accelerator, distance, huber_c)

    def draw(rows: np.ndarray, step: int, streams: Streams) -> Examples:
        k = draw_stored_index(streams.uniform(), stored=len(stored_times), t_max_share=t_max_share)  # [b]
        x_t, x_0 = trajectories.points(rows, k)
        return Examples(x_t, to_device(stored_times[k], accelerator.device), x_0)

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        at = batch.at
        x_0_hat = model(at.x_t, at.t, x_anchor=batch.x_anchor)
        weight = time_weight(flow.dynamics, at.t, kind=weighting)
        how = comparison.options(x_0_hat, at.x_0)
        return x_0_hat, objectives.trajectory(x_0_hat, x_0=at.x_0, weight=weight, **how)

    return Phase(len(trajectories), draw, loss, trajectories.expect)


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

    read = RowReader(images, accelerator.device)
    return Phase(len(images), draw_pairs(accelerator, flow.dynamics, read, **pairs), loss, read.expect)


def _visits(batch: Batch) -> Tensor:
    if batch.visits is None:
        raise ValueError("the mixed schedule holds x_0_hat to its sample's own anchor: it needs anchor policy bank")
    return batch.visits


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
    `intervals[0]` to `intervals[1]`; r lies one of them before t. At r = 0 the target is x_0 itself. `target` says who
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

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        at = batch.at
        longest = widest / consistency_intervals(batch.step, steps=batch.steps, first=intervals[0], last=intervals[1])
        theta = dynamics.angle(at.t)
        r = dynamics.time_at((theta - longest).clamp_min(0))
        teaching = asked(model, flow) if average is None else average
        with torch.no_grad():
            target_hat = teaching(_earlier(dynamics, at, r), r, x_anchor=batch.x_anchor)
        x_0_hat = model(at.x_t, at.t, x_anchor=batch.x_anchor)
        interval = ((theta - dynamics.angle(r)) / longest).clamp_min(LEAST_INTERVAL)
        scale = expand(dynamics.error_scale(at.t), target_hat)
        how = comparison.options(x_0_hat / scale, target_hat / scale)
        return x_0_hat, objectives.consistency(x_0_hat / scale, target=target_hat / scale, interval=interval, **how)

    read = RowReader(images, accelerator.device)
    draw = draw_pairs(accelerator, dynamics, read, even_share=EVEN_SHARE, **pairs)
    return Phase(len(images), averaged(draw, dynamics, mean), loss, read.expect, average)


def interval_phase(
    accelerator: Accelerator,
    flow: IntervalFlow,
    images: Rows,
    *,
    batch_size: int,
    same_share: float,
    whole_share: float,
    power: float,
    mean: Mean | None = None,
    **pairs: Any,
) -> Phase:
    """Mean velocities over [s, t] in the path's angle (MeanFlow, Geng et al. 2025; docs/interval.md).

    A share `same_share` of a batch has s = t, where the target is the pair's own velocity. Of the others a share
    `whole_share` has s = t_min, and the rest two draws of the time law in order; their target takes a forward-mode
    derivative of the flow. mean: see `averaged`. images, pairs: as in `data_phase`.
    Raises LaunchError under FSDP: the derivative asks the bare network, between the gathers of a split one.
    """
    if shards(accelerator):
        raise LaunchError("objective interval cannot train a model split by FSDP; use distributed_type: MULTI_GPU")
    # torch's forward mode uses its own deprecated compiler on the first call, and says so.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
    dynamics, read = flow.dynamics, RowReader(images, accelerator.device)
    positions = torch.from_numpy(local_positions(accelerator, batch_size))
    apart = ~evenly_chosen(positions, same_share)  # [b]
    # Which of the others go the whole way: by their number among all of the batch's others.
    number = positions - (positions.double() * same_share).floor().long()
    whole = apart & evenly_chosen(number, whole_share)
    apart, whole = apart.to(accelerator.device), whole.to(accelerator.device)
    draw_pair = draw_pairs(accelerator, dynamics, read, batch_size=batch_size, even_share=EVEN_SHARE, **pairs)

    def draw(rows: np.ndarray, step: int, streams: Streams) -> Examples:
        at = draw_pair(rows, step, streams)
        other = to_device(draw_time(dynamics, streams, streams, even_share=EVEN_SHARE), at.t.device)  # [b]
        other = torch.where(whole, torch.full_like(other, dynamics.t_min), other)
        t = torch.where(apart, torch.maximum(at.t, other), at.t)
        s = torch.where(apart, torch.minimum(at.t, other), at.t)
        return replace(at, x_t=dynamics.perturb(at.x_0, z=at.z, t=t), t=t, s=s)

    def loss(model: nn.Module, batch: Batch) -> tuple[None, Tensor]:
        at, x_anchor = batch.at, batch.x_anchor
        theta, theta_s = dynamics.angle(at.t), dynamics.angle(at.s)
        target = dynamics.angular_velocity(at.x_0, z=at.z, theta=theta)
        rows_apart = to_device((~evenly_chosen(batch.positions, same_share)).nonzero().squeeze(1), target.device)
        if len(rows_apart):
            y = at.x_t / expand(dynamics.scale(at.t), at.x_t)
            given = {"theta_s": theta_s[rows_apart], "x_anchor": None if x_anchor is None else x_anchor[rows_apart]}
            with differentiable_forward(flow):
                target[rows_apart] = objectives.mean_velocity_target(
                    lambda y, theta: flow.mean_velocity(y, theta, **given),
                    y[rows_apart],
                    velocity=target[rows_apart],
                    theta=theta[rows_apart],
                    theta_s=theta_s[rows_apart],
                )
        u_hat = model(at.x_t, at.t, x_anchor=x_anchor, s=at.s, mean_velocity=True)
        return None, objectives.interval(u_hat, target=target, power=power)

    return Phase(len(images), averaged(draw, dynamics, mean), loss, read.expect)


@contextmanager
def differentiable_forward(model: nn.Module) -> Iterator[None]:
    """A network's evaluations as forward-mode differentiation takes them: in float32, by attention's plain formula.

    The derivative has no rules for autocast's casts of weights on CPUs and for the fast attention kernels. That of
    GroupNorm wants a contiguous tangent up to torch 2.11; a convolution's can be channels_last.
    """
    device = next(model.parameters()).device.type
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    hooks = [module.register_forward_pre_hook(_contiguous) for module in norms]
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(device, enabled=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _contiguous(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Value and tangent contiguous: `contiguous` itself looks at the value alone."""
    return (inputs[0].clone(memory_format=torch.contiguous_format),)


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
    read: RowReader,
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
    positions, device = local_positions(accelerator, batch_size), accelerator.device

    def draw(rows: np.ndarray, step: int, streams: Streams) -> Examples:
        x_0 = at_work(read(rows))  # [b, C, H, W]
        noise = Streams(seed, "noise", positions, step=step)
        t = draw_time(dynamics, noise, streams, t_max_share=t_max_share, even_share=even_share)  # [b]
        t, z = to_device(t, device), dynamics.draw_noise(tuple(x_0.shape[1:]), generator=noise)
        z, mirrored = to_device(z, device), None  # [b, C, H, W]
        if random_flip:
            mirrored = to_device(noise.uniform(), device) < 0.5
            x_0 = torch.where(expand(mirrored, x_0).bool(), x_0.flip(-1), x_0)
        return Examples(dynamics.perturb(x_0, z=z, t=t), t, x_0, z, mirrored=mirrored)

    return draw


def averaged(draw: Draw, dynamics: Dynamics, mean: Mean | None) -> Draw:
    """`draw` with the mean pair in place of each: x_0 becomes E[x_0 | x_t], and z what makes x_t of it.

    Every velocity of consistency and interval is linear in (x_0, z) given x_t: its mean stays and its spread goes. With
    a teacher as `mean` it is distillation. None: `draw` itself.
    """
    if mean is None:
        return draw

    def draw_averaged(rows: np.ndarray, step: int, streams: Streams) -> Examples:
        at = draw(rows, step, streams)
        denoiser = mean(step)
        with torch.no_grad():
            x_0 = denoiser(at.x_t, at.t)
        return replace(at, x_0=x_0, z=_noise_of(dynamics, at, x_0), denoiser=denoiser)

    return draw_averaged


def _noise_of(dynamics: Dynamics, at: Examples, x_0: Tensor) -> Tensor:
    """z such that x_t = a x_0 + b z."""
    x_t, c = at.x_t.double(), dynamics.coefficients(at.t.double())
    return ((x_t - expand(c.a, x_t) * x_0.double()) / expand(c.b, x_t)).to(x_0.dtype)


def _earlier(dynamics: Dynamics, at: Examples, r: Tensor) -> Tensor:
    """x_r: the pair's, or for the mean pair the ODE's, with the mean of E[x_0 | x] at both ends (second order)."""
    x_r = dynamics.perturb(at.x_0, z=at.z, t=r)
    if at.denoiser is None:
        return x_r
    x_0 = (at.x_0 + at.denoiser(x_r, r)) / 2
    return dynamics.perturb(x_0, z=_noise_of(dynamics, at, x_0), t=r)


def mean_over_reference(
    accelerator: Accelerator,
    dynamics: Dynamics,
    images: Rows,
    *,
    size: int,
    random_flip: bool,
    batch_size: int,
    seed: int,
) -> Mean:
    """E[x_0 | x_t] for x_0 uniform on `size` data, in closed form: a stable target (Xu, Tong & Jaakkola 2023).

    The reference is a step's global batch and those that come after it, whole, so it is the same in every process and
    holds the pair's own x_0; at most all data, once. Given it, each of its data is the one that made x_t with the
    probability that weighs it: the average over pairs stays what it was.
    """
    read, order = RowReader(images, accelerator.device), EndlessShuffle(len(images), batch_size, seed=seed)

    def denoiser(step: int) -> ExactTeacher:
        rows = np.arange(len(images))
        if size < len(images):
            ahead = [order.batch(step + i) for i in range(math.ceil(size / batch_size))]
            rows = np.unique(np.concatenate(ahead))
        data = at_work(read(rows))
        return ExactTeacher(torch.cat([data, data.flip(-1)]) if random_flip else data, dynamics)

    return denoiser
