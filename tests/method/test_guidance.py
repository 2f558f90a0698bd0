"""Guidance: closed forms, exact ends, keyed draws, and what a flow with guidance inside learns."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ifm import dynamics, pretrained
from ifm.conditions.base import varying
from ifm.conditions.classes import Classes, ClassLabels, scales_between
from ifm.config import ConfigError, parse, read_params
from ifm.data.splits import open_split
from ifm.errors import UserError
from ifm.exact import ExactTeacher
from ifm.guidance import Guidance, Guided, GuidedMean, combined, only, solver_evaluations, within
from ifm.hardware.devices import RowReader
from ifm.model import IntervalFlow, Teacher, build_flow
from ifm.networks import build_network, load_network
from ifm.objectives.base import Examples
from ifm.objectives.interval import guided_velocity
from ifm.objectives.pairs import draw_pairs
from ifm.random import Streams
from ifm.sampling import Draws, flow_sampler
from ifm.solver import solve_ode
from ifm.training.checkpoint import Checkpoints
from ifm.training.teacher import train_teacher
from ifm.trajectories import conditions_of
from pipeline.runner import paths
from pipeline.stages import fetch, preprocess
from pipeline.stages import teacher as teacher_stage
from tests.support import stages
from tests.support.small_models import NETWORK, loud
from tests.support.stages import ROOT, changed, points, run_stage
from tests.support.training import settings

FIVE = ["ve", "rf", "pfgmpp", "vp", "trig"]
DATA = torch.tensor([[-0.6, 0.5], [0.3, -0.2], [0.9, 0.1], [-0.1, -0.8], [0.2, 0.7]], dtype=torch.float64)
OWN = torch.tensor([0, 2, 0, 2, 1])
THREE = Classes(classes=["a", "b", "c"], shares=[0.4, 0.2, 0.4], drops=True)
RANGE = THREE.told_to(drops=True, scale=(0.5, 4.0))
CPU = torch.device("cpu")


def network(kind=THREE, shape=(2,), **options):
    torch.manual_seed(0)
    name = "mlp" if len(shape) == 1 else "unet"
    return build_network(kind=name, shape=shape, condition=kind, **{"takes_anchor": False} | options, **NETWORK).eval()


def shares(d, x, t, rows):
    """The probability of each of some of DATA that it made x_t, in float64 from the density of z = (x - a x_i) / b."""
    a, b = (float(c[0]) for c in (d.coefficients(t[None]).a, d.coefficients(t[None]).b))
    z = torch.stack([(x - a * DATA[i]) / b for i in rows])
    squared = z.square().sum(dim=1)
    if d.gaussian:
        log_w = -squared / 2
    else:
        D = d.options["augmented_dimensions"]
        log_w = -(2 + D) / 2 * torch.log1p(squared / D)
    w = (log_w - log_w.max()).exp()
    return w / w.sum()


def direct(d, x, t, rows):
    """E[x_0 | x_t] over some of DATA, summed point by point."""
    return sum(w * DATA[i] for i, w in zip(rows, shares(d, x, t, rows), strict=True))


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("interval", [None, (0.05, 0.5)])
def test_the_guided_exact_teacher_is_a_direct_sum(name, interval):
    d = dynamics.build(name)
    teacher = ExactTeacher(DATA, d, kind=THREE, have=ClassLabels(OWN))
    labels = torch.tensor([0, 1, 2, 3, 0, 2])
    w = torch.tensor([0.0, 0.7, 1.0, 2.0, 3.5, 1.5])
    angles = torch.linspace(0.02, 0.95, 6, dtype=torch.float64) * float(d.angle(torch.tensor([d.t_max]).double()))
    t = d.time_at(angles)
    x = 1.5 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = Guided(teacher, RANGE, w=None, interval=interval)(x, t, condition=ClassLabels(labels, w))
    inside = torch.ones(6, dtype=torch.bool)
    for i in range(6):
        at = d.coefficients(t[i : i + 1])
        rows = [j for j in range(5) if labels[i] in (3, OWN[j])]
        D_c, D_0 = direct(d, x[i], t[i], rows), direct(d, x[i], t[i], range(5))
        inside[i] = interval is None or interval[0] <= float(at.b / at.a) <= interval[1]
        want = D_0 + float(w[i].double()) * (D_c - D_0) if inside[i] else D_c
        torch.testing.assert_close(found[i], want, rtol=1e-9, atol=1e-9)
    assert inside.all() == (interval is None)


@pytest.mark.parametrize("w", [0.0, 1.0])
@pytest.mark.parametrize("name", FIVE)
def test_the_ends_are_the_two_denoisers_to_the_bit(name, w):
    d = dynamics.build(name)
    asked, x, t = ClassLabels(torch.tensor([0, 1, 2, 2])), torch.randn(4, 2), torch.full((4,), d.t_max / 3)
    for teacher in (ExactTeacher(DATA, d, kind=THREE, have=ClassLabels(OWN)), Teacher(loud(network()), d)):
        want = teacher(x, t, condition=asked if w else THREE.none(4))
        assert torch.equal(Guided(teacher, THREE, w=w)(x, t, condition=asked), want)
        told = replace(asked, w=torch.full((4,), w))
        assert torch.equal(Guided(teacher, RANGE, w=None)(x, t, condition=told), want)
    alone = ExactTeacher(DATA, d)(x, t)
    exact = ExactTeacher(DATA, d, kind=THREE, have=ClassLabels(OWN))
    assert torch.equal(exact(x, t, condition=THREE.none(4)), alone)


def test_autoguidance_leads_away_from_the_weaker_one_of_the_same_class():
    d = dynamics.build("ve")
    strong, weak = Teacher(loud(network()), d), Teacher(network(), d)
    asked, x, t = ClassLabels(torch.tensor([0, 1, 2, 2])), torch.randn(4, 2), torch.full((4,), 0.5)
    D_1, D_0 = strong(x, t, condition=asked), weak(x, t, condition=asked)
    found = Guidance("autoguidance", 2.0).around(strong, THREE, weaker=weak)(x, t, condition=asked)
    torch.testing.assert_close(found, D_0 + 2 * (D_1 - D_0))
    with pytest.raises(ValueError, match="weaker"):
        Guidance("autoguidance", 2.0).around(strong, THREE)


def test_a_teacher_that_knows_no_class_alone_is_not_led():
    plain = THREE.told_to(drops=False, scale=None)
    with pytest.raises(UserError, match=r"condition\.drop_probability above 0"):
        Guided(Teacher(network(plain), dynamics.build("ve")), plain, w=2.0)
    exact = ExactTeacher(DATA, dynamics.build("ve"), kind=THREE, have=ClassLabels(OWN))
    with pytest.raises(ValueError, match="own w"):
        Guided(exact, THREE, w=None)(torch.zeros(1, 2), torch.ones(1), condition=ClassLabels(OWN[:1]))


def test_outside_the_interval_it_costs_one_evaluation():
    d, asked = dynamics.build("ve"), []

    class Counts(ExactTeacher):
        def forward(self, x_t, t, *, condition=None):
            asked.append(float(t[0]))
            return super().forward(x_t, t, condition=condition)

    guidance = Guidance("cfg", 2.0, (0.1, 3.0))
    guided = guidance.around(Counts(DATA, d, kind=THREE, have=ClassLabels(OWN)), THREE)
    times = d.solver_times(6)
    x_T = d.prior((2,), generator=Streams(0, "prior", range(3))).double()
    solve_ode(guided, x_T, dynamics=d, times=times, condition=ClassLabels(OWN[:3]))
    assert len(asked) == solver_evaluations(d, times, guidance)
    assert solver_evaluations(d, times, None) == 11 < len(asked) < 22
    at_the_end = within(dynamics.build("rf"), torch.tensor([1.0]), (0.0, 5.0))  # b / a is infinite there
    assert not bool(at_the_end)


def test_combined_is_exact_at_both_ends_in_any_dtype():
    for dtype in (torch.float32, torch.float64):
        D_0, D_c = torch.randn(2, 50, dtype=dtype).unbind()
        D_0, D_c, inside = D_0[:, None], D_c[:, None], torch.ones(50, dtype=torch.bool)
        assert torch.equal(combined(D_0, D_c, torch.zeros(50, dtype=dtype)), D_0)
        assert torch.equal(combined(D_0, D_c, torch.ones(50, dtype=dtype)), D_c)
        assert torch.equal(combined(D_0, D_c, only(~inside, torch.full((50,), 3.0, dtype=dtype))), D_c)


@pytest.mark.parametrize("name", FIVE)
def test_a_mean_over_data_is_led_without_bias(name):
    """Over all references that hold the pair's own x_0, each by its probability given x_t and the class, it is D_w."""
    d, w, size = dynamics.build(name), 3.0, 3
    whole = ExactTeacher(DATA, d, kind=THREE, have=ClassLabels(OWN))
    exact = Guided(whole, THREE, w=w)
    references, bias = list(itertools.combinations(range(len(DATA)), size)), []
    for x, share, label in (([0.1, 0.2], 0.3, 0), ([0.5, -0.1], 0.12, 2), ([-0.3, 0.1], 0.4, 2)):
        x = torch.tensor(x, dtype=torch.float64)
        t = d.time_at(share * d.angle(torch.tensor([d.t_max]).double()))
        asked = {"condition": ClassLabels(torch.tensor([label]))}
        own = [i for i in range(len(DATA)) if OWN[i] == label]
        led, by_itself = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for i, chance in zip(own, shares(d, x, t[0], own), strict=True):
            holding = [list(rows) for rows in references if i in rows]
            for rows in holding:
                mean = ExactTeacher(DATA[rows], d, kind=THREE, have=ClassLabels(OWN[rows]))
                led += chance / len(holding) * GuidedMean(mean, exact)(x[None], t, **asked)[0]
                by_itself += chance / len(holding) * Guided(mean, THREE, w=w)(x[None], t, **asked)[0]
        D_w = exact(x[None], t, **asked)[0]
        torch.testing.assert_close(led, D_w, rtol=0, atol=1e-12)
        bias.append(float((by_itself - D_w).norm()))
    assert max(bias) > 0.05  # the mean's own D_0 is drawn to D_c


