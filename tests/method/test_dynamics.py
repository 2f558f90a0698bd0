"""Dynamics against closed forms, in float64 unless float32 is the point."""

import numpy as np
import pytest
import torch
from scipy import stats

from ifm import dynamics
from ifm.dynamics import DYNAMICS
from ifm.dynamics.base import NoiseLevelDynamics, expand
from ifm.exact import ExactTeacher, gaussian_flow_map
from ifm.random import Streams
from ifm.solver import solve_ode
from tests.support.exact import GaussianDenoiser

COSINE = dynamics.build("vp", schedule="cosine")
ALL = [*(dynamics.build(name) for name in DYNAMICS), COSINE]
GAUSSIAN = [d for d in ALL if d.gaussian]
LEVELS = [d for d in ALL if isinstance(d, NoiseLevelDynamics)]
SCHEMES = [(d, scheme) for d in ALL for scheme in d.schemes]


def ids(value):
    return "vp-cosine" if value is COSINE else getattr(value, "name", value)


def interior_times(d, n=64):
    """Times strictly inside the range, even on the solver's own grid: [n]."""
    return d.solver_times(n + 1)[1:-1]


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_perturbation_is_a_x0_plus_b_z_and_velocity_is_its_time_derivative(d):
    t = interior_times(d).requires_grad_(True)
    x_0, z = torch.randn(len(t), 2, 3, 3, dtype=torch.float64), torch.randn(len(t), 2, 3, 3, dtype=torch.float64)
    at = d.coefficients(t)
    x_t = d.perturb(x_0, z=z, t=t)
    torch.testing.assert_close(x_t, expand(at.a, x_0) * x_0 + expand(at.b, z) * z)
    a_dot = torch.autograd.grad(at.a.sum(), t, retain_graph=True)[0] if at.a.requires_grad else torch.zeros_like(t)
    b_dot = torch.autograd.grad(at.b.sum(), t, retain_graph=True)[0]
    torch.testing.assert_close(at.d_a, a_dot)
    torch.testing.assert_close(at.d_b, b_dot)
    derivative = expand(a_dot, x_0) * x_0 + expand(b_dot, z) * z
    torch.testing.assert_close(d.velocity(x_t, x_0=x_0, t=t), derivative, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(d.noise_of(x_t, x_0=x_0, t=t), z)


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_derivatives_are_those_of_float64_differences(d):
    t = interior_times(d)
    step = 1e-6 * t
    before, at, after = (d.coefficients(s) for s in (t - step, t, t + step))
    torch.testing.assert_close((after.a - before.a) / (2 * step), at.d_a, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((after.b - before.b) / (2 * step), at.d_b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("d", [d for d in ALL if d.name in ("ve", "rf", "pfgmpp")], ids=ids)
def test_on_a_straight_path_the_velocity_is_the_chord(d):
    t = interior_times(d)
    x_t, x_0 = torch.randn(len(t), 3, dtype=torch.float64), torch.randn(len(t), 3, dtype=torch.float64)
    torch.testing.assert_close(d.velocity(x_t, x_0=x_0, t=t), (x_t - x_0) / expand(t, x_t))


@pytest.mark.parametrize("d", GAUSSIAN, ids=ids)
def test_the_gaussian_flow_map_solves_the_ode(d):
    """The closed form's derivative along the path is 0, and Heun on the exact denoiser ends on it."""
    mu, s = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.5, 0.1], dtype=torch.float64)
    denoiser = GaussianDenoiser(d, mu=mu, s=s)
    x_T = torch.randn(6, 2, dtype=torch.float64) * d.coefficients(torch.tensor([d.t_max], dtype=torch.float64)).b
    exact = gaussian_flow_map(d, x_T, torch.full((6,), d.t_max, dtype=torch.float64), mu=mu, s=s)
    errors = [
        (solve_ode(denoiser, x_T, dynamics=d, times=d.solver_times(steps)) - exact).abs().max() for steps in (64, 128)
    ]
    assert float(errors[1]) < 2e-3
    assert float(errors[1]) < 0.35 * float(errors[0])  # second order


@pytest.mark.parametrize("d", LEVELS, ids=ids)
def test_equal_noise_levels_are_equal_tasks(d):
    """b / a fixes E[x_0 | x_t]: x_t over a is a ve path's point at t = b / a. And time_of_level is level's inverse."""
    ve = dynamics.build("ve", t_max=1e6)
    t = interior_times(d, 32)
    a, level = d.coefficients(t).a, d.level(t)
    torch.testing.assert_close(d.time_of_level(level), t, rtol=1e-8, atol=1e-12)
    points = torch.randn(7, 3, dtype=torch.float64)
    x_t = torch.randn(len(t), 3, dtype=torch.float64) * d.scale(t)[:, None]
    if d.gaussian:
        mine, theirs = ExactTeacher(points, d), ExactTeacher(points, ve)
        torch.testing.assert_close(mine(x_t, t), theirs(x_t / expand(a, x_t), level), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["heun", "euler"])
@pytest.mark.parametrize("d", [d for d in LEVELS if d.gaussian], ids=ids)
def test_at_equal_noise_levels_the_solver_makes_ves_steps(d, method):
    """In x / a and b / a every such dynamics has ve's ODE: the same end points from few, large steps too."""
    ve, times = dynamics.build("ve", t_max=1e6), d.solver_times(4)
    points = torch.randn(5, 3, dtype=torch.float64)
    x_T = d.prior((3,), generator=Streams(1, "prior", range(8))).double()
    first = d.coefficients(times[:1])
    mine = solve_ode(ExactTeacher(points, d), x_T, dynamics=d, times=times, method=method)
    levels = torch.cat([d.level(times[:-1]), times[-1:]])
    theirs = solve_ode(ExactTeacher(points, ve), x_T / first.a, dynamics=ve, times=levels, method=method)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_float32_keeps_the_digits_of_the_coefficients(d):
    """1 - a^2 would have none left near t_min."""
    t = interior_times(d).float()
    exact, found = d.coefficients(t.double()), d.coefficients(t)
    for key in ("a", "b", "d_a", "d_b"):
        torch.testing.assert_close(getattr(found, key).double(), getattr(exact, key), rtol=2e-5, atol=1e-6)


def test_vp_linear_by_hand():
    """Song et al. 2021, eq. 33: the marginal of dx = -beta x / 2 dt + sqrt(beta) dw, beta = 0.1 + 19.9 t."""
    d = dynamics.build("vp")
    at = d.coefficients(torch.tensor([0.5], dtype=torch.float64))
    integral = 0.1 * 0.5 + 19.9 * 0.5**2 / 2
    assert at.a.item() == pytest.approx(np.exp(-integral / 2))
    assert at.b.item() == pytest.approx(np.sqrt(1 - np.exp(-integral)))


def test_vp_cosine_by_hand():
    """Nichol & Dhariwal 2021, eq. 17: a^2 = f(t) / f(0), f(t) = cos((t + s) / (1 + s) pi / 2)^2."""
    t = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64)
    f = torch.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    at = COSINE.coefficients(t)
    torch.testing.assert_close(at.a**2, f / f[0])
    torch.testing.assert_close(at.b**2, 1 - f / f[0])


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_ends_of_the_path(d):
    x_0, z = torch.randn(4, 1, 2, 2, dtype=torch.float64), torch.randn(4, 1, 2, 2, dtype=torch.float64)
    start = d.perturb(x_0, z=z, t=torch.full((4,), d.t_min, dtype=torch.float64))
    torch.testing.assert_close(start, x_0, rtol=0, atol=0.02)
    at_end = d.coefficients(torch.tensor([d.t_max], dtype=torch.float64))
    if d.name in ("ve", "rf", "pfgmpp"):
        assert at_end.b.item() == d.t_max
        assert at_end.a.item() == (0.0 if d.name == "rf" else 1.0)
    else:
        assert at_end.a.item() ** 2 + at_end.b.item() ** 2 == pytest.approx(1)
        assert at_end.a.item() < 0.02
    data = d.coefficients(torch.zeros(1, dtype=torch.float64))
    assert (data.a.item(), data.b.item()) == (1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "scheme"), SCHEMES, ids=ids)
