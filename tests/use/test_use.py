"""Models without the pipeline: the stage's samples, diffusers folders and graphs that compute the same, model cards."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from PIL import Image

import ifm
from ifm import pretrained
from ifm.cli.main import main
from ifm.conditions.classes import Classes, ClassLabels
from ifm.errors import UserError
from ifm.modalities.images import to_uint8
from ifm.pretrained import save_exact_teacher, save_model
from ifm.random import Streams
from ifm.recorded import Way
from ifm.sampling import draw_samples, flow_sampler, teacher_sampler
from ifm.steps import renoising_times, sample, sample_chained, way_of
from ifm.use import diffusers_folder, graphs
from ifm.use.card import Evaluation, escape, model_card, read_evaluation
from ifm.use.diffusers_folder import quiet_diffusers, write_folder
from ifm.use.diffusers_pipeline import IntegrationFlowPipeline
from ifm.use.drawing import choose, data_shape
from ifm.use.models import IntegrationFlow, IntervalFlow, Teacher
from tests.support.core_alone import BLOCKER
from tests.support.small_models import KINDS, draws_of, small_flow, small_teacher

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with ve/, points/, teacher/ and exact/."""
    folder = tmp_path_factory.mktemp("models")
    save_model(small_flow(), folder / "ve", record={"image_shape": [1, 8, 8], "objective": "trajectory"})
    save_model(small_flow(shape=(2,)), folder / "points", record={"image_shape": [2]})
    save_model(small_teacher(), folder / "teacher", record={"image_shape": [1, 8, 8]})
    from ifm.exact import ExactTeacher

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8))
    save_exact_teacher(ExactTeacher(images, small_flow().dynamics), folder / "exact", record={})
    return folder


def stage_samples(model, sampler, *, count, batch_size, seed):
    """As the stage `sample` draws them."""
    model = model.to(memory_format=torch.channels_last)
    drawn = draw_samples(
        sampler(model),
        dynamics=model.dynamics,
        shape=data_shape(model),
        count=count,
        batch_size=batch_size,
        seed=seed,
        device=CPU,
        condition=model.condition_kind,
    )
    return drawn.images


# --- sample ---------------------------------------------------------------------------------------------------------


def test_importing_ifm_is_quick_and_samples_need_no_pipeline(saved, tmp_path):
    """`import ifm` brings no torch; sampling works where dvc, mlflow and others are not installed."""
    code = f"{BLOCKER}\nimport ifm; assert 'torch' not in sys.modules\n"
    code += f"from ifm import IntegrationFlow; flow = IntegrationFlow.from_pretrained({str(saved / 've')!r})\n"
    code += f"import numpy; numpy.save({str(tmp_path / 'a.npy')!r}, flow.sample(3))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert np.array_equal(np.load(tmp_path / "a.npy"), IntegrationFlow.from_pretrained(saved / "ve").sample(3))
    assert ifm.IntegrationFlow is IntegrationFlow
    with pytest.raises(AttributeError, match="nothing"):
        ifm.nothing  # noqa: B018


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_stages_byte_for_byte(tmp_path, kind):
    flow = small_flow(**KINDS[kind])
    save_model(flow, tmp_path / "m", record={})
    loaded = IntegrationFlow.from_pretrained(tmp_path / "m")
    ways = {"one_step": 1, "renoise": 3} | ({"anchor": 2} if flow.takes_anchor else {})
    ways |= {"chain": 3} if isinstance(flow, IntervalFlow) else {}
    for name, steps in ways.items():
        expected = stage_samples(
            flow, lambda m, n=name, s=steps: flow_sampler(m, kind=n, steps=s), count=7, batch_size=4, seed=3
        )
        found = loaded.sample(7, steps=steps, seed=3, sampler=name, batch_size=4)
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected), name
        fewer = loaded.sample(2, steps=steps, seed=3, sampler=name, batch_size=2).astype(int)
        assert np.abs(fewer - expected[:2]).max() <= 1, name