def test_a_led_mean_is_the_mean_where_w_is_1_or_does_not_count():
    d = dynamics.build("ve")
    mean = ExactTeacher(DATA[:4], d, kind=THREE, have=ClassLabels(OWN[:4]))
    x, t, asked = (
        torch.randn(3, 2).double(),
        torch.tensor([0.3, 0.4, 2.0]).double(),
        ClassLabels(torch.tensor([0, 2, 0])),
    )
    D_c = mean(x, t, condition=asked)

    def found(**how):
        whole = ExactTeacher(DATA, d, kind=THREE, have=ClassLabels(OWN))
        return GuidedMean(mean, Guided(whole, THREE, **how))(x, t, condition=asked)

    assert torch.equal(found(w=1.0), D_c)
    assert torch.equal(found(w=2.0, interval=(5.0, 9.0)), D_c)
    partly = found(w=2.0, interval=(0.35, 0.5))
    assert torch.equal(partly[[0, 2]], D_c[[0, 2]])
    assert not torch.equal(partly[1], D_c[1])


def test_labels_are_left_out_by_seed_step_and_sample_alone():
    vary = varying(RANGE, drop=0.25)
    given = ClassLabels(torch.arange(4000) % 3)
    first = vary(given, Streams(3, "drop", range(4000), step=7))
    out = RANGE.left_out(first)
    assert abs(float(out.float().mean()) - 0.25) < 0.03
    assert torch.equal(first.labels[~out], given.labels[~out])
    assert bool((first.labels[out] == 3).all())
    assert 0.5 <= float(first.w.min()) < 0.52
    assert 3.96 < float(first.w.max()) <= 4.0
    few = np.array([17, 3999, 4])
    alone = vary(given.rows(few), Streams(3, "drop", few, step=7))
    assert torch.equal(alone.labels, first.labels[few])
    assert torch.equal(alone.w, first.w[few])
    for other in (Streams(3, "drop", range(4000), step=8), Streams(4, "drop", range(4000), step=7)):
        assert not torch.equal(vary(given, other).labels, first.labels)
    assert varying(THREE, drop=0.0) is None is varying(None, drop=0.5)
    with pytest.raises(ValueError, match="does not know no class"):
        varying(THREE.told_to(drops=False, scale=None), drop=0.5)(given, Streams(0, "drop", range(4000)))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.8), (0.0, 3.0), (0.5, 4.0), (1.0, 4.0), (2.0, 7.5)])
