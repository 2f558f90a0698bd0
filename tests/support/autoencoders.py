"""Small autoencoders in the form that the Hub has them: random ones, and one that is exact on images of blocks."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny

from ifm.config import DataConfig, read_params

ROOT = Path(__file__).parents[2]

KL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 2,
    "norm_num_groups": 4,
    "scaling_factor": 0.7,
    "shift_factor": 0.1,
}


def config(**changes: Any) -> DataConfig:
    """The digits, 60 of each split."""
    return DataConfig(**(read_params(ROOT / "params.yaml")["data"] | {"max_images": 60} | changes))


def small_kl(folder: Path, *, channels: int = 1, seed: int = 0, **changes: Any) -> AutoencoderKL:
    """Random weights; saved in `folder`."""
    torch.manual_seed(seed)
    made = AutoencoderKL(in_channels=channels, out_channels=channels, **KL | changes).eval()
    made.save_pretrained(folder)
    return made


def small_dc(folder: Path, *, channels: int = 1, seed: int = 0) -> AutoencoderDC:
    """SANA's kind with random weights: attention at the smaller of two resolutions; saved in `folder`."""
    torch.manual_seed(seed)
    made = AutoencoderDC(
        in_channels=channels, latent_channels=4, attention_head_dim=4, scaling_factor=0.4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
    ).eval()  # fmt: skip
    made.save_pretrained(folder)
    return made


def exact_tiny(folder: Path, *, channels: int = 1, levels: int = 2) -> AutoencoderTiny:
    """Exact on images of blocks of 2^(levels - 1) equal pixels: z = u / 100 for u = (x + 1) / 2, and back.

    Its blocks add nothing, ReLU keeps u, which is not negative, each halving takes every second pixel, each doubling
    repeats them. The decoder's tanh(z / 3) 3 is z up to z^3 / 27; scaling_factor 100 gives a model u itself.
    """
    width = (4,) * levels
    how = {"encoder_block_out_channels": width, "decoder_block_out_channels": width}
    how |= {"num_encoder_blocks": (1,) * levels, "num_decoder_blocks": (1,) * levels, "scaling_factor": 100.0}
    made = AutoencoderTiny(in_channels=channels, out_channels=channels, latent_channels=channels, **how).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        for half, last in ((made.encoder, 0.01), (made.decoder, 1.0)):
            convs = [layer for layer in half.layers if isinstance(layer, torch.nn.Conv2d)]
            for conv in convs:
                for c in range(channels):
                    conv.weight[c, c, 1, 1] = 1.0
            convs[-1].weight.mul_(last)
        first = next(layer for layer in made.decoder.layers if isinstance(layer, torch.nn.Conv2d))
        first.weight.mul_(100.0)
        for name, module in made.named_modules():
            if type(module).__name__ == "AutoencoderTinyBlock" and isinstance(module.skip, torch.nn.Conv2d):
                raise AssertionError(name)
    made.save_pretrained(folder)
    return made
