"""`make ablation`: valid variants, a resume that runs nothing twice, and a page whose sentences follow the numbers."""

import io
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ifm.dynamics import PAPER
from ifm.errors import UserError
from pipeline.studies import ablation, shared, study
from pipeline.studies.ablation import STUDY, VARIANTS, Variant
from pipeline.studies.experiments import override_text
from pipeline.studies.pages import ablation as ablation_page
from pipeline.studies.pages.estimates import (
    CONTRADICTED,
    HOLDS,
    UNDECIDED,
    UNMEASURED,
    Estimate,
    mean_ratio,
    summarised,
    verdict,
)
from pipeline.studies.study import plan
from pipeline.studies.workers import duration
from pipeline.tools import params_file, preset
from tests.support.pages import Page
from tests.support.project import clone_of_this
from tests.support.studies import FakeExperiments, arguments, engine, results_of

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text()
GRAPH = study.read_graph(ROOT / "dvc.yaml")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def planned(presets=("points",), seeds=(0,), **options):
    return plan(STUDY, list(presets), list(seeds), text=TEXT, graph=GRAPH, **({"code": "c0de"} | options))


# --- the table of variants --------------------------------------------------------------------------------------------


def test_every_variant_is_a_valid_configuration():
    tasks, skipped = planned(["points", "digits"], [0, 1, 2])
    assert skipped == []
    assert len(tasks) == 2 * 3 * len(VARIANTS)
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        assert re.fullmatch(r"ablation-[\w-]+-s\d-[0-9a-f]{10}", task.name)
        assert task.config.flow.objective == [task.variant.objective]
        assert task.config.anchor.policy == task.variant.anchor
        assert task.config.ode.pfgmpp.augmented_dimensions == task.variant.D
        assert task.config.seed == task.seed


def test_the_table_has_what_is_asked():
    crossed = {(v.objective, v.anchor) for v in VARIANTS if (v.scheme, v.distance, v.D) == ("edm", "pseudo_huber", 128)}
    assert crossed == {(o, a) for o in ("trajectory", "data") for a in ("none", "noise", "self", "bank")}
    assert {v.D for v in VARIANTS} == {8, 128, 2048}
    assert {v.scheme for v in VARIANTS} == {"paper", "edm"}
    assert {v.distance for v in VARIANTS} == {"pseudo_huber", "adaptive_huber", "l2"}
    assert len({v.name for v in VARIANTS}) == len(VARIANTS)
    assert all(v.dynamics == ("pfgmpp",) for v in VARIANTS if v.D != 128)


def test_questions_ask_for_variants_and_settings_that_exist():
    names = {v.name for v in VARIANTS}
    for question in ablation_page.QUESTIONS:
        labels = [s.label for s in question.settings]
        assert len(set(labels)) == len(labels)
        assert {s.variant for s in question.settings} <= names
        assert {label for c in question.contrasts for label in (c.first, c.second)} <= set(labels)
        assert all(s.dynamics in (None, *PAPER) for s in question.settings)
    assert {s.variant for q in ablation_page.QUESTIONS for s in q.settings} == names


def test_settings_are_what_differs_from_params_yaml_and_reach_the_same_values():
    (task,), _ = planned(variants=[VARIANTS[1]], seeds=[1])
    assert task.settings["anchor.policy"] == "none"
    assert task.settings["seed"] == 1
    assert task.settings["data.label_column"] is None
    assert not [key for key in task.settings if key.startswith("evaluate.classifier")]
    values = preset.parse_yaml(TEXT)
    for key, value in task.settings.items():
        params_file.set_value(values, key, value)
    assert study.parse(values).model_dump() == task.config.model_dump()


def test_values_that_do_not_go_together_are_skipped_with_the_reason():
    bad = Variant("bad", "trajectory", "none", "edm", "l2", 128.0, more={"flow.schedule": "mixed"})
    tasks, skipped = planned(variants=[bad, VARIANTS[0]])
    assert [t.variant.name for t in tasks] == ["trajectory-self"]
    assert skipped[0].label == "points bad seed 0"
    assert "schedule: mixed needs objective: data" in skipped[0].reason
    _, skipped = planned(variants=[v for v in VARIANTS if v.name == "D-8"], overrides={"dynamics": ["rf"]})
    assert skipped[0].reason == "concerns pfgmpp alone, and dynamics is rf"
    with pytest.raises(UserError, match=r"no flow\.stps"):
        planned(overrides={"flow.stps": 1})
    with pytest.raises(UserError, match="no preset 'pts'"):
        planned(["pts"])


