"""The training loop: schedules, averages, logs and checkpoints, and knows nothing of the objective."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm.config import TrainConfig
from ifm.errors import UserError
from ifm.files import write_text
from ifm.progress import progress
from ifm.training.checkpoint import Checkpoints, Snapshot, pack, unpack

Loss = Callable[[nn.Module, int], Tensor]  # (model, step) -> this process's mean loss, a scalar
OnLog = Callable[[dict[str, float]], None]


class Memory(Protocol):
    """What training keeps outside the model; `ifm.anchors.AnchorPolicy` is one."""

    def state(self) -> dict[str, Tensor]: ...
    def restore(self, tensors: dict[str, Tensor]) -> None: ...


class Diverged(UserError, FloatingPointError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class TrainSettings:
    """What the loop needs to know; params.yaml's `teacher` and `flow` sections give it."""

    steps: int
    batch_size: int  # global: all processes together
    lr: float
    lr_decay: str  # "none" | "cosine"
    warmup_steps: int
    ema_decay: float
    clip_grad_norm: float
    log_every: int
    checkpoint_every: int

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        """The loop's part of `teacher` or `flow`."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(cls)})


@dataclass
class FitResult:
    """What training gives besides the model's (averaged) weights."""

    history: list[dict[str, float]] = field(default_factory=list)
    resumed_from: int = 0  # the step it went on from; 0 for a fresh start
    seconds: float = 0.0  # training time, over all attempts


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then constant or a cosine to zero."""
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.lr_decay == "none":
        return settings.lr * warm
    past = max(0, step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * past))


def fit(
    accelerator: Accelerator,
    model: nn.Module,
    *,
    loss: Loss,
    settings: TrainSettings,
    checkpoints: Checkpoints | None = None,
    on_log: OnLog | None = None,
    memory: Memory | None = None,
    average: nn.Module | None = None,
    label: str = "training",
) -> FitResult:
    """Trains `model` in place and leaves it with its averaged (EMA) weights.

    memory: what checkpoints hold besides the model, its average and the optimizer.
    average: a copy of the model for `loss` to ask; its parameters are the averaged ones of every step.
    Resumes from the newest checkpoint, and then goes through exactly the steps it would have gone through.
    Raises Diverged at a loss that is not finite, with the last checkpoint kept.
    """
    from diffusers.training_utils import EMAModel

    model.train().to(accelerator.device, memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0, fused=True)
    ema = EMAModel(parameters, decay=settings.ema_decay, foreach=True)
    if average is not None:
        _share(average.train().requires_grad_(False), model, ema.shadow_params)
    trained, optimizer = accelerator.prepare(model, optimizer)

    result, first, window = FitResult(), 0, torch.zeros((), device=accelerator.device)
    norms = torch.zeros((), device=accelerator.device)
    saved = checkpoints.load() if checkpoints else None
    if saved:
        unpack(saved.tensors, model, ema.shadow_params, optimizer)
        if memory:
            memory.restore(saved.tensors)
        first = ema.optimization_step = saved.record["step"]
        if accelerator.scaler is not None and saved.record["scaler"]:
            accelerator.scaler.load_state_dict(saved.record["scaler"])
        result = FitResult(saved.record["history"], resumed_from=first, seconds=saved.record["seconds"])
        accelerator.print(f"{label}: goes on from step {first} of {settings.steps}")

    clock = _Clock(result.seconds)
    bar = progress(range(first, settings.steps), label=label, unit="step", initial=first, total=settings.steps)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        with accelerator.autocast():
            value = loss(trained, step)
        accelerator.backward(value)
        norms += accelerator.clip_grad_norm_(parameters, settings.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        window += value.detach()

        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            steps = (done - 1) % settings.log_every + 1
            row = _row(accelerator, step=done, lr=learning_rate(step, settings), loss=window, norm=norms, steps=steps)
            window.zero_(), norms.zero_()
            if not math.isfinite(row["loss"]):
                raise Diverged(
                    f"{label}: the loss is {row['loss']} at step {done} (learning rate {row['lr']:.3g}); lower lr or "
                    "clip_grad_norm, raise warmup_steps, or use precision: bf16 or no"
                )
            result.history.append(row)
            bar.set_postfix(loss=f"{row['loss']:.4g}")
            if on_log:
                on_log(row)
        if checkpoints and done % settings.checkpoint_every == 0 and done < settings.steps:
            kept = memory.state() if memory else {}  # by all processes
            if accelerator.is_main_process:
                record = _record(accelerator, done, result.history, clock.seconds())
                checkpoints.save(done, Snapshot(pack(model, ema.shadow_params, optimizer) | kept, record))
            accelerator.wait_for_everyone()

    result.seconds = clock.seconds()
    ema.copy_to(parameters)
    model.eval()
    accelerator.free_memory()
    return result


def write_curve(path: Path, history: list[dict[str, float]]) -> None:
    """The training curve as CSV: step, loss, grad_norm, lr."""
    columns = ["step", "loss", "grad_norm", "lr"]
    lines = [",".join(repr(row[c]) for c in columns) for row in history]
    write_text(path, "\n".join([",".join(columns), *lines]) + "\n")


def _share(average: nn.Module, model: nn.Module, shadow: list[Tensor]) -> None:
    """Gives `average` the averages themselves for parameters, which are stepped and restored in place."""
    trained = [p.requires_grad for p in model.parameters()]
    own = [p for p, is_trained in zip(average.parameters(), trained, strict=True) if is_trained]
    for p, mean in zip(own, shadow, strict=True):
        p.data = mean


def _row(accelerator: Accelerator, *, step: int, lr: float, loss: Tensor, norm: Tensor, steps: int) -> dict[str, float]:
    """One line of the training curve: the only place where the step waits for the device."""
    mean_loss = accelerator.reduce(loss / steps, reduction="mean")
    return {"step": step, "loss": float(mean_loss), "grad_norm": float(norm / steps), "lr": lr}


def _record(accelerator: Accelerator, step: int, history: list[dict[str, float]], seconds: float) -> dict[str, Any]:
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    return {"step": step, "history": history, "seconds": seconds, "scaler": scaler}


class _Clock:
    """Seconds since it was made, on top of those spent before."""

    def __init__(self, before: float) -> None:
        self._start = time.perf_counter() - before

    def seconds(self) -> float:
        return time.perf_counter() - self._start
