"""The ablation's page: for each question the paper's claim, what was measured, and whether the two agree.

Every sentence about a result is computed from the table: means and standard deviations over seeds, never the best one.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from ifm.metrics import catalogue
from ifm.report import plots
from ifm.report.headlines import nfe_text
from ifm.report.rounding import MISSING, significant
from pipeline.studies.pages.estimates import (
    CONTRADICTED,
    HOLDS,
    UNDECIDED,
    UNMEASURED,
    Estimate,
    judged_by,
    mean_ratio,
    summarised,
    verdict,
)
from pipeline.studies.pages.page import dynamics_title, filled, warned
from pipeline.studies.pages.questions import QUESTIONS, Contrast, Question, Setting

ONE_STEP = "One evaluation, mean ± sd"
TEMPLATE = Path(__file__).with_name("ablation.html")


def estimate(table: pd.DataFrame, setting: Setting, *, metric: str, dynamics: str | None) -> Estimate | None:
    """One setting's figure over its seeds, from the one-step rows of one data set; None where not measured."""
    of = setting.dynamics or dynamics
    mine = table[(table["variant"] == setting.variant) & (table["dynamics"] == of) & (table["sampler"] == "one_step")]
    return summarised(mine.set_index("seed")[f"{setting.prefix}{metric}"])


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
    beside = (m.key for m in catalogue.studied() if not m.judges and table[m.key].notna().any())
    second = next(beside, None)
    lines = []
    for contrast in question.contrasts:
        for d in groups:
            first, other = found[contrast.first, d], found[contrast.second, d]
            if first and other:
                lines.append(
                    {
                        "name": dynamics_title(d) if d else "PFGM++",
                        "colour": plots.css_colour(d or "pfgmpp"),
                        "text": sentence(contrast, first, other),
                        "verdict": verdict(first, other) if contrast.judged else None,
                    }
                )
    return {
        "data": data,
        "metric": catalogue.title(metric),
        "svg": Markup(_figure(shown, groups, found, table, metric=metric, name=f"q{number}-{data}")),
        "heads": [dynamics_title(d) if d else "PFGM++ and VE" for d in groups],
        "second": catalogue.title(second) if second else None,
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
    """Dots with bars of one standard deviation, a colour for each dynamics; hollow: the teacher at its best NFE."""

    def draw(figure: Any) -> None:
        ax = figure.add_subplot()
        best = nfe_text([int(nfe) for nfe in table["teacher_nfe"].dropna()])
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
        ax.set_ylabel(catalogue.title(metric))
        # Dynamics in the legend's first row, markers in its second; matplotlib fills columns.
        names = plots.ordered(colours)
        dots = [
            (ax.plot([], [], color=plots.INK, linestyle="none", **plots.marker("one_step", plots.INK))[0], ONE_STEP),
            (
                ax.plot([], [], linestyle="none", **plots.marker("heun", plots.INK))[0],
                f"Teacher, {best or MISSING} NFE",
            ),
        ]
        lines = [(ax.plot([], [], color=colours[d], linewidth=4)[0], dynamics_title(d)) for d in names]
        blank = (ax.plot([], [], linestyle="none")[0], "")
        columns = list(zip_longest(lines, dots, fillvalue=blank))
        handles, titles = zip(*(entry for column in columns for entry in column), strict=True)
        figure.legend(handles, titles, loc="outside lower center", ncols=len(columns))

    return plots.svg(draw, name=re.sub(r"\W", "-", name), label="Dots with bars: mean and standard deviation")


def _everything(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every variant, dynamics and sampler in a line: mean and sd over seeds."""
    keys = ["data", "variant", "dynamics", "sampler", "steps"]
    order, places = list(dict.fromkeys(table["variant"])), plots.ordered(table["dynamics"])
    lines = []
    for key, rows in table.groupby(keys, sort=False):
        data, variant, dynamics, sampler, steps = key
        lines.append(
            {
                "order": (data, order.index(variant), places.index(dynamics), steps, sampler),
                "cells": [
                    data,
                    variant,
                    dynamics_title(dynamics),
                    sampler.replace("_", " "),
                    int(steps),
                    *(summarised(rows[metric]) or MISSING for metric in _studied()),
                    summarised(rows["endpoint_rms"]) or MISSING,
                    rows["seed"].nunique(),
                ],
            }
        )
    return [line["cells"] for line in sorted(lines, key=lambda line: line["order"])]


def _studied() -> list[str]:
    return [metric.key for metric in catalogue.studied()]


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
        heads=["Steps", *(catalogue.title(metric) for metric in _studied()), "End-point RMS", "Seeds"],
        everything=_everything(table),
        missing=missing,
        single=any(rows["seed"].nunique() < 2 for rows in by_data.values()),
    )


def _seeds(by_data: dict[str, pd.DataFrame]) -> list[tuple[str, list[str]]]:
    """(seeds, data sets that have them)"""
    named = sorted((", ".join(map(str, sorted(rows["seed"].unique()))), data) for data, rows in by_data.items())
    return [(seeds, [data for _, data in group]) for seeds, group in groupby(named, key=lambda pair: pair[0])]
