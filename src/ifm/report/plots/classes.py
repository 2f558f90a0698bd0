"""Figures by the class asked for, and against the guidance scale."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ifm.report.names import DYNAMICS, PAPER, colour, ordered
from ifm.report.plots.curves import class_ticks
from ifm.report.plots.figure import DASHED, LINE, SMALL, log_y, marker, svg, swatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_class(
    values: Mapping[str, Sequence[float | None]], *, classes: Sequence[str], name: str, title: str, scale: float = 1
) -> str:
    """A figure of each class asked for (a dot for each dynamics), as SVG; a class without one has no dot.

    Raises ValueError where a list is not as long as `classes`.
    """
    for key, mine in values.items():
        if len(mine) != len(classes):
            raise ValueError(f"{key}: {len(mine)} values for {len(classes)} classes")
    dynamics = ordered(values)

    def draw(figure: "Figure") -> None:
        ax = figure.add_subplot()
        size = min(5.5, max(1.8, 330 / len(classes) / len(dynamics)))
        for i, key in enumerate(dynamics):
            beside = np.arange(len(classes)) + 0.18 * (i - (len(dynamics) - 1) / 2)
            found = scale * np.array([np.nan if v is None else v for v in values[key]], float)
            rim = {"markeredgecolor": PAPER, "markeredgewidth": 0.7}
            ax.plot(beside, found, "o", ms=size, color=colour(key), label=DYNAMICS.get(key, key), **rim)
        class_ticks(ax, classes)
        ax.set_ylabel(title)
        ax.set_xlabel("Class asked for")
        figure.legend(loc="outside lower center", ncols=4)

    return svg(draw, name=name, label=f"{title}, by class asked for")


def against_guidance(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], *, key: str, title: str, log: bool = False
) -> str | None:
    """A figure against the guidance scale w, as SVG: the flow in one step (lines), the teacher (dashed).

    rows: by dynamics, each with model ("flow-w2", "teacher-w2"), guidance and the figure `key`; one of a model and w.
    None where no row has the figure.
    """
    lines = {}
    for d in ordered(rows):
        for model in ("flow", "teacher"):
            mine = [r for r in rows[d] if r["model"].partition("-")[0] == model and r.get(key) is not None]
            if mine:
                lines[d, model] = sorted((r["guidance"], r[key]) for r in mine)
    if not lines:
        return None

    def draw(figure: "Figure") -> None:
        from matplotlib.lines import Line2D

        ax = figure.add_subplot()
        for (d, model), points in lines.items():
            how = {"linewidth": LINE} if model == "flow" else {"linewidth": DASHED, "linestyle": "--"}
            dot = marker("one_step" if model == "flow" else "heun", colour(d), size=0.8)
            ax.plot(*zip(*points, strict=True), color=colour(d), **how, **dot)
        if log:
            ax.set_yscale("log")
            log_y(ax)
        ax.set_xlabel("Guidance scale w")
        ax.set_ylabel(title)
        shown = list(dict.fromkeys(d for d, _ in lines))
        models = {"flow": ("Flow, one step", "-"), "teacher": ("Teacher, its most NFE", "--")}
        drawn = [models[model] for model in models if any(of == model for _, of in lines)]
        handles = [swatch(d, shown) for d in shown] + [
            Line2D([], [], color="#808080", linewidth=DASHED, linestyle=style) for _, style in drawn
        ]
        words = [DYNAMICS.get(d, d) for d in shown] + [text for text, _ in drawn]
        figure.legend(handles, words, loc="outside lower center", ncols=3)

    return svg(draw, name=f"guidance-{key.replace('_', '-')}", label=f"{title} against the guidance scale", size=SMALL)
