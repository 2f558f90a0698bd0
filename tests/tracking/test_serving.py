"""A flow as an MLflow model: the images of the stage `sample`, in Python and over HTTP."""

import json
import os
import pickletools
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ifm import dynamics, pretrained
from ifm.conditions.classes import Classes
from ifm.errors import UserError
from ifm.model import Teacher, build_flow
from ifm.networks import build_network
from ifm.sampling import draw_samples, flow_sampler
from ifm.tracking import serving
from ifm.tracking.packaging import package
from ifm.use.models import IntegrationFlow
from tests.support import warm
from tests.support.mlflow_server import free_port, stop, wait_for
from tests.support.small_models import small_flow

ROOT = Path(__file__).parents[2]
SHAPE = (1, 8, 8)


def network(*, takes_anchor: bool) -> torch.nn.Module:
    torch.manual_seed(1)
    return build_network(
        shape=SHAPE, takes_anchor=takes_anchor, kind="unet", channels=[8, 8], layers_per_block=1,
        attention=[False, False], dropout=0.0, norm_groups=4, mlp={"width": 8, "layers": 1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ve"
    flow = build_flow(network(takes_anchor=True), dynamics.build("ve"), scheme="edm", takes_anchor=True)
    pretrained.save_model(flow, folder, record={"image_shape": list(SHAPE)})
    return folder


@pytest.fixture(scope="module")
def packaged(flow_folder: Path) -> Path:
    out = flow_folder.parent / "packaged"
    package(flow_folder, out)
    return out


@pytest.fixture(scope="module")
def served(packaged: Path):
    """The model as MLflow loads it."""
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(packaged))


def drawn(folder: Path, *, n: int, seed: int, steps: int) -> np.ndarray:
    """What the stage `sample` would draw."""
    flow = pretrained.load_flow(folder).to(memory_format=torch.channels_last)
    sampler = flow_sampler(flow, kind="one_step" if steps == 1 else "anchor", steps=steps)
    device = torch.device("cpu")
    common = {"dynamics": flow.dynamics, "shape": SHAPE, "device": device}
    return draw_samples(sampler, **common, count=n, batch_size=n, seed=seed).images


def test_images_are_those_of_the_stage_sample(served, flow_folder: Path):
    images = served.predict(pd.DataFrame([{"n": 5, "seed": 3, "steps": 1}]))
    assert (images.dtype, images.shape) == (np.uint8, (5, *SHAPE))
    assert len(np.unique(images)) > 10
    np.testing.assert_array_equal(images, drawn(flow_folder, n=5, seed=3, steps=1))


def test_rows_follow_one_another_and_missing_columns_come_from_params(served, flow_folder: Path):
    one, refined = drawn(flow_folder, n=2, seed=7, steps=1), drawn(flow_folder, n=3, seed=7, steps=4)
    assert not np.array_equal(one, refined[:2])
    both = np.concatenate([one, refined])
    for asked in ({"n": [2, 3], "steps": [1, 4]}, pd.DataFrame({"n": [2, 3], "steps": [1, 4]})):
        np.testing.assert_array_equal(served.predict(asked, params={"seed": 7}), both)
    np.testing.assert_array_equal(served.predict({"n": 2, "seed": 7}), one)
    assert served.predict(pd.DataFrame()).shape == (1, *SHAPE)


def test_several_steps_are_as_the_model_records(flow_folder: Path, tmp_path: Path):
    model, said = serving.FlowModel(), {"2": {"sampler": "renoise", "times": [80.0, 0.8]}}
    pretrained.save_again(flow_folder, tmp_path / "m", record={"samplers": said})
    model.load_context(SimpleNamespace(artifacts={"flow": str(tmp_path / "m")}))
    flow = pretrained.load_flow(tmp_path / "m").to(memory_format=torch.channels_last)
    sampler = flow_sampler(flow, kind="renoise", steps=2, times=[80.0, 0.8])
    common = {"dynamics": flow.dynamics, "shape": SHAPE, "device": torch.device("cpu")}
    expected = draw_samples(sampler, **common, count=3, batch_size=3, seed=1).images
    np.testing.assert_array_equal(model.predict(None, pd.DataFrame([{"n": 3, "seed": 1, "steps": 2}])), expected)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"n": 0}, "n must be a whole number from 1 to 10000, got 0"),
        ({"n": 10**6}, "n must be a whole number from 1 to 10000"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"steps": 65}, "steps must be a whole number from 1 to 64, got 65"),
    ],
)
def test_a_value_out_of_range_is_named(served, asked: dict, words: str):
    with pytest.raises(ValueError, match=words):
        served.predict(asked)


# --- classes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_classes(flow_folder: Path) -> tuple[IntegrationFlow, serving.FlowModel]:
    """A flow of points with classes, and the model that serves it."""
    folder, model = flow_folder.parent / "classes", serving.FlowModel()
    flow = small_flow(shape=(2,), condition=Classes(classes=["cat", "dog", "owl"], shares=[0.2, 0.3, 0.5]))
    pretrained.save_model(flow, folder, record={"image_shape": [2]})
    model.load_context(SimpleNamespace(artifacts={"flow": str(folder)}))
    return flow, model