def test_a_name_changes_with_params_and_code_and_with_nothing_else():
    def name(**options):
        return planned(variants=[VARIANTS[0]], **options)[0][0].name

    first = name()
    assert name() == first
    assert name(overrides={"diagnose.paths": 8}) == first  # no stage up to evaluate reads it
    assert len({first, name(seeds=[1]), name(code="other"), name(overrides={"flow.steps": 5})}) == 4


def test_the_code_is_that_of_the_stages_up_to_evaluate():
    files = {dep for stage in GRAPH.values() for dep in stage["deps"]}
    assert {"src/ifm/anchors.py", "src/ifm/metrics/points.py", "pipeline/stages/evaluate.py"} <= files
    assert not files & {"src/ifm/report/plots/figure.py", "src/ifm/diagnostics.py", "pipeline/studies/ablation.py"}


@pytest.mark.parametrize("value", ["a\\b", "größe", "it's", "tail\\", "\\'", "a, b", "${x}", "1e-3", "", "null", " x "])
def test_any_text_is_read_by_hydra_as_itself(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"data.name={override_text(value)}").value() == value


def test_overrides_are_read_by_dvc_as_the_same_values(tmp_path):
    from dvc.utils.hydra import apply_overrides

    tasks, _ = planned(["points", "cifar10"], [3])
    for task in (tasks[1], tasks[-1]):
        file = tmp_path / "params.yaml"
        file.write_text(TEXT)
        apply_overrides(file, [f"{k}={override_text(v)}" for k, v in task.settings.items()])
        assert study.parse(preset.parse_yaml(file.read_text())).model_dump() == task.config.model_dump()


# --- running ----------------------------------------------------------------------------------------------------------


def test_finished_experiments_are_not_run_again(tmp_path):
    tasks, _ = planned()
    runner = FakeExperiments(polls=1)
    one = engine(runner, tmp_path)
    one.run(tasks, retry=True)
    assert runner.started == [t.name for t in tasks]
    engine(runner, tmp_path).run(tasks, retry=True)
    assert len(runner.started) == len(tasks)
    assert one.summary(tasks) == f"{len(tasks)} experiments, {len(tasks)} finished before, 0 to run"


def test_a_failure_is_reported_and_does_not_stop_the_others(tmp_path):
    tasks, _ = planned()
    runner = FakeExperiments(polls=4, bad={"data-none"})
    bad = next(t.name for t in tasks if t.variant.name == "data-none")

    def without_result():
        one = engine(runner, tmp_path)
        one.run(tasks, retry=True)
        return one.collect(tasks, lambda task: [])[1]

    assert without_result() == {bad: f"{bad} broke"}
    assert len(runner.done) == len(tasks) - 1
    runner.bad = set()
    assert without_result() == {}  # tried again
    assert Counter(runner.started).most_common(1) == [(bad, 2)]


def test_several_at_a_time_train_one_teacher_for_each_D(tmp_path):
    """`FakeExperiments` fails where two would make the same stage at once."""
    tasks, _ = planned()
    runner = FakeExperiments()
    one = engine(runner, tmp_path, count=4)
    one.run(tasks, retry=True)
    assert {t.name for t in tasks} < runner.done
    assert max(map(len, runner.beside)) == 4
    targets = [p.job.targets for p in runner.processes if p.job.shared]
    assert targets[0] == ("fetch", "preprocess", "reference")
    assert sum("teacher@pfgmpp" in t for t in targets) == 1  # D 8 and D 2048 have one of their own, which nobody shares
    one.forget_shared()
    assert runner.done == {t.name for t in tasks}


