"""One measurement as a row, its target, and the file that holds a run."""

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.timing import Spread, speed_ratio

PACKAGES = (
    *("torch", "numpy", "scipy", "accelerate", "diffusers", "clean-fid", "dvc"),
    *("torchcfm", "flow-matching", "torchdiffeq"),
)


class Skipped(Exception):
    """A benchmark that cannot be run here; the message is the reason."""


@dataclass(frozen=True)
class Target:
    """A bound on a row's value or ratio, e.g. Target("ratio", ">=", 0.95)."""

    of: str  # "value" | "ratio"
    sense: str  # ">=" | "<="
    bound: float

    def __str__(self) -> str:
        return f"{self.of} {self.sense} {self.bound:g}"

    def holds(self, *, value: float, ratio: float | None) -> bool:
        """Whether a measurement meets it. Raises ValueError for a ratio that is not there."""
        measured = value if self.of == "value" else ratio
        if measured is None:
            raise ValueError(f"target {self} needs a ratio")
        return measured >= self.bound if self.sense == ">=" else measured <= self.bound


@dataclass(frozen=True)
class Result:
    """One row. ratio: our speed over the peer's, above 1 where we are faster."""

    name: str
    value: float | None  # None: skipped, the note says why
    unit: str
    peer: str | None = None
    ratio: float | None = None
    target: str | None = None
    holds: bool | None = None  # None: no target, or skipped
    note: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        value: float,
        unit: str,
        *,
        peer: str | None = None,
        ratio: float | None = None,
        target: Target | None = None,
        note: str = "",
    ) -> Self:
        """A measured row; `holds` follows from the target."""
        holds = None if target is None else target.holds(value=value, ratio=ratio)
        return cls(name, value, unit, peer, ratio, str(target) if target else None, holds, note)

    @classmethod
    def rate(
        cls,
        name: str,
        unit: str,
        *,
        amount: float,
        seconds: list[float],
        peer: str | None = None,
        peers: list[float] | None = None,
        target: Target | None = None,
        note: str = "",
    ) -> Self:
        """`amount` in each of `seconds`, as a rate; with a peer that did as much in `peers`, the ratio too."""
        spread = Spread.of([amount / s for s in seconds])
        notes = [f"quartiles {short(spread.low)} to {short(spread.high)} in {len(seconds)} rounds"]
        ratio = None if peers is None else speed_ratio(seconds, peers)
        if ratio:
            notes.append(f"ratio {short(ratio.low)} to {short(ratio.high)}")
        return cls.of(
            name,
            spread.median,
            unit,
            peer=peer,
            ratio=ratio.median if ratio else None,
            target=target,
            note="; ".join([*notes, *([note] if note else [])]),
        )

    @classmethod
    def skipped(cls, name: str, reason: object, *, peer: str | None = None, target: Target | None = None) -> Self:
        """A row without a measurement."""
        return cls(name, None, "", peer=peer, target=str(target) if target else None, note=f"skipped: {reason}")


def short(x: float) -> str:
    """Three significant digits; whole numbers from 1000 on with separators."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run was made on; nothing that names the machine."""
    load = [round(x, 2) for x in os.getloadavg()]
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "load_before": load[0],  # other work at the start: mean number of running processes over a minute
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def document(results: list[Any], *, hardware: dict[str, Any], versions: dict[str, str], command: str) -> dict[str, Any]:
    """What benchmarks/results/*.json hold; results are rows of dataclasses."""
    return {
        "hardware": hardware,
        "versions": versions,
        "command": command,
        "date": date.today().isoformat(),
        "results": [asdict(result) for result in results],
    }
