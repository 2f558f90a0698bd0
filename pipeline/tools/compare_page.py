"""The comparison's page: what `pipeline.tools.comparison` finds, as one self-contained HTML file without a verdict."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from ifm.report import names, plots
from ifm.report.assets import asset
from ifm.report.rounding import MISSING
from ifm.report.samples import picture_of
from pipeline.studies.pages.page import filled
from pipeline.tools import comparison
from pipeline.tools.compare_tables import KEY_TITLES, difference_text, figure, headline, ratio_text, table, title_of
from pipeline.tools.comparison import EQUAL, Row, Side, Value, change, difference, ratio
from pipeline.tools.fairness import warnings

TEMPLATE = Path(__file__).with_name("compare.html")
# Behind a separator, and every 24 characters of an endless word; behind a hyphen browsers break of themselves.
BREAKS = re.compile(r"(?<=[/._,=@:])(?=[^\s/._,=@:])|(?<=[^\s/._,=@:-]{24})(?=[^\s/._,=@:-])")
FEW = 3  # names in a cell


def render(a: Side, b: Side, rows: Sequence[Row], *, created: str) -> str:
    """The page as HTML text: self-contained, the same for the same input. `rows`: `comparison.paired`'s."""
    judged = comparison.judged_by(rows)
    groups = headline(rows, judged)
    stages = comparison.stage_changes(a.lock, b.lock)
    return filled(
        TEMPLATE,
        facts={},
        breakable=breakable,
        commit=f"{a.commit[:10]} and {b.commit[:10]}",
        created=created,
        script=asset("sort.js"),
        sides=[("A", a), ("B", b)],
        warnings=warnings(a, b, rows),
        matched={KEY_TITLES[key].lower(): pair for key, pair in comparison.loose_keys(a.summary, b.summary).items()},
        quality=title_of(judged),
        headline=groups,
        spreads=any(spread for group in groups for line in group["lines"] for _, spread in line["figures"]),
        params=_params(a, b),
        has_params=bool(a.params and b.params),
        table=table(rows, comparison.metric_columns(a.summary, b.summary), judged),
        curves=[(names.STAGES[stage], Markup(svg)) for stage, svg in _curves(a.curves, b.curves).items()],
        grids=_grids(a, b),
        other=_other(a, b),
        stages=[_stage(one) for one in stages],
        code=_code(stages),
        same_stages=len(set(a.lock) & set(b.lock)) - sum(one.only is None for one in stages),
        has_lock=bool(a.lock and b.lock),
        versions=[(name, _word(x), _word(y)) for name, x, y in comparison.differing(a.versions, b.versions)],
        has_versions=bool(a.versions and b.versions),
    )


def breakable(text: Any) -> Markup:
    """Text that a narrow column may break behind its separators, and an endless word anywhere, but no other word."""
    parts = BREAKS.split(str(text))
    return Markup("<wbr>").join(parts)


def _word(value: Any) -> str:
    """A YAML value as it would stand there; `...` (not there) is a dash."""
    if value is ...:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _params(a: Side, b: Side) -> dict[str, list[tuple[str, str, str]]]:
    """What differs where both sides have the key, and what one side has alone: often a newer key with its default."""
    found = comparison.differing(a.params, b.params)
    kinds = {"both": [line for line in found if ... not in line], "one": [line for line in found if ... in line]}
    return {kind: [(key, _word(x), _word(y)) for key, x, y in lines] for kind, lines in kinds.items()}


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "") or MISSING


