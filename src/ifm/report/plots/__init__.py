"""Figures as SVG text; the only modules that import matplotlib."""

from ifm.report.names import (
    DYNAMICS,
    INK,
    PAPER,
    SAMPLERS,
    STAGES,
    colour,
    css_colour,
    flow_variants,
    judged,
    ordered,
    quality,
    unit,
    variant_title,
    widths,
)
from ifm.report.plots.classes import against_guidance, by_class
from ifm.report.plots.curves import LABEL, class_histogram, quality_by_step, thinned, training_curves
from ifm.report.plots.diagnostics import diagnostic_figures
from ifm.report.plots.figure import SIZE, log_ticks, log_y, marker, svg, swatch
from ifm.report.plots.merits import (
    drawn,
    metrics_against_nfe,
    pareto_front,
    quality_against_nfe,
    quality_against_seconds,
)
from ifm.report.plots.planes import PATHS_SHOWN, path_lines, scatter

__all__ = [
    "DYNAMICS", "INK", "LABEL", "PAPER", "PATHS_SHOWN", "SAMPLERS", "SIZE", "STAGES", "against_guidance", "by_class",
    "class_histogram", "colour", "css_colour", "diagnostic_figures", "drawn", "flow_variants", "judged", "log_ticks",
    "log_y", "marker", "metrics_against_nfe", "ordered", "pareto_front", "path_lines", "quality",
    "quality_against_nfe", "quality_against_seconds", "quality_by_step", "scatter", "svg", "swatch", "thinned",
    "training_curves", "unit", "variant_title", "widths",
]  # fmt: skip
