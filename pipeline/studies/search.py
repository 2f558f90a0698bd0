"""Configurations proposed by Optuna."""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ifm.errors import UserError
from pipeline.studies.axes import Range, Values

SEARCH_SEED = 0


def search(axes: Mapping[str, Values], count: int, *, at_once: int, higher: bool) -> "Search":
    """A search by Optuna's TPE, the same for the same results. Raises UserError where Optuna is not installed.

    at_once: configurations that are asked for together; higher: whether a score is better the higher it is.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("--search needs Optuna: pip install -e '.[optuna]' -c constraints.txt")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=SEARCH_SEED, constant_liar=at_once > 1)
    study = optuna.create_study(direction="maximize" if higher else "minimize", sampler=sampler)
    return Search(axes, count, at_once, study)


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
