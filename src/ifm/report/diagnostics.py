"""The claims of the paper in numbers: the table of `ifm.diagnostics`, and its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ifm.report import names, plots
from ifm.report.rounding import MISSING, power_of_ten, significant


def diagnostics(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The claims as a table (a row for each number, a column for each dynamics) and the figures."""
    found = {key: result for key, result in found.items() if result["reference"]}  # None: there was no teacher
    if not found:
        return None
    keys = names.ordered(found)
    results = [found[key] for key in keys]
    whole = all(result["jacobian"]["whole"] for result in results)
    bound = "" if whole else ", bound from above by random directions"
    references = {result["reference"] for result in results}
    exact = "the exact flow map" if references == {"exact"} else "the teacher’s fine solve"

    def values(*path: str, scale: float = 1) -> list[float | None]:
        return [None if (value := _at(result, path)) is None else scale * value for result in results]

    rows = [
        ("Closest approach of estimated paths, in data spacings", values("non_intersection", "ratio")),
        ("The same for the teacher’s end points", values("non_intersection", "teacher_ratio")),
        (f"Smallest singular value of the Jacobian{bound}, Gaussian data 1", values("jacobian", "least")),
        (
            "Jacobians with negative determinant, largest share at one time, %",
            values("jacobian", "folded", scale=100),
        ),
        ("Sensitivity to the start x_T, Gaussian data 1", values("stability", "x_T", "rms")),
        ("Sensitivity to log time at t_max", values("stability", "t", "rms")),
        ("Sensitivity to the anchor", values("stability", "anchor", "rms")),
        ("Anchor: change from one evaluation to the next shrinks by the factor", values("anchor", "contraction")),
        ("Straightness S of the teacher’s paths, straight 0", values("straightness", "teacher")),
        ("Straightness S of the flow’s paths, straight 0", values("straightness", "flow")),
        (f"One-step error against {exact}, new paths", values("error", "one_step")),
        ("One-step error against the data’s closed-form flow map, new paths", values("error", "exact", "one_step")),
        ("The teacher’s fine solve against the same", values("error", "exact", "teacher")),
        ("One-step error on training paths", values("error", "training", "one_step")),
    ]
    return {
        "dynamics": [{"name": names.DYNAMICS.get(key, key), "colour": names.css_colour(key)} for key in keys],
        "rows": [(title, [_number_cell(v) for v in row]) for title, row in rows if any(v is not None for v in row)],
        "figures": {name: Markup(svg) for name, svg in plots.diagnostic_figures(found).items()},
        "paths": sorted({result["paths"] for result in results}),
    }


def _at(result: Any, path: Sequence[str]) -> float | None:
    for key in path:
        if result is None or key not in result:
            return None
        result = result[key]
    return result


def _number_cell(value: float | None) -> str:
    """Two or three digits that can be read: powers of ten where plain notation would be long."""
    if value is None:
        return MISSING
    return power_of_ten(value) if value and abs(value) < 1e-3 else significant(value)
