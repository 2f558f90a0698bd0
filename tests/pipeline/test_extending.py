"""docs/extending.md, recipe by recipe: a thing defined here, entered in its table, goes through the graph's stages."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ifm import conditions, dynamics, losses, networks, objectives, pretrained
from ifm.conditions.base import Condition, ConditionKind, register, told
from ifm.config import ConfigError, parse, read_params
from ifm.data.sources import SOURCES, Points, Source
from ifm.dynamics.base import Coefficients, NoiseLevelDynamics
from ifm.hardware.devices import RowReader
from ifm.metrics import catalogue
from ifm.metrics.metric import POINTS, Better, Metric
from ifm.networks.base import Network, read_config
from ifm.objectives.base import Phase
from ifm.objectives.pairs import draw_pairs
from ifm.schema import Count, Positive, Section
from pipeline.runner import paths
from pipeline.stages import diagnose, sample
from tests.support.stages import points, run_graph

ROOT = Path(__file__).parents[2]


# --- a dynamics -----------------------------------------------------------------------------------------------------


class SubVariancePreserving(NoiseLevelDynamics):
    """a = 1 / (1 + t), b = t / (1 + t)^2: curved, and neither variance preserving nor exploding."""

    name = "curved"

    def __init__(self, *, t_min=0.002, t_max=20.0, **law):
        super().__init__(t_min=t_min, t_max=t_max, **law)

    def coefficients(self, t):
        return Coefficients(a=1 / (1 + t), b=t / (1 + t) ** 2, d_a=-1 / (1 + t) ** 2, d_b=(1 - t) / (1 + t) ** 3)

    def time_of_level(self, level):  # b / a = t / (1 + t)
        return level / (1 - level)


@pytest.mark.usefixtures("undrawn")
def test_a_dynamics(tmp_path, monkeypatch):
    entry = dynamics.Entry(SubVariancePreserving, dynamics.NoiseLevelOptions, "Curved", "#56B4E9")
    monkeypatch.setitem(dynamics.DYNAMICS, "curved", entry)
    monkeypatch.chdir(tmp_path)
    options = {"t_min": 0.002, "t_max": 20.0, "rho": 7.0, "log_time_mean": -1.2, "log_time_std": 1.2}
    run_graph(points(dynamics=["curved", "ve"], ode__curved=options, teacher__kind="exact", flow__init="scratch"))
    flow = pretrained.load_flow(paths.flow("curved"))
    assert isinstance(flow.dynamics, SubVariancePreserving)
    assert set(pd.read_csv("reports/summary.csv").dynamics) == {"curved", "ve"}
    assert "Curved" in Path("reports/index.html").read_text()


def test_a_dynamics_that_params_do_not_describe_is_one_line(monkeypatch):
    entry = dynamics.Entry(SubVariancePreserving, dynamics.NoiseLevelOptions, "Curved", "#56B4E9")
    monkeypatch.setitem(dynamics.DYNAMICS, "curved", entry)
    with pytest.raises(ConfigError, match=r"^params.yaml: ode\.curved is missing, and dynamics asks for curved$"):
        parse(points(dynamics=["curved"]))


# --- an objective ---------------------------------------------------------------------------------------------------


class PowerOptions(Section):
    power: Positive


def power_phase(given):
    """|x_0_hat - x_0|^power over pairs."""
    own, read = given.config.power_loss, RowReader(given.images(), given.accelerator.device)

    def step_loss(model, batch):
        x_0_hat = model(batch.at.x_t, batch.at.t, x_anchor=batch.x_anchor, **told(batch.at.condition))
        distance = losses.squared_norm(x_0_hat - batch.at.x_0).clamp_min(1e-12) ** (own.power / 2)
        return x_0_hat, distance.mean()

    draw = draw_pairs(given.accelerator, given.flow.dynamics, read, t_max_share=0.5, **given.pairs())
    return Phase(len(given.images()), draw, step_loss, read.expect)


POWER = objectives.Objective(power_phase, "Power", cost=lambda flow: 1, options=PowerOptions)


@pytest.mark.parametrize("objective", ["power_loss", ["trajectory", "power_loss"]])
def test_an_objective(objective, tmp_path, monkeypatch):
    monkeypatch.setitem(objectives.OBJECTIVES, "power_loss", POWER)
    monkeypatch.chdir(tmp_path)
    run_graph(points(
        dynamics=["rf"], flow__objective=objective, flow__power_loss={"power": 1.5},
        teacher__kind="exact", flow__init="scratch",
    ), up_to=diagnose)  # fmt: skip
    said = pretrained.describe(paths.flow("rf"))["objective"]
    assert said == ("power_loss" if objective == "power_loss" else "trajectory+power_loss")
    curve = pd.read_csv(paths.curve("flow-rf"))
    assert curve.loss.notna().all()
    metadata = json.loads((paths.trajectories("rf") / "metadata.json").read_text())
    assert metadata["count"] == (0 if objective == "power_loss" else 64)


def test_a_two_time_network_goes_on_from_the_paths(tmp_path, monkeypatch):
    """[trajectory, interval]: one network of two times, trained on the whole path first and on its parts then."""
    monkeypatch.chdir(tmp_path)
    values = points(
        dynamics=["ve"], flow__objective=["trajectory", "interval"], flow__init="scratch", teacher__kind="exact",
        sample__flow_samplers=["chain", "renoise"],
    )  # fmt: skip
    run_graph(values, up_to=sample)
    described = pretrained.describe(paths.flow("ve"))
    assert (described["objective"], described["two_times"]) == ("trajectory+interval", True)
    assert (paths.samples("ve") / "flow-chain-nfe002.npy").is_file()


# --- a network ------------------------------------------------------------------------------------------------------


class LinearOptions(Section):
    width: Count


class Linear(Network):
    """Two linear layers of the inputs and c_noise."""

    class_names, first_layer = ("TwoLinear",), "first.weight"

    def __init__(self, *, inputs, outputs, width):
        super().__init__()
        self.options = {"inputs": inputs, "outputs": outputs, "width": width}
        self.two_times, self.condition_kind = False, None
        self.first, self.time, self.last = nn.Linear(inputs, width), nn.Linear(1, width), nn.Linear(width, outputs)

    @classmethod
    def build(cls, *, shape, takes_anchor, anchor_input, two_times, condition, options):
        if two_times or condition is not None:
            raise ValueError("network.kind: linear takes one time and no condition")
        return cls(inputs=shape[0] * (1 + takes_anchor), outputs=shape[0], **options)

    @property
    def data_shape(self):
        return (self.options["outputs"],)

    def forward(self, inputs, c_noise, c_end=None, *, condition=None):
        self.check(c_end=c_end, condition=condition)
        return self.last(torch.tanh(self.first(inputs) + self.time(c_noise[:, None].to(inputs.dtype))))

    def save(self, folder):
        from safetensors.torch import save_file

        save_file(dict(self.state_dict()), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"_class_name": "TwoLinear", **self.options}))
        return [folder / "model.safetensors"]

    @classmethod
    def load(cls, folder):
        from safetensors.torch import load_file

        options = read_config(folder)
        options.pop("_class_name")
        network = cls(**options)
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return network


def test_a_network(tmp_path, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "linear", networks.Entry(Linear, LinearOptions, "points"))
    monkeypatch.chdir(tmp_path)
    run_graph(points(dynamics=["rf"], network__kind="linear", network__linear={"width": 24}), up_to=diagnose)
    flow, teacher = pretrained.load_flow(paths.flow("rf")), pretrained.load_teacher(paths.teacher("rf"))
    assert isinstance(flow.network, Linear)
    assert isinstance(teacher.network, Linear)
    assert flow.network.options == {"inputs": 4, "outputs": 2, "width": 24}
    assert np.isfinite(np.load(paths.samples("rf") / "flow-one_step-nfe001.npy")).all()


def test_a_networks_section_is_checked(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "linear", networks.Entry(Linear, LinearOptions, "points"))
    with pytest.raises(ConfigError, match=r"^params.yaml: network\.linear\.width = 0: "):
        parse(points(network__kind="linear", network__linear={"width": 0}))
    with pytest.raises(ConfigError, match=r"^params.yaml: network\.linear is missing, and network\.kind asks for it$"):
        parse(points(network__kind="linear"))
    digits = read_params(ROOT / "params.yaml")
    digits["network"] |= {"kind": "linear", "linear": {"width": 4}}
    with pytest.raises(
        ConfigError, match=r"network\.kind: linear does not fit data\.source: digits; use unet or transformer$"
    ):
        parse(digits)


# --- a condition ----------------------------------------------------------------------------------------------------


@register
@dataclass(frozen=True)
class Direction(Condition):
    """The angle that a mode lies at."""

    angle: torch.Tensor  # [B]


class Directions(ConditionKind):
    """Not the mode's number but its angle, embedded by sine and cosine."""

    name = "direction"

    def __init__(self, *, modes):
        self.modes = modes

    @property
    def options(self):
        return {"modes": self.modes}

    @classmethod
    def of_data(cls, samples):
        return cls(modes=len(samples.classes))

    def read(self, samples, rows):
        return Direction(torch.from_numpy(samples.labels[rows]) * (2 * math.pi / self.modes))

    def draw(self, *, generator):
        return Direction((generator.uniform() * self.modes).floor() * (2 * math.pi / self.modes))

    def embedding(self, width):
        return Waves(width)

    def of_tensors(self, tensors):
        return Direction(**tensors)

    def matches(self, asked, have):
        return (asked.angle[:, None] - have.angle[None, :]).abs() < 1e-4


