"""track: one MLflow run for this state of the pipeline, tied to the runs of its stages."""

import csv
from collections.abc import Mapping, Sequence
from typing import Any

from ifm.files import read_json, write_json
from ifm.metrics import catalogue, cautions, teachers
from ifm.metrics.metric import SPREAD, Role
from ifm.tracking import ModelRecord, PipelineState, as_tag, digest, flatten, track_state
from pipeline.runner import paths
from pipeline.runner.headline import headline
from pipeline.runner.records import read_record
from pipeline.runner.stage import Stage, data_inputs, data_name, locked_outputs, main

SINGLE = ("fetch", "preprocess", "reference", "report")
BRANCHED = ("teacher", "trajectories", "flow", "select", "sample", "evaluate", "diagnose")
NO_FIGURES = ("nfe", "n_samples", "seeds")


def work(stage: Stage) -> None:
    """Makes the parent run of the pipeline's state: all params, final metrics, and its stages' runs as children."""
    config = stage.config
    names = [*SINGLE, *(f"{s}-{d}" for s in BRANCHED for d in config.dynamics)]
    results = {name: read_json(paths.METRICS / f"{name}.json") for name in ("reference", *config.dynamics)}
    results["diagnostics"] = {d: read_json(paths.diagnostics(d)) for d in config.dynamics}
    records = {name: read_record(paths.run_record(name)) for name in names}
    reference, made = results["reference"], locked_outputs()
    figures = final_figures(results, config.dynamics) | costs(records)
    title = f"{data_name(config)} {'+'.join(config.dynamics)} seed {config.seed}"
    data = {path: made[path] for path in map(str, (paths.PROCESSED, paths.RAW)) if path in made}
    inputs = {f"input.{path}": md5 for path, md5 in data.items()}
    protocol = f"{reference['extractor']} {reference['checksum'][:12]}, {reference['split']} split"
    warned = warnings(results, config.dynamics)
    state = PipelineState(
        key=digest({"params": stage.values, "results": results}),
        name=f"{data_name(config)} {'+'.join(config.dynamics)}",
        params=stage.values,
        metrics=figures,
        records=list(records.values()),
        curves={name: _curve(name) for name in names if paths.curve(name).is_file()},
        artifacts=[paths.REPORTS / "index.html", paths.REPORTS / "summary.csv", paths.PARAMS],
        tags={
            "data": data_name(config),
            "protocol": protocol,
            "mlflow.source.name": "dvc repro",
            "mlflow.source.type": "PROJECT",
            "mlflow.note.content": note(figures, title, protocol, warned),
            **({"warnings": as_tag(warned)} if warned else {}),
            **inputs,
        },
        inputs=data_inputs(config, data, context="training"),
        models=[
            ModelRecord(f"ifm-{kind}-{d}", f"{stage}-{d}", f"{d}-{kind}-", made.get(f"models/{kind}/{d}"))
            for kind, stage in (("teacher", "teacher"), ("flow", "select"))
            for d in config.dynamics
        ],
    )
    tracked = track_state(state)
    # The same for the same state, whichever store: `make track` leaves dvc.lock as it is.
    write_json(paths.REPORTS / "track.json", {"state": state.key})
    if tracked["run_id"]:
        print(f"MLflow: run {tracked['run_id']} in {tracked['tracking_uri']}")
    print("\n".join(closing(results, config.dynamics)), flush=True)