def test_remaining_time_is_by_dynamics_and_preset(tmp_path):
    (one, *rest), _ = planned(["points", "digits"])
    clock = iter(range(0, 10_000, 30))
    said = []
    made = engine(FakeExperiments(polls=1), tmp_path, say=said.append, clock=lambda: next(clock))
    made.run([one, *rest], retry=True)
    # 30 s for three dynamics: the 27 experiments left have 11 x 3 + 2 and 12 x 3 + 2 dynamics.
    assert said[1] == "[1/28] points trajectory-self seed 0: 30 s; about 12 min left"
    assert said[-1] == "[28/28] digits D-2048 seed 0: 30 s"
    assert [duration(s) for s in (45, 200, 7500)] == ["45 s", "3 min", "2 h 5 min"]


# --- the command ------------------------------------------------------------------------------------------------------


def test_dry_run_lists_and_runs_nothing(checkout, capsys):
    runner = FakeExperiments(polls=1)
    tasks, _ = planned(code=shared.code_digest(GRAPH))
    runner.done = {tasks[0].name}
    assert study.run_study(STUDY, arguments(dry_run=True), runner) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.sub(" +", " ", lines[0]) == ("finished points seed 0 trajectory-self ve rf pfgmpp")
    assert lines[1].startswith("to run    points   seed 0   trajectory-none")
    assert lines[-1] == "28 experiments, 27 to run, 0 skipped"
    assert runner.started == []
    assert not (checkout / "reports").exists()


def test_the_command_writes_table_and_page_and_goes_on_after_a_kill(checkout, capsys):
    runner = FakeExperiments(polls=3, killed_at=3)
    with pytest.raises(KeyboardInterrupt):
        study.run_study(STUDY, arguments(), runner)
    table = pd.read_csv("reports/ablation.csv")
    assert tuple(table.columns) == ablation.COLUMNS
    assert table.variant.unique().tolist() == ["trajectory-self", "trajectory-none", "trajectory-noise"]
    assert (checkout / "reports/ablation.html").read_text().count("<dd>not finished</dd>") == 25
    runner.killed_at, runner.bad = None, {"printed"}
    assert study.run_study(STUDY, arguments(), runner) == 1
    assert re.search(r"failed: points printed seed 1: ablation-points-printed-s1-\w+ broke\n", capsys.readouterr().err)
    assert len(runner.started) == 28
    table = pd.read_csv("reports/ablation.csv")
    assert len(table) == 2 * 2 * (11 * 3 + 2)  # seeds, samplers, variants x dynamics
    page = (checkout / "reports/ablation.html").read_text()
    assert "points printed seed 0" in page
    # Another preset's rows come beside these.
    assert study.run_study(STUDY, arguments(presets=["digits"], only=["l2"]), runner) == 0
    table = pd.read_csv("reports/ablation.csv")
    assert table.data.value_counts().to_dict() == {"eight_gaussians": 140, "digits": 2 * 2 * 3}
    # Some variants alone replace their own rows; under another budget nothing of that data set can stay.
    assert study.run_study(STUDY, arguments(only=["l2"]), runner) == 0
    table = pd.read_csv("reports/ablation.csv")
    assert table.data.value_counts().to_dict() == {"eight_gaussians": 140, "digits": 12}
    assert not table.duplicated(list(ablation.KEY_COLUMNS)).any()
    assert study.run_study(STUDY, arguments(only=["l2"], set=["flow.steps=500"]), runner) == 0
    table = pd.read_csv("reports/ablation.csv")
    assert table.data.value_counts().to_dict() == {"eight_gaussians": 12, "digits": 12}


def test_rows_are_in_long_form():
    (task,), _ = planned(variants=[VARIANTS[0]], seeds=[2])
    table = pd.DataFrame(study.rows(task, results_of(task), {}), columns=list(ablation.COLUMNS))
    assert not table.duplicated(list(ablation.KEY_COLUMNS)).any()
    one = table[(table.dynamics == "pfgmpp") & (table.steps == 1)].iloc[0]
    assert (one.data, one.objective, one.anchor, one.D, one.seed) == ("eight_gaussians", "trajectory", "self", 128, 2)
    assert (one.sliced_wasserstein, one.teacher_1_sliced_wasserstein, one.teacher_sliced_wasserstein) == (1, 50, 0.5)
    assert (one.teacher_nfe, one.train_steps) == (35, task.config.flow.steps)
    assert table[table.dynamics == "ve"].D.isna().all()


