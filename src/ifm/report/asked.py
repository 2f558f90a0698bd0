"""The report's section on samples that were asked to be of a class, and on guidance towards it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from ifm.metrics import catalogue
from ifm.metrics.metric import SPREAD
from ifm.report import names, plots
from ifm.report.contents import AskedClasses, Report
from ifm.report.headlines import Estimate, best_teachers, estimate, written
from ifm.report.rounding import MISSING, significant
from ifm.report.samples import picture_of

SHARE = "asked_class_share"
GUIDED = (SHARE, "recall")  # drawn against the guidance scale, behind what the page judges by


def asked(report: Report) -> dict[str, Any] | None:
    """What the template needs; None where no sample was asked to be of a class."""
    if not report.asked or report.classes is None:
        return None
    of, titles = report.asked, [str(title) for title in report.classes]
    quality = names.quality(report.summary)
    figures = {}
    shares = {d: one.shares for d, one in of.items() if one.shares}
    if shares:
        svg = plots.by_class(shares, classes=titles, name="asked-shares", title="In the class asked for (%)", scale=100)
        sees = "by the nearest centre" if names.unit(report.summary) == "point" else "as the classifier sees them"
        figures[f"Share of each class’s samples in one step that are of it, {sees}."] = svg
    fids = {d: one.fids for d, one in of.items() if one.fids}
    if fids:
        svg = plots.by_class(fids, classes=titles, name="asked-fids", title=f"{quality} within the class")
        figures[f"{quality} of each class’s samples in one step against its real {names.unit(report.summary)}s."] = svg
    return {
        "figures": [(caption, Markup(svg)) for caption, svg in figures.items()],
        "rows": [_row(report.summary, d) for d in names.ordered(of)],
        "quality": quality,
        "grids": [
            {"name": names.DYNAMICS.get(d, d), "colour": names.css_colour(d)}
            | {"picture": picture_of("a row for each class", of[d].grid, names.DYNAMICS.get(d, d))}
            for d in names.ordered(of)
            if of[d].grid
        ],
        "guidance": _guidance(report.summary, of),
    }


def _row(summary: pd.DataFrame, dynamics: str) -> dict[str, Any]:
    """The flow in one step and the teacher at its best: the share in the class asked for; FID within classes."""
    one_step = summary[(summary["dynamics"] == dynamics) & (summary["sampler"] == "one_step")]
    judge = catalogue.judge(names.kind(summary))
    judged = names.judged(summary)
    best = best_teachers(judged[(judged["dynamics"] == dynamics) & (judged["model"] == "teacher")], judge=judge)
    found = {"name": names.DYNAMICS.get(dynamics, dynamics), "colour": names.css_colour(dynamics)}
    for who, rows in (("flow", one_step), ("teacher", best)):
        within = estimate(rows, "fid_within_classes")
        found[who] = {"share": _percent(estimate(rows, SHARE)), "fid": (within and significant(within.mean)) or MISSING}
    return found


def _percent(found: Estimate | None) -> str:
    if found is None:
        return MISSING
    spread = None if found.deviation is None else 100 * found.deviation
    return written(Estimate(100 * found.mean, spread, found.seeds), 1)


def _guidance(summary: pd.DataFrame, of: Mapping[str, AskedClasses]) -> dict[str, Any] | None:
    """Plots against the guidance scale, and a table with a row for each dynamics and scale; None where none is."""
    rows = {d: one.guided for d, one in of.items() if one.guided}
    if not rows:
        return None
    judge = catalogue.judge(names.kind(summary))
    columns = [judge, *(catalogue.get(key) for key in GUIDED)]
    columns = [m for m in columns if any(row.get(m.key) is not None for mine in rows.values() for row in mine)]
    drawn = [(m, plots.against_guidance(rows, key=m.key, title=m.title, log=m.judges)) for m in columns]
    return {
        "figures": [(m.caption, Markup(svg)) for m, svg in drawn if svg],
        "titles": [m.title for m in columns],
        "rows": [line for d in names.ordered(rows) for line in _lines(d, rows[d], [m.key for m in columns])],
    }


def _lines(dynamics: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each model and scale: the flow's first."""
    ordered = sorted(rows, key=lambda row: (row["model"].partition("-")[0], row["guidance"]))
    return [
        {
            "name": names.DYNAMICS.get(dynamics, dynamics),
            "colour": names.css_colour(dynamics),
            "model": "flow, 1 step" if row["model"].startswith("flow") else f"teacher, {row['nfe']} NFE",
            "w": f"{row['guidance']:g}",
            "cells": [_cell(row, key) for key in keys],
        }
        for row in ordered
    ]


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return MISSING if value is None else written(Estimate(value, row.get(key + SPREAD), row.get("seeds") or 1), 3)
