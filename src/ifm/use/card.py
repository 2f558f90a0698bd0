"""The README.md of an exported model: what it is, how to use it, its figures and how they were made."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifm import modalities, recorded
from ifm.dynamics import DYNAMICS
from ifm.errors import UserError
from ifm.files import read_json
from ifm.metrics import catalogue, cautions, teachers
from ifm.metrics.metric import SPREAD
from ifm.modalities import Modality
from ifm.use.front_matter import front_matter

PROTOCOL = ("extractor", "checksum", "resize", "rounding", "split", "n_train")
PUBLISHED = ("inception", "dinov2")  # extractors whose figures are also published
CLASSES = 100  # named at most
FACTS = ("objective", "anchor", "image_shape", "train_images", "parameters", "sha256")

SOUNDS = {"fid": "Fréchet distance"}  # of spectrograms' features: no FID, and not FAD either


@dataclass(frozen=True)
class Evaluation:
    """Figures of samplers by name, the protocol beside them, and the sentences that speak against them."""

    rows: Mapping[str, Mapping[str, Any]]
    protocol: Mapping[str, Any]
    warnings: Sequence[str] = ()


def read_evaluation(path: Path) -> Evaluation:
    """The stage's reports/metrics/{dynamics}.json with its reference.json, or what `ifm evaluate --out` wrote.

    Raises UserError for anything else.
    """
    found = _read(path)
    if isinstance(found.get("figures"), Mapping):
        protocol = found.get("protocol")
        protocol = protocol if isinstance(protocol, Mapping) else {}
        return Evaluation({"samples": found["figures"]}, protocol, cautions.told(found))
    known = catalogue.ranking().keys()
    rows = {name: row for name, row in found.items() if isinstance(row, Mapping) and known & row.keys()}
    if not rows:
        raise UserError(f"{path}: holds no figures; name reports/metrics/<dynamics>.json, or ifm evaluate's --out")
    beside = path.with_name("reference.json")
    protocol = _read(beside) if beside.is_file() else {}
    return Evaluation(rows, protocol, cautions.together(map(cautions.told, [protocol, *rows.values()])))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: must be an object of JSON")
    return found


def model_card(
    description: Mapping[str, Any],
    *,
    title: str,
    usage: str,
    library: str | None,
    data: str | None = None,
    license_id: str | None = None,
    evaluation: Evaluation | None = None,
    picture: str | None = None,
    caption: str = "",
    classes: Sequence[str] | None = None,
) -> str:
    """README.md with the Hub's front matter. Texts of users (title, data, names in files) are escaped.

    usage: Markdown, taken as it is; picture: a file beside it; classes: that the flow takes, by number.
    """
    dynamics = description["dynamics"]["name"]
    modality = modalities.of(description if "image_shape" in description else (1, 1, 1))
    images = modality.name == "images"
    front = front_matter(
        title=title,
        dynamics=dynamics,
        kind="points" if not images else "images" if classes is None else "classes",
        library=library,
        data=data,
        license_id=license_id,
        rows=evaluation.rows if evaluation else {},
        protocol=evaluation.protocol if evaluation else {},
        titles=SOUNDS if modality.audible else {},
    )
    parts = [f"---\n{front}\n---", f"# {escape(title)}"]
    made = f"{'an' if images else 'a'} {modality.one}{'' if classes is None else ' of a class'}"
    parts.append(
        "An integration flow ([arXiv 2504.20179](https://arxiv.org/abs/2504.20179)): noise becomes "
        f"{made} in one evaluation of the network. "
        f"Dynamics: {escape(DYNAMICS[dynamics].title if dynamics in DYNAMICS else str(dynamics))}."
        + (f" Trained on: {escape(data)}." if data else "")
    )
    if picture:
        parts.append(f"![samples]({picture})\n\n*{escape(caption)}*")
    parts += [f"## Use\n\n{usage}"]
    if classes is not None:
        named = ", ".join(f"{i} {escape(name)}" for i, name in enumerate(classes[:CLASSES]))
        parts.append(f"## Classes\n\n{named}{', ...' if len(classes) > CLASSES else ''} ({len(classes)} in all).")
    if evaluation:
        parts.append(f"## Figures\n\n{_figures(evaluation, modality)}")
    parts.append(f"## Model\n\n{_facts(description)}")
    return "\n\n".join(parts) + "\n"


def escape(text: Any) -> str:
    """Text in one line that Markdown and HTML show as it is."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", plain).replace("://", "&#58;//")


