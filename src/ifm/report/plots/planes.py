"""Points, and paths from noise to data, over the real points."""

from typing import TYPE_CHECKING

import numpy as np

from ifm.report.plots.figure import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SQUARE, DATA_GREY, PATHS_SHOWN = (3.6, 3.5), "#8a8f96", 48


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
