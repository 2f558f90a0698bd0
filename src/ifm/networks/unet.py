"""diffusers' U-Nets as F, for images."""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ifm.conditions.base import Condition, ConditionKind
from ifm.networks.base import CONFIG, Network, check_weights, described, kind_of, read_config

# diffusers embeds a "timestep" with periods from 2 pi to 2 pi 10^4. c_noise spans about 1 (rf) to 2.7 (ve), so this
# puts neighbouring noise levels a visible phase apart, without the 1000 that makes the network stiff in t.
TIME_SCALE = 100.0
# An angle spans pi/2, and `interval` differentiates by it: at 100 the fastest phase would turn 25 times, and the
# derivative be that much larger than the function.
INTERVAL_TIME_SCALE = 2.0
ANCHOR_GRID = 8  # an anchor is cut into at least this many patches a side
POSITION_FEATURES = 8  # numbers that tell where a patch lies, for each axis
ATTENTION_HEAD = 8  # channels of an attention head, diffusers' UNet2DModel's default
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' own name
EMBEDDINGS = "embeddings.safetensors"  # what the wrapper adds to diffusers' network, where it adds anything
LAYER_COUNTS = ("layers_per_block", "transformer_layers_per_block")  # of diffusers' config.json: a number or a list


class UNet(Network):
    """diffusers' UNet2DModel as F: (inputs [B, C_in, H, W], c_noise [B]) -> F_x [B, C_out, H, W].

    An interval's end and a condition have embeddings of their own here, of the width of diffusers' time embedding.
    Their sum goes where diffusers takes a class (class_embed_type "identity") and is added to the time's.
    """

    class_names = ("UNet2DModel",)
    first_layer = "model.conv_in.weight"

    def __init__(self, model: nn.Module, *, two_times: bool = False, condition: ConditionKind | None = None) -> None:
        super().__init__()
        self.model, self.two_times, self.condition_kind = model, two_times, condition
        first = model.config.block_out_channels[0]
        self.end = self.condition = None
        if two_times:
            from diffusers.models.embeddings import TimestepEmbedding

            self.end = TimestepEmbedding(first, 4 * first)
        if condition is not None:
            self.condition = condition.embedding(4 * first)

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
    ) -> Network:
        """options: channels, layers_per_block, attention, dropout, norm_groups. With cross-attention to the anchor: a
        CrossAttentionUNet.
        """
        channels, attends = shape[0], takes_anchor and anchor_input == "cross_attention"
        if attends and shape[1] != shape[2]:
            raise ValueError(f"cross-attention to the anchor is for squares, got data of shape {list(shape)}")
        names = ("channels", "layers_per_block", "attention", "dropout", "norm_groups")
        size = {
            "image_size": shape[1] if shape[1] == shape[2] else tuple(shape[1:]),
            "in_channels": 2 * channels if takes_anchor and not attends else channels,
            "out_channels": channels,
            "two_times": two_times,
            "condition": condition,
            **{name: options[name] for name in names},
        }
        return build_cross_attention_unet(anchor_channels=channels, **size) if attends else build_unet(**size)

    @property
    def data_shape(self) -> tuple[int, ...]:
        config = self.model.config
        size = config.sample_size
        return (config.out_channels, *([size, size] if isinstance(size, int) else size))

    def forward(
        self, inputs: Tensor, c_noise: Tensor, c_end: Tensor | None = None, *, condition: Condition | None = None
    ) -> Tensor:
        return self.model(self.cast(inputs), return_dict=False, **self._embedded(c_noise, c_end, condition))[0]

    def _embedded(self, c_noise: Tensor, c_end: Tensor | None, condition: Condition | None) -> dict[str, Tensor]:
        """Time, and the sum of what is embedded here, as diffusers' U-Nets take them."""
        self.check(c_end=c_end, condition=condition)
        scale = INTERVAL_TIME_SCALE if self.two_times else TIME_SCALE
        parts = []
        if c_end is not None:
            parts.append(self.end(self.model.time_proj(scale * c_end).to(self.end.linear_1.weight.dtype)))
        if condition is not None:
            parts.append(self.condition(condition))
        return {"timestep": scale * c_noise} | ({"class_labels": sum(parts)} if parts else {})

    def save(self, folder: Path) -> list[Path]:
        """diffusers' own folder, readable by its class's ``from_pretrained``; embeddings of our own beside it."""
        self.model.save_pretrained(folder, safe_serialization=True)
        own = {name: w.detach().cpu().contiguous() for name, w in self.state_dict().items() if _is_own(name)}
        if not own:
            return [folder / WEIGHTS]
        told = {"two_times": json.dumps(self.two_times), "condition": json.dumps(described(self.condition_kind))}
        save_file(own, folder / EMBEDDINGS, metadata=told)
        return [folder / WEIGHTS, folder / EMBEDDINGS]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Only safetensors weights are accepted.

        Raises FileNotFoundError where the folder is missing (``from_pretrained`` would ask the Hub for it), ValueError
        where it holds another class of model, or weights that its config.json does not ask for.
        """
        import diffusers

        config = read_config(folder)
        model = getattr(diffusers, cls.class_names[0])
        counts = [config.get(key, 1) for key in LAYER_COUNTS]
        counts = [count for each in counts for count in (each if isinstance(each, list) else [each])]
        check_weights(folder / WEIGHTS, lambda: model.from_config(config), counts=counts)
        read = model.from_pretrained(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
        told = _told(folder / EMBEDDINGS) if (folder / EMBEDDINGS).is_file() else {}
        if not told and config.get("class_embed_type") == "timestep":
            return cls._of_class_slot(read)
        if told:  # an exported folder has them in diffusers' class slot too
            read.class_embedding = nn.Identity()
            read.register_to_config(class_embed_type="identity", num_class_embeds=None)
        network = cls(read, two_times=told.get("two_times", False), condition=kind_of(told.get("condition")))
        if told:
            wanted = {name: list(w.shape) for name, w in network.state_dict().items() if _is_own(name)}
            own = load_file(folder / EMBEDDINGS)
            if wanted != (stored := {name: list(w.shape) for name, w in own.items()}):
                raise ValueError(f"{EMBEDDINGS} holds {stored}, {CONFIG} asks for {wanted}")
            network.load_state_dict(own, strict=False)
        elif config.get("class_embed_type") == "identity":
            raise FileNotFoundError(f"{folder / EMBEDDINGS}: no such file")
        return network

    def in_class_slot(self) -> nn.Module:
        """diffusers' network with our embedding in its class slot, for programs without ifm: a copy.

        An interval's end is embedded as a time ("timestep"), class labels by their number. Raises ValueError for other
        conditions, a guidance scale among them, and for both at once, which one slot cannot hold.
        """
        model = copy.deepcopy(self.model)
        if self.end is None and self.condition is None:
            return model
        if getattr(self.condition, "scale", None) is not None:
            raise ValueError("diffusers' class slot cannot hold a guidance scale")
        table = getattr(self.condition, "table", None)
        if (self.end is not None and self.condition is not None) or (self.end is None and table is None):
            held = "an interval's end and a condition" if self.end is not None else self.condition_kind.name
            raise ValueError(f"diffusers' class slot cannot hold {held}")
        if self.end is not None:
            model.class_embedding = copy.deepcopy(self.end)
            model.register_to_config(class_embed_type="timestep")
        else:
            model.class_embedding = copy.deepcopy(table)
            model.register_to_config(class_embed_type=None, num_class_embeds=table.num_embeddings)
        return model

    @classmethod
    def _of_class_slot(cls, model: nn.Module) -> Self:
        """An interval's network of the old form: its end had diffusers' class slot. It computes the same."""
        end, model.class_embedding = model.class_embedding, nn.Identity()
        model.register_to_config(class_embed_type="identity")
        network = cls(model, two_times=True)
        network.end.load_state_dict(end.state_dict())
        return network


def _is_own(name: str) -> bool:
    """Whether a weight of the state dict is the wrapper's own."""
    return not name.startswith("model.")


