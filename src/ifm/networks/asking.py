"""Networks that are only asked, in sampling and for a teacher's paths: their precision, and what makes them fast."""

import torch
from torch import nn

from ifm.hardware.devices import Compiled, compiles
from ifm.hardware.graphs import Graphed, graphs
from ifm.networks.fused import fuse

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


def prepare(model: nn.Module, precision: str, *, recorded: bool = False) -> nn.Module:
    """The model, in place and for good, as fast as its device has it: `lower`, then compiled or with our kernels.

    recorded: small batches come again and again, so that recordings of them pay.
    """
    for part in getattr(model, "asked", ()):  # of a guided denoiser
        prepare(part, precision, recorded=recorded)
    lower(model, precision)
    network = getattr(model, "network", None)
    if network is None or isinstance(vars(model).get("forward"), Compiled | Graphed):
        return model
    if compiles():
        model.forward = Compiled(model.forward, cuda_graphs=recorded)
        return model
    fuse(network, next(network.parameters()).device, trained=False)
    if recorded and graphs():
        model.forward = Graphed(model, model.forward)
    return model
