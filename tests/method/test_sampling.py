"""Solver, trajectories and samplers against exact flow maps."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from ifm import dynamics
from ifm.model import IntegrationFlow
from ifm.random import Streams
from ifm.sampling import Draws, draw_samples, flow_sampler, teacher_sampler
from ifm.solver import heun_steps, solve_ode, solve_states, solve_trajectory, solver_nfe, stored_indices
from ifm.steps import renoising_times, sample, sample_renoised
from tests.support.exact import GaussianDenoiser, PointsDenoiser

NAMES = list(dynamics.DYNAMICS)
MU = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
S = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)


class Counting:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser):
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x_t, t):
        self.calls += 1
        assert t.shape == (len(x_t),)
        return self.denoiser(x_t, t)


def gaussian_error(name, steps, *, times=None, t_max=80.0):
    """Relative error of Heun against the closed-form map, over the prior. times: steps -> grid; None: the dynamics'."""
    d = dynamics.build(name, **({"t_max": t_max} if name == "ve" else {}))
    denoiser = GaussianDenoiser(d, mu=MU, s=S)
    x_T = d.prior((3,), generator=Streams(0, "prior", range(256))).double()
    exact = denoiser.flow_map(x_T, torch.full((256,), d.t_max, dtype=torch.float64))
    found = solve_ode(denoiser, x_T, dynamics=d, times=(times or d.solver_times)(steps))
    return ((found - exact).norm() / exact.norm()).item()


def rectified_grid(steps, *, t_max, t_min=0.002):
    """ve's times t = u / (1 - u), u even: rf's grid at equal signal-to-noise ratios, then 0: float64 [steps + 1]."""
    u = torch.linspace(t_max / (1 + t_max), t_min / (1 + t_min), steps, dtype=torch.float64)
    times = torch.cat([u / (1 - u), torch.zeros(1, dtype=torch.float64)])
    times[0] = t_max
    return times


def test_heun_reaches_rfs_exact_flow_map():
    """Within 0.1 % at 64 steps of its own grid: 0.050 %. Twice the steps have a quarter of the error."""
    errors = [gaussian_error("rf", steps) for steps in (32, 64, 128)]
    assert errors[1] < 1e-3
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("t_max", [20.0, 80.0])
def test_heun_reaches_ves_exact_flow_map(t_max):
    """Within 0.1 % at 64 steps where the steps suit a Gaussian: 0.071 % from t = 20, 0.089 % from 80.

    The path is straight far above s, where x_t grows as t, and far below: its bend lies around t = s, and the step is
    to be short there alone. No rho of EDM's grid does that: of 1.5 to 10 the best at 64 steps is 0.18 % from 20 (rho =
    5) and 0.31 % from 80 (rho = 10). Small ones leave too few steps near s, large ones spend them near t_min and
    above, which suits images at few steps. Rectified flow's grid, seen as ve's times, has them near s.
    """
    errors = [gaussian_error("ve", n, t_max=t_max, times=partial(rectified_grid, t_max=t_max)) for n in (32, 64, 128)]
    assert errors[1] < 1e-3
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.15)


def test_heun_on_edms_grid():
    """Of second order too, from t = 80: 0.32 % at 64 steps, within 0.1 % at 128."""
    assert gaussian_error("ve", 128) < 1e-3
    assert gaussian_error("ve", 64) / gaussian_error("ve", 128) == pytest.approx(4, rel=0.1)


def test_heun_is_of_second_order_and_euler_of_first():
    """On the part of the path before the last Euler step, halving the step quarters (halves) the error."""
    d = dynamics.build("rf")
    denoiser = GaussianDenoiser(d, mu=MU, s=S)
    x_T = d.prior((3,), generator=Streams(0, "prior", range(256))).double()
    end = torch.full((256,), 0.2, dtype=torch.float64)
    # Points on one path share their end point: both sides are mapped to x_0 exactly.
    exact = denoiser.flow_map(x_T, torch.ones(256, dtype=torch.float64))
    for method, order in (("heun", 2), ("euler", 1)):
        errors = []
        for steps in (32, 64, 128):
            times = torch.linspace(1, 0.2, steps + 1, dtype=torch.float64)
            x = solve_ode(denoiser, x_T, dynamics=d, times=times, method=method)
            errors.append((denoiser.flow_map(x, end) - exact).norm().item())
        for coarse, fine in pairwise(errors):
            assert coarse / fine == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["heun", "euler"])
