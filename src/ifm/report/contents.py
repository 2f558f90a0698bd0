"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class PointSamples:
    """Samples of one dynamics whose data are points in two or more dimensions."""

    data: np.ndarray  # [m, d], of the reference split
    samples: Sequence[tuple[str, np.ndarray]]  # (caption, [n, d])
    paths: np.ndarray | None  # [n, K, d], stored trajectories of the teacher, if there are any


@dataclass(frozen=True)
class Heard:
    """The same draws in the samples of several models, to be played; of one dynamics."""

    names: Sequence[str]  # of each draw: its class, or its number
    models: Sequence[
        tuple[str, Sequence[bytes], bytes]
    ]  # (caption, WAV of each draw, PNG: their spectrograms in a line)


@dataclass(frozen=True)
class AskedClasses:
    """What is shown of the flow's samples in one step that were asked to be of a class; of one dynamics."""

    grid: bytes = b""  # PNG: a row of samples for each class, behind its name; empty: there is none
    shares: Sequence[float | None] | None = None  # by class asked for, of its samples in it
    fids: Sequence[float | None] | None = None  # by class asked for
    # At several guidance scales, the flow in one step and the teacher with its most evaluations: model ("flow-w2"),
    # guidance, nfe, and the catalogue's figures.
    guided: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Report:
    """What the page shows. See `render` for what may be missing."""

    summary: pd.DataFrame  # summary_columns(), one row for each measured sampler
    params_text: str  # params.yaml, as it is
    data: str  # the data set's name
    seed: int
    git_commit: str
    created: str
    # (stage, dynamics) -> step, loss, ...; the stage is "teacher" or "flow"
    curves: Mapping[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    # dynamics -> what stage select measured of the flow in one step after some steps of its training: metric, count,
    # kept, values by step
    by_step: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # dynamics -> (caption, PNG), ...
    grids: Mapping[str, Sequence[tuple[str, bytes]]] = field(default_factory=dict)
    sounds: Mapping[str, Heard] = field(default_factory=dict)  # by dynamics
    real: tuple[str, bytes] | None = None  # (caption, PNG): a grid of real images, as large as the others
    # dynamics -> PNG: samples of the flow in one step above the training images that they are nearest to
    pairs: Mapping[str, bytes] = field(default_factory=dict)
    # dynamics -> batch size -> seconds an image takes the flow in one step
    batch_seconds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    # dynamics -> share of each class among the flow's samples in one step
    class_shares: Mapping[str, Sequence[float]] | None = None
    asked: Mapping[str, AskedClasses] = field(default_factory=dict)  # by dynamics
    # dynamics -> what the scatter plots show, for data that are points
    points: Mapping[str, PointSamples] = field(default_factory=dict)
    # dynamics -> (caption, texts), ..., for data that are text; and of real texts
    texts: Mapping[str, Sequence[tuple[str, Sequence[str]]]] = field(default_factory=dict)
    real_texts: tuple[str, Sequence[str]] | None = None
    real_shares: Sequence[float] | None = None
    classes: Sequence[str] | None = None
    # dynamics -> what `ifm.diagnostics.diagnose` gives, and "reference": "exact" | "teacher"
    diagnostics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # extractor, checksum, resize, rounding, dimension, n_train, n_test, split, accuracy, floor_fid, duplicates,
    # warnings
    reference: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
