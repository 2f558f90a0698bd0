"""What a person sees in MLflow's own pages, looked at with a headless Chromium where there is one."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ifm.tracking import PipelineState, stage_run, track_state
from ifm.tracking import store as stores
from tests.support.mlflow_server import Server

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--virtual-time-budget=20000", "--window-size=1800,2600"),
)


@pytest.fixture(scope="module")
def shown(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Two states of a pipeline that share a stage, in a store that a server shows."""
    folder = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("DVC_", "MLFLOW_", "IFM_")):
                patch.delenv(name)
        patch.setenv("DVC_ROOT", str(folder))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        stores.connect.cache_clear()
        runs = [a_state("digits ve", 1e-3, 0.6361), a_state("digits ve", 3e-3, 0.5472)]
        _, experiment = stores.connect()
        stores.connect.cache_clear()
    server = Server(folder, store=f"sqlite:///{folder / 'mlflow.db'}").start()
    yield {"uri": server.uri, "experiment": experiment, "runs": runs, "browser": browser, "folder": folder}
    server.stop()


def a_state(name: str, lr: float, fid: float) -> str:
    """Makes a state with a training run below it; the parent's id."""
    inputs = [{"name": "digits/processed", "digest": "3c3b5c262dbe", "source": "dvc://files/md5/3c/3b", "profile": {},
               "context": "training"}]  # fmt: skip
    with stage_run("flow-ve", params={"flow": {"lr": lr}}, record=None, inputs=inputs) as run:
        for step in (1, 2, 3):
            run.log_row({"step": step, "loss": lr / step})
    kept = {"stage": "flow-ve", "run_id": run.run_id, "params": {}, "metrics": {}, "tags": {}, "timings": {}}
    made = track_state(
        PipelineState(
            key=f"{name} {lr}",
            name=name,
            params={"flow": {"lr": lr, "steps": 2600}},
            metrics={"fid/ve-flow-1nfe": fid, "recall/ve-flow-1nfe": 0.98},
            records=[kept | {"started": 0.0}],
            curves={},
            artifacts=[],
            tags={"mlflow.source.name": "dvc repro"},
            inputs=inputs,
        )
    )
    return made["run_id"]


def look(shown: dict[str, Any], page: str, tmp_path: Path) -> str:
    """The text of a page of the server; its picture must not be blank."""
    url, shot = f"{shown['uri']}/#/{page}", tmp_path / "page.png"
    command = [shown["browser"], *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 180, "check": True}
    dom = subprocess.run([*command, "--dump-dom", f"--screenshot={shot}", url], **options).stdout
    assert len(np.unique(np.asarray(Image.open(shot).convert("L")))) > 50
    return re.sub(r"<[^>]+>", "\n", dom)


def test_the_table_of_runs_has_a_row_for_each_state(shown: dict[str, Any], tmp_path: Path):
    text = look(shown, f"experiments/{shown['experiment']}/runs?workflowType=machine_learning", tmp_path)
    for seen in (
        "digits ve, lr=0.001",
        "digits ve, lr=0.003",
        "digits/processed (3c3b5c262dbe)",
        "dvc repro",
    ):
        assert seen in text
    assert "flow-ve" not in text  # below its parent, folded


def test_two_states_compared(shown: dict[str, Any], tmp_path: Path):
    first, second = shown["runs"]
    page = f"compare-runs?runs=%5B%22{first}%22,%22{second}%22%5D&experiments=%5B%22{shown['experiment']}%22%5D"
    text = look(shown, page, tmp_path)
    for seen in ("digits ve, lr=0.001", "digits ve, lr=0.003", "flow.lr", "0.001", "0.003", "2600"):
        assert re.search(rf"^{re.escape(seen)}$", text, re.MULTILINE), seen
    for seen in ("fid/ve-flow-1nfe", "0.636", "0.547", "recall/ve-flow-1nfe", "0.98"):
        assert re.search(rf"^{re.escape(seen)}$", text, re.MULTILINE), seen
