"""The lowest versions that pyproject.toml allows are versions that were run."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What leans on its libraries most: derivatives of networks, diffusers' folders, arrays, YAML, MLflow's store.
MODULES = (
    "method/test_interval", "method/test_model", "method/test_combinations", "data/test_data", "pipeline/test_config",
    "pipeline/test_params_file", "method/test_sampling", "tracking/test_tracking",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,  # installs some 6 GB
    pytest.mark.skipif(importlib.util.find_spec("uv") is None, reason="needs uv, which resolves to lowest versions"),
]


def test_the_lowest_versions_of_all_direct_dependencies_pass_the_tests(tmp_path):
    python = tmp_path / "env/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    words = ["pip", "install", "--quiet", "--resolution", "lowest-direct", "--python", str(python), "-e", ".[test]"]
    installed = subprocess.run(
        [sys.executable, "-m", "uv", *words], cwd=ROOT, text=True, check=False, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    if installed.returncode and any(word in installed.stdout for word in ("fetch", "connect", "dns")):
        pytest.skip(f"the packages cannot be had here: {installed.stdout.strip()[-300:]}")
    assert installed.returncode == 0, installed.stdout[-3000:]
    version = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    lowest = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert version.stdout.startswith(lowest)
    tests = [path for name in MODULES for path in ROOT.glob(f"tests/*/test_{name}.py")]
    assert len(tests) == len(MODULES)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "--numprocesses", "2", "--dist", "loadfile", "-m", "not slow", *tests],
        cwd=ROOT, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
