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

from ifm.hardware.devices import RowReader, memory_format, to_device
from ifm.modalities import at_work
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
        self.modality: str | None = None  # of the data, where it is recorded

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
    modality: str | None = None,
) -> Classifier:
    """Cross-entropy on images shifted by up to an eighth of their side, cosine learning rate. Deterministic on CPU.

    images: uint8 [n, C, H, W]; labels: int [n]. Both are held on the device, as far as they fit there, and the host
    waits for it only where a row of the curve is due.
    """
    torch.manual_seed(settings.seed)
    size = min(images.shape[2:])
    model = Classifier(channels=images.shape[1], image_size=size, classes=classes, width=settings.width)
    model.modality = modality
    model.to(device, memory_format=memory_format(device))
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01, fused=on_gpu or None)
    read, targets = RowReader(images, device), torch.from_numpy(labels.astype(np.int64)).to(device)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps)
    order = EndlessShuffle(len(images), settings.batch_size, seed=settings.seed)
    for step in progress(range(settings.steps), label="classifier", unit="step"):
        rows = order.batch(step)
        x = _shifted(at_work(read(rows), modality), margin=max(1, size // 8), seed=settings.seed, step=step)
        y = targets[to_device(torch.from_numpy(rows), device)]
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
    top, left = (to_device((draws.uniform() * span).long(), x.device) for _ in range(2))
    padded = F.pad(x, (margin,) * 4, mode="replicate")
    rows = top[:, None] + torch.arange(x.shape[2], device=x.device)  # [B, H]
    columns = left[:, None] + torch.arange(x.shape[3], device=x.device)  # [B, W]
    batch = torch.arange(len(x), device=x.device)[:, None, None]
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
        model(unit_on(device, images[i : i + batch_size], model.modality)).argmax(1)
        for i in range(0, len(images), batch_size)
    ]
    return torch.cat(parts).cpu().numpy()


def unit_on(device: torch.device, images: np.ndarray, modality: str | None = None) -> Tensor:
    """uint8 [n, C, H, W] -> float32 in [-1, 1] on the device, where it goes as bytes."""
    return at_work(to_device(torch.from_numpy(np.require(images, requirements=["C", "W"])), device), modality)


def load_classifier(
    file: Path, *, channels: int, image_size: int, classes: int, width: int, modality: str | None = None
) -> Classifier:
    """Reads a classifier's safetensors weights."""
    model = Classifier(channels=channels, image_size=image_size, classes=classes, width=width)
    model.load_state_dict(load_file(file))
    model.modality = modality
    return model.eval()
