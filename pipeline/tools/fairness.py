"""Where a comparison of two states is not fair: a sentence for each reason."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ifm.metrics import cautions
from ifm.report.headlines import outdated
from ifm.report.summary import summary_columns
from ifm.tracking import flatten
from pipeline.runner.stage import outputs
from pipeline.tools.comparison import KEYS, Row, Side, differing, locked_params, number, values_of

REFERENCE = {  # of reports/metrics/reference.json: what two distances must share to be compared
    "extractor": "the extractors differ",
    "checksum": "the extractors’ weights differ: the features are not the same",
    "dimension": "the features’ dimensions differ",
    "split": "the reference splits differ",
    "n_train": "the train splits differ in size",
    "n_test": "the test splits differ in size",
}


def warnings(a: Side, b: Side, rows: Sequence[Row]) -> list[str]:
    """A sentence for each reason not to compare the figures as they stand."""
    of_sides = (f"{name}: {text}" for name, side in (("A", a), ("B", b)) for text in [*_warned(side), *_old(side)])
    return [*_unlike(a, b, rows), *of_sides]


def _warned(side: Side) -> list[str]:
    """What speaks against a side's own figures."""
    rows = (row for samplers in side.metrics.values() for row in samplers.values() if isinstance(row, Mapping))
    return cautions.together(map(cautions.told, [*side.metrics.values(), *rows, *side.diagnostics.values()]))


def _unlike(a: Side, b: Side, rows: Sequence[Row]) -> list[str]:
    """What the figures were measured on or with, where it is not the same."""
    found = []
    names = [values_of(side.summary, "data") for side in (a, b)]
    if names[0] != names[1]:
        found.append(_against("the data differ", *(", ".join(n) for n in names)))
    elif text := _other_data(a, b):
        found.append(text)
    extractors = [values_of(side.summary, "extractor") for side in (a, b)]
    if extractors[0] != extractors[1]:
        found.append(_against(REFERENCE["extractor"], *(", ".join(n) for n in extractors)))
    of_a, of_b = (side.metrics.get("reference", {}) for side in (a, b))
    for key, text in REFERENCE.items():
        told = key == "extractor" and extractors[0] != extractors[1]
        if key in of_a and key in of_b and of_a[key] != of_b[key] and not told:
            found.append(_against(text, *(_short(reference[key]) for reference in (of_a, of_b))))
    counts = Counter(
        (x, y)
        for row in rows
        if row.a and row.b and (x := number(row.a.get("n_samples"))) != (y := number(row.b.get("n_samples")))
    )
    for (x, y), times in counts.items():
        shown = [f"{n:,.0f}" if n is not None else "no count" for n in (x, y)]
        found.append(_against(f"the numbers of samples differ in {times} row{'s' * (times > 1)}", *shown))
    return found


def _other_data(a: Side, b: Side) -> str | None:
    """Data of one name that are not the same: by the checksum of the arrays, else by the params of section data."""
    made = [outputs(side.lock).get("data/processed") for side in (a, b)]
    keys = [key for key, _, _ in differing({"data": a.params.get("data")}, {"data": b.params.get("data")})]
    because = f" ({', '.join(keys[:4])}{' and more' if len(keys) > 4 else ''})" if keys else ""
    if all(made):
        text = "the data have one name but not the same bytes" + because
        return None if made[0] == made[1] else _against(text, *(md5[:8] for md5 in made))
    return f"The data’s params differ{because}." if keys and a.params and b.params else None


def _against(text: str, a: str, b: str) -> str:
    return f"{text[0].upper()}{text[1:]}: A {a}, B {b}."


def _short(value: Any) -> str:
    text = str(value)
    return text[:10] if len(text) > 40 else text


def _old(side: Side) -> list[str]:
    """Where a side's own files are not of one making, as after `dvc exp run` of single stages."""
    columns = list(dict.fromkeys([*side.summary.columns, *summary_columns()]))
    found = outdated(side.summary.reindex(columns=columns))
    if stale := _stale(side):
        files = ", ".join(f"reports/metrics/{d}.json" for d in stale)
        found.append(f"reports/summary.csv does not agree with {files}; `dvc repro report` mends it.")
    if keys := _not_run(side):
        shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        found.append(f"params.yaml is not what the results were made with ({shown}); `dvc repro` makes them anew.")
    return found


def _stale(side: Side) -> list[str]:
    """The dynamics whose figures in reports/metrics are not those of the summary."""
    known = [column for column in side.summary.columns if column not in KEYS]
    rows = {}
    for record in side.summary.to_dict("records"):
        rows.setdefault(tuple(record[key] for key in ("dynamics", "model", "sampler", "nfe")), []).append(record)
    stale = []
    for dynamics, samplers in side.metrics.items():
        for entry in samplers.values():
            if not isinstance(entry, Mapping) or "sampler" not in entry:
                continue
            mine = rows.get((dynamics, *(entry.get(key) for key in ("model", "sampler", "nfe"))), [])
            pairs = [(number(entry[c]), number(mine[0].get(c))) for c in known if c in entry] if len(mine) == 1 else []
            # Six significant digits are what the summary keeps.
            if any(None not in pair and not math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-12) for pair in pairs):
                stale.append(dynamics)
                break
    return stale


def _not_run(side: Side) -> list[str]:
    """Params of a side that are not those its dvc.lock says the stages were run with."""
    if not side.params:
        return []
    now, branches = flatten(side.params), side.params.get("dynamics") or ()
    found = []
    for name, stage in side.lock.items():
        if "@" in name and name.split("@")[1] not in branches:
            continue  # left in the lock by a dynamics that was taken out
        found += [key for key, value in locked_params(stage).items() if now.get(key, ...) != value]
    return list(dict.fromkeys(found))
