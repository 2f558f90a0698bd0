"""The model that comes with the package: how it is made, that it is what was shipped, and that its figures hold.

It is made again by a run of the preset `digits-classes` and `python -m pipeline.tools.ship RUN/models/flow/NAME`.
"""

import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ifm.cli.main import main
from ifm.conditions.classes import Classes
from ifm.demo.models import there
from ifm.errors import UserError
from ifm.files import read_json, write_json
from ifm.pretrained import save_model
from ifm.use import loading, shipped
from ifm.use.models import IntegrationFlow, usable
from pipeline.tools import animation
from pipeline.tools.ship import evaluation_of, ship
from tests.support.judged import one_thread  # noqa: F401
from tests.support.small_models import small_flow, small_teacher

DIGITS = Classes(classes=[str(i) for i in range(10)], shares=[0.1] * 10, drops=True, scale=[1.0, 4.0])
FIGURES = {
    "flow-one_step-nfe001": {"model": "flow", "nfe": 1, "n_samples": 1000, "seeds": 3, "fid": 0.5, "fid_sd": 0.1},
    "teacher-heun-nfe017": {"model": "teacher", "nfe": 17, "n_samples": 1000, "seeds": 3, "fid": 0.6},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's folder: a small flow with classes and a range of guidance, and its figures."""
    root = tmp_path_factory.mktemp("run")
    save_model(small_flow(name="rf", condition=DIGITS), root / "models/flow/rf", record={"image_shape": [1, 8, 8]})
    (root / "reports/metrics").mkdir(parents=True)
    write_json(root / "reports/metrics/rf.json", FIGURES)
    write_json(root / "reports/metrics/reference.json", {"extractor": "classifier", "checksum": "0" * 64})
    return root


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    to = tmp_path_factory.mktemp("shipped")
    model = run / "models/flow/rf"
    return ship(model, evaluation=evaluation_of(model), to=to)


@pytest.fixture
def stand_in(made, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", made.parent)
    return made


def test_weights_are_those_of_the_run_rounded_to_half(run, stand_in):
    ours = IntegrationFlow.from_pretrained(run / "models/flow/rf").state_dict()
    found = IntegrationFlow.from_pretrained("digits")
    assert not found.training
    for name, x in found.state_dict().items():
        assert x.dtype == ours[name].dtype
        torch.testing.assert_close(
            x, ours[name].half().float() if x.is_floating_point() else ours[name], rtol=0, atol=0
        )
    images = found.sample(20, classes="0-9", guidance=2.0)
    assert images.shape == (20, 1, 8, 8)
    np.testing.assert_array_equal(
        images, IntegrationFlow.from_pretrained(stand_in).sample(20, classes="0-9", guidance=2.0)
    )


def test_the_folder_says_what_it_is(run, made):
    description = read_json(made / "ifm.json")
    assert description["made_from"]["sha256"] == read_json(run / "models/flow/rf/ifm.json")["sha256"]
    assert 0 <= description["made_from"]["samples_differ_by"] < 2
    assert description["evaluation"]["figures"] == {
        "flow-one_step-nfe001": {"nfe": 1, "n_samples": 1000, "seeds": 3, "fid": 0.5}
    }
    assert description["evaluation"]["protocol"]["extractor"] == "classifier"
    _, front, text = (made / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert 'from_pretrained("digits")' in text
    assert (made / "samples.png").read_bytes().startswith(b"\x89PNG")
    done = subprocess.run(["sha256sum", "--check", "--strict", shipped.SUMS], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == len(list(made.iterdir())) - 1


def test_a_run_makes_the_same_bytes_again(run, made, tmp_path):
    again = ship(run / "models/flow/rf", evaluation=evaluation_of(run / "models/flow/rf"), to=tmp_path)
    assert (again / shipped.SUMS).read_text() == (made / shipped.SUMS).read_text()


@pytest.mark.parametrize("change", ["other", "gone"])
def test_files_that_changed_are_not_loaded(made, monkeypatch, tmp_path, change):
    shutil.copytree(made, tmp_path / "digits")
    file = next((tmp_path / "digits").glob("*.safetensors"))
    file.unlink() if change == "gone" else file.write_bytes(file.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=f"digits: .*{file.name}.* of the shipped model .*; install the package again"):
        IntegrationFlow.from_pretrained("digits")


def test_a_folder_of_that_name_goes_first(stand_in, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loading.find("digits") == stand_in
    shutil.copytree(run / "models/flow/rf", "digits")
    assert loading.find("digits") == Path("digits")


def test_the_command_and_the_demo_take_it(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--model", "digits", "--class", "all", "--n", "20", "--out", "grid.png"]) in (0, None)
    assert "of digits, flow, 1 evaluation" in capsys.readouterr().out
    assert there(None) == {"digits": stand_in}
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="in no checkout; name one by --model"):
        there(None)


def test_what_is_not_shipped(run, tmp_path, monkeypatch):
    evaluation = evaluation_of(run / "models/flow/rf")
    save_model(small_teacher(), tmp_path / "teacher", record={"image_shape": [1, 8, 8]})
    with pytest.raises(UserError, match="holds a teacher; flows are shipped"):
        ship(tmp_path / "teacher", evaluation=evaluation, to=tmp_path)
    monkeypatch.setattr("pipeline.tools.ship.MOST", 1000)
    with pytest.raises(UserError, match="in float16; at most 1 kB are shipped"):
        ship(run / "models/flow/rf", evaluation=evaluation, to=tmp_path)
    assert not (tmp_path / "digits").exists()
    large = small_flow()
    with torch.no_grad():
        next(large.parameters()).fill_(1e6)
    save_model(large, tmp_path / "large", record={"image_shape": [1, 8, 8]})
    with pytest.raises(UserError, match="does not fit float16"):
        ship(tmp_path / "large", evaluation=evaluation, to=tmp_path)
    with pytest.raises(UserError, match="name them by --evaluation"):
        evaluation_of(tmp_path / "large")


def test_the_animation_goes_from_noise_to_samples(run):
    """Frames: the noise, then each state of the teacher; the last one holds its samples beside the flow's."""
    flow = IntegrationFlow.from_pretrained(run / "models/flow/rf")
    teacher = usable(small_teacher())
    alone = list(animation.frames(flow, None, seeds=2, nfe=9))
    assert [time for _, time in alone] == [animation.FIRST, animation.LAST] * 2
    shots = list(animation.frames(small_flow(), teacher, seeds=1, nfe=9))
    assert [time for _, time in shots] == [animation.FIRST, *[animation.STEP] * 4, animation.LAST]
    parts = {"flow: 1 evaluation": small_flow().sample(40), "teacher: 9 evaluations": teacher.sample(40, nfe=9)}
    expected = animation.panels(list(parts.items()))
    assert np.asarray(shots[-1][0].convert("L")).tolist() == np.asarray(expected.convert("L")).tolist()
    data = animation.gif(shots)
    assert data.startswith(b"GIF8")
    assert len(data) < 1_000_000


def test_the_readme_has_a_place_for_the_animation():
    text = (Path(__file__).parents[2] / animation.README).read_text(encoding="utf-8")
    assert animation.TEXT in animation.into_readme(text)
    assert animation.into_readme(animation.into_readme(text)) == animation.into_readme(text)


# --- the one that is in the package ----------------------------------------------------------------------------------

real = pytest.mark.skipif(
    "digits" not in shipped.names(), reason="no shipped weights yet: python -m pipeline.tools.ship makes them"
)


@real
def test_the_shipped_files_are_small_and_of_one_sort():
    folder = shipped.folder("digits")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 1_500_000
    description = read_json(folder / "ifm.json")
    (weights,) = [file for file in folder.glob("*.safetensors") if "embeddings" not in file.name]
    assert weights.stat().st_size > 1000
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))]
    joint = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    assert description["sha256"] == joint
    assert description["evaluation"]["figures"]


@real
def test_its_figures_hold():
    """A judge that it was not measured by, logistic regression on the real digits, finds the class asked for in one
    step as often as in real digits that the judge has not seen; and samples differ as real ones do.

    The allowance is three standard deviations of a share of 500 and of the judge's own share of 600.
    """
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    x, labels = digits.data / 16, digits.target
    rows = np.random.default_rng(0).permutation(len(x))
    held, seen = rows[:600], rows[600:]
    judge = LogisticRegression(max_iter=500).fit(x[seen], labels[seen])
    n, asked = 500, np.arange(500) % 10
    samples = IntegrationFlow.from_pretrained("digits").sample(n, classes="0-9").reshape(n, -1) / 255
    share, own = (judge.predict(samples) == asked).mean(), judge.score(x[held], labels[held])
    assert share > own - 3 * (own * (1 - own) * (1 / n + 1 / len(held))) ** 0.5

    def within(data, of):
        """Mean variance of a pixel within a class."""
        return np.mean([data[of == k].var(axis=0).mean() for k in range(10)])

    assert 0.75 < within(samples, asked) / within(x, labels) < 1.25
