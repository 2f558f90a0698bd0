"""The training loop: schedules, weight averages, logs and checkpoints. It knows nothing about the objective."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm.config import TrainConfig
from ifm.errors import UserError
from ifm.files import write_text
from ifm.hardware import sharded
from ifm.hardware.devices import Compiled, compiles, memory_format
from ifm.hardware.graphs import replaying
from ifm.networks.fused import fuse, release
from ifm.progress import progress
from ifm.random import stream
from ifm.training import averages, stopping
from ifm.training.checkpoint import Checkpoints, Snapshot, pack, unpack
from ifm.training.update import RecordedUpdate, Update, make_optimizer, recordable

# (model, step) -> the parts of this process's mean loss (scalars), as many as settings.gradient_accumulation. Each is
# asked for when the last one's backward pass is done, and once more after the last part.
Loss = Callable[[nn.Module, int], Iterator[Tensor]]
OnLog = Callable[[dict[str, float]], None]
OnState = Callable[[int, dict[str, Tensor]], None]  # (steps done, the average's weights by name, whole)


class Memory(Protocol):
    """State that training keeps outside the model, for example an `ifm.anchors.AnchorPolicy`."""

    def state(self) -> dict[str, Tensor]: ...
    def restore(self, tensors: dict[str, Tensor]) -> None: ...


class Diverged(UserError, FloatingPointError):
    """The gradient was not finite in many consecutive steps."""


WINDOW = "window"  # a checkpoint's tensor
LONGEST_STREAK = 10  # such steps are skipped, and this many of them in a row end training
SCALE_SEARCH = 16  # as many more at the start with fp16: torch's GradScaler begins at 2^16 and halves at each of them


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the loop, from the sections `teacher` and `flow` of params.yaml."""

    steps: int
    batch_size: int  # global: all processes together
    lr: float
    lr_decay: str  # "none" | "cosine"
    warmup_steps: int
    ema_decay: float
    clip_grad_norm: float
    log_every: int
    checkpoint_every: int
    gradient_accumulation: int = 1  # parts that a process's batch is worked on in
    gradient_checkpointing: bool = False
    evaluate_every: int | None = None  # steps after which the average is kept as it is then, to be judged later
    further_decays: tuple[float, ...] = ()  # of averages that are kept besides the one that training goes by

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        """The loop's settings in `teacher` or `flow`, whose ema_decay may be several: the first is training's."""
        values = {f.name: getattr(config, f.name) for f in fields(cls) if hasattr(config, f.name)}
        decays = values["ema_decay"] if isinstance(values["ema_decay"], list) else [values["ema_decay"]]
        return cls(**values | {"ema_decay": decays[0], "further_decays": tuple(decays[1:])})