def test_a_teachers_and_points_samples_are_the_stages(saved):
    teacher = Teacher.from_pretrained(str(saved / "teacher"))
    expected = stage_samples(small_teacher(), lambda m: teacher_sampler(m, nfe=5), count=5, batch_size=3, seed=1)
    assert np.array_equal(teacher.sample(5, nfe=5, seed=1, batch_size=3), expected)
    points = IntegrationFlow.from_pretrained(saved / "points").sample(5, seed=1)
    assert points.dtype == np.float32
    expected = stage_samples(
        small_flow(shape=(2,)), lambda m: flow_sampler(m, kind="one_step", steps=1), count=5, batch_size=200, seed=1
    )
    assert np.array_equal(points, expected)


def test_the_default_sampler_is_what_the_flow_can_do():
    assert choose(small_flow()).sampler == "one_step"
    assert choose(small_flow(), steps=2).sampler == "anchor"
    assert choose(small_flow(two_times=True), steps=2).sampler == "chain"
    assert choose(small_flow(takes_anchor=False), steps=2).sampler == "renoise"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2, "sampler": "one_step"}, "one step"),
        ({"steps": 2, "sampler": "anchor"}, "takes no anchor"),
        ({"sampler": "chain"}, "objective interval"),
        ({"sampler": "other"}, "unknown sampler"),
        ({"batch_size": 0}, "a batch of one, got 1 and 0"),
    ],
)
def test_what_a_flow_cannot_do_is_said(options, said):
    with pytest.raises(ValueError, match=said):
        small_flow(takes_anchor=False).sample(1, **options)


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ({}, "anchor, renoise"),
        ({"takes_anchor": False}, "renoise"),
        ({"two_times": True}, "chain, anchor, renoise"),
        ({"two_times": True, "takes_anchor": False}, "chain, renoise"),
    ],
)
def test_only_what_a_flow_can_do_is_offered(kind, others, tmp_path):
    """By the model, by the pipeline for diffusers, and each of them works."""
    flow = small_flow(**kind)
    with pytest.raises(ValueError, match=f"for several this flow has {others}$"):
        flow.sample(1, steps=2, sampler="one_step")
    for sampler in others.split(", "):
        assert flow.sample(1, steps=2, sampler=sampler).shape == (1, 1, 8, 8)
    if not flow.takes_anchor and "chain" not in others:
        with pytest.raises(ValueError, match=r"for several steps use renoise$"):
            flow.sample(1, steps=2, sampler="chain")
    pipe = pipeline_of(flow, tmp_path)
    with pytest.raises(ValueError, match=f"this flow has {others}$"):
        pipe(num_inference_steps=2, sampler="one_step")
    for sampler in others.split(", "):
        assert len(pipe(batch_size=2, num_inference_steps=2, sampler=sampler).images) == 2


@pytest.mark.parametrize("batch_size", [0, -3])
def test_the_pipeline_makes_one_image_at_least(batch_size, tmp_path):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        pipeline_of(small_flow(), tmp_path)(batch_size=batch_size)


def asked_of_each(flow, labels, *, w):
    """ClassLabels within what the flow takes; w: one for all, or of each. None where it takes none."""
    if flow.condition_kind is None:
        return None
    told = None if flow.condition_kind.scale is None else torch.zeros(len(labels)) + w
    return ClassLabels(labels % len(flow.condition_kind.classes), told)