def test_scales_are_drawn_by_their_law(low, high):
    u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    drawn = scales_between(low, high, u)
    assert (float(drawn[0]), float(drawn[-1])) == (low, pytest.approx(high, rel=1e-12))
    assert bool((drawn.diff() > 0).all())
    w = torch.linspace(low, high, 400_001, dtype=torch.float64)  # the law by quadrature
    below = torch.cumulative_trapezoid((1 / w).clamp_max(1), w)
    for each in (0.1, 0.5, 0.9):
        by_quadrature = w[int(torch.searchsorted(below / below[-1], each)) + 1]
        assert float(drawn[round(each * 20_000)]) == pytest.approx(float(by_quadrature), abs=1e-4)
    assert scales_between(low, high, u.float()).dtype == torch.float32


def test_leaving_labels_out_changes_no_other_draw():
    data, d = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32), dynamics.build("rf")
    accelerator = Accelerator(cpu=True)

    def examples(**told):
        pairs = {"random_flip": False, "batch_size": 8, "seed": 1, "even_share": 0.5}
        draw = draw_pairs(accelerator, d, RowReader(data, CPU), **pairs, **told)
        return draw(np.arange(8), 3, Streams(1, "anchor", range(8), step=3))

    plain = examples()
    led = examples(read_condition=lambda rows: ClassLabels(torch.from_numpy(rows % 3)), vary=varying(RANGE, drop=0.5))
    assert plain.condition is None
    for name in ("x_t", "t", "x_0", "z"):
        assert torch.equal(getattr(plain, name), getattr(led, name))


