"""One training step in several variants, and a network at several precisions: what benchmarks.gpu_step measures."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.subjects import Subject
from ifm import losses

WARM_UPS = 3


@dataclass(frozen=True)
class Variant:
    """How a step is done; the defaults are the project's own."""

    channels_last: bool = True
    norm: str = "plain"  # plain | low: group_norm on bf16 | fused: ifm.networks.kernels
    weights: str = "float32"  # float32: autocast | bf16: a copy that the step runs on
    compiled: str = ""  # "" | regions | norms | whole
    graph: str = ""  # "" | model: forward and backward | step: all of it
    optimizer: str = "fused"  # fused | foreach
    dropout: bool = True


class Low(nn.Module):
    """A network in a lower precision, float32 around it."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = network.to(dtype), dtype

    def forward(self, inputs: Tensor, c_noise: Tensor, *rest: Tensor, **told: Any) -> Tensor:
        return self.inner(inputs.to(self.dtype), c_noise, *rest, **told).float()


def low_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Group normalization in x's dtype."""
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def fused_resnet(block: ResnetBlock2D, x: Tensor, temb: Tensor, *_: Any, **__: Any) -> Tensor:
    """diffusers' ResnetBlock2D with norm and SiLU in one kernel, conv1's bias and the time's added there too."""
    from ifm.networks.kernels import group_norm_silu

    h = F.conv2d(group_norm_silu(x, block.norm1), block.conv1.weight, padding=1)
    shift = block.time_emb_proj(F.silu(temb)) + block.conv1.bias
    h = block.conv2(block.dropout(group_norm_silu(h, block.norm2, shift=shift)))
    return (x if block.conv_shortcut is None else block.conv_shortcut(x)) + h


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """What `compiled: norms` compiles."""
    y = F.silu(F.group_norm(x.float(), groups, weight, bias, eps))
    return y.to(x.dtype)


def norms_resnet(block: ResnetBlock2D, x: Tensor, temb: Tensor, *_: Any, **__: Any) -> Tensor:
    """The same with torch.compile for norm and SiLU alone."""
    one, two = block.norm1, block.norm2
    h = block.conv1(block.compiled_norm(x, one.weight, one.bias, one.num_groups, one.eps))
    h = h + block.time_emb_proj(F.silu(temb))[:, :, None, None]
    h = block.conv2(block.dropout(block.compiled_norm(h, two.weight, two.bias, two.num_groups, two.eps)))
    return (x if block.conv_shortcut is None else block.conv_shortcut(x)) + h


def change(model: nn.Module, *, norm: str = "plain", compiled: str = "") -> None:
    """Changes a model's modules in place."""
    torch._dynamo.config.cache_size_limit = 256
    torch._dynamo.config.accumulated_cache_size_limit = 4096
    if norm == "fused":
        from ifm.networks.kernels import group_norm_silu

        for module in model.modules():
            if isinstance(module, ResnetBlock2D):
                module.forward = MethodType(fused_resnet, module)
            elif isinstance(module, nn.GroupNorm):
                module.forward = MethodType(lambda m, x: group_norm_silu(x, m, silu=False), module)
    elif norm == "low":
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = MethodType(low_norm, module)
    if compiled == "norms":
        once = torch.compile(norm_silu, dynamic=False)
        for module in model.modules():
            if isinstance(module, ResnetBlock2D):
                module.compiled_norm = once
                module.forward = MethodType(norms_resnet, module)
    elif compiled == "regions":
        for module in model.modules():
            if isinstance(module, ResnetBlock2D | Attention):
                module.compile(dynamic=False)
    elif compiled == "whole":
        model.network.compile(dynamic=False)


class Training:
    """A subject's teacher and its step on one batch that lies on the device."""

    def __init__(self, subject: Subject, device: torch.device, *, precision: str, batch: int, how: Variant) -> None:
        self.how, self.device, self.bf16 = how, device, precision == "bf16"
        model = subject.teacher().to(device).train()
        if how.channels_last and device.type == "cuda":
            model = model.to(memory_format=torch.channels_last)
        if not how.dropout:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        self.model = self.run = model
        if how.weights == "bf16":
            self.run = copy.deepcopy(model)
            self.run.network = Low(self.run.network, torch.bfloat16)
        change(self.run, norm=how.norm, compiled=how.compiled)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.low = [p for p in self.run.parameters() if p.requires_grad]
        self.ema = [p.detach().clone() for p in self.parameters]
        kind = {"fused": True} if how.optimizer == "fused" else {"foreach": True}
        lr = torch.tensor(1e-4, device=device) if how.graph == "step" else 1e-4
        capturable = {"capturable": True} if how.graph == "step" and device.type == "cuda" else {}
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0, **kind, **capturable)
        self.average = get_ema_multi_avg_fn(0.999)
        shape = (batch, *subject.shape)
        self.x_0 = torch.rand(shape, device=device) * 2 - 1
        self.t = torch.rand(batch, device=device) + 0.1
        self.x_t = self.x_0 + self.t[:, None, None, None] * torch.randn(shape, device=device)
        self.called: Callable[..., Tensor] = self.run
        self._replay: Callable[[], None] | None = None

    def autocast(self) -> AbstractContextManager:
        on = self.bf16 and self.how.weights == "float32"
        return (
            torch.autocast(self.device.type, torch.bfloat16, cache_enabled=not self.how.graph) if on else nullcontext()
        )

    def loss(self) -> Tensor:
        with self.autocast():
            x_0_hat = self.called(self.x_t, self.t)
            return losses.denoising(x_0_hat, x_0=self.x_0, scale=self.model.dynamics.error_scale(self.t))

    def update(self) -> None:
        if self.low[0] is not self.parameters[0]:
            for p in self.parameters:
                p.grad = torch.empty_like(p) if p.grad is None else p.grad
            torch._foreach_copy_([p.grad for p in self.parameters], [q.grad for q in self.low])
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if self.how.optimizer == "fused":
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()
        self.optimizer.step()
        if self.low[0] is not self.parameters[0]:
            with torch.no_grad():
                torch._foreach_copy_(self.low, self.parameters)

    def whole(self) -> None:
        self.loss().backward()
        self.update()
        for p in self.low:
            p.grad = None
        self.average(self.ema, self.parameters, None)

    def prepare(self) -> None:
        """Captures what is to be captured."""
        if self.device.type != "cuda" or not self.how.graph:
            return
        if self.how.graph == "model":
            shell = Shell(self.run)
            with self.autocast():
                self.called = torch.cuda.make_graphed_callables(shell, (self.x_t, self.t))
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.whole()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.whole()
        self._replay = graph.replay

    def step(self) -> None:
        if self._replay is not None:
            self._replay()
        else:
            self.whole()


class Shell(nn.Module):
    """A model with positional arguments alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.model(x_t, t)
