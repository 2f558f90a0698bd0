"""A flow of two times as diffusers' own classes: UNet2DModel and FlowMapEulerDiscreteScheduler, no code in the folder.

That scheduler moves y_r = y_t - (sigma_t - sigma_r) u by a mean velocity u. No pipeline of diffusers asks a U-Net for
one, and ours gives F: `generate` makes u of F, y_s = cos(delta) y_t + sin(delta) F (`ifm.model.IntervalFlow`), in a
loop that the model card prints. sigma is the share of the path's angle, so that even steps are those of `chain`.
"""

import inspect
import math
from pathlib import Path

import torch

from ifm.errors import UserError
from ifm.model import IntegrationFlow, IntervalFlow
from ifm.networks.unet import INTERVAL_TIME_SCALE
from ifm.solver import at_time
from ifm.steps import sample_chained
from ifm.use.diffusers_folder import quiet_diffusers, write_network
from ifm.use.graphs import TOLERANCE, example_draws
from ifm.use.loading import EXPORTED

SCHEDULER, FOLDER = "FlowMapEulerDiscreteScheduler", "scheduler"
STEPS = (1, 2, 4)  # compared
ELSE = "use --format diffusers, whose pipeline is code of the folder"
TEXT = """```python
import math

import torch
from diffusers import FlowMapEulerDiscreteScheduler, UNet2DModel


{source}

unet = UNet2DModel.from_pretrained("{id}", subfolder="unet")
scheduler = FlowMapEulerDiscreteScheduler.from_pretrained("{id}", subfolder="scheduler")
{draw}
images = generate(unet, scheduler, z, steps=1, {constants})  # [16, C, H, W] in [-1, 1]; steps=2, 4, ... too
```

Both are diffusers' own classes (0.42): the folder holds no code. With `ifm` installed:

```python
from ifm import IntegrationFlow

images = IntegrationFlow.from_pretrained("{id}").sample(16, sampler="chain")  # uint8 [16, C, H, W]
```"""


@torch.no_grad()
def generate(unet, scheduler, z, *, steps, angle, least, scale, anchor=None):
    """x_0 from noise z in `steps` evaluations. angle, least: the path's at noise and data; scale: the data's."""
    scheduler.set_timesteps(steps)
    times, whole = scheduler.timesteps.tolist(), scheduler.config.num_train_timesteps
    y = math.sin(angle) * z
    for t, r in zip(times, [*times[1:], 0.0]):  # noqa: B905
        theta, end = angle * t / whole, max(angle * r / whole, least)
        told = [torch.full((len(y),), 2.0 * x, device=y.device) for x in (theta, end)]
        inputs = y if anchor is None else torch.cat([y, anchor], dim=1)
        F = unet(inputs, told[0], class_labels=told[1]).sample
        turned = math.cos(theta - end) * y + math.sin(theta - end) * F
        u = (y - turned) * (whole / (t - r))  # the mean velocity from t to r
        y = scheduler.step(u, t, y, r_timestep=r).prev_sample
    return scale * y


def constants(flow: IntervalFlow) -> dict[str, float]:
    """What `generate` is told of a flow: angle, least, scale."""
    d, one = flow.dynamics, torch.ones(1, dtype=torch.float64)
    angle, least = (float(d.angle(t * one)) for t in (d.t_max, d.t_min))
    return {"angle": angle, "least": least, "scale": float(d.scale(d.t_min * one))}


def check(flow: IntegrationFlow) -> None:
    """Raises UserError, with what to do, for what this form cannot hold, and where diffusers lacks the scheduler."""
    import diffusers

    if not isinstance(flow, IntervalFlow):
        raise UserError(f"flowmap: is for flows of two times (flow.objective: interval); {ELSE}")
    if type(getattr(flow.network, "model", None)).__name__ != "UNet2DModel":
        raise UserError(f"flowmap: is for U-Nets without cross-attention; {ELSE}, or onnx")
    if flow.condition_kind is not None:
        raise UserError(f"flowmap: diffusers' class slot holds the interval's end and no class beside it; {ELSE}")
    if not flow.dynamics.gaussian:
        raise UserError(f"flowmap: {flow.dynamics.name} starts from other noise than N(0, I); {ELSE}")
    if not hasattr(diffusers, SCHEDULER):
        raise UserError(f"flowmap: diffusers {diffusers.__version__} has no {SCHEDULER}, 0.42 has; {ELSE}")


def write_folder(flow: IntegrationFlow, model: Path, folder: Path) -> float:
    """Writes unet/ and scheduler/, reads them with diffusers, and compares with `chain` in one step and in several.

    Returns the largest difference of x_0_hat. Raises UserError where it is above the tolerance.
    """
    check(flow)
    import diffusers

    write_network(flow.network.in_class_slot(), model, folder / EXPORTED)
    getattr(diffusers, SCHEDULER)().save_pretrained(folder / FOLDER)
    difference = max(_difference(flow, folder, steps) for steps in STEPS)
    if not difference <= TOLERANCE:
        raise UserError(f"flowmap: what diffusers makes of it differs by {difference:.2g}, more than {TOLERANCE}")
    return difference


def _difference(flow: IntervalFlow, folder: Path, steps: int) -> float:
    """Of x_0_hat from the same noise and anchor, ours and by diffusers' classes as they are read from the folder."""
    import diffusers

    assert INTERVAL_TIME_SCALE == 2.0  # as `generate` has it
    draws, d = example_draws(flow, 3), flow.dynamics
    x_T, device = draws.x_T.to(torch.float32), next(flow.parameters()).device
    with quiet_diffusers():
        unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder=EXPORTED).eval()
        scheduler = getattr(diffusers, SCHEDULER).from_pretrained(folder, subfolder=FOLDER)
    x_anchor = draws.x_anchor.to(torch.float32) if flow.takes_anchor else None
    z = x_T / d.coefficients(at_time(x_T[:1], d.t_max)).b
    found = generate(unet, scheduler, z, steps=steps, anchor=x_anchor, **constants(flow))
    anchor = None if x_anchor is None else x_anchor.to(device)
    expected = sample_chained(flow, x_T.to(device), x_anchor=anchor, steps=steps)
    return float((found - expected.cpu().to(torch.float32)).abs().max())


def code(flow: IntervalFlow, *, where: str, shape: tuple[int, ...]) -> str:
    """Markdown for the card: the loop that was compared, and a call of it."""
    source = inspect.getsource(generate).replace("  # noqa: B905", "")
    told = ", ".join(f"{name}={value!r}" for name, value in constants(flow).items())
    draw = f"z = torch.randn(16, {', '.join(map(str, shape))})"
    if flow.takes_anchor:
        draw, told = f"{draw}\nanchor = torch.randn_like(z)", f"{told}, anchor=anchor"
    return TEXT.format(source=source, id=where, draw=draw, constants=told)
