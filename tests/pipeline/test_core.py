"""The package without extras: what it does, and what it says of the rest."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from ifm import extras

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in requirements}


def test_the_names_in_extras_are_those_of_the_extra():
    """Each module is of a distribution that [pipeline] lists, and each of these is imported, or is no module."""
    provided = importlib.metadata.packages_distributions()
    listed = names(PROJECT["optional-dependencies"]["pipeline"])
    silent = {"ruamel.yaml.clib"}  # found by ruamel
    found = {name: {d.lower().replace("_", "-") for d in provided[name]} & listed for name in extras.PIPELINE}
    assert all(found.values()), found
    assert set().union(*found.values()) - silent == listed - silent
    assert not listed & names(PROJECT["dependencies"])


def test_all_is_what_test_installs():
    """`make setup` installs [test]."""
    test = next(one for one in PROJECT["optional-dependencies"]["test"] if one.startswith("ifm["))
    others = set(PROJECT["optional-dependencies"]) - {"test", "audit"}
    assert set(re.search(r"\[(.*)\]", test)[1].split(",")) == others


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("no", name="mlflow.pyfunc"), "mlflow is not installed; this needs the extra [pipeline]"),
        (ModuleNotFoundError("no", name="ot"), "pip install 'ifm[pipeline]'"),
        (ModuleNotFoundError("no", name="ifm.nothing"), None),
        (ImportError("broken", name="mlflow"), None),
        (ModuleNotFoundError("no"), None),
    ],
)
def test_what_is_said_of_a_missing_package(error, said):
    found = extras.missing(error)
    assert found is None if said is None else said in found


BLOCKED = (
    "import sys\n"
    "class Blocked:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] in {gone!r}:\n"
    "            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)\n"
    "sys.meta_path.insert(0, Blocked())\n"
    "import runpy; sys.argv = {argv!r}; sys.orig_argv = ['python', *{argv!r}]\n"
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
)


@pytest.mark.parametrize(
    ("module", "argv", "gone", "said"),
    [
        ("ifm", ["ifm", "evaluate", "--samples", "a", "--reference", "b", "--out", "c.json"], ["scipy", "pyarrow"], ""),
        ("pipeline.stages.fetch", ["-m", "pipeline.stages.fetch"], ["yaml"], "yaml is not installed; "),
        ("pipeline.stages.report", ["-m", "pipeline.stages.report"], ["pandas"], "pandas is not installed; "),
    ],
)
def test_a_missing_extra_is_one_line(tmp_path, module, argv, gone, said):
    if module == "ifm":
        argv = [word.replace("a", str(tmp_path / "a")) if word in "ab" else word for word in argv]
    code = BLOCKED.format(gone=gone, argv=argv, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr


def share_bytecode(env: Path) -> None:
    """Gives an environment what this one has compiled of the same files: Python sees whether they are the same."""
    mine, (site,) = Path(sysconfig.get_path("purelib")), env.glob("lib/python*/site-packages")
    for package in [path.name for path in site.iterdir()]:
        for compiled in (mine / package).rglob("__pycache__"):
            if (there := site / compiled.relative_to(mine)).parent.is_dir():
                shutil.copytree(compiled, there, dirs_exist_ok=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("uv") is None, reason="needs uv, which installs from its cache")
def test_the_core_alone_trains_loads_samples_and_exports(tmp_path):
    python = tmp_path / "env/bin/python"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    words = ["pip", "install", "--quiet", "--python", python, tmp_path, "-c", ROOT / "constraints.txt"]
    installed = subprocess.run(
        [sys.executable, "-m", "uv", *words], text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if installed.returncode and any(word in installed.stdout for word in ("fetch", "connect", "dns")):
        pytest.skip(f"the packages cannot be had here: {installed.stdout.strip()[-300:]}")
    assert installed.returncode == 0, installed.stdout[-3000:]
    share_bytecode(tmp_path / "env")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [python, "-m", "tests.support.core_worker", tmp_path / "models"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=env | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    refused = subprocess.run(
        [python, "-m", "ifm", "ui"], capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert refused.returncode == 1
    assert "this needs the extra [pipeline]: pip install 'ifm[pipeline]'" in refused.stderr
