"""The diffusion transformer on sequences: text [C, L] in place of images."""

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from ifm.conditions.base import ConditionKind
from ifm.networks.transformer import Transformer


class SequenceTransformer(Transformer):
    """(inputs [B, C_in, L], c_noise [B]) -> F_x [B, C_out, L]: `Transformer`, whose tokens are `patch` symbols each."""

    class_names = ("SequenceTransformer",)
    axes = 1

    def __init__(self, *, length: int, patch: int, **options: Any) -> None:
        if length % patch:
            raise ValueError(f"patch = {patch} does not divide texts of {length} symbols")
        super().__init__(image_size=length, patch=patch, **options)
        del self.options["image_size"]
        self.options["length"] = length

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
            raise ValueError(f"anchor input {anchor_input} needs the U-Net; the sequence transformer takes channels")
        channels, length = shape
        inputs = 2 * channels if takes_anchor else channels
        told = {"two_times": two_times, "condition": condition}
        return cls(in_channels=inputs, out_channels=channels, length=length, **told, **options)

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.options["out_channels"], self.options["length"]

    def _whole(self, found: Tensor) -> Tensor:
        """[B, C patch, L / patch] -> [B, C, L]."""
        return found.unflatten(1, (-1, self.patch)).transpose(2, 3).flatten(2)