def pipeline_of(flow, folder):
    """The exported pipeline, as diffusers loads it."""
    from diffusers import DiffusionPipeline

    save_model(flow, folder / "m", record={})
    (folder / "out").mkdir()
    write_folder(flow, folder / "m", folder / "out")
    with quiet_diffusers():
        pipe = DiffusionPipeline.from_pretrained(folder / "out", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_package_lists_what_it_offers():
    assert {"IntegrationFlow", "Teacher", "__version__"} <= set(dir(ifm))
    assert all(hasattr(ifm, name) for name in dir(ifm))


@pytest.mark.parametrize("command", ["sample", "export", "evaluate", "doctor", "promote", "ui"])
def test_an_unknown_option_points_to_the_commands_own_help(command, capsys):
    needed = {
        "sample": "--model m --out o.npy", "export": "--model m --out o", "promote": "--metric fid",
        "evaluate": "--samples s --reference r",
    }.get(command, "")  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main([command, *needed.split(), "--setps", "3"])
    assert stop.value.code == 1
    said = f"ifm {command}: unrecognized arguments: --setps 3; ifm {command} --help lists the options\n"
    assert capsys.readouterr().err == said


def test_sampling_leaves_a_model_in_the_mode_it_was():
    flow = small_flow().train()
    flow.sample(1)
    assert flow.training


def test_the_command_writes_what_sample_gives(saved, tmp_path, capsys):
    flow = IntegrationFlow.from_pretrained(saved / "ve")
    expected = flow.sample(10, steps=2, seed=4, sampler="renoise", batch_size=3)
    common = ["--model", str(saved / "ve"), "--n", "10", "--steps", "2", "--seed", "4", "--sampler", "renoise"]
    for out in ("a.npy", "folder/", "grid.png"):
        main(["sample", *common, "--batch-size", "3", "--device", "cpu", "--out", f"{tmp_path}/{out}"])
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    files = sorted((tmp_path / "folder").iterdir())
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(10)]
    assert np.array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), expected[:, 0])
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert np.array_equal(grid[:32:4, :32:4, 0], expected[0, 0])  # the first tile, each pixel four wide
    assert "10 images [1, 8, 8]" in capsys.readouterr().out
    main(["sample", "--model", str(saved / "exact"), "--nfe", "3", "--n", "2", "--out", f"{tmp_path}/exact.npy"])
    assert np.load(tmp_path / "exact.npy").shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sample --model {m}/none/of/it --out {t}/a.npy", "none/of/it: there is no such folder"),
        ("sample --model {t} --out {t}/a.npy", "holds no ifm.json"),
        ("sample --model {m}/ve/ifm.json --out {t}/a.npy", "is a file; name the folder"),
        ("sample --model {m}/ve --revision v1 --out {t}/a.npy", "a revision (v1) is for the Hub's"),
        ("sample --model {m}/ve --out {t}/a.jpg", "must be a NAME.csv, a NAME.jsonl, a NAME.npy, a NAME.parquet, "),
        ("sample --model {m}/ve --out {m}", "not an empty folder"),
        ("sample --model {m}/ve --out {t}/a.npy --nfe 5", "--nfe: {m}/ve holds a flow"),
        ("sample --model {m}/teacher --out {t}/a.npy --steps 5", "--steps: {m}/teacher holds a teacher"),
        ("sample --model {m}/teacher --out {t}/a.npy --nfe 4", "odd number"),
        ("sample --model {m}/ve --out {t}/a.npy --steps 2 --sampler chain", "objective interval"),
        (
            "sample --model {m}/points --out {t}/a.png",
            "points [2]; write them to a NAME.csv, a NAME.npy or a NAME.parquet",
        ),
        ("export --model {m}/points --out {t}/a", "{m}/points: points have no pipeline in diffusers"),
        ("export --model {m}/teacher --out {t}/a", "ifm export takes flows"),
        ("export --model {m}/ve --out {m}", "not an empty folder"),
        ("export --model {m}/ve --out {t}/a --evaluation {m}/ve/ifm.json", "holds no figures"),
        ("export --model {m}/ve --out {t}/a --evaluation {t}/no.json", "cannot be read as JSON"),
        ("export --model {m}/ve --out {t}/a --grid {m}/ve/ifm.json", "is no PNG"),
        ("export --model {m}/ve --out {t}/a --private", "goes with --push-to-hub"),
        ("export --model {m}/ve --out {t}/a --push-to-hub a/b/c", "is no Hub id"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(saved, tmp_path, command, said):
    with pytest.raises(SystemExit) as stop:
        main(command.format(m=saved, t=tmp_path).split())
    assert said.format(m=saved, t=tmp_path) in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_kind_or_damaged_is_named(saved, tmp_path):
    for kind, holds in (("teacher", "a teacher"), ("exact", "an exact teacher")):
        with pytest.raises(UserError, match=f"{kind}: holds {holds}"):
            IntegrationFlow.from_pretrained(saved / kind)
    with pytest.raises(UserError, match="holds a flow, so IntervalFlow"):
        IntervalFlow.from_pretrained(saved / "ve")
    save_model(small_flow(), tmp_path / "m", record={})
    whole = (tmp_path / "m" / "ifm.json").read_text()
    damaged = {'{"kind": "flow"}': "'dynamics'", '{"kind": 1}': "kind 1", "{": "cannot be read", "[]": "an object"}
    for text, said in damaged.items():
        (tmp_path / "m" / "ifm.json").write_text(text)
        with pytest.raises(UserError, match=said):
            IntegrationFlow.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "ifm.json").write_text(whole)
    weights = next((tmp_path / "m").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        IntegrationFlow.from_pretrained(tmp_path / "m")


# --- diffusers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_diffusers_pipeline_computes_what_the_flow_does(tmp_path, kind):
    from diffusers import DiffusionPipeline

    flow = small_flow(**KINDS[kind])
    save_model(flow, tmp_path / "m", record={})
    (tmp_path / "out").mkdir()
    assert write_folder(flow, tmp_path / "m", tmp_path / "out") < 1e-5
    with quiet_diffusers():
        pipe = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    n, shape, dynamics = 3, data_shape(flow), flow.dynamics
    x_T, x_anchor = draws_of(n, shape=shape, scale=dynamics.t_max)
    condition = asked_of_each(flow, torch.tensor([0, 2, 1]), w=3.0)
    given = {"latents": x_T, "anchor": x_anchor, "class_labels": None if condition is None else condition.labels}
    given |= {} if condition is None or condition.w is None else {"guidance_scale": 3.0}
    x_anchor = x_anchor if flow.takes_anchor else None
    common = {"x_anchor": x_anchor, "condition": condition}

    def same(found, expected):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)

    one = sample(flow, x_T, **common)
    same(pipe(**given, output_type="latent").images, one)
    pil = np.stack([np.asarray(image) for image in pipe(**given).images])
    assert np.array_equal(pil, to_uint8(one).transpose(0, 2, 3, 1).reshape(pil.shape))
    same(pipe(**given, output_type="pt").images, (one / 2 + 0.5).clamp(0, 1))
    if flow.takes_anchor:
        found = pipe(**given, num_inference_steps=3, sampler="anchor", output_type="latent").images
        same(found, sample(flow, x_T, **common, steps=3))
    if isinstance(flow, IntervalFlow):
        found = pipe(**given, num_inference_steps=3, output_type="latent").images
        same(found, sample_chained(flow, x_T, **common, steps=3))
    again = Streams(0, "noise", range(n))
    noise = [dynamics.draw_noise(shape, generator=again) for _ in renoising_times(dynamics, 4)[1:]]
    sampler = flow_sampler(flow, kind="renoise", steps=4)
    draws = graphs.Draws(x_T, x_T if x_anchor is None else x_anchor, Streams(0, "noise", range(n)), condition)
    found = pipe(**given, noise=noise, num_inference_steps=4, sampler="renoise", output_type="latent").images
    same(found, sampler.run(draws))
    again = pretrained.load_flow(tmp_path / "out" / "unet")  # ours reads the exported folder
    same(sample(again, x_T, **common), one)
    if condition is not None:
        names = [flow.condition_kind.classes[i] for i in condition.labels.tolist()]
        same(pipe(**given | {"class_labels": names}, output_type="latent").images, one)
        for wrong in (3, -1, "d", [0, 3], []):
            with pytest.raises(ValueError, match=r"class_labels must be from 0 to [12], or names, got"):
                pipe(latents=x_T, class_labels=wrong)
        if condition.w is None:
            said = "this flow has guidance_scale 1 inside and takes no other, got 2"
        else:
            usual = asked_of_each(flow, condition.labels, w=flow.condition_kind.usual_scale)
            found = pipe(**given | {"guidance_scale": None}, output_type="latent").images
            same(found, sample(flow, x_T, **common | {"condition": usual}))
            assert not torch.allclose(found, one, atol=1e-2)
            said = "guidance_scale must be from .* to 4, got 5"
        with pytest.raises(ValueError, match=said):
            pipe(**given | {"guidance_scale": 2 if condition.w is None else 5})
    else:
        with pytest.raises(ValueError, match="this flow takes no class_labels"):
            pipe(latents=x_T, class_labels=0)


