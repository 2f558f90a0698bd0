"""The sweep's page: configurations by rank, and what each axis does to the figure they are ranked by."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from ifm.metrics import catalogue
from ifm.report import plots
from pipeline.studies.pages.page import dynamics_title, filled, sampler_title, warned
from pipeline.studies.ranking import with_deviation

TEMPLATE = Path(__file__).with_name("sweep.html")
WIDE_RANGE = 20  # largest over smallest, from which an axis is logarithmic
PANELS_IN_A_ROW = 3


def render(
    table: pd.DataFrame,
    *,
    axes: Sequence[str],
    metric: str,
    higher: bool,
    missing: Sequence[tuple[str, str]],
    commit: str,
    created: str,
) -> str:
    """The page as HTML text: self-contained, the same for the same input.

    table: reports/sweep.csv's (`pipeline.studies.sweep.ranked`); missing: (configuration, reason).
    """
    varied = [key for key in axes if table[key].nunique() > 1]
    fixed = {key: table[key].iloc[0] for key in axes if key not in varied}
    figures = [column for column in table.columns if f"{column}_sd" in table.columns and column != "score"]
    several = table["dynamics"].nunique() > 1
    mean = ["Mean"] if several else []
    heads = ["Rank", *varied, *mean, "Dynamics", *(catalogue.title(m) for m in figures), "Seeds"]
    first, best = table.iloc[0], table["rank"].min()
    return filled(
        TEMPLATE,
        facts={
            "Data": first["data"],
            "Ranked by": catalogue.title(metric),
            **{key: str(value) for key, value in fixed.items()},
            "Configurations": str(table["rank"].nunique()),
        },
        commit=commit,
        created=created,
        careful=warned(table),
        seeds=int(table["seeds"].max()),
        higher=higher,
        svg=Markup(_figure(table, varied, metric)),
        panels=min(max(len(varied), 1), PANELS_IN_A_ROW),
        heads=[{"title": head, "number": head not in (*varied, "Dynamics")} for head in heads],
        rows=[
            {
                "best": row["rank"] == best,
                "cells": [
                    row["rank"],
                    *(row[key] for key in varied),
                    *([with_deviation(row["score"], row["score_sd"])] if several else []),
                    dynamics_title(row["dynamics"]),
                    *(with_deviation(row[m], row[f"{m}_sd"]) for m in figures),
                    row["seeds"],
                ],
            }
            for row in table.to_dict("records")
        ],
        metric=catalogue.title(metric),
        sampler=sampler_title(first["sampler"]),
        nfe=" or ".join(dict.fromkeys(str(nfe) for nfe in table["nfe"])),  # the teacher's best may be several
        best=first["experiments"].split()[0],
        missing=missing,
    )


def _figure(table: pd.DataFrame, axes: Sequence[str], metric: str) -> str:
    """A panel for each axis: the figure against its values, a colour for each dynamics."""
    dynamics = plots.ordered(list(table["dynamics"]))
    panels = list(axes) or ["rank"]
    columns = min(len(panels), PANELS_IN_A_ROW)
    lines = math.ceil(len(panels) / columns)
    positive = bool((table[metric] > 0).all())

    def draw(figure: Any) -> None:
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for ax, key in zip(grid.flat, panels, strict=False):
            places, labels = _places(table[key])
            width = 0.12 if labels else 0.0
            for i, d in enumerate(dynamics):
                mine = table[table["dynamics"] == d]
                x = [places[value] + width * (i - (len(dynamics) - 1) / 2) for value in mine[key]]
                shade = plots.colour(d)
                for at, mean, deviation in zip(x, mine[metric], mine[f"{metric}_sd"], strict=True):
                    if deviation > 0:
                        low = max(mean - deviation, mean / 20) if positive else mean - deviation
                        ax.vlines(at, low, mean + deviation, color=shade, linewidth=1.4, zorder=2)
                dot = plots.marker("one_step", shade, size=0.7 + 0.3 * plots.widths(dynamics)[d])
                ax.plot(x, mine[metric], color=shade, zorder=3, linestyle="none", **dot)
            if labels:
                ax.set_xticks(range(len(labels)), labels)
                ax.set_xlim(-0.5, len(labels) - 0.5)
                ax.grid(axis="x", visible=False)
            elif min(places.values()) > 0 and max(places.values()) / min(places.values()) > WIDE_RANGE:
                ax.set_xscale("log")
            ax.set_xlabel(key)
            if positive:
                ax.set_yscale("log")
        for ax in list(grid.flat)[len(panels) :]:
            ax.set_visible(False)
        if positive:
            low, high = grid[0, 0].get_ylim()
            if high / low < 1.5:  # room, so that a difference of some per cent does not look like a gulf
                grid[0, 0].set_ylim(low / 1.2, high * 1.2)
            for line in grid:
                plots.log_y(line[0])
        for line in grid:
            line[0].set_ylabel(catalogue.title(metric))
        handles = [grid[0, 0].plot([], [], color=plots.colour(d), linewidth=4)[0] for d in dynamics]
        figure.legend(handles, [dynamics_title(d) for d in dynamics], loc="outside lower center", ncols=len(dynamics))

    size = (3.0 * columns + 0.6, 2.8 * lines + 0.4)
    label = f"{catalogue.title(metric)} against {', '.join(panels)}"
    return plots.svg(draw, name="sweep", label=label, size=size)


def _places(values: pd.Series) -> tuple[dict[Any, float], list[str]]:
    """Where each value stands, and the labels of a scale without numbers; few numbers are labelled one by one."""
    known = list(dict.fromkeys(values))
    texts = [str(value) for value in known]
    numbers = all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text) for text in texts)
    if numbers and len(known) > 6:
        return {value: float(value) for value in known}, []
    order = sorted(known, key=lambda value: float(value)) if numbers else known
    return {value: float(i) for i, value in enumerate(order)}, [str(value) for value in order]
