"""`make compare`: figures, ratios and spreads of two known states, what is said where they don't compare, bad input."""

import base64
import csv
import hashlib
import html
import io
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from ifm.errors import UserError
from ifm.report.headlines import Estimate, headlines
from pipeline.tools import compare, compare_grids, comparison, fairness
from pipeline.tools.compare import read_side
from pipeline.tools.compare_page import render
from pipeline.tools.comparison import (
    BEYOND,
    DIFFERS,
    EQUAL,
    ONLY_A,
    ONLY_B,
    WITHIN,
    Value,
    change,
    metric_columns,
    paired,
    ratio,
)
from pipeline.tools.preset import parse_yaml
from tests.support import warm
from tests.support.pages import SPLIT_WORDS, chromium
from tests.support.reports import diagnostics_of, summary_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

KEYS = ["data", "extractor", "dynamics", "model", "objective", "anchor", "sampler", "nfe", "seed", "n_samples"]
TEACHER = {"model": "teacher", "objective": "", "anchor": "", "sampler": "heun"}
FLOW = {"model": "flow", "objective": "trajectory", "anchor": "self", "sampler": "one_step", "nfe": 1}
PARAMS = {"seed": 0, "dynamics": ["ve", "rf"], "data": {"source": "digits"}, "flow": {"lr": 1e-3, "steps": 100}}
REFERENCE = {"extractor": "classifier", "checksum": "c" * 64, "dimension": 64, "split": "train", "n_train": 1438}
LOCK = {
    "fetch": {"outs": {"data/processed": "11"}},
    "flow@ve": {
        "deps": {"src/ifm/model.py": "21", "src/ifm/data/arrays.py": "22", "models/teacher/ve": "23"},
        "params": {"flow": {"lr": 1e-3, "steps": 100}, "seed": 0},
        "outs": {"models/flow/ve": "24", "reports/curves/flow-ve.csv": "25", "reports/runs/flow-ve.json": "26"},
    },
}


def record(dynamics="ve", **values):
    return {"data": "digits", "extractor": "classifier", "dynamics": dynamics, "seed": 0, "n_samples": 2000} | values


def records(scale=1.0, **common):
    """Two dynamics: a teacher at 1 and 35 evaluations, a flow in one."""
    return [
        record(dynamics, **{**kind, "fid": fid * scale, **common})
        for dynamics in ("ve", "rf")
        for kind, fid in (({**TEACHER, "nfe": 1}, 60.0), ({**TEACHER, "nfe": 35}, 0.4), (FLOW, 0.5))
    ]


