"""Numbers as text: as many digits as say something, powers of ten where plain notation would be long."""

import math

MISSING = "–"
PLAIN = (1e-4, 1e7)  # sizes in plain notation
MOST_DIGITS = 6  # significant ones of a mean, whatever its deviation
ROUNDING = 1e-12  # a deviation below this share of the mean is that of floating point
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def significant(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits: 0.00123, 12.3, 1,230, 1.23·10⁻⁷; NaN and infinity are missing."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if not PLAIN[0] <= abs(value) < PLAIN[1]:
        return power_of_ten(value, digits)
    return _signed(f"{value:,.{decimals_of(value, digits)}f}")


def power_of_ten(value: float, digits: int = 2) -> str:
    """A number other than 0 as 2.4·10⁻⁴."""
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{_signed(mantissa)}·10{str(int(power)).translate(SUPERSCRIPTS)}"


def fixed(value: float, decimals: int) -> str:
    """A number with `decimals` decimals, fewer beyond six digits. Only 0 reads 0: less has two digits of its own."""
    if value == 0:
        return f"{0:.{decimals}f}"
    if not PLAIN[0] <= abs(value) < PLAIN[1]:
        return significant(value)
    text = f"{value:,.{min(decimals, decimals_of(value, MOST_DIGITS))}f}"
    return _signed(text) if text.strip("-0.") else significant(value, 2)


def measured(mean: float, deviation: float | None, *, decimals: int) -> str:
    """A mean with `decimals` decimals, ± its deviation; more of them where that takes more to show: only 0 reads 0.

    0.447 ± 0.004 with two decimals; (4.5 ± 0.2)·10⁻⁷. deviation: None or NaN where there is none.
    """
    if not math.isfinite(mean) or deviation is None or not math.isfinite(deviation):
        return fixed(mean, decimals)
    if deviation < ROUNDING * abs(mean):
        deviation = 0.0
    size = max(abs(mean), deviation)
    if size and not PLAIN[0] <= size < PLAIN[1]:
        power = math.floor(math.log10(size))
        inside = measured(mean / 10.0**power, deviation / 10.0**power, decimals=1)
        return f"({inside})·10{str(power).translate(SUPERSCRIPTS)}"
    decimals = max(decimals, spread_decimals(deviation))
    decimals = min(decimals, decimals_of(size, MOST_DIGITS)) if size else decimals
    text, spread = f"{mean:,.{decimals}f}", f"{deviation:,.{decimals}f}"
    if not text.strip("-0."):
        text = text.lstrip("-")
    if deviation and not spread.strip("0."):
        spread = f"< {10.0**-decimals:.{decimals}f}"
    return f"{_signed(text)} ± {spread}"


def mean_and_deviation(mean: float, deviation: float | None, *, digits: int = 3) -> tuple[str, str]:
    """A mean with `digits` significant digits, more where its deviation is small; "± " and the deviation with two.

    The second is "" where there is no deviation: None or NaN.
    """
    if not math.isfinite(mean) or deviation is None or not math.isfinite(deviation):
        return significant(mean, digits), ""
    known = math.floor(math.log10(abs(mean))) + 1 + decimals_of(deviation, 1) if mean else 0
    return significant(mean, max(digits, min(known, MOST_DIGITS))), f"± {significant(deviation, 2)}"


def spread_decimals(deviation: float | None) -> int:
    """The decimals that show a deviation's first digit, and its second where the first is 1; 0 for no deviation."""
    if not deviation or not math.isfinite(deviation):
        return 0
    leading, power = f"{deviation:.0e}".split("e")
    return max(0, (1 if leading == "1" else 0) - int(power))


def decimals_of(value: float, digits: int) -> int:
    """The decimals that show `digits` significant digits of a finite number."""
    return max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0


def _signed(text: str) -> str:
    return text.replace("-", "−")
