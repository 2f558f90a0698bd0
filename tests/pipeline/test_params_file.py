"""params.yaml in any valid form: the same values after an edit, no comment lost, and never what is no YAML."""

import copy
import functools
import importlib
import re
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_yaml

from ifm.config import ConfigError, read_mapping, read_params, read_yaml, reading, yaml_node
from ifm.errors import UserError
from pipeline.runner import repro
from pipeline.studies import ablation, objectives, study
from pipeline.tools import params_file, preset

ROOT = Path(__file__).parents[2]
# Of the digits' preset, whatever params.yaml holds now.
TEXT = preset.apply("digits", (ROOT / "params.yaml").read_text(encoding="utf-8"))
VALUES = read_mapping(TEXT, source="params.yaml")
FOLDERS = {
    "cifar10-jpeg": "some/parquet",
    "imagefolder": "my images/set #1",
    "ddpm-celebahq": "faces",
    "tiny-shakespeare": "plays",
    "spoken-digits": "takes",
}


@pytest.fixture(scope="module", autouse=True)
def _each_text_is_read_once():
    """ruamel in pure Python takes 0.1 s for a text, and most of these tests read each several times."""
    read = functools.cache(read_yaml)

    def fresh(text, *, source):
        return copy.deepcopy(read(text, source=source))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "read_yaml", fresh)
        patch.setattr(params_file, "read_yaml", fresh)
        patch.setattr(params_file, "yaml_node", functools.cache(yaml_node))  # which nobody changes
        yield


def applied(name: str, text: str, **options) -> str:
    return preset.apply(name, text, data=FOLDERS.get(name), **options)


def values(text: str) -> dict:
    return read_mapping(text, source="params.yaml")


def comments(text: str) -> list[str]:
    return sorted(re.findall(r"#.*", text))


def by_dvc(text: str, folder: Path, *changes: str) -> str:
    """What `dvc exp run -S` makes of it: block lists, empty nulls, comments and blank lines moved."""
    file = folder / "params.yaml"
    file.write_text(text, encoding="utf-8")
    apply_overrides(file, list(changes))
    return file.read_text(encoding="utf-8")


# --- DVC's own form ---------------------------------------------------------------------------------------------------


@functools.cache
def plainly(name: str, objective: str | None = None) -> str:
    return applied(name, TEXT, objective=objective)


@pytest.mark.parametrize("name", preset.names())
def test_every_preset_is_the_same_on_what_dvc_has_written(name, tmp_path):
    written = by_dvc(plainly(name), tmp_path, "flow.lr=5e-4")
    assert "\n- ve\n" in written, "lists in block style"
    assert applied(name, written) == plainly(name)
    back = TEXT
    if values(plainly(name))["teacher"]["kind"] == "pretrained":  # it takes dynamics out, which no preset puts in again
        back = params_file.edited(TEXT, {"dynamics": ["ve", "rf"]})
    assert applied("digits", written) == back


@pytest.mark.parametrize("objective", preset.objectives())
def test_every_objective_is_the_same_on_what_dvc_has_written(objective, tmp_path):
    written = by_dvc(plainly("points", objective), tmp_path, "flow.steps=900", "flow.objective=[data]")
    assert applied("points", written, objective=objective) == plainly("points", objective)


def test_what_dvc_writes_again_and_again_stays_whole(tmp_path):
    text = TEXT.replace("\node:", "\n# how noise is added\n\node:")
    now = text
    for change in ("network.channels=[16,16]", "sample.flow_steps=[1]", "data.name=some", "dynamics=[ve,rf]"):
        now = by_dvc(now, tmp_path, change)
        assert comments(applied("imagenet64", now)) == comments(text)
    back = by_dvc(now, tmp_path, "dynamics=[ve,rf,pfgmpp]", "sample.flow_steps=[1,2,4,8]")
    assert applied("digits", back) == text


@pytest.mark.parametrize("made", [ablation.STUDY, objectives.STUDY], ids=lambda made: made.name)
def test_studies_are_planned_from_what_dvc_has_written(made, tmp_path):
    written = by_dvc(TEXT, tmp_path, "seed=0")
    plans = [
        study.plan(made, ["points", "digits"], [0], text=text, graph=study.read_graph(), code="c")
        for text in (TEXT, written)
    ]
    first, second = ([task.config.model_dump() for task in tasks] for tasks, _ in plans)
    assert first == second
    assert len(plans[0][0]) > 4


# --- other forms ------------------------------------------------------------------------------------------------------


def flow_style(text: str) -> str:
    """All of it on one line."""

    def of(value) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key}: {of(one)}" for key, one in value.items()) + "}"
        return params_file._format(value)

    return of(values(text)) + "\n"


