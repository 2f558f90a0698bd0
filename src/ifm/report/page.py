"""The report: one self-contained HTML page.

The page shows what the numbers say and adds no verdict: a bad ratio stands there as plainly as a good one.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from ifm.metrics import catalogue, cautions
from ifm.metrics.metric import FLOOR
from ifm.report import names, plots
from ifm.report.asked import asked
from ifm.report.assets import asset
from ifm.report.contents import Report
from ifm.report.diagnostics import diagnostics
from ifm.report.headlines import Estimate, best_teachers, decimals_of, headline_cells, headlines, outdated
from ifm.report.opening import opening
from ifm.report.protocol import how, protocol, span
from ifm.report.published import benchmark_of
from ifm.report.rounding import fixed, significant
from ifm.report.samples import classes, memorisation, pictures, scatters, texts
from ifm.report.sounds import players
from ifm.report.summary import check
from ifm.report.tables import full_table


def render(report: Report) -> str:
    """The page as HTML text: self-contained, the same for the same input.

    `curves`, `grids`, `points`, `texts`, `class_shares` (with `real_shares` and `classes`), `diagnostics`, `reference`
    and its keys, and `versions` may be empty or None; their parts are left out. Raises ValueError where the summary is
    empty, lacks a column, where a grid is not a PNG, or where shares and classes differ in number.
    """
    check(report.summary)
    if report.summary.empty:
        raise ValueError("the summary has no rows: nothing to report")
    whole, report = report.summary, replace(report, summary=names.at_own_scale(report.summary))
    panels = plots.training_curves(report.curves)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["short_commit"] = short_commit
    template = environment.from_string(files("ifm.report").joinpath("report.html").read_text(encoding="utf-8"))
    groups = report.summary.groupby(["data", "extractor"], sort=False)
    return template.render(
        style=asset("style.css"),
        sort=asset("sort.js"),
        metric_captions={metric.key: metric.caption for metric in plots.drawn()},
        report=report,
        opening=opening(report.summary, data=report.data),
        measures=[_measure(rows, report.reference) for _, rows in groups],
        sample=names.unit(report.summary),
        dimensions=max((mine.data.shape[1] for mine in report.points.values()), default=None),
        pictures=pictures(report.grids, report.real, sample=names.unit(report.summary)),
        players=players(report.sounds),
        memorisation=memorisation(report),
        batches=_batches(report),
        scatters=scatters(report.points),
        texts=texts(report),
        table=full_table(whole),
        classes=classes(report),
        asked=asked(report),
        diagnostics=diagnostics(report.diagnostics),
        curves=[(names.STAGES[stage], Markup(svg)) for stage, svg in panels.items()],
        quality=_quality_by_step(report),
        protocol=protocol(report),
        warnings=warnings_of(report),
        published=benchmark_of(report),
    )


def _quality_by_step(report: Report) -> dict[str, Any] | None:
    """The panel beside the losses, its title and what is measured; None where no states were judged."""
    if not report.by_step:
        return None
    told = next(iter(report.by_step.values()))
    kept = {names.DYNAMICS.get(d, d): report.by_step[d]["kept"] for d in names.ordered(report.by_step)}
    return {
        "title": f"Flow: {catalogue.get(told['metric']).title} in one step",
        "svg": Markup(plots.quality_by_step(report.by_step)),
        "count": told["count"],
        "kept": ", ".join(f"{name} {step:,}" for name, step in kept.items()),
    }


def _measure(summary: pd.DataFrame, reference: Mapping[str, Any]) -> dict[str, Any]:
    """Headline and plots of one (data, extractor); the reference's floor belongs to its own extractor only."""
    data, extractor = (str(summary[column].iloc[0]) for column in ("data", "extractor"))
    real, summary = summary[summary["model"] == "data"], names.of_models(summary)
    floors = {
        c: float(real[c].iloc[0]) for c in (m.key for m in plots.drawn()) if len(real) and pd.notna(real[c].iloc[0])
    }
    lines = headlines(summary)
    judge = catalogue.judge(names.kind(summary))
    floor = (
        reference.get(FLOOR + judge.key, floors.get(judge.key))
        if reference.get("extractor", extractor) == extractor
        else None
    )
    cells = headline_cells(lines)
    seeds, sets = summary["seed"].nunique(), summary["seeds"].max()
    return {
        "data": data,
        "extractor": extractor,
        "quality": names.quality(summary),
        "sample": names.unit(summary),
        "lines": cells,
        "steps": sorted({nfe for line in cells for nfe in line["steps"]}),
        "nearest": any(line["nearest"] for line in cells),
        "variants": any(line.variant for line in lines),
        "seeds": seeds if seeds > 1 else None,
        "sets": int(sets) if seeds == 1 and sets > 1 else None,
        "reconstruction": _reconstruction(reference, extractor),
        "floor": None if floor is None or not math.isfinite(floor) else significant(floor),
        "samples": span(summary["n_samples"]),
        "how": how(reference, summary),
        "bias": _bias(summary),
        "against_nfe": Markup(plots.quality_against_nfe(summary, floor_fid=floor)),
        "against_seconds": Markup(plots.quality_against_seconds(summary, floor_fid=floor)),
        "metrics": {key: Markup(svg) for key, svg in plots.metrics_against_nfe(summary, floors).items()},
        "real_lines": any(catalogue.get(key).plot.real for key in floors),
    }


