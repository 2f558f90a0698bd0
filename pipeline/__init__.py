"""The stages of the graph. The code beside the graph is the code that runs: in a DVC experiment's own folder too."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C in a command that has nothing to say about it, and a package that is not installed."""
    from ifm.extras import missing

    if issubclass(kind, KeyboardInterrupt):
        print("stopped; the same command starts again", file=sys.stderr, flush=True)
    elif isinstance(error, ModuleNotFoundError) and (said := missing(error)) and not os.environ.get("IFM_DEBUG"):
        print(said, file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # a command is being started
    sys.excepthook = _one_line
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

# A name that a terminal's encoding lacks is shown by its escapes, as on stderr, and is no error.
with suppress(AttributeError):  # another kind of stream
    sys.stdout.reconfigure(errors="backslashreplace")
