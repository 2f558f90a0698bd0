"""params.yaml as typed, frozen sections. Unknown and missing keys are errors; nothing has a silent default.

This module only checks: what a stage does with the values is in the stage, and DVC tracks the values themselves.
"""

import math
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, create_model, model_validator

from ifm import modalities, objectives
from ifm.conditions import CONDITIONS, NONE
from ifm.data.sources import SOURCES, Source
from ifm.dynamics import DYNAMICS
from ifm.errors import UserError, in_a_line
from ifm.modalities import Modality
from ifm.networks import ANCHOR_INPUTS, NETWORKS, UNetOptions
from ifm.objectives import OBJECTIVES
from ifm.schema import Count, Distinct, NameOf, Positive, Section

if TYPE_CHECKING:
    from ruamel.yaml import YAML

Precision = Literal["no", "bf16", "fp16"]
MOST_FEATURES = 12_288  # a covariance of 1.2 GB; pixels of 64 x 64 colour images


class ConfigError(UserError, ValueError):
    """params.yaml cannot be used; the message names file, key, value and what is allowed."""


def _integer(value: Any) -> Any:
    """Literal compares with ==, so that true and 1.0 would pass for 1."""
    if isinstance(value, bool | float):
        raise ValueError("must be an integer")
    return value


def _digest(value: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("must be a sha256: 64 digits 0-9 and a-f, lower case; or null")
    return value


LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]
Digest = Annotated[str, AfterValidator(_digest)]


class PointsConfig(Section):
    """`data.points`: the law of source: points."""

    law: Literal["eight_gaussians", "two_moons", "checkerboard", "spiral", "gaussian"]
    count: Annotated[int, Field(ge=4)]
    dimensions: Annotated[int, Field(ge=1, le=4096)]

    @model_validator(mode="after")
    def _law_has_the_dimensions(self) -> Self:
        least, any_more = {"gaussian": (1, True), "eight_gaussians": (2, True)}.get(self.law, (2, False))
        if self.dimensions < least or (self.dimensions > least and not any_more):
            allowed = f"{least} or more" if any_more else f"{least}"
            raise ValueError(f"dimensions = {self.dimensions} does not fit law: {self.law}, which has {allowed}")
        return self


class DataConfig(Section):
    """`data`: where the images or points come from and what is made of them."""

    source: Annotated[str, NameOf(SOURCES)]
    name: str | None
    revision: str | None
    path: LocalPath | None
    image_column: str
    label_column: str | None
    train_split: str
    test_split: str | None
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0, lt=2**63)]
    max_images: Annotated[int, Field(ge=2)] | None
    on_bad_image: Literal["error", "skip"]
    image_size: Annotated[int, Field(ge=4, le=1024)]
    channels: Annotated[Literal[1, 3], BeforeValidator(_integer)]
    resample: Literal["lanczos", "bicubic", "box"]
    random_flip: bool
    points: PointsConfig

    @model_validator(mode="after")
    def _source_is_named(self) -> Self:
        needed = self.origin.watched
        if needed and not getattr(self, needed):
            raise ValueError(f"source: {self.source} needs {needed} to be set, got null")
        if self.random_flip and not self.modality.mirrors:
            raise ValueError(f"random_flip: true does not fit source: {self.source}; set it to false")
        if self.test_split is not None and not self.origin.test_split:
            raise ValueError(f"test_split: {self.test_split} does not fit source: {self.source}; set it to null")
        return self

    @property
    def origin(self) -> Source:
        """What `source` names."""
        return SOURCES[self.source]

    @property
    def modality(self) -> Modality:
        """What the samples are."""
        return modalities.MODALITIES[self.origin.modality]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W) of images, (d,) of points."""
        return self.modality.shape(self)


class OdeConfig(Section):
    """`ode`: the dynamics' constants, a section for each dynamics of the table (see `_with_tables`)."""

    sigma_data: Positive


class NetworkConfig(UNetOptions):
    """`network` of teacher and flow: the U-Net's keys, and a section for each other network of the table."""

    kind: Annotated[str, NameOf(NETWORKS)]


