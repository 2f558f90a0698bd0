"""The registry: a version of a model for each state of the pipeline. `promotion` moves the alias `best`."""

import json
from collections.abc import Mapping
from typing import Any


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
