"""A diffusion transformer as F, for images and spectrograms: scaled input and c_noise in, F_x out; no dynamics."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ifm.conditions.base import Condition, ConditionKind
from ifm.files import write_json
from ifm.networks.base import CONFIG, Network, check_weights, described, kind_of, read_config
from ifm.networks.unet import INTERVAL_TIME_SCALE, TIME_SCALE

WEIGHTS = "model.safetensors"
LONGEST = 1e4  # periods of times and places go from 2 pi to 2 pi times this, as in DiT and diffusers
FREQUENCIES = 64  # of a time
MLP_RATIO = 4
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}  # by axes


class Transformer(Network):
    """(inputs [B, C_in, H, W], c_noise [B]) -> F_x [B, C_out, H, W]; with `two_times`, c_end [B] too.

    DiT (Peebles and Xie 2023): patches of patch x patch pixels are tokens, with fixed waves for their places. Times and
    condition shift, scale and gate each block (adaLN-zero), so that F_x is 0 at first. Norms are root mean squares,
    of queries and keys too (Dehghani et al. 2023).
    """

    class_names = ("Transformer",)
    first_layer = "patches.weight"
    axes: ClassVar[int] = 2  # along which patches lie
    size: ClassVar[str] = "image_size"  # the option that says how long they are

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        image_size: int | Sequence[int],
        patch: int,
        width: int,
        depth: int,
        heads: int,
        two_times: bool = False,
        condition: ConditionKind | None = None,
    ) -> None:
        """image_size: H and W in pixels, or one number for both. Raises ValueError."""
        super().__init__()
        sides = [image_size] * self.axes if isinstance(image_size, int) else [int(side) for side in image_size]
        if any(side % patch for side in sides):
            raise ValueError(f"patch = {patch} does not divide images of {' x '.join(map(str, sides))} pixels")
        self.patches_along = tuple(side // patch for side in sides)
        self.options = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "image_size": sides[0] if len(set(sides)) == 1 else sides,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "two_times": two_times,
        }
        self.two_times, self.condition_kind, self.patch = two_times, condition, patch
        scale = INTERVAL_TIME_SCALE if two_times else TIME_SCALE
        self.register_buffer("omega", scale * frequencies(FREQUENCIES), persistent=False)
        self.register_buffer("places", places(self.patches_along, width), persistent=False)
        self.patches = CONVOLUTIONS[self.axes](in_channels, width, patch, stride=patch)
        self.time = TimeEmbedding(width)
        self.end_time = TimeEmbedding(width) if two_times else None
        self.condition = None if condition is None else condition.embedding(width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.last_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, out_channels * patch**self.axes)
        for layer in (self.last_modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
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
        """options: patch, width, depth, heads."""
        if takes_anchor and anchor_input != "channels":
            raise ValueError(f"anchor input {anchor_input} needs the U-Net; the transformer takes channels")
        channels = shape[0]
        return cls(
            in_channels=2 * channels if takes_anchor else channels,
            out_channels=channels,
            **{cls.size: shape[1] if cls.axes == 1 else list(shape[1:])},
            two_times=two_times,
            condition=condition,
            **options,
        )

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (self.options["out_channels"], *(self.patch * side for side in self.patches_along))

    def forward(
        self, inputs: Tensor, c_noise: Tensor, c_end: Tensor | None = None, *, condition: Condition | None = None
    ) -> Tensor:
        self.check(c_end=c_end, condition=condition)
        h = self.patches(self.cast(inputs)).flatten(2).transpose(1, 2)  # [B, L, width]
        h = h + self.places.to(h.dtype)
        e = self.time(self._waves(c_noise, h.dtype))  # [B, width]
        if self.end_time is not None and c_end is not None:
            e = e + self.end_time(self._waves(c_end, h.dtype))
        if condition is not None:
            e = e + self.condition(condition).to(e.dtype)
        e = F.silu(e)
        for block in self.blocks:
            if self._recomputes and torch.is_grad_enabled():
                h = checkpoint(block, h, e, use_reentrant=False)
            else:
                h = block(h, e)
        shift, scale = self.last_modulation(e)[:, None].chunk(2, dim=-1)
        return self._whole(self.head(modulated(h, shift, scale)).transpose(1, 2))

    def _whole(self, found: Tensor) -> Tensor:
        """[B, C patch^2, L] -> [B, C, H, W]."""
        return F.pixel_shuffle(found.reshape(*found.shape[:2], *self.patches_along), self.patch)

    def _waves(self, c: Tensor, dtype: torch.dtype) -> Tensor:
        """Sines and cosines of a time, found in float32 at least: [B, 2 FREQUENCIES]."""
        phase = c.to(self.omega.dtype)[:, None] * self.omega
        return torch.cat([phase.sin(), phase.cos()], dim=1).to(dtype)

    def save(self, folder: Path) -> list[Path]:
        save_file({name: w.detach().cpu().contiguous() for name, w in self.state_dict().items()}, folder / WEIGHTS)
        config = {"_class_name": self.class_names[0], **self.options}
        if self.condition_kind is not None:
            config["condition"] = described(self.condition_kind)
        write_json(folder / CONFIG, config)
        return [folder / WEIGHTS]

    @classmethod
    def load(cls, folder: Path) -> Self:
        options = read_config(folder)
        if options.pop("_class_name", None) not in cls.class_names:
            raise ValueError(f"{folder}: holds no transformer")
        options["condition"] = kind_of(options.get("condition"))
        check_weights(folder / WEIGHTS, lambda: cls(**options), counts=[options.get("depth")])
        network = cls(**options)
        network.load_state_dict(load_file(folder / WEIGHTS))
        return network


class TimeEmbedding(nn.Module):
    """Two layers on a time's waves: [B, 2 FREQUENCIES] -> [B, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2 * FREQUENCIES, width), nn.Linear(width, width)

    def forward(self, waves: Tensor) -> Tensor:
        return self.second(F.silu(self.first(waves)))


