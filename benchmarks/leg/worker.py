"""A process that has imported everything and waits for one stage to run: `python -m benchmarks.leg.worker`.

A line on stdin is the order, {"stage", "words", "rows", "start"}: the stage runs as `python -m pipeline.stages.STAGE
WORDS` would. rows: a file that gets each row of the training curve with its time. start: a folder whose checkpoints or
shards the stage goes on from, whatever its params were.
"""

import json
import os
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Warms up, waits, works."""
    from pipeline.runner import parent

    parent.end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    warm()
    print("ready", file=sys.stdout, flush=True)
    line = sys.stdin.readline()
    os.dup2(2, 1)  # what a stage prints belongs to the log
    if line:
        work(json.loads(line))


def warm() -> None:
    """The imports of all stages and the GPU's context: most of a stage's start."""
    import accelerate  # noqa: F401
    import diffusers
    import matplotlib.figure  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch

    import ifm.config
    import ifm.metrics.reference
    import ifm.objectives.consistency
    import ifm.objectives.trajectory
    import ifm.training.flow  # noqa: F401
    import pipeline.runner.stage  # noqa: F401

    _ = diffusers.UNet2DModel  # imported when it is asked for
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def work(order: dict[str, Any]) -> None:
    """Runs a stage as a command of its own would."""
    if order.get("rows"):
        keep_rows(Path(order["rows"]))
    if order.get("start"):
        go_on_from(Path(order["start"]))
    os.environ.update(order.get("environment", {}))
    sys.argv = [order["stage"], *order["words"]]
    runpy.run_module(f"pipeline.stages.{order['stage']}", run_name="__main__", alter_sys=True)


def keep_rows(file: Path) -> None:
    """Has every row of a curve written to a file, with the time."""
    from ifm.tracking import StageRun

    log_row = StageRun.log_row

    def kept(run: StageRun, row: dict[str, float]) -> None:
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps({"time": time.time(), **row}) + "\n")
        log_row(run, row)

    StageRun.log_row = kept


def go_on_from(start: Path) -> None:
    """Puts the content of an earlier work folder into the stage's own, which is named by its params."""
    from pipeline.runner import unfinished
    from pipeline.runner.stage import Stage

    work_folder = Stage.work_folder

    def with_start(stage: Stage, **made_of: Any) -> Path:
        folder = work_folder(stage, **made_of)
        for file in start.iterdir() if start != folder else ():
            if file.name != unfinished.MADE_OF and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
        return folder

    Stage.work_folder = with_start


if __name__ == "__main__":
    main()
