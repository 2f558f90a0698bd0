"""The 1,797 handwritten digits that scikit-learn ships: 8x8, 17 grey values."""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ifm.data.sources.base import DataSection, Encoded, FetchError, Images, Source, Split

if TYPE_CHECKING:
    import numpy as np


COUNT = 1797


def read(config: DataSection) -> Images:
    """The digits as PNG, in scikit-learn's order."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    if config.test_split is not None:
        raise FetchError(
            f"data.test_split = {config.test_split!r}: digits has no test split; set it to null, and "
            "data.test_fraction of the images are held out"
        )
    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)  # [n, 8, 8]

    def encoded(rows: "np.ndarray") -> Iterator[Encoded]:
        for i in rows:
            buffer = io.BytesIO()
            Image.fromarray(images[i]).save(buffer, format="PNG")
            yield Encoded(buffer.getvalue(), f"{i:04d}.png")

    split = Split(len(images), bunch.target.tolist(), encoded)
    return Images({"train": split}, [str(i) for i in range(10)])


SOURCE = Source("digits", read, columns=False, labelled=True, count=lambda data: COUNT)
