"""The picture of a model card: a flow's samples in one evaluation, in rows where it takes classes."""

from pathlib import Path

from ifm.errors import UserError
from ifm.modalities.pictures import save_grid, save_rows
from ifm.use.drawing import modality
from ifm.use.models import IntegrationFlow

PICTURE, SHOWN, COLUMNS = "samples.png", 64, 8
ROWS = 10  # classes at most


def save_picture(flow: IntegrationFlow, folder: Path) -> tuple[str | None, str]:
    """Writes samples of seed 0; the file's name and its caption. None where samples are no images."""
    made_of = modality(flow)
    if made_of.preview != "grids":
        return None, ""
    classes, learnt = classes_of(flow), learnt_of(flow)
    numbers = None if learnt is None else [learnt[i] for i in spread(len(learnt), ROWS)]
    n = SHOWN if numbers is None else COLUMNS * len(numbers)
    try:
        images = made_of.pictures(flow.sample(n, classes=numbers))
    except ValueError as error:
        raise UserError(f"the model's samples: {error}") from error
    by_class, which = "", f"numbers 0 to {n - 1} of seed 0, not chosen"
    if numbers is None:
        save_grid(images, folder / PICTURE, columns=COLUMNS)
    else:
        save_rows([(classes[c], images[i :: len(numbers)]) for i, c in enumerate(numbers)], folder / PICTURE)
        of = "each class" if len(numbers) == len(classes) else f"{len(numbers)} of {len(classes)} classes"
        by_class = f", {COLUMNS} of {of}"
    return PICTURE, f"{n} samples in one evaluation{by_class}: {which}."


def classes_of(flow: IntegrationFlow) -> list[str] | None:
    """Their names, of a flow that takes them."""
    return getattr(flow.condition_kind, "classes", None)


def learnt_of(flow: IntegrationFlow) -> list[int] | None:
    """Their numbers, without those that the training data had none of."""
    return None if classes_of(flow) is None else flow.condition_kind.index("all")


def spread(count: int, shown: int) -> list[int]:
    """At most `shown` of the numbers below `count`, evenly apart."""
    return sorted({i * count // min(count, shown) for i in range(min(count, shown))})
