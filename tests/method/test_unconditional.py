"""Without a condition, training is what it was before there were any: a plain loop gives the same bytes."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ifm import anchors, dynamics, losses
from ifm.modalities.images import to_unit
from ifm.model import IntegrationFlow, Teacher
from ifm.objectives.trajectory import draw_stored_index, trajectory_phase
from ifm.random import EndlessShuffle, Streams
from ifm.training.averages import ema_decay
from ifm.training.flow import train_flow
from ifm.training.loop import learning_rate
from ifm.training.teacher import train_teacher
from ifm.trajectories import StoredTrajectories
from tests.support.training import settings, unet

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), np.uint8)
STATES = np.random.default_rng(1).normal(size=(24, 2, 1, 8, 8)).astype(np.float16)
SEED, HUBER = 3, 0.1


def plainly_trained(model, loss, chosen):
    """AdamW, clipping and an average, in the words of PyTorch alone. loss: of a step."""
    parameters = list(model.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=chosen.lr, weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in parameters]
    for step in range(chosen.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, chosen)
        loss(step).backward()
        torch.nn.utils.clip_grad_norm_(parameters, chosen.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - ema_decay(step, chosen.ema_decay))
    with torch.no_grad():
        for p, mean in zip(parameters, average, strict=True):
            p.copy_(mean)
    return model


def equal(a, b):
    ours, plain = a.state_dict(), b.state_dict()
    return ours.keys() == plain.keys() and all(torch.equal(ours[name], plain[name]) for name in ours)


@pytest.mark.parametrize("name", ["ve", "rf", "pfgmpp"])
def test_an_unconditional_teacher_is_a_plain_loops(name):
    chosen, law = settings(), dynamics.build(name)
    teacher = Teacher(unet(), law)
    plain = copy.deepcopy(teacher)
    order = EndlessShuffle(len(IMAGES), chosen.batch_size, seed=SEED)

    def loss(step):
        x_0 = to_unit(IMAGES[order.batch(step)])
        draws = Streams(SEED, "noise", range(chosen.batch_size), step=step)
        t = law.draw_time(generator=draws)
        x_t = law.perturb(x_0, z=law.draw_noise((1, 8, 8), generator=draws), t=t)
        return losses.denoising(plain(x_t, t), x_0=x_0, scale=law.error_scale(t))

    train_teacher(Accelerator(cpu=True), teacher, IMAGES, settings=chosen, random_flip=False, seed=SEED)
    assert equal(teacher, plainly_trained(plain, loss, chosen))


@pytest.mark.parametrize("name", ["ve", "rf", "pfgmpp"])
def test_an_unconditional_flow_is_a_plain_loops(name):
    """Objective trajectory with noise anchors."""
    chosen, law = settings(), dynamics.build(name)
    flow = IntegrationFlow(unet(2), law, scheme="edm", takes_anchor=True)
    plain = copy.deepcopy(flow)
    accelerator, times = Accelerator(cpu=True), law.solver_times(2)
    paths = StoredTrajectories(STATES, law, times=times, shape=(1, 8, 8), seed=SEED, device=accelerator.device)
    how = {"t_max_share": 0.5, "distance": "pseudo_huber", "huber_c": HUBER}
    phase = trajectory_phase(accelerator, flow, paths, **how)
    order = EndlessShuffle(len(STATES), chosen.batch_size, seed=SEED)

    def loss(step):
        rows = order.batch(step)
        draws = Streams(SEED, "anchor", range(chosen.batch_size), step=step)
        k = draw_stored_index(draws.uniform(), stored=len(times), t_max_share=0.5)
        x_t, x_0 = paths.points(rows, k)
        x_0_hat = plain(x_t, times.float()[k], x_anchor=draws.normal((1, 8, 8)))
        return losses.average(losses.measure(x_0_hat, x_0, distance="pseudo_huber", c=HUBER), None)

    train_flow(accelerator, flow, [phase], policy=anchors.NoiseAnchor(), settings=chosen, seed=SEED)
    assert equal(flow, plainly_trained(plain, loss, chosen))
