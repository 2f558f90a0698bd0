"""The samplers that a flow records in its ifm.json: for a number of evaluations, the one that measured best.

    "samplers": {"1": {"sampler": "one_step", ...}, "2": {"sampler": "renoise", "times": [20.0, 0.8], ...}}

Stage `select` measures and writes them. Whoever samples without naming a sampler takes them (`ifm.steps.way_of`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "samplers"  # of ifm.json
BY_STEP = "one_step_by_training_step"  # likewise: what stage select measured of the states of before the end
KINDS = ("one_step", "anchor", "renoise", "chain")
ROUNDING = 1e-6  # of times: float32 against float64


@dataclass(frozen=True)
class Way:
    """How a flow goes from x_T to x_0_hat."""

    sampler: str  # one of KINDS
    times: tuple[float, ...] | None = None  # of renoise: of each evaluation, t_max first; None: `renoising_times`

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON, which `read` reads."""
        return {"sampler": self.sampler} | ({} if self.times is None else {"times": list(self.times)})

    @property
    def title(self) -> str:
        """E.g. "renoise at t = 20, 0.8"."""
        return self.sampler + (f" at t = {', '.join(f'{t:g}' for t in self.times)}" if self.times else "")


def read(
    description: Mapping[str, Any], *, t_min: float, t_max: float, takes_anchor: bool, two_times: bool
) -> dict[int, Way]:
    """The samplers of an ifm.json by number of evaluations; {} where it records none.

    Raises ValueError that names the entry: what another flow or a person wrote need not fit this one.
    """
    found = description.get(KEY, {})
    if not isinstance(found, Mapping):
        raise ValueError(f"{KEY} must be an object, got {type(found).__name__}")
    return {_steps(name): _way(name, entry, t_min, t_max, takes_anchor, two_times) for name, entry in found.items()}


def _steps(name: str) -> int:
    if not (name.isascii() and name.isdigit() and int(name[:9]) >= 1 and name == str(int(name[:9]))):
        raise ValueError(f"{KEY} must be named by numbers of evaluations, got {name!r}")
    return int(name)


def _way(name: str, entry: Any, t_min: float, t_max: float, takes_anchor: bool, two_times: bool) -> Way:
    kind, times = (entry.get("sampler"), entry.get("times")) if isinstance(entry, Mapping) else (None, None)
    can = {"one_step": name == "1", "anchor": takes_anchor, "renoise": True, "chain": two_times}
    if not isinstance(kind, str) or not can.get(kind, False):
        able = ", ".join(kind for kind, is_able in can.items() if is_able)
        raise ValueError(f"{KEY}.{name}.sampler must be one of {able}, got {kind!r}")
    if times is None:
        return Way(kind)
    if kind != "renoise" or not isinstance(times, list) or not all(map(_number, times)) or len(times) != int(name):
        raise ValueError(f"{KEY}.{name}.times must be {name} numbers, of renoise")
    times = tuple(map(float, times))
    check_times(times, t_min=t_min, t_max=t_max)
    return Way(kind, times)


def check_times(times: tuple[float, ...], *, t_min: float, t_max: float) -> None:
    """Raises ValueError for times at which `renoise` cannot map: the first is t_max (of x_T), none below t_min."""
    if not times or times[0] != t_max or not all(t_min * (1 - ROUNDING) <= t <= t_max for t in times):
        raise ValueError(
            f"times of renoise must start with t_max = {t_max:g} and be at least t_min = {t_min:g}, got {list(times)}"
        )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