def git(folder, *words):
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


@needs_git
def test_the_checkout_must_be_a_clean_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match="not a Git checkout with a commit; clone the repository"):
        study.check_checkout()
    git(tmp_path, "init", "-q")
    for name in ("params.yaml", "dvc.lock", "reports/summary.csv"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("a: 1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")
    assert re.fullmatch("[0-9a-f]{40}", study.check_checkout())
    (tmp_path / "dvc.lock").write_text("a: 2\n")
    (tmp_path / "reports/summary.csv").write_text("a: 2\n")
    study.check_checkout()
    (tmp_path / "params.yaml").write_text("a: 2\n")
    with pytest.raises(UserError, match=r"uncommitted changes in params\.yaml: an experiment starts from a commit"):
        study.check_checkout()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="git is not installed"):
        study.check_checkout()


def test_unknown_names_are_one_line():
    with pytest.raises(UserError, match="no variant 'x'; there are trajectory-self, "):
        STUDY.chosen(["x"])
    assert [v.name for v in STUDY.chosen(["l2", "data-bank"])] == ["data-bank", "l2"]
    with pytest.raises(UserError, match=r"--set flow\.steps: must be key=value"):
        study.overrides(["flow.steps"])
    assert study.overrides(["flow.steps=5", "dynamics=[rf]"]) == {"flow.steps": 5, "dynamics": ["rf"]}


# --- the page ---------------------------------------------------------------------------------------------------------


def table_of(value, *, presets=("points", "digits"), seeds=(0, 1, 2), variants=VARIANTS):
    tasks, _ = planned(presets, seeds, variants=variants)
    found = [row for task in tasks for row in study.rows(task, results_of(task, value), {})]
    return pd.DataFrame(found, columns=list(ablation.COLUMNS))


def better_with_bank(task, d, nfe):
    return (0.5 if task.variant.anchor == "bank" else 1.0) * (1 + 0.01 * task.seed)


def worse_with_bank(task, d, nfe):
    return 1 / better_with_bank(replace(task, seed=0), d, nfe) * (1 + 0.01 * task.seed)


def answers_of(table, title):
    question = next(q for q in ablation_page.QUESTIONS if q.title == title)
    return [
        ablation_page.answer(question, rows, data=data, number=1) for data, rows in table.groupby("data", sort=True)
    ]


ANCHOR = "Anchor policy, objective trajectory"
ITS_VARIANTS = tuple(v for v in VARIANTS if v.name.startswith("trajectory-"))


def test_sentences_follow_the_numbers():
    def table(value, **more):
        return table_of(value, variants=ITS_VARIANTS, **more)

    answers = answers_of(table(better_with_bank), ANCHOR)
    assert ablation_page.tally(answers) == "agrees in 6 of 6"
    assert answers[0]["lines"][0]["text"] == "bank 0.505 ± 0.0050 against none 1.01 ± 0.010: 50 % lower"
    assert ablation_page.tally(answers_of(table(worse_with_bank), ANCHOR)) == "contradicts in 6 of 6"
    same = table(lambda task, d, nfe: 1 + 0.1 * task.seed)
    assert ablation_page.tally(answers_of(same, ANCHOR)) == "not told apart in 6 of 6"
    single = table(better_with_bank, seeds=[0])
    assert ablation_page.tally(answers_of(single, ANCHOR)) == "no spread to judge by in 6 of 6"
    assert answers_of(single, ANCHOR)[0]["lines"][0]["text"] == "bank 0.500 against none 1.00: 50 % lower, one seed"
    mixed = table(lambda task, d, nfe: (better_with_bank if d == "rf" else worse_with_bank)(task, d, nfe))
    assert ablation_page.tally(answers_of(mixed, ANCHOR)) == "agrees in 2 of 6, contradicts in 4 of 6"