def test_a_paths_class_and_w_are_drawn_from_seed_and_index():
    whole = conditions_of(RANGE, range(50), seed=5)
    some = conditions_of(RANGE, [7, 31], seed=5)
    assert torch.equal(whole.labels[[7, 31]], some.labels)
    assert torch.equal(whole.w[[7, 31]], some.w)
    assert torch.equal(conditions_of(THREE, range(50), seed=5).labels, whole.labels)
    again = RANGE.of_tensors(whole.tensors())
    assert torch.equal(again.w, whole.w)
    with pytest.raises(ValueError, match="under w"):
        RANGE.of_tensors({"labels": whole.labels})
    with pytest.raises(ValueError, match="labels"):
        THREE.of_tensors(whole.tensors())


@pytest.mark.parametrize(("shape", "two_times"), [((2,), False), ((2,), True), ((1, 8, 8), False), ((1, 8, 8), True)])
def test_w_is_an_input_that_counts_for_nothing_at_first(shape, two_times, tmp_path):
    F, plain = network(RANGE, shape, two_times=two_times), network(THREE, shape, two_times=two_times)
    assert plain.state_dict().keys() < F.state_dict().keys()
    assert {name.split(".")[1] for name in F.state_dict().keys() - plain.state_dict().keys()} == {"scale"}
    left = F.start_from(plain)
    assert all(name.startswith("condition.scale.") for name in left)
    assert len(left) == 4
    x, c, labels = torch.randn(3, *shape), torch.tensor([0.2, 0.5, 1.0]), torch.tensor([0, 3, 1])
    end = (c / 2,) if two_times else ()
    w = torch.tensor([0.5, 2.0, 4.0])
    assert torch.equal(
        F(x, c, *end, condition=ClassLabels(labels, w)), plain(x, c, *end, condition=ClassLabels(labels))
    )
    with pytest.raises(ValueError, match="guidance scale"):
        F(x, c, *end, condition=ClassLabels(labels))
    loud(F)
    found = F(x, c, *end, condition=ClassLabels(labels, w))
    assert not torch.allclose(found, F(x, c, *end, condition=ClassLabels(labels, w + 0.5)))
    F.save(tmp_path)
    again = load_network(tmp_path).eval()
    assert again.condition_kind.describe() == RANGE.describe()
    assert torch.equal(again(x, c, *end, condition=ClassLabels(labels, w)), found)


def test_a_flow_says_what_it_has_inside_and_an_unguided_one_nothing(tmp_path):
    d = dynamics.build("trig")
    flow = build_flow(network(RANGE), d, scheme="edm", takes_anchor=False)
    flow.guidance = Guidance("cfg", (0.5, 4.0), (0.1, 3.0)).describe()
    pretrained.save_model(flow, tmp_path / "led", record={})
    assert json.loads((tmp_path / "led" / "ifm.json").read_text())["guidance"] == flow.guidance
    read = pretrained.load_flow(tmp_path / "led")
    assert read.guidance == {"kind": "cfg", "scale": [0.5, 4.0], "interval": [0.1, 3.0]}
    assert Guidance.of(read.guidance) == Guidance("cfg", (0.5, 4.0), (0.1, 3.0))
    plain = build_flow(network(None), d, scheme="edm", takes_anchor=False)
    pretrained.save_model(plain, tmp_path / "plain", record={})
    assert "guidance" not in json.loads((tmp_path / "plain" / "ifm.json").read_text())
    assert pretrained.load_flow(tmp_path / "plain").guidance is None


