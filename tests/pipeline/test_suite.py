"""The tests themselves: what they share lies in tests/support, and their processes start quickly."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "tests").rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports; both parts of `from a import b`, since b may be a module."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT / "tests").as_posix())
def test_no_module_imports_a_test_module(path):
    """A test module that another imports could not be changed, or run, by itself."""
    names = [name for name in imported(path) if any(part.startswith("test_") for part in name.split("."))]
    assert [name for name in names if name.startswith("tests.")] == []


def test_imports_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    file = tmp_path / "tests/a/test_x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import tests.b.test_y\nfrom tests.b import test_z\nfrom . import test_w\nfrom ..c.test_v import V\n"
    )
    assert list(imported(file)) == ["tests.b.test_y", "tests.b.test_z", "tests.a.test_w", "tests.c.test_v.V"]


def test_processes_of_tests_keep_their_bytecode():
    assert not sys.dont_write_bytecode
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_keeps_the_bytecode_of_what_it_starts():
    """uv compiles nothing when it installs."""
    words = ["make", "--silent", "--eval", "show: ; @env", "show"]
    asked = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OTHER": "1"}
    done = subprocess.run(words, cwd=ROOT, env=asked, capture_output=True, text=True, check=True)
    assert "OTHER=1" in done.stdout.splitlines()
    assert "PYTHONDONTWRITEBYTECODE" not in done.stdout
