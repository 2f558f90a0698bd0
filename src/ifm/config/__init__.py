"""params.yaml as typed, frozen sections. Unknown and missing keys are errors; nothing has a silent default.

This module only checks: what a stage does with the values is in the stage, and DVC tracks the values themselves.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from ifm.config.reading import ConfigError, params_text, read_mapping, read_params, read_yaml, yaml_node
from ifm.config.rules import MOST_FEATURES, Config, of_the_weaker
from ifm.config.sections import (
    ClassifierConfig,
    DataConfig,
    EvaluateConfig,
    FlowConfig,
    NetworkConfig,
    OdeConfig,
    TrainConfig,
)
from ifm.dynamics import DYNAMICS
from ifm.networks import NETWORKS
from ifm.objectives import OBJECTIVES
from ifm.schema import Section

__all__ = [
    "MOST_FEATURES",
    "ClassifierConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "NetworkConfig",
    "TrainConfig",
    "load",
    "params_text",
    "parse",
    "read_mapping",
    "read_params",
    "read_yaml",
    "schema",
    "weaker_teacher",
    "yaml_node",
]


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


def load(path: Path = Path("params.yaml")) -> Config:
    """Reads and checks the whole file. Raises ConfigError with one line for each thing that is wrong."""
    return parse(read_params(path), source=str(path))


def parse(values: dict[str, Any], *, source: str = "params.yaml") -> Config:
    """Checks plain values. Raises ConfigError."""
    config = _checked(values, source)
    weaker_teacher(config, source=source)
    return config


def weaker_teacher(config: Config, *, source: str = "params.yaml") -> Config | None:
    """The params with the network of autoguidance's weaker teacher, where that has one of its own; else None.

    Raises ConfigError where that network is none.
    """
    values = of_the_weaker(config)
    return None if values is None else _checked(values, f"{source}: guidance.weaker_network")


def _checked(values: dict[str, Any], source: str) -> Config:
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
        one = given if isinstance(given, str | int | float) and str(given).isprintable() else "..."
        return f"{key} = {given!r} must be a list: [{one}]"
    message = error["msg"].removeprefix("Value error, ")
    if not key:  # a check across sections, which names its keys
        return message
    if kind == "value_error" and isinstance(given, dict | BaseModel):  # a check across a section's keys, named by it
        return f"{key}: {message}"
    return f"{key} = {given!r}: {message[0].lower()}{message[1:]}"
