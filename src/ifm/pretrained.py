"""Models on disk: the network's folder (config.json, safetensors; for a U-Net in diffusers' format) and ifm.json.

ifm.json describes everything around the network.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifm import conditions, modalities, recorded
from ifm import dynamics as dynamics_module
from ifm.dynamics.base import Dynamics
from ifm.errors import UserError, in_a_line
from ifm.exact import ExactTeacher
from ifm.files import file_sha256, fresh_folder, joint_sha256, read_json, write_json
from ifm.guidance import Guidance, Guided
from ifm.hardware.devices import memory_format
from ifm.latents import DECODER, find
from ifm.latents.autoencoder import Autoencoder
from ifm.model import IntegrationFlow, IntervalFlow, Teacher, build_flow
from ifm.networks import load_network

DESCRIPTION = "ifm.json"
AVERAGE = "average-"  # begins the name of a further average's folder
STATE = "step-"  # begins that of the average after so many steps
WEAKER = "weaker"  # a folder in a teacher's: an earlier or smaller one, for autoguidance
EXACT_DATA = "data.safetensors"  # an exact teacher's whole content
MEND = "copy or download the folder again, or make it with `dvc repro --force`"


class ModelError(UserError, ValueError):
    """A model's folder cannot be used. The message names the folder or file and how to mend it."""


class NoModelError(ModelError, FileNotFoundError):
    """There is no model, or one of its files is missing."""


def save_model(
    model: Teacher | IntegrationFlow,
    folder: Path,
    *,
    record: dict[str, Any],
    averages: Mapping[float, Mapping[str, Tensor]] | None = None,
    weaker: Mapping[str, Tensor] | Path | None = None,
    states: Mapping[int, tuple[Callable[[], Mapping[str, Tensor]], dict[str, Any]]] | None = None,
    decoder: Path | None = None,
) -> None:
    """Writes the model whole or not at all; `record` (training facts, JSON-able) goes into ifm.json with the rest.

    decoder: the autoencoder's folder, for a model of latents; it is copied, so that the model stands alone.

    averages: other weights of it by their decay; weaker: weights of an earlier state, or the folder of another model.
    Each is a model of its own in a folder below (`averages_of`, `guided`). states: likewise, parameters after so many
    steps and what ifm.json says of them; they are asked for one by one, because many do not fit into memory
    (`states_of`).
    """
    below = {
        f"{AVERAGE}{decay!r}": (partial(dict, weights), {"ema_decay": decay})
        for decay, weights in (averages or {}).items()
    }
    below |= {WEAKER: (partial(dict, weaker), {})} if isinstance(weaker, Mapping) else {}
    below |= {f"{STATE}{step:09d}": given for step, given in (states or {}).items()}
    with fresh_folder(folder) as temporary:
        _write_model(model, temporary, record)
        own = {name: x.clone() for name, x in model.state_dict().items()} if below else {}
        for name, (weights, facts) in below.items():
            model.load_state_dict(own | weights())
            (temporary / name).mkdir()
            _write_model(model, temporary / name, record | facts)
        if own:
            model.load_state_dict(own)
        if isinstance(weaker, Path):
            shutil.copytree(weaker, temporary / WEAKER)
        copy_decoder(decoder, temporary)


def copy_decoder(decoder: Path | None, folder: Path) -> None:
    """Into a model's folder; nothing where there is none."""
    if decoder is not None:
        shutil.copytree(decoder, folder / DECODER)


def decoder_of(folder: Path) -> Path | None:
    """The autoencoder's folder of a model, which its averages and states share; None where its samples need none."""
    below = folder.name.startswith((WEAKER, AVERAGE, STATE))
    places = [folder, folder.parent] if below else [folder]
    return next((place / DECODER for place in places if (place / DECODER).is_dir()), None)


def state_shape(description: Mapping[str, Any]) -> tuple[int, ...]:
    """Of one of a model's states, by its ifm.json: latents (c, h, w), images (C, H, W), points (d,)."""
    return tuple(description.get("latent_shape") or description["image_shape"])


def averages_of(folder: Path) -> list[Path]:
    """The folder of a model, and those of its further averages, by name."""
    return [folder, *sorted(folder.glob(f"{AVERAGE}*"))]


def states_of(folder: Path) -> dict[int, Path]:
    """The folders of a model as it was after so many steps."""
    return {int(one.name.removeprefix(STATE)): one for one in sorted(folder.glob(f"{STATE}*"))}


