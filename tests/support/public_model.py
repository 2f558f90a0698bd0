"""Small models in the form that the Hub has them: diffusers' own classes, training loop and folders."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.nn import functional as F

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}


def small_unet(*, seed: int = 0, **changes: Any) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(**UNET | changes).eval()


@cache
def digits() -> torch.Tensor:
    """The embedded digits in [-1, 1]: [1797, 1, 8, 8]."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images.astype(np.float32)).unsqueeze(1) / 8 - 1


def train_ddpm(folder: Path, *, steps: int, batch_size: int = 32, lr: float = 4e-3, **scheduler: Any) -> Path:
    """diffusers' tutorial "Train a diffusion model" on the digits, saved as its pipeline: unet/, scheduler/."""
    model, noise_scheduler = small_unet().train(), DDPMScheduler(num_train_timesteps=1000, **scheduler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
    generator, data = torch.Generator().manual_seed(1), digits()
    for _ in range(steps):
        clean = data[torch.randint(len(data), (batch_size,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(1000, (batch_size,), generator=generator)
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        loss = F.mse_loss(model(noisy, timesteps, return_dict=False)[0], noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
    DDPMPipeline(model.eval(), noise_scheduler).save_pretrained(folder)
    return folder
