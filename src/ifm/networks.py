"""The network F inside the preconditioning. It knows no dynamics: scaled input and c_noise in, F_x out."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifm.mlp import MLP, is_mlp, load_mlp, save_mlp
from ifm.mlp import WEIGHTS as MLP_WEIGHTS

# diffusers embeds a "timestep" with periods from 2 pi to 2 pi 10^4. c_noise spans about 1 (rf) to 2.7 (ve), so this
# puts neighbouring noise levels a visible phase apart, without the 1000 that makes the network stiff in t.
TIME_SCALE = 100.0
UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' own name
INPUT_WEIGHTS = ("conv_in.weight", "inputs.weight")  # of U-Net and MLP: [C_out, C_in, ...]


class UNet(nn.Module):
    """diffusers' UNet2DModel as F: (inputs [B, C_in, H, W], c_noise [B]) -> F_x [B, C_out, H, W]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, c_noise: Tensor) -> Tensor:
        return self.model(inputs, TIME_SCALE * c_noise, return_dict=False)[0]


def build_unet(
    *,
    image_size: int,
    in_channels: int,
    out_channels: int,
    channels: list[int],
    layers_per_block: int,
    attention: list[bool],
    dropout: float,
    norm_groups: int,
) -> UNet:
    """A U-Net with one resolution per entry of `channels`, halving from `image_size`; `attention` per resolution."""
    from diffusers import UNet2DModel

    down = ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention]
    up = ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)]
    return UNet(
        UNet2DModel(
            sample_size=image_size,
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            norm_num_groups=norm_groups,
            dropout=dropout,
            add_attention=any(attention),
        )
    )


def save_unet(network: UNet, folder: Path) -> None:
    """Writes diffusers' own folder (config.json and safetensors), readable by ``UNet2DModel.from_pretrained``."""
    network.model.save_pretrained(folder, safe_serialization=True)


def load_unet(folder: Path) -> UNet:
    """Reads what `save_unet` wrote; only safetensors weights are accepted.

    Raises FileNotFoundError where the folder is missing (``from_pretrained`` would ask the hub for it).
    """
    from diffusers import UNet2DModel

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json there, so no saved U-Net")
    return UNet(
        UNet2DModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    )


def build_network(
    *, kind: str, shape: tuple[int, ...], takes_anchor: bool, mlp: dict[str, Any], **unet: Any
) -> nn.Module:
    """F for data of one shape, (C, S, S) for `unet`, (d,) for `mlp`; an anchor doubles the inputs. As params.yaml."""
    inputs = 2 * shape[0] if takes_anchor else shape[0]
    if kind == "mlp":
        return MLP(in_features=inputs, out_features=shape[0], **mlp)
    return build_unet(image_size=shape[1], in_channels=inputs, out_channels=shape[0], **unet)


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
    that the anchor is heard (and its gradient flows) from the first step.
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
            left.append(name)
    return left


def _body(network: nn.Module) -> nn.Module:
    """Where the weights are: inside the U-Net's wrapper, in the MLP itself."""
    return network.model if isinstance(network, UNet) else network
