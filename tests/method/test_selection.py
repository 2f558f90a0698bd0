"""The sampler for each number of evaluations: found by measuring, on flows whose error is known in closed form."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ifm import dynamics, recorded
from ifm.config import load
from ifm.dynamics.base import expand
from ifm.pretrained import ModelError, load_flow, save_again, save_model
from ifm.recorded import Way
from ifm.sampling import Draws, draw_samples, flow_sampler
from ifm.selection import FIRST, SPANS, Selection, candidates, select
from ifm.steps import least_time, level_at, renoising_times, time_at_level, way_of
from tests.support.exact import LinearFlow
from tests.support.small_models import KINDS, small_flow

CPU = torch.device("cpu")
COUNT = 2000
HOW = {"count": COUNT, "batch_size": 600, "seed": 0, "device": CPU}


class Shrinking(LinearFlow):
    """The exact flow map of N(0, s_d^2), times 1 - error(t): every variance on the way has a closed form."""

    def __init__(self, d, error, *, takes_anchor=True):
        super().__init__(d)
        self.error, self.takes_anchor, self.samplers, self.evaluations = error, takes_anchor, {}, 0

    def forward(self, x_t, t, *, x_anchor):
        assert self.takes_anchor == (x_anchor is not None)
        self.evaluations += len(x_t)
        right = super().forward(x_t, t, x_anchor=torch.zeros_like(x_t))
        return (1 - self.error(t[0].item())) * right

    def deviation(self, times):
        """Of x_0_hat after evaluations at these times, in units of s_d: exact."""
        d, variance = self.dynamics, 0.0
        for i, t in enumerate(times):
            at = d.coefficients(torch.tensor([t], dtype=torch.float64))
            a, b, s = at.a.item(), at.b.item(), d.sigma_data
            here = b**2 if i == 0 else a**2 * variance + b**2
            variance = here * s**2 / (a**2 * s**2 + b**2) * (1 - self.error(t)) ** 2
        return variance**0.5 / d.sigma_data


def spread_error(samples):
    """How far the samples' deviation is from that of the data, s_d = 0.5, as a part of it."""
    return abs(float(samples.std()) / 0.5 - 1)


def chosen(flow, *, steps=(1, 2, 4, 8), levels=6, shape=(2,), **how) -> Selection:
    found = select(flow, shape, spread_error, steps=steps, levels=levels, **HOW | how)
    flow.samplers = {n: choice.way for n, choice in found.best.items()}
    return found


def ends(d, t):
    """Whether t, which may come in float32, is t_max."""
    return math.isclose(t, d.t_max, rel_tol=1e-6)


def band(d, low, high, *, inside, at_end):
    """An error at t_max and in a band of noise levels."""
    return lambda t: at_end if ends(d, t) else inside if low < level_at(d, t) * d.sigma_data < high else 0.0


@pytest.mark.parametrize("name", ["ve", "rf", "vp", "trig"])
def test_bad_times_are_avoided_and_more_evaluations_help(name):
    """The grid of `renoise` has a time in the band that shrinks; the search finds the closed form's best candidate."""
    d = dynamics.build(name)
    flow = Shrinking(d, band(d, 0.4, 40.0, inside=0.6, at_end=0.3))
    found = chosen(flow)
    grid = renoising_times(d, 4)
    assert flow.deviation(grid[:2]) < 1 - 0.05  # the usual way is wrong by much
    tried = [(d.t_max, *times) for times in candidates(flow, (d.t_max,), 1, levels=6)]
    best = min(tried, key=lambda times: abs(flow.deviation(times) - 1))
    assert found.best[2].way == Way("renoise", best)
    values = [found.best[n].value for n in (1, 2, 4, 8)]
    assert values[0] == pytest.approx(0.3, abs=0.03)
    assert values[1] < values[0] - 0.05
    for fewer, more in pairwise(values):
        assert more <= fewer + 0.01
    for n, choice in found.best.items():
        times = choice.way.times or (d.t_max,)
        assert len(times) == n
        assert abs(flow.deviation(times) - 1) == pytest.approx(choice.value, abs=0.03)


