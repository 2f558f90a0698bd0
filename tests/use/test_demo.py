"""`ifm demo`: what it draws, what it says to a wrong choice, and the page in a browser."""

import importlib.util
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from ifm.cli.demo import loopback
from ifm.cli.main import main
from ifm.conditions.classes import Classes
from ifm.demo import drawing
from ifm.demo.drawing import Answer, Asked
from ifm.demo.models import Models, of_checkout, teacher_beside
from ifm.demo.shown import REACH, SIDE, picture, show
from ifm.errors import UserError
from ifm.pretrained import save_model
from ifm.random import Streams
from ifm.use.models import IntegrationFlow, Teacher
from tests.support.devtools import tab
from tests.support.judged import one_thread  # noqa: F401
from tests.support.on_cpus import on_cpus
from tests.support.small_models import RECORDS, small_flow, small_flow_of, small_teacher

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkout's models: ve with its teacher, and trig with classes; beside it flows without a teacher."""
    folder = tmp_path_factory.mktemp("models")
    record = {"image_shape": [1, 8, 8]}
    classes = Classes(classes=["a", "b", "c"], shares=[0.2, 0.3, 0.5])
    save_model(small_flow(), folder / "models/flow/ve", record=record)
    save_model(small_teacher(), folder / "models/teacher/ve", record=record)
    save_model(small_flow(name="trig", condition=classes), folder / "models/flow/trig", record=record)
    save_model(small_flow(shape=(2,)), folder / "points", record={"image_shape": [2]})
    for name, record in RECORDS.items():
        save_model(small_flow_of(name), folder / name, record=record)
    return folder


@pytest.fixture(scope="module")
def ve(folder):
    return Models([str(folder / "models/flow/ve")])[str(folder / "models/flow/ve")]


def test_flow_and_teacher_start_from_the_same_noise_as_everywhere(folder, ve):
    asked = Asked(seed=3, count=5, steps=2, nfe=3)
    flow = IntegrationFlow.from_pretrained(folder / "models/flow/ve").sample(5, seed=3, steps=2)
    teacher = Teacher.from_pretrained(folder / "models/teacher/ve").sample(5, seed=3, nfe=3)
    np.testing.assert_array_equal(drawing.flow(ve, asked).samples, flow)
    np.testing.assert_array_equal(drawing.teacher(ve, asked).samples, teacher)
    assert drawing.flow(ve, asked).nfe == 2
    assert not np.array_equal(drawing.flow(ve, Asked(seed=4, count=5, steps=2)).samples, flow)


def test_a_checkouts_models_and_who_stands_beside_whom(folder):
    assert list(of_checkout(folder)) == ["trig", "ve"]
    assert teacher_beside(folder / "models/flow/ve") == (folder / "models/teacher/ve").resolve()
    assert teacher_beside(folder / "models/flow/trig") is None
    with pytest.raises(UserError, match="no checkout; name one by --model"):
        of_checkout(None)
    with pytest.raises(UserError, match="models/flow: holds no model"):
        of_checkout(folder / "points")


@pytest.mark.parametrize("label", [0, 2])
def test_a_class_is_that_of_every_sample(folder, label):
    models = Models([str(folder / "models/flow/trig")])
    pair = models[models.names[0]]
    assert pair.classes == {"a": 0, "b": 1, "c": 2}
    have = pair.flow.condition_kind.of_tensors({"labels": torch.full((4,), label)})
    expected = IntegrationFlow.from_pretrained(folder / "models/flow/trig").sample(4, condition=have)
    np.testing.assert_array_equal(drawing.flow(pair, Asked(count=4, label=label)).samples, expected)
    assert drawing.teacher(pair, Asked(count=4)) is None


def test_classes_without_data_are_not_offered_and_names_are_told_apart(tmp_path):
    gaps = Classes(classes=["a", "b", "b", "c"], shares=[0.0, 0.5, 0.25, 0.25])
    save_model(small_flow(condition=gaps), tmp_path / "flow", record={"image_shape": [1, 8, 8]})
    pair = Models([str(tmp_path / "flow")])[str(tmp_path / "flow")]
    assert pair.classes == {"b (1)": 1, "b (2)": 2, "c": 3}
    way = drawing.between(pair, Asked(seed=5), 9, frames=3).samples
    assert np.abs(way[0].astype(int) - drawing.flow(pair, Asked(seed=5, count=1, label=1)).samples[0]).max() <= 1


def test_guidance_is_the_flows_where_it_takes_a_range(tmp_path, ve):
    classes = Classes(classes=["a", "b"], shares=[0.5, 0.5], drops=True, scale=[1, 4])
    save_model(small_flow(condition=classes), tmp_path / "flow", record={"image_shape": [1, 8, 8]})
    pair = Models([str(tmp_path / "flow")])[str(tmp_path / "flow")]
    assert drawing.scale_of(pair) == (1, 4)
    assert drawing.scale_of(ve) is None
    expected = IntegrationFlow.from_pretrained(tmp_path / "flow").sample(3, classes=1, guidance=3.0)
    np.testing.assert_array_equal(drawing.flow(pair, Asked(count=3, label=1, guidance=3.0)).samples, expected)