def closing(results: Mapping[str, Any], dynamics: Sequence[str]) -> list[str]:
    """What `dvc repro` ends with: the figures that decide, and where the page is."""
    found = {d: headline(results[d]) for d in dynamics}
    measure = next(iter(next(iter(found.values()))))
    lines = [("", f"{measure}: flow, 1 NFE", "teacher, best (NFE)", "ratio")]
    for d, one in found.items():
        nfe = f" ({one[teachers.AGAINST]})" if one[teachers.AGAINST] else ""
        lines.append((d, _shown(one[measure]), _shown(one[f"teacher_{measure}"]) + nfe, _shown(one["ratio"])))
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return [*table, f"page: {paths.REPORTS / 'index.html'}"]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def final_figures(results: Mapping[str, Any], dynamics: list[str]) -> dict[str, float]:
    """The figures to compare states by, e.g. fid/ve-flow-1nfe, diagnostics/ve.error.one_step, reference/accuracy.

    Details stay in the evaluation's own run; deviations are shown for the figure that decides.
    """
    left = {*NO_FIGURES, *(m.key for m in catalogue.of(None, Role.DETAIL))}
    deviations = {judge.key + SPREAD for judge in catalogue.judges()}
    found = {}
    rows = [(d, row) for d in dynamics for row in results[d].values()]
    best = {d: headline(results[d])[teachers.AGAINST] for d in dynamics}
    for d, row in sorted(rows, key=lambda one: _prominence(one[1], best[one[0]])):
        for key, value in row.items():
            if _number(value) and key not in left and (not key.endswith(SPREAD) or key in deviations):
                found[f"{key}/{sampler_name(d, row)}"] = value
    for d, row in rows:
        for at_scale in row.get("guided", ()):
            name = sampler_name(d, at_scale)
            found |= {f"{m.key}/{name}": at_scale[m.key] for m in catalogue.merits() if _number(at_scale.get(m.key))}
    for d, values in results["diagnostics"].items():
        found |= {f"diagnostics/{d}.{k}": v for k, v in flatten(values).items() if _number(v) and k != "paths"}
    return found | {f"reference/{k}": v for k, v in results["reference"].items() if _number(v)}


def warnings(results: Mapping[str, Any], dynamics: list[str]) -> list[str]:
    """What speaks against a state's figures."""
    records = [results["reference"], *(row for d in dynamics for row in results[d].values())]
    return cautions.together(map(cautions.told, [*records, *results["diagnostics"].values()]))


def _prominence(row: Mapping[str, Any], best: int | None) -> tuple[int, bool, int]:
    """MLflow lists figures as they come: the flow's by evaluations, the teacher's at its best and down, real data."""
    place = ("flow", "teacher", "data").index(row["model"])
    return place, row["nfe"] != best, row["nfe"] if place == 0 else -row["nfe"]


def sampler_name(d: str, row: Mapping[str, Any]) -> str:
    """Of a row of figures: ve-flow-1nfe, ve-flow-4nfe-renoise, ve-teacher-35nfe, ve-flow-w2-1nfe; real images: real,
    reconstruction.
    """
    if row["model"] == "data":
        return "real" if row["sampler"] in ("train", "test") else row["sampler"]
    way = "" if row["sampler"] in ("one_step", "heun") else f"-{row['sampler']}"
    return f"{d}-{row['model']}-{row['nfe']}nfe{way}"


def costs(records: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How long training took, and the one-step flow for an image in a full batch."""
    found = {}
    for stage, record in records.items():
        kind, _, d = stage.partition("-")
        if "train_seconds" in record["timings"]:
            found[f"train_seconds/{d}-{kind}"] = record["timings"]["train_seconds"]
        if "seconds_per_image.flow-one_step-nfe001" in record["timings"]:
            found[f"seconds_per_image/{d}-flow-1nfe"] = record["timings"]["seconds_per_image.flow-one_step-nfe001"]
    return found


def note(figures: Mapping[str, float], title: str, protocol: str, warned: Sequence[str] = ()) -> str:
    """The run's description, as Markdown: what decides, in a table."""
    measure = catalogue.judge_of(name.partition("/")[0] for name in figures).key
    rows = sorted(name.partition("/")[2] for name in figures if name.startswith(f"{measure}/"))
    rows = [row for row in rows if row.endswith("nfe")] + [row for row in rows if row == "real"]
    lines = [f"**{title}**, judged by {protocol}", "", f"| sampler | {measure} | sd |", "|---|---|---|"]
    for row in rows:
        sd = figures.get(f"{measure}{SPREAD}/{row}")
        lines.append(f"| {row} | {figures[f'{measure}/{row}']:.4g} | {'' if sd is None else format(sd, '.2g')} |")
    start, end = f"{teachers.AGAINST}/", "-flow-1nfe"
    against = {name: nfe for name, nfe in figures.items() if name.startswith(start) and name.endswith(end)}
    best = [f"{name.removeprefix(start).removesuffix(end)} {nfe}" for name, nfe in against.items()]
    lines += ["", f"Ratios are over the teacher at its best number of evaluations: {', '.join(best)}."] if best else []
    lines += ["", "With care:", *(f"- {text}" for text in warned)] if warned else []
    return "\n".join([*lines, "", "`reports/index.html` is among the artifacts."])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _curve(name: str) -> list[dict[str, float]]:
    with open(paths.curve(name), encoding="utf-8", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


if __name__ == "__main__":
    main(work, module="track", params=lambda stage: {}, tracked=False)
