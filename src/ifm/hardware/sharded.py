"""FSDP2: weights, average and optimizer state split over the processes, and whole again in files.

Split tensors are torch's DTensors. `whole` and `like` return plain tensors unchanged.
"""

import copy
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from ifm.hardware.devices import is_sharded

T = TypeVar("T")


def shards(accelerator: Accelerator) -> bool:
    """Whether models are split over the processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def to_split(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """A copy of the model, which `accelerator.prepare` splits in place. The model itself stays whole.

    Under bf16 the blocks' weights are gathered in bfloat16 and gradients are summed in float32. The computation around
    the network (preconditioning) stays in float32 as under DDP: inputs are cast by autocast, not here. A model that is
    differentiated by differences keeps float32 weights, as they need, and autocast casts these too.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    low = (
        torch.bfloat16
        if accelerator.mixed_precision == "bf16" and not getattr(model, "differentiated", False)
        else None
    )
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    split = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # FSDP2 splits no channels_last weights
    # Autocast would go on with casts of float32 weights that a call without gradient made, and they have none.
    split.register_forward_pre_hook(lambda *_: torch.clear_autocast_cache())
    return split


@torch.no_grad()
def share_average(accelerator: Accelerator, average: nn.Module, model: nn.Module, shadow: list[Tensor]) -> list[Tensor]:
    """Splits `average` as `model` is split. Returns its parameters, which take the averages' values and place."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    fsdp2_prepare_model(accelerator, average.to(memory_format=torch.contiguous_format))
    # The root would keep the weights that it gathered until a backward pass, which never comes: they would be stale.
    average.set_reshard_after_forward(True)
    trained = [p.requires_grad for p in model.parameters()]
    own = [p for p, is_trained in zip(average.parameters(), trained, strict=True) if is_trained]
    for p, mean in zip(own, shadow, strict=True):
        p.copy_(mean)
    return own


def asked(model: nn.Module, bare: T) -> nn.Module | T:
    """The model used for no-gradient forward passes: the unwrapped model if it is whole, or the split model itself."""
    return model if is_sharded(model) else bare


def method_of(split: nn.Module, name: str) -> Callable[..., Tensor]:
    """A method of a split model that gathers its weights as a call does. Collective. The method itself stays."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    gathering = f"gathering_{name}"
    if gathering not in vars(split):
        setattr(split, gathering, getattr(split, name))
        register_fsdp_forward_method(split, gathering)
    return getattr(split, gathering)


def is_split(x: Tensor) -> bool:
    """Whether a tensor is a DTensor. Its module takes half a second to import; before the import there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def whole(x: Tensor) -> Tensor:
    """A split tensor gathered in every process. Collective."""
    return x.full_tensor() if is_split(x) else x


def like(x: Tensor, split: Tensor) -> Tensor:
    """This process's part of a whole tensor, split as another one is. Not collective: every process has the whole."""
    if not is_split(split):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(split.device), split.device_mesh, split.placements, src_data_rank=None)


def collect(tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gathers split tensors one by one, on the host of processes that keep them; {} elsewhere. Collective."""
    kept = {}
    for name, x in tensors.items():
        gathered = whole(x)
        if keep:
            kept[name] = gathered.cpu() if is_split(x) else x
    return kept


@torch.no_grad()
def copy_whole(split: nn.Module, model: nn.Module) -> None:
    """Copies a split model's weights into the whole one, in every process. Collective."""
    own = model.state_dict()
    for name, x in split.state_dict().items():
        own[name].copy_(whole(x))
