"""What a flow can be trained by: one entry an objective. Configuration, stages and studies follow from it.

| objective | x_t comes from | target |
|---|---|---|
| `trajectory` | a stored path of the teacher | its end point |
| `data`, the paper's | a data point, fresh z and t | that data point, and its anchor x_0^(n) if mixed |
| `consistency` | a data point, fresh z and t | the flow's own x_0_hat at the same pair's x_r, r < t |
| `interval` (two times) | a data point, fresh z and t, s <= t | the mean velocity's identity over [s, t] |

The table names functions and does not import them, so that params.yaml can be checked without torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ifm.schema import Section


class ConsistencyOptions(Section):
    """`flow.consistency`."""

    first_intervals: Annotated[int, Field(ge=2)]
    last_intervals: Annotated[int, Field(ge=2)]
    target: Literal["online", "average"]

    @model_validator(mode="after")
    def _shrinks(self) -> "ConsistencyOptions":
        if self.last_intervals < self.first_intervals:
            raise ValueError(
                f"last_intervals ({self.last_intervals}) must be at least first_intervals ({self.first_intervals})"
            )
        return self


class IntervalOptions(Section):
    """`flow.interval`."""

    same_share: Annotated[float, Field(ge=0, lt=1)]
    whole_share: Annotated[float, Field(ge=0, le=1)]
    power: Annotated[float, Field(ge=0, le=2)]
    derivative: Literal["forward", "difference"]


@dataclass(frozen=True)
class Objective:
    """How a flow is trained, and what that needs."""

    phase: Any  # (Ingredients) -> Phase, or "module:name"
    title: str
    # Network evaluations for one sample of a step, by the section `flow`: of the flow, and of a teacher that it asks.
    # An evaluation is a sample's way through a network, with or without gradient; a backward pass is none.
    cost: Callable[[Any], float]
    guided_cost: Callable[[Any], float] = lambda flow: 0  # and further ones with guidance, where it counts
    needs_paths: bool = False  # it trains on a teacher's paths
    two_times: bool = False  # its network takes an interval's end
    gives_estimates: bool = True  # it estimates x_0, which policy bank keeps
    takes_velocities: bool = False  # flow.velocity says where from
    leads_itself: bool = False  # guided without a teacher: by its own velocity without a class
    # Of the section `flow`: the key that asks for a forward-mode derivative, which knows no gradient checkpointing.
    forward_mode: Callable[[Any], str | None] = lambda flow: None
    schemes: tuple[str, ...] = ("edm", "paper")  # of c_skip and c_out
    options: type[Section] | None = None  # the keys of its section `flow.<name>`


def _asked(flow: Any) -> int:
    """Evaluations of a teacher for one velocity."""
    return 1 if flow.velocity == "teacher" else 0


def _led(flow: Any) -> int:
    """Further ones for a guided velocity: D_0, and of a mean over data D_c too (`ifm.guidance.GuidedMean`)."""
    return 2 - _asked(flow)


OBJECTIVES: dict[str, Objective] = {
    "trajectory": Objective("ifm.objectives.trajectory:phase", "Trajectory", cost=lambda flow: 1, needs_paths=True),
    "data": Objective(
        "ifm.objectives.data:phase",
        "Data (the paper's)",
        cost=lambda flow: 1,
        guided_cost=lambda flow: 2,
    ),
    "consistency": Objective(
        "ifm.objectives.consistency:phase",
        "Consistency",
        cost=lambda flow: 2 * (1 + _asked(flow)),  # both at both times
        guided_cost=lambda flow: 2 * _led(flow),
        takes_velocities=True,
        options=ConsistencyOptions,
    ),
    "interval": Objective(
        "ifm.objectives.interval:phase",
        "Interval",
        cost=lambda flow: 1 + 2 * (1 - flow.interval.same_share) + _asked(flow),  # the derivative: value and tangent
        guided_cost=lambda flow: 1,  # a teacher's D_0, or its own
        two_times=True,
        gives_estimates=False,
        takes_velocities=True,
        leads_itself=True,
        forward_mode=lambda flow: "flow.interval.derivative" if flow.interval.derivative == "forward" else None,
        schemes=("edm",),
        options=IntervalOptions,
    ),
}


def of(flow: Any) -> dict[str, Objective]:
    """The objectives that the section `flow` asks for, in their order."""
    return {name: OBJECTIVES[name] for name in flow.objective}


def needs_paths(flow: Any) -> bool:
    """Whether any phase trains on a teacher's paths."""
    return any(objective.needs_paths for objective in of(flow).values())


def two_times(flow: Any) -> bool:
    """Whether any phase needs a network of two times: all phases then train that one."""
    return any(objective.two_times for objective in of(flow).values())
