"""Teacher, flow, anchors and objectives on small tensors."""

import math

import numpy as np
import pytest
import torch

from ifm import anchors, dynamics, losses, pretrained
from ifm.model import IntegrationFlow, Teacher
from ifm.networks import build_network
from ifm.networks.unet import anchor_patch, anchor_tokens, build_unet
from ifm.objectives.data import loss as data_loss
from ifm.objectives.data import mixed_share
from ifm.objectives.trajectory import loss as trajectory_loss
from ifm.random import Streams

NAMES = list(dynamics.DYNAMICS)


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


NETWORK = {"channels": [8, 16], "layers_per_block": 1, "attention": [False, True], "dropout": 0.1, "norm_groups": 4}
INPUTS = [(False, "channels"), (True, "channels"), (True, "cross_attention")]  # takes_anchor, anchor_input


def make_flow(name="ve", scheme="edm", takes_anchor=True, seed=0, anchor_input="channels", **network):
    torch.manual_seed(seed)
    shape = {"kind": "unet", "shape": (1, 8, 8), "mlp": {}}
    F = build_network(takes_anchor=takes_anchor, anchor_input=anchor_input, **shape, **NETWORK | network)
    return IntegrationFlow(F, dynamics.build(name), scheme=scheme, takes_anchor=takes_anchor, anchor_input=anchor_input)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("takes_anchor", "anchor_input"), INPUTS)
@pytest.mark.parametrize(("name", "scheme"), [(d, scheme) for d in NAMES for scheme in dynamics.build(d).schemes])
def test_boundary_holds_exactly_with_random_weights(name, scheme, takes_anchor, anchor_input, training):
    """g(., x, t_min) = x, bit for bit."""
    flow = make_flow(name, scheme, takes_anchor, anchor_input=anchor_input).train(training)
    x = torch.randn(3, 1, 8, 8)
    t = torch.full((3,), flow.dynamics.t_min)
    # c_noise = ln(t) / 4 has no value at rf's t = 0, nor does it need one: rf's c_noise is t.
    assert torch.equal(flow(x, t, x_anchor=torch.randn_like(x) if takes_anchor else None), x)


@pytest.mark.parametrize("attention", [[False, False], [False, True]])
@pytest.mark.parametrize("anchor_input", ["channels", "cross_attention"])
@pytest.mark.parametrize("init", ["scratch", "teacher"])
@pytest.mark.parametrize("policy", ["noise", "self", "bank"])
@pytest.mark.parametrize("name", NAMES)
def test_the_anchor_is_heard(name, policy, init, anchor_input, attention):
    """The policy's anchor and another noise give different images, fresh and started from a teacher (that has no such
    input)."""
    flow = make_flow(name, anchor_input=anchor_input, attention=attention).eval()
    if init == "teacher":
        flow.network.start_from(unet(seed=1))
    d, shape = flow.dynamics, (1, 8, 8)
    x_T, t = d.prior(shape, generator=Streams(0, "prior", range(4))), torch.full((4,), d.t_max)
    chosen = anchors.build(policy, self_probability=1.0, make_bank=lambda: anchors.AnchorBank(4, shape, seed=0))
    streams, visit = Streams(0, "anchor", range(4)), anchors.Visit(np.arange(4), np.ones(4, np.int64))
    x_anchor = chosen(flow, x_T, t, generator=streams, positions=torch.arange(4), visit=visit)
    a, b = flow(x_T, t, x_anchor=x_anchor), flow(x_T, t, x_anchor=Streams(9, "anchor", range(4)).normal(shape))
    assert bool(((a - b).flatten(1).norm(dim=1) > 1e-5 * a.flatten(1).norm(dim=1)).all())


def test_cross_attention_knows_where_a_patch_lies():
    """The same patches elsewhere are another anchor: attention alone would take them for the same."""
    flow = make_flow(anchor_input="cross_attention").eval()
    x_T, t, x_anchor = torch.randn(2, 1, 8, 8), torch.ones(2), torch.randn(2, 1, 8, 8)
    a, b = flow(x_T, t, x_anchor=x_anchor), flow(x_T, t, x_anchor=x_anchor.flip(-1))
    assert bool(((a - b).flatten(1).norm(dim=1) > 1e-5 * a.flatten(1).norm(dim=1)).all())


@pytest.mark.parametrize(("size", "patch"), [(4, 1), (8, 1), (12, 1), (16, 2), (32, 4), (64, 8), (18, 2), (23, 1)])
def test_anchor_tokens_are_patches_with_places(size, patch):
    assert anchor_patch(size) == patch
    x = torch.arange(3 * size * size, dtype=torch.float32).reshape(1, 3, size, size)
    tokens, side = anchor_tokens(x), size // patch
    assert tokens.shape == (1, side * side, 3 * patch * patch + 16)
    pixels = x[0, :, :patch, patch : 2 * patch].reshape(-1)  # the second patch of the first row
    assert torch.equal(tokens[0, 1, : len(pixels)], pixels)
    places = tokens[0, :, len(pixels) :]
    assert len(torch.unique(places, dim=0)) == side * side


