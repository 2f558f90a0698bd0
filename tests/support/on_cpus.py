"""Tests that mean the CPU say so: several processes on one machine, whole graphs, bytes that must be equal."""

import os


def on_cpus(**more: str) -> dict[str, str]:
    """The environment of a subprocess that sees no GPU, so that a machine with one, or with eight, tests the same."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": ""} | more
