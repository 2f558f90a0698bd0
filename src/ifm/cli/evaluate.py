"""`ifm evaluate`: figures of images or points, a folder, an array or a table, against real ones."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ifm.cli.options import at_least, check_writable, hardware, local_path
from ifm.errors import UserError
from ifm.files import write_json

MEASURES = {
    "kid_subsets": 100,
    "kid_subset_size": 1000,
    "neighbours": 5,
    "neighbour_samples": 10_000,
    "sliced_projections": 256,
    "seed": 0,
}
RESIZE = ("clean", "legacy", "pytorch")  # ifm.metrics.statistics.MODES, without importing it
EXTRACTORS = ("inception", "dinov2", "pixels", "classifier")


def run(given: argparse.Namespace) -> None:
    """Figures of images or points, a folder or an array of them, against real ones."""
    _check_outputs(given)
    from ifm.metrics.collections import Resize
    from ifm.metrics.comparison import Measures
    from ifm.metrics.request import Request
    from ifm.metrics.scoring import score
    from ifm.metrics.statistics import write_statistics
    from ifm.modalities.pictures import save_grid

    device, accelerator = hardware(given.device)
    found = score(
        Request(
            samples=given.samples,
            reference=given.reference,
            measures=Measures(**_measures(given)),
            train=given.train,
            unseen=given.unseen,
            extractor=given.extractor,
            mode=given.resize,
            weights=given.weights,
            weights_sha256=given.weights_sha256,
            resize=None if given.image_size is None else Resize(given.image_size, given.resample),
            value_range=given.range,
            sets=given.sets,
            batch_size=given.batch_size,
            pairs=given.pairs is not None,
        ),
        device=device,
        accelerator=accelerator,
    )
    if accelerator is not None:
        accelerator.end_training()
        if not accelerator.is_main_process:
            return
    if given.write_statistics is not None and found.real is None:
        raise UserError(f"--write-statistics: is for images, and --reference {given.reference} holds none")
    if given.out is not None:
        write_json(given.out, {"protocol": found.protocol, "warnings": found.warnings, "figures": found.figures})
    if given.write_statistics is not None:
        write_statistics(given.write_statistics, found.real)
    if given.pairs is not None:
        save_grid(found.pairs, given.pairs, columns=len(found.pairs) // 2)
    parts = [_protocol_text(found.protocol), _warnings_text(found.warnings), _figures_text(found.figures)]
    print("\n\n".join(filter(None, parts)))


def _measures(given: argparse.Namespace) -> dict[str, int]:
    """How figures are computed: by the options, else as the stage `evaluate` does where the reference is its own."""
    from ifm import config

    found = dict(MEASURES)
    params = Path(os.path.abspath(given.reference)).parents[1:2]  # of <project>/data/reference
    if params and (given.reference / "metadata.json").is_file() and (params[0] / "params.yaml").is_file():
        with suppress(config.ConfigError):
            stage = config.load(params[0] / "params.yaml")
            found |= {name: getattr(stage.evaluate, name) for name in MEASURES if name != "seed"} | {"seed": stage.seed}
    return found | {name: getattr(given, name) for name in MEASURES if getattr(given, name) is not None}


def add_options(parser: argparse.ArgumentParser) -> None:
    images = (
        "a folder of PNG, JPEG or WebP files, an .npy or an .npz; points: an .npy or a .csv; texts: an .npy or a "
        ".jsonl; sounds: an .npy or a folder of recordings"
    )
    add = parser.add_argument
    real = f"real ones: {images}; or data/reference; or an .npz of their statistics, mu and sigma"
    add("--samples", type=local_path, metavar="PATH", help=f"what is judged: {images}")
    add("--reference", type=local_path, required=True, metavar="PATH", help=real)
    add("--train", type=local_path, metavar="PATH", help="training images, to look for copies of them")
    add("--unseen", type=local_path, metavar="PATH", help="held-out real images, which tell how near is too near")
    add("--extractor", choices=EXTRACTORS, help="default: the reference folder's, else inception")
    add("--resize", choices=RESIZE, help="inception's 299 x 299: clean-fid's (default), or EDM's and StyleGAN's")
    add("--weights", type=local_path, metavar="PATH", help="the extractor's weights: a file or its folder")
    add("--weights-sha256", type=_sha256, metavar="HEX", help="their digest; default: the published file's")
    add("--image-size", type=at_least(1), metavar="N", help="resize all images to N x N, the largest centred square")
    add("--resample", choices=("lanczos", "bicubic", "box"), default="lanczos", help="how (default: %(default)s)")
    add("--range", choices=("unit", "signed"), help="of arrays of floats: [0, 1] or [-1, 1]")
    add("--sets", type=at_least(1), default=1, metavar="K", help="cut the samples into K sets, for means and sd")
    add("--batch-size", type=at_least(1), default=256, metavar="N", help="images at a time (default: %(default)s)")
    default = {name: f"default: params.yaml's for data/reference, else {value:,}" for name, value in MEASURES.items()}
    add("--kid-subsets", type=at_least(1), metavar="N", help=default["kid_subsets"])
    add("--kid-subset-size", type=at_least(2), metavar="N", help=default["kid_subset_size"])
    add("--neighbours", type=at_least(1), metavar="K", help=f"of precision and recall; {default['neighbours']}")
    add("--neighbour-samples", type=at_least(2), metavar="N", help=f"the most; {default['neighbour_samples']}")
    add("--sliced-projections", type=at_least(1), metavar="N", help=f"of points; {default['sliced_projections']}")
    add("--seed", type=at_least(0), metavar="N", help=f"of KID's subsets; {default['seed']}")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add("--out", type=local_path, metavar="FILE.json", help="where to write protocol and figures")
    statistics = "where to write mu and sigma of the reference, as EDM and clean-fid do; --samples may be left out"
    add("--write-statistics", type=local_path, metavar="FILE.npz", help=statistics)
    add("--pairs", type=local_path, metavar="FILE.png", help="a picture of the samples nearest to training images")


def _check_outputs(given: argparse.Namespace) -> None:
    """Raises UserError where there is nothing to do, or a result could not be written in the end."""
    if given.samples is None and given.write_statistics is None:
        raise UserError("--samples is missing: give what is to be judged, or --write-statistics for the reference's")
    for option, suffix in (("--out", ".json"), ("--pairs", ".png"), ("--write-statistics", ".npz")):
        path = getattr(given, option.removeprefix("--").replace("-", "_"))
        if path is None:
            continue
        if path.suffix.lower() != suffix or path.is_dir():
            raise UserError(f"{option} {path}: must be a file named *{suffix}")
        check_writable(option, path)


def _protocol_text(protocol: Mapping[str, Any]) -> str:
    rows = {name: _plain(value) for name, value in protocol.items() if value is not None}
    width = max(len(name) for name in rows)
    return "\n".join(["protocol", *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def _plain(value: Any) -> str:
    """A value of the protocol in a line."""
    from ifm import modalities

    if isinstance(value, Mapping) and "count" in value and "statistics" not in value:
        noun = modalities.of(value).noun if "shape" in value else "images"
        shape = f" of {' x '.join(map(str, value['shape']))}" if "shape" in value else ""
        other = f", {value['passed_over']} other files passed over" if value.get("passed_over") else ""
        split = f", split {value['split']}" if "split" in value else ""
        return f"{value['path']}: {value['count']} {noun}{shape}{split}{other}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def _warnings_text(warnings: Sequence[str]) -> str:
    return "\n".join(["warnings", *(f"  {text}" for text in warnings)]) if warnings else ""


def _figures_text(figures: Mapping[str, Any]) -> str:
    """A line for each figure, its standard deviation over the sets beside it; shares of classes are for the JSON."""
    shown = {n: v for n, v in figures.items() if isinstance(v, int | float) and not n.endswith("_sd")}
    if not shown:
        return ""
    width = max(len(name) for name in shown)
    lines = []
    for name, value in shown.items():
        sd = f" ± {figures[f'{name}_sd']:.2g}" if f"{name}_sd" in figures else ""
        lines.append(f"  {name:<{width}}  {value:>9.4g}{sd}")
    return "\n".join(["figures", *lines])


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"must be a sha256, 64 digits 0-9 and a-f, got {text!r}")
    return text.lower()
