"""Samples of the classes that are asked for: Python, `ifm sample`, grids with a named row a class."""

import numpy as np
import pytest
import torch
from PIL import Image

from ifm.cli.export import spread
from ifm.cli.main import main
from ifm.conditions.classes import Classes, ClassLabels
from ifm.errors import UserError
from ifm.modalities import pictures
from ifm.pretrained import save_model
from ifm.random import Streams
from ifm.sampling import Draws, draw_samples, flow_sampler
from ifm.use import usage
from ifm.use.models import IntegrationFlow
from tests.support.small_models import small_flow

CPU = torch.device("cpu")
KIND = Classes(classes=["cat", "dog", "owl"], shares=[0.2, 0.3, 0.5])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    dynamics = small_flow(shape=(2,)).dynamics
    ways = [None, KIND, ClassLabels(torch.tensor([2, 2, 2]))]
    drawn = [Draws.of(dynamics, (2,), range(3), **common, condition=way) for way in ways]
    for draws in drawn[1:]:
        assert torch.equal(draws.x_T, drawn[0].x_T)
        assert torch.equal(draws.x_anchor, drawn[0].x_anchor)
        assert torch.equal(
            draws.renoise.normal((2,)), Draws.of(dynamics, (2,), range(3), **common).renoise.normal((2,))
        )


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
    monkeypatch.setattr(pictures, "save_rows", lambda rows, path: (written.extend(rows), save_rows(rows, path)))
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