def test_rows_may_ask_for_classes(with_classes):
    flow, model = with_classes
    table = pd.DataFrame({"n": [2, 3, 2], "class": ["owl", "all", None], "seed": [1, 1, 1]})
    expected = [flow.sample(2, seed=1, classes=2), flow.sample(3, seed=1, classes="all"), flow.sample(2, seed=1)]
    np.testing.assert_allclose(model.predict(None, table), np.concatenate(expected), atol=1e-5)
    found = model.predict(None, pd.DataFrame([{"n": 2, "seed": 1}]), params={"class": "0"})
    np.testing.assert_allclose(found, flow.sample(2, seed=1, classes="cat"), atol=1e-5)


def test_a_class_that_is_none_is_one_line(with_classes, served):
    with pytest.raises(UserError, match=r"unknown class 'cow'; known: 0 cat, 1 dog, 2 owl$"):
        with_classes[1].predict(None, pd.DataFrame([{"class": "cow"}]))
    with pytest.raises(UserError, match="the model takes no class: it was trained"):
        served.predict({"n": 1, "class": "0"})


def test_rows_may_ask_for_a_guidance_scale(with_classes, flow_folder: Path):
    folder, model = flow_folder.parent / "scaled", serving.FlowModel()
    kind = Classes(classes=["cat", "dog"], shares=[0.5, 0.5], drops=True, scale=[0.5, 4.0])
    flow = small_flow(shape=(2,), condition=kind)
    pretrained.save_model(flow, folder, record={"image_shape": [2]})
    model.load_context(SimpleNamespace(artifacts={"flow": str(folder)}))
    table = pd.DataFrame({"n": [2, 2, 2], "class": ["dog", None, "cat"], "guidance": [3.0, 2.0, np.nan]})
    expected = [flow.sample(2, classes=1, guidance=3), flow.sample(2, guidance=2), flow.sample(2, classes=0)]
    np.testing.assert_allclose(model.predict(None, table), np.concatenate(expected), atol=1e-5)
    with pytest.raises(UserError, match="guidance 9 is outside the range"):
        model.predict(None, pd.DataFrame([{"guidance": 1.0}, {"guidance": 9.0}]))
    with pytest.raises(UserError, match="the flow has no guidance inside"):
        with_classes[1].predict(None, pd.DataFrame([{"guidance": 2.0}]))


def test_nothing_is_pickled(packaged: Path):
    for path in packaged.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert path.suffix in {".py", ".html", ".css", ".js", ".json", ".yaml", ".txt", ".safetensors", ""}, path
            if path.suffix in {".safetensors", ""}:
                with pytest.raises((ValueError, IndexError)):
                    list(pickletools.genops(path.read_bytes()))
    assert "python_model:" not in (packaged / "MLmodel").read_text()  # where MLflow names a pickle


def test_only_a_flow_is_packaged(flow_folder: Path, tmp_path: Path):
    teacher = tmp_path / "teacher"
    pretrained.save_model(Teacher(network(takes_anchor=False), dynamics.build("rf")), teacher, record={})
    with pytest.raises(UserError, match=r"teacher: is a teacher; only a flow"):
        package(teacher, tmp_path / "out")
    with pytest.raises(UserError, match=r"nothing: is no model's folder \(no ifm\.json\)"):
        package(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UserError, match="is there; remove it or name another folder"):
        package(flow_folder, tmp_path)


@pytest.mark.slow  # the model itself is asked above, HTTP is MLflow's
def test_over_http_by_the_commands_in_the_docs(flow_folder: Path, tmp_path: Path):
    """ifm mlflow-model, then mlflow models serve, without the project on the path: the model brings its own code."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    made = subprocess.run(
        [warm.python(), "-m", "ifm", "mlflow-model", "--model", str(flow_folder), "--out", "served"],
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "mlflow models serve -m served --env-manager local --host 127.0.0.1" in made.stdout
    assert "Warning" not in made.stderr
    port, log = free_port(), tmp_path / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", "served", "--env-manager", "local",
             "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path, stdout=out, stderr=out, start_new_session=True,
            env=environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        answer = post(f"http://127.0.0.1:{port}/invocations", {"inputs": {"n": [3], "seed": [2], "steps": [1]}})
        images = np.array(answer["predictions"])
        np.testing.assert_array_equal(images, drawn(flow_folder, n=3, seed=2, steps=1))
        split = {"columns": ["n"], "data": [[2]]}
        answer = post(f"http://127.0.0.1:{port}/invocations", {"dataframe_split": split, "params": {"seed": 2}})
        np.testing.assert_array_equal(np.array(answer["predictions"]), images[:2])
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"http://127.0.0.1:{port}/invocations", {"inputs": {"n": [0]}})
        assert refused.value.code >= 400
    finally:
        stop(process)


def post(url: str, value: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
