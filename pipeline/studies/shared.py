"""Which stages several configurations share: those that read the same params, and whose inputs come from such stages.

From dvc.yaml alone, as DVC decides it, except for what is the same in all configurations anyway: code and raw files.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ifm.files import file_sha256
from ifm.tracking import digest
from pipeline.runner.stage import lookup, of_dvc, resolved


class Node(NamedTuple):
    """A stage of one configuration."""

    key: str  # equal where the outputs are
    above: frozenset[str]  # names of all stages that it needs


def read_graph(path: Path = Path("dvc.yaml")) -> dict[str, Any]:
    """The stages of dvc.yaml by name, without those that look at local files: they run for every configuration."""
    stages = of_dvc(path.read_text(encoding="utf-8"))["stages"]
    return {name: stage for name, stage in stages.items() if not stage.get("always_changed")}


def code_digest(graph: Mapping[str, Any]) -> str:
    """A hash of the files of code that the stages have as deps: their change makes results stale."""
    files = {dep for stage in graph.values() for dep in stage["deps"] if dep.startswith(("src/", "pipeline/"))}
    return digest({file: file_sha256(Path(file)) for file in sorted(files)})


def nodes(graph: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Node]:
    """Every stage of a configuration, e.g. "flow@rf". values: params.yaml as plain values."""
    stages = {}
    for name, stage in graph.items():
        for item in values["dynamics"] if "matrix" in stage else [None]:
            stages[f"{name}@{item}" if item else name] = resolved(stage, item)
    found: dict[str, Node] = {}

    def node(name: str) -> Node:
        if name not in found:
            stage = stages[name]
            inputs = {
                maker
                for maker, other in stages.items()
                if any(f"{out}/".startswith(f"{dep}/") for out in other["outs"] for dep in stage["deps"])
            }
            read = {param: lookup(values, param) for param in stage["params"]}
            whole = values if "params.yaml" in stage["deps"] else None
            key = digest([name, read, whole, sorted(node(one).key for one in inputs)])
            found[name] = Node(key, frozenset(inputs.union(*(node(one).above for one in inputs))))
        return found[name]

    return {name: node(name) for name in stages}


def shared(configurations: Sequence[Mapping[str, Node]]) -> list[tuple[list[int], list[str]]]:
    """(indices of configurations, stages) of what at least two of them share; what most share comes first.

    Stages shared by the same ones are one group for each dynamics, since these can be made side by side; those of no
    dynamics go with the others where there is but one.
    """
    users: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, configuration in enumerate(configurations):
        for name, node in configuration.items():
            users[name, node.key].append(i)
    groups: dict[tuple[tuple[int, ...], str], list[str]] = defaultdict(list)
    for (name, _), who in users.items():
        if len(who) > 1:
            groups[tuple(who), name.partition("@")[2]].append(name)
    for who in {who for who, _ in groups}:
        others = [item for one, item in groups if one == who and item]
        if (who, "") in groups and len(others) == 1:
            groups[who, ""] += groups.pop((who, others[0]))
    found = [(list(who), names) for (who, _), names in groups.items()]
    return sorted(found, key=lambda group: -len(group[0]))


def needed(configuration: Mapping[str, Node], targets: Sequence[str]) -> dict[str, Node]:
    """What `dvc repro TARGETS` makes: the targets and all above them; no targets: the whole graph."""
    names = {*targets}.union(*(configuration[name].above for name in targets)) if targets else set(configuration)
    return {name: node for name, node in configuration.items() if name in names}


def keys(configuration: Mapping[str, Node]) -> frozenset[str]:
    return frozenset(node.key for node in configuration.values())
