"""Figures of several tasks: each task's own, in its reward's units, and all of them on one scale.

The scale of a task is 0 where its random policy's mean return lies and 1 where its teacher's does, so that the mean over the episodes of
tasks that have as many is the mean of their retentions, whatever their rewards are measured in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distillrl import stats
from distillrl.episodes import Seeds
from distillrl.records import Spec

Returns = np.ndarray
"""[episodes] float."""


@dataclass(frozen=True)
class Scale:
    """Each task's mean return of the random policy and of the teacher, [K]."""

    random: tuple[float, ...]
    teacher: tuple[float, ...]

    def shares(self, returns: Returns, numbers: np.ndarray) -> Returns:
        """Returns [episodes] of episodes of the tasks ``numbers`` [episodes], as shares of what each task's teacher earns above random play."""
        low, high = np.array(self.random)[numbers], np.array(self.teacher)[numbers]
        return np.asarray((returns - low) / (high - low))


def numbers_of(seeds: Seeds, episodes: int, spec: Spec) -> np.ndarray:
    """[episodes] which task each episode of a stream is of (tasks.Tasks.reset); zeros where there is one."""
    return np.array([seeds(i) % max(1, len(spec.tasks)) for i in range(episodes)], dtype=np.int64)


def scale_of(random: Returns, teacher: Returns, numbers: np.ndarray) -> Scale | None:
    """None where in some task the teacher isn't better than random play, or can't be told from it: a share of that would reward the worse."""
    if not all(stats.above(teacher[numbers == k], random[numbers == k]) for k in range(int(numbers.max()) + 1)):
        return None
    return Scale(tuple(means(random, numbers)), tuple(means(teacher, numbers)))


def scaled(spec: Spec, baseline: Mapping[str, Any], returns: Returns, seeds: Seeds) -> Returns:
    """Returns of a stream's first episodes; of several tasks as shares of what each one's teacher earns above random play, where ``baseline`` has that ``scale``."""
    if "scale" not in baseline:
        return returns
    return Scale(*baseline["scale"]).shares(returns, numbers_of(seeds, len(returns), spec))


def means(returns: Returns, numbers: np.ndarray) -> list[float]:
    """[K]"""
    return [float(returns[numbers == k].mean()) for k in range(int(numbers.max()) + 1)]


def split(spec: Spec, measured: Mapping[str, Any], numbers: np.ndarray, seed: int, figures: Callable[[Any, int], dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Of what was measured of teacher, student and random policy (evaluation.Results): the same on one scale, a section for each task, and notes.

    A section holds the task's name, agreement, retention and difference {value, low, high}, and for each player its ``figures`` in the
    task's own units. Without a scale (no teacher, or one that can't be told from random play) all is left in the rewards' units.
    """
    likely = {who: results.likely for who, results in measured.items()}
    sections = [_section(spec, k, {who: _part(e, numbers == k) for who, e in likely.items()}, seed, figures) for k in range(len(spec.tasks))]
    if "student" in likely and likely["student"].agreement is not None:
        mean = float(np.mean([s["agreement"] for s in sections]))
        measured = {**measured, "student": replace(measured["student"], likely=replace(likely["student"], agreement=mean))}
    if "teacher" not in likely:
        return dict(measured), sections, ["returns are averaged over tasks as they come: there is no teacher to bring them to one scale"]
    scale = scale_of(likely["random"].returns, likely["teacher"].returns, numbers)
    if scale is None:
        below = [s["name"] for k, s in enumerate(sections) if not stats.above(*(likely[who].returns[numbers == k] for who in ("teacher", "random")))]
        return dict(measured), sections, [f"returns are averaged over tasks as they come: the teacher isn't shown to be better than random play in {' and '.join(below)}"]
    scaled = {who: replace(r, likely=_scaled(r.likely, scale, numbers), sampled=None if r.sampled is None else _scaled(r.sampled, scale, numbers)) for who, r in measured.items()}
    return scaled, sections, ["returns of all tasks together are shares of what each task's teacher earns above random play (0 is random, 1 the teacher); in their own units they stand by task"]


def _scaled(episodes: Any, scale: Scale, numbers: np.ndarray) -> Any:
    return replace(episodes, returns=scale.shares(episodes.returns, numbers))


def _part(episodes: Any, mine: np.ndarray) -> Any:
    """The episodes of one task."""
    same = None if episodes.same is None else episodes.same[mine]
    lengths = episodes.lengths[mine]
    agreement = None if same is None else float(same.sum() / max(1, lengths.sum()))
    success = None if episodes.success is None else episodes.success[mine]
    numbers, cut = (None if x is None else x[mine] for x in (episodes.numbers, episodes.cut))
    return replace(episodes, numbers=numbers, cut=cut, returns=episodes.returns[mine], lengths=lengths, steps=int(lengths.sum()), same=same, agreement=agreement, success=success)


def _section(spec: Spec, k: int, players: Mapping[str, Any], seed: int, figures: Callable[[Any, int], dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": spec.tasks[k].name, "agreement": None, "retention": None, "difference": None}
    if "student" in players and "teacher" in players:
        s, t, r = (players[who].returns for who in ("student", "teacher", "random"))
        kept, apart = stats.retention(s, t, r, seed), stats.paired_difference(s, t, seed)
        found |= {"agreement": players["student"].agreement, "retention": _interval(kept), "difference": _interval(apart)}
    return {**found, **{who: figures(episodes, seed) for who, episodes in players.items()}}


def _interval(interval: stats.Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}