def _write_model(model: Teacher | IntegrationFlow, folder: Path, record: dict[str, Any]) -> None:
    """The network's files and ifm.json, into a folder that is there."""
    description: dict[str, Any] = {
        "kind": "flow" if isinstance(model, IntegrationFlow) else "teacher",
        "dynamics": {"name": model.dynamics.name, **model.dynamics.options},
    }
    if isinstance(model, IntegrationFlow):
        description |= {"scheme": model.scheme, "takes_anchor": model.takes_anchor, "anchor_input": model.anchor_input}
        description |= {"two_times": isinstance(model, IntervalFlow)}
        description |= {} if model.guidance is None else {"guidance": model.guidance}
    # Standard memory order, so that the file does not depend on how training laid out its weights.
    weights = model.network.to(memory_format=torch.contiguous_format).save(folder)
    description["parameters"] = sum(p.numel() for p in model.parameters())
    description["sha256"] = joint_sha256(weights)
    write_json(folder / DESCRIPTION, description | record)


def save_again(source: Path, folder: Path, *, record: dict[str, Any]) -> None:
    """Writes the model in `source` once more, its weights to the byte, with `record` added to ifm.json."""
    description = describe(source)
    with fresh_folder(folder) as temporary:
        for file in sorted(source.iterdir()):
            if file.is_file() and file.name != DESCRIPTION:  # not its further averages
                shutil.copyfile(file, temporary / file.name)
        copy_decoder(decoder_of(source), temporary)
        write_json(temporary / DESCRIPTION, description | record)


def save_exact_teacher(
    teacher: ExactTeacher, folder: Path, *, record: dict[str, Any], decoder: Path | None = None
) -> None:
    """Writes an exact teacher, whole or not at all: its data in one tensor, ifm.json. decoder: see `save_model`."""
    from safetensors.torch import save_file

    tensors = {"data": teacher.data.reshape(-1, *teacher.shape)}
    if teacher.have is not None:
        tensors |= {f"condition.{name}": x for name, x in teacher.have.tensors().items()}
    with fresh_folder(folder) as temporary:
        save_file(tensors, temporary / EXACT_DATA)
        description = {
            "kind": "teacher",
            "denoiser": "exact",
            "dynamics": {"name": teacher.dynamics.name, **teacher.dynamics.options},
            "condition": None if teacher.condition_kind is None else teacher.condition_kind.describe(),
            "parameters": 0,
            "sha256": file_sha256(temporary / EXACT_DATA),
        }
        copy_decoder(decoder, temporary)
        write_json(temporary / DESCRIPTION, description | record)


def save_no_teacher(folder: Path, *, record: dict[str, Any]) -> None:
    """Writes a folder that says that there is no teacher (teacher.kind: none)."""
    with fresh_folder(folder) as temporary:
        write_json(temporary / DESCRIPTION, {"kind": "teacher", "denoiser": "none", "parameters": 0} | record)


def has_teacher(folder: Path) -> bool:
    """Whether the folder holds a teacher, trained or exact."""
    return _describe(folder, kind="teacher").get("denoiser") != "none"


def load_teacher(folder: Path) -> Teacher | ExactTeacher:
    """Reads a teacher in evaluation mode. Raises ModelError that names the folder."""
    description = _describe(folder, kind="teacher")
    if description.get("denoiser") == "none":
        raise ModelError(f"{folder}: holds no teacher (teacher.kind: none)")
    with _usable(folder):
        if description.get("denoiser") == "exact":
            teacher = _exact(folder / EXACT_DATA, description)
        else:
            teacher = Teacher(load_network(folder), _dynamics(description))
        teacher.of_data, teacher.decoder = modalities.recorded(description), _decoder(folder, description)
        return teacher.eval()


def weights_of(folder: Path, guidance: Guidance | None) -> dict[str, str]:
    """The digests of a teacher's weights, and of the weaker one's where autoguidance leads it."""
    found = {"teacher": describe(folder)["sha256"]}
    if guidance is not None and guidance.kind == "autoguidance" and (folder / WEAKER).is_dir():
        found["weaker"] = describe(folder / WEAKER)["sha256"]
    return found


def guided(teacher: Teacher | ExactTeacher, folder: Path, guidance: Guidance | None) -> Teacher | ExactTeacher | Guided:
    """The teacher of `folder` led by `guidance`, itself for None; the weaker one of autoguidance lies there too.

    Raises ModelError where there is none, UserError where the teacher cannot be guided.
    """
    if guidance is None:
        return teacher
    weaker = None
    if guidance.kind == "autoguidance":
        if not (folder / WEAKER).is_dir():
            raise NoModelError(f"{folder / WEAKER}: no weaker teacher there; set guidance.weaker and train it again")
        weaker = load_teacher(folder / WEAKER)
        device = next(teacher.parameters()).device
        weaker = weaker.to(device, memory_format=memory_format(device))
    return guidance.around(teacher, teacher.condition_kind, weaker=weaker)


