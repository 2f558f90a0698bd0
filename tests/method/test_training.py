"""The loop: exact resume, checkpoints that survive, equal batches for any number of processes."""

import copy
import json
import math
from itertools import chain, pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ifm import anchors, dynamics, losses
from ifm.errors import UserError
from ifm.hardware.devices import RowReader
from ifm.hardware.processes import LaunchError, ProcessExchange, local_positions
from ifm.model import IntegrationFlow, IntervalFlow, Teacher
from ifm.objectives.base import time_weight
from ifm.objectives.consistency import consistency_phase
from ifm.objectives.data import data_phase
from ifm.objectives.interval import interval_phase
from ifm.objectives.pairs import mean_over_reference
from ifm.objectives.trajectory import (
    draw_stored_index,
    trajectory_phase,  # fmt: skip
)
from ifm.random import EndlessShuffle, Streams
from ifm.training.checkpoint import Checkpoints, Snapshot
from ifm.training.flow import train_flow
from ifm.training.loop import Diverged, fit, learning_rate, write_curve
from ifm.training.states import States
from ifm.training.teacher import train_teacher
from ifm.trajectories import StoredTrajectories
from tests.support import distributed_worker, one_launch, resume_worker
from tests.support.launch import one_process, torchrun
from tests.support.training import settings, unet

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), np.uint8)
STATES = np.random.default_rng(0).normal(size=(24, 2, 1, 8, 8)).astype(np.float16)


def run_teacher(**options):
    teacher = Teacher(unet(), dynamics.build("rf"))
    chosen = options.pop("settings", settings())
    result = train_teacher(Accelerator(cpu=True), teacher, IMAGES, settings=chosen, random_flip=True, seed=1, **options)
    return teacher.state_dict(), result


def run_with_dropout(**options):
    """Dropout's masks are drawn anew in every step, and a resumed run draws the same."""
    teacher = Teacher(unet(dropout=0.3), dynamics.build("rf"))
    chosen = options.pop("settings", settings())
    result = train_teacher(Accelerator(cpu=True), teacher, IMAGES, settings=chosen, random_flip=True, seed=1, **options)
    return teacher.state_dict(), result


def run_flow(**options):
    flow = IntegrationFlow(unet(2), dynamics.build("ve"), scheme="edm", takes_anchor=True)
    accelerator, run = Accelerator(cpu=True), {"settings": settings(), "seed": 1} | options
    phase = on_paths(accelerator, flow)
    return flow.state_dict(), train_flow(accelerator, flow, [phase], policy=anchors.SelfAnchor(0.5), **run)


COMPARE = {"distance": "pseudo_huber", "huber_c": None}


def on_paths(accelerator, flow):
    stored = StoredTrajectories(
        STATES, flow.dynamics, times=torch.tensor([80.0, 1.0, 0.0]), shape=(1, 8, 8), seed=1, device=accelerator.device
    )
    return trajectory_phase(accelerator, flow, stored, t_max_share=0.5, **COMPARE)


def bank_of(size, accelerator=None, reset=0.25):
    exchange = ProcessExchange(accelerator) if accelerator else None
    bank = anchors.AnchorBank(size, (1, 8, 8), seed=1, exchange=exchange)
    return anchors.BankAnchor(bank, reset_probability=reset)


def run_bank(**options):
    """Objective `trajectory` with the bank; the bank stands beside the weights."""
    flow = IntegrationFlow(unet(2), dynamics.build("ve"), scheme="edm", takes_anchor=True)
    accelerator, run = Accelerator(cpu=True), {"settings": settings(), "seed": 1} | options
    policy = bank_of(len(STATES), accelerator)
    result = train_flow(accelerator, flow, [on_paths(accelerator, flow)], policy=policy, **run)
    return flow.state_dict() | policy.state(), result


PAIRS = {"random_flip": True, "t_max_share": 0.3, "seed": 1}
DATA = {"distance": "adaptive_huber", "huber_c": None, "weighting": "inverse_scale", "mixed": True}


def train_on_data(flow, images, *, policy, run, **changed):
    accelerator = Accelerator(cpu=True)
    options = PAIRS | DATA | {"batch_size": run["settings"].batch_size} | changed
    phase = data_phase(accelerator, flow, images, **options)
    return train_flow(accelerator, flow, [phase], policy=policy, seed=1, **run)


