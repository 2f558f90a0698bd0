"""What a network F is: scaled input and c_noise in, F_x out. It knows no dynamics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ifm import conditions
from ifm.conditions.base import Condition, ConditionKind
from ifm.files import read_json

CONFIG = "config.json"


class Network(nn.Module, ABC):
    """F: (inputs [B, C_in, ...], c_noise [B]) -> F_x [B, C_out, ...].

    Further arguments where the network was built for them: `x_anchor` [B, C, ...] (by cross-attention; otherwise it
    comes as further inputs), `c_end` [B], an interval's end (`two_times`), `condition`, of the kind `condition_kind`.
    """

    class_names: ClassVar[tuple[str, ...]]  # `_class_name` in the config.json of folders that `load` reads
    first_layer: ClassVar[str]  # the weight [C_out, C_in, ...] that grows where an anchor's inputs are added
    two_times: bool
    condition_kind: ConditionKind | None
    computes_in: torch.dtype | None = None  # see `compute_in`; None: its inputs' dtype, or autocast's

    @classmethod
    @abstractmethod
    def build(
        cls,
        *,
        shape: tuple[int, ...],
        takes_anchor: bool,
        anchor_input: str,
        two_times: bool,
        condition: ConditionKind | None,
        options: Mapping[str, Any],
    ) -> Self:
        """A network with new weights for data of `shape`; options: its part of params.yaml's `network`.

        Raises ValueError for what it cannot do.
        """

    @property
    @abstractmethod
    def data_shape(self) -> tuple[int, ...]:
        """Of one sample of the data: (C, S, S) of images, (d,) of points."""

    @abstractmethod
    def save(self, folder: Path) -> list[Path]:
        """Writes config.json and safetensors, no pickle; returns the weights' files."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote. Raises FileNotFoundError or ValueError that names the folder."""

    def compute_in(self, dtype: torch.dtype) -> None:
        """Takes parameters and inputs to a dtype, in place, for evaluation alone; times and fixed features stay."""
        for p in self.parameters():
            p.data = p.data.to(dtype)
        self.computes_in = dtype

    def cast(self, x: Tensor) -> Tensor:
        """An input as the network computes with it."""
        return x if self.computes_in is None else x.to(self.computes_in)

    def check(self, *, c_end: Tensor | None, condition: Condition | None) -> None:
        """Raises ValueError where a second time or a condition is missing or not wanted."""
        if (c_end is not None) != self.two_times:
            raise ValueError(f"this network takes {'two times' if self.two_times else 'one time'}")
        if (condition is not None) != (self.condition_kind is not None):
            kind = self.condition_kind
            raise ValueError("this network takes no condition" if kind is None else f"this network needs a {kind.name}")

    @torch.no_grad()
    def start_from(self, source: nn.Module) -> list[str]:
        """Takes the weights of `source` where the shapes allow; returns the names that it could not take.

        Where the first layer has more input channels (the anchor's), the shared ones are copied and the new ones keep a
        tenth of their initial scale: small, so that the start is the source's function, but not zero, so that the
        anchor is heard (and its gradient flows) from the first step. The same holds for what cross-attention adds to
        its block (`proj_out`), where the source has no such attention.
        """
        left, given = [], source.state_dict()
        for name, weight in self.state_dict().items():
            found = given.get(name)
            if found is not None and found.shape == weight.shape:
                weight.copy_(found)
            elif name == self.first_layer and found is not None and found.shape[1] < weight.shape[1]:
                weight.mul_(0.1)
                weight[:, : found.shape[1]] = found
            else:
                if name.endswith(("proj_out.weight", "proj_out.bias")):
                    weight.mul_(0.1)
                left.append(name)
        return left


def in_single(network: "Network") -> "Network":
    """Half-precision weights as float32, in place: files hold them so to be small, and networks compute in float32."""
    halves = (torch.float16, torch.bfloat16)
    return network._apply(lambda x: x.float() if x.dtype in halves else x)


def described(kind: ConditionKind | None) -> dict[str, Any] | None:
    """A kind of conditions as a network's config keeps it."""
    return None if kind is None else kind.describe()


def kind_of(found: Any) -> ConditionKind | None:
    """The inverse of `described`. Raises ValueError."""
    if not isinstance(found, dict | None):
        raise ValueError(f"condition must be an object of JSON or null, got {type(found).__name__}")
    return conditions.build(found)


def check_weights(file: Path, build: Callable[[], nn.Module], *, counts: Iterable[Any]) -> None:
    """Raises ValueError where a file's tensors are not those of the network, before memory is taken for either.

    Its config.json may ask for terabytes, and diffusers fills weights that a file does not hold with random ones.
    counts: how many layers the config asks for, place by place; each has a tensor at least.
    """
    with safe_open(file, framework="pt") as weights:
        stored = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    for count in counts:
        if not isinstance(count, int) or not 0 <= count <= len(stored):
            raise ValueError(f"{CONFIG} asks for {count!r} layers, {file.name} holds {len(stored)} tensors")
    with torch.device("meta"):
        wanted = {name: tuple(weight.shape) for name, weight in build().state_dict().items()}
    if stored != wanted:
        name = min(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
        shapes = [list(x[name]) if name in x else "nothing" for x in (stored, wanted)]
        raise ValueError(f"{file.name} holds {shapes[0]} as {name}, {CONFIG} asks for {shapes[1]}")


def read_config(folder: Path) -> dict[str, Any]:
    """A network's config.json. Raises FileNotFoundError, or ValueError where it is no object of JSON."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no {CONFIG} there, so no saved network")
    found = read_json(folder / CONFIG)
    if not isinstance(found, dict):
        raise ValueError(f"{folder / CONFIG}: must be an object of JSON, got {type(found).__name__}")
    return found