def test_flow_boundary_is_exact(d, scheme, dtype):
    c = d.flow_preconditioning(torch.full((3,), d.t_min, dtype=dtype), scheme=scheme)
    assert c.c_skip.tolist() == [1.0] * 3
    assert c.c_out.abs().tolist() == [0.0] * 3


@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.parametrize("t_min", [0.002, 0.0123456789, 0.1, 1 / 3])
def test_flow_boundary_is_exact_for_other_ranges(name, t_min):
    if name == "rf":
        pytest.skip("rectified flow's range is 0 .. 1")
    d = dynamics.build(name, t_min=t_min, t_max={"vp": 0.8, "trig": 1.5}.get(name, 7.0), sigma_data=0.37)
    for scheme in d.schemes:
        c = d.flow_preconditioning(torch.full((1,), t_min, dtype=torch.float32), scheme=scheme)
        assert (c.c_skip.item(), c.c_out.item()) == (1.0, 0.0)


def test_edm_preconditioning_table():
    """EDM table 1 at a few noise levels, by hand."""
    d = dynamics.build("ve")
    t = torch.tensor([0.1, 0.5, 10.0], dtype=torch.float64)
    c = d.teacher_preconditioning(t)
    torch.testing.assert_close(c.c_skip, 0.25 / (t**2 + 0.25))
    torch.testing.assert_close(c.c_out, t * 0.5 / torch.sqrt(t**2 + 0.25))
    torch.testing.assert_close(c.c_in, 1 / torch.sqrt(t**2 + 0.25))
    torch.testing.assert_close(c.c_noise, torch.log(t) / 4)