class ConditionConfig(Section):
    """`condition`: what teacher and flow are told of each sample."""

    kind: Annotated[str, NameOf({NONE: None}, CONDITIONS)]


class TrainConfig(Section):
    """What `teacher` and `flow` share."""

    steps: Count
    batch_size: Count
    lr: Positive
    lr_decay: Literal["none", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    clip_grad_norm: Positive
    precision: Precision
    gradient_accumulation: Count
    gradient_checkpointing: bool
    log_every: Count
    checkpoint_every: Count

    @model_validator(mode="after")
    def _checkpoints_close_a_log_window(self) -> Self:
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of log_every ({self.log_every})"
            )
        return self


class TeacherConfig(TrainConfig):
    """`teacher`."""

    kind: Literal["network", "exact", "none"]


class TrajectoriesConfig(Section):
    """`trajectories`."""

    count: Count
    stored_times: Annotated[int, Field(ge=2)]
    solver_steps: Count
    rho: Positive | None
    batch_size: Count
    shard_size: Count
    store: Literal["disk", "none"]

    @model_validator(mode="after")
    def _times_exist(self) -> Self:
        if self.stored_times > self.solver_steps + 1:
            raise ValueError(f"stored_times must be at most solver_steps + 1 = {self.solver_steps + 1}")
        return self


class FlowConfig(TrainConfig):
    """`flow`."""

    objective: Annotated[str, NameOf(OBJECTIVES)]
    phases: Annotated[list[Annotated[str, NameOf(OBJECTIVES)]], Field(min_length=1), Distinct] | None
    scheme: Literal["edm", "paper"]
    init: Literal["teacher", "scratch"]
    distance: Literal["pseudo_huber", "adaptive_huber", "l2"]
    huber_c: Positive | None
    time_weight: Literal["none", "inverse_scale"]
    schedule: Literal["data_only", "mixed"]
    t_max_share: Annotated[float, Field(ge=0, le=1)]
    velocity: Literal["pair", "reference", "teacher"]
    reference_batch: Count

    @model_validator(mode="after")
    def _fits_the_objective(self) -> Self:
        asked = objectives.of(self)
        named = list(asked)
        if "trajectory" in named and not self.t_max_share:
            raise ValueError("t_max_share must be above 0 with objective: trajectory, got 0; the others allow 0")
        if self.schedule == "mixed" and named != ["data"]:
            raise ValueError(
                f"schedule: mixed needs objective: data alone, got {', '.join(named)}; use schedule: data_only"
            )
        for name, objective in asked.items():
            if self.scheme not in objective.schemes:
                others = " or ".join(objective.schemes)
                raise ValueError(f"scheme: {self.scheme} does not fit objective: {name}; use {others}")
        if self.steps < len(named):
            raise ValueError(f"steps = {self.steps} cannot be shared by {len(named)} phases")
        return self


class AnchorConfig(Section):
    """`anchor`."""

    policy: Literal["none", "noise", "self", "bank"]
    input: Annotated[str, NameOf(dict.fromkeys(ANCHOR_INPUTS))]
    self_probability: Annotated[float, Field(gt=0, le=1)]
    reset_probability: Annotated[float, Field(ge=0, le=1)]


class SampleConfig(Section):
    """`sample`."""

    seeds: Count
    count: Annotated[int, Field(ge=2)]
    batch_size: Count
    flow_steps: Annotated[list[Count], Field(min_length=1), Distinct]
    flow_samplers: Annotated[list[Literal["anchor", "renoise", "chain"]], Distinct]
    grid_images: Count


class ClassifierConfig(Section):
    """`evaluate.classifier`."""

    width: Count
    steps: Annotated[int, Field(ge=10)]
    batch_size: Count
    lr: Positive
    seed: Annotated[int, Field(ge=0, lt=2**63)]


