"""`ifm sweep`: what it reads, makes once and does with failures, and how it ranks. test_sharing.py runs one."""

import math
import os
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from ifm.config import ConfigError, read_params
from ifm.errors import UserError
from pipeline.runner.slots import slots
from pipeline.studies import shared, sweep, workers
from pipeline.studies.axes import Range, column, corners, grid, read_axes, slug
from pipeline.studies.experiments import last_lines
from pipeline.studies.pages import sweep as sweep_page
from pipeline.studies.ranking import Measure
from pipeline.studies.search import search
from pipeline.studies.sweep import Plan
from pipeline.studies.workers import Job, Pool
from pipeline.tools import preset
from tests.support import warm
from tests.support.pages import Page
from tests.support.studies import FakeExperiments, engine, pool

ROOT = Path(__file__).parents[2]
BASE = read_params(ROOT / "params.yaml")
GRAPH = shared.read_graph(ROOT / "dvc.yaml")
FID = Measure("fid", "one_step", None)


def plan(seeds=(0,), measure=FID, base=BASE) -> Plan:
    return Plan(base, GRAPH, "c0de", tuple(seeds), measure)


def trials(*words, **options):
    made = plan(**options)
    return [made.trial(values) for values in grid(read_axes(words))]


def test_a_scale_that_the_flow_takes_trains_nothing_anew():
    base = preset.parse_yaml(preset.apply("digits-classes", (ROOT / "params.yaml").read_text(encoding="utf-8")))
    low, high, beyond = (trial.runs[0] for trial in trials("guidance.scale=1.0,3.0,8.0", base=base))
    assert (low.settings, high.settings) == ({"sample.guidance": 1.0}, {"sample.guidance": 3.0})
    assert set(beyond.settings) == {"guidance.scale"}
    assert (beyond.config.guidance.scale, beyond.config.sample.guidance) == (8.0, None)
    assert low.config.guidance.scale == [1.0, 4.0]
    keys = [{name: run.nodes[name].key for name in ("flow@ve", "sample@ve")} for run in (low, high, beyond)]
    assert keys[0]["flow@ve"] == keys[1]["flow@ve"] != keys[2]["flow@ve"]
    assert len({key["sample@ve"] for key in keys}) == 3


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_axes_are_read_as_yaml():
    found = read_axes(
        ["flow.lr=1e-4,3e-4", "dynamics=[rf],[ve,rf]", "flow.huber_c=null,0.1", "data.name='a,b',c", "teacher.steps=5"]
    )
    assert found == {
        "flow.lr": (1e-4, 3e-4), "dynamics": (["rf"], ["ve", "rf"]), "flow.huber_c": (None, 0.1),
        "data.name": ("a,b", "c"), "teacher.steps": (5,),
    }  # fmt: skip
    assert read_axes(["flow.lr=1e-4..1e-2:log", "flow.steps=10..20"]) == {
        "flow.lr": Range(1e-4, 1e-2, True), "flow.steps": Range(10, 20),
    }  # fmt: skip
    assert len(list(grid(found))) == 2 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("flow.lr", "-S flow.lr: must be key=value,value"),
        ("flow.lr=1e-4,1e-4", "-S flow.lr=1e-4,1e-4: a value is there twice"),
        ("flow.lr=1..0.1", "a range goes from a lower number to a higher one"),
        ("flow.lr=0..1:log", "a logarithmic range is above 0"),
        ("dynamics=[rf,[", "is no YAML"),
        ("flow.lr=1e-4,", "-S flow.lr=1e-4,: a value is missing at the end"),
        ("flow.lr= ", "-S flow.lr= : a value is missing at the end"),
        ("flow.lr=1e-4,,1e-3", "is no YAML"),
        ("flow.lr=1]: [2", "is no YAML"),
        ("seed=1,2", "use --seeds 1,2"),
    ],
)
def test_a_word_that_cannot_be_read_is_named(word, said):
    with pytest.raises(UserError, match=re.escape(said)):
        read_axes([word])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("flow.lrr=1,2", "-S flow.lrr: params.yaml has no flow.lrr"),
        ("flow.lr=1e-4,x", "-S flow.lr=x: flow.lr = 'x': input should be a valid number"),
        ("anchor.policy=self,bnk", "-S anchor.policy=bnk: anchor.policy = 'bnk' is not allowed; allowed: 'none'"),
        ("flow.schedule=data_only,mixed", "-S flow.schedule=mixed: flow: schedule: mixed needs objective: data alone"),
    ],
)
def test_every_combination_is_checked(word, said):
    with pytest.raises((UserError, ConfigError), match=re.escape(said)):
        trials(word)


