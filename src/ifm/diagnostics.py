"""The paper's claims as numbers: paths that do not meet, stable estimates, anchors that settle, straight paths.

An estimated path is t -> g(x_anchor, x_t, t), the flow's end point for each point x_t of a teacher's path. For an exact
flow it is constant. Distances are RMS over a sample's dimensions, |d| / sqrt(N), as is the end-point error.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ifm.conditions.base import Condition, rows_of, told
from ifm.dynamics.base import Dynamics, expand
from ifm.exact import FlowMap
from ifm.model import IntegrationFlow
from ifm.random import Streams
from ifm.sampling import Draws
from ifm.solver import Denoiser, solve_states, stored_indices

Estimate = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, ...], t [B]) -> x_0_hat [B, ...], the anchor given
STEP = 1e-2  # of differences: float32 keeps five digits; forward differentiation of a U-Net takes four times as long
ROUNDING = 1e-6  # RMS of float32's own noise in data of unit scale
CLOSE = 1e-2  # of a row's norm: distances below are taken again, without cancellation
_DIAGNOSING = 2**63  # a step that training never reaches


def rms(d: Tensor) -> Tensor:
    """Root mean square over a sample's dimensions: [B, ...] -> [B]."""
    return d.flatten(1).double().square().mean(dim=1).sqrt()


def spread(x_0: Tensor) -> float:
    """RMS distance of the samples [B, ...] from their mean; the unit of relative errors and sensitivities."""
    return max(float((x_0 - x_0.mean(dim=0)).double().square().mean().sqrt()), 1e-12)


# --- non-intersection ---------------------------------------------------------------------------------------


def closest_approach(x: Tensor) -> float:
    """The smallest RMS distance between two different rows of x [B, ...]."""
    flat = x.flatten(1).double()
    return float(torch.pdist(flat).min()) / math.sqrt(flat.shape[1])


def neighbour_spacing(data: Tensor, *, queries: int, chunk: int = 4096) -> Tensor:
    """RMS distance of the first `queries` rows of data [n, ...] to their nearest other rows: [queries].

    It is exactly 0 for rows that occur twice.
    """
    flat = data.flatten(1).float()
    first = flat[:queries]
    nearest, which = first.new_full((len(first),), torch.inf), torch.zeros(len(first), dtype=torch.long)
    which = which.to(flat.device)
    own = torch.arange(len(first), device=flat.device)
    for start in range(0, len(flat), chunk):
        distance = torch.cdist(first, flat[start : start + chunk])  # [queries, <= chunk]
        here = own[(own >= start) & (own < start + chunk)]
        distance[here, here - start] = torch.inf
        least, row = distance.min(dim=1)
        which = torch.where(least < nearest, row + start, which)
        nearest = torch.minimum(nearest, least)
    nearest = nearest.double()
    # Matrix products leave rounding where rows are equal.
    close = nearest < CLOSE * first.double().norm(dim=1)
    nearest[close] = (first[close].double() - flat[which[close]].double()).norm(dim=1)
    return nearest / math.sqrt(flat.shape[1])


def jacobians(estimate: Estimate, x_t: Tensor, t: Tensor, *, chunk: int = 64) -> Tensor:
    """d x_0_hat / d x_t in full: [B, N, N], by N reverse passes over the whole batch, `chunk` of them at a time."""
    x = x_t.flatten(1).detach().requires_grad_()
    # Samples do not meet, so the sum's derivative holds each sample's own. torch.func.jacrev is the same, after a
    # second and a half of imports (torch.compile's).
    summed = estimate(x.reshape(x_t.shape), t).flatten(1).sum(dim=0)  # [N]
    rows = [
        torch.autograd.grad(summed, x, picked, is_grads_batched=True, retain_graph=True)[0]
        for picked in torch.eye(len(summed), dtype=summed.dtype, device=x.device).split(chunk)
    ]
    return torch.cat(rows).permute(1, 0, 2)


def projected_jacobians(estimate: Estimate, x_t: Tensor, t: Tensor, *, basis: Tensor, scale: float) -> Tensor:
    """J U for k orthonormal directions U, basis [k, N]: [B, N, k], by 2 k forward passes.

    The smallest singular value of J U is an upper bound of J's smallest, and the largest a lower bound of J's largest.
    scale: that of x_t's coordinates; the step of the differences is proportional to it.
    """
    longer = scale * math.sqrt(basis.shape[1])
    columns = [
        derivative(lambda x: estimate(x, t), x_t, longer * u.expand(len(x_t), -1).reshape(x_t.shape)) / longer
        for u in basis
    ]
    return torch.stack([column.flatten(1) for column in columns], dim=2)


@torch.no_grad()
def derivative(f: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, *, step: float = STEP) -> Tensor:
    """The directional derivative of f by central differences, with error O(step^2): in the shape of f(at)."""
    return (f(at + step * direction) - f(at - step * direction)) / (2 * step)


