"""What test_training.py runs in one and in several processes: teacher, trajectories and flow, on tiny data."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ifm import anchors, dynamics
from ifm.conditions.base import varying
from ifm.conditions.classes import Classes, ClassLabels
from ifm.guidance import Guidance
from ifm.hardware.processes import ProcessExchange, local_positions
from ifm.model import IntegrationFlow, IntervalFlow, Teacher
from ifm.networks import build_network
from ifm.networks.unet import build_unet
from ifm.objectives.consistency import consistency_phase
from ifm.objectives.data import data_phase
from ifm.objectives.interval import interval_phase
from ifm.objectives.pairs import mean_over_reference
from ifm.objectives.trajectory import trajectory_phase
from ifm.random import EndlessShuffle
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings
from ifm.training.teacher import train_teacher
from ifm.trajectories import StoredTrajectories, generate, stored_times


class Recorded:
    """An array that remembers which rows were asked for."""

    nbytes = 2**40  # never resident: every row is asked for

    def __init__(self, array):
        self.array, self.asked = array, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        self.asked.append(rows.tolist())
        return self.array[rows]


def unet(in_channels, **more):
    torch.manual_seed(0)
    return build_unet(
        image_size=8, in_channels=in_channels, out_channels=1, channels=[8, 8], layers_per_block=1,
        attention=[False, False], dropout=0.0, norm_groups=4, **more,
    )  # fmt: skip


def live(bank, positions):
    """Some steps of an elementwise rule on the bank, which is exact in any number of processes: its digest."""
    order = EndlessShuffle(30, 12, seed=7)
    for step in range(9):
        visit = anchors.Visit(order.batch(step), order.visits(step))
        x = bank.read(visit, positions)
        bank.write(visit, -0.7 * x + torch.from_numpy(positions).view(-1, 1, 1, 1).half())
    state = bank.state()
    return hashlib.sha256(state[bank.KEY].numpy().tobytes()).hexdigest() if state else None


def led(accelerator: Accelerator, settings: TrainSettings, out: Path) -> dict[str, torch.nn.Module]:
    """Points with classes: a teacher whose labels are left out, its guided paths, and flows with guidance inside."""
    data = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    d, kind = dynamics.build("trig"), Classes(classes=["a", "b"], shares=[0.5, 0.5], drops=True)
    ranged = kind.told_to(drops=True, scale=(1.0, 3.0))

    def read(rows):
        return ClassLabels(torch.from_numpy(rows % 2))

    def mlp(kind, **more):
        torch.manual_seed(0)
        return build_network(
            kind="mlp", shape=(2,), takes_anchor=False, condition=kind, mlp={"width": 16, "layers": 1}, **more
        )

    teacher = Teacher(mlp(kind), d)
    told = {"read_condition": read, "vary": varying(kind, drop=0.3)}
    train_teacher(accelerator, teacher, data, settings=settings, random_flip=False, seed=1, keep_after=3, **told)
    guidance = Guidance("cfg", (1.0, 3.0))
    generate(
        accelerator, guidance.around(Teacher(mlp(kind), d).eval(), kind), d, shape=(2,), count=20, stored_times=3,
        solver_steps=4, rho=7.0, batch_size=4, shard_size=8, seed=1, work=out, kind=ranged,
    )  # fmt: skip
    pairs = {"random_flip": False, "batch_size": settings.batch_size, "seed": 1, "read_condition": read}
    fixed = guidance.around(Teacher(mlp(kind), d).eval().requires_grad_(False), kind)
    flow = IntegrationFlow(mlp(ranged), d, scheme="edm", takes_anchor=False)
    phase = data_phase(
        accelerator, flow, data, distance="l2", huber_c=None, t_max_share=0.5, mean=lambda step: fixed,
        vary=varying(ranged, drop=0.0), **pairs,
    )  # fmt: skip
    train_flow(accelerator, flow, [phase], policy=anchors.NoAnchor(), settings=settings, seed=1)
    interval = IntervalFlow(mlp(ranged, two_times=True), d, takes_anchor=False)
    how = {"same_share": 0.5, "whole_share": 0.5, "power": 1.0, "guidance": guidance}
    phase = interval_phase(accelerator, interval, data, **how, **pairs, vary=varying(ranged, drop=0.3))
    train_flow(accelerator, interval, [phase], policy=anchors.NoAnchor(), settings=settings, seed=1)
    return {"led-teacher": teacher, "led-data": flow, "led-interval": interval}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    settings = TrainSettings(
        steps=6, batch_size=12, lr=1e-3, lr_decay="cosine", warmup_steps=2, ema_decay=0.9, clip_grad_norm=1.0,
        log_every=2, checkpoint_every=4,
    )  # fmt: skip
    images = Recorded(np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8))
    d = dynamics.build("ve")
    teacher = Teacher(unet(1), d)
    train_teacher(accelerator, teacher, images, settings=settings, random_flip=True, seed=1)
    fixed = Teacher(unet(1), d).eval()  # one model for all counts, so that the shards can be equal byte for byte
    shards = generate(
        accelerator, fixed, d, shape=(1, 8, 8), count=20, stored_times=3, solver_steps=4, rho=7.0, batch_size=4,
        shard_size=8, seed=1, work=out / "shards",
    )  # fmt: skip
    states = np.concatenate([np.load(shard) for shard in shards])
    times = stored_times(d, {"solver_steps": 4, "stored_times": 3, "rho": 7.0})
    flow = IntegrationFlow(unet(2), d, scheme="edm", takes_anchor=True)
    compare = {"distance": "pseudo_huber", "huber_c": None}
    pairs = {"random_flip": True, "batch_size": settings.batch_size, "seed": 1}
    run = {"settings": settings, "seed": 1}
    stored = StoredTrajectories(Recorded(states), d, times=times, shape=(1, 8, 8), seed=1, device=accelerator.device)
    phase = trajectory_phase(accelerator, flow, stored, t_max_share=0.5, **compare)
    train_flow(accelerator, flow, [phase], policy=anchors.SelfAnchor(0.5), **run)
    free = IntegrationFlow(unet(2), d, scheme="edm", takes_anchor=True)
    mean = mean_over_reference(accelerator, d, images.array, size=18, **pairs)
    phase = consistency_phase(
        accelerator, free, images.array, intervals=(2, 8), target="average", mean=mean, **pairs, **compare
    )
    train_flow(accelerator, free, [phase], policy=anchors.SelfAnchor(0.5), **run)
    interval = IntervalFlow(unet(2, two_times=True), d, takes_anchor=True)
    how = {"same_share": 0.5, "whole_share": 0.5, "power": 1.0, "mean": mean}
    phase = interval_phase(accelerator, interval, images.array, **how, **pairs)
    train_flow(accelerator, interval, [phase], policy=anchors.SelfAnchor(0.5), **run)
    bank = anchors.AnchorBank(30, (1, 8, 8), seed=1, exchange=ProcessExchange(accelerator))
    digest = [live(bank, local_positions(accelerator, 12))]
    torch.distributed.broadcast_object_list(digest) if accelerator.num_processes > 1 else None
    (out / f"bank-{accelerator.process_index}.json").write_text(json.dumps({"digest": digest, "bytes": bank.nbytes}))

    policy = anchors.BankAnchor(
        anchors.AnchorBank(30, (1, 8, 8), seed=1, exchange=ProcessExchange(accelerator)), reset_probability=0.25
    )
    on_data = IntegrationFlow(unet(2), d, scheme="paper", takes_anchor=True)
    how = {
        "distance": "adaptive_huber",
        "huber_c": None,
        "weighting": "inverse_scale",
        "mixed": True,
        "t_max_share": 0.5,
    }
    train_flow(
        accelerator, on_data, [data_phase(accelerator, on_data, images.array, **how, **pairs)], policy=policy, **run
    )
    guided = led(accelerator, settings, out / "led")
    state = policy.state()
    (out / f"batches-{accelerator.process_index}.json").write_text(json.dumps(images.asked))
    if accelerator.is_main_process:
        for name, model in guided.items():
            torch.save(model.state_dict(), out / f"{name}.pt")
        torch.save(teacher.state_dict(), out / "teacher.pt")
        torch.save(flow.state_dict(), out / "flow.pt")
        torch.save(free.state_dict(), out / "consistency.pt")
        torch.save(interval.state_dict(), out / "interval.pt")
        torch.save(on_data.state_dict(), out / "data.pt")
        torch.save(state["anchor.bank"], out / "bank.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
