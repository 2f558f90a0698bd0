"""What tests/test_sharded.py runs in several processes that hold a model in parts, and in ones that hold it whole.

accelerate knows FSDP on GPUs alone. `SplittingAccelerator` is told that it is set up for it on CPUs; what it prepares is
then accelerate's own FSDP2, with torch's fully_shard over gloo.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from ifm import anchors, dynamics
from ifm.devices import is_sharded
from ifm.model import IntegrationFlow, Teacher
from ifm.networks import build_unet
from ifm.training.checkpoint import Checkpoints
from ifm.training.engine import ProcessExchange
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings
from ifm.training.phases import consistency_phase, data_phase
from ifm.training.teacher import train_teacher

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8)


class SplittingAccelerator(Accelerator):
    """An Accelerator of CPU processes whose state says FSDP2. options: of accelerate's FSDP plugin."""

    def __init__(self, *, mixed_precision: str, **options: Any) -> None:
        super().__init__(cpu=True, mixed_precision=mixed_precision)
        self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **options)


def accelerator(case: dict[str, Any]) -> Accelerator:
    precision = case.get("precision", "no")
    if not case["split"]:
        return Accelerator(cpu=True, mixed_precision=precision)
    blocks = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["ResnetBlock2D"]}
    return SplittingAccelerator(mixed_precision=precision, **(blocks if case.get("blocks", True) else {}),
                                cpu_ram_efficient_loading=case.get("from_main", False))  # fmt: skip


def unet(in_channels: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_unet(
        image_size=8, in_channels=in_channels, out_channels=1, channels=[8, 8], layers_per_block=1,
        attention=[False, True], dropout=0.0, norm_groups=4,
    )  # fmt: skip


def train(what: str, made: Accelerator, settings: TrainSettings, **more: Any) -> tuple[torch.nn.Module, Any, Any]:
    """The trained model, the result and the bank where there is one."""
    d = dynamics.build("ve")
    if what == "teacher":
        teacher = Teacher(unet(1), d)
        return teacher, train_teacher(made, teacher, IMAGES, settings=settings, random_flip=True, seed=1, **more), None
    flow = IntegrationFlow(unet(2), d, scheme="edm", takes_anchor=True)
    how = {"distance": "pseudo_huber", "huber_c": None, "random_flip": True, "batch_size": settings.batch_size, "seed": 1}
    bank, policy = None, anchors.SelfAnchor(0.3)  # two of six positions, none in some processes
    if what == "bank":
        bank = anchors.AnchorBank(len(IMAGES), (1, 8, 8), seed=1, exchange=ProcessExchange(made))
        policy = anchors.BankAnchor(bank, reset_probability=0.25)
        phase = data_phase(made, flow, IMAGES, mixed=True, **how)
    else:
        phase = consistency_phase(made, flow, IMAGES, intervals=(2, 8), target=what, **how)
    return flow, train_flow(made, flow, [phase], policy=policy, settings=settings, seed=1, **more), bank


def main(case: dict[str, Any]) -> None:
    """case: what, split, blocks, from_main, precision, checkpoints, stop, poisoned, settings, out."""
    torch.set_num_threads(1)
    made = accelerator(case)
    options = {
        "steps": 8, "batch_size": 6, "lr": 1e-3, "lr_decay": "cosine", "warmup_steps": 2, "ema_decay": 0.9,
        "clip_grad_norm": 1.0, "log_every": 2, "checkpoint_every": 4,
    }  # fmt: skip
    settings = TrainSettings(**options | case.get("settings", {}))

    def on_log(row: dict[str, float]) -> None:
        if row["step"] == case.get("stop"):
            sys.exit(7)

    more: dict[str, Any] = {"on_log": on_log}
    if "checkpoints" in case:
        more["checkpoints"] = Checkpoints(Path(case["checkpoints"]))
    model, result, bank = train(case["what"], made, settings, **more)
    assert not is_sharded(model)
    assert all(type(p) is torch.nn.Parameter for p in model.parameters())
    weights = model.state_dict()
    if bank is not None:
        weights |= bank.state()
    out = Path(case["out"])
    torch.save(weights, out / f"weights-{made.process_index}.pt")
    (out / f"curve-{made.process_index}.json").write_text(json.dumps([result.resumed_from, result.history]))


if __name__ == "__main__":
    main(json.loads(os.environ["CASE"]))