def csv_text(rows):
    columns = list(dict.fromkeys([*KEYS, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def frame(rows):
    table = pd.DataFrame(rows)
    return table.assign(**{key: table[key].fillna("") for key in comparison.TEXT_KEYS})


def lock_text(stages):
    entries = {
        name: {
            **{
                kind: [{"path": path, "hash": "md5", "md5": md5} for path, md5 in stage[kind].items()]
                for kind in ("deps", "outs")
                if kind in stage
            },
            **({"params": {"params.yaml": stage["params"]}} if "params" in stage else {}),
        }
        for name, stage in stages.items()
    }
    return yaml.safe_dump({"schema": "2.0", "stages": entries})


def write(rows=None, *, params=PARAMS, reference=REFERENCE, lock=LOCK, curve=1.0, pins="torch==2.6\n"):
    """The files of one state, in this folder."""
    curve_text = "step,loss\n" + "".join(f"{step},{curve / step}\n" for step in (50, 100, 150))
    files = {
        "params.yaml": yaml.safe_dump(params),
        "dvc.lock": lock_text(lock),
        "constraints.txt": "# tested together\n" + pins,
        "reports/summary.csv": csv_text(records() if rows is None else rows),
        "reports/metrics/reference.json": json.dumps(reference),
        "reports/diagnostics/ve.json": json.dumps(diagnostics_of("ve")),
        "reports/curves/flow-ve.csv": curve_text,
        "reports/curves/teacher-ve.csv": curve_text,
    }
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def git(*words):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *words], capture_output=True, text=True, check=True).stdout.strip()


def commit(subject):
    git("add", "-A")
    git("commit", "-q", "--allow-empty", "-m", subject)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository whose last commit is `write()`'s state."""
    return repository(tmp_path / "project", monkeypatch)


def repository(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q", "-b", "main")
    write()
    commit("first results")
    return folder


def run(monkeypatch, *words):
    """The command in this process; what it exits with (None: status 0)."""
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    try:
        compare.main()
    except SystemExit as end:
        return end.code
    return None


class Tables(HTMLParser):
    """The text of every table's cells, and of the page."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.tags, self.words, self._cell = [], [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append((dict(attrs), []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
            self._cell = self.tables[-1][1][-1]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell[-1] = " ".join(self._cell[-1].split())
            self._cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self._cell is not None:
            self._cell[-1] += data

    def rows(self, **attributes):
        """The body of the first table with these attributes."""
        return next(rows[1:] for attrs, rows in self.tables if attributes.items() <= attrs.items())

    def under(self, heading):
        """The body of the first table with this first heading."""
        return next((rows[1:] for _, rows in self.tables if rows[0][0] == heading), None)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page_of(a="HEAD", b="workspace"):
    one, other = read_side(a), read_side(b)
    return render(one, other, paired(one.summary, other.summary), created="2025-01-02")


def said(a="HEAD", b="workspace"):
    """The warnings."""
    one, other = read_side(a), read_side(b)
    return fairness.warnings(one, other, paired(one.summary, other.summary))


# --- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (Value(1.0, 0.3), Value(1.99, 0.4), WITHIN),  # 2 sqrt(0.3^2 + 0.4^2) = 1
        (Value(1.0, 0.3), Value(0.01, 0.4), WITHIN),
        (Value(1.0, 0.3), Value(2.01, 0.4), BEYOND),
        (Value(2.0, 3.0), Value(12.0, 4.0), BEYOND),  # 10 is not below 10
        (Value(1.0, 0.0), Value(1.001, 0.0), BEYOND),
        (Value(1.0, 0.3), Value(1.0, 0.4), EQUAL),
        (Value(1.0), Value(1.0), EQUAL),
        (Value(1.0, 0.3), Value(1.1), DIFFERS),
        (Value(1.0), Value(1.1, 0.3), DIFFERS),
        (Value(1.0), None, ONLY_A),
        (None, Value(1.0), ONLY_B),
        (None, None, None),
    ],
)
def test_a_difference_is_judged_by_both_spreads(a, b, verdict):
    assert change(a, b) == verdict


def test_a_ratio_needs_a_positive_denominator():
    assert ratio(Value(4.0), Value(1.0)) == 0.25
    assert ratio(Value(4.0), Value(0.0)) == 0
    assert ratio(Value(0.0), Value(1.0)) is None
    assert ratio(Value(-0.2), Value(-0.1)) is None  # KID can be negative
    assert ratio(Value(4.0), Value(-1.0)) is None
    assert ratio(None, Value(1.0)) is None


def test_several_rows_are_their_mean_and_deviation():
    rows = [{"fid": 1.0, "fid_sd": 9.0}, {"fid": 3.0, "fid_sd": 9.0}, {"fid": math.nan}, None]
    assert comparison.over_rows(rows, "fid") == Value(2.0, pytest.approx(math.sqrt(2)))
    assert comparison.over_rows(rows[:1], "fid") == Value(1.0, 9.0)
    assert comparison.over_rows(rows[2:], "fid") is None


# --- rows and columns -----------------------------------------------------------------------------------------------


def test_rows_of_one_key_stand_side_by_side():
    a = [record(**TEACHER, nfe=1, fid=60.0), record(**TEACHER, nfe=35, fid=0.4), record(**FLOW, fid=0.5)]
    b = [record(**FLOW, fid=0.6), record("rf", **FLOW, fid=0.7), record(**TEACHER, nfe=1, fid=61.0)]
    rows = paired(frame(a), frame(b))
    figures = [(r.key["dynamics"], r.key["nfe"], r.a and r.a["fid"], r.b and r.b["fid"]) for r in rows]
    assert figures == [("ve", 1, 60.0, 61.0), ("ve", 35, 0.4, None), ("ve", 1, 0.5, 0.6), ("rf", 1, None, 0.7)]


def test_rows_of_one_key_in_one_file_keep_their_order():
    a, b = ([record(**FLOW, fid=fid) for fid in fids] for fids in ((1.0, 2.0), (3.0, 4.0, 5.0)))
    found = [(r.a and r.a["fid"], r.b["fid"]) for r in paired(frame(a), frame(b))]
    assert found == [(1.0, 3.0), (2.0, 4.0), (None, 5.0)]


@pytest.mark.parametrize("column", ["data", "extractor", "objective", "anchor", "seed"])
def test_what_the_sides_differ_in_does_not_keep_rows_apart(column):
    other = 7 if column == "seed" else "other"
    a = frame(records())
    b = a.copy()
    b.loc[(b["model"] == "flow") | (column not in ("objective", "anchor")), column] = other
    assert comparison.loose_keys(a, b) == {column: (a[column].iloc[2], other)}
    rows = paired(a, b)
    assert len(rows) == len(a)
    assert all(row.a and row.b and row.a["fid"] == row.b["fid"] for row in rows)


def test_several_values_on_one_side_do_keep_rows_apart():
    a, b = frame(records(seed=0)), frame(records(seed=1) + records(seed=2))
    assert comparison.loose_keys(a, b) == {}
    assert all(row.a is None or row.b is None for row in paired(a, b))
    assert len(paired(a, b)) == 18


def test_every_column_of_numbers_is_a_metric():
    a = frame([record(**FLOW, fid=1.0, old=2.0, kid_sd=0.1)])
    b = frame([record(**FLOW, fid=1.0, fid_sd=0.1, precision=0.9, precision_sd=0.1, note="text", empty=math.nan)])
    assert metric_columns(a, b) == ["fid", "precision", "old", "kid_sd"]


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_two_commits_with_known_figures(project):
    rows = records(0.5)
    rows[0]["precision"] = 0.75
    write(rows, params=PARAMS | {"seed": 0, "flow": {"lr": 3e-4, "warmup": [1, None]}}, pins="torch==2.7\n")
    commit("second <results>")
    page = page_of("HEAD~1", "HEAD")
    tables = Tables(page)
    assert tables.rows(**{"class": "headline"}) == [
        ["VE diffusion", "Flow, 1 step", "0.5000", "0.2500", "0.500"],
        ["Teacher, 35 NFE", "0.4000", "0.2000", "0.500"],
        ["Flow / teacher", "1.250", "1.250", "1.000"],
        ["Rectified flow", "Flow, 1 step", "0.5000", "0.2500", "0.500"],
        ["Teacher, 35 NFE", "0.4000", "0.2000", "0.500"],
        ["Flow / teacher", "1.250", "1.250", "1.000"],
    ]
    assert tables.under("Parameter") == [["flow.lr", "0.001", "0.0003"]]
    alone = [rows[1:] for _, rows in tables.tables if rows[0][0] == "Parameter"][1]
    assert alone == [["flow.steps", "100", "–"], ["flow.warmup", "–", "[1, null]"]]
    body = tables.rows(id="rows")
    assert len(body) == 6 + 1
    assert ["FID", "VE diffusion", "teacher", "Heun", "1", "60.00", "30.00", "−30.0", "0.500", "differs"] in body
    assert ["Precision", "VE diffusion", "teacher", "Heun", "1", "–", "0.7500", "–", "–", "only in B"] in body
    assert tables.rows(**{"class": "wrap glance"}) == [
        ["FID", "6", "6", "", "0.500"],
        ["Precision", "1", "", "1", "–"],
    ]
    assert tables.under("Package") == [["torch", "2.6", "2.7"]]
    heads, kind, sha, _, subject = next(rows for attrs, rows in tables.tables if "sides" in attrs["class"])
    assert heads[1:] == ["A: HEAD~1", "B: HEAD"]
    assert kind[1:] == ["revision", "revision"]
    assert sha[1:] == [git("rev-parse", name)[:10] for name in ("HEAD~1", "HEAD")]
    assert subject[1:] == ["first results", "second <results>"]
    assert said("HEAD~1", "HEAD") == ["B: params.yaml is not what the results were made with (flow.lr, flow.steps); "
                                      "`dvc repro` makes them anew."]  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_spreads_stand_beside_the_means(project):
    write([record(**FLOW, fid=0.5, fid_sd=0.03), record("rf", **FLOW, fid=0.5, fid_sd=0.03)])
    commit("spreads")
    write([record(**FLOW, fid=0.59, fid_sd=0.04), record("rf", **FLOW, fid=0.61, fid_sd=0.04)])
    tables = Tables(page_of())
    ve, rf = tables.rows(id="rows")
    assert ve[5:] == ["0.5000 ± 0.030", "0.5900 ± 0.040", "+0.0900", "1.180", "within the spread"]
    assert rf[5:] == ["0.5000 ± 0.030", "0.6100 ± 0.040", "+0.110", "1.220", "beyond the spread"]
    assert [line[-1] for line in tables.rows(**{"class": "headline"})] == [
        "1.180 within the spread",
        "1.220 beyond the spread",
    ]
    assert {line[0] for line in tables.rows(id="rows")} == {"FID"}


@pytest.mark.usefixtures("undrawn")
def test_several_seeds_are_their_mean_in_the_headline(project):
    flow = [record(**{**FLOW, "seed": seed}, fid=fid) for seed, fid in ((0, 1.0), (1, 3.0))]
    write(flow)
    commit("two seeds")
    write([row | {"fid": row["fid"] + 2} for row in flow])
    page = Tables(page_of())
    line = ["VE diffusion", "Flow, 1 step", "2.000 ± 1.4", "4.000 ± 1.4", "2.000 within the spread"]
    assert page.rows(**{"class": "headline"}) == [line]
    assert "± one standard deviation." in page.text
    assert [row[4] for row in page.rows(id="rows")] == ["one step", "one step"]  # after the seed's column


@pytest.mark.usefixtures("undrawn")
def test_the_ratio_is_the_reports(project):
    """The mean over seeds of the ratio, which the summary holds, and not the ratio of the two means: 1.25."""
    write([record(**TEACHER, nfe=35, fid=0.4), record(**FLOW, fid=0.5, ratio=1.04, ratio_sd=0.0123)])
    commit("a column of ratios")
    summary = summary_of("ve")
    write(summary.to_dict("records"))
    line = Tables(page_of()).rows(**{"class": "headline"})[-1]
    assert line[:4] == ["Flow / teacher", "1.040 ± 0.012", "2.200 ± 0.032", "2.115 beyond the spread"]
    assert headlines(summary)[0].ratio == Estimate(2.2, 0.0321, 1)
    assert "not the ratio of the two means" in Tables(page_of()).text


@pytest.mark.usefixtures("undrawn")
def test_without_the_column_the_ratio_is_had_by_seed(project):
    """1/1 and 9/3 have the mean 2; the ratio of the means would be 2.5."""
    rows = [record(**{**FLOW, "seed": seed}, fid=fid) for seed, fid in ((0, 1.0), (1, 9.0))]
    rows += [record(**TEACHER, nfe=35, seed=seed, fid=fid) for seed, fid in ((0, 1.0), (1, 3.0))]
    write([row | {"seed": row["seed"]} for row in rows])
    found = Tables(page_of("workspace", "workspace")).rows(**{"class": "headline"})
    assert found[-1][:2] == ["Flow / teacher", "2.000 ± 1.4"]
    write([row | {"seeds": 3} for row in rows])  # of several sets: their ratios are not known
    assert len(Tables(page_of("workspace", "workspace")).rows(**{"class": "headline"})) == 2


@pytest.mark.usefixtures("undrawn")
def test_points_are_called_points(project):
    rows = [record(**FLOW, fid="", sliced_wasserstein=0.2, seconds_per_image=1e-7, peak_memory_mb=3.0, extractor=name)
            for name in ("coordinates", "pixels")]  # fmt: skip
    write(rows[:1])
    titles = {line[0] for line in Tables(page_of("workspace", "workspace")).rows(id="rows")}
    assert titles == {"Sliced 2-Wasserstein", "Seconds per point", "Memory, MB"}
    write(rows[1:])
    assert "Seconds per image" in {line[0] for line in Tables(page_of("workspace", "workspace")).rows(id="rows")}


@pytest.mark.usefixtures("undrawn")
def test_points_are_judged_by_their_distance(project):
    write([record(**FLOW, fid="", sliced_wasserstein=0.2), record(**TEACHER, nfe=63, sliced_wasserstein=0.1)])
    commit("points")
    write([record(**FLOW, fid="", sliced_wasserstein=0.3), record(**TEACHER, nfe=31, sliced_wasserstein=0.1)])
    tables = Tables(page_of())
    assert tables.rows(**{"class": "headline"}) == [
        ["VE diffusion", "Flow, 1 step", "0.2000", "0.3000", "1.500"],
        ["Teacher, 63 against 31 NFE", "0.1000", "0.1000", "1.000"],
        ["Flow / teacher", "2.000", "3.000", "1.500"],
    ]
    assert "Sliced 2-Wasserstein, lower is better" in tables.text


@pytest.mark.usefixtures("undrawn")
def test_the_workspace_is_read_as_it_lies(project):
    assert read_side("workspace").kind == "workspace"
    assert "None that both sides have." in page_of()
    write(records(2.0))
    side = read_side("workspace")
    assert side.kind == "workspace with uncommitted changes"
    assert side.commit == git("rev-parse", "HEAD")
    assert side.summary["fid"].max() == 120
    assert read_side("HEAD").summary["fid"].max() == 60


def test_a_project_below_the_repositorys_folder(project, monkeypatch):
    below = project / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    write(records(3.0))
    commit("a project of its own")
    assert read_side("HEAD").summary["fid"].max() == 180
    assert sorted(read_side("HEAD").curves) == ["flow-ve", "teacher-ve"]


@pytest.mark.usefixtures("undrawn")
def test_stages_say_what_differs(project):
    changed = json.loads(json.dumps(LOCK))
    changed["flow@ve"]["deps"] |= {"src/ifm/model.py": "other", "models/teacher/ve": "other"}
    changed["flow@ve"]["outs"] |= {"models/flow/ve": "other", "reports/runs/flow-ve.json": "other"}
    changed["flow@ve"]["params"] = {"flow": {"lr": 1e-4, "steps": 100}, "seed": 0}
    changed["report"] = {"outs": {}}
    write(lock=changed, params=PARAMS | {"flow": {"lr": 1e-4, "steps": 100}})
    tables = Tables(page_of())
    assert tables.under("Stage") == [
        ["flow@ve", "1 file", "models/teacher/ve", "flow.lr",
         "differ: models/flow/ve; the same: reports/curves/flow-ve.csv"],
        ["report", "only in B"],
    ]  # fmt: skip
    assert tables.under("File") == [["src/ifm/model.py", "flow@ve"]]
    assert "Of the stages that both have, 1 is the same in all of this." in tables.text


@pytest.mark.usefixtures("undrawn")
def test_diagnostics_that_differ(project):
    content = diagnostics_of("ve")
    content["straightness"]["flow"] = 0.2794
    Path("reports/diagnostics/ve.json").write_text(json.dumps(content))
    tables = Tables(page_of())
    line = ["diagnostics/ve", "straightness.flow", "0.1397", "0.2794", "+0.140", "2.000"]
    assert tables.under("File in reports/") == [line]


def test_curves_of_both_sides_are_drawn(project):
    write(curve=5.0)
    page = page_of()
    for stage in ("teacher", "flow"):
        figure = page[page.index(f'id="compare-{stage}-') :]
        figure = figure[: figure.index("</svg>")]
        lines = re.findall(r'style="([^"]*stroke: var\(--blue, #0072b2\)[^"]*)"', figure)
        assert len(lines) == 2 + 1  # A, B, the legend's
        assert sum("stroke-dasharray" in line for line in lines) == 1
        paths = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--blue, #0072b2\)', figure)
        assert len(paths) == 3
        (x_a, y_a), (x_b, y_b) = (np.array(re.findall(r"([\d.]+) ([\d.]+)", path), float).T for path in paths[:2])
        np.testing.assert_allclose(x_a, x_b)
        assert (y_b < y_a).all()  # a fivefold loss is higher up


def test_the_same_input_gives_the_same_page(project):
    write(records(1.1), curve=2.0)
    assert page_of() == page_of()


def test_a_full_page_is_self_contained_and_small(project):
    names = [f"metric_{i}" for i in range(12)]
    samplers = [{**TEACHER, "nfe": n} for n in (1, 3, 5, 9, 17, 35)]
    samplers += [{**FLOW, "sampler": s, "nfe": n} for s in ("anchor", "renoise") for n in (2, 4)] + [FLOW]
    rows = [
        record(d, **kind, fid=0.5, **dict.fromkeys(names, 0.123456), **{f"{name}_sd": 0.1 for name in names})
        for d in ("ve", "rf", "pfgmpp")
        for kind in samplers
    ]
    write(rows)
    page = page_of()
    tables = Tables(page)
    assert len(tables.rows(id="rows")) == 33 * 13
    assert len(page.encode()) < 1_000_000
    links = [a for _, attrs in tables.tags for name in ("src", "href", "srcset", "action") if (a := attrs.get(name))]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in page
    assert "url(http" not in page


HOSTILE = '<script>alert("x")</script>&"\'</style></script>'


def test_hostile_text_stays_text(project):
    lock = LOCK | {HOSTILE: {"deps": {f"{HOSTILE}.py": "1"}}, "b": {"deps": {f"{HOSTILE}.py": "1", HOSTILE: "1"}}}
    write(lock=lock)
    commit(HOSTILE)
    git("branch", "<b>&x")
    lock = LOCK | {"b": {"deps": {f"{HOSTILE}.py": "2", HOSTILE: "2"}, "params": {HOSTILE: 1}}}
    rows = [
        record(HOSTILE, **{**kind, "nfe": n, "data": HOSTILE, "extractor": HOSTILE, HOSTILE: 1.0, "fid": 1.0})
        for n, kind in enumerate((TEACHER, FLOW, {**FLOW, "anchor": HOSTILE, "sampler": HOSTILE, "model": HOSTILE}))
    ]
    write(rows, params={HOSTILE: HOSTILE}, reference={**REFERENCE, "split": HOSTILE, HOSTILE: 1.0}, lock=lock)
    Path(f"reports/curves/flow-{HOSTILE.replace('/', '')}.csv").write_text("step,loss\n1,1\n2,3\n")
    Path("reports/diagnostics/ve.json").write_text(json.dumps({HOSTILE: 1.0}))
    page = page_of("<b>&x", "workspace")
    tables = Tables(page)
    assert [tag for tag, _ in tables.tags].count("script") == 2
    assert [tag for tag, _ in tables.tags].count("style") == 1
    assert not {"b", "img"} & {tag for tag, _ in tables.tags}
    assert HOSTILE in tables.text


# --- not a fair comparison ------------------------------------------------------------------------------------------


def with_lock(md5):
    return LOCK | {"fetch": {"outs": {"data/processed": md5}}}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows": records(data="points")}, "The data differ: A digits, B points."),
        ({"lock": with_lock("99")}, "The data have one name but not the same bytes: A 11, B 99."),
        ({"rows": records(extractor="inception")}, "The extractors differ: A classifier, B inception."),
        (
            {"reference": REFERENCE | {"checksum": "d" * 64}},
            "The extractors’ weights differ: the features are not the same: A cccccccccc, B dddddddddd.",
        ),
        ({"reference": REFERENCE | {"dimension": 2048}}, "The features’ dimensions differ: A 64, B 2048."),
        ({"reference": REFERENCE | {"split": "test"}}, "The reference splits differ: A train, B test."),
        ({"reference": REFERENCE | {"n_train": 50000}}, "The train splits differ in size: A 1438, B 50000."),
        ({"rows": records(n_samples=500)}, "The numbers of samples differ in 6 rows: A 2,000, B 500."),
    ],
)
def test_what_is_not_fair_is_said_at_the_top(project, monkeypatch, capsys, changes, sentence):
    write(**changes)
    assert said() == [sentence]
    assert run(monkeypatch) is None
    assert sentence in capsys.readouterr().out
    page = Path("reports/compare.html").read_text()
    assert page.index(html.escape(sentence)) < page.index("One step against the teacher")


@pytest.mark.usefixtures("undrawn")
def test_a_fair_comparison_has_no_warning(project):
    write(records(1.3), params=PARAMS | {"data": {"source": "digits"}}, curve=2.0, pins="torch==2.8\n")
    assert said() == []
    assert "Not a fair comparison" not in page_of()


def test_without_checksums_the_data_are_compared_by_params(project):
    write(lock={}, params=PARAMS)
    commit("no lock")
    write(lock={}, params=PARAMS | {"data": {"source": "digits", "image_size": 16}})
    assert said() == ["The data’s params differ (data.image_size)."]


def test_a_summary_that_is_older_than_its_metrics(project):
    """As after an experiment whose targets leave the stage report out."""
    entry = {"model": "flow", "sampler": "one_step", "nfe": 1, "n_samples": 2000, "fid": 0.5000001, "kid": None}
    Path("reports/metrics/ve.json").write_text(json.dumps({"flow": entry}))
    assert said() == []
    Path("reports/metrics/ve.json").write_text(json.dumps({"flow": entry | {"fid": 0.7}}))
    assert said() == [
        "B: reports/summary.csv does not agree with reports/metrics/ve.json; `dvc repro report` mends it."
    ]


def test_params_that_were_not_run(project):
    write(params=PARAMS | {"flow": {"lr": 1e-3, "steps": 200}, "sample": {"count": 1}})
    [text] = said()
    assert text.startswith("B: params.yaml is not what the results were made with (flow.steps);")
    lock = LOCK | {"flow@pfgmpp": {"params": {"flow": {"steps": 1}}}}  # a dynamics that params.yaml left out
    write(lock=lock)
    assert said() == []


def test_dvc_lock_is_read_as_dvc_writes_it():
    """YAML 1.2, where `no` is a word and 1e-05 a number; PyYAML's own reader knows 1.1."""
    text = (
        "schema: '2.0'\nstages:\n  x:\n    params:\n      params.yaml: {a: no, b: 1e-05, c: true, d: 2.5E+3, e: off}\n"
    )
    assert compare._lock(text)["x"]["params"]["params.yaml"] == {"a": "no", "b": 1e-5, "c": True, "d": 2500, "e": "off"}
    real = (ROOT / "dvc.lock").read_text()
    assert compare._lock(real) == parse_yaml(real)["stages"]


# --- files that are not there, names that are not known -------------------------------------------------------------


def test_what_is_missing_is_left_out_and_said(project, monkeypatch):
    for path in (Path("params.yaml"), Path("dvc.lock"), Path("constraints.txt")):
        path.unlink()
    for name in ("metrics", "diagnostics", "curves"):
        shutil.rmtree(Path("reports") / name)
    commit("the summary alone")
    assert run(monkeypatch, "HEAD~1", "HEAD") is None
    text = Tables(Path("reports/compare.html").read_text()).text
    for words in ("params.yaml: not there", "dvc.lock: not there", "constraints.txt: not there",
                  "reports/metrics/*.json: not there", "reports/diagnostics/*.json: not there",
                  "reports/curves/*.csv: not there", "Not known: params.yaml is missing on one side."):  # fmt: skip
        assert words in text
    assert run(monkeypatch, "HEAD", "HEAD") is None
    assert "No numbers on either side." in Path("reports/compare.html").read_text()


def test_what_cannot_be_read_is_left_out_and_said(project):
    Path("params.yaml").write_text("a: [")
    Path("dvc.lock").write_text("<<<<<<< HEAD\n")
    Path("reports/diagnostics/ve.json").write_text("{")
    Path("reports/metrics/reference.json").write_bytes(b"\xff\xfe")
    Path("reports/curves/flow-ve.csv").write_text("time,value\n")
    Path("reports/curves/teacher-ve.csv").write_text("step,loss\n")  # no rows: nothing to draw
    missing = read_side("workspace").missing
    assert len(missing) == 5
    assert all("cannot be read" in text and "\n" not in text for text in missing)
    assert "Left out" in page_of()


def test_bad_input_is_one_line(project, monkeypatch):
    message = run(monkeypatch, "no-such", "HEAD")
    assert message.startswith("there is no revision or experiment 'no-such'; ")
    assert run(monkeypatch, "").startswith("there is no revision or experiment ''; ")
    assert "there is no revision or experiment" in run(monkeypatch, "--", "--upload-pack=x")
    for name in ("HEAD:reports", "refs/exps/x", "HEAD~1", "HEAD..main"):
        assert run(monkeypatch, name).startswith(f"there is no revision or experiment {name!r}; ")
    git("rm", "-q", "reports/summary.csv")
    commit("nothing")
    where = f"HEAD ({git('rev-parse', 'HEAD')[:10]})"
    mend = "`dvc repro` makes it (for a revision: there, then commit it)"
    assert run(monkeypatch, "HEAD") == f"{where}: there is no reports/summary.csv; {mend}"
    assert run(monkeypatch, "HEAD~1").startswith("workspace: there is no reports/summary.csv; ")
    assert not Path("reports/compare.html").exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "cannot be read"),
        ("a,b\n1,2\n", "lacks the column data"),
        (csv_text([]), "has no rows"),
        (csv_text(records(seed="x")), "nfe and seed must be whole numbers"),
        (csv_text(records()).replace("60.0", '6"0,\n"'), "cannot be read"),
    ],
)
def test_a_summary_that_cannot_be_used_is_one_line(project, text, fault):
    Path("reports/summary.csv").write_text(text)
    with pytest.raises(UserError, match=f"^workspace: reports/summary.csv:? ?{fault}[^\n]*$"):
        read_side("workspace")


