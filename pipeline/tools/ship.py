"""`python -m pipeline.tools.ship MODEL_FOLDER`: a trained flow as one that comes with the package, in float16.

It writes src/ifm/shipped/NAME: the network's files, ifm.json with the figures that its evaluation had, a card with a
picture, and SHA256SUMS. The folder is of a finished run, whose figures lie in reports/metrics beside its models/.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ifm import pretrained
from ifm.cli.options import local_path
from ifm.errors import UserError, in_a_line
from ifm.files import fresh_folder, in_words, joint_sha256, write_json, write_text
from ifm.metrics import catalogue
from ifm.model import IntegrationFlow
from ifm.networks.base import CONFIG
from ifm.use import card, loading, pictured, shipped
from ifm.use.models import usable

MOST = 1_500_000  # bytes, of all files together
COMPARED = 256  # samples
MOST_APART = 2.0  # mean difference of their pixels, in levels of 255
LARGEST = torch.finfo(torch.float16).max
DATA = "scikit-learn's digits (UCI Optical Recognition of Handwritten Digits)"
USAGE = """```python
from ifm import IntegrationFlow

flow = IntegrationFlow.from_pretrained("{name}")
images = flow.sample(16)  # uint8 [16, C, H, W], in one evaluation
{classes}```

`ifm sample --model {name} --out grid.png` and `ifm demo` take it too. Weights are stored in float16 and computed with
in float32. `python -m pipeline.tools.ship` made this folder from a run of the pipeline."""
CLASSES = "images = flow.sample(16, classes=3)  # of one class\n"


def ship(
    model: Path, *, evaluation: Path, name: str = shipped.FIRST, to: Path = shipped.FOLDER, data: str = DATA
) -> Path:
    """Writes the folder whole or not at all. Raises UserError for no flow, and for one that float16 changes."""
    flow = usable(loading.load_any(model))
    if not isinstance(flow, IntegrationFlow):
        raise UserError(f"{model}: holds a teacher; flows are shipped")
    found = card.read_evaluation(evaluation)
    with fresh_folder(to / name) as folder:
        weights = [in_half(file, folder / file.name) for file in sorted(model.glob("*.safetensors"))]
        (folder / CONFIG).write_bytes((model / CONFIG).read_bytes())
        description = pretrained.describe(model)
        source = {"sha256": description["sha256"], "samples_differ_by": None}
        description |= {"sha256": joint_sha256(weights), "made_from": source, "evaluation": figures(found)}
        write_json(folder / pretrained.DESCRIPTION, description)
        source["samples_differ_by"] = apart(flow, usable(loading.load_any(folder)))
        write_json(folder / pretrained.DESCRIPTION, description)
        picture, caption = pictured.save_picture(flow, folder)
        classes = pictured.classes_of(flow)
        text = card.model_card(
            description,
            title=f"{name}: a small flow to start with",
            usage=USAGE.format(name=name, classes="" if classes is None else CLASSES),
            library=None,
            data=data,
            license_id="apache-2.0",
            evaluation=found,
            picture=picture,
            caption=caption,
            classes=classes,
        )
        write_text(folder / "README.md", text)
        shipped.write_sums(folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > MOST:
            raise UserError(f"{model}: takes {in_words(size)} in float16; at most {in_words(MOST)} are shipped")
    return to / name


def in_half(source: Path, target: Path) -> Path:
    """A file of weights once more, in float16, its metadata with it. Raises UserError where they do not fit."""
    with safe_open(source, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, x in tensors.items():
        if x.is_floating_point() and not float(x.abs().max()) <= LARGEST:
            raise UserError(f"{source}: {name} does not fit float16")
    save_file({name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}, target, metadata)
    return target


def apart(flow: IntegrationFlow, other: IntegrationFlow) -> float:
    """Mean difference of two flows' samples from the same noise, in one step. Raises UserError where it is large."""
    found = [one.sample(COMPARED).astype(float) for one in (flow, other)]
    unit = 1.0 if found[0].ndim == 4 else 255 / 2  # points: in [-1, 1], roughly
    difference = float(np.abs(found[0] - found[1]).mean() * unit)
    if not difference <= MOST_APART:
        raise UserError(f"the flow in float16 makes other samples: {difference:.2g} levels of 255 away on average")
    return round(difference, 4)


def figures(evaluation: card.Evaluation) -> dict[str, Any]:
    """What the flow had: merits by sampler, and the protocol of a card."""
    kept = {"nfe", "n_samples", "seeds", "guidance", *(metric.key for metric in catalogue.merits())}
    rows = {name: row for name, row in evaluation.rows.items() if row.get("model") in ("flow", None)}
    return {
        "figures": {name: {key: value for key, value in row.items() if key in kept} for name, row in rows.items()},
        "protocol": {key: evaluation.protocol[key] for key in card.PROTOCOL if key in evaluation.protocol},
    }


def evaluation_of(model: Path) -> Path:
    """RUN/models/flow/rf -> RUN/reports/metrics/rf.json. Raises UserError where there is none."""
    at = model.resolve()
    file = at.parent.parent.parent / "reports/metrics" / f"{at.name}.json"
    if not file.is_file():
        raise UserError(f"{model}: no figures at {file}; name them by --evaluation")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.tools.ship", description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=local_path, help="a flow's folder of a finished run: RUN/models/flow/rf")
    parser.add_argument("--evaluation", type=local_path, metavar="FILE.json", help="default: RUN/reports/metrics/...")
    parser.add_argument("--name", default=shipped.FIRST, help="by which it is loaded (default: %(default)s)")
    given = parser.parse_args()
    try:
        folder = ship(given.model, evaluation=given.evaluation or evaluation_of(given.model), name=given.name)
    except UserError as error:
        sys.exit(f"ship: {in_a_line(error)}")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {in_words(size)}; from_pretrained({given.name!r}) reads it")


if __name__ == "__main__":
    main()
