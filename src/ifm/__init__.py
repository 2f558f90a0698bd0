"""Integration Flow (arXiv 2504.20179): learn the integral of an ODE path, so that noise becomes an image at once."""

__version__ = "0.1.0"
