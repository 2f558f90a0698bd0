"""`python -m pipeline.tools.teacher_start`: where a flow of a public teacher starts best, for docs/teachers.md.

A DDPM of diffusers learns the digits; flows that start from it in several ways learn its paths of `ve`. The figure is
the root mean square distance between one step from t_max and the path's end, on paths that training has not seen. One
run each, on one CPU core some minutes; the last digits depend on the machine.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ifm import dynamics, losses
from ifm.adapters import folder as folders
from ifm.adapters.network import FLOW_CEILING, FLOW_TOP, AdaptedNetwork
from ifm.dynamics.base import Dynamics
from ifm.files import write_text
from ifm.model import Teacher, build_flow
from ifm.networks import build_network
from ifm.networks.base import Network
from ifm.networks.unet import UNet
from ifm.random import EndlessShuffle, Streams
from ifm.solver import at_time, solve_ode
from pipeline.tools.stand_ins import descend, train_ddpm

PAGE, MARK = Path("docs/teachers.md"), "<!-- python -m pipeline.tools.teacher_start -->"
SHAPE, T_MAX, SIGMA_DATA = (1, 8, 8), 20.0, 0.5
# In units of sigma_data: the level above which the flow's network is asked at lower ones, and what these rise to.
# Or the name of a network in EDM's form, and whether it learns the public denoiser first.
STARTS: dict[str, tuple[float, float] | tuple[str, bool] | None] = {
    "public weights, asked at every level": None,
    "up to 5 s_d, then up to 10": (5.0, 10.0),
    "up to 5 s_d, then the same": (5.0, 5.0),
    "up to 2.5 s_d, then up to 5 (this is `flow.init: teacher`)": (FLOW_TOP, FLOW_CEILING),
    "up to 1.2 s_d, then up to 2.4": (1.2, 2.4),
    "public weights in EDM's form, which learned the denoiser first": ("public", True),
    "a new network, which learned the denoiser first": ("new", True),
    "a new network (`flow.init: scratch`)": ("new", False),
}
UNET = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """How much is trained and measured."""

    ddpm_steps: int = 800
    denoiser_steps: int = 350  # of a network that learns the public denoiser first
    paths: int = 1200
    new_paths: int = 300
    solver_steps: int = 18
    batch_size: int = 64
    lr: float = 1e-3
    after: tuple[int, ...] = (0, 50, 150, 350)


def measure(budget: Budget, *, say: Callable[[str], None] = print) -> list[tuple[str, list[float]]]:
    """Of each start the distance after each number of steps."""
    from diffusers import UNet2DModel
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images.astype(np.float32)).unsqueeze(1) / 8 - 1
    ve = dynamics.build("ve", t_max=T_MAX, sigma_data=SIGMA_DATA)
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        public = train_ddpm(UNet2DModel(**UNET), digits, Path(place) / "ddpm", steps=budget.ddpm_steps)
        found = folders.find(public, named="the DDPM")
        network = folders.read(found, shape=SHAPE, sigma_data=SIGMA_DATA, clock=ve.clock)
    pairs = _pairs(Teacher(network, ve), ve, budget)
    rows = []
    for name, start in STARTS.items():
        torch.manual_seed(0)
        if start is None or isinstance(start[0], float):
            top, ceiling = (None, None) if start is None else (level * SIGMA_DATA for level in start)
            made = network.for_flow(takes_anchor=False, top=top, ceiling=ceiling)
        else:
            made = _in_edms_form(network if start[0] == "public" else None)
            if start[1]:
                _learn_denoiser(Teacher(made, ve), Teacher(network, ve), digits, budget)
        rows.append((name, _distances(made, ve, pairs, budget)))
        say(f"{name}: {', '.join(f'{value:.3f}' for value in rows[-1][1])}")
    return rows


def _pairs(teacher: Teacher, ve: Dynamics, budget: Budget) -> tuple[Tensor, Tensor]:
    """(x_T, the path's end) of all paths, those for training first."""
    members = range(budget.paths + budget.new_paths)
    x_T = ve.prior(SHAPE, generator=Streams(0, "trajectory", members))
    times = ve.solver_times(budget.solver_steps)
    ends = [solve_ode(teacher, part, dynamics=ve, times=times) for part in x_T.split(250)]
    return x_T, torch.cat(ends)


def _in_edms_form(public: AdaptedNetwork | None) -> Network:
    """F itself: of params.yaml's size with new weights, or the public model, which knows nothing of F and its times."""
    if public is not None:
        return UNet(copy.deepcopy(public.model))
    how = {"channels": [24, 32, 64], "layers_per_block": 1, "attention": [False] * 3, "dropout": 0.0, "norm_groups": 8}
    return build_network(kind="unet", shape=SHAPE, takes_anchor=False, **how)


def _learn_denoiser(made: Teacher, public: Teacher, digits: Tensor, budget: Budget) -> None:
    """Regression on the public model's x_0_hat at the states of data, by the teacher's own loss and law of times."""
    optimizer = torch.optim.AdamW(made.train().parameters(), lr=budget.lr)
    order = EndlessShuffle(len(digits), budget.batch_size, seed=0)
    ve = made.dynamics
    for step in range(budget.denoiser_steps):
        draws = Streams(0, "noise", range(budget.batch_size), step=step)
        t = ve.draw_time(generator=draws)
        x_t = ve.perturb(digits[torch.from_numpy(order.batch(step))], z=ve.draw_noise(SHAPE, generator=draws), t=t)
        with torch.no_grad():
            target = public(x_t, t)
        descend(losses.denoising(made(x_t, t), x_0=target, scale=ve.error_scale(t)), made, optimizer)


def _distances(network: torch.nn.Module, ve: Dynamics, pairs: tuple[Tensor, Tensor], budget: Budget) -> list[float]:
    """Before training and after some numbers of steps of it, on the paths that training does not see."""
    flow = build_flow(network, ve, scheme="edm", takes_anchor=False).train()
    optimizer = torch.optim.AdamW(flow.parameters(), lr=budget.lr)
    order = EndlessShuffle(budget.paths, budget.batch_size, seed=0)
    x_T, x_0 = pairs
    found = []
    for step in range(max(budget.after) + 1):
        if step in budget.after:
            with torch.no_grad():
                far = flow.eval()(x_T[budget.paths :], at_time(x_T[budget.paths :], T_MAX), x_anchor=None)
            found.append(float((far - x_0[budget.paths :]).square().mean().sqrt()))
            flow.train()
        rows = torch.from_numpy(order.batch(step))
        x_0_hat = flow(x_T[rows], at_time(x_T[rows], T_MAX), x_anchor=None)
        descend(losses.pseudo_huber(x_0_hat, x_0[rows]).mean(), flow, optimizer)
    return found


def table(rows: Sequence[tuple[str, Sequence[float]]], after: Sequence[int]) -> str:
    """Markdown."""
    heads = ["before" if n == 0 else f"after {n} steps" if i == 1 else f"after {n}" for i, n in enumerate(after)]
    lines = [f"| start | {' | '.join(heads)} |", "|" + "---|" * (1 + len(heads))]
    lines += [f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |" for name, values in rows]
    return "\n".join(lines)


def put(text: str, made: str) -> str:
    """The page's text with the table behind the mark. Raises ValueError where there is no mark."""
    before, mark, after = text.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE} has no line {MARK}")
    rest = after.lstrip("\n").split("\n\n", 1)[1]
    return f"{before}{mark}\n\n{made}\n\n{rest}"


def main() -> None:
    """Prints the table; with --docs it goes into docs/teachers.md."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tools.teacher_start", description=main.__doc__)
    parser.add_argument("--docs", action="store_true", help=f"write it into {PAGE}")
    given, budget = parser.parse_args(), Budget()
    made = table(measure(budget), budget.after)
    if given.docs:
        write_text(PAGE, put(PAGE.read_text(encoding="utf-8"), made))
    print(made)


if __name__ == "__main__":
    main()