def test_a_change_is_the_mean_of_the_seeds_own_ratios():
    """1/2 and 9/3: the mean of the ratios is 1.75, the ratio of the means 2."""
    first, second = (summarised(pd.Series(v, index=[0, 1])) for v in ([1.0, 9.0], [2.0, 3.0]))
    assert mean_ratio(first, second) == 1.75
    other = summarised(pd.Series([4.0, 1.0], index=[1, 7]))
    assert mean_ratio(first, other) == 9 / 4  # the seed that both have
    assert mean_ratio(first, summarised(pd.Series([1.0], index=[5]))) is None
    table = table_of(lambda task, d, nfe: [1.0, 9.0][task.seed] if task.variant.anchor == "bank" else 1.0, seeds=[0])
    assert "equal" in answers_of(table, ANCHOR)[0]["lines"][0]["text"]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (Estimate(1.0, 0.1, 3), Estimate(2.0, 0.1, 3), HOLDS),
        (Estimate(2.0, 0.1, 3), Estimate(1.0, 0.1, 3), CONTRADICTED),
        (Estimate(1.0, 0.1, 3), Estimate(1.11, 0.1, 3), UNDECIDED),  # twice the standard error is 0.163
        (Estimate(1.0, 0.0, 3), Estimate(1.0, 0.0, 3), UNDECIDED),
        (Estimate(1.0, None, 1), Estimate(2.0, 0.1, 3), UNMEASURED),
    ],
)
def test_verdicts(first, second, said):
    assert verdict(first, second) == said


def test_means_not_minima():
    table = table_of(lambda task, d, nfe: [1.0, 2.0, 6.0][task.seed], presets=["points"])
    setting = ablation_page.Setting("none", "trajectory-none")
    found = ablation_page.estimate(table, setting, metric="sliced_wasserstein", dynamics="ve")
    assert (found.mean, found.deviation, found.seeds) == (3.0, pytest.approx(7**0.5), 3)


def test_page_is_whole_offline_and_the_same_for_the_same_table():
    table = table_of(better_with_bank)
    options = {"missing": [("points x <b>", "ERROR & so on")], "commit": "0123456789abcdef", "created": "today"}
    page = ablation_page.render(table, **options)
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.fetched == []
    for question in ablation_page.QUESTIONS:
        assert question.title in page
        assert question.claim in page
    assert page.count("<svg") == 2 * len(ablation_page.QUESTIONS)
    assert "points x &lt;b&gt;" in page
    assert re.findall(r'id="([^"]+)"', page) == list(dict.fromkeys(re.findall(r'id="([^"]+)"', page)))
    back = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    assert ablation_page.render(back, **options) == page


def test_page_of_part_of_the_table():
    """What was not measured is left out; nothing at all is an error."""
    table = table_of(better_with_bank, presets=["points"], variants=[v for v in VARIANTS if v.anchor == "none"])
    page = ablation_page.render(table, missing=[], commit="", created="")
    assert "PFGM++’s D" not in page
    assert "Not measured" not in page
    assert page.count("<svg") == 0  # one setting of a question compares with nothing
    two = table_of(
        better_with_bank, presets=["points"], variants=[v for v in VARIANTS if v.name in ("trajectory-none", "l2")]
    )
    assert ablation_page.render(two, missing=[], commit="", created="").count("<svg") == 0
    two = table_of(
        better_with_bank,
        presets=["points"],
        variants=[v for v in VARIANTS if v.name in ("trajectory-none", "trajectory-noise")],
    )
    assert ablation_page.render(two, missing=[], commit="", created="").count("<svg") == 1
    table.loc[:, "sliced_wasserstein"] = float("nan")
    table.loc[:, ["teacher_sliced_wasserstein", "teacher_1_sliced_wasserstein"]] = float("nan")
    ablation_page.render(table, missing=[], commit="", created="")
    with pytest.raises(ValueError, match="no rows"):
        ablation_page.render(table[:0], missing=[], commit="", created="")


# --- for real ---------------------------------------------------------------------------------------------------------

