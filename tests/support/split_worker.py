"""What tests/method/test_sharded.py runs in processes that hold a model in parts, and in one that holds it whole.

accelerate does FSDP on GPUs alone. `SplittingAccelerator` is told on CPUs that it is set up for it; what it prepares is
then accelerate's own FSDP2 and torch's fully_shard, over gloo.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn

from ifm import anchors, dynamics
from ifm.hardware.devices import is_sharded
from ifm.hardware.processes import ProcessExchange, check_splitting, local_positions
from ifm.model import IntegrationFlow, IntervalFlow, Teacher
from ifm.networks.unet import build_unet
from ifm.objectives.consistency import consistency_phase
from ifm.objectives.data import data_phase
from ifm.objectives.interval import interval_phase
from ifm.objectives.pairs import mean_over_reference
from ifm.training.checkpoint import Checkpoints
from ifm.training.flow import train_flow
from ifm.training.loop import FitResult, TrainSettings, fit
from ifm.training.teacher import train_teacher

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8)


class SplittingAccelerator(Accelerator):
    """An Accelerator of CPU processes whose state says FSDP2. options: of accelerate's plugin; else its launcher's."""

    def __init__(self, *, mixed_precision: str, **options: Any) -> None:
        super().__init__(cpu=True, mixed_precision=mixed_precision)
        self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(**options)


class Stopped(Exception):
    """Stands for a kill: nothing after it runs."""


def unet(in_channels: int, *, two_times: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return build_unet(
        image_size=8, in_channels=in_channels, out_channels=1, channels=[8, 8], layers_per_block=1,
        attention=[False, True], dropout=0.0, norm_groups=4, two_times=two_times,
    )  # fmt: skip


def poisoned(accelerator: Accelerator, model: nn.Module, settings: TrainSettings, **more: Any) -> FitResult:
    """Training in which one process's loss is NaN at two of the steps."""
    positions = torch.from_numpy(local_positions(accelerator, settings.batch_size))

    def loss(asked: nn.Module, step: int) -> Iterator[Tensor]:
        x = torch.randn((settings.batch_size, 1, 8, 8), generator=torch.Generator().manual_seed(step))[positions]
        bad = step in (3, 4) and 0 in positions
        yield (asked(x, torch.full((len(x),), 0.5)) - x).pow(2).mean() * (float("nan") if bad else 1.0)

    return fit(accelerator, model, loss=loss, settings=settings, **more)


def train(
    objective: str, accelerator: Accelerator, settings: TrainSettings, **more: Any
) -> tuple[nn.Module, FitResult, dict[str, Tensor]]:
    """The trained model, the result and the bank if there is one."""
    d = dynamics.build("ve")
    if objective in ("teacher", "poisoned"):
        model = Teacher(unet(1), d)
        if objective == "poisoned":
            return model, poisoned(accelerator, model, settings, **more), {}
        options = {"settings": settings, "random_flip": True, "seed": 1}
        return model, train_teacher(accelerator, model, IMAGES, **options, **more), {}
    flow = IntegrationFlow(unet(2), d, scheme="edm", takes_anchor=True)
    pairs = {"random_flip": True, "batch_size": settings.batch_size, "seed": 1}
    how = {"distance": "pseudo_huber", "huber_c": None, **pairs}
    policy: anchors.AnchorPolicy = anchors.SelfAnchor(0.3)  # one of six positions: of three processes two have none
    if objective == "bank":
        bank = anchors.AnchorBank(len(IMAGES), (1, 8, 8), seed=1, exchange=ProcessExchange(accelerator))
        policy = anchors.BankAnchor(bank, reset_probability=0.25)
        phase = data_phase(accelerator, flow, IMAGES, mixed=True, **how)
    elif objective == "interval":  # of three processes one has no s < t
        flow = IntervalFlow(unet(2, two_times=True), d, takes_anchor=True)
        shares = {"same_share": 0.7, "whole_share": 0.5, "power": 0.5}
        phase = interval_phase(accelerator, flow, IMAGES, derivative="difference", **shares, **pairs)
    else:
        mean = mean_over_reference(accelerator, d, IMAGES, size=18, **pairs)
        phase = consistency_phase(accelerator, flow, IMAGES, intervals=(2, 8), target=objective, mean=mean, **how)
    result = train_flow(accelerator, flow, [phase], policy=policy, settings=settings, seed=1, **more)
    return flow, result, policy.state()


def run(case: dict[str, Any], *, split: bool, out: Path) -> None:
    """Writes this process's weights (and the bank), and the curve, to out/{name}-{process}.pt.

    case: name, objective; stop: the step after which it dies; checkpoints: their folder; plugin: the options of
    accelerate's FSDP plugin; settings: of the loop; precision.
    """
    AcceleratorState._reset_state()
    precision = case.get("precision", "no")
    if not split:
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
    else:
        accelerator = SplittingAccelerator(mixed_precision=precision, **case["plugin"])
        check_splitting(accelerator)
    options = {
        "steps": 6, "batch_size": 6, "lr": 1e-3, "lr_decay": "cosine", "warmup_steps": 2, "ema_decay": 0.9,
        "clip_grad_norm": 1.0, "log_every": 2, "checkpoint_every": 4,
    }  # fmt: skip
    settings = TrainSettings(**options | case.get("settings", {}))

    def on_log(row: dict[str, float]) -> None:
        if row["step"] == case.get("stop"):
            raise Stopped

    more: dict[str, Any] = {"on_log": on_log}
    if "checkpoints" in case:
        more["checkpoints"] = Checkpoints(Path(case["checkpoints"]))
    try:
        model, result, bank = train(case["objective"], accelerator, settings, **more)
    except Stopped:
        return
    assert not is_sharded(model)
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert not any(module.training for module in model.modules())
    told = {"weights": model.state_dict(), "bank": bank, "curve": result.history, "resumed_from": result.resumed_from}
    torch.save(told, out / f"{case['name']}-{accelerator.process_index}.pt")


def main(split: bool, out: Path) -> None:
    """Runs the cases of out/cases.json, one after the other."""
    torch.set_num_threads(1)
    for case in json.loads((out / "cases.json").read_text()):
        run(case, split=split, out=out)


if __name__ == "__main__":
    main(sys.argv[1] == "split", Path(sys.argv[2]))