class TransformerBlock(nn.Module):
    """Attention and an MLP, each added to h [B, L, width] through a gate of e [B, width] that is 0 at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query_scale, self.key_scale = (nn.Parameter(torch.ones(width // heads)) for _ in range(2))
        self.first, self.second = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(e)[:, None].chunk(6, dim=-1)
        h = h + gate * self._attention(modulated(h, shift, scale))
        return h + gate_2 * self.second(F.gelu(self.first(modulated(h, shift_2, scale_2)), approximate="tanh"))

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # 3 of [B, heads, L, width/heads]
        q, k = (normed(each) * scale for each, scale in ((q, self.query_scale), (k, self.key_scale)))
        found = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.mix(found.transpose(1, 2).flatten(2))


def normed(x: Tensor) -> Tensor:
    """x over its root mean square along the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6).to(x.dtype)


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The norm of h [B, L, width], scaled and shifted; shift, scale: [B, 1, width]."""
    return normed(h) * (1 + scale) + shift


def frequencies(count: int) -> Tensor:
    """From 1 down to 1 / LONGEST, evenly in the logarithm: float32 [count]."""
    return torch.exp(-math.log(LONGEST) * torch.arange(count, dtype=torch.float32) / count)


def places(sides: Sequence[int], width: int) -> Tensor:
    """Waves of each patch's row and column, row by row, or of its place in a row: float32 [patches, width]."""
    waves = []
    for side in sides:
        angles = torch.arange(side, dtype=torch.float32)[:, None] * frequencies(width // (2 * len(sides)))
        waves.append(torch.cat([angles.sin(), angles.cos()], dim=1))  # [side, width / axes]
    if len(sides) == 1:
        return waves[0]
    rows, columns = waves
    return torch.cat([rows.repeat_interleave(len(columns), dim=0), columns.repeat(len(rows), 1)], dim=1)
