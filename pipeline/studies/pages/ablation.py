"""The ablation's page: for each question the paper's claim, what was measured, and whether the two agree.

Every sentence about a result is computed from the table: means and standard deviations over seeds, never the best one.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from ifm.metrics import cautions
from ifm.report import plots
from ifm.report.page import short_commit
from ifm.report.rounding import MISSING, mean_and_deviation, significant

ONE_STEP = "One evaluation, mean ± sd"
TEMPLATE = Path(__file__).with_name("ablation.html")
METRICS = {"fid": "FID", "sliced_wasserstein": "Sliced 2-Wasserstein", "energy_distance": "Energy distance"}
HOLDS, CONTRADICTED, UNDECIDED, UNMEASURED = "agrees", "contradicts", "not told apart", "no spread to judge by"


# --- what is asked --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A place on a question's axis: a variant's flow in one step, or its teacher."""

    label: str
    variant: str
    prefix: str = ""  # "", "teacher_1_" or "teacher_": whose figure
    dynamics: str | None = None  # None: each in turn


@dataclass(frozen=True)
class Contrast:
    """Two settings by label. judged: the paper's claim is that the first is lower."""

    first: str
    second: str
    judged: bool = True


@dataclass(frozen=True)
class Question:
    """What is asked, what the paper says, and what of the table answers it."""

    title: str
    claim: str
    settings: tuple[Setting, ...]
    contrasts: tuple[Contrast, ...]


def _anchors(objective: str) -> tuple[Setting, ...]:
    return tuple(Setting(policy, f"{objective}-{policy}") for policy in ("none", "noise", "self", "bank"))


ANCHOR_CLAIM = (
    "The paper keeps the last estimate of every training sample (bank) as its anchor state, which is to guide the "
    "estimate: bank should be lower than none."
)
QUESTIONS = (
    Question(
        "Anchor policy, objective trajectory",
        ANCHOR_CLAIM,
        _anchors("trajectory"),
        (Contrast("bank", "none"), Contrast("self", "none", judged=False), Contrast("noise", "none", judged=False)),
    ),
    Question(
        "Anchor policy, objective data",
        ANCHOR_CLAIM,
        _anchors("data"),
        (Contrast("bank", "none"), Contrast("self", "none", judged=False), Contrast("noise", "none", judged=False)),
    ),
    Question(
        "Objective",
        "The paper trains on data points alone, with the bank, and reports one-step FIDs on CIFAR-10 of 2.86 (ve), "
        "3.36 (rf) and 2.91 (pfgmpp), beside 1.97 of EDM at 35 evaluations. If it needs no teacher, data should not be "
        "higher than the same flow on a teacher’s paths. “Printed” is its whole algorithm: loss to data, bank, scheme "
        "paper, from scratch, t by its training law.",
        (
            Setting("trajectory + self", "trajectory-self"),
            Setting("trajectory + bank", "trajectory-bank"),
            Setting("data + bank", "data-bank"),
            Setting("printed", "printed"),
        ),
        (Contrast("data + bank", "trajectory + bank"), Contrast("printed", "trajectory + self")),
    ),
    Question(
        "The integral against the instantaneous velocity",
        "The paper: the learned integral gives the end point in one evaluation, where one step along the instantaneous "
        "velocity (the teacher at 1 NFE) misses it. The flow should be lower.",
        (
            Setting("velocity (1 NFE)", "trajectory-self", "teacher_1_"),
            Setting("integral (trajectory)", "trajectory-self"),
            Setting("integral (data)", "data-bank"),
            Setting("integral (printed)", "printed"),
        ),
        tuple(Contrast(f"integral ({name})", "velocity (1 NFE)") for name in ("trajectory", "data", "printed")),
    ),
    Question(
        "Scheme of preconditioning",
        "The paper’s c_skip and c_out (t_min / t for ve and pfgmpp, the velocity form for rf) against EDM’s, which is "
        "this project’s default. The paper’s choice should be lower.",
        (Setting("paper", "scheme-paper"), Setting("edm", "trajectory-self")),
        (Contrast("paper", "edm"),),
    ),
    Question(
        "PFGM++’s D against VE",
        "The paper reports FIDs of 2.86 for ve and 2.91 for pfgmpp on CIFAR-10, nearly the same; D to infinity is ve. "
        "There is no claim of an order here, so none is judged.",
        (
            Setting("D = 8", "D-8", dynamics="pfgmpp"),
            Setting("D = 128", "trajectory-self", dynamics="pfgmpp"),
            Setting("D = 2048", "D-2048", dynamics="pfgmpp"),
            Setting("VE", "trajectory-self", dynamics="ve"),
        ),
        tuple(Contrast(f"D = {d}", "VE", judged=False) for d in (8, 128, 2048)),
    ),
    Question(
        "Distance of the loss",
        "The paper trains with the pseudo-Huber distance and leaves the rule of an adaptive c open (here: the batch’s "
        "mean error). Its choice should be lower than L2.",
        (
            Setting("pseudo-Huber", "trajectory-self"),
            Setting("adaptive c", "adaptive-huber"),
            Setting("L2", "l2"),
        ),
        (Contrast("pseudo-Huber", "L2"), Contrast("adaptive c", "pseudo-Huber", judged=False)),
    ),
)


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """Mean and standard deviation over seeds."""

    mean: float
    deviation: float | None  # None with one seed
    seeds: int
    by_seed: Mapping[int, float] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return " ".join(mean_and_deviation(self.mean, self.deviation)).rstrip()


