"""Samples as they look: grids of pictures, scatter plots, shares of classes, nearness to training data."""

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ifm.modalities.pictures import shrink_png
from ifm.report import names, plots
from ifm.report.contents import PointSamples, Report
from ifm.report.headlines import Estimate, estimate, written
from ifm.report.rounding import MISSING, significant

PICTURE_BYTES = 3_000_000  # of all grids; base64 adds a third, and the page stays under 5 MB


def pictures(
    grids: Mapping[str, Sequence[tuple[str, bytes]]], real: tuple[str, bytes] | None, *, sample: str = "image"
) -> list[dict[str, Any]]:
    """Grids of real images, then of each dynamics, as data URIs; all made smaller by tenths to fit PICTURE_BYTES.

    sample: what one is.
    """
    title = f"Real {sample}s"
    named = {key: list(grids[key]) for key in names.ordered(grids) if grids[key]}
    if real and len(named) > 1:
        named = {title: [(real[0].capitalize(), real[1])], **named}
    elif real and named:  # one dynamics: all in one line
        named = {key: [(f"{title}, {real[0]}", real[1]), *pictures] for key, pictures in named.items()}
    for key, pictures in named.items():
        for caption, png in pictures:
            if not png.startswith(b"\x89PNG\r\n\x1a\n"):
                raise ValueError(f"the grid {caption!r} of {key} is not a PNG")
    factor = 1.0
    fitted = named
    while sum(len(png) for pictures in fitted.values() for _, png in pictures) > PICTURE_BYTES:
        factor *= 0.9
        fitted = {key: [(c, shrink_png(png, factor)) for c, png in named[key]] for key in named}
    return [
        {
            "name": names.DYNAMICS.get(key, key),
            "colour": None if key == title else names.css_colour(key),
            "pictures": [picture_of(caption, png, names.DYNAMICS.get(key, key)) for caption, png in pictures],
        }
        for key, pictures in fitted.items()
    ]


def picture_of(caption: str, png: bytes, name: str) -> dict[str, Any]:
    """A PNG as a data URI, with its size and what it is called."""
    width, height = struct.unpack(">II", png[16:24])
    uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return {
        "caption": caption,
        "alt": f"{name}: grid of images, {caption}",
        "uri": uri,
        "width": width,
        "height": height,
    }


def scatters(points: Mapping[str, PointSamples]) -> list[dict[str, Any]]:
    """Scatter plots and path lines of each dynamics as SVG, under a caption each."""
    groups = []
    for key in names.ordered(points):
        mine, name = points[key], names.DYNAMICS.get(key, key)
        common = {"data": mine.data, "shade": names.colour(key)}
        figures = [
            (caption, plots.scatter(x, name=f"points-{key}-{i}", label=f"{name}: points, {caption}", **common))
            for i, (caption, x) in enumerate(mine.samples)
        ]
        if mine.paths is not None:
            label = f"{name}: paths of the teacher"
            lines = plots.path_lines(mine.paths, name=f"paths-{key}", label=label, **common)
            figures.append(("Stored paths of the teacher, each time scaled to the data’s spread", lines))
        groups.append(
            {
                "name": name,
                "colour": names.css_colour(key),
                "figures": [{"caption": caption, "svg": Markup(svg)} for caption, svg in figures],
            }
        )
    return groups


def texts(report: Report) -> list[dict[str, Any]]:
    """Texts of each dynamics under a caption each, behind real ones: the template escapes them."""
    real = [(f"Real texts, {report.real_texts[0]}", report.real_texts[1])] if report.real_texts else []
    return [
        {
            "name": names.DYNAMICS.get(key, key),
            "colour": names.css_colour(key),
            "blocks": [{"caption": caption, "texts": list(shown)} for caption, shown in [*report.texts[key], *real]],
        }
        for key in names.ordered(report.texts)
    ]


def classes(report: Report) -> dict[str, Any] | None:
    """The histogram and, for each dynamics, the rarest class and the distance from the real shares."""
    if not report.class_shares or report.real_shares is None or report.classes is None:
        return None
    titles = [str(title) for title in report.classes]
    svg = plots.class_histogram(
        report.class_shares, real_shares=report.real_shares, classes=titles, sample=names.unit(report.summary)
    )
    rows = []
    one_step = report.summary[report.summary["sampler"] == "one_step"].drop_duplicates("dynamics").set_index("dynamics")
    for key in names.ordered(report.class_shares):
        shares, real = np.asarray(report.class_shares[key], float), np.asarray(report.real_shares, float)
        rarest = int(shares.argmin())
        rows.append(
            {
                "name": names.DYNAMICS.get(key, key),
                "colour": names.css_colour(key),
                "rarest": titles[rarest],
                "share": f"{100 * shares[rarest]:.1f}",
                "real": f"{100 * real[rarest]:.1f}",
                "distance": f"{50 * np.abs(shares - real).sum():.1f}",
                "missing": int((shares == 0).sum()),
                "test": _test(one_step.loc[key]) if key in one_step.index else MISSING,
            }
        )
    return {"svg": Markup(svg), "rows": rows}


def _test(row: pd.Series) -> str:
    """The chi-square test of the class counts: over its degrees of freedom, and the p-value."""
    if pd.isna(row["class_chi2"]):
        return MISSING
    p = "< 0.001" if row["class_p"] < 1e-3 else f"{row['class_p']:.3f}"
    return f"{significant(row['class_chi2'])} ({p})"


def memorisation(report: Report) -> list[dict[str, Any]]:
    """How near the flow's samples in one step are to training data, and the nearest pairs."""
    rows = []
    for dynamics in names.ordered(report.summary["dynamics"].dropna()):
        one_step = report.summary[(report.summary["dynamics"] == dynamics) & (report.summary["sampler"] == "one_step")]
        farther, copies = estimate(one_step, "train_distance_auc"), estimate(one_step, "near_copies")
        if farther is None or copies is None:
            continue
        name, png = names.DYNAMICS.get(dynamics, dynamics), report.pairs.get(dynamics)
        rows.append(
            {
                "name": name,
                "colour": names.css_colour(dynamics),
                "farther": written(farther, 3),
                "copies": written(Estimate(100 * copies.mean, _times(copies.deviation, 100), copies.seeds), 1),
                "picture": picture_of("samples above their nearest training images", png, name) if png else None,
            }
        )
    return rows


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
