"""What an integration flow's U-Net is told besides the time: class, guidance scale, an interval's end. For diffusers.

It needs torch and diffusers, nothing else.
"""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn


class FlowEmbedding(ModelMixin, ConfigMixin):
    """The sum of the embeddings, as the U-Net's class slot takes it: [B, width]."""

    @register_to_config
    def __init__(
        self,
        width: int,
        labels: int,
        low: float | None = None,
        high: float | None = None,
        waves: int = 4,
        end_features: int | None = None,
    ) -> None:
        """labels: rows of the table; low, high: the range of the scale; end_features: of the embedded end's time."""
        super().__init__()
        self.table = nn.Embedding(labels, width)
        self.scale = None
        if low is not None:
            self.scale = nn.ModuleDict({"first": nn.Linear(1 + 2 * waves, width), "last": nn.Linear(width, width)})
        self.end = None if end_features is None else TimestepEmbedding(end_features, width)

    def forward(
        self, labels: torch.Tensor, w: torch.Tensor | None = None, end: torch.Tensor | None = None
    ) -> torch.Tensor:
        """labels: int64 [B]; w: guidance scales [B]; end: sines and cosines of the end's time [B, end_features]."""
        found, c = self.table(labels), self.config
        if self.end is not None:
            found = self.end(end.to(found.dtype)) + found
        if self.scale is None:
            return found
        u = ((w.float() - c.low) / (c.high - c.low))[:, None]
        phase = math.pi / 2 * u * 2.0 ** torch.arange(c.waves, device=u.device)  # [B, waves]
        features = torch.cat([u, phase.sin(), phase.cos()], dim=1).to(found.dtype)
        return found + self.scale["last"](nn.functional.silu(self.scale["first"](features)))
