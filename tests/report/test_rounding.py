"""Numbers as text: a spread is seen unless it is none, and what is not 0 never reads 0."""

import math
import re

import numpy as np
import pytest

from ifm.report.rounding import fixed, mean_and_deviation, measured, power_of_ten, significant, spread_decimals

DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")


def number(text):
    """A number as it is written, read again."""
    mantissa, _, power = text.translate(DIGITS).replace(",", "").partition("·10")
    return float(mantissa) * 10.0 ** int(power or 0)


@pytest.mark.parametrize(
    ("mean", "deviation", "decimals", "text"),
    [
        (0.4472, 0.0041, 2, "0.447 ± 0.004"),
        (0.4472, 0.0014, 2, "0.4472 ± 0.0014"),  # a leading 1 has a digit more
        (2.2, 0.0321, 2, "2.20 ± 0.03"),
        (3.88, 2.7436, 2, "3.88 ± 2.74"),
        (0.45, 0.0, 2, "0.45 ± 0.00"),
        (0.45, 1e-17, 2, "0.45 ± 0.00"),  # the deviation of equal numbers in floating point
        (0.45, 1e-9, 2, "0.450000 ± < 0.000001"),
        (0.45, None, 2, "0.45"),
        (0.45, math.nan, 2, "0.45"),
        (math.nan, 0.1, 2, "–"),
        (math.inf, 0.1, 2, "–"),
        (4.5e-7, 2e-8, 3, "(4.5 ± 0.2)·10⁻⁷"),
        (1.5e12, 3e9, 2, "(1.500 ± 0.003)·10¹²"),
        (-0.0126, 0.0132, 4, "−0.0126 ± 0.0132"),
        (-0.00003, 0.0002, 4, "0.0000 ± 0.0002"),
        (73011.71, 0.512, 3, "73,011.7 ± 0.5"),
    ],
)
def test_a_mean_has_as_many_digits_as_its_deviation_needs(mean, deviation, decimals, text):
    assert measured(mean, deviation, decimals=decimals) == text


def test_whatever_its_size_a_deviation_is_seen_and_both_are_right_to_their_last_digit():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        mean, deviation = rng.choice([-1, 1]) * 10 ** rng.uniform(-12, 12), 10 ** rng.uniform(-12, 12)
        text = measured(mean, deviation, decimals=int(rng.integers(0, 5)))
        inside = re.fullmatch(r"\(?(\S+) ± (<?) ?([^)]+)\)?(·10\S+)?", text)
        first, less, second, power = inside.groups()
        shown = [number(part + (power or "")) for part in (first, second)]
        unit = number(re.sub(r"\d(?=\D*$)", "1", re.sub(r"\d", "0", second)) + (power or ""))  # of the last digit
        assert shown[1] > 0 or deviation < 1e-12 * abs(mean), text
        assert abs(shown[0] - mean) <= 0.51 * unit, text
        assert (deviation < shown[1]) if less else abs(shown[1] - deviation) <= 0.51 * unit, text
        assert len(text) < 30


@pytest.mark.parametrize("value", [3e-300, 0.00004, 0.0004, 0.4, 4.0, 41234.5, 4e6, 5e9, 1e300])
@pytest.mark.parametrize("decimals", [0, 2, 5])
def test_what_is_not_zero_does_not_read_zero(value, decimals):
    assert number(fixed(value, decimals)) == pytest.approx(value, rel=0.3 if decimals == 0 else 0.06)
    assert number(fixed(-value, decimals)) == -number(fixed(value, decimals))
    assert len(fixed(value, decimals)) < 16
    assert fixed(0.0, decimals) == f"{0:.{decimals}f}"


def test_significant_digits_of_small_and_large_numbers():
    values = (1.234e-9, 0.00123456, 12.345, 1234.5, 12345678.9, 0.0, math.nan, -0.5)
    texts = ["1.23·10⁻⁹", "0.00123", "12.3", "1,234", "1.23·10⁷", "0", "–", "−0.500"]
    assert [significant(x) for x in values] == texts
    assert power_of_ten(-2.43e-4) == "−2.4·10⁻⁴"


def test_means_and_deviations_apart():
    assert mean_and_deviation(0.453, 0.048) == ("0.453", "± 0.048")
    assert mean_and_deviation(0.44712, 0.00041) == ("0.4471", "± 0.00041")
    assert mean_and_deviation(60.0, 0.1, digits=4) == ("60.00", "± 0.10")
    assert mean_and_deviation(0.5, None) == mean_and_deviation(0.5, math.nan) == ("0.500", "")
    assert [spread_decimals(x) for x in (None, 0.0, 0.04, 0.014, 0.0096, 3.0, 14.0)] == [0, 0, 2, 3, 3, 0, 0]