class EvaluateConfig(Section):
    """`evaluate`."""

    extractor: Literal["classifier", "inception", "dinov2", "pixels", "coordinates"]
    inception_path: LocalPath | None
    dinov2_path: LocalPath | None
    weights_sha256: Digest | None
    classifier: ClassifierConfig
    reference_split: Literal["train", "test"]
    kid_subsets: Count
    kid_subset_size: Annotated[int, Field(ge=2)]
    neighbours: Count
    neighbour_samples: Annotated[int, Field(ge=2)]
    sliced_projections: Count
    teacher_nfe: Annotated[list[Count], Field(min_length=1), Distinct]

    @model_validator(mode="after")
    def _odd(self) -> Self:
        even = [n for n in self.teacher_nfe if n % 2 == 0]
        if even:
            raise ValueError(f"teacher_nfe must be odd (Heun with a last Euler step), got {even}")
        if self.neighbour_samples <= self.neighbours:
            raise ValueError(
                f"neighbour_samples ({self.neighbour_samples}) must be above neighbours ({self.neighbours})"
            )
        return self


class DiagnoseConfig(Section):
    """`diagnose`."""

    paths: Annotated[int, Field(ge=2)]
    solver_steps: Annotated[int, Field(ge=2)]
    jacobian_paths: Count
    jacobian_times: Annotated[int, Field(ge=2)]
    whole_jacobian_up_to: Count
    directions: Count
    anchor_refinements: Annotated[int, Field(ge=2)]