def test_outside_git_there_is_one_line_and_no_traceback(tmp_path):
    command = [warm.python(), "-m", "pipeline.tools.compare"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": "/"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "this folder is not a Git checkout with a commit; clone the repository\n"
    git("init", "-q", str(tmp_path))
    for words in (["workspace"], ["HEAD"]):
        done = subprocess.run([*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1


# --- experiments of DVC ---------------------------------------------------------------------------------------------


def test_an_experiment_is_found_by_its_name(project, monkeypatch):
    def dvc(*words):
        subprocess.run([warm.python(), "-m", "dvc", *words], check=True, capture_output=True, text=True)

    monkeypatch.setenv("DVC_NO_ANALYTICS", "true")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b.c")
    dvc("init", "-q")
    Path("dvc.lock").unlink()
    Path("dvc.yaml").write_text("stages:\n  copy:\n    cmd: cp params.yaml copied\n    deps: [params.yaml]\n")
    commit("dvc")
    write(records(0.25), params=PARAMS | {"seed": 5}, lock={})
    Path("dvc.lock").unlink()
    dvc("exp", "save", "--force", "-q", "-n", "nutty-bolt")
    git("checkout", "-q", "-f", "HEAD")
    side = read_side("nutty-bolt")
    assert side.kind == "experiment"
    assert side.commit != git("rev-parse", "HEAD")
    assert side.params["seed"] == 5
    assert side.summary["fid"].max() == 15
    assert run(monkeypatch, "HEAD", "nutty-bolt") is None
    tables = Tables(Path("reports/compare.html").read_text())
    assert tables.under("Parameter") == [["seed", "0", "5"]]
    assert tables.rows(**{"class": "headline"})[0][2:] == ["0.5000", "0.1250", "0.250"]


def test_an_experiments_name_may_be_another_ones_too(project, monkeypatch):
    """refs/exps/<2>/<38 digits of the commit it starts from>/<name>: the one from HEAD is meant, if there is one."""
    first = git("rev-parse", "HEAD")
    write(records(2.0))
    commit("second")
    second = git("rev-parse", "HEAD")
    for base in ("a" * 40, "b" * 40):
        git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/twice", first)
    assert run(monkeypatch, "twice") == "several experiments are called 'twice'; give one's commit (`dvc exp show -A`)"
    git("update-ref", f"refs/exps/{second[:2]}/{second[2:]}/twice", second)
    assert compare.resolve("twice") == (second, "experiment")
    assert compare.resolve(f"refs/exps/aa/{'a' * 38}/twice") == (first, "experiment")
    git("tag", "-a", "-m", "results", "tagged", first)
    assert compare.resolve("tagged") == (first, "revision")
    git("branch", "twice", first)
    assert compare.resolve("twice") == (first, "revision")


# --- in a browser ---------------------------------------------------------------------------------------------------

PROBE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="f" style="width:{width}px;height:900px;border:0"
srcdoc="{page}"></iframe><script>
{split_words}
addEventListener("load", () => {{
  const inner = document.getElementById("f").contentDocument, root = inner.documentElement;
  const column = [...inner.querySelectorAll("#rows thead th")].findIndex((head) => head.textContent === "B");
  const shown = () => [...inner.querySelectorAll("#rows tbody tr")].filter((row) => !row.hidden);
  const cells = () => shown().map((row) => row.cells[column].textContent);
  inner.querySelectorAll("#rows button")[column].click();
  const sorted = cells(), metric = inner.getElementById("metric"), changed = inner.getElementById("changed");
  for (const details of inner.querySelectorAll("details")) details.open = true;
  metric.value = "kid";
  metric.dispatchEvent(new Event("change"));
  const kid = cells();
  metric.value = "";
  metric.dispatchEvent(new Event("change"));
  const all = shown().length;
  changed.click();
  document.body.dataset.seen = JSON.stringify(
    [root.scrollWidth, root.clientWidth, sorted, kid, all, shown().length, splitWords(inner)]);
}});
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Long names and values, a warning, spreads."""
    with pytest.MonkeyPatch.context() as patch:
        repository(tmp_path_factory.mktemp("page") / "project", patch)
        return wide_page()


def wide_page():
    rows = [row | {"kid": 0.5} for row in records(fid_sd=0.1)]
    write(rows, params=PARAMS | {"a_long_section": {"with_a_long_key_in_it": "old"}})
    commit("a subject of many words that has to find its place in a narrow column, too")
    git("branch", "a-branch-with-a-very-long-name-without-any-space-in-it-at-all")
    rows = [row | {"kid": 0.5, "fid": row["fid"] * (1 + i)} for i, row in enumerate(records(fid_sd=0.1))]
    write(
        rows,
        params=PARAMS
        | {
            "a_long_section": {"with_a_long_key_in_it": "new/" * 30},
            "flow": {"lr": "constant, then falling to nothing", "steps": 100},
            "data": {"source": "imagefolder"},
        },
        reference=REFERENCE | {"checksum": "d" * 64},
        lock=LOCK | {"trajectories@pfgmpp": {"outs": {}}},
    )
    return page_of("a-branch-with-a-very-long-name-without-any-space-in-it-at-all")


@pytest.mark.parametrize("width", [1280, 390])
def test_page_never_scrolls_sideways_sorts_and_chooses(width, browser, page, tmp_path):
    probe = tmp_path / "probe.html"
    filled = PROBE.format(width=width, page=html.escape(page), split_words=SPLIT_WORDS)
    probe.write_text(filled, encoding="utf-8")
    dom = chromium(browser, tmp_path, f"--window-size={width},900", "--dump-dom", probe.as_uri())
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom).group(1)))
    scroll, client, cells, kid, total, changed, split = seen
    assert split == []
    assert client == pytest.approx(width, abs=20)  # less a scroll bar
    assert scroll <= client
    figures = [float(cell.split(" ± ")[0]) for cell in cells]
    assert figures == sorted(figures)
    assert len(figures) == 6
    assert kid == ["0.5000"] * 6
    assert total == 12
    assert changed == 5  # of the FIDs the first is equal


@pytest.mark.parametrize("width", [1280, 390])
def test_page_can_be_seen(width, browser, page, tmp_path):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    shot = tmp_path / "page.png"
    chromium(
        browser, tmp_path, f"--window-size={width},2000", f"--screenshot={shot}", (tmp_path / "page.html").as_uri()
    )
    assert len(np.unique(np.asarray(Image.open(shot).convert("L")))) > 50


# --- sample grids ----------------------------------------------------------------------------------------------------


def grid_png(shade):
    stream = io.BytesIO()
    Image.fromarray(np.full((20, 30), shade, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def cached(png, name=compare_grids.SAMPLER):
    """A folder of samples with one grid in DVC's cache; the folder's checksum."""
    md5 = hashlib.md5(png).hexdigest()
    listed = json.dumps([{"md5": md5, "relpath": f"grids/{name}.png"}]).encode()
    folder = hashlib.md5(listed).hexdigest()
    for digest, content in ((md5, png), (f"{folder}.dir", listed)):
        file = Path(".dvc/cache/files/md5") / digest[:2] / digest[2:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return f"{folder}.dir"


def test_grids_of_a_commit_come_from_the_cache_and_those_of_the_workspace_from_here(project, monkeypatch, undrawn):
    old, new = grid_png(20), grid_png(200)
    write(lock={**LOCK, "sample@ve": {"outs": {"data/samples/ve": cached(old)}}})
    commit("with samples")
    (Path("data/samples/ve/grids")).mkdir(parents=True)
    Path(f"data/samples/ve/grids/{compare_grids.SAMPLER}.png").write_bytes(new)
    assert (read_side("HEAD").grids, read_side("workspace").grids) == ({"ve": old}, {"ve": new})
    assert run(monkeypatch) is None
    page = compare.PAGE.read_text(encoding="utf-8")
    places = [page.index(base64.b64encode(png).decode()) for png in (old, new)]
    assert places == sorted(places)
    shutil.rmtree(".dvc/cache")
    assert read_side("HEAD").grids == {}
    assert run(monkeypatch) is None
    page = compare.PAGE.read_text(encoding="utf-8")
    assert "Not here; dvc pull brings it." in page
    assert base64.b64encode(new).decode() in page


@pytest.mark.parametrize("md5", ["", "../../../../etc/passwd", "a" * 32, "g" * 31 + "/"])
def test_a_lock_with_other_checksums_has_no_grid(tmp_path, md5):
    lock = {"sample@ve": {"outs": [{"path": "data/samples/ve", "md5": md5}]}}
    assert compare_grids.of_lock(lock, cache=tmp_path) == {}