def test_what_is_ranked_by_must_be_there():
    with pytest.raises(UserError, match=r"--metric energy_distance: data\.source: digits has fid, kid"):
        trials("flow.lr=1", measure=Measure("energy_distance", "one_step", None))
    with pytest.raises(UserError, match=r"renoise at 3 evaluations: is not sampled; see sample\.flow_samplers"):
        trials("flow.lr=1", measure=Measure("fid", "renoise", 3))
    config = trials("flow.lr=1")[0].runs[0].config
    assert [Measure("fid", s, None).steps(config) for s in ("one_step", "selected", "heun")] == [1, 8, 35]


def test_experiments_are_named_by_what_decides_their_results():
    (one,), (other,) = (t.runs for t in trials("flow.lr=1e-4,3e-4"))
    assert re.fullmatch(r"sweep-lr-0\.0001-s0-[0-9a-f]{10}", one.name)
    assert one.settings == {"flow.lr": 1e-4}
    assert one.targets == ()  # the whole graph, so that it can be applied
    assert one.name != other.name
    assert trials("flow.lr=1e-4")[0].runs[0].name == one.name
    (same,) = Plan(BASE, GRAPH, "other", (0,), FID).trial({"flow.lr": 1e-4}).runs
    assert same.name != one.name
    for value in ("a..b", "x.lock", "~^: ?*[\\", "-"):
        name = slug({"data.name": value})
        done = subprocess.run(["git", "check-ref-format", f"refs/exps/aa/bb/sweep-{name}-s0-ab"], check=False)
        assert done.returncode == 0, name


# --- what is shared ---------------------------------------------------------------------------------------------------


def test_only_stages_whose_params_and_inputs_are_equal_are_shared():
    runs = [
        run
        for trial in trials("flow.lr=1,2", seeds=(0, 1), base=BASE | {"dynamics": ["ve", "rf"]})
        for run in trial.runs
    ]
    groups = shared.shared([run.nodes for run in runs])
    assert groups[0] == ([0, 1, 2, 3], ["fetch", "preprocess", "reference"])
    assert sorted(groups[1:]) == [
        ([0, 2], ["teacher@rf", "trajectories@rf"]), ([0, 2], ["teacher@ve", "trajectories@ve"]),
        ([1, 3], ["teacher@rf", "trajectories@rf"]), ([1, 3], ["teacher@ve", "trajectories@ve"]),
    ]  # fmt: skip
    one = [
        run.nodes
        for trial in trials("evaluate.kid_subsets=5,6", base=BASE | {"dynamics": ["rf"]})
        for run in trial.runs
    ]
    ((who, stages),) = shared.shared(one)
    assert who == [0, 1]
    assert set(stages) == {f"{s}@rf" for s in ("teacher", "trajectories", "flow", "select", "sample", "diagnose")} | {
        "fetch", "preprocess", "reference",
    }  # fmt: skip


def test_a_stage_is_made_with_all_above_it():
    nodes = trials("flow.lr=1")[0].runs[0].nodes
    made = shared.keys(shared.needed(nodes, ["flow@rf"]))
    above = {"fetch", "preprocess", "teacher@rf", "trajectories@rf", "flow@rf"}
    assert made == {nodes[name].key for name in above}
    assert len(shared.keys(shared.needed(nodes, []))) == len(nodes) == 5 + 3 * 7


# --- running ----------------------------------------------------------------------------------------------------------


