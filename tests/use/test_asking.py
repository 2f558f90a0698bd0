"""Classes by number, name, range and "all"; what is no class is one line that names the known ones."""

import numpy as np
import pytest
import torch

from ifm.conditions.asking import in_words, known, numbers_of
from ifm.conditions.classes import Classes
from ifm.errors import UserError

ANIMALS = ["cat", "dog", "T-shirt", "tench, Tinca tinca", "crane", "crane"]
DIGITS = [str(i) for i in range(10)]
MANY = [f"name{i}" for i in range(1000)]


@pytest.mark.parametrize(
    ("asked", "classes", "found"),
    [
        (3, DIGITS, [3]),
        (np.int64(3), DIGITS, [3]),
        (torch.tensor([3, 1]), DIGITS, [3, 1]),
        ("3", DIGITS, [3]),
        ("0-9", DIGITS, list(range(10))),
        ("0 - 2, 7", DIGITS, [0, 1, 2, 7]),
        ("all", DIGITS, list(range(10))),
        (range(2, 4), DIGITS, [2, 3]),
        ([3, "4", "0-1"], DIGITS, [3, 4, 0, 1]),
        ("cat,dog", ANIMALS, [0, 1]),
        ("DOG", ANIMALS, [1]),
        ("T-shirt", ANIMALS, [2]),
        ("tench, Tinca tinca", ANIMALS, [3]),
        (["tench, Tinca tinca", "cat"], ANIMALS, [3, 0]),
        (4, ANIMALS, [4]),
        ("1", ["1", "0"], [0]),  # a name goes before a number
        (1, ["1", "0"], [1]),
        ("all", ["none", "all"], [1]),
    ],
)
def test_classes_are_found(asked, classes, found):
    assert numbers_of(asked, classes) == found
    assert Classes(classes=classes, shares=[1.0] * len(classes)).index(asked) == found


@pytest.mark.parametrize(
    ("asked", "classes", "said"),
    [
        (10, DIGITS, "class 10 is out of range 0 to 9; known: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (-1, DIGITS, "class -1 is out of range"),
        ("-1", DIGITS, "class -1 is out of range"),
        ("5-12", DIGITS, "class 12 is out of range"),
        ("5-2", DIGITS, "classes 5-2: a range goes up; write 2-5"),
        ("cow", ANIMALS[:2], r"unknown class 'cow'; known: 0 cat, 1 dog$"),
        ("crane", ANIMALS, "class 'crane' is the name of 4 and 5; ask by number"),
        (True, DIGITS, "a class is a whole number or a name, got True"),
        (1.0, DIGITS, "a class is a whole number or a name, got 1.0"),
        ([], DIGITS, "no class is asked for"),
        ("", DIGITS, "no class is asked for"),
        ("nam12", MANY, r"\(nearest: name12, .*19 name19, ... \(1000 classes\)$"),
    ],
)
def test_what_is_no_class_is_one_line(asked, classes, said):
    with pytest.raises(UserError, match=said) as error:
        numbers_of(asked, classes)
    assert "\n" not in str(error.value)


def test_classes_in_words():
    assert in_words([3, 3], DIGITS) == "class 3"
    assert in_words([1, 0], ANIMALS) == "classes dog, cat"
    assert in_words(range(1000), MANY) == "1000 classes"
    assert known(["a"]) == "known: 0 a"
