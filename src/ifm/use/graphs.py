"""A flow's one evaluation as a graph in a file: ONNX, or PyTorch's own exported program (pt2)."""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifm.errors import UserError
from ifm.model import IntegrationFlow
from ifm.pretrained import DESCRIPTION
from ifm.random import Streams
from ifm.sampling import Draws
from ifm.use.drawing import data_shape

# Largest difference in units of the data, which are in [-1, 1]: a level of 8 bits is 78 times as much.
TOLERANCE = 1e-4
TRACED, CHECKED = 3, (1, 3, 65)  # batch sizes
INPUTS = {"labels": "class_labels", "w": "guidance"}  # a condition's tensors, as diffusers and others call them
ONE_FILE = 2**31 - 2**27  # bytes of weights that an .onnx file can hold itself; protobuf ends at 2 GiB
FILES = {"onnx": "model.onnx", "pt2": "model.pt2"}
Run = Callable[[tuple[Tensor, ...]], Tensor]  # (x_T) or (x_T, x_anchor) -> x_0_hat


class OneEvaluation(nn.Module):
    """(x_T [B, ...], where the flow takes them x_anchor [B, ...] and the condition's tensors) -> x_0_hat [B, ...].

    Of latents it is the image that the decoder makes. In float32. condition: one of the flow's kind, whose class is
    made again of its tensors.
    """

    def __init__(self, flow: IntegrationFlow) -> None:
        super().__init__()
        self.flow, condition = flow, example_draws(flow, 1).condition
        self.decoder = None if flow.decoder is None else flow.decoder.model  # its weights are the graph's too
        self.kind, self.names = (None, []) if condition is None else (type(condition), list(condition.tensors()))

    def forward(self, x_T: Tensor, *rest: Tensor) -> Tensor:
        t = torch.full((x_T.shape[0],), self.flow.dynamics.t_max, dtype=x_T.dtype, device=x_T.device)
        x_anchor, told = (rest[0], rest[1:]) if self.flow.takes_anchor else (None, rest)
        condition = {} if self.kind is None else {"condition": self.kind(**dict(zip(self.names, told, strict=True)))}
        x_0_hat = self.flow(x_T, t, x_anchor=x_anchor, **condition)
        return x_0_hat if self.flow.decoder is None else self.flow.decoder.decoded(x_0_hat)


class _Upsample(nn.Module):
    """diffusers' Upsample2D without its case for batches of 64 and more, which would fix a range of B in the graph."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, h: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        scale = 2.0 if output_size is None else None
        return self.conv(nn.functional.interpolate(h, size=output_size, scale_factor=scale, mode="nearest"))


def _for_any_batch(flow: IntegrationFlow) -> IntegrationFlow:
    """A copy that computes the same, and nowhere asks how large the batch is."""
    copied = copy.deepcopy(flow)
    decoder = [] if copied.decoder is None else list(copied.decoder.model.modules())
    for module in [*copied.modules(), *decoder]:
        for name, child in module.named_children():
            if type(child).__name__ == "Upsample2D" and child.interpolate and child.norm is None:
                setattr(module, name, _Upsample(child.conv))
    return copied


@dataclass(frozen=True)
class Written:
    """A graph's file, and how far what it computes lies from the model."""

    path: Path
    largest_difference: float


def write_graph(
    flow: IntegrationFlow, folder: Path, *, kind: str, description: Mapping[str, Any] | None = None
) -> Written:
    """Writes the graph (`onnx` or `pt2`), loads the file again and compares it with the model, for several batch sizes.

    description: the model's ifm.json, for the file's metadata: `ifm` in ONNX, the extra file ifm.json in pt2. Raises
    UserError where they differ by more than TOLERANCE, or where a package is missing.
    """
    flow = copy.deepcopy(flow).cpu().float().eval().requires_grad_(False)
    module, path = OneEvaluation(flow), folder / FILES[kind]
    with _quiet(), torch.no_grad():
        about = json.dumps(description or {}, ensure_ascii=False)
        {"onnx": _write_onnx, "pt2": _write_pt2}[kind](OneEvaluation(_for_any_batch(flow)), path, about)
        run = {"onnx": _open_onnx, "pt2": _open_pt2}[kind](path)
        given = [example(flow, size) for size in CHECKED]
        differences = [(run(inputs) - module(*inputs)).abs().max() for inputs in given]
    difference = float(torch.stack(differences).max())  # NaN where there is one
    if not difference <= TOLERANCE:
        raise UserError(f"{kind}: the written graph differs from the model by {difference:.2g}, more than {TOLERANCE}")
    return Written(path, difference)


def check_packages(kind: str) -> None:
    """Raises UserError where what `kind` needs is not installed."""
    needed = ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {kind} needs {', '.join(missing)}: pip install -c constraints.txt -e '.[onnx]'")


def example_draws(flow: IntegrationFlow, size: int) -> Draws:
    """What `size` samples start from, their conditions as training draws them: with the guidance scale all over."""
    kind = flow.condition_kind
    condition = None if kind is None else kind.draw(generator=Streams(0, "condition", range(size)))
    common = {"seed": 0, "device": torch.device("cpu"), "condition": condition}
    return Draws.of(flow.dynamics, data_shape(flow), range(size), **common)


def named_example(flow: IntegrationFlow, size: int) -> dict[str, Tensor]:
    """x_T of `size` samples and, where the flow takes them, x_anchor and the condition's tensors, by input."""
    draws = example_draws(flow, size)
    inputs = {"x_T": draws.x_T, "x_anchor": draws.x_anchor} if flow.takes_anchor else {"x_T": draws.x_T}
    told = {} if draws.condition is None else draws.condition.tensors()
    return inputs | {INPUTS.get(name, name): x for name, x in told.items()}


def example(flow: IntegrationFlow, size: int) -> tuple[Tensor, ...]:
    """The inputs of `named_example` in order."""
    return tuple(named_example(flow, size).values())


def _write_pt2(module: OneEvaluation, path: Path, about: str) -> None:
    inputs = example(module.flow, TRACED)
    batch = torch.export.Dim("batch", min=1)
    first, *rest = ({0: batch} for _ in inputs)
    program = torch.export.export(module, inputs, dynamic_shapes=(first, tuple(rest)))
    torch.export.save(program, path, extra_files={DESCRIPTION: about})


def _open_pt2(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs)


def _write_onnx(module: OneEvaluation, path: Path, about: str) -> None:
    inputs = example(module.flow, TRACED)
    batch = torch.export.Dim("batch", min=1)
    first, *rest = ({0: batch} for _ in inputs)
    program = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        dynamic_shapes=(first, tuple(rest)),
        input_names=list(named_example(module.flow, 1)),
        output_names=["x_0_hat"],
        verbose=False,
    )
    program.model.metadata_props["ifm"] = about
    program.save(path, external_data=sum(w.nbytes for w in module.state_dict().values()) > ONE_FILE)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda inputs: torch.from_numpy(
        session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
