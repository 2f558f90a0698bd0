"""The stages of the graph. The code beside the graph is the code that runs: in a DVC experiment's own folder too."""

import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

# A name that a terminal's encoding lacks is shown by its escapes, as on stderr, and is no error.
with suppress(AttributeError):  # another kind of stream
    sys.stdout.reconfigure(errors="backslashreplace")