def run_data(policy=None, **options):
    """Objective `data` with all of its options."""
    flow = IntegrationFlow(unet(2), dynamics.build("pfgmpp"), scheme="paper", takes_anchor=True)
    policy = policy or bank_of(len(IMAGES), Accelerator(cpu=True))
    result = train_on_data(flow, IMAGES, policy=policy, run={"settings": settings()} | options)
    return flow.state_dict() | policy.state(), result


def run_phases(**options):
    """`trajectory`, then `consistency`."""
    flow = IntegrationFlow(unet(2), dynamics.build("ve"), scheme="edm", takes_anchor=True)
    accelerator, run = Accelerator(cpu=True), {"settings": settings(), "seed": 1} | options
    batch = run["settings"].batch_size
    pairs = {"random_flip": True, "seed": 1, "batch_size": batch}
    mean = mean_over_reference(accelerator, flow.dynamics, IMAGES, size=12, **pairs)
    options = {"intervals": (2, 8), "target": "average", "mean": mean}
    phases = [on_paths(accelerator, flow), consistency_phase(accelerator, flow, IMAGES, **options, **pairs, **COMPARE)]
    return flow.state_dict(), train_flow(accelerator, flow, phases, policy=anchors.SelfAnchor(0.5), **run)


def run_interval(**options):
    """`interval`, with attention (whose fast kernels have no forward mode)."""
    network = unet(2, attention=[False, True], two_times=True)
    flow = IntervalFlow(network, dynamics.build("rf"), takes_anchor=True)
    accelerator, run = Accelerator(cpu=True), {"settings": settings(), "seed": 1} | options
    pairs = {"random_flip": True, "seed": 1, "batch_size": run["settings"].batch_size}
    mean = mean_over_reference(accelerator, flow.dynamics, IMAGES, size=12, **pairs)
    how = {"same_share": 0.5, "whole_share": 0.5, "power": 1.0}
    phase = interval_phase(accelerator, flow, IMAGES, mean=mean, **how, **pairs)
    return flow.state_dict(), train_flow(accelerator, flow, [phase], policy=anchors.SelfAnchor(0.5), **run)


@pytest.mark.parametrize("target", ["online", "average"])
def test_the_target_of_consistency_is_the_flow_or_its_average(target):
    flow = IntegrationFlow(unet(2), dynamics.build("ve"), scheme="edm", takes_anchor=True)
    accelerator, asked = Accelerator(cpu=True), []
    options = {"intervals": (4, 4), "target": target, "random_flip": False, "seed": 1, "batch_size": 8}
    phase = consistency_phase(accelerator, flow, IMAGES, **options, **COMPARE)
    assert (phase.average is None) == (target == "online")
    for module in {flow, phase.average} - {None}:
        module.register_forward_hook(lambda module, *_: asked.append((module, torch.is_grad_enabled())))
    train_flow(accelerator, flow, [phase], policy=anchors.NoiseAnchor(), settings=settings(steps=3), seed=1)
    assert asked == [(phase.average or flow, False), (flow, True)] * 3
    for average, own in zip((phase.average or flow).parameters(), flow.parameters(), strict=True):
        assert torch.equal(average, own)  # training leaves the averaged weights in the flow


@pytest.mark.parametrize("target", ["online", "average"])
def test_target_and_estimate_drop_out_the_same(target):
    flow = IntegrationFlow(unet(2, dropout=0.3), dynamics.build("ve"), scheme="edm", takes_anchor=True)
    options = {"intervals": (4, 4), "target": target, "random_flip": False, "seed": 1, "batch_size": 8}
    phase = consistency_phase(Accelerator(cpu=True), flow, IMAGES, **options, **COMPARE)
    drawn_from = []
    for module in {flow, phase.average} - {None}:
        module.register_forward_pre_hook(lambda *_: drawn_from.append(torch.get_rng_state().numpy().tobytes()))
    train_flow(Accelerator(cpu=True), flow, [phase], policy=anchors.NoiseAnchor(), settings=settings(steps=3), seed=1)
    assert drawn_from[::2] == drawn_from[1::2]
    assert len(set(drawn_from)) == 3


def test_the_average_goes_to_the_device_with_its_buffers():
    """Its parameters become the averages' own, which are there; a network's table of frequencies does not."""

    class Sent(torch.nn.Linear):
        def to(self, *given, **more):
            self.where = [*given, *more.values()]
            return super().to(*given, **more)

    accelerator, average = Accelerator(cpu=True), Sent(1, 1)
    model = torch.nn.Linear(1, 1)
    fit(accelerator, model, loss=lambda m, step: iter([m.weight.sum()]), settings=settings(steps=1), average=average)
    assert average.where[0] == accelerator.device


