"""Which sampler is best for a number of evaluations: measured on draws of its own, by a greedy search over few times.

The sampler for n evaluations goes on from the one for the next smaller number m: the same draws, the same first m
evaluations. Their states are kept, so that a candidate costs n - m evaluations a draw. Smallest levels, at which the
flow's map is nearly the identity, are always among the candidates: so more evaluations need not be worse.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ifm.conditions.base import ConditionKind
from ifm.hardware.devices import to_device
from ifm.hardware.parallel import shared_batches
from ifm.latents.autoencoder import decoded, outside
from ifm.modalities import at_rest
from ifm.model import IntegrationFlow, IntervalFlow
from ifm.recorded import Way
from ifm.sampling import Draws, sample_dtype
from ifm.steps import least_time, level_at, map_again, sample, sample_chained, time_at_level

if TYPE_CHECKING:
    from accelerate import Accelerator

FIRST = 2**40  # the number of the first draw: far beyond those that any set of samples starts from
DIGITS = 4  # significant, of the times that are tried
# First and last level of several further ones, as parts of the way, in the logarithm, from the last level to the least.
SPANS = ((0.1, 0.35), (0.2, 0.7), (0.5, 0.8), (0.8, 1.0))


@dataclass(frozen=True)
class Choice:
    """The sampler that measured best for a number of evaluations."""

    way: Way
    value: float  # of the measure
    best_of_fewer: int | None = None  # the number of evaluations that measured at least as well, if a smaller one did


@dataclass(frozen=True)
class Selection:
    """What measured best, and everything that was measured."""

    best: dict[int, Choice]  # by number of evaluations
    tried: dict[int, list[tuple[Way, float]]]


@dataclass(frozen=True)
class _Line:
    """A sampler that can go on: where each batch of draws is after its evaluations."""

    way: Way
    value: float
    states: dict[int, Tensor]  # x_0_hat by the batch's first member, of this process's batches


def select(
    flow: IntegrationFlow,
    shape: tuple[int, ...],
    measure: Callable[[np.ndarray], float],
    *,
    steps: Sequence[int],
    levels: int,
    higher: bool = False,
    on_measured: Callable[[int, Way, float], None] = lambda n, way, value: None,
    **how: Any,
) -> Selection:
    """The best sampler for 1 and each number in `steps`, by `measure` of the samples at rest [count, *shape].

    Candidates for n > 1: `anchor` where the flow takes one, as long as it measures best; `chain` for flows of two
    times; `renoise` with the times that are best for fewer evaluations, gone on by one of `levels` noise levels even in
    the path's angle, or by several between two levels (SPANS). higher: whether more is better. on_measured: told of
    each. how: see `_Draws`. Processes share the batches; each finds the same.
    """
    draws, better = _Draws(flow, shape, measure, **how), -1 if higher else 1
    tried: dict[int, list[tuple[Way, float]]] = {}

    def best_of(lines: Iterable[_Line]) -> _Line:
        """The first of equals."""
        return min(lines, key=lambda line: better * line.value)

    def note(n: int, line: _Line) -> _Line:
        tried.setdefault(n, []).append((line.way, line.value))
        on_measured(n, line.way, line.value)
        return line

    renoised = note(1, draws.one_step())
    refined = renoised if flow.takes_anchor else None
    best, before = {1: Choice(renoised.way, renoised.value)}, 1
    for n in sorted({*steps} - {1}):
        found = []
        if isinstance(flow, IntervalFlow):
            found.append(note(n, draws.chained(n)))
        if refined is not None:
            refined = note(n, draws.refined(refined, n - before))
            found.append(refined)
        further = candidates(flow, renoised.way.times or (flow.dynamics.t_max,), n - before, levels=levels)
        # One after the other: of many samples, no more than two candidates' states are kept at a time.
        renoised = best_of(note(n, draws.renoised(renoised, times)) for times in further)
        winner = best_of([renoised, *found])
        refined = refined if winner is refined else None
        fewer = min(best, key=lambda m: better * best[m].value)
        no_gain = better * best[fewer].value <= better * winner.value
        best[n] = Choice(winner.way, winner.value, fewer if no_gain else None)
        draws.forget(before=n)
        before = n
    return Selection(best, tried)


def one_step(
    flow: IntegrationFlow, shape: tuple[int, ...], measure: Callable[[np.ndarray], float], **how: Any
) -> float:
    """The measure of one evaluation, on the draws that `select` has. how: see `_Draws`."""
    return _Draws(flow, shape, measure, **how).one_step().value


def candidates(flow: IntegrationFlow, times: tuple[float, ...], more: int, *, levels: int) -> list[tuple[float, ...]]:
    """Times of `more` further evaluations after `times`, a handful of candidates, the smallest levels the last."""
    d = flow.dynamics
    widest, least = math.atan(level_at(d, d.t_max)), level_at(d, least_time(d))
    even = [math.tan(widest * i / levels) for i in range(levels - 1, 0, -1)]  # falling
    if len(times) == 1 and more == 1:
        tried = [[level] for level in [*even, least]]
    else:
        high = level_at(d, times[-1]) if len(times) > 1 else even[0] if even else level_at(d, d.t_max) / 10
        high = max(high, least)
        tried = [_geometric(high, least, span, more) for span in SPANS]
    times_of = [tuple(_rounded(time_at_level(d, level), d.t_min, d.t_max) for level in some) for some in tried]
    return list(dict.fromkeys(times_of))


def _geometric(high: float, low: float, span: tuple[float, float], count: int) -> list[float]:
    """`count` levels, geometric over a part of the way from `high` to `low`; one alone in the middle of it."""
    first, last = span
    parts = [first + (last - first) * (i / (count - 1) if count > 1 else 0.5) for i in range(count)]
    return [high * (low / high) ** part for part in parts]


def _rounded(t: float, t_min: float, t_max: float) -> float:
    """A time that a person can read, within [t_min, t_max]."""
    return min(max(float(f"{t:.{DIGITS}g}"), t_min), t_max)


class _Batch:
    """A batch of draws, and the noise of each evaluation: drawn in their order, kept until it is forgotten."""

    def __init__(self, draws: Draws, flow: IntegrationFlow) -> None:
        self.draws, self._flow, self._z = draws, flow, {}
        self._drawn = 0  # numbers of the evaluations that have noise: 1, 2, ... after the first one's 0

    def z(self, i: int) -> Tensor:
        x_T = self.draws.x_T
        while self._drawn < i:
            self._drawn += 1
            z = self._flow.dynamics.draw_noise(tuple(x_T.shape[1:]), generator=self.draws.renoise)
            self._z[self._drawn] = to_device(z, x_T.device).to(x_T.dtype)
        return self._z[i]

    def forget(self, before: int) -> None:
        self._z = {i: z for i, z in self._z.items() if i >= before}


class _Draws:
    """The draws that everything is measured on, and what samplers make of them."""

    def __init__(
        self,
        flow: IntegrationFlow,
        shape: tuple[int, ...],
        measure: Callable[[np.ndarray], float],
        *,
        count: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        condition: ConditionKind | None = None,
        accelerator: "Accelerator | None" = None,
    ) -> None:
        self._flow, self._shape, self._measure = flow, shape, measure
        self._modality = flow.of_data.get("modality")
        self._shared = {"count": count, "batch_size": batch_size, "accelerator": accelerator}
        self._given = {"seed": seed, "device": device, "condition": condition}
        self._batches: dict[int, _Batch] = {}

    def one_step(self) -> _Line:
        return self._line(Way("one_step"), lambda batch, start: self._refine(batch, batch.draws.x_anchor, 1))

    def refined(self, line: _Line, more: int) -> _Line:
        """`anchor`, by `more` evaluations further."""
        return self._line(Way("anchor"), lambda batch, start: self._refine(batch, line.states[start], more))

    def chained(self, n: int) -> _Line:
        def run(batch: _Batch, start: int) -> Tensor:
            x_anchor = batch.draws.x_anchor if self._flow.takes_anchor else None
            how = {"x_anchor": x_anchor, "condition": batch.draws.condition}
            return sample_chained(self._flow, batch.draws.x_T, steps=n, **how)

        return self._line(Way("chain"), run)

    def renoised(self, line: _Line, times: tuple[float, ...]) -> _Line:
        """`renoise`, by evaluations at further times."""
        sofar = line.way.times or (self._flow.dynamics.t_max,)

        def run(batch: _Batch, start: int) -> Tensor:
            x_0_hat = line.states[start]
            for i, t in enumerate(times, start=len(sofar)):
                x_0_hat = map_again(self._flow, x_0_hat, z=batch.z(i), t=t, condition=batch.draws.condition)
            return x_0_hat

        return self._line(Way("renoise", sofar + times), run)

    def forget(self, *, before: int) -> None:
        """The noise of evaluations that are chosen."""
        for batch in self._batches.values():
            batch.forget(before)

    def _refine(self, batch: _Batch, x_anchor: Tensor, steps: int) -> Tensor:
        x_anchor = x_anchor if self._flow.takes_anchor else None
        return sample(self._flow, batch.draws.x_T, x_anchor=x_anchor, steps=steps, condition=batch.draws.condition)

    @torch.inference_mode()
    def _line(self, way: Way, run: Callable[[_Batch, int], Tensor]) -> _Line:
        """What a sampler makes of every batch, measured."""
        shape = outside(self._flow, self._shape)
        samples, states = np.empty((self._shared["count"], *shape), sample_dtype(shape, self._modality)), {}

        def work(members: range) -> np.ndarray:
            states[members.start] = run(self._batch(members), members.start)
            return at_rest(decoded(self._flow, states[members.start]), self._modality)

        for members, drawn in shared_batches(work, **self._shared):
            samples[members.start : members.stop] = drawn
        return _Line(way, float(self._measure(samples)), states)

    def _batch(self, members: range) -> _Batch:
        if members.start not in self._batches:
            numbers = range(FIRST + members.start, FIRST + members.stop)
            draws = Draws.of(self._flow.dynamics, self._shape, numbers, **self._given)
            self._batches[members.start] = _Batch(draws, self._flow)
        return self._batches[members.start]
