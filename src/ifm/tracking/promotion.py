"""The alias `best`: which version of each flow's model has the best figure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ifm.errors import UserError
from ifm.metrics import catalogue
from ifm.metrics.teachers import AGAINST
from ifm.tracking import store

ALIAS = "best"
PREFIX = "ifm-flow-"


@dataclass(frozen=True)
class Candidate:
    """A version and its figure, which is None where its run has none or it was judged in another way."""

    version: int
    value: float | None
    title: str
    why_not: str = ""


@dataclass(frozen=True)
class Promotion:
    """What was compared, best first, and what `best` was and is."""

    model: str
    metric: str
    lower: bool
    about: str
    candidates: list[Candidate]
    before: int | None
    after: int


def promote(metric: str, *, dynamics: str | None = None, lower: bool | None = None) -> list[Promotion]:
    """Moves the alias `best` of each flow's model to the version with the best figure.

    metric: e.g. `fid`, of one evaluation, or `fid/4nfe-renoise`. lower: whether less is better; None: as known.
    Only versions on the newest version's data and by its protocol are compared: other figures mean something else. So
    do ratios of earlier versions of this code, over the teacher at its most evaluations.
    Raises UserError where there is nothing to compare, or the direction is not known.
    """
    measure, _, sampler = metric.partition("/")
    if lower is None:
        lower = catalogue.lower_is_better(measure)
    if lower is None:
        raise UserError(f"--metric {metric}: whether less is better is not known; add --lower or --higher")
    uri = store.without_secrets(store.tracking_uri())
    try:
        client, _ = store.connect()
        names = sorted(m.name for m in client.search_registered_models() if m.name.startswith(PREFIX))
        if dynamics is not None:
            names = [name for name in names if name == f"{PREFIX}{dynamics}"]
        if not names:
            raise UserError(f"no model {PREFIX}{dynamics or '*'} in {uri}; the stage `track` registers them")
        return [_promote(client, name, f"{measure}/{name.removeprefix(PREFIX)}-flow-{sampler or '1nfe'}", lower)
                for name in names]  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # whatever the store raises
        raise UserError(f"the store at {uri} failed ({store.brief(error)})") from error


def _promote(client: Any, name: str, key: str, lower: bool) -> Promotion:
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version))
    if not versions:
        raise UserError(f"{name}: has no version; the stage `track` registers them")
    newest = versions[-1].tags
    against = key.replace("ratio/", f"{AGAINST}/") if key.startswith("ratio/") else key  # what stands beside a ratio
    if against not in client.get_run(versions[-1].run_id).data.metrics:
        against = key
    candidates = [_candidate(client, version, key, newest, beside=against) for version in versions]
    compared = [c for c in candidates if c.value is not None]
    if not compared:
        raise UserError(f"{name}: no version has the figure {key}; the runs' metrics name those there are")
    compared.sort(key=lambda c: (c.value if lower else -c.value, c.version))
    before = _alias(client, name)
    client.set_registered_model_alias(name, ALIAS, str(compared[0].version))
    about = ", ".join(newest[k] for k in ("data", "protocol") if k in newest)
    left = [c for c in candidates if c.value is None]
    return Promotion(name, key, lower, about, compared + left, before, compared[0].version)


def _candidate(client: Any, version: Any, key: str, newest: Mapping[str, str], *, beside: str) -> Candidate:
    """beside: a figure that the run must have too, so that `key` means the same."""
    number, title = int(version.version), version.description or ""
    other = [k for k in ("data", "protocol") if version.tags.get(k) != newest.get(k)]
    if other:
        shown = ", ".join(f"{k} {version.tags.get(k, 'unknown')}" for k in other)
        return Candidate(number, None, title, f"not comparable: {shown}")
    figures = client.get_run(version.run_id).data.metrics
    if key in figures and beside not in figures:
        return Candidate(number, None, title, f"not comparable: has no {beside}")
    value = figures.get(key)
    return Candidate(number, value, title, "" if value is not None else f"has no {key}")


def _alias(client: Any, name: str) -> int | None:
    found = client.get_registered_model(name).aliases.get(ALIAS)
    return int(found) if found is not None else None
