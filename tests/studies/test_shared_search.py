"""One search of several machines: a study in a database, which no configuration runs twice in."""

import threading
from collections import Counter

import pytest

from ifm.errors import UserError
from pipeline.studies.axes import read_axes
from pipeline.studies.search import SAME, WORKER, hidden, search
from tests.support import mlflow_server

optuna = pytest.importorskip("optuna", reason="needs the extra .[optuna]")
NO_POSTGRES = mlflow_server.postgres_command("initdb") is None or mlflow_server.postgres_command("postgres") is None
POSTGRES = pytest.param(
    "postgresql",
    marks=[pytest.mark.slow, pytest.mark.skipif(NO_POSTGRES, reason="PostgreSQL is not installed")],
)


@pytest.fixture(scope="module", params=["sqlite", POSTGRES])
def database(request, tmp_path_factory):
    """A URL that two machines could have."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('study')}/study.db"
        return
    with mlflow_server.postgres() as uri:
        yield uri


def joined(database, name, worker, *, count=12, words=("flow.lr=1e-4,1e-3,1e-2", "anchor.policy=none,self"), at_once=1):
    axes = read_axes(list(words))
    return search(axes, count, at_once=at_once, higher=False, storage=database, name=name, worker=worker)


def work(one, ran, score=lambda values: values["flow.lr"]):
    """What a machine does: its part of the search to the end."""
    for batch in one.batches():
        for asked, values in batch:
            ran.append((one.worker, tuple(sorted(values.items()))))
            one.tell(asked, score(values))


def test_two_machines_share_one_study_and_run_nothing_twice(database):
    """Six configurations, twelve trials, both at once: each configuration is run by one of them, once."""
    ran, errors = [], []

    def machine(worker):
        try:
            work(joined(database, "twice", worker, at_once=2), ran)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=machine, args=(name,)) for name in ("a:/one", "b:/two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    times = Counter(values for _, values in ran)
    assert max(times.values()) == 1
    assert len(times) <= 6
    trials = joined(database, "twice", "c:/three").study.get_trials()
    asked = [one for one in trials if one.number < 12]
    assert [one.number for one in asked] == list(range(12))
    assert all(one.state.is_finished() for one in trials)
    assert {one.user_attrs[WORKER] for one in trials} <= {"a:/one", "b:/two"}
    fresh = [one for one in asked if SAME not in one.user_attrs]
    assert len(fresh) == len(ran)
    for one in asked:
        first = trials[one.user_attrs.get(SAME, one.number)]
        assert one.params == first.params
        assert one.value in (first.value, None)
    work(joined(database, "twice", "c:/three"), ran)
    assert sum(times.values()) == len(ran)  # nothing is left for a third


def test_values_of_a_range_are_all_different_and_all_are_told(database):
    ran = []
    words = ("flow.lr=1e-5..1e-1:log",)
    for worker in ("a", "b"):
        work(joined(database, "range", worker, count=5 if worker == "a" else 9, words=words), ran)
    assert [worker for worker, _ in ran] == ["a"] * 5 + ["b"] * 4
    assert len({values for _, values in ran}) == 9
    assert all(one.value is not None for one in joined(database, "range", "c", count=9, words=words).study.get_trials())


def test_a_machine_that_was_killed_takes_up_what_it_had_begun(database):
    ran = []
    killed = next(joined(database, "killed", "a").batches())
    other = joined(database, "killed", "b")
    work(other, ran)
    assert tuple(sorted(killed[0][1].items())) not in {values for _, values in ran}
    again = []
    work(joined(database, "killed", "a"), again)
    assert again[0] == ("a", tuple(sorted(killed[0][1].items())))
    assert joined(database, "killed", "a").study.get_trials()[killed[0][0].number].state.name == "COMPLETE"


def test_a_failed_configuration_is_not_run_by_another(database):
    ran = []
    one = joined(database, "failed", "a", count=6, words=("flow.lr=1e-4",))
    work(one, ran, score=lambda values: None)
    assert len(ran) == 1
    assert {trial.state.name for trial in one.study.get_trials()} == {"FAIL"}


def test_a_database_that_cannot_be_opened_is_one_line_without_its_password():
    url = "postgresql+psycopg2://me:s3cret@127.0.0.1:1/studies"
    with pytest.raises(UserError) as told:
        joined(url, "x", "a")
    assert "s3cret" not in str(told.value)
    assert str(told.value).startswith("--study postgresql+psycopg2://me:***@127.0.0.1:1/studies: cannot be opened (")
    assert "\n" not in str(told.value)
    assert hidden("sqlite:///study.db") == "sqlite:///study.db"
    with pytest.raises(UserError, match="--study nonsense: cannot be opened"):
        joined("nonsense", "x", "a")
