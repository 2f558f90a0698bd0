"""One SVG: the shared style, markers, logarithmic axes, and how matplotlib's text is made fit for a page.

A figure is the same text for the same input. It has no background, and its axes and lettering take
`currentColor`, so one figure serves a light and a dark page. Text stays text, in the page's own font. Figures are
drawn without pyplot: matplotlib is imported at the first figure, and no state is shared.
"""

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ifm.report.names import INK, PAINT, PAPER, colour, ordered, widths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKERS = {"heun": "o", "one_step": "o", "anchor": "s", "renoise": "^", "chain": "D", "selected": "P"}
LINE, DASHED = 1.6, 1.3  # widths in units, of the narrowest curve about
WIDE, SMALL, SIZE = (5.4, 3.7), (5.4, 2.6), 10.0  # inches (of 72 units), text height in units
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
    return {"marker": MARKERS.get(sampler, "X"), "markeredgecolor": PAPER, "markeredgewidth": 0.8, "ms": size}


def swatch(dynamics: str, shown: Mapping[str, object] | Sequence[str]) -> "Line2D":
    """A legend's handle: the colour of a dynamics, as wide as its curves are among the others'."""
    from matplotlib.lines import Line2D

    factor = widths(shown)[dynamics]
    return Line2D([], [], color=colour(dynamics), linewidth=4 if len(ordered(shown)) == 1 else 2 * factor)


def log_y(ax: "Axes") -> None:
    if ax.get_ylim()[0] <= 0:  # nothing above 0 was drawn, as where a flow gives one image for everything
        ax.set_ylim(0.1, 10)
    low, high = ax.get_ylim()
    ticks = log_ticks(low, high, most=7)
    ax.set_yticks(ticks, [_number(tick) for tick in ticks])
    ax.set_yticks([], minor=True)
    ax.set_ylim(low, high)


def log_ticks(low: float, high: float, *, most: int) -> list[float]:
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