def estimate(table: pd.DataFrame, setting: Setting, *, metric: str, dynamics: str | None) -> Estimate | None:
    """One setting's figure over its seeds, from the one-step rows of one data set; None where not measured."""
    of = setting.dynamics or dynamics
    mine = table[(table["variant"] == setting.variant) & (table["dynamics"] == of) & (table["sampler"] == "one_step")]
    return summarised(mine.set_index("seed")[f"{setting.prefix}{metric}"])


def summarised(values: pd.Series) -> Estimate | None:
    """Of figures with their seeds as index."""
    finite = values.astype(float)
    finite = finite[np.isfinite(finite)]
    if finite.empty:
        return None
    deviation = float(finite.std()) if len(finite) > 1 else None
    return Estimate(float(finite.mean()), deviation, len(finite), by_seed=dict(finite.items()))


def mean_ratio(first: Estimate, second: Estimate) -> float | None:
    """The mean of first / second over the seeds that both have, not the ratio of their means; None without a seed."""
    both = [seed for seed in first.by_seed if second.by_seed.get(seed, 0) > 0]
    return sum(first.by_seed[seed] / second.by_seed[seed] for seed in both) / len(both) if both else None


def verdict(first: Estimate, second: Estimate) -> str:
    """Whether `first` is lower: told apart by more than twice the standard error of the difference of the means."""
    if first.deviation is None or second.deviation is None:
        return UNMEASURED
    error = math.sqrt(first.deviation**2 / first.seeds + second.deviation**2 / second.seeds)
    difference = first.mean - second.mean
    if abs(difference) <= 2 * error:
        return UNDECIDED
    return HOLDS if difference < 0 else CONTRADICTED


def sentence(contrast: Contrast, first: Estimate, second: Estimate) -> str:
    """Both figures and how they differ, in words: by `mean_ratio` where it says the same as the means."""
    said, ratio = verdict(first, second), mean_ratio(first, second)
    how = "equal" if first.mean == second.mean else "lower" if first.mean < second.mean else "higher"
    if said == UNDECIDED:
        how = "not told apart"
    elif ratio is not None and ratio > 3 and how == "higher":
        how = f"{significant(ratio, 2)} times as high"
    elif ratio is not None and (ratio < 1 if how == "lower" else ratio > 1) and how != "equal":
        how = f"{significant(100 * abs(ratio - 1), 2)} % {how}"
    if said == UNMEASURED:
        how += ", one seed"
    return f"{contrast.first} {first} against {contrast.second} {second}: {how}"


def judged_by(table: pd.DataFrame) -> str:
    """FID, or for points, which have none, the sliced distance."""
    return "fid" if table["fid"].notna().any() else "sliced_wasserstein"


# --- the page -------------------------------------------------------------------------------------------------------


