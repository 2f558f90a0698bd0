"""The offline extractor: a small network trained on the data's own labels.

FID on its features is a figure to compare runs on the same data with, not with published Inception FIDs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ifm.modalities.images import to_unit
from ifm.progress import progress
from ifm.random import EndlessShuffle, Streams


class Classifier(nn.Module):
    """Convolutions down to 4x4 or less, an average over positions, a linear head. Features: [B, width]."""

    def __init__(self, *, channels: int, image_size: int, classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        size = image_size
        while size > 4:
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            size //= 2
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] in [-1, 1] -> [B, width]."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits: [B, classes]."""
        return self.head(self.features(x))


@dataclass(frozen=True)
class ClassifierSettings:
    """How the classifier is trained; `evaluate.classifier` in params.yaml."""

    width: int
    steps: int
    batch_size: int
    lr: float
    seed: int


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    settings: ClassifierSettings,
    device: torch.device,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> Classifier:
    """Cross-entropy on images shifted by up to an eighth of their side, cosine learning rate. Deterministic on CPU.

    images: uint8 [n, C, H, W]; labels: int [n].
    """
    torch.manual_seed(settings.seed)
    size = images.shape[2]
    model = Classifier(channels=images.shape[1], image_size=size, classes=classes, width=settings.width).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps)
    order = EndlessShuffle(len(images), settings.batch_size, seed=settings.seed)
    for step in progress(range(settings.steps), label="classifier", unit="step"):
        rows = order.batch(step)
        x = _shifted(to_unit(images[rows]).to(device), margin=max(1, size // 8), seed=settings.seed, step=step)
        y = torch.from_numpy(labels[rows].astype(np.int64)).to(device)
        loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_log and (step + 1) % 50 == 0:
            on_log({"step": step + 1, "loss": loss.item()})
    return model.eval()


def _shifted(x: Tensor, *, margin: int, seed: int, step: int) -> Tensor:
    """Each image moved by up to `margin` pixels each way, edges repeated: [B, C, H, W]."""
    draws = Streams(seed, "choice", range(len(x)), step=step)
    span = 2 * margin + 1
    top, left = (draws.uniform() * span).long(), (draws.uniform() * span).long()
    padded = F.pad(x, (margin,) * 4, mode="replicate")
    rows = top[:, None] + torch.arange(x.shape[2])  # [B, H]
    columns = left[:, None] + torch.arange(x.shape[3])  # [B, W]
    batch = torch.arange(len(x))[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(model: Classifier, images: np.ndarray, labels: np.ndarray, *, batch_size: int = 1024) -> float:
    """The share of `images` (uint8 [n, C, H, W]) whose most likely class is their label."""
    return float((classify(model, images, batch_size=batch_size) == labels).mean())


@torch.inference_mode()
def classify(model: Classifier, images: np.ndarray, *, batch_size: int = 1024) -> np.ndarray:
    """The most likely class of each image (uint8 [n, C, H, W]): int64 [n]."""
    device = next(model.parameters()).device
    parts = [
        model(to_unit(images[i : i + batch_size]).to(device)).argmax(1).cpu() for i in range(0, len(images), batch_size)
    ]
    return torch.cat(parts).numpy()


def load_classifier(file: Path, *, channels: int, image_size: int, classes: int, width: int) -> Classifier:
    """Reads a classifier's safetensors weights."""
    model = Classifier(channels=channels, image_size=image_size, classes=classes, width=width)
    model.load_state_dict(load_file(file))
    return model.eval()
