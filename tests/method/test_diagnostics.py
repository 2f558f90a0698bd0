"""Diagnostics on maps whose answers are known."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ifm import diagnostics, dynamics, pretrained
from ifm.config import parse
from ifm.data.fetching import fetch_points
from ifm.data.laws import gaussian_moments
from ifm.data.points import preprocess_points
from ifm.data.splits import open_split
from ifm.data.trajectories import TrajectoryMetadata
from ifm.diagnostics import (
    StoredPaths,
    anchor_steps,
    closest_approach,
    contraction,
    diagnose,
    flow_map_error,
    gaussian_gain,
    jacobians,
    neighbour_spacing,
    orthonormal,
    projected_jacobians,
    sensitivity,
    spread,
    straightness,
)
from ifm.exact import ExactTeacher, flow_map_of, gaussian_flow_map
from ifm.model import IntegrationFlow
from ifm.random import Streams
from ifm.sampling import Draws
from ifm.solver import solve_states, solve_trajectory
from pipeline.runner import paths as places
from pipeline.runner.stage import Stage
from pipeline.stages import diagnose as diagnose_stage
from pipeline.tools import preset
from tests.support.exact import GaussianDenoiser, LinearFlow

NAMES = list(dynamics.DYNAMICS)
ROOT = Path(__file__).parents[2]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- non-intersection ---------------------------------------------------------------------------------------


def test_closest_approach_and_spacing_by_hand():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0], [-20.0, 0.0]])
    assert closest_approach(x) == pytest.approx(1 / math.sqrt(2))
    nearest = torch.tensor([5.0, 1.0, 1.0, 20.0], dtype=torch.float64) / math.sqrt(2)
    for chunk in (1, 3, 100):
        torch.testing.assert_close(neighbour_spacing(x, queries=4, chunk=chunk), nearest)
    torch.testing.assert_close(neighbour_spacing(x, queries=2), nearest[:2])
    assert closest_approach(x[[0, 1, 1]]) == 0


def test_jacobian_of_a_linear_map():
    """In full, and on directions: bounds from above and from below of the extreme singular values."""
    A = normal(2, 12, 12)  # one map for each sample

    def estimate(x, t):
        return torch.einsum("bij,bj->bi", A, x.flatten(1)).reshape(x.shape) * t[:, None, None]

    x_t, t = normal(2, 3, 4, seed=1), torch.tensor([1.0, 2.0], dtype=torch.float64)
    expected = A * t[:, None, None]
    torch.testing.assert_close(jacobians(estimate, x_t, t, chunk=5), expected)
    basis = orthonormal(normal(4, 3, 4, seed=2))
    torch.testing.assert_close(basis @ basis.T, torch.eye(4).double())
    projected = projected_jacobians(estimate, x_t, t, basis=basis, scale=3.0)
    torch.testing.assert_close(projected, expected @ basis.T)
    whole, part = torch.linalg.svdvals(expected), torch.linalg.svdvals(projected)
    assert bool((part[:, -1] >= whole[:, -1]).all())
    assert bool((part[:, 0] <= whole[:, 0]).all())
    complete = projected_jacobians(estimate, x_t, t, basis=orthonormal(normal(12, 3, 4)), scale=1.0)
    torch.testing.assert_close(torch.linalg.svdvals(complete), whole)


@pytest.mark.parametrize("name", ["ve", "rf"])
def test_gaussian_gain_is_the_gaussians_flow_map(name):
    d = dynamics.build(name)
    t = torch.tensor([0.0, 0.3, 1.0]).double()
    x_t, s = normal(3, 5), torch.full((5,), d.sigma_data).double()
    expected = gaussian_flow_map(d, x_t, t, mu=torch.zeros(5).double(), s=s)
    torch.testing.assert_close(gaussian_gain(d, t)[:, None] * x_t, expected)


# --- stability ----------------------------------------------------------------------------------------------


def test_sensitivity_of_a_known_function():
    x = normal(3, 4)
    one = torch.ones(3, 4).double()
    torch.testing.assert_close(sensitivity(lambda a: 3 * a, x, [one, -one]), torch.full((3,), 3.0).double())
    cubic = sensitivity(lambda a: a**3, x, [one])
    torch.testing.assert_close(cubic, (9 * x**4).mean(dim=1).sqrt(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("factor", [0.5, -0.1])
def test_anchors_of_a_linear_flow_contract_by_its_factor(factor):
    flow = LinearFlow(dynamics.build("rf"), anchor=factor)
    x_T, a_0 = normal(8, 1, 4, 4), normal(8, 1, 4, 4, seed=1)
    steps = anchor_steps(flow, x_T, x_anchor=a_0, steps=5)
    assert len(steps) == 4
    assert contraction(steps) == pytest.approx(abs(factor))
    a_1 = flow(x_T, torch.ones(8).double(), x_anchor=a_0)
    a_2 = flow(x_T, torch.ones(8).double(), x_anchor=a_1)
    assert steps[0] == pytest.approx(float((a_2 - a_1).square().mean().sqrt()))


def test_contraction_stops_at_rounding():
    assert contraction([1e-2, 1e-3, 1e-4, 1e-7, 1e-7]) == pytest.approx(0.1)
    assert contraction([0.0, 0.0]) is None
    assert contraction([1e-3, 1e-8]) is None


# --- straightness and error ---------------------------------------------------------------------------------


def test_a_straight_path_has_straightness_zero():
    x_T, x_0 = normal(16, 2), normal(16, 2, seed=1)
    times = torch.tensor([1.0, 0.7, 0.1, 0.0])
    found = straightness([(1 - t) * x_0 + t * x_T for t in times.double()], times=times)
    assert found.total < 1e-15
    assert max(found.profile) < 1e-15


@pytest.mark.parametrize("T", [1.0, 20.0])
def test_straightness_of_a_parabola(T):
    """x = u + c u^2 with u = t / T moves at (1 + 2 c u) / T: S = c^2 / 3 over (1 + c)^2, whatever the range of t."""
    c, times = 0.5, torch.linspace(T, 0, 2001, dtype=torch.float64)
    found = straightness([(t / T + c * (t / T) ** 2) * torch.ones(1, 1) for t in times], times=times)
    assert found.total == pytest.approx(c**2 / 3 / (1 + c) ** 2, rel=1e-4)
    assert found.profile[0] == pytest.approx(c**2 / (1 + c) ** 2, rel=1e-2)


def test_gaussian_data_have_a_known_straightness():
    """Of rf: x_t = x_T sqrt((1 - t)^2 s^2 + t^2), by quadrature on a grid of its own."""
    d, s = dynamics.build("rf"), 0.5
    x_T = d.prior((4,), generator=Streams(0, "prior", range(64))).double()
    denoiser = GaussianDenoiser(d, mu=torch.zeros(4).double(), s=torch.full((4,), s).double())
    times = d.solver_times(256)
    found = straightness(list(solve_states(denoiser, x_T, dynamics=d, times=times)), times=times)
    u = (torch.arange(100_000).double() + 0.5) / 100_000
    v = (u - (1 - u) * s**2) / torch.sqrt((1 - u) ** 2 * s**2 + u**2)
    expected = float((v - (1 - s)).square().mean()) / (1 - s) ** 2
    assert found.total == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["ve", "rf"])
def test_flow_map_error_against_the_gaussians_closed_form(name):
    d = dynamics.build(name)
    mu, s = torch.tensor([0.1, -0.3]).double(), torch.tensor([0.5, 0.2]).double()
    x_T = d.prior((2,), generator=Streams(0, "prior", range(500))).double()
    x_0 = gaussian_flow_map(d, x_T, torch.full((500,), d.t_max).double(), mu=mu, s=s)
    assert flow_map_error(x_0, x_0=x_0) == 0
    assert flow_map_error(x_0 + 0.01 * spread(x_0), x_0=x_0) == pytest.approx(0.01)
    solved = list(solve_states(GaussianDenoiser(d, mu=mu, s=s), x_T, dynamics=d, times=d.solver_times(128)))[-1]
    assert flow_map_error(solved, x_0=x_0) < 1e-3


# --- all of them --------------------------------------------------------------------------------------------


def run(flow, teacher, *, shape, data, whole=256, paths=64, steps=64):
    d = flow.dynamics
    draws = Draws.of(d, shape, range(paths), seed=0, device=torch.device("cpu"))
    keep = [0, steps // 2, steps]
    stored = solve_trajectory(teacher, draws.x_T.flip(0), dynamics=d, times=d.solver_times(steps), keep=keep)
    return diagnose(
        flow, teacher, draws, data=data, stored=StoredPaths(stored, d.solver_times(steps)[keep]), solver_steps=steps,
        jacobian_paths=4, jacobian_times=5, whole_jacobian_up_to=whole, directions=8, anchor_refinements=4, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["ve", "rf"])
@pytest.mark.parametrize("whole", [256, 1])
def test_the_exact_flow_of_gaussian_data_passes_every_test(name, whole):
    """Singular values 1, no fold, sensitivity 1 to x_T and 0 to the anchor, the solver's own error alone."""
    d = dynamics.build(name)
    s_d = torch.full((1, 3, 3), d.sigma_data)
    flow, teacher = LinearFlow(d), GaussianDenoiser(d, mu=torch.zeros(1, 3, 3), s=s_d)
    found = run(flow, teacher, shape=(1, 3, 3), data=d.sigma_data * normal(500, 1, 3, 3), whole=whole)
    assert found["jacobian"]["whole"] == (whole == 256)
    for key in ("smallest", "smallest_least", "largest"):
        assert found["jacobian"][key] == pytest.approx([1.0] * 5, abs=2e-3)
    assert found["jacobian"]["folded"] == (0 if whole == 256 else None)
    assert found["stability"]["x_T"]["rms"] == pytest.approx(1, abs=0.1)  # 576 numbers set the unit
    assert found["stability"]["anchor"]["rms"] == 0
    assert found["anchor"]["steps"] == [0, 0, 0]
    assert found["anchor"]["contraction"] is None
    assert found["error"]["one_step"] < 5e-3
    assert found["error"]["training"]["one_step"] < 5e-3
    assert len(found["error"]["profile"]) == 64
    # The flow followed as a denoiser goes straight from x_T to where it first pointed only if the paths are straight.
    assert found["straightness"]["teacher"] > 1e-4
    assert found["non_intersection"]["ratio"] == pytest.approx(
        min(found["non_intersection"]["closest"]) / found["non_intersection"]["spacing"], rel=1e-5
    )


