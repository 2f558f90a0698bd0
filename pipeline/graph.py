"""The code that each stage of dvc.yaml depends on: what it imports, followed through the source.

`python -m pipeline.graph` prints what would change in dvc.yaml; `--write` writes it. DVC does not follow imports, so
after a new module or import this is run once. Data, models and reports among a stage's deps are left as they are.
"""

import argparse
import ast
import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

NAMED = r"ifm(\.\w+)+:\w+"  # "module:name"
# No output depends on these: checking, tracking, progress bars, the runner.
WITHOUT_EFFECT = frozenset(
    {
        "src/ifm/__init__.py",
        "src/ifm/checkout.py",
        "src/ifm/config/__init__.py",
        "src/ifm/config/reading.py",
        "src/ifm/config/rules.py",
        "src/ifm/config/sections.py",
        "src/ifm/errors.py",
        "src/ifm/extras.py",
        "src/ifm/data/needs.py",
        "src/ifm/progress.py",
        "src/ifm/schema.py",
        "src/ifm/training/stopping.py",
        "src/ifm/tracking/__init__.py",
        "src/ifm/tracking/delivery.py",
        "src/ifm/tracking/lineage.py",
        "src/ifm/tracking/locallog.py",
        "src/ifm/tracking/places.py",
        "src/ifm/tracking/registry.py",
        "src/ifm/tracking/runs.py",
        "src/ifm/tracking/states.py",
        "src/ifm/tracking/store.py",
        "src/ifm/tracking/sync.py",
        "pipeline/__init__.py",
        "pipeline/runner/__init__.py",
        "pipeline/runner/launch.py",
        "pipeline/runner/lockfile.py",
        "pipeline/runner/parent.py",
        "pipeline/runner/paths.py",
        "pipeline/runner/records.py",
        "pipeline/runner/stage.py",
        "pipeline/stages/__init__.py",
        "pipeline/runner/unfinished.py",
    }
)
PAGE_PARTS = ("*.html", "*.css", "*.js")  # beside a module, read when a page is made


def module_file(name: str) -> Path | None:
    """The file of a module of this project, or None for a foreign one."""
    base = Path("src") if name.split(".")[0] == "ifm" else Path()
    path = base.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_modules(file: Path) -> set[str]:
    """Names of everything a file imports, at the top or inside functions; packages on the way included.

    What only a type checker imports is not run and left out.
    """
    names: set[str] = set()
    for node in _executed(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return with_packages(name for name in names if name.split(".")[0] in ("ifm", "pipeline"))


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        typing = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        if typing:
            node = ast.Module(node.orelse)
        yield node
        yield from _executed(node)


def with_packages(names: Iterable[str]) -> set[str]:
    """Modules and the packages on the way to them."""
    return {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 2)}


def table_modules(file: Path) -> set[str]:
    """Modules that the entries of a file's table name ("module:name"); packages on the way included."""
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    texts = [node.value for node in tree if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return with_packages(text.partition(":")[0] for text in texts if re.fullmatch(NAMED, text))


def loads_entries(file: Path) -> bool:
    """Whether a file imports what tables name: it calls `ifm.schema.load`."""
    calls = [node.func for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return "ifm.schema" in imported_modules(file) and any(
        getattr(call, "id", None) == "load" or getattr(call, "attr", None) == "load" for call in calls
    )


def closure(file: Path, *, without: frozenset[str] = frozenset()) -> set[str]:
    """The files of this project that `file` imports, directly or not, itself included.

    A table's entries are followed where the table's own file loads them, or `file` does.
    without: files that are left out, and so is what they alone import.
    """
    seen: set[Path] = set()
    waiting, all_tables = [file], loads_entries(file)
    while waiting:
        current = waiting.pop()
        if current in seen or current.as_posix() in without:
            continue
        seen.add(current)
        names = imported_modules(current)
        if all_tables or loads_entries(current):
            names |= table_modules(current)
        waiting += [found for name in names if (found := module_file(name))]
    packages = {parent / "__init__.py" for path in seen for parent in path.parents}
    return {path.as_posix() for path in seen | {p for p in packages if p.is_file()}} - without


def code_deps(stage: str) -> list[str]:
    """What dvc.yaml must list for a stage: its closure without the files that no output depends on, and templates."""
    python = closure(Path(f"pipeline/stages/{stage}.py"), without=WITHOUT_EFFECT)
    folders = {Path(file).parent for file in python if file.startswith("src/")} - {Path("src/ifm")}
    parts = {file.as_posix() for folder in folders for part in PAGE_PARTS for file in folder.glob(part)}
    return sorted(python | parts)


def is_code(dep: str) -> bool:
    """Whether a dep of dvc.yaml is the project's code and not data, models or reports."""
    return dep.startswith(("src/", "pipeline/"))


def rewritten(text: str) -> str:
    """dvc.yaml's text with each stage's code deps as they should be; all else, comments too, stays to the letter.

    Code deps are plain lines (`      - src/...`) at the end of a stage's `deps`.
    """
    lines, stage, kept = text.splitlines(keepends=True), None, []
    at_deps = waiting = False

    def end_of_deps() -> None:
        nonlocal waiting
        if waiting:
            kept.extend(f"      - {file}\n" for file in code_deps(stage))
        waiting = False

    for line in lines:
        if at_deps and not line.startswith("      "):
            end_of_deps()
            at_deps = False
        if named := re.fullmatch(r"  (\w+):\s*", line):
            stage = named[1]
        if re.fullmatch(r"    deps:\s*", line):
            at_deps = waiting = True
        if at_deps and is_code(line.strip().removeprefix("- ")):
            continue
        kept.append(line)
    if at_deps:
        end_of_deps()
    return "".join(kept)


def main() -> None:
    """Runs from the command line; the status is 1 where dvc.yaml differs and was not written."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.graph", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write dvc.yaml")
    given, file = parser.parse_args(), Path("dvc.yaml")
    old = file.read_text(encoding="utf-8")
    new = rewritten(old)
    difference = difflib.unified_diff(old.splitlines(True), new.splitlines(True), "dvc.yaml", "dvc.yaml", n=1)
    print("".join(difference), end="")
    if given.write:
        file.write_text(new, encoding="utf-8")
    raise SystemExit(new != old and not given.write)


if __name__ == "__main__":
    main()
