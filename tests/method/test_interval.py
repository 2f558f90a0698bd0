"""The angle, the two-time flow, and the identities of `interval` and `consistency`, against exact flow maps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ifm import anchors, dynamics
from ifm.dynamics import DYNAMICS
from ifm.dynamics.base import expand
from ifm.exact import ExactTeacher
from ifm.hardware.devices import RowReader
from ifm.model import IntervalFlow
from ifm.networks import build_network
from ifm.objectives.base import Examples
from ifm.objectives.consistency import consistency_intervals
from ifm.objectives.consistency import loss as consistency_loss
from ifm.objectives.interval import (
    STEP,
    central_difference,
    differentiable_forward,
    forward_derivative,
    in_float32,
    interval_phase,
    mean_velocity_target,
)
from ifm.objectives.interval import loss as interval_loss
from ifm.objectives.pairs import averaged, draw_pairs, draw_time, earlier, mean_over_reference, noise_of
from ifm.random import EndlessShuffle, Streams
from ifm.steps import sample_chained
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings
from tests.support.exact import GaussianDenoiser, PointsDenoiser

NAMES = tuple(DYNAMICS)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_the_angle_and_its_inverse(name):
    d = dynamics.build(name)
    t = torch.linspace(d.t_min, d.t_max, 101, dtype=torch.float64)
    theta = d.angle(t)
    assert bool((theta.diff() > 0).all())
    assert 0 <= float(theta[0]) < 0.01
    assert float(theta[-1]) <= math.pi / 2
    torch.testing.assert_close(d.time_at(theta), t, rtol=1e-9, atol=1e-12)
    at = d.coefficients(t)  # y = cos(theta) x_0 / s_d + sin(theta) z
    torch.testing.assert_close(theta.cos() / d.sigma_data, at.a / d.scale(t))
    torch.testing.assert_close(theta.sin(), at.b / d.scale(t))


@pytest.mark.parametrize("name", NAMES)
def test_the_angular_velocity_is_the_paths_derivative(name):
    d = dynamics.build(name)
    x_0, z, theta = torch.randn(3, 2, 5).double()[0], torch.randn(2, 5).double(), double(0.3, 1.2)

    def y(theta):
        t = d.time_at(theta)
        return d.perturb(x_0, z=z, t=t) / expand(d.scale(t), x_0)

    _, derivative = torch.func.jvp(y, (theta,), (torch.ones_like(theta),))
    torch.testing.assert_close(d.angular_velocity(x_0, z=z, theta=theta), derivative)


@pytest.mark.parametrize("name", NAMES)
def test_over_the_whole_path_the_preconditioning_is_the_teachers(name):
    """s = 0: EDM's c_skip, c_out and c_in. s = t: the identity, exactly."""
    d = dynamics.build(name)
    t = torch.linspace(0.1, d.t_max, 20, dtype=torch.float64)
    whole, edm = d.interval_preconditioning(t, torch.zeros_like(t)), d.teacher_preconditioning(t)
    for key in ("c_skip", "c_out", "c_in"):
        torch.testing.assert_close(getattr(whole, key), getattr(edm, key))
    none = d.interval_preconditioning(t.float(), t.float())
    assert bool((none.c_skip == 1).all())
    assert bool((none.c_out == 0).all())


def flow_of(name, *, kind="mlp", shape=(2,), **options):
    torch.manual_seed(0)
    network = build_network(
        kind=kind, shape=shape, takes_anchor=True, two_times=True, mlp={"width": 32, "layers": 2}, channels=[8, 16],
        layers_per_block=1, attention=[False, True], dropout=0.0, norm_groups=4,
    )  # fmt: skip
    return IntervalFlow(network, dynamics.build(name), takes_anchor=True, **options)


