"""Samples of the classes that are asked for: Python, `ifm sample`, grids with a named row a class."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ifm import dynamics
from ifm.cli.main import main
from ifm.conditions.classes import Classes, ClassLabels
from ifm.errors import UserError
from ifm.modalities import pictures
from ifm.networks import build_network
from ifm.pretrained import save_model
from ifm.random import Streams
from ifm.sampling import Draws, draw_samples, flow_sampler
from ifm.solver import solve_ode
from ifm.use import pictured, usage
from ifm.use.card import model_card
from ifm.use.diffusers_folder import quiet_diffusers
from ifm.use.models import IntegrationFlow, Teacher
from ifm.use.pictured import spread
from tests.support.judged import one_thread  # noqa: F401
from tests.support.small_models import NETWORK, loud, small_flow

CPU = torch.device("cpu")
KIND = Classes(classes=["cat", "dog", "owl"], shares=[0.2, 0.3, 0.5])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the flows classes/ (images), points/ (with classes too) and plain/."""
    folder = tmp_path_factory.mktemp("models")
    save_model(small_flow(condition=KIND), folder / "classes", record={"image_shape": [1, 8, 8]})
    save_model(small_flow(shape=(2,), condition=KIND), folder / "points", record={"image_shape": [2]})
    save_model(small_flow(shape=(2,)), folder / "plain", record={"image_shape": [2]})
    return folder


def test_samples_have_the_classes_asked_for_in_turn(saved):
    flow = IntegrationFlow.from_pretrained(saved / "points")

    def expected(*labels):
        common = {"dynamics": flow.dynamics, "shape": (2,), "batch_size": 200, "device": CPU}
        given = ClassLabels(torch.tensor(labels))
        sampler = flow_sampler(flow, kind="one_step", steps=1)
        return draw_samples(sampler, **common, count=len(labels), seed=4, condition=given).images

    assert np.array_equal(flow.sample(5, seed=4, classes=1), expected(1, 1, 1, 1, 1))
    assert np.array_equal(flow.sample(5, seed=4, classes="dog"), expected(1, 1, 1, 1, 1))
    assert np.array_equal(flow.sample(5, seed=4, classes="all"), expected(0, 1, 2, 0, 1))
    assert np.array_equal(flow.sample(5, seed=4, classes=[2, "cat"]), expected(2, 0, 2, 0, 2))
    by_shares = KIND.draw(generator=Streams(4, "condition", range(5), step=2**63)).labels
    assert np.array_equal(flow.sample(5, seed=4), flow.sample(5, seed=4, classes=by_shares))
    assert not np.array_equal(flow.sample(5, seed=4, classes=0), flow.sample(5, seed=4, classes=1))


def test_a_samples_noise_is_the_same_whichever_class_is_asked_for():
    common = {"seed": 3, "device": CPU}
    ve = small_flow(shape=(2,)).dynamics
    ways = [None, KIND, ClassLabels(torch.tensor([2, 2, 2]))]
    drawn = [Draws.of(ve, (2,), range(3), **common, condition=way) for way in ways]
    for draws in drawn[1:]:
        assert torch.equal(draws.x_T, drawn[0].x_T)
        assert torch.equal(draws.x_anchor, drawn[0].x_anchor)
        assert torch.equal(draws.renoise.normal((2,)), Draws.of(ve, (2,), range(3), **common).renoise.normal((2,)))


@pytest.mark.parametrize(
    ("model", "classes", "said"),
    [
        ("plain", 0, "the model takes no class: it was trained with condition.kind none"),
        ("points", 3, "class 3 is out of range 0 to 2; known: 0 cat, 1 dog, 2 owl"),
        ("points", "cow", "unknown class 'cow'; known: 0 cat, 1 dog, 2 owl"),
    ],
)
def test_what_is_no_class_is_one_line_before_any_work(saved, tmp_path, model, classes, said):
    with pytest.raises(UserError, match=said):
        IntegrationFlow.from_pretrained(saved / model).sample(2, classes=classes)
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--model", f"{saved}/{model}", "--class", str(classes), "--out", f"{tmp_path}/a.npy"])
    assert str(stop.value) == f"ifm: --class {classes}: {said} ({saved}/{model})"
    assert not list(tmp_path.iterdir())