def _figures(evaluation: Evaluation, modality: Modality) -> str:
    rows, protocol = evaluation.rows, evaluation.protocol
    shown = {m.key: m.name for m in catalogue.merits() if any(_number(row.get(m.key)) for row in rows.values())}
    if modality.audible:
        shown |= {key: title for key, title in SOUNDS.items() if key in shown}
    table = [["", "evaluations", *shown.values()]]
    for name, row in rows.items():
        nfe = row.get("nfe")
        table.append([escape(name), escape(nfe) if nfe else "", *(_figure(row, key) for key in shown)])
    counts = sorted({(row.get("n_samples"), row.get("seeds")) for row in rows.values() if row.get("nfe")}, key=str)
    text = [_table(table)]
    text += [f"Sets of {escape(n)} samples, {escape(seeds)} of them; mean ± standard deviation." for n, seeds in counts]
    text += _against_the_teacher(rows, modality, shown)
    facts = {key: protocol[key] for key in PROTOCOL if protocol.get(key) is not None}
    if facts:
        text.append("Protocol: " + "; ".join(f"{escape(k)} {escape(v)}" for k, v in facts.items()) + ".")
    if evaluation.warnings:
        text.append("Read the figures with care:\n\n" + "\n".join(f"- {escape(each)}" for each in evaluation.warnings))
    if "fid" in shown and str(facts.get("extractor")) not in PUBLISHED:
        told = "The FID is not on Inception's features"
        if modality.audible:
            told = "The Fréchet distance is of the features of spectrograms, and not FAD"
        text.append(f"{told}: it does not compare with published ones.")
    return "\n\n".join(text)


def _against_the_teacher(
    rows: Mapping[str, Mapping[str, Any]], modality: Modality, shown: Mapping[str, str]
) -> list[str]:
    """The flow's one step over the teacher at its best evaluations, and whether it repeats training data: sentences."""
    judge = catalogue.judge_of(key for row in rows.values() for key in row)
    flow = next((row for row in rows.values() if row.get("sampler") == "one_step"), {})
    of_teacher = [row for row in rows.values() if row.get("model") == "teacher" and _number(row.get("nfe"))]
    best, ratio = teachers.best(of_teacher, judge), teachers.ratio_of(flow, of_teacher, judge)
    found = []
    if best is not None:
        found.append(f"The teacher is best at {best['nfe']} evaluations.")
    if best is not None and _number(ratio):
        found[0] = (
            f"In one evaluation the flow has {_figure(flow, 'ratio')} times the {shown.get(judge.key, judge.name)} of "
            f"its teacher at {best['nfe']} evaluations, where the teacher is best: the mean of the two figures' ratio "
            "over sets from the same prior draws."
        )
    if _number(flow.get("train_distance")) and _number(flow.get("unseen_distance")):
        found.append(
            f"Median distance to the nearest training {modality.one}, in feature space: "
            f"{_figure(flow, 'train_distance')} of the flow's samples in one evaluation, "
            f"{flow['unseen_distance']:.4g} of {modality.noun} that training has not seen."
        )
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(row: Mapping[str, Any], key: str) -> str:
    if not _number(row.get(key)):
        return ""
    deviation = row.get(key + SPREAD)
    sd = f" ± {deviation:.2g}" if _number(deviation) else ""
    return f"{row[key]:.4g}{sd}"


def _facts(description: Mapping[str, Any]) -> str:
    facts = {f"dynamics: {key}": value for key, value in description["dynamics"].items()}
    facts |= {key: description[key] for key in FACTS if description.get(key) is not None}
    facts |= {f"guidance: {key}": value for key, value in (description.get("guidance") or {}).items()}
    facts |= {f"evaluations: {n}": _sampler(entry) for n, entry in description.get(recorded.KEY, {}).items()}
    one = modalities.of(description).one if "image_shape" in description else "image"
    names = {key: key.replace("image", one) for key in facts}
    return _table([["", ""], *([escape(names[key]), escape(value)] for key, value in facts.items())])


def _sampler(entry: Mapping[str, Any]) -> str:
    """A recorded sampler with what it measured."""
    way = recorded.Way(entry["sampler"], entry.get("times"))
    value = entry.get("value")
    return way.title + (f" ({entry.get('metric')} {value:.3g})" if _number(value) else "")


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
