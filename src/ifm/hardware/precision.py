"""The precision of networks that are only asked: sampling and a teacher's paths. Training has autocast."""

import torch
from torch import nn

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def lower(model: nn.Module, precision: str) -> nn.Module:
    """The model with its network in bf16 or fp16, in place, and float32 around it; as it is for "no".

    Scaled inputs are rounded where they enter the network, F_x where it leaves; times, preconditioning and solver stay
    in float32. A model without a network (the exact teacher) stays as it is, and fp16 on a CPU too, with a notice.
    """
    network = getattr(model, "network", None)
    if precision == "no" or network is None:
        return model
    if precision == "fp16" and next(network.parameters()).device.type == "cpu":
        print("fp16 needs a GPU: sampling in float32", flush=True)
        return model
    network.compute_in(DTYPES[precision])
    return model
