"""The package as it is handed out: one version, files of the platform, a wheel that works by itself."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import ifm

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_version_is_in_one_place():
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ifm.__version__"}
    assert importlib.metadata.version("ifm") == ifm.__version__
    latest = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[0]
    assert latest == ifm.__version__


def test_every_extra_is_in_constraints():
    """`pip install -e '.[demo]' -c constraints.txt` gives the versions that were tested together."""
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").open()}
    for requirements in PROJECT["project"]["optional-dependencies"].values():
        names = {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in requirements} - {"ifm"}
        assert names <= pinned


def test_how_to_cite_has_what_the_format_requires():
    found = read_yaml("CITATION.cff")
    assert {"cff-version", "title", "message", "authors"} <= found.keys()
    assert found["license"] == PROJECT["project"]["license"]
    assert "version" not in found  # one place
    (paper,) = found["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert "2504.20179" in paper["identifiers"][0]["value"]


def test_the_platforms_files():
    """CI there does what .ci/run does; forms of issues have the keys that GitHub requires."""
    steps = read_yaml(".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            continue
        assert {"name", "description", "body"} <= form.keys()
        assert all("attributes" in part and part["type"] in ("markdown", "textarea", "input") for part in form["body"])
        names = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(names) == len(set(names)) > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("uv") is None, reason="needs uv, which builds and installs from its cache")
def test_a_wheel_works_in_a_clean_environment(tmp_path):
    """Built of a copy, installed with nothing of the checkout in reach: it trains, loads, samples and exports."""
    source, python = tmp_path / "source", tmp_path / "env/bin/python"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    uv = [sys.executable, "-m", "uv"]
    words = [*uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path / "dist", source]
    built = subprocess.run(words, capture_output=True, text=True, check=False)
    if built.returncode and any(word in built.stderr for word in ("fetch", "connect", "dns")):
        pytest.skip(f"setuptools cannot be had here: {built.stderr.strip()[-300:]}")
    assert built.returncode == 0, built.stderr[-3000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.startswith(f"ifm-{ifm.__version__}-py3-none-any")
    inside = zipfile.ZipFile(wheel).namelist()
    expected = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/ifm").rglob("*.py")}
    expected |= {f"ifm/report/{name}" for name in ("report.html", "style.css", "sort.js")}
    expected |= {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/ifm/shipped").glob("*/*")}
    assert expected <= set(inside)
    assert {name.split("/")[0] for name in inside} == {"ifm", f"ifm-{ifm.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    words = [*uv, "pip", "install", "--quiet", "--python", python, wheel, "-c", ROOT / "constraints.txt"]
    subprocess.run(words, check=True)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    said = subprocess.run([python, "-m", "ifm", "--version"], env=env, **run)
    assert said.stdout == f"ifm {ifm.__version__}\n"
    worker = [python, "-m", "tests.support.core_worker", tmp_path / "models"]
    done = subprocess.run(worker, env=env | {"PYTHONPATH": str(ROOT)}, **run)
    assert done.returncode == 0, done.stderr[-3000:]
    refused = subprocess.run([python, "-m", "ifm", "demo"], env=env, **run)
    assert refused.returncode == 1
    assert "gradio is not installed; pip install 'ifm[demo]'" in refused.stderr