def _reconstruction(reference: Mapping[str, Any], extractor: str) -> str | None:
    """The FID of an autoencoder alone, where the models are of latents."""
    found = reference.get("reconstruction_fid") if reference.get("extractor", extractor) == extractor else None
    return None if found is None else significant(found)


def _bias(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """FID at two numbers of samples and extrapolated, of the flow in one step and the teacher at its best."""
    judge = catalogue.judge(names.kind(summary))
    of_teacher = names.judged(summary)[summary["model"] == "teacher"].groupby("dynamics", sort=False)
    best = [best_teachers(rows, judge=judge) for _, rows in of_teacher]
    chosen = pd.concat([summary[summary["sampler"] == "one_step"], *best])
    chosen = chosen[chosen["fid_extrapolated"].notna()]
    decimals = decimals_of([Estimate(float(v), None, 1) for v in chosen["fid"]])
    rows = []
    for dynamics in names.ordered(list(chosen["dynamics"])):
        for _, row in chosen[chosen["dynamics"] == dynamics].iterrows():
            sets = int(row["seeds"]) if pd.notna(row["seeds"]) else 1
            small = int(row["n_samples"]) if sets > 1 else int(row["n_samples"]) // 2
            rows.append(
                {
                    "name": names.DYNAMICS.get(dynamics, dynamics),
                    "colour": names.css_colour(dynamics),
                    "model": "flow, 1 step" if row["model"] == "flow" else f"teacher, {int(row['nfe'])} NFE",
                    "small": f"{small:,}",
                    "large": f"{int(row['n_samples']) * sets:,}",
                    "fids": [fixed(row[key], max(decimals, 3)) for key in ("fid", "fid_pooled", "fid_extrapolated")],
                }
            )
    return rows


def _batches(report: Report) -> list[dict[str, Any]]:
    """What an image takes the flow in one step, in batches of several sizes: milliseconds, a row for each dynamics."""
    rows = []
    for dynamics in names.ordered(report.batch_seconds):
        taken = report.batch_seconds[dynamics]
        best = min(taken.values(), default=None)
        rows.append(
            {
                "name": names.DYNAMICS.get(dynamics, dynamics),
                "colour": names.css_colour(dynamics),
                "cells": [(significant(1e3 * seconds), seconds == best) for _, seconds in sorted(taken.items())],
                "sizes": [f"{size:,}" for size in sorted(taken)],
            }
        )
    return rows


def warnings_of(report: Report) -> list[str]:
    """What speaks against the figures of the page: of the reference, of each row, of the diagnostics."""
    of_rows = cautions.of_cells(report.summary["warnings"])
    groups = report.summary.groupby(["data", "extractor"], sort=False)
    old = [outdated(rows) for _, rows in groups]
    of_paths = [cautions.told(found) for found in report.diagnostics.values()]
    return cautions.together([cautions.told(report.reference), of_rows, *of_paths, *old])


def short_commit(text: str) -> str:
    """The text with ten characters of each commit's name that stands there in full."""
    return re.sub(r"\b(?:[0-9a-f]{40}|[0-9a-f]{64})\b", lambda name: name[0][:10], text)