@pytest.mark.parametrize("kind", ["ve", "rf-paper-none", "vp-cosine", "trig-interval", "pfgmpp-cross"])
def test_recorded_samplers_are_those_of_the_exported_pipeline(tmp_path, kind):
    """Of measured numbers and of those between and beyond them: the same samplers, times and images."""
    flow = small_flow(**KINDS[kind])
    d, shape = flow.dynamics, data_shape(flow)
    times = [round(float(t), 4) for t in torch.linspace(0.6 * d.t_max, 0.01 * d.t_max, 3)]
    flow.samplers = {1: Way("one_step"), 4: Way("renoise", (d.t_max, *times))}
    if isinstance(flow, IntervalFlow):
        flow.samplers |= {2: Way("chain")}
    pipe = pipeline_of(flow, tmp_path)
    x_T, x_anchor = draws_of(2, shape=shape, scale=d.t_max)
    for steps in range(1, 7):
        way = way_of(flow, steps)
        name, found = pipe._sampler(None, steps, None)
        assert name == way.sampler
        if way.times:
            assert found == pytest.approx(list(way.times), rel=1e-6)
        again = Streams(0, "noise", range(2))
        noise = [d.draw_noise(shape, generator=again) for _ in range(steps - 1)]
        draws = graphs.Draws(x_T, x_anchor, Streams(0, "noise", range(2)), None)
        expected = flow_sampler(flow, kind="selected", steps=steps).run(draws)
        given = {"latents": x_T, "anchor": x_anchor, "noise": noise, "output_type": "latent"}
        torch.testing.assert_close(pipe(**given, num_inference_steps=steps).images, expected, atol=5e-5, rtol=5e-5)
    with pytest.raises(ValueError, match="times are for sampler renoise: one for each of 2 steps"):
        pipe(num_inference_steps=2, sampler="renoise", times=[d.t_max])
    own = pipe(**given, num_inference_steps=3, sampler="renoise", times=[d.t_max, *times[:2]]).images
    draws = graphs.Draws(x_T, x_anchor, Streams(0, "noise", range(2)), None)
    expected = flow_sampler(flow, kind="renoise", steps=3, times=[d.t_max, *times[:2]]).run(draws)
    torch.testing.assert_close(own, expected, atol=5e-5, rtol=5e-5)


