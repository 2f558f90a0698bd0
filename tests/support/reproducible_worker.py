"""Trains a small teacher on noise and saves its weights: FILE. Run by test_reproducibility.py."""

import sys

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from ifm import dynamics
from ifm.model import Teacher
from ifm.networks.unet import build_unet
from ifm.training.loop import TrainSettings
from ifm.training.teacher import train_teacher
from tests.method.test_training import SETTINGS

STEPS = 100


def main(file: str) -> None:
    torch.manual_seed(0)
    network = build_unet(
        image_size=16, in_channels=1, out_channels=1, channels=[16, 32], layers_per_block=1, attention=[False, True],
        dropout=0.0, norm_groups=4,
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (64, 1, 16, 16), np.uint8)
    teacher = Teacher(network, dynamics.build("ve"))
    settings = TrainSettings(**SETTINGS | {"steps": STEPS, "batch_size": 16, "checkpoint_every": STEPS})
    train_teacher(Accelerator(cpu=True), teacher, images, settings=settings, random_flip=True, seed=0)
    save_file({name: w.detach().contiguous() for name, w in teacher.state_dict().items()}, file)
    print(torch.get_num_threads())


if __name__ == "__main__":
    main(*sys.argv[1:])
