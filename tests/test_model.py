"""Teacher, flow, anchors and objectives on small tensors."""

import math

import pytest
import torch

from ifm import anchors, dynamics, objectives, pretrained
from ifm.model import IntegrationFlow, Teacher
from ifm.networks import build_unet, copy_weights
from ifm.random import Streams

NAMES = list(dynamics.DYNAMICS)
SCHEMES = ("edm", "paper")


def unet(in_channels=1, seed=0):
    torch.manual_seed(seed)
    return build_unet(
        image_size=8,
        in_channels=in_channels,
        out_channels=1,
        channels=[8, 16],
        layers_per_block=1,
        attention=[False, True],
        dropout=0.1,
        norm_groups=4,
    )


def make_flow(name="ve", scheme="edm", takes_anchor=True, seed=0):
    network = unet(2 if takes_anchor else 1, seed)
    return IntegrationFlow(network, dynamics.build(name), scheme=scheme, takes_anchor=takes_anchor)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("takes_anchor", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_boundary_holds_exactly_with_random_weights(name, scheme, takes_anchor, training):
    """g(., x, t_min) = x, bit for bit."""
    flow = make_flow(name, scheme, takes_anchor).train(training)
    x = torch.randn(3, 1, 8, 8)
    t = torch.full((3,), flow.dynamics.t_min)
    # c_noise = ln(t) / 4 has no value at rf's t = 0, nor does it need one: rf's c_noise is t.
    assert torch.equal(flow(x, t, x_anchor=torch.randn_like(x) if takes_anchor else None), x)


@pytest.mark.parametrize("init", ["scratch", "teacher"])
@pytest.mark.parametrize("name", NAMES)
def test_the_anchor_is_heard(name, init):
    """Another anchor gives another image, fresh and started from a teacher (whose network has no such input)."""
    flow = make_flow(name).eval()
    if init == "teacher":
        assert copy_weights(unet(seed=1), flow.network) == []
    d = flow.dynamics
    x_T = d.prior((1, 8, 8), generator=Streams(0, "prior", range(4)))
    t = torch.full((4,), d.t_max)
    a, b = (flow(x_T, t, x_anchor=Streams(0, "anchor", range(k, k + 4)).normal((1, 8, 8))) for k in (0, 4))
    assert bool(((a - b).flatten(1).norm(dim=1) > 1e-5 * a.flatten(1).norm(dim=1)).all())


def test_every_weight_that_hears_the_anchor_gets_a_gradient():
    flow = make_flow().train()
    x = torch.randn(2, 1, 8, 8)
    flow(x, torch.ones(2), x_anchor=torch.randn_like(x)).square().sum().backward()
    gradient = flow.network.model.conv_in.weight.grad
    assert bool((gradient[:, 1] != 0).any(dim=(1, 2)).all())


def test_a_flow_without_anchor_refuses_one_and_the_reverse():
    x, t = torch.zeros(1, 1, 8, 8), torch.ones(1)
    with pytest.raises(ValueError, match="takes no anchor"):
        make_flow(takes_anchor=False)(x, t, x_anchor=x)
    with pytest.raises(ValueError, match="takes an anchor"):
        make_flow()(x, t, x_anchor=None)


@pytest.mark.parametrize("name", ["rf", "ve"])
def test_a_flow_started_from_the_teacher_is_nearly_its_denoiser(name):
    """Scheme `edm`: equal preconditioning (for ve up to t_min), equal weights, an anchor that is barely heard yet."""
    d, source = dynamics.build(name), unet(seed=3)
    teacher = Teacher(source, d).eval()
    flow = make_flow(name, takes_anchor=False, seed=4).eval()
    assert copy_weights(source, flow.network) == []
    x_t, t = torch.randn(4, 1, 8, 8), torch.full((4,), 0.7)
    torch.testing.assert_close(flow(x_t, t, x_anchor=None), teacher(x_t, t), rtol=0.02, atol=0.02)


def test_copy_weights_names_what_it_left():
    wide = build_unet(
        image_size=8, in_channels=1, out_channels=1, channels=[16, 16], layers_per_block=1,
        attention=[False, True], dropout=0.0, norm_groups=4,
    )  # fmt: skip
    left = copy_weights(unet(), wide)
    assert "conv_in.weight" in left
    assert set(left) < set(wide.model.state_dict())


def test_save_and_load_are_exact(tmp_path):
    flow = make_flow("pfgmpp").eval()
    pretrained.save_model(flow, tmp_path / "flow", record={"train_images": 7})
    again = pretrained.load_flow(tmp_path / "flow")
    assert vars(again.dynamics) == vars(flow.dynamics)
    assert (again.scheme, again.takes_anchor) == ("edm", True)
    for (name, a), b in zip(flow.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert pretrained.describe(tmp_path / "flow")["train_images"] == 7
    assert not list((tmp_path / "flow").glob("*.bin"))
    with pytest.raises(ValueError, match="holds a flow, not a teacher"):
        pretrained.load_teacher(tmp_path / "flow")
    with pytest.raises(FileNotFoundError):
        pretrained.load_teacher(tmp_path / "nothing")


def test_the_saved_folder_is_diffusers_own(tmp_path):
    from diffusers import UNet2DModel

    teacher = Teacher(unet(), dynamics.build("rf")).eval()
    pretrained.save_model(teacher, tmp_path / "teacher", record={})
    model = UNet2DModel.from_pretrained(tmp_path / "teacher", use_safetensors=True).eval()
    x = torch.randn(2, 1, 8, 8)
    expected = teacher.network.model(x, torch.ones(2)).sample
    torch.testing.assert_close(model(x, torch.ones(2)).sample, expected)


# --- objectives -----------------------------------------------------------------------------------------------------


def test_pseudo_huber_is_over_the_whole_vector():
    d = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]])
    found = objectives.pseudo_huber(d, torch.zeros_like(d), c=12.0)
    torch.testing.assert_close(found, torch.tensor([13.0 - 12.0, 0.0]))
    by_default = objectives.pseudo_huber(d, torch.zeros_like(d))
    c = 0.00054 * math.sqrt(2)
    torch.testing.assert_close(by_default, torch.tensor([math.sqrt(25 + c * c) - c, 0.0]))