@pytest.mark.parametrize(("scale", "asked", "w"), [(2.0, None, 2.0), ([1.0, 4.0], 3.0, 3.0), ([1.0, 4.0], None, 1.0)])
def test_the_teacher_has_the_guidance_of_the_flow(tmp_path, scale, asked, w):
    classes = {"classes": ["a", "b"], "shares": [0.5, 0.5], "drops": True}
    takes = Classes(**classes, scale=scale) if isinstance(scale, list) else Classes(**classes)
    flow, record = small_flow(condition=takes), {"image_shape": [1, 8, 8]}
    flow.guidance = {"kind": "cfg", "scale": scale, "interval": None}
    save_model(flow, tmp_path / "flow", record=record)
    save_model(small_teacher(condition=Classes(**classes)), tmp_path / "teacher", record=record)
    pair = Models([str(tmp_path / "flow")])[str(tmp_path / "flow")]
    expected = Teacher.from_pretrained(tmp_path / "teacher").sample(3, nfe=5, classes=1, guidance=w)
    found = drawing.teacher(pair, Asked(count=3, nfe=5, label=1, guidance=asked)).samples
    np.testing.assert_array_equal(found, expected)
    save_model(small_teacher(condition=Classes(**classes | {"drops": False})), tmp_path / "teacher", record=record)
    assert Models([str(tmp_path / "flow")])[str(tmp_path / "flow")].teacher is None
    with pytest.raises(UserError, match="the teacher knows no class alone"):
        Models([str(tmp_path / "flow")], teacher=str(tmp_path / "teacher"))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_way_between_two_seeds_begins_and_ends_at_theirs(ve, steps):
    way = drawing.between(ve, Asked(seed=5, steps=steps), 9, frames=5).samples
    for seed, found in ((5, way[0]), (9, way[-1])):
        end = drawing.flow(ve, Asked(seed=seed, count=1, steps=steps)).samples[0]
        assert np.abs(found.astype(int) - end).max() <= 1  # another batch size, another rounding
    assert len({frame.tobytes() for frame in way}) == 5


def test_what_turns_is_as_large_as_noise_and_even_in_angle():
    a, b = (Streams(seed, "prior", range(1)).normal((3, 16, 16)) for seed in (0, 1))
    way = drawing.turned(a, b, torch.linspace(0, 1, 9)).flatten(1)
    torch.testing.assert_close(way[0], a.flatten())
    torch.testing.assert_close(way[-1], b.flatten())
    norms = way.norm(dim=1)
    assert min(a.norm(), b.norm()) - 1e-3 <= norms.min() <= norms.max() <= max(a.norm(), b.norm()) + 1e-3
    units = way / norms[:, None]
    angles = (units[1:] * units[:-1]).sum(1).clamp(-1, 1).acos()
    torch.testing.assert_close(angles, angles[:1].expand(8), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(drawing.turned(a, a, torch.tensor([0.5])), a)


def test_points_are_dots_where_they_are():
    pixels = np.asarray(picture(Answer(np.array([[0.6, 0.3]], np.float32), 0.0, 1)))
    rows, columns = np.nonzero((pixels != 255).any(-1))
    assert abs(columns.mean() - SIDE * (0.5 + 0.6 / (2 * REACH))) <= 1
    assert abs(rows.mean() - SIDE * (0.5 - 0.3 / (2 * REACH))) <= 1


@pytest.mark.parametrize(("name", "suffix"), [("sound", "wav"), ("text", "txt")])
def test_what_is_downloaded_is_what_the_command_writes(folder, tmp_path, name, suffix):
    model, out = str(folder / name), tmp_path / f"samples.{suffix}"
    main(["sample", "--model", model, "--n", "3", "--seed", "5", "--device", "cpu", "--out", str(out)])
    shown = show(drawing.flow(Models([model])[model], Asked(seed=5, count=3)))
    assert getattr(shown, suffix) == out.read_bytes()
    assert [shown.picture is None, shown.wav is None, shown.txt is None] == [
        name == "text",
        name == "text",
        name != "text",
    ]


def test_texts_have_a_way_between_seeds_too(folder):
    pair = Models([str(folder / "text")])[str(folder / "text")]
    lines = show(drawing.between(pair, Asked(seed=5), 9, frames=3)).txt.decode()
    for seed, found in ((5, lines[:12]), (9, lines[-13:-1])):
        assert found == show(drawing.flow(pair, Asked(seed=seed, count=1))).txt.decode()[:-1]


def test_what_cannot_be_shown_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="holds a teacher; the demo shows flows"):
        Models([str(folder / "models/teacher/ve")])
    with pytest.raises(UserError, match="is of other data or dynamics"):
        Models([str(folder / "points")], teacher=str(folder / "models/teacher/ve"))
    with pytest.raises(UserError, match="there is no such folder"):
        Models([str(tmp_path / "gone")])


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    assert "gradio is not installed; pip install 'ifm[demo]'" in str(ended.value.code)


