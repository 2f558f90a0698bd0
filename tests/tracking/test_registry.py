"""Models in MLflow: logged ones with their figures, a registry version for each state, the alias `best`."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ifm.errors import UserError
from ifm.files import file_sha256
from ifm.tracking import ModelRecord, PipelineState, stage_run, track_state
from ifm.tracking import store as stores
from ifm.tracking.promotion import promote
from ifm.tracking.registry import cache_uri
from ifm.tracking.runs import StageRun
from tests.support import warm
from tests.support.mlflow_server import copy_store, make_empty_store

ROOT = Path(__file__).parents[2]
COMMIT = "c0" * 20


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_empty_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_", "IFM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    copy_store(empty_store, tmp_path)
    stores.connect.cache_clear()
    yield tmp_path
    stores.connect.cache_clear()


def train(stage: str, sha256: str) -> dict[str, Any]:
    """run.json of a stage that made a model."""
    kind, d = stage.split("-")
    with stage_run(stage, params={}, record=None) as run:
        description = {"kind": kind, "sha256": sha256, "dynamics": {"name": d}, "parameters": 7}
        run.log_model(stage, folder=Path("models") / kind / d, description=description)
    return record_of(run)


def record_of(run: StageRun) -> dict[str, Any]:
    kept = {"stage": run.stage, "run_id": run.run_id, "params": {}, "metrics": {}, "tags": {}, "started": 1.0}
    return kept | {"timings": {"stage_seconds": 2.0}, **run.extra}


def state(key: str, records: list[dict[str, Any]], figures: dict[str, float], **tags: str) -> PipelineState:
    return PipelineState(
        key=key,
        name=f"state {key}",
        params={"seed": 0},
        metrics=figures,
        records=records,
        curves={},
        artifacts=[],
        tags={"data": "digits", "protocol": "pixels", "mlflow.source.git.commit": COMMIT} | tags,
        models=[
            ModelRecord(f"ifm-{kind}-{d}", f"{kind}-{d}", f"{d}-{kind}-", f"{kind}{d}".ljust(32, "0") + ".dir")
            for kind, d in (record["stage"].split("-") for record in records)
        ],
    )


def figures(flow: float, teacher: float = 9.0, d: str = "ve") -> dict[str, float]:
    return {f"fid/{d}-flow-1nfe": flow, f"fid/{d}-flow-4nfe-renoise": flow / 2, f"fid/{d}-teacher-35nfe": teacher}


def versions(name: str) -> list[Any]:
    client, _ = stores.connect()
    return sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version))


def best(name: str) -> str:
    client, _ = stores.connect()
    return str(client.get_model_version_by_alias(name, "best").version)


def test_teacher_and_flow_are_logged_with_their_figures_and_registered_once():
    records = [train("teacher-ve", "aa"), train("flow-ve", "bb")]
    made = track_state(state("s1", records, figures(0.7)))
    assert made["versions"] == {"ifm-teacher-ve": "1", "ifm-flow-ve": "1"}
    client, experiment = stores.connect()
    models = {model.name: model for model in client.search_logged_models([experiment])}
    assert {n: {m.key: m.value for m in model.metrics} for n, model in models.items()} == {
        "teacher-ve": {"fid/ve-teacher-35nfe": 9.0},
        "flow-ve": {"fid/ve-flow-1nfe": 0.7, "fid/ve-flow-4nfe-renoise": 0.35},
    }
    assert {m.source_run_id for m in models.values()} == {record["run_id"] for record in records}
    outputs = client.get_run(made["run_id"]).outputs.model_outputs
    assert {output.model_id for output in outputs} == {model.model_id for model in models.values()}
    # Only then MLflow's table of runs asks for the row's registered models, and links one.
    assert client.get_run(made["run_id"]).data.tags["mlflow.log-model.history"] == "[]"
    (version,) = versions("ifm-flow-ve")
    md5 = "flowve".ljust(32, "0") + ".dir"
    assert (version.source, version.run_id) == (f"dvc://files/md5/fl/{md5[2:]}", made["run_id"])
    assert version.tags == {
        "ifm.state": "s1",
        "ifm.model_id": models["flow-ve"].model_id,
        "data": "digits",
        "protocol": "pixels",
        "git.commit": COMMIT,
        "dvc.path": "models/flow/ve",
        "dvc.md5": md5,
        "sha256": "bb",
    }
    assert track_state(state("s1", records, figures(0.7))) == made
    assert len(versions("ifm-flow-ve")) == len(versions("ifm-teacher-ve")) == 1
    assert len(client.search_logged_models([experiment])) == 2
    assert len(client.get_run(made["run_id"]).outputs.model_outputs) == 2
    # Another evaluation of the same weights: another state, another version, the same logged model.
    linked = [{"name": "ifm-flow-ve", "version": "1"}]
    assert json.loads(client.get_logged_model(models["flow-ve"].model_id).tags["mlflow.modelVersions"]) == linked
    again = track_state(state("s2", records, figures(0.8)))
    assert again["versions"] == {"ifm-teacher-ve": "2", "ifm-flow-ve": "2"}
    assert len(client.search_logged_models([experiment])) == 2


def test_a_clones_store_gets_the_models_from_the_records(project: Path, empty_store: Path):
    records = [train("flow-ve", "bb")]
    copy_store(empty_store, project)
    stores.connect.cache_clear()
    made = track_state(state("s1", records, figures(0.7)))
    assert track_state(state("s1", records, figures(0.7))) == made
    client, experiment = stores.connect()
    (model,) = client.search_logged_models([experiment])
    assert (model.name, model.tags["sha256"], str(model.status)) == ("flow-ve", "bb", "READY")
    assert model.source_run_id == made["children"]["flow-ve"]
    assert [version.tags["sha256"] for version in versions("ifm-flow-ve")] == ["bb"]


def test_where_dvc_keeps_a_folder():
    """The layout of DVC's cache, and of every remote."""
    assert cache_uri("ae57800c4cddb86b98850110e850319d.dir") == "dvc://files/md5/ae/57800c4cddb86b98850110e850319d.dir"


