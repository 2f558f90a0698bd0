"""Figures as SVG text and pictures as PNG; the only module that imports matplotlib.

A figure is the same text for the same input. It has no background, and its axes and lettering take
`currentColor`, so one figure serves a light and a dark page. Text stays text, in the page's own font. Figures are
drawn without pyplot: matplotlib is imported at the first figure, and no state is shared.
"""

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DYNAMICS = {"ve": "VE diffusion", "rf": "Rectified flow", "pfgmpp": "PFGM++"}
SAMPLERS = {
    "heun": "Teacher, Heun",
    "one_step": "Flow, one step",
    "anchor": "Flow, anchor refined",
    "renoise": "Flow, re-noised",
    "chain": "Flow, sub-intervals",
}
STAGES = {"teacher": "Teacher", "flow": "Flow"}
METRICS = {  # drawn against NFE besides what a page judges by
    "kid": "KID",
    "inception_score": "Inception score",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "energy_distance": "Energy distance",
}
LOGARITHMIC = ("energy_distance",)
BOTH_SIGNS = {"kid": 0.1}  # logarithmic beyond this, linear within
FLOORED = ("kid", "precision", "density")  # that real data have whatever their number
POINTS = "coordinates"  # the extractor of points
QUALITY = {"fid": "FID", "sliced_wasserstein": "Sliced 2-Wasserstein"}  # what a page judges by: the first it has

OKABE_ITO = {"ve": "#0072B2", "rf": "#D55E00", "pfgmpp": "#009E73"}
OTHER_COLOURS = ("#CC79A7", "#E69F00")
MARKERS = {"heun": "o", "one_step": "o", "anchor": "s", "renoise": "^", "chain": "D"}
VARIANT_LINES = ("-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

INK, PAPER = "#010203", "#040506"  # drawn in the SVG, then replaced
PAINT = {
    INK: "currentColor",
    PAPER: "var(--paper, #fff)",
    "#0072b2": "var(--blue, #0072b2)",  # the one colour of the set that is dim on a dark page
}
LINE, DASHED = 1.6, 1.3  # widths in units, of the narrowest curve about
BESIDE = 0.11  # octaves of NFE from one dynamics' markers to the next one's
WIDE, SMALL, SIZE = (5.4, 3.7), (5.4, 2.6), 10.0  # inches (of 72 units), text height in units
CURVE_POINTS, LABEL = 300, 16  # of a curve; characters of a class's name under its bar
SQUARE, DATA_GREY, PATHS_SHOWN = (3.6, 3.5), "#8a8f96", 48

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class name may hold a dollar sign
    "font.size": SIZE,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": SIZE - 0.5,
    "ytick.labelsize": SIZE - 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": SIZE - 0.5,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.0,
}


@dataclass(frozen=True)
class Series:
    """One line of a quality plot: the mean over seeds, and the least and largest value among them.

    With one seed of training, low and high are a standard deviation over sampling seeds from the mean.
    """

    dynamics: str
    variant: int  # index into the (objective, anchor) pairs shown
    line: pd.DataFrame  # columns x, fid (what is drawn), low, high, sampler; in the order of nfe
    sampler: str  # its marker


# --- figures ------------------------------------------------------------------------------------------------


def quality_against_nfe(summary: pd.DataFrame, *, floor_fid: float | None = None) -> str:
    """FID (for points see `judged`) against the number of network evaluations, as SVG. See `_quality`."""
    words = {"label": f"{quality(summary)} against NFE", "title": quality(summary), "sample": unit(summary)}
    return _quality(judged(summary), "nfe", _nfe_axis(summary), floor=floor_fid, name="nfe", **words)


def metrics_against_nfe(summary: pd.DataFrame, floors: Mapping[str, float]) -> dict[str, str]:
    """{column: SVG}: each of METRICS that the rows have against NFE; floors: what real data have."""
    found = {}
    for column, title in METRICS.items():
        values = summary[column].astype(float)
        if not np.isfinite(values).any() or not (summary[column] != 0).any():
            continue
        found[column] = _quality(
            summary.assign(fid=values, fid_sd=summary[f"{column}_sd"]),
            "nfe",
            _nfe_axis(summary),
            floor=floors.get(column) if column in FLOORED else None,
            name=column.replace("_", "-"),
            label=f"{title} against NFE",
            title=title,
            sample=unit(summary),
            log=column in LOGARITHMIC,
            linear_within=BOTH_SIGNS.get(column),
            legend=False,
        )
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


