"""The network F inside the preconditioning. It knows no dynamics: scaled input and c_noise in, F_x out."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifm.files import read_json
from ifm.networks.mlp import MLP, check_weights, is_mlp, load_mlp, save_mlp
from ifm.networks.mlp import WEIGHTS as MLP_WEIGHTS

# diffusers embeds a "timestep" with periods from 2 pi to 2 pi 10^4. c_noise spans about 1 (rf) to 2.7 (ve), so this
# puts neighbouring noise levels a visible phase apart, without the 1000 that makes the network stiff in t.
TIME_SCALE = 100.0
# An angle spans pi/2, and `interval` differentiates by it: at 100 the fastest phase would turn 25 times, and the
# derivative be that much larger than the function.
INTERVAL_TIME_SCALE = 2.0
ANCHOR_GRID = 8  # an anchor is cut into at least this many patches a side
POSITION_FEATURES = 8  # numbers that tell where a patch lies, for each axis
ATTENTION_HEAD = 8  # channels of an attention head, diffusers' UNet2DModel's default
UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' own name
LAYER_COUNTS = ("layers_per_block", "transformer_layers_per_block")  # of diffusers' config.json: a number or a list
INPUT_WEIGHTS = ("conv_in.weight", "inputs.weight")  # of U-Net and MLP: [C_out, C_in, ...]


class UNet(nn.Module):
    """diffusers' UNet2DModel as F: (inputs [B, C_in, H, W], c_noise [B]) -> F_x [B, C_out, H, W].

    With two times (`c_end` [B], an interval's end) the second goes where diffusers takes a class: embedded like the
    first (class_embed_type "timestep") and added to it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, c_noise: Tensor, c_end: Tensor | None = None) -> Tensor:
        return self.model(inputs, return_dict=False, **_times(c_noise, c_end))[0]


def _times(c_noise: Tensor, c_end: Tensor | None) -> dict[str, Tensor]:
    """One time or two, as diffusers' U-Nets take them."""
    if c_end is None:
        return {"timestep": TIME_SCALE * c_noise}
    return {"timestep": INTERVAL_TIME_SCALE * c_noise, "class_labels": INTERVAL_TIME_SCALE * c_end}


def build_unet(*, in_channels: int, out_channels: int, attention: list[bool], **shape: Any) -> UNet:
    """A U-Net with one resolution per entry of `channels`, halving from `image_size`; `attention` per resolution.

    shape: image_size, channels, layers_per_block, dropout, norm_groups, two_times, as `_unet_options` takes them.
    """
    from diffusers import UNet2DModel

    return UNet(
        UNet2DModel(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            add_attention=any(attention),
            **_unet_options(**shape),
        )
    )


def _unet_options(
    *,
    image_size: int,
    channels: list[int],
    layers_per_block: int,
    dropout: float,
    norm_groups: int,
    two_times: bool = False,
) -> dict[str, Any]:
    """What both of diffusers' U-Nets are told alike."""
    options = {
        "sample_size": image_size,
        "block_out_channels": tuple(channels),
        "layers_per_block": layers_per_block,
        "norm_num_groups": norm_groups,
        "dropout": dropout,
    }
    return options | ({"class_embed_type": "timestep"} if two_times else {})


