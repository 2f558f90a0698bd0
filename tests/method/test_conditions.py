"""Conditions: one object through networks, teachers, paths, objectives and samplers; having none costs nothing."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from scipy import stats

from ifm import conditions, dynamics, pretrained
from ifm.conditions.base import rows_of
from ifm.conditions.classes import Classes, ClassLabels
from ifm.data.splits import open_split
from ifm.errors import UserError
from ifm.exact import ExactTeacher
from ifm.model import IntegrationFlow, IntervalFlow, Teacher, build_flow
from ifm.networks import build_network, load_network
from ifm.objectives.pairs import mean_over_reference
from ifm.random import EndlessShuffle, Streams
from ifm.sampling import Draws, draw_samples, flow_sampler
from ifm.solver import solve_ode
from pipeline.runner import paths
from pipeline.stages import diagnose, report, track
from pipeline.stages import flow as flow_stage
from tests.support.small_models import NETWORK
from tests.support.stages import points, run_graph

THREE = Classes(classes=["a", "b", "c"], shares=[0.5, 0.0, 0.5])
SHAPES = [("mlp", (2,)), ("unet", (1, 8, 8))]


def labels(*values):
    return ClassLabels(torch.tensor(values))


def network(kind, shape, **options):
    torch.manual_seed(0)
    made = build_network(kind=kind, shape=shape, **{"takes_anchor": False} | options, **NETWORK)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made.eval()


def test_a_condition_is_cut_and_moved_as_a_whole():
    given = labels(3, 1, 2)
    assert len(given) == 3
    assert given.rows(slice(1, 3)).labels.tolist() == [1, 2]
    assert given.rows(np.array([2, 0])).labels.tolist() == [2, 3]
    assert given.rows(torch.tensor([1])).labels.tolist() == [1]
    assert given.to(torch.device("cpu")).map(lambda x: x + 1).labels.tolist() == [4, 2, 3]
    assert rows_of(None, slice(1)) is None


def test_classes_are_drawn_by_their_shares_and_by_seed_and_index_alone():
    drawn = THREE.draw(generator=Streams(3, "condition", range(4000))).labels
    counts = torch.bincount(drawn, minlength=3)
    assert counts[1] == 0
    assert stats.binomtest(int(counts[0]), 4000, 0.5).pvalue > 1e-3
    alone = THREE.draw(generator=Streams(3, "condition", [17, 5])).labels
    assert alone.tolist() == drawn[[17, 5]].tolist()


def test_a_kind_is_made_again_from_what_it_says():
    again = conditions.build(json.loads(json.dumps(THREE.describe())))
    assert again.describe() == THREE.describe()
    assert conditions.build(None) is None
    with pytest.raises(ValueError, match="unknown condition 'x'; known: class"):
        conditions.build({"kind": "x"})
    given = labels(0, 2)
    assert torch.equal(THREE.of_tensors(given.tensors()).labels, given.labels)
    for wrong in ({}, {"labels": torch.zeros(2)}, {"labels": torch.tensor([3])}, {"other": torch.tensor([0])}):
        with pytest.raises(ValueError, match="labels"):
            THREE.of_tensors(wrong)


def test_a_data_set_without_labels_has_no_classes():
    class Unlabelled:
        labels, classes = None, None

    with pytest.raises(UserError, match=r"condition\.kind: class needs labels, and the data set has none"):
        conditions.of_data("class", Unlabelled)
    assert conditions.of_data("none", Unlabelled) is None


@pytest.mark.parametrize("two_times", [False, True])
@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_a_network_hears_its_condition_and_says_where_it_is_missing(kind, shape, two_times, tmp_path):
    F = network(kind, shape, two_times=two_times, condition=THREE)
    x, c = torch.randn(3, *shape), torch.tensor([0.2, 0.5, 1.0])
    end = (c / 2,) if two_times else ()
    found = F(x, c, *end, condition=labels(0, 2, 1))
    assert not torch.allclose(found, F(x, c, *end, condition=labels(0, 0, 1)))
    assert torch.equal(found[2:], F(x, c, *end, condition=labels(1, 1, 1))[2:])
    with pytest.raises(ValueError, match="this network needs a class"):
        F(x, c, *end)
    with pytest.raises(ValueError, match="this network takes no condition"):
        network(kind, shape, two_times=two_times)(x, c, *end, condition=labels(0, 0, 0))
    weights = F.save(tmp_path)
    assert all(path.is_file() for path in weights)
    again = load_network(tmp_path).eval()
    assert (again.condition_kind.describe(), again.two_times) == (THREE.describe(), two_times)
    assert torch.equal(again(x, c, *end, condition=labels(0, 2, 1)), found)


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_no_condition_costs_nothing(kind, shape, tmp_path):
    """The network without one has no weights for it, and writes the files it always did."""
    plain, with_condition = network(kind, shape), network(kind, shape, condition=THREE)
    more = with_condition.state_dict().keys() - plain.state_dict().keys()
    assert more == {"condition.table.weight"}
    assert not plain.state_dict().keys() - with_condition.state_dict().keys()
    plain.save(tmp_path)
    assert not (tmp_path / "embeddings.safetensors").exists()
    assert "condition" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_a_flow_with_a_condition_starts_from_a_teacher_with_it(kind, shape):
    teacher = network(kind, shape, condition=THREE)
    flow = network(kind, shape, condition=THREE, takes_anchor=True)
    assert flow.start_from(teacher) == []
    assert torch.equal(flow.condition.table.weight, teacher.condition.table.weight)
    assert flow.start_from(network(kind, shape)) == ["condition.table.weight"]


def test_an_interval_network_of_the_old_form_computes_the_same(tmp_path):
    """It had the interval's end in diffusers' class slot."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    old = UNet2DModel(
        sample_size=8, in_channels=2, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        add_attention=False, class_embed_type="timestep",
    ).eval()  # fmt: skip
    old.save_pretrained(tmp_path, safe_serialization=True)
    x, c, end = torch.randn(3, 2, 8, 8), torch.tensor([0.2, 0.5, 1.5]), torch.tensor([0.1, 0.2, 1.0])
    expected = old(x, timestep=2.0 * c, class_labels=2.0 * end).sample
    loaded = load_network(tmp_path).eval()
    assert loaded.two_times
    assert torch.equal(loaded(x, c, end), expected)
    (tmp_path / "new").mkdir()
    loaded.save(tmp_path / "new")
    assert torch.equal(load_network(tmp_path / "new").eval()(x, c, end), expected)