def test_an_earlier_teacher_is_kept_for_autoguidance(tmp_path):
    d = dynamics.build("ve")
    teacher, earlier = Teacher(loud(network()), d), Teacher(network(), d)
    pretrained.save_model(teacher, tmp_path / "t", record={}, weaker=earlier.state_dict())
    read = pretrained.load_teacher(tmp_path / "t")
    guided = pretrained.guided(read, tmp_path / "t", Guidance("autoguidance", 2.0))
    for model, want in ((guided.teacher, teacher), (guided.weaker, earlier)):
        for name, weight in want.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight)
    pretrained.save_model(teacher, tmp_path / "alone", record={})
    with pytest.raises(UserError, match=r"guidance\.weaker"):
        pretrained.guided(read, tmp_path / "alone", Guidance("autoguidance", 2.0))


def test_an_intervals_pair_is_led_by_the_flows_own_velocity():
    """MeanFlow's guided target: v_0 + w (v - v_0), and v itself where the class is left out."""
    d = dynamics.build("trig")
    flow = IntervalFlow(loud(network(RANGE, two_times=True)), d, takes_anchor=False)
    x_0, z, t = torch.randn(4, 2), torch.randn(4, 2), torch.tensor([0.2, 0.5, 1.0, 1.3])
    asked = ClassLabels(torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, 2.0, 3.0, 3.0]))
    at = Examples(d.perturb(x_0, z=z, t=t), t, x_0, z, condition=asked)
    v = d.angular_velocity(x_0, z=z, theta=d.angle(t))
    found = guided_velocity(flow, at, velocity=v, x_anchor=None, guidance=Guidance("cfg", (0.5, 4.0)))
    none = replace(RANGE.none(4), w=asked.w)
    y = at.x_t / d.scale(t)[:, None]
    v_0 = -flow.network(y, d.angle(t), d.angle(t), condition=none)
    torch.testing.assert_close(found[:3], (v_0 + asked.w[:, None] * (v - v_0))[:3])
    assert torch.equal(found[3], v[3])
    assert torch.equal(found[0], v[0])


def test_the_earlier_teacher_is_the_average_of_its_step(tmp_path):
    """Kept through an interruption too; training goes as without it."""
    data, steps = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32), {"lr_decay": "none", "steps": 7}
    common = {"random_flip": False, "seed": 1}

    def run(on_log=None, checkpoints=None, keep_after=None, **changes):
        model = Teacher(network(None), dynamics.build("ve"))
        how = {"settings": settings(**steps | changes), "on_log": on_log, "checkpoints": checkpoints}
        result = train_teacher(Accelerator(cpu=True), model, data, keep_after=keep_after, **how, **common)
        return model.state_dict(), result.kept

    def stop(row):
        if row["step"] == 6:
            raise KeyboardInterrupt

    whole, nothing = run()
    assert nothing is None
    early, _ = run(steps=3)
    with pytest.raises(KeyboardInterrupt):
        run(stop, Checkpoints(tmp_path / "c"), 3)
    resumed, kept = run(None, Checkpoints(tmp_path / "c"), 3)
    for name in whole:
        assert torch.equal(kept[name], early[name])
        assert torch.equal(resumed[name], whole[name])
        assert whole[name].dtype != torch.float32 or not torch.equal(kept[name], whole[name])