@pytest.mark.parametrize("d", GAUSSIAN, ids=ids)
def test_teacher_preconditioning_has_unit_input_and_target_variance(d):
    """EDM appendix B.6, for data N(0, s_d^2): Var(c_in x_t) = 1 and Var((x_0 - c_skip x_t) / c_out) = 1."""
    t = interior_times(d)
    c, at, variance = d.teacher_preconditioning(t), d.coefficients(t), d.sigma_data**2
    torch.testing.assert_close(c.c_in**2 * (at.a**2 * variance + at.b**2), torch.ones_like(t))
    target = (1 - c.c_skip * at.a) ** 2 * variance + (c.c_skip * at.b) ** 2
    torch.testing.assert_close(target / c.c_out**2, torch.ones_like(t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("d", GAUSSIAN, ids=ids)
def test_teacher_preconditioning_amplifies_the_network_least(d):
    """EDM's criterion: c_skip minimises |c_out|, so a different c_skip has a larger one."""
    t = interior_times(d)
    c, at, variance = d.teacher_preconditioning(t), d.coefficients(t), d.sigma_data**2
    for shift in (-1e-3, 1e-3):
        c_skip = c.c_skip + shift
        needed = ((1 - c_skip * at.a) ** 2 * variance + (c_skip * at.b) ** 2).sqrt()
        assert bool((needed > c.c_out).all())


def test_paper_scheme_of_rf_is_the_mean_velocity():
    d = dynamics.build("rf")
    t = interior_times(d)
    c = d.flow_preconditioning(t, scheme="paper")
    assert torch.equal(c.c_skip, torch.ones_like(t))
    assert torch.equal(c.c_out, -t)


@pytest.mark.parametrize(("degrees", "n"), [(3, 1), (8, 4), (128, 64)])
def test_student_t_law_of_pfgmpp(degrees, n):
    """Each coordinate of z is Student-t with D degrees of freedom, of variance D / (D - 2)."""
    d = dynamics.build("pfgmpp", augmented_dimensions=float(degrees))
    z = d.draw_noise((n,), generator=Streams(1, "noise", range(20_000)))
    assert stats.kstest(z[:, 0].numpy(), stats.t(degrees).cdf).pvalue > 1e-3
    if degrees > 4:
        assert z.var().item() == pytest.approx(degrees / (degrees - 2), rel=0.05)


@pytest.mark.parametrize(("degrees", "n"), [(8, 2), (128, 64), (2048, 64)])
def test_pfgmpp_law_equals_the_original_recipe(degrees, n):
    """PFGM++: R = r sqrt(b / (1 - b)), b ~ Beta(N/2, D/2), r = t sqrt(D), in a uniform direction."""
    d = dynamics.build("pfgmpp", augmented_dimensions=float(degrees))
    z = d.draw_noise((n,), generator=Streams(2, "noise", range(20_000)))
    b = np.random.default_rng(0).beta(n / 2, degrees / 2, size=20_000)
    radius = np.sqrt(degrees) * np.sqrt(b / (1 - b))
    assert stats.ks_2samp(z.norm(dim=1).numpy(), radius).pvalue > 1e-3
    cosine = (z[:, 0] / z.norm(dim=1)).numpy()
    assert stats.kstest((cosine + 1) / 2, stats.beta((n - 1) / 2, (n - 1) / 2).cdf).pvalue > 1e-3


def test_one_chi_square_draw_per_sample():
    """The coordinates of a sample share their tail: |z|^2 / N spreads as D / chi2_D, far more than 1 +- sqrt(2/N)."""
    d = dynamics.build("pfgmpp", augmented_dimensions=6.0)
    z = d.draw_noise((3, 32, 32), generator=Streams(3, "noise", range(2000)))
    scale = z.square().flatten(1).mean(1).numpy()
    assert stats.kstest(6 / scale, stats.chi2(6).cdf).pvalue > 1e-3


def test_large_d_is_ve():
    shape, indices = (3, 8, 8), range(64)
    ve = dynamics.build("ve").prior(shape, generator=Streams(4, "prior", indices))
    pfgmpp = dynamics.build("pfgmpp", augmented_dimensions=1e6).prior(shape, generator=Streams(4, "prior", indices))
    torch.testing.assert_close(pfgmpp, ve, rtol=0.01, atol=0)


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_prior_is_scaled_by_the_configured_t_max(d):
    t_max = {"rf": 1.0, "vp": 0.6, "trig": 1.2}.get(d.name, 12.5)
    other = dynamics.build(d.name, **d.options | ({} if d.name == "rf" else {"t_max": t_max}))
    x_T = other.prior((4,), generator=Streams(5, "prior", range(8)))
    z = other.draw_noise((4,), generator=Streams(5, "prior", range(8)))
    assert torch.equal(x_T, other.coefficients(torch.tensor([t_max])).b * z)
    if d.name in ("ve", "rf", "pfgmpp"):
        assert torch.equal(x_T, t_max * z)


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_time_law(d):
    t = d.draw_time(generator=Streams(6, "time", range(20_000)))
    assert t.shape == (20_000,)
    assert bool((t >= d.t_min).all())
    assert bool((t <= d.t_max).all())
    unit = torch.logit(t) if d.name == "rf" else (d.level(t.double()).log().float() + 1.2) / 1.2
    assert stats.kstest(unit.numpy(), "norm").pvalue > 1e-3


def test_solver_times():
    ve = dynamics.build("ve").solver_times(18)
    assert ve.shape == (19,)
    assert (ve[0].item(), ve[-1].item()) == (80.0, 0.0)
    assert ve[-2].item() == pytest.approx(0.002)
    steps = ve[:-1] ** (1 / 7)
    torch.testing.assert_close(steps.diff(), torch.full((17,), float(steps[1] - steps[0]), dtype=torch.float64))
    assert dynamics.build("rf").solver_times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert dynamics.build("ve").solver_times(1).tolist() == [80.0, 0.0]


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_solver_times_with_another_rho(d):
    times = d.solver_times(9, rho=3)
    assert (len(times), times[0].item(), times[-1].item()) == (10, d.t_max, 0.0)
    assert times[-2].item() == pytest.approx(d.t_min or 0.002)
    steps = (times[:-1] if d.name == "rf" else d.level(times[:-1])) ** (1 / 3)
    torch.testing.assert_close(steps.diff(), torch.full((8,), float(steps[1] - steps[0]), dtype=torch.float64))


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_options_rebuild_the_dynamics(d):
    assert vars(dynamics.build(d.name, **d.options)) == vars(d)


def test_wrong_shapes_and_names_are_refused():
    d = ALL[0]
    with pytest.raises(ValueError, match=r"must have shape \[2\], got \(3,\)"):
        d.perturb(torch.zeros(2, 1), z=torch.zeros(2, 1), t=torch.ones(3))
    with pytest.raises(ValueError, match="unknown dynamics 'x'; known: ve, rf, pfgmpp, vp, trig"):
        dynamics.build("x")
    with pytest.raises(ValueError, match="unknown schedule 'x'; known: linear, cosine"):
        dynamics.build("vp", schedule="x")
    with pytest.raises(ValueError, match=r"t_max must be at most 1\.57, below pi/2, got 2"):
        dynamics.build("trig", t_max=2.0)
    with pytest.raises(ValueError, match="unknown scheme 'paper'; vp has edm"):
        COSINE.flow_preconditioning(torch.ones(1), scheme="paper")
    with pytest.raises(ValueError, match="unknown scheme 'x'; ve has paper, edm"):
        d.flow_preconditioning(torch.ones(1), scheme="x")