@pytest.mark.parametrize(("kind", "shape"), [("mlp", (2,)), ("unet", (1, 8, 8))])
@pytest.mark.parametrize("name", NAMES)
def test_the_two_time_flow(name, kind, shape):
    """x_s_hat = x_t at s = t exactly, in training and evaluation; u is (y_t - y_s) / delta; s, t, anchor all matter."""
    flow = flow_of(name, kind=kind, shape=shape)
    d, x_t, x_anchor = flow.dynamics, torch.randn(4, *shape), torch.randn(4, *shape)
    t = torch.linspace(0.3, 1, 4) * d.t_max
    s = t / 3
    for mode in (True, False):
        flow.train(mode)
        assert torch.equal(flow(x_t, t, x_anchor=x_anchor, s=t), x_t)
        at_rest = torch.full((4,), d.t_min)
        assert torch.equal(flow(x_t, at_rest, x_anchor=x_anchor), x_t)
    x_s = flow(x_t, t, x_anchor=x_anchor, s=s)
    u = flow(x_t, t, x_anchor=x_anchor, s=s, mean_velocity=True)
    delta = d.angle(t) - d.angle(s)
    difference = x_t / expand(d.scale(t), x_t) - x_s / expand(d.scale(s), x_s)
    torch.testing.assert_close(expand(delta, u) * u, difference, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(u, flow(x_t, t, x_anchor=x_anchor, s=s / 2, mean_velocity=True), atol=1e-4)
    assert not torch.allclose(x_s, flow(x_t, t, x_anchor=x_anchor + 1, s=s), atol=1e-4)
    near = flow(x_t, t, x_anchor=x_anchor, s=t, mean_velocity=True)  # delta = 0 has a value, and is a limit
    assert bool(near.isfinite().all())
    close = flow(x_t, t, x_anchor=x_anchor, s=t * (1 - 1e-4), mean_velocity=True)
    torch.testing.assert_close(close, near, rtol=0, atol=0.02)


POINTS = double(-0.6, 0.5, 0.3, -0.2, 0.9, 0.1).reshape(3, 2)


def marginal_velocity(d, denoiser, y, theta):
    """dy/dtheta of the marginal ODE: that of a pair with x_0 = E[x_0 | x_t]."""
    t = d.time_at(theta)
    x_t = expand(d.scale(t), y) * y
    x_0 = denoiser(x_t, t)
    at = d.coefficients(t)
    return d.angular_velocity(x_0, z=(x_t - expand(at.a, y) * x_0) / expand(at.b, y), theta=theta)


def solved(d, denoiser, y, theta, theta_s, *, steps):
    """The ODE's y at theta_s, by classical Runge-Kutta in the angle: differentiable, error below 1e-7 here."""
    h = (theta_s - theta) / steps
    for i in range(steps):
        at, step = theta + i * h, expand(h, y)
        k1 = marginal_velocity(d, denoiser, y, at)
        k2 = marginal_velocity(d, denoiser, y + step / 2 * k1, at + h / 2)
        k3 = marginal_velocity(d, denoiser, y + step / 2 * k2, at + h / 2)
        k4 = marginal_velocity(d, denoiser, y + step * k3, at + h)
        y = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_velocitys_identity_with_the_exact_teacher(name):
    """u = dy/dtheta - (theta_t - theta_s) du/dtheta in float64, for the true u of the exact denoiser's ODE."""
    torch.manual_seed(1)
    d = dynamics.build(name, **({"augmented_dimensions": 16.0} if name == "pfgmpp" else {}))
    denoiser = PointsDenoiser(d, POINTS)
    y, theta, theta_s = torch.randn(6, 2).double(), torch.linspace(0.7, 1.5, 6).double(), double(0.5).expand(6)

    def u(y, theta):
        return (y - solved(d, denoiser, y, theta, theta_s, steps=30)) / expand(theta - theta_s, y)

    velocity = marginal_velocity(d, denoiser, y, theta)
    target = mean_velocity_target(u, y, velocity=velocity, theta=theta, theta_s=theta_s)
    true = u(y, theta)
    torch.testing.assert_close(target, true, rtol=0, atol=1e-6)
    wrong = mean_velocity_target(u, y, velocity=velocity + 0.1, theta=theta, theta_s=theta_s)
    assert float((wrong - true).abs().max()) > 0.01  # the identity holds along the path alone


def test_the_target_is_linear_in_the_velocity():
    """So a pair's velocity, whose mean given y is the marginal one, gives the right target on average."""
    flow = flow_of("rf").double()
    y, x_anchor = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    given = {"theta": torch.full((5,), 1.2).double(), "theta_s": torch.full((5,), 0.2).double()}

    def target(velocity):
        return mean_velocity_target(
            lambda y, theta: flow.mean_velocity(y, theta, theta_s=given["theta_s"], x_anchor=x_anchor),
            y, velocity=velocity, **given,
        )  # fmt: skip

    pairs = torch.randn(7, 5, 2).double()
    torch.testing.assert_close(torch.stack([target(v) for v in pairs]).mean(0), target(pairs.mean(0)))
    assert not target(pairs[0]).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_the_difference_on_the_exact_teacher_is_of_second_order(name):
    """In float64 half of the step leaves a quarter of the error, and at the step of training it is small."""
    torch.manual_seed(1)
    d = dynamics.build(name, **({"augmented_dimensions": 16.0} if name == "pfgmpp" else {}))
    denoiser = PointsDenoiser(d, POINTS)
    y, theta, theta_s = torch.randn(6, 2).double(), torch.linspace(0.9, 1.4, 6).double(), double(0.7).expand(6)
    along = {"velocity": marginal_velocity(d, denoiser, y, theta), "theta": theta}

    def u(y, theta):
        return (y - solved(d, denoiser, y, theta, theta_s, steps=30)) / expand(theta - theta_s, y)

    exact = forward_derivative(u, y, **along)
    error, of_half = (
        float((central_difference(u, y, **along, step=step) - exact).norm() / exact.norm()) for step in (STEP, STEP / 2)
    )
    assert error < 2e-4
    assert error / of_half == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(("kind", "shape"), [("mlp", (2,)), ("unet", (1, 8, 8))])
def test_the_difference_in_float32_is_near_the_derivative_in_float64(kind, shape):
    """Under autocast too, at the ends of the range too: relative error below 1e-3."""
    flow, rng = flow_of("rf", kind=kind, shape=shape), torch.Generator().manual_seed(1)
    y, velocity, x_anchor = (torch.randn(6, *shape, generator=rng) for _ in range(3))
    theta, theta_s = torch.linspace(0.0, math.pi / 2, 6), torch.linspace(0.0, 0.6, 6)

    def derivative(way, dtype):
        flow.to(dtype)
        told = {"theta_s": theta_s.to(dtype), "x_anchor": x_anchor.to(dtype)}
        with torch.no_grad():
            return way(
                lambda y, theta: flow.mean_velocity(y, theta, **told),
                y.to(dtype), velocity=velocity.to(dtype), theta=theta.to(dtype),
            ).double()  # fmt: skip

    with torch.autocast("cpu", torch.bfloat16), in_float32(flow):
        found = derivative(central_difference, torch.float32)
    with differentiable_forward(flow):
        exact = derivative(forward_derivative, torch.float64)
    assert float((found - exact).norm() / exact.norm()) < 1e-3


def trained(derivative, *, kind="mlp", data, precision="no", **options):
    """The curve's last loss of a short training."""
    AcceleratorState._reset_state()
    accelerator, flow = Accelerator(cpu=True, mixed_precision=precision), flow_of("ve", kind=kind, shape=data.shape[1:])
    how = {"same_share": 0.5, "whole_share": 0.5, "power": 0.5, "random_flip": False, "seed": 1}
    chosen = {"lr": 2e-3, "lr_decay": "none", "warmup_steps": 0, "ema_decay": 0.9, "clip_grad_norm": 1.0}
    settings = TrainSettings(**chosen, log_every=options["steps"], checkpoint_every=1000, **options)
    phase = interval_phase(
        accelerator, flow, data, derivative=derivative, batch_size=settings.batch_size, **how
    )  # fmt: skip
    result = train_flow(accelerator, flow, [phase], policy=anchors.SelfAnchor(0.5), settings=settings, seed=1)
    AcceleratorState._reset_state()
    return result.history[-1]["loss"]


def test_training_by_differences_ends_where_training_by_forward_mode_does():
    points = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
    losses = [trained(way, data=points, steps=150, batch_size=64) for way in ("forward", "difference")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_differences_train_with_checkpointed_activations_in_bf16():
    images = np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8), np.uint8)
    how = {"kind": "unet", "data": images, "precision": "bf16", "steps": 3, "batch_size": 8}
    again = trained("difference", gradient_checkpointing=True, **how)
    assert again == pytest.approx(trained("difference", **how), rel=1e-5)
    assert again == pytest.approx(trained("forward", **how), rel=1e-3)


