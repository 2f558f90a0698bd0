"""Features of many images, a batch at a time, shared out over processes."""

from typing import TYPE_CHECKING

import numpy as np

from ifm.hardware.parallel import shared_batches
from ifm.metrics.comparison import Found
from ifm.metrics.extractors import Extractor, finite

if TYPE_CHECKING:
    from accelerate import Accelerator


def extract(
    extractor: Extractor, images: np.ndarray, *, batch_size: int, accelerator: "Accelerator | None" = None
) -> Found:
    """Features, and class probabilities where the extractor has classes, of images [n, ...], e.g. a memory map.

    Only a batch of images is read at a time. Raises FeatureError where a feature is not finite.
    """

    def found(members: range) -> Found:
        batch = np.asarray(images[members.start : members.stop])
        return Found(*extractor.features_and_probabilities(batch))

    parts = [
        part for _, part in shared_batches(found, count=len(images), batch_size=batch_size, accelerator=accelerator)
    ]
    features = finite(np.concatenate([part.features for part in parts]), extractor)
    classes = [part.probabilities for part in parts if part.probabilities is not None]
    return Found(features, np.concatenate(classes) if classes else None)