TINY = [
    "dynamics=[rf]", "data.points.count=200", "network.mlp.width=16", "network.mlp.layers=1",
    "teacher.steps=20", "teacher.batch_size=16", "teacher.warmup_steps=2", "teacher.log_every=5",
    "teacher.checkpoint_every=10", "trajectories.count=64", "trajectories.shard_size=32",
    "trajectories.batch_size=16", "trajectories.solver_steps=4", "trajectories.stored_times=3",
    "flow.steps=20", "flow.batch_size=16", "flow.warmup_steps=2", "flow.log_every=5", "flow.checkpoint_every=10",
    "sample.count=96", "sample.batch_size=32", "sample.flow_steps=[1,2]", "evaluate.teacher_nfe=[1,5]",
    "evaluate.sliced_projections=16", "select.count=0", "sample.flow_samplers=[anchor,renoise]",
]  # fmt: skip


@needs_git
@pytest.mark.slow
def test_two_variants_for_real_train_one_teacher(tmp_path):
    project = clone_of_this(tmp_path / "ifm")
    words = [sys.executable, "-m", "pipeline.studies.ablation", "--presets", "points", "--seeds", "0", "--only"]
    words += ["trajectory-self", "data-bank", "D-8", "--set", *TINY]
    project.run("git", "init", "-q")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "start")
    out = project.run(*words)
    assert "skipped: points D-8 seed 0: concerns pfgmpp alone, and dynamics is rf" in out
    assert "2 experiments, 0 finished before, 2 to run" in out
    ran = Counter(run.info.run_name for run in project.runs())
    assert ran == {  # the second trajectories-rf solves nothing: objective `data`
        "fetch": 1, "preprocess": 1, "reference": 1, "teacher-rf": 1, "trajectories-rf": 2, "flow-rf": 2,
        "select-rf": 2, "sample-rf": 2, "evaluate-rf": 2,
    }  # fmt: skip
    table = pd.read_csv(project.folder / "reports/ablation.csv")
    assert table.variant.unique().tolist() == ["trajectory-self", "data-bank"]
    assert len(table) == 2 * 3  # one step, two by anchor, two re-noised
    assert (table[["sliced_wasserstein", "energy_distance", "teacher_1_sliced_wasserstein"]] > 0).all(axis=None)
    assert table.teacher_sliced_wasserstein.nunique() == 1  # one teacher
    status = project.run("git", "status", "--porcelain", "-uall").split()
    assert status == ["??", "reports/ablation.csv", "??", "reports/ablation.html"]
    # A new commit, and the same command: all is found again.
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "table")
    before = (project.folder / "reports/ablation.csv").read_bytes()
    assert "2 experiments, 2 finished before, 0 to run" in project.run(*words)
    assert (project.folder / "reports/ablation.csv").read_bytes() == before
    # A stage that fails is named, its log kept, and the next variant still tried.
    out = project.run(*words, "flow.lr=0.5", ok=False, IFM_LAUNCH="no-such-launcher")
    lines = [line for line in out.splitlines() if re.match(r"\[\d/2\] points .* failed: ", line)]
    assert len(lines) == 2
    assert all("no-such-launcher" in line and "; ERROR: failed to reproduce 'flow@rf'" in line for line in lines)
    assert len(list((project.folder / ".ifm/ablation").glob("*.log"))) == 4
    assert "Traceback" not in out


def test_rows_of_an_earlier_version_say_that_their_teacher_is_not_at_its_best(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    STUDY.csv.parent.mkdir()
    old = {"data": "digits", "teacher_nfe": 35, "teacher_fid": 0.5, "warnings": "Few."}
    rows = [old, old | {"teacher_nfe": None, "warnings": None}, old | {"teacher_nfe": 17, "teacher_most_nfe": 35}]
    pd.DataFrame(rows[:2]).to_csv(STUDY.csv, index=False)
    assert study.earlier(STUDY)["warnings"].fillna("").tolist() == [f"Few. | {study.OLD}", ""]
    pd.concat([study.earlier(STUDY), pd.DataFrame(rows[2:])]).to_csv(STUDY.csv, index=False)
    assert study.earlier(STUDY)["warnings"].fillna("").tolist() == [f"Few. | {study.OLD}", "", "Few."]