def job(name, makes, *, is_shared=False):
    return Job(name, name, {}, frozenset(makes), (), is_shared)


JOBS = [
    job("data", "d", is_shared=True), job("t0", ["d", "t0"], is_shared=True), job("t1", ["d", "t1"], is_shared=True),
    *(job(f"{t}-{i}", ["d", t, f"{t}-{i}"]) for t in ("t0", "t1") for i in range(2)),
]  # fmt: skip


def test_no_two_jobs_that_run_would_make_the_same_stage():
    runner = FakeExperiments()
    one = pool(runner, count=3)
    one.run(JOBS)
    assert one.failed == {}
    assert runner.done == {j.name for j in JOBS}
    assert runner.started[:3] == ["data", "t0", "t1"]
    assert {"t0", "t1"} in runner.beside
    assert max(map(len, runner.beside)) == 3
    assert {e["CUDA_VISIBLE_DEVICES"] for e in runner.environments} == {"0", "1", "2"}


def test_without_a_shared_job_the_first_goes_alone():
    runner = FakeExperiments()
    pool(runner).run([j for j in JOBS if not j.shared][:2])
    assert runner.beside == [{"t0-0"}, {"t0-1"}]


def test_what_is_finished_is_not_run_and_needs_no_shared_job():
    runner = FakeExperiments()
    runner.done = {"t0-0"}
    pool(runner).run([j for j in JOBS if "t1" not in j.name])
    assert runner.started == ["t0-1"]


def test_a_failed_shared_stage_is_said_of_all_that_need_it_and_tried_once():
    runner = FakeExperiments(bad={"t0"})
    one = pool(runner)
    one.run(JOBS)
    assert runner.started.count("t0") == 1
    assert one.failed == {
        "t0": "t0 broke", "t0-0": "not run: t0 failed: t0 broke", "t0-1": "not run: t0 failed: t0 broke",
    }  # fmt: skip
    assert {"t1-0", "t1-1"} <= runner.done


def test_what_another_dvc_took_up_is_started_once_more():
    runner = FakeExperiments(taken={"t0-0"})
    one = pool(runner)
    one.run([JOBS[3]])
    assert runner.started == ["t0-0", "t0-0"]
    assert one.failed == {}
    lost = FakeExperiments(bad={"t0-0"}, taken={"t0-0"})
    one = pool(lost)
    one.run([JOBS[3]])
    assert lost.started == ["t0-0", "t0-0"]
    assert one.failed == {"t0-0": "t0-0 broke"}


def test_an_interrupt_ends_what_runs():
    runner = FakeExperiments(polls=50)
    ticks = iter(range(10))

    def sleep(seconds):
        if next(ticks) == 8:
            raise KeyboardInterrupt

    one = Pool(runner, [{}, {}], say=lambda line: None, sleep=sleep)
    with pytest.raises(KeyboardInterrupt):
        one.run([job("a", "a"), job("b", "b")])
    assert [p.stopped for p in runner.processes] == [True, True]


def test_failures_are_kept_and_tried_again_when_asked(tmp_path):
    runner = FakeExperiments()
    runs = [t.runs[0] for t in trials("flow.lr=1,2")]
    names = [run.name for run in runs]

    def without_result(*, retry):
        one = engine(runner, tmp_path)
        one.run(runs, retry=retry)
        return one.collect(runs, lambda run: [])[1]

    runner.bad = {names[1]}
    assert without_result(retry=False) == {names[1]: f"{names[1]} broke"}
    assert without_result(retry=False) == {names[1]: f"{names[1]} broke"}
    assert runner.started == names
    runner.bad = set()
    assert without_result(retry=True) == {}
    assert runner.started == [*names, names[1]]
    assert without_result(retry=False) == {}


