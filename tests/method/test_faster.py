"""Kernels, recordings and the step's update: they compute what they replace. The GPU's part needs one."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm.errors import UserError
from ifm.hardware import graphs as recordings
from ifm.hardware.devices import switched_on
from ifm.hardware.graphs import Graphed, replaying
from ifm.losses import denoising
from ifm.networks import build_network
from ifm.networks.fused import fuse, release
from ifm.training.averages import ema_decay
from ifm.training.loop import TrainSettings, fit, learning_rate
from ifm.training.update import RecordedUpdate, Update

ROOT = Path(__file__).parents[2]
STEPS = 8
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.silu(self.first(x)))


def batch(step: int) -> Tensor:
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, step: int) -> Tensor:
    x = batch(step).to(next(model.parameters()).device)
    return denoising(model(x + 0.1), x_0=x, scale=torch.ones(4, device=x.device))


def settings() -> TrainSettings:
    return TrainSettings(
        steps=STEPS, batch_size=4, lr=1e-2, lr_decay="cosine", warmup_steps=3, ema_decay=0.9, clip_grad_norm=0.5,
        log_every=1, checkpoint_every=STEPS,
    )  # fmt: skip


def test_training_on_a_cpu_is_the_plain_loop_bit_for_bit():
    """Clip, AdamW, average: eight losses, norms and the averaged weights."""
    torch.manual_seed(0)
    ours, plain = Toy(), Toy()
    plain.load_state_dict(ours.state_dict())
    result = fit(Accelerator(cpu=True), ours, loss=lambda m, step: iter([loss_of(m, step)]), settings=settings())

    parameters = list(plain.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in parameters]
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(step, settings())
        value = loss_of(plain, step)
        value.backward()
        norms.append(float(nn.utils.clip_grad_norm_(parameters, 0.5)))
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - ema_decay(step, settings().ema_decay))
        losses.append(float(value))
    assert [row["loss"] for row in result.history] == losses
    assert [row["grad_norm"] for row in result.history] == norms
    assert all(torch.equal(p, mean) for p, mean in zip(ours.parameters(), average, strict=True))


def unet() -> nn.Module:
    torch.manual_seed(0)
    options = {"channels": [8, 16], "layers_per_block": 1, "attention": [False, True], "dropout": 0.0, "norm_groups": 4}
    return build_network(kind="unet", shape=(1, 8, 8), takes_anchor=False, **options)


def test_on_a_cpu_a_network_stays_as_it_is():
    network = unet()
    assert not fuse(network, torch.device("cpu"))
    assert not any("forward" in vars(module) for module in network.modules())


def test_a_models_own_forward_stands_again_after_a_recording():
    model, other = Toy(), Toy()
    mine = other.forward = lambda x: x
    with replaying(model, None, other):
        assert "forward" in vars(model)
        assert other.forward is not mine
    assert "forward" not in vars(model)
    assert other.forward is mine


def test_switches_say_what_they_allow(monkeypatch):
    for name in ("IFM_KERNELS", "IFM_GRAPHS"):
        monkeypatch.setenv(name, "off")
        assert not switched_on(name, default=True)
        monkeypatch.setenv(name, "fast")
        with pytest.raises(UserError, match=f"{name} = 'fast' is not allowed; allowed: on, off"):
            switched_on(name, default=True)


# --- what is recorded, with a recorder that does the work again ----------------------------------------------------


def again(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """In place of a CUDA graph: does the work at each replay, on the tensors of the recording, and not before."""
    update = getattr(work, "__self__", None)
    if update is None:  # a model's call, which changes nothing
        result = work().clone()
        return lambda: result.copy_(work()), result
    gradients, result = [p.grad for p in update._parameters], torch.zeros(())

    def replay() -> None:
        for p, gradient in zip(update._parameters, gradients, strict=True):
            p.grad = gradient
        result.copy_(work())

    return replay, result


@pytest.fixture
def recorder(monkeypatch) -> list[str]:
    """Recordings without a GPU, and the kinds of what was recorded."""
    made: list[str] = []

    def backward_too(shell: nn.Module, given: tuple[Tensor, ...], **_: Any) -> nn.Module:
        made.append("backward")
        return shell

    def forward(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        made.append("forward")
        return again(work)

    monkeypatch.setattr(recordings, "_recorded", forward)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", backward_too)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(recordings, "DEVICE", "cpu")
    return made


class Told(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor, *, x_anchor: Tensor | None = None, twice: bool = False) -> Tensor:
        y = self.linear(x) * t[:, None]
        y = y if x_anchor is None else y + x_anchor
        return 2 * y if twice else y


def test_recorded_calls_give_what_plain_ones_give(recorder, monkeypatch):
    monkeypatch.setattr(recordings, "MOST_KINDS", 4)
    model = Told()
    faster = Graphed(model, model.forward)
    for trial in range(12):
        n = 4 if trial % 2 else 3
        x, t, x_anchor = torch.randn(n, 3), torch.rand(n), torch.randn(n, 3)
        for told in ({}, {"x_anchor": x_anchor, "twice": True}):
            got, want = faster(x, t, **told), model(x, t, **told)
            assert torch.equal(got, want)
            found = [torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in (got, want)]
            assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert recorder == ["backward"] * 4
    with torch.no_grad():
        for _ in range(6):
            assert torch.equal(faster(x, t), model(x, t))  # the fifth kind stays plain
    assert recorder == ["backward"] * 4


def test_calls_without_gradient_are_recorded_by_themselves(recorder):
    model = Told()
    faster = Graphed(model, model.forward)
    with torch.no_grad():
        first = [faster(*given) for given in ((torch.full((2, 3), float(i)), torch.ones(2)) for i in range(8))]
        assert recorder == ["forward"]
        for i, y in enumerate(first):  # copies: no replay wrote over an earlier result
            assert torch.equal(y, model(torch.full((2, 3), float(i)), torch.ones(2)))


def test_a_second_call_before_the_first_ones_backward_pass_is_plain(recorder, monkeypatch):
    model, calls = Told(), []
    faster = Graphed(model, lambda *args: calls.append(args) or model(*args))
    x, t = torch.randn(2, 3), torch.ones(2)
    for _ in range(4):
        faster(x, t).sum().backward()
    monkeypatch.setattr(faster, "_recorded", {kind: (lambda *_: model(x, t)) for kind in faster._recorded})
    calls.clear()
    one, two = faster(x, t), faster(x, t)
    assert len(calls) == 1
    (one.sum() + two.sum()).backward()
    faster(x, t)
    assert len(calls) == 1


def test_forward_mode_is_never_recorded(recorder):
    model = Told()
    faster = Graphed(model, model.forward)
    x, t = torch.randn(2, 3), torch.ones(2)
    for _ in range(6):
        got = torch.func.jvp(lambda x: faster(x, t), (x,), (torch.ones_like(x),))
        want = torch.func.jvp(lambda x: model(x, t), (x,), (torch.ones_like(x),))
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    assert recorder == []


def test_what_cannot_be_recorded_goes_on_with_a_notice(recorder, monkeypatch, capsys):
    def broken(*_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", broken)
    model = Told()
    faster = Graphed(model, model.forward)
    x, t = torch.randn(2, 3), torch.ones(2)
    assert all(torch.equal(faster(x, t), model(x, t)) for _ in range(8))
    assert capsys.readouterr().out.count("CUDA graph failed (RuntimeError: operation not permitted when") == 1


def test_an_update_that_cannot_be_recorded_stays_plain(monkeypatch, capsys):
    def broken(work: Callable[[], Tensor]) -> None:
        raise RuntimeError("not permitted")

    monkeypatch.setattr(recordings, "_recorded", broken)
    done: list[int] = []
    replayed = recordings.Replayed(lambda: done.append(len(done)))
    for _ in range(7):
        replayed()
    assert done == list(range(7))
    assert capsys.readouterr().out == "CUDA graph failed (RuntimeError: not permitted): goes on without\n"


@pytest.mark.parametrize("gradient", [True, False])
def test_a_recording_that_is_wrong_is_given_up_with_a_notice(gradient, recorder, monkeypatch, capsys):
    """Its weights are those of the time when it was made: no call is answered by it."""
    model = Told()
    stale = copy.deepcopy(model)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda *_, **__: lambda x, t: stale(x, t))
    monkeypatch.setattr(recordings, "_recorded", lambda work: (lambda: None, stale(x, t)))
    faster = Graphed(model, model.forward)
    x, t = torch.randn(2, 3), torch.ones(2)
    for _ in range(6):
        with torch.set_grad_enabled(gradient):
            y = faster(x, t)
        if gradient:
            y.sum().backward()
        assert torch.equal(y, model(x, t))
        with torch.no_grad():
            model.linear.weight.add_(0.3)
    assert capsys.readouterr().out.count("CUDA graph failed (a replay is ") == 1


@pytest.mark.parametrize("without", [(6, 7, 10), range(5), range(3)])
def test_a_recorded_update_is_the_plain_one(recorder, without):
    """To rounding, with gradients at new addresses in every step, and weights without any for a while, or at first."""
    torch.manual_seed(0)
    models = [Toy(), Toy()]
    models[1].load_state_dict(models[0].state_dict())
    updates = []
    for model, kind in zip(models, (Update, RecordedUpdate), strict=True):
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=torch.tensor(1e-2), weight_decay=0.0, fused=True)
        average = [p.detach().clone() for p in parameters]
        named = {"parameters": parameters, "average": average, "clip": 0.5}
        updates.append((kind(Accelerator(cpu=True), optimizer, None, **named), average))
    kept = []
    for step in range(12):
        norms = []
        for model, (update, _) in zip(models, updates, strict=True):
            loss_of(model, step).backward()
            kept.append([p.grad for p in model.parameters()])  # their memory is not used again
            if step in without:
                model.first.bias.grad = None
            norms.append(float(update(lr=1e-2 / (1 + step), decay=0.5 + step / 30)))
            assert all(p.grad is None for p in model.parameters())
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for one, other in zip(updates[0][1], updates[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    # At first, and where other weights have gradients: steps 6, 8, 10, 11; or after a plain update that makes moments.
    assert recorder == ["forward"] * {6: 5, 0: 2 if len(without) == 5 else 1}[without[0]]


KERNELS = """
import torch
from torch import nn
from ifm.networks.kernels import group_norm_silu
torch.manual_seed(0)
for channels, groups, side, shifted, silu in [(12, 4, 5, True, True), (6, 3, 3, False, True), (8, 4, 4, True, False)]:
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(3, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    shift = torch.randn(3, channels).requires_grad_() if shifted else None
    wide = [w.detach().double().requires_grad_() for w in (x, norm.weight, norm.bias, *([shift] if shifted else []))]
    h = wide[0] + wide[3][:, :, None, None] if shifted else wide[0]
    want = nn.functional.group_norm(h, groups, wide[1], wide[2], norm.eps)
    want = nn.functional.silu(want) if silu else want
    got = group_norm_silu(x, norm, silu=silu, shift=shift)
    upstream = torch.randn_like(got)
    inputs = [x, norm.weight, norm.bias, *([shift] if shifted else [])]
    pairs = [(got, want)]
    pairs += zip(torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(want, wide, upstream.double()))
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
print("equal")
"""


def test_the_kernels_are_group_normalization_and_its_gradient():
    """Against float64, in Triton's interpreter: groups and channels of a group that are no powers of two too."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "equal", done.stderr


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_with_kernels_computes_the_same(dtype: torch.dtype):
    torch.backends.cudnn.allow_tf32 = False
    network = unet().cuda().to(memory_format=torch.channels_last)
    x, t = torch.randn(4, 1, 8, 8, device="cuda"), torch.rand(4, device="cuda")

    def outcome() -> list[Tensor]:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            y = network(x, t).float()
        return [y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))]

    want = outcome()
    assert fuse(network, x.device)
    got = outcome()
    release(network)
    assert not any("forward" in vars(module) for module in network.modules())
    for one, other in zip(got, want, strict=True):
        assert float((one - other).norm()) <= (1e-4 if dtype == torch.float32 else 5e-2) * float(
            want[0].norm() + other.norm()
        )


@needs_gpu
@pytest.mark.parametrize("switch", ["on", "off"])
def test_a_recorded_run_learns_what_a_plain_one_learns(switch: str, monkeypatch, gpu, capsys):
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    start = Toy()
    histories = []
    for value in ("off", switch):
        monkeypatch.setenv("IFM_GRAPHS", value)
        model = Toy()
        model.load_state_dict(start.state_dict())
        result = fit(gpu, model, loss=lambda m, step: iter([loss_of(m, step)]), settings=settings())
        histories.append([row["loss"] for row in result.history])
    assert "CUDA graph failed" not in capsys.readouterr().out
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)
