"""The small folder that a leg leaves, written as it goes, and what the next leg takes from it.

results.json               what was done, when and how fast; params.yaml; curves; all figures
report.html, grids.png     the pipeline's own page and its side-by-side samples
teacher-1.safetensors ...  averaged weights in bfloat16, in files below 16 MB
flow-1.safetensors ...
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifm.errors import UserError
from ifm.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

FILE = "results.json"
SHARD_BYTES = 16_000_000  # below 16 MiB with its header
CURVE_ROWS = 200  # at most, of each curve


class Results:
    """The folder; every change is written at once."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.values = folder, dict(facts)
        self._write()

    def put(self, **facts: Any) -> None:
        """Sets some values of results.json."""
        self.values |= facts
        self._write()

    def _write(self) -> None:
        write_json(self.folder / FILE, self.values)

    def copy(self, file: Path, name: str) -> None:
        """A file of the work, where it exists."""
        if file.is_file():
            with atomic_path(self.folder / name) as temporary:
                shutil.copyfile(file, temporary)

    def model(self, kind: str, folder: Path) -> None:
        """A saved model's weights in bfloat16, and what its folder says besides."""
        from safetensors import safe_open
        from safetensors.torch import save_file

        tensors = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                tensors |= {f"{file.name}/{name}": opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        for i, shard in enumerate(shards(tensors), start=1):
            with atomic_path(self.folder / f"{kind}-{i}.safetensors") as temporary:
                save_file(shard, temporary)
        self.put(models=self.values.get("models", {}) | {kind: _told(folder)})


def shards(tensors: Mapping[str, "Tensor"]) -> Iterator[dict[str, "Tensor"]]:
    """The tensors in bfloat16 (floats), in order, in parts of at most SHARD_BYTES."""
    import torch

    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        small = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        if part and size + small.nbytes > SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[name] = small.contiguous()
        size += small.nbytes
    yield part


def _told(folder: Path) -> dict[str, Any]:
    """The JSON files of a model's folder, and the metadata of its weights."""
    from safetensors import safe_open

    metadata = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            metadata[file.name] = opened.metadata()
    return {"json": {file.name: read_json(file) for file in folder.glob("*.json")}, "metadata": metadata}


def read(folder: Path) -> dict[str, Any]:
    """results.json of an earlier leg. Raises UserError."""
    try:
        return read_json(folder / FILE)
    except OSError as error:
        raise UserError(f"--from {folder}: has no {FILE}, which a leg leaves; give the --out of one") from error


def restore(folder: Path, kind: str, into: Path) -> bool:
    """Makes a model's folder of what a leg left, in float32; whether it left any. Raises UserError."""
    from safetensors.torch import load_file, save_file

    told = read(folder).get("models", {}).get(kind)
    if told is None:
        return False
    tensors: dict[str, dict[str, Tensor]] = {}
    for file in sorted(folder.glob(f"{kind}-*.safetensors")):
        for name, tensor in load_file(file).items():
            of, _, inner = name.partition("/")
            tensors.setdefault(of, {})[inner] = tensor.float() if tensor.is_floating_point() else tensor
    if tensors.keys() != told["metadata"].keys():
        raise UserError(f"--from {folder}: weights of the {kind} are missing; bring all its {kind}-*.safetensors")
    into.mkdir(parents=True)
    for name, values in tensors.items():
        save_file(values, into / name, metadata=told["metadata"][name])
    for name, values in told["json"].items():
        (into / name).write_text(json.dumps(values), encoding="utf-8")
    return True


def first_checkpoint(kind: str, model: Path, into: Path, *, averages: int = 1) -> None:
    """A checkpoint at step 0 with a saved model's weights, from which a training starts.

    averages: of the weights, which training keeps, as many as it has decays.
    """
    import torch

    from ifm import pretrained
    from ifm.training.checkpoint import Checkpoints, Snapshot, pack

    loaded = {"teacher": pretrained.load_teacher, "flow": pretrained.load_flow}[kind](model)
    weights = [p for p in loaded.parameters() if p.requires_grad]
    tensors = pack(loaded, [p.detach().clone() for p in weights], torch.optim.AdamW(weights))
    for k in range(averages - 1):
        tensors |= {f"average.{k}.{i}": p.detach().clone() for i, p in enumerate(weights)}
    record = {"step": 0, "history": [], "seconds": 0.0, "scaler": None}
    Checkpoints(into).save(0, Snapshot(tensors, record))


def curve(file: Path) -> list[dict[str, float]]:
    """A training curve, thinned out to CURVE_ROWS rows."""
    import csv

    if not file.is_file():
        return []
    with open(file, encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    every = -(-len(rows) // CURVE_ROWS)
    kept = rows[::every] if every > 1 else rows
    return [{key: float(value) for key, value in row.items() if value} for row in kept]
