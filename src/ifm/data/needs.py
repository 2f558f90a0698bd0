"""What params ask of the data, checked before anything is trained: no output depends on this module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from ifm.config import Config, weaker_teacher
from ifm.config.rules import check_size
from ifm.errors import UserError, either

LEAST = 2  # a covariance and the distance to a nearest other one


@dataclass(frozen=True)
class Counts:
    """How much there is of a data set, by split: "train" and "test"."""

    splits: Mapping[str, int]
    classes: Sequence[str] | None  # their names
    of_classes: Sequence[int] | None  # training images (points) of each; None: not known


def check(config: Config, counts: Counts, *, where: Path, latents: tuple[int, ...] | None = None) -> None:
    """Raises UserError, naming keys and counts, where a later stage could not work on so few.

    where: the folder that the counts are of. latents: (c, h, w) of what models train on where that is not the images.
    """
    if latents is not None:
        try:
            check_size(config.network, latents[-1], of="the latents' side")
            if (weaker := weaker_teacher(config)) is not None:
                check_size(weaker.network, latents[-1], of="guidance.weaker_network: the latents' side")
        except ValueError as error:
            raise UserError(str(error)) from error
    _check_teacher(config, counts.classes, latents or config.data.shape)
    train, test = counts.splits["train"], counts.splits["test"]
    source, noun = config.data.origin, config.data.modality.noun
    of = f"{where}: {train} train and {test} test {noun}"
    if train < LEAST:
        add = f"raise data.{source.size_key}" if source.size_key else f"add {noun}"
        ways = [add] + ["lower data.test_fraction"] * (config.data.test_split is None)
        raise UserError(f"{of}: at least {LEAST} must be for training; {' or '.join(ways)}")
    if config.evaluate.extractor == "coordinates":
        _check_modes(config, counts, where=where)
        return
    if config.evaluate.extractor == "symbols":
        return
    if config.evaluate.extractor == "classifier":
        check_classes(counts.classes, counts.of_classes, where=where, fit=config.data.modality.extractors)
    split, k = config.evaluate.reference_split, config.evaluate.neighbours
    have = counts.splits[split]
    if have > k:
        return
    ways = [f"lower evaluate.neighbours to {have - 1}"] if have >= LEAST else []
    other = "test" if split == "train" else "train"
    if counts.splits[other] > k:
        ways.append(f"set evaluate.reference_split to {other}")
    raise UserError(
        f"{of}: evaluate.reference_split = {split} has {have}, and evaluate.neighbours = {k} needs {k + 1} to compare "
        f"with; {' or '.join([*ways, 'add images'])}"
    )


def _check_teacher(config: Config, classes: Sequence[str] | None, shape: tuple[int, ...]) -> None:
    """A public teacher that lies on this disk must be for such data. classes: that these have; shape: of one."""
    if config.teacher.kind != "pretrained":
        return
    from ifm.adapters import places
    from ifm.tracking import project_root

    given = {"scheduler": config.teacher.scheduler, "root": project_root()}
    asked = len(classes) if config.condition.kind == "class" and classes is not None else None
    drops = asked is not None and config.condition.drop_probability > 0
    places.check(config.teacher.path, shape=shape, classes=asked, drops=drops, **given)


def check_classes(
    classes: Sequence[str] | None, of_classes: Sequence[int] | None, *, where: Path | str, fit: Sequence[str]
) -> None:
    """Raises UserError where fewer than two classes have training data for the extractor `classifier`.

    It learns to tell classes apart: with one, its loss is 0 and its features are random. fit: the extractors that fit
    the data.
    """
    others = f"use evaluate.extractor: {either([name for name in fit if name != 'classifier'])}"
    if classes is None:
        raise UserError(f"evaluate.extractor: classifier needs labels, and {where} has none; {others}")
    if of_classes is None:
        return
    present = [name for name, count in zip(classes, of_classes, strict=True) if count]
    if len(present) < 2:
        found = f"one ({present[0]!r})" if present else "none"
        raise UserError(
            f"evaluate.extractor: classifier needs training data of at least two classes, and {where} has {found}; "
            f"{others}"
        )


def _check_modes(config: Config, counts: Counts, *, where: Path) -> None:
    """Evaluation needs the centre of each of a law's modes."""
    if counts.of_classes is None:
        return
    empty = sum(not count for count in counts.of_classes)
    if empty:
        source, data = config.data.origin, config.data
        mend = (
            f"raise data.{source.size_key} = {attrgetter(source.size_key)(data)}" if source.size_key else "add points"
        )
        raise UserError(
            f"{where}: {empty} of the {len(counts.of_classes)} modes of {source.origin(data)} have no training point; "
            f"{mend}"
        )