def test_a_recorded_sampler_is_the_default_and_on_the_card(tmp_path, capsys):
    entries = {
        "1": {"sampler": "one_step", "metric": "fid", "value": 0.66},
        "2": {"sampler": "renoise", "times": [80.0, 0.8], "metric": "fid", "value": 0.44},
    }
    save_model(small_flow(), tmp_path / "m", record={"image_shape": [1, 8, 8], "samplers": entries})
    flow = IntegrationFlow.from_pretrained(tmp_path / "m")
    assert choose(flow, steps=2).way == Way("renoise", (80.0, 0.8))
    assert choose(flow, steps=2, sampler="renoise").way == Way("renoise")
    expected = draw_samples(
        flow_sampler(flow, kind="renoise", steps=2, times=[80.0, 0.8]), dynamics=flow.dynamics, shape=(1, 8, 8),
        count=3, batch_size=200, seed=0, device=CPU,
    ).images  # fmt: skip
    assert np.array_equal(flow.sample(3, steps=2), expected)
    assert not np.array_equal(flow.sample(3, steps=2, sampler="renoise"), expected)
    main(["sample", "--model", f"{tmp_path}/m", "--steps", "2", "--n", "3", "--out", f"{tmp_path}/a.npy"])
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    assert "flow, 2 evaluations, renoise at t = 80, 0.8, seed 0" in capsys.readouterr().out
    main(["export", "--model", f"{tmp_path}/m", "--format", "pt2", "--out", f"{tmp_path}/graph"])
    files = {"ifm.json": ""}
    torch.export.load(tmp_path / "graph" / "model.pt2", extra_files=files)
    assert json.loads(files["ifm.json"])["samplers"] == entries
    card = (tmp_path / "graph" / "README.md").read_text()
    assert "| evaluations: 2 | renoise at t = 80, 0.8 (fid 0.44) |" in card


