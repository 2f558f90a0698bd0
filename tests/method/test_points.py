"""Points: laws against their closed forms, distances against known values, the MLP, every stage on a tiny run."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from ifm import dynamics, pretrained
from ifm.config import Config, ConfigError, parse, read_params
from ifm.data import laws, points
from ifm.data.arrays import DataError, ImageSet
from ifm.data.fetching import fetch_points
from ifm.data.laws import draw_points
from ifm.data.points import PointSet, preprocess_points
from ifm.data.splits import open_split
from ifm.metrics.points import energy_distance, mean_distance, nearest_shares, sliced_wasserstein
from ifm.model import IntegrationFlow, Teacher
from ifm.networks import build_network, load_network
from ifm.networks.mlp import MLP, fourier_features
from ifm.random import Streams
from ifm.report import plots
from ifm.report.summary import summary_columns
from ifm.sampling import draw_samples, flow_sampler
from ifm.solver import solve_ode
from pipeline.runner import paths
from pipeline.tools import preset
from tests.support.exact import GaussianDenoiser, PointsDenoiser
from tests.support.stages import points as tiny_points
from tests.support.stages import run_graph

ROOT = Path(__file__).parents[2]
PLANAR = ["eight_gaussians", "two_moons", "checkerboard", "spiral", "gaussian"]
N = 40_000


def law(name, dimensions=2, seed=0, count=N):
    return draw_points(name, count=count, dimensions=dimensions, seed=seed)


# --- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANAR)
def test_a_law_depends_on_its_seed_alone(name):
    assert np.array_equal(law(name).points, law(name).points)
    assert not np.array_equal(law(name).points, law(name, seed=1).points)
    assert law(name).points.shape == (N, 2)


@pytest.mark.parametrize("name", PLANAR)
def test_the_root_mean_square_of_a_coordinate_is_half(name):
    """sigma_data = 0.5, to which the preconditioning is set; 5 standard errors."""
    squares = (law(name).points ** 2).mean(axis=1)
    noise = {"two_moons": 0.035**2, "spiral": 0.02**2, "gaussian": 0.04 + (0.36 + 0.09) / 2 - 0.25}.get(name, -1e-4)
    assert squares.mean() == pytest.approx(0.25 + noise, abs=5 * squares.std() / math.sqrt(N) + 3e-3)


@pytest.mark.parametrize("dimensions", [2, 5])
def test_eight_gaussians(dimensions):
    drawn, centres = law("eight_gaussians", dimensions), laws.mode_centres(dimensions)
    assert np.allclose(np.linalg.norm(centres, axis=1), 0.7)
    assert np.bincount(drawn.labels) / N == pytest.approx(np.full(8, 1 / 8), abs=5 * math.sqrt(7 / 64 / N))
    rest = drawn.points - centres[drawn.labels]
    assert rest.std(axis=0) == pytest.approx([0.07, 0.07, *[0.5] * (dimensions - 2)], rel=0.03)
    assert rest.mean(axis=0) == pytest.approx(0, abs=0.015)
    # Modes are 7.6 standard deviations apart: the nearest centre is the mode.
    assert (nearest_shares(drawn.points[:, :2], centres[:, :2]) * N).astype(int).tolist() == pytest.approx(
        np.bincount(drawn.labels).tolist(), abs=10
    )


def test_two_moons_lie_on_their_half_circles():
    """Each point is within the noise of one circle of radius 0.7 about (-0.35, -0.175) or (0.35, 0.175)."""
    x = law("two_moons").points
    centres = 0.7 * np.array([[-0.5, -0.25], [0.5, 0.25]])
    off = np.abs(np.linalg.norm(x[:, None] - centres, axis=2) - 0.7).min(axis=1)
    assert off.max() < 6 * 0.035
    assert x.mean(axis=0) == pytest.approx([0, 0], abs=0.015)


def test_checkerboard_has_eight_even_squares():
    cells = np.floor((law("checkerboard").points / math.sqrt(3) + 0.5) * 4).astype(int)
    assert cells.min() == 0
    assert cells.max() == 3
    assert not (cells.sum(axis=1) % 2).any()
    counts = np.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16) / N
    assert counts[counts > 0] == pytest.approx(np.full(8, 1 / 8), abs=0.009)


def test_spiral_is_uniform_in_the_squared_radius():
    radius = np.linalg.norm(law("spiral").points, axis=1)
    assert stats.kstest(np.minimum(radius, 1) ** 2, "uniform").statistic < 0.03  # the noise blurs the rim
    angle = np.arctan2(*law("spiral").points.T[::-1])
    wide = radius > 0.3
    assert np.abs(np.angle(np.exp(1j * (angle - 4 * math.pi * radius))))[wide].mean() < 0.3


@pytest.mark.parametrize("dimensions", [1, 2, 7])
def test_gaussian_has_the_stated_moments(dimensions):
    x = law("gaussian", dimensions).points
    mu, s = laws.gaussian_moments(dimensions)
    assert x.mean(axis=0) == pytest.approx(mu, abs=0.015)
    assert x.std(axis=0) == pytest.approx(s, rel=0.02)
    assert stats.kstest((x[:, 0] - mu[0]) / s[0], "norm").pvalue > 1e-3


def test_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match="unknown law 'ring'; known: eight_gaussians"):
        law("ring")


@pytest.mark.parametrize("name", ["ve", "rf"])
def test_the_gaussians_flow_map_solver_and_exact_teacher_agree(name):
    """METHOD, section 6: closed form, Heun on the closed-form denoiser, and the denoiser of drawn points."""
    mu, s = (torch.from_numpy(v) for v in laws.gaussian_moments(2))
    d = dynamics.build(name, **({"t_max": 20.0} if name == "ve" else {}))
    exact = GaussianDenoiser(d, mu=mu, s=s)
    x_T = d.prior((2,), generator=Streams(0, "prior", range(500))).double()
    mapped = exact.flow_map(x_T, torch.full((500,), d.t_max, dtype=torch.float64))
    solved = solve_ode(exact, x_T, dynamics=d, times=d.solver_times(128))
    assert (solved - mapped).norm() / mapped.norm() < 1e-3
    x_t = x_T / d.t_max
    of_points = PointsDenoiser(d, torch.from_numpy(law("gaussian", count=20_000).points))
    t = torch.full((500,), 0.7, dtype=torch.float64)
    assert (of_points(x_t, t) - exact(x_t, t)).norm() / exact(x_t, t).norm() < 0.05
    # The map takes the prior to the law itself.
    assert mapped.mean(0).numpy() == pytest.approx(mu.numpy(), abs=0.1)
    assert mapped.std(0).numpy() == pytest.approx(s.numpy(), rel=0.1)


# --- from law to arrays ---------------------------------------------------------------------------------------------


def data_config(**changes):
    values = read_params(ROOT / "params.yaml")["data"]
    points = values["points"] | {"count": 500} | changes
    return Config.model_fields["data"].annotation(**values | {"source": "points", "points": points})


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_raw_and_processed_forms(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "SHARD_ROWS", 150)
    config = data_config()
    assert fetch_points(config, tmp_path / "raw").splits == {"train": 500}
    metadata = preprocess_points(config, tmp_path / "raw", tmp_path / "done")
    preprocess_points(config, tmp_path / "raw", tmp_path / "again")
    assert contents(tmp_path / "done") == contents(tmp_path / "again")
    train, test = (open_split(tmp_path / "done", split) for split in ("train", "test"))
    assert isinstance(train, PointSet)
    assert (len(train), len(test), train.shape, len(metadata.splits["train"].shards)) == (400, 100, (2,), 3)
    whole = np.load(tmp_path / "raw" / "points.npy")
    both = np.concatenate([train[np.arange(400)], test[np.arange(100)]])
    assert both.dtype == np.float32
    assert np.array_equal(np.sort(both, axis=0), np.sort(whole, axis=0))
    assert metadata.mean == pytest.approx(train[np.arange(400)].mean(axis=0).tolist(), abs=1e-6)
    centres = laws.mode_centres()
    assert np.array_equal(np.linalg.norm(train[np.arange(400)][:, None] - centres, axis=2).argmin(1), train.labels)
    assert metadata.splits["train"].class_counts == np.bincount(train.labels).tolist()


def test_a_law_without_modes_has_no_labels(tmp_path):
    config = data_config(law="gaussian", dimensions=3)
    fetch_points(config, tmp_path / "raw")
    preprocess_points(config, tmp_path / "raw", tmp_path / "done")
    train = open_split(tmp_path / "done", "train")
    assert (train.shape, train.labels, train.classes) == ((3,), None, None)


def test_faults_are_named(tmp_path):
    config = data_config()
    with pytest.raises(DataError, match="dvc repro fetch"):
        preprocess_points(config, tmp_path / "raw", tmp_path / "done")
    with pytest.raises(DataError, match="dvc repro preprocess"):
        open_split(tmp_path / "done", "train")
    fetch_points(config, tmp_path / "raw")
    preprocess_points(config, tmp_path / "raw", tmp_path / "done")
    with pytest.raises(DataError, match="does not describe a processed data set"):
        ImageSet.open(tmp_path / "done", "train")
    np.save(tmp_path / "done" / "train-00000.npy", np.zeros((4, 2), np.float32))
    with pytest.raises(DataError, match="counts 400 train points, the shards hold 4"):
        open_split(tmp_path / "done", "train")
    (tmp_path / "raw" / "points.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"points\.npy: cannot be read"):
        preprocess_points(config, tmp_path / "raw", tmp_path / "done")


# --- configuration --------------------------------------------------------------------------------------------------


def points_values(**changes):
    values = preset.parse_yaml(preset.apply("points", (ROOT / "params.yaml").read_text()))
    for dotted, value in changes.items():
        *sections, leaf = dotted.split("__")
        at = values
        for section in sections:
            at = at[section]
        at[leaf] = value
    return values


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"anchor__input": "cross_attention"}, "anchor.input: cross_attention needs the unet"),
        ({"network__kind": "unet"}, "network.kind: unet does not fit data.source: points; use mlp"),
        ({"evaluate__extractor": "pixels"}, "evaluate.extractor: pixels does not fit data.source: points; use coord"),
        ({"data__source": "digits"}, "network.kind: mlp does not fit data.source: digits; use unet or transformer"),
        (
            {"data__source": "digits", "network__kind": "unet"},
            "evaluate.extractor: coordinates does not fit data.source: digits; use classifier, inception",
        ),
        ({"data__random_flip": True}, "data: random_flip: true does not fit source: points; set it to false"),
        ({"data__test_split": "test"}, "data: test_split: test does not fit source: points; set it to null"),
        (
            {"data__points__dimensions": 3, "data__points__law": "spiral"},
            "data.points: dimensions = 3 does not fit law: spiral, which has 2",
        ),
        ({"data__points__dimensions": 1}, "data.points: dimensions = 1 does not fit law: eight_gaussians, which has 2"),
    ],
)
def test_values_that_do_not_fit_points(changes, said):
    with pytest.raises(ConfigError) as caught:
        parse(points_values(**changes))
    assert str(caught.value).removeprefix("params.yaml: ").startswith(said)
    assert "\n" not in str(caught.value)


def test_points_need_no_image_size_that_halves():
    assert isinstance(parse(points_values(data__image_size=9)), Config)


# --- distances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 4])
def test_sliced_wasserstein_of_a_shifted_set(d):
    """W_2 along a direction is |<shift, direction>|, of mean square |shift|^2 / d."""
    a = np.random.default_rng(0).normal(size=(300, d))
    shift = np.arange(1.0, d + 1)
    found = sliced_wasserstein(a, a + shift, projections=4000)
    assert found == pytest.approx(np.linalg.norm(shift) / math.sqrt(d), rel=0.03 if d > 1 else 1e-9)
    assert sliced_wasserstein(a, a, projections=50) == 0
    assert sliced_wasserstein(a, a[::-1], projections=50) == pytest.approx(0, abs=1e-12)


def test_sliced_wasserstein_of_scaled_gaussians_and_of_unequal_sizes():
    """N(0, I) against N(0, 4 I): W_2 = 1 along every direction."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20_000, 2)), 2 * rng.normal(size=(8_000, 2))
    assert sliced_wasserstein(a, b, projections=64) == pytest.approx(1, rel=0.03)
    # A set and the same set twice are one law.
    assert sliced_wasserstein(a[:500], np.repeat(a[:500], 2, axis=0), projections=64) == pytest.approx(0, abs=1e-9)


