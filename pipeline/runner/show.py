"""What `ifm repro` prints: a line when a stage starts and when it ends; in a terminal also one that moves for each."""

import ast
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ifm.progress import is_line
from pipeline.runner import paths

BUSY = ("Unable to acquire lock", "is busy, it is being blocked by", "Unable to read RWLock-file")
SAID_BY_DVC = re.compile(
    r"ERROR: |> |Running stage |Stage '|Data and pipelines |(Generating|Updating) lock file |Use `dvc"
)
MOST = 400  # characters of a line that is passed on


class Show:
    """Lines of text, and below them in a terminal one for each stage that runs."""

    def __init__(self, *, terminal: bool | None = None) -> None:
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bars: list[Any] = []
        self._said: set[str] = set()

    def line(self, text: str) -> None:
        with suppress(OSError):  # a terminal that was closed
            if self._terminal:
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                print(text, flush=True)

    def once(self, text: str) -> None:
        """What several stages say is passed on once."""
        if text not in self._said:
            self._said.add(text)
            self.line(f"  {text}")

    def now(self, rows: Sequence[str]) -> None:
        """The lines that move; nothing outside a terminal."""
        if not self._terminal:
            return
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread: this process forks
        with suppress(OSError):
            while len(self._bars) < len(rows):
                at = len(self._bars)
                bar = tqdm(bar_format="{desc}", position=at, leave=False, dynamic_ncols=True, file=sys.stderr)
                self._bars.append(bar)
            for bar, text in zip(self._bars, [*rows, *[""] * len(self._bars)], strict=False):
                bar.set_description_str(text)

    def close(self) -> None:
        with suppress(OSError):
            for bar in reversed(self._bars):
                bar.close()
        self._bars.clear()


# --- what a stage wrote ----------------------------------------------------------------------------------------------


def own_lines(log: str) -> list[str]:
    """What a stage said itself, without DVC's words, progress and how long it took."""
    lines = [line.rpartition("\r")[2].strip() for line in log.splitlines()]
    return [line for line in lines if line and not SAID_BY_DVC.match(line) and not is_line(line)]


def worth_passing_on(name: str, log: str) -> list[str]:
    """What the user should see of a stage that ended well: its results in words, warnings, where it went on."""
    kind, _, branch = name.partition("@")
    starts = (f"{kind}-{branch}: ", f"{kind} {branch}: ") if branch else (f"{kind}: ",)
    starts = (*starts, "warning: ", "tracking: ", "MLflow: ")
    return [
        line[:MOST]
        for line in own_lines(log)
        if line.startswith(starts) and not re.search(r": done in [\d.]+ \w+$", line)
    ]


def why(log: str, status: int) -> str:
    """The one line that says why a stage failed: its own last one, else DVC's error. status: of DVC."""
    code = status if status < 0 else next(map(int, reversed(re.findall(r", exited with (-?\d+)", log))), 0)
    if code < 0 or code > 128:
        return f"ended by signal {-code if code < 0 else code - 128}"
    started = log.rpartition("Running stage ")[1]
    errors = [line for line in log.splitlines() if line.startswith("ERROR: ")]
    own = own_lines(log) if started else []
    said = own[-1] if own else errors[-1].removeprefix("ERROR: ") if errors else "no output"
    return said if len(said) <= MOST else f"{said[: MOST // 2]} ... {said[-MOST // 2 :]}"


def blocked(log: str) -> bool:
    """Whether DVC did not start because another DVC has what it needs."""
    return "Running stage " not in log and any(words in log for words in BUSY)


def ran(log: str) -> list[str]:
    """The stages that were run, and not skipped or taken from the cache."""
    return re.findall(r"^Running stage '([^']+)'", log, re.MULTILINE)


def cached(log: str) -> bool:
    return " is cached - skipping run" in log


# --- what stages are -------------------------------------------------------------------------------------------------


def phrase(command: str) -> str:
    """What a stage does, in the words of its module: "the integration flow, noise to image in one evaluation"."""
    module = re.search(r"-m (pipeline\.stages\.\w+)", command)
    file = Path(*module[1].split(".")).with_suffix(".py") if module else None
    if file is None or not file.is_file():
        return ""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).partition(": ")[2].rstrip(".")


def headlines(dynamics: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The headline figures of the dynamics that have some."""
    found = {}
    for d in dynamics:
        with suppress(OSError, ValueError, KeyError, TypeError):
            found[d] = dict(json.loads(paths.headline(d).read_text(encoding="utf-8"))[d])
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Headline figures, a row for each dynamics."""
    if not found:
        return []
    keys = list(dict.fromkeys(key for row in found.values() for key in row))
    lines = [("", *(key.replace("_", " ") for key in keys))]
    lines += [(d, *(_shown(row.get(key)) for key in keys)) for d, row in found.items()]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
