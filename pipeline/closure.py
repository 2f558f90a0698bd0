"""Which of the project's Python files a stage imports, followed through the source. Used by the graph's tests.

`python -m pipeline.closure` prints the code deps that dvc.yaml must list for each stage.
"""

import ast
from pathlib import Path

# No output depends on these: checking, tracking, progress bars, the runner.
WITHOUT_EFFECT = frozenset(
    {
        "src/ifm/__init__.py",
        "src/ifm/checkout.py",
        "src/ifm/config.py",
        "src/ifm/errors.py",
        "src/ifm/needs.py",
        "src/ifm/progress.py",
        "src/ifm/stopping.py",
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
        "pipeline/launch.py",
        "pipeline/paths.py",
        "pipeline/records.py",
        "pipeline/stage.py",
        "pipeline/stages/__init__.py",
        "pipeline/unfinished.py",
    }
)


def module_file(name: str) -> Path | None:
    """The file of a module of this project, or None for a foreign one."""
    base = Path("src") if name.split(".")[0] == "ifm" else Path()
    path = base.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_modules(file: Path) -> set[str]:
    """Names of everything a file imports, at the top or inside functions; packages on the way included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.split(".")[0] in ("ifm", "pipeline")}
    return {".".join(name.split(".")[:i]) for name in ours for i in range(1, name.count(".") + 2)}


def closure(file: Path) -> set[str]:
    """The files of this project that `file` imports, directly or not, itself included."""
    seen: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        waiting += [found for name in imported_modules(current) if (found := module_file(name))]
    packages = {parent / "__init__.py" for path in seen for parent in path.parents}
    return {path.as_posix() for path in seen | {p for p in packages if p.is_file()}}


def code_deps(stage: str) -> list[str]:
    """What dvc.yaml must list for a stage: its closure without the files that no output depends on."""
    return sorted(closure(Path(f"pipeline/stages/{stage}.py")) - WITHOUT_EFFECT)


def main() -> None:
    """Prints the list for every stage."""
    for path in sorted(Path("pipeline/stages").glob("*.py")):
        if path.stem != "__init__":
            print(f"{path.stem}:")
            for file in code_deps(path.stem):
                print(f"      - {file}")


if __name__ == "__main__":
    main()
