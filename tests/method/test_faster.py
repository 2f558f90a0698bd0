"""Kernels, recordings and the step's update: they compute what they replace. The GPU's part needs one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ifm.errors import UserError
from ifm.hardware.devices import switched_on
from ifm.hardware.graphs import replaying
from ifm.losses import denoising
from ifm.networks import build_network
from ifm.networks.fused import fuse, release
from ifm.training.loop import TrainSettings, ema_decay, fit, learning_rate

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
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - ema_decay(step, settings()))
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
def test_a_recorded_run_learns_what_a_plain_one_learns(switch: str, monkeypatch):
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    start = Toy()
    histories = []
    for value in ("off", switch):
        monkeypatch.setenv("IFM_GRAPHS", value)
        model = Toy()
        model.load_state_dict(start.state_dict())
        result = fit(Accelerator(), model, loss=lambda m, step: iter([loss_of(m, step)]), settings=settings())
        histories.append([row["loss"] for row in result.history])
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)
