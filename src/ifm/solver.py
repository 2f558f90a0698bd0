"""The ODE from noise to data by a denoiser: Heun or Euler, and trajectories at some of their times."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ifm.conditions.base import Condition
from ifm.dynamics.base import Dynamics

Denoiser = Callable[..., Tensor]  # (x_t [B, ...], t [B]) -> E[x_0 | x_t] [B, ...]; condition=... where there is one


def solver_nfe(steps: int, *, method: str = "heun") -> int:
    """Network evaluations of a solve: 2 steps - 1 for Heun (its last step is Euler's), steps for Euler."""
    return 2 * steps - 1 if method == "heun" else steps


def heun_steps(nfe: int) -> int:
    """The number of Heun steps that costs `nfe` evaluations. Raises ValueError for an even number."""
    if nfe < 1 or nfe % 2 == 0:
        raise ValueError(f"Heun with a last Euler step takes an odd number of evaluations, got {nfe}")
    return (nfe + 1) // 2


@torch.no_grad()
def solve_states(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    dynamics: Dynamics,
    times: Tensor,
    method: str = "heun",
    condition: Condition | None = None,
) -> Iterator[Tensor]:
    """The solver's states at `times` [S + 1], x_T [B, ...] first, by Heun (EDM algorithm 1) or Euler.

    The slope is that of the marginal ODE at D(x, t, condition). A step goes along it in t or, where the dynamics has
    one, in the noise level (`Dynamics.slope`, `Dynamics.step`). A step that ends at t = 0 lands on D(x, t): the
    velocity has no value there. On a straight path that is Euler's step.
    """
    asked = denoiser if condition is None else partial(denoiser, condition=condition)
    counts = getattr(denoiser, "counts_at", None)  # of a guided one, which need not ask a GPU for what t is
    if method not in ("heun", "euler"):
        raise ValueError(f"unknown solver {method!r}; known: heun, euler")
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or float(times[-1]) < 0:
        raise ValueError(f"times must fall strictly and end at or above 0, got {times.tolist()}")

    def evaluate(x: Tensor, t: float) -> Tensor:
        known = {} if counts is None else {"counts": counts(torch.tensor([t], dtype=x.dtype))}
        return asked(x, at_time(x, t), **known)

    x = x_T
    yield x
    for t, s in pairwise(times.tolist()):
        x_0_hat = evaluate(x, t)
        if s == 0:
            yield x_0_hat
            return
        slope = dynamics.slope(x, x_0=x_0_hat, t=at_time(x, t))
        x_s = dynamics.step(x, slope, t=t, s=s)
        if method == "heun":
            then = dynamics.slope(x_s, x_0=evaluate(x_s, s), t=at_time(x_s, s))
            x_s = dynamics.step(x, (slope + then) / 2, t=t, s=s)
        x = x_s
        yield x


def solve_ode(denoiser: Denoiser, x_T: Tensor, **how: Any) -> Tensor:
    """The end point of the ODE from x_T: [B, ...]. how: see `solve_states`."""
    x = x_T
    for x in solve_states(denoiser, x_T, **how):  # noqa: B007 - the last state is wanted
        pass
    return x


def stored_indices(steps: int, count: int) -> list[int]:
    """`count` grid indices spread evenly over 0..steps, both ends included."""
    if not 2 <= count <= steps + 1:
        raise ValueError(f"can store 2 to {steps + 1} times of a {steps}-step solve, got {count}")
    return [round(i * steps / (count - 1)) for i in range(count)]


def solve_trajectory(denoiser: Denoiser, x_T: Tensor, *, keep: list[int], **how: Any) -> Tensor:
    """The Heun path from x_T at the grid indices `keep`: [B, K, ...]. how: see `solve_states`."""
    wanted = set(keep)
    states = solve_states(denoiser, x_T, **how)
    return torch.stack([x for i, x in enumerate(states) if i in wanted], dim=1)


def at_time(x: Tensor, t: float) -> Tensor:
    """One time for all of a batch: [B]."""
    return torch.full((len(x),), t, dtype=x.dtype, device=x.device)
