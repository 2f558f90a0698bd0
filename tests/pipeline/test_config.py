"""params.yaml: strict, complete, and every fault is one line that names file, key, value and what is allowed."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ifm import dynamics
from ifm.config import Config, ConfigError, load, parse, read_params
from ifm.dynamics import DYNAMICS
from ifm.errors import UserError

PARAMS = Path(__file__).parents[2] / "params.yaml"
VALUES = read_params(PARAMS)
VALUES["flow"]["objective"] = "trajectory"  # one objective, which the cases below change
LED = {"condition.kind": "class", "guidance.kind": "cfg", "guidance.scale": 1.5}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The repository's params with some values replaced, by dotted name."""
    values = copy.deepcopy(VALUES)
    for dotted, value in changes.items():
        *sections, leaf = dotted.split(".")
        inner = values
        for section in sections:
            inner = inner[section]
        inner[leaf] = value
    return values


def message(changes: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(changed(changes))
    return str(caught.value)


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_the_repositorys_file_loads_as_written():
    config = load(PARAMS)
    assert config.model_dump() == read_params(PARAMS)
    assert config.dynamics == ["ve", "rf", "pfgmpp"]


def test_the_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load(PARAMS).teacher.lr = 1.0


@pytest.mark.parametrize("name", DYNAMICS)
def test_a_dynamics_is_made_of_its_section_and_sigma_data(name):
    ode = parse(changed({"ode.sigma_data": 0.25})).ode
    assert dynamics.of_params(name, ode).options == VALUES["ode"][name] | {"sigma_data": 0.25}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("teacher.lrr", 1, "teacher.lrr is not a known key (value 1); is it misspelt?"),
        ("extra", {"a": 1}, "extra is not a known key (value {'a': 1}); is it misspelt?"),
        ("seed", "3", "seed = '3': input should be a valid integer"),
        ("seed", True, "seed = True: input should be a valid integer"),
        ("seed", -1, "seed = -1: input should be greater than or equal to 0"),
        ("seed", 2**62, f"seed = {2**62}: input should be less than {2**62}"),
        ("teacher.lr", "1e-3", "teacher.lr = '1e-3': input should be a valid number"),
        ("teacher.lr", 0, "teacher.lr = 0: input should be greater than 0"),
        ("teacher.lr", float("inf"), "teacher.lr = inf: input should be a finite number"),
        ("teacher.lr", float("nan"), "teacher.lr = nan: input should be a finite number"),
        ("teacher.steps", 1.0, "teacher.steps = 1.0: input should be a valid integer"),
        ("teacher.ema_decay", 1.0, "teacher.ema_decay = 1.0: input should be less than 1"),
        ("flow.ema_decay", [0.9, 1.0], "flow.ema_decay.1 = 1.0: input should be less than 1"),
        ("flow.ema_decay", [0.9, 0.9], "flow.ema_decay = [0.9, 0.9]: the entries must differ from each other"),
        ("flow.evaluate_every", 0, "flow.evaluate_every = 0: input should be greater than or equal to 1"),
        ("select.evaluate_count", 1, "select.evaluate_count = 1: input should be greater than or equal to 2"),
        ("select.keep", "x", "select.keep = 'x' is not allowed; allowed: 'last', 'best'"),
        ("flow.t_max_share", -0.1, "flow.t_max_share = -0.1: input should be greater than or equal to 0"),
        ("flow.t_max_share", 1.5, "flow.t_max_share = 1.5: input should be less than or equal to 1"),
        ("data.test_fraction", 1, "data.test_fraction = 1: input should be less than 1"),
        ("data.random_flip", "yes", "data.random_flip = 'yes': input should be a valid boolean"),
        ("data.path", {}, "data.path = {}: input should be a valid string"),
        (
            "evaluate.weights_sha256",
            "AB" * 32,
            f"evaluate.weights_sha256 = {'AB' * 32!r}: must be a sha256: 64 digits 0-9 and a-f, lower case; or null",
        ),
        ("data.channels", 2, "data.channels = 2 is not allowed; allowed: 1, 3"),
        ("data.channels", True, "data.channels = True: must be an integer"),
        ("data.channels", 1.0, "data.channels = 1.0: must be an integer"),
        ("flow.distance", "l1", "flow.distance = 'l1' is not allowed; allowed: 'pseudo_huber', 'adaptive_huber', 'l2'"),
        (
            "flow.objective",
            "x",
            "flow.objective = 'x' is not allowed; allowed: 'trajectory', 'data', 'consistency', 'interval'",
        ),
        ("flow.objective", [], "flow.objective = []: list should have at least 1 item"),
        ("flow.interval.same_share", 1.0, "flow.interval.same_share = 1.0: input should be less than 1"),
        ("flow.schedule", "x", "flow.schedule = 'x' is not allowed; allowed: 'data_only', 'mixed'"),
        ("flow.time_weight", "x", "flow.time_weight = 'x' is not allowed; allowed: 'none', 'inverse_scale'"),
        ("anchor.policy", "bnk", "anchor.policy = 'bnk' is not allowed; allowed: 'none', 'noise', 'self', 'bank'"),
        ("anchor.input", "x", "anchor.input = 'x' is not allowed; allowed: 'channels', 'cross_attention'"),
        ("anchor.reset_probability", 1.5, "anchor.reset_probability = 1.5: input should be less than or equal to 1"),
        ("flow.precision", False, "flow.precision = False is not allowed; allowed: 'no', 'bf16', 'fp16'"),
        (
            "dynamics",
            ["ve", "sub-vp"],
            "dynamics.1 = 'sub-vp' is not allowed; allowed: 've', 'rf', 'pfgmpp', 'vp', 'trig'",
        ),
        ("dynamics", ["ve", "ve"], "dynamics = ['ve', 've']: the entries must differ from each other"),
        ("sample.flow_steps", [0], "sample.flow_steps.0 = 0: input should be greater than or equal to 1"),
        ("network", None, "network = None must be a mapping"),
        ("data", "digits", "data = 'digits' must be a mapping"),
    ],
)
def test_one_fault_is_one_exact_line(key: str, value: Any, said: str):
    assert message({key: value}) == f"params.yaml: {said}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"network.channels": [8] * 5, "network.attention": [False] * 5},
            "data.image_size = 8 cannot be halved 4 times, as network.channels asks; use a multiple of 16, "
            "or take an entry from network.channels and network.attention",
        ),
        ({"network.attention": [True]}, "network: attention needs 3 entries, one for each of channels"),
        ({"network.channels": [24, 32, 60]}, "network: channels must be multiples of norm_groups = 8, got [60]"),
        ({"trajectories.stored_times": 11}, "trajectories: stored_times must be at most solver_steps + 1 = 10"),
        (
            {"evaluate.teacher_nfe": [1, 2, 35, 4]},
            "evaluate: teacher_nfe must be odd (Heun with a last Euler step), got [2, 4]",
        ),
        ({"teacher.checkpoint_every": 60}, "teacher: checkpoint_every (60) must be a multiple of log_every (50)"),
        (
            {"flow.steps": 2200, "flow.evaluate_every": 2200},
            "flow: evaluate_every = 2200 must be below steps = 2200: the last is judged anyway",
        ),
        (
            {"select.keep": "best"},
            "select.keep: best needs states to choose from; set flow.evaluate_every to a number of steps, or "
            "select.keep to last",
        ),
        ({"flow.log_every": 100}, "flow: checkpoint_every (250) must be a multiple of log_every (100)"),
        (
            {"flow.t_max_share": 0.0},
            "flow: t_max_share must be above 0 with objective: trajectory, got 0; the others allow 0",
        ),
        (
            {"flow.schedule": "mixed", "anchor.policy": "bank"},
            "flow: schedule: mixed needs objective: data alone, got trajectory; use schedule: data_only",
        ),
        (
            {"flow.schedule": "mixed", "flow.objective": "data"},
            "flow.schedule: mixed needs anchor.policy: bank, got self; only the bank keeps anchors",
        ),
        ({"ode.ve.t_min": 20.0}, "ode.ve: t_min must be below t_max, got 20.0 and 20.0"),
        ({"data.source": "hub"}, "data: source: hub needs name to be set, got null"),
        ({"data.source": "parquet"}, "data: source: parquet needs path to be set, got null"),
        ({"data.source": "imagefolder"}, "data: source: imagefolder needs path to be set, got null"),
        (
            {"data.source": "parquet", "data.path": "x", "data.label_column": None},
            "evaluate.extractor: classifier needs labels; set data.label_column, or use inception, dinov2 or pixels",
        ),
        (
            {"flow.consistency.last_intervals": 5},
            "flow.consistency: last_intervals (5) must be at least first_intervals (20)",
        ),
        (
            {"flow.objective": ["trajectory", "interval"]},
            "flow.init: teacher does not fit flow.objective: interval, whose network takes two times; set flow.init to "
            "scratch",
        ),
        (
            {"dynamics": ["vp"], "flow.scheme": "paper"},
            "flow.scheme: paper is not defined for vp; use edm",
        ),
        (
            {"dynamics": ["trig"], "ode.trig": None},
            "ode.trig is missing, and dynamics asks for trig",
        ),
        (
            {
                "condition.kind": "class",
                "data.source": "imagefolder",
                "data.path": "x",
                "data.label_column": None,
                "evaluate.extractor": "pixels",
            },
            "condition.kind: class needs labels; set data.label_column, or set condition.kind to none",
        ),
        (
            {"data.source": "points", "data.points.law": "spiral", "network.kind": "mlp", "condition.kind": "class"}
            | {"network.mlp": {"width": 8, "layers": 1}, "evaluate.extractor": "coordinates"},
            "condition.kind: class needs labels; data.points.law = 'spiral' has no classes, so choose other data, or "
            "set condition.kind to none",
        ),
        (
            {"condition.kind": "class", "guidance.kind": "cfg", "flow.objective": "interval", "flow.init": "scratch"},
            "guidance.kind: cfg with flow.objective: interval leads away from a velocity without a class, and "
            "anchor.policy: self would show it an estimate with one; set anchor.policy to noise or none",
        ),
        (
            {"guidance.scale": 2.0},
            "guidance.scale = 2.0 needs guidance, and guidance.kind is none; set it to cfg",
        ),
        (
            {"guidance.interval": [0.1, 5.0]},
            "guidance.interval = [0.1, 5.0] needs guidance, and guidance.kind is none; set it to cfg",
        ),
        (
            {"flow.objective": "interval", "flow.init": "scratch", "flow.scheme": "paper"},
            "flow: scheme: paper does not fit objective: interval; use edm",
        ),
        (
            {"flow.objective": "interval"},
            "flow.init: teacher does not fit flow.objective: interval, whose network takes two times; set flow.init to "
            "scratch",
        ),
        (
            {"flow.objective": "interval", "flow.init": "scratch", "anchor.policy": "bank"},
            "anchor.policy: bank does not fit flow.objective: interval, which makes no estimates of x_0 to keep; use "
            "none, noise or self",
        ),
        (
            {"flow.objective": ["trajectory", "consistency"], "anchor.policy": "bank"},
            "anchor.policy: bank keeps an anchor for each sample of one data set, and flow.objective names several; "
            "use none, noise or self",
        ),
        (
            {"select.count": 1},
            "select: count = 1 is no set of samples to measure; use 2 or more, or 0 for no selection",
        ),
        (
            {"sample.flow_samplers": ["chain"]},
            "sample.flow_samplers: chain goes through sub-intervals, which flow.objective: interval alone learns",
        ),
        (
            {"teacher.kind": "none", "flow.init": "scratch"},
            "flow.objective: trajectory learns a teacher's paths, and teacher.kind is none; set it to network or "
            "exact, or flow.objective to data, consistency or interval",
        ),
        (
            {
                "teacher.kind": "none",
                "flow.init": "scratch",
                "flow.objective": "consistency",
                "flow.velocity": "teacher",
            },
            "flow.velocity: teacher needs a teacher to ask for velocities, and teacher.kind is none; set it to network "
            "or exact, or flow.velocity to reference or pair",
        ),
        (
            {"teacher.kind": "none", "flow.objective": "consistency"},
            "flow.init: teacher needs a network to start from, and teacher.kind: none has none; set flow.init to "
            "scratch",
        ),
        (
            {"teacher.kind": "exact"},
            "flow.init: teacher needs a network to start from, and teacher.kind: exact has none; "
            "set flow.init to scratch",
        ),
        (
            {"flow.objective": "interval", "flow.init": "scratch", "flow.gradient_checkpointing": True},
            "flow.gradient_checkpointing: true does not fit flow.interval.derivative: forward, which flow.objective: "
            "interval takes; set flow.interval.derivative to difference, or gradient_checkpointing to false",
        ),
        (
            {"network.kind": "transformer", "network.transformer.patch": 3},
            "network.transformer.patch = 3 does not divide data.image_size = 8; use a divisor of it",
        ),
        (
            {
                "data.source": "audiofolder",
                "data.path": "x",
                "network.kind": "transformer",
                "network.transformer.patch": 3,
            },
            "network.transformer.patch = 3 does not divide spectrograms of 32 x 24; use a divisor of both, or set "
            "data.audio.multiple to a multiple of 3",
        ),
        (
            {"evaluate.guidance_scales": [2.0]},
            "evaluate.guidance_scales = [2.0] needs guidance, and guidance.kind is none; set it to cfg",
        ),
        ({"sample.guidance": 2}, "sample.guidance = 2.0 needs guidance, and guidance.kind is none; set it to cfg"),
        (
            {**LED, "sample.guidance": 2.0},
            "sample.guidance = 2.0: the flow takes 1.5 alone (guidance.scale); set it to null",
        ),
        (
            {**LED, "guidance.scale": [1.0, 3.0], "sample.guidance": 4.0},
            "sample.guidance = 4.0: the flow takes a range: [1.0, 3.0] (guidance.scale); set it to null",
        ),
    ],
)
def test_values_that_do_not_fit_together(changes: dict[str, Any], said: str):
    text = message(changes)
    assert text.startswith("params.yaml: ")
    assert text.endswith(said)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"anchor.policy": "self", "anchor.self_probability": 0.01}, "anchor.self_probability: 0.01"),
        (
            {"anchor.policy": "bank", "anchor.reset_probability": 0.01, "flow.objective": "data"},
            "anchor.reset_probability: 0.01",
        ),
        (
            {"flow.objective": "interval", "flow.init": "scratch", "flow.interval.same_share": 0.005},
            "flow.interval.same_share: 0.005",
        ),
    ],
)
def test_a_share_of_less_than_a_sample_of_a_batch_is_refused(changes, named):
    """The share is taken by position, so it would be none in every step."""
    with pytest.raises(ConfigError) as told:
        parse(changed({"flow.batch_size": 64} | changes))
    assert f"{named} of flow.batch_size = 64 is less than one sample" in str(told.value)
    assert "raise it to 0.0157 or more" in str(told.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"trajectories.stored_times": 10},
        {"data.source": "hub", "data.name": "a/b"},
        {"data.label_column": None},  # digits have labels of their own
        {"data.source": "parquet", "data.path": "x", "data.label_column": None, "evaluate.extractor": "pixels"},
        {"network.channels": [8] * 4, "network.attention": [False] * 4},
        {"network.kind": "transformer", "network.transformer.patch": 4},
        {"flow.objective": "data", "flow.t_max_share": 0.0},
        {"flow.objective": "data", "flow.schedule": "mixed", "anchor.policy": "bank"},
        {"anchor.reset_probability": 0},
        {"evaluate.extractor": "dinov2", "evaluate.weights_sha256": "0f" * 32},
        {"teacher.lr": 1},  # an integer is a number
        {"sample.flow_samplers": []},
        {"sample.flow_samplers": ["selected", "anchor"], "select.count": 0},
        {"flow.ema_decay": [0.99, 0.999]},
        {"teacher.kind": "exact", "flow.init": "scratch"},
        {"teacher.kind": "none", "flow.init": "scratch", "flow.objective": "consistency"},
        {"flow.objective": "interval", "flow.init": "scratch", "sample.flow_samplers": ["chain"]},
        {
            **{"flow.objective": "interval", "flow.interval.derivative": "difference"},
            **{"flow.init": "scratch", "flow.gradient_checkpointing": True},
        },
        {"flow.objective": ["trajectory", "consistency"]},
        {**LED, "sample.guidance": 1.5, "evaluate.guidance_scales": [0.0, 4.0]},
        {**LED, "guidance.scale": [1.0, 3.0], "sample.guidance": 3.0},
    ],
)
def test_values_at_the_edge_of_what_fits(changes: dict[str, Any]):
    assert isinstance(parse(changed(changes)), Config)


