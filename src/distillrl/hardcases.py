"""The worst start: once a student is good on average, the run looks for starts on which it does badly, and learns from them.

A mean hides them: published trees of 8 leaves earn 496 on CartPole, and 30 on some starts. Fresh starts of the stream
``hard`` are played, a few first and then more; where the student does badly on some, it drives from there, the states
are labelled and added, and the next student is tried on fresh starts again. So what is said of the student that is kept
is unbiased: it never learnt from the starts that it is judged by.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from distillrl import envs, evaluation
from distillrl.beginning import State, generator
from distillrl.config import Config
from distillrl.envs import Seeds
from distillrl.records import Rollout
from distillrl.settling import Setup
from distillrl.states import Drive, Who
from distillrl.taskwise import numbers_of, scaled

FIRST = 16
"""Starts tried at first; twice as many each time that none of them was bad."""
REMEMBERED = 64
"""Bad starts that are driven from again, the latest."""
MARGIN = 0.001
"""Share of what the teacher earns above random that a student may fall short of it on a start."""
STRETCH = 4
"""A round from bad starts is at most so many times as long as another."""


def search(setup: Setup, state: State) -> dict[str, Any]:
    """Play fresh starts with the student until ``worst_of`` of them went well in a row, or some went badly.

    A start is bad where the student earns less than its teacher did on any selecting seed, and less than it on this
    start too. ``state.hard`` then says what was found: ``judged`` of this student, ``bad`` the starts to drive from.
    """
    began, hard, wanted = time.perf_counter(), state.hard, setup.config.worst_of or 0
    played, chunk, worst = 0, FIRST, float("inf")
    bad: list[int] = []
    longest = 0
    while played < wanted and not bad and not _late(setup, state, began):
        count = envs.slots_of(setup.options, min(chunk, wanted - played, evaluation.MAX_SLOTS))
        numbers = tuple(range(hard["next"], hard["next"] + count))
        own, bad, steps = _tried(setup, state, numbers)
        longest = max((int(own.lengths[i - numbers[0]]) for i in bad), default=0)
        hard = {**hard, "next": hard["next"] + count, "steps": hard["steps"] + steps}
        played, chunk, worst = played + count, 2 * chunk, min(worst, float(own.returns.min()))
    judged = {"starts": played, "bad": len(bad), "worst": worst if played else None, "passed": played >= wanted and not bad}
    state.hard = {**hard, "judged": judged, "bad": (bad + hard["known"])[:REMEMBERED] if bad else [], "found": hard["found"] + len(bad), "known": (bad + hard["known"])[:REMEMBERED], "length": longest}
    state.evaluation_seconds += time.perf_counter() - began
    return {"hard.starts": played, "hard.bad": len(bad), "hard.worst": judged["worst"]}


def _late(setup: Setup, state: State, began: float) -> bool:
    return setup.config.seconds is not None and state.seconds + time.perf_counter() - began >= setup.config.seconds


def _tried(setup: Setup, state: State, numbers: tuple[int, ...]) -> tuple[evaluation.Episodes, list[int], int]:
    """The student's episodes from these starts of the stream, those of them that are bad (the worst first), and the steps it took."""
    seeds = Seeds(setup.config.seed, "hard", numbers)
    own = evaluation.play(state.gradient.averaged, setup.options, len(numbers), seeds)
    own = replace(own, returns=scaled(setup.spec, state.baseline, own.returns, seeds))
    margin = MARGIN * abs(state.baseline["teacher"] - state.baseline["random"])
    low = np.flatnonzero(own.returns < _worst_of_teacher(setup, state)[numbers_of(seeds, len(numbers), setup.spec)] - margin)
    if not len(low):
        return own, [], own.steps
    chosen = tuple(numbers[i] for i in low)
    seeds = replace(seeds, chosen=chosen)
    theirs = evaluation.play(setup.teacher, setup.options, len(chosen), seeds)
    short = scaled(setup.spec, state.baseline, theirs.returns, seeds) - own.returns[low]
    return own, [chosen[i] for i in np.argsort(-short, kind="stable") if short[i] > margin], own.steps + theirs.steps


def _worst_of_teacher(setup: Setup, state: State) -> np.ndarray:
    """[K] what the teacher earned at least on the selecting seeds, in each task."""
    returns = np.asarray(state.baseline["teacher_returns"])
    numbers = numbers_of(Seeds(setup.config.seed, "select"), len(returns), setup.spec)
    return np.array([returns[numbers == k].min() for k in range(max(1, len(setup.spec.tasks)))])


def better(judged: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Whether a student that was judged by starts is at least as good as the best so far: a lower rate of bad ones, by Laplace's rule."""
    theirs = (best or {}).get("judged")
    return not theirs or _rate(judged) <= _rate(theirs)


def _rate(judged: Mapping[str, Any]) -> float:
    return float(judged["bad"] + 1) / float(judged["starts"] + 2)


def collect(setup: Setup, state: State, room: int, who: Who, wants: frozenset[str], ask: bool) -> tuple[Rollout, Drive]:
    """A rollout from the bad starts, the student driving, and the drive that made it; the other environments begin anew after it. Labelled where ``ask``.

    The slots take the starts in their order, and each the next one where an episode ends.
    """
    student, phase = state.gradient.averaged, setup.config.phase[state.progress.phase]
    steps = max(1, min(max(state.hard["length"] + 1, phase.steps), STRETCH * phase.steps, room))
    vector = envs.make(setup.options, state.drive.n, Seeds(setup.config.seed, "hard", tuple(state.hard["bad"])))
    try:
        drive = Drive(vector, setup.spec, generator(setup.config.seed, f"hard{state.progress.round}"))
        drive.begin(setup.teacher, student)
        rollout = drive.collect(steps, replace(who, beta=0.0), setup.teacher, student, wants, setup.seen, ask)
    finally:
        vector.close()
    state.drive.reseed(setup.teacher, student)
    state.hard = {**state.hard, "bad": []}
    return rollout, drive


def told(config: Config, state: State) -> dict[str, Any] | None:
    """For the verdict: how many starts were searched in all and found bad, and of the kept student its own, their worst and how many were bad.

    None where no search was asked for.
    """
    if not config.worst_of:
        return None
    judged = (state.best or {}).get("judged") or {"starts": 0, "bad": 0, "worst": None, "passed": False}
    return {"wanted": config.worst_of, "searched": state.hard["next"], "found": state.hard["found"], "steps": state.hard["steps"], **judged}


def sentence(told: Mapping[str, Any]) -> str:
    """The same in words."""
    if not told["starts"]:
        return f"the worst of {told['wanted']} starts was not looked for: the aim was not reached on average"
    said = f"the worst of {told['starts']} fresh starts earns {told['worst']:.6g}"
    if not told["passed"]:
        said += f", and {told['bad']} of them are bad; no student did well on {told['wanted']}"
    return said + f" ({told['searched']:,} searched in all, {told['found']} bad ones found and learnt from)"