def test_a_mirroring_flow_is_seen_to_fold():
    """Its Jacobian has a negative determinant at t_max: estimated paths have crossed on the way."""
    d = dynamics.build("rf")

    class Mirror(LinearFlow):
        def forward(self, x_t, t, *, x_anchor):
            x = super().forward(x_t, t, x_anchor=x_anchor)
            turn = (1 - 2 * t)[:, None]  # 1 at data, -1 at noise
            return torch.cat([turn * x[:, :1], x[:, 1:]], dim=1)

    teacher = GaussianDenoiser(d, mu=torch.zeros(3), s=torch.full((3,), 0.5))
    found = run(Mirror(d), teacher, shape=(3,), data=0.5 * normal(100, 3))
    assert found["jacobian"]["folded"] == 1
    assert found["jacobian"]["folded_profile"][0] == 1
    assert found["jacobian"]["folded_profile"][-1] == 0
    assert found["error"]["one_step"] > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_an_exact_teacher_and_a_flow_without_anchor(name):
    """Points in two dimensions: everything finite, nothing about anchors."""
    d = dynamics.build(name)
    data = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.0, -0.7]])
    flow = IntegrationFlow(nn.Linear(2, 2), d, scheme="edm", takes_anchor=False)
    flow.network.forward = lambda inputs, c_noise: 0.5 * inputs
    found = run(flow, ExactTeacher(data, d), shape=(2,), data=data, steps=16)
    assert found["anchor"] is None
    assert "anchor" not in found["stability"]
    assert found["non_intersection"]["spacing"] == pytest.approx(1 / math.sqrt(2), rel=1e-5)
    assert found["straightness"]["teacher"] > 0
    assert math.isfinite(found["error"]["one_step"])
    assert diagnostics.rms(data).shape == (3,)
    assert "exact" not in found["error"]