@dataclass
class FitResult:
    """The results of training besides the model's (averaged) weights."""

    history: list[dict[str, float]] = field(default_factory=list)
    resumed_from: int = 0  # the step it went on from; 0 for a fresh start
    seconds: float = 0.0  # training time, over all attempts
    averages: dict[float, dict[str, Tensor]] = field(default_factory=dict)  # further ones: decay -> state_dict, on CPU
    kept: dict[str, Tensor] | None = None  # the average of an earlier step: state_dict, on CPU


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
    on_state: OnState | None = None,
    memory: Memory | None = None,
    average: nn.Module | None = None,
    keep_after: int | None = None,
    label: str = "training",
    seed: int = 0,
) -> FitResult:
    """Trains `model` in place and leaves it with its averaged (EMA) weights, in every process.

    Under FSDP a copy is trained, split over the processes. `loss` must then call the model that it is given (or
    `average`), equally often in every process.

    memory: further state for checkpoints, besides the model, its average and the optimizer.
    on_state: given the average every settings.evaluate_every steps but the last, before the checkpoint of that step; in
    the main process alone. A resumed run gives it again, the same to the byte, from the checkpoint on.
    average: a copy of the model that `loss` may call; its parameters are the averages of every step.
    keep_after: a number of steps, after which the average is kept besides, as an earlier state (`FitResult.kept`).
    seed: for dropout, together with the step and the process.
    Resumes from the newest checkpoint, with exactly the steps of an undisturbed run.
    A step whose gradient is not finite leaves the weights as they are and is counted in the curve. The tenth in a row
    raises Diverged, and the last checkpoint is kept.
    Ctrl-C ends the step, writes a checkpoint and raises KeyboardInterrupt. With several processes it cannot write one,
    because the others may be a step ahead; all of them continue from the last checkpoint.
    """
    device, splits = accelerator.device, sharded.shards(accelerator)
    own = sharded.to_split(accelerator, model) if splits else model.to(device, memory_format=memory_format(device))
    own.train()
    if settings.gradient_checkpointing:
        recompute_activations(own)
    to_train = [p for p in own.parameters() if p.requires_grad]
    names = [name for name, p in own.named_parameters() if p.requires_grad]
    records = recordable(accelerator) and not splits
    optimizer = make_optimizer(to_train, lr=settings.lr, recorded=records)
    trained, prepared = accelerator.prepare(own, optimizer)
    optimizer = prepared.optimizer  # accelerate's around it looks for a package at every step, and is for its scaler
    parameters = [p for p in own.parameters() if p.requires_grad]
    ema = [p.detach().clone() for p in parameters]
    if average is not None:
        average.train().requires_grad_(False)
        if splits:
            ema = sharded.share_average(accelerator, average, own, ema)
        else:
            _share(average.to(device), own, ema)
    further = averages.FurtherAverages(settings.further_decays, ema)
    earlier = averages.EarlierAverage(keep_after, ema)
    called = Compiled(trained) if compiles() and not splits else trained
    # A recorded backward pass writes where the last one left the gradients: parts of a batch would not add up.
    replays = records and not (compiles() or settings.gradient_checkpointing or settings.gradient_accumulation > 1)
    named = {"parameters": parameters, "average": ema, "clip": settings.clip_grad_norm}
    update = (RecordedUpdate if records else Update)(accelerator, optimizer, prepared, **named)
    casts = accelerator.mixed_precision != "no" and not (splits or compiles())
    # Before torch 2.11 autocast goes on with casts that a call without gradient made, and they have none.
    fresh = own.register_forward_pre_hook(lambda *_: torch.clear_autocast_cache()) if casts else None

    result, first, seen = FitResult(), 0, _Window(settings.log_every, device)
    saved = checkpoints.load() if checkpoints else None
    if saved:
        unpack(saved.tensors, own, ema, optimizer)
        further.restore(saved.tensors)
        earlier.restore(saved.tensors)
        if memory:
            memory.restore(saved.tensors)
        first = saved.record["step"]
        if accelerator.scaler is not None and saved.record["scaler"]:
            accelerator.scaler.load_state_dict(saved.record["scaler"])
        result = FitResult(saved.record["history"], resumed_from=first, seconds=saved.record["seconds"])
        seen.skipped += result.history[-1]["skipped"] if result.history else 0.0
        seen.restore(saved.tensors)
        accelerator.print(f"{label}: goes on from step {first} of {settings.steps}")

    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    clock = _Clock(result.seconds)
    bar = progress(range(first, settings.steps), label=label, unit="step", initial=first, total=settings.steps)
    stop = stopping.Note(when=checkpoints is not None and accelerator.num_processes == 1)
    with faster(own, average, kernels=not (splits or compiles()), replays=replays):
        for step in stop.during(bar):
            if drops:
                torch.manual_seed(
                    int(stream(seed, "dropout", step=step, index=accelerator.process_index).integers(2**63))
                )
            value = _backward(accelerator, trained, loss(called, step), parts=settings.gradient_accumulation)
            norm = update(lr=learning_rate(step, settings), decay=averages.ema_decay(step, settings.ema_decay))
            further.update(parameters, step=step)
            earlier.update(ema, step=step)
            seen.add(value, norm)

            done = step + 1
            if done % settings.log_every == 0 or done == settings.steps:
                row = {"step": done, "lr": learning_rate(step, settings), **seen.close(accelerator)}
                row["ema_distance"] = _distance(ema, parameters)
                searching = accelerator.scaler is not None and seen.skipped == done
                longest = LONGEST_STREAK + (SCALE_SEARCH if searching else 0)
                if seen.streak >= longest:
                    raise Diverged(_advice(label, row, longest, checkpoints))
                result.history.append(row)
                bar.set_postfix(loss=f"{row['loss']:.4g}" if math.isfinite(row["loss"]) else "steps skipped")
                if on_log:
                    on_log(row)
            if on_state and settings.evaluate_every and done % settings.evaluate_every == 0 and done < settings.steps:
                state = sharded.collect(dict(zip(names, ema, strict=True)), keep=accelerator.is_main_process)
                if accelerator.is_main_process:
                    on_state(done, state)
            stopped = stop.asked
            if checkpoints and (stopped or (done % settings.checkpoint_every == 0 and done < settings.steps)):
                kept = seen.state() | (memory.state() if memory else {})  # by all processes
                packed = sharded.collect(
                    pack(own, ema, optimizer) | further.state() | earlier.state(), keep=accelerator.is_main_process
                )
                if accelerator.is_main_process:
                    record = _record(accelerator, done, result.history, clock.seconds())
                    checkpoints.save(done, Snapshot(packed | kept, record))
                accelerator.wait_for_everyone()
            if stopped:
                raise KeyboardInterrupt

    result.seconds = clock.seconds()
    if fresh is not None:
        fresh.remove()

    def take(means: list[Tensor]) -> None:
        """Gives the model the weights of an average."""
        with torch.no_grad():
            for p, mean in zip(parameters, means, strict=True):
                p.copy_(mean)
        if splits:
            sharded.copy_whole(own, model)

    def taken(means: list[Tensor]) -> dict[str, Tensor]:
        take(means)
        return {name: x.detach().cpu().clone() for name, x in model.state_dict().items()}

    for decay, means in further:
        result.averages[decay] = taken(means)
    if earlier.mean is not None:
        result.kept = taken(earlier.mean)
    take(ema)
    model.eval()
    accelerator.free_memory()
    return result


