"""docs/growth.md's tables and figures, from benchmarks/results/growth-*.json: `python -m benchmarks.growth_page`."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import table
from benchmarks.growth import Growth
from ifm.files import read_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE, FIGURES, PREFIX = table.ROOT / "docs" / "growth.md", table.ROOT / "docs" / "images", "growth-"
COLUMNS, PANEL = 5, (2.1, 2.0)  # inches
TIME, MEMORY, GREY = "#0072B2", "#D55E00", "#8a8f96"


def curves_of(document: dict[str, Any]) -> list[Growth]:
    return [Growth.read(values) for values in document["results"]]


def section(document: dict[str, Any], figure: str) -> str:
    """A run: where it was made, its figure, its table, and what binds."""
    curves = curves_of(document)
    return "\n".join(
        [
            *table.heading(document),
            "",
            f"![Time and memory against size, relative to the smallest, log-log](images/{figure})",
            "",
            "| what | by | sizes | seconds | exponent (expected) | MB | exponent (expected) |",
            "|---|---|---|---|---|---|---|",
            *[curve.line() for curve in curves],
            "",
            "What binds first:",
            "",
            *[table.wrapped(f"- **{curve.name}**: {curve.binds}") for curve in curves],
        ]
    )


def page(text: str, documents: dict[str, dict[str, Any]]) -> str:
    """The page with its sections made again, from the documents by the names of their files."""
    return table.between_marks(text, [section(d, f"{name}.svg") for name, d in documents.items()], name=PAGE.name)


def figure(curves: list[Growth]) -> str:
    """Small multiples as SVG: what a size costs over what the smallest does, fitted lines, and what is expected."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = -(-len(curves) // COLUMNS)
    drawn = Figure(figsize=(PANEL[0] * COLUMNS, PANEL[1] * rows), layout="constrained")
    axes = drawn.subplots(rows, COLUMNS, sharey=True, squeeze=False).flat
    for ax, curve in zip(axes, curves, strict=False):
        _draw(ax, curve)
    for ax in list(axes)[len(curves) :]:
        ax.set_axis_off()
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ifm"}):
        drawn.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw(ax: "Axes", curve: Growth) -> None:
    sizes = np.array([p.size for p in curve.points])
    shown = [("time", TIME, "o", curve.time, [p.seconds for p in curve.points])]
    if curve.memory is not None:
        shown.append(("peak memory", MEMORY, "s", curve.memory, [p.megabytes for p in curve.points]))
    for label, colour, marker, law, values in shown:
        ax.plot(sizes, (sizes / sizes[0]) ** law.expected, color=GREY, linewidth=1, linestyle=":", zorder=1)
        ax.plot(sizes, law.factor * sizes**law.exponent / values[0], color=colour, linewidth=1)
        ax.plot(sizes, np.array(values) / values[0], marker, color=colour, markersize=4, label=label)
    ax.lines[0].set_label("expected")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(sizes, [f"{n // 1000}k" if n % 1000 == 0 else f"{n}" for n in sizes])
    ax.minorticks_off()
    ax.set_title(curve.name, fontsize=8)
    ax.set_xlabel(curve.size, fontsize=7)
    ax.tick_params(labelsize=7)


def results() -> dict[str, dict[str, Any]]:
    """The runs' documents by the names of their files."""
    return {path.stem: read_json(path) for path in sorted(table.RESULTS.glob(f"{PREFIX}*.json"))}


def write() -> None:
    """Rewrites docs/growth.md and its figures from all files of results."""
    documents = results()
    for name, document in documents.items():
        write_text(FIGURES / f"{name}.svg", figure(curves_of(document)))
    write_text(PAGE, page(Path(PAGE).read_text(encoding="utf-8"), documents))


if __name__ == "__main__":
    write()
