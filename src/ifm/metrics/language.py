"""Figures of texts: distributions of n-grams, words of the corpus, copies of the training text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from ifm.modalities.alphabet import Alphabet, words

_MIXER = 0x9E3779B97F4A7C15  # odd: of products modulo 2^64, for n-grams that have no number below it


@dataclass(frozen=True)
class Grams:
    """Which n-grams there are, by number, and how often: uint64 [k] rising, int64 [k]."""

    numbers: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, n: int, *, symbols: int) -> "Grams":
        """Those of windows [m, L], each by itself; n at most L."""
        return cls(*np.unique(gram_numbers(ids, n, symbols=symbols), return_counts=True))


def gram_numbers(ids: np.ndarray, n: int, *, symbols: int) -> np.ndarray:
    """Of each n symbols in a row of windows [m, L] a number, uint64 [m, L - n + 1]: equal for equal n-grams.

    Different ones have different numbers where symbols^n < 2^64, else but by chance (2^-64 a pair).
    """
    factor = np.uint64(symbols if symbols**n < 2**64 else _MIXER)
    places, found = ids.shape[1] - n + 1, np.zeros((len(ids), ids.shape[1] - n + 1), np.uint64)
    with np.errstate(over="ignore"):
        for i in range(n):
            found = found * factor + (ids[:, i : i + places].astype(np.uint64) + np.uint64(factor == _MIXER))
    return found


def total_variation(a: Grams, b: Grams) -> float:
    """Half the sum over n-grams of the differences of their shares: 0 for equal distributions, 1 for disjoint ones."""
    numbers = np.union1d(a.numbers, b.numbers)
    shares = [np.zeros(len(numbers)) for _ in (a, b)]
    for share, grams in zip(shares, (a, b), strict=True):
        share[np.searchsorted(numbers, grams.numbers)] = grams.counts / grams.counts.sum()
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def word_share(texts: Sequence[str], corpus: frozenset[str]) -> float:
    """The share of the words in texts, cut ones left out, that the corpus has too; 0 where there are no words."""
    found = [word for text in texts for word in words(text)]
    return sum(word in corpus for word in found) / len(found) if found else 0.0


def copied(ids: np.ndarray, known: np.ndarray, n: int, *, symbols: int) -> float:
    """The share of windows [m, L] with some n symbols in a row that are among `known` numbers, uint64 and rising."""
    numbers = gram_numbers(ids, n, symbols=symbols)
    at = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    return float((known[at] == numbers).any(axis=1).mean())


@dataclass(frozen=True)
class Language:
    """Real text that samples are compared with: numbers of symbols, [m, L] of the reference and [n, L] of training."""

    alphabet: Alphabet
    reference: np.ndarray
    train: np.ndarray

    @cached_property
    def grams(self):
        """n -> the reference's n-grams."""
        return cache(lambda n: Grams.of(self.reference, n, symbols=len(self.alphabet)))

    @cached_property
    def words(self) -> frozenset[str]:
        """Of the training windows, those that are cut left out."""
        return frozenset(word for text in self.alphabet.strings(self.train) for word in words(text))

    @property
    def half(self) -> int:
        """Half a window, in symbols."""
        return max(1, self.reference.shape[1] // 2)

    @cached_property
    def halves(self) -> np.ndarray:
        """All half windows within the training windows, by number: uint64, rising."""
        return np.unique(gram_numbers(self.train, self.half, symbols=len(self.alphabet)))


@dataclass(frozen=True)
class Texts:
    """A set of texts, numbers of symbols [n, L], beside real text."""

    ids: np.ndarray
    language: Language

    def total_variation(self, n: int) -> float:
        """Between the n-grams of the texts and the reference's; n is at most a window."""
        n = min(n, self.ids.shape[1])
        return total_variation(Grams.of(self.ids, n, symbols=len(self.language.alphabet)), self.language.grams(n))

    @property
    def word_share(self) -> float:
        return word_share(self.language.alphabet.strings(self.ids), self.language.words)

    @property
    def half_copies(self) -> float:
        """The share of texts of which half a window in a row stands in the training windows too."""
        language = self.language
        return copied(self.ids, language.halves, language.half, symbols=len(language.alphabet))
