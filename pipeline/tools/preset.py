"""`make preset NAME=... [OBJECTIVE=...] [CONDITION=...]`: edits params.yaml to named sets of values.

Comments and other values stay.
"""

import argparse
import copy
import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ifm.config import ConfigError, params_text, parse, read_mapping, read_yaml
from ifm.data.local import SOUNDS, SUFFIXES, parquet_files, walk
from ifm.data.sources import SOURCES
from ifm.dynamics import DYNAMICS
from ifm.errors import UserError
from ifm.files import readable, write_text
from ifm.tracking import flatten
from pipeline.runner import paths
from pipeline.tools import params_file

FOLDER = Path(__file__).parents[1] / "presets"
# Of the others: trajectory.
DEFAULT_OBJECTIVES = dict.fromkeys(("digits", "digits-long", "digits-classes"), "trajectory-consistency")
BUDGETS = {"digits-classes": "digits-long"}  # whose values an objective sets for it
OBJECTIVES = FOLDER / "objectives"  # each with values for `all` presets, and for some by name
CONDITIONS = FOLDER / "conditions"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def objectives() -> list[str]:
    return sorted(path.stem for path in OBJECTIVES.glob("*.yaml"))


def conditions() -> list[str]:
    return sorted(path.stem for path in CONDITIONS.glob("*.yaml"))


def default_objective(name: str) -> str:
    """What a preset's flow is trained by where nothing else is asked for: what measured best there."""
    return DEFAULT_OBJECTIVES.get(name, "trajectory")


def apply(
    name: str, text: str, *, objective: str | None = None, condition: str | None = None, data: str | None = None
) -> str:
    """params.yaml's text under a preset and what its flow is trained by, with the budget and values that go with both.

    text: any valid form of the file, e.g. DVC's own; data: the folder for the presets that read local files.
    objective, condition (what samples are asked to be): None: the preset's own.
    Every preset starts from the values of `digits`, which sets each key that any other or an objective sets: going from
    one to another leaves nothing behind.
    Raises UserError for an unknown preset, objective or condition, or a missing folder; ConfigError for a text that is
    no YAML, or a result that is no valid configuration.
    """
    if name not in names():
        raise UserError(f"no preset {name!r}; there are {', '.join(names())}")
    objective = objective or default_objective(name)
    if objective not in objectives():
        raise UserError(f"no objective {objective!r}; there are {', '.join(objectives())}")
    if condition is not None and condition not in conditions():
        raise UserError(f"no condition {condition!r}; there are {', '.join(conditions())}")
    values = read_mapping(text, source=str(paths.PARAMS))
    base, chosen = _read(FOLDER / "digits.yaml"), _read(FOLDER / f"{name}.yaml")
    local = SOURCES[chosen[0]["data"]["source"]].key == "path"
    if local and not data:
        raise UserError(f"preset {name} reads local files; say where: make preset NAME={name} DATA=path/to/folder")
    if data and not local:
        raise UserError(f"preset {name} reads no local files; leave DATA out")
    if data and data.encode(errors="replace").decode() != data:
        raise UserError(f"DATA={data!a}: the folder's name is not UTF-8, which params.yaml is; rename the folder")
    spelt: dict[params_file.Path, str] = {}
    told = [] if condition is None else [_read(CONDITIONS / f"{condition}.yaml")]
    for overlay, words in (base, chosen, *_objective(objective, name), *told):
        _merge(values, overlay, at="")
        spelt |= words
    if local:
        values["data"]["path"] = data
        if _recordings(chosen[0], data):  # files, not the table that the preset is about
            values["data"] |= {"source": "audiofolder", "test_split": None}
            values["data"]["audio"]["column"] = None
    if chosen[0].get("teacher", {}).get("kind") == "pretrained":
        values["dynamics"] = _with_public_models(values["dynamics"])
    parse(values, source=f"preset {name}")
    return params_file.rewritten(text, values, spelt=spelt)


def _recordings(chosen: Mapping[str, Any], data: str) -> bool:
    """Whether a preset that reads a table of recordings is given a folder of recordings."""
    place = Path(os.path.expanduser(data))
    wanted = "audio" in chosen["data"] and chosen["data"]["source"] == "parquet" and not parquet_files(place, "")
    return wanted and place.is_dir() and any(path.suffix.lower() in SOUNDS for path in walk(place))