@pytest.mark.parametrize("name", list(dynamics.DYNAMICS))
def test_where_every_re_noising_hurts_the_smallest_levels_stay_level(name):
    d = dynamics.build(name)
    flow = Shrinking(d, lambda t: 0.0 if ends(d, t) else min(0.9, 4 * level_at(d, t)), takes_anchor=False)
    found = chosen(flow, steps=(2, 4))
    assert found.best[2].way.times == pytest.approx((d.t_max, least_time(d)), rel=1e-3)
    assert found.best[2].value < found.best[1].value + 0.03
    assert found.best[4].value < found.best[1].value + 0.1


def test_no_gain_is_told():
    flow = Shrinking(dynamics.build("ve"), lambda t: 0.0 if t > 70 else 0.5, takes_anchor=False)
    found = chosen(flow, steps=(2, 4))
    assert [choice.best_of_fewer for choice in found.best.values()] == [None, 1, 1]


@pytest.mark.parametrize("kind", ["ve", "rf-interval-cross", "pfgmpp-interval-none", "trig-classes"])
def test_the_record_gives_the_very_samples_that_were_measured(kind):
    """Chosen by a search that keeps states: the sampler as others run it makes the same bytes."""
    flow = small_flow(**KINDS[kind])
    shape, seen = flow.network.data_shape, {}

    def measure(samples):
        value = float(samples.astype(float).mean())
        seen[value] = samples.copy()
        return value

    how = {"count": 7, "batch_size": 3, "seed": 5, "device": CPU, "condition": flow.condition_kind}
    found = select(flow, shape, measure, steps=[2, 5], levels=3, **how)
    flow.samplers = {n: choice.way for n, choice in found.best.items()}
    for n, choice in found.best.items():
        sampler = flow_sampler(flow, kind="selected", steps=n)
        drawn = draw_samples(sampler, dynamics=flow.dynamics, shape=shape, first=FIRST, **how).images
        assert np.array_equal(drawn, seen[choice.value]), n
    for way, value in found.tried[5]:
        sampler = flow_sampler(flow, kind=way.sampler, steps=5, times=way.times)
        drawn = draw_samples(sampler, dynamics=flow.dynamics, shape=shape, first=FIRST, **how).images
        assert np.array_equal(drawn, seen[value]), way
    kinds = {way.sampler for way, _ in found.tried[2]}
    can = {"renoise": True, "anchor": flow.takes_anchor, "chain": "interval" in kind}
    assert kinds == {name for name, is_able in can.items() if is_able}


def test_more_is_better_where_the_measure_says_so():
    flow = Shrinking(dynamics.build("ve"), band(dynamics.build("ve"), 1, 40, inside=0.6, at_end=0.3))
    found = select(flow, (2,), spread_error, steps=[2], levels=6, higher=True, **HOW)
    worst = max(value for _, value in found.tried[2])
    assert found.best[2].value == worst


def test_the_draws_are_none_of_the_evaluations():
    """Numbers from 2^40 on: no count of samples comes there, and the streams of two numbers share nothing."""
    d = dynamics.build("ve")
    mine, theirs = (
        Draws.of(d, (4,), members, seed=0, device=CPU) for members in (range(FIRST, FIRST + 50), range(3000))
    )
    for name in ("x_T", "x_anchor"):
        rows = torch.cat([getattr(mine, name), getattr(theirs, name)])
        assert len(rows.unique(dim=0)) == 3050
    flow, seen = Shrinking(d, lambda t: 0.0), []
    flow.forward = lambda x_t, t, *, x_anchor: seen.append(x_t.clone()) or x_t / 160
    select(flow, (4,), spread_error, steps=[1], levels=1, count=50, batch_size=50, seed=0, device=CPU)
    assert torch.equal(seen[0], mine.x_T)


