"""Models go to the Hub and come from it by huggingface_hub's own code, against a stand-in on loopback."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ifm.pretrained import save_model
from ifm.use.models import IntegrationFlow
from tests.support.hub_server import Hub, serving
from tests.support.small_models import small_flow

ROOT = Path(__file__).parents[2]
TOKEN, REPO = "hf_madeUpForThisTest", "someone/one-step-digits"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(hub, environment, folder): a model in folder/flow, pushed to the hub by the command."""
    folder = tmp_path_factory.mktemp("hub")
    save_model(small_flow(), folder / "flow", record={"image_shape": [1, 8, 8]})
    with serving(Hub(token=TOKEN)) as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",  # the stand-in speaks LFS
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": TOKEN,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        }
        environment.pop("HF_HUB_OFFLINE", None)
        yield hub, environment, folder


@pytest.fixture(scope="module")
def pushed(world):
    _, environment, folder = world
    done = subprocess.run(
        [sys.executable, "-m", "ifm", "export", "--model", "flow", "--out", "export", "--push-to-hub", REPO],
        env=environment | {"HF_DEBUG": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_hub_holds_what_was_exported_and_nothing_tells_the_token(world, pushed):
    hub, _, folder = world
    files = {p.relative_to(folder / "export").as_posix(): p for p in (folder / "export").rglob("*") if p.is_file()}
    assert hub.repos[REPO] == {name: path.read_bytes() for name, path in files.items()}
    assert {"README.md", "model_index.json", "pipeline.py", "samples.png", "unet/ifm.json"} <= files.keys()
    assert f"pushed: {hub.url}/{REPO}/commit/{hub.commit(REPO)}" in pushed.stdout
    assert {token for method, path, token in hub.requests if method == "POST"} == {TOKEN}
    assert TOKEN not in pushed.stdout + pushed.stderr
    assert "Processing Files" not in pushed.stderr  # no bars where nobody looks
    assert not any(TOKEN.encode() in data for data in hub.repos[REPO].values())


READ = """
import contextlib, io, json, sys
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({repo!r}, custom_pipeline={repo!r}, trust_remote_code=True)
assert "ifm" not in sys.modules
from tests.support.small_models import draws_of
x_T, x_anchor = draws_of(4)
torch.save(pipe(latents=x_T, anchor=x_anchor, output_type="latent").images, "latent.pt")
from ifm import IntegrationFlow
from ifm.cli.main import main
main(["sample", "--model", {repo!r}, "--revision", "main", "--n", "5", "--out", "hub.npy", "--device", "cpu"])
said = []
for arguments in (["nobody/nothing"], [{repo!r}, "--revision", "gone"]):
    try:
        main(["sample", "--out", "none.npy", "--model", *arguments])
    except SystemExit as stop:
        said.append(stop.code)
print(json.dumps(said))
"""


def test_a_model_of_the_hub_is_the_one_that_was_pushed(world, pushed):
    import torch

    from tests.support.small_models import draws_of

    hub, environment, folder = world
    hub.repos[REPO]["weights.bin"] = b"a pickle, say"
    hub.requests.clear()
    done = subprocess.run(
        [sys.executable, "-c", READ.format(repo=REPO)],
        env=environment | {"HF_TOKEN": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    flow = IntegrationFlow.from_pretrained(folder / "flow")
    assert np.array_equal(np.load(folder / "hub.npy"), flow.sample(5))
    x_T, x_anchor = draws_of(4)
    with torch.no_grad():
        expected = flow(x_T, torch.full((4,), flow.dynamics.t_max), x_anchor=x_anchor)
    torch.testing.assert_close(torch.load(folder / "latent.pt", weights_only=True), expected, atol=1e-5, rtol=1e-5)
    unknown, no_revision = json.loads(done.stdout.splitlines()[-1])
    assert unknown.startswith(f"ifm: nobody/nothing: no such folder, and the Hub ({hub.url}) has no model")
    assert no_revision == f"ifm: {REPO}: no such folder, and the Hub ({hub.url}) has no revision 'gone' of it"
    assert not [path for _, path, _ in hub.requests if path.endswith("weights.bin")]
    cached = {p.suffix for p in (folder / "home" / "hub").glob("models--*/snapshots/*/**/*") if not p.is_dir()}
    assert cached <= {".json", ".safetensors", ".md", ".py"}


OFFLINE = """
import json
from ifm.cli.main import main
main(["sample", "--model", {repo!r}, "--n", "5", "--out", "offline.npy", "--device", "cpu"])
try:
    main(["sample", "--out", "none.npy", "--model", "someone/else"])
except SystemExit as stop:
    print(json.dumps(stop.code))
"""


def test_offline_the_cache_serves_and_what_is_not_there_is_one_line(world, pushed):
    _, environment, folder = world
    from huggingface_hub import snapshot_download

    snapshot_download(REPO, cache_dir=folder / "home" / "hub", endpoint=environment["HF_ENDPOINT"], token=False)
    nowhere = "http://127.0.0.1:9"  # nothing listens there
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE.format(repo=REPO)],
        env=environment | {"HF_ENDPOINT": nowhere},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(folder / "offline.npy"), IntegrationFlow.from_pretrained(folder / "flow").sample(5))
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.startswith(f"ifm: someone/else: no such folder, and the Hub ({nowhere}) cannot be reached")
    assert "\n" not in said


def test_a_push_that_the_hub_refuses_is_one_line_without_the_token(world):
    hub, environment, folder = world
    wrong = "hf_notTheRightOne"
    code = (
        "from pathlib import Path; from ifm.use.publishing import check_login, push; "
        "check_login('someone/refused'); push(Path('flow'), 'someone/refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HF_TOKEN": wrong},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"ifm.errors.UserError: --push-to-hub someone/refused: {hub.url}: ")
    assert "401" in said
    assert wrong not in said
    assert "***" in said  # the stand-in's answer repeats what it was given
    assert "someone/refused" not in hub.repos


FETCH = """
import json, sys
from pathlib import Path
from ifm.config import DataConfig, read_params
from ifm.data.fetching import fetch
data = read_params(Path(sys.argv[1]))["data"] | {"source": "hub", "name": "someone/set", "image_column": "img"}
found = fetch(DataConfig(**data), Path("raw"))
print(json.dumps([found.in_a_line(), json.loads(Path("raw/metadata.json").read_text())["commit"]]))
"""


def test_a_data_set_without_a_revision_is_recorded_with_its_commit(world):
    """And read offline from the cache by the same commit."""
    hub, environment, folder = world
    table = pa.table({"img": [png_bytes(v) for v in range(4)], "label": [0, 1, 0, 1]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    parts = {name: f"data/{name}-00000-of-00001.parquet" for name in ("train", "test")}
    hub.repos["datasets/someone/set"] = {path: buffer.getvalue() for path in parts.values()}
    commit = hub.commit("datasets/someone/set")
    for around in ({}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", FETCH, str(ROOT / "params.yaml")],
            env=environment | {"HF_TOKEN": ""} | around,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        line, recorded = json.loads(done.stdout.splitlines()[-1])
        assert recorded == commit
        assert line == (
            f"4 images; 2 classes: 0, 1; not used: split test; commit {commit}, which data.revision: null stands for"
        )


def png_bytes(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, "PNG")
    return buffer.getvalue()