def _with_public_models(asked: Any) -> Any:
    """Of the dynamics that the file asks for those that a public model can teach; ve if there are none."""
    if not isinstance(asked, list):
        return asked  # which is told of when the values are checked
    return [name for name in asked if name not in DYNAMICS or DYNAMICS[name].gaussian] or ["ve"]


def objective_values(objective: str, name: str) -> dict[str, Any]:
    """What an objective sets under a preset, by dotted name."""
    found: dict[str, Any] = {}
    for values, _ in _objective(objective, name):
        found |= flatten(values)
    return found


Overlay = tuple[dict[str, Any], dict[params_file.Path, str]]  # values, and how they are written


def _objective(objective: str, name: str) -> list[Overlay]:
    """What an objective sets for all presets, for the one whose budget this one has, and for this one."""
    values, words = _read(OBJECTIVES / f"{objective}.yaml")
    return [
        (values.get(part, {}), {path[1:]: word for path, word in words.items() if path[0] == part})
        for part in dict.fromkeys(("all", BUDGETS.get(name, name), name))
    ]


@functools.cache
def _read(file: Path) -> Overlay:
    text = file.read_text(encoding="utf-8")
    return read_mapping(text, source=str(file)), params_file.spelling(text, source=str(file))


def parse_yaml(text: str) -> Any:
    """The text of params.yaml, or a value of it, as plain values. Raises ConfigError."""
    return read_yaml(text, source=str(paths.PARAMS))


def _merge(values: dict[str, Any], overlay: Mapping[str, Any], *, at: str) -> None:
    for key, value in overlay.items():
        inner = values.get(key)
        if key not in values or isinstance(inner, dict) != isinstance(value, dict):
            raise UserError(f"params.yaml has no {at}{key}, which the preset sets; restore it with `git checkout`")
        if isinstance(value, dict):
            _merge(inner, value, at=f"{at}{key}.")
        else:
            values[key] = copy.deepcopy(value)


def check_data(name: str, data: str) -> None:
    """Raises UserError unless the folder (parquet: or file) is there and holds what the preset reads."""
    chosen = parse_yaml((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    source = chosen["data"]["source"]
    place, shown = Path(os.path.expanduser(data)), f"DATA={readable(data)}"
    if readable(data) != data:
        raise UserError(f"{shown}: a name that params.yaml cannot hold; rename the folder, or link to it by another")
    if source == "parquet" and not parquet_files(place, "") and not _recordings(chosen, data):
        sounds = f", nor {', '.join(SOUNDS)} files" if "audio" in chosen["data"] else ""
        raise UserError(f"{shown}: no .parquet file, and no folder that holds some{sounds}; say where they are")
    if source == "text" and not place.exists():
        raise UserError(f"{shown}: no such file or folder; say where the text is")
    if source == "imagefolder":
        if not place.is_dir():
            raise UserError(f"{shown}: no such folder; say where the images are")
        if not any(path.suffix.lower() in SUFFIXES for path in walk(place)):
            raise UserError(f"{shown}: holds no {', '.join(SUFFIXES)} files; say where the images are")


def main() -> None:
    """Edits params.yaml in place."""
    parser = argparse.ArgumentParser(prog="make preset", description=main.__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join(names()))
    parser.add_argument("--objective", metavar="NAME", help=", ".join(objectives()))
    parser.add_argument("--condition", metavar="NAME", help=", ".join(conditions()))
    parser.add_argument("--data", help="folder of local files, of the presets that read some")
    arguments = parser.parse_args()
    if not arguments.name:
        sys.exit(f"which preset? make preset NAME=...; there are {', '.join(names())}")
    try:
        text, objective = params_text(paths.PARAMS), arguments.objective or default_objective(arguments.name)
        if arguments.data and arguments.name in names():
            check_data(arguments.name, arguments.data)
        asked = {"condition": arguments.condition or None, "data": arguments.data or None}
        write_text(paths.PARAMS, apply(arguments.name, text, objective=objective, **asked))
    except (UserError, ConfigError) as error:
        sys.exit(str(error))
    chosen = f"preset {arguments.name}, objective {objective}"
    chosen += f", condition {arguments.condition}" if arguments.condition else ""
    print(f"{paths.PARAMS}: {chosen}; `git diff {paths.PARAMS}` shows it, `dvc repro` runs it")


if __name__ == "__main__":
    main()
