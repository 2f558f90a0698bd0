"""`python -m benchmarks.derivative`: errors of `flow.interval.derivative: difference`, by its step.

The reference is forward mode in float64. Printed are |found - reference| / |reference| over a batch: differences in
float64 (their truncation alone) and in float32, central and one-sided, and forward mode in float32. Subjects are a flow
that was trained on the eight Gaussians and a U-Net with random weights on 8 x 8 images. docs/interval.md has the table.
"""

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ifm import anchors, dynamics
from ifm.data.laws import draw_points
from ifm.model import IntervalFlow
from ifm.networks import build_network
from ifm.objectives.interval import (
    MeanVelocity,
    central_difference,
    differentiable_forward,
    forward_derivative,
    interval_phase,
)
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings

STEPS = (0.1, 0.03, 0.01, 0.005, 0.003, 0.001, 0.0003)
UNET = {"channels": [16, 32], "attention": [False, True], "layers_per_block": 1, "dropout": 0.0, "norm_groups": 8}


def backward_difference(u: MeanVelocity, y: Tensor, *, velocity: Tensor, theta: Tensor, step: float) -> Tensor:
    """du/dtheta along (velocity, 1) from u here and a step before: [B, ...]. First order, for comparison."""
    return (u(y, theta) - u(y - step * velocity, theta - step)) / step


def subject(kind: str, shape: tuple[int, ...]) -> IntervalFlow:
    """A flow of `rf` with new weights."""
    torch.manual_seed(0)
    options = UNET | {"mlp": {"width": 64, "layers": 3}}
    return IntervalFlow(
        build_network(kind=kind, shape=shape, takes_anchor=True, two_times=True, **options),
        dynamics.build("rf"),
        takes_anchor=True,
    )


def trained(steps: int) -> IntervalFlow:
    """A flow of points after some steps of `interval`."""
    flow, accelerator = subject("mlp", (2,)), Accelerator(cpu=True)
    points = draw_points("eight_gaussians", count=20_000, dimensions=2, seed=0).points.astype(np.float32)
    phase = interval_phase(
        accelerator, flow, points, same_share=0.5, whole_share=0.5, power=0.0, batch_size=256, random_flip=False, seed=1
    )
    settings = TrainSettings(
        steps=steps, batch_size=256, lr=4e-3, lr_decay="cosine", warmup_steps=0, ema_decay=0.99, clip_grad_norm=1.0,
        log_every=steps, checkpoint_every=steps,
    )  # fmt: skip
    train_flow(accelerator, flow, [phase], policy=anchors.NoiseAnchor(), settings=settings, seed=1)
    return flow


def errors(flow: IntervalFlow, shape: tuple[int, ...], *, batch: int = 256) -> Iterator[tuple[str, float]]:
    """(way, relative error), for each of STEPS in turn: way is the rule and the dtype."""
    rng = np.random.default_rng(1)
    x_0, z, x_anchor = (torch.from_numpy(rng.standard_normal((batch, *shape))) for _ in range(3))
    theta = torch.from_numpy(rng.uniform(0.01, math.pi / 2, batch))
    theta_s, column = theta * torch.from_numpy(rng.random(batch)), theta.reshape(-1, *[1] * len(shape))
    y = column.cos() * x_0 + column.sin() * z
    given = [y, column.cos() * z - column.sin() * x_0, theta, theta_s, x_anchor]

    @torch.no_grad()
    def found(way: Callable[..., Tensor], dtype: torch.dtype, **step: float) -> Tensor:
        flow.to(dtype)
        y, velocity, theta, theta_s, x_anchor = (x.to(dtype) for x in given)

        def u(y: Tensor, theta: Tensor) -> Tensor:
            return flow.mean_velocity(y, theta, theta_s=theta_s, x_anchor=x_anchor)

        with differentiable_forward(flow):
            return way(u, y, velocity=velocity, theta=theta, **step).double()

    exact = found(forward_derivative, torch.float64)
    yield "forward, float32", float((found(forward_derivative, torch.float32) - exact).norm() / exact.norm())
    for name, way in (("central", central_difference), ("one-sided", backward_difference)):
        for dtype in (torch.float64, torch.float32):
            for step in STEPS:
                found_here = found(way, dtype, step=step)
                yield f"{name}, {str(dtype)[6:]}", float((found_here - exact).norm() / exact.norm())


def main() -> None:
    """Prints a table for each subject."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-steps", type=int, default=1000, help="of the flow on points (default: 1000)")
    steps = parser.parse_args().train_steps
    subjects = {
        f"points, {steps} steps": (trained(steps), (2,)),
        "U-Net, random weights": (subject("unet", (1, 8, 8)), (1, 8, 8)),
    }
    for name, (flow, shape) in subjects.items():
        rows: dict[str, list[str]] = {}
        for way, error in errors(flow, shape):
            rows.setdefault(way, []).append(f"{error:.1e}")
        print(f"\n| {name} | " + " | ".join(f"{step:g}" for step in STEPS) + " |\n|---|" + "---|" * len(STEPS))
        for way, values in rows.items():
            print(f"| {way} | " + " | ".join(values) + " |" * (1 + len(STEPS) - len(values)))


if __name__ == "__main__":
    main()
