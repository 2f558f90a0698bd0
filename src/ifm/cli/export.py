"""`ifm export`: a trained flow as a folder for diffusers, as an ONNX or a pt2 graph, with a model card."""

import argparse
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ifm.cli.options import check_writable, local_path
from ifm.errors import UserError

if TYPE_CHECKING:
    from ifm.model import IntegrationFlow

FORMATS = ("diffusers", "flowmap", "onnx", "pt2")
UNKNOWN = "path/to/this/folder"  # in the card's code, for a name that would need escaping


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_ID", help="a flow's folder (models/flow/ve), or a Hub id owner/name")
    add("--revision", metavar="NAME", help="of a Hub id: branch, tag or commit")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=local_path, metavar="FOLDER", help="where to write; new or empty")
    where.add_argument(
        "--space", type=local_path, metavar="FOLDER", help="likewise: a Space of the Hub, the demo's page"
    )
    add("--format", choices=FORMATS, help=f"of --out (default: {FORMATS[0]})")
    add("--teacher", metavar="DIR_OR_ID", help="of --space: shown beside the flow")
    add("--evaluation", type=local_path, metavar="FILE.json", help="for the card: reports/metrics/ve.json")
    add("--grid", type=local_path, metavar="FILE.png", help="for the card; default: the model's samples of seed 0")
    add("--title", metavar="TEXT", help="of the card; default: the folder's name")
    add("--dataset", metavar="TEXT", help="for the card: what it was trained on, best as a Hub id")
    add("--license", metavar="ID", help="for the card, as the Hub names it: apache-2.0, cc-by-4.0, ...")
    add("--push-to-hub", metavar="ID", help="upload to owner/name, as who is logged in (hf auth login, or HF_TOKEN)")
    add("--private", action="store_true", default=None, help="with --push-to-hub: make a new repository private")


def run(given: argparse.Namespace) -> None:
    """A trained flow as a folder for diffusers, ONNX or pt2, with a model card; to the Hub on demand."""
    from ifm.use import card

    _check(given)
    if given.space is not None:
        _space(given)
        return
    evaluation = None if given.evaluation is None else card.read_evaluation(given.evaluation)
    from ifm.files import fresh_folder, write_text
    from ifm.use import graphs, loading, models, pictured, usage

    graphs.check_packages(given.format)
    model = loading.find(given.model, revision=given.revision)
    flow = models.usable(loading.load_any(model, named=given.model))
    _check_model(given, flow)
    where = given.push_to_hub or given.out.resolve().name
    with fresh_folder(given.out) as folder:
        difference = _write(given.format, flow, model, folder)
        picture, caption = _picture(given.grid, flow, folder)
        text = card.model_card(
            loading.describe(model),
            title=given.title or given.out.resolve().name,
            usage=usage.code(given.format, flow, where=where if re.fullmatch(r"[\w./-]+", where) else UNKNOWN),
            library={"diffusers": "diffusers", "flowmap": "diffusers", "onnx": "onnx"}.get(given.format),
            data=given.dataset,
            license_id=given.license,
            evaluation=evaluation,
            picture=picture,
            caption=caption,
            classes=pictured.classes_of(flow),
        )
        write_text(folder / "README.md", text)
    print(f"{given.out}: {given.format}; read again, it differs from the model by at most {difference:.2g}", end=" ")
    print(f"(allowed: {graphs.TOLERANCE}, data in [-1, 1])")
    if given.push_to_hub:
        from ifm.use.publishing import push

        print(f"pushed: {push(given.out, given.push_to_hub, private=given.private)}")


def _check(given: argparse.Namespace) -> None:
    """Raises UserError for options that would fail in the end. It puts defaults in place."""
    option, out = ("--out", given.out) if given.space is None else ("--space", given.space)
    theirs = ("teacher",) if given.space is None else ("format", "evaluation", "grid", "dataset")
    for name in theirs:
        if getattr(given, name) is not None:
            raise UserError(f"--{name}: is not for {option}, but for {'--space' if given.space is None else '--out'}")
    given.format = given.format or FORMATS[0]
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{option} {out}: is there and not an empty folder; name another")
    check_writable(option, out)
    if given.grid is not None:
        try:
            with open(given.grid, "rb") as file:
                is_png = file.read(8) == b"\x89PNG\r\n\x1a\n"
        except OSError as error:
            raise UserError(f"--grid {given.grid}: cannot be read") from error
        if not is_png:
            raise UserError(f"--grid {given.grid}: is no PNG")
    if given.private and not given.push_to_hub:
        raise UserError("--private: goes with --push-to-hub")
    if given.push_to_hub:
        from ifm.use.publishing import check_login

        check_login(given.push_to_hub)


def _space(given: argparse.Namespace) -> None:
    """A folder that runs as a Space."""
    from ifm.demo.models import Models
    from ifm.files import fresh_folder
    from ifm.use import loading, space
    from ifm.use.publishing import push

    space.version("gradio")
    model = loading.find(given.model, revision=given.revision)
    teacher = None if given.teacher is None else loading.find(given.teacher)
    Models([str(model)], teacher=None if teacher is None else str(teacher))  # what cannot be shown is said here
    title = " ".join((given.title or given.space.resolve().name).split())
    with fresh_folder(given.space) as folder:
        space.write_folder(model, folder, title=title, license_id=given.license, teacher=teacher)
    print(f"{given.space}: a Space; python {given.space}/app.py starts it here, on 127.0.0.1")
    if given.push_to_hub:
        print(f"pushed: {push(given.space, given.push_to_hub, private=given.private, space=True)}")


def _check_model(given: argparse.Namespace, model: object) -> None:
    """Raises UserError for a model that the format cannot hold."""
    from ifm.model import IntegrationFlow

    if not isinstance(model, IntegrationFlow):
        raise UserError(f"{given.model}: holds a teacher; ifm export takes flows")
    if given.format == "diffusers" and type(model.network).__name__ == "Transformer":
        raise UserError(f"{given.model}: diffusers has no class for ifm's transformer; use --format onnx or pt2")
    from ifm.use import drawing

    kind = drawing.modality(model)
    if kind.name != "images" and (given.format == "diffusers" or (given.format == "flowmap" and kind.audible)):
        raise UserError(f"{given.model}: {kind.noun} have no pipeline in diffusers; use --format onnx or pt2")
    if given.format == "flowmap" and model.decoder is not None:
        raise UserError(f"{given.model}: makes latents, which flowmap does not decode; use --format diffusers")


def _write(form: str, flow: "IntegrationFlow", model: Path, folder: Path) -> float:
    """Writes the format's files; the largest difference from the model."""
    if form == "diffusers":
        from ifm.use.diffusers_folder import write_folder

        return write_folder(flow, model, folder)
    if form == "flowmap":
        from ifm.use import flowmap

        return flowmap.write_folder(flow, model, folder)
    from ifm.use import loading
    from ifm.use.graphs import write_graph

    return write_graph(flow, folder, kind=form, description=loading.describe(model)).largest_difference


def _picture(grid: Path | None, flow: "IntegrationFlow", folder: Path) -> tuple[str | None, str]:
    """The card's picture, copied or drawn, and its caption; none for points."""
    from ifm.use.pictured import PICTURE, save_picture

    if grid is None:
        return save_picture(flow, folder)
    shutil.copyfile(grid, folder / PICTURE)
    return PICTURE, "Samples."
