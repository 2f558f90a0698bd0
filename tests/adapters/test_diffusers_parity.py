"""A real UNet2DModel, trained by diffusers' DDPM tutorial: our samplers end where diffusers' own do."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from ifm import dynamics
from ifm.adapters import folder as folders
from ifm.dynamics.base import power_grid
from ifm.model import Teacher
from ifm.solver import solve_ode

N = 8
LEVELS = power_grid(40, t_min=0.0101, t_max=157.0, rho=7.0)  # of noise, which the model knows
DYNAMICS = {"ve": {"t_max": 157.0}, "rf": {}, "vp": {"t_max": 0.9999}, "trig": {"t_max": 1.5645}}


@pytest.fixture(scope="module")
def noise():
    return torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def by_diffusers(ddpm, noise):
    """diffusers' own sampler, without clipping of x_0 and down to no noise: 50 steps and 500, which divide its 1000."""
    model = UNet2DModel.from_pretrained(ddpm / "unet").eval()

    @torch.no_grad()
    def ddim(steps):
        scheduler = DDIMScheduler.from_pretrained(
            ddpm / "scheduler", clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(steps)
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t, return_dict=False)[0], t, x, eta=0.0, return_dict=False)[0]
        return x

    return ddim(50), ddim(500)


@pytest.mark.parametrize("name", DYNAMICS)
@torch.no_grad()
def test_our_heun_and_diffusers_ddim_end_at_the_same_images(ddpm, noise, by_diffusers, name):
    """What is between them falls with DDIM's steps, as its own error of first order does."""
    d = dynamics.build(name, **DYNAMICS[name])
    found = folders.find(ddpm, named="model")
    scheduler = dict(found.scheduler) | {"clip_sample": False}
    how = {"shape": (1, 8, 8), "sigma_data": d.sigma_data, "clock": d.clock}
    teacher = Teacher(folders.read(replace(found, scheduler=scheduler), **how), d)
    times = LEVELS / (1 + LEVELS) if name == "rf" else d.time_of_level(LEVELS)
    x_T = d.coefficients(times[:1]).b.float() * noise
    images = solve_ode(teacher, x_T, dynamics=d, times=times)
    coarse, fine = ((images - theirs).abs().mean() for theirs in by_diffusers)
    assert fine < 0.03
    assert fine < 0.4 * coarse
