"""The YAML at the head of a model card, in the form that the Hub checks when a card is pushed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ifm.metrics import catalogue

TAGS = ["integration-flow", "one-step-generation", "arxiv:2504.20179"]
IMAGES = "unconditional-image-generation"  # the Hub's task of images without a prompt
TASKS = {"images": IMAGES, "classes": "class-conditional-image-generation", "points": "other"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# The ids of https://huggingface.co/docs/hub/repositories-licenses; of others the Hub wants `other` and a name.
_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c
ms-pl apple-ascl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())


def front_matter(
    *,
    title: str,
    dynamics: str,
    kind: str,
    library: str | None,
    data: str | None,
    license_id: str | None,
    rows: Mapping[str, Mapping[str, Any]],
    protocol: Mapping[str, Any],
    titles: Mapping[str, str] | None = None,
) -> str:
    """YAML without its lines of dashes. kind: images, classes (images of a class) or points; titles: of some figures.

    The model's own figures become a model-index where the data set is named: the Hub wants one beside each figure.
    """
    from huggingface_hub import ModelCardData

    results = [] if data is None else _results(kind, data, rows, protocol, titles or {})
    return ModelCardData(
        library_name=library,
        pipeline_tag=IMAGES if kind == "images" else None,
        tags=TAGS + (["class-conditional"] if kind == "classes" else []) + [dynamics],
        datasets=[data] if data and _HUB_ID.fullmatch(data) else None,
        model_name=" ".join(title.split()) or "model",
        eval_results=results or None,
        **_license(license_id),
    ).to_yaml()


def _license(given: str | None) -> dict[str, str]:
    """The Hub's id, or `other` and a name in the form of an id."""
    if given is None:
        return {}
    if given.lower() in LICENSES:
        return {"license": given.lower()}
    return {"license": "other", "license_name": _slug(given)}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"


def _results(
    kind: str,
    data: str,
    rows: Mapping[str, Mapping[str, Any]],
    protocol: Mapping[str, Any],
    titles: Mapping[str, str],
) -> Sequence[Any]:
    """The figures of the model itself: of its samples, not of its teacher's or of real data."""
    from huggingface_hub import EvalResult

    found = []
    for name, row in rows.items():
        if row.get("model") not in (None, "flow"):
            continue
        facts = {key: row.get(key) for key in ("nfe", "n_samples", "seeds")}
        facts |= {key: protocol.get(key) for key in ("extractor", "checksum", "resize")}
        for metric in catalogue.merits():
            if _finite(row.get(metric.key)):
                result = EvalResult(
                    task_type=TASKS[kind],
                    dataset_type=data if _HUB_ID.fullmatch(data) else _slug(data),
                    dataset_name=" ".join(data.split()),
                    dataset_split=protocol.get("split"),
                    metric_type=metric.key,
                    metric_name=_named(titles.get(metric.key, metric.title), name, row),
                    metric_value=float(row[metric.key]),
                    metric_args={key: value for key, value in facts.items() if isinstance(value, str | int)},
                )
                found.append(result)
    return found


def _named(title: str, name: str, row: Mapping[str, Any]) -> str:
    nfe = row.get("nfe")
    return f"{title}, {nfe} evaluation{'s' if nfe != 1 else ''} ({name})" if nfe else title


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
