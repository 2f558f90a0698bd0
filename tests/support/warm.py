"""Processes that start with their imports done: `python`, `dvc` and `torchrun` in a folder, see warm_server.py.

For what a process does, not for how it starts, is killed or finds its packages: tests of these start real ones.
Nor for what is read from the environment at an import, such as HF_HOME. WARM_PYTHON=off has all tests start real ones.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = "WARM_PYTHON"  # names the folder, or is off
HERE = Path(__file__).parent


class Server:
    """Started once a session, by the process that pytest-xdist's workers inherit their environment from."""

    def __init__(self) -> None:
        short = "/tmp" if os.path.isdir("/tmp") else None  # a socket's path has 107 bytes at most
        self.folder = tempfile.TemporaryDirectory(prefix="warm-", dir=short)
        bin_ = Path(self.folder.name) / "bin"
        bin_.mkdir()
        address, shim = Path(self.folder.name) / "socket", bin_ / "python"
        real = sys.executable
        client = f'WARM_PYTHON_REAL="{real}" exec "{real}" -I -S "{HERE / "warm_client.py"}" "{address}"'
        for name, module in (("python", ""), ("dvc", "-m dvc"), ("torchrun", "-m torch.distributed.run")):
            (bin_ / name).write_text(f'#!/bin/sh\n{client} {module} "$@"\n')
            (bin_ / name).chmod(0o755)
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "IFM_", "GIT_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", HERE / "warm_server.py", address, shim], start_new_session=True,
            env=clean | one | {"CUDA_VISIBLE_DEVICES": "", "DVC_NO_ANALYTICS": "true"}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,  # pipes: a fork's stream must not believe that it can seek
        )  # fmt: skip
        while not address.exists():
            assert self.process.poll() is None, self.process.stderr.read().decode()
            time.sleep(0.01)
        os.environ[FOLDER] = str(bin_)

    def close(self) -> None:
        os.environ.pop(FOLDER)
        self.process.kill()  # it may be importing
        self.process.wait()
        self.folder.cleanup()


def start() -> Server | None:
    """The server, unless there is one or none is wanted."""
    return None if FOLDER in os.environ else Server()


def python() -> str:
    """The interpreter to start a process with."""
    folder = os.environ.get(FOLDER, "off")
    return sys.executable if folder == "off" else f"{folder}/python"


def on_path(path: str) -> str:
    """A PATH whose `python`, `dvc` and `torchrun` are warm."""
    folder = os.environ.get(FOLDER, "off")
    return path if folder == "off" else f"{folder}{os.pathsep}{path}"