def test_the_command_samples_classes_and_says_which(saved, tmp_path, capsys):
    def command(*options):
        main(["sample", "--model", f"{saved}/points", "--device", "cpu", *options, "--out", f"{tmp_path}/a.npy"])
        return np.load(tmp_path / "a.npy"), capsys.readouterr().out

    flow = IntegrationFlow.from_pretrained(saved / "points")
    found, said = command("--class", "2,dog", "--n", "5", "--seed", "1")
    assert np.array_equal(found, flow.sample(5, seed=1, classes=[2, 1]))
    assert said.endswith("seed 1, classes owl, dog\n")
    found, said = command("--class", "owl", "--n", "5")
    assert np.array_equal(found, flow.sample(5, classes=2))
    assert said.endswith("seed 0, class owl\n")
    assert len(command("--class", "0-2")[0]) == 63  # as many of each
    assert len(command()[0]) == 64


def test_a_grid_has_a_named_row_for_each_class(saved, tmp_path, monkeypatch):
    written, save_rows = [], pictures.save_rows
    monkeypatch.setattr(pictures, "save_rows", lambda rows, path: (written.extend(rows), save_rows(rows, path)))
    images = IntegrationFlow.from_pretrained(saved / "classes").sample(6, classes="all")
    command = ["sample", "--model", f"{saved}/classes", "--device", "cpu", "--class", "all", "--n", "6"]
    main([*command, "--out", f"{tmp_path}/grid.png"])
    assert [name for name, _ in written] == ["cat", "dog", "owl"]
    for i, (_, row) in enumerate(written):
        assert np.array_equal(row, images[i::3])
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    left = grid.shape[1] - 2 * 32 - 2  # two tiles of 32 pixels and what is between them
    assert grid.shape[0] == 3 * 32 + 2 * 4
    for i in range(6):
        top, start = i % 3 * 36, left + i // 3 * 34
        assert np.array_equal(grid[top : top + 32 : 4, start : start + 32 : 4, 0], images[i, 0])
    assert (grid[:, :left] < 128).any(axis=(1, 2))[:32].any()  # letters


def test_a_row_of_many_images_goes_on_below_and_a_long_name_is_cut(tmp_path):
    images = np.zeros((20, 1, 32, 32), np.uint8)
    pictures.save_rows([("a" * 500, images), ("b", images[:1])], tmp_path / "a.png")
    width, height = Image.open(tmp_path / "a.png").size
    assert height == 2 * 32 + 2 + 4 + 32
    assert 16 * 34 < width < 16 * 34 + 300
    with pytest.raises(ValueError, match="at least one row"):
        pictures.save_rows([], tmp_path / "b.png")


def test_the_card_shows_a_grid_by_class_and_code_that_runs(saved, tmp_path, monkeypatch):
    written, save_rows = [], pictures.save_rows
    monkeypatch.setattr(pictured, "save_rows", lambda rows, path: (written.extend(rows), save_rows(rows, path)))
    main(["export", "--model", f"{saved}/classes", "--out", f"{tmp_path}/out", "--format", "pt2"])
    images = IntegrationFlow.from_pretrained(saved / "classes").sample(24, classes="all")
    assert [name for name, _ in written] == ["cat", "dog", "owl"]
    assert all(np.array_equal(row, images[i::3]) for i, (_, row) in enumerate(written))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "24 samples in one evaluation, 8 of each class: numbers 0 to 23 of seed 0, not chosen." in text
    assert "## Classes\n\n0 cat, 1 dog, 2 owl (3 in all)." in text
    assert "class-conditional" in text
    assert "unconditional" not in text
    monkeypatch.chdir(tmp_path / "out")
    names: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["x_0_hat"].shape == (16, 1, 8, 8)


def test_of_many_classes_the_card_shows_some_evenly_apart():
    assert spread(1000, 10) == list(range(0, 1000, 100))
    assert spread(3, 10) == [0, 1, 2]
    assert len(spread(11, 10)) == 10


def test_the_cards_code_for_diffusers_is_code_and_says_the_classes():
    text = usage.code("diffusers", small_flow(condition=KIND), where="a/b")
    assert "class_labels=[0]" in text
    assert ".sample(16, classes=0)" in text
    for part in text.split("```python\n")[1:]:
        compile(part.split("```")[0], "card", "exec")
    assert "class" not in usage.code("diffusers", small_flow(), where="a/b")


