"""The objectives' page: quality at 1, 2 and 4 evaluations beside the teacher's, and what each took to train.

Every figure is a mean over seeds with its standard deviation, never the best one.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from markupsafe import Markup

from ifm.metrics import catalogue
from ifm.report import plots
from ifm.report.headlines import nfe_text
from ifm.report.rounding import MISSING, significant
from pipeline.studies.pages.estimates import Estimate, judged_by, mean_ratio, summarised
from pipeline.studies.pages.page import dynamics_title, filled, warned

TEMPLATE = Path(__file__).with_name("objectives.html")


class Shown(Protocol):
    """An objective of the study."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def sampler(self) -> str: ...  # from two evaluations on
    @property
    def with_teacher(self) -> bool: ...  # whether the flow itself needs one


def teacher(rows: pd.DataFrame, metric: str) -> Estimate | None:
    """The teacher of one data set and dynamics at its best evaluations: of those trained longest, over seeds."""
    return summarised(_longest(rows).set_index("seed")[f"teacher_{metric}"])


def _longest(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each seed, with the teacher that was trained longest."""
    return rows[rows["teacher_evaluations"] == rows["teacher_evaluations"].max()].drop_duplicates("seed")


def at_steps(rows: pd.DataFrame, objective: str, steps: int, metric: str, *, several: str) -> Estimate | None:
    """An objective's figure at a number of evaluations, over seeds: from one data set's rows of one dynamics.

    several: the sampler from two steps on.
    """
    sampler = "one_step" if steps == 1 else several
    mine = rows[(rows["objective"] == objective) & (rows["steps"] == steps) & (rows["sampler"] == sampler)]
    return summarised(mine.set_index("seed")[metric])


def _lines(objectives: Sequence[Shown]) -> list[tuple[str, Shown, str]]:
    """(title, objective, sampler from two steps on) of a table: sub-intervals are re-noised too, to compare."""
    again = [(f"{one.title}, re-noised", one, "renoise") for one in objectives if one.sampler == "chain"]
    return [*((one.title, one, one.sampler) for one in objectives), *again]


def _of(rows: pd.DataFrame, objective: str, column: str) -> Estimate | None:
    return summarised(rows[rows["objective"] == objective].drop_duplicates("seed")[column])


def _table(rows: pd.DataFrame, metric: str, steps: Sequence[int], objectives: Sequence[Shown]) -> dict[str, Any]:
    """One data set and dynamics: a line for each objective."""
    of_teacher = teacher(rows, metric)
    lines = []
    for title, one, several in _lines(objectives):
        objective = one.name
        found = [at_steps(rows, objective, n, metric, several=several) for n in steps]
        if not any(found) or (several != one.sampler and not any(found[1:])):
            continue
        ratios = [mean_ratio(e, of_teacher) if e and of_teacher else None for e in found]
        evaluations, seconds, memory = (
            _of(rows, objective, column) for column in ("evaluations", "train_seconds", "peak_memory_mb")
        )
        lines.append(
            {
                "title": title,
                "teacher": "yes" if one.with_teacher else "no",
                "quality": [e or MISSING for e in found],
                "ratios": [MISSING if ratio is None else significant(ratio) for ratio in ratios],
                "evaluations": f"{evaluations.mean / 1e6:.2f} M" if evaluations else MISSING,
                "seconds": significant(seconds.mean, 2) + " s" if seconds else MISSING,
                "memory": f"{memory.mean / 1000:.2f} GB" if memory else MISSING,
                "seeds": rows[rows["objective"] == objective]["seed"].nunique(),
            }
        )
    return {
        "teacher": of_teacher,
        "lines": lines,
        "nfe": nfe_text([int(n) for n in _longest(rows)["teacher_nfe"].dropna()]),
    }


def _figure(
    by_dynamics: dict[str, pd.DataFrame], metric: str, steps: Sequence[int], objectives: Sequence[Shown], *, name: str
) -> str:
    """A panel for each dynamics: a line for each objective, the teacher's level dashed."""

    def at(rows: pd.DataFrame, one: Shown, n: int) -> Estimate | None:
        return at_steps(rows, one.name, n, metric, several=one.sampler)

    shown = [one for one in objectives if any(at(rows, one, 1) for rows in by_dynamics.values())]

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(by_dynamics), sharey=True, squeeze=False)[0]
        for ax, (d, rows) in zip(panels, by_dynamics.items(), strict=True):
            for i, one in enumerate(shown):
                found = [(k, at(rows, one, n)) for k, n in enumerate(steps)]
                found = [(k + 0.05 * (i - len(shown) / 2), e) for k, e in found if e]
                if not found:
                    continue
                x, means = [k for k, _ in found], [e.mean for _, e in found]
                ax.plot(x, means, color=one.colour, zorder=3, **plots.marker("one_step", one.colour))
                for k, e in found:
                    if e.deviation:
                        low = max(e.mean - e.deviation, e.mean / 20)  # a logarithmic axis has no zero
                        ax.vlines(k, low, e.mean + e.deviation, color=one.colour, linewidth=1.4, zorder=2)
            of_teacher = teacher(rows, metric)
            if of_teacher:
                ax.axhline(of_teacher.mean, color=plots.INK, linestyle="--", linewidth=1, zorder=1)
            ax.set_xticks(range(len(steps)), [str(n) for n in steps])
            ax.set_xlim(-0.4, len(steps) - 0.6)
            ax.set_xlabel("Evaluations")
            ax.set_title(dynamics_title(d), fontsize=plots.SIZE)
            ax.set_yscale("log")
        plots.log_y(panels[0])
        panels[0].set_ylabel(catalogue.title(metric))
        handles = [panels[0].plot([], [], color=o.colour, linewidth=3)[0] for o in shown]
        handles.append(panels[0].plot([], [], color=plots.INK, linestyle="--", linewidth=1)[0])
        titles = [*(o.title for o in shown), "teacher, best evaluations"]
        figure.legend(handles, titles, loc="outside lower center", ncols=2 if len(by_dynamics) < 3 else 3)

    size = (2.6 * max(2, len(by_dynamics)), 3.6)
    return plots.svg(
        draw, name=re.sub(r"\W", "-", name), label=f"{catalogue.title(metric)} against evaluations", size=size
    )


