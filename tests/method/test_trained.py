"""What must hold of trained networks: teacher, paths and flow of the points preset, by the stages' own functions."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from ifm import anchors, config, dynamics
from ifm.data.laws import draw_points, gaussian_moments, mode_centres
from ifm.exact import gaussian_flow_map
from ifm.hardware.processes import make_accelerator
from ifm.metrics.points import nearest_shares, sliced_wasserstein
from ifm.model import Teacher, build_flow
from ifm.networks import build_network
from ifm.objectives.consistency import consistency_phase
from ifm.objectives.interval import interval_phase
from ifm.objectives.pairs import mean_over_reference
from ifm.objectives.trajectory import trajectory_phase
from ifm.random import Streams
from ifm.sampling import draw_samples, flow_sampler, teacher_sampler
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings
from ifm.training.teacher import train_teacher
from ifm.trajectories import StoredTrajectories, generate, stored_times
from pipeline.studies.objectives import COMPARED
from pipeline.tools import preset
from tests.support.exact import GaussianDenoiser

SHAPE, SAMPLES = (2,), 20_000
CENTRAL = 2 * np.log(100)  # 99 % of N(0, I_2) has |z|^2 below it


def points_preset(objective="trajectory", seed=0, **changes):
    """The preset `points`, with other values by dotted name (`__` for the dot)."""
    text = (Path(__file__).parents[2] / "params.yaml").read_text()
    values = preset.parse_yaml(preset.apply("points", text, objective=objective)) | {"seed": seed}
    for dotted, value in changes.items():
        section, key = dotted.split("__")
        values[section][key] = value
    return config.parse(values)


def train_one_teacher(chosen, name, law, *, count):
    """What the stage teacher does, on points of the law."""
    data = draw_points(law, count=count, dimensions=2, seed=0).points.astype(np.float32)
    accelerator = make_accelerator("no", seed=chosen.seed)
    network = build_network(shape=SHAPE, takes_anchor=False, **chosen.network.model_dump())
    teacher = Teacher(network, dynamics.of_params(name, chosen.ode))
    settings = TrainSettings.from_config(chosen.teacher)
    train_teacher(accelerator, teacher, data, settings=settings, random_flip=False, seed=chosen.seed)
    return teacher.cpu()


def policy_of(chosen):
    keys = ("self_probability", "reset_probability")
    return anchors.build(chosen.anchor.policy, make_bank=None, **{key: getattr(chosen.anchor, key) for key in keys})


def train_flow_on(chosen, denoiser, d, *, work):
    """What the stages trajectories and flow do; the flow starts from the denoiser's network where it has one."""
    accelerator = make_accelerator("no", seed=chosen.seed)
    if isinstance(denoiser, Teacher):
        denoiser.to(accelerator.device)
    solve = chosen.trajectories.model_dump(exclude={"store", "precision"})
    shards = generate(accelerator, denoiser, d, shape=SHAPE, seed=chosen.seed, work=work, **solve)
    states = np.concatenate([np.load(shard) for shard in shards])  # float16 [n, K - 1, 2]
    start = {"shape": SHAPE, "seed": chosen.seed, "device": accelerator.device}
    paths = StoredTrajectories(states, d, times=stored_times(d, solve), **start)
    policy = policy_of(chosen)
    network = build_network(shape=SHAPE, takes_anchor=policy.takes_anchor, **chosen.network.model_dump())
    if isinstance(denoiser, Teacher):
        network.start_from(denoiser.cpu().network)
    flow = build_flow(network, d, scheme=chosen.flow.scheme, takes_anchor=policy.takes_anchor)
    phase = trajectory_phase(
        accelerator,
        flow,
        paths,
        t_max_share=chosen.flow.t_max_share,
        distance=chosen.flow.distance,
        huber_c=chosen.flow.huber_c,
        weighting=chosen.flow.time_weight,
    )
    settings = TrainSettings.from_config(chosen.flow)
    train_flow(accelerator, flow, [phase], policy=policy, settings=settings, seed=chosen.seed)
    return flow.cpu()


def draw(sampler, d):
    """The sampler's points from the same prior draws as every other's: float32 [SAMPLES, 2]."""
    return draw_samples(
        sampler, dynamics=d, shape=SHAPE, count=SAMPLES, batch_size=5000, seed=0, device=torch.device("cpu")
    ).images


# The quick one is the one whose prior is no Gaussian; ve trains in test_one_step_is_a_gaussians_flow_map too.
BEYOND = {name: pytest.mark.slow for name in ("ve", "rf", "vp", "trig")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=BEYOND.get(name, ())) for name in dynamics.DYNAMICS])
def test_one_step_is_as_near_to_eight_gaussians_as_the_teachers_32_heun_steps(name, tmp_path):
    """Sliced 2-Wasserstein to fresh points of the law within 1.2 times the teacher's, every mode within 30 % of 1/8.

    From the same 20,000 prior draws, against the same 40,000 points.
    """
    chosen = points_preset()
    teacher = train_one_teacher(chosen, name, "eight_gaussians", count=8000)
    flow = train_flow_on(chosen, teacher, teacher.dynamics, work=tmp_path)
    law = draw_points("eight_gaussians", count=2 * SAMPLES, dimensions=2, seed=1).points
    one_step = draw(flow_sampler(flow, kind="one_step", steps=1), flow.dynamics)
    solved = draw(teacher_sampler(teacher, nfe=63), flow.dynamics)
    of_flow, of_teacher = (sliced_wasserstein(x, law, projections=64) for x in (one_step, solved))
    shares = 8 * nearest_shares(one_step, mode_centres())
    print(
        f"{name}: flow {of_flow:.4f}, teacher {of_teacher:.4f}, shares {shares.min():.3f} to {shares.max():.3f} of 1/8"
    )
    assert of_flow <= 1.2 * of_teacher
    assert shares == pytest.approx(np.ones(8), abs=0.3)