class CrossAttentionUNet(nn.Module):
    """diffusers' UNet2DConditionModel as F: (inputs [B, C_in, H, W], c_noise [B], x_anchor [B, C, H, W]) -> F_x.

    The network attends to the anchor's patches, in the middle block and wherever `attention` asks for it. Patch
    embedding is the model's own linear `encoder_hid_proj`, and the patches' positions are fixed features, so that
    everything trained lies in diffusers' folder.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, c_noise: Tensor, x_anchor: Tensor, c_end: Tensor | None = None) -> Tensor:
        return self.model(
            inputs, encoder_hidden_states=anchor_tokens(x_anchor), return_dict=False, **_times(c_noise, c_end)
        )[0]


def anchor_patch(image_size: int) -> int:
    """Side of an anchor's patch: the largest divisor of image_size that leaves ANCHOR_GRID patches a side, or 1."""
    divisors = [p for p in range(1, image_size + 1) if image_size % p == 0]
    return max(p for p in divisors if p == 1 or image_size // p >= ANCHOR_GRID)


def anchor_tokens(x_anchor: Tensor) -> Tensor:
    """Patches of x_anchor [B, C, S, S] of p x p pixels, and where they lie: [B, (S/p)^2, C p^2 + 2 POSITION_FEATURES].

    Positions are sines and cosines of pi 2^k y and pi 2^k x, with y and x from 0 to 1 over the patches' centres.
    """
    patch = anchor_patch(x_anchor.shape[-1])
    pixels = nn.functional.unfold(x_anchor, patch, stride=patch).transpose(1, 2)  # [B, L, C p^2]
    side = x_anchor.shape[-1] // patch
    centres = (torch.arange(side, device=pixels.device, dtype=torch.float32) + 0.5) / side
    angles = centres[:, None] * math.pi * 2.0 ** torch.arange(POSITION_FEATURES // 2, device=pixels.device)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, POSITION_FEATURES]
    places = torch.cat([waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)], dim=1)  # [L, 2 POSITION_FEATURES]
    return torch.cat([pixels, places.to(pixels.dtype).expand(pixels.shape[0], -1, -1)], dim=2)


def build_cross_attention_unet(
    *,
    image_size: int,
    in_channels: int,
    out_channels: int,
    anchor_channels: int,
    channels: list[int],
    attention: list[bool],
    **shape: Any,
) -> CrossAttentionUNet:
    """`build_unet`'s network with cross-attention to the anchor in place of self-attention, and in the middle."""
    from diffusers import UNet2DConditionModel

    return CrossAttentionUNet(
        UNet2DConditionModel(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            # diffusers takes the NUMBER of heads under this name
            attention_head_dim=tuple(c // ATTENTION_HEAD if c % ATTENTION_HEAD == 0 else 1 for c in channels),
            cross_attention_dim=channels[-1],
            encoder_hid_dim=anchor_channels * anchor_patch(image_size) ** 2 + 2 * POSITION_FEATURES,
            encoder_hid_dim_type="text_proj",
            **_unet_options(image_size=image_size, channels=channels, **shape),
        )
    )


def build_network(
    *,
    kind: str,
    shape: tuple[int, ...],
    takes_anchor: bool,
    anchor_input: str = "channels",
    two_times: bool = False,
    mlp: dict[str, Any],
    **unet: Any,
) -> nn.Module:
    """F for data of one shape, (C, S, S) for `unet`, (d,) for `mlp`; the rest is as params.yaml has it.

    The anchor enters as further inputs (`anchor_input: channels`) or by cross-attention (U-Net alone); `two_times`
    is for intervals.
    """
    if anchor_input not in ANCHOR_INPUTS:
        raise ValueError(f"unknown anchor input {anchor_input!r}; known: {', '.join(ANCHOR_INPUTS)}")
    channels, attends = shape[0], takes_anchor and anchor_input == "cross_attention"
    inputs = 2 * channels if takes_anchor and not attends else channels
    if kind == "mlp":
        if attends:
            raise ValueError("anchor input cross_attention needs the U-Net; the mlp takes channels")
        return MLP(in_features=inputs, out_features=channels, two_times=two_times, **mlp)
    size = {"image_size": shape[1], "in_channels": inputs, "out_channels": channels, "two_times": two_times}
    if attends:
        return build_cross_attention_unet(anchor_channels=channels, **size, **unet)
    return build_unet(**size, **unet)


ANCHOR_INPUTS = ("channels", "cross_attention")


def save_unet(network: UNet | CrossAttentionUNet, folder: Path) -> None:
    """Writes diffusers' own folder (config.json and safetensors), readable by its class's ``from_pretrained``."""
    network.model.save_pretrained(folder, safe_serialization=True)


def load_unet(folder: Path) -> UNet | CrossAttentionUNet:
    """Reads what `save_unet` wrote; only safetensors weights are accepted.

    Raises FileNotFoundError where the folder is missing (``from_pretrained`` would ask the hub for it), ValueError
    where it holds another class of model, or weights that its config.json does not ask for.
    """
    import diffusers

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json there, so no saved U-Net")
    config = read_json(folder / "config.json")
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(name, str) or name not in WRAPPERS:
        raise ValueError(f"{folder}: holds a {name}; known: {', '.join(WRAPPERS)}")
    model = getattr(diffusers, name)
    counts = [config.get(key, 1) for key in LAYER_COUNTS]
    counts = [count for each in counts for count in (each if isinstance(each, list) else [each])]
    check_weights(folder / UNET_WEIGHTS, lambda: model.from_config(config), counts=counts)
    return WRAPPERS[name](
        model.from_pretrained(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    )


WRAPPERS: dict[str, type[nn.Module]] = {"UNet2DModel": UNet, "UNet2DConditionModel": CrossAttentionUNet}


def save_network(network: nn.Module, folder: Path) -> Path:
    """Writes config.json and safetensors, no pickle; returns the weights' file."""
    if isinstance(network, MLP):
        save_mlp(network, folder)
        return folder / MLP_WEIGHTS
    save_unet(network, folder)
    return folder / UNET_WEIGHTS


def load_network(folder: Path) -> nn.Module:
    """Reads what `save_network` wrote. Raises FileNotFoundError where there is nothing."""
    return load_mlp(folder) if is_mlp(folder) else load_unet(folder)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> list[str]:
    """Starts `target` from `source` where the shapes allow; returns the names it could not take.

    Where the target's first layer has more input channels (the anchor's), the shared ones are copied and the
    new ones keep a tenth of their initial scale: small, so that the start is the source's function, but not zero, so
    that the anchor is heard (and its gradient flows) from the first step. The same holds for what cross-attention
    adds to its block (`proj_out`), where the source has no such attention.
    """
    left, taken = [], _body(source).state_dict()
    for name, weight in _body(target).state_dict().items():
        given = taken.get(name)
        if given is not None and given.shape == weight.shape:
            weight.copy_(given)
        elif name in INPUT_WEIGHTS and given is not None and given.shape[1] < weight.shape[1]:
            weight.mul_(0.1)
            weight[:, : given.shape[1]] = given
        else:
            if name.endswith(("proj_out.weight", "proj_out.bias")):
                weight.mul_(0.1)
            left.append(name)
    return left


def _body(network: nn.Module) -> nn.Module:
    """Where the weights are: inside a U-Net's wrapper, in the MLP itself."""
    return network if isinstance(network, MLP) else network.model