VALUES = read_params(ROOT / "params.yaml")
LED = {"condition.kind": "class", "guidance.kind": "cfg", "guidance.scale": 2.0}
SMALLER = {
    "guidance.kind": "autoguidance",
    "guidance.weaker": 1.0,
    "guidance.weaker_network": {"channels": [16, 16, 32]},
}
BY_ITSELF = {"flow.objective": "interval", "flow.init": "scratch", "anchor.policy": "noise"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"condition.kind": "none"}, "guidance.kind: cfg needs condition.kind: class, got none"),
        ({"condition.drop_probability": 0.0}, "set condition.drop_probability above 0"),
        ({"flow.velocity": "pair"}, "flow.velocity: pair has none; set it to reference or teacher"),
        ({"guidance.kind": "autoguidance"}, "guidance.weaker to a share of its training"),
        (
            {"guidance.kind": "autoguidance", "guidance.weaker": 0.3} | BY_ITSELF,
            "flow.objective: interval leads by the teacher; set flow.velocity to teacher",
        ),
        (
            {"teacher.kind": "none", "flow.init": "scratch", "flow.objective": "consistency"},
            "guidance.kind: cfg with flow.objective: consistency is led by a teacher, and teacher.kind is none; set it "
            "to network or exact, or flow.objective to interval",
        ),
        ({"guidance.kind": "autoguidance", "guidance.weaker": 1.0}, "guidance.weaker: 1 of teacher.steps = "),
        ({"guidance.kind": "autoguidance", "guidance.weaker": 0.9999}, "is the teacher itself; lower it, or set"),
        (SMALLER | {"guidance.weaker_network": {"channels": VALUES["network"]["channels"]}}, "is the teacher itself"),
        ({"guidance.weaker": 0.25}, "guidance.weaker = 0.25 is of autoguidance, and guidance.kind is cfg; set"),
        ({"guidance.weaker_network": {"channels": [8, 8, 8]}}, "is of autoguidance, and guidance.kind is cfg; set"),
        (
            {"guidance.interval": [50.0, 100.0]},
            "guidance.interval: [50, 100] holds no noise level of ve, which has 0.002 to 20;",
        ),
        (
            {"guidance.interval": [50.0, 100.0], "dynamics": ["trig"]},
            "holds no noise level of trig, which has 0.002 to 19.",
        ),
        (
            BY_ITSELF | {"teacher.kind": "none", "evaluate.guidance_scales": [1.0, 2.0]},
            "evaluate.guidance_scales = [1.0, 2.0] asks for nothing: the flow has one scale (guidance.scale: 2)",
        ),
        (
            {"guidance.kind": "autoguidance", "guidance.weaker_network": {"channels": [16, 16, 32]}},
            "guidance.weaker to a share of its training",
        ),
        (
            SMALLER | {"guidance.weaker_network": {"channels": [16, "x", 32]}},
            "params.yaml: guidance.weaker_network: network.channels.1 = 'x'",
        ),
        (
            SMALLER | {"guidance.weaker_network": {"channel": [16]}},
            "guidance.weaker_network: network.channel is not a known key",
        ),
        (
            SMALLER | {"guidance.weaker_network": {"kind": "mlp"}},
            "guidance.weaker_network: network.kind: mlp does not fit data.source: digits",
        ),
        (
            {"guidance.kind": "none", "guidance.scale": 1.0, "guidance.weaker_network": {"channels": [8]}},
            "guidance.weaker_network = {'channels': [8]} needs guidance, and guidance.kind is none",
        ),
        ({"guidance.scale": [2.0, 1.0]}, "guidance.scale"),
        ({"guidance.scale": -1.0}, "guidance.scale"),
        ({"guidance.scale": [1.0, 2.0, 3.0]}, "must be a range"),
        ({"guidance.interval": [0.5]}, "must be a range"),
        ({"guidance.kind": "free"}, "guidance.kind = 'free' is not allowed; allowed: 'none', 'cfg', 'autoguidance'"),
    ],
)
def test_guidance_that_cannot_be_is_told_in_one_line(changes, named):
    earlier = {"guidance.kind": "autoguidance", "guidance.weaker": 0.3}
    for fine in ({}, BY_ITSELF | {"teacher.kind": "none"}, earlier, SMALLER):
        parse(changed(VALUES, LED | fine))
    with pytest.raises(ConfigError) as told:
        parse(changed(VALUES, LED | changes))
    assert named in str(told.value)
    assert "\n" not in str(told.value)


class Stopped(Exception):
    pass


def saved_and_stopped(folder, step):
    """In place of `Checkpoints.save`: the process ends after one of them."""
    whole = Checkpoints.save

    def save(self, at, snapshot):
        whole(self, at, snapshot)
        if (self.folder.name, at) == (folder, step):
            raise Stopped

    return save