# --- data with a closed form --------------------------------------------------------------------------------


class ClosedForm(nn.Module):
    """The flow map of N(mu, diag(s^2)), and beside it a share of the samples' spread; takes no anchor."""

    takes_anchor, condition_kind, guidance = False, None, None

    def __init__(self, d, mu, s, *, off=0.0):
        super().__init__()
        self.dynamics, self.off = d, off
        self.register_buffer("mu", mu)
        self.register_buffer("s", s)

    def forward(self, x_t, t, *, x_anchor):
        x_0 = gaussian_flow_map(self.dynamics, x_t, t, mu=self.mu, s=self.s)
        return x_0 + self.off * spread(x_0.detach())


class Solved(nn.Module):
    """The denoiser of N(mu, diag(s^2)) as a module, to be solved."""

    def __init__(self, d, mu, s):
        super().__init__()
        self.dynamics, self.forward = d, GaussianDenoiser(d, mu=mu, s=s)


def processed(law, folder, dimensions=3):
    """data/processed of a law in `folder`, and the params it was made by."""
    values = preset.parse_yaml(preset.apply("points", (ROOT / "params.yaml").read_text()))
    values["data"]["points"] |= {"law": law, "dimensions": dimensions, "count": 300}
    values["diagnose"] |= {"paths": 32, "solver_steps": 16, "jacobian_paths": 2, "jacobian_times": 2}
    config = parse(values)
    fetch_points(config.data, folder / places.RAW)
    preprocess_points(config.data, folder / places.RAW, folder / places.PROCESSED)
    return config, values