def render(
    table: pd.DataFrame,
    *,
    objectives: Sequence[Shown],
    missing: Sequence[tuple[str, str]],
    commit: str,
    created: str,
) -> str:
    """The page as HTML text: self-contained, the same for the same input. `missing`: (objective, reason).

    Raises ValueError where the table has no rows.
    """
    if table.empty:
        raise ValueError("the table has no rows: nothing to show")
    sections = []
    for data, rows in table.groupby("data", sort=True):
        metric = judged_by(rows)
        steps = sorted(n for n in rows["steps"].unique() if n in (1, 2, 4))
        by_dynamics = {d: rows[rows["dynamics"] == d] for d in plots.ordered(list(rows["dynamics"]))}
        sections.append(
            {
                "data": data,
                "metric": catalogue.title(metric),
                "steps": steps,
                "samples": int(rows["n_samples"].max()),
                "svg": Markup(_figure(by_dynamics, metric, steps, objectives, name=f"objectives-{data}")),
                "tables": [
                    {
                        "name": dynamics_title(d),
                        "colour": plots.css_colour(d),
                        **_table(mine, metric, steps, objectives),
                    }
                    for d, mine in by_dynamics.items()
                ],
            }
        )
    return filled(
        TEMPLATE,
        facts={
            "Data": ", ".join(section["data"] for section in sections),
            "Seeds": ", ".join(map(str, sorted(table["seed"].unique()))),
        },
        commit=commit,
        created=created,
        careful=warned(table),
        sections=sections,
        missing=missing,
    )
