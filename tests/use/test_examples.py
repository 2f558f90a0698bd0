"""The examples run: a one-step model in a script of thirty lines, and the notebook on what it made."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ifm import IntegrationFlow, Teacher
from ifm.data.laws import mode_centres
from ifm.use import shipped
from tests.support import warm
from tests.support.on_cpus import on_cpus

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the script makes, on one thread."""
    folder = tmp_path_factory.mktemp("models")
    env = on_cpus(OMP_NUM_THREADS="1")
    subprocess.run(
        [warm.python(), EXAMPLES / "train.py", folder], env=env, check=True, capture_output=True, timeout=300
    )
    return folder


def shares(points):
    """Of points near a mode (four standard deviations), and of those of each of the eight modes."""
    distance = np.linalg.norm(points[:, None] - mode_centres(), axis=-1)
    return (distance.min(1) < 4 * 0.07).mean(), np.bincount(distance.argmin(1), minlength=8) / len(points)


def test_the_scripts_flow_is_good_in_one_step(trained):
    """Eight modes of equal shares; and each sample is that of the teacher's ODE from the same noise."""
    flow = IntegrationFlow.from_pretrained(trained / "flow").sample(2000)
    teacher = Teacher.from_pretrained(trained / "teacher").sample(2000, nfe=35)
    near, modes = shares(flow)
    assert near > 0.85
    assert 0.08 < modes.min() <= modes.max() < 0.18
    same = np.linalg.norm(flow - teacher, axis=1).mean()
    assert same < 0.25 * np.linalg.norm(flow - np.roll(teacher, 1, axis=0), axis=1).mean()


def test_the_script_is_short_and_needs_no_dvc():
    text = (EXAMPLES / "train.py").read_text(encoding="utf-8")
    lines = [
        line
        for line in text.splitlines()
        if line.strip() and not line.lstrip().startswith(("#", '"""', "import", "from"))
    ]
    assert len(lines) <= 30
    assert not re.search(r"import (dvc|mlflow)|from pipeline", text)


@pytest.mark.parametrize("models", [pytest.param("trained", marks=pytest.mark.slow), "shipped"])
def test_the_notebook_runs(trained, tmp_path, models):
    """On the script's models, and on the one that comes with the package, which has no teacher."""
    if models == "shipped" and shipped.FIRST not in shipped.names():
        pytest.skip("no shipped weights yet: python -m pipeline.tools.ship makes them")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat

    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    nbformat.validate(notebook)
    spec = tmp_path / "jupyter/kernels/here"  # this environment's Python, whatever kernels there are
    spec.mkdir(parents=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": words, "display_name": "here", "language": "python"}))
    env = on_cpus(OMP_NUM_THREADS="1", MPLBACKEND="module://matplotlib_inline.backend_inline")
    env = {key: value for key, value in env.items() if key != "IFM_MODELS"}
    env |= {"IFM_MODELS": str(trained)} if models == "trained" else {}
    old = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = str(tmp_path / "jupyter")
    try:
        client = nbclient.NotebookClient(
            notebook, timeout=200, kernel_name="here", resources={"metadata": {"path": tmp_path}}
        )
        client.execute(env=env)
    finally:
        os.environ.pop("JUPYTER_PATH") if old is None else os.environ.update(JUPYTER_PATH=old)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = "".join(output.get("text", "") for output in outputs)
    assert "flow, 1 evaluation: " in said
    if models == "shipped":
        return
    same, other = map(float, re.search(r"same noise ([\d.]+), of other noise ([\d.]+)", said).groups())
    assert same < other / 3
