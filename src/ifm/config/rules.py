"""The whole of params.yaml, and the rules between its sections."""

import math
from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ifm import objectives
from ifm.config.sections import (
    AnchorConfig,
    ConditionConfig,
    DataConfig,
    DiagnoseConfig,
    EvaluateConfig,
    FlowConfig,
    GuidanceConfig,
    NetworkConfig,
    OdeConfig,
    SampleConfig,
    SelectConfig,
    TeacherConfig,
    TrajectoriesConfig,
)
from ifm.dynamics import DYNAMICS
from ifm.errors import either
from ifm.networks import NETWORKS
from ifm.networks.smaller import with_changes
from ifm.objectives import OBJECTIVES
from ifm.schema import Distinct, NameOf, Section

MOST_FEATURES = 12_288  # a covariance of 1.2 GB; pixels of 64 x 64 colour images


class Config(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**62)]
    dynamics: Annotated[list[Annotated[str, NameOf(DYNAMICS)]], Field(min_length=1), Distinct]
    data: DataConfig
    condition: ConditionConfig
    guidance: GuidanceConfig
    ode: OdeConfig
    network: NetworkConfig
    teacher: TeacherConfig
    trajectories: TrajectoriesConfig
    flow: FlowConfig
    anchor: AnchorConfig
    select: SelectConfig
    sample: SampleConfig
    evaluate: EvaluateConfig
    diagnose: DiagnoseConfig

    def __reduce__(self) -> tuple[Any, ...]:
        """Classes made of tables have no name that pickle finds: values are written, and checked when they are read."""
        from ifm.config import parse

        return parse, (self.model_dump(),)

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
        networks = [name for name, entry in NETWORKS.items() if fit.name in entry.modalities]
        for key, value, allowed in (
            ("network.kind", self.network.kind, networks),
            ("evaluate.extractor", self.evaluate.extractor, fit.extractors),
        ):
            if value not in allowed:
                raise ValueError(f"{key}: {value} does not fit data.source: {self.data.source}; use {either(allowed)}")
        takes = NETWORKS[self.network.kind].anchor_inputs
        if self.anchor.input not in takes:
            able = " or ".join(name for name, entry in NETWORKS.items() if self.anchor.input in entry.anchor_inputs)
            raise ValueError(
                f"anchor.input: {self.anchor.input} needs the {able}; with network.kind: {self.network.kind} use "
                f"{' or '.join(takes)}"
            )
        unet = self.network.kind == "unet"
        halvings = len(self.network.channels) - 1
        sound = fit.name == "sound"
        if sound and unet and any(side % 2**halvings for side in self.data.shape[1:]):
            raise ValueError(
                f"spectrograms of {' x '.join(map(str, self.data.shape[1:]))} cannot be halved {halvings} times, as "
                f"network.channels asks; set data.audio.multiple to a multiple of {2**halvings}, or take an entry from "
                "network.channels and network.attention"
            )
        patch = self.network.transformer.patch if self.network.kind == "transformer" else 1
        if sound and any(side % patch for side in self.data.shape[1:]):
            raise ValueError(
                f"network.transformer.patch = {patch} does not divide spectrograms of "
                f"{' x '.join(map(str, self.data.shape[1:]))}; use a divisor of both, or set data.audio.multiple to a "
                f"multiple of {patch}"
            )
        if sound and self.anchor.input == "cross_attention" and len(set(self.data.shape[1:])) > 1:
            raise ValueError(
                "anchor.input: cross_attention is for squares, and spectrograms are "
                f"{' x '.join(map(str, self.data.shape[1:]))}; use channels"
            )
        if not sound and self.data.encoder is None:  # else stage preprocess asks, which knows the latents' size
            check_size(self.network, self.data.image_size, of="data.image_size")
        text = self.data.modality.name == "text"
        if text and self.network.kind == "sequence" and self.data.text.length % self.network.sequence.patch:
            raise ValueError(
                f"network.sequence.patch = {self.network.sequence.patch} does not divide data.text.length = "
                f"{self.data.text.length}; use a divisor of it"
            )
        if self.flow.schedule == "mixed" and self.anchor.policy != "bank":
            raise ValueError(
                f"flow.schedule: mixed needs anchor.policy: bank, got {self.anchor.policy}; only the bank keeps anchors"
            )
        if self.evaluate.extractor == "classifier" and not _has_labels(self.data):
            others = either([name for name in fit.extractors if name != "classifier"])
            raise ValueError(
                f"evaluate.extractor: classifier needs labels; {_how_to_label(self.data)}, or use {others}"
            )
        if self.evaluate.extractor == "clap" and None in (self.evaluate.clap_path, self.evaluate.weights_sha256):
            raise ValueError(
                "evaluate.extractor: clap needs evaluate.clap_path, a folder of config.json and model.safetensors, and "
                "evaluate.weights_sha256, the digest of model.safetensors (sha256sum)"
            )
        pixels = math.prod(self.data.shape)
        if self.evaluate.extractor == "pixels" and pixels > MOST_FEATURES:
            raise ValueError(
                f"evaluate.extractor: pixels has {pixels:,} features with data.image_size = {self.data.image_size} and "
                f"data.channels = {self.data.channels}, {MOST_FEATURES:,} are the most; use inception, dinov2 or "
                "classifier, or lower data.image_size"
                if not sound
                else f"evaluate.extractor: pixels has {pixels:,} features of a spectrogram, {MOST_FEATURES:,} are the "
                "most; use clap, or classifier where there are labels, or lower data.audio.seconds or mels"
            )
        if self.teacher.kind == "pretrained":
            _takes_a_public_model(self)
        if self.teacher.kind not in ("network", "pretrained") and self.flow.init == "teacher":
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
            if self.flow.gradient_checkpointing and (key := objective.forward_mode(self.flow)):
                raise ValueError(
                    f"flow.gradient_checkpointing: true does not fit {key}: forward, which flow.objective: {name} "
                    f"takes; set {key} to difference, or gradient_checkpointing to false"
                )
        for name, section in (("teacher", self.teacher), ("flow", self.flow)):
            if section.gradient_accumulation > section.batch_size:
                raise ValueError(
                    f"{name}.gradient_accumulation = {section.gradient_accumulation} must be at most {name}.batch_size "
                    f"= {section.batch_size}"
                )
        if self.select.keep == "best" and self.flow.evaluate_every is None:
            raise ValueError(
                "select.keep: best needs states to choose from; set flow.evaluate_every to a number of steps, or "
                "select.keep to last"
            )
        _check_shares(self, asked)
        if self.anchor.policy == "bank" and len(asked) > 1:
            raise ValueError(
                "anchor.policy: bank keeps an anchor for each sample of one data set, and flow.objective names "
                "several; use none, noise or self"
            )
        if self.evaluate.extractor not in ("coordinates", "symbols") and self.sample.count <= self.evaluate.neighbours:
            raise ValueError(
                f"sample.count = {self.sample.count} must be above evaluate.neighbours = {self.evaluate.neighbours}"
            )
        if "chain" in self.sample.flow_samplers and not objectives.two_times(self.flow):
            able = " or ".join(name for name, objective in OBJECTIVES.items() if objective.two_times)
            raise ValueError(
                f"sample.flow_samplers: chain goes through sub-intervals, which flow.objective: {able} alone learns"
            )
        if self.condition.kind == "class" and not _has_labels(self.data):
            raise ValueError(
                f"condition.kind: class needs labels; {_how_to_label(self.data)}, or set condition.kind to none"
            )
        if self.guidance.kind != "none":
            check_guidance(self)
        check_scales(self)
        return self


