"""Text: windows of symbols, uint8 [C, L] at rest, floats in [-1, 1] for the model; see `ifm.modalities.alphabet`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ifm.modalities.base import Modality
from ifm.modalities.images import to_uint8

if TYPE_CHECKING:
    import numpy as np

BEFORE_A_LOOK = {"bytes": (8, 256), "characters": (7, 128)}  # (bits, symbols): of characters the text tells


def channels(data: Any) -> int:
    """C, as far as params.yaml tells."""
    bits, symbols = BEFORE_A_LOOK[data.text.unit]
    return bits if data.text.representation == "bits" else symbols


def strings(samples: "np.ndarray", described: Mapping[str, Any]) -> "np.ndarray":
    """Samples at rest [n, C, L] as texts, str [n], by the alphabet that a model or a data set records."""
    import numpy as np

    from ifm.modalities.alphabet import Alphabet

    alphabet = Alphabet.read(described)
    return np.array(alphabet.strings(alphabet.decoded(samples)), dtype=f"<U{samples.shape[2]}")


def from_strings(texts: "np.ndarray", described: Mapping[str, Any]) -> "np.ndarray":
    """The inverse of `strings`: str [n] -> uint8 [n, C, L]. Raises ValueError at another length or unknown symbols."""
    import numpy as np

    from ifm.modalities.alphabet import BYTES, CHARACTERS, Alphabet

    if texts.dtype.kind != "U":
        return texts
    alphabet = Alphabet.read(described)
    unknown = sorted(set("".join(texts)) - set(alphabet.symbols)) if alphabet.unit == CHARACTERS else []
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no symbol of the data")
    rows = [alphabet.numbers(str(one).encode() if alphabet.unit == BYTES else str(one)) for one in texts]
    lengths = sorted({len(row) for row in rows})
    if not lengths:
        raise ValueError("it holds no texts")
    if len(lengths) != 1:
        raise ValueError(f"texts have {lengths[0]} to {lengths[-1]} symbols; all must be as long as the data's windows")
    return alphabet.encoded(np.stack(rows))


TEXT = Modality(
    "text",
    one="text",
    noun="texts",
    axes=("C", "L"),
    dtype="uint8",  # as of images: values in between stay, and tell how certain a symbol is
    range="[-1, 1]",
    to_model=lambda x: x.float() / 127.5 - 1 if not x.is_floating_point() else x,
    to_rest=to_uint8,
    shape=lambda data: (channels(data), data.text.length),
    extractors=("symbols",),
    mirrors=False,
    preview="text",
    by_shape=False,
    figures="text",
    own=strings,
    from_own=from_strings,
)
