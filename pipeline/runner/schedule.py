"""Which stage of the graph comes next, several at a time, and how long the rest takes.

A stage starts once all stages that it needs have ended. Of several that could, one that the first branch to be finished
needs goes first, so that there are figures early; then the one with the longest way to the end of the graph, so that
no branch is left for the end alone. A branch is what DVC calls an item of a matrix: `flow@ve` is of branch `ve`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Graph:
    """The stages to go through, as DVC knows them."""

    order: tuple[str, ...]  # in which plain `dvc repro` goes through them: a stage after all that it needs
    needs: Mapping[str, frozenset[str]]  # the stages whose outputs it reads

    def branches(self) -> list[str]:
        """The items that several stages have."""
        counts = Counter(branch_of(name) for name in self.order)
        return [branch for branch, count in counts.items() if branch and count > 1]

    def above(self, name: str) -> frozenset[str]:
        """All that a stage needs, directly or not."""
        return frozenset().union(*({one} | self.above(one) for one in self.needs[name]))

    def dependents(self, name: str) -> set[str]:
        """All that need a stage, directly or not."""
        found = {name}
        for one in self.order:
            if self.needs[one] & found:
                found.add(one)
        return found - {name}


def branch_of(name: str) -> str:
    return name.partition("@")[2]


@dataclass
class Schedule:
    """What is left to do. seconds: how long stages took the last time, by name, as far as it is known."""

    graph: Graph
    seconds: Mapping[str, float] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)

    def next(self) -> str | None:
        """The stage to start now, or None where every one waits for another."""
        ready = self._ready()
        if not ready:
            return None
        first, ways = self._first_branch(), self._ways()
        chosen = min(ready, key=lambda name: (name not in first, -ways[name], self.graph.order.index(name)))
        self.running.add(chosen)
        return chosen

    def ended(self, name: str, *, well: bool) -> None:
        self.running.discard(name)
        (self.done if well else self.failed).add(name)

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing could."""
        return not self.running and not self._ready()

    def skipped(self) -> list[str]:
        """What does not run because it needs a stage that failed."""
        lost = set().union(*(self.graph.dependents(name) for name in self.failed))
        return [name for name in self.graph.order if name in lost - self.done - self.failed]

    def estimate(self, name: str) -> float | None:
        """Seconds of a stage: its own the last time, else the mean over the other branches."""
        if name in self.seconds:
            return self.seconds[name]
        kind = name.partition("@")[0]
        alike = [time for one, time in self.seconds.items() if branch_of(one) and one.partition("@")[0] == kind]
        return sum(alike) / len(alike) if alike else None

    def left(self, elapsed: Mapping[str, float], *, jobs: int) -> float | None:
        """About how many seconds the rest takes, if stages take as long as before; None where that is not known.

        elapsed: how long each running stage has run. A single stage that was never timed, such as `track`, counts as 0.
        """
        rest = [name for name in self.graph.order if name not in self.done | self.failed]
        known = {name: self.estimate(name) for name in rest}
        if not any(known.values()) or any(time is None and branch_of(name) for name, time in known.items()):
            return None
        took = {name: time or 0.0 for name, time in known.items()}
        trial = Schedule(self.graph, self.seconds, set(self.done), set(self.failed), set(self.running))
        ends = {name: max(took[name] - elapsed.get(name, 0.0), 0.0) for name in self.running}
        now = 0.0
        while True:
            while len(ends) < jobs and (name := trial.next()):
                ends[name] = now + took[name]
            if not ends:
                return now
            name = min(ends, key=ends.get)
            now = ends.pop(name)
            trial.ended(name, well=True)

    def _ready(self) -> list[str]:
        taken = self.done | self.failed | self.running
        return [name for name in self.graph.order if name not in taken and self.graph.needs[name] <= self.done]

    def _first_branch(self) -> set[str]:
        """What the branch with the least work left needs, its own stages included."""
        rest = {}
        for branch in self.graph.branches():
            own = [name for name in self.graph.order if branch_of(name) == branch]
            needed = set(own).union(*(self.graph.above(name) for name in own)) - self.done
            if set(own) - self.done and not needed & self.failed:
                rest[branch] = needed
        if not rest:
            return set()
        return min(rest.values(), key=lambda names: sum(self.estimate(name) or 1.0 for name in names))

    def _ways(self) -> dict[str, float]:
        """For each stage the seconds from its start to the end of the graph; a stage without a time counts as one."""
        ways: dict[str, float] = {}
        for name in reversed(self.graph.order):
            after = [ways[one] for one in self.graph.order if name in self.graph.needs[one]]
            ways[name] = (self.estimate(name) or 1.0) + max(after, default=0.0)
        return ways
