"""How the figures were obtained, in words."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ifm.data.arrays import duplicates_in_words
from ifm.metrics import catalogue
from ifm.metrics.metric import FLOOR
from ifm.report import names
from ifm.report.contents import Report
from ifm.report.headlines import headlines, nfe_text
from ifm.report.rounding import MISSING, significant

PROTOCOL = {"resize": "Resize", "rounding": "Rounding", "probabilities": "Class probabilities"}


def protocol(report: Report) -> list[tuple[str, str]]:
    """How the figures were obtained: (what, how)."""
    reference, summary = report.reference, report.summary
    what = f"{names.unit(summary)}s"
    extractor = str(reference.get("extractor") or ", ".join(map(str, summary["extractor"].unique())))
    if reference.get("dimension") is not None:
        extractor += f", {int(reference['dimension']):,} features"
    if reference.get("accuracy") is not None:
        extractor += f"; {100 * reference['accuracy']:.1f} % of the test {what} classified correctly"
    models = names.of_models(summary)
    sets = models["seeds"].max()
    count = f"{span(models['n_samples'])} for each sampler"
    if pd.notna(sets) and sets > 1:
        count += f" and sampling seed, {int(sets)} seeds; every figure is their mean, ± one standard deviation"
    lines = [("Extractor", extractor)]
    if reference.get("checksum") not in (None, "identity"):
        lines.append(("Its weights", f"sha256 {reference['checksum']}"))
    kept = [key for key in PROTOCOL if reference.get(key) and (key != "resize" or what not in ("points", "texts"))]
    lines += [(PROTOCOL[key], reference[key]) for key in kept]
    lines.append(("Samples", count))
    split = reference.get("split")
    if split is not None:
        count = reference.get(f"n_{split}")
        lines.append(("Reference", f"{split} split" + (f", {int(count):,} {what}" if count is not None else "")))
    if reference.get("duplicates"):
        counts = {name: reference[f"n_{name}"] for name in ("train", "test")}
        lines.append(("Repeated " + what, duplicates_in_words(reference["duplicates"], counts, noun=what)))
    for metric in (m for m in catalogue.of() if m.floor):
        floor = reference.get(FLOOR + metric.key)
        if floor is not None and math.isfinite(floor):
            count = reference.get("n_test")
            tests = f"{int(count):,} {what}" if count is not None else f"real {what}"
            lines.append(("Floor", f"{metric.name} {significant(floor)}: test split ({tests}) against train split"))
    best = _best_nfe(models)
    if summary["fid_extrapolated"].notna().any():
        lines.append(
            (
                "FID’s bias",
                "FID at n samples is too large by about c/n; extrapolated from one seed’s samples and all seeds’ to "
                "infinitely many (Chong & Forsyth 2020); the reference keeps its size",
            )
        )
    if summary["precision"].notna().any():
        lines.append(
            (
                "Diversity",
                "precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) on the same "
                "features; inception score on the extractor’s own classes, all of a seed’s samples at once",
            )
        )
    lines += [("Teacher", f"at the NFE whose mean is best, of equal ones the smallest: {best}")] * bool(best)
    if summary["endpoint_rms"].notna().any():
        lines.append(("End-point RMS", "flow against the teacher at its largest NFE, from the same prior draw"))
    lines.append(("Seed of training", ", ".join(str(int(s)) for s in sorted(summary["seed"].dropna().unique()))))
    return lines


def _best_nfe(models: pd.DataFrame) -> str:
    """VE diffusion 17, ...: the NFE that the ratios are over; "" without a teacher."""
    lines = [line for _, rows in models.groupby(["data", "extractor"], sort=False) for line in headlines(rows)]
    said = {names.DYNAMICS.get(line.dynamics, line.dynamics): nfe_text(line.teacher_nfe) for line in lines}
    return ", ".join(f"{name} {nfe}" for name, nfe in said.items() if nfe)


def how(reference: Mapping[str, Any], summary: pd.DataFrame) -> str:
    """The protocol in a line, to stand beside figures."""
    parts = [f"{extractor} features" for extractor in summary["extractor"].unique() if extractor not in names.UNITS]
    parts += [f"weights {c}" for c in summary["checksum"].dropna().unique() if c != "identity"]
    if reference.get("resize") and names.unit(summary) not in ("point", "text"):
        parts.append(f"resize: {reference['resize']}")
    sets = summary["seeds"].max()
    times = f"{int(sets)} × " if pd.notna(sets) and sets > 1 else ""
    parts.append(f"{times}{span(summary['n_samples'])} samples")
    parts += [f"against {r}" for r in summary["reference"].dropna().unique()]
    return ", ".join(parts)


def span(values: pd.Series) -> str:
    """The least to the largest count."""
    low, high = values.min(), values.max()
    if pd.isna(low):
        return MISSING
    return f"{int(low):,}" if low == high else f"{int(low):,} to {int(high):,}"