def test_what_is_shared_is_made_once_ahead_of_several_workers_and_forgotten(tmp_path):
    runner = FakeExperiments()
    runs = [t.runs[0] for t in trials("flow.lr=1,2,3", base=BASE | {"dynamics": ["rf"]})]
    one = engine(runner, tmp_path, study="sweep", count=2)
    one.run(runs, retry=False)
    shared_one, *others = runner.started
    assert shared_one.startswith("sweep-shared-")
    assert set(others) == {run.name for run in runs}
    assert max(map(len, runner.beside)) == 2
    one.forget_shared()
    assert runner.done == {run.name for run in runs}
    alone = FakeExperiments()
    engine(alone, tmp_path, study="sweep", count=1).run(runs, retry=False)
    assert alone.started == [run.name for run in runs]  # each finds what the one before has made


def test_the_message_is_what_the_stage_said_last():
    log = """Running stage 'fetch':
> python -m pipeline.stages.fetch
Running stage 'flow@rf':
> python -m pipeline.stages.flow rf
flow rf:  10%|█         | 2/20\rflow rf: 100%|██████████| 20/20
tracking: off (IFM_TRACKING)
flow-rf: the loss is not finite at step 12; lower flow.lr

ERROR: failed to reproduce 'flow@rf': failed to run: python -m pipeline.stages.flow rf, exited with 1
"""
    said = last_lines(log)
    assert "; flow-rf: the loss is not finite at step 12; lower flow.lr; ERROR: failed to reproduce 'flow@rf'" in said
    assert said.startswith("flow rf: 100%")
    assert "fetch" not in said
    assert last_lines("") == "no output"


