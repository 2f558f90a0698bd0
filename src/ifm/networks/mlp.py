"""A residual MLP as F, for points: scaled input and c_noise in, F_x out. It knows no dynamics."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ifm.conditions.base import Condition, ConditionKind
from ifm.files import write_json
from ifm.networks.base import CONFIG, Network, check_weights, described, kind_of, read_config

WEIGHTS = "model.safetensors"
INPUT_FREQUENCIES = 3  # of each input coordinate
FOURIER_UP_TO = 16  # dimensions of data


class MLP(Network):
    """(inputs [B, in_features], c_noise [B]) -> F_x [B, out_features]; with `two_times`, c_end [B] too.

    Fourier features of the inputs, a linear layer, `layers` residual blocks h + W_2 silu(W_1 silu(h) + W_t e), a linear
    head. e: sines and cosines of c_noise. c_noise spans about 1 (rf) to 2.7 (ve), so the angular frequencies rise
    from 1 to 2^5: the slowest sees the range as a whole, the fastest tells neighbouring noise levels apart.

    input_frequencies: see `fourier_features`; None: 3 for data of up to 16 dimensions, above 0, the plain inputs. A
    plain MLP learns slow functions first and bridges gaps between modes; waves along the axes mend that in a few
    dimensions. In many, neighbours differ in every coordinate at once, and six waves of each are mostly noise. The
    choice goes by out_features, the data's dimensions: the same for a teacher and a flow with the anchor's inputs.
    """

    class_names = ("MLP",)
    first_layer = "inputs.weight"

    def __init__(
        self,
        *,
        in_features: int,
        out_features: int,
        width: int,
        layers: int,
        frequencies: int = 16,
        two_times: bool = False,
        input_frequencies: int | None = None,
        condition: ConditionKind | None = None,
    ) -> None:
        super().__init__()
        if input_frequencies is None:
            input_frequencies = INPUT_FREQUENCIES if out_features <= FOURIER_UP_TO else 0
        self.options = {
            "in_features": in_features,
            "out_features": out_features,
            "width": width,
            "layers": layers,
            "frequencies": frequencies,
            "two_times": two_times,
            "input_frequencies": input_frequencies,
        }
        self.two_times, self.condition_kind = two_times, condition
        fastest = 1 if two_times else 5  # `interval` differentiates by the angle: see INTERVAL_TIME_SCALE of the U-Net
        self.register_buffer("omega", 2 ** torch.linspace(0, fastest, frequencies), persistent=False)
        self.inputs = nn.Linear(in_features * (1 + 2 * input_frequencies), width)
        embedded = 2 * frequencies * (2 if two_times else 1)
        self.times = nn.ModuleList(nn.Linear(embedded, width) for _ in range(layers))
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, out_features)
        self.condition = None if condition is None else condition.embedding(embedded)
        self._recomputes = False

    def enable_gradient_checkpointing(self) -> None:
        """Has the backward pass compute each block's activations again in place of keeping them."""
        self._recomputes = True

    @classmethod
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
        """options: width, layers."""
        if takes_anchor and anchor_input != "channels":
            raise ValueError(f"anchor input {anchor_input} needs the U-Net; the mlp takes channels")
        inputs = 2 * shape[0] if takes_anchor else shape[0]
        return cls(in_features=inputs, out_features=shape[0], two_times=two_times, condition=condition, **options)

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (self.options["out_features"],)

    def forward(
        self, inputs: Tensor, c_noise: Tensor, c_end: Tensor | None = None, *, condition: Condition | None = None
    ) -> Tensor:
        self.check(c_end=c_end, condition=condition)
        phases = [c.to(self.omega.dtype)[:, None] * self.omega for c in (c_noise, c_end) if c is not None]
        e = torch.cat([wave for phase in phases for wave in (phase.sin(), phase.cos())], dim=1)
        features = self.cast(fourier_features(inputs, self.options["input_frequencies"]))
        e = e.to(features.dtype)
        if condition is not None:
            e = e + self.condition(condition).to(e.dtype)
        h = self.inputs(features)  # [B, width]
        for time, first, second in zip(self.times, self.first, self.second, strict=True):
            if self._recomputes and torch.is_grad_enabled():
                h = checkpoint(_block, h, e, time, first, second, use_reentrant=False)
            else:
                h = _block(h, e, time, first, second)
        return self.head(nn.functional.silu(h))

    def save(self, folder: Path) -> list[Path]:
        save_file({name: w.detach().cpu().contiguous() for name, w in self.state_dict().items()}, folder / WEIGHTS)
        config = {"_class_name": "MLP", **self.options}
        if self.condition_kind is not None:
            config["condition"] = described(self.condition_kind)
        write_json(folder / CONFIG, config)
        return [folder / WEIGHTS]

    @classmethod
    def load(cls, folder: Path) -> Self:
        options = read_config(folder)
        if options.pop("_class_name", None) not in cls.class_names:
            raise ValueError(f"{folder}: holds no MLP")
        options["condition"] = kind_of(options.get("condition"))
        check_weights(folder / WEIGHTS, lambda: cls(**options), counts=[options.get("layers")])
        network = cls(**options)
        network.load_state_dict(load_file(folder / WEIGHTS))
        return network


def _block(h: Tensor, e: Tensor, time: nn.Module, first: nn.Module, second: nn.Module) -> Tensor:
    return (h + second(nn.functional.silu(first(nn.functional.silu(h)) + time(e)))) * math.sqrt(0.5)


def fourier_features(x: Tensor, frequencies: int) -> Tensor:
    """x, sin(w_k x), cos(w_k x) with w_k = pi/2 2^k, k < frequencies (Tancik et al. 2020): [B, n (1 + 2 frequencies)].

    Coordinate by coordinate, all that is of x_1 first, so that the features of further inputs (the anchor's) come
    after those that a network without them has: `Network.start_from` counts on it. c_in x_t is of unit scale,
    within +-4: the slowest wave, of period 4, orders it, the fastest of three, of period 1, tells modes apart.
    """
    if not frequencies:
        return x
    omega = math.pi / 2 * 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)
    phase = x[..., None] * omega  # [B, n, frequencies]
    return torch.cat([x[..., None], phase.sin(), phase.cos()], dim=-1).flatten(1)
