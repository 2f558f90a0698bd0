"""track: one MLflow run for this state of the pipeline, tied to the runs of its stages."""

import csv
import os

from ifm.files import read_json, write_json
from ifm.tracking import PipelineState, digest, flatten, track_state
from pipeline import paths
from pipeline.records import read_record
from pipeline.stage import Stage, data_name, main

SINGLE = ("fetch", "preprocess", "reference", "report")
BRANCHED = ("teacher", "trajectories", "flow", "sample", "evaluate", "diagnose")


def work(stage: Stage) -> None:
    """Makes the parent run of the pipeline's state: all params, final metrics, and its stages' runs as children."""
    config = stage.config
    names = [*SINGLE, *(f"{s}-{d}" for s in BRANCHED for d in config.dynamics)]
    results = {name: read_json(paths.METRICS / f"{name}.json") for name in ("reference", *config.dynamics)}
    results["diagnostics"] = {d: read_json(paths.diagnostics(d)) for d in config.dynamics}
    figures = {k: v for k, v in flatten(results).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    figures = {k: v for k, v in figures.items() if not k.endswith((".nfe", ".n_samples"))}
    experiment = os.environ.get("DVC_EXP_NAME")
    state = PipelineState(
        key=digest({"params": stage.values, "results": results}),
        name=experiment or f"{data_name(config)} {'+'.join(config.dynamics)} seed {config.seed}",
        params=stage.values,
        metrics=figures,
        records=[read_record(paths.run_record(name)) for name in names],
        curves={name: _curve(name) for name in names if paths.curve(name).is_file()},
        artifacts=[paths.REPORTS / "index.html", paths.REPORTS / "summary.csv", paths.PARAMS],
        tags={"data": data_name(config)},
    )
    write_json(paths.REPORTS / "track.json", track_state(state))


def _curve(name: str) -> list[dict[str, float]]:
    with open(paths.curve(name), encoding="utf-8", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


if __name__ == "__main__":
    main(work, module="track", params=lambda stage: {}, tracked=False)