def test_sliced_wasserstein_in_one_dimension_is_scipys():
    """Of equal sizes in 1-D, W_2 is the root mean square of sorted differences."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200, 1)), rng.exponential(size=(200, 1))
    expected = np.sqrt(((np.sort(a, axis=0) - np.sort(b, axis=0)) ** 2).mean())
    assert sliced_wasserstein(a, b, projections=3) == pytest.approx(expected, rel=1e-9)


def test_energy_distance_in_one_dimension_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(1500, 1)), rng.normal(0.5, 2, size=(700, 1))
    expected = stats.energy_distance(a[:, 0], b[:, 0])
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert energy_distance(a, b, within_b=mean_distance(b, b)) == energy_distance(a, b)


@pytest.mark.parametrize("d", [1, 3])
def test_energy_distance_is_zero_for_equal_samples_and_symmetric(d):
    a, b = np.random.default_rng(0).normal(size=(2, 400, d))
    assert energy_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert energy_distance(a, b + 1) == pytest.approx(energy_distance(b + 1, a), rel=1e-9)


def test_energy_distance_of_two_points():
    """{0} against {v}: sqrt(2 |v|)."""
    assert energy_distance(np.zeros((1, 2)), np.array([[3.0, 4.0]])) == pytest.approx(math.sqrt(10))


def test_shapes_that_do_not_fit():
    for wrong in (np.zeros((3, 3)), np.zeros(2), np.zeros((0, 2))):
        with pytest.raises(ValueError, match="need points"):
            energy_distance(np.zeros((3, 2)), wrong)


# --- network --------------------------------------------------------------------------------------------------------


def mlp(takes_anchor=False, seed=0, **changes):
    torch.manual_seed(seed)
    return build_network(
        kind="mlp", shape=(2,), takes_anchor=takes_anchor, mlp={"width": 16, "layers": 2} | changes, channels=[8]
    )


def test_mlp_depends_on_inputs_time_and_anchor():
    network, x, c = mlp(True), torch.randn(4, 4), torch.linspace(-1, 1, 4)
    assert network(x, c).shape == (4, 2)
    assert bool((network(x, c) != network(x, c + 0.01)).all())
    x.requires_grad_()
    network(x, c).sum().backward()
    assert bool((x.grad != 0).all())


@pytest.mark.parametrize(
    ("name", "scheme"), [(name, scheme) for name in dynamics.DYNAMICS for scheme in dynamics.build(name).schemes]
)
def test_boundary_holds_exactly_on_points(name, scheme):
    g = IntegrationFlow(mlp(True), dynamics.build(name), scheme=scheme, takes_anchor=True)
    x = torch.randn(5, 2)
    assert torch.equal(g(x, torch.full((5,), g.dynamics.t_min), x_anchor=torch.randn(5, 2)), x)


def test_saved_mlp_is_the_same_and_holds_no_pickle(tmp_path):
    g = IntegrationFlow(mlp(True), dynamics.build("rf"), scheme="edm", takes_anchor=True).eval()
    pretrained.save_model(g, tmp_path / "flow", record={"image_shape": [2]})
    assert {p.name for p in (tmp_path / "flow").iterdir()} == {"config.json", "ifm.json", "model.safetensors"}
    again = pretrained.load_flow(tmp_path / "flow")
    assert isinstance(again.network, MLP)
    assert all(torch.equal(w, again.state_dict()[name]) for name, w in g.state_dict().items())
    x = torch.randn(3, 2)
    assert torch.equal(again(x, torch.ones(3), x_anchor=x), g(x, torch.ones(3), x_anchor=x))


def test_fourier_features_by_hand():
    """x, sin and cos of pi/2, pi and 2 pi times x, all of the first coordinate before the second's."""
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    root = math.sqrt(0.5)
    expected = torch.tensor([[0.5, root, 1, 0, root, 0, -1, -1, -1, 0, 0, 0, -1, 1]], dtype=torch.float64)
    torch.testing.assert_close(fourier_features(x, 3), expected, rtol=0, atol=1e-15)
    assert fourier_features(x, 0) is x
    more = torch.cat([x, torch.rand(1, 2, dtype=torch.float64)], dim=1)
    assert torch.equal(fourier_features(more, 3)[:, :14], fourier_features(x, 3))