def answer(question: Question, table: pd.DataFrame, *, data: str, number: int) -> dict[str, Any] | None:
    """Figure, table and sentences of one question on one data set; None where it has no two settings to compare."""
    metric = judged_by(table)
    fixed = any(setting.dynamics for setting in question.settings)
    groups = [None] if fixed else plots.ordered(list(table["dynamics"]))
    found = {(s.label, d): estimate(table, s, metric=metric, dynamics=d) for s in question.settings for d in groups}
    shown = [s for s in question.settings if any(found[s.label, d] for d in groups)]
    if len(shown) < 2:
        return None
    second = "energy_distance" if table["energy_distance"].notna().any() else None
    lines = []
    for contrast in question.contrasts:
        for d in groups:
            first, other = found[contrast.first, d], found[contrast.second, d]
            if first and other:
                lines.append(
                    {
                        "name": plots.DYNAMICS.get(d, d) if d else "PFGM++",
                        "colour": plots.css_colour(d or "pfgmpp"),
                        "text": sentence(contrast, first, other),
                        "verdict": verdict(first, other) if contrast.judged else None,
                    }
                )
    return {
        "data": data,
        "metric": METRICS[metric],
        "svg": Markup(_figure(shown, groups, found, table, metric=metric, name=f"q{number}-{data}")),
        "heads": [plots.DYNAMICS.get(d, d) if d else "PFGM++ and VE" for d in groups],
        "second": METRICS[second] if second else None,
        "rows": [
            {
                "label": s.label,
                "cells": [found[s.label, d] or MISSING for d in groups],
                "second": [estimate(table, s, metric=second, dynamics=d) or MISSING for d in groups] if second else [],
            }
            for s in shown
        ],
        "lines": lines,
    }


def tally(answers: Sequence[dict[str, Any]]) -> str:
    """How often the claim agrees with what was measured, in words."""
    lines = [line for one in answers for line in one["lines"]]
    counts = Counter(line["verdict"] for line in lines if line["verdict"])
    total = counts.total()
    if not total:
        return "no order claimed" if lines else "not measured"
    said = (f"{v} in {counts[v]} of {total}" for v in (HOLDS, CONTRADICTED, UNDECIDED, UNMEASURED) if counts[v])
    return ", ".join(said)


def _figure(
    settings: Sequence[Setting],
    groups: Sequence[str | None],
    found: dict[tuple[str, str | None], Estimate | None],
    table: pd.DataFrame,
    *,
    metric: str,
    name: str,
) -> str:
    """Dots with bars of one standard deviation, a colour for each dynamics; hollow: the teacher at most NFE."""

    def draw(figure: Any) -> None:
        ax = figure.add_subplot()
        most = int(table["teacher_nfe"].max()) if table["teacher_nfe"].notna().any() else None
        colours: dict[str, str] = {}
        for i, d in enumerate(groups):
            for x, setting in enumerate(settings):
                of = setting.dynamics or d
                at = x + 0.16 * (i - (len(groups) - 1) / 2)
                shade = colours.setdefault(of, plots.colour(of))
                teacher = estimate(table, Setting("", setting.variant, "teacher_"), metric=metric, dynamics=of)
                if teacher and teacher.mean > 0:
                    ax.plot([at + 0.05], [teacher.mean], linestyle="none", zorder=2, **plots.marker("heun", shade))
                mine = found[setting.label, d]
                if mine is None or mine.mean <= 0:
                    continue
                if mine.deviation:
                    low = max(mine.mean - mine.deviation, mine.mean / 20)  # a logarithmic axis has no zero
                    ax.vlines(at, low, mine.mean + mine.deviation, color=shade, linewidth=1.6, zorder=3)
                ax.plot([at], [mine.mean], linestyle="none", color=shade, zorder=4, **plots.marker("one_step", shade))
        ax.set_xlim(-0.5, len(settings) - 0.5)
        ax.set_xticks(range(len(settings)), [re.sub(r" ([+(])", r"\n\1", setting.label) for setting in settings])
        ax.tick_params(axis="x", length=0)
        ax.grid(axis="x", visible=False)
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high / low < 1.5:  # room, so that a difference of some per cent does not look like a gulf
            ax.set_ylim(low / 1.2, high * 1.2)
        plots.log_y(ax)
        ax.set_ylabel(METRICS[metric])
        # Dynamics in the legend's first row, markers in its second; matplotlib fills columns.
        names = plots.ordered(colours)
        dots = [
            (ax.plot([], [], color=plots.INK, linestyle="none", **plots.marker("one_step", plots.INK))[0], ONE_STEP),
            (ax.plot([], [], linestyle="none", **plots.marker("heun", plots.INK))[0], f"Teacher, {most} NFE"),
        ]
        lines = [(ax.plot([], [], color=colours[d], linewidth=4)[0], plots.DYNAMICS.get(d, d)) for d in names]
        blank = (ax.plot([], [], linestyle="none")[0], "")
        columns = list(zip_longest(lines, dots, fillvalue=blank))
        handles, titles = zip(*(entry for column in columns for entry in column), strict=True)
        figure.legend(handles, titles, loc="outside lower center", ncols=len(columns))

    return plots.svg(draw, name=re.sub(r"\W", "-", name), label="Dots with bars: mean and standard deviation")