DATA = torch.tensor([[-0.6, 0.5], [0.3, -0.2], [0.9, 0.1], [-0.1, -0.8]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["ve", "rf", "pfgmpp", "vp", "trig"])
@pytest.mark.parametrize("bytes_at_once", [1, 2**26])
def test_the_exact_teacher_of_a_class_is_that_of_its_data(name, bytes_at_once, monkeypatch):
    monkeypatch.setattr("ifm.exact.CHUNK_BYTES", bytes_at_once)  # 1: a piece for each datum
    d = dynamics.build(name)
    have = labels(0, 2, 0, 2)
    teacher = ExactTeacher(DATA, d, kind=THREE, have=have)
    t = torch.full((4,), d.t_max / 3, dtype=torch.float64)
    x_t = torch.randn(4, 2, dtype=torch.float64)
    found = teacher(x_t, t, condition=labels(0, 2, 2, 0))
    for c in (0, 2):
        rows = [i for i, asked in enumerate((0, 2, 2, 0)) if asked == c]
        alone = ExactTeacher(DATA[have.labels == c], d)
        torch.testing.assert_close(found[rows], alone(x_t, t)[rows])
    torch.testing.assert_close(teacher(x_t, t), ExactTeacher(DATA, d)(x_t, t))


@pytest.mark.parametrize("name", ["ve", "vp", "trig"])
def test_the_solver_takes_each_path_to_its_own_class(name):
    d = dynamics.build(name)
    teacher = ExactTeacher(DATA, d, kind=THREE, have=labels(0, 2, 0, 2))
    x_T = d.prior((2,), generator=Streams(0, "prior", range(40))).double()
    asked = ClassLabels(torch.arange(40) % 2 * 2)
    ends = solve_ode(teacher, x_T, dynamics=d, times=d.solver_times(24), condition=asked)
    nearest = torch.cdist(ends, DATA).argmin(dim=1)
    assert torch.equal(teacher.have.labels[nearest], asked.labels)


def test_the_mean_over_a_reference_is_over_the_pairs_own_class():
    accelerator, d = Accelerator(cpu=True), dynamics.build("rf")
    data = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    own = np.arange(30) % 3 // 2 * 2

    def read(rows):
        return ClassLabels(torch.from_numpy(own[rows]))

    pairs = {"random_flip": False, "batch_size": 6, "seed": 1}
    mean = mean_over_reference(accelerator, d, data, size=12, kind=THREE, read_condition=read, **pairs)
    x_t, t = torch.randn(6, 2), torch.full((6,), 0.5)
    asked = read(np.arange(6))
    order = EndlessShuffle(30, 6, seed=1)
    rows = np.unique(np.concatenate([order.batch(4), order.batch(5)]))
    for c in (0, 2):
        alone = ExactTeacher(torch.from_numpy(data[rows[own[rows] == c]]), d)
        mine = asked.labels == c
        torch.testing.assert_close(mean(4)(x_t, t, condition=asked)[mine], alone(x_t, t)[mine])


class Told(torch.nn.Module):
    """A network that remembers which labels it was told, evaluation by evaluation."""

    condition_kind = THREE

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs, c_noise, c_end=None, *, condition):
        self.seen.append(condition.labels.tolist())
        return torch.zeros_like(inputs)


