"""A network that is exact for Gaussian data, in every prediction type and schedule: D must be the closed form."""

import json
import math

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from ifm import dynamics
from ifm.adapters.network import AdaptedNetwork
from ifm.model import Teacher

SHAPE = (2, 4, 4)
MU, S = 0.3, 0.7  # of the data: N(MU, S^2) in each number
BETAS = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": np.linspace(1e-3, 0.2, 60).tolist(), "num_train_timesteps": 60},
}
SCHEDULERS = {
    **{
        f"{name}-{kind}": ("DDPMScheduler", {**options, "prediction_type": kind, "clip_sample": False})
        for name, options in BETAS.items()
        for kind in ("epsilon", "sample", "v_prediction")
    },
    "zero-snr": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False},
    ),
    "euler": ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"}),
    "edm": ("EDMEulerScheduler", {"sigma_data": 0.4}),
    "edm-v": ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}
DYNAMICS = {"ve": {"t_max": 80.0}, "rf": {}, "vp": {"t_max": 0.999}, "vp-cosine": {"schedule": "cosine"}, "trig": {}}


def made(name):
    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind)(**options)


def config_of(scheduler):
    return json.loads(scheduler.to_json_string())


class Exact(nn.Module):
    """What a perfect model of N(MU, S^2) gives for its input and time, written without the adapter's terms."""

    def __init__(self, scheduler, *, variance=False):
        super().__init__()
        self.scheduler, self.variance, self.times = scheduler, variance, []
        channels = SHAPE[0]
        self.config = {"in_channels": channels, "out_channels": channels * (2 if variance else 1), "sample_size": 4}
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def sigma(self, time):
        name = type(self.scheduler).__name__
        if name.startswith("EDM"):
            return (4 * time).exp()
        if name.startswith("Flow"):
            s = time / 1000
            return s / (1 - s)
        log_abar = np.cumsum(np.log1p(-self.scheduler.betas.double().numpy().clip(max=1 - 1e-16)))
        log_sigma = 0.5 * (np.log(-np.expm1(log_abar)) - log_abar)
        keep = log_sigma < 100
        return torch.from_numpy(np.exp(np.interp(time.numpy(), np.arange(len(keep))[keep], log_sigma[keep])))

    def forward(self, x, time, *, return_dict):
        name, config = type(self.scheduler).__name__, self.scheduler.config
        self.times.append(time)
        sigma = self.sigma(time).reshape(-1, 1, 1, 1)
        kind = config.get("prediction_type")
        if name.startswith("Flow"):
            a, b = 1 / (1 + sigma), sigma / (1 + sigma)
        elif name.startswith("EDM"):
            a = b = None
            x = x * (sigma**2 + config.sigma_data**2).sqrt()  # x_0 + sigma z
        else:
            a, b = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
        if a is None:
            x_0 = MU + S**2 / (S**2 + sigma**2) * (x - MU)
            s = config.sigma_data
            c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / (sigma**2 + s**2).sqrt()
            out = (x_0 - c_skip * x) / (c_out if kind == "epsilon" else -c_out)
        else:
            gain = a * S**2 / (a**2 * S**2 + b**2)
            x_0 = MU + gain * (x - a * MU)
            z = b / (a**2 * S**2 + b**2) * (x - a * MU)  # E[z | x], without a difference of near numbers
            flow = name.startswith("Flow")
            out = z - x_0 if flow else {"epsilon": z, "sample": x_0, "v_prediction": a * z - b * x_0}[kind]
        return (torch.cat([out, out + 7], dim=1) if self.variance else out,)


def adapted(name, d, *, variance=False, sigma_data=0.5):
    scheduler = made(name)
    Exact.__name__ = "UNet2DModel"  # the adapter goes by the name of the class
    how = {"shape": SHAPE, "sigma_data": sigma_data, "clock": d.clock}
    return AdaptedNetwork(Exact(scheduler, variance=variance), config_of(scheduler), **how)


def closed_form(d, x_t, t):
    at = d.coefficients(t)
    a, b = (c.reshape(-1, 1, 1, 1) for c in (at.a, at.b))
    return MU + a * S**2 / (a**2 * S**2 + b**2) * (x_t - a * MU)


def times_within(d, network, n=100):
    """Times evenly spread in the angle, at levels that the model knows."""
    low, high = network.low, min(network.high, math.pi / 2 - 1e-9)
    phi = torch.linspace(low * (1 + 1e-9), high * (1 - 1e-12), n, dtype=torch.float64)
    theta = torch.atan(phi.tan() / d.sigma_data)
    return d.time_at(theta)


