"""Networks in half precision, float32 around them: what is left of float32's answers, and what stays as it was."""

import pytest
import torch
from torch import nn

from ifm import dynamics
from ifm.model import IntegrationFlow, Teacher
from ifm.networks import build_network
from ifm.networks.asking import lower
from ifm.networks.mlp import MLP
from ifm.solver import solve_ode

UNET = {"channels": [8, 16], "layers_per_block": 1, "attention": [False, True], "dropout": 0.0, "norm_groups": 4}
BF16 = 2**-8  # the largest relative error of a rounded number
CASES = {"unet": (1, 8, 8), "cross_attention": (1, 8, 8), "mlp": (2,)}


def flow(case: str) -> IntegrationFlow:
    torch.manual_seed(0)
    anchor = {"takes_anchor": True, "anchor_input": "cross_attention" if case == "cross_attention" else "channels"}
    kind = "mlp" if case == "mlp" else "unet"
    options = {"mlp": {"width": 32, "layers": 2}} if case == "mlp" else UNET
    network = build_network(kind=kind, shape=CASES[case], **anchor, **options)
    return IntegrationFlow(network, dynamics.build("ve", t_max=20.0), scheme="edm", **anchor).eval()


def given(case: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, x_anchor = torch.randn(2, 64, *CASES[case], generator=generator)
    t = torch.linspace(0.01, 20, 64)
    return {"x_t": t.reshape(-1, *[1] * len(CASES[case])) * x, "t": t, "x_anchor": x_anchor}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_half_precision_moves_the_network_by_some_roundings(case: str):
    model, at = flow(case), given(case)
    network = {"x_t": at["x_t"], "t": at["t"]}
    want = model(**at)
    assert lower(model, "bf16") is model
    got = model(**at)
    assert got.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    scale = model.dynamics.flow_preconditioning(network["t"], scheme="edm").c_out.abs()
    moved = (got - want).flatten(1).square().mean(1).sqrt() / scale  # of F_x, whose scale is 1
    assert 0 < float(moved.max()) < 8 * BF16


@torch.no_grad()
def test_times_stay_in_float32():
    """The phases of neighbouring noise levels differ by less than bf16 tells apart."""
    network = flow("mlp").network
    assert isinstance(network, MLP)
    network.compute_in(torch.bfloat16)
    assert network.omega.dtype == torch.float32
    near = torch.tensor([1.0, 1.0 + 2**-9])
    phases = near[:, None] * network.omega
    assert bool((phases[0].sin() != phases[1].sin()).all())


@torch.no_grad()
def test_no_precision_changes_no_bit():
    model, at = flow("unet"), given("unet")
    want = model(**at)
    lower(model, "no")
    assert torch.equal(model(**at), want)


def test_fp16_on_a_cpu_stays_in_float32_with_a_notice(capsys):
    model = lower(flow("mlp"), "fp16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "fp16 needs a GPU" in capsys.readouterr().out


def test_what_has_no_network_stays():
    model = nn.Linear(2, 2)
    assert lower(model, "bf16") is model
    assert model.weight.dtype == torch.float32


@torch.no_grad()
def test_a_path_ends_near_float32s():
    """The end point's RMS error of a whole solve: a few roundings of the network, not their sum over evaluations."""
    torch.manual_seed(0)
    network = build_network(kind="unet", shape=(1, 8, 8), takes_anchor=False, **UNET)
    teacher = Teacher(network, dynamics.build("ve", t_max=20.0)).eval()
    x_T = 20 * torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    how = {"dynamics": teacher.dynamics, "times": teacher.dynamics.solver_times(9)}
    want = solve_ode(teacher, x_T, **how)
    got = solve_ode(lower(teacher, "bf16"), x_T, **how)
    assert got.dtype == torch.float32
    assert 0 < float((got - want).square().mean().sqrt()) < 0.02 * float(want.square().mean().sqrt())
