"""What speaks against figures: plain sentences, kept under the key `warnings` of every record that holds figures.

They begin in the reference's record (`Judge`: what its extractor and its data can tell) and go on with each sampler's
row (too few samples, figures that cannot be computed). Pages, tables and tags show them beside the figures.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 0.01  # of the test that a classifier is better than chance
FEW = 100  # samples or examples, below which any figure is mostly chance
MANY = 0.01  # share of repeated examples, from which figures feel it
SEPARATOR = " | "  # of sentences in one cell of a table


def of_classifier(said: np.ndarray, labels: np.ndarray, *, of_train: Sequence[int]) -> list[str]:
    """Whether a classifier's features mean anything, by its answers on the test part.

    said, labels: int [n]; of_train: training examples of each class. Its right answers are held against those of a
    constant answer, the most frequent class: one-sided binomial test.
    """
    from scipy.stats import binomtest

    found = []
    n, right = len(labels), int((said == labels).sum())
    unknown = [k for k in np.unique(labels) if not of_train[k]]
    if unknown:
        found.append(
            f"{len(unknown)} of the test examples' {len(np.unique(labels))} classes have no training example: "
            "the classifier cannot know them."
        )
    constant = int(np.bincount(labels).max()) / n
    if constant**n > LEVEL:
        return [
            *found,
            f"{_count(n, 'test example')} cannot say whether the classifier judges at all: right answers to all of "
            "them could be chance.",
        ]
    p = float(binomtest(right, n, constant, alternative="greater").pvalue)
    if p > LEVEL:
        found.append(
            f"The classifier is right on {right} of {n} test examples ({100 * right / n:.1f} %), which is no better "
            f"than chance: always the most frequent class is right on {100 * constant:.1f} % (binomial test, "
            f"p = {p:.2g}). Its features may be noise, and every figure with them."
        )
    return found


def of_duplicates(duplicates: Mapping[str, int] | None, *, train: int, test: int) -> list[str]:
    """duplicates: as `Duplicates` of a processed data set has them; None: not counted."""
    if duplicates is None:
        return []
    found = []
    if duplicates["train"] > MANY * train:
        found.append(
            f"{duplicates['train']:,} of {train:,} training examples repeat another: precision, recall, density and "
            "coverage are off."
        )
    if duplicates["test_in_train"] > MANY * test:
        found.append(
            f"{duplicates['test_in_train']:,} of {test:,} test examples are training examples too: accuracy, floor and "
            "nearness to training data are not those of unseen examples."
        )
    return found


def of_counts(samples: int | None, reference: int, dimension: int) -> list[str]:
    """Whether there are enough. samples: of a set; None: there are none yet. dimension: of a covariance; 0: none."""
    found = []
    for count, what in ((samples, "sample"), (reference, "reference example")):
        if count is None:
            continue
        if count <= dimension:
            found.append(
                f"{_count(count, what)} for {dimension:,} features: their covariance is singular, and FID is far too "
                "large. It compares at equal numbers alone."
            )
        elif count < FEW:
            found.append(f"{_count(count, what)} are few: every figure depends on which ones they are.")
    return found


def of_unseen(count: int) -> list[str]:
    """count: the examples that training has not seen, to which copies of training examples are compared."""
    if count >= FEW:
        return []
    return [f"{_count(count, 'unseen example')}: nearness to training data (near copies) is hardly measured."]


def told(record: Mapping[str, Any]) -> list[str]:
    """The sentences of a record (a JSON object that may hold `warnings`); none where it is of another form."""
    found = record.get("warnings") or ()
    return [text for text in found if isinstance(text, str)] if isinstance(found, list | tuple) else []


def together(lists: Iterable[Iterable[str]]) -> list[str]:
    """Each sentence once, in the order of appearance."""
    return list(dict.fromkeys(text for texts in lists for text in texts))


def cell(texts: Iterable[str]) -> str | None:
    """The sentences as one text for a table, or None."""
    return SEPARATOR.join(texts) or None


def of_cells(cells: Iterable[Any]) -> list[str]:
    """The sentences of many cells, each once; a cell that is no text (missing) has none."""
    return together(text.split(SEPARATOR) for text in cells if isinstance(text, str) and text)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("s" if n != 1 else "")
