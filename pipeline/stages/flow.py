"""flow@d: the integration flow, noise to image in one evaluation."""

from functools import cached_property, partial
from typing import Any

import torch
from accelerate import Accelerator

from ifm import anchors, conditions, dynamics, objectives, pretrained, schema
from ifm.adapters.network import FLOW_CEILING, FLOW_TOP, AdaptedNetwork
from ifm.conditions.base import varying
from ifm.data.arrays import SampleSet
from ifm.data.splits import open_states
from ifm.data.trajectories import TrajectoryMetadata
from ifm.exact import ExactTeacher
from ifm.guidance import Guidance, Guided, GuidedMean
from ifm.hardware.processes import ProcessExchange, make_accelerator
from ifm.model import IntegrationFlow, Teacher, build_flow
from ifm.networks import build_network
from ifm.networks.asking import prepare
from ifm.objectives.base import Mean, Phase, Trajectories
from ifm.objectives.pairs import mean_over_reference
from ifm.training.checkpoint import Checkpoints
from ifm.training.flow import train_flow
from ifm.training.loop import TrainSettings, write_curve
from ifm.training.states import States
from ifm.trajectories import open_trajectories
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main


def params(stage: Stage) -> dict:
    ode = ("ode.sigma_data", f"ode.{stage.dynamics}")
    return stage.sections("seed", "condition", "guidance", *ode, "network", "flow", "anchor")


def build(stage: Stage, images: SampleSet) -> tuple[IntegrationFlow, dict[str, str]]:
    """The untrained flow, and the checksum of the teacher's weights where it starts from them (flow.init)."""
    config, d, start = stage.config, stage.dynamics, {}
    ode = dynamics.of_params(d, config.ode, data=images)
    two_times = objectives.two_times(config.flow)
    anchor = {"takes_anchor": config.anchor.policy != "none", "anchor_input": config.anchor.input}
    kind, guidance = conditions.of_data(config.condition.kind, images), Guidance.of(config.guidance)
    if kind is not None:  # the row of no class too, so that it can start from the teacher's
        drops, scale = config.condition.drop_probability > 0, None if guidance is None else guidance.range
        kind = kind.told_to(drops=drops, scale=scale)
    told = {"two_times": two_times, "condition": kind}
    network = build_network(
        shape=images.shape, modality=images.modality.name, **told, **anchor, **config.network.model_dump()
    )
    if config.flow.init == "teacher":
        source = pretrained.load_teacher(paths.teacher(d)).network
        if isinstance(source, AdaptedNetwork):  # the flow's network is the public model's then
            levels = {"top": FLOW_TOP * ode.sigma_data, "ceiling": FLOW_CEILING * ode.sigma_data}
            network = source.for_flow(takes_anchor=anchor["takes_anchor"], **levels)
        else:
            network.start_from(source)
        start = {"teacher": pretrained.describe(paths.teacher(d))["sha256"]}
    flow = build_flow(network, ode, scheme=config.flow.scheme, two_times=two_times, **anchor)
    flow.guidance = None if guidance is None else guidance.describe()
    return flow, start


