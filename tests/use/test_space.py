"""`ifm export --space`: a folder that runs by itself, and says to the Hub what it is."""

import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from ifm.cli.main import main
from ifm.pretrained import save_model
from ifm.use import space
from tests.support.judged import one_thread  # noqa: F401
from tests.support.on_cpus import on_cpus
from tests.support.small_models import small_flow, small_teacher

gradio = pytest.importorskip("gradio", reason="needs the extra [demo]: gradio not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """models/ and the Space made of them, with the teacher."""
    folder = tmp_path_factory.mktemp("space")
    save_model(small_flow(), folder / "flow", record={"image_shape": [1, 8, 8]})
    teacher = small_teacher()
    record = {"image_shape": [1, 8, 8]}
    save_model(teacher, folder / "teacher", record=record, weaker=teacher.state_dict())
    words = ["--model", f"{folder}/flow", "--teacher", f"{folder}/teacher", "--title", "Ve: *one* step"]
    main(["export", *words, "--license", "apache-2.0", "--space", f"{folder}/space"])
    return folder / "space"


def test_the_hub_can_read_what_it_is(made):
    _, front, text = (made / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    found = yaml.safe_load(front)
    assert (found["sdk"], found["sdk_version"], found["app_file"]) == ("gradio", gradio.__version__, "app.py")
    assert (found["title"], found["license"]) == ("Ve: *one* step", "apache-2.0")
    assert found["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"gradio=={gradio.__version__}" in text
    assert r"# Ve: \*one\* step" in text
    pins = dict(line.split("==") for line in (made / "requirements.txt").read_text().splitlines())
    assert {"torch", "diffusers", "safetensors", "numpy"} <= pins.keys()
    assert not {"mlflow", "dvc", "gradio"} & pins.keys()
    assert all(importlib.metadata.version(name).partition("+")[0] == pin for name, pin in pins.items())
    held = {path.relative_to(made).parts[0] for path in made.iterdir()}
    assert held == {"README.md", "app.py", "requirements.txt", "model", "ifm"}
    assert not list(made.rglob("*.pyc"))
    assert (made / "model/teacher/ifm.json").is_file()
    assert (made / "model/teacher/weaker/ifm.json").is_file()


def test_the_app_runs_by_itself_on_this_machine_alone(made, tmp_path):
    """With its own copy of the package: a word changed there is on the page."""
    page = made / "ifm/demo/page.py"
    page.write_text(page.read_text(encoding="utf-8").replace("Noise becomes a sample", "Here noise becomes a sample"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = on_cpus(OMP_NUM_THREADS="1", GRADIO_SERVER_PORT=str(port), HF_HUB_OFFLINE="1")
    log = (tmp_path / "log").open("w+")
    words = [sys.executable, made / "app.py"]
    process = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        text = opened(f"http://127.0.0.1:{port}/", process)
        assert "Here noise becomes a sample in one step" in text
        state = {re.split(r"\s+", line.strip())[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
        assert {one.split(":")[0] for one in state if int(one.split(":")[1], 16) == port} == {"0100007F"}
    except AssertionError:
        log.seek(0)
        print(log.read()[-3000:])
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def opened(url, process):
    """The page's text, once it is there."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError):
            return urllib.request.urlopen(url, timeout=20).read().decode()
        time.sleep(0.5)
    raise AssertionError("the app did not open its page")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model {m}/teacher --space {t}/s", "holds a teacher"),
        ("--model {m}/flow --space {t}/s --format onnx", "--format: is not for --space, but for --out"),
        ("--model {m}/flow --out {t}/s --teacher {m}/teacher", "--teacher: is not for --out, but for --space"),
        ("--model {m}/flow --space {m}", "is there and not an empty folder"),
        ("--model {m}/flow --space {t}/s --out {t}/o", "not allowed with argument"),
    ],
)
def test_a_wrong_wish_is_one_line(made, tmp_path, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        main(["export", *words.format(m=made.parent, t=tmp_path).split()])
    assert said in f"{ended.value.code}{capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch):
    from ifm.errors import UserError

    with pytest.raises(UserError, match=r"no-such-package is not installed; pip install 'ifm\[demo\]'"):
        space.version("no-such-package")