def test_which_data_have_a_known_flow_map(tmp_path):
    x_T, t = normal(4, 2), torch.tensor([1.0])
    for law in ("gaussian", "spiral"):
        processed(law, tmp_path, dimensions=2)
        moments = open_split(tmp_path / places.PROCESSED, "train").gaussian
        maps = {name: flow_map_of(dynamics.build(name), moments) for name in NAMES}
        assert {name for name, found in maps.items() if found} == (
            {"ve", "rf", "vp", "trig"} if law == "gaussian" else set()
        )
        if law == "gaussian":  # rf at t = 1: mu + s x_T
            mu, s = torch.tensor([0.2, -0.2]).double(), torch.tensor([0.6, 0.3]).double()
            torch.testing.assert_close(maps["rf"](x_T, t), mu + s * x_T)


@pytest.mark.parametrize("name", ["ve", "rf"])
@pytest.mark.parametrize("off", [0.0, 0.05])
def test_the_stage_measures_against_the_closed_form_of_its_data(name, off, tmp_path, monkeypatch):
    """From data/processed to the JSON: the closed form itself has error 0, one that is off by 5 % has 0.05."""
    config, values = processed("gaussian", tmp_path)
    monkeypatch.chdir(tmp_path)
    d = dynamics.of_params(name, config.ode)
    mu, s = (torch.from_numpy(moment).float() for moment in gaussian_moments(3))
    monkeypatch.setattr(pretrained, "load_flow", lambda folder: ClosedForm(d, mu, s, off=off))
    monkeypatch.setattr(pretrained, "has_teacher", lambda folder: True)
    monkeypatch.setattr(pretrained, "load_teacher", lambda folder: Solved(d, mu, s))
    folder = places.trajectories(name)
    folder.mkdir(parents=True)
    np.save(folder / "first.npy", normal(8, 2, 3).float().numpy())
    TrajectoryMetadata(
        dynamics=name, count=8, times=[d.t_max, 0.0], solver_steps=16, rho=None, nfe=31, seed=0, teacher="",
        shards=["shard-00000.npy"], image_shape=[3], sha256="",
    ).write(folder)  # fmt: skip
    logged = {}
    run = SimpleNamespace(log_metrics=logged.update)
    diagnose_stage.work(Stage(f"diagnose-{name}", "diagnose", config, values, name, run))
    error = json.loads(places.diagnostics(name).read_text())["error"]
    assert error["exact"]["one_step"] == pytest.approx(off, abs=1e-6)
    assert logged["error.exact.one_step"] == error["exact"]["one_step"]
    assert error["exact"]["profile"] == pytest.approx([off] * 16, abs=1e-3)
    # 16 steps of Heun: an error of its own, all that the error against the teacher's solve holds beside the flow's.
    assert 1e-4 < error["exact"]["teacher"] < 0.05
    assert abs(error["one_step"] - off) < 1.1 * error["exact"]["teacher"]