@pytest.mark.parametrize("name", ["ve", pytest.param("rf", marks=pytest.mark.slow)])
def test_one_step_is_a_gaussians_flow_map(name, tmp_path):
    """g(x_T, t_max) within 3 % of the closed form over the prior's central 99 %: rms of the error over rms of the map.

    The paths are the closed-form denoiser's, not a trained teacher's, and the flow starts from nothing: on a trained
    teacher's paths rf's flow is 3.03 % off, because that teacher is (3.02 %; between the two lie 0.25 %). 64 steps,
    as the preset's 18 leave ve's paths themselves 3 % off on EDM's grid.
    """
    chosen = points_preset(trajectories__solver_steps=64)
    d = dynamics.of_params(name, chosen.ode)
    mu, s = (torch.from_numpy(v) for v in gaussian_moments(2))
    flow = train_flow_on(chosen, GaussianDenoiser(d, mu=mu.float(), s=s.float()), d, work=tmp_path)

    x_T = d.prior(SHAPE, generator=Streams(0, "prior", range(SAMPLES)))
    x_T = x_T[(x_T / d.t_max).square().sum(dim=1) < CENTRAL]
    t = torch.full((len(x_T),), d.t_max)
    with torch.no_grad():
        found = flow(x_T, t, x_anchor=Streams(0, "anchor", range(len(x_T))).normal(SHAPE)).double()
    exact = gaussian_flow_map(d, x_T.double(), t.double(), mu=mu, s=s)
    error = (found - exact).norm(dim=1) / exact.square().sum(dim=1).mean().sqrt()
    rms, largest = error.square().mean().sqrt().item(), error.max().item()
    print(f"{name}: rms {100 * rms:.2f} %, max {100 * largest:.2f} %")
    assert rms < 0.03


def train_free(chosen, name, objective):
    """What the stage flow does for `interval` and `consistency`, without a teacher."""
    data = draw_points("eight_gaussians", count=8000, dimensions=2, seed=0).points.astype(np.float32)
    accelerator, d = make_accelerator("no", seed=chosen.seed), dynamics.of_params(name, chosen.ode)
    policy, two_times = policy_of(chosen), objective == "interval"
    network = build_network(
        shape=SHAPE, takes_anchor=policy.takes_anchor, two_times=two_times, **chosen.network.model_dump()
    )
    flow = build_flow(network, d, scheme="edm", two_times=two_times, takes_anchor=policy.takes_anchor)
    pairs = {"random_flip": False, "batch_size": chosen.flow.batch_size, "seed": chosen.seed}
    mean = mean_over_reference(accelerator, d, data, size=chosen.flow.reference_batch, **pairs)
    if two_times:
        phase = interval_phase(accelerator, flow, data, mean=mean, **chosen.flow.interval.model_dump(), **pairs)
    else:
        compare = {"distance": chosen.flow.distance, "huber_c": chosen.flow.huber_c}
        options = {
            "intervals": (chosen.flow.consistency.first_intervals, chosen.flow.consistency.last_intervals),
            "target": chosen.flow.consistency.target,
        }
        phase = consistency_phase(accelerator, flow, data, mean=mean, **options, **compare, **pairs)
    train_flow(
        accelerator, flow, [phase], policy=policy, settings=TrainSettings.from_config(chosen.flow), seed=chosen.seed
    )
    return flow.cpu()


@functools.cache
def distance_of_teacher(name, seed):
    """Of 32 Heun steps of a teacher trained with the whole budget, all that a flow without one takes."""
    chosen = points_preset(seed=seed, teacher__steps=COMPARED["points"]["teacher.steps"])
    teacher = train_one_teacher(chosen, name, "eight_gaussians", count=8000)
    return distance_to_law(draw(teacher_sampler(teacher, nfe=63), teacher.dynamics))


def distance_to_law(points):
    law = draw_points("eight_gaussians", count=2 * SAMPLES, dimensions=2, seed=1).points
    return sliced_wasserstein(points, law, projections=64)


def ratios_without_a_teacher(name, objective, seed):
    """Sliced 2-Wasserstein in one and in two evaluations, over the teacher's in 32 Heun steps."""
    flow = train_free(points_preset(objective, seed=seed), name, objective)
    several = "chain" if objective == "interval" else "renoise"
    of_flow = [
        draw(flow_sampler(flow, kind=kind, steps=n), flow.dynamics) for kind, n in (("one_step", 1), (several, 2))
    ]
    found = [distance_to_law(points) / distance_of_teacher(name, seed) for points in of_flow]
    print(f"{objective} {name} seed {seed}: {found[0]:.3f}, {found[1]:.3f} of {distance_of_teacher(name, seed):.4f}")
    return found


@pytest.mark.slow
def test_interval_without_a_teacher_is_as_near_as_the_teacher():
    one, two = ratios_without_a_teacher("ve", "interval", seed=0)
    assert one <= 1.3
    assert two <= 1.1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(dynamics.DYNAMICS))
@pytest.mark.parametrize(("objective", "most"), [("interval", (1.3, 1.1)), ("consistency", (2.0, 2.0))])
def test_without_a_teacher_over_three_seeds(name, objective, most):
    """The mean over three seeds of the ratio to a teacher of the same budget."""
    ratios = np.mean([ratios_without_a_teacher(name, objective, seed) for seed in range(3)], axis=0)
    assert ratios[0] <= most[0]
    assert ratios[1] <= most[1]
