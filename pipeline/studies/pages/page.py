"""Pages over page.html: studies', sweeps' and comparisons'."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from ifm.metrics import cautions
from ifm.report import names
from ifm.report.assets import asset
from ifm.report.page import short_commit


def filled(
    template: Path, *, facts: dict[str, str], commit: str, created: str, careful: Sequence[str] = (), **values: Any
) -> str:
    """A page: its template over page.html, the style that all pages share, and what every list of facts ends with.

    template: in any folder; careful: what speaks against the page's figures.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(
        style=asset("style.css"),
        careful=careful,
        facts=facts | {"Commit": short_commit(commit), "Created": created},
        **values,
    )


def warned(table: pd.DataFrame) -> list[str]:
    """What speaks against the figures of a table, which may have a column `warnings`."""
    return cautions.of_cells(table["warnings"]) if "warnings" in table else []


def dynamics_title(key: str) -> str:
    """A dynamics in words, or its name where it has none."""
    return names.DYNAMICS.get(key, key)


def sampler_title(key: str) -> str:
    """A sampler in words, or its name where it has none."""
    return names.SAMPLERS.get(key, key)
