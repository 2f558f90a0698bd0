"""`ifm sample`: samples of a trained model as a picture, an array or a folder of images."""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifm.cli.options import at_least, check_writable, hardware, number
from ifm.errors import UserError

if TYPE_CHECKING:
    from ifm.sampling import Sampler
    from ifm.use.loading import Model

COUNT = 64
SAMPLERS = ("selected", "one_step", "anchor", "renoise", "chain")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_ID", help="a model's folder (models/flow/ve), digits, or a Hub id")
    add("--revision", metavar="NAME", help="of a Hub id: branch, tag or commit")
    add(
        "--n",
        "--count",
        dest="n",
        type=at_least(1),
        metavar="N",
        help=f"how many samples (default: {COUNT}; of several classes as many of each, at least one)",
    )
    add(
        "--class",
        dest="classes",
        metavar="CLASS",
        help="of a model with classes: numbers or names, which the samples have in turn: 3, 0-9, cat,dog or all "
        "(default: drawn by the data's shares)",
    )
    add(
        "--guidance",
        type=number,
        metavar="W",
        help="of a flow that takes a range of scales, or of a teacher at twice the evaluations: 1 is the class's own "
        "samples, more leads further (default: 1, or what the flow has inside)",
    )
    add("--steps", type=at_least(1), metavar="N", help="evaluations of a flow (default: 1)")
    add("--sampler", choices=SAMPLERS, help="of a flow (default: selected, which measured best for so many steps)")
    add("--nfe", type=at_least(1), metavar="N", help="evaluations of a teacher, odd (default: 35)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="default: %(default)s")
    add("--batch-size", type=at_least(1), default=200, metavar="N", help="samples at a time (default: %(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add(
        "--out",
        type=os.path.expanduser,
        required=True,
        metavar="PATH",
        help="samples.npy; of images also grid.png or a folder/ for a PNG each, of sounds samples.wav or a folder/ "
        "for a WAV each, of points samples.csv or .parquet, of texts samples.txt or .jsonl",
    )


def run(given: argparse.Namespace) -> None:
    """Samples of a trained model, without the pipeline."""
    from ifm.modalities import files

    out, kind = _output(given.out)
    from ifm.conditions.asking import in_words
    from ifm.conditions.classes import Classes
    from ifm.sampling import asked_of
    from ifm.use import drawing, loading
    from ifm.use.asked import check_guidance, class_numbers, condition_of

    folder = loading.find(given.model, revision=given.revision)
    model = loading.load_any(folder, named=given.model)
    numbers = _asked("--class", given.classes, class_numbers, model, given.model)
    _asked("--guidance", given.guidance, check_guidance, model, given.model)
    sampler = _sampler(given, model)
    shape = drawing.sample_shape(model)
    modality = drawing.modality(model)
    write = files.writers(modality.name, model.of_data).get(kind)
    if write is None:
        use = files.in_words(files.writers(modality.name))
        raise UserError(f"--out {out}: {given.model} makes {modality.described(shape)}; write them to {use}")
    of = 1 if numbers is None else len(numbers)
    n = given.n or max(COUNT // of, 1) * of
    condition = condition_of(model, n, classes=numbers, guidance=given.guidance, seed=given.seed)
    asked = "" if given.guidance is None else f", guidance {given.guidance:g}"
    if numbers is not None:
        names = model.condition_kind.classes
        asked = f", {in_words(numbers, names)}{asked}"
        if kind == ".png":
            write = partial(
                files.write_class_grid, labels=condition.labels.tolist(), classes=names, pictures=modality.pictures
            )
    if kind == "/" and modality.audible and isinstance(model.condition_kind, Classes):
        told = asked_of(model.condition_kind, range(n), seed=given.seed) if condition is None else condition
        write = partial(write, names=[model.condition_kind.classes[label] for label in told.labels.tolist()])
    device, accelerator = hardware(given.device)
    drawn = drawing.batches(
        model.to(device),
        sampler,
        n,
        seed=given.seed,
        batch_size=given.batch_size,
        accelerator=accelerator,
        condition=condition,
    )
    try:
        if accelerator is None or accelerator.is_main_process:
            write(out, ((members, modality.own(x, model.of_data)) for members, x in drawn), n, shape)
            how = f"{sampler.title}, {sampler.way.title if sampler.way else sampler.sampler}, seed {given.seed}{asked}"
            print(f"{out}: {n} {modality.described(shape)} of {given.model}, {how}")
        else:
            for _ in drawn:  # each process works its share of the batches
                pass
    except ValueError as error:
        raise UserError(f"{given.model}: {error}") from error
    if accelerator is not None:
        accelerator.end_training()


def _sampler(given: argparse.Namespace, model: "Model") -> "Sampler":
    """How to sample. Raises UserError for options of the other kind of model."""
    from ifm.model import IntegrationFlow
    from ifm.use.drawing import choose

    flow = isinstance(model, IntegrationFlow)
    theirs = {"--nfe": given.nfe} if flow else {"--steps": given.steps, "--sampler": given.sampler}
    for option, value in theirs.items():
        if value is not None:
            other = "--steps and --sampler" if flow else "--nfe"
            raise UserError(f"{option}: {given.model} holds a {'flow' if flow else 'teacher'}, which has {other}")
    try:
        return choose(
            model, steps=given.steps or 1, sampler=given.sampler, nfe=given.nfe or 35, guidance=given.guidance
        )
    except ValueError as error:
        raise UserError(f"{given.model}: {error}") from error


def _asked(option: str, value: Any, read: Callable[["Model", Any], Any], model: "Model", named: str) -> Any:
    """What `read` makes of an option's value. Its UserError begins with the option."""
    try:
        return read(model, value)
    except UserError as error:
        raise UserError(f"{option} {value}: {error} ({named})") from error


def _output(text: str) -> tuple[Path, str]:
    """Where to write, and its suffix ("/": a folder). Raises UserError for what could not be written in the end."""
    from ifm.modalities import MODALITIES, files

    out = Path(text)
    kind = "/" if text.endswith("/") or out.is_dir() or not out.suffix else out.suffix.lower()
    if kind == "/" and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {text}: is there and not an empty folder; name another")
    known = {suffix for name in MODALITIES for suffix in files.writers(name)}
    if kind not in known:
        raise UserError(f"--out {text}: must be {files.in_words(known)}")
    check_writable("--out", out)
    return out, kind
