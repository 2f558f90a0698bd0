"""What the paper claims of paths and estimates, along the solver's grid: the figures of `ifm.diagnostics`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ifm.report.names import DYNAMICS, INK, PAPER, colour, ordered, widths
from ifm.report.plots.figure import DASHED, LINE, log_y, marker, svg, swatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
