"""A model of diffusers as it is, without params.yaml: for `ifm sample` and the like."""

from pathlib import Path

from ifm import dynamics
from ifm.adapters import folder as folders
from ifm.adapters.folder import is_model
from ifm.errors import UserError
from ifm.model import Teacher

__all__ = ["is_model", "teacher"]

LOWEST, HIGHEST = 0.002, 80.0  # EDM's range of noise levels


def teacher(folder: Path, *, named: str) -> Teacher:
    """The teacher of a folder, under `ve` over the noise levels that the model and EDM's range share.

    Raises UserError; also for a model that needs a class, since nothing here knows the classes' shares.
    """
    import math

    from ifm.adapters import schedules

    found = folders.find(folder, named=named)
    try:
        schedule, _ = schedules.read(found.scheduler)
    except ValueError as error:
        raise UserError(f"{named}: {error}") from error
    low, high = max(LOWEST, math.tan(schedule.low)), min(HIGHEST, math.tan(schedule.high))
    ve = dynamics.build("ve", t_min=low, t_max=high)
    return Teacher(folders.read(found, shape=found.shape, sigma_data=ve.sigma_data, clock=ve.clock), ve).eval()