def _check_shares(config: "Config", asked: Collection[str]) -> None:
    """Raises ValueError for a share of a batch that is less than one of its samples: it would be none in every step."""
    batch, policy, interval = config.flow.batch_size, config.anchor.policy, config.flow.interval
    shares = {"anchor.self_probability": config.anchor.self_probability} if policy == "self" else {}
    shares |= {"anchor.reset_probability": config.anchor.reset_probability} if policy == "bank" else {}
    of = dict.fromkeys(shares, 1.0)  # what it is a share of: the batch, or a part of it
    if "interval" in asked:
        shares |= {f"flow.interval.{key}": getattr(interval, key) for key in ("same_share", "whole_share")}
        of |= {"flow.interval.same_share": 1.0, "flow.interval.whole_share": 1 - interval.same_share}
    for key, share in shares.items():
        if 0 < share * of[key] < 1 / batch:
            raise ValueError(
                f"{key}: {share:g} of flow.batch_size = {batch} is less than one sample, and so none in every step; "
                f"raise it to {math.ceil(1e4 / batch / of[key]) / 1e4:g} or more"
            )


def check_size(network: NetworkConfig, size: int, *, of: str) -> None:
    """Raises ValueError where a network's resolutions or patches do not fit the side of what it works on."""
    halvings = len(network.channels) - 1
    if network.kind == "unet" and size % 2**halvings:
        raise ValueError(
            f"{of} = {size} cannot be halved {halvings} times, as network.channels asks; use a multiple of "
            f"{2**halvings}, or take an entry from network.channels and network.attention"
        )
    if network.kind == "transformer" and size % network.transformer.patch:
        raise ValueError(
            f"network.transformer.patch = {network.transformer.patch} does not divide {of} = {size}; use a divisor of "
            "it"
        )


