"""How fast the project is, as ratios within one run: `make bench`. Read docs/benchmarks.md first."""