def test_a_smaller_teacher_is_trained_beside_the_teacher_and_leads_it(tmp_path, monkeypatch):
    """It has a network and steps of its own; the teacher is the same to the byte, and so is all after a stop."""
    smaller = {"kind": "autoguidance", "scale": 2.0, "weaker": 0.5, "weaker_network": {"mlp": {"width": 8}}}
    common = {"condition__kind": "class", "dynamics": ["ve"], "teacher__checkpoint_every": 5, "teacher__log_every": 5}
    with_it = points(**common, **{f"guidance__{key}": value for key, value in smaller.items()})
    without = points(**common, guidance__kind="cfg", guidance__scale=2.0)
    files = {}
    for name, values in (("with", with_it), ("without", without), ("stopped", with_it)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for module in (fetch, preprocess):
            run_stage(module, values)
        if name == "stopped":
            for of, step in (("smaller", 5), ("teacher-ve", 10)):
                with mock.patch.object(Checkpoints, "save", saved_and_stopped(of, step)), pytest.raises(Stopped):
                    run_stage(teacher_stage, values, "ve")
            assert (Path("work/teacher-ve") / pretrained.WEAKER).is_dir()
        run_stage(teacher_stage, values, "ve")
        folder = paths.teacher("ve")
        files[name] = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    assert files["stopped"] == files["with"]
    own = {name: data for name, data in files["with"].items() if not name.startswith(pretrained.WEAKER)}
    assert own == files["without"]
    monkeypatch.chdir(tmp_path / "with")
    guided = pretrained.guided(
        pretrained.load_teacher(paths.teacher("ve")), paths.teacher("ve"), Guidance("autoguidance", 2.0)
    )
    size, smaller_size = (sum(p.numel() for p in model.parameters()) for model in (guided.teacher, guided.weaker))
    assert smaller_size < size
    described = json.loads((paths.teacher("ve") / "weaker/ifm.json").read_text())
    assert described["train_images"] == 10 * with_it["teacher"]["batch_size"]


def test_guidance_of_params():
    config = parse(changed(VALUES, LED | {"guidance.scale": [1.0, 4.0], "guidance.interval": [0.1, 2.0]}))
    found = Guidance.of(config.guidance)
    assert (found.range, found.interval) == ((1.0, 4.0), (0.1, 2.0))
    assert Guidance.of(parse(VALUES).guidance) is None is Guidance.of(None)
    assert Guidance.of(parse(changed(VALUES, LED)).guidance).range is None
    assert SimpleNamespace(**found.describe()).scale == [1.0, 4.0]


def modes_of(samples):
    """The index of the nearest of the training points' modes: int [n]."""
    train = open_split(paths.PROCESSED, "train")
    centres = np.stack([train[np.flatnonzero(train.labels == k)].mean(axis=0) for k in range(len(train.classes))])
    return np.linalg.norm(samples[:, None] - centres, axis=2).argmin(axis=1)


def trained(values):
    """What the stages up to `flow` leave, for each dynamics: the flows."""
    for module in (stages.fetch, stages.preprocess):
        run_stage(module, values)
    for d in values["dynamics"]:
        for module in (stages.teacher, stages.trajectories, stages.flow):
            run_stage(module, values, d)
    return {d: pretrained.load_flow(paths.trained(d)) for d in values["dynamics"]}


LEARNS = {
    "flow__steps": 700, "flow__batch_size": 128, "flow__lr": 3e-3, "flow__checkpoint_every": 700,
    "flow__log_every": 100, "network__mlp": {"width": 64, "layers": 2}, "trajectories__count": 2048,
    "trajectories__shard_size": 2048, "trajectories__batch_size": 512, "trajectories__solver_steps": 9,
    "anchor__policy": "none", "flow__reference_batch": 256, "data__points__count": 2000,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["trajectory", "interval"])
def test_a_flow_lands_in_the_mode_that_is_its_class(objective, tmp_path, monkeypatch):
    """Eight modes, guided by the closed form, one evaluation; w is an input of the flow of paths, and fixed inside
    the other.
    """
    monkeypatch.chdir(tmp_path)
    values = points(
        condition__kind="class", teacher__kind="exact", flow__init="scratch", dynamics=FIVE, flow__objective=objective,
        guidance__kind="cfg", guidance__scale=[1.0, 3.0] if objective == "trajectory" else 2.0, **LEARNS,
    )  # fmt: skip
    for d, made in trained(values).items():
        draws = Draws.of(made.dynamics, (2,), range(800), seed=9, device=CPU, condition=made.condition_kind)
        with torch.no_grad():
            samples = flow_sampler(made, kind="one_step", steps=1).run(draws).numpy()
        assert (modes_of(samples) == draws.condition.labels.numpy()).mean() >= 0.99, d
