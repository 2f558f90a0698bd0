"""docs/security.md's table, row by row: what a hostile file, name or environment could do, and what holds it off."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ifm import hub, tracking
from ifm.config import DataConfig, parse, read_params
from ifm.data.fetching import fetch
from ifm.data.sources import FetchError
from ifm.errors import UserError
from ifm.pretrained import ModelError, load_flow, load_teacher, save_model
from ifm.report.page import render
from ifm.report.plots.figure import svg
from ifm.tracking import PipelineState, stage_run, store, track_state
from ifm.use import diffusers_folder
from ifm.use.models import IntegrationFlow
from pipeline.runner.stage import data_name
from pipeline.tools import audit
from tests.support.pages import Page
from tests.support.reports import full_report, summary_of
from tests.support.small_models import small_flow, small_teacher

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("src", "pipeline", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# --- the source -----------------------------------------------------------------------------------------------------

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "torch.save", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "shutil.unpack_archive", "ssl._create_unverified_context", "subprocess.getoutput",
}  # fmt: skip
ARRAYS = {f"{module}.{name}" for module in ("np", "numpy") for name in ("load", "save")}
# TorchScript can hold no Python objects, but programs: the one file of it is read after its sha256 was compared.
TORCHSCRIPT = {"src/ifm/metrics/extractors.py"}
# The export is loaded once, with the pipeline.py of this project that was copied into it a moment before.
OWN_CODE = {"src/ifm/use/diffusers_folder.py"}


def dangers(text: str, file: str = "") -> list[str]:
    """What a source file does that could run foreign code, or give more away than it should."""
    tree, found = ast.parse(text), []
    safe_loaders = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("SafeLoader" in ast.unparse(base) for base in node.bases)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [a.name for a in names if a.name.split(".")[0] in UNPICKLERS]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNPICKLERS:
                found.append(module)
            case ast.Constant(value=("0.0.0.0" | "::") as host):
                found.append(host)
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        loader = keywords.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "")
        faults = {
            "a forbidden call": name in CALLS or name.split(".")[-1] in ("extractall", "read_pickle"),
            "arrays without allow_pickle=False": name in ARRAYS and keywords.get("allow_pickle") != "False",
            "savez of anything": name in ("np.savez", "np.savez_compressed"),
            "torch.load without weights_only=True": name == "torch.load" and keywords.get("weights_only") != "True",
            "TorchScript": name == "torch.jit.load" and file not in TORCHSCRIPT,
            "yaml.load without a safe loader": name == "yaml.load"
            and "SafeLoader" not in loader
            and loader not in safe_loaders
            and "from ruamel" not in text,
            "ruamel's unsafe YAML": name == "YAML" and "unsafe" in keywords.get("typ", ""),
            "trust_remote_code": keywords.get("trust_remote_code", "False") != "False" and file not in OWN_CODE,
            "a shell": keywords.get("shell", "False") != "False",
            "certificates unchecked": keywords.get("verify") == "False",
            "pages that do not escape": name.split(".")[-1] == "Environment" and keywords.get("autoescape") != "True",
            "a template that does not escape": name in ("jinja2.Template", "Template"),
            "weights that may be pickled": name.endswith(".from_pretrained")
            and file.startswith("src/")
            and keywords.get("use_safetensors", "True") != "True",
        }
        found += [f"{what}: {name}, line {node.lineno}" for what, fault in faults.items() if fault]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_file_runs_what_it_reads(path):
    assert dangers(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import joblib.numpy_pickle", "np.load(p)", "np.save(p, x)",
        "np.load(p, allow_pickle=True)", "numpy.load(p, mmap_mode='r')", "torch.load(p)", "torch.save(x, p)",
        "torch.load(p, weights_only=False)", "torch.jit.load(p)", "yaml.load(t)", "yaml.load(t, yaml.Loader)",
        "yaml.load(t, Loader=FullLoader)", "yaml.unsafe_load(t)", "YAML(typ='unsafe')", "eval(t)", "exec(t)",
        "subprocess.run(c, shell=True)", "os.system(c)", "f(trust_remote_code=True)", "archive.extractall(p)",
        "shutil.unpack_archive(p)", "requests.get(u, verify=False)", "serve(host='0.0.0.0')", "jinja2.Environment()",
        "jinja2.Environment(autoescape=False)", "jinja2.Template(t)", "__import__(m)", "pd.read_pickle(p)",
    ],
)  # fmt: skip
def test_the_reader_of_sources_finds_each_danger(text):
    assert dangers(text)


def test_the_reader_of_sources_lets_the_safe_forms_pass():
    assert not dangers("model.eval(); np.load(p, allow_pickle=False); torch.load(p, weights_only=True); re.compile(x)")
    assert not dangers("class L(yaml.SafeLoader): ...\nyaml.load(t, L)\nyaml.load(t, Loader=yaml.CSafeLoader)")


# --- models ---------------------------------------------------------------------------------------------------------


class Creates:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_and_code_in_a_models_folder_are_never_run(tmp_path):
    ran = tmp_path / "ran"
    for name, model, load in (("unet", small_teacher(), load_teacher), ("mlp", small_flow(shape=(2,)), load_flow)):
        folder = tmp_path / name
        save_model(model, folder, record={})
        next(folder.glob("*.safetensors")).unlink()
        for stem in ("diffusion_pytorch_model", "pytorch_model", "model"):
            for suffix in (".bin", ".pt", ".pkl", ".ckpt", ".safetensors"):
                if (folder / f"{stem}{suffix}").suffix != ".safetensors" or stem != "pytorch_model":
                    (folder / f"{stem}{suffix}").write_bytes(pickle.dumps(Creates(ran)))
        (folder / "pipeline.py").write_text(f"open({str(ran)!r}, 'w')")
        (folder / "unet.py").write_text(f"open({str(ran)!r}, 'w')")
        config = json.loads((folder / "config.json").read_text())
        config |= {"auto_map": {"AutoModel": "unet.UNet"}, "_module": "unet"}
        with pytest.raises(ModelError, match=re.escape(str(folder))):
            load(folder)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=re.escape(str(folder))):
            load(folder)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Creates(ran)))
    assert ran.exists()  # so the files would have told


def test_nothing_but_json_safetensors_and_the_card_is_downloaded(monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=r"holds no ifm\.json"):
        IntegrationFlow.from_pretrained("someone/model")
    assert asked["allow_patterns"] == ["*.json", "*.safetensors", "README.md"]
    assert not [p for p in hub.DOWNLOADED if p.endswith((".py", ".bin", ".pt", "*"))]


def test_an_exported_folder_carries_the_projects_own_code_alone(tmp_path):
    save_model(small_flow(), tmp_path / "m", record={"image_shape": [1, 8, 8]})
    (tmp_path / "m" / "evil.py").write_text("raise SystemExit")
    (tmp_path / "out").mkdir()
    diffusers_folder.write_folder(IntegrationFlow.from_pretrained(tmp_path / "m"), tmp_path / "m", tmp_path / "out")
    code = [path for path in (tmp_path / "out").rglob("*.py")]
    assert [path.read_bytes() for path in code] == [(ROOT / "src/ifm/use/diffusers_pipeline.py").read_bytes()]


# --- data -----------------------------------------------------------------------------------------------------------


def config(**changes) -> DataConfig:
    return DataConfig(**(read_params(ROOT / "params.yaml")["data"] | {"on_bad_image": "skip"} | changes))


def picture(path: Path, value: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)
    return path.read_bytes()


def raw_images(folder: Path) -> list[bytes]:
    return [cell["bytes"] for cell in pq.read_table(folder / "train-00000.parquet").column("image").to_pylist()]


def test_a_linked_split_folder_does_not_lead_out(tmp_path):
    picture(tmp_path / "private" / "a" / "x.png", 1)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "private", target_is_directory=True)
    for split in ("train", "../private"):
        with pytest.raises(FetchError, match=f"data.train_split = '{split}': leads out of data.path"):
            fetch(config(source="imagefolder", path=str(tmp_path / "set"), train_split=split), tmp_path / "raw")
    picture(tmp_path / "set" / "real" / "a" / "y.png", 2)
    (tmp_path / "set" / "inner").symlink_to(tmp_path / "set" / "real", target_is_directory=True)
    fetch(config(source="imagefolder", path=str(tmp_path / "set"), train_split="inner"), tmp_path / "raw")
    assert len(raw_images(tmp_path / "raw")) == 1


@pytest.mark.parametrize("source", ["parquet", "hub"])
def test_a_data_file_does_not_choose_what_is_read(tmp_path, monkeypatch, source):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    private = picture(tmp_path / "private.png", 1)
    inner = picture(tmp_path / "set" / "inner.png", 2)
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "private.png")
    paths = [tmp_path / "private.png", "../private.png", tmp_path / "set" / "link.png", "/dev/zero", "a\0b"]
    cells = [{"bytes": None, "path": str(path)} for path in [*paths, tmp_path / "set" / "inner.png"]]
    features = {"image": {"_type": "Image"}}
    table = pa.table({"image": pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    where = {"name": str(tmp_path / "set")} if source == "hub" else {"path": str(tmp_path / "set")}
    result = fetch(config(source=source, label_column=None, image_column="image", **where), tmp_path / "raw")
    assert raw_images(tmp_path / "raw") == [inner] != [private]
    assert result.skipped == 5


def test_code_beside_a_data_set_is_not_run(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(FetchError, match=re.escape("data.name = ")):
        fetch(config(source="hub", name=str(tmp_path / "set")), tmp_path / "raw")
    assert not (tmp_path / "ran").exists()


# --- pages ----------------------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'</style>"


@pytest.mark.usefixtures("undrawn")
def test_a_data_set_and_classes_called_like_a_script_stay_text(monkeypatch):
    monkeypatch.setattr("ifm.report.plots.curves.svg", svg)  # of the classes, whose names are lettering there
    values = read_params(ROOT / "params.yaml")
    values["data"] |= {"source": "hub", "name": EVIL, "train_split": "train", "image_column": EVIL}
    data = data_name(parse(values))
    assert data == EVIL
    page = render(full_report(summary=summary_of("ve").assign(data=data), data=data, classes=[EVIL] * 10))
    tags = Page(page).tags
    plain = Page(render(full_report(summary=summary_of("ve")))).tags
    assert [tag for tag, _ in tags].count("script") == [tag for tag, _ in plain].count("script")
    assert not [attributes for tag, attributes in tags if tag == "img" and attributes.get("src") == "x"]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


# --- servers --------------------------------------------------------------------------------------------------------


def test_servers_listen_on_this_machine_alone():
    """What `ifm ui` starts is looked at in tests/pipeline/test_places.py."""
    shown = subprocess.run(["make", "-n", "ui"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m ifm ui --port" in shown
    for page in [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md")]:
        for line in page.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"--host[ =](?!127\.0\.0\.1|localhost)|0\.0\.0\.0", line), (page.name, line)


# --- secrets --------------------------------------------------------------------------------------------------------

SECRET = "hunter2-q7Zk"
NAMES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN")


@pytest.fixture
def planted(tmp_path, monkeypatch) -> Path:
    """A checkout whose environment and Git remote hold a secret."""
    for name in NAMES:
        monkeypatch.setenv(name, SECRET)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RANK", "DVC_EXP_NAME", "IFM_TRACKING"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.chdir(tmp_path)
    for words in (["init", "-q"], ["remote", "add", "origin", f"https://user:{SECRET}@host/x.git"]):
        subprocess.run(["git", *words], check=True)
    return tmp_path


def work(root: Path) -> dict:
    with stage_run("flow-ve", params={"a": 1}, record=root / "run.json", tags={"data": "digits"}) as run:
        run.log_row({"step": 1, "loss": 0.5})
        run.log_metrics({"fid": 1.0})
    record = json.loads((root / "run.json").read_text())
    state = PipelineState("k", "n", {"a": 1}, {"fid": 1.0}, [record], {}, [], {"data": "digits"})
    return track_state(state)


def holders_of_the_secret(root: Path) -> list[str]:
    shutil.rmtree(root / ".git")
    return [str(path) for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def afresh() -> None:
    """Forgets the store that another test opened."""
    store.connect.cache_clear()


def test_the_environments_secrets_reach_neither_store_nor_records_nor_logs(planted, capfd):
    afresh()
    assert work(planted)["run_id"]
    afresh()
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert (planted / "mlflow.db").stat().st_size > 10_000
    assert holders_of_the_secret(planted) == []


@pytest.mark.parametrize(
    "uri",
    [
        f"http://user:{SECRET}@127.0.0.1:9/mlflow",
        f"postgresql://user:{SECRET}@127.0.0.1:9/db",
        f"carrier-pigeon://user:{SECRET}@coop",
    ],
)
def test_a_stores_password_is_neither_shown_nor_kept(planted, capfd, monkeypatch, uri):
    afresh()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    shown = work(planted)
    afresh()
    said = capfd.readouterr()
    assert "tracking: " in said.err
    assert SECRET not in said.out + said.err + json.dumps(shown)
    assert SECRET not in tracking.without_secrets(uri)
    assert holders_of_the_secret(planted) == []


# --- the audit ------------------------------------------------------------------------------------------------------

SOUND = {"name": "a", "version": "1", "vulns": []}
MISSED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1)"}
FAULTY = {
    "name": "c",
    "version": "2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}, {"id": "X", "fix_versions": []}],
}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([SOUND], 0, "constraints.txt: 1 packages looked up, no known vulnerability"),
        ([SOUND, FAULTY, MISSED], 1, "c 2: PYSEC-1, mended in 2.1\nc 2: X, mended in no version yet"),
        ([MISSED] * 7, 2, "7 of 7 packages are not on the index: b, b, b, b, b, ...). This says nothing of its safety"),
        ([SOUND, MISSED], 2, "1 of 2 packages are not on the index: b)"),
    ],
)
def test_an_audit_that_looked_nothing_up_is_no_clean_one(packages, status, said):
    found = audit.judge(json.dumps({"dependencies": packages}), "No known vulnerabilities found")
    assert found.status == status
    assert said in found.text


def test_without_a_network_the_audit_says_so(tmp_path):
    pytest.importorskip("pip_audit", reason="pip-audit is the extra `audit`")
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n")
    nowhere = {name: "http://127.0.0.1:9" for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")}
    around = os.environ | nowhere | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "HOME": str(tmp_path)}
    around |= {"NO_PROXY": "", "no_proxy": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.tools.audit"],
        cwd=tmp_path,
        env=around,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("audit: constraints.txt could not be looked up whole (")
    assert "run `make audit` where the Python Package Index can be reached" in done.stdout
    assert len(done.stdout.splitlines()) == 1