def orthonormal(directions: Tensor) -> Tensor:
    """An orthonormal basis [k, N] of the span of k random directions [k, ...]."""
    return torch.linalg.qr(directions.flatten(1).double().T).Q.T.to(directions.dtype)


def gaussian_gain(dynamics: Dynamics, t: Tensor) -> Tensor:
    """d x_0 / d x_t for Gaussian data of standard deviation s_d, s_d / sqrt(a^2 s_d^2 + b^2): [B].

    Singular values are divided by it. Then 1 is the flow map of such data, at every t and for every dynamics.
    """
    at, s_d = dynamics.coefficients(t), dynamics.sigma_data
    return s_d / torch.sqrt(at.a**2 * s_d**2 + at.b**2)


# --- stability ----------------------------------------------------------------------------------------------


def sensitivity(f: Callable[[Tensor], Tensor], at: Tensor, directions: Sequence[Tensor]) -> Tensor:
    """RMS of f's directional derivative, over dimensions and directions [B, ...] each: [B]."""
    squares = [rms(derivative(f, at, direction)).square() for direction in directions]
    return torch.stack(squares).mean(dim=0).sqrt()


@torch.no_grad()
def anchor_steps(
    flow: IntegrationFlow, x_T: Tensor, *, x_anchor: Tensor, steps: int, condition: Condition | None = None
) -> list[float]:
    """RMS of a_(n+1) - a_n for n = 1 .. steps - 1, with a_(n+1) = g(a_n, x_T, t_max) and a_0 = x_anchor."""
    t = x_T.new_full((len(x_T),), flow.dynamics.t_max)
    anchors = [flow(x_T, t, x_anchor=x_anchor, **told(condition))]
    for _ in range(steps - 1):
        anchors.append(flow(x_T, t, x_anchor=anchors[-1], **told(condition)))
    return [_total(b - a) for a, b in itertools.pairwise(anchors)]


def contraction(steps: Sequence[float]) -> float | None:
    """The factor by which |a_(n+1) - a_n| shrinks from one n to the next: a geometric mean, down to rounding.

    None if fewer than two steps are above rounding.
    """
    moving = list(itertools.takewhile(lambda step: step > ROUNDING, steps))
    return (moving[-1] / moving[0]) ** (1 / (len(moving) - 1)) if len(moving) > 1 else None


# --- straightness and error ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Straightness:
    """total: S / E|x_T - x_0|^2, 0 for straight lines; profile: its integrand on each interval of the grid."""

    total: float
    profile: list[float]


def straightness(states: Sequence[Tensor], *, times: Tensor) -> Straightness:
    """S = int E|(x_T - x_0) / T - dx/dt|^2 dt / T (Liu et al. 2022, T = t_max), over E|x_T - x_0|^2 / T^2.

    states: the path's S + 1 states [B, ...] at `times` [S + 1], falling from T to 0. The velocity is that of each
    interval, so S is a lower bound: it misses the curvature within an interval.
    """
    x = torch.stack([state.double() for state in states])  # [S + 1, B, ...]
    t = times.double().to(x.device)
    mean = (x[0] - x[-1]) / (t[0] - t[-1])  # [B, ...]
    v = x.diff(dim=0) / t.diff().reshape(-1, *[1] * (x.ndim - 1))  # [S, B, ...]
    profile = (v - mean).square().flatten(1).mean(dim=1) / mean.square().mean()  # [S]
    share = t.diff() / (t[-1] - t[0])  # [S]
    return Straightness(float((share * profile).sum()), profile.tolist())


def flow_map_error(x_0_hat: Tensor, *, x_0: Tensor) -> float:
    """RMS of x_0_hat - x_0 in units of x_0's spread over the samples: [B, ...] both."""
    return _total(x_0_hat - x_0) / spread(x_0)


def _total(d: Tensor) -> float:
    return float(d.double().square().mean().sqrt())


# --- all of them --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredPaths:
    """Paths that the flow was trained on: states [P, K, ...] at `times` [K], falling to 0."""

    states: Tensor
    times: Tensor
    condition: Condition | None = None  # [P]


