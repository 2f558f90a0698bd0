"""Stages run by processes that were warmed up while the stage before was at work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE = 20.0  # seconds that a training has for its checkpoint after Ctrl-C


class Job:
    """A stage at work."""

    def __init__(self, name: str, process: subprocess.Popen, rows: Path) -> None:
        self.name, self.process, self.began, self._rows = name, process, time.time(), rows

    def rows(self) -> list[dict[str, float]]:
        """Of the training curve, up to now; a last line that is being written is left out."""
        text = self._rows.read_text(encoding="utf-8") if self._rows.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def wait(self, until: float) -> int | None:
        """The exit status; None where it still runs at that time."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(max(0.0, until - time.time()))
        return None

    def stop(self, *, patience: float = GRACE) -> None:
        """Ctrl-C; after a while the end."""
        if self.runs:
            self.process.send_signal(signal.SIGINT)
            if self.wait(time.time() + patience) is None:
                self.process.kill()
                self.process.wait()


class Workers:
    """Runs stages in `folder`, each by a process of its own that has been started before it is needed."""

    def __init__(self, folder: Path, *, spare: int) -> None:
        self._folder, self._spare, self._number = folder, spare, 0
        self._waiting = [self._start() for _ in range(spare)]

    def _start(self) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.leg.worker"],
            cwd=self._folder,
            env={"IFM_COMPILE": "off", **os.environ, "DVC_ROOT": str(self._folder), "IFM_TRACKING": "off"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, stage: str, *words: str, start: Path | None = None, environment: dict[str, str] | None = None) -> Job:
        """Starts a stage, from the checkpoints or shards in a folder where one is given."""
        process = self._waiting.pop(0) if self._waiting else self._start()
        if self._spare:
            self._waiting.append(self._start())
        self._number += 1
        rows = self._folder / ".ifm" / f"rows-{self._number}.jsonl"
        order: dict[str, Any] = {"stage": stage, "words": words, "rows": str(rows), "environment": environment or {}}
        if start is not None:
            order["start"] = str(start)
        process.stdout.readline()  # ready
        job = Job("-".join([stage, *words]), process, rows)
        with suppress(BrokenPipeError):  # it has died: its status says so
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.close()
        return job

    def close(self) -> None:
        """Ends those that wait."""
        for process in self._waiting:
            process.kill()
            process.wait()
        self._waiting = []


def newest(folder: Path, pattern: str) -> Path | None:
    """The newest file in the work folders of a stage."""
    found: Sequence[Path] = sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime)
    return found[-1] if found else None