def test_a_class_without_data_is_neither_shown_nor_named_nor_taken(tmp_path):
    gaps = Classes(classes=["a", "b", "b", "c"], shares=[0.0, 0.5, 0.25, 0.25])
    flow = small_flow(condition=gaps)
    save_model(flow, tmp_path / "m", record={"image_shape": [1, 8, 8]})
    main(["export", "--model", f"{tmp_path}/m", "--out", f"{tmp_path}/out"])
    text = (tmp_path / "out/README.md").read_text()
    assert "8 of each class" not in text
    assert "8 of 3 of 4 classes" in text
    assert "class_labels=[1]" in text
    assert ".sample(16, classes=1)" in text
    assert "np.full((16,), 1)  # int64: one class" in usage.code("onnx", flow, where="a/b")
    with quiet_diffusers():
        where = str(tmp_path / "out")
        pipe = DiffusionPipeline.from_pretrained(where, custom_pipeline=where, trust_remote_code=True)
    assert pipe._class_numbers([1, "c"]) == [1, 3]
    for wrong, said in (
        (0, "the training data have nothing of class 'a'"),
        ("b", r"'b' is the name of the classes \[1, 2\]"),
    ):
        with pytest.raises(ValueError, match=said):
            pipe(class_labels=wrong)


# --- guidance -------------------------------------------------------------------------------------------------------

SCALED = Classes(classes=["cat", "dog", "owl"], shares=[0.2, 0.3, 0.5], drops=True, scale=[0.5, 4.0])


def samples_of(flow, labels, *, w, seed=0):
    """As stage `sample` draws them, each with that label and guidance scale."""
    given = ClassLabels(torch.tensor(labels), torch.full((len(labels),), w))
    common = {"dynamics": flow.dynamics, "shape": (2,), "batch_size": 200, "device": CPU, "count": len(labels)}
    return draw_samples(flow_sampler(flow, kind="one_step", steps=1), **common, seed=seed, condition=given).images


def test_a_flow_takes_the_scales_of_its_range(tmp_path, capsys):
    save_model(small_flow(shape=(2,), condition=SCALED), tmp_path / "m", record={"image_shape": [2]})
    flow = IntegrationFlow.from_pretrained(tmp_path / "m")
    by_shares = SCALED.draw(generator=Streams(4, "condition", range(5), step=2**63)).labels.tolist()
    assert np.array_equal(flow.sample(5, seed=4, guidance=2), samples_of(flow, by_shares, w=2.0, seed=4))
    assert np.array_equal(flow.sample(5, seed=4), samples_of(flow, by_shares, w=1.0, seed=4))
    assert np.array_equal(flow.sample(3, classes="owl", guidance=4), samples_of(flow, [2, 2, 2], w=4.0))
    assert np.array_equal(flow.sample(3, classes="owl"), samples_of(flow, [2, 2, 2], w=1.0))
    assert not np.array_equal(flow.sample(3, classes="owl"), flow.sample(3, classes="owl", guidance=4))
    assert np.array_equal(flow.sample(3, guidance=np.float32(2)), flow.sample(3, guidance=np.int64(2)))
    main(["sample", "--model", f"{tmp_path}/m", "--class", "0-2", "--guidance", "2", "--n", "3", "--device", "cpu",
          "--out", f"{tmp_path}/a.npy"])  # fmt: skip
    assert np.array_equal(np.load(tmp_path / "a.npy"), samples_of(flow, [0, 1, 2], w=2.0))
    assert capsys.readouterr().out.endswith("seed 0, classes cat, dog, owl, guidance 2\n")
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--model", f"{tmp_path}/m", "--guidance", "9", "--out", f"{tmp_path}/b.npy"])
    said = "--guidance 9.0: guidance 9 is outside the range 0.5 to 4 that the flow takes"
    assert str(stop.value) == f"ifm: {said} ({tmp_path}/m)"


@pytest.mark.parametrize(
    ("range_", "usual"), [([0.5, 4.0], 1.0), ([1.0, 4.0], 1.0), ([2.0, 4.0], 2.0), ([0, 0.5], 0.5)]
)
def test_where_none_is_asked_for_the_scale_is_1_or_the_nearest(range_, usual):
    kind = Classes(classes=["a"], shares=[1.0], scale=range_)
    assert kind.usual_scale == usual
    flow = small_flow(shape=(2,), condition=kind)
    assert np.array_equal(flow.sample(2), samples_of(flow, [0, 0], w=usual))