@pytest.mark.parametrize(("kind", "steps"), [("one_step", 1), ("renoise", 3), ("chain", 3), ("anchor", 1)])
def test_every_sampler_tells_the_network_at_each_evaluation(kind, steps):
    d, F = dynamics.build("ve"), Told()
    made = IntervalFlow(F, d, takes_anchor=False)
    draws = Draws.of(d, (2,), range(5), seed=4, device=torch.device("cpu"), condition=THREE)
    flow_sampler(made, kind=kind, steps=steps).run(draws)
    assert F.seen == [draws.condition.labels.tolist()] * steps
    F.seen.clear()
    common = {"dynamics": d, "shape": (2,), "seed": 4, "device": torch.device("cpu"), "condition": THREE}
    draw_samples(flow_sampler(made, kind=kind, steps=steps), count=5, batch_size=2, **common)
    assert [
        label for seen in F.seen[steps::steps] for label in seen
    ] == draws.condition.labels.tolist()  # after the warm-up's batch


def test_given_conditions_belong_to_the_samples_in_order():
    given = labels(2, 0, 2, 0, 0)
    draws = Draws.of(dynamics.build("ve"), (2,), range(2, 4), seed=0, device=torch.device("cpu"), condition=given)
    assert draws.condition.labels.tolist() == [2, 0]


def modes_of(samples):
    """The index of the nearest of the training points' modes: int [n]."""
    train = open_split(paths.PROCESSED, "train")
    centres = np.stack([train[np.flatnonzero(train.labels == k)].mean(axis=0) for k in range(len(train.classes))])
    return np.linalg.norm(samples[:, None] - centres, axis=2).argmin(axis=1)


SCALES = [1.0, 2.0, 4.0]  # a flow of [1, 3] takes the first two


