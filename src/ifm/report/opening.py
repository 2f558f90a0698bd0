"""The sentence that a report opens with: what was trained, on what, and what came of it, for a stranger."""

from collections.abc import Sequence

import pandas as pd

from ifm.metrics import catalogue
from ifm.report import names
from ifm.report.headlines import Estimate, Headline, headlines, nfe_text
from ifm.report.rounding import significant

COUNTS = ("No network", "A network", "Two networks", "Three networks", "Four networks", "Five networks")
VERDICTS = {  # (some kind is better than the teacher, some about as good, some worse)
    (True, False, False): "are better than",
    (False, True, False): "are about as good as",
    (False, False, True): "are not as good as",
    (True, True, False): "are as good as or better than",
    (False, True, True): "are at best as good as",
    (True, False, True): "are in part better, in part worse than",
    (True, True, True): "are in part better, in part worse than",
}


def opening(summary: pd.DataFrame, *, data: str) -> str:
    """One sentence, from the rows of the first data set and extractor."""
    _, first = next(iter(names.of_models(summary).groupby(["data", "extractor"], sort=False)))
    lines, one = headlines(first), names.unit(first)
    dynamics = list(dict.fromkeys(names.DYNAMICS.get(line.dynamics, line.dynamics) for line in lines))
    who = COUNTS[len(dynamics)] if len(dynamics) < len(COUNTS) else f"{len(dynamics)} networks"
    kinds = f" ({', '.join(dynamics)}) were" if len(dynamics) > 1 else " was"
    article = "an" if one[0] in "aeiou" else "a"
    done = f"{who}{kinds} trained on {data} to turn random noise into {article} {one} in a single step"
    return f"{done}{_result(lines, one, catalogue.judge(names.kind(first)))}."


def _result(lines: Sequence[Headline], one: str, judge: catalogue.Metric) -> str:
    """How the flow does beside its teacher; without a teacher, what it has; "" where nothing was measured."""
    flows = [line.flow_fid.mean for line in lines if line.flow_fid]
    if not flows:
        return ""
    measured = f"their {judge.name}, a distance from real {one}s, is {_span(flows)}"
    ratios = [line.ratio for line in lines if line.ratio]
    if not ratios:
        return f"; {measured}"
    nfe = nfe_text([n for line in lines for n in line.teacher_nfe])
    return (
        f"; these {one}s {_verdict(ratios)} those of the teacher network, which takes {nfe} steps: {measured}, or "
        f"{_span([ratio.mean for ratio in ratios])} times the teacher’s"
    )


def _verdict(ratios: Sequence[Estimate]) -> str:
    """In words. A ratio within a standard deviation of 1 is about as good; less is better for all that judge."""
    spreads = [(ratio.mean, ratio.deviation or 0.0) for ratio in ratios]
    better, worse = (any(sign * (mean - 1) > sd for mean, sd in spreads) for sign in (-1, 1))
    even = any(abs(mean - 1) <= sd for mean, sd in spreads)
    return VERDICTS[better, even, worse]


def _span(values: Sequence[float]) -> str:
    """0.62 to 0.75; one value where the ends read the same."""
    ends = dict.fromkeys((significant(min(values), 2), significant(max(values), 2)))
    return " to ".join(ends)