def _curves(a: Mapping[str, pd.DataFrame], b: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Loss against step for each stage: A dashed and broad, B a thin line over it, a colour for each dynamics."""
    panels = {}
    for stage in names.STAGES:
        found = {}
        for side, curves in (("A", a), ("B", b)):
            named = {
                name.partition("-")[2]: plots.thinned(curve) for name, curve in curves.items() if _is_of(name, stage)
            }
            found |= {(d, side): curve for d, curve in named.items() if len(curve)}
        if found:
            panels[stage] = _curve_panel(stage, found)
    return panels


def _grids(a: Side, b: Side) -> list[dict[str, Any]]:
    """For each dynamics the flow's samples in one step, A's beside B's, from the same noise where the seeds agree."""
    shown = []
    for d in names.ordered(dict.fromkeys([*a.grids, *b.grids])):
        pictures = [(side, found.grids.get(d)) for side, found in (("A", a), ("B", b))]
        name = names.DYNAMICS.get(d, d)
        shown.append({
            "name": name,
            "colour": names.css_colour(d),
            "pictures": [(side, None if png is None else picture_of(side, png, name)) for side, png in pictures],
        })  # fmt: skip
    return shown


def _is_of(name: str, stage: str) -> bool:
    return name.partition("-")[0] == stage and "-" in name


def _curve_panel(stage: str, curves: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    styles = {
        "A": {"linestyle": (0, (2.2, 1.3)), "linewidth": 3.2, "alpha": 0.45},
        "B": {"linestyle": "-", "linewidth": 1.2},
    }

    def draw(figure: Any) -> None:
        ax = figure.add_subplot()
        dynamics = names.ordered([d for d, _ in curves])
        widths = names.widths(dynamics)
        for d in dynamics:
            for side, style in styles.items():
                if (d, side) in curves:
                    curve = curves[d, side]
                    thick = {"linewidth": style["linewidth"] * widths[d]}
                    ax.plot(curve["step"], curve["loss"], color=names.colour(d), **style | thick)
        handles = [plots.swatch(d, dynamics) for d in dynamics]
        handles += [ax.plot([], [], color=names.INK, **style)[0] for style in styles.values()]
        ax.set_yscale("log")
        plots.log_y(ax)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.xaxis.get_major_locator().set_params(nbins=5, integer=True)
        ax.set_xlabel("Step")
        ax.set_ylabel("Loss")
        titles = [*(names.DYNAMICS.get(d, d) for d in dynamics), *styles]
        figure.legend(handles, titles, loc="outside lower center", ncols=len(titles) if len(titles) <= 5 else 3)

    label = f"{names.STAGES[stage]}: training loss of A and B against step"
    return plots.svg(draw, name=f"compare-{stage}", label=label, size=(5.4, 3.2))


def _other(a: Side, b: Side) -> dict[str, Any]:
    """Numbers of metrics and diagnostics that differ, and how many do not."""
    of_a, of_b = comparison.scalars(a), comparison.scalars(b)
    lines = []
    for file, key in dict.fromkeys([*of_a, *of_b]):
        x, y = (Value(found[file, key]) if (file, key) in found else None for found in (of_a, of_b))
        if change(x, y) != EQUAL:
            figures = (figure(x), figure(y), difference_text(difference(x, y)), ratio_text(ratio(x, y)))
            lines.append({"file": file, "key": key, "figures": figures})
    return {"lines": lines, "all": len({*of_a, *of_b})}


def _stage(one: comparison.StageChange) -> dict[str, Any]:
    """A stage's line: counts of code files, names of data, params and outputs."""
    outs = f"differ: {few(one.outs)}" if one.outs else "the same bytes"
    if one.outs and one.same_outs:
        outs += f"; the same: {few(one.same_outs)}"
    return {
        "name": one.name,
        "only": one.only,
        "code": f"{len(one.code)} file{'s' * (len(one.code) > 1)}" if one.code else "the same",
        "data": few(one.data) if one.data else "the same",
        "params": few(one.params) if one.params else "the same",
        "outs": outs,
    }


def _code(stages: Sequence[comparison.StageChange]) -> list[tuple[str, str]]:
    """(file, stages) of the code that differs."""
    users: dict[str, list[str]] = {}
    for one in stages:
        for path in one.code:
            users.setdefault(path, []).append(one.name)
    return [(path, ", ".join(names)) for path, names in sorted(users.items())]
