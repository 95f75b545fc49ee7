"""Whether a student holds a retention, shown by its interval: episodes are played until that is decided, or there are enough.

Teacher and random policy are played once, and every student meets the same episodes. After 50, 100, 200, … episodes the 95 % interval
of the retention is looked at: it is held where the lower end reaches the aim, lost where the upper end doesn't. Of several tasks the
retention of each is looked at: all must hold it, and the worst one is told. Several
looks make a wrong decision a little more likely than one look would (Armitage 1969); the verdict at the end has episodes of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distillrl import evaluation, stats
from distillrl.beginning import generator
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Failed
from distillrl.policies import Policy
from distillrl.records import Spec
from distillrl.taskwise import numbers_of

FIRST = 50
"""Episodes before the first look."""


@dataclass(frozen=True)
class Finding:
    """What a student retains, on how many episodes; ``held`` is None where the interval has the aim inside. Of several tasks that of ``task``, the worst,
    and ``mean`` is the mean of all tasks' retentions.
    """

    retention: stats.Interval
    episodes: int
    mean: float
    held: bool | None
    task: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        r = self.retention
        return {"retention": {"value": r.value, "low": r.low, "high": r.high}, "episodes": self.episodes, "return": self.mean, "held": self.held, **({"task": self.task} if self.task else {})}

    def __str__(self) -> str:
        r = self.retention
        return f"{r.value:.1%} ({r.low:.1%} to {r.high:.1%}, {self.episodes} episodes{f', worst in {self.task}' if self.task else ''})"


class Referee:
    """Measures students against an aim. State: the returns of teacher and random policy so far, {who: [episodes]}."""

    def __init__(self, options: EnvOptions, spec: Spec, teacher: Policy, seed: int, aim: float, most: int = 400) -> None:
        self.options, self.spec, self.seed, self.aim, self.most = options, spec, seed, aim, max(most, 2)
        self.paired = evaluation.same_episodes(options, self.most)
        self.players: dict[str, Policy] = {"teacher": teacher, "random": evaluation.Random(spec, generator(seed, "referee"))}
        self.returns = {who: np.zeros(0) for who in self.players}
        self.steps = 0

    def judge(self, student: Policy) -> Finding:
        """Play until it is decided; raises Failed where teacher and random policy can't be told apart."""
        mine = np.zeros(0)
        found = None
        while found is None or (found.held is None and len(mine) < self.most):
            wanted = min(self.most, max(FIRST, 2 * len(mine)))
            mine = np.concatenate([mine, self._play(student, len(mine), wanted)])
            found = self.finding(mine)
        return found

    def finding(self, mine: np.ndarray) -> Finding:
        """What these returns, of the stream's first episodes, say."""
        self.teacher_until(len(mine))
        numbers = numbers_of(Seeds(self.seed, "race"), len(mine), self.spec)
        each = [self._kept(mine, numbers == k, name) for k, name in enumerate([t.name for t in self.spec.tasks] or [""])]
        worst = min(range(len(each)), key=lambda k: each[k].value)
        held = True if all(k.low >= self.aim for k in each) else False if any(k.high < self.aim for k in each) else None
        if not self.spec.tasks:
            return Finding(each[0], len(mine), float(mine.mean()), held)
        return Finding(each[worst], len(mine), float(np.mean([k.value for k in each])), held, self.spec.tasks[worst].name)

    def _kept(self, mine: np.ndarray, those: np.ndarray, task: str) -> stats.Interval:
        """Of the episodes of one task."""
        teacher, random = (self.returns[who][: len(mine)][those] for who in ("teacher", "random"))
        kept = stats.retention(mine[those], teacher, random, self.seed, paired=self.paired)
        if kept is None:
            raise Failed(f"teacher and random policy can't be told apart {f'in {task}' if task else 'here'}, so there is no retention to hold: is this the teacher's environment?")
        return kept

    def teacher_until(self, episodes: int) -> None:
        """Have teacher and random policy play at least so many episodes."""
        for who, player in self.players.items():
            if (there := len(self.returns[who])) < episodes:
                self.returns[who] = np.concatenate([self.returns[who], self._play(player, there, episodes)])

    def _play(self, policy: Policy, first: int, until: int) -> np.ndarray:
        played = evaluation.play(policy, self.options, until - first, Seeds(self.seed, "race", first=first))
        self.steps += played.steps
        return played.returns