def test_the_gradient_reaches_all_that_takes_the_anchor_in():
    flow = make_flow(anchor_input="cross_attention").train()
    x = torch.randn(2, 1, 8, 8)
    flow(x, torch.ones(2), x_anchor=torch.randn_like(x)).square().sum().backward()
    assert all(
        p.grad is not None and bool((p.grad != 0).any()) for p in flow.network.model.encoder_hid_proj.parameters()
    )
    assert all(p.grad is not None for p in flow.parameters())


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
    assert flow.network.start_from(source) == []
    x_t, t = torch.randn(4, 1, 8, 8), torch.full((4,), 0.7)
    torch.testing.assert_close(flow(x_t, t, x_anchor=None), teacher(x_t, t), rtol=0.02, atol=0.02)


def test_a_cross_attention_flow_starts_from_the_teachers_function():
    """All of a teacher without attention is taken; what cross-attention adds is small at first."""
    plain = {"channels": [8, 16], "layers_per_block": 1, "attention": [False, False], "dropout": 0.0, "norm_groups": 4}
    source = build_unet(image_size=8, in_channels=1, out_channels=1, **plain)
    flow = make_flow(anchor_input="cross_attention", **plain).eval()
    left = flow.network.start_from(source)
    assert all(".attentions." in name or "encoder_hid_proj" in name for name in left)
    teacher = Teacher(source, flow.dynamics).eval()
    x_t, t, x_anchor = torch.randn(4, 1, 8, 8), torch.full((4,), 0.7), torch.randn(4, 1, 8, 8)
    wanted = teacher(x_t, t)
    assert (flow(x_t, t, x_anchor=x_anchor) - wanted).norm() < 0.2 * wanted.norm()
    for name, p in flow.named_parameters():
        if ".proj_out." in name:
            torch.nn.init.zeros_(p)
    torch.testing.assert_close(flow(x_t, t, x_anchor=x_anchor), wanted, rtol=0.02, atol=0.02)


def test_copy_weights_names_what_it_left():
    wide = build_unet(
        image_size=8, in_channels=1, out_channels=1, channels=[16, 16], layers_per_block=1,
        attention=[False, True], dropout=0.0, norm_groups=4,
    )  # fmt: skip
    left = wide.start_from(unet())
    assert "model.conv_in.weight" in left
    assert set(left) < set(wide.state_dict())


@pytest.mark.parametrize("anchor_input", ["channels", "cross_attention"])
def test_save_and_load_are_exact(anchor_input, tmp_path):
    flow = make_flow("pfgmpp", anchor_input=anchor_input).eval()
    pretrained.save_model(flow, tmp_path / "flow", record={"train_images": 7})
    again = pretrained.load_flow(tmp_path / "flow")
    assert vars(again.dynamics) == vars(flow.dynamics)
    assert (again.scheme, again.takes_anchor, again.anchor_input) == ("edm", True, anchor_input)
    assert type(again.network) is type(flow.network)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x, torch.ones(2), x_anchor=x.flip(2)), flow(x, torch.ones(2), x_anchor=x.flip(2)))
    for (name, a), b in zip(flow.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert pretrained.describe(tmp_path / "flow")["train_images"] == 7
    assert {p.suffix for p in (tmp_path / "flow").iterdir()} == {".json", ".safetensors"}
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
    found = losses.pseudo_huber(d, torch.zeros_like(d), c=12.0)
    torch.testing.assert_close(found, torch.tensor([13.0 - 12.0, 0.0]))
    by_default = losses.pseudo_huber(d, torch.zeros_like(d))
    c = 0.00054 * math.sqrt(2)
    torch.testing.assert_close(by_default, torch.tensor([math.sqrt(25 + c * c) - c, 0.0]))


def test_pseudo_huber_limits():
    d = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    zero = torch.zeros_like(d)
    norm = d.flatten(1).norm(dim=1)
    torch.testing.assert_close(losses.pseudo_huber(d, zero, c=1e-9), norm)
    torch.testing.assert_close(losses.pseudo_huber(d, zero, c=1e5), norm**2 / 2e5, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.squared_l2(d, zero), norm**2 / 48)


def test_adaptive_c_is_the_mean_error_without_gradient():
    d = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
    zero = torch.zeros(2, 2)
    c = losses.adaptive_huber_c(d, zero)
    assert (c.item(), c.requires_grad) == (3.0, False)
    found = losses.measure(d, zero, distance="adaptive_huber")
    torch.testing.assert_close(found, torch.tensor([math.sqrt(25 + 9) - 3, math.sqrt(1 + 9) - 3]))
    exact = torch.zeros(2, 2, requires_grad=True)
    losses.measure(exact, zero, distance="adaptive_huber").sum().backward()
    assert torch.equal(exact.grad, zero)  # the floor of c: no 0 / 0 where all is exact


def test_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="unknown distance 'l1'; known: pseudo_huber, adaptive_huber, l2"):
        losses.measure(torch.zeros(1, 2), torch.zeros(1, 2), distance="l1")


