"""Configurations proposed by Optuna, of this command alone or of a study that several machines share."""

import hashlib
import importlib.util
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ifm.errors import UserError, in_a_line
from pipeline.studies.axes import Range, Values

SEARCH_SEED = 0
WORKER, SAME = "ifm.worker", "ifm.same"  # attributes of a trial: who runs it; whose values it has once more
TRIES = 4
PATIENCE, POLL = 30.0, 0.1  # seconds that a trial before has to say its values


def search(
    axes: Mapping[str, Values],
    count: int,
    *,
    at_once: int,
    higher: bool,
    storage: str | None = None,
    name: str | None = None,
    worker: str = "",
) -> "Search":
    """A search by Optuna's TPE. Raises UserError where Optuna is not installed, or the storage cannot be opened.

    at_once: configurations that are asked for together; higher: whether a score is better the higher it is.
    storage: the URL of a database that machines share, in which they work on study `name`, `count` configurations all
    together; worker: this one's name there. Without it the search is the same for the same results.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("--search needs Optuna: pip install -e '.[optuna]' -c constraints.txt")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if higher else "minimize"
    if storage is None:
        sampler = optuna.samplers.TPESampler(seed=SEARCH_SEED, constant_liar=at_once > 1)
        return Search(axes, count, at_once, optuna.create_study(direction=direction, sampler=sampler))
    try:
        study = _opened(storage, name, direction)
        # Machines with one seed would propose the same, and so would one that starts again.
        told = f"{worker} {len(study.get_trials(deepcopy=False))}"
        seed = int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], "big")
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    except Exception as error:  # of Optuna, SQLAlchemy or the database's driver
        said = in_a_line(str(error).splitlines()[0] if str(error) else type(error).__name__).replace(storage, "")
        raise UserError(f"--study {hidden(storage)}: cannot be opened ({hidden(said)[:200]})") from None
    return SharedSearch(axes, count, at_once, study, worker)


def _opened(storage: str, name: str | None, direction: str) -> Any:
    """The study, made where it is not there. Where machines make a database's tables at once, one of them fails."""
    import optuna

    for further in reversed(range(TRIES)):
        try:
            return optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
        except Exception:
            if not further:
                raise
            time.sleep(5 * POLL)


def hidden(text: str) -> str:
    """A text without the password of a URL."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)


@dataclass
class Search:
    """Proposes configurations and is told their scores."""

    axes: Mapping[str, Values]
    count: int
    at_once: int
    study: Any

    def batches(self) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
        """As many at a time as there are workers: (to tell by, values of the axes)."""
        drawn_from = {key: _distribution(values) for key, values in self.axes.items()}
        for first in range(0, self.count, self.at_once):
            asked = [self.study.ask(drawn_from) for _ in range(min(self.at_once, self.count - first))]
            yield [(one, {key: _value(values, one.params[key]) for key, values in self.axes.items()}) for one in asked]

    def tell(self, asked: Any, score: float | None) -> None:
        """score: None where the configuration has none."""
        import optuna

        failed = {} if score is not None else {"state": optuna.trial.TrialState.FAIL}
        self.study.tell(asked, score, **failed)


@dataclass
class SharedSearch(Search):
    """A search of which several machines each run a part. No configuration runs twice.

    Trials are numbered in the study, and those up to `count` are run. What this worker began before it was killed it
    takes up again. Values that a trial before has already are not run: the trial takes its score, or none where it
    still runs.
    """

    worker: str

    def batches(self) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
        waiting = self._begun_before()
        while batch := [one for one in (self._next(waiting) for _ in range(self.at_once)) if one is not None]:
            yield batch

    def tell(self, asked: Any, score: float | None) -> None:
        super().tell(asked.number, score)

    def _begun_before(self) -> list[Any]:
        """Trials of this worker without an end."""
        from optuna.trial import TrialState

        running = self.study.get_trials(states=(TrialState.RUNNING,))
        return [
            one for one in running if one.user_attrs.get(WORKER) == self.worker and len(one.params) == len(self.axes)
        ]

    def _next(self, waiting: list[Any]) -> tuple[Any, dict[str, Any]] | None:
        """A trial to run and its values; None where the study has as many as were asked for."""
        if waiting:
            one = waiting.pop(0)
            return one, self._values(one.params)
        drawn_from = {key: _distribution(values) for key, values in self.axes.items()}
        while True:
            from optuna.trial import TrialState

            if len(self.study.get_trials(deepcopy=False)) >= self.count:
                return None
            asked = self.study.ask(drawn_from)
            asked.set_user_attr(WORKER, self.worker)
            if asked.number >= self.count:  # another machine asked at the same time
                self.study.tell(asked, state=TrialState.FAIL)
                return None
            same = self._same_before(asked)
            if same is None:
                return asked, self._values(asked.params)
            asked.set_user_attr(SAME, same.number)
            self.tell(asked, same.value if same.state == TrialState.COMPLETE else None)

    def _same_before(self, asked: Any) -> Any:
        """The first trial with a lower number that has the same values; it may still be telling them."""
        from optuna.trial import TrialState

        mine, deadline = self._values(asked.params), time.monotonic() + PATIENCE
        while True:
            before = [one for one in self.study.get_trials(deepcopy=False) if one.number < asked.number]
            unsaid = [o for o in before if o.state == TrialState.RUNNING and len(o.params) < len(self.axes)]
            if not unsaid or time.monotonic() > deadline:
                break
            time.sleep(POLL)
        whole = [one for one in before if len(one.params) == len(self.axes)]
        return next((one for one in whole if SAME not in one.user_attrs and self._values(one.params) == mine), None)

    def _values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _value(values, drawn[key]) for key, values in self.axes.items()}


def _distribution(values: Values) -> Any:
    from optuna import distributions

    if not isinstance(values, Range):
        return distributions.CategoricalDistribution(range(len(values)))
    kind = distributions.IntDistribution if values.whole else distributions.FloatDistribution
    return kind(values.low, values.high, log=values.log)


def _value(values: Values, drawn: Any) -> Any:
    """What a draw stands for; of a real number four digits, in its range."""
    if not isinstance(values, Range):
        return values[drawn]
    return drawn if values.whole else min(max(float(f"{drawn:.4g}"), values.low), values.high)
