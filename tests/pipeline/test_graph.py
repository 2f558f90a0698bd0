"""The shape of the project: what stages depend on, which module may import which."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from ifm.config import Config
from pipeline import graph
from tests.support.core_alone import BLOCKER

ROOT = Path(__file__).parents[2]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = list(GRAPH)


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module", autouse=True)
def _each_file_is_read_once():
    """Every stage's closure has most files, and reading one is parsing it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "loads_entries", cache(graph.loads_entries))
        for name in ("imported_modules", "table_modules"):
            patch.setattr(graph, name, unchanging(getattr(graph, name)))
        yield


def unchanging(names):
    """The function, asked once for each file: sets that nobody adds to."""
    return cache(lambda file: frozenset(names(file)))


def test_every_stage_has_its_module():
    assert set(STAGES) == {p.stem for p in Path("pipeline/stages").glob("*.py")} - {"__init__"}


def test_the_deps_written_are_the_deps_committed():
    """DVC does not follow imports. `python -m pipeline.graph --write` writes what dvc.yaml must list."""
    text = Path("dvc.yaml").read_text(encoding="utf-8")
    assert graph.rewritten(text) == text
    without = "".join(line for line in text.splitlines(True) if not graph.is_code(line.strip().removeprefix("- ")))
    assert graph.rewritten(without) == text
    for stage in STAGES:
        assert f"pipeline/stages/{stage}.py" in GRAPH[stage]["deps"]


def test_a_template_is_a_dep_of_the_stage_that_fills_it():
    parts = sorted(p.relative_to(ROOT).as_posix() for part in graph.PAGE_PARTS for p in (ROOT / "src/ifm").rglob(part))
    assert parts == [d for d in GRAPH["report"]["deps"] if graph.is_code(d) and not d.endswith(".py")]


def test_what_only_a_type_checker_imports_is_no_dep(tmp_path):
    file = tmp_path / "one.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport ifm.files\n"
        "if TYPE_CHECKING:\n    import ifm.model\nelse:\n    import ifm.random\n"
        "def f():\n    from ifm import anchors\n"
    )
    assert graph.imported_modules(file) == {"ifm", "ifm.files", "ifm.random", "ifm.anchors"}


def test_the_closure_follows_what_python_really_imports():
    """The modules loaded by importing a stage are all in its closure."""
    code = (
        "import sys, pipeline.stages.{}; "
        "print(*[m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ('ifm', 'pipeline')], sep='\\n')"
    )
    for stage in ("flow", "report"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(stage)], capture_output=True, text=True, check=True, cwd=ROOT
        )
        loaded = {Path(line).resolve().relative_to(ROOT.resolve()).as_posix() for line in done.stdout.split()}
        assert loaded <= graph.closure(Path(f"pipeline/stages/{stage}.py"))


def test_files_left_out_of_deps_exist_and_are_few():
    assert all(Path(file).is_file() for file in graph.WITHOUT_EFFECT)


