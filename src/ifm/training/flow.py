"""Training the integration flow on the teacher's trajectories (objective `trajectory`)."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm import objectives
from ifm.anchors import AnchorPolicy
from ifm.model import IntegrationFlow
from ifm.random import EndlessShuffle, Streams
from ifm.training.checkpoint import Checkpoints
from ifm.training.engine import Rows, local_positions, row_reader
from ifm.training.loop import FitResult, OnLog, TrainSettings, fit


def draw_stored_index(uniform: Tensor, *, stored: int, t_max_share: float) -> Tensor:
    """Which stored time each sample trains at: 0 (t_max) with probability t_max_share, else 1 .. stored - 2 evenly.

    uniform: U[0, 1) [B]. The last stored state is x_0 itself, the target; with two stored times only t_max is left.
    """
    others = stored - 2
    if not others:
        return torch.zeros_like(uniform, dtype=torch.int64)
    rest = (uniform - t_max_share) / max(1 - t_max_share, 1e-12)
    inner = 1 + (rest * others).long().clamp(0, others - 1)
    return torch.where(uniform < t_max_share, 0, inner)


def train_flow(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    trajectories: Rows,
    *,
    times: Tensor,
    policy: AnchorPolicy,
    settings: TrainSettings,
    t_max_share: float,
    distance: str,
    huber_c: float | None,
    seed: int,
    checkpoints: Checkpoints | None = None,
    on_log: OnLog | None = None,
) -> FitResult:
    """Fits the flow to trajectories (float16 [n, K, C, H, W], at `times` [K]) in place; it ends with averaged weights.

    Each sample is one stored point (x_t, t) of a path and the path's end x_0, of which it is a function: the
    regression is well posed. The global batch of a step depends on (seed, step) alone.
    """
    positions = local_positions(accelerator, settings.batch_size)
    order = EndlessShuffle(len(trajectories), settings.batch_size, seed=seed)
    read = row_reader(trajectories, accelerator.device)
    stored_times = times.float().to(accelerator.device)
    in_batch = torch.from_numpy(positions)

    def loss(model: nn.Module, step: int) -> Tensor:
        path = read(order.batch(step)[positions]).float()  # [b, K, C, H, W]
        draws = Streams(seed, "anchor", positions, step=step)
        k = draw_stored_index(draws.uniform(), stored=len(times), t_max_share=t_max_share).to(path.device)
        x_t, t, x_0 = path[torch.arange(len(k), device=k.device), k], stored_times[k], path[:, -1]
        x_anchor = policy(flow, x_t, t, generator=draws, positions=in_batch)
        x_0_hat = model(x_t, t, x_anchor=x_anchor)
        return objectives.trajectory(x_0_hat, x_0=x_0, distance=distance, c=huber_c)

    return fit(
        accelerator,
        flow,
        loss=loss,
        settings=settings,
        checkpoints=checkpoints,
        on_log=on_log,
        label=f"flow {flow.dynamics.name}",
    )