class Ingredients:
    """What objectives train on (`ifm.objectives.base.Ingredients`), opened when it is asked for.

    used: the checksums of what was opened.
    """

    def __init__(self, stage: Stage, accelerator: Accelerator, flow: IntegrationFlow, images: SampleSet) -> None:
        self.accelerator, self.flow, self.seed, self.config = accelerator, flow, stage.config.seed, stage.config.flow
        self.guidance = Guidance.of(stage.config.guidance)
        self.used: dict[str, str] = {}
        self._d, self._images, self._drop = stage.dynamics, images, stage.config.condition.drop_probability

    def trajectories(self) -> Trajectories:
        """The teacher's paths of this dynamics, stored or solved as they are needed."""
        folder, device = paths.trajectories(self._d), self.accelerator.device
        metadata = TrajectoryMetadata.read(folder)
        self.used |= {"trajectories": metadata.sha256, "teacher": metadata.teacher}
        ask = partial(_teacher_of, self._d, device, self.guidance)
        how = {"load_teacher": ask, "device": device, "recorded": self.accelerator.num_processes == 1}
        return open_trajectories(folder, metadata, self.flow.dynamics, **how)

    def images(self) -> SampleSet:
        """The training data."""
        self.used["images"] = self._images.metadata.splits["train"].sha256
        return self._images

    def pairs(self, *, drop: bool = False) -> dict[str, Any]:
        """The arguments of `draw_pairs` that are the same for every objective. drop: leave classes out."""
        vary = varying(self.flow.condition_kind, drop=self._drop if drop else 0.0)
        return {**self._batches, "read_condition": self._read_condition, "vary": vary}

    def mean(self, *, led: bool = True) -> Mean | None:
        """Where velocities come from (flow.velocity): a pair's own (None), the mean over data, a teacher.

        led: guided, which asks the teacher in any case.
        """
        if self.config.velocity == "pair":
            return None
        guidance = self.guidance if led else None
        if self.config.velocity == "teacher":
            teacher = self._teacher(guidance)
            return lambda step: teacher
        told = {"kind": self.flow.condition_kind, "read_condition": self._read_condition}
        mean = mean_over_reference(
            self.accelerator,
            self.flow.dynamics,
            self.images(),
            size=self.config.reference_batch,
            **self._batches,
            **told,
        )
        if guidance is None:
            return mean
        guide = self._teacher(guidance)
        return lambda step: GuidedMean(mean(step), guide)

    def _teacher(self, guidance: Guidance | None) -> Any:
        self.used |= pretrained.weights_of(paths.teacher(self._d), guidance)
        teacher = _teacher_of(self._d, self.accelerator.device, guidance)
        return prepare(teacher, "no", recorded=self.accelerator.num_processes == 1)

    @cached_property
    def _batches(self) -> dict[str, Any]:
        flip = self._images.random_flip
        how = {"random_flip": flip, "batch_size": self.config.batch_size, "seed": self.seed}
        return how | {"modality": self._images.modality.name}

    @cached_property
    def _read_condition(self) -> Any:
        kind = self.flow.condition_kind
        return None if kind is None else partial(kind.read, self._images)

    def phases(self) -> list[Phase]:
        """A phase for each of flow.objective."""
        return [schema.load(objective.phase)(self) for objective in objectives.of(self.config).values()]


def _teacher_of(d: str, device: torch.device, guidance: Guidance | None) -> Teacher | ExactTeacher | Guided:
    """The teacher of a dynamics, guided, to be asked and not trained."""
    teacher = pretrained.guided(pretrained.load_teacher(paths.teacher(d)), paths.teacher(d), guidance)
    return teacher.to(device, memory_format=torch.channels_last).requires_grad_(False)


def work(stage: Stage) -> None:
    """Trains the flow of one dynamics, on data/trajectories/{dynamics} or, without a teacher, on data/processed."""
    config, d = stage.config, stage.dynamics
    images = open_states(paths.PROCESSED, "train")
    shape = tuple(images.shape)
    accelerator = make_accelerator(config.flow.precision, seed=config.seed)
    flow, start = build(stage, images)
    given = Ingredients(stage, accelerator, flow, images)
    phases, digest = given.phases(), given.used
    policy = anchors.build(
        config.anchor.policy,
        self_probability=config.anchor.self_probability,
        reset_probability=config.anchor.reset_probability,
        make_bank=lambda: anchors.AnchorBank(
            phases[0].size, shape, seed=config.seed, exchange=ProcessExchange(accelerator)
        ),
    )
    settings = TrainSettings.from_config(config.flow)
    checkpoints = Checkpoints(stage.work_folder(params=params(stage), inputs=start | digest))
    states = States(checkpoints.folder / "states")
    result = train_flow(
        accelerator,
        flow,
        phases,
        policy=policy,
        settings=settings,
        seed=config.seed,
        checkpoints=checkpoints,
        on_log=stage.run.log_row,
        on_state=states.save,
    )
    if not accelerator.is_main_process:
        return
    every, batch = settings.evaluate_every, config.flow.batch_size
    record = {
        "objective": "+".join(objectives.of(config.flow)),
        "anchor": config.anchor.policy,
        "ema_decay": settings.ema_decay,
        **images.facts,
        "train_images": settings.steps * batch,
        "trained_on": start | digest,
    } | ({"step": settings.steps} if every else {})
    kept = {
        step: (partial(states.load, step), {"step": step, "train_images": step * batch})
        for step in (range(every, settings.steps, every) if every else ())
    }
    pretrained.save_model(
        flow, paths.trained(d), record=record, averages=result.averages, states=kept, decoder=images.decoder
    )
    write_curve(paths.curve(stage.name), result.history)
    stage.run.timings["train_seconds"] = result.seconds
    stage.run.log_metrics({"final_loss": result.history[-1]["loss"], "resumed_from": result.resumed_from})


if __name__ == "__main__":
    main(work, module="flow", params=params, per_dynamics=True, parallel=True)
