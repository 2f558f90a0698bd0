"""Averaged weights as they were after some steps of a training, a file each beside its checkpoints."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ifm.errors import UserError
from ifm.files import atomic_path
from ifm.training.checkpoint import as_os_error

_PREFIX = "state-"


class States:
    """Weights by the number of steps, each written whole or not at all. A resumed run writes the same again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, weights: dict[str, Tensor]) -> None:
        """`ifm.training.loop.OnState`."""
        tensors = {name: x.detach().cpu().contiguous() for name, x in weights.items()}
        with atomic_path(self._file(step), size=sum(x.nbytes for x in tensors.values())) as temporary:
            try:
                save_file(tensors, temporary)
            except SafetensorError as error:
                raise as_os_error(error) from error

    def load(self, step: int) -> dict[str, Tensor]:
        """What was saved. Raises UserError where it is gone or damaged: the training that it was of is over."""
        try:
            return load_file(self._file(step))
        except (OSError, SafetensorError) as error:
            mend = f"remove {self.folder.parent} and run again"
            raise UserError(f"{self._file(step)}: weights of step {step} cannot be read; {mend}") from error

    def _file(self, step: int) -> Path:
        return self.folder / f"{_PREFIX}{step:09d}.safetensors"
