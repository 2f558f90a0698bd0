"""The stages of the graph. The code beside the graph is the code that runs: in a DVC experiment's own folder too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