def _told(file: Path) -> dict[str, Any]:
    """What `UNet.save` says of the embeddings. Raises ValueError."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    told = {name: json.loads(metadata.get(name, "null")) for name in ("two_times", "condition")}
    if not isinstance(told["two_times"], bool):
        raise ValueError(f"{file.name}: does not say whether the network takes two times")
    return told


def build_unet(
    *,
    in_channels: int,
    out_channels: int,
    attention: list[bool],
    two_times: bool = False,
    condition: ConditionKind | None = None,
    **shape: Any,
) -> UNet:
    """A U-Net with one resolution per entry of `channels`, halving from `image_size`; `attention` per resolution.

    shape: image_size, channels, layers_per_block, dropout, norm_groups.
    """
    from diffusers import UNet2DModel

    return UNet(
        UNet2DModel(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            add_attention=any(attention),
            **_unet_options(embeds=two_times or condition is not None, **shape),
        ),
        two_times=two_times,
        condition=condition,
    )


def _unet_options(
    *,
    image_size: int | tuple[int, int],
    channels: list[int],
    layers_per_block: int,
    dropout: float,
    norm_groups: int,
    embeds: bool,
) -> dict[str, Any]:
    """What both of diffusers' U-Nets are told alike. embeds: whether they get embeddings from outside."""
    options = {
        "sample_size": image_size,
        "block_out_channels": tuple(channels),
        "layers_per_block": layers_per_block,
        "norm_num_groups": norm_groups,
        "dropout": dropout,
    }
    return options | ({"class_embed_type": "identity"} if embeds else {})


class CrossAttentionUNet(UNet):
    """diffusers' UNet2DConditionModel as F: (inputs [B, C_in, H, W], c_noise [B], x_anchor [B, C, H, W]) -> F_x.

    The network attends to the anchor's patches, in the middle block and wherever `attention` asks for it. Patch
    embedding is the model's own linear `encoder_hid_proj`, and the patches' positions are fixed features, so that
    everything trained for it lies in diffusers' folder.
    """

    class_names = ("UNet2DConditionModel",)

    def forward(
        self,
        inputs: Tensor,
        c_noise: Tensor,
        x_anchor: Tensor,
        c_end: Tensor | None = None,
        *,
        condition: Condition | None = None,
    ) -> Tensor:
        embedded = self._embedded(c_noise, c_end, condition)
        tokens = self.cast(anchor_tokens(x_anchor))
        return self.model(self.cast(inputs), encoder_hidden_states=tokens, return_dict=False, **embedded)[0]


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
    two_times: bool = False,
    condition: ConditionKind | None = None,
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
            **_unet_options(
                image_size=image_size, channels=channels, embeds=two_times or condition is not None, **shape
            ),
        ),
        two_times=two_times,
        condition=condition,
    )
