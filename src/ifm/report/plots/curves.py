"""Loss against step, and the shares of classes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ifm.metrics import catalogue
from ifm.report.names import DYNAMICS, INK, PAPER, STAGES, colour, ordered, widths
from ifm.report.plots.figure import log_y, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE_POINTS, LABEL = 300, 16  # of a curve; characters of a class's name under its bar


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


def quality_by_step(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The flow's figure in one step against the step of its training, a colour for each dynamics, as SVG.

    found: by dynamics, with `metric` and `values` by step; a ring marks the step that is `kept`. "" where none is.
    """
    if not found:
        return ""
    metric = catalogue.get(next(iter(found.values()))["metric"])

    def draw(figure: "Figure") -> None:
        ax = figure.add_subplot()
        for dynamics in ordered(found):
            values = {int(step): value for step, value in found[dynamics]["values"].items()}
            kept, drawn = found[dynamics]["kept"], {"color": colour(dynamics)}
            width = 1.4 * widths(found)[dynamics]
            ax.plot(values.keys(), values.values(), linewidth=width, label=DYNAMICS.get(dynamics, dynamics), **drawn)
            ax.plot([kept], [values[kept]], marker="o", ms=7, mfc="none", linestyle="none", **drawn)
        ax.set_yscale("log")
        log_y(ax)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.xaxis.get_major_locator().set_params(nbins=5, integer=True)
        ax.set_xlabel("Step")
        ax.set_ylabel(metric.title)
        figure.legend(loc="outside lower center", ncols=3)

    return svg(
        draw, name="curves-quality", label=f"Flow: {metric.title} in one step, by training step", size=(5.4, 3.2)
    )


def thinned(curve: pd.DataFrame, *, points: int = CURVE_POINTS) -> pd.DataFrame:
    """step and loss, means over stretches of equal length where the curve has more than `points` rows.

    Rows a logarithmic axis cannot show (NaN, infinite, not positive) are left out first.
    """
    loss = curve["loss"].astype(float)  # an empty file's column has no type
    kept = curve.loc[np.isfinite(loss) & (loss > 0), ["step", "loss"]].reset_index(drop=True)
    stretch = -(-len(kept) // points) or 1
    return kept.groupby(kept.index // stretch).mean()


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
        class_ticks(ax, classes)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("Share (%)")
        ax.set_xlabel("Class")
        names = [f"Real {sample}s", *(DYNAMICS.get(key, key) for key in dynamics)]
        figure.legend([bars, *dots], names, loc="outside lower center", ncols=4)

    return svg(draw, name="classes", label=f"Share of each class among samples and among real {sample}s")


def class_ticks(ax: "Axes", classes: Sequence[str]) -> None:
    """The names of classes under positions 0, 1, 2, ...: some of them where there are many."""
    shown = range(0, len(classes), -(-len(classes) // 24))
    names = [_shortened(classes[i]) for i in shown]
    slanted = max(map(len, names)) * len(shown) > 50
    ax.set_xticks(shown, names, **({"rotation": 45, "ha": "right"} if slanted else {}))
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="x", visible=False)


def _shortened(name: str) -> str:
    """A class's name as long as a tick's label may be."""
    return name if len(name) <= LABEL else name[: LABEL - 1].rstrip() + "…"