@pytest.mark.parametrize(("dimensions", "frequencies"), [(2, 3), (16, 3), (17, 0)])
def test_many_dimensions_have_plain_inputs(dimensions, frequencies, tmp_path):
    """Of the data's dimensions, not the inputs': a flow with the anchor's inputs has its teacher's features."""
    for takes_anchor in (False, True):
        network = build_network(
            kind="mlp", shape=(dimensions,), takes_anchor=takes_anchor, mlp={"width": 8, "layers": 1}, channels=[8]
        )
        assert network.options["input_frequencies"] == frequencies
        inputs = dimensions * (1 + takes_anchor)
        assert network.inputs.in_features == inputs * (1 + 2 * frequencies)
        network.save(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["input_frequencies"] == frequencies
        x, c = torch.randn(3, inputs), torch.rand(3)
        assert torch.equal(load_network(tmp_path)(x, c), network(x, c))


def test_a_flow_starts_from_the_teachers_mlp_and_hears_its_anchor():
    """Without its anchor's columns, which start a tenth as large, it is the teacher's function."""
    source, target, fresh = mlp(seed=1), mlp(True, seed=2), mlp(True, seed=2)
    assert target.start_from(source) == []
    own = source.inputs.in_features
    torch.testing.assert_close(target.inputs.weight[:, own:], 0.1 * fresh.inputs.weight[:, own:])
    x, c = torch.randn(6, 2), torch.rand(6)
    a, b = (target(torch.cat([x, k * torch.ones(6, 2)], dim=1), c) for k in (0, 1))
    assert bool(((a - b).norm(dim=1) > 1e-4 * a.norm(dim=1)).all())
    with torch.no_grad():
        target.inputs.weight[:, own:] = 0
    torch.testing.assert_close(target(torch.cat([x, torch.randn(6, 2)], dim=1), c), source(x, c))
    assert "inputs.weight" in mlp().start_from(mlp(width=8))


def test_samples_of_points_are_floats():
    g = IntegrationFlow(mlp(True), dynamics.build("rf"), scheme="edm", takes_anchor=True).eval()
    drawn = draw_samples(
        flow_sampler(g, kind="one_step", steps=1), dynamics=g.dynamics, shape=(2,), count=5, batch_size=2, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert (drawn.images.dtype, drawn.images.shape) == (np.float32, (5, 2))
    with torch.no_grad():
        g.network.head.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        draw_samples(
            flow_sampler(g, kind="one_step", steps=1), dynamics=g.dynamics, shape=(2,), count=2, batch_size=2, seed=0,
            device=torch.device("cpu"),
        )  # fmt: skip


# --- figures --------------------------------------------------------------------------------------------------------


def test_paths_are_scaled_to_the_data_and_end_where_they_end():
    data = law("two_moons", count=300).points
    paths = np.stack([80 * data[::-1], data], axis=1)  # [n, 2, 2]
    svg = plots.path_lines(paths, data=data, shade="#0072B2", name="paths", label="paths")
    assert svg.count("<path") > plots.PATHS_SHOWN
    assert svg == plots.path_lines(paths, data=data, shade="#0072B2", name="paths", label="paths")


def test_points_are_judged_by_the_sliced_wasserstein_distance():
    rows = pd.DataFrame({"fid": [np.nan, np.nan], "sliced_wasserstein": [0.1, 0.2]})
    assert plots.judged(rows)["fid"].tolist() == [0.1, 0.2]
    assert plots.quality(rows) == "Sliced 2-Wasserstein"
    assert plots.quality(rows.assign(fid=[1.0, np.nan])) == "FID"


# --- the stages, in one process -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("name", "dimensions", "store"), [("eight_gaussians", 2, "disk"), ("gaussian", 1, "disk"), ("gaussian", 4, "none")]
)
def test_every_stage_on_points(name, dimensions, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = tiny_points(
        dynamics=["rf", "pfgmpp"], data__points__law=name, data__points__dimensions=dimensions,
        trajectories__store=store, flow__gradient_checkpointing=True, sample__seeds=3,
    )  # fmt: skip
    run_graph(values)
    table = pd.read_csv("reports/summary.csv")
    assert table.columns.tolist() == summary_columns()
    assert len(table) == 2 * 4
    assert table[["fid", "kid"]].isna().all(axis=None)
    assert (table[["sliced_wasserstein", "energy_distance"]] > 0).all(axis=None)
    assert set(table.data) == {name}
    assert table.min_class_share.notna().any() == (name == "eight_gaussians")
    samples = np.load("data/samples/rf/flow-one_step-nfe001.npy")
    assert (samples.dtype, samples.shape) == (np.float32, (3 * 100, dimensions))
    shards = [np.load(p).shape for p in sorted(Path("data/trajectories/rf").glob("shard-*.npy"))]
    assert shards == ([(32, 2, dimensions)] * 2 if store == "disk" else [])
    assert np.load("data/trajectories/rf/first.npy").shape == (64, 3, dimensions)
    page = Path("reports/index.html").read_text()
    assert "Sliced 2-Wasserstein, flow, 1 step" in page
    assert ("Stored paths of the teacher" in page) == (dimensions > 1)
    measured = json.loads(Path("reports/metrics/reference.json").read_text())
    assert measured["floor_sliced_wasserstein"] > 0
    assert Teacher is type(pretrained.load_teacher(paths.teacher("rf")))