def test_autocast_casts_weights_anew_in_every_call(monkeypatch):
    """Before torch 2.11 a call without gradient left casts that have none, and the next taught the weights nothing."""
    flow, cleared = IntegrationFlow(unet(2), dynamics.build("ve"), scheme="edm", takes_anchor=True), []
    whole = torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (cleared.append(1), whole())[1])
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        options = {"random_flip": False, "seed": 1, "batch_size": 8}
        phase = data_phase(accelerator, flow, IMAGES, **options, **COMPARE)
        policy = anchors.SelfAnchor(1.0)  # asks the flow without gradient
        train_flow(accelerator, flow, [phase], policy=policy, settings=settings(steps=3), seed=1)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert len(cleared) >= 6
    assert not flow._forward_pre_hooks


@pytest.mark.parametrize("run", [run_teacher, run_phases, run_interval, run_bank])
def test_training_with_draws_ahead_is_the_same(run, monkeypatch):
    """As on a GPU: a thread draws for the next step."""
    plain, _ = run()
    monkeypatch.setattr("ifm.random.AHEAD", "cpu")
    ahead, _ = run()
    assert all(torch.equal(plain[name], ahead[name]) for name in plain)


class Killed(Exception):
    pass


def kill_at(step):
    def on_log(row):
        if row["step"] == step:
            raise Killed

    return on_log


EVERY = (run_teacher, run_with_dropout, run_flow, run_bank, run_data, run_phases, run_interval)


@pytest.mark.parametrize(("run", "at"), [*((run, 6) for run in EVERY), (run_with_dropout, 9), (run_bank, 9)])
def test_ten_steps_equal_five_and_a_kill_and_five(run, at, tmp_path):
    """Bit for bit: weights (the average's), bank, curve; the kill comes after the checkpoint of step 5."""
    whole, result = run()
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Killed):
        run(checkpoints=checkpoints, on_log=kill_at(at))
    again, resumed = run(checkpoints=checkpoints)
    assert resumed.resumed_from == 5
    assert resumed.history == result.history
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("run", "kinds"),
    [(run, {"model", "ema", "optimizer"}) for run in (run_flow, run_phases, run_interval)]
    + [(run, {"model", "ema", "optimizer", "anchor"}) for run in (run_bank, run_data)],
)
def test_a_second_kill_and_the_optimizers_state(run, kinds, tmp_path):
    """Checkpoints of interrupted and uninterrupted runs are equal in every tensor: weights, average, moments, bank."""
    one, two = Checkpoints(tmp_path / "one"), Checkpoints(tmp_path / "two")
    run(settings=settings(steps=9, checkpoint_every=2, lr_decay="none"), checkpoints=one)
    for at in (3, 5):
        with pytest.raises(Killed):
            run(settings=settings(steps=9, checkpoint_every=2, lr_decay="none"), checkpoints=two, on_log=kill_at(at))
    run(settings=settings(steps=9, checkpoint_every=2, lr_decay="none"), checkpoints=two)
    a, b = one.load(), two.load()
    assert a.record["step"] == b.record["step"] == 8
    assert a.tensors.keys() == b.tensors.keys()
    assert {name.split(".")[0] for name in a.tensors} == kinds
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, Snapshot({"w": torch.full((300,), float(step))}, {"step": step}))
    newest, older = sorted(tmp_path.iterdir(), reverse=True)
    assert checkpoints.load().record == {"step": 3}
    whole = newest.read_bytes()
    cuts = range(0, len(whole), 11)
    assert len(cuts) > 100
    for cut in cuts:
        newest.write_bytes(whole[:cut])
        with pytest.warns(UserWarning, match="unreadable checkpoint passed over"):
            assert checkpoints.load().record == {"step": 2}
    older.write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over"):
        assert checkpoints.load() is None


def test_a_failed_save_keeps_what_there_was(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, Snapshot({"w": torch.zeros(3)}, {"step": 1}))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ifm.training.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, Snapshot({"w": torch.zeros(3)}, {"step": 2}))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.safetensors"]
    assert checkpoints.load().record == {"step": 1}


