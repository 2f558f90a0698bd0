"""The models that the demo offers, each flow with the teacher that it learnt from, loaded when they are chosen."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ifm import checkout, pretrained
from ifm.errors import UserError
from ifm.guidance import Guidance, Guided
from ifm.model import IntegrationFlow
from ifm.use import drawing, loading, pictured, shipped
from ifm.use.drawing import data_shape

FLOWS = "models/flow"  # in a checkout
MEND = "name one by --model, or train some: `dvc repro`, or python examples/train.py FOLDER"


@dataclass(frozen=True)
class Pair:
    """A flow, and its teacher where there is one beside it. led: the teacher with the guidance that the flow has."""

    flow: IntegrationFlow
    teacher: loading.Model | None
    led: Guided | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return data_shape(self.flow)

    @property
    def classes(self) -> dict[str, int]:
        """The numbers of the classes that the flow can be asked for, by name; none where it takes none.

        Classes of one name are told apart by their numbers.
        """
        names, numbers = pictured.classes_of(self.flow) or (), pictured.learnt_of(self.flow) or ()
        return {names[i] if names.count(names[i]) == 1 else f"{names[i]} ({i})": i for i in numbers}


class Models:
    """Models by name. They are loaded once, on one device."""

    def __init__(self, asked: Sequence[str], *, device: str = "cpu", teacher: str | None = None) -> None:
        """asked: folders, shipped names or Hub ids; none: the flows of the checkout that the current folder is in, or
        the one that comes with the package.

        teacher: a folder or Hub id, of the first model; None: the folder beside the flow's (`teacher_beside`).
        Raises UserError where there is no model, or one is no flow.
        """
        self.folders = named(asked) if asked else there(checkout.find())
        self._device, self._teacher = device, teacher and loading.find(teacher)
        self._loaded: dict[str, Pair] = {}
        self._lock = threading.Lock()  # gradio's handlers run in threads
        self[self.names[0]]  # what cannot be shown is said before a page opens

    @property
    def names(self) -> list[str]:
        return list(self.folders)

    def __getitem__(self, name: str) -> Pair:
        with self._lock:
            if name not in self._loaded:
                first = name == self.names[0]
                self._loaded[name] = self._load(name, self._teacher if first else None)
            return self._loaded[name]

    def _load(self, name: str, teacher: Path | None) -> Pair:
        folder = self.folders[name]
        flow = loading.load_any(folder, named=name)
        if not isinstance(flow, IntegrationFlow):
            raise UserError(f"{name}: holds a teacher; the demo shows flows, and their teachers beside them")
        beside = teacher or teacher_beside(folder)
        found = None if beside is None else loading.load_any(beside)
        if isinstance(found, IntegrationFlow):
            raise UserError(f"--teacher {beside}: holds a flow")
        if found is not None and (data_shape(found), found.dynamics.name) != (data_shape(flow), flow.dynamics.name):
            if teacher is not None:
                raise UserError(f"--teacher {beside}: is of other data or dynamics than {name}")
            found = None
        flow, found = flow.to(self._device), None if found is None else found.to(self._device)
        led, guidance = None, Guidance.of(flow.guidance)
        if found is not None and guidance is not None:
            try:
                led = pretrained.guided(found, beside, guidance)
            except UserError:
                if teacher is not None:
                    raise
                found = None  # without guidance its samples would be no match for the flow's
        pair = Pair(flow, found, led)
        drawing.draw(pair.flow, drawing.choose(pair.flow), 1)  # what a first call takes longer is no time of the flow
        return pair


def named(asked: Sequence[str]) -> dict[str, Path]:
    """Folders by the names that were asked for."""
    return {name: loading.find(name) for name in asked}


def there(root: Path | None) -> dict[str, Path]:
    """The flows of a checkout; where it has none, the one that comes with the package. Raises UserError."""
    try:
        return of_checkout(root)
    except UserError:
        if shipped.FIRST not in shipped.names():
            raise
        return named([shipped.FIRST])


def of_checkout(root: Path | None) -> dict[str, Path]:
    """The trained flows of a checkout by their dynamics. Raises UserError where there is none."""
    folder = None if root is None else root / FLOWS
    found = sorted(folder.glob(f"*/{pretrained.DESCRIPTION}")) if folder is not None else []
    if not found:
        raise UserError(f"{'this folder is in no checkout' if root is None else f'{FLOWS}: holds no model'}; {MEND}")
    return {file.parent.name: file.parent for file in found}


def teacher_beside(flow: Path) -> Path | None:
    """models/flow/ve -> models/teacher/ve; FOLDER/flow -> FOLDER/teacher; None where none of them holds a teacher."""
    flow = flow.resolve()
    for folder in (flow.parent.parent / "teacher" / flow.name, flow.parent / "teacher"):
        if (folder / pretrained.DESCRIPTION).is_file() and pretrained.has_teacher(folder):
            return folder
    return None