def _takes_a_public_model(config: Config) -> None:
    """Raises ValueError for what does not go with teacher.kind: pretrained."""
    if config.data.modality.name != "images":
        raise ValueError(f"teacher.kind: pretrained is for images, and data.source is {config.data.source}")
    for name in config.dynamics:
        if not DYNAMICS[name].gaussian:
            others = ", ".join(other for other, entry in DYNAMICS.items() if entry.gaussian)
            raise ValueError(
                f"dynamics: {name} does not fit teacher.kind: pretrained: public models learn Gaussian noise, whose "
                f"posterior mean is another function; take {name} out of the list ({others} fit)"
            )
    if config.flow.init != "teacher":
        return
    if config.guidance.kind != "none" and isinstance(config.guidance.scale, list):
        raise ValueError(
            f"guidance.scale: {config.guidance.scale} is a range, which a public model cannot be told; use a number, "
            "or set flow.init to scratch"
        )
    for key, value, fits in (
        ("flow.scheme", config.flow.scheme, "edm"),
        ("anchor.input", config.anchor.input, "channels"),
    ):
        if value != fits:
            raise ValueError(
                f"{key}: {value} does not fit flow.init: teacher with teacher.kind: pretrained; use {fits}, or set "
                "flow.init to scratch"
            )


def check_guidance(config: Config) -> None:
    """Raises ValueError where what `guidance` asks for has no teacher, no class or no second denoiser."""
    kind, teacher, velocity = config.guidance.kind, config.teacher.kind, config.flow.velocity
    if config.condition.kind != "class":
        raise ValueError(
            f"guidance.kind: {kind} needs condition.kind: class, got {config.condition.kind}; set it to class, or "
            "guidance.kind to none"
        )
    on_data = {name: objective for name, objective in objectives.of(config.flow).items() if not objective.needs_paths}
    own = [name for name, objective in on_data.items() if objective.leads_itself and velocity != "teacher"]
    for name in (name for name in on_data if name not in own):
        if velocity == "pair":
            raise ValueError(
                f"guidance.kind: {kind} with flow.objective: {name} needs a denoiser to lead, and flow.velocity: pair "
                "has none; set it to reference or teacher"
            )
        if teacher == "none":
            raise ValueError(
                f"guidance.kind: {kind} with flow.objective: {name} is led by a teacher, and teacher.kind is none; set "
                "it to network or exact, or flow.objective to interval"
            )
    if own and config.anchor.policy == "self":
        raise ValueError(
            f"guidance.kind: {kind} with flow.objective: {own[0]} leads away from a velocity without a class, and "
            "anchor.policy: self would show it an estimate with one; set anchor.policy to noise or none"
        )
    if kind == "cfg" and not config.condition.drop_probability and (teacher in ("network", "pretrained") or own):
        raise ValueError(
            "guidance.kind: cfg needs a network that knows no class too; set condition.drop_probability above 0"
        )
    for key in ("weaker", "weaker_network"):
        if kind != "autoguidance" and (value := getattr(config.guidance, key)) is not None:
            raise ValueError(
                f"guidance.{key} = {value} is of autoguidance, and guidance.kind is {kind}; set guidance.{key} to null"
            )
    _check_interval(config)
    if kind == "autoguidance":
        if teacher != "network" or config.guidance.weaker is None:
            raise ValueError(
                "guidance.kind: autoguidance needs an earlier state of a trained teacher, or a smaller one; set "
                "teacher.kind to network and guidance.weaker to a share of its training, e.g. 0.25"
            )
        own_network = (of_the_weaker(config) or {}).get("network", config.network.model_dump())
        steps = config.teacher.steps
        if round(config.guidance.weaker * steps) >= steps and own_network == config.network.model_dump():
            raise ValueError(
                f"guidance.weaker: {config.guidance.weaker:g} of teacher.steps = {steps} is the teacher itself; lower "
                "it, or set guidance.weaker_network to what a smaller network has, e.g. {channels: [16, 16, 32]}"
            )
        for name in own:
            raise ValueError(
                f"guidance.kind: autoguidance with flow.objective: {name} leads by the teacher; set flow.velocity to "
                "teacher"
            )