@pytest.mark.parametrize("stage", STAGES)
def test_params_exist(stage):
    """Every params entry of every branch is a key of the configuration."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    for dynamics in ("ve", "rf", "pfgmpp"):
        for name in GRAPH[stage].get("params", []):
            at = values
            for part in name.replace("${item.dynamics}", dynamics).split("."):
                assert part in at, name
                at = at[part]


def test_every_section_is_read_by_some_stage():
    """A key that no stage lists could change without anything being run again."""
    listed = {name.split(".")[0] for stage in GRAPH.values() for name in stage.get("params", [])}
    assert listed == set(Config.model_fields)


@pytest.mark.parametrize(
    ("stage", "unread"),
    [
        ("teacher", {"flow", "anchor", "trajectories", "sample", "evaluate", "data", "dynamics"}),
        ("trajectories", {"flow", "anchor", "teacher", "sample", "evaluate", "network"}),
        ("flow", {"teacher", "sample", "evaluate", "trajectories"}),
        ("select", {"teacher", "flow", "anchor", "network", "ode", "trajectories", "diagnose"}),
        ("evaluate", {"select", "teacher", "flow", "anchor", "network", "ode", "trajectories", "sample", "diagnose"}),
        ("diagnose", {"select", "teacher", "flow", "anchor", "network", "ode", "trajectories", "sample", "evaluate"}),
    ],
)
def test_stages_read_no_more_than_they_must(stage, unread):
    needed = {"flow.objective"} if stage == "trajectories" else set()  # whether there is anything to do
    assert not unread & {name.split(".")[0] for name in GRAPH[stage]["params"] if name not in needed}


def test_hardware_is_not_in_the_graph():
    text = (ROOT / "dvc.yaml").read_text()
    assert not any(word in text for word in ("accelerate launch", "torchrun", "num_processes", "cuda"))


# --- directions -----------------------------------------------------------------------------------------------------

LAYERS = {
    # module: what it must not import
    "ifm.networks": {"ifm.dynamics", "ifm.model", "ifm.training", "ifm.sampling", "ifm.metrics"},
    "ifm.networks.mlp": {"ifm.dynamics", "ifm.model", "ifm.training", "ifm.sampling", "ifm.metrics", "ifm.data"},
    "ifm.dynamics": {"ifm.networks", "ifm.model", "ifm.training", "ifm.sampling", "ifm.metrics", "ifm.random"},
    "ifm.model": {"ifm.training", "ifm.sampling", "ifm.metrics", "ifm.anchors", "ifm.objectives", "ifm.use"},
    "ifm.objectives": {"ifm.training", "ifm.sampling", "ifm.metrics", "ifm.networks", "ifm.config"},
    "ifm.losses": {"ifm.objectives", "ifm.training", "ifm.sampling", "ifm.metrics", "ifm.networks", "ifm.model"},
    "ifm.conditions": {"ifm.networks", "ifm.model", "ifm.objectives", "ifm.training", "ifm.sampling", "ifm.data"},
    "ifm.schema": {"ifm.config", "ifm.dynamics", "ifm.networks", "ifm.objectives", "ifm.conditions"},
    "ifm.hardware": {"ifm.model", "ifm.networks", "ifm.objectives", "ifm.training", "ifm.sampling", "ifm.metrics"},
    "ifm.use": {"ifm.training", "ifm.cli", "ifm.config"},
    "ifm.anchors": {"ifm.training", "ifm.sampling", "ifm.metrics"},
    "ifm.sampling": {"ifm.training", "ifm.metrics", "ifm.data"},
    "ifm.exact": {"ifm.training", "ifm.sampling", "ifm.metrics", "ifm.networks", "ifm.data"},
    "ifm.diagnostics": {"ifm.training", "ifm.metrics", "ifm.data", "ifm.report"},
    "ifm.metrics": {"ifm.training", "ifm.sampling", "ifm.model", "ifm.networks", "ifm.dynamics"},
    "ifm.training": {"ifm.metrics", "ifm.tracking", "ifm.report"},
    "ifm": {"pipeline"},
}


def modules():
    for path in sorted((ROOT / "src" / "ifm").rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_directions_of_import():
    for name, path in modules():
        imported = graph.imported_modules(path)
        for layer, forbidden in LAYERS.items():
            if name == layer or name.startswith(layer + "."):
                bad = {i for i in imported for f in forbidden if i == f or i.startswith(f + ".")}
                assert not bad, f"{name} imports {sorted(bad)}"


def test_there_are_no_circles_of_imports():
    """Not through functions' imports either; what only a type checker imports does not count."""
    edges = {
        path: {found for name in graph.imported_modules(path) if (found := graph.module_file(name))} - {path}
        for path in [*Path("src/ifm").rglob("*.py"), *Path("pipeline").rglob("*.py")]
    }
    packages = {path for path in edges if path.name == "__init__.py"}  # importing a module imports its package first
    done: set[Path] = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(map(str, [*way[way.index(path) :], path]))
        if path in done:
            return
        for other in edges[path]:
            if other in packages and other.parent in path.parents:
                continue
            visit(other, (*way, path))
        done.add(path)

    for path in edges:
        visit(path, ())