def test_pseudo_huber_limits():
    d = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    zero = torch.zeros_like(d)
    norm = d.flatten(1).norm(dim=1)
    torch.testing.assert_close(objectives.pseudo_huber(d, zero, c=1e-9), norm)
    torch.testing.assert_close(objectives.pseudo_huber(d, zero, c=1e5), norm**2 / 2e5, rtol=1e-6, atol=0)
    torch.testing.assert_close(objectives.squared_l2(d, zero), norm**2 / 48)


def test_denoising_is_velocity_matching_for_rf():
    """|x_0_hat - x_0|^2 / t^2 = |v_hat - v|^2, with v = z - x_0."""
    d = dynamics.build("rf")
    t = torch.rand(6, dtype=torch.float64) * 0.9 + 0.05
    x_0, z, v_hat = (torch.randn(6, 1, 4, 4, dtype=torch.float64) for _ in range(3))
    x_t = d.perturb(x_0, z=z, t=t)
    x_0_hat = x_t - t.view(-1, 1, 1, 1) * v_hat
    found = objectives.denoising(x_0_hat, x_0=x_0, scale=d.error_scale(t))
    torch.testing.assert_close(found, (v_hat - (z - x_0)).square().mean())


def test_denoising_is_edms_loss_for_ve():
    """EDM eq. 8: lambda(sigma) |D - y|^2 with lambda = (sigma^2 + s_d^2) / (sigma s_d)^2."""
    d = dynamics.build("ve")
    t = torch.rand(6, dtype=torch.float64) + 0.1
    x_0, x_0_hat = (torch.randn(6, 1, 4, 4, dtype=torch.float64) for _ in range(2))
    weight = (t**2 + 0.25) / (t * 0.5) ** 2
    expected = (weight.view(-1, 1, 1, 1) * (x_0_hat - x_0) ** 2).mean()
    torch.testing.assert_close(objectives.denoising(x_0_hat, x_0=x_0, scale=d.error_scale(t)), expected)


# --- anchors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probability", "expected"), [(0.5, 64), (0.25, 32), (1.0, 128), (1 / 3, 42)])
def test_anchor_choice_has_its_share_and_is_balanced_between_processes(probability, expected):
    positions = torch.arange(128)
    chosen = anchors.evenly_chosen(positions, probability)
    assert chosen.sum().item() == expected
    halves = anchors.evenly_chosen(positions[:64], probability), anchors.evenly_chosen(positions[64:], probability)
    assert torch.equal(torch.cat(halves), chosen)
    assert abs(int(halves[0].sum()) - int(halves[1].sum())) <= 1


def test_self_anchor_is_the_flows_own_estimate_without_gradient():
    flow = make_flow().eval()
    x_t, t, positions = torch.randn(4, 1, 8, 8), torch.ones(4), torch.arange(4)
    noise = Streams(0, "anchor", range(4)).normal((1, 8, 8))
    found = anchors.build("self", self_probability=0.5)(
        flow, x_t, t, generator=Streams(0, "anchor", range(4)), positions=positions
    )
    own = flow(x_t, t, x_anchor=noise)
    chosen = anchors.evenly_chosen(positions, 0.5)
    torch.testing.assert_close(found[chosen], own[chosen])
    assert torch.equal(found[~chosen], noise[~chosen])
    assert not found.requires_grad
    assert torch.equal(
        anchors.build("noise", self_probability=0.5)(
            flow, x_t, t, generator=Streams(0, "anchor", range(4)), positions=positions
        ),
        noise,
    )
    assert anchors.build("none", self_probability=0.5)(flow, x_t, t, generator=None, positions=positions) is None


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="unknown anchor policy 'bnk'"):
        anchors.build("bnk", self_probability=0.5)