@pytest.mark.parametrize(
    ("visible", "jobs", "found"),
    [
        ("3,5", None, ["3", "5"]),
        ("3,5", 1, [None]),
        ("3", 2, ["3", "3"]),
        ("", None, [None]),
        ("-1", 2, [None, None]),
    ],
)
def test_a_worker_for_each_gpu(visible, jobs, found, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = slots(jobs)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in made] == found
    cores = len(os.sched_getaffinity(0))
    threads = [slot.get("OMP_NUM_THREADS") for slot in made]
    shares = len(made) > 1 and found[0] is None
    assert threads == [str(max(1, cores // len(made))) if shares else None] * len(made)


# --- searching --------------------------------------------------------------------------------------------------------


def test_a_search_finds_the_minimum_and_is_the_same_again():
    pytest.importorskip("optuna", reason="needs the extra .[optuna]")
    axes = read_axes(["flow.lr=1e-5..1e-1:log", "anchor.policy=none,self", "flow.steps=100..4000"])

    def searched(at_once):
        found, one = [], search(axes, 40, at_once=at_once, higher=False)
        for batch in one.batches():
            for asked, values in batch:
                lr, policy = values["flow.lr"], values["anchor.policy"]
                value = abs(math.log10(lr) + 3) + (policy == "none")
                one.tell(asked, value)
                found.append((value, values))
        return found

    first = searched(1)
    assert searched(1) == first
    assert searched(3) == searched(3)
    assert len(first) == 40
    best = min(first, key=lambda pair: pair[0])
    assert best[1]["anchor.policy"] == "self"
    assert 1e-4 < best[1]["flow.lr"] < 4e-3
    assert all(isinstance(values["flow.steps"], int) for _, values in first)


def test_a_failed_configuration_does_not_end_a_search():
    pytest.importorskip("optuna", reason="needs the extra .[optuna]")
    one = search(read_axes(["flow.lr=1e-4,1e-3"]), 3, at_once=1, higher=False)
    for batch in one.batches():
        one.tell(batch[0][0], None)
    assert len(one.study.trials) == 3


def test_every_value_of_a_search_is_checked_before():
    found = list(corners(read_axes(["flow.lr=1e-4..1e-2", "anchor.policy=none,self,bank"])))
    assert found == [
        {"flow.lr": 1e-4, "anchor.policy": "none"}, {"flow.lr": 1e-2, "anchor.policy": "none"},
        {"flow.lr": 1e-4, "anchor.policy": "self"}, {"flow.lr": 1e-4, "anchor.policy": "bank"},
    ]  # fmt: skip


# --- ranking ----------------------------------------------------------------------------------------------------------


def rows_of(value, seeds=(0, 1), dynamics=("ve", "rf"), lrs=("0.001", "0.003")):
    empty = dict.fromkeys(sweep.HIGHER_IS_BETTER)
    return [
        {
            "flow.lr": lr, "anchor.policy": "self", "data": "digits", "dynamics": d, "sampler": "one_step", "nfe": 1,
            "seed": s, **empty, "fid": value(lr, s, d), "recall": 0.5, "experiment": f"sweep-{lr}-s{s}",
        }
        for lr in lrs for s in seeds for d in dynamics
    ]  # fmt: skip


def test_rows_are_ranked_by_the_mean_over_dynamics_and_seeds():
    values = {("0.001", 0, "ve"): 1.0, ("0.001", 1, "ve"): 3.0, ("0.001", 0, "rf"): 5.0, ("0.001", 1, "rf"): 9.0}
    rows = rows_of(lambda *key: values.get(key, 2.0))
    table = sweep.ranked(rows, ["flow.lr", "anchor.policy"], FID)
    assert table["rank"].tolist() == [1, 1, 2, 2]
    assert table["flow.lr"].tolist() == ["0.003", "0.003", "0.001", "0.001"]
    second = table[table["rank"] == 2].set_index("dynamics")
    assert (second.score == 4.5).all()  # seeds: (1 + 5) / 2 = 3 and (3 + 9) / 2 = 6
    assert second.score_sd.to_list() == pytest.approx([4.5**0.5] * 2)
    assert (second.fid["ve"], second.fid["rf"]) == (2.0, 7.0)
    assert second.fid_sd["ve"] == pytest.approx(2**0.5)
    assert (table.seeds == 2).all()
    assert table.experiments.tolist() == ["sweep-0.003-s0 sweep-0.003-s1"] * 2 + ["sweep-0.001-s0 sweep-0.001-s1"] * 2
    assert "kid" not in table  # was not measured
    text = sweep.terminal(table, ["flow.lr", "anchor.policy"], "fid").splitlines()
    assert re.sub(" +", " ", text[0]).strip() == "rank flow.lr anchor.policy fid, mean ve rf seeds experiment"
    assert re.sub(" +", " ", text[2]).strip() == "2 0.001 self 4.50 ± 2.1 2.00 7.00 2 sweep-0.001-s0"


def test_more_is_better_where_it_is():
    rows = [row | {"recall": float(row["flow.lr"])} for row in rows_of(lambda *key: 1.0)]
    table = sweep.ranked(rows, ["flow.lr"], Measure("recall", "one_step", None))
    assert table["flow.lr"].tolist()[0] == "0.003"
    assert sweep.score(rows, "recall") == pytest.approx(0.002)
    assert sweep.score([{"fid": None}, {"fid": float("nan")}], "fid") is None


@pytest.mark.parametrize("axes", [[], ["flow.lr"], ["flow.lr", "anchor.policy"]])
def test_the_page_is_whole_offline_and_the_same_for_the_same_table(axes):
    rows = rows_of(lambda lr, s, d: float(lr) * (1 + s))
    rows = [row for row in rows if axes or row["flow.lr"] == "0.001"]
    table = sweep.ranked(rows, axes, FID)
    options = {
        "axes": axes, "metric": "fid", "higher": False, "missing": [("flow.lr=<b>", "not finished")],
        "commit": "0123456789abcdef", "created": "today",
    }  # fmt: skip
    page = sweep_page.render(table, **options)
    parsed = Page(page)
    assert (parsed.open, parsed.fetched) == ([], [])
    assert "flow.lr=&lt;b&gt;" in page
    assert "dvc exp apply sweep-0.001-s0" in page
    assert page == sweep_page.render(table, **options)
    assert '<meta name="color-scheme" content="light dark">' in page
    assert page.count("<svg") == 1
    assert ("0.0015 ± 0.00071" in page) or ("0.00150 ± 0.00071" in page)


# --- whole sweeps, of experiments that take no time -------------------------------------------------------------------


def figures_of(config, value) -> dict:
    """What evaluate would write of one dynamics: every sampler of the configuration."""
    samplers = [("flow", "one_step", 1), *(("teacher", "heun", n) for n in config.evaluate.teacher_nfe)]
    samplers += [("flow", s, n) for s in config.sample.flow_samplers for n in config.sample.flow_steps if n > 1]
    measures = dict.fromkeys(sweep.HIGHER_IS_BETTER, value)
    return {f"{m}-{s}-{n}": {"model": m, "sampler": s, "nfe": n} | measures for m, s, n in samplers}


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """Runs `ifm sweep` in a folder of its own, on DVC experiments that end at once with figures that differ."""
    (tmp_path / "params.yaml").write_text(preset.apply("digits", (ROOT / "params.yaml").read_text()))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    runner = FakeExperiments(polls=1)
    configs, seen = {}, Plan._run

    def planned(self, values, seed):
        run = seen(self, values, seed)
        configs[run.name] = run.config
        return run

    def read(name, names):
        if name in runner.unreadable:
            raise UserError(f"experiment {name}: rf.json is no JSON")
        values = {d: None if d in runner.null else 0.5 + len(name) / 100 + i for i, d in enumerate(names)}
        return {d: figures_of(configs[name], value) for d, value in values.items()}

    runner.null, runner.metrics = set(), read
    monkeypatch.setattr(Plan, "_run", planned)
    monkeypatch.setattr(sweep, "check_checkout", lambda: "0123456789abcdef")
    monkeypatch.setattr(sweep.shared, "code_digest", lambda graph: "c0de")
    monkeypatch.setattr(workers, "POLL", 0)

    def run(*words, status=0):
        assert sweep.run_sweep(sweep.parser().parse_args(words), runner) == status
        return pd.read_csv(sweep.CSV)

    run.runner = runner
    return run


def test_a_shared_search_goes_on_and_runs_nothing_again(swept, tmp_path, capsys):
    """Four configurations, then the same command for ten all together: six more."""
    pytest.importorskip("optuna", reason="needs the extra .[optuna]")
    words = ["-S", "flow.lr=1e-4..1e-2:log", "--study", f"sqlite:///{tmp_path}/study.db"]
    swept(*words, "--search", "4")
    first = set(swept.runner.started)
    assert len(first) == 4
    swept(*words, "--search", "10")
    assert len(set(swept.runner.started)) == len(swept.runner.started) == 10
    assert "study sweep-" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-S flow.lr=1e-4,1e-3 --study sqlite:///x.db", "--study: shares a search; give --search N too"),
        ("-S flow.lr=1e-4,1e-3 --cluster-set timeout_min=3", "--cluster-set: needs --cluster slurm or local"),
    ],
)
def test_options_that_need_another_say_so(words, said, swept):
    with pytest.raises(UserError, match=re.escape(said)):
        swept(*words.split())


def documented():
    """The commands of docs/sweeps.md, and its axis of lists."""
    page = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("ifm sweep") and "--study" not in line]
    commands = [line.partition("#")[0].split()[2:] for line in lines]
    axes = [match.split() for match in re.findall(r"`(-S [a-z_.]+=[^`A-Z]+)`", page)]
    assert len(commands) >= 3
    assert ["-S", "dynamics=[rf],[ve,rf]"] in axes
    return [*commands, *axes]


