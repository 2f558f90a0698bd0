"""`make params-reference`: docs/params.md, from the schema (ifm.config) and the comments of params.yaml."""

import json
import re
from pathlib import Path
from typing import Any

from ifm.config import read_params, schema
from ifm.files import write_text
from pipeline.runner import paths

PAGE = Path("docs/params.md")
HEAD = """# Parameters

Every choice that can change a result, as in [params.yaml](../params.yaml). `make params-reference` makes this page from
the schema ([ifm.config](../src/ifm/config)) and the file's comments. The default is what the file holds now, the
digits preset; `make preset NAME=...` edits it ([presets](../pipeline/presets)). A key that is missing, misspelt or out
of range stops every stage before it works, with one line that names it. A stage re-runs if one of its own keys changed;
[dvc.yaml](../dvc.yaml) lists them.

Hardware is not a parameter. `IFM_LAUNCH` (processes, [multi-gpu.md](multi-gpu.md)) and `IFM_GRAPHS`, `IFM_KERNELS`,
`IFM_COMPILE` (how a GPU is used, [gpu.md](gpu.md)) change only floating-point order.
Tracking is not a parameter either: `IFM_TRACKING`, `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`.
"""


def allowed(known: dict[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema."""
    if "anyOf" in known:
        first, *rest = (allowed(one) for one in known["anyOf"])
        return " or ".join([first, *("a list of them" if each == f"list of: {first}" else each for each in rest)])
    if "enum" in known:
        return ", ".join(f"`{value}`" for value in known["enum"])
    if "const" in known:
        return f"`{known['const']}`"
    kind = {"null": "`null`", "boolean": "`true`, `false`", "string": "text", "number": "number", "integer": "integer"}
    kind["object"] = "mapping"
    if known.get("type") == "array":
        return f"list of: {allowed(known['items'])}"
    word = kind[known["type"]]
    bounds = [
        f"{sign} {_plain(known[key])}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if key in known
    ]
    return " ".join([word, ", ".join(bounds)]).strip()


def _plain(bound: float) -> str:
    power = round(bound).bit_length() - 1
    return f"2^{power}" if bound > 2**32 and bound == 2**power else f"{bound:g}"


def comments(text: str) -> dict[str, str]:
    """The comment of each key of params.yaml, by dotted name."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []  # (indent, key)
    for line in text.splitlines():
        match = re.match(r"( *)([a-z_0-9]+):(?:[^#]*?)(?:#\s*(.*))?$", line)
        if not match:
            continue
        indent = len(match[1])
        above = [(at, key) for at, key in above if at < indent] + [(indent, match[2])]
        if match[3]:
            found[".".join(key for _, key in above)] = match[3]
    return found


def rows(known: dict[str, Any], values: dict[str, Any], said: dict[str, str], prefix: str = "") -> list[list[str]]:
    """[key, default, allowed, meaning] of a section and those in it. What is said of `teacher` holds for `flow`."""
    found = []
    for name, one in known["properties"].items():
        key, value = f"{prefix}{name}", values.get(name)
        section = one.get("$ref") or next((part["$ref"] for part in one.get("anyOf", []) if "$ref" in part), None)
        if section is not None:
            if value is not None:  # a section of a table that the file leaves out
                inner = known["$defs"][section.rpartition("/")[2]] | {"$defs": known["$defs"]}
                found += rows(inner, value, said, f"{key}.")
            continue
        meaning = said.get(key) or said.get(key.replace("flow.", "teacher.", 1), "")
        meaning = "" if meaning.split(" | ") == one.get("enum") else meaning  # the third column says as much
        found.append([f"`{key}`", f"`{json.dumps(value).replace(chr(34), '')}`", allowed(one), meaning])
    return found


def page(text: str, values: dict[str, Any]) -> str:
    """The page for a params.yaml."""
    whole, said = schema().model_json_schema(), comments(text)
    sections: dict[str, list[list[str]]] = {}
    for row in rows(whole, values, said):
        sections.setdefault(row[0].strip("`").partition(".")[0], []).append(row)
    top = [name for name, found in sections.items() if len(found) == 1 and "." not in found[0][0]]
    parts = [HEAD, "## Top level\n\n" + _table([sections[name][0] for name in top])]
    for name, found in sections.items():
        if name in top:
            continue
        about = f"\n{said[name].capitalize()}.\n" if name in said else ""
        parts.append(f"## {name}\n{about}\n" + _table(found))
    return "\n".join(parts)


def _table(found: list[list[str]]) -> str:
    lines = ["| key | default | allowed | |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in found]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes docs/params.md."""
    write_text(PAGE, page(paths.PARAMS.read_text(encoding="utf-8"), read_params(paths.PARAMS)))


if __name__ == "__main__":
    main()