def write_curve(path: Path, history: list[dict[str, float]]) -> None:
    """The training curve as CSV, one line for each `log_every` steps.

    step; loss and grad_norm: means over the steps since the last line; loss_max: the largest loss among them; lr;
    skipped: steps up to here whose gradient was not finite; ema_distance: |average - weights| / |weights|.
    A cell is empty if all steps since the last line were skipped.
    """
    columns = ["step", "loss", "loss_max", "grad_norm", "lr", "skipped", "ema_distance"]
    lines = [",".join(repr(row[c]) if math.isfinite(row[c]) else "" for c in columns) for row in history]
    write_text(path, "\n".join([",".join(columns), *lines]) + "\n")


def _share(average: nn.Module, model: nn.Module, shadow: list[Tensor]) -> None:
    """Makes the averages the parameters of `average`; they are updated and restored in place."""
    trained = [p.requires_grad for p in model.parameters()]
    own = [p for p, is_trained in zip(average.parameters(), trained, strict=True) if is_trained]
    for p, mean in zip(own, shadow, strict=True):
        p.data = mean


@contextmanager
def faster(*models: nn.Module | None, kernels: bool, replays: bool) -> Iterator[None]:
    """Within, networks use our kernels (`fuse`) and their calls are recorded (`replaying`), where that is asked."""
    networks = [getattr(model, "network", model) for model in models if model is not None]
    fused = [network for network in networks if kernels and fuse(network, next(network.parameters()).device)]
    try:
        with replaying(*models) if replays else nullcontext():
            yield
    finally:
        for network in fused:
            release(network)


