"""`make audit`: known vulnerabilities of the pinned packages, looked up by pip-audit. It needs the network.

Ends with 0 where every pin was looked up and none is known to be vulnerable, 1 where some are, 2 where pins could not
be looked up. pip-audit itself ends with 0, "No known vulnerabilities found", where an index knew not one of them.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PINS = Path("constraints.txt")
TIMEOUT = 600  # seconds, for two hundred look-ups
SHOWN = 5


class Verdict(NamedTuple):
    """The exit status, and what to tell."""

    status: int
    text: str


def main() -> None:
    if importlib.util.find_spec("pip_audit") is None:
        sys.exit("pip-audit is not installed; run `make audit`, or `pip install -e '.[audit]' -c constraints.txt`")
    words = ["-r", str(PINS), "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        found = Verdict(2, _unknown(f"no answer in {TIMEOUT} s"))
    else:
        found = judge(done.stdout, done.stderr)
    print(found.text)
    sys.exit(found.status)


def judge(report: str, log: str) -> Verdict:
    """What pip-audit's report (JSON; empty where it gave up) and its log mean."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = [line for line in log.splitlines() if line.strip()]
        return Verdict(2, _unknown(lines[-1][:300] if lines else "it said nothing"))
    missed = [package["name"] for package in packages if "skip_reason" in package]
    faults = [
        f"{package['name']} {package['version']}: {fault['id']}, "
        f"mended in {', '.join(fault['fix_versions']) or 'no version yet'}"
        for package in packages
        for fault in package.get("vulns", [])
    ]
    if faults:
        return Verdict(1, "\n".join([f"{len(faults)} known vulnerabilities in {PINS}:", *faults]))
    if missed:
        named = ", ".join(missed[:SHOWN]) + (", ..." if len(missed) > SHOWN else "")
        return Verdict(2, _unknown(f"{len(missed)} of {len(packages)} packages are not on the index: {named}"))
    return Verdict(0, f"{PINS}: {len(packages)} packages looked up, no known vulnerability")


def _unknown(reason: str) -> str:
    return (
        f"audit: {PINS} could not be looked up whole ({reason}). This says nothing of its safety: run `make audit` "
        "where the Python Package Index can be reached"
    )


if __name__ == "__main__":
    main()