def test_a_class_beside_an_intervals_end_is_a_part_of_its_own_for_diffusers(tmp_path):
    """diffusers' class slot has room for one of the two."""
    flow = small_flow(two_times=True, condition=Classes(classes=["a", "b"], shares=[0.5, 0.5]))
    pipe = pipeline_of(flow, tmp_path)  # which write_folder compares with the flow
    assert pipe.embedding.scale is None
    assert len(pipe(batch_size=2, num_inference_steps=2).images) == 2


def test_the_pipeline_draws_classes_by_shares_and_the_same_noise_for_each(tmp_path):
    pipe = pipeline_of(small_flow(**KINDS["trig-classes"]), tmp_path)

    def images(**given):
        common = {"batch_size": 3, "num_inference_steps": 2, "sampler": "renoise", "output_type": "latent"}
        return pipe(generator=torch.Generator().manual_seed(1), **common, **given).images

    free = images()
    assert torch.equal(images(class_labels=pipe._labels.clone()), free)  # the rest of the draws is the same
    drawn = pipe._class_labels(None, 4000, torch.Generator().manual_seed(0))
    from scipy import stats

    assert stats.chisquare(torch.bincount(drawn, minlength=3).numpy(), [800, 1200, 2000]).pvalue > 1e-3
    assert pipe._class_labels([2, 0], 3, None).tolist() == [2, 0, 2]


def test_an_exported_folder_is_a_model_for_ifm_and_for_diffusers_save_pretrained(saved, tmp_path):
    main(["export", "--model", str(saved / "ve"), "--out", str(tmp_path / "out"), "--title", "Ours"])
    images = IntegrationFlow.from_pretrained(saved / "ve").sample(3)
    assert np.array_equal(IntegrationFlow.from_pretrained(tmp_path / "out").sample(3), images)
    assert (tmp_path / "out" / "README.md").read_text().count("# Ours\n") == 1
    with quiet_diffusers():
        pipe = IntegrationFlowPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    once, twice = (pipe(batch_size=2, generator=torch.Generator().manual_seed(5)).images for _ in range(2))
    assert [a.tobytes() for a in once] == [b.tobytes() for b in twice]
    assert once[0].size == (8, 8)
    assert once[0].tobytes() != once[1].tobytes()
    with pytest.raises(ValueError, match="two times"):
        pipe(sampler="chain")
    with pytest.raises(ValueError, match="repeat"):
        pipe(sampler="one_step", num_inference_steps=2)


def test_the_pipelines_prior_has_the_law_of_the_dynamics(tmp_path):
    flow = small_flow(name="pfgmpp")
    pipe = IntegrationFlowPipeline(unet=flow.network.model, **_constants(flow))
    D = flow.dynamics.augmented_dimensions
    z = pipe.draw_noise((4000, 1, 8, 8), torch.Generator().manual_seed(0)).flatten(1)
    ratio = 64 / z.square().sum(dim=1)  # chi2_D / D over chi2_64 / 64, as F with D and 64 degrees of freedom
    from scipy import stats

    assert stats.kstest(ratio.numpy(), stats.f(D, 64).cdf).pvalue > 1e-3
    assert stats.kstest(ratio.numpy(), stats.f(1e6, 64).cdf).pvalue < 1e-3  # a Gaussian's
    each = [torch.Generator().manual_seed(i) for i in range(3)]
    alone = pipe.draw_prior(1, [torch.Generator().manual_seed(2)])
    torch.testing.assert_close(pipe.draw_prior(3, each)[2:], alone)


BESIDE = "diffusers_embedding.py"


def _constants(flow):
    index = diffusers_folder._index(flow)
    return {key: value for key, value in index.items() if not key.startswith("_") and key != "unet"}


def test_the_pipelines_file_needs_torch_and_diffusers_alone():
    tree = ast.parse(diffusers_folder.PIPELINE.read_text() + diffusers_folder.PIPELINE.with_name(BESIDE).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} == {"math", "torch", "diffusers", "PIL"}  # PIL is diffusers' own


# --- graphs ---------------------------------------------------------------------------------------------------------


