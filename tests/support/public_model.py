"""Small models in the form that the Hub has them: diffusers' own classes, training loop and folders."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from pipeline.tools import stand_ins, teacher_start


def small_unet(*, seed: int = 0, **changes: Any) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(**teacher_start.UNET | changes).eval()


@cache
def digits() -> torch.Tensor:
    """The embedded digits in [-1, 1]: [1797, 1, 8, 8]."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images.astype(np.float32)).unsqueeze(1) / 8 - 1


def train_ddpm(folder: Path, *, steps: int, batch_size: int = 32, lr: float = 4e-3, **scheduler: Any) -> Path:
    """diffusers' tutorial "Train a diffusion model" on the digits, saved as its pipeline: unet/, scheduler/."""
    how = {"steps": steps, "batch_size": batch_size, "lr": lr}
    return stand_ins.train_ddpm(small_unet(), digits(), folder, **how, **scheduler)