def test_a_flow_with_guidance_inside_takes_no_other(tmp_path):
    flow = small_flow(shape=(2,), condition=KIND)
    flow.guidance = {"kind": "cfg", "scale": 2.0, "interval": None}
    save_model(flow, tmp_path / "m", record={"image_shape": [2]})
    loaded = IntegrationFlow.from_pretrained(tmp_path / "m")
    assert loaded.guidance == flow.guidance
    assert np.array_equal(loaded.sample(2, guidance=2), flow.sample(2))
    with pytest.raises(UserError, match="the flow has guidance 2 inside and takes no other; train it with"):
        loaded.sample(2, guidance=3)


def test_guidance_that_a_model_does_not_take_is_one_line():
    plain, classes = small_flow(shape=(2,)), small_flow(shape=(2,), condition=KIND)
    scaled = small_flow(shape=(2,), condition=SCALED)
    for model, guidance, said in [
        (plain, 2, "the model takes no guidance: it was trained with condition.kind none"),
        (classes, 2, "the flow has no guidance inside and takes no other; train it with guidance.scale"),
        (scaled, 5, "guidance 5 is outside the range 0.5 to 4 that the flow takes"),
        (scaled, -1, "a guidance scale is a number from 0 on, got -1"),
        (scaled, float("nan"), "a guidance scale is a number from 0 on, got nan"),
        (scaled, "2", "a guidance scale is a number from 0 on, got '2'"),
        (teacher_of(KIND), 2, "the teacher takes no guidance: it was trained with condition.drop_probability 0"),
    ]:
        with pytest.raises(UserError, match=said):
            model.sample(2, guidance=guidance)
    assert np.array_equal(classes.sample(2, guidance=1), classes.sample(2))


def teacher_of(kind):
    torch.manual_seed(0)
    network = build_network(kind="mlp", shape=(2,), takes_anchor=False, condition=kind, **NETWORK)
    return Teacher(loud(network), dynamics.build("rf")).eval()


def test_a_teacher_is_led_by_its_own_no_class(tmp_path):
    kind = KIND.told_to(drops=True, scale=None)
    teacher, given = teacher_of(kind), {"nfe": 5, "seed": 1}
    nothing = teacher.sample(3, **given, condition=kind.none(3))
    assert np.allclose(teacher.sample(3, **given, classes=2, guidance=0), nothing, atol=1e-6)
    assert np.array_equal(teacher.sample(3, **given, classes=2, guidance=1), teacher.sample(3, **given, classes=2))

    def D_w(x_t, t, *, condition):
        D_c, D_0 = teacher(x_t, t, condition=condition), teacher(x_t, t, condition=kind.none(len(x_t)))
        return D_0 + 3 * (D_c - D_0)

    x_T = Draws.of(teacher.dynamics, (2,), range(3), seed=1, device=CPU).x_T
    times = teacher.dynamics.solver_times(3)
    with torch.inference_mode():
        asked = ClassLabels(torch.tensor([2, 2, 2]))
        expected = solve_ode(D_w, x_T, dynamics=teacher.dynamics, times=times, condition=asked)
    np.testing.assert_allclose(teacher.sample(3, **given, classes=2, guidance=3), expected.numpy(), atol=1e-5)
    teacher.train().sample(1, classes=2, guidance=3)
    assert teacher.training
    save_model(teacher, tmp_path / "t", record={})
    main(["sample", "--model", f"{tmp_path}/t", "--nfe", "5", "--seed", "1", "--n", "3", "--class", "owl", "--device",
          "cpu", "--guidance", "3", "--out", f"{tmp_path}/a.npy"])  # fmt: skip
    assert np.array_equal(np.load(tmp_path / "a.npy"), teacher.sample(3, **given, classes=2, guidance=3))


def test_the_cards_code_and_facts_know_the_scale(tmp_path):
    flow = small_flow(shape=(2,), condition=SCALED)
    assert "guidance_scale=4)" in usage.code("diffusers", flow, where="a")
    assert "guidance = np.full(16, 1.0, np.float32)  # from 0.5 to 4" in usage.code("onnx", flow, where="a")
    names: dict = {}
    code = usage.code("pt2", flow, where="a").split("```python\n")[1].split("```")[0]
    exec(code.replace('torch.export.load("model.pt2").module()', "lambda *given: given"), names)
    assert [x.dtype for x in names["x_0_hat"]] == [torch.float32, torch.float32, torch.int64, torch.float32]
    said = {"dynamics": {"name": "ve"}, "guidance": {"kind": "cfg", "scale": [0.5, 4.0], "interval": None}}
    card = model_card(said, title="t", usage="u", library=None, classes=flow.condition_kind.classes)
    assert r"| guidance: scale | \[0.5, 4.0\] |" in card