SLOW = [pytest.param(kind, form, marks=pytest.mark.slow) for kind in KINDS for form in ("pt2", "onnx")]


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("points", "pt2"),
        ("rf-interval-scale-cross", "pt2"),  # with all that a graph may take
        pytest.param("rf-interval-scale-cross", "onnx", marks=pytest.mark.slow),
        *SLOW,
    ],
)
def test_graphs_compute_what_the_flow_does_for_any_batch(tmp_path, kind, form):
    if form == "onnx":
        pytest.importorskip("onnxscript")
        onnxruntime = pytest.importorskip("onnxruntime")
    flow = small_flow(shape=(2,)) if kind == "points" else small_flow(**KINDS[kind])
    written = graphs.write_graph(flow, tmp_path, kind=form)
    assert written.largest_difference < 1e-5
    for n in (1, 2, 70):
        x_T, x_anchor = draws_of(n, shape=data_shape(flow), scale=flow.dynamics.t_max)
        inputs = {"x_T": x_T, "x_anchor": x_anchor} if flow.takes_anchor else {"x_T": x_T}
        condition = asked_of_each(flow, torch.arange(n), w=2 + torch.arange(n) / n)
        inputs |= {} if condition is None else {"class_labels": condition.labels}
        inputs |= {} if condition is None or condition.w is None else {"guidance": condition.w}
        if form == "pt2":
            found = torch.export.load(written.path).module()(*inputs.values())
        else:
            session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(["x_0_hat"], {k: v.numpy() for k, v in inputs.items()})[0])
        expected = sample(flow, x_T, x_anchor=inputs.get("x_anchor"), condition=condition)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_graph_that_differs_is_refused(tmp_path):
    flow = small_flow(shape=(2,))
    with torch.no_grad():
        flow.network.head.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="differs from the model by nan"):
        graphs.write_graph(flow, tmp_path, kind="pt2")


