"""Other projects' training steps and solvers, in the few lines that their own documentation shows.

All steps share `plain_loop`, the fastest of optimizers and averages, whatever the project's own example takes: what is
compared is the step, and no peer is slowed down by its example script. Batches are random rows of a resident tensor.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.results import Skipped
from ifm.dynamics.ve import VarianceExploding
from ifm.modalities.images import to_unit
from ifm.model import Teacher
from ifm.training.loop import TrainSettings

Loss = Callable[[nn.Module, int], Tensor]  # (network, step) -> scalar


def plain_loop(model: nn.Module, loss: Loss, *, settings: TrainSettings, device: torch.device) -> None:
    """AdamW (fused), clipping and an average of the weights, as short as PyTorch allows."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in parameters]
    for step in range(settings.steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value = loss(model, step)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, settings.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - settings.ema_decay)


class Batches:
    """Random batches of images held on the device: float32 in [-1, 1], [B, C, S, S]."""

    def __init__(self, images: np.ndarray, size: int, device: torch.device) -> None:
        self._images, self._size = to_unit(images).to(device), size

    def __call__(self) -> Tensor:
        return self._images[torch.randint(len(self._images), (self._size,), device=self._images.device)]


MakeLoss = Callable[[Batches], Loss]


def torchcfm_loss(batches: Batches) -> Loss:
    """torchcfm's README: regression of ut at xt (Tong et al. 2024)."""
    try:
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    except ImportError as error:
        raise Skipped(f"torchcfm cannot be imported ({error})") from None
    matcher = ConditionalFlowMatcher(sigma=0.0)

    def loss(network: nn.Module, step: int) -> Tensor:
        x_1 = batches()
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)
        return (network(x_t, t) - u_t).square().mean()

    return loss


def flow_matching_loss(batches: Batches) -> Loss:
    """Meta's flow_matching, README: the CondOT path and the square of the velocity's error (Lipman et al. 2024)."""
    try:
        from flow_matching.path import AffineProbPath
        from flow_matching.path.scheduler import CondOTScheduler
    except ImportError as error:
        raise Skipped(f"flow_matching cannot be imported ({error})") from None
    path = AffineProbPath(scheduler=CondOTScheduler())

    def loss(network: nn.Module, step: int) -> Tensor:
        x_1 = batches()
        at = path.sample(t=torch.rand(len(x_1), device=x_1.device), x_0=torch.randn_like(x_1), x_1=x_1)
        return (network(at.x_t, at.t) - at.dx_t).square().mean()

    return loss


def ddpm_loss(batches: Batches) -> Loss:
    """diffusers' training tutorial: add_noise at a random timestep, mean square error of the noise."""
    try:
        from diffusers import DDPMScheduler
    except ImportError as error:
        raise Skipped(f"diffusers cannot be imported ({error})") from None
    scheduler = DDPMScheduler(num_train_timesteps=1000)

    def loss(network: nn.Module, step: int) -> Tensor:
        clean = batches()
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (len(clean),), device=clean.device)
        predicted = network(scheduler.add_noise(clean, noise, timesteps), timesteps / 1000)
        return nn.functional.mse_loss(predicted, noise)

    return loss


TRAINING: dict[str, MakeLoss] = {"torchcfm": torchcfm_loss, "flow_matching": flow_matching_loss, "DDPM": ddpm_loss}


def edm_loss(batches: Batches, *, folder: Path) -> Loss:
    """EDMLoss of a checkout of EDM (training/loss.py), on this project's network in EDM's preconditioning.

    Raises Skipped where the folder holds no EDM that can be imported.
    """
    sys.path.insert(0, str(folder))
    try:
        from training.loss import EDMLoss
    except ImportError as error:
        raise Skipped(f"{folder.name} holds no EDM that can be imported ({error})") from None
    finally:
        sys.path.remove(str(folder))
    objective, dynamics = EDMLoss(), VarianceExploding()

    def loss(network: nn.Module, step: int) -> Tensor:
        teacher = Teacher(network, dynamics)
        return objective(lambda x, sigma, *_, **__: teacher(x, sigma.flatten()), batches()).mean()

    return loss


Solver = Callable[[nn.Module, Tensor, int], Tensor]  # (network, x_T, evaluations) -> x_0


def euler_torchdiffeq(network: nn.Module, x_T: Tensor, nfe: int) -> Tensor:
    """torchcfm's CIFAR-10 example: torchdiffeq's odeint with the fixed-step solver euler."""
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise Skipped(f"torchdiffeq, which torchcfm solves with, cannot be imported ({error})") from None
    times = torch.linspace(0, 1, nfe + 1, device=x_T.device)
    return odeint(lambda t, x: network(x, t.expand(len(x))), x_T, times, method="euler")[-1]


def euler_flow_matching(network: nn.Module, x_T: Tensor, nfe: int) -> Tensor:
    """Meta's flow_matching: ODESolver with method euler."""
    try:
        from flow_matching.solver import ODESolver
    except ImportError as error:
        raise Skipped(f"flow_matching's solver cannot be imported ({error})") from None
    solver = ODESolver(velocity_model=lambda x, t: network(x, t.expand(len(x))))
    return solver.sample(x_init=x_T, method="euler", step_size=1 / nfe)


def ddim(network: nn.Module, x_T: Tensor, nfe: int) -> Tensor:
    """diffusers: the DDIM scheduler's loop."""
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise Skipped(f"diffusers cannot be imported ({error})") from None
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(nfe, device=x_T.device)
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x)) / 1000), t, x).prev_sample
    return x


def consistency(network: nn.Module, x_T: Tensor, steps: int) -> Tensor:
    """diffusers: the consistency models' scheduler, x_0 at once and noise added between (Song et al. 2023, alg. 1)."""
    try:
        from diffusers import CMStochasticIterativeScheduler
    except ImportError as error:
        raise Skipped(f"diffusers cannot be imported ({error})") from None
    scheduler = CMStochasticIterativeScheduler()
    scheduler.set_timesteps(steps, device=x_T.device)
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t.expand(len(x))), t, x).prev_sample
    return x


SOLVERS: dict[str, Solver] = {
    "torchdiffeq (torchcfm)": euler_torchdiffeq,
    "flow_matching": euler_flow_matching,
    "diffusers DDIM": ddim,
}
