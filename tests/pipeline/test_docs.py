"""The documentation's commands, read by the parsers that will read them, and its links."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ifm import checkout
from ifm.cli import main as cli
from ifm.config import parse, read_params
from pipeline.tools import params_reference, preset

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Programs that are not the project's: what they are asked to do is theirs to know.
FOREIGN = {"git", "source", "cd", "pip", "torchrun", "salloc", "srun", "ssh", "export", "curl", "accelerate", "hf"}
LOCAL = {"cifar10-jpeg", "imagefolder", "ddpm-celebahq", "tiny-shakespeare", "spoken-digits"}  # read files
ELLIPSIS = re.compile(r"\.\.\.|…|<[a-z ]+>")


def commands(page):
    """Every command of the bash blocks of a page, with its comment cut off; scripts (with a #! line) are left out."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        if block.startswith("#!"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s&&\s", re.sub(r"(^|\s)#.*$", "", line).strip()):
                if part and not ELLIPSIS.search(part):
                    found.append(part)
    return found


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


def words_of(command):
    """The words, without the variables that are set before them and what a pipe or a redirection does with the rest."""
    words = shlex.split(re.sub(r"\$\(.*?\)", "", command))
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    ends = [i for i, word in enumerate(words) if word in ("|", ">", "&", ";")]
    return words[: ends[0]] if ends else words


def of_program(*programs):
    chosen = [
        (page, command) for page, command in COMMANDS if words_of(command)[:1] and words_of(command)[0] in programs
    ]
    return pytest.mark.parametrize(("page", "command"), chosen, ids=[f"{p}: {c}"[:100] for p, c in chosen])


def test_there_are_commands_and_all_are_looked_at():
    programs = {words_of(command)[0] for _, command in COMMANDS if words_of(command)}
    assert len(COMMANDS) > 60
    assert programs - FOREIGN <= {"make", "dvc", "ifm", "python", "mlflow"}, programs


@of_program("make")
def test_make_knows_what_it_is_asked(page, command):
    done = subprocess.run(["make", "-n", *words_of(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    named = dict(word.split("=", 1) for word in words_of(command)[1:] if "=" in word)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    if "preset" in command.split() and not LOCAL & {named["NAME"]}:
        preset.apply(named["NAME"], text, objective=named.get("OBJECTIVE") or "trajectory")
    for variable in named:
        assert f"$({variable})" in (ROOT / "Makefile").read_text(encoding="utf-8"), f"no target reads {variable}"


@of_program("dvc")
def test_dvc_knows_what_it_is_asked(page, command):
    from dvc.cli.parser import get_main_parser

    given = get_main_parser().parse_args(words_of(command)[1:])
    values = read_params(ROOT / "params.yaml")
    for change in getattr(given, "set_param", None) or []:
        key, value = change.split("=", 1)
        holder = values
        for part in key.split(".")[:-1]:
            holder = holder[part]
        assert key.split(".")[-1] in holder, f"params.yaml has no {key}"
        holder[key.split(".")[-1]] = preset.parse_yaml(value if value.startswith("[") else value.split(",")[0])
    parse(values)


@of_program("ifm")
def test_ifm_knows_what_it_is_asked(page, command, monkeypatch):
    words, seen = words_of(command)[1:], []
    if words[0] in checkout.COMMANDS:
        assert importlib.import_module(checkout.MODULES[words[0]]).parser().parse_args(words[1:])
        return
    monkeypatch.setattr(cli, "COMMANDS", {name: (add, watched(run, seen)) for name, (add, run) in cli.COMMANDS.items()})
    cli.main(words)
    assert len(seen) == 1


def watched(run, seen):
    def record(given):
        seen.append(given)

    record.__doc__ = run.__doc__
    return record


@of_program("python")
def test_python_finds_the_module(page, command):
    words = words_of(command)[1:]
    if words[0] != "-m":
        pytest.skip("no module of this project")
    module = words[1].replace(".", "/")
    ours = (ROOT / f"{module}.py").is_file() or (ROOT / module / "__main__.py").is_file()
    assert ours or words[1] in ("venv", "pip", "pytest")


@of_program("mlflow")
def test_mlflow_knows_what_it_is_asked(page, command):
    import click
    from mlflow.cli import cli as mlflow

    words, group = words_of(command)[1:], mlflow
    while isinstance(group, click.Group):
        name, *words = words
        group = group.get_command(click.Context(mlflow), name)
        assert group is not None, f"mlflow has no {name}"
    with group.make_context(name, list(words), resilient_parsing=True) as context:
        assert not context.args


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_table_of_contents():
    contents = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page == ROOT / "docs/README.md" or f"({os.path.relpath(page, ROOT / 'docs')})" in contents


def test_the_table_of_parameters_is_the_schemas():
    """Of the digits' preset, whatever params.yaml holds now."""
    text = preset.apply("digits", (ROOT / "params.yaml").read_text(encoding="utf-8"))
    values = preset.parse_yaml(text)
    assert (ROOT / "docs/params.md").read_text(encoding="utf-8") == params_reference.page(text, values)


def test_what_a_value_may_be_in_words():
    said = params_reference.allowed
    assert said({"enum": ["a", "b"], "type": "string"}) == "`a`, `b`"
    assert said({"type": "integer", "minimum": 1}) == "integer >= 1"
    assert said({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2**63}) == "number > 0, < 2^63"
    assert said({"anyOf": [{"type": "array", "items": {"type": "boolean"}}, {"type": "null"}]}) == (
        "list of: `true`, `false` or `null`"
    )
    assert params_reference.comments("a:  # about a\n  b: 1  # about b\n  c: x\nd: [1, 2]  # about d\n") == {
        "a": "about a", "a.b": "about b", "d": "about d",
    }  # fmt: skip


def test_the_command_writes_the_page(tmp_path):
    """As `make params-reference` runs it."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-m", "pipeline.tools.params_reference"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "docs/params.md").read_text(encoding="utf-8").startswith("# Parameters\n")