class Config(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**62)]
    dynamics: Annotated[list[Annotated[str, NameOf(DYNAMICS)]], Field(min_length=1), Distinct]
    data: DataConfig
    condition: ConditionConfig
    ode: OdeConfig
    network: NetworkConfig
    teacher: TeacherConfig
    trajectories: TrajectoriesConfig
    flow: FlowConfig
    anchor: AnchorConfig
    sample: SampleConfig
    evaluate: EvaluateConfig
    diagnose: DiagnoseConfig

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        for name in self.dynamics:
            if getattr(self.ode, name) is None:
                raise ValueError(f"ode.{name} is missing, and dynamics asks for {name}")
            if self.flow.scheme == "paper" and not DYNAMICS[name].paper:
                raise ValueError(f"flow.scheme: paper is not defined for {name}; use edm")
        for name, options in self.network:
            if name == self.network.kind and options is None:
                raise ValueError(f"network.{name} is missing, and network.kind asks for it")
        fit = self.data.modality
        networks = [name for name, entry in NETWORKS.items() if entry.modality == fit.name]
        for key, value, allowed in (
            ("network.kind", self.network.kind, networks),
            ("evaluate.extractor", self.evaluate.extractor, fit.extractors),
        ):
            if value not in allowed:
                *first, last = allowed
                use = f"{', '.join(first)} or {last}" if first else last
                raise ValueError(f"{key}: {value} does not fit data.source: {self.data.source}; use {use}")
        takes = NETWORKS[self.network.kind].anchor_inputs
        if self.anchor.input not in takes:
            able = " or ".join(name for name, entry in NETWORKS.items() if self.anchor.input in entry.anchor_inputs)
            raise ValueError(
                f"anchor.input: {self.anchor.input} needs the {able}; with network.kind: {self.network.kind} use "
                f"{' or '.join(takes)}"
            )
        unet = self.network.kind == "unet"
        halvings = len(self.network.channels) - 1
        if unet and self.data.image_size % 2**halvings:
            raise ValueError(
                f"data.image_size = {self.data.image_size} cannot be halved {halvings} times, as network.channels "
                f"asks; use a multiple of {2**halvings}, or take an entry from network.channels and network.attention"
            )
        if self.flow.schedule == "mixed" and self.anchor.policy != "bank":
            raise ValueError(
                f"flow.schedule: mixed needs anchor.policy: bank, got {self.anchor.policy}; only the bank keeps anchors"
            )
        if self.evaluate.extractor == "classifier" and not _has_labels(self.data):
            raise ValueError(
                "evaluate.extractor: classifier needs labels; set data.label_column, or use inception, dinov2 or pixels"
            )
        pixels = math.prod(self.data.shape)
        if self.evaluate.extractor == "pixels" and pixels > MOST_FEATURES:
            raise ValueError(
                f"evaluate.extractor: pixels has {pixels:,} features with data.image_size = {self.data.image_size} and "
                f"data.channels = {self.data.channels}, {MOST_FEATURES:,} are the most; use inception, dinov2 or "
                "classifier, or lower data.image_size"
            )
        if self.teacher.kind != "network" and self.flow.init == "teacher":
            raise ValueError(
                f"flow.init: teacher needs a network to start from, and teacher.kind: {self.teacher.kind} has none; "
                "set flow.init to scratch"
            )
        asked = objectives.of(self.flow)
        if self.teacher.kind == "none" and objectives.needs_paths(self.flow):
            name = next(name for name, objective in asked.items() if objective.needs_paths)
            *others, last = [other for other, objective in OBJECTIVES.items() if not objective.needs_paths]
            raise ValueError(
                f"flow.objective: {name} learns a teacher's paths, and teacher.kind is none; set it to network or "
                f"exact, or flow.objective to {', '.join(others)} or {last}"
            )
        takes_velocities = any(objective.takes_velocities for objective in asked.values())
        if self.teacher.kind == "none" and self.flow.velocity == "teacher" and takes_velocities:
            raise ValueError(
                "flow.velocity: teacher needs a teacher to ask for velocities, and teacher.kind is none; set it to "
                "network or exact, or flow.velocity to reference or pair"
            )
        for name, objective in asked.items():
            if objective.two_times and self.flow.init == "teacher":
                raise ValueError(
                    f"flow.init: teacher does not fit flow.objective: {name}, whose network takes two times; "
                    "set flow.init to scratch"
                )
            if not objective.gives_estimates and self.anchor.policy == "bank":
                raise ValueError(
                    f"anchor.policy: bank does not fit flow.objective: {name}, which makes no estimates of x_0 to "
                    "keep; use none, noise or self"
                )
            if objective.differentiates and self.flow.gradient_checkpointing:
                raise ValueError(
                    f"flow.gradient_checkpointing: true does not fit flow.objective: {name}, whose forward-mode "
                    "derivative has no such form; set it to false, or use gradient_accumulation"
                )
        for name, section in (("teacher", self.teacher), ("flow", self.flow)):
            if section.gradient_accumulation > section.batch_size:
                raise ValueError(
                    f"{name}.gradient_accumulation = {section.gradient_accumulation} must be at most {name}.batch_size "
                    f"= {section.batch_size}"
                )
        if self.anchor.policy == "bank" and len(asked) > 1:
            raise ValueError(
                "anchor.policy: bank keeps an anchor for each sample of one data set, and flow.phases go through "
                "several; use none, noise or self"
            )
        if self.evaluate.extractor != "coordinates" and self.sample.count <= self.evaluate.neighbours:
            raise ValueError(
                f"sample.count = {self.sample.count} must be above evaluate.neighbours = {self.evaluate.neighbours}"
            )
        if "chain" in self.sample.flow_samplers and not objectives.two_times(self.flow):
            able = " or ".join(name for name, objective in OBJECTIVES.items() if objective.two_times)
            raise ValueError(
                f"sample.flow_samplers: chain goes through sub-intervals, which flow.objective: {able} alone learns"
            )
        if self.condition.kind == "classes" and not _has_labels(self.data):
            raise ValueError("condition.kind: classes needs labels; set data.label_column, or condition.kind to none")
        return self


def _has_labels(data: DataConfig) -> bool:
    """Whether the data set has classes to learn."""
    said = data.origin.labelled
    return data.label_column is not None if said is None else said


def _with_tables(base: type[Section], sections: dict[str, type[Section] | None]) -> type[Section]:
    """A section with a sub-section for each entry of a table; it may be left out where nothing asks for it."""
    added = {name: (options | None, None) for name, options in sections.items() if options is not None}
    return create_model(base.__name__, __base__=base, __doc__=base.__doc__, **added)


