"""The sections of params.yaml as typed, frozen models, with the rules inside each of them."""

import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from ifm import modalities, objectives
from ifm.conditions import CONDITIONS, NONE
from ifm.data.sources import SOURCES, Source
from ifm.modalities import Modality
from ifm.networks import ANCHOR_INPUTS, NETWORKS, UNetOptions
from ifm.objectives import OBJECTIVES
from ifm.schema import Count, Distinct, NameOf, NamesOf, Positive, Section

Precision = Literal["no", "bf16", "fp16"]


def _integer(value: Any) -> Any:
    """Literal compares with ==, so that true and 1.0 would pass for 1."""
    if isinstance(value, bool | float):
        raise ValueError("must be an integer")
    return value


def _digest(value: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("must be a sha256: 64 digits 0-9 and a-f, lower case; or null")
    return value


def _in_a_list(value: Any) -> Any:
    """A number stands for a list of one."""
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _alone(values: list) -> Any:
    """The inverse, so that a number stays one."""
    return values[0] if len(values) == 1 else values


def _rising(values: list) -> list:
    if len(values) != 2 or not values[0] < values[1]:
        raise ValueError("must be a range: [low, high], low below high")
    return values


def _one_or_rising(values: list) -> list:
    return values if len(values) == 1 else _rising(values)


NotNegative = Annotated[float, Field(ge=0)]
GuidanceScale = Annotated[float, Field(ge=0, le=1000)]
# A number, or a range [low, high]. Checked as a list, so that a fault is told in one line.
Scale = Annotated[
    list[GuidanceScale],
    Field(min_length=1),
    BeforeValidator(_in_a_list),
    AfterValidator(_one_or_rising),
    AfterValidator(_alone),
    PlainSerializer(lambda values: values),
]
Decay = Annotated[float, Field(ge=0, lt=1)]
# A decay, or a list of them. Checked as a list, so that a fault is told in one line.
Decays = Annotated[
    list[Decay],
    Field(min_length=1),
    Distinct,
    BeforeValidator(_in_a_list),
    AfterValidator(_alone),
    PlainSerializer(lambda values: values),
]
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


class ArrayConfig(Section):
    """`data.array`: what source: array reads of its files."""

    key: str | None
    columns: Annotated[list[str], Field(min_length=1), Distinct] | None
    labels: str | None


class TextConfig(Section):
    """`data.text`: what is made of text."""

    unit: Literal["characters", "bytes"]
    length: Annotated[int, Field(ge=4, le=4096)]
    stride: Count | None
    representation: Literal["bits", "one_hot"]
    column: str


class AudioConfig(Section):
    """`data.audio`: of source: audiofolder, and of the others where `column` names recordings."""

    column: str | None
    sample_rate: Annotated[int, Field(ge=1000, le=192_000)]
    seconds: Annotated[float, Field(gt=0, le=60)]
    longer: Literal["start", "centre", "loudest", "error"]
    shorter: Literal["end", "centre", "repeat", "error"]
    shortest: NotNegative
    trim_db: Positive | None
    normalise: Literal["peak", "rms", "none"]
    representation: Literal["complex", "logmel"]
    fft: Annotated[int, Field(ge=8, le=8192)]
    hop: Count
    mels: Annotated[int, Field(ge=4, le=512)]
    power: Annotated[float, Field(gt=0, le=1)]
    multiple: Annotated[int, Field(ge=1, le=256)]

    @model_validator(mode="after")
    def _frames_overlap(self) -> Self:
        if self.fft % 2 or self.fft < 2 * self.hop:
            raise ValueError(f"fft = {self.fft} must be even and at least twice hop = {self.hop}")
        if round(self.seconds * self.sample_rate) < self.hop:
            raise ValueError(
                f"seconds = {self.seconds:g} is less than one hop of {self.hop} samples; raise it, or lower hop"
            )
        if self.representation == "logmel" and self.mels > self.fft // 2 - 1:
            raise ValueError(
                f"mels = {self.mels} are more than fft = {self.fft} has frequencies for; lower mels to "
                f"{self.fft // 2 - 1} or raise fft"
            )
        return self


class DataConfig(Section):
    """`data`: where the images, sounds or points come from and what is made of them."""

    source: Annotated[str, NameOf(SOURCES)]
    name: str | None
    revision: str | None
    path: LocalPath | None
    image_column: str
    label_column: str | None
    train_split: Annotated[str, Field(min_length=1)]
    test_split: Annotated[str, Field(min_length=1)] | None
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0, lt=2**63)]
    max_images: Annotated[int, Field(ge=2)] | None
    on_bad_image: Literal["error", "skip"]
    image_size: Annotated[int, Field(ge=4, le=1024)]
    channels: Annotated[Literal[1, 3], BeforeValidator(_integer)]
    resample: Literal["lanczos", "bicubic", "box"]
    random_flip: bool
    encoder: LocalPath | None
    encoder_revision: str | None
    audio: AudioConfig
    points: PointsConfig
    array: ArrayConfig | None = None
    text: TextConfig | None = None

    @model_validator(mode="after")
    def _source_is_named(self) -> Self:
        needed = self.origin.watched
        if needed and not getattr(self, needed):
            raise ValueError(f"source: {self.source} needs {needed} to be set, got null")
        if self.origin.section and getattr(self, self.origin.section) is None:
            raise ValueError(f"source: {self.source} needs the section {self.origin.section}; see docs/params.md")
        if self.audio.column is not None and not self.origin.recordings:
            raise ValueError(f"source: {self.source} has no columns of recordings; set data.audio.column to null")
        if self.random_flip and not self.modality.mirrors:
            raise ValueError(f"random_flip: true does not fit source: {self.source}; set it to false")
        if self.encoder is not None and self.modality.name != "images":
            raise ValueError(f"encoder: {self.encoder} makes latents of images, and source: {self.source} has none")
        if self.encoder is None and self.encoder_revision is not None:
            raise ValueError(f"encoder_revision: {self.encoder_revision} is of no encoder; set it to null")
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
        return modalities.MODALITIES[self.origin.modality if self.audio.column is None else "sound"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W) of images, (C, F, T) of sounds, (d,) of points."""
        return self.modality.shape(self)


class OdeConfig(Section):
    """`ode`: the dynamics' constants, a section for each dynamics of the table (see `_with_tables`)."""

    sigma_data: Positive | None


