"""Training the integration flow: phases, one after the other, on anchored batches."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm.anchors import AnchorPolicy, BankAnchor, Visit
from ifm.hardware.processes import local_positions, parts_of
from ifm.hardware.sharded import asked
from ifm.model import IntegrationFlow
from ifm.objectives.base import Batch, Phase
from ifm.random import EndlessShuffle, StepStreams
from ifm.training.checkpoint import Checkpoints
from ifm.training.loop import FitResult, OnLog, OnState, TrainSettings, fit


def train_flow(
    accelerator: Accelerator,
    flow: IntegrationFlow,
    phases: Sequence[Phase],
    *,
    policy: AnchorPolicy,
    settings: TrainSettings,
    seed: int,
    checkpoints: Checkpoints | None = None,
    on_log: OnLog | None = None,
    on_state: OnState | None = None,
) -> FitResult:
    """Fits the flow in place by one phase after the other, each an equal part of the steps.

    It ends with averaged weights; on_state: see `fit`. Phases share optimizer, average and the schedule of the learning
    rate. The global batch of a step depends on (seed, step) alone.

    Raises ValueError for policy bank with several phases, whose samples are not the same.
    """
    if isinstance(policy, BankAnchor) and len(phases) > 1:
        raise ValueError("anchor policy bank keeps an anchor for each sample of one phase; use self or noise")
    positions = local_positions(accelerator, settings.batch_size)
    in_batch = torch.from_numpy(positions)
    draws = StepStreams(seed, "anchor", positions, device=accelerator.device)
    orders = [EndlessShuffle(phase.size, settings.batch_size, seed=seed) for phase in phases]
    starts = [settings.steps * i // len(phases) for i in range(len(phases) + 1)]

    def loss(model: nn.Module, step: int) -> Iterator[Tensor]:
        i = bisect_right(starts, step) - 1
        rows = orders[i].batch(step)  # [B]
        streams = draws.at(step)
        at = phases[i].draw(rows[positions], step, streams)
        phases[i].expect(orders[i].batch(step + 1)[positions])
        visit = Visit(rows, orders[i].visits(step), at.mirrored)
        given = {"generator": streams, "positions": in_batch, "visit": visit, "condition": at.condition}
        x_anchor = policy(asked(model, flow), at.x_t, at.t, **given)
        visits = policy.visits(in_batch, visit) if isinstance(policy, BankAnchor) else None
        batch = Batch(step - starts[i], starts[i + 1] - starts[i], at, x_anchor, in_batch, visits)
        estimates = []
        for part, share in parts_of(len(positions), settings.gradient_accumulation):
            x_0_hat, value = phases[i].loss(model, batch.part(part))
            if x_0_hat is not None:
                estimates.append(x_0_hat.detach())
            yield share * value
        if estimates:
            policy.refresh(torch.cat(estimates))

    average = next((phase.average for phase in phases if phase.average is not None), None)
    return fit(
        accelerator,
        flow,
        loss=loss,
        settings=settings,
        checkpoints=checkpoints,
        on_log=on_log,
        on_state=on_state,
        memory=policy,
        average=average,
        label=f"flow {flow.dynamics.name}",
        seed=seed,
    )
