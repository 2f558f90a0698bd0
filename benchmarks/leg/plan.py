"""What a leg trains, and how its minutes are shared out: plain arithmetic, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ifm import objectives
from ifm.config import FlowConfig

# When a stage has to be done, as a share of the time from when there are data. What one leaves over goes to the next.
ENDS = {
    "teacher": 0.42,
    "trajectories": 0.51,
    "flow": 0.81,
    "select": 0.84,
    "sample": 0.92,
    "evaluate": 0.975,
    "report": 1.0,
}
LEAST_SHARE = 0.05  # of the whole time, for a stage that begins late
FINISHING = 0.012  # of the whole time: from Ctrl-C in a training to its saved model
MANY_STEPS = 10**6  # until the rate is known
LEAST_STEPS = 40
# What a leg changes in its preset. Reasons:
# - A tenth of the preset's compute a step (3.5 for 12 GFLOP, 10 M weights): at some 1e16 floating-point operations more
#   images are worth more than more weights. Its weights in bf16 fit into two files of 10 MB a model.
# - No dropout: a leg sees each image ten to fifty times.
# - A high rate with a cosine to zero, and a short average: the end of the cosine is the average.
# - 17 evaluations a path: half of the preset's, for twice as many paths.
# - Paths first, which give the coarse shape of x_T -> x_0 soon, then consistency, which sharpens what regression blurs:
#   on digits the ratio in one step is about 1, and 1.9 without the paths. 20 intervals throughout: 1.0 there, with 10
#   1.6, with 40 1.2 (one run each).
RECIPE: dict[str, Any] = {
    "network.channels": [64, 128, 192],
    "network.dropout": 0.0,
    "teacher.batch_size": 256,
    "teacher.lr": 1.0e-3,
    "teacher.warmup_steps": 200,
    "teacher.ema_decay": 0.995,
    "teacher.precision": "bf16",
    "teacher.log_every": 20,
    "teacher.checkpoint_every": 2000,
    "trajectories.solver_steps": 9,
    "trajectories.batch_size": 1000,
    "flow.objective": ["trajectory", "consistency"],
    "flow.velocity": "reference",
    "flow.huber_c": 0.1,
    "flow.consistency.first_intervals": 20,
    "flow.consistency.last_intervals": 20,
    "flow.consistency.target": "average",
    "flow.batch_size": 256,
    "flow.lr": 7.0e-4,
    "flow.warmup_steps": 200,
    "flow.ema_decay": 0.995,
    "flow.precision": "bf16",
    "flow.log_every": 20,
    "flow.checkpoint_every": 2000,
    "sample.seeds": 1,
    "sample.batch_size": 1000,
    "sample.flow_steps": [1, 2],
    "sample.flow_samplers": ["renoise"],
    "diagnose.paths": 8,
    "diagnose.solver_steps": 4,
    "diagnose.jacobian_paths": 2,
    "diagnose.jacobian_times": 2,
    "diagnose.directions": 2,
    "diagnose.anchor_refinements": 3,
}
# Set where params.yaml has the key.
IF_KNOWN: dict[str, Any] = {
    "trajectories.precision": "bf16",
    "sample.precision": "bf16",
    "select.count": 2000,
    "select.levels": 4,
}
# Set where a stage chooses an average and the samplers of several steps.
IF_SELECTED: dict[str, Any] = {"flow.ema_decay": [0.995, 0.99, 0.998], "sample.flow_samplers": ["selected"]}
BACKWARD = 2  # forward passes that a backward pass costs
AGAIN = 10.0  # seconds, at the most, of a start whose kernels were compiled by the first one
# Evaluations that solving makes, at least, while training takes a sample's step, by precision: 1.8 to 7 were seen.
FORWARD_A_STEP = {"no": 1.5, "bf16": 3.0, "fp16": 3.0}


@dataclass(frozen=True)
class Rate:
    """What was seen of a training: steps a second, and the seconds before its first step."""

    steps: float
    start: float

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float]], *, began: float) -> "Rate":
        """From rows of the curve {step, time}, the first of which has the start in it, compiling too."""
        first, last = rows[0], rows[-1]
        steps = (last["step"] - first["step"]) / max(last["time"] - first["time"], 1e-9)
        return cls(steps, max(0.0, first["time"] - began - first["step"] / steps))


def training_steps(rate: Rate, *, done: int, seconds: float, weight: float = 1.0) -> int:
    """All steps of a training that has done some and has so many seconds left, its second start among them.

    weight: the mean cost of a step over that of those that were timed.
    """
    left = 0.97 * max(0.0, seconds - min(0.7 * rate.start, AGAIN)) * rate.steps
    return max(LEAST_STEPS, done + 1, int((done + left) / weight))


def step_weight(flow: FlowConfig, *, anchored: float, guided: bool) -> float:
    """The mean cost of a step over a flow's phases, over that of the first, in the network's forward passes.

    anchored: share with an own anchor. guided: whether phases are led.
    """
    asked = objectives.of(flow).values()
    costs = [BACKWARD + each.cost(flow) + guided * each.guided_cost(flow) + anchored for each in asked]
    return sum(costs) / len(costs) / costs[0]


def path_count(evaluations: float, *, seconds: float, nfe: int, most: int = 100_000) -> tuple[int, int]:
    """Paths that can be solved, and the shard size, a tenth of them. evaluations: a second."""
    each = int(max(10, min(most, 0.8 * seconds * evaluations / nfe)) / 10)
    return 10 * each, each


def sampling(evaluations: float, *, seconds: float, flow_steps: Sequence[int], batch: int) -> dict[str, Any]:
    """sample.count and evaluate.teacher_nfe that fit: many images before many evaluations."""
    for nfe, least in (([17, 35], 5000), ([17], 2000), ([9], 100)):
        each = sum(nfe) + sum(flow_steps)
        count = int((0.7 * seconds * evaluations - batch * each) / each)  # a batch warms each sampler up
        if count >= least:
            break
    return {"sample.count": max(100, min(10_000, count)), "evaluate.teacher_nfe": nfe}