@pytest.mark.parametrize("which", DYNAMICS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_denoiser_is_the_closed_form(name, which):
    d = dynamics.build(which.split("-")[0], **DYNAMICS[which])
    network = adapted(name, d)
    t = times_within(d, network)
    x_0, z = MU + S * torch.randn(100, *SHAPE, dtype=torch.float64), torch.randn(100, *SHAPE, dtype=torch.float64)
    x_t = d.perturb(x_0, z=z, t=t)
    found, exact = Teacher(network, d)(x_t, t), closed_form(d, x_t, t)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["linear-epsilon", "linear-v_prediction", "edm", "flow"])
def test_a_learned_variance_is_cut_off(name):
    d = dynamics.build("ve")
    plain, doubled = (Teacher(adapted(name, d, variance=variance), d) for variance in (False, True))
    x_t, t = torch.randn(3, *SHAPE, dtype=torch.float64), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    assert torch.equal(plain(x_t, t), doubled(x_t, t))


def test_steps_are_the_schedulers_own_steps():
    """At the levels of diffusers' steps the model is given their numbers, and what add_noise makes as its input."""
    d, scheduler = dynamics.build("ve", t_max=200.0), made("scaled_linear-epsilon")
    network = adapted("scaled_linear-epsilon", d)
    steps = torch.tensor([0, 1, 77, 500, 998, 999])
    abar = scheduler.alphas_cumprod.double()[steps]
    sigma = ((1 - abar) / abar).sqrt()
    x_0, z = torch.randn(6, *SHAPE, dtype=torch.float64), torch.randn(6, *SHAPE, dtype=torch.float64)
    given = []
    network.model.register_forward_pre_hook(lambda module, args: given.append(args))
    Teacher(network, d)(d.perturb(x_0, z=z, t=sigma), sigma)
    ((x, time),) = given
    torch.testing.assert_close(time, steps.double(), rtol=0, atol=2e-3)  # alphas_cumprod has float32's digits
    torch.testing.assert_close(x, scheduler.add_noise(x_0, z, steps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["linear-epsilon", "linear-sample", "linear-v_prediction", "edm"])
def test_beyond_the_models_levels_it_is_asked_at_the_nearest(name):
    """No time outside its range is asked, and D stays near the closed form: below by its noise, above by its signal."""
    d = dynamics.build("ve", t_min=1e-4, t_max=2000.0)
    network = adapted(name, d)
    low, high = math.tan(network.low), math.tan(network.high)
    t = torch.tensor([low / 10, low / 2, high * 2, high * 10], dtype=torch.float64)
    x_t = d.perturb(
        MU + S * torch.randn(4, *SHAPE, dtype=torch.float64), z=torch.randn(4, *SHAPE, dtype=torch.float64), t=t
    )
    error = (Teacher(network, d)(x_t, t) - closed_form(d, x_t, t)).abs().amax(dim=(1, 2, 3))
    assert bool(
        (
            (network.schedule.time(torch.atan(t).clamp(network.low, network.high)) - network.model.times[0]).abs()
            < 1e-9
        ).all()
    )
    assert bool((error[:2] < 5 * low).all())
    assert bool((error[2:] < 10 * S**2 / high).all())


def test_clip_sample_keeps_the_estimate_in_range():
    d = dynamics.build("rf")
    scheduler = diffusers.DDPMScheduler(clip_sample_range=0.5)
    how = {"shape": SHAPE, "sigma_data": 0.5, "clock": d.clock}
    network = AdaptedNetwork(Exact(scheduler), config_of(scheduler), **how)
    x_0, z = torch.full((1, *SHAPE), 2.0).double(), torch.randn(1, *SHAPE, dtype=torch.float64)
    t = torch.tensor([0.3], dtype=torch.float64)
    x_t = d.perturb(x_0, z=z, t=t)
    torch.testing.assert_close(Teacher(network, d)(x_t, t), closed_form(d, x_t, t).clamp(-0.5, 0.5))
    for dtype in (torch.float32, torch.float64):  # at the data, where consistency asks: x itself
        x = torch.linspace(-0.4, 0.6, 32, dtype=dtype).reshape(1, *SHAPE)
        torch.testing.assert_close(Teacher(network, d)(x, torch.zeros(1, dtype=dtype)), x)
