"""`make objectives`: equal budgets, counted as they are spent, and a page whose figures are the table's."""

import copy
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from ifm import anchors, dynamics
from ifm.config import parse
from ifm.model import Teacher, build_flow
from ifm.networks import build_network
from ifm.objectives import of
from ifm.objectives.consistency import consistency_phase
from ifm.objectives.data import data_phase
from ifm.objectives.interval import interval_phase
from ifm.objectives.trajectory import trajectory_phase
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings
from ifm.trajectories import StoredTrajectories
from pipeline.studies import objectives, study
from pipeline.studies.experiments import DvcExperiments
from pipeline.studies.objectives import STUDY
from pipeline.studies.pages import objectives as objectives_page
from pipeline.studies.study import plan
from pipeline.tools import params_file, preset
from tests.support import warm
from tests.support.studies import FakeExperiments, arguments, results_of

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text()
NAMES = [variant.name for variant in STUDY.variants]
WITH_TEACHER = {variant.name: variant.with_teacher for variant in STUDY.variants}
GRAPH = study.read_graph(ROOT / "dvc.yaml")


def config_of(name, objective, **changes):
    values = copy.deepcopy(values_of(name, objective))
    for dotted, value in changes.items():
        params_file.set_value(values, dotted.replace("__", "."), value)
    return parse(values)


@cache
def values_of(name, objective):
    return preset.parse_yaml(preset.apply(name, TEXT, objective=objective))


# --- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["points", "digits", "digits-long"])
def test_every_objective_has_the_same_budget(name):
    """Within 3 % of what the preset's teacher, paths and flow take."""
    whole = objectives.evaluations(config_of(name, "trajectory"))
    for objective in NAMES:
        config = config_of(name, objective)
        assert objectives.evaluations(config) == pytest.approx(whole, rel=0.03)
        assert objectives.needs_teacher(config) == WITH_TEACHER[objective]
    compared = objectives.COMPARED.get(name, {}).get("teacher.steps")
    if compared:
        assert compared * config_of(name, "trajectory").teacher.batch_size == pytest.approx(whole, rel=0.03)


def test_the_defaults_budget_by_hand():
    config = config_of("digits", "trajectory")
    assert objectives.teacher_evaluations(config) == 800 * 64
    assert objectives.flow_evaluations(config) == 1960 * 64 * 1.25  # a quarter takes the anchor's extra pass
    assert objectives.evaluations(config) == 800 * 64 + 5000 * 17 + 1960 * 64 * 1.25
    config = config_of("digits", "interval")
    assert objectives.evaluations(config) == 2290 * 64 * (1 + 2 * 0.5)
    config = config_of("digits", "consistency", flow__velocity="teacher", teacher__kind="network")
    assert objectives.evaluations(config) == 2030 * 64 * (2 + 2 + 0.25) + 800 * 64


GUIDED = {"condition__kind": "class", "guidance__kind": "cfg", "guidance__scale": 2.0, "teacher__kind": "network"}


@pytest.mark.parametrize(
    ("objective", "velocity", "per_step", "by_teacher"),
    [
        ("data", "reference", 1 + 2, True),  # the teacher's D_c and D_0
        ("data", "teacher", 1 + 2, True),
        ("consistency", "reference", 2 + 2 * 2 + 0.25, True),
        ("consistency", "teacher", 2 + 2 * 2 + 0.25, True),
        ("interval", "teacher", 1 + 2 * 0.5 + 2, True),
        ("interval", "reference", 1 + 2 * 0.5 + 1, False),  # the flow's own velocity without a class
        ("interval", "pair", 1 + 2 * 0.5 + 1, False),
    ],
)
def test_guidance_is_counted(objective, velocity, per_step, by_teacher):
    config = config_of("digits", objective, flow__velocity=velocity, **GUIDED)
    assert objectives.flow_evaluations(config) == config.flow.steps * config.flow.batch_size * per_step
    assert objectives.needs_teacher(config) == by_teacher


def test_a_guided_path_costs_twice():
    plain, guided = (config_of("digits", "trajectory", **how) for how in ({}, GUIDED))
    assert objectives.evaluations(guided) - objectives.evaluations(plain) == 5000 * 17


POINTS = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)


@pytest.mark.parametrize("velocity", ["reference", "teacher"])
@pytest.mark.parametrize("objective", ["trajectory", "consistency", "interval", "data", "trajectory-consistency"])
def test_evaluations_are_counted_as_they_are_spent(objective, velocity):
    """Against hooks that count the samples going through the networks; a derivative's pass is seen as one."""
    steps, batch = 4, 16
    config = config_of(
        "points", objective, flow__steps=steps, flow__batch_size=batch, flow__velocity=velocity, teacher__kind="network"
    )
    d, seen = dynamics.build("ve"), []

    def counted(network):
        network.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
        return network

    self_anchor = config.anchor.policy == "self"
    policy = anchors.SelfAnchor(config.anchor.self_probability) if self_anchor else anchors.NoiseAnchor()
    two_times = objective == "interval"
    network = build_network(shape=(2,), takes_anchor=True, two_times=two_times, **config.network.model_dump())
    flow = build_flow(counted(network), d, scheme="edm", two_times=two_times, takes_anchor=True)
    teacher = Teacher(counted(build_network(shape=(2,), takes_anchor=False, **config.network.model_dump())), d)
    accelerator, pairs = Accelerator(cpu=True), {"random_flip": False, "batch_size": batch, "seed": 1}
    compare = {"distance": "pseudo_huber", "huber_c": None}
    mean = (lambda step: teacher) if velocity == "teacher" else None
    times, start = torch.tensor([80.0, 1.0, 0.0]), {"shape": (2,), "seed": 1, "device": accelerator.device}
    paths = StoredTrajectories(np.zeros((64, 2, 2), np.float16), d, times=times, **start)
    phases = {
        "trajectory": lambda: trajectory_phase(accelerator, flow, paths, t_max_share=0.5, **compare),
        "data": lambda: data_phase(accelerator, flow, POINTS, **compare, **pairs),
        "consistency": lambda: consistency_phase(
            accelerator, flow, POINTS, intervals=(8, 8), target="average", mean=mean, **compare, **pairs
        ),
        "interval": lambda: interval_phase(
            accelerator, flow, POINTS, mean=mean, **config.flow.interval.model_dump(), **pairs
        ),
    }
    settings = TrainSettings.from_config(config.flow)
    train_flow(accelerator, flow, [phases[o]() for o in of(config.flow)], policy=policy, settings=settings, seed=1)
    derivatives = steps * batch * (1 - config.flow.interval.same_share) if two_times else 0
    assert sum(seen) + derivatives == objectives.flow_evaluations(config)


