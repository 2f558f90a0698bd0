"""`ifm sample`: samples of a trained model as a picture, an array or a folder of images."""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ifm.cli.options import at_least, check_writable, hardware
from ifm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from ifm.sampling import Sampler
    from ifm.use.loading import Model

Batches = Iterator["tuple[range, np.ndarray]"]
SAMPLERS = ("one_step", "anchor", "renoise", "chain")
COLUMNS = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_ID", help="a model's folder (models/flow/ve), or a Hub id owner/name")
    add("--revision", metavar="NAME", help="of a Hub id: branch, tag or commit")
    add(
        "--n",
        "--count",
        dest="n",
        type=at_least(1),
        default=64,
        metavar="N",
        help="how many samples (default: %(default)s)",
    )
    add("--steps", type=at_least(1), metavar="N", help="evaluations of a flow (default: 1)")
    add("--sampler", choices=SAMPLERS, help="of a flow; for several steps: chain, anchor or renoise, what it can do")
    add("--nfe", type=at_least(1), metavar="N", help="evaluations of a teacher, odd (default: 35)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="default: %(default)s")
    add("--batch-size", type=at_least(1), default=200, metavar="N", help="samples at a time (default: %(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add(
        "--out",
        type=os.path.expanduser,
        required=True,
        metavar="PATH",
        help="grid.png, samples.npy, or a folder/ for a PNG each",
    )


def run(given: argparse.Namespace) -> None:
    """Samples of a trained model, without the pipeline."""
    out, write = _output(given.out)
    from ifm.use import drawing, loading

    folder = loading.find(given.model, revision=given.revision)
    model = loading.load_any(folder, named=given.model)
    sampler = _sampler(given, model)
    shape = drawing.data_shape(model)
    if len(shape) == 1 and write is not _array:
        raise UserError(f"--out {out}: {given.model} makes points of {shape[0]} dimensions; write them to a .npy")
    device, accelerator = hardware(given.device)
    drawn = drawing.batches(
        model.to(device), sampler, given.n, seed=given.seed, batch_size=given.batch_size, accelerator=accelerator
    )
    try:
        if accelerator is None or accelerator.is_main_process:
            write(out, drawn, given.n, shape)
            what = f"{'images' if len(shape) == 3 else 'points'} [{', '.join(map(str, shape))}]"
            print(f"{out}: {given.n} {what} of {given.model}, {sampler.title}, {sampler.sampler}, seed {given.seed}")
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
        return choose(model, steps=given.steps or 1, sampler=given.sampler, nfe=given.nfe or 35)
    except ValueError as error:
        raise UserError(f"{given.model}: {error}") from error


def _output(text: str) -> "tuple[Path, Callable[[Path, Batches, int, tuple[int, ...]], None]]":
    """Where to write, and how. Raises UserError for what could not be written in the end."""
    out = Path(text)
    if text.endswith("/") or out.is_dir() or not out.suffix:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"--out {text}: is there and not an empty folder; name another")
        write = _folder
    elif out.suffix.lower() in (".png", ".npy"):
        write = _picture if out.suffix.lower() == ".png" else _array
    else:
        raise UserError(f"--out {text}: must be a NAME.png, a NAME.npy or a folder")
    check_writable("--out", out)
    return out, write


def _picture(out: Path, drawn: Batches, n: int, shape: tuple[int, ...]) -> None:
    import numpy as np

    from ifm.modalities.pictures import save_grid

    save_grid(np.concatenate([images for _, images in drawn]), out, columns=min(COLUMNS, n))


def _array(out: Path, drawn: Batches, n: int, shape: tuple[int, ...]) -> None:
    import numpy as np

    from ifm.files import atomic_path
    from ifm.sampling import sample_dtype

    with atomic_path(out) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", dtype=sample_dtype(shape), shape=(n, *shape))
        for members, samples in drawn:
            array[members.start : members.stop] = samples
        array.flush()


def _folder(out: Path, drawn: Batches, n: int, shape: tuple[int, ...]) -> None:
    from PIL import Image

    from ifm.files import fresh_folder

    with fresh_folder(out) as folder:
        for members, images in drawn:
            for i, image in zip(members, images, strict=True):
                pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)  # [H, W] or [H, W, 3]
                Image.fromarray(pixels).save(folder / f"{i:06d}.png")