def test_every_missing_key_is_named():
    for dotted in leaves(VALUES):
        values = changed({})
        *sections, leaf = dotted.split(".")
        inner = values
        for section in sections:
            inner = inner[section]
        del inner[leaf]
        with pytest.raises(ConfigError) as caught:
            parse(values)
        assert str(caught.value) == f"params.yaml: {dotted} is missing"


def test_all_faults_are_listed_one_a_line_in_the_order_of_the_sections():
    assert message({"sample.count": 1, "seed": "x", "data.channels": 4, "data.chanels": 1}).splitlines() == [
        "params.yaml: seed = 'x': input should be a valid integer",
        "params.yaml: data.channels = 4 is not allowed; allowed: 1, 3",
        "params.yaml: data.chanels is not a known key (value 1); is it misspelt?",
        "params.yaml: sample.count = 1: input should be greater than or equal to 2",
    ]


@pytest.mark.parametrize("key", [1, None, ("a",)])
def test_a_key_that_is_no_string(key: Any):
    assert f"{key}" in message({"data": VALUES["data"] | {key: 3}})


@pytest.mark.parametrize(
    "wrong", ["x", [], {}, -1, None, float("nan"), [[]], 10**400], ids=lambda value: repr(value)[:5]
)
def test_a_wrong_leaf_is_refused_by_name_or_accepted(wrong: Any):
    accepted, unnamed = set(), {}
    for dotted in leaves(VALUES):
        section, _, leaf = dotted.rpartition(".")
        try:
            parse(changed({dotted: wrong}))
            accepted.add(dotted)
        except ConfigError as error:
            line = str(error).splitlines()[0]
            by_section = line.startswith(f"params.yaml: {section}: ") and leaf in line  # a check across its keys
            if not (line.startswith(f"params.yaml: {dotted}") or by_section or dotted in line):
                unnamed[dotted] = line
    assert unnamed == {}
    nullable = {f"data.{k}" for k in ("name", "revision", "path", "label_column", "test_split", "max_images")}
    nullable |= {"data.array.key", "data.array.columns", "data.array.labels", "data.text.stride"}
    nullable |= {"data.audio.column", "data.audio.trim_db"}
    paths = {"evaluate.inception_path", "evaluate.dinov2_path", "evaluate.clap_path"}
    paths |= {"teacher.path", "teacher.revision", "teacher.scheduler", "data.encoder"}
    no_words = {"data.max_images", "data.array.columns", "data.text.stride", "data.audio.column", "data.audio.trim_db"}
    words = nullable - no_words | paths
    words |= {"data.image_column", "data.train_split", "data.text.column"}
    expected = {
        "x": words,
        "[]": {"sample.flow_samplers", "evaluate.guidance_scales"},
        "{}": set(),
        "-1": {
            f"ode.{k}"
            for k in (
                "ve.log_time_mean",
                "rf.logit_time_mean",
                "pfgmpp.log_time_mean",
                "vp.log_time_mean",
                "trig.log_time_mean",
            )
        },
        "None": nullable
        | paths
        | {"flow.huber_c", "flow.evaluate_every", "trajectories.rho", "evaluate.weights_sha256"}
        | {"guidance.interval", "guidance.weaker", "guidance.weaker_network", "sample.guidance"}
        | {"data.encoder_revision", "ode.sigma_data"},
    }
    if str(wrong) in expected:
        assert accepted == expected[str(wrong)]


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "p.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_scalars_are_read_as_yaml_1_2(tmp_path: Path):
    text = "a: 1e-4\nb: no\nc: 1E5\nd: yes\ne: on\nf: 012\ng: 1:30\nh: true\ni: null\nj: 0x10\n"
    assert read_params(written(tmp_path, text)) == {
        "a": 1e-4,
        "b": "no",
        "c": 1e5,
        "d": "yes",
        "e": "on",
        "f": 12,
        "g": "1:30",
        "h": True,
        "i": None,
        "j": 16,
    }


