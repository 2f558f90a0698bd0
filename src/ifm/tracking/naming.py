"""Names of the rows in MLflow's table: data and dynamics, then the params that tell a row from its neighbours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TITLE, NAMED = "ifm.title", "ifm.name"  # tags: what a row's name begins with; the name that it was given last
SHOWN = 3  # params in a name: tables cut names short
_PAGE = 1000  # rows that MLflow gives at a time


@dataclass(frozen=True)
class Row:
    """A state as its name sees it."""

    run_id: str
    title: str  # data and dynamics
    params: Mapping[str, str]
    commit: str = ""
    experiment: str = ""  # DVC's name of it


def names(rows: Sequence[Row]) -> dict[str, str]:
    """{run_id: name}. Rows of one title differ by the params that they have more than one value of.

    Those with the most values come first: what a sweep varies. Rows with the same params are told apart by their
    commit, where that differs, and experiments by their name in DVC.
    """
    found = {}
    for title in dict.fromkeys(row.title for row in rows):
        alike = [row for row in rows if row.title == title]
        varied = _varied(alike)
        for row in alike:
            twins = [one for one in alike if one.params == row.params]
            at = f" @{row.commit[:7]}" if row.commit and len({one.commit for one in twins}) > 1 else ""
            found[row.run_id] = title + _told(row, varied) + at + (f" [{row.experiment}]" if row.experiment else "")
    return found


def _varied(rows: Sequence[Row]) -> list[str]:
    """The params with several values among rows that have them, the most first, else by name."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.params.items():
            values.setdefault(key, set()).add(value)
    several = [key for key, found in values.items() if len(found) > 1]
    return sorted(several, key=lambda key: (-len(values[key]), key))


def _told(row: Row, varied: Sequence[str]) -> str:
    """Keys without their sections where no other of them ends alike: MLflow's column shows some 20 characters."""
    mine = [key for key in varied if key in row.params]
    ends = [_end(key) for key in varied]
    more = f" and {len(mine) - SHOWN} more" if len(mine) > SHOWN else ""
    shown = [(key if ends.count(_end(key)) > 1 else _end(key), row.params[key]) for key in mine[:SHOWN]]
    return "".join(f", {key}={value}" for key, value in shown) + more


def _end(key: str) -> str:
    return key.rpartition(".")[2]


def rename(client: Any, experiment: str, run_id: str) -> str:
    """Gives every state of an experiment the name that tells it from the others; returns that of `run_id`.

    A row that somebody has named by hand keeps its name, and so does one of an earlier version.
    """
    runs = _states(client, experiment)
    given = names([_row(run) for run in runs])
    for run in runs:
        name, last = given[run.info.run_id], run.data.tags.get(NAMED)
        if name != last and run.info.run_name in (last, run.data.tags[TITLE]):
            client.update_run(run.info.run_id, name=name)
            client.set_tag(run.info.run_id, NAMED, name)
    return given[run_id]


def _states(client: Any, experiment: str) -> list[Any]:
    """The runs of all states that have a title."""
    found, token = [], None
    while True:
        page = client.search_runs([experiment], "tags.`ifm.kind` = 'pipeline'", max_results=_PAGE, page_token=token)
        found += [run for run in page if TITLE in run.data.tags]
        token = page.token
        if not token:
            return found


def _row(run: Any) -> Row:
    tags = run.data.tags
    return Row(
        run_id=run.info.run_id,
        title=tags[TITLE],
        params={key: value for key, value in run.data.params.items() if key != "dynamics"},
        commit=tags.get("mlflow.source.git.commit", ""),
        experiment=tags.get("dvc.exp_name", ""),
    )
