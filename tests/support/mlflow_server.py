"""Real MLflow stores for tests: an SQLite file, and a server on the loopback that can be stopped and started."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ifm.tracking import places
from ifm.tracking import store as stores

PASSWORD = "s3cr3t-w0rd"


def make_empty_store(root: Path) -> Path:
    """An SQLite store with an experiment and no run, to be copied: its migrations take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.setenv("DVC_ROOT", str(root))
        stores.connect.cache_clear()
        stores.connect()
        stores.connect.cache_clear()
    return root / "mlflow.db"


def copy_store(empty: Path, root: Path) -> Path:
    """An empty store for the project `root`, as if it had been made there."""
    file = Path(shutil.copy(empty, root / places.STORE))
    places.take_along(file, root)
    return file


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    """Until a URL answers. Fails with the server's own words if it ends before."""
    deadline = time.monotonic() + seconds
    while True:
        assert process.poll() is None, f"the server ended\n{log.read_text()[-3000:]}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        assert time.monotonic() < deadline, f"no answer from {url}\n{log.read_text()[-3000:]}"
        time.sleep(0.1)


def stop(process: subprocess.Popen) -> None:
    """Ends a process and its children, which are of its own session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


class Server:
    """`mlflow server` with a store and HTTP artifacts, on a port that stays the same over restarts."""

    def __init__(self, folder: Path, *, store: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.store = store or f"sqlite:///{folder / 'server.db'}"
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> "Server":
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "IFM_"))}
        log = self.folder / "server.log"
        with open(log, "ab") as out:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--backend-store-uri", self.store, "--workers", "1", "--serve-artifacts"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                cwd=self.folder,
                env=clean | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        wait_for(f"{self.uri}/health", self._process, log)
        return self

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None


def postgres_command(name: str) -> str | None:
    """Where initdb or postgres is: Debian keeps them out of the PATH."""
    debians = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debians[-1]) if debians else None)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URI of a database of a PostgreSQL of its own, with a password; as user postgres where this one is root."""
    words = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="postgres-") as temporary:  # pytest's folders are closed to other users
        folder = Path(temporary)
        (folder / "password").write_text(f"{PASSWORD}\n")
        if words:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        with open(folder / "log", "wb") as log:
            where = {"cwd": folder, "stdout": log, "stderr": log}
            made = [
                postgres_command("initdb"),
                "-D",
                "data",
                "-U",
                "keeper",
                "-A",
                "scram-sha-256",
                "--pwfile",
                "password",
                "-N",
            ]
            assert subprocess.run([*words, *made], check=False, **where).returncode == 0, (folder / "log").read_text()
            port = free_port()
            command = [
                *words,
                postgres_command("postgres"),
                "-D",
                "data",
                "-p",
                str(port),
                "-h",
                "127.0.0.1",
                "-F",
                "-k",
                "",
            ]
            process = subprocess.Popen(command, start_new_session=True, **where)
        try:
            deadline = time.monotonic() + 60
            while "ready to accept connections" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield f"postgresql+psycopg2://keeper:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            stop(process)
