"""What the checks of `ifm doctor` say."""

from dataclasses import dataclass
from typing import Literal

OK, WARNING, PROBLEM = "ok", "warning", "problem"
SECONDS = 20  # that a remote or a server has to answer


@dataclass(frozen=True)
class Finding:
    """What was found of one thing."""

    name: str
    level: Literal["ok", "warning", "problem"]
    text: str
    mend: str = ""  # what to do