class GaussianMap(IntervalFlow):
    """The exact flow map of N(0, s^2) between any two times, as a two-time flow."""

    def __init__(self, d, s):
        super().__init__(torch.nn.Identity(), d, takes_anchor=False)
        self.s = s

    def forward(self, x_t, t, *, x_anchor=None, s=None):
        spread = [torch.sqrt(c.a**2 * self.s**2 + c.b**2) for c in map(self.dynamics.coefficients, (t, s))]
        return expand(spread[1] / spread[0], x_t) * x_t


@pytest.mark.parametrize("name", ["ve", "rf"])
def test_chaining_sub_intervals_follows_one_path(name):
    d = dynamics.build(name)
    flow, x_T = GaussianMap(d, 0.4), d.t_max * torch.randn(50, 2).double()
    exact = GaussianDenoiser(d, mu=torch.zeros(2), s=torch.full((2,), 0.4)).flow_map(x_T, double(d.t_max))
    for steps in (1, 2, 5):
        found = sample_chained(flow, x_T, x_anchor=None, steps=steps)
        torch.testing.assert_close(found, exact, rtol=2e-5, atol=1e-7)  # to t_min, not 0
    with pytest.raises(ValueError, match="at least 1"):
        sample_chained(flow, x_T, x_anchor=None, steps=0)