def block_lists(text: str) -> str:
    """A comment at the key, before, between and behind the items."""
    return re.sub(
        r"^( *)channels: \[24, 32, 64\].*$",
        "\\1channels:  # at the key\n\\1  # before\n\\1  - 24\n\\1  - 32  # first\n\\1  # between\n\\1  - 64  # last",
        text,
        flags=re.MULTILINE,
    )


FORMS = {
    "flow style": flow_style(TEXT),
    "block list with comments": block_lists(TEXT),
    "block list at its key's column": TEXT.replace(
        "  channels: [24, 32, 64]", "  channels:  # of it\n  - 24\n  - 32\n  - 64"
    ),
    "list over lines": TEXT.replace("[24, 32, 64]", "[24,  # one\n    32, 64  # two\n  ]"),
    "anchors": TEXT.replace("  lr: 2.0e-3", "  lr: &rate 2.0e-3").replace("  lr: 1.0e-3", "  lr: *rate"),
    "anchored list": TEXT.replace("[24, 32, 64]", "&c [24, 32, 64]").replace(
        "flow_steps: [1, 2, 4, 8]", "flow_steps: *c"
    ),
    "merge key": TEXT.replace("  ve:\n", "  ve: &ve\n").replace("pfgmpp:\n", "pfgmpp:  # as\n").replace(
        "    t_min: 0.002\n    t_max: 20.0\n    rho: 7.0\n    log_time_mean: -1.2\n    log_time_std: 1.2\n\nnetwork",
        "    <<: *ve  # as ve\n\nnetwork",
    ),
    "quotes": TEXT.replace("source: digits", "source: 'digits'").replace("\nseed: 0", "\n'seed': 0"),
    "a # in quotes": TEXT.replace("image_column: image", "image_column: 'a # b'  # c"),
    "CRLF": TEXT.replace("\n", "\r\n"),
    "BOM": f"\ufeff{TEXT}",
    "BOM and CRLF": f"\ufeff{TEXT}".replace("\n", "\r\n"),
    "tabs before comments": TEXT.replace("  # ", "\t# "),
    "tabs in comments": TEXT.replace("  # ", "  #\t"),
    "document markers": f"%YAML 1.2\n---  # start\n{TEXT}...\n# end\n",
    "no newline at the end": TEXT.rstrip("\n"),
    "multi-line strings": TEXT.replace("image_column: image", "image_column: >-\n    my\n    column").replace(
        "label_column: label", 'label_column: "two \\\n    parts # no comment"  # of it'
    ),
    "literal": TEXT.replace("image_column: image", "image_column: |-  # head\n    a # zz\n\n    c"),
    "tilde and empty": TEXT.replace("name: null", "name: ~").replace("revision: null", "revision:"),
    "wide indents": re.sub(r"^( +)", r"\1\1", TEXT, flags=re.MULTILINE),
    "explicit keys": TEXT.replace("\nseed: 0", "\n? seed\n: 0"),
    "tags": TEXT.replace("seed: 0", "seed: !!int 0").replace("source: digits", "source: !!str digits"),
    "no blank lines": TEXT.replace("\n\n", "\n"),
    "not ASCII": TEXT.replace("# initial", "# è una 初期値 😀").replace("column: image", "column: é😀"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_any_form_has_the_same_values_after_a_preset(form, tmp_path):
    text = FORMS[form]
    before, after = values(text), applied("cifar10", text)
    wanted = values(plainly("cifar10"))
    wanted["sample"]["flow_steps"] = before["sample"]["flow_steps"]
    assert values(after) == wanted
    no_comments = NO_COMMENTS.get(form, 0)
    lost = [one for one in re.findall(r"#[ \t]?\w.*", text) if one.rstrip() not in after]
    assert len(lost) == no_comments, lost
    (tmp_path / "params.yaml").write_text(after, encoding="utf-8")
    assert load_yaml(tmp_path / "params.yaml") == wanted, "DVC's reader"
    assert applied("cifar10", after) == after


NO_COMMENTS = {"a # in quotes": 1, "multi-line strings": 1, "literal": 1}  # what only looks like one


def test_an_alias_keeps_its_value_where_a_preset_sets_the_anchor():
    text = TEXT.replace("  grid_images: 64", "  grid_images: &n 64").replace("  paths: 64", "  paths: *n")
    found = values(params_file.edited(text, {"sample.grid_images": 16}))
    assert (found["sample"]["grid_images"], found["diagnose"]["paths"]) == (16, 64)


def test_comments_stay_with_their_keys():
    text = applied("cifar10", FORMS["block list with comments"])
    lines = ["  # before", "  # first", "  # between", "  # last", "  channels: [256, 256, 256]  # at the key"]
    assert "\n".join(lines) in text
    assert "lr: 5.0e-4\n" in text, "a preset's own spelling"
    assert applied("digits", FORMS["CRLF"]) == FORMS["CRLF"]
    one_line = "teacher: {steps: 5,  # how long\n  lr: 1.0}  # how fast\nflow: {steps: 6}  # short\n# end\n"
    assert params_file.edited(one_line, {"flow.steps": 7}) == (
        "teacher:\n  steps: 5  # how long\n  lr: 1.0  # how fast\nflow:  # short\n  steps: 7\n# end\n"
    )


TEXTS = [
    "no",
    "1e-4",
    "null",
    "",
    " a",
    "a: b",
    "a #b",
    "#",
    "- a",
    "[x",
    "x]",
    "a, b",
    "'",
    '"',
    "\\",
    "\n",
    "\t",
    "!x",
]
TEXTS += ["&x", "*x", "%", "@", "`", "2001-01-01", "~", "{a}", "? a", "a:", "---", "é\u2028", "😀\x7f"]


@pytest.mark.parametrize("value", [*TEXTS, 1, 1.0, True, None, 1e-05, 1e22, ["no", 1, None, "a, b"], []])
def test_any_value_is_read_as_what_was_written(value, tmp_path):
    text = params_file.edited("a:  # of it\n- 1\nb: x\n", {"b": value})
    assert repr(values(text)) == repr({"a": [1], "b": value})
    assert "# of it" in text
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert repr(load_yaml(tmp_path / "params.yaml")) == repr(values(text)), "DVC's reader"


def test_what_cannot_be_placed_costs_comments_and_no_value(monkeypatch):
    wanted = values(plainly("points"))
    monkeypatch.setattr(params_file, "_remarks", lambda text, node: params_file._Remarks(last=["seed: 5"]))
    assert values(applied("points", TEXT)) == wanted


# --- what is no YAML --------------------------------------------------------------------------------------------------


BROKEN = {
    "open bracket": (b"a: [1,\n", "not valid YAML: line 2: expected the node content"),
    "twice": (b"seed: 0\nseed: 1\n", "not valid YAML: line 2: found duplicate key"),
    "two documents": (b"seed: 0\n---\nseed: 1\n", "not valid YAML: line 2: but found another document"),
    "latin-1": ("seed: 0  # é\n".encode("latin-1"), "not valid YAML: 'utf-8' codec can't decode byte 0xe9"),
    "list": (b"- 1\n", "must be a mapping of sections, got list"),
    "nothing": (b"", "must be a mapping of sections, got NoneType"),
    "merge conflict": (b"<<<<<<< HEAD\nseed: 0\n=======\nseed: 1\n>>>>>>> b\n", "not valid YAML: line "),
}


@pytest.mark.parametrize("command", ["preset", "ablation", "objectives", "sweep"])
@pytest.mark.parametrize("case", BROKEN)
def test_unreadable_yaml_is_the_line_of_a_stage(case, command, tmp_path, monkeypatch, capsys):
    content, said = BROKEN[case]
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as of_a_stage:
        read_params(Path("params.yaml"))
    folder = "tools" if command == "preset" else "studies"
    module = importlib.import_module(f"pipeline.{folder}.{command}")
    words = {"preset": ["points"], "sweep": ["--dry-run"]}.get(command, ["--presets", "points", "--dry-run"])
    monkeypatch.setattr(sys, "argv", [command, *words])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == str(of_a_stage.value)
    assert str(caught.value.code).startswith(f"params.yaml: {said}")
    assert Path("params.yaml").read_bytes() == content
    assert "\n" not in str(caught.value.code)


def test_words_of_a_command_that_are_no_yaml():
    with pytest.raises(ConfigError, match=r"--set flow\.steps=\[1: not valid YAML: line 1"):
        study.overrides(["flow.steps=[1"])
    with pytest.raises(UserError, match=r"params\.yaml has no flow\.stps"):
        params_file.edited(TEXT, {"flow.stps": 1})


def test_one_name_is_a_list_of_one():
    found = values(params_file.edited(TEXT, {"dynamics": "rf", "sample.flow_steps": 1, "data.name": "x"}))
    assert (found["dynamics"], found["sample"]["flow_steps"], found["data"]["name"]) == (["rf"], [1], "x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("dynamics: [ve, rf, pfgmpp]", "dynamics: rf"), "dynamics = 'rf' must be a list: [rf]"),
        (("channels: [24, 32, 64]", "channels: 32"), "network.channels = 32 must be a list: [32]"),
        (("flow_steps: [1, 2, 4, 8]", "flow_steps: 1"), "sample.flow_steps = 1 must be a list: [1]"),
    ],
)
def test_a_name_where_a_list_has_to_be_is_said_before_dvc_is_asked(change, said, tmp_path, monkeypatch):
    """DVC says that a 'Value' object is not iterable. `make repro` asks this before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["repro"])
    Path("params.yaml").write_text(TEXT.replace(*change))
    with pytest.raises(SystemExit) as caught:
        repro.main()
    assert caught.value.code == f"ifm repro: params.yaml: {said}"