def test_the_mixed_schedule_is_one_nth_to_the_data():
    x_0_hat, x_0, x_anchor = (torch.randn(4, 1, 3, 3, dtype=torch.float64) for _ in range(3))
    n, weight = torch.tensor([1, 2, 3, 1000]), torch.rand(4, dtype=torch.float64)
    held = {"distance": "l2", "weight": weight}
    d, a = losses.squared_l2(x_0_hat, x_0), losses.squared_l2(x_0_hat, x_anchor)
    share = torch.tensor([1, 1 / 2, 1 / 3, 1 / 1000], dtype=torch.float64)
    expected = (weight * (share * d + (1 - share) * a)).mean()
    torch.testing.assert_close(data_loss(x_0_hat, x_0=x_0, x_anchor=x_anchor, n=n, **held), expected)
    # at first visits, and without a schedule: the data alone
    ones = torch.ones(4, dtype=torch.int64)
    alone = data_loss(x_0_hat, x_0=x_0, x_anchor=x_anchor, n=ones, **held)
    torch.testing.assert_close(alone, data_loss(x_0_hat, x_0=x_0, **held))
    torch.testing.assert_close(alone, trajectory_loss(x_0_hat, x_0=x_0, **held))
    with pytest.raises(ValueError, match="count from 1, got 0"):
        mixed_share(torch.tensor([0]))


def minimise(loss, start):
    x = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimizer.step(closure)
    return x.detach()


def test_the_best_one_step_guess_at_data_is_their_mean_or_geometric_median():
    """At t_max x_T says nothing of x_0, so that one answer serves all data: why `data` tends to the mean."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]], dtype=torch.float64)

    def loss(x, **held):
        return data_loss(x.expand(4, 2), x_0=points, **held)

    start = torch.full((1, 2), 0.7, dtype=torch.float64)
    mean = minimise(lambda x: loss(x, distance="l2"), start)
    torch.testing.assert_close(mean, points.mean(0, keepdim=True), rtol=0, atol=1e-6)
    median = minimise(lambda x: loss(x, distance="pseudo_huber", c=1e-3), start)
    # The unit vectors to the data cancel at the geometric median. Of a convex quadrilateral it is where the diagonals
    # cross, here (1/2, 1/2) of (1, 0), (0, 1) and (0, 0), (5, 5).
    torch.testing.assert_close(median, torch.full((1, 2), 0.5, dtype=torch.float64), rtol=0, atol=1e-5)
    weight = torch.tensor([3.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    weighted = minimise(lambda x: loss(x, distance="l2", weight=weight), start)
    torch.testing.assert_close(weighted, points[2:3] / 4, rtol=0, atol=1e-6)


def test_the_mixed_term_is_smallest_where_the_anchor_is_copied():
    """n -> infinity: the minimum of the loss is the anchor itself, whatever the data (METHOD, section 5)."""
    x_0, x_anchor = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    for n, expected in [(1, x_0), (4, 0.75 * x_anchor), (10**6, x_anchor)]:
        found = minimise(
            lambda x, n=n: data_loss(x, x_0=x_0, x_anchor=x_anchor, n=torch.tensor([n]), distance="l2"),
            torch.full((1, 2), 0.7, dtype=torch.float64),
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_denoising_is_velocity_matching_for_rf():
    """|x_0_hat - x_0|^2 / t^2 = |v_hat - v|^2, with v = z - x_0."""
    d = dynamics.build("rf")
    t = torch.rand(6, dtype=torch.float64) * 0.9 + 0.05
    x_0, z, v_hat = (torch.randn(6, 1, 4, 4, dtype=torch.float64) for _ in range(3))
    x_t = d.perturb(x_0, z=z, t=t)
    x_0_hat = x_t - t.view(-1, 1, 1, 1) * v_hat
    found = losses.denoising(x_0_hat, x_0=x_0, scale=d.error_scale(t))
    torch.testing.assert_close(found, (v_hat - (z - x_0)).square().mean())


def test_denoising_is_edms_loss_for_ve():
    """EDM eq. 8: lambda(sigma) |D - y|^2 with lambda = (sigma^2 + s_d^2) / (sigma s_d)^2."""
    d = dynamics.build("ve")
    t = torch.rand(6, dtype=torch.float64) + 0.1
    x_0, x_0_hat = (torch.randn(6, 1, 4, 4, dtype=torch.float64) for _ in range(2))
    weight = (t**2 + 0.25) / (t * 0.5) ** 2
    expected = (weight.view(-1, 1, 1, 1) * (x_0_hat - x_0) ** 2).mean()
    torch.testing.assert_close(losses.denoising(x_0_hat, x_0=x_0, scale=d.error_scale(t)), expected)


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
