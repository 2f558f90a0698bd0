"""What test_training.py kills in one number of processes and goes on with in another: a flow with the bank."""

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ifm import anchors, dynamics
from ifm.hardware.processes import ProcessExchange
from ifm.model import IntegrationFlow
from ifm.networks.unet import build_unet
from ifm.objectives.data import data_phase
from ifm.training.checkpoint import Checkpoints
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings


def main(folder: Path, out: Path | None) -> None:
    """Trains to the end and writes weights and bank to `out`; with out None it dies after step 8 of 12."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    network = build_unet(
        image_size=8, in_channels=2, out_channels=1, channels=[8, 8], layers_per_block=1, attention=[False, False],
        dropout=0.0, norm_groups=4,
    )  # fmt: skip
    flow = IntegrationFlow(network, dynamics.build("ve"), scheme="edm", takes_anchor=True)
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8)
    settings = TrainSettings(
        steps=12, batch_size=12, lr=1e-3, lr_decay="cosine", warmup_steps=2, ema_decay=0.9, clip_grad_norm=1.0,
        log_every=2, checkpoint_every=6, gradient_accumulation=2,
    )  # fmt: skip
    bank = anchors.AnchorBank(30, (1, 8, 8), seed=1, exchange=ProcessExchange(accelerator))
    policy = anchors.BankAnchor(bank, reset_probability=0.25)
    how = {"distance": "pseudo_huber", "huber_c": None, "random_flip": True, "batch_size": 12, "seed": 1}
    phase = data_phase(accelerator, flow, images, mixed=True, **how)

    def on_log(row: dict[str, float]) -> None:
        if out is None and row["step"] == 8:
            sys.exit(7)

    run = {"settings": settings, "seed": 1, "checkpoints": Checkpoints(folder), "on_log": on_log}
    result = train_flow(accelerator, flow, [phase], policy=policy, **run)
    state = policy.state()
    if accelerator.is_main_process:
        torch.save(flow.state_dict() | {"bank": state["anchor.bank"], "from": torch.tensor(result.resumed_from)}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
