"""What a step does with its gradients: clip them, move the weights by AdamW, move their average."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ifm.hardware import sharded
from ifm.hardware.graphs import Replayed, graphs


def make_optimizer(parameters: list[nn.Parameter], *, lr: float, recorded: bool) -> torch.optim.AdamW:
    """AdamW in fused kernels. For a recorded step its learning rate lies on the device."""
    rate: dict[str, Any] = {"lr": lr}
    if recorded:
        rate = {"lr": torch.tensor(lr, device=parameters[0].device), "capturable": True}
    return torch.optim.AdamW(parameters, weight_decay=0.0, fused=True, **rate)


def recordable(accelerator: Accelerator) -> bool:
    """Whether a step can be recorded: on one GPU, without a scaler, which asks the device at every step."""
    return (
        accelerator.device.type == "cuda" and accelerator.num_processes == 1 and accelerator.scaler is None and graphs()
    )


class Update:
    """One step of the weights and of their average; returns the gradient's norm before it was clipped.

    optimizer: torch's own; prepared: accelerate's around it, which is for its scaler.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        prepared: Any,
        *,
        parameters: list[nn.Parameter],
        average: list[Tensor],
        clip: float,
    ) -> None:
        self._accelerator, self._optimizer, self._prepared = accelerator, optimizer, prepared
        self._parameters, self._average, self._clip = parameters, average, clip

    def __call__(self, *, lr: float, decay: float) -> Tensor:
        """The gradients are gone afterwards. A step whose gradient is not finite moves nothing but the average."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        scaler = self._accelerator.scaler
        clips = sharded.shards(self._accelerator) or scaler
        clip = self._accelerator.clip_grad_norm_ if clips else nn.utils.clip_grad_norm_
        norm = sharded.whole(clip(self._parameters, self._clip))
        if scaler is None:
            # The fused kernel reads this flag on the device, where the host need not wait for it.
            self._optimizer.found_inf = (~torch.isfinite(norm)).float()
            self._optimizer.step()
        else:
            self._prepared.step()
        self._optimizer.zero_grad()
        get_ema_multi_avg_fn(decay)(self._average, self._parameters, None)
        return norm


class RecordedUpdate(Update):
    """The same in one CUDA graph, on one GPU without a scaler: the learning rate and the decay lie on the device.

    The average is decay average + (1 - decay) weights, written without `lerp`, which takes no decay of the device's.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        device = self._parameters[0].device
        self._rate = torch.zeros((), device=device)
        self._share = torch.zeros((), device=device)  # 1 - decay
        self._gradients: list[Tensor | None] = []  # where the recording reads them
        self._recorded = Replayed(self._move)

    def __call__(self, *, lr: float, decay: float) -> Tensor:
        self._rate.fill_(lr)
        self._share.fill_(1 - decay)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        if self._recorded.recorded:
            self._place()
        norm = self._recorded()
        self._optimizer.zero_grad()
        return norm

    def _place(self) -> None:
        """Brings the gradients to where the recording reads them. A recorded backward pass leaves them there."""
        found = [p.grad for p in self._parameters]
        others = [x is None for x in found] != [x is None for x in self._gradients]  # of other weights than before
        if not self._gradients or others:
            started = all(self._optimizer.state.get(p) for p in self._parameters if p.grad is not None)
            if others or not started:
                # Moments that are made within a recording would be made anew by every replay: a plain update first.
                self._recorded = Replayed(self._move, warm_ups=int(not started))
            self._gradients = found if started else []
            return
        pairs = [(own, new) for own, new in zip(self._gradients, found, strict=True) if own is not None]
        moved = [(own, new) for own, new in pairs if own.data_ptr() != new.data_ptr()]
        if moved:
            torch._foreach_copy_(*map(list, zip(*moved, strict=True)))

    def _move(self) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.found_inf = (~torch.isfinite(norm)).float()
        self._optimizer.step()
        with torch.no_grad():
            apart = torch._foreach_sub(self._parameters, self._average)
            torch._foreach_mul_(apart, self._share)
            torch._foreach_add_(self._average, apart)
        return norm
