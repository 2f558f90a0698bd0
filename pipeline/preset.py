"""`make preset NAME=... [OBJECTIVE=...]`: edits params.yaml to named sets of values; comments and other values stay."""

import argparse
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from ifm.config import ConfigError, parse
from ifm.data.local import SUFFIXES, parquet_files, walk
from ifm.errors import UserError
from ifm.files import readable, write_text
from ifm.tracking import flatten
from pipeline import paths

FOLDER = Path(__file__).parent / "presets"
OBJECTIVES = FOLDER / "objectives"  # each with values for `all` presets, and for some by name


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def objectives() -> list[str]:
    return sorted(path.stem for path in OBJECTIVES.glob("*.yaml"))


def apply(name: str, text: str, *, objective: str = "trajectory", data: str | None = None) -> str:
    """params.yaml's text under a preset and what its flow is trained by, with the budget and values that go with both.

    data: the folder for the presets that read local files.
    Every preset starts from the values of `digits`, which sets each key that any other or an objective sets: going from
    one to another leaves nothing behind.
    Raises UserError for an unknown preset or objective, a missing folder, or a result that is no valid configuration.
    """
    if name not in names():
        raise UserError(f"no preset {name!r}; there are {', '.join(names())}")
    if objective not in objectives():
        raise UserError(f"no objective {objective!r}; there are {', '.join(objectives())}")
    yaml = _yaml()
    params, overlay = yaml.load(text), yaml.load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    local = overlay["data"]["source"] in ("parquet", "imagefolder")
    if local:
        if not data:
            raise UserError(f"preset {name} reads local files; say where: make preset NAME={name} DATA=path/to/folder")
        overlay["data"]["path"] = data
    elif data:
        raise UserError(f"preset {name} reads no local files; leave DATA out")
    _merge(params, yaml.load((FOLDER / "digits.yaml").read_text(encoding="utf-8")), at="")
    _merge(params, overlay, at="")
    chosen = yaml.load((OBJECTIVES / f"{objective}.yaml").read_text(encoding="utf-8"))
    for part in ("all", name):
        _merge(params, chosen.get(part, {}), at="")
    out = io.StringIO()
    yaml.dump(params, out)
    parse(parse_yaml(out.getvalue()), source=f"preset {name}")
    # ruamel keeps a comment in its column, which a longer value pushes to the right for good: back to two spaces.
    return re.sub(r"""^([^#'"\n]*\S) +# """, r"\1  # ", out.getvalue(), flags=re.MULTILINE)


def objective_values(objective: str, name: str) -> dict[str, Any]:
    """What an objective sets under a preset, by dotted name."""
    chosen = parse_yaml((OBJECTIVES / f"{objective}.yaml").read_text(encoding="utf-8"))
    return flatten(chosen.get("all", {})) | flatten(chosen.get(name, {}))


def parse_yaml(text: str) -> Any:
    """The text of params.yaml as plain values."""
    return _yaml(typ="safe").load(text)


def _yaml(typ: str = "rt") -> YAML:
    yaml = YAML(typ=typ, pure=True)
    yaml.width = 1000
    yaml.preserve_quotes = True
    # `path: null` stays as it is written, not `path:`.
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def _merge(params: CommentedMap, overlay: dict[str, Any], *, at: str) -> None:
    for key, value in overlay.items():
        if key not in params:
            raise UserError(f"params.yaml has no {at}{key}, which the preset sets; restore it with `git checkout`")
        if isinstance(value, dict):
            _merge(params[key], value, at=f"{at}{key}.")
        else:
            params[key] = value


def check_data(name: str, data: str) -> None:
    """Raises UserError unless the folder (parquet: or file) is there and holds what the preset reads."""
    source = parse_yaml((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["data"]["source"]
    place, shown = Path(os.path.expanduser(data)), f"DATA={readable(data)}"
    if readable(data) != data:
        raise UserError(f"{shown}: a name that params.yaml cannot hold; rename the folder, or link to it by another")
    if source == "parquet" and not parquet_files(place, ""):
        raise UserError(f"{shown}: no .parquet file, and no folder that holds some; say where they are")
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
    parser.add_argument("--data", help="folder of local files, for cifar10-jpeg and imagefolder")
    arguments = parser.parse_args()
    if not arguments.name:
        sys.exit(f"which preset? make preset NAME=...; there are {', '.join(names())}")
    try:
        text, objective = paths.PARAMS.read_text("utf-8"), arguments.objective or "trajectory"
        if arguments.data and arguments.name in names():
            check_data(arguments.name, arguments.data)
        write_text(paths.PARAMS, apply(arguments.name, text, objective=objective, data=arguments.data or None))
    except (UserError, ConfigError) as error:
        sys.exit(str(error))
    chosen = f"preset {arguments.name}, objective {objective}"
    print(f"{paths.PARAMS}: {chosen}; `git diff {paths.PARAMS}` shows it, `dvc repro` runs it")


if __name__ == "__main__":
    main()
