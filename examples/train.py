"""Trains a one-step model without DVC, on points in the plane, in seconds: python examples/train.py FOLDER"""

import sys
from pathlib import Path

from accelerate import Accelerator

from ifm import anchors, dynamics, pretrained
from ifm.data.laws import draw_points
from ifm.model import Teacher, build_flow
from ifm.networks import build_network
from ifm.objectives.consistency import consistency_phase
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings
from ifm.training.teacher import train_teacher

folder, accelerator = Path(sys.argv[1]), Accelerator()
points = draw_points("eight_gaussians", count=20_000, dimensions=2, seed=0).points.astype("float32")  # [n, 2]
ode = dynamics.build("ve", t_max=20.0)
same = {"seed": 0, "random_flip": False}
settings = TrainSettings(
    steps=500, batch_size=128, lr=4e-3, lr_decay="cosine", warmup_steps=20, ema_decay=0.99, clip_grad_norm=1.0,
    log_every=100, checkpoint_every=500,
)  # fmt: skip

# The teacher: a denoiser of the data. Images, uint8 [n, C, H, W], take a network of kind "unet" instead.
network = {"kind": "mlp", "shape": (2,), "takes_anchor": False, "mlp": {"width": 64, "layers": 3}}
teacher = Teacher(build_network(**network), ode)
train_teacher(accelerator, teacher, points, settings=settings, **same)
pretrained.save_model(teacher, folder / "teacher", record={"image_shape": [2]})

# The flow: noise to data in one evaluation, held to itself at neighbouring times of the teacher's paths.
flow = build_flow(build_network(**network), ode, scheme="edm", takes_anchor=False)
phase = consistency_phase(
    accelerator, flow, points, distance="pseudo_huber", huber_c=0.1, intervals=(20, 20), target="online",
    mean=lambda step: teacher, batch_size=settings.batch_size, **same,
)  # fmt: skip
train_flow(accelerator, flow, [phase], policy=anchors.NoAnchor(), settings=settings, seed=0)
pretrained.save_model(flow, folder / "flow", record={"image_shape": [2]})
print(f"{folder}: a teacher and a flow; ifm sample --model {folder}/flow --out samples.csv")