def test_learning_rate():
    s = settings(steps=12, warmup_steps=2, lr=1.0)
    rates = [learning_rate(step, s) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[2:]))
    assert rates[-1] > 0
    assert [learning_rate(step, settings(lr=1.0, lr_decay="none", warmup_steps=0)) for step in (0, 9)] == [1.0, 1.0]


def test_the_average_is_what_training_leaves():
    """One parameter, gradient 1: Adam moves it by -lr a step; the average follows diffusers' law of decays."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    fit(
        Accelerator(cpu=True), model, loss=lambda m, step: iter([m.weight.sum()]),
        settings=settings(steps=4, lr=0.1, lr_decay="none", warmup_steps=0, ema_decay=0.3, clip_grad_norm=10.0),
    )  # fmt: skip
    average, value = 0.0, 0.0
    for step in range(4):
        value -= 0.1
        decay = min((1 + step) / (10 + step), 0.3) if step else 0.0
        average += (1 - decay) * (value - average)
    assert model.weight.item() == pytest.approx(average, rel=1e-4)


def test_further_averages_follow_the_same_law_and_leave_training_alone():
    """The state_dict of each decay; one that training goes by gives the same weights whether others are kept or not."""

    def trained(**changes):
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        how = settings(steps=4, lr=0.1, lr_decay="none", warmup_steps=0, clip_grad_norm=10.0, **changes)
        result = fit(Accelerator(cpu=True), model, loss=lambda m, step: iter([m.weight.sum()]), settings=how)
        return model.weight.item(), {decay: one["weight"].item() for decay, one in result.averages.items()}

    alone = {decay: trained(ema_decay=decay) for decay in (0.3, 0.15, 0.0)}
    found = trained(ema_decay=0.3, further_decays=(0.15, 0.0))
    assert found == (alone[0.3][0], {0.15: alone[0.15][0], 0.0: alone[0.0][0]})
    assert len({one for one, _ in alone.values()}) == 3
    assert alone[0.3][1] == {}


def test_states_on_the_way_are_the_averages_and_come_again_after_a_kill(tmp_path):
    """The state after k steps is what training for k steps ends with (a constant rate), whatever was killed."""
    how = {"settings": settings(lr_decay="none", evaluate_every=3)}
    undisturbed = {}
    ended, _ = run_flow(**how, on_state=lambda step, state: undisturbed.update({step: copied(state)}))
    assert list(undisturbed) == [3, 6, 9]
    shorter, _ = run_flow(settings=settings(lr_decay="none", steps=6))
    assert all(torch.equal(x, shorter[name]) for name, x in undisturbed[6].items())
    assert undisturbed[6].keys() == shorter.keys()
    checkpoints, states = Checkpoints(tmp_path), States(tmp_path / "states")
    with pytest.raises(Killed):
        run_flow(**how, checkpoints=checkpoints, on_state=states.save, on_log=kill_at(7))
    again, _ = run_flow(**how, checkpoints=checkpoints, on_state=states.save)
    assert all(torch.equal(ended[name], again[name]) for name in ended)
    for step, weights in undisturbed.items():
        assert all(torch.equal(x, weights[name]) for name, x in states.load(step).items())
    (tmp_path / "states/state-000000006.safetensors").write_bytes(b"torn")
    with pytest.raises(
        UserError, match=r"state-000000006.safetensors: weights of step 6 cannot be read; remove .* and"
    ):
        states.load(6)


def copied(tensors):
    return {name: x.detach().clone() for name, x in tensors.items()}


def test_further_averages_go_on_from_a_checkpoint(tmp_path):
    how = {"settings": settings(further_decays=(0.5, 0.0))}
    whole, result = run_flow(**how)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Killed):
        run_flow(**how, checkpoints=checkpoints, on_log=kill_at(7))
    again, resumed = run_flow(**how, checkpoints=checkpoints)
    assert resumed.resumed_from == 5
    assert result.averages.keys() == resumed.averages.keys() == {0.5, 0.0}
    for decay, weights in result.averages.items():
        assert all(torch.equal(x, resumed.averages[decay][name]) for name, x in weights.items())
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_loss_that_is_not_finite_stops_with_step_and_advice(tmp_path):
    model = torch.nn.Linear(1, 1)
    checkpoints = Checkpoints(tmp_path)
    told = r"not been finite for 10 steps or more, at step 16 \(.*, 10 steps skipped .*lower lr.*checkpoint: .*5\."
    with pytest.raises(Diverged, match=told):
        fit(
            Accelerator(cpu=True), model, settings=settings(steps=20), checkpoints=checkpoints,
            loss=lambda m, step: iter([m.weight.sum() * (float("nan") if step >= 6 else 1.0)]),
        )  # fmt: skip
    assert checkpoints.load().record["step"] in (10, 15)


class ThroughHalf(torch.autograd.Function):
    """The identity, with a gradient that passes through float16, as under fp16 autocast: above 65,504 it is inf."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().float()