SCHEMA = ("src/ifm/schema.py", *(f"src/ifm/config/{name}.py" for name in ("__init__", "reading", "rules", "sections")))


def test_what_is_left_out_of_the_deps_as_checks_defines_schema_alone():
    """A section has fields and validators, and no method that a stage could act by: DVC would not see it change.

    DataConfig looks two tables up, which are deps themselves.
    """
    assert set(SCHEMA) <= graph.WITHOUT_EFFECT
    looked_up = {"origin", "modality", "shape"}
    for name in SCHEMA:
        for node in ast.walk(ast.parse(Path(name).read_text())):
            if not isinstance(node, ast.ClassDef) or node.name in ("NameOf", "NamesOf"):
                continue
            for method in (part for part in node.body if isinstance(part, ast.FunctionDef)):
                by = [getattr(getattr(d, "func", d), "id", None) for d in method.decorator_list]
                if method.name == "__reduce__":  # of pickles
                    continue
                if method.name in looked_up:
                    *_, last = method.body
                    assert isinstance(last, ast.Return), (name, method.name)
                    assert len(method.body) == 2, (name, method.name)
                else:
                    assert by == ["model_validator"], (name, node.name, method.name)


@pytest.mark.parametrize(("package", "only"), [("mlflow", "ifm.tracking"), ("matplotlib", "ifm.report.plots")])
def test_one_module_imports(package, only):
    for name, path in modules():
        names = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        used = any(n == package or n.startswith(package + ".") for n in names)
        assert not used or f"{name}.".startswith(f"{only}."), f"{name} imports {package}"


def test_importing_ifm_is_light():
    heavy = ("diffusers", "accelerate", "mlflow", "dvc", "cleanfid", "datasets", "matplotlib", "pandas", "sklearn")
    code = f"import ifm, ifm.dynamics, ifm.model, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stages_that_compute_nothing_do_not_import_torch():
    names = ("fetch", "preprocess", "report", "track")
    code = "import sys, {}; print('torch' in sys.modules)".format(", ".join(f"pipeline.stages.{n}" for n in names))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_garbage_is_collected_while_a_stage_works():
    """And not while its modules are imported: sys.argv is what `python -m` makes of it then."""
    code = (
        "import gc, sys; sys.argv = ['-m']; import pipeline.stages; print(gc.isenabled())\n"
        "from pipeline.runner.stage import main\n"
        "main(lambda stage: print(gc.isenabled()), module='fetch', params=lambda stage: {}, tracked=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "True"]


def test_training_runs_without_dvc_mlflow_and_clean_fid(tmp_path):
    """Teacher, trajectories and flow, in a process where those packages do not exist."""
    worker = ROOT / "tests" / "support" / "distributed_worker.py"
    code = (
        BLOCKER
        + f"import runpy; sys.argv = ['w', {str(tmp_path)!r}]; runpy.run_path({str(worker)!r}, run_name='__main__')"
    )
    code += "\nfrom ifm import tracking\nwith tracking.stage_run('x', params={}, record=None): pass"
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "flow.pt").is_file()
    assert "tracking: off (mlflow is not installed)" in done.stderr


def test_no_tracked_file_names_a_machine_or_a_package_host():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a Git checkout")
    hosts = ["files.python" + "hosted", "py" + "pi.org", "registry.np" + "mjs", "/ro" + "ot/", "/ho" + "me/"]
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".yaml", ".yml", ".toml", ".md", ".txt", ".json", ".csv", ".lock", ".html", ""}:
            text = path.read_text(encoding="utf-8", errors="ignore") if path.is_file() else ""
            assert not [h for h in hosts if h in text], name