def test_one_data_point_one_euler_step_lands_on_it(name, method):
    d = dynamics.build(name)
    point = torch.tensor([[0.25, -0.5]], dtype=torch.float64)
    x_T = d.prior((2,), generator=Streams(0, "prior", range(16))).double()
    for steps in (1, 5):
        x_0_hat = solve_ode(PointsDenoiser(d, point), x_T, dynamics=d, times=d.solver_times(steps), method=method)
        torch.testing.assert_close(x_0_hat, point.expand(16, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_solving_lands_on_the_data_set(name):
    """With a finite data set every path ends on one of its points."""
    d = dynamics.build(name)
    points = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.0, -0.7]], dtype=torch.float64)
    x_T = d.prior((2,), generator=Streams(0, "prior", range(300))).double()
    x_0_hat = solve_ode(PointsDenoiser(d, points), x_T, dynamics=d, times=d.solver_times(40))
    distance, nearest = torch.cdist(x_0_hat, points).min(dim=1)
    assert (distance < 0.02).double().mean() > 0.98
    shares = torch.bincount(nearest, minlength=3) / 300
    assert bool((shares > 0.2).all())


@pytest.mark.parametrize("nfe", [1, 3, 5, 9, 17, 35])
def test_evaluations_are_counted_right(nfe):
    d = dynamics.build("ve")
    denoiser = Counting(GaussianDenoiser(d, mu=MU, s=S))
    solve_ode(denoiser, torch.ones(2, 3, dtype=torch.float64), dynamics=d, times=d.solver_times(heun_steps(nfe)))
    assert denoiser.calls == nfe == solver_nfe(heun_steps(nfe))


def test_even_evaluations_are_refused():
    with pytest.raises(ValueError, match="odd number of evaluations, got 4"):
        heun_steps(4)


def test_stored_times_are_the_solvers_states():
    d = dynamics.build("ve")
    denoiser, times = GaussianDenoiser(d, mu=MU, s=S), d.solver_times(18)
    x_T = d.prior((3,), generator=Streams(0, "prior", range(4))).double()
    keep = stored_indices(18, 4)
    assert keep == [0, 6, 12, 18]
    stored = solve_trajectory(denoiser, x_T, dynamics=d, times=times, keep=keep)
    states = list(solve_states(denoiser, x_T, dynamics=d, times=times))
    assert stored.shape == (4, 4, 3)
    assert torch.equal(stored, torch.stack([states[i] for i in keep], dim=1))
    assert torch.equal(stored[:, 0], x_T)
    for count in (1, 20):
        with pytest.raises(ValueError, match="can store 2 to 19 times"):
            stored_indices(18, count)


@pytest.mark.parametrize("times", [[1.0], [0.0, 1.0], [1.0, 1.0, 0.0], [1.0, -0.5]])
def test_wrong_times_are_refused(times):
    with pytest.raises(ValueError, match="fall strictly"):
        solve_ode(lambda x, t: x, torch.zeros(1, 1), dynamics=dynamics.build("ve"), times=torch.tensor(times))


class Recorder(torch.nn.Module):
    """A network stand-in: F_x = mean of the data channels plus a tenth of the anchor; remembers its inputs."""

    def __init__(self, takes_anchor):
        super().__init__()
        self.takes_anchor, self.seen = takes_anchor, []

    def forward(self, inputs, c_noise):
        self.seen.append((inputs.clone(), c_noise.clone()))
        half = inputs.shape[1] // 2 if self.takes_anchor else inputs.shape[1]
        return inputs[:, :half] + (0.1 * inputs[:, half:] if self.takes_anchor else 0)


