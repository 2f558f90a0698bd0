"""params.yaml as text and as plain values: YAML 1.2, with one line for what cannot be read."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifm.errors import UserError, in_a_line

if TYPE_CHECKING:
    from ruamel.yaml import YAML


class ConfigError(UserError, ValueError):
    """params.yaml cannot be used; the message names file, key, value and what is allowed."""


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