def with_scaler() -> Accelerator:
    """fp16's loss scaling on a CPU, where accelerate itself refuses fp16."""
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu")
    return accelerator


@pytest.fixture
def scaled():
    yield with_scaler()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("gradient", [16.0, 2000.0])
def test_steps_of_fp16_before_the_scale_is_found_are_skipped_and_not_nan(gradient, scaled, tmp_path):
    """The scale starts at 2^16: a gradient of 2,000 overflows for 11 steps, more than training stands later on."""
    rows, model = [], torch.nn.Linear(1, 1, bias=False)
    result = fit(
        scaled, model, settings=settings(steps=30, log_every=2, checkpoint_every=2), on_log=rows.append,
        loss=lambda m, step: iter([ThroughHalf.apply(m.weight.sum()) * gradient]),
    )  # fmt: skip
    expected = math.ceil(math.log2(gradient * 2**16 / 65504))
    assert result.history[-1]["skipped"] == expected
    write_curve(tmp_path / "c.csv", result.history)
    assert "nan" not in (tmp_path / "c.csv").read_text()
    curve = pd.read_csv(tmp_path / "c.csv")
    assert curve.loss.isna().sum() == expected // 2
    assert curve.skipped.tolist() == [min(step, expected) for step in range(2, 31, 2)]


def test_fp16_that_finds_no_scale_stops(scaled):
    model = torch.nn.Linear(1, 1, bias=False)
    with pytest.raises(Diverged, match="not been finite for 26 steps or more, at step 30"):
        fit(
            scaled, model, settings=settings(steps=60, log_every=5, checkpoint_every=5),
            loss=lambda m, step: iter([ThroughHalf.apply(m.weight.sum()) * float("nan")]),
        )  # fmt: skip


def test_stored_times_are_drawn_in_their_shares():
    uniform = torch.arange(10_000) / 10_000
    counts = torch.bincount(draw_stored_index(uniform, stored=5, t_max_share=0.4), minlength=5)
    assert counts.tolist() == pytest.approx([4000, 2000, 2000, 2000, 0], abs=2)
    assert draw_stored_index(uniform, stored=2, t_max_share=0.4).max() == 0
    assert draw_stored_index(uniform, stored=5, t_max_share=1.0).max() == 0


def test_an_objective_data_step_is_the_papers_algorithm():
    """The first two losses from the definitions: fresh z and t, the sample's own anchor, 1/n to the data."""
    images, batch = IMAGES[:8], 8  # one batch is one epoch, so that step 1 is every sample's second visit
    d = dynamics.build("rf")
    for steps in (1, 2):
        flow = IntegrationFlow(unet(2), d, scheme="edm", takes_anchor=True)
        before, policy = copy.deepcopy(flow).train(), bank_of(8, reset=0.0)
        result = train_on_data(
            flow, images, policy=policy, run={"settings": settings(steps=steps, lr=1e-12)}, random_flip=False,
            distance="pseudo_huber",
        )  # fmt: skip
        found = [row["loss"] for row in result.history]
        held = torch.zeros(8, 1, 8, 8)
        for step in range(steps):
            rows = EndlessShuffle(8, batch, seed=1).batch(step)
            x_0 = torch.from_numpy(images[rows]).float() / 127.5 - 1
            noise, positions = Streams(1, "noise", range(batch), step=step), range(batch)
            t = d.draw_time(generator=noise)
            t[Streams(1, "anchor", positions, step=step).uniform() < 0.3] = 1.0
            z, at = noise.normal((1, 8, 8)), t.view(-1, 1, 1, 1)
            x_t = (1 - at) * x_0 + at * z
            x_anchor = Streams(1, "bank", rows).normal((1, 8, 8)).half().float() if step == 0 else held[rows]
            x_0_hat = before(x_t, t, x_anchor=x_anchor).detach()
            distance = [losses.pseudo_huber(x_0_hat, target) for target in (x_0, x_anchor)]
            share = 1 / (step + 1)
            expected = ((share * distance[0] + (1 - share) * distance[1]) / t).mean()
            assert found[step] == pytest.approx(expected.item(), rel=1e-4)
            held[rows] = x_0_hat.half().float()
        torch.testing.assert_close(policy.state()["anchor.bank"].float(), held, rtol=2e-3, atol=2e-3)


