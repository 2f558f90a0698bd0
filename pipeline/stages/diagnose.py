"""diagnose@d: the paper's claims, measured on the trained flow."""

import numpy as np
import torch

from ifm import conditions, pretrained
from ifm.data.splits import open_states
from ifm.data.trajectories import FIRST, TrajectoryMetadata
from ifm.diagnostics import StoredPaths, diagnose
from ifm.exact import ExactTeacher, flow_map_of
from ifm.files import write_json
from ifm.guidance import Guidance
from ifm.modalities import at_work
from ifm.sampling import Draws
from ifm.tracking import flatten
from ifm.trajectories import conditions_of
from pipeline.runner import paths
from pipeline.runner.stage import Stage, main

DATA_ROWS = 50_000  # training images for the data's spacing: the first, where there are more


def params(stage: Stage) -> dict:
    return stage.sections("seed", "diagnose")


def work(stage: Stage) -> None:
    """Non-intersection, stability, anchor convergence, straightness and error, into reports/diagnostics."""
    config, d = stage.config, stage.dynamics
    device = stage.device
    teacher, flow = pretrained.load_both(teacher=paths.teacher(d), flow=paths.flow(d), device=device)
    if teacher is None:
        print(f"{stage.name}: teacher.kind is none: nothing to hold the flow's paths against")
        write_json(paths.diagnostics(d), {"dynamics": d, "reference": None, "warnings": []})
        return
    reference = "exact" if isinstance(teacher, ExactTeacher) else "teacher"
    teacher = pretrained.guided(teacher, paths.teacher(d), Guidance.of(flow.guidance))
    settings = config.diagnose.model_dump()
    members = range(settings.pop("paths"))
    metadata = TrajectoryMetadata.read(paths.trajectories(d))
    images = open_states(paths.PROCESSED, "train")
    found = diagnose(
        flow,
        teacher,
        Draws.of(
            flow.dynamics,
            tuple(metadata.image_shape),
            members,
            seed=config.seed,
            device=device,
            condition=flow.condition_kind,
        ),
        data=at_work(torch.from_numpy(images[np.arange(min(DATA_ROWS, len(images)))]), images.modality.name).to(device),
        stored=_stored(metadata, d, device=device),
        seed=config.seed,
        exact=flow_map_of(flow.dynamics, images.gaussian, device=device),
        **settings,
    )
    found["reference"] = reference
    write_json(paths.diagnostics(d), found)
    numbers = {k: v for k, v in flatten(found).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    stage.run.log_metrics(numbers)
    stage.warn(found["warnings"])


def _stored(metadata: TrajectoryMetadata, d: str, *, device: torch.device) -> StoredPaths | None:
    """The first paths that the flow was trained on, if it was trained on any."""
    if not metadata.count:
        return None
    states = np.load(paths.trajectories(d) / FIRST, allow_pickle=False)
    asked = conditions_of(conditions.build(metadata.condition), range(len(states)), seed=metadata.seed)
    condition = None if asked is None else asked.to(device)
    return StoredPaths(torch.from_numpy(states).to(device), torch.tensor(metadata.times), condition)


if __name__ == "__main__":
    main(work, module="diagnose", params=params, per_dynamics=True)
