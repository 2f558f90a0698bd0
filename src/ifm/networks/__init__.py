"""The networks by name: one entry each; `build_network` makes the one that params.yaml names.

The table names classes and does not import them, so that params.yaml can be checked without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from ifm import modalities
from ifm.schema import Count, Section, load

if TYPE_CHECKING:
    from ifm.conditions.base import ConditionKind
    from ifm.networks.base import Network

ANCHOR_INPUTS = ("channels", "cross_attention")


class UNetOptions(Section):
    """A resolution for each entry of `channels`."""

    channels: Annotated[list[Count], Field(min_length=1)]
    layers_per_block: Count
    attention: Annotated[list[bool], Field(min_length=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    norm_groups: Count

    @model_validator(mode="after")
    def _lists_fit(self) -> "UNetOptions":
        if len(self.attention) != len(self.channels):
            raise ValueError(f"attention needs {len(self.channels)} entries, one for each of channels")
        bad = [c for c in self.channels if c % self.norm_groups]
        if bad:
            raise ValueError(f"channels must be multiples of norm_groups = {self.norm_groups}, got {bad}")
        return self


class MLPOptions(Section):
    """`network.mlp`."""

    width: Count
    layers: Count


class TransformerOptions(Section):
    """`network.transformer` and, for text, `network.sequence`."""

    patch: Count
    width: Count
    depth: Count
    heads: Count

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "TransformerOptions":
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width must be a multiple of 4 and of heads = {self.heads}, got {self.width}")
        return self


@dataclass(frozen=True)
class Entry:
    """A network: its class (or "module:class"), the keys of its section `network.<name>`, the data that it is for.

    The U-Net's keys stand in `network` itself.
    """

    network: Any
    options: type[Section]
    modality: str
    also: tuple[str, ...] = ()  # other modalities that it is for
    anchor_inputs: tuple[str, ...] = ("channels",)

    @property
    def modalities(self) -> tuple[str, ...]:
        """All that it is for."""
        return self.modality, *self.also


NETWORKS: dict[str, Entry] = {
    "unet": Entry("ifm.networks.unet:UNet", UNetOptions, "images", also=("sound",), anchor_inputs=ANCHOR_INPUTS),
    "transformer": Entry("ifm.networks.transformer:Transformer", TransformerOptions, "images", also=("sound",)),
    "sequence": Entry("ifm.networks.sequence:SequenceTransformer", TransformerOptions, "text"),
    "mlp": Entry("ifm.networks.mlp:MLP", MLPOptions, "points"),
}
# What a folder may hold besides: networks that `build_network` makes under another one's name.
READ = ("ifm.networks.unet:CrossAttentionUNet", "ifm.adapters.network:AdaptedNetwork")


def build_network(
    *,
    kind: str,
    shape: tuple[int, ...],
    takes_anchor: bool,
    anchor_input: str = "channels",
    two_times: bool = False,
    condition: "ConditionKind | None" = None,
    modality: str | None = None,
    **options: Any,
) -> "Network":
    """F for data of one shape, with new weights; options: the rest of params.yaml's `network`.

    The anchor enters as further inputs (`anchor_input: channels`) or by cross-attention (U-Net alone); `two_times` is
    for intervals; condition: what the network is told besides; modality: of the data, where it is recorded. Raises
    ValueError for what a network cannot do.
    """
    if kind not in NETWORKS:
        raise ValueError(f"unknown network {kind!r}; known: {', '.join(NETWORKS)}")
    if anchor_input not in ANCHOR_INPUTS:
        raise ValueError(f"unknown anchor input {anchor_input!r}; known: {', '.join(ANCHOR_INPUTS)}")
    fits = [modalities.MODALITIES[name] for name in NETWORKS[kind].modalities]
    if modalities.of(shape, modality) not in fits:
        nouns = " or ".join(fit.noun for fit in fits)
        raise ValueError(f"network {kind} is for {nouns}, got data of shape {list(shape)}")
    own = options if kind == "unet" else options[kind]
    return load(NETWORKS[kind].network).build(
        shape=tuple(shape),
        takes_anchor=takes_anchor,
        anchor_input=anchor_input,
        two_times=two_times,
        condition=condition,
        options=own.model_dump() if isinstance(own, Section) else own,
    )


def load_network(folder: Path) -> "Network":
    """Reads what `Network.save` wrote; weights in half precision become float32.

    Raises FileNotFoundError or ValueError that names the folder.
    """
    from ifm.networks.base import in_single, read_config

    name = read_config(folder).get("_class_name")
    kinds: list[Any] = [load(entry) for entry in [*(entry.network for entry in NETWORKS.values()), *READ]]
    known: Mapping[str, Any] = {each: kind for kind in kinds for each in kind.class_names}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{folder}: holds a {name}; known: {', '.join(known)}")
    return in_single(known[name].load(folder))
