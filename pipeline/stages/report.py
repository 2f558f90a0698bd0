"""report: one page, and the figures in long form."""

import importlib.metadata
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ifm import modalities
from ifm.config import Config
from ifm.data.splits import open_split
from ifm.data.trajectories import FIRST
from ifm.files import read_json, write_text
from ifm.metrics import catalogue, cautions, teachers
from ifm.modalities.pictures import COLUMNS, grid_png, side_by_side_choice
from ifm.recorded import BY_STEP
from ifm.report.contents import AskedClasses, Heard, PointSamples, Report
from ifm.report.page import render
from ifm.report.summary import summary_columns, summary_csv, summary_json
from ifm.tracking import git_commit
from pipeline.runner import paths
from pipeline.runner.records import read_timings, train_seconds
from pipeline.runner.stage import Stage, data_name, main

SHOWN_VERSIONS = ("torch", "torchvision", "diffusers", "accelerate", "clean-fid", "POT", "numpy", "dvc", "mlflow")
POINTS_SHOWN, TEXTS_SHOWN = 2000, 10
Figures = dict[str, dict[str, Any]]  # of a dynamics' samplers, by name


def params(stage: Stage) -> dict[str, Any]:
    return stage.sections("dynamics", "seed", "data", "sample.grid_images")


def work(stage: Stage) -> None:
    """Writes reports/index.html, summary.csv and summary.json from the metrics, curves and samples."""
    config = stage.config
    metrics = {d: read_json(paths.METRICS / f"{d}.json") for d in config.dynamics}
    reference = read_json(paths.METRICS / "reference.json")
    rows = [row for d in config.dynamics for row in _rows(config, d, metrics[d], reference)]
    rows += _real_rows(config, metrics[config.dynamics[0]], reference)
    summary = pd.DataFrame(rows).reindex(columns=summary_columns())
    one_step = {d: next((r for r in m.values() if r["sampler"] == "one_step"), None) for d, m in metrics.items()}
    shares = {d: row["class_shares"] for d, row in one_step.items() if row and "class_shares" in row}
    asked = {d: found for d, row in one_step.items() if row and (found := _asked(d, row))}
    grids = config.data.modality.preview == "grids"
    written = config.data.modality.preview == "text"
    planar = config.data.modality.preview == "scatter" and reference["image_shape"][0] > 1
    page = render(
        Report(
            summary=summary,
            params_text=paths.PARAMS.read_text(encoding="utf-8"),
            data=data_name(config),
            seed=config.seed,
            git_commit=git_commit() or "unknown",
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            curves={(s, d): pd.read_csv(paths.curve(f"{s}-{d}")) for s in ("teacher", "flow") for d in config.dynamics},
            by_step=_by_step(config.dynamics),
            grids={d: _grids(d, metrics[d]) for d in config.dynamics} if grids else {},
            sounds={d: _heard(d, metrics[d]) for d in config.dynamics} if config.data.modality.audible else {},
            real=_real(reference["split"], shown=config.sample.grid_images) if grids else None,
            pairs={d: _pairs(d) for d in config.dynamics} if grids else {},
            batch_seconds={d: _batch_seconds(d) for d in config.dynamics},
            points={d: _points(d, metrics[d], reference) for d in config.dynamics} if planar else {},
            texts={d: _texts(d, metrics[d]) for d in config.dynamics} if written else {},
            real_texts=_real_texts(reference["split"]) if written else None,
            class_shares=shares or None,
            real_shares=reference["class_shares"] if shares else None,
            classes=reference["classes"] if shares or asked else None,
            asked=asked,
            diagnostics={d: read_json(paths.diagnostics(d)) for d in config.dynamics},
            reference=reference,
            versions=_versions(),
        )
    )
    write_text(paths.REPORTS / "summary.csv", summary_csv(summary))
    write_text(paths.REPORTS / "summary.json", summary_json(summary))
    write_text(paths.REPORTS / "index.html", page)
    stage.run.log_artifact(paths.REPORTS / "index.html")
    stage.run.log_artifact(paths.REPORTS / "summary.csv")


def _common(config: Config, reference: dict[str, Any]) -> dict[str, Any]:
    """What stands in every row: data, protocol, seed."""
    split, what = reference["split"], config.data.modality.noun
    return {
        "data": data_name(config),
        "extractor": reference["extractor"],
        "checksum": reference["checksum"][:12],
        "reference": f"{split} split ({reference[f'n_{split}']:,} {what})",
        "seed": config.seed,
    }


def _real_rows(config: Config, metrics: dict[str, dict[str, Any]], reference: dict[str, Any]) -> list[dict[str, Any]]:
    """The real images that are not the reference: the same in every dynamics."""
    return [_common(config, reference) | _in_cells(row) for row in metrics.values() if row["model"] == "data"]


def _in_cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row of figures as the summary has it: its warnings as one text."""
    return row | {"warnings": cautions.cell(cautions.told(row))}


def _by_step(dynamics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What stage select measured of states of before the end, where flow.evaluate_every kept some."""
    described = {d: read_json(paths.flow(d) / "ifm.json") for d in dynamics}
    return {d: found[BY_STEP] for d, found in described.items() if BY_STEP in found}


def _batch_seconds(d: str) -> dict[int, float]:
    timings = read_timings(paths.run_record(f"sample-{d}"))
    key = "seconds_in_batches_of."
    return {int(name.removeprefix(key)): value for name, value in timings.items() if name.startswith(key)}


def _pairs(d: str) -> bytes:
    """The picture of the nearest pairs of the flow in one step; empty where none was drawn."""
    found = sorted(paths.pairs(d).glob("*.png"))
    return found[0].read_bytes() if found else b""


