"""How fast the project is, as ratios within one run: `make bench`. Read docs/benchmarks.md first."""

import pipeline  # noqa: F401  # the code beside is the code that is measured, also where ifm is not installed
