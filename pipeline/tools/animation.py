"""`python -m pipeline.tools.animation`: noise becomes digits in one step, the teacher's path beside it, as a GIF.

The flow is the one that comes with the package, or another by --model; the teacher is --teacher, or lies beside the
flow. Without one the flow stands alone. The README shows the picture between its marks.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ifm import modalities
from ifm.cli.options import local_path
from ifm.demo.models import teacher_beside
from ifm.errors import UserError, in_a_line
from ifm.files import atomic_path, in_words, write_text
from ifm.modalities import at_rest
from ifm.modalities.pictures import grid
from ifm.model import IntegrationFlow
from ifm.sampling import Draws
from ifm.solver import at_time, heun_steps, solve_states
from ifm.use import loading, shipped
from ifm.use.asked import condition_of
from ifm.use.drawing import choose, data_shape
from ifm.use.models import usable
from pipeline.tools.marks import between

README, PICTURE, MARK = Path("README.md"), Path("docs/images/one-step.gif"), "<!-- animation -->"
TEXT = "![Noise becomes digits in one evaluation of the flow, beside the teacher's path](docs/images/one-step.gif)"
MOST = 1_000_000  # bytes
ROWS, COLUMNS, PIXELS, COLOURS = 4, 10, 32, 16  # tiles; a tile's width at least; shades of grey
GAP, BAND, FONT = 16, 26, 15  # between panels, height of a title, its letters
FIRST, STEP, LAST = 900, 160, 1800  # milliseconds that a frame is shown: noise, on the way, at the end


def frames(
    flow: IntegrationFlow, teacher: loading.Model | None, *, seeds: int, nfe: int
) -> Iterator[tuple[Image.Image, int]]:
    """Pictures and how long each is shown: for every seed the noise, then the teacher's states beside the samples."""
    n = ROWS * COLUMNS
    for seed in range(seeds):
        classes = None if flow.condition_kind is None else "all"
        how = {"seed": seed, "device": torch.device("cpu")}
        told = condition_of(flow, n, classes=classes, guidance=None, seed=seed)
        draws = Draws.of(flow.dynamics, data_shape(flow), range(n), condition=told, **how)
        noise = shown(flow, draws.x_T, flow.dynamics.t_max)
        with torch.inference_mode():
            samples = at_rest(choose(flow).run(draws))
        if teacher is None:
            yield panels([("flow: noise", noise)]), FIRST
            yield panels([("flow: 1 evaluation", samples)]), LAST
            continue
        yield panels([("flow: noise", noise), ("teacher: noise", noise)]), FIRST
        of_teacher = None if teacher.condition_kind is None else condition_of(teacher, n, classes=classes, seed=seed)
        for evaluations, state in path(teacher, draws.x_T, nfe=nfe, condition=of_teacher):
            both = [("flow: 1 evaluation", samples), (f"teacher: {evaluations} evaluations", state)]
            yield panels(both), STEP if evaluations < nfe else LAST


def path(teacher: loading.Model, x_T: Tensor, *, nfe: int, condition: object) -> Iterator[tuple[int, np.ndarray]]:
    """The teacher's states after each step of Heun's, as pictures, with the evaluations up to there."""
    times = teacher.dynamics.solver_times(heun_steps(nfe))
    states = solve_states(teacher, x_T, dynamics=teacher.dynamics, times=times, condition=condition)
    for i, (x, t) in enumerate(zip(states, times.tolist(), strict=True)):
        if i:
            yield min(2 * i, nfe), shown(teacher, x, t)


def shown(model: loading.Model, x: Tensor, t: float) -> np.ndarray:
    """x at time t in units of its scale there, sqrt(a^2 sigma_data^2 + b^2), as data has sigma_data: uint8."""
    c = model.dynamics.coefficients(at_time(x[:1].double(), t))  # [1]
    sigma = model.dynamics.sigma_data
    return at_rest((x * (sigma / (c.a**2 * sigma**2 + c.b**2).sqrt().float())).clamp(-1, 1))


def panels(parts: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Titles and tiles, left to right, in few shades of grey."""
    tiles = [_tiles(images) for _, images in parts]
    width = sum(one.width for one in tiles) + GAP * (len(tiles) + 1)
    canvas = Image.new("L", (width, BAND + tiles[0].height + GAP), 255)
    left, font = GAP, ImageFont.load_default(FONT)
    for (title, _), picture in zip(parts, tiles, strict=True):
        ImageDraw.Draw(canvas).text((left, BAND / 2), title, fill=26, font=font, anchor="lm")
        canvas.paste(picture, (left, BAND))
        left += picture.width + GAP
    return canvas.quantize(COLOURS)


def _tiles(images: np.ndarray) -> Image.Image:
    scale = max(1, PIXELS // images.shape[-1])
    enlarged = images.repeat(scale, axis=2).repeat(scale, axis=3)
    return Image.fromarray(grid(enlarged, columns=COLUMNS, pad=2)[2:-2, 2:-2]).convert("L")


def gif(shots: list[tuple[Image.Image, int]]) -> bytes:
    """One file that runs in a circle. Raises UserError where it is too large for a README."""
    data = io.BytesIO()
    (first, _), *rest = shots
    more = [picture for picture, _ in rest]
    first.save(data, "GIF", save_all=True, append_images=more, duration=[time for _, time in shots], loop=0)
    if data.tell() > MOST:
        raise UserError(f"the picture takes {in_words(data.tell())}, at most {in_words(MOST)}; lower --seeds or --nfe")
    return data.getvalue()


def into_readme(text: str) -> str:
    """The README's text with the picture between its marks."""
    return between(text, MARK, TEXT, name=str(README))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.tools.animation", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", default=shipped.FIRST, metavar="DIR_OR_ID", help="a flow of images (default: %(default)s)")
    add("--teacher", metavar="DIR_OR_ID", help="default: beside the flow, if there is one")
    add("--seeds", type=int, default=2, help="default: %(default)s")
    add("--nfe", type=int, default=17, help="evaluations of the teacher, odd (default: %(default)s)")
    add("--out", type=local_path, default=PICTURE, help="default: %(default)s, which the README then shows")
    given = parser.parse_args()
    try:
        folder = loading.find(given.model)
        flow = usable(loading.load_any(folder, named=given.model))
        images = modalities.of(loading.describe(folder)).name == "images"
        if not isinstance(flow, IntegrationFlow) or not images or flow.decoder is not None:
            raise UserError(f"{given.model}: holds no flow of images")
        beside = loading.find(given.teacher) if given.teacher else teacher_beside(folder)
        teacher = None if beside is None else usable(loading.load_any(beside))
        data = gif(list(frames(flow, teacher, seeds=given.seeds, nfe=given.nfe)))
    except UserError as error:
        sys.exit(f"animation: {in_a_line(error)}")
    with atomic_path(given.out, size=len(data)) as temporary:
        temporary.write_bytes(data)
    if given.out == PICTURE and README.is_file():
        write_text(README, into_readme(README.read_text(encoding="utf-8")))
    print(f"{given.out}: {in_words(len(data))}, {'beside the teacher' if teacher else 'the flow alone'}")


if __name__ == "__main__":
    main()
