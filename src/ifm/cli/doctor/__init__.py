"""`ifm doctor`: what of this machine and this folder stands in the way of a run, and what to do about it.

Nothing is installed, fetched or written. Addresses are shown without users, passwords and queries.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ifm import checkout
from ifm.cli.doctor import machine, stores, work
from ifm.cli.doctor.findings import PROBLEM, WARNING, Finding


def add_options(parser: argparse.ArgumentParser) -> None:
    """None: it says all it finds."""


def run(given: argparse.Namespace) -> None:
    """Checks Python, torch, disk, params.yaml, DVC and its remotes, tracking and weights; status 1 on a problem."""
    levels = []
    for finding in examine(checkout.find()):
        levels.append(finding.level)
        print(f"{finding.level:<8} {finding.name:<12} {finding.text}", flush=True)
        if finding.mend:
            print(f"{'':<21} {finding.mend}", flush=True)
    print(f"\n{levels.count(PROBLEM)} problems, {levels.count(WARNING)} warnings")
    if PROBLEM in levels:
        sys.exit(1)


def examine(root: Path | None) -> Iterator[Finding]:
    """All findings. root: the checkout; None: there is none."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("Python", machine.python),
        ("torch", machine.torch_devices),
        ("GPU", machine.gpu_abilities),
        ("cores", machine.cores),
    ]
    if root is None:
        mend = "in a clone of the project, params.yaml, DVC, tracking and weights are looked at too"
        checks.append(("checkout", lambda: iter([Finding("checkout", WARNING, "this folder is in none", mend)])))
    else:
        checks += [
            ("package", lambda: machine.package(root)),
            ("params.yaml", lambda: work.params(root)),
            ("speed", lambda: work.speed(root)),
            ("disk", lambda: work.disk(root)),
            ("DVC", lambda: stores.dvc(root)),
            ("tracking", lambda: stores.tracking(root)),
            ("weights", lambda: work.weights(root)),
        ]
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever a library raises must not hide the other findings
            yield Finding(name, PROBLEM, f"the check itself failed ({type(error).__name__})")
