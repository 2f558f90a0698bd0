"""The diffusion transformer on sequences: text [C, L] in place of images."""

from typing import Any

from torch import Tensor

from ifm.networks.transformer import Transformer


class SequenceTransformer(Transformer):
    """(inputs [B, C_in, L], c_noise [B]) -> F_x [B, C_out, L]: `Transformer`, whose tokens are `patch` symbols each."""

    class_names = ("SequenceTransformer",)
    axes, size = 1, "length"

    def __init__(self, *, length: int, patch: int, **options: Any) -> None:
        if length % patch:
            raise ValueError(f"patch = {patch} does not divide texts of {length} symbols")
        super().__init__(image_size=length, patch=patch, **options)
        del self.options["image_size"]
        self.options["length"] = length

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.options["out_channels"], self.options["length"]

    def _whole(self, found: Tensor) -> Tensor:
        """[B, C patch, L / patch] -> [B, C, L]."""
        return found.unflatten(1, (-1, self.patch)).transpose(2, 3).flatten(2)