def load_flow(folder: Path) -> IntegrationFlow:
    """Reads an integration flow in evaluation mode. Raises ModelError that names the folder."""
    description = _describe(folder, kind="flow")
    with _usable(folder):
        flow = build_flow(
            load_network(folder),
            _dynamics(description),
            scheme=description["scheme"],
            takes_anchor=_true_or_false(description, "takes_anchor"),
            anchor_input=description.get("anchor_input", "channels"),
            two_times=_true_or_false({"two_times": False} | description, "two_times"),
        ).eval()
        can = {"takes_anchor": flow.takes_anchor, "two_times": isinstance(flow, IntervalFlow)}
        flow.samplers = recorded.read(description, t_min=flow.dynamics.t_min, t_max=flow.dynamics.t_max, **can)
        found = Guidance.of(description.get("guidance"))
        flow.guidance = None if found is None else found.describe()
        flow.of_data, flow.decoder = modalities.recorded(description), _decoder(folder, description)
        return flow


def load_both(
    *, teacher: Path, flow: Path, device: torch.device
) -> tuple[Teacher | ExactTeacher | None, IntegrationFlow]:
    """A teacher (None if there is none) and a flow on the device, in the memory layout of training."""
    models = load_teacher(teacher) if has_teacher(teacher) else None, load_flow(flow)
    return tuple(m if m is None else m.to(device, memory_format=torch.channels_last) for m in models)


def describe(folder: Path) -> dict[str, Any]:
    """The content of ifm.json: kind, dynamics, parameters, sha256 of the weights, training facts. Raises ModelError."""
    path = folder / DESCRIPTION
    try:
        found = read_json(path)
    except FileNotFoundError as error:
        raise NoModelError(f"{path}: no such file, so no saved model; {MEND}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({in_a_line(error.__cause__ or error)}); {MEND}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: must be an object of JSON, got {type(found).__name__}; {MEND}")
    return found


def _describe(folder: Path, *, kind: str) -> dict[str, Any]:
    description = describe(folder)
    if description.get("kind") != kind:
        raise ModelError(f"{folder}: holds a {in_a_line(description.get('kind'))}, not a {kind}")
    return description


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turns errors of a damaged or foreign folder into a ModelError: the libraries raise nearly any kind."""
    try:
        yield
    except FileNotFoundError as error:
        raise NoModelError(f"{folder}: a file is missing ({in_a_line(error)}); {MEND}") from error
    except KeyError as error:
        raise ModelError(f"{folder / DESCRIPTION}: has no key {error}; {MEND}") from error
    except Exception as error:
        raise ModelError(f"{folder}: holds no usable model ({in_a_line(error)}); {MEND}") from error


def _decoder(folder: Path, description: Mapping[str, Any]) -> Autoencoder | None:
    """What makes images of a model's latents; None where there are none. Raises UserError where it is missing."""
    if "latent_shape" not in description:
        return None
    place = decoder_of(folder)
    if place is None:
        raise FileNotFoundError(f"{DECODER}/, which makes images of its latents")
    decoder = Autoencoder.read(find(place, named=str(place)))
    made, said = decoder.image_shape(state_shape(description)), tuple(description["image_shape"])
    if made != said:
        raise ValueError(f"{DECODER}/ makes images {list(made)} of its latents, {DESCRIPTION} says {list(said)}")
    return decoder


def _true_or_false(description: dict[str, Any], key: str) -> bool:
    if not isinstance(description[key], bool):
        raise ValueError(f"{DESCRIPTION}: {key} must be true or false, got {description[key]!r}")
    return description[key]


def _exact(file: Path, description: dict[str, Any]) -> ExactTeacher:
    """An exact teacher from its data, [n, *shape], uint8 or floating, and their conditions."""
    from safetensors.torch import load_file

    tensors = load_file(file)
    data = tensors.get("data")
    if data is None or not data.numel() or not (data.dtype == torch.uint8 or data.is_floating_point()):
        found = ", ".join(f"{name}: {t.dtype} {list(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"{file.name}: must hold `data`, uint8 or floats of shape [n, ...], got {found or 'nothing'}")
    kind, have = conditions.build(description.get("condition")), None
    if kind is not None:
        names = [name for name in tensors if name.startswith("condition.")]
        have = kind.of_tensors({name.removeprefix("condition."): tensors[name] for name in names})
    return ExactTeacher(data, _dynamics(description), kind=kind, have=have)


def _dynamics(description: dict[str, Any]) -> Dynamics:
    options = dict(description["dynamics"])
    if not isinstance(options.get("name"), str):
        raise ValueError(f"{DESCRIPTION}: dynamics must have a name, got {options}")
    return dynamics_module.build(options.pop("name"), **options)
