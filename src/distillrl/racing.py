"""Who goes on in a race of sizes: successive halving on intervals, towards the smallest that holds its aim (after Jamieson 2016, 1502.07943)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distillrl.beginning import State
from distillrl.cohort import Cohort
from distillrl.retaining import Finding, Referee
from distillrl.runs import Folder
from distillrl.settling import Setup

FIRST = 8192
"""Environment steps before the first look; each later look comes at twice as many."""
PLAYED = 96
"""Episodes of all students together at a look, so that fewer students are looked at more closely."""
LEAST, MOST = 8, 64
"""Episodes of each at a look."""


@dataclass
class Entry:
    """One size in the race. ``left``: why it is not in it any more; ``passed`` where it holds its aim by the interval."""

    word: str
    policy: Any
    cost: Mapping[str, float]
    left: str = ""
    passed: bool = False
    found: Finding | None = None
    """The last look's, or the one that decided."""
    saved: tuple[dict[str, Any], dict[str, Any]] | None = None
    """Header and tensors of what was found so."""
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def racing(self) -> bool:
        """Whether it still learns."""
        return not self.left and not self.passed

    @property
    def order(self) -> tuple[float, float]:
        """Smaller ones first."""
        return self.cost["parameters"], self.cost["bytes"]


@dataclass
class Race:
    """Where a search stands."""

    setup: Setup
    state: State
    entries: list[Entry]
    cohort: Cohort
    referee: Referee
    folder: Folder
    show: Callable[[Mapping[str, Any]], None]
    limits: Any
    """The search's limits.Limits."""
    next_look: int = field(default_factory=lambda: FIRST)
    looking: float = 0.0
    """Seconds of looks."""
    order: list[Entry] = field(default_factory=list)
    """The entries in the order of the cohort's students."""

    def reorder(self) -> None:
        """Find each entry's place in the cohort."""
        by_policy = {id(e.policy): e for e in self.entries}
        self.order = [by_policy[id(p)] for p in self.cohort.members]
        self.state.drive.memory["student"] = self.cohort.init(self.state.drive.n)


def episodes_of(count: int) -> int:
    """How many each of so many students plays at a look."""
    return max(LEAST, min(MOST, PLAYED // max(1, count)))


def outgrown(entries: Sequence[Entry]) -> list[Entry]:
    """Those in the race that are larger than one that has passed: nobody needs them."""
    passed = [e for e in entries if e.passed]
    if not passed:
        return []
    best = min(passed, key=lambda e: e.order)
    return [e for e in entries if e.racing and e.order > best.order]


def beaten(entries: Sequence[Entry], aim: float) -> list[Entry]:
    """Of the worse half of those in the race, the ones that are surely below the aim, and surely worse than the best of all."""
    racing = [e for e in entries if e.racing and e.found is not None]
    known = [e for e in entries if e.found is not None and (e.racing or e.passed)]
    if len(racing) < 2 and not any(e.passed for e in known):
        return []
    top = max(e.found.retention.low for e in known if e.found is not None)
    worse = sorted(racing, key=_value)[: (len(racing) + 1) // 2]
    return [e for e in worse if e.found is not None and e.found.retention.high < min(aim, top)]


def promising(entries: Sequence[Entry], aim: float) -> list[Entry]:
    """Those in the race that look as if they held it, the smallest first."""
    return sorted((e for e in entries if e.racing and e.found is not None and e.found.retention.value >= aim), key=lambda e: e.order)


def _value(entry: Entry) -> float:
    assert entry.found is not None
    return entry.found.retention.value