def test_an_edited_file_takes_those_scalars(tmp_path: Path):
    text = PARAMS.read_text(encoding="utf-8").replace("lr: 2.0e-3", "lr: 2e-3")
    config = load(written(tmp_path, text))
    assert (config.teacher.lr, config.teacher.precision) == (0.002, "no")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 1\nb: 3\na: 2\n", 'not valid YAML: line 3: found duplicate key "a" with value "2" (original value: "1")'),
        ("a: [1,\n", "not valid YAML: line 2: expected the node content, but found '<stream end>'"),
        ("a: 1\n\t- b\n", "not valid YAML: line 2: found character '\\t' that cannot start any token"),
        ("a: *x\n", "not valid YAML: line 1: found undefined alias 'x'"),
        ("a: !thing 1\n", "not valid YAML: line 1: could not determine a constructor for the tag '!thing'"),
        ("", "must be a mapping of sections, got NoneType"),
        ("- 1\n- 2\n", "must be a mapping of sections, got list"),
        ("word\n", "must be a mapping of sections, got str"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: str, said: str):
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_params(path)
    assert str(caught.value) == f"{path}: {said}"


@pytest.mark.parametrize(
    "content",
    [
        b"a: \xff",
        b"a: \x00",
        "a: !!int ''",
        "a: !!float ''",
        "a: !!bool x",
        "a: 2020-13-45",
        "[" * 5000,
        "? {a: 1}\n: 2",
    ],
    ids=lambda content: repr(content[:16]),
)
def test_strange_bytes_and_tags_are_config_errors(tmp_path: Path, content: str | bytes):
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_params(path)
    assert str(caught.value).startswith(f"{path}: not valid YAML: ")


def test_a_file_that_holds_itself_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="a is not a known key"):
        load(written(tmp_path, "a: &a {b: *a}\nseed: &s [*s]\n"))


def test_a_missing_file_says_where_it_comes_from(tmp_path: Path):
    path = tmp_path / "params.yaml"
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: not found; run from the project's folder, or `git checkout {path}`"


def test_a_folder_in_the_files_place(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read (Is a directory)"


def test_load_names_the_file_it_read(tmp_path: Path):
    path = written(tmp_path, PARAMS.read_text(encoding="utf-8").replace("seed: 0  #", "seed: x  #"))
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: seed = 'x': input should be a valid integer"
