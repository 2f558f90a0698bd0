"""What stands beside stored trajectories: float16 [n, K - 1, C, H, W] in shards, without x_T, and their times."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from ifm.errors import UserError, in_a_line
from ifm.files import file_sha256, inside, read_dataclass, write_json

CONDITIONS = "conditions.safetensors"  # the condition of each path, where they have any
FIRST = "first.npy"  # the first paths whole, float32 [m, K, C, H, W], for pictures and diagnostics


@dataclass(frozen=True)
class TrajectoryMetadata:
    """metadata.json beside the shards."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}
    dynamics: str
    count: int
    times: list[float]  # [K], falling from t_max to 0
    solver_steps: int
    rho: float | None
    nfe: int  # evaluations of the teacher for each path
    seed: int
    teacher: str  # sha256 of the teacher's weights
    shards: list[str]  # none where nothing is stored
    image_shape: list[int]  # [C, H, W], or [d] for points
    sha256: str  # see `digest`
    precision: str = "no"  # of the teacher's network
    condition: dict[str, Any] | None = None  # the kind of the paths' conditions, see `ifm.conditions.build`
    guidance: dict[str, Any] | None = None  # of the teacher, see `ifm.guidance.Guidance`; not in the file where None

    def write(self, folder: Path) -> None:
        found = asdict(self)
        if self.guidance is None:
            del found["guidance"]
        write_json(folder / "metadata.json", found)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises UserError where the file is missing or has another form."""
        try:
            found = read_dataclass(folder / "metadata.json", cls)
            found.paths(folder)
            return found
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: no usable trajectories ({in_a_line(error)}); run `dvc repro trajectories`"
            ) from error

    def paths(self, folder: Path) -> list[Path]:
        """The shards' files. Raises ValueError where one would lie outside the folder."""
        return [inside(folder, name) for name in self.shards]


def digest(shards: list[Path]) -> str:
    """sha256 over the shards' sha256, in order; "" of none."""
    if not shards:
        return ""
    whole = hashlib.sha256()
    for path in shards:
        whole.update(file_sha256(path).encode())
    return whole.hexdigest()
