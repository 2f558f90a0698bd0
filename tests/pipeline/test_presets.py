"""`make preset`: every preset is a valid configuration, keeps comments, and leaves nothing behind."""

import functools
import os
import re
from pathlib import Path

import pytest
import yaml

from ifm import objectives
from ifm.config import Config, parse
from ifm.errors import UserError
from pipeline.tools import preset
from pipeline.tools.params_file import edited

ROOT = Path(__file__).parents[2]
# Whatever it holds now, with dynamics that all presets have.
TEXT = edited(preset.apply("digits", (ROOT / "params.yaml").read_text()), {"dynamics": ["ve", "rf"]})
LOCAL = {"cifar10-jpeg", "imagefolder", "ddpm-celebahq", "tiny-shakespeare", "spoken-digits"}
PUBLIC = {"ddpm-cifar10", "ddpm-celebahq", "dit-imagenet256"}  # whose teacher is a public model


@functools.cache
def applied(name, text=TEXT, **objective):
    return preset.apply(name, text, data="images/mine" if name in LOCAL else None, **objective)


def leaves(values, at=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def test_the_page_of_presets_has_a_row_for_each():
    rows = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/presets.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(preset.names())


@pytest.mark.parametrize(("asked", "left"), [(["ve", "pfgmpp", "rf"], ["ve", "rf"]), (["pfgmpp"], ["ve"])])
def test_a_public_teacher_leaves_out_the_dynamics_that_it_cannot_teach(asked, left):
    mine = edited(TEXT, {"dynamics": asked})
    for name in PUBLIC:
        assert yaml.safe_load(applied(name, mine))["dynamics"] == left
    assert yaml.safe_load(applied("cifar10", mine))["dynamics"] == asked


@pytest.mark.parametrize("name", preset.names())
def test_preset_is_valid_and_keeps_every_comment(name):
    text = applied(name)
    assert isinstance(parse(preset.parse_yaml(text)), Config)
    comments = re.findall(r"#.*", TEXT)
    assert re.findall(r"#.*", text) == comments


@pytest.mark.parametrize("name", preset.names())
def test_going_there_and_back_restores_the_file(name):
    assert applied("digits", applied(name)) == TEXT


@pytest.mark.parametrize("first", preset.names())
@pytest.mark.parametrize("second", preset.names())
def test_order_does_not_matter(first, second):
    """What a preset gives does not depend on the one before it."""
    assert applied(second, applied(first)) == applied(second)


def test_own_values_stay():
    mine = TEXT.replace("seed: 0  #", "seed: 7  #").replace("input: channels", "input: cross_attention")
    values = yaml.safe_load(applied("cifar10", mine))
    assert (values["seed"], values["anchor"]["input"]) == (7, "cross_attention")
    assert values["data"]["name"] == "uoft-cs/cifar10"


def test_there_are_the_documented_objectives():
    names = {"trajectory", "trajectory-consistency", "consistency", "interval", "data"}
    assert set(preset.objectives()) == names


@pytest.mark.parametrize("objective", preset.objectives())
@pytest.mark.parametrize("name", preset.names())
def test_objectives_are_valid_for_every_preset_and_leave_nothing_behind(name, objective):
    text = applied(name, objective=objective)
    config = parse(preset.parse_yaml(text))
    assert "+".join(objectives.of(config.flow)) == objective.replace("-", "+")
    starts = "trajectory" in objective
    led = objective in ("consistency", "data") and config.guidance.kind != "none"
    trained = "pretrained" if name in PUBLIC else "network"
    assert (config.teacher.kind == trained) == (starts or led)
    assert (config.flow.init == "teacher") == starts
    assert re.findall(r"#.*", text) == re.findall(r"#.*", TEXT)
    assert applied("digits", text) == TEXT
    assert applied(name, text) == applied(name)


def test_classes_are_asked_for_by_their_presets_and_by_condition():
    def of(name, **more):
        return parse(preset.parse_yaml(applied(name, **more)))

    digits, classes = of("digits-long"), of("digits-classes")
    assert (digits.condition.kind, digits.guidance.kind) == ("none", "none")
    assert (classes.condition.kind, classes.guidance.kind, classes.guidance.scale) == ("class", "cfg", [1.0, 4.0])
    same = {"condition": True, "guidance": True, "evaluate": True, "flow": {"steps"}}
    assert classes.model_dump(exclude=same) == digits.model_dump(exclude=same)
    assert (digits.flow.steps, classes.flow.steps) == (2200, 3000)  # it learns a range of w besides
    unasked = parse(preset.parse_yaml(applied("digits-classes", condition="none")))
    assert unasked.model_dump(exclude={"flow": {"steps"}}) == digits.model_dump(exclude={"flow": {"steps"}})
    assert of("cifar10", condition="class").condition.kind == "class"
    assert of("cifar10", condition="class").model_dump(exclude={"condition"}) == of("cifar10").model_dump(
        exclude={"condition"}
    )
    assert applied("digits", applied("cifar10", condition="class")) == TEXT
    guidance = of("imagenet64").guidance
    assert (guidance.kind, guidance.scale, guidance.weaker) == ("autoguidance", 1.7, 0.125)
    with pytest.raises(UserError, match="no condition 'text'; there are class, none"):
        preset.apply("digits", TEXT, condition="text")
    with pytest.raises(UserError, match=r"condition\.kind: class needs labels") as error:
        preset.apply("imagefolder", TEXT, condition="class", data="images/mine")
    assert "\n" not in str(error.value)


def test_objectives_name_presets_that_exist():
    for file in preset.OBJECTIVES.glob("*.yaml"):
        assert set(yaml.safe_load(file.read_text())) <= {"all", *preset.names()}


def test_a_preset_of_a_table_of_recordings_takes_a_folder_of_recordings(tmp_path):
    (tmp_path / "yes").mkdir()
    with pytest.raises(UserError, match=r"no \.parquet file, and no folder that holds some, nor \.wav, "):
        preset.check_data("spoken-digits", str(tmp_path))
    (tmp_path / "yes" / "1.WAV").write_bytes(b"")
    preset.check_data("spoken-digits", str(tmp_path))
    text = preset.apply("spoken-digits", TEXT, data=str(tmp_path))
    found = parse(preset.parse_yaml(text))
    assert (found.data.source, found.data.test_split, found.data.audio.column) == ("audiofolder", None, None)
    (tmp_path / "a.parquet").write_bytes(b"")
    found = parse(preset.parse_yaml(preset.apply("spoken-digits", text, data=str(tmp_path))))
    assert (found.data.source, found.data.test_split, found.data.audio.column) == ("parquet", "test", "audio")
    assert applied("digits", text) == TEXT


def test_messages():
    with pytest.raises(UserError, match="no objective 'gan'; there are consistency, data, interval, trajectory"):
        preset.apply("digits", TEXT, objective="gan")
    with pytest.raises(UserError, match="no preset 'mnist'; there are cifar10, cifar10-jpeg, ddpm-celebahq"):
        preset.apply("mnist", TEXT)
    with pytest.raises(UserError, match="make preset NAME=imagefolder DATA=path/to/folder"):
        preset.apply("imagefolder", TEXT)
    with pytest.raises(UserError, match="reads no local files"):
        preset.apply("digits", TEXT, data="x")
    with pytest.raises(UserError, match="the folder's name is not UTF-8"):
        preset.apply("imagefolder", TEXT, data=os.fsdecode(b"bilder-\xfc"))
    with pytest.raises(UserError, match=r"params.yaml has no teacher\.lr"):
        preset.apply("digits", re.sub(r"  lr: 2.0e-3\n", "", TEXT, count=1))