@pytest.mark.parametrize("words", documented(), ids=" ".join)
def test_every_documented_sweep_ends_in_a_table(words, swept):
    if "--search" in words:
        pytest.importorskip("optuna", reason="needs the extra .[optuna]")
    if "--dry-run" in words:
        words = [word for word in words if word != "--dry-run"]
    table = swept(*words)
    axes = [column(word.partition("=")[0]) for before, word in pairwise(words) if before == "-S"]
    assert list(table.columns[1 : 1 + len(axes)]) == axes
    assert table["rank"].tolist() == sorted(table["rank"])
    assert {"data", "dynamics", "score", "seeds", "experiments"} <= set(table)
    assert sweep.PAGE.stat().st_size > 1000


AXES = (
    "dynamics=[ve],[rf],[ve,rf]", "dynamics=ve,rf", "network.channels=[24,32,64],[16,32,64]", "flow.huber_c=null,0.1",
    "data.random_flip=true,false", "trajectories.rho=null,7.0", "data.image_column=a,'b,c'", "flow.precision=no,bf16",
    "sample.flow_steps=[1],[1,2]",
)  # fmt: skip


@pytest.mark.parametrize("axis", AXES)
def test_axes_of_every_kind_are_ranked(axis, swept):
    """Lists, the name of a column, nothing, words, quotes: beside another axis and under two seeds."""
    key = axis.partition("=")[0]
    table = swept("-S", "flow.lr=1e-3,4e-3", "-S", axis, "--seeds", "0,1")
    count = len(read_axes([axis])[key])
    assert table["rank"].max() == 2 * count
    assert table[column(key)].nunique(dropna=False) == count
    assert (table["seeds"] == 2).all()
    rows = pd.read_csv(sweep.ROWS)
    assert len(rows) == 2 * len(table)
    assert set(rows["dynamics"]) <= {"ve", "rf", "pfgmpp"}