def test_the_best_model_is_packaged_out_of_dvcs_cache(project: Path, monkeypatch: pytest.MonkeyPatch):
    """Its state is no longer the one in the project's folder. DVC itself fills the cache."""
    for name in ("torch", "diffusers", "dvc"):
        pytest.importorskip(name)
    import torch

    from ifm import dynamics, pretrained
    from ifm.cli.main import main
    from ifm.model import build_flow
    from ifm.networks import build_network

    monkeypatch.setenv("DVC_NO_ANALYTICS", "true")
    monkeypatch.setenv("PATH", warm.on_path(f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"))
    subprocess.run(["dvc", "init", "-q", "--no-scm"], check=True)
    shape, weights = (1, 8, 8), []
    for seed, fid in ((0, 0.5), (1, 0.9)):
        torch.manual_seed(seed)
        network = build_network(
            shape=shape, takes_anchor=False, kind="unet", channels=[8, 8], layers_per_block=1,
            attention=[False, False], dropout=0.0, norm_groups=4, mlp={},
        )  # fmt: skip
        flow = build_flow(network, dynamics.build("ve"), scheme="edm", takes_anchor=False)
        pretrained.save_model(flow, Path("models/flow/ve"), record={"image_shape": list(shape)})
        subprocess.run(["dvc", "add", "-q", "models/flow/ve"], check=True)
        (md5,) = re.findall(r"md5: (\w+\.dir)", Path("models/flow/ve.dvc").read_text())
        weights.append(pretrained.describe(Path("models/flow/ve"))["sha256"])
        one = state(f"s{seed}", [train("flow-ve", weights[-1])], figures(fid))
        track_state(replace(one, models=[replace(one.models[0], md5=md5)]))
    assert promote("fid")[0].after == 1
    main(["mlflow-model", "--model", "ifm-flow-ve@best", "--out", "best"])
    main(["mlflow-model", "--model", "ifm-flow-ve/2", "--out", "second"])
    packed = [file_sha256(next(Path(out).rglob("*.safetensors"))) for out in ("best", "second")]
    assert packed == weights
    assert weights[0] != weights[1]
    shutil.rmtree(".dvc/cache")
    with pytest.raises(SystemExit, match="neither in the project nor in DVC's cache; bring them by `dvc fetch"):
        main(["mlflow-model", "--model", "ifm-flow-ve@best", "--out", "third"])
    with pytest.raises(SystemExit, match="has no such model"):
        main(["mlflow-model", "--model", "ifm-flow-rf@best", "--out", "third"])
    assert not Path("third").exists()


def three_states() -> None:
    for key, fid in (("s1", 0.9), ("s2", 0.5), ("s3", 0.7)):
        track_state(state(key, [train("flow-ve", key)], figures(fid)))


def test_the_best_version_is_promoted():
    three_states()
    (made,) = promote("fid")
    assert (made.model, made.metric, made.lower) == ("ifm-flow-ve", "fid/ve-flow-1nfe", True)
    assert [(c.version, c.value) for c in made.candidates] == [(2, 0.5), (3, 0.7), (1, 0.9)]
    assert (made.before, made.after, best("ifm-flow-ve")) == (None, 2, "2")
    (turned,) = promote("fid", dynamics="ve", lower=False)
    assert (turned.before, turned.after, best("ifm-flow-ve")) == (2, 1, "1")
    (refined,) = promote("fid/4nfe-renoise")
    assert (refined.metric, refined.candidates[0].value, refined.after) == ("fid/ve-flow-4nfe-renoise", 0.25, 2)


def test_only_what_was_judged_alike_is_compared():
    three_states()
    track_state(state("s4", [train("flow-ve", "s4")], figures(0.8), data="points"))
    track_state(state("s5", [train("flow-ve", "s5")], {"recall/ve-flow-1nfe": 0.1}, data="points"))
    (made,) = promote("fid")
    assert made.after == 4
    assert {c.version: c.why_not for c in made.candidates if c.value is None} == {
        1: "not comparable: data digits",
        2: "not comparable: data digits",
        3: "not comparable: data digits",
        5: "has no fid/ve-flow-1nfe",
    }


def test_a_ratio_over_the_teacher_at_its_most_evaluations_is_not_compared_with_one_at_its_best():
    old, new = {"ratio/ve-flow-1nfe": 0.5}, {"ratio/ve-flow-1nfe": 0.9, "teacher_nfe/ve-flow-1nfe": 17}
    track_state(state("r1", [train("flow-ve", "r1")], old))
    (made,) = promote("ratio")
    assert (made.after, made.candidates[0].value) == (1, 0.5)  # all are of one kind
    track_state(state("r2", [train("flow-ve", "r2")], new))
    (made,) = promote("ratio")
    assert made.after == 2
    assert made.candidates[-1].why_not == "not comparable: has no teacher_nfe/ve-flow-1nfe"


def test_what_cannot_be_promoted_is_said(project: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=re.escape("no model ifm-flow-* in sqlite:///")):
        promote("fid")
    three_states()
    with pytest.raises(UserError, match="no model ifm-flow-rf in"):
        promote("fid", dynamics="rf")
    with pytest.raises(UserError, match="whether less is better is not known; add --lower or --higher"):
        promote("elegance")
    with pytest.raises(UserError, match="ifm-flow-ve: no version has the figure elegance/ve-flow-1nfe"):
        promote("elegance", lower=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://keeper:s3cr3t@127.0.0.1:9")
    stores.connect.cache_clear()
    with pytest.raises(UserError, match=r"the store at http://127\.0\.0\.1:9 failed") as away:
        promote("fid")
    assert "s3cr3t" not in str(away.value)


def test_the_command_says_what_it_compared(project: Path):
    three_states()
    done = subprocess.run(
        [warm.python(), "-m", "ifm", "promote", "--metric", "fid", "--dynamics", "ve"], cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "ifm-flow-ve: 3 versions by fid/ve-flow-1nfe, lower is better; digits, pixels",
        "  version 2  0.5  state s2  <- best",
        "  version 3  0.7  state s3",
        "  version 1  0.9  state s1",
        "  best: none -> version 2",
    ]