def _rows(
    config: Config, d: str, metrics: dict[str, dict[str, Any]], reference: dict[str, Any]
) -> list[dict[str, Any]]:
    """The long form: one row for each sampler of one dynamics."""
    timings = read_timings(paths.run_record(f"sample-{d}"))
    models = {}
    for kind, folder in (("teacher", paths.teacher(d)), ("flow", paths.flow(d))):
        described = read_json(folder / "ifm.json")
        models[kind] = {
            "objective": described.get("objective"),  # the flow's; a teacher has none
            "anchor": described.get("anchor"),
            "parameters": described["parameters"],
            "train_images": described["train_images"],
            "train_seconds": train_seconds(paths.run_record(f"{kind}-{d}")),
        }
    common = _common(config, reference) | {"dynamics": d}
    measured = ("seconds_per_image", "seconds_batch_1", "peak_memory_mb")

    def of(name: str, model: str, row: dict[str, Any]) -> dict[str, Any]:
        return common | models[model] | _in_cells(row) | {key: timings.get(f"{key}.{name}") for key in measured}

    rows = [of(name, row["model"], row) for name, row in metrics.items() if row["model"] != "data"]
    for name, row in metrics.items():
        for at_scale in row.get("guided", ()):
            model, _, scale = at_scale["model"].partition("-")
            drawn = f"{model}-{at_scale['sampler']}-nfe{at_scale['nfe']:03d}-{scale}"
            own = f"seconds_per_image.{drawn}" not in timings  # the samples that all else is judged by
            rows.append(of(name if own else drawn, model, at_scale))
    return rows


def _asked(d: str, one_step: dict[str, Any]) -> AskedClasses | None:
    """What is shown by class asked for; None where none was."""
    grid = paths.samples(d) / "grids" / "classes.png"
    found = AskedClasses(
        grid=grid.read_bytes() if grid.is_file() else b"",
        shares=one_step.get("asked_shares"),
        fids=one_step.get("fids_by_class"),
        guided=one_step.get("guided") or (),
    )
    return found if found != AskedClasses() else None


def _grids(d: str, metrics: Figures) -> list[tuple[str, bytes]]:
    """The PNG grids of the samplers shown."""
    folder = paths.samples(d) / "grids"
    return [(caption, (folder / f"{name}.png").read_bytes()) for caption, name in _shown(d, metrics)]


def _heard(d: str, metrics: Figures) -> Heard:
    """The WAV files that stage `sample` made of the samplers shown, with their spectrograms."""
    folder = paths.samples(d)
    shown, modality = read_json(folder / "sounds" / "shown.json"), modalities.of(read_json(folder / "metadata.json"))
    models = []
    for caption, name in _shown(d, metrics):
        wavs = [(folder / "sounds" / name / f"{row:06d}.wav").read_bytes() for row in shown["rows"]]
        samples = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)[shown["rows"]]
        models.append((caption, wavs, grid_png(modality.pictures(np.asarray(samples)), columns=min(5, len(wavs)))))
    return Heard(shown["names"] or [str(row) for row in shown["rows"]], models)


def _real(split: str, *, shown: int) -> tuple[str, bytes]:
    """A grid of as many real images as the others hold, from all over the split: a folder's come class by class."""
    images = open_split(paths.PROCESSED, split)
    rows = np.linspace(0, len(images) - 1, min(shown, len(images))).round().astype(int)
    return f"{split} split", grid_png(images.modality.pictures(images[rows]), columns=COLUMNS)


def _texts(d: str, metrics: Figures) -> list[tuple[str, list[str]]]:
    """The first texts of the samplers shown, all from the same x_T."""
    data = open_split(paths.PROCESSED, "train")
    shown = [
        (caption, np.load(paths.samples(d) / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        for caption, name in _shown(d, metrics)
    ]
    return [(caption, data.modality.own(x[:TEXTS_SHOWN], data.recorded).tolist()) for caption, x in shown]


def _real_texts(split: str) -> tuple[str, list[str]]:
    """As many real texts, from all over the split."""
    data = open_split(paths.PROCESSED, split)
    rows = np.linspace(0, len(data) - 1, min(TEXTS_SHOWN, len(data))).round().astype(int)
    return f"{split} split", data.modality.own(data[rows], data.recorded).tolist()


def _points(d: str, metrics: Figures, reference: dict[str, Any]) -> PointSamples:
    """Real points, those of the samplers shown, and the first stored paths."""
    data = _first_rows(paths.REFERENCE / f"features-{reference['split']}.npy")
    samples = [(caption, _first_rows(paths.samples(d) / f"{name}.npy")) for caption, name in _shown(d, metrics)[:2]]
    first = paths.trajectories(d) / FIRST
    stored = _first_rows(first) if first.is_file() else None
    return PointSamples(data=data, samples=samples, paths=stored)


def _first_rows(file: Path) -> np.ndarray:
    return np.array(np.load(file, mmap_mode="r", allow_pickle=False)[:POINTS_SHOWN])


def _shown(d: str, metrics: Figures) -> list[tuple[str, str]]:
    """(caption, name) of the flow in one step, the teacher at its best NFE and at its smallest: the same x_T."""
    samplers = read_json(paths.samples(d) / "metadata.json")["samplers"]
    judge = catalogue.judge_of(key for row in metrics.values() for key in row)
    best = teachers.best((row for row in metrics.values() if row["model"] == "teacher"), judge)
    nfe = None if best is None else best["nfe"]
    return [
        (
            f"{s['model'].capitalize()}, {s['nfe']} NFE" + " (best)" * (s["model"] == "teacher" and s["nfe"] == nfe),
            s["name"],
        )
        for s in side_by_side_choice(samplers, best=nfe)
    ]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in SHOWN_VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main(work, module="report", params=params)