def quality_against_seconds(summary: pd.DataFrame, *, floor_fid: float | None = None) -> str:
    """FID against seconds per image, both logarithmic, with the Pareto front, as SVG. See `_quality`."""

    def axis(ax: "Axes") -> None:
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        ticks = _log_ticks(low, high, most=6)
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


def quality(summary: pd.DataFrame) -> str:
    """What the rows are judged by: "FID", or for points, which have none, "Sliced 2-Wasserstein"."""
    return QUALITY["sliced_wasserstein" if unit(summary) == "point" else "fid"]


def unit(summary: pd.DataFrame) -> str:
    """What one sample is: "image" or "point", as the extractor says; "sample" where the rows are of both."""
    if "extractor" in summary:
        points = summary["extractor"] == POINTS
    else:
        points = summary["fid"].isna() & summary["sliced_wasserstein"].notna()
    return "point" if points.all() and len(points) else "sample" if points.any() else "image"


def judged(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows with what they are judged by in the column fid."""
    if unit(summary) != "point":
        return summary
    deviation = summary.get("sliced_wasserstein_sd", np.nan)
    return summary.assign(fid=summary["sliced_wasserstein"], fid_sd=deviation)


def scatter(points: np.ndarray, *, data: np.ndarray, shade: str, name: str, label: str) -> str:
    """Points [n, d >= 2] over data [m, d] in grey, their first two coordinates, as SVG; axes are set by the data."""

    def draw(figure: "Figure") -> None:
        ax = figure.add_subplot()
        ax.scatter(*data[:, :2].T, s=5, color=DATA_GREY, alpha=0.5, linewidths=0, rasterized=True)
        ax.scatter(*points[:, :2].T, s=5, color=shade, alpha=0.7, linewidths=0, rasterized=True)
        _square(ax, data)

    return svg(draw, name=name, label=label, size=SQUARE)


def path_lines(paths: np.ndarray, *, data: np.ndarray, shade: str, name: str, label: str) -> str:
    """Paths [n, K, d >= 2] from noise to data over data [m, d] in grey, as SVG: a line each, a dot at its end.

    The states of each time are scaled to the root mean square of the end points: noise can be 100 times wider.
    """
    rms = np.sqrt((paths.astype(np.float64) ** 2).mean(axis=(0, 2)))  # [K]
    lines = paths * (rms[-1] / np.maximum(rms, 1e-12))[None, :, None]

    def draw(figure: "Figure") -> None:
        ax = figure.add_subplot()
        ax.scatter(*data[:, :2].T, s=5, color=DATA_GREY, alpha=0.5, linewidths=0, rasterized=True)
        for line in lines[:PATHS_SHOWN]:
            ax.plot(*line[:, :2].T, color=shade, linewidth=0.8, alpha=0.7)
        ax.plot(*lines[:PATHS_SHOWN, -1, :2].T, "o", ms=2.6, color=shade, markeredgewidth=0)
        _square(ax, data, reach=1.7)  # the noise is wider than most data

    return svg(draw, name=name, label=label, size=SQUARE)


def training_curves(curves: Mapping[tuple[str, str], pd.DataFrame]) -> dict[str, str]:
    """Loss against step: an SVG for each stage ("teacher", then "flow"), a colour for each dynamics.

    `curves` maps (stage, dynamics) to a frame with the columns step and loss. Long curves are averaged over
    stretches of equal length, `CURVE_POINTS` at the most. A stage without a finite positive loss is left out.
    """
    stages = [stage for stage in STAGES if any(key[0] == stage for key in curves)]
    panels = {}
    for stage in stages:
        mine = {dynamics: thinned(curve) for (of, dynamics), curve in curves.items() if of == stage}
        mine = {dynamics: curve for dynamics, curve in mine.items() if len(curve)}
        if mine:
            panels[stage] = _curve_panel(stage, mine)
    return panels


def class_histogram(
    shares: Mapping[str, Sequence[float]],
    *,
    real_shares: Sequence[float],
    classes: Sequence[str],
    sample: str = "image",
) -> str:
    """The share of each class among samples (a dot for each dynamics) and among real ones (a bar), as SVG.

    Raises ValueError where a list of shares is not as long as `classes`.
    """
    for name, values in {"real_shares": real_shares, **shares}.items():
        if len(values) != len(classes):
            raise ValueError(f"{name}: {len(values)} shares for {len(classes)} classes")
    dynamics = ordered(shares)

    def draw(figure: "Figure") -> None:
        ax = figure.add_subplot()
        positions = np.arange(len(classes))
        bars = ax.bar(positions, np.multiply(real_shares, 100), width=0.72, color=INK, alpha=0.17, linewidth=0)
        dots = []
        for i, key in enumerate(dynamics):
            beside = positions + 0.18 * (i - (len(dynamics) - 1) / 2)
            rim = {"markeredgecolor": PAPER, "markeredgewidth": 0.7}
            size = min(5.5, max(1.8, 330 / len(classes) / len(dynamics)))
            dots += ax.plot(beside, np.multiply(shares[key], 100), "o", ms=size, color=colour(key), **rim)
        shown = positions[:: -(-len(classes) // 24)]
        names = [_shortened(classes[i]) for i in shown]
        slanted = max(map(len, names)) * len(shown) > 50
        slant = {"rotation": 45, "ha": "right"} if slanted else {}
        ax.set_xticks(shown, names, **slant)
        ax.tick_params(axis="x", length=0)
        ax.grid(axis="x", visible=False)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("Share (%)")
        ax.set_xlabel("Class")
        names = [f"Real {sample}s", *(DYNAMICS.get(key, key) for key in dynamics)]
        figure.legend([bars, *dots], names, loc="outside lower center", ncols=4)

    return svg(draw, name="classes", label=f"Share of each class among samples and among real {sample}s")


def _shortened(name: str) -> str:
    """A class's name as long as a tick's label may be."""
    return name if len(name) <= LABEL else name[: LABEL - 1].rstrip() + "…"


def colour(dynamics: str) -> str:
    """The colour of a dynamics: of the Okabe-Ito set, distinguishable with any colour vision."""
    return OKABE_ITO.get(dynamics) or OTHER_COLOURS[sum(dynamics.encode()) % len(OTHER_COLOURS)]


def widths(dynamics: Mapping[str, object] | Sequence[str]) -> dict[str, float]:
    """Factors of line widths, falling in the order of drawing: of curves that lie on each other, each one is seen."""
    names = ordered(dynamics)
    step = min(0.7, 2 / max(len(names) - 1, 1))
    return {key: 1.0 if len(names) == 1 else 0.8 + step * (len(names) - 1 - i) for i, key in enumerate(names)}


def css_colour(dynamics: str) -> str:
    """`colour` as the figures paint it: where a page may set another shade, a CSS variable."""
    shade = colour(dynamics).lower()
    return PAINT.get(shade, shade)


def ordered(dynamics: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Each name once: those of `DYNAMICS` first, in its order, then the others by alphabet."""
    names = set(dynamics)
    return [key for key in DYNAMICS if key in names] + sorted(names - set(DYNAMICS))


def thinned(curve: pd.DataFrame, *, points: int = CURVE_POINTS) -> pd.DataFrame:
    """step and loss, means over stretches of equal length where the curve has more than `points` rows.

    Rows a logarithmic axis cannot show (NaN, infinite, not positive) are left out first.
    """
    loss = curve["loss"].astype(float)  # an empty file's column has no type
    kept = curve.loc[np.isfinite(loss) & (loss > 0), ["step", "loss"]].reset_index(drop=True)
    stretch = -(-len(kept) // points) or 1
    return kept.groupby(kept.index // stretch).mean()


# --- diagnostics --------------------------------------------------------------------------------------------

POSITION = "Position on the solver’s grid (0: noise, 1: data)"
INPUTS = {"x_T": "start x_T", "t": "log time", "anchor": "anchor"}


def diagnostic_figures(found: Mapping[str, Mapping]) -> dict[str, str]:
    """Six SVGs of `ifm.diagnostics.diagnose`'s results, by name; `found` maps dynamics to result.

    `anchor` is left out where no flow takes an anchor, `approach` where no data have a spacing.
    """
    figures = {
        "approach": ("Closest approach of estimated paths along the solver’s grid", _approach),
        "jacobian": ("Extreme singular values of the flow’s Jacobian along the solver’s grid", _singular_values),
        "stability": ("Sensitivity of the estimate to start, time and anchor", _stability),
        "anchor": ("Change of the anchor from one evaluation to the next", _anchor_changes),
        "straightness": ("Deviation of the velocity from the chord’s along the solver’s grid", _deviation),
        "error": ("Error of the flow along the solver’s grid", _error),
    }
    if not any(result["anchor"] for result in found.values()):
        del figures["anchor"]
    if all(result["non_intersection"]["ratio"] is None for result in found.values()):
        del figures["approach"]
    return {name: _diagnostic(name, label, draw, found) for name, (label, draw) in figures.items()}


def _diagnostic(name: str, label: str, draw: Callable, found: Mapping[str, Mapping]) -> str:
    """One panel: `draw` paints on the axes and returns legend entries (handle, title) besides the dynamics'."""
    from matplotlib.lines import Line2D

    def whole(figure: "Figure") -> None:
        ax = figure.add_subplot()
        extra = draw(ax, {key: found[key] for key in ordered(found)})
        entries = [(swatch(key, found), DYNAMICS.get(key, key)) for key in ordered(found)]
        styles = [(Line2D([], [], **{"color": INK, "linewidth": 1.3, **style}), title) for style, title in extra]
        # Rows of their own, so that names and styles don't share columns.
        rows = max(len(entries), len(styles))
        blank = (Line2D([], [], linestyle="none"), "")
        columns = [entries, styles] if styles else [entries]
        filled = [entry for column in columns for entry in column + [blank] * (rows - len(column))]
        handles, titles = zip(*filled, strict=True)
        figure.legend(handles, titles, loc="outside lower center", ncols=len(columns) if styles else len(entries))

    return svg(whole, name=f"diagnostic-{name}", label=label)


def _positions(result: Mapping, times: Sequence[float]) -> np.ndarray:
    """Where on the solver's grid, 0 (noise) to 1 (data), the given times lie."""
    grid = np.asarray(result["times"], float)
    return np.interp(-np.asarray(times, float), -grid, np.linspace(0, 1, len(grid)))


def _on_grid(ax: "Axes", y: str, *, log: bool) -> None:
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel(POSITION)
    ax.set_ylabel(y)
    if log:
        ax.set_yscale("log")
        log_y(ax)
    else:
        ax.set_ylim(bottom=0)


def _shown(values: Sequence[float]) -> np.ndarray:
    """What a logarithmic axis can show; NaN elsewhere."""
    array = np.asarray(values, float)
    return np.where(array > 0, array, np.nan)


def _hollow(key: str, found: Mapping[str, Mapping]) -> dict:
    dot = marker("heun", colour(key), size=0.7 + 0.3 * widths(found)[key])
    return {"linestyle": "none", "clip_on": False, "zorder": 4, **dot}


def _curve(key: str, found: Mapping[str, Mapping], *, style: str = "-") -> dict:
    """How a dynamics' curve is drawn."""
    width = LINE if style == "-" else DASHED
    return {"linestyle": style, "linewidth": width * widths(found)[key], "color": colour(key)}


def _approach(ax: "Axes", found: Mapping[str, Mapping]) -> list:
    for key, result in found.items():
        mine = result["non_intersection"]
        if mine["ratio"] is None:
            continue
        times = result["times"][: len(mine["closest"])]
        closest = np.array(mine["closest"], float)
        ax.plot(_positions(result, times), closest / mine["spacing"], **_curve(key, found))
        ax.plot([1], [mine["teacher_ratio"]], color=colour(key), **_hollow(key, found))
    ax.axhline(1, color=INK, linewidth=0.9, alpha=0.75, zorder=1)
    _on_grid(ax, "Closest approach / data spacing", log=False)
    dot = {"linestyle": "none", **marker("heun", INK)}
    return [
        ({}, "Estimated paths"),
        (dot, "Teacher’s end points"),
        ({"linewidth": 0.9, "alpha": 0.75}, "Data spacing"),
    ]


def _singular_values(ax: "Axes", found: Mapping[str, Mapping]) -> list:
    for key, result in found.items():
        mine = result["jacobian"]
        at = _positions(result, mine["times"])
        dot = {"marker": "o", "ms": 2 + 2 * widths(found)[key]}
        ax.plot(at, _shown(mine["smallest"]), **dot, **_curve(key, found))
        ax.plot(at, _shown(mine["largest"]), **dot, **_curve(key, found, style="--"))
    ax.axhline(1, color=INK, linewidth=0.9, alpha=0.75, zorder=1)
    _on_grid(ax, "Singular value / Gaussian’s", log=True)
    whole = all(result["jacobian"]["whole"] for result in found.values())
    titles = ("Smallest", "Largest") if whole else ("Smallest, bound from above", "Largest, bound from below")
    return [({}, titles[0]), ({"linestyle": "--"}, titles[1]), ({"linewidth": 0.9, "alpha": 0.75}, "Gaussian data")]


def _stability(ax: "Axes", found: Mapping[str, Mapping]) -> list:
    names = [name for name in INPUTS if any(name in result["stability"] for result in found.values())]
    for i, (key, result) in enumerate(found.items()):
        mine = [(x, result["stability"][name]) for x, name in enumerate(names) if name in result["stability"]]
        x = np.array([x for x, _ in mine]) + 0.14 * (i - (len(found) - 1) / 2)
        low, median, high = (_shown([q[of] for _, q in mine]) for of in ("low", "median", "high"))
        ax.vlines(x, low, high, color=colour(key), linewidth=1.6)
        ax.plot(x, median, "o", color=colour(key), markeredgecolor=PAPER, markeredgewidth=0.7, ms=6.5)
    ax.set_xticks(range(len(names)), [INPUTS[name] for name in names])
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="x", visible=False)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_yscale("log")
    log_y(ax)
    ax.set_xlabel("Derivative by")
    ax.set_ylabel("Change of the estimate / its spread")
    dot = {"marker": "o", "linestyle": "none", "markeredgecolor": PAPER, "ms": 6.5}
    return [(dot, "Median path"), ({"linewidth": 1.6}, "5 % to 95 % of paths")]


def _anchor_changes(ax: "Axes", found: Mapping[str, Mapping]) -> list:
    most = 2
    for key, result in found.items():
        if result["anchor"]:
            steps = result["anchor"]["steps"]
            most = max(most, len(steps))
            ms = 3 + 2 * widths(found)[key]
            ax.plot(range(1, len(steps) + 1), _shown(steps), marker="s", ms=ms, **_curve(key, found))
    ax.set_xticks(range(1, most + 1))
    ax.set_xlim(0.8, most + 0.2)
    ax.set_yscale("log")
    log_y(ax)
    ax.set_xlabel("n")
    ax.set_ylabel("RMS of a(n+1) − a(n)")
    return []


def _deviation(ax: "Axes", found: Mapping[str, Mapping]) -> list:
    for key, result in found.items():
        mine = result["straightness"]
        middle = (np.arange(len(mine["teacher_profile"])) + 0.5) / len(mine["teacher_profile"])
        ax.plot(middle, _shown(mine["flow_profile"]), **_curve(key, found))
        ax.plot(middle, _shown(mine["teacher_profile"]), **_curve(key, found, style="--"))
    _on_grid(ax, "Squared deviation / chord’s square", log=True)
    return [({}, "Flow’s paths"), ({"linestyle": "--"}, "Teacher’s paths")]


def _error(ax: "Axes", found: Mapping[str, Mapping]) -> list:
    for key, result in found.items():
        mine = result["error"]
        profile, stored = mine["profile"], mine["training"]
        errors = np.array(profile, float)
        ax.plot(_positions(result, result["times"][: len(profile)]), errors, **_curve(key, found))
        if stored is not None:  # a flow without a teacher's paths
            errors = np.array(stored["profile"], float)
            ax.plot(_positions(result, stored["times"]), errors, color=colour(key), **_hollow(key, found))
        if "exact" in mine:
            known = np.array(mine["exact"]["profile"], float)
            ax.plot(_positions(result, result["times"][: len(known)]), known, **_curve(key, found, style=":"))
    _on_grid(ax, "RMS error / spread of the end points", log=False)
    legend = [({}, "New paths"), ({"linestyle": "none", **marker("heun", INK)}, "Training paths")]
    if any("exact" in result["error"] for result in found.values()):
        legend.append(({"linestyle": ":"}, "Against the closed form"))
    return legend


# --- inside a figure ----------------------------------------------------------------------------------------


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


def flow_variants(summary: pd.DataFrame) -> list[tuple[str, str]]:
    """The (objective, anchor policy) pairs of the flow's rows, in order of appearance; "" where not given."""
    flow = summary.loc[summary["model"] == "flow", ["objective", "anchor"]].astype(object)
    flow = flow.where(flow.notna(), "")
    return list(dict.fromkeys(flow.itertuples(index=False, name=None)))


def variant_title(objective: str, anchor: str) -> str:
    """An (objective, anchor policy) pair in words."""
    return ", ".join([objective] * bool(objective) + [f"anchor {anchor}"] * bool(anchor))


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
            for sampler in ("anchor", "renoise", "chain", "one_step"):
                wanted = flow[of_variant & flow["sampler"].isin(["one_step", sampler])]
                if (wanted["sampler"] == sampler).any():
                    found.append(Series(dynamics, i, _over_seeds(wanted, x), sampler))
    return [series for series in found if len(series.line)]


def _over_seeds(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    spread = rows["fid_sd"].astype(float).fillna(0) if "fid_sd" in rows else pd.Series(0.0, index=rows.index)
    alone = ~rows.duplicated(["nfe", "sampler"], keep=False)
    spread = spread.where(alone, 0.0)
    rows = rows.assign(low=rows["fid"] - spread, high=rows["fid"] + spread)
    grouped = rows.groupby(["nfe", "sampler"], as_index=False)
    return grouped.agg(x=(x, "mean"), low=("low", "min"), high=("high", "max"), fid=("fid", "mean"))


def _draw_front(ax: "Axes", lines: Sequence[Series]) -> None:
    """A broad band along the means that no other one beats in both."""
    if not lines:
        return
    points = pd.concat([series.line for series in lines])
    chosen = points.iloc[pareto_front(list(points["x"]), list(points["fid"]))]
    ax.plot(chosen["x"], chosen["fid"], color=INK, alpha=0.22, linewidth=7, solid_capstyle="round", zorder=1.5)


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


def marker(sampler: str, shade: str, *, size: float = 1.0) -> dict:
    """Hollow for the teacher; filled, with a rim in the page's colour, for the flow. size: a factor."""
    if sampler == "heun":
        return {
            "marker": "o",
            "markerfacecolor": PAPER,
            "markeredgecolor": shade,
            "markeredgewidth": 1.4,
            "ms": 5.5 * size,
        }
    size *= 8.0 if sampler == "one_step" else 6.5
    return {"marker": MARKERS.get(sampler, "D"), "markeredgecolor": PAPER, "markeredgewidth": 0.8, "ms": size}


def swatch(dynamics: str, shown: Mapping[str, object] | Sequence[str]) -> "Line2D":
    """A legend's handle: the colour of a dynamics, as wide as its curves are among the others'."""
    from matplotlib.lines import Line2D

    factor = widths(shown)[dynamics]
    return Line2D([], [], color=colour(dynamics), linewidth=4 if len(ordered(shown)) == 1 else 2 * factor)


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
        entry(title, linestyle=dashes.get(key, "-"), **marker(key, INK))
        for key, title in SAMPLERS.items()
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


def _square(ax: "Axes", data: np.ndarray, *, reach: float = 1.25) -> None:
    """Equal axes with the data in the middle, out to `reach` times its half-width."""
    low, high = data[:, :2].min(axis=0), data[:, :2].max(axis=0)
    middle, half = (low + high) / 2, reach / 2 * float((high - low).max())
    ax.set_xlim(middle[0] - half, middle[0] + half)
    ax.set_ylim(middle[1] - half, middle[1] + half)
    ax.set_aspect("equal")
    ax.grid(False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_major_locator().set_params(nbins=4)


def _curve_panel(stage: str, curves: Mapping[str, pd.DataFrame]) -> str:
    def draw(figure: "Figure") -> None:
        ax = figure.add_subplot()
        for dynamics in ordered(curves):
            step, loss = curves[dynamics]["step"], curves[dynamics]["loss"]
            title = DYNAMICS.get(dynamics, dynamics)
            ax.plot(step, loss, color=colour(dynamics), linewidth=1.4 * widths(curves)[dynamics], label=title)
        ax.set_yscale("log")
        log_y(ax)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.xaxis.get_major_locator().set_params(nbins=5, integer=True)
        ax.set_xlabel("Step")
        ax.set_ylabel("Loss")
        figure.legend(loc="outside lower center", ncols=3)

    title = f"{STAGES[stage]}: training loss against step"
    return svg(draw, name=f"curves-{stage}", label=title, size=(5.4, 3.2))


def log_y(ax: "Axes") -> None:
    if ax.get_ylim()[0] <= 0:  # nothing above 0 was drawn, as where a flow gives one image for everything
        ax.set_ylim(0.1, 10)
    low, high = ax.get_ylim()
    ticks = _log_ticks(low, high, most=7)
    ax.set_yticks(ticks, [_number(tick) for tick in ticks])
    ax.set_yticks([], minor=True)
    ax.set_ylim(low, high)


def _log_ticks(low: float, high: float, *, most: int) -> list[float]:
    """At most `most` round numbers in [low, high]: several of each decade, or one, or one of each second, ...

    A range too narrow for three of those gets evenly spaced numbers.
    """
    several = [((1, 1.5, 2, 3, 5, 7), 1), ((1, 2, 5), 1), ((1, 3), 1)]
    choices = several + [((1,), stride) for stride in (1, 2, 4, 8)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas, stride in choices:
        ticks = [float(f"{m}e{k}") for k in decades if k % stride == 0 for m in mantissas]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    return ticks if len(ticks) >= 3 or high / low > 10 else _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [round(float(tick), 12) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def _number(value: float) -> str:
    """A tick in plain digits, or as a power of ten beyond five of them."""
    if 1e-4 <= value < 1e6:
        return f"{value:,.10g}"
    power = math.floor(math.log10(value) + 1e-9)
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    mantissa = f"{value / 10.0**power:.3g}"
    return f"10{digits}" if mantissa == "1" else f"{mantissa}·10{digits}"


def _duration(seconds: float) -> str:
    """0.002 -> 2 ms; 0.00002 -> 20 µs."""
    units = {"s": 1.0, "ms": 1e3, "µs": 1e6}
    unit = next((unit for unit, factor in units.items() if seconds * factor >= 0.9995), "µs")
    return f"{seconds * units[unit]:,.6g} {unit}"


# --- from figure to text ------------------------------------------------------------------------------------


def svg(draw: Callable[["Figure"], None], *, name: str, label: str, size: tuple[float, float] = WIDE) -> str:
    """Draws on a fresh figure and returns one <svg> element; `name` keeps its ids apart from other figures'."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        draw(figure)
        for ax in figure.axes:
            ax.patch.set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", dpi=200, metadata={"Date": None})  # dpi: of rasterized parts
    return _inline(text.getvalue(), name=name, label=label)


def _inline(svg: str, *, name: str, label: str) -> str:
    """A matplotlib SVG file made fit for a page: no prologue, metadata or style sheet, and ids of its own."""
    body = svg[svg.index("<svg") :]
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body).groups()
    body = body[body.index(">") + 1 :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->", r"<defs>\s*</defs>"):
        body = re.sub(unwanted, "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*; ", "", body)  # the page's font
    body = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", body)
    body = re.sub(r'\bid="', f'id="{name}-', body).replace("xlink:href", "href")
    body = body.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for placeholder, paint in PAINT.items():
        body = body.replace(placeholder, paint)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{html.escape(label)}" '
        f'font-family="sans-serif" stroke-linejoin="round" stroke-linecap="butt">\n{body}\n'
    )


# --- pictures -----------------------------------------------------------------------------------------------
