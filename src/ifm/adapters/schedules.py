"""Noise schedules as diffusers writes them down, in one convention.

A noise level is an angle phi in [0, pi/2], with tan(phi) = sigma, the noise's deviation over the data's coefficient.
The state w = cos(phi) x_0 + sin(phi) z stands for every path through (x_0, z): a model's own input is a multiple of it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ifm.adapters import SCHEDULERS, entry_of
from ifm.schema import load


class Schedule(nn.Module, ABC):
    """How a model's time and input follow from the noise level. Levels outside [low, high] are not asked."""

    low: float  # phi
    high: float
    sigma_data: float = 1.0  # the data's deviation that the model's targets are in units of (EDM's)

    @abstractmethod
    def time(self, phi: Tensor) -> Tensor:
        """What the model is given as its time, at level phi: [B]."""

    @abstractmethod
    def scale(self, phi: Tensor) -> Tensor:
        """The model's input is this times w: [B]."""


class Steps(Schedule):
    """A chain of noise steps, variance preserving: sqrt(abar_k) x_0 + sqrt(1 - abar_k) z = w at step k.

    Between steps the time is interpolated, linear in ln(sigma). diffusers makes the betas (linear, scaled_linear,
    squaredcos_cap_v2, sigmoid, trained_betas); abar is their product in float64, for small 1 - abar without 1 - abar.
    A last step without signal (rescale_betas_zero_snr) is left out.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        config = scheduler.config
        if config.get("timestep_type", "discrete") != "discrete":
            raise ValueError(f"timestep_type {config['timestep_type']} is not read; discrete is")
        log_signal = torch.log1p(-scheduler.betas.double().clamp(max=1)).cumsum(0)  # ln abar
        log_sigma = (torch.log(-torch.expm1(log_signal)) - log_signal) / 2
        if log_sigma[-1].isinf():  # else each other step would be asked under the number of the one before
            log_sigma = log_sigma[:-1]
        if not bool(log_sigma.isfinite().all()) or len(log_sigma) < 2 or not bool((log_sigma.diff() > 0).all()):
            raise ValueError("needs betas above 0 for two steps or more, and signal at all steps but the last")
        self.register_buffer("log_sigma", log_sigma, persistent=False)  # [K]
        self.low, self.high = math.atan(log_sigma[0].exp()), math.atan(log_sigma[-1].exp())

    def time(self, phi: Tensor) -> Tensor:
        level = phi.double().tan().log()  # [B]
        below = (self.log_sigma[None, :] <= level[:, None]).sum(1)  # as exporters know it, unlike searchsorted
        k = (below - 1).clamp(0, len(self.log_sigma) - 2)
        start, end = self.log_sigma[k], self.log_sigma[k + 1]
        return (k + (level - start) / (end - start)).to(phi.dtype)

    def scale(self, phi: Tensor) -> Tensor:
        return torch.ones_like(phi)


class EDM(Schedule):
    """EDM (Karras et al. 2022): c_in = 1 / sqrt(sigma^2 + s^2) times x_0 + sigma z, time ln(sigma) / 4."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        config = scheduler.config
        self.low, self.high = math.atan(config.sigma_min), math.atan(config.sigma_max)
        self.sigma_data = float(config.sigma_data)
        if not 0 < self.low < self.high or self.sigma_data <= 0:
            raise ValueError("needs 0 < sigma_min < sigma_max and sigma_data above 0")

    def time(self, phi: Tensor) -> Tensor:
        return phi.tan().log() / 4

    def scale(self, phi: Tensor) -> Tensor:
        return (phi.sin() ** 2 + (self.sigma_data * phi.cos()) ** 2).rsqrt()


class FlowMatching(Schedule):
    """(1 - s) x_0 + s z, time s K for K = num_train_timesteps, and s / (1 - s) = sigma.

    `shift` moves the s that a sampler stops at and that training drew. The model is told the s that it is at, so the
    relation of time and noise level is the same for every shift.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        if scheduler.config.get("invert_sigmas"):
            raise ValueError("invert_sigmas is not read")
        self.steps = int(scheduler.config.num_train_timesteps)
        self.low, self.high = math.atan(1 / max(self.steps - 1, 1)), math.pi / 2

    def time(self, phi: Tensor) -> Tensor:
        return self.steps * phi.sin() / (phi.sin() + phi.cos())

    def scale(self, phi: Tensor) -> Tensor:
        return 1 / (phi.sin() + phi.cos())


def read(config: Mapping[str, Any]) -> tuple[Schedule, str]:
    """The schedule of a scheduler_config.json's content, and what the model predicts: a key of `PREDICTIONS`.

    Raises ValueError for a class or a kind of prediction that is not read.
    """
    import diffusers

    name = config.get("_class_name")
    entry = entry_of(SCHEDULERS, name, what="the scheduler")
    scheduler = getattr(diffusers, name).from_config(dict(config))
    kind = scheduler.config.get("prediction_type")
    if kind == "flow_prediction":
        return FlowMatching(scheduler), "flow"
    if scheduler.config.get("use_flow_sigmas"):
        raise ValueError(f"{name} says use_flow_sigmas and prediction_type {kind!r}; of these flow_prediction is read")
    schedule = load(entry.schedule)(scheduler)
    if entry.predictions is None:
        return schedule, "flow"
    if kind not in entry.predictions:
        raise ValueError(f"{name} says prediction_type {kind!r}; known: {', '.join(entry.predictions)}")
    return schedule, f"edm_{kind}" if isinstance(schedule, EDM) else kind


def clip_of(config: Mapping[str, Any]) -> float | None:
    """The range [-r, r] that the scheduler clips x_0_hat to (clip_sample); None: it does not. Raises ValueError."""
    import diffusers

    kind = getattr(diffusers, config["_class_name"])
    told = kind.from_config(dict(config)).config
    return float(told.get("clip_sample_range", 1.0)) if told.get("clip_sample") else None
