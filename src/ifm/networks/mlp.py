"""A residual MLP as F, for points: scaled input and c_noise in, F_x out. It knows no dynamics."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ifm.files import read_json, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "MLP"  # config.json's _class_name, as diffusers writes its own
INPUT_FREQUENCIES = 3  # of each input coordinate
FOURIER_UP_TO = 16  # dimensions of data


class MLP(nn.Module):
    """(inputs [B, in_features], c_noise [B]) -> F_x [B, out_features]; with `two_times`, c_end [B] too.

    Fourier features of the inputs, a linear layer, `layers` residual blocks h + W_2 silu(W_1 silu(h) + W_t e), a linear
    head. e: sines and cosines of c_noise. c_noise spans about 1 (rf) to 2.7 (ve), so the angular frequencies rise
    from 1 to 2^5: the slowest sees the range as a whole, the fastest tells neighbouring noise levels apart.

    input_frequencies: see `fourier_features`; None: 3 for data of up to 16 dimensions, above 0, the plain inputs. A
    plain MLP learns slow functions first and bridges gaps between modes; waves along the axes mend that in a few
    dimensions. In many, neighbours differ in every coordinate at once, and six waves of each are mostly noise. The
    choice goes by out_features, the data's dimensions: the same for a teacher and a flow with the anchor's inputs.
    """

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
        fastest = 1 if two_times else 5  # `interval` differentiates by the angle: see ifm.networks.INTERVAL_TIME_SCALE
        self.register_buffer("omega", 2 ** torch.linspace(0, fastest, frequencies), persistent=False)
        self.inputs = nn.Linear(in_features * (1 + 2 * input_frequencies), width)
        embedded = 2 * frequencies * (2 if two_times else 1)
        self.times = nn.ModuleList(nn.Linear(embedded, width) for _ in range(layers))
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, out_features)
        self._recomputes = False

    def enable_gradient_checkpointing(self) -> None:
        """Has the backward pass compute each block's activations again in place of keeping them."""
        self._recomputes = True

    def forward(self, inputs: Tensor, c_noise: Tensor, c_end: Tensor | None = None) -> Tensor:
        phases = [c.to(self.omega.dtype)[:, None] * self.omega for c in (c_noise, c_end) if c is not None]
        e = torch.cat([wave for phase in phases for wave in (phase.sin(), phase.cos())], dim=1).to(inputs.dtype)
        h = self.inputs(fourier_features(inputs, self.options["input_frequencies"]))  # [B, width]
        for time, first, second in zip(self.times, self.first, self.second, strict=True):
            if self._recomputes and torch.is_grad_enabled():
                h = checkpoint(_block, h, e, time, first, second, use_reentrant=False)
            else:
                h = _block(h, e, time, first, second)
        return self.head(nn.functional.silu(h))


def _block(h: Tensor, e: Tensor, time: nn.Module, first: nn.Module, second: nn.Module) -> Tensor:
    return (h + second(nn.functional.silu(first(nn.functional.silu(h)) + time(e)))) * math.sqrt(0.5)


def fourier_features(x: Tensor, frequencies: int) -> Tensor:
    """x, sin(w_k x), cos(w_k x) with w_k = pi/2 2^k, k < frequencies (Tancik et al. 2020): [B, n (1 + 2 frequencies)].

    Coordinate by coordinate, all that is of x_1 first, so that the features of further inputs (the anchor's) come
    after those that a network without them has: `ifm.networks.copy_weights` counts on it. c_in x_t is of unit scale,
    within +-4: the slowest wave, of period 4, orders it, the fastest of three, of period 1, tells modes apart.
    """
    if not frequencies:
        return x
    omega = math.pi / 2 * 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)
    phase = x[..., None] * omega  # [B, n, frequencies]
    return torch.cat([x[..., None], phase.sin(), phase.cos()], dim=-1).flatten(1)


def save_mlp(network: MLP, folder: Path) -> None:
    """Writes config.json and model.safetensors."""
    save_file({name: w.detach().cpu().contiguous() for name, w in network.state_dict().items()}, folder / WEIGHTS)
    write_json(folder / CONFIG, {"_class_name": KIND, **network.options})


def is_mlp(folder: Path) -> bool:
    """Whether the folder's config.json is `save_mlp`'s. Raises FileNotFoundError where there is none."""
    return _config(folder).get("_class_name") == KIND


def load_mlp(folder: Path) -> MLP:
    """Reads what `save_mlp` wrote. Raises FileNotFoundError or ValueError that names the folder."""
    options = _config(folder)
    if options.pop("_class_name", None) != KIND:
        raise ValueError(f"{folder}: holds no MLP")
    check_weights(folder / WEIGHTS, lambda: MLP(**options), counts=[options.get("layers")])
    network = MLP(**options)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network


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


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no {CONFIG} there, so no saved network")
    found = read_json(folder / CONFIG)
    if not isinstance(found, dict):
        raise ValueError(f"{folder / CONFIG}: must be an object of JSON, got {type(found).__name__}")
    return found