@pytest.mark.parametrize("batch_size", [500, 1000])
def test_what_the_default_costs(batch_size):
    """40 evaluations a draw at most: 40 thousand for the default's 1,000."""
    flow = Shrinking(dynamics.build("ve"), lambda t: 0.1)
    select = load(Path(__file__).parents[2] / "params.yaml").select
    assert select.count == 1000
    chosen(flow, count=select.count, levels=select.levels, batch_size=batch_size)
    assert flow.evaluations <= 40_000


@pytest.mark.parametrize("name", list(dynamics.DYNAMICS))
def test_candidates_are_within_the_path_and_reach_the_smallest_level(name):
    flow = Shrinking(dynamics.build(name), lambda t: 0.0)
    d = flow.dynamics
    cases = (((d.t_max,), 1), ((d.t_max,), 3), ((d.t_max, 0.5 * d.t_max), 2), ((d.t_max, d.t_min), 1))
    for times, more in cases:
        found = list(candidates(flow, times, more, levels=6))
        assert len(found) == {0: 6, 3: 1}.get(list(cases).index((times, more)), len(SPANS))
        for some in found:
            assert len(some) == more
            assert all(d.t_min <= t < d.t_max for t in some)
            assert list(some) == sorted(some, reverse=True)
        least = found[-1][-1]
        assert least == pytest.approx(least_time(d), rel=2 if len(times) > 1 else 1e-2)


# --- the record -------------------------------------------------------------------------------------------------------


def with_record(samplers, **kind):
    flow = small_flow(**kind)
    flow.samplers = samplers
    return flow


def test_a_number_that_was_not_measured_goes_by_its_neighbours():
    known = {1: Way("one_step"), 2: Way("renoise", (80.0, 0.8)), 4: Way("renoise", (80.0, 0.8, 0.2, 0.05))}
    flow = with_record(known)
    assert [way_of(flow, n) for n in (1, 2, 4)] == list(known.values())
    assert way_of(flow, 3) == Way("renoise", (80.0, 0.8, 0.2))  # the first of the next larger one
    times = way_of(flow, 6).times  # on from the largest, geometric down to the last time of the paths' grid
    assert times == pytest.approx((80.0, 0.8, 0.2, 0.05, 0.01, 0.002))
    assert way_of(with_record({1: Way("one_step")}), 2) == Way("anchor")
    assert way_of(with_record({1: Way("one_step"), 2: Way("anchor")}), 3) == Way("anchor")
    assert way_of(with_record({2: Way("anchor"), 4: known[4]}), 3) == Way("renoise", (80.0, 0.8, 0.2))
    assert way_of(with_record({1: Way("one_step"), 4: Way("chain")}, two_times=True), 8) == Way("chain")
    assert way_of(with_record({2: Way("renoise")}), 4) == Way("renoise")
    assert way_of(with_record({2: Way("renoise", (80.0, 0.001))}), 3).times == pytest.approx((80.0, 0.001, 0.002))


def test_levels_and_times_are_inverses_and_rfs_noise_is_at_infinity():
    for name in dynamics.DYNAMICS:
        d = dynamics.build(name)
        for t in (0.5 * d.t_max, least_time(d)):
            assert time_at_level(d, level_at(d, t)) == pytest.approx(t, rel=1e-9)
    assert level_at(dynamics.build("rf"), 1.0) > 1e15


def test_a_model_keeps_its_record_and_old_folders_have_none(tmp_path):
    flow = small_flow()
    save_model(flow, tmp_path / "old", record={"image_shape": [1, 8, 8]})
    assert load_flow(tmp_path / "old").samplers == {}
    entries = {"1": {"sampler": "one_step", "value": 0.6}, "2": {"sampler": "renoise", "times": [80, 0.8]}}
    save_again(tmp_path / "old", tmp_path / "new", record={recorded.KEY: entries})
    assert load_flow(tmp_path / "new").samplers == {1: Way("one_step"), 2: Way("renoise", (80.0, 0.8))}
    old, new = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("old", "new"))
    said = json.loads(old.pop("ifm.json")) | {recorded.KEY: entries}
    assert json.loads(new.pop("ifm.json")) == said
    assert old == new