def test_what_is_this_machine_alone():
    assert loopback("127.0.0.1")
    assert loopback("::1")
    assert loopback("localhost")
    assert not loopback("0.0.0.0")
    assert not loopback("example.org")


@pytest.fixture(scope="module")
def page(folder):
    """The page's address, of `ifm demo` in a process of its own."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs the extra [demo]: gradio is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = [f"--model={folder / name}" for name in ("models/flow/ve", "models/flow/trig", "points", "sound", "text")]
    env = on_cpus(OMP_NUM_THREADS="1", GRADIO_TEMP_DIR=str(folder / "gradio"))
    words = [sys.executable, "-m", "ifm", "demo", *models, "--port", str(port)]
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.2)
    assert process.poll() is None, process.stderr.read()[-2000:]
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.wait(120)


PIXELS = """(async () => {{
  const image = document.querySelector("#{name} img");
  if (!image || !image.complete || !image.naturalWidth) return "";
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const canvas = Object.assign(document.createElement("canvas"), {{width, height}});
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL();
}})()"""


def test_a_click_shows_other_samples_and_the_same_seed_the_same(page, browser, tmp_path):
    flow, teacher = PIXELS.format(name="flow"), PIXELS.format(name="teacher")

    def seed(number):
        opened.run(
            f"""(() => {{ const box = document.querySelector("#seed input"); box.value = "{number}";
            box.dispatchEvent(new Event("input", {{bubbles: true}}));
            box.dispatchEvent(new Event("blur")); box.dispatchEvent(new Event("change", {{bubbles: true}})); }})()"""
        )

    def other(pixels, than):
        return opened.until(f"(async () => {{ const now = await {pixels}; return now !== {than!r} && now; }})()")

    with tab(browser, tmp_path / "profile") as opened:
        opened.open(page)
        first, theirs = opened.until(flow), opened.until(teacher)
        assert first != theirs
        opened.run('document.querySelector("#new-noise").click()')
        clicked = other(flow, first)
        assert int(opened.run('document.querySelector("#seed input").value')) != 0
        assert other(teacher, theirs)
        seed(0)
        assert other(flow, clicked) == first
        assert "1 evaluation" in opened.run('document.querySelector("#flow-time").innerText')
        assert "17 evaluations" in opened.until('document.querySelector("#teacher-time").innerText')
        opened.run('[...document.querySelectorAll("button")].find((one) => /Between two/.test(one.innerText)).click()')
        opened.until('!!document.querySelector("#interpolate")')
        opened.run('document.querySelector("#interpolate").click()')
        assert opened.until(PIXELS.format(name="way"))
        assert opened.errors == []
        opened.open(page, width=390)
        opened.until(flow)
        assert opened.run("document.documentElement.scrollWidth") <= 390
        cut_off = ("AbortError", "Connection errored out")  # what the page that was left had asked for
        assert not [error for error in opened.errors if not any(word in error for word in cut_off)]


def test_sounds_are_played_and_texts_are_read(page, browser, tmp_path):
    def choose(model):
        opened.run("""(() => { const box = document.querySelector("#model input"); box.focus(); box.click(); })()""")
        opened.until("""!!document.querySelector("[role=option]")""")
        opened.run(
            f"""[...document.querySelectorAll("[role=option]")].find((one) => one.innerText.trim().endsWith("/{model}"))
            .dispatchEvent(new MouseEvent("mousedown", {{bubbles: true}}))"""
        )

    with tab(browser, tmp_path / "profile") as opened:
        opened.open(page)
        opened.until(PIXELS.format(name="flow"))
        choose("sound")
        wav = opened.until("""document.querySelector("#flow-sound a[download]")?.href""")
        data = urllib.request.urlopen(wav, timeout=20).read()
        assert data[:4] == b"RIFF"
        opened.until(PIXELS.format(name="flow"))
        choose("text")
        read = opened.until("""document.querySelector("#flow-texts textarea")?.value""")
        opened.run("HTMLAnchorElement.prototype.click = function () { window.downloaded = this.href; }")
        # A click does nothing until the button has its file.
        txt = opened.until("""(document.querySelector("#flow-txt")?.click(), window.downloaded)""")
        assert urllib.request.urlopen(txt, timeout=20).read().decode() == read
        assert not opened.run("""!!document.querySelector("#flow img") || !!document.querySelector("#flow-sound")""")
        assert opened.errors == []


def test_the_page_asks_nothing_of_others_and_listens_here_alone(page):
    text = urllib.request.urlopen(page, timeout=20).read().decode()
    assert not re.search(r'(?:src|href)="https?://(?!127\.0\.0\.1)[^"]*\.(?:js|css|woff2?)', text)
    port = int(page.rstrip("/").rpartition(":")[2])
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    hosts = {
        fields[1].split(":")[0]
        for fields in listening
        if int(fields[1].split(":")[1], 16) == port and fields[3] == "0A"
    }
    assert hosts == {"0100007F"}