def schema() -> type[Config]:
    """The whole of params.yaml with the sections that the tables have now."""
    tables = (DYNAMICS, {name: entry for name, entry in NETWORKS.items() if name != "unet"}, OBJECTIVES)
    return _schema(*(tuple((name, entry.options) for name, entry in table.items()) for table in tables))


@lru_cache
def _schema(dynamics: tuple, networks: tuple, objectives: tuple) -> type[Config]:
    """`schema` of the (name, options) that tables have: the same class for the same ones, so that values compare."""
    ode, network, flow = (
        _with_tables(base, dict(sections))
        for base, sections in ((OdeConfig, dynamics), (NetworkConfig, networks), (FlowConfig, objectives))
    )
    return create_model("Config", __base__=Config, ode=(ode, ...), network=(network, ...), flow=(flow, ...))


def read_params(path: Path) -> dict[str, Any]:
    """params.yaml as plain values. Raises ConfigError where it is missing or no YAML mapping."""
    return read_mapping(params_text(path), source=str(path))


def params_text(path: Path) -> str:
    """The text of params.yaml. Raises ConfigError where it is missing or no UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: not found; run from the project's folder, or `git checkout {path}`") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: {in_a_line(error)}") from error


def read_mapping(text: str, *, source: str) -> dict[str, Any]:
    """The text of params.yaml as plain values. Raises ConfigError where it is no YAML mapping."""
    values = read_yaml(text, source=source)
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must be a mapping of sections, got {type(values).__name__}")
    return values


def read_yaml(text: str, *, source: str) -> Any:
    """YAML 1.2 as plain values: 1e-4 is a number, no is a word, a repeated key an error. Raises ConfigError."""
    return _with_yaml(lambda yaml: yaml.load(text), source)


def yaml_node(text: str, *, source: str) -> Any:
    """YAML as ruamel's node, which says where in the text each value stands; None if empty. Raises ConfigError."""
    return _with_yaml(lambda yaml: yaml.compose(text), source)


def _with_yaml(read: "Callable[[YAML], Any]", source: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        try:
            return read(YAML(typ="safe", pure=True))
        except MarkedYAMLError as error:
            # ruamel's own scanner refuses some tabs that YAML allows; libyaml, by which DVC reads, takes them.
            try:
                return read(YAML(typ="safe"))
            except Exception:
                raise error from None
    except MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{source}: not valid YAML: {where}{error.problem}") from error
    except (YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {in_a_line(error)}") from error


def load(path: Path = Path("params.yaml")) -> Config:
    """Reads and checks the whole file. Raises ConfigError with one line for each thing that is wrong."""
    return parse(read_params(path), source=str(path))


def parse(values: dict[str, Any], *, source: str = "params.yaml") -> Config:
    """Checks plain values. Raises ConfigError."""
    try:
        return schema().model_validate(values)
    except ValidationError as error:
        lines = [f"{source}: {_explain(e)}" for e in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def _explain(error: Any) -> str:
    """One line: key, value, what is allowed."""
    key = ".".join(str(part) if str(part).isprintable() else repr(part) for part in error["loc"])
    kind, context, given = error["type"], error.get("ctx", {}), error["input"]
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f"{key} is not a known key (value {given!r}); is it misspelt?"
    if kind == "literal_error":
        return f"{key} = {given!r} is not allowed; allowed: {context['expected'].replace(' or ', ', ')}"
    if kind == "model_type":
        return f"{key} = {given!r} must be a mapping"
    if kind == "list_type":
        one = given if isinstance(given, str | int | float) else "..."
        return f"{key} = {given!r} must be a list: [{one}]"
    message = error["msg"].removeprefix("Value error, ")
    if not key:  # a check across sections, which names its keys
        return message
    if kind == "value_error" and isinstance(given, dict | BaseModel):  # a check across a section's keys, named by it
        return f"{key}: {message}"
    return f"{key} = {given!r}: {message[0].lower()}{message[1:]}"
