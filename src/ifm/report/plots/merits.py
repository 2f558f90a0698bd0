"""What samples are judged by, and the other figures of merit, against the number of evaluations and against time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ifm.metrics import catalogue
from ifm.metrics.metric import SPREAD
from ifm.report.names import (
    DYNAMICS,
    INK,
    SAMPLERS,
    colour,
    flow_variants,
    judged,
    ordered,
    quality,
    unit,
    variant_title,
    widths,
)
from ifm.report.plots.figure import DASHED, LINE, SMALL, WIDE, log_ticks, log_y, marker, svg, swatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BESIDE = 0.11  # octaves of NFE from one dynamics' markers to the next one's
VARIANT_LINES = ("-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Series:
    """One line of a quality plot: the mean over seeds, and the least and largest value among them.

    With one seed of training, low and high are a standard deviation over sampling seeds from the mean.
    """

    dynamics: str
    variant: int  # index into the (objective, anchor) pairs shown
    line: pd.DataFrame  # columns x, fid (what is drawn), low, high, sampler; in the order of nfe
    sampler: str  # its marker


def drawn() -> list[catalogue.Metric]:
    """What is drawn against NFE besides what a page judges by."""
    return [metric for metric in catalogue.merits() if not metric.judges]


def quality_against_nfe(summary: pd.DataFrame, *, floor_fid: float | None = None) -> str:
    """FID (for points see `judged`) against the number of network evaluations, as SVG. See `_quality`."""
    words = {"label": f"{quality(summary)} against NFE", "title": quality(summary), "sample": unit(summary)}
    return _quality(judged(summary), "nfe", _nfe_axis(summary), floor=floor_fid, name="nfe", **words)


def metrics_against_nfe(summary: pd.DataFrame, floors: Mapping[str, float]) -> dict[str, str]:
    """{column: SVG}: each figure of merit that the rows have against NFE, besides what they are judged by.

    floors: what real data have, by column.
    """
    found = {}
    for metric in drawn():
        column, plot = metric.key, metric.plot
        values = summary[column].astype(float)
        if not np.isfinite(values).any() or not (summary[column] != 0).any():
            continue
        found[column] = _quality(
            summary.assign(fid=values, fid_sd=summary.get(column + SPREAD, np.nan)),
            "nfe",
            _nfe_axis(summary),
            floor=floors.get(column) if plot.real else None,
            name=column.replace("_", "-"),
            label=f"{metric.title} against NFE",
            title=metric.title,
            sample=unit(summary),
            log=plot.log,
            linear_within=plot.linear_within,
            legend=False,
        )
    return found


def quality_against_seconds(summary: pd.DataFrame, *, floor_fid: float | None = None) -> str:
    """FID against seconds per image, both logarithmic, with the Pareto front, as SVG. See `_quality`."""

    def axis(ax: "Axes") -> None:
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        ticks = log_ticks(low, high, most=6)
        ax.set_xticks(ticks, [_duration(tick) for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlim(low, high)
        ax.set_xlabel(f"Time per {unit(summary)}")

    return _quality(
        judged(summary),
        "seconds_per_image",
        axis,
        floor=floor_fid,
        name="seconds",
        label=f"{quality(summary)} against time per {unit(summary)}",
        title=quality(summary),
        sample=unit(summary),
        front=True,
    )


def pareto_front(cost: Sequence[float], loss: Sequence[float]) -> list[int]:
    """The points that no other one beats in both: indices, by growing cost and falling loss."""
    order = sorted(range(len(cost)), key=lambda i: (cost[i], loss[i]))
    found: list[int] = []
    for i in order:
        if not found or loss[i] < loss[found[-1]]:
            found.append(i)
    return found


def _nfe_axis(summary: pd.DataFrame) -> Callable[["Axes"], None]:
    largest = max(summary["nfe"], default=1)
    ticks = [2**k for k in range(math.floor(math.log2(max(largest, 1))) + 1)]

    def axis(ax: "Axes") -> None:
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlabel(f"Network evaluations per {unit(summary)} (NFE)")

    return axis


def _quality(
    summary: pd.DataFrame,
    x: str,
    axis: Callable[["Axes"], None],
    *,
    floor: float | None,
    name: str,
    label: str,
    title: str,
    sample: str,
    log: bool = True,
    linear_within: float | None = None,
    front: bool = False,
    legend: bool = True,
) -> str:
    """Column fid against column `x`: teacher dashed and hollow, flow filled, a marker for each sampler.

    Several seeds of training become their mean with a bar from the least to the largest, one has a bar of a standard
    deviation over sampling seeds each way; several (objective, anchor) pairs get a dash pattern each. front: the Pareto
    front of all means too. Raises ValueError where the rows span several data sets or extractors: their figures don't
    compare.
    """
    for column in ("data", "extractor"):
        if summary[column].nunique() > 1:
            raise ValueError(f"one plot, one {column}; got {sorted(summary[column].unique())}")
    variants = flow_variants(summary)
    lines = _series(_usable(summary, x, log=log), x, variants)
    shown = ordered([series.dynamics for series in lines])
    beside = {d: 2 ** (BESIDE * (i - (len(shown) - 1) / 2)) if x == "nfe" else 1.0 for i, d in enumerate(shown)}
    floor = floor if floor is not None and math.isfinite(floor) and (floor > 0 or not log) else None

    def draw(figure: "Figure") -> None:
        ax = figure.add_subplot()
        for series in lines:
            _draw_series(ax, series, log=log, width=widths(shown)[series.dynamics], shift=beside[series.dynamics])
        if floor is not None:
            ax.axhline(floor, color=INK, linewidth=0.9, alpha=0.75, zorder=1)
        if front:
            _draw_front(ax, lines)
        if log:
            ax.set_yscale("log")
        elif linear_within is not None:
            _symmetric_log_y(ax, linear_within)
        axis(ax)
        if log:
            log_y(ax)
        ax.set_ylabel(title)
        if legend:
            real = f"Real test {sample}s" if floor is not None else None
            _quality_legend(figure, lines, variants, floor=real, front=front)

    return svg(draw, name=name, label=label, size=WIDE if legend else SMALL)


def _usable(summary: pd.DataFrame, x: str, *, log: bool = True) -> pd.DataFrame:
    """The rows that the axes can show; x is logarithmic always."""
    values = summary[[x, "fid"]].astype(float)
    finite = np.isfinite(values).all(axis=1) & (values[x] > 0)
    return summary[finite & (values["fid"] > 0)] if log else summary[finite]


def _series(rows: pd.DataFrame, x: str, variants: Sequence[tuple[str, str]]) -> list[Series]:
    """Teachers first, so that the flow's markers lie on top. Multi-step samplers' lines start at the one step."""
    found = []
    for dynamics in ordered(list(rows["dynamics"])):
        mine = rows[rows["dynamics"] == dynamics]
        found.append(Series(dynamics, 0, _over_seeds(mine[mine["model"] == "teacher"], x), "heun"))
    for dynamics in ordered(list(rows["dynamics"])):
        flow = rows[(rows["dynamics"] == dynamics) & (rows["model"] == "flow")]
        for i, (objective, anchor) in enumerate(variants):
            of_variant = (flow["objective"].fillna("") == objective) & (flow["anchor"].fillna("") == anchor)
            for sampler in _drawn_in_order(flow["sampler"]):
                wanted = flow[of_variant & flow["sampler"].isin(["one_step", sampler])]
                if (wanted["sampler"] == sampler).any():
                    found.append(Series(dynamics, i, _over_seeds(wanted, x), sampler))
    return [series for series in found if len(series.line)]


def _drawn_in_order(samplers: pd.Series) -> list[str]:
    """Each sampler of the flow once: known ones in the legend's order, the one step last, on top."""
    return sorted(set(samplers), key=lambda s: (s == "one_step", list(SAMPLERS).index(s) if s in SAMPLERS else 99, s))


