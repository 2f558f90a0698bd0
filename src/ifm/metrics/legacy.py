"""Inception with the resizing of EDM and StyleGAN: features that compare with their published FIDs."""

from pathlib import Path

import numpy as np
import torch

from ifm.metrics.extractors import InceptionExtractor, _takes, _three_channels
from ifm.metrics.weights import INCEPTION_FILE, ExtractorError

FEATURES = "return_features"  # of the script's forward


class LegacyInceptionExtractor(InceptionExtractor):
    """The script's own forward on uint8 images, as EDM's fid.py and clean-fid's mode "legacy_tensorflow" call it."""

    resizing = "the script's own: TensorFlow's bilinear to 299x299, not antialiased (EDM, clean-fid legacy_tensorflow)"
    rounding = "uint8 before resizing, not rounded after, (x - 128) / 128"

    def __init__(self, file: Path, *, device: torch.device, sha256: str | None = None) -> None:
        """As InceptionExtractor. Raises ExtractorError, too, where the script gives no features by itself."""
        super().__init__(file, device=device, sha256=sha256)
        if not _takes(self.script, FEATURES):
            raise ExtractorError(f"{file}: its forward takes no {FEATURES}, so --resize legacy has no features; "
                                 f"fetch {INCEPTION_FILE}")  # fmt: skip

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        colour = torch.from_numpy(np.array(_three_channels(images))).to(self.device)  # uint8 [n, 3, H, W]
        return self.script(colour, return_features=True).flatten(1).float().cpu().numpy()  # [n, 2048]