def test_the_axis_dynamics_stands_beside_each_rows_own(swept, capsys):
    table = swept("-S", "flow.lr=1e-3,4e-3", "-S", "dynamics=[ve],[ve,rf]")
    assert table.groupby("params.dynamics")["dynamics"].agg(list).to_dict() == {
        "[ve]": ["ve"] * 2, "[ve,rf]": ["ve", "rf"] * 2,
    }  # fmt: skip
    assert "params.dynamics" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["ranked", "terminal", "write_page"])
def test_rows_are_on_disk_before_they_are_ranked(broken, swept, monkeypatch):
    def fails(*given, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(sweep, broken, fails)
    with pytest.raises(ZeroDivisionError):
        swept("-S", "flow.lr=1e-3,4e-3")
    rows = pd.read_csv(sweep.ROWS)
    assert rows["flow.lr"].tolist() == [0.001] * 3 + [0.004] * 3
    assert rows["fid"].notna().all()
    assert sweep.CSV.is_file() == (broken != "ranked")


def test_an_experiment_that_cannot_be_read_does_not_cost_the_others(swept, capsys):
    swept("-S", "flow.lr=1e-3,4e-3,5e-3")
    runner = swept.runner
    runner.unreadable = {sorted(runner.done)[0]}
    table = swept("-S", "flow.lr=1e-3,4e-3,5e-3", status=1)
    assert table["rank"].max() == 2
    assert f"experiment {sorted(runner.done)[0]}: rf.json is no JSON" in capsys.readouterr().err
    runner.unreadable, runner.null = set(), {"ve", "rf", "pfgmpp"}
    swept("-S", "flow.lr=1e-3,4e-3,5e-3", status=1)
    said = capsys.readouterr().err
    assert said.count("finished, but ve, rf, pfgmpp has no fid of one_step") == 3


# --- the command ------------------------------------------------------------------------------------------------------


def ifm(*words, folder):
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [warm.python(), "-m", "ifm", *words], cwd=folder, capture_output=True, text=True, check=False, env=env
    )


def test_outside_a_checkout_it_says_so(tmp_path):
    done = ifm("sweep", "-S", "flow.lr=1,2", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == "ifm: sweep runs the pipeline of a checkout, and this folder is in none; clone the repository\n"
    )


def test_it_is_found_from_any_folder_of_the_checkout_with_its_options_and_status():
    done = ifm("sweep", "-S", "flow.lr=1e-4,3e-4", "--seeds", "0,1", "--dry-run", folder=ROOT / "tests")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("4 experiments, ")
    assert "once      shared by 4: fetch, preprocess, reference" in done.stdout
    bad = ifm("sweep", "-S", "flow.lrr=1", folder=ROOT / "tests")
    assert (bad.returncode, bad.stderr) == (1, "-S flow.lrr: params.yaml has no flow.lrr\n")
