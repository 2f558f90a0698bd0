"""The command `ifm`: one function a subcommand, which imports what it needs."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from ifm import __version__, checkout, extras
from ifm.cli import demo, doctor, evaluate, export, sample, tracking
from ifm.errors import UserError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with status 1, as for any other input."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message}; {self.prog} --help lists the options\n" if _is_main() else None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a subcommand and exits with its status; a UserError is one line and status 1."""
    parser = Parser(prog="ifm", description="Integration Flow: tools beside the pipeline.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"ifm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, summary in checkout.COMMANDS.items():
        commands.add_parser(name, help=summary)
    for name, (add_options, run) in COMMANDS.items():
        summary = run.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        add_options(command)
        command.set_defaults(run=run, parser=command)
    words = list(sys.argv[1:] if arguments is None else arguments)
    with suppress(AttributeError):  # another kind of stream
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is no error
    try:
        if words[:1] and words[0] in checkout.COMMANDS:  # with options of its own
            checkout.run(words[0], words[1:])
        given, unknown = parser.parse_known_args(words)
        if unknown:  # said by the command, whose options they are not
            given.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        given.run(given)
    except KeyboardInterrupt:
        if _is_main():
            print("ifm: stopped", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        if os.environ.get("IFM_DEBUG"):
            raise
        sys.exit(f"ifm: {error}" if _is_main() else 1)
    except ModuleNotFoundError as error:
        said = extras.missing(error)
        if said is None or os.environ.get("IFM_DEBUG"):
            raise
        sys.exit(f"ifm: {said}" if _is_main() else 1)


def _is_main() -> bool:
    """Whether this process is the one that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


COMMANDS = {
    "evaluate": (evaluate.add_options, evaluate.run),
    "sample": (sample.add_options, sample.run),
    "export": (export.add_options, export.run),
    "demo": (demo.add_options, demo.run),
    "doctor": (doctor.add_options, doctor.run),
    **tracking.COMMANDS,
}