def _check_interval(config: Config) -> None:
    """Raises ValueError where the interval holds no noise level that a dynamics has."""
    if config.guidance.interval is None:
        return
    low, high = config.guidance.interval
    for name in config.dynamics:
        levels = getattr(getattr(config.ode, name), "levels", None)  # an added dynamics may not say
        if levels is not None and (high < levels[0] or low > levels[1]):
            raise ValueError(
                f"guidance.interval: [{low:g}, {high:g}] holds no noise level of {name}, which has {levels[0]:.4g} to "
                f"{levels[1]:.4g}; guidance would not count; set it to null, or to a part of these levels"
            )


def of_the_weaker(config: Config) -> dict[str, Any] | None:
    """The values with the network of autoguidance's weaker teacher, where that has one of its own."""
    changes = config.guidance.weaker_network
    if not changes:
        return None
    values = config.model_dump()
    return values | {
        "network": with_changes(values["network"], changes),
        "anchor": values["anchor"] | {"input": "channels"},  # a teacher takes none
        "guidance": values["guidance"] | {"weaker": 0.5, "weaker_network": None},  # it has no weaker one itself
    }


def check_scales(config: Config) -> None:
    """Raises ValueError where samples are asked for at a guidance scale that there is none of."""
    scale, asked, scales = config.guidance.scale, config.sample.guidance, config.evaluate.guidance_scales
    if config.guidance.kind == "none":
        own = config.guidance
        for key, value in (
            ("sample.guidance", asked),
            ("evaluate.guidance_scales", scales or None),
            ("guidance.scale", None if scale == 1.0 else scale),
            ("guidance.interval", own.interval),
            ("guidance.weaker", own.weaker),
            ("guidance.weaker_network", own.weaker_network),
        ):
            if value is not None:
                raise ValueError(f"{key} = {value} needs guidance, and guidance.kind is none; set it to cfg")
    elif scales and config.teacher.kind == "none" and not isinstance(scale, list):
        raise ValueError(
            f"evaluate.guidance_scales = {scales} asks for nothing: the flow has one scale (guidance.scale: {scale:g}) "
            "and teacher.kind is none; set it to [], or guidance.scale to a range"
        )
    elif asked is not None:
        low, high = scale if isinstance(scale, list) else (scale, scale)
        if not low <= asked <= high:
            takes = f"a range: {scale}" if isinstance(scale, list) else f"{scale} alone"
            raise ValueError(f"sample.guidance = {asked}: the flow takes {takes} (guidance.scale); set it to null")


def _how_to_label(data: DataConfig) -> str:
    """What to do about a data set that no labels are read of."""
    key = data.origin.labels_key
    return f"set data.{key}" if key else f"{data.origin.origin(data)} has no classes, so choose other data"


def _has_labels(data: DataConfig) -> bool:
    """Whether the data set has classes to learn."""
    said = data.origin.labelled
    if said is not None:
        return said(data) if callable(said) else said
    return data.label_column is not None or not data.origin.columns  # where there are no columns, the data tell
