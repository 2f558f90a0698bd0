"""Pages of the same results share their figures: drawing those of one page takes matplotlib five to ten seconds."""

import pickle
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest

from ifm.report import plots

FIGURES = (
    "metrics_against_nfe", "quality_against_nfe", "quality_against_seconds", "diagnostic_figures", "training_curves",
)  # fmt: skip
DRAWN: dict[bytes, Any] = {}


def kept(draw: Callable) -> Callable:
    """The function, asked once for each of its arguments."""

    @wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Any:
        key = pickle.dumps((draw.__name__, arguments, options))
        if key not in DRAWN:
            DRAWN[key] = draw(*arguments, **options)
        found = DRAWN[key]
        return dict(found) if isinstance(found, dict) else found

    return drawn


@pytest.fixture(scope="module", autouse=True)
def figures_are_kept() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in FIGURES:
            patch.setattr(plots, name, kept(getattr(plots, name)))
        yield
    DRAWN.clear()


@pytest.fixture
def drawn_anew() -> None:
    """For a test of the figures' own bytes: none is kept from another page."""
    DRAWN.clear()


@pytest.fixture
def undrawn(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other page gets the empty figures."""
    monkeypatch.setattr(sys.modules[__name__], "DRAWN", {})
