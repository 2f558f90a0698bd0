"""The transformer as F: what it hears, its files, its derivatives, its start from a teacher."""

import pytest
import torch
from torch import nn

from ifm import dynamics
from ifm.conditions.classes import Classes, ClassLabels
from ifm.model import IntegrationFlow, IntervalFlow, Teacher
from ifm.networks import build_network, load_network
from ifm.objectives.interval import central_difference, differentiable_forward, forward_derivative

SIZE = {"patch": 2, "width": 32, "depth": 2, "heads": 4}
CLASSES = Classes(classes=["a", "b"], shares=[0.5, 0.5])


def network(*, random=True, takes_anchor=True, shape=(3, 8, 8), seed=0, **options):
    """random: the layers that are zero at first are not."""
    torch.manual_seed(seed)
    net = build_network(
        kind="transformer", shape=shape, takes_anchor=takes_anchor, transformer=SIZE, channels=[], **options
    )
    for layer in net.modules() if random else ():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.1)
    return net


def test_it_is_zero_at_first_and_its_gradient_is_not():
    net, x, t = network(random=False), torch.randn(4, 6, 8, 8), torch.linspace(0.1, 0.9, 4)
    found = net(x, t)
    assert found.shape == (4, *net.data_shape) == (4, 3, 8, 8)
    assert not found.any()
    (found - 1).square().mean().backward()
    assert net.head.bias.grad.any()


def test_it_hears_every_input_place_time_and_class():
    net = network(two_times=True, condition=CLASSES).requires_grad_(False)
    x, t, s = torch.randn(2, 6, 8, 8), torch.tensor([0.5, 1.0]), torch.tensor([0.1, 0.2])
    labels = ClassLabels(torch.tensor([0, 1]))
    plain = net(x, t, s, condition=labels)
    assert plain.std() > 0.01
    changes = [(x, t + 0.1, s, labels), (x, t, s + 0.1, labels), (x, t, s, ClassLabels(torch.tensor([1, 0])))]
    for channel in range(6):
        other = x.clone()
        other[:, channel, 3, 5] += 1
        changes.append((other, t, s, labels))
    for other, t_2, s_2, condition in changes:
        assert float((net(other, t_2, s_2, condition=condition) - plain).abs().amax(dim=(1, 2, 3)).min()) > 1e-5
    moved = net(x.roll(2, dims=3), t, s, condition=labels).roll(-2, dims=3)  # places are told apart
    assert float((moved - plain).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="two times"):
        net(x, t, condition=labels)


@pytest.mark.parametrize("options", [{}, {"two_times": True, "condition": CLASSES}])
def test_a_saved_network_computes_the_same(options, tmp_path):
    net = network(**options).eval()
    assert [file.suffix for file in net.save(tmp_path)] == [".safetensors"]
    again = load_network(tmp_path).eval()
    given = (torch.randn(2, 6, 8, 8), torch.tensor([0.5, 1.0]))
    told = {"condition": ClassLabels(torch.tensor([0, 1])), "c_end": torch.tensor([0.1, 0.2])} if options else {}
    assert torch.equal(net(*given, **told), again(*given, **told))


def test_spectrograms_need_not_be_square(tmp_path):
    """A row and a column of the same number are told apart; a square is what it was."""
    net = network(shape=(1, 8, 12), modality="sound").eval()
    assert net.data_shape == (1, 8, 12)
    x, t = torch.randn(2, 2, 8, 12), torch.tensor([0.5, 1.0])
    found = net(x, t)
    assert found.shape == (2, 1, 8, 12)
    one, other = x.clone(), x.clone()
    one[:, 0, 2, 0] += 1
    other[:, 0, 0, 2] += 1
    apart = [(net(y, t) - found).detach() for y in (one, other)]
    assert min(float(change.abs().amax()) for change in apart) > 1e-5
    assert not torch.allclose(apart[0][:, :, :8, :8], apart[1][:, :, :8, :8].transpose(2, 3))
    net.save(tmp_path)
    assert torch.equal(load_network(tmp_path)(x, t), found)
    assert network().options["image_size"] == 8
    with pytest.raises(ValueError, match="patch = 2 does not divide images of 8 x 9 pixels"):
        network(shape=(1, 8, 9), modality="sound")


def test_activations_computed_again_give_the_same_gradients():
    nets = [network().train() for _ in range(2)]
    nets[1].enable_gradient_checkpointing()
    for net in nets:
        net(torch.ones(2, 6, 8, 8), torch.tensor([0.5, 1.0])).square().sum().backward()
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_flow_starts_as_the_teacher():
    """The patches' layer has the anchor's channels after the teacher's; all else is copied."""
    teacher, flow = network(takes_anchor=False), network(seed=1)
    assert flow.start_from(teacher) == []
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 1.0])
    torch.testing.assert_close(flow(torch.cat([x, torch.zeros_like(x)], dim=1), t), teacher(x, t))
    whole = IntegrationFlow(flow, dynamics.build("ve"), scheme="edm", takes_anchor=True)
    at_rest = torch.full((2,), whole.dynamics.t_min)
    assert torch.equal(whole(x, at_rest, x_anchor=x), x)  # the boundary
    assert Teacher(teacher, whole.dynamics)(x, t).isfinite().all()


def test_its_derivative_by_forward_mode_and_by_differences():
    flow = IntervalFlow(network(two_times=True), dynamics.build("rf"), takes_anchor=True).double()
    y, velocity, x_anchor = torch.randn(3, 4, 3, 8, 8).double()
    theta, theta_s = torch.linspace(0.4, 1.5, 4).double(), torch.linspace(0.1, 1.0, 4).double()

    def u(y, theta):
        return flow.mean_velocity(y, theta, theta_s=theta_s, x_anchor=x_anchor)

    with torch.no_grad():
        with differentiable_forward(flow):
            exact = forward_derivative(u, y, velocity=velocity, theta=theta)
        found = central_difference(u, y, velocity=velocity, theta=theta)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


def test_in_bf16_it_is_near_float32():
    net, given = network().eval(), (torch.randn(2, 6, 8, 8), torch.tensor([0.5, 1.0]))
    plain = net(*given)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net(*given).float(), plain, rtol=0.1, atol=0.05)
    net.compute_in(torch.bfloat16)
    torch.testing.assert_close(net(*given).float(), plain, rtol=0.1, atol=0.05)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="patch = 2 does not divide images of 9 x 9 pixels"):
        network(shape=(1, 9, 9))
    with pytest.raises(ValueError, match="needs the U-Net; the transformer takes channels"):
        network(anchor_input="cross_attention")