def _over_seeds(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    spread = rows["fid_sd"].astype(float).fillna(0) if "fid_sd" in rows else pd.Series(0.0, index=rows.index)
    alone = ~rows.duplicated(["nfe", "sampler"], keep=False)
    spread = spread.where(alone, 0.0)
    rows = rows.assign(low=rows["fid"] - spread, high=rows["fid"] + spread)
    grouped = rows.groupby(["nfe", "sampler"], as_index=False)
    return grouped.agg(x=(x, "mean"), low=("low", "min"), high=("high", "max"), fid=("fid", "mean"))


def _draw_series(ax: "Axes", series: Series, *, log: bool, width: float, shift: float) -> None:
    """width: a factor; shift: of x, so that the markers of several dynamics stand side by side."""
    teacher = series.sampler == "heun"
    line, shade = series.line.assign(x=series.line["x"] * shift), colour(series.dynamics)
    style = "--" if teacher else VARIANT_LINES[series.variant % len(VARIANT_LINES)]
    ax.plot(
        line["x"], line["fid"], linestyle=style, color=shade, linewidth=width * (DASHED if teacher else LINE), zorder=2
    )
    own = line[line["sampler"] == series.sampler]
    spread = own[own["high"] > own["low"]]
    low = spread["low"].clip(lower=1e-3 * spread["fid"]) if log else spread["low"]  # log of nothing below 0
    ax.vlines(spread["x"], low, spread["high"], color=shade, linewidth=1, zorder=2)
    dot = marker(series.sampler, shade, size=0.7 + 0.3 * width)
    ax.plot(own["x"], own["fid"], linestyle="none", zorder=3 if teacher else 4, color=shade, **dot)


def _draw_front(ax: "Axes", lines: Sequence[Series]) -> None:
    """A broad band along the means that no other one beats in both."""
    if not lines:
        return
    points = pd.concat([series.line for series in lines])
    chosen = points.iloc[pareto_front(list(points["x"]), list(points["fid"]))]
    ax.plot(chosen["x"], chosen["fid"], color=INK, alpha=0.22, linewidth=7, solid_capstyle="round", zorder=1.5)


def _symmetric_log_y(ax: "Axes", within: float) -> None:
    """Logarithmic away from zero on both sides; ticks at the powers of ten that the values reach, and at zero."""
    low, high = min(ax.dataLim.y0, -within / 2), ax.get_ylim()[1]
    high *= 1.25 if high > within else 1.0  # room for a marker on the logarithmic part
    ax.set_yscale("symlog", linthresh=within)
    powers = [within * 10**k for k in range(12)]
    ticks = [-p for p in reversed(powers) if -p > low] + [0.0] + [p for p in powers if p < high]
    ax.set_yticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    ax.set_yticks([], minor=True)
    ax.set_ylim(low, high)


def _quality_legend(
    figure: "Figure", lines: Sequence[Series], variants: Sequence, *, floor: str | None, front: bool
) -> None:
    """Two columns: colours of the dynamics, floor and front; markers of the samplers and dashes of the variants."""
    from matplotlib.lines import Line2D

    def entry(title: str, **style) -> tuple[Line2D, str]:
        return Line2D([], [], **{"color": INK, "linewidth": 1.3, **style}), title

    shown = ordered([series.dynamics for series in lines])
    left = [(swatch(key, shown), DYNAMICS.get(key, key)) for key in shown]
    if floor:
        left.append(entry(floor, linewidth=0.9, alpha=0.75))
    if front:
        left.append(entry("Pareto front", linewidth=7, alpha=0.22))
    dashes = {"heun": "--", "one_step": "none"}
    right = [
        entry(SAMPLERS.get(key, f"Flow, {key}"), linestyle=dashes.get(key, "-"), **marker(key, INK))
        for key in [*SAMPLERS, *sorted({series.sampler for series in lines} - set(SAMPLERS))]
        if any(series.sampler == key for series in lines)
    ]
    if len(variants) > 1:
        right += [
            entry(variant_title(*pair), linestyle=VARIANT_LINES[i % len(VARIANT_LINES)])
            for i, pair in enumerate(variants)
        ]
    blank = entry("", linestyle="none")
    rows = max(len(left), len(right))
    entries = left + [blank] * (rows - len(left)) + right + [blank] * (rows - len(right))
    if entries:
        handles, titles = zip(*entries, strict=True)
        figure.legend(handles, titles, loc="outside lower center", ncols=2)


def _duration(seconds: float) -> str:
    """0.002 -> 2 ms; 0.00002 -> 20 µs."""
    units = {"s": 1.0, "ms": 1e3, "µs": 1e6}
    unit = next((unit for unit, factor in units.items() if seconds * factor >= 0.9995), "µs")
    return f"{seconds * units[unit]:,.6g} {unit}"