class NetworkConfig(UNetOptions):
    """`network` of teacher and flow: the U-Net's keys, and a section for each other network of the table."""

    kind: Annotated[str, NameOf(NETWORKS)]


class ConditionConfig(Section):
    """`condition`: what teacher and flow are told of each sample."""

    kind: Annotated[str, NameOf({NONE: None}, CONDITIONS)]
    drop_probability: Annotated[float, Field(ge=0, lt=1)]


class GuidanceConfig(Section):
    """`guidance`: of the teacher towards its condition, and inside the flow."""

    kind: Literal["none", "cfg", "autoguidance"]
    scale: Scale
    interval: Annotated[list[NotNegative], AfterValidator(_rising)] | None
    weaker: Annotated[float, Field(gt=0, le=1)] | None
    weaker_network: dict[str, Any] | None


class TrainConfig(Section):
    """What `teacher` and `flow` share."""

    steps: Count
    batch_size: Count
    lr: Positive
    lr_decay: Literal["none", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0)]
    ema_decay: Decay
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

    kind: Literal["network", "exact", "none", "pretrained"]
    path: LocalPath | None
    revision: str | None
    scheduler: LocalPath | None

    @model_validator(mode="after")
    def _a_place(self) -> Self:
        if self.kind == "pretrained" and self.path is None:
            raise ValueError("kind: pretrained needs path, a folder in diffusers' form or a Hub id (owner/name)")
        return self


class TrajectoriesConfig(Section):
    """`trajectories`."""

    count: Count
    stored_times: Annotated[int, Field(ge=2)]
    solver_steps: Count
    rho: Positive | None
    batch_size: Count
    shard_size: Count
    store: Literal["disk", "none"]
    precision: Precision

    @model_validator(mode="after")
    def _times_exist(self) -> Self:
        if self.stored_times > self.solver_steps + 1:
            raise ValueError(f"stored_times must be at most solver_steps + 1 = {self.solver_steps + 1}")
        return self


class FlowConfig(TrainConfig):
    """`flow`."""

    objective: Annotated[list[str], NamesOf(OBJECTIVES)]
    scheme: Literal["edm", "paper"]
    init: Literal["teacher", "scratch"]
    distance: Literal["pseudo_huber", "adaptive_huber", "l2"]
    huber_c: Positive | None
    time_weight: Literal["none", "inverse_scale"]
    schedule: Literal["data_only", "mixed"]
    t_max_share: Annotated[float, Field(ge=0, le=1)]
    velocity: Literal["pair", "reference", "teacher"]
    reference_batch: Count
    ema_decay: Decays
    evaluate_every: Count | None

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
        if self.evaluate_every is not None and self.evaluate_every >= self.steps:
            raise ValueError(
                f"evaluate_every = {self.evaluate_every} must be below steps = {self.steps}: the last is judged anyway"
            )
        if self.steps < len(named):
            raise ValueError(f"steps = {self.steps} cannot be shared by {len(named)} objectives")
        return self


class AnchorConfig(Section):
    """`anchor`."""

    policy: Literal["none", "noise", "self", "bank"]
    input: Annotated[str, NameOf(dict.fromkeys(ANCHOR_INPUTS))]
    self_probability: Annotated[float, Field(gt=0, le=1)]
    reset_probability: Annotated[float, Field(ge=0, le=1)]


class SelectConfig(Section):
    """`select`."""

    count: Annotated[int, Field(ge=0)]
    levels: Count
    evaluate_count: Annotated[int, Field(ge=2)]
    keep: Literal["last", "best"]

    @model_validator(mode="after")
    def _a_set_of_samples(self) -> Self:
        if self.count == 1:
            raise ValueError("count = 1 is no set of samples to measure; use 2 or more, or 0 for no selection")
        return self


class SampleConfig(Section):
    """`sample`."""

    seeds: Count
    count: Annotated[int, Field(ge=2)]
    batch_size: Count
    flow_steps: Annotated[list[Count], Field(min_length=1), Distinct]
    flow_samplers: Annotated[list[Literal["selected", "anchor", "renoise", "chain"]], Distinct]
    grid_images: Count
    guidance: NotNegative | None
    precision: Precision


class ClassifierConfig(Section):
    """`evaluate.classifier`."""

    width: Count
    steps: Annotated[int, Field(ge=10)]
    batch_size: Count
    lr: Positive
    seed: Annotated[int, Field(ge=0, lt=2**63)]


class EvaluateConfig(Section):
    """`evaluate`."""

    extractor: Literal["classifier", "inception", "dinov2", "clap", "pixels", "coordinates", "symbols"]
    inception_path: LocalPath | None
    dinov2_path: LocalPath | None
    clap_path: LocalPath | None
    weights_sha256: Digest | None
    classifier: ClassifierConfig
    reference_split: Literal["train", "test"]
    kid_subsets: Count
    kid_subset_size: Annotated[int, Field(ge=2)]
    neighbours: Count
    neighbour_samples: Annotated[int, Field(ge=2)]
    sliced_projections: Count
    guidance_scales: Annotated[list[NotNegative], Distinct]
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