# --- table and page -------------------------------------------------------------------------------------------------


class Recorded(FakeExperiments):
    """With the stages' run.json."""

    def records(self, name):
        task = self.jobs[name]
        timings = {"flow": 30.0, "teacher": 20.0}
        made = {f"{s}-{d}": {"timings": {"train_seconds": t}} for s, t in timings.items() for d in task.dynamics}
        made |= {f"trajectories-{d}": {"timings": {"stage_seconds": 10.0}} for d in task.dynamics}
        for d in task.dynamics:
            made[f"flow-{d}"]["memory"] = {"peak_memory_mb": 640.0}
        return made


def test_the_command_writes_table_and_page(checkout):
    runner = Recorded(polls=1)
    assert study.run_study(STUDY, arguments(), runner) == 0
    table = pd.read_csv("reports/objectives.csv")
    assert tuple(table.columns) == objectives.COLUMNS
    assert not table.duplicated(list(objectives.KEY_COLUMNS)).any()
    assert table.objective.unique().tolist() == NAMES
    one = table[(table.dynamics == "ve") & (table.seed == 0) & (table.steps == 1)].set_index("objective")
    assert one.train_seconds.to_dict() == {
        "trajectory": 60, "trajectory-consistency": 60, "consistency": 30, "interval": 30, "data": 30,
    }  # fmt: skip
    assert (one.peak_memory_mb == 640).all()
    assert one.loc["interval", "teacher_evaluations"] == 4600 * 256  # with the whole budget, to compare with
    assert one.loc["trajectory", "teacher_evaluations"] == 1000 * 256
    page = (checkout / "reports/objectives.html").read_text()
    assert page.count("<h3>") == 3
    assert page.count('<th scope="row">') == 15
    assert "http" not in page.replace("http://www.w3.org", "")
    # One objective again: its rows alone are replaced.
    assert study.run_study(STUDY, arguments(only=["data"], set=["flow.steps=5"]), runner) == 0
    again = pd.read_csv("reports/objectives.csv")
    assert len(again) == len(table)
    assert set(again[again.objective == "data"].train_steps) == {5}


def test_the_page_has_the_tables_means_and_the_longest_trained_teacher():
    tasks, _ = plan(STUDY, ["points"], [0, 1, 2], text=TEXT, graph=GRAPH, code="c0de")
    found = [
        row
        for task in tasks
        for row in study.rows(task, results_of(task, lambda task, d, nfe: 0.1 + 0.01 * task.seed), {})
    ]
    table = pd.DataFrame(found, columns=list(objectives.COLUMNS))
    mine = table[table.dynamics == "rf"]
    estimate = objectives_page.at_steps(mine, "interval", 1, "sliced_wasserstein", several="chain")
    assert (estimate.mean, estimate.seeds) == (pytest.approx(0.11), 3)
    assert str(estimate) == "0.110 ± 0.010"
    mine.loc[mine.objective == "trajectory", "teacher_sliced_wasserstein"] = 9.0  # trained for a fifth of the budget
    assert objectives_page.teacher(mine, "sliced_wasserstein").mean == pytest.approx(0.055)
    with pytest.raises(ValueError, match="no rows"):
        STUDY.render(table[:0], missing=[], commit="c", created="now")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_records_of_an_experiment_come_from_dvcs_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def run(*words):
        subprocess.run(words, check=True, capture_output=True)

    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    dvc = (warm.python(), "-m", "dvc")
    run("git", "init", "-q")
    run(*dvc, "init", "-q")
    write = 'mkdir -p reports/runs && echo \'{"timings": {"train_seconds": 7}}\' > reports/runs/flow-ve.json'
    stage = {"flow": {"cmd": write, "outs": ["reports/runs/flow-ve.json"]}}
    Path("dvc.yaml").write_text(json.dumps({"stages": stage}))
    run(*dvc, "repro", "-q")
    run("git", "add", "-A")
    run("git", *identity, "commit", "-qm", "start")
    run("git", "update-ref", "refs/exps/ab/cdef/objectives-points-x", "HEAD")
    shutil.rmtree("reports")
    kept, name = DvcExperiments("objectives-", tmp_path), "objectives-points-x"
    assert kept.finished() == {name}
    assert kept.records(name) == {"flow-ve": {"timings": {"train_seconds": 7}}}
    shutil.rmtree(".dvc/cache")
    assert kept.records(name) == {}
    kept.forget([name])
    assert kept.finished() == set()
