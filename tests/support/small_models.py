"""Small flows with random weights, of every kind that there is."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ifm import dynamics
from ifm.conditions.classes import Classes
from ifm.modalities.alphabet import Alphabet
from ifm.modalities.spectrograms import Normalised, Spectrograms
from ifm.model import build_flow
from ifm.networks import build_network
from ifm.random import Streams
from ifm.use.models import IntegrationFlow, Teacher, usable

KINDS: dict[str, dict[str, Any]] = {
    "ve": {},
    "ve-paper": {"scheme": "paper"},
    "rf": {"name": "rf"},
    "rf-paper-none": {"name": "rf", "scheme": "paper", "takes_anchor": False},
    "pfgmpp-cross": {"name": "pfgmpp", "anchor_input": "cross_attention", "shape": (3, 16, 16)},
    "ve-interval": {"two_times": True},
    "rf-interval-cross": {"name": "rf", "two_times": True, "anchor_input": "cross_attention"},
    "vp": {"name": "vp"},
    "vp-cosine": {"name": "vp", "options": {"schedule": "cosine"}},
    "trig-classes": {"name": "trig", "condition": Classes(classes=["a", "b", "c"], shares=[0.2, 0.3, 0.5])},
    "ve-scale": {"condition": Classes(classes=["a", "b"], shares=[0.5, 0.5], drops=True, scale=[0.5, 4.0])},
    "rf-interval-scale-cross": {
        "name": "rf",
        "two_times": True,
        "anchor_input": "cross_attention",
        "condition": Classes(classes=["a", "b", "c"], shares=[0.2, 0.3, 0.5], scale=[2.0, 4.0]),
    },
    "trig-interval": {"name": "trig", "two_times": True},
    "pfgmpp-interval-none": {"name": "pfgmpp", "two_times": True, "takes_anchor": False},
}
NETWORK = {
    "mlp": {"width": 32, "layers": 2},
    "channels": [8, 16],
    "attention": [False, True],
    "layers_per_block": 1,
    "dropout": 0.0,
    "norm_groups": 4,
}


def small_flow(
    *,
    name: str = "ve",
    shape: tuple[int, ...] = (1, 8, 8),
    scheme: str = "edm",
    takes_anchor: bool = True,
    anchor_input: str = "channels",
    two_times: bool = False,
    condition: Classes | None = None,
    options: dict[str, Any] | None = None,
) -> IntegrationFlow:
    kind = "mlp" if len(shape) == 1 else "unet"
    anchor = {"takes_anchor": takes_anchor, "anchor_input": anchor_input}
    torch.manual_seed(0)
    network = build_network(kind=kind, shape=shape, two_times=two_times, condition=condition, **anchor, **NETWORK)
    made = build_flow(
        loud(network), dynamics.build(name, **options or {}), scheme=scheme, two_times=two_times, **anchor
    )
    return usable(made.eval())


def small_teacher(shape: tuple[int, ...] = (1, 8, 8), condition: Classes | None = None) -> Teacher:
    torch.manual_seed(0)
    kind = "mlp" if len(shape) == 1 else "unet"
    network = build_network(kind=kind, shape=shape, takes_anchor=False, condition=condition, **NETWORK)
    return Teacher(loud(network), dynamics.build("ve")).eval()


MEL = Normalised(Spectrograms(8000, 1600, "logmel", 512, 200, 16, 0.5, 8), np.zeros((1, 16)), 1.0)
LETTERS = Alphabet("characters", "bits", "\n abcdef")
RECORDS: dict[str, dict[str, Any]] = {
    "sound": {"image_shape": list(MEL.form.shape), "modality": "sound", "sound": MEL.describe()},
    "text": {"image_shape": [3, 12], "modality": "text", "text": LETTERS.described()},
}


def small_flow_of(modality: str) -> IntegrationFlow:
    """Of sounds or texts; `RECORDS` has what its data are."""
    torch.manual_seed(0)
    how = NETWORK | {"sequence": {"patch": 2, "width": 16, "depth": 1, "heads": 2}}
    kind, shape = ("sequence" if modality == "text" else "unet"), tuple(RECORDS[modality]["image_shape"])
    network = build_network(kind=kind, modality=modality, shape=shape, takes_anchor=False, **how)
    flow = build_flow(loud(network), dynamics.build("rf"), scheme="edm", takes_anchor=False)
    return usable(flow.eval())


def loud(network: nn.Module) -> nn.Module:
    """Weights that make time and anchor count for much, and differ in every layer, biases too."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network


def draws_of(n: int, *, shape: tuple[int, ...] = (1, 8, 8), scale: float = 80.0) -> tuple[Tensor, Tensor]:
    """x_T and x_anchor of n samples."""
    return scale * Streams(7, "prior", range(n)).normal(shape), Streams(7, "anchor", range(n)).normal(shape)