def test_interval_loss():
    u, target = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 2)
    errors = double(0.5, 4.5)
    assert float(interval_loss(u, target=target, power=0.0)) == pytest.approx(float(errors.mean()))
    weighted = (errors / (errors + 1e-3)).mean()
    assert float(interval_loss(u, target=target, power=1.0)) == pytest.approx(float(weighted))
    u.requires_grad_()
    interval_loss(u, target=target, power=1.0).backward()  # the weight has no gradient
    torch.testing.assert_close(u.grad[1], torch.tensor([0.0, 3.0 / 4.501 / 2]))


def test_consistency_loss():
    x, target = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)
    found = consistency_loss(x, target=target, interval=torch.tensor([0.5, 1.0]), distance="l2")
    assert float(found) == pytest.approx((25 / 2 / 0.5 + 0) / 2)


def test_intervals_double_from_first_to_last():
    counts = [consistency_intervals(k, steps=100, first=10, last=160) for k in range(100)]
    assert counts == sorted(counts)
    assert sorted(set(counts)) == [10, 20, 40, 80, 160]
    assert [counts.count(n) for n in sorted(set(counts))] == [20] * 5
    assert consistency_intervals(99, steps=100, first=10, last=100) == 100  # the last, where it is no power of two
    assert sorted({consistency_intervals(k, steps=99, first=10, last=35) for k in range(99)}) == [10, 20, 35]
    assert {consistency_intervals(k, steps=7, first=16, last=16) for k in range(7)} == {16}


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_times_are_even_in_the_angle(name):
    d = dynamics.build(name)
    law, choice = (Streams(3, purpose, range(4000)) for purpose in ("noise", "anchor"))
    t = draw_time(d, law, choice, even_share=0.5)
    widest = float(d.angle(torch.tensor([d.t_max])))
    shares = torch.histc(d.angle(t), bins=8, min=0, max=widest) / len(t)
    assert float(shares.min()) > 0.5 / 8 - 0.012
    assert float(t.min()) >= d.t_min * (1 - 1e-6)
    assert float(t.max()) <= d.t_max
    every = draw_time(d, *(Streams(3, p, range(500)) for p in ("noise", "anchor")), t_max_share=1.0)
    assert bool((every == d.t_max).all())


DATA = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)


def drawn_pairs(d, *, size, step=3, rows=None, data=DATA, random_flip=False):
    """One batch of 8 of the data at a step, averaged over `size`: its rows are those of the step's order."""
    accelerator, how = Accelerator(cpu=True), {"random_flip": random_flip, "batch_size": 8, "seed": 5}
    mean = mean_over_reference(accelerator, d, data, size=size, **how) if size else None
    draw = averaged(draw_pairs(accelerator, d, RowReader(data, accelerator.device), **how), d, mean)
    rows = EndlessShuffle(len(data), 8, seed=5).batch(step) if rows is None else rows
    return draw(rows, step, Streams(5, "anchor", range(8), step=step))


