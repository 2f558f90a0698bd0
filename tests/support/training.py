"""Settings of a short training, and a small network with its first weights."""

import torch

from ifm.networks.unet import build_unet
from ifm.training.loop import TrainSettings

SETTINGS = {
    "steps": 10,
    "batch_size": 8,
    "lr": 1e-3,
    "lr_decay": "cosine",
    "warmup_steps": 2,
    "ema_decay": 0.9,
    "clip_grad_norm": 1.0,
    "log_every": 1,
    "checkpoint_every": 5,
}


def settings(**changes):
    return TrainSettings(**SETTINGS | changes)


def unet(in_channels=1, **changed):
    torch.manual_seed(0)
    options = {"attention": [False, False], "dropout": 0.0, "norm_groups": 4} | changed
    return build_unet(
        image_size=8, in_channels=in_channels, out_channels=1, channels=[8, 8], layers_per_block=1, **options
    )
