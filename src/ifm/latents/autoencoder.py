"""An autoencoder of diffusers around a model of latents: images to latents' law, and back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifm.diffusers_files import in_one_line, load_model
from ifm.latents import DECODER, Found, find
from ifm.schema import load

PIXELS = 2**19  # at a time: bounds the memory of the activations, 8 images of 256 x 256


class Autoencoder:
    """Not an nn.Module: its weights are no part of the model that it stands around. It goes where its inputs are."""

    def __init__(self, model: torch.nn.Module, found: Found) -> None:
        self.model, self.found = model.eval().requires_grad_(False), found
        self.scale, self.shift = found.scaling

    @classmethod
    def read(cls, found: Found) -> "Autoencoder":
        """Raises UserError for weights that are not the config's."""
        with in_one_line(found.named):
            counts = [found.config.get("layers_per_block", 1)]
            counts = [count for each in counts for count in (each if isinstance(each, list) else [each])]
            return cls(load_model(load(found.kind.model), found.folder, found.config, counts=counts), found)

    @classmethod
    def beside(cls, model: Path) -> "Autoencoder | None":
        """The one in a model's folder; None where there is none. Raises UserError."""
        folder = model / DECODER
        return cls.read(find(folder, named=str(folder))) if folder.is_dir() else None

    def image_shape(self, latents: tuple[int, ...]) -> tuple[int, int, int]:
        """(C, H, W) of the images of latents (c, h, w)."""
        _, height, width = latents
        return self.found.channels, height * self.found.factor, width * self.found.factor

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Tensor:
        """Images [n, C, H, W] in [-1, 1] -> scaled latents [n, 2, c, h, w], mean and deviation; [n, 1, ...] of a point.

        In float32, as many images at a time as PIXELS says.
        """
        return torch.cat([self._encode(part) for part in self._parts(x, x[0, 0].numel())])

    @torch.inference_mode()
    def decode(self, x_0: Tensor) -> Tensor:
        """Scaled latents [n, c, h, w] -> images [n, C, H, W], in [-1, 1] up to the decoder's error."""
        pixels = x_0[0, 0].numel() * self.found.factor**2
        return torch.cat([self.decoded(part) for part in self._parts(x_0.float(), pixels)])

    def decoded(self, x_0: Tensor) -> Tensor:
        """`decode` of one batch, in a graph too."""
        return self._on(x_0).decode(x_0 / self.scale + self.shift, return_dict=False)[0]

    def _encode(self, x: Tensor) -> Tensor:
        found = self._on(x).encode(x.contiguous(), return_dict=False)[0]
        if not self.found.kind.posterior:
            return ((found - self.shift) * self.scale).unsqueeze(1)
        return torch.stack([(found.mean - self.shift) * self.scale, found.std * self.scale], dim=1)

    def _on(self, x: Tensor) -> Any:
        if next(self.model.parameters()).device != x.device:
            self.model.to(x.device)
        return self.model

    @staticmethod
    def _parts(x: Tensor, pixels: int) -> Iterator[Tensor]:
        return iter(x.split(max(1, PIXELS // pixels)))


def decoded(model: Any, x_0: Tensor) -> Tensor:
    """A model's samples as they leave it: of latents the images, all else as it is."""
    decoder = getattr(model, "decoder", None)
    return x_0 if decoder is None else decoder.decode(x_0)


def outside(model: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one sample as it leaves a model whose states have `shape`."""
    decoder = getattr(model, "decoder", None)
    return tuple(shape) if decoder is None else decoder.image_shape(shape)