def diagnose(
    flow: IntegrationFlow,
    teacher: Denoiser,
    draws: Draws,
    *,
    data: Tensor,
    stored: StoredPaths | None,
    solver_steps: int,
    jacobian_paths: int,
    jacobian_times: int,
    whole_jacobian_up_to: int,
    directions: int,
    anchor_refinements: int,
    seed: int,
    exact: FlowMap | None = None,
) -> dict[str, Any]:
    """All diagnostics of one flow, as plain values for JSON (six significant digits).

    draws: x_T and x_anchor of the paths, which training has not seen. data: real samples [n, ...]. Profiles are over
    `times`, the grid of the reference solution. `seed` draws the directions of derivatives. exact: the data's own flow
    map, if it is known. A figure that cannot be computed is None, with the reason in `warnings`.
    """
    dynamics, x_T, x_anchor = flow.dynamics, draws.x_T, draws.x_anchor
    times = dynamics.solver_times(solver_steps)
    estimate = _given(flow, x_anchor, draws.condition)
    condition = draws.condition
    how = {"dynamics": dynamics, "times": times}
    true_states = list(solve_states(teacher, x_T, condition=condition, **how))  # [S + 1] of [P, ...]
    own_states = list(solve_states(estimate, x_T, **how))
    x_0 = true_states[-1]
    with torch.no_grad():
        estimates = [estimate(x, _batch(x, t)) for x, t in zip(true_states, times.tolist(), strict=True) if t > 0]
    closest = [closest_approach(x) for x in estimates]
    spacing = float(neighbour_spacing(data, queries=2000).median())
    teacher_s, own_s = straightness(true_states, times=times), straightness(own_states, times=times)
    profile = [flow_map_error(x, x_0=x_0) for x in estimates]
    few = min(jacobian_paths, len(x_T))
    noise = Streams(seed, "choice", range(len(x_T)), step=_DIAGNOSING)
    random_directions = [noise.normal(tuple(x_T.shape[1:])).to(x_T.device) for _ in range(directions)]  # k of [P, ...]
    steps = None
    if flow.takes_anchor:
        steps = anchor_steps(flow, x_T, x_anchor=x_anchor, steps=anchor_refinements, condition=condition)
    return _checked(
        {
            "dynamics": dynamics.name,
            "paths": len(x_T),
            "times": times.tolist(),
            "spread": spread(x_0),
            "non_intersection": {
                "ratio": min(closest) / spacing if spacing else None,
                "teacher_ratio": closest_approach(x_0) / spacing if spacing else None,
                "spacing": spacing,
                "closest": closest,
            },
            "jacobian": _jacobian(
                _given(flow, x_anchor[:few], rows_of(condition, slice(few))),
                dynamics,
                [state[:few] for state in true_states[:-1]],
                times[:-1],
                keep=stored_indices(solver_steps - 1, min(jacobian_times, solver_steps)),
                whole=x_T[0].numel() <= whole_jacobian_up_to,
                basis=orthonormal(_basis_directions(seed, x_T, directions)),
            ),
            "stability": _stability(flow, x_T, x_anchor, random_directions, condition),
            "anchor": None if steps is None else {"contraction": contraction(steps), "last": steps[-1], "steps": steps},
            "straightness": {
                "teacher": teacher_s.total,
                "flow": own_s.total,
                "teacher_profile": teacher_s.profile,
                "flow_profile": own_s.profile,
            },
            "error": {
                "one_step": profile[0],
                "profile": profile,
                "training": None if stored is None else _training_error(flow, stored, x_anchor),
                **_exact_error(exact, true_states, times, estimates=estimates),
            },
        }
    )


NO_SPACING = (
    "Closest approach is not computed: at least half of the training images (or points) looked at occur twice or more, "
    "so that the data's median spacing is 0."
)
NOT_FINITE = "Some diagnostics are not computed: the flow or the teacher gives values that are not finite."


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """The results in six digits, with reasons in `warnings` for those that are None."""
    reasons = [] if found["non_intersection"]["spacing"] else [NO_SPACING]
    before = _nones(found)
    found = _rounded(found)
    return found | {"warnings": reasons + [NOT_FINITE] * (_nones(found) > before)}


def _nones(value: Any) -> int:
    """The number of None in a nested value."""
    if isinstance(value, dict):
        return sum(map(_nones, value.values()))
    return sum(map(_nones, value)) if isinstance(value, list) else value is None


def _given(flow: IntegrationFlow, x_anchor: Tensor, condition: Condition | None) -> Estimate:
    """g as a function of x_t and t alone."""
    return lambda x, t: flow(x, t, x_anchor=x_anchor if flow.takes_anchor else None, **told(condition))


def _batch(x: Tensor, t: float) -> Tensor:
    return torch.full((len(x),), t, dtype=x.dtype, device=x.device)


def _basis_directions(seed: int, x: Tensor, count: int) -> Tensor:
    """`count` random directions, or as many as there are dimensions: [k, ...]."""
    count = min(count, x[0].numel())
    return Streams(seed, "choice", range(count), step=_DIAGNOSING + 1).normal(tuple(x.shape[1:])).to(x.device)


