"""docs/reproducibility.md's figures: the same bytes from the same seed; how far threads and layout move weights."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support import warm
from tests.support.small_models import draws_of, small_flow

ROOT = Path(__file__).parents[2]
STEPS = 6  # docs/reproducibility.md measured 100


def trained(file: Path, *, threads: int, python: str) -> Path:
    around = os.environ | {
        "OMP_NUM_THREADS": f"{threads}",
        "MKL_NUM_THREADS": f"{threads}",
        "OMP_WAIT_POLICY": "PASSIVE",  # beside other work, threads that wait busily take far longer
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "tests"))),
    }
    script = Path(__file__).parents[1] / "support" / "reproducible_worker.py"
    done = subprocess.run(
        [python, str(script), str(file), str(STEPS)],
        env=around,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == threads
    return file


def test_the_same_seed_gives_the_same_bytes_and_threads_change_the_order_of_sums_alone(tmp_path):
    """The first process shares nothing with the others, which are forks of one: no seed of hashes, no memory."""
    runs = {"a": (1, sys.executable), "b": (1, warm.python()), "c": (2, warm.python())}
    one, again, two = (trained(tmp_path / name, threads=n, python=python) for name, (n, python) in runs.items())
    assert one.read_bytes() == again.read_bytes()
    for name, weight in load_file(one).items():
        torch.testing.assert_close(load_file(two)[name], weight, rtol=2e-3, atol=2e-4)


@torch.no_grad()
def test_memory_layout_changes_the_order_of_sums_alone():
    torch.set_num_threads(1)
    x_T, x_anchor = draws_of(16)
    t = torch.full((16,), 80.0)
    plain = small_flow()(x_T, t, x_anchor=x_anchor)
    last = small_flow().to(memory_format=torch.channels_last)(x_T, t, x_anchor=x_anchor)
    assert float((last - plain).abs().max()) < 1e-4 * float(plain.abs().max())
