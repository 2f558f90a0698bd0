"""diffusers' residual blocks with their normalizations and activations in one kernel each (`ifm.networks.kernels`)."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ifm.hardware.devices import switched_on

CLOSE = 2e-2  # of bf16 results of a kernel and of torch's own operations, relative


def fuse(network: nn.Module, device: torch.device, *, trained: bool = True) -> bool:
    """Has a network's blocks use the kernels, in place; whether they do. It then computes the same, on this device.

    On GPUs alone, unless IFM_KERNELS=off. trained: networks of two times then stay as they are, because they are
    differentiated forward, which the kernels cannot. So does every network where the kernels do not work or are not
    right here, with a notice.
    """
    if device.type != "cuda" or not switched_on("IFM_KERNELS", default=True):
        return False
    if trained and getattr(network, "two_times", False):
        return False
    blocks = [module for module in network.modules() if _is_plain_block(module)]
    if not blocks:
        return False
    try:
        wrong = _check(device)
    except Exception as error:  # no Triton, no compiler, another GPU: any of them
        wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if wrong:
        print(f"norm kernels do not work here ({wrong}): goes on without", flush=True)
        return False
    for block in blocks:
        block.forward = MethodType(_block, block)
    inside = {id(norm) for block in blocks for norm in (block.norm1, block.norm2)}
    for module in network.modules():
        if isinstance(module, nn.GroupNorm) and id(module) not in inside:
            module.forward = MethodType(_norm, module)
    return True


def release(network: nn.Module) -> None:
    """The inverse of `fuse`."""
    for module in network.modules():
        if isinstance(vars(module).get("forward"), MethodType) and module.forward.__func__ in (_block, _norm):
            del module.forward


def _is_plain_block(module: nn.Module) -> bool:
    """A ResnetBlock2D as ifm builds them: no resampling inside, SiLU, the time added, nothing rescaled."""
    from diffusers.models.resnet import ResnetBlock2D

    return (
        isinstance(module, ResnetBlock2D)
        and module.upsample is None
        and module.downsample is None
        and module.time_embedding_norm == "default"
        and module.time_emb_proj is not None
        and not module.skip_time_act
        and module.output_scale_factor == 1
        and isinstance(module.nonlinearity, nn.SiLU)
    )


def _block(block: Any, x: Tensor, temb: Tensor) -> Tensor:
    """ResnetBlock2D.forward. The kernel of the second norm also adds the first convolution's bias and the time."""
    from ifm.networks.kernels import group_norm_silu

    h = F.conv2d(group_norm_silu(x, block.norm1), block.conv1.weight, padding=block.conv1.padding)
    shift = block.time_emb_proj(F.silu(temb)) + block.conv1.bias
    h = block.conv2(block.dropout(group_norm_silu(h, block.norm2, shift=shift)))
    return (x if block.conv_shortcut is None else block.conv_shortcut(x)) + h


def _norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    from ifm.networks.kernels import group_norm_silu

    return group_norm_silu(x, norm, silu=False)


def _check(device: torch.device) -> str:
    """What is wrong with the kernels on this device: "" if nothing, on a small example, forward and backward."""
    from ifm.networks.kernels import group_norm_silu

    generator = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(8, 32)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(32, generator=generator))
        norm.bias.copy_(torch.randn(32, generator=generator))
    norm = norm.to(device)
    x, upstream = torch.randn(2, 4, 32, 6, 6, generator=generator).to(device)
    shift = torch.randn(4, 32, generator=generator).to(device)
    layout = {"memory_format": torch.channels_last, "dtype": torch.bfloat16}

    def plain(x: Tensor, shift: Tensor) -> Tensor:
        return F.silu(norm(x + shift[:, :, None, None]))

    with torch.autocast(device.type, enabled=False), torch.enable_grad():
        found = []
        for work, given in ((plain, x), (lambda x, s: group_norm_silu(x, norm, shift=s), x.to(**layout))):
            inputs = [given.detach().requires_grad_(), shift.detach().requires_grad_()]
            y = work(*inputs)
            grads = torch.autograd.grad(y, [*inputs, norm.weight, norm.bias], upstream.to(y.dtype))
            found.append([y.float(), *(grad.float() for grad in grads)])
    for want, got in zip(*found, strict=True):
        error = float((got - want).detach().norm() / want.detach().norm())
        if not error < CLOSE:
            return f"relative error {error:.2g}"
    return ""