BEYOND = "must start with t_max = 80 and be at least t_min = 0.002"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "samplers must be an object, got list"),
        ({"two": {"sampler": "renoise"}}, "named by numbers of evaluations, got 'two'"),
        ({"0": {"sampler": "renoise"}}, "named by numbers of evaluations, got '0'"),
        ({"02": {"sampler": "renoise"}}, "named by numbers of evaluations, got '02'"),
        ({"9" * 5000: {"sampler": "renoise"}}, "named by numbers of evaluations"),
        ({"2": "renoise"}, "samplers.2.sampler must be one of anchor, renoise, got None"),
        ({"2": {"sampler": "one_step"}}, "samplers.2.sampler must be one of anchor, renoise, got 'one_step'"),
        ({"2": {"sampler": "chain"}}, "samplers.2.sampler must be one of anchor, renoise, got 'chain'"),
        ({"2": {"sampler": ["renoise"]}}, "samplers.2.sampler must be one of"),
        ({"2": {"sampler": "renoise", "times": [80.0]}}, "samplers.2.times must be 2 numbers, of renoise"),
        ({"2": {"sampler": "renoise", "times": [80.0, True]}}, "samplers.2.times must be 2 numbers"),
        ({"2": {"sampler": "anchor", "times": [80.0, 1.0]}}, "samplers.2.times must be 2 numbers, of renoise"),
        ({"2": {"sampler": "renoise", "times": [8.0, 0.8]}}, BEYOND),
        ({"2": {"sampler": "renoise", "times": [80.0, 90.0]}}, BEYOND),
        ({"2": {"sampler": "renoise", "times": [80.0, -1.0]}}, BEYOND),
        ({"2": {"sampler": "renoise", "times": [80.0, 0]}}, BEYOND),  # ln t is asked of the network
    ],
)
def test_a_record_that_does_not_fit_is_named(tmp_path, entries, said):
    save_model(small_flow(), tmp_path / "m", record={recorded.KEY: entries})
    with pytest.raises(ModelError, match="m: holds no usable model") as error:
        load_flow(tmp_path / "m")
    assert said in str(error.value)


def test_times_are_checked_where_they_are_given():
    flow = small_flow()
    with pytest.raises(ValueError, match="1 times are for 1 steps of sampler renoise, not 2 of renoise"):
        flow_sampler(flow, kind="renoise", steps=2, times=[80.0])
    with pytest.raises(ValueError, match="not 2 of anchor"):
        flow_sampler(flow, kind="anchor", steps=2, times=[80.0, 1.0])
    with pytest.raises(ValueError, match="must start with t_max = 80"):
        flow_sampler(flow, kind="renoise", steps=2, times=[1.0, 1.0])


def test_a_selected_sampler_says_what_it_is():
    flow = with_record({2: Way("renoise", (80.0, 0.8))})
    sampler = flow_sampler(flow, kind="selected", steps=2)
    assert sampler.name == "flow-selected-nfe002"
    assert sampler.describe() == {
        "name": "flow-selected-nfe002", "model": "flow", "sampler": "selected", "nfe": 2, "how": "renoise",
        "times": [80.0, 0.8],
    }  # fmt: skip
    plain = flow_sampler(flow, kind="anchor", steps=2)
    assert plain.describe() == {"name": "flow-anchor-nfe002", "model": "flow", "sampler": "anchor", "nfe": 2}
    assert replace(sampler, way=None).describe().keys() == plain.describe().keys()
    assert Way("renoise", (80.0, 0.8)).title == "renoise at t = 80, 0.8"
    assert expand(torch.ones(1), torch.ones(2, 2)).shape == (1, 1)
