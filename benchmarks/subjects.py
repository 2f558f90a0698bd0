"""What is measured: the presets' networks on random images, never trained weights or real data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ifm import dynamics
from ifm.conditions.base import ConditionKind
from ifm.config import Config, parse
from ifm.dynamics.base import Dynamics
from ifm.hardware.processes import make_accelerator
from ifm.model import IntegrationFlow, Teacher
from ifm.networks import build_network
from ifm.networks.asking import prepare
from pipeline.tools.preset import apply, parse_yaml

ROOT = Path(__file__).parents[1]
IMAGES = 1437  # of the digits' train split


@dataclass(frozen=True)
class Options:
    """What a benchmark is told."""

    device: torch.device
    rounds: int
    quick: bool
    edm: Path | None = None

    @property
    def precision(self) -> str:
        return "bf16" if self.device.type == "cuda" else "no"

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products in training."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def accelerator(self) -> Accelerator:
        return make_accelerator(self.precision, seed=0)


@dataclass(frozen=True)
class Subject:
    """A preset's networks for the first dynamics (ve), and how much to do in a round."""

    name: str
    config: Config
    batch_size: int
    steps: int  # of training in a round

    @property
    def shape(self) -> tuple[int, int, int]:
        data = self.config.data
        return data.channels, data.image_size, data.image_size

    def images(self) -> np.ndarray:
        """uint8 [IMAGES, C, S, S]."""
        return np.random.default_rng(0).integers(0, 256, (IMAGES, *self.shape), dtype=np.uint8)

    def teacher(self) -> Teacher:
        return Teacher(self._network(takes_anchor=False), self._dynamics())

    def flow(self, *, takes_anchor: bool = True, condition: ConditionKind | None = None) -> IntegrationFlow:
        network = self._network(takes_anchor=takes_anchor, condition=condition)
        return IntegrationFlow(network, self._dynamics(), scheme="edm", takes_anchor=takes_anchor)

    def _network(self, *, takes_anchor: bool, condition: ConditionKind | None = None) -> torch.nn.Module:
        torch.manual_seed(0)
        options = self.config.network.model_dump()
        return build_network(shape=self.shape, takes_anchor=takes_anchor, condition=condition, **options)

    def _dynamics(self) -> Dynamics:
        return dynamics.of_params("ve", self.config.ode)


def placed(model: torch.nn.Module, options: Options, precision: str, *, recorded: bool = False) -> torch.nn.Module:
    """The model on the device as the stages have it there: layout, precision, kernels; recorded: recordings too."""
    model = model.to(options.device, memory_format=torch.channels_last).eval()
    return prepare(model, precision, recorded=recorded)


def preset(name: str) -> Config:
    """A preset's values, whatever params.yaml holds at the moment."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    return parse(parse_yaml(apply(name, text)), source=f"preset {name}")


def digits(options: Options) -> Subject:
    """The default's network: 0.6 million parameters, 8x8."""
    config = preset("digits")
    return Subject("digits", config, config.teacher.batch_size, steps=2 if options.quick else 6)


def subjects(options: Options) -> list[Subject]:
    """The digits' network; on a GPU also the cifar10 preset's, of the literature's size, at 32x32."""
    found = [digits(options)]
    if options.device.type == "cuda":
        found.append(Subject("cifar10", preset("cifar10"), 128, steps=2 if options.quick else 20))
    return found
