"""Dynamics against closed forms (METHOD, section 6), in float64 unless float32 is the point."""

import numpy as np
import pytest
import torch
from scipy import stats

from ifm import dynamics
from ifm.dynamics import DYNAMICS, expand
from ifm.random import Streams

ALL = [dynamics.build(name) for name in DYNAMICS]
SCHEMES = [(d, scheme) for d in ALL for scheme in d.schemes]


def ids(value):
    return getattr(value, "name", value)


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
    derivative = expand(a_dot, x_0) * x_0 + expand(b_dot, z) * z
    torch.testing.assert_close(d.velocity(x_t, x_0=x_0, t=t), derivative, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_ends_of_the_path(d):
    x_0, z = torch.randn(4, 1, 2, 2, dtype=torch.float64), torch.randn(4, 1, 2, 2, dtype=torch.float64)
    start = d.perturb(x_0, z=z, t=torch.full((4,), d.t_min, dtype=torch.float64))
    torch.testing.assert_close(start, x_0, rtol=0, atol=0.01)
    at_end = d.coefficients(torch.tensor([d.t_max], dtype=torch.float64))
    assert at_end.b.item() == d.t_max
    assert at_end.a.item() == (0.0 if d.name == "rf" else 1.0)


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
    d = dynamics.build(name, t_min=t_min, t_max=7.0, sigma_data=0.37)
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


@pytest.mark.parametrize("d", [d for d in ALL if d.name != "pfgmpp"], ids=ids)
def test_teacher_preconditioning_has_unit_input_and_target_variance(d):
    """EDM appendix B.6, for data N(0, s_d^2): Var(c_in x_t) = 1 and Var((x_0 - c_skip x_t) / c_out) = 1."""
    t = interior_times(d)
    c, at, variance = d.teacher_preconditioning(t), d.coefficients(t), d.sigma_data**2
    torch.testing.assert_close(c.c_in**2 * (at.a**2 * variance + at.b**2), torch.ones_like(t))
    target = (1 - c.c_skip * at.a) ** 2 * variance + (c.c_skip * at.b) ** 2
    torch.testing.assert_close(target / c.c_out**2, torch.ones_like(t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("d", [d for d in ALL if d.name != "pfgmpp"], ids=ids)
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
    options = d.options if d.name == "rf" else d.options | {"t_max": 12.5}
    other = dynamics.build(d.name, **options)
    x_T = other.prior((4,), generator=Streams(5, "prior", range(8)))
    z = other.draw_noise((4,), generator=Streams(5, "prior", range(8)))
    assert torch.equal(x_T, other.t_max * z)


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_time_law(d):
    t = d.draw_time(generator=Streams(6, "time", range(20_000)))
    assert t.shape == (20_000,)
    assert bool((t >= d.t_min).all())
    assert bool((t <= d.t_max).all())
    unit = torch.logit(t) if d.name == "rf" else (t.log() + 1.2) / 1.2
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
    steps = times[:-1] ** (1 / 3)
    torch.testing.assert_close(steps.diff(), torch.full((8,), float(steps[1] - steps[0]), dtype=torch.float64))


@pytest.mark.parametrize("d", ALL, ids=ids)
def test_options_rebuild_the_dynamics(d):
    assert vars(dynamics.build(d.name, **d.options)) == vars(d)


def test_wrong_shapes_and_names_are_refused():
    d = ALL[0]
    with pytest.raises(ValueError, match=r"must have shape \[2\], got \(3,\)"):
        d.perturb(torch.zeros(2, 1), z=torch.zeros(2, 1), t=torch.ones(3))
    with pytest.raises(ValueError, match="unknown dynamics 'vp'; known: ve, rf, pfgmpp"):
        dynamics.build("vp")
    with pytest.raises(ValueError, match="unknown scheme 'x'; ve has paper, edm"):
        d.flow_preconditioning(torch.ones(1), scheme="x")
