"""The registry: a version of a model for each state of the pipeline, and the alias `best`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ifm.errors import UserError
from ifm.tracking import store

ALIAS = "best"
PREFIX = "ifm-flow-"
LOWER = {"fid", "kid", "near_copies", "sliced_wasserstein", "energy_distance", "fid_extrapolated", "seconds_per_image"}
HIGHER = {"inception_score", "precision", "recall", "density", "coverage"}


def cache_uri(md5: str) -> str:
    """The place of an object below the root of any of DVC's caches and remotes."""
    return f"dvc://files/md5/{md5[:2]}/{md5[2:]}"


def add_version(
    client: Any,
    name: str,
    *,
    state: str,
    run_id: str,
    model_id: str,
    md5: str | None,
    description: str,
    tags: Mapping[str, str],
) -> str:
    """The number of the version of model `name` for a state. The version is made once."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=f"The {name.split('-')[1]} of one dynamics; bytes are in DVC.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((v for v in versions if v.tags.get("ifm.state") == state), None)
    if version is None:
        place = {"dvc.md5": md5} if md5 else {}
        version = client.create_model_version(
            name,
            source=cache_uri(md5) if md5 else f"dvc://{tags['dvc.path']}",
            run_id=run_id,
            model_id=model_id,
            description=description,
            tags={"ifm.state": state, "ifm.model_id": model_id} | place | tags,
        )
    _link(client, model_id, name, str(version.version))
    return str(version.version)


def _link(client: Any, model_id: str, name: str, version: str) -> None:
    """Shows the version beside the logged model, with the tag that mlflow.register_model sets."""
    linked = json.loads(client.get_logged_model(model_id).tags.get("mlflow.modelVersions", "[]"))
    entry = {"name": name, "version": version}
    if entry not in linked:
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps([*linked, entry])})


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
    Only versions on the newest version's data and by its protocol are compared: other figures mean something else.
    Raises UserError where there is nothing to compare, or the direction is not known.
    """
    measure, _, sampler = metric.partition("/")
    if lower is None:
        if measure not in LOWER | HIGHER:
            raise UserError(f"--metric {metric}: whether less is better is not known; add --lower or --higher")
        lower = measure in LOWER
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
    candidates = [_candidate(client, version, key, newest) for version in versions]
    compared = [c for c in candidates if c.value is not None]
    if not compared:
        raise UserError(f"{name}: no version has the figure {key}; the runs' metrics name those there are")
    compared.sort(key=lambda c: (c.value if lower else -c.value, c.version))
    before = _alias(client, name)
    client.set_registered_model_alias(name, ALIAS, str(compared[0].version))
    about = ", ".join(newest[k] for k in ("data", "protocol") if k in newest)
    left = [c for c in candidates if c.value is None]
    return Promotion(name, key, lower, about, compared + left, before, compared[0].version)


def _candidate(client: Any, version: Any, key: str, newest: Mapping[str, str]) -> Candidate:
    number, title = int(version.version), version.description or ""
    other = [k for k in ("data", "protocol") if version.tags.get(k) != newest.get(k)]
    if other:
        shown = ", ".join(f"{k} {version.tags.get(k, 'unknown')}" for k in other)
        return Candidate(number, None, title, f"not comparable: {shown}")
    value = client.get_run(version.run_id).data.metrics.get(key)
    return Candidate(number, value, title, "" if value is not None else f"has no {key}")


def _alias(client: Any, name: str) -> int | None:
    found = client.get_registered_model(name).aliases.get(ALIAS)
    return int(found) if found is not None else None