def make_flow(name="ve", takes_anchor=True):
    return IntegrationFlow(Recorder(takes_anchor), dynamics.build(name), scheme="edm", takes_anchor=takes_anchor)


def test_anchor_refinement_feeds_the_estimate_back_with_x_T_fixed():
    flow = make_flow()
    x_T, anchor = torch.randn(2, 1, 4, 4) * 80, torch.randn(2, 1, 4, 4)
    t_max = torch.full((2,), 80.0)
    first = flow(x_T, t_max, x_anchor=anchor)
    second = flow(x_T, t_max, x_anchor=first)
    assert torch.equal(sample(flow, x_T, x_anchor=anchor, steps=1), first)
    assert torch.equal(sample(flow, x_T, x_anchor=anchor, steps=2), second)
    assert not torch.equal(first, second)


def test_renoising_by_hand():
    flow = make_flow("rf")
    x_T, anchor = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    times = renoising_times(flow.dynamics, 2)
    assert times == pytest.approx([1.0, ((1 + 0.002 ** (1 / 7)) / 2) ** 7])  # EDM eq. 5
    x_0_hat = flow(x_T, torch.ones(2), x_anchor=anchor)
    z = Streams(0, "noise", range(2)).normal((1, 4, 4))
    t = torch.full((2,), times[1])
    by_hand = flow(flow.dynamics.perturb(x_0_hat, z=z, t=t), t, x_anchor=x_0_hat)
    found = sample_renoised(flow, x_T, x_anchor=anchor, steps=2, generator=Streams(0, "noise", range(2)))
    assert torch.equal(found, by_hand)


@pytest.mark.parametrize("kind", ["anchor", "renoise"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_flow_samplers_cost_what_they_say(kind, steps):
    flow = make_flow(takes_anchor=False)
    draws = Draws.of(flow.dynamics, (1, 4, 4), range(3), seed=0, device=torch.device("cpu"))
    sampler = flow_sampler(flow, kind=kind, steps=steps)
    sampler.run(draws)
    assert len(flow.network.seen) == steps == sampler.nfe


def test_every_sampler_starts_from_the_same_prior_draws_whatever_the_batch():
    """Sample i depends on (seed, i) alone: batches of 3 and of 7 give the same images, and so do more of them."""
    flow = make_flow()
    options = {"dynamics": flow.dynamics, "shape": (1, 4, 4), "seed": 5, "device": torch.device("cpu")}
    sampler = flow_sampler(flow, kind="one_step", steps=1)
    a = draw_samples(sampler, count=10, batch_size=3, **options)
    b = draw_samples(sampler, count=12, batch_size=7, **options)
    assert a.images.shape == (10, 1, 4, 4)
    assert (a.images == b.images[:10]).all()
    flow_input = flow.network.seen[-2][0][:, :1] / flow.dynamics.flow_preconditioning(
        torch.tensor([80.0]), scheme="edm"
    ).c_in.view(1, 1, 1, 1)
    teacher_draws = Draws.of(flow.dynamics, (1, 4, 4), range(7), seed=5, device=torch.device("cpu"))
    torch.testing.assert_close(flow_input, teacher_draws.x_T)
    assert teacher_sampler(_Identity(flow.dynamics), nfe=5).name == "teacher-heun-nfe005"


class _Identity:
    def __init__(self, d):
        self.dynamics = d


def test_samples_that_are_not_finite_are_refused():
    flow = make_flow()
    flow.network.forward = lambda inputs, c_noise: torch.full_like(inputs[:, :1], torch.nan)
    sampler = flow_sampler(flow, kind="one_step", steps=1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        draw_samples(
            sampler, dynamics=flow.dynamics, shape=(1, 4, 4), count=2, batch_size=2, seed=0, device=torch.device("cpu")
        )