def check_scales(d, *, count):
    """What is drawn and found at other guidance scales: of the flow where it takes them, of the teacher at all."""
    folder = paths.samples(d)
    told = json.loads((folder / "metadata.json").read_text())
    finest = max(s["nfe"] for s in told["samplers"] if s["model"] == "teacher")
    assert told["guidance"] == 1.0
    assert not (folder / "w.npy").exists()
    drawn = {(s["model"], s["guidance"]) for s in told["guided"]}
    assert drawn == {("flow", 2.0), *(("teacher", w) for w in SCALES)}
    row = json.loads((paths.METRICS / f"{d}.json").read_text())["flow-one_step-nfe001"]
    models = [s["model"] for s in row["guided"]]
    assert models == ["flow-w1", "flow-w2", "teacher-w1", "teacher-w2", "teacher-w4"]
    first = (np.load(folder / "flow-one_step-nfe001.npy")[:count], np.load(folder / "labels.npy")[:count])
    assert row["guided"][0]["asked_class_share"] == pytest.approx((modes_of(first[0]) == first[1]).mean())
    assert [s["nfe"] for s in row["guided"]] == [1, 1, *[finest] * 3]
    led, own = (
        np.load(folder / f"{name}-w2.npy") for name in (f"teacher-heun-nfe{finest:03d}", "flow-one_step-nfe001")
    )
    difference = (own[:count].astype(float) - led) / (127.5 if own.dtype == np.uint8 else 1)
    rms = np.sqrt(np.square(difference).reshape(count, -1).mean(axis=1)).mean()
    assert row["guided"][1]["endpoint_rms"] == pytest.approx(rms)
    summary = pd.read_csv(paths.REPORTS / "summary.csv")
    assert set(summary.model) == {"teacher", "flow", *models}
    assert summary[summary.model.isin(models)].seconds_per_image.notna().all()
    assert len(np.load(folder / "teacher-heun-nfe005-w4.npy")) == count
    page = (paths.REPORTS / "index.html").read_text()
    assert "<h2>Guidance</h2>" in page
    tracked = track.final_figures(
        {d: json.loads((paths.METRICS / f"{d}.json").read_text()), "diagnostics": {}, "reference": {}}, [d]
    )
    assert tracked[f"asked_class_share/{d}-flow-w2-1nfe"] == row["guided"][1]["asked_class_share"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("objective", "kind", "store", "velocity", "guidance"),
    [("trajectory", "exact", "disk", "reference", {"kind": "cfg", "scale": [1.0, 3.0], "interval": [0.1, 5.0]}),
     ("trajectory", "network", "none", "reference", {"kind": "autoguidance", "scale": 2.0, "weaker": 0.5}),
     ("data", "network", "disk", "teacher", {"kind": "cfg", "scale": 2.0}),
     ("consistency", "exact", "disk", "reference", {"kind": "none"}),
     ("interval", "network", "disk", "pair", {"kind": "cfg", "scale": [1.0, 3.0]})],
)  # fmt: skip
def test_the_graph_with_classes(objective, kind, store, velocity, guidance, tmp_path, monkeypatch):
    """Every stage on points that are told their mode; an exact teacher's samples lie in the mode that was asked for."""
    monkeypatch.chdir(tmp_path)
    values = points(
        condition__kind="class", flow__objective=objective, flow__init="scratch", teacher__kind=kind,
        trajectories__store=store, dynamics=["trig"] if objective == "data" else ["ve"],
        anchor__policy="noise" if objective == "interval" else "self",
        flow__velocity=velocity, **{f"guidance__{key}": value for key, value in guidance.items()},
        evaluate__guidance_scales=SCALES if "interval" in guidance else [],
    )  # fmt: skip
    (d,) = values["dynamics"]
    run_graph(values, up_to=report if "interval" in guidance else diagnose)
    if "interval" in guidance:
        check_scales(d, count=values["sample"]["count"])
    for folder in (paths.teacher(d), paths.flow(d)):
        assert json.loads(next(Path(folder).glob("*.json")).read_text())
    flow, teacher = pretrained.load_flow(paths.flow(d)), pretrained.load_teacher(paths.teacher(d))
    assert flow.condition_kind.classes == teacher.condition_kind.classes == open_split(paths.PROCESSED, "train").classes
    metadata = json.loads((paths.trajectories(d) / "metadata.json").read_text())
    if objective == "trajectory":
        assert metadata["condition"] == flow.condition_kind.describe()
        assert (paths.trajectories(d) / "conditions.safetensors").is_file() == (store == "disk")
        assert metadata["guidance"] == flow.guidance
    assert (flow.guidance or {"kind": "none"})["kind"] == guidance["kind"]
    assert (paths.teacher(d) / "weaker").is_dir() == ("weaker" in guidance)
    if kind == "exact":
        asked = Draws.of(
            flow.dynamics, (2,), range(100), seed=values["seed"], device=torch.device("cpu"),
            condition=flow.condition_kind,
        ).condition.labels.numpy()  # fmt: skip
        samples = np.load(paths.samples(d) / "teacher-heun-nfe005.npy")
        assert np.array_equal(np.load(paths.samples(d) / "labels.npy"), asked)
        assert (
            json.loads((paths.samples(d) / "metadata.json").read_text())["condition"] == flow.condition_kind.describe()
        )
        judged = json.loads((paths.METRICS / f"{d}.json").read_text())["teacher-heun-nfe005"]
        assert judged["asked_class_share"] == (modes_of(samples) == asked).mean()
        assert (modes_of(samples) == asked).mean() > 0.95
        if objective == "trajectory":
            stored = np.load(paths.trajectories(d) / "first.npy")[:, -1]
            drawn = flow.condition_kind.draw(generator=Streams(values["seed"], "condition", range(len(stored))))
            assert (modes_of(stored) == drawn.labels.numpy()).mean() > 0.95


def test_a_trained_flow_goes_where_it_is_told(tmp_path, monkeypatch):
    """Eight modes, an exact teacher, 600 steps of a small network: one evaluation ends in the mode asked for."""
    monkeypatch.chdir(tmp_path)
    values = points(
        condition__kind="class", teacher__kind="exact", flow__init="scratch",
        flow__steps=600, flow__batch_size=64, flow__lr=3e-3, flow__checkpoint_every=600, flow__log_every=100,
        network__mlp={"width": 64, "layers": 2}, trajectories__count=1024, trajectories__shard_size=1024,
        trajectories__batch_size=256, trajectories__solver_steps=9, dynamics=["trig"], anchor__policy="none",
    )  # fmt: skip
    run_graph(values, up_to=flow_stage)
    flow = pretrained.load_flow(paths.trained("trig"))
    assert isinstance(flow, IntegrationFlow)
    draws = Draws.of(flow.dynamics, (2,), range(400), seed=9, device=torch.device("cpu"), condition=flow.condition_kind)
    samples = flow_sampler(flow, kind="one_step", steps=1).run(draws).detach().numpy()
    assert (modes_of(samples) == draws.condition.labels.numpy()).mean() > 0.95


def test_a_model_that_takes_none_is_not_told():
    d = dynamics.build("ve")
    teacher = Teacher(network("mlp", (2,)), d)
    flow = build_flow(network("mlp", (2,)), d, scheme="edm", takes_anchor=False)
    assert teacher.condition_kind is flow.condition_kind is None
    with pytest.raises(ValueError, match="this network takes no condition"):
        flow(torch.zeros(1, 2), torch.ones(1), x_anchor=None, condition=labels(0))