@pytest.mark.parametrize(
    ("kind", "form"), [("points", "pt2"), ("points", "onnx"), pytest.param("ve", "pt2", marks=pytest.mark.slow)]
)
def test_the_cards_code_for_a_graph_runs(saved, tmp_path, monkeypatch, capsys, kind, form):
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    main(["export", "--model", str(saved / kind), "--out", str(tmp_path / "out"), "--format", form])
    assert "differs from the model by at most" in capsys.readouterr().out
    text = (tmp_path / "out" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    names: dict = {}
    exec(code, names)
    assert names["x_0_hat"].shape == (16, *((2,) if kind == "points" else (1, 8, 8)))
    assert (tmp_path / "out" / "samples.png").is_file() == (kind == "ve")


def test_packages_that_are_missing_are_named_before_any_work(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(SystemExit) as stop:
        main(["export", "--model", str(saved / "ve"), "--out", str(tmp_path / "out"), "--format", "onnx"])
    assert str(stop.value).startswith("ifm: --format onnx needs onnxscript: pip install")
    assert not (tmp_path / "out").exists()


# --- cards ----------------------------------------------------------------------------------------------------------

NASTY = "a|b <script>x</script> *c* [d](http://e) `f` _g_ # ![h](i)\n\n# j"


def test_a_cards_texts_are_shown_as_they_are():
    description = {"dynamics": {"name": "ve", "t_max": 80.0}, "image_shape": [1, 8, 8], "objective": NASTY}
    rows = {NASTY: {"nfe": 1, "fid": 1.25, "fid_sd": 0.5, "n_samples": 10, "seeds": 3}, "b": {"nfe": 2, "fid": 2.0}}
    text = model_card(
        description,
        title=NASTY,
        usage="USE",
        library="diffusers",
        data=NASTY,
        license_id="mit\nx: y",
        evaluation=Evaluation(rows, {"extractor": NASTY}),
    )
    _, front, body = text.split("---\n", 2)
    stated = yaml.safe_load(front)
    assert (stated["license"], stated["license_name"]) == ("other", "mit-x-y")
    assert "datasets" not in stated
    (result,) = stated["model-index"][0]["results"]
    assert (stated["model-index"][0]["name"], result["dataset"]["name"]) == (" ".join(NASTY.split()),) * 2
    page = MarkdownIt("gfm-like", {"linkify": False}).render(body)
    assert "<script" not in page
    assert page.count("<a ") == 1  # the paper's
    assert "<img" not in page
    assert page.count("<h1>") == 1
    shown = NASTY.replace("\n\n", " ").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<h1>{shown}</h1>" in page
    assert f"Trained on: {shown}." in page
    assert f"<td>{shown}</td>\n<td>1</td>\n<td>1.25 ± 0.5</td>" in page
    assert "does not compare with published" in page


def checked(text: str) -> ModelCardData:
    """The card's data, read and written again by the Hub's own library, which raises where the form is wrong."""
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert ModelCardData(**yaml.safe_load(data.to_yaml())).to_dict() == data.to_dict()
    return data


def test_a_cards_metadata_pass_the_hubs_check():
    """A model-index with the model's own figures and their protocol, task, licence and data set."""
    description = {"dynamics": {"name": "ve", "t_max": 80.0}, "image_shape": [3, 32, 32]}
    rows = {
        "flow-one_step-nfe001": {"model": "flow", "nfe": 1, "fid": 3.5, "fid_sd": 0.1, "kid": float("nan"),
                                 "n_samples": 50_000, "seeds": 3},
        "flow-selected-nfe002": {"model": "flow", "nfe": 2, "fid": 2.5, "recall": None},
        "teacher-heun-nfe035": {"model": "teacher", "nfe": 35, "fid": 2.0},
        "data-test": {"model": "data", "nfe": 0, "fid": 1.0},
    }  # fmt: skip
    protocol = {"extractor": "inception", "checksum": "ab", "split": "train", "resize": "clean-fid: PIL bicubic"}
    known = {"title": "My flow", "usage": "u", "library": "diffusers", "evaluation": Evaluation(rows, protocol)}
    data = checked(model_card(description, data="uoft-cs/cifar10", license_id="Apache-2.0", **known))
    assert (data.license, data.datasets, data.library_name) == ("apache-2.0", ["uoft-cs/cifar10"], "diffusers")
    assert data.pipeline_tag == "unconditional-image-generation"
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [("fid", 3.5), ("fid", 2.5)]
    first = data.eval_results[0]
    assert (first.task_type, first.dataset_type, first.dataset_split) == (data.pipeline_tag, "uoft-cs/cifar10", "train")
    assert first.metric_name == "FID, 1 evaluation (flow-one_step-nfe001)"
    assert first.metric_args == {
        "nfe": 1, "n_samples": 50_000, "seeds": 3, "extractor": "inception", "checksum": "ab",
        "resize": "clean-fid: PIL bicubic",
    }  # fmt: skip
    folder = checked(model_card(description, data="my photos!", license_id="Mine, 1.0", classes=["a"], **known))
    assert (folder.license, folder.license_name, folder.pipeline_tag) == ("other", "mine-1.0", None)
    assert (folder.eval_results[0].dataset_name, folder.eval_results[0].dataset_type) == ("my photos!", "my-photos")
    assert folder.eval_results[0].task_type == "class-conditional-image-generation"
    bare = checked(model_card({"dynamics": {"name": "rf"}, "image_shape": [2]}, title="t", usage="u", library=None))
    assert (bare.eval_results, bare.pipeline_tag, bare.license) == (None, None, None)


def test_a_card_names_the_hubs_data_set_and_reads_both_forms_of_figures(tmp_path):
    description = {"dynamics": {"name": "rf"}}
    text = model_card(description, title="t", usage="u", library=None, data="uoft-cs/cifar10")
    assert yaml.safe_load(text.split("---\n")[1])["datasets"] == ["uoft-cs/cifar10"]
    stage = read_evaluation(ROOT / "reports" / "metrics" / "ve.json")
    assert stage.protocol["extractor"] == "classifier"
    row = json.loads((ROOT / "reports" / "metrics" / "ve.json").read_text())["flow-one_step-nfe001"]
    card = model_card(description, title="t", usage="u", library=None, evaluation=stage)
    assert f"| {escape('flow-one_step-nfe001')} | 1 | {row['fid']:.4g} ± {row['fid_sd']:.2g} |" in card
    (tmp_path / "e.json").write_text(json.dumps({"protocol": {"extractor": "inception"}, "figures": {"fid": 3.5}}))
    card = model_card(description, title="t", usage="u", library=None, evaluation=read_evaluation(tmp_path / "e.json"))
    assert "| samples |  | 3.5 |" in card
    assert "does not compare" not in card