def test_with_objective_data_the_one_step_map_tends_to_the_mean():
    """All at t_max, L2: a free image as F finds the mean of the data, since x_T says nothing of x_0."""

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.image = torch.nn.Parameter(torch.zeros(1, 1, 8, 8))

        def forward(self, inputs, c_noise):
            return self.image.expand(len(inputs), -1, -1, -1)

    d = dynamics.build("ve", t_min=1e-6, t_max=1e3)
    flow = IntegrationFlow(Constant(), d, scheme="paper", takes_anchor=False)
    chosen = settings(
        steps=300, batch_size=20, lr=0.02, lr_decay="cosine", warmup_steps=0, log_every=300, checkpoint_every=300
    )  # fmt: skip
    plain = {"distance": "l2", "mixed": False, "weighting": "none", "t_max_share": 1.0, "random_flip": False}
    train_on_data(flow, IMAGES, policy=anchors.NoAnchor(), run={"settings": chosen}, **plain)
    mean = torch.from_numpy(IMAGES).float().mean(0) / 127.5 - 1
    torch.testing.assert_close(flow.network.image.detach()[0], mean, rtol=0, atol=0.01)


def test_the_mixed_schedule_needs_the_bank():
    with pytest.raises(ValueError, match="needs anchor policy bank"):
        run_data(policy=anchors.NoiseAnchor())


@pytest.mark.parametrize("name", ["ve", "rf", "pfgmpp"])
def test_time_weights(name):
    d, t = dynamics.build(name), torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64)
    assert time_weight(d, t, kind="none") is None
    expected = 1 / t if name == "rf" else (t**2 + 0.25).sqrt() / (0.5 * t)
    torch.testing.assert_close(time_weight(d, t, kind="inverse_scale"), expected)
    with pytest.raises(ValueError, match="unknown time weight 'x'; known: none, inverse_scale"):
        time_weight(d, t, kind="x")


def test_rows_are_the_same_resident_and_mapped(monkeypatch):
    rows = np.array([3, 3, 0, 19])
    resident = RowReader(IMAGES, torch.device("cpu"))(rows)
    monkeypatch.setattr("ifm.hardware.devices.RESIDENT_BYTES", 0)
    mapped = RowReader(IMAGES, torch.device("cpu"))(rows)
    assert torch.equal(resident, mapped)
    assert np.array_equal(mapped.numpy(), IMAGES[rows])


def test_processes_share_a_batch():
    class Two:
        num_processes, process_index = 2, 1

    assert local_positions(Two(), 8).tolist() == [4, 5, 6, 7]
    with pytest.raises(LaunchError, match="batch_size = 9 cannot be shared by 2 processes; use a multiple of 2"):
        local_positions(Two(), 9)


def test_curve_file(tmp_path):
    row = {"step": 1, "loss": 0.1, "loss_max": 0.2, "grad_norm": 2.0, "lr": 1e-4, "skipped": 0.0, "ema_distance": 0.5}
    write_curve(tmp_path / "c.csv", [row])
    text = "step,loss,loss_max,grad_norm,lr,skipped,ema_distance\n1,0.1,0.2,2.0,0.0001,0.0,0.5\n"
    assert (tmp_path / "c.csv").read_text() == text