@pytest.mark.parametrize("name", NAMES)
def test_a_stable_target_is_the_marginal_velocity_of_its_reference(name):
    d = dynamics.build(name)
    pair, mean = drawn_pairs(d, size=0), drawn_pairs(d, size=len(DATA))
    assert torch.equal(mean.x_t, pair.x_t)
    assert torch.equal(mean.t, pair.t)
    theta, t, x_t = d.angle(mean.t.double()), mean.t.double(), mean.x_t.double()
    found = d.angular_velocity(mean.x_0.double(), z=mean.z.double(), theta=theta)
    exact = marginal_velocity(
        d, PointsDenoiser(d, torch.from_numpy(DATA).double()), x_t / expand(d.scale(t), x_t), theta
    )
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    again = d.perturb(mean.x_0.double(), z=mean.z.double(), t=t)
    torch.testing.assert_close(again, x_t, rtol=1e-5, atol=1e-5)  # the mean pair goes through the same point
    assert float((mean.x_0 - pair.x_0).abs().max()) > 0.1


def test_a_reference_is_the_batch_and_what_comes_after_it():
    d, order = dynamics.build("ve"), EndlessShuffle(len(DATA), 8, seed=5)
    rows = np.concatenate([order.batch(3), order.batch(4)])
    near = ExactTeacher(torch.from_numpy(DATA[rows]), d)
    for size in (9, 16):  # whole batches
        mean = drawn_pairs(d, size=size)
        torch.testing.assert_close(mean.x_0, near(mean.x_t, mean.t), rtol=1e-5, atol=1e-6)
    # near t_min a point's own datum is all that could have made it: the reference must hold it
    alone = drawn_pairs(dynamics.build("ve", t_max=0.0021), size=8)
    torch.testing.assert_close(alone.x_0, torch.from_numpy(DATA[order.batch(3)]), rtol=1e-5, atol=1e-5)


def test_averaging_keeps_the_mean():
    """E[x_0 | x_t in a set], over many draws: the same with and without, at a fraction of the spread."""
    d = dynamics.build("rf")
    pairs, means = ([drawn_pairs(d, size=size, step=step) for step in range(400)] for size in (0, 16))
    x_t = torch.cat([p.x_t for p in pairs])
    t = torch.cat([p.t for p in pairs])
    chosen = (x_t[:, 0] > 0) & (t > 0.5)
    first, second = (torch.cat([p.x_0 for p in found])[chosen] for found in (pairs, means))
    error = float((first - second).std(0).max()) / int(chosen.sum()) ** 0.5
    assert float((first.mean(0) - second.mean(0)).abs().max()) < 4 * error
    assert float(second.var()) < 0.6 * float(first.var())


def test_mirrored_data_are_half_of_a_reference():
    d = dynamics.build("ve")
    images = np.random.default_rng(1).integers(0, 256, (8, 1, 4, 4), np.uint8)
    mean = drawn_pairs(d, size=8, data=images, rows=np.arange(8), random_flip=True)
    both = torch.from_numpy(np.concatenate([images, images[..., ::-1]]))
    torch.testing.assert_close(mean.x_0, ExactTeacher(both, d)(mean.x_t, mean.t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_earlier_point_is_the_odes_to_second_order(name):
    """x_r of a mean pair against the ODE solved finely: halving the interval leaves about an eighth of its error."""
    d, accelerator = dynamics.build(name), Accelerator(cpu=True)
    how = {"random_flip": False, "batch_size": 8, "seed": 5}
    mean = mean_over_reference(accelerator, d, DATA.astype(np.float64), size=len(DATA), **how)
    denoiser, theta = mean(0), torch.full((8,), 1.0).double()
    t, y = d.time_at(theta), torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).double()
    x_t = expand(d.scale(t), y) * y
    x_0 = denoiser(x_t, t)
    at = Examples(x_t, t, x_0, denoiser=denoiser)
    at = replace(at, z=noise_of(d, at, x_0))
    errors = {}
    for delta in (0.1, 0.05):
        r = d.time_at(theta - delta)
        exact = expand(d.scale(r), y) * solved(d, denoiser, y, theta, theta - delta, steps=20)
        first = d.perturb(at.x_0, z=at.z, t=r)
        errors[delta] = [float((x - exact).norm()) for x in (first, earlier(d, at, r))]
    assert errors[0.05][1] < errors[0.05][0] / 5
    assert errors[0.1][1] / errors[0.05][1] == pytest.approx(8, rel=0.3)
    assert errors[0.1][0] / errors[0.05][0] == pytest.approx(4, rel=0.3)