def _everything(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every variant, dynamics and sampler in a line: mean and sd over seeds."""
    keys = ["data", "variant", "dynamics", "sampler", "steps"]
    order = list(dict.fromkeys(table["variant"]))
    lines = []
    for key, rows in table.groupby(keys, sort=False):
        data, variant, dynamics, sampler, steps = key
        lines.append(
            {
                "order": (data, order.index(variant), list(plots.DYNAMICS).index(dynamics), steps, sampler),
                "cells": [
                    data,
                    variant,
                    plots.DYNAMICS[dynamics],
                    sampler.replace("_", " "),
                    int(steps),
                    *(summarised(rows[metric]) or MISSING for metric in METRICS),
                    summarised(rows["endpoint_rms"]) or MISSING,
                    rows["seed"].nunique(),
                ],
            }
        )
    return [line["cells"] for line in sorted(lines, key=lambda line: line["order"])]


def render(table: pd.DataFrame, *, missing: Sequence[tuple[str, str]], commit: str, created: str) -> str:
    """The page as HTML text: self-contained, the same for the same input. `missing`: (variant, reason).

    Raises ValueError where the table has no rows.
    """
    if table.empty:
        raise ValueError("the table has no rows: nothing to show")
    by_data = {data: rows for data, rows in table.groupby("data", sort=True)}
    questions = []
    for number, question in enumerate(QUESTIONS, start=1):
        answers = [answer(question, rows, data=data, number=number) for data, rows in by_data.items()]
        answers = [one for one in answers if one]
        if answers:
            questions.append({"question": question, "answers": answers, "tally": tally(answers), "id": f"q{number}"})
    facts = {
        "Data": ", ".join(by_data),
        "Seeds": "; ".join(
            f"{', '.join(names)}: {seeds}" if len(by_data) > 1 else seeds for seeds, names in _seeds(by_data)
        ),
    }
    return filled(
        TEMPLATE,
        facts=facts,
        commit=commit,
        created=created,
        careful=warned(table),
        questions=questions,
        everything=_everything(table),
        missing=missing,
        single=any(rows["seed"].nunique() < 2 for rows in by_data.values()),
    )


def warned(table: pd.DataFrame) -> list[str]:
    """What speaks against the figures of a table, which may have a column `warnings`."""
    return cautions.of_cells(table["warnings"]) if "warnings" in table else []


def filled(
    template: Path, *, facts: dict[str, str], commit: str, created: str, careful: Sequence[str] = (), **values: Any
) -> str:
    """A study's page: its template over page.html, the report's style, and what every list of facts ends with.

    careful: what speaks against its figures.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = files("ifm").joinpath("report.html").read_text(encoding="utf-8")
    return environment.get_template(template.name).render(
        style=Markup(re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL).group(1)),  # one look for all pages
        careful=careful,
        facts=facts | {"Commit": short_commit(commit), "Created": created},
        **values,
    )


def _seeds(by_data: dict[str, pd.DataFrame]) -> list[tuple[str, list[str]]]:
    """(seeds, data sets that have them)"""
    named = sorted((", ".join(map(str, sorted(rows["seed"].unique()))), data) for data, rows in by_data.items())
    return [(seeds, [data for _, data in group]) for seeds, group in groupby(named, key=lambda pair: pair[0])]
