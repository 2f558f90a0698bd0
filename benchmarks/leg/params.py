"""A leg's params.yaml: the preset, the recipe, what the command line sets, and what is planned while it runs."""

import argparse
import copy
from pathlib import Path
from typing import Any

from benchmarks.leg import __main__ as command
from benchmarks.leg import plan, results
from ifm.config import params_text, parse, read_mapping
from ifm.files import write_text
from pipeline.tools import params_file, preset

ROOT = Path(__file__).parents[2]


class Params:
    """Checked values, and the file in the folder `work` that the stages read."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.work = work
        self.values = self._of(arguments)
        parse(self.values, source="the leg's params.yaml")
        self.fixed = set(command.settings(arguments.set))  # never planned over
        work.mkdir(parents=True, exist_ok=True)
        self._write_params()

    def _of(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """The preset, the leg's recipe (or the earlier leg's params), and what --set says."""
        text = params_text(ROOT / "params.yaml")
        if arguments.earlier is not None:
            found = read_mapping(results.read(arguments.earlier)["params"], source=f"--from {arguments.earlier}")
        else:
            found = read_mapping(preset.apply(arguments.preset, text, data=str(arguments.data)), source="params.yaml")
            for key, value in plan.RECIPE.items():
                params_file.set_value(found, key, value)
            for key, value in (plan.IF_KNOWN | (plan.IF_SELECTED if "select" in found else {})).items():
                section, _, name = key.partition(".")
                if name in found.get(section, {}):
                    params_file.set_value(found, key, value)
        found["dynamics"] = [arguments.dynamics]
        found["data"]["path"] = str(arguments.data.resolve())
        if not list(arguments.data.glob("test*.parquet")):
            found["data"] |= {"test_split": None, "test_fraction": 0.1}
        self.text = text
        for key, value in command.settings(arguments.set).items():
            params_file.set_value(found, key, value)
        return found

    def change(self, **changes: Any) -> None:
        """Sets params by name (`flow__steps`), but none that --set has fixed."""
        for key, value in changes.items():
            dotted = key.replace("__", ".")
            if dotted not in self.fixed:
                params_file.set_value(self.values, dotted, value)
        self._write_params()

    def _write_params(self) -> None:
        self.written = params_file.rewritten(self.text, copy.deepcopy(self.values))
        write_text(self.work / "params.yaml", self.written)

    def told(self) -> str:
        """params.yaml without this machine's folders."""
        return self.written.replace(self.values["data"]["path"], Path(self.values["data"]["path"]).name)