def goes_on(processes, folder, out=None):
    """Trains from the folder's checkpoints, and says whether it came to its end. Without out it dies after step 8."""
    if processes == 1:
        with one_process():
            resume_worker.main(folder, out)
        return True
    done = torchrun(resume_worker, processes, folder, *([out] if out else []))
    assert done.returncode == 0 or out is None, done.stderr[-3000:]
    return done.returncode == 0


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """What three processes wrote: stages/ from nothing, and resumed.pt of a run that two began and did not end."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "stages").mkdir()
    assert not goes_on(2, folder / "checkpoints")
    stages = (distributed_worker.__name__, folder / "stages")
    resumed = (resume_worker.__name__, folder / "checkpoints", folder / "resumed.pt")
    done = torchrun(one_launch, 3, *stages, "--", *resumed)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_see_the_same_global_batches_and_reach_the_same_model(processes, three, tmp_path):
    """torchrun with 2 and 3 CPU processes against one: equal batches, weights equal up to the order of sums."""
    outputs = one, many = tmp_path, three / "stages" if processes == 3 else tmp_path / "many"
    with one_process():
        distributed_worker.main(one)
    if processes != 3:
        many.mkdir()
        done = torchrun(distributed_worker, processes, many)
        assert done.returncode == 0, done.stderr[-3000:]
    batches = [sorted(json.loads(p.read_text()) for p in out.glob("batches-*.json")) for out in outputs]
    flat = [[sorted(chain.from_iterable(part[step] for part in parts)) for step in range(6)] for parts in batches]
    assert flat[0] == flat[1]
    bank_a, bank_b = (torch.load(out / "bank.pt", weights_only=True) for out in outputs)
    assert bank_a.dtype == torch.float16
    torch.testing.assert_close(bank_a.float(), bank_b.float(), rtol=2e-2, atol=2e-3)
    for part in range(processes):
        shares = json.loads((many / f"bank-{part}.json").read_text())
        assert shares["digest"] == json.loads((one / "bank-0.json").read_text())["digest"]  # bit for bit
        assert shares["bytes"] == len(range(part, 30, processes)) * 128
    for name in ("teacher", "flow", "data", "consistency", "interval", "led-teacher", "led-data", "led-interval"):
        a, b = (torch.load(out / f"{name}.pt", weights_only=True) for out in outputs)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=2e-3, atol=2e-5)
    for folder in ("shards", "led"):
        shards = [sorted(p.name for p in out.glob(f"{folder}/*.npy")) for out in outputs]
        assert shards[0] == shards[1]
        assert len(shards[0]) == 3
        for name in shards[0]:
            assert (one / folder / name).read_bytes() == (many / folder / name).read_bytes()


def test_an_intervals_anchor_is_made_at_its_own_start():
    """Policy `self` must see (x_t, t) of the interval's later end: an estimate from an earlier point would tell x_0."""
    seen = []

    class Watching(anchors.SelfAnchor):
        def __call__(self, flow, x_t, t, **rest):
            seen.append(("anchor", x_t.clone(), t.clone()))
            return super().__call__(flow, x_t, t, **rest)

    class Flow(IntervalFlow):
        def forward(self, x_t, t, *, x_anchor, s=None, mean_velocity=False):
            if mean_velocity:
                seen.append(("loss", x_t.clone(), t.clone()))
                assert bool((s <= t).all())
                assert 0 < int((s < t).sum()) < len(t)
                assert int((s == 0).sum()) >= 2  # whole paths
            return super().forward(x_t, t, x_anchor=x_anchor, s=s, mean_velocity=mean_velocity)

    flow = Flow(unet(2, two_times=True), dynamics.build("rf"), takes_anchor=True)
    how = {"same_share": 0.5, "whole_share": 0.5, "power": 0.0, "batch_size": 16, "random_flip": True, "seed": 1}
    accelerator, chosen = Accelerator(cpu=True), settings(steps=2, batch_size=16)
    phase = interval_phase(accelerator, flow, IMAGES, **how)
    train_flow(accelerator, flow, [phase], policy=Watching(0.5), settings=chosen, seed=1)
    assert [kind for kind, *_ in seen] == ["anchor", "loss"] * 2
    for (_, x_t, t), (_, x_loss, t_loss) in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(x_t, x_loss)
        assert torch.equal(t, t_loss)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    goes_on(1, folder / "checkpoints", folder / "whole.pt")
    return torch.load(folder / "whole.pt", weights_only=True)


@pytest.mark.parametrize(("before", "after"), [(2, 3), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(before, after, undisturbed, three, tmp_path):
    """Killed after step 8 in so many processes, ended in others: weights and bank as of an undisturbed run in one."""
    folder = three
    if (before, after) != (2, 3):
        folder = tmp_path
        assert not goes_on(before, folder / "checkpoints")
        assert goes_on(after, folder / "checkpoints", folder / "resumed.pt")
    resumed = torch.load(folder / "resumed.pt", weights_only=True)
    assert (undisturbed["from"], resumed["from"]) == (0, 6)
    for name in undisturbed.keys() - {"from"}:
        near = {"rtol": 2e-2, "atol": 2e-3} if name == "bank" else {"rtol": 2e-3, "atol": 5e-5}
        torch.testing.assert_close(resumed[name].float(), undisturbed[name].float(), **near)