def recompute_activations(model: nn.Module) -> None:
    """Makes the backward pass recompute activations instead of keeping them: less memory, a third more time.

    This calls diffusers' `enable_gradient_checkpointing` on every submodule that has it.
    """
    for module in model.modules():
        if hasattr(module, "enable_gradient_checkpointing"):
            module.enable_gradient_checkpointing()


def _backward(accelerator: Accelerator, trained: nn.Module, losses: Iterator[Tensor], *, parts: int) -> Tensor:
    """The sum of the parts' losses, each with its backward pass; processes exchange gradients at the last part."""
    total = torch.zeros((), device=accelerator.device)
    for part in range(parts):
        last = part == parts - 1
        alone: AbstractContextManager = nullcontext() if last else accelerator.no_sync(trained)
        with alone:
            with accelerator.autocast():
                value = next(losses)
            accelerator.backward(value)
        total += value.detach()
    next(losses, None)
    return total


class _Window:
    """Figures of the steps between two lines of the curve. They stay on the device until `close` reads them."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self._rows = torch.zeros(steps, 2, device=device)  # loss and gradient norm of each step
        self._count = 0
        self.streak = 0  # of steps whose gradient is not finite, up to now
        self.skipped = 0.0  # of those, all together

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Takes a step's loss and gradient norm."""
        row = self._rows[self._count]
        row[0], row[1] = loss, norm
        self._count += 1

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint between two lines; nothing at a line, because the window is empty then."""
        return {WINDOW: self._rows[: self._count].clone()} if self._count else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restores the result of `state`."""
        rows = tensors.get(WINDOW, self._rows[:0])
        self._count = len(rows)
        self._rows[: self._count] = rows

    def close(self, accelerator: Accelerator) -> dict[str, float]:
        """The line's figures; NaN if no step was finite. Only here the host waits for the device."""
        rows = self._rows[: self._count].cpu()
        self._count = 0
        sound = torch.isfinite(rows[:, 1])
        for is_sound in sound.tolist():
            self.streak = 0 if is_sound else self.streak + 1
        self.skipped += float((~sound).sum())
        loss, norm = rows[sound & torch.isfinite(rows[:, 0])].unbind(1)
        mine = torch.stack([loss.mean(), loss.max()]) if len(loss) else torch.full((2,), math.nan)
        all_of_them = accelerator.gather(mine[None].to(self._rows.device))  # [processes, 2]
        return {
            "loss": float(all_of_them[:, 0].mean()),
            "loss_max": float(all_of_them[:, 1].max()),
            "grad_norm": float(norm.mean()),
            "skipped": self.skipped,
        }


def _distance(average: list[Tensor], parameters: list[Tensor]) -> float:
    """|average - weights| / |weights|: how far the average lags behind."""
    with torch.no_grad():
        apart = torch.stack(torch._foreach_norm(torch._foreach_sub(average, parameters))).norm()
        size = torch.stack(torch._foreach_norm(parameters)).norm()
        return float(sharded.whole(apart) / sharded.whole(size).clamp_min(1e-12))


def _advice(label: str, row: dict[str, float], streak: int, checkpoints: Checkpoints | None) -> str:
    kept = checkpoints.newest() if checkpoints else None
    return (
        f"{label}: the gradient has not been finite for {streak} steps or more, at step {row['step']:.0f} "
        f"(learning rate {row['lr']:.3g}, {row['skipped']:.0f} steps skipped in all); lower lr or clip_grad_norm, "
        f"raise warmup_steps, or use precision: bf16 or no; last good checkpoint: {kept or 'none yet'}"
    )


def _record(accelerator: Accelerator, step: int, history: list[dict[str, float]], seconds: float) -> dict[str, Any]:
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    return {"step": step, "history": history, "seconds": seconds, "scaler": scaler}


class _Clock:
    """Seconds since it was made, plus those of earlier runs."""

    def __init__(self, before: float) -> None:
        self._start = time.perf_counter() - before

    def seconds(self) -> float:
        return time.perf_counter() - self._start
