"""The exact teacher against brute force, closed forms and limits, and the solver against it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ifm import config, dynamics, exact, pretrained
from ifm.data.arrays import ProcessedMetadata, ProcessedSplit
from ifm.exact import ExactTeacher, gaussian_flow_map
from ifm.random import Streams
from ifm.sampling import teacher_sampler
from ifm.solver import solve_ode
from pipeline.runner import paths
from pipeline.runner.stage import Stage
from pipeline.stages import teacher as teacher_stage
from tests.support.exact import GaussianDenoiser, PointsDenoiser

NAMES = list(dynamics.DYNAMICS)
POINTS = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.0, -0.7]], dtype=torch.float64)


def points(n, dims, seed=0):
    return torch.rand(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def states(d, shape, n=32):
    """Points on the marginals at random times of the whole range: x_t [n, *shape], t [n]."""
    u = Streams(1, "time", range(n)).uniform().double()
    low = max(d.t_min, 0.01)
    t = low * (d.t_max / low) ** u
    z = d.draw_noise(shape, generator=Streams(0, "noise", range(n))).double()
    return d.perturb(torch.zeros(n, *shape, dtype=torch.float64), z=z, t=t), t


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dims", [1, 2, 64])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_equals_brute_force(name, dims, chunk, monkeypatch):
    """One piece or many, for every dimension: the same posterior mean."""
    monkeypatch.setattr(exact, "CHUNK_BYTES", 8 * dims * chunk)
    d, data = dynamics.build(name), points(50, dims)
    x_t, t = states(d, (dims,))
    torch.testing.assert_close(ExactTeacher(data, d)(x_t, t), PointsDenoiser(d, data)(x_t, t), rtol=1e-9, atol=1e-11)


def test_images_are_read_from_uint8_and_keep_their_shape():
    d = dynamics.build("ve")
    images = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x_t, t = states(d, (3, 4, 4))
    by_hand = PointsDenoiser(d, images.flatten(1).double() / 127.5 - 1)(x_t.flatten(1), t)
    torch.testing.assert_close(ExactTeacher(images, d)(x_t, t).flatten(1), by_hand)
    assert ExactTeacher(images, d)(x_t.float(), t.float()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"x_t must have shape \[B, 3, 4, 4\], got \(32, 48\)"):
        ExactTeacher(images, d)(x_t.flatten(1), t)
    with pytest.raises(ValueError, match="n > 0"):
        ExactTeacher(images[:0], d)


@pytest.mark.parametrize("name", ["ve", "rf"])
def test_many_gaussian_points_have_the_gaussians_denoiser(name):
    """A sample of N(mu, s^2) within its Monte Carlo error of the closed form, where x_t is likely."""
    d, n = dynamics.build(name), 200_000
    mu, s = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.5, 0.2], dtype=torch.float64)
    draws = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.full((16,), 0.5, dtype=torch.float64)
    x_t = d.perturb(mu + s * draws[:16] / 2, z=draws[16:32] / 2, t=t)
    closed = GaussianDenoiser(d, mu=mu, s=s)
    assert (ExactTeacher(mu + s * draws, d)(x_t, t) - closed(x_t, t)).abs().max() < 0.01
    torch.testing.assert_close(gaussian_flow_map(d, x_t, t, mu=mu, s=s), closed.flow_map(x_t, t))


def test_a_gaussian_has_no_closed_map_under_pfgmpp():
    with pytest.raises(ValueError, match="pfgmpp"):
        gaussian_flow_map(dynamics.build("pfgmpp"), torch.ones(1, 2), torch.ones(1), mu=torch.zeros(2), s=torch.ones(2))


def test_pfgmpp_tends_to_ve():
    """The difference falls as 1 / D, and D = 10^12 has not lost its digits."""
    ve, data = dynamics.build("ve"), points(30, 8)
    x_t, t = states(ve, (8,))
    limit = ExactTeacher(data, ve)(x_t, t)
    errors = [
        (ExactTeacher(data, dynamics.build("pfgmpp", augmented_dimensions=D))(x_t, t) - limit).abs().max().item()
        for D in (1e4, 1e6, 1e12)
    ]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)
    assert errors[2] < 1e-9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0.0, 1e-30, 0.002])
def test_small_times_give_the_data_point_that_is_near(name, dtype, t):
    """Even where float32 cannot hold t^2, and at t = 0 itself."""
    d = dynamics.build(name)
    teacher = ExactTeacher(points(200, 64), d)
    on = points(200, 64)[:10]
    found = teacher(on.to(dtype), torch.full((10,), t, dtype=dtype))
    torch.testing.assert_close(found.double(), on, rtol=0, atol=1e-7 if dtype == torch.float32 else 1e-12)
    if name != "pfgmpp":  # whose tails give far points a share
        off = on + 0.05 * torch.sin(torch.arange(64.0, dtype=torch.float64))
        found = teacher(off.to(dtype), torch.full((10,), t, dtype=dtype))
        torch.testing.assert_close(found.double(), on, rtol=0, atol=1e-6)


def test_ties_at_time_zero_share():
    teacher = ExactTeacher(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), dynamics.build("ve"))
    assert torch.equal(teacher(torch.zeros(1, 2), torch.zeros(1)), torch.zeros(1, 2))


def test_rectified_flow_starts_at_the_mean():
    data = points(9, 3)
    found = ExactTeacher(data, dynamics.build("rf"))(torch.randn(4, 3).double(), torch.ones(4).double())
    torch.testing.assert_close(found, data.mean(dim=0).expand(4, 3))


@pytest.mark.parametrize("name", NAMES)
def test_paths_end_on_data_points(name):
    d = dynamics.build(name)
    teacher = ExactTeacher(POINTS, d)
    x_T = d.prior((2,), generator=Streams(0, "prior", range(300)))
    distance, nearest = torch.cdist(solve_ode(teacher, x_T, dynamics=d, times=d.solver_times(40)).double(), POINTS).min(
        dim=1
    )
    assert (distance < 0.02).double().mean() > 0.98
    assert bool((torch.bincount(nearest, minlength=3) / 300 > 0.2).all())
    assert teacher_sampler(teacher, nfe=5).name == "teacher-heun-nfe005"


@pytest.mark.parametrize("name", NAMES)
def test_heun_with_the_exact_teacher_is_of_second_order(name):
    """Down to t = 0.3, before the paths have chosen their points: halving the step quarters the error."""
    ends = {"ve": 5.0, "pfgmpp": 5.0, "trig": 1.3734}  # of noise level 5
    d = dynamics.build(name, **({"t_max": ends[name]} if name in ends else {}))
    teacher = ExactTeacher(POINTS, d)
    x_T = d.prior((2,), generator=Streams(0, "prior", range(128))).double()

    def solve(steps):
        times = torch.linspace(d.t_max**0.5, 0.3**0.5, steps + 1, dtype=torch.float64) ** 2
        return solve_ode(teacher, x_T, dynamics=d, times=times)

    fine = solve(1024)
    errors = [(solve(steps) - fine).norm().item() for steps in (32, 64, 128)]
    for coarse, halved in pairwise(errors):
        assert coarse / halved == pytest.approx(4, rel=0.1)


def test_derivatives_pass_through_it():
    """jacrev of the posterior mean is its covariance over b^2: symmetric, without negative eigenvalues."""
    teacher = ExactTeacher(POINTS, dynamics.build("ve"))
    jacobian = torch.func.jacrev(lambda x: teacher(x[None], torch.tensor([0.7]).double())[0])(POINTS[0] * 0.3)
    torch.testing.assert_close(jacobian, jacobian.T)
    assert torch.linalg.eigvalsh(jacobian).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_are_exact(name, tmp_path):
    images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    teacher = ExactTeacher(images, dynamics.build(name))
    record = {"image_shape": [1, 4, 4], "train_images": 0}
    pretrained.save_exact_teacher(teacher, tmp_path / "a", record=record)
    pretrained.save_exact_teacher(teacher, tmp_path / "b", record=record)
    again = pretrained.load_teacher(tmp_path / "a")
    assert isinstance(again, ExactTeacher)
    x_t, t = states(teacher.dynamics, (1, 4, 4))
    assert torch.equal(again(x_t, t), teacher(x_t, t))
    assert pretrained.describe(tmp_path / "a") == pretrained.describe(tmp_path / "b")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"data.safetensors", "ifm.json"}


@pytest.mark.parametrize("flip", [False, True])
def test_the_stage_writes_the_training_images_and_their_mirror_images(flip, tmp_path, monkeypatch):
    values = config.read_params(Path(__file__).parents[2] / "params.yaml")
    values["teacher"]["kind"], values["flow"]["init"] = "exact", "scratch"
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), np.uint8)
    monkeypatch.chdir(tmp_path)
    paths.PROCESSED.mkdir(parents=True)
    np.save(paths.PROCESSED / "train-00000.npy", images)
    ProcessedMetadata(
        source="digits", name=None, image_size=8, channels=1, classes=None, random_flip=flip, mean=[0.0], std=[1.0],
        splits={"train": ProcessedSplit(count=6, shards=["train-00000.npy"], class_counts=None, sha256="0")},
    ).write(paths.PROCESSED)  # fmt: skip
    stage = Stage("teacher-rf", "teacher", config.parse(values), values, "rf")
    teacher_stage.work(stage)
    data = pretrained.load_teacher(paths.teacher("rf")).data.reshape(-1, 1, 8, 8).numpy()
    assert (data == (np.concatenate([images, images[..., ::-1]]) if flip else images)).all()
    description = pretrained.describe(paths.teacher("rf"))
    assert (description["parameters"], description["train_images"]) == (0, 0)
    assert paths.curve("teacher-rf").read_text() == "step,loss,loss_max,grad_norm,lr,skipped,ema_distance\n"
    assert stage.run.timings["train_seconds"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_oracles_follow_the_device_of_their_input(name):
    """On tensors of a GPU that exist in name only: torch refuses to mix them with the host's, as a real one does."""
    d, mu, s = dynamics.build(name), torch.zeros(2), torch.full((2,), 0.5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x_t, t = torch.empty(5, 2, device="cuda"), torch.ones(5, device="cuda")
        found = [PointsDenoiser(d, POINTS.float())(x_t, t)]
        if name != "pfgmpp":
            gaussian = GaussianDenoiser(d, mu=mu, s=s)
            found += [gaussian(x_t, t), gaussian.flow_map(x_t, t)]
        assert [x.device.type for x in found] == ["cuda"] * len(found)
        with pytest.raises(Exception, match="device"):
            mu.view(1, 2).expand(5, 2) + x_t
