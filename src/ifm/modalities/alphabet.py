"""Symbols as numbers for a model: analog bits or one-hot, each value -1 or 1, and back to the nearest symbol."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

KEY = "text"  # in metadata.json and ifm.json
CHARACTERS, BYTES = "characters", "bytes"
BITS, ONE_HOT = "bits", "one_hot"
_AT_ONCE = 2**22  # scores held at a time
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class Alphabet:
    """The symbols of a text, and how each is C values of -1 or 1, at rest 0 or 255.

    bits (Chen, Zhang and Hinton 2022): the symbol's number in binary, the highest bit first. one_hot: 1 at the symbol's
    place, else -1. symbols: characters in the order of their code points; of bytes: "" for all 256.
    """

    unit: str
    representation: str
    symbols: str = ""

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> Self:
        """What metadata.json or ifm.json records. Raises ValueError where that is no alphabet."""
        try:
            return cls(**described[KEY])
        except (KeyError, TypeError) as error:
            raise ValueError("records no alphabet of its texts") from error

    def __len__(self) -> int:
        return len(self.symbols) if self.unit == CHARACTERS else 256

    def described(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"unit": self.unit, "representation": self.representation, "symbols": self.symbols}

    @property
    def channels(self) -> int:
        """C: bits that number the symbols, or the symbols."""
        return len(self) if self.representation == ONE_HOT else max(1, (len(self) - 1).bit_length())

    @cached_property
    def codes(self) -> np.ndarray:
        """Of each symbol: int8 [V, C] of -1 and 1."""
        if self.representation == ONE_HOT:
            return 2 * np.eye(len(self), dtype=np.int8) - 1
        shifts = np.arange(self.channels)[::-1]
        return (2 * (np.arange(len(self))[:, None] >> shifts & 1) - 1).astype(np.int8)

    def numbers(self, text: str | bytes) -> np.ndarray:
        """The symbols' numbers, int32 [n]: of a string's characters, or of bytes."""
        if self.unit == BYTES:
            return np.frombuffer(text, np.uint8).astype(np.int32)
        known = np.array([ord(c) for c in self.symbols], np.uint32)
        return np.searchsorted(known, code_points(text)).astype(np.int32)

    def encoded(self, ids: np.ndarray) -> np.ndarray:
        """int [n, L] -> uint8 [n, C, L] of 0 and 255."""
        levels = np.where(self.codes > 0, 255, 0).astype(np.uint8)
        return np.ascontiguousarray(levels[ids].swapaxes(1, 2))

    def decoded(self, x: np.ndarray) -> np.ndarray:
        """Samples at rest, uint8 [n, C, L] -> int64 [n, L]: the symbol whose code is nearest, of equals the first.

        Where the signs are a symbol's code that is this symbol. Bits that are no symbol's code go to the code with the
        smallest Euclidean distance to the values themselves: the bits that are least certain give way.
        """
        codes, rows = self.codes.astype(np.float32), max(1, _AT_ONCE // (len(self) * x.shape[2]))
        found = np.empty((len(x), x.shape[2]), np.int64)
        for i in range(0, len(x), rows):
            levels = np.asarray(x[i : i + rows], np.float32) - 127.5  # [b, C, L]
            found[i : i + rows] = np.einsum("vc,bcl->bvl", codes, levels, optimize=True).argmax(axis=1)
        return found

    def valid(self, x: np.ndarray) -> float:
        """The share of positions of samples at rest, uint8 [n, C, L], whose signs are a symbol's code."""
        signs = np.asarray(x) > 127
        if self.representation == ONE_HOT:
            return float((signs.sum(axis=1) == 1).mean())
        weights = 1 << np.arange(self.channels)[::-1]
        return float((np.einsum("c,bcl->bl", weights, signs) < len(self)).mean())

    def strings(self, ids: np.ndarray) -> list[str]:
        """int [n, L] -> n texts; bytes that are no UTF-8 become the replacement character."""
        if self.unit == BYTES:
            return [row.astype(np.uint8).tobytes().decode("utf-8", errors="replace") for row in np.asarray(ids)]
        known = np.array(list(self.symbols))
        return ["".join(row) for row in known[np.asarray(ids)]]


def code_points(text: str) -> np.ndarray:
    """uint32 [n]."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def words(text: str) -> list[str]:
    """The words of a window in lower case: runs of letters, with apostrophes inside.

    Those at its ends may be cut and are left out.
    """
    return [m[0] for m in _WORD.finditer(text.lower()) if m.start() > 0 and m.end() < len(text)]