def _jacobian(estimate, dynamics, states, times, *, keep, whole, basis) -> dict[str, Any]:
    """Extreme singular values of d x_0_hat / d x_t along paths, over the Gaussian gain, and the share with det < 0.

    The determinant of the map x_t -> x_0_hat is 1 at t_min. If it is negative at a larger t, it has passed through 0 in
    between, so neighbouring estimated paths have met.
    """
    at, smallest, least, largest, folded = [], [], [], [], []
    for i in keep:
        x_t, t = states[i], _batch(states[i], float(times[i]))
        if whole:
            J = jacobians(estimate, x_t, t)
        else:
            scale = float(dynamics.coefficients(t).b[0])
            J = projected_jacobians(estimate, x_t, t, basis=basis, scale=scale)
        J = (J / gaussian_gain(dynamics, t)[:, None, None]).detach().double()
        values = _singular_values(J)
        at.append(float(times[i]))
        smallest.append(float(values[:, -1].median()))
        least.append(float(values[:, -1].min()))
        largest.append(float(values[:, 0].median()))
        if whole:
            negative = (torch.linalg.slogdet(J.nan_to_num()).sign <= 0).double()
            folded.append(float(torch.where(values[:, 0].isnan(), torch.nan, negative).mean()))
    return {
        "whole": whole,
        "directions": None if whole else len(basis),
        "least": min(least),
        "folded": max(folded) if whole else None,
        "times": at,
        "smallest": smallest,
        "smallest_least": least,
        "largest": largest,
        "folded_profile": folded or None,
    }


def _singular_values(J: Tensor) -> Tensor:
    """Of J [B, N, k]: [B, k], falling; NaN where J is not finite, which torch refuses."""
    sound = J.isfinite().flatten(1).all(dim=1)
    values = torch.linalg.svdvals(J.nan_to_num())
    return torch.where(sound[:, None], values, torch.nan)


def _stability(
    flow: IntegrationFlow, x_T: Tensor, x_anchor: Tensor, directions: list[Tensor], condition: Condition | None
) -> dict[str, Any]:
    """Derivatives of x_0_hat at t_max in units of its spread: by x_T (along noise of its scale), ln t, the anchor.

    An exact Gaussian flow map has 1 for x_T, about 1 for t, and 0 for the anchor.
    """
    dynamics, given = flow.dynamics, told(condition)
    t, anchor = _batch(x_T, dynamics.t_max), x_anchor if flow.takes_anchor else None
    b = expand(dynamics.coefficients(t).b, x_T)
    with torch.no_grad():
        unit = spread(flow(x_T, t, x_anchor=anchor, **given))
    found = {
        "x_T": sensitivity(lambda x: flow(x, t, x_anchor=anchor, **given), x_T, [b * u for u in directions]),
        # A step before t_max, so that both differences stay where the flow was trained.
        "t": sensitivity(lambda s: flow(x_T, s, x_anchor=anchor, **given), (1 - STEP) * t, [t]),
    }
    if flow.takes_anchor:
        found["anchor"] = sensitivity(lambda a: flow(x_T, t, x_anchor=a, **given), x_anchor, directions)
    return {name: _quantiles(values.detach() / unit) for name, values in found.items()}


def _quantiles(values: Tensor) -> dict[str, float]:
    low, median, high = values.double().quantile(values.new_tensor([0.05, 0.5, 0.95]).double()).tolist()
    return {"rms": _total(values), "low": low, "median": median, "high": high}


def _exact_error(
    exact: FlowMap | None, states: Sequence[Tensor], times: Tensor, *, estimates: Sequence[Tensor]
) -> dict[str, Any]:
    """Errors against the exact end points if these are known, else nothing.

    profile: for each estimate, made from a state [P, ...] and its time. one_step: the first of them. teacher: for the
    solver's end point, the last state.
    """
    if exact is None:
        return {}
    ends = [exact(x, _batch(x, t)) for x, t in zip(states, times.tolist(), strict=True) if t > 0]
    profile = [flow_map_error(x_0_hat, x_0=x_0) for x_0_hat, x_0 in zip(estimates, ends, strict=True)]
    teacher = flow_map_error(states[-1], x_0=ends[0])
    return {"exact": {"one_step": profile[0], "teacher": teacher, "profile": profile}}


@torch.no_grad()
def _training_error(flow: IntegrationFlow, stored: StoredPaths, x_anchor: Tensor) -> dict[str, Any]:
    """The flow's error on paths that it was trained on, at their stored times above 0."""
    count = min(len(stored.states), len(x_anchor))
    paths, estimate = stored.states[:count], _given(flow, x_anchor[:count], rows_of(stored.condition, slice(count)))
    inner = [(k, t) for k, t in enumerate(stored.times.tolist()) if t > 0]
    errors = [flow_map_error(estimate(paths[:, k], _batch(paths, t)), x_0=paths[:, -1]) for k, t in inner]
    return {"one_step": errors[0], "times": [t for _, t in inner], "profile": errors}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
