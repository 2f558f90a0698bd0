"""Progress bars: rate and ETA, on the main process, and only where somebody is looking."""

import sys
from collections.abc import Iterable
from typing import Any


def progress(iterable: Iterable | None = None, *, label: str, unit: str = "it", **options: Any):
    """tqdm through accelerate's wrapper, silent when stderr is not a terminal."""
    from accelerate.utils import tqdm

    return tqdm(iterable, desc=label, unit=unit, disable=not sys.stderr.isatty(), dynamic_ncols=True, **options)