class Waves(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(2, width)

    def forward(self, condition):
        return self.linear(torch.stack([condition.angle.sin(), condition.angle.cos()], dim=1).float())


@pytest.mark.parametrize("objective", ["trajectory", "interval"])
def test_a_condition(objective, tmp_path, monkeypatch):
    monkeypatch.setitem(conditions.CONDITIONS, "direction", Directions)
    monkeypatch.chdir(tmp_path)
    run_graph(points(
        dynamics=["ve"], condition__kind="direction", flow__objective=objective, flow__init="scratch",
        teacher__kind="exact",
    ), up_to=diagnose)  # fmt: skip
    flow = pretrained.load_flow(paths.flow("ve"))
    assert flow.condition_kind.describe() == {"kind": "direction", "modes": 8}
    x, t = torch.randn(2, 2), torch.full((2,), 3.0)
    given = {"x_anchor": torch.randn(2, 2)}
    found = [flow(x, t, condition=Direction(torch.full((2,), angle)), **given) for angle in (0.0, 2.0)]
    assert not torch.equal(*found)


# --- a metric -------------------------------------------------------------------------------------------------------

RADIUS = Metric(
    "radius_error", "Radius error", Better.LOWER, kinds=(POINTS,), tooltip="of the mean distance from the origin.",
    compute=lambda of: abs(float(np.linalg.norm(of.samples, axis=1).mean()) - 1),
    where=lambda of: of.samples is not None,
)  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_a_metric(tmp_path, monkeypatch):
    monkeypatch.setitem(catalogue.METRICS, RADIUS.key, RADIUS)
    monkeypatch.chdir(tmp_path)
    run_graph(points(dynamics=["rf"], teacher__kind="exact", flow__init="scratch", sample__seeds=2))
    table = pd.read_csv("reports/summary.csv").set_index("sampler")
    samples = np.load(paths.samples("rf") / "flow-one_step-nfe001.npy").reshape(2, 100, 2)
    expected = np.abs(np.linalg.norm(samples, axis=2).mean(axis=1) - 1)
    assert table.radius_error["one_step"] == pytest.approx(expected.mean(), rel=1e-4)
    assert table.radius_error_sd["one_step"] == pytest.approx(expected.std(ddof=1), rel=1e-4)
    assert "Radius error" in Path("reports/index.html").read_text()


# --- a data source --------------------------------------------------------------------------------------------------


def ring(data):
    """Points on the unit circle; which half they lie in is their class."""
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    labels = (np.sin(angle) < 0).astype(np.int64)
    return Points(np.stack([np.cos(angle), np.sin(angle)], axis=1), labels, ["upper", "lower"])


@pytest.mark.usefixtures("undrawn")
def test_a_data_source(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "ring", Source("ring", ring, modality="points", labelled=True, columns=False))
    monkeypatch.chdir(tmp_path)
    run_graph(points(
        dynamics=["ve"], data__source="ring", condition__kind="class", teacher__kind="exact", flow__init="scratch",
    ))  # fmt: skip
    assert set(pd.read_csv("reports/summary.csv").data) == {"ring"}
    assert pretrained.load_flow(paths.flow("ve")).condition_kind.classes == ["upper", "lower"]
    samples = np.load(paths.samples("ve") / "teacher-heun-nfe005.npy")
    assert np.linalg.norm(samples, axis=1) == pytest.approx(1, abs=0.2)


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_has_a_recipe_for_each_and_names_its_files():
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    for title in ("dynamics", "objective", "metric", "data source", "modality", "network", "condition"):
        assert f"## A{'n' if title[0] in 'aeiou' else ''} {title}\n" in text, title
