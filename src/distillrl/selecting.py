"""Choosing the student that is kept: when to evaluate on the selecting seeds, and whether the aim is reached."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from distillrl import config as configuration
from distillrl import evaluation, hardcases, offline, repeats, stats
from distillrl.beginning import State, generator
from distillrl.config import Config
from distillrl.envs import Seeds
from distillrl.records import Progress
from distillrl.refit import Refit
from distillrl.settling import Setup
from distillrl.taskwise import means, numbers_of, scale_of, scaled

FREE_EVALUATIONS = 4
"""Evaluations before their steps are held to a fifth of all: a run of a few thousand steps needs them all the same."""

CONFIRMED = 4
"""Times as many selecting episodes that are played before a fitted student is taken for the best so far, or an aim for reached, where few say little."""
UNSURE = 0.01
"""Standard error of the retention above which an aim that is reached is confirmed."""


def spent_budget(config: Config, state: State) -> str:
    """Which budget is spent, if one is."""
    progress, slots = state.progress, state.drive.n
    if any(most is not None and progress.round + 1 >= most for most in (config.rounds, config.last_round)):
        return "rounds"
    if progress.rounds:
        return "plateau" if offline.stalled(state) else "seconds" if config.seconds is not None and state.seconds >= config.seconds else ""
    if config.env_steps - progress.env_steps < slots:
        return "env_steps"
    if config.labels is not None and config.labels - progress.labels < slots:
        return "labels"
    return "seconds" if config.seconds is not None and state.seconds >= config.seconds else ""


def spent_share(config: Config, progress: Progress) -> float:
    """The share of the run's budget that is spent, 0 to 1: of environment steps, labels or rounds, whichever is furthest. The clock doesn't count."""
    shares = [progress.env_steps / config.env_steps]
    if config.labels is not None:
        shares.append(progress.labels / config.labels)
    if config.rounds is not None:
        shares.append((progress.round + 1) / config.rounds)
    return min(1.0, max(shares))


def evaluation_due(state: State) -> bool:
    """Whether it is time: ever rarer, and once a few were free, at most a fifth of all steps; a fitted student, which is
    another one each round, every round (the best of all trees is kept: Bastani 2018, algorithm 1's last line).
    """
    if state.progress.rounds:
        return offline.due(state)
    if not state.baseline:
        return state.progress.env_steps >= 4096
    if state.hard["known"] or getattr(state.student, "grown", False):
        return True
    each = state.baseline.get("teacher_steps") or state.evaluation_steps / max(1, state.evaluations)  # what confirms is not counted
    affordable = state.evaluations < FREE_EVALUATIONS or (state.evaluations + 1 - FREE_EVALUATIONS) * each <= 0.25 * state.progress.env_steps
    return affordable and state.progress.env_steps >= state.next_evaluation


def evaluate_student(setup: Setup, state: State, at_last: bool) -> dict[str, Any]:
    """Play the selecting seeds; keep the student if it is the best so far; see whether the aim is reached. ``at_last``: no other round follows."""
    if not setup.plays:
        return {}
    config, seeds = setup.config, Seeds(setup.config.seed, "select")
    began = time.perf_counter()
    goal = configuration.aim(config.until)
    if not state.baseline:
        randomly = evaluation.Random(setup.spec, generator(config.seed, "random"))
        foot = evaluation.play(randomly, setup.options, config.select_episodes, seeds)
        state.baseline = {"random": float(foot.returns.mean()), "apart": 0.0}
    if setup.judge is not None and "teacher" not in state.baseline:
        teacher = evaluation.play(setup.judge, setup.options, config.select_episodes, seeds)
        foot, teacher = _on_one_scale(setup, state, foot, teacher)
        state.baseline |= {"teacher": float(teacher.returns.mean()), "teacher_worst": float(teacher.returns.min()), "teacher_steps": float(teacher.steps)}
        state.baseline["teacher_returns"] = teacher.returns.tolist()
        if not setup.spec.tasks and (kinds := repeats.kinds(teacher.numbers)) is not None:
            state.baseline |= {"kinds": kinds.tolist(), "teacher_steps": float(teacher.lengths[np.unique(kinds)].sum())}
        apart = stats.above(teacher.returns, foot.returns) and ("scale" in state.baseline or not setup.spec.tasks)
        state.baseline["apart"], state.baseline["worse"] = float(apart), float(stats.above(foot.returns, teacher.returns))
        if not state.progress.rounds and state.progress.env_steps < teacher.steps / 3 and not at_last:
            state.next_evaluation = teacher.steps // 3  # an evaluation costs about as much as this one: learn for a while first
            state.evaluation_seconds += time.perf_counter() - began
            return {}
    if isinstance(state.gradient, Refit):
        _take_best(setup, state, state.gradient, seeds)
    student = state.gradient.averaged
    shadow = setup.judge if goal is not None and goal[0] == "agreement" else None
    played = _played(setup, state, student, seeds, shadow)
    returns = scaled(setup.spec, state.baseline, played.returns, seeds)
    mean = float(returns.mean())
    state.evaluations += 1
    state.evaluation_steps += played.steps
    best_yet = state.best is None or mean >= state.best["mean"]
    if (best_yet and getattr(student, "grown", False)) or (_reaches(goal, _figures(setup, state, returns, played.agreement)) and _unsure(setup, state, returns)):
        returns = _confirmed(setup, state, student, returns)
        mean = float(returns.mean())
    state.next_evaluation = int(state.progress.env_steps * 1.3) if not state.progress.rounds else int(offline.RARER * (state.progress.round + 1))
    found: dict[str, Any] = {}
    figures = _figures(setup, state, returns, played.agreement)
    state.evaluation_seconds += time.perf_counter() - began
    reached = _reaches(goal, figures)
    state.hard["judged"] = None
    if reached and _searches(config, state):
        found = hardcases.search(setup, state)
    state.reached = state.reached or reached
    _keep_best(state, student, mean, reached)
    known: dict[str, float] = {who: state.baseline[who] for who in ("random", "teacher") if who in state.baseline}
    state.progress = replace(state.progress, returns={**known, "student": mean})
    found |= {f"retention.{t.name}": value for t, value in zip(setup.spec.tasks, figures.pop("tasks") or (), strict=False)}
    return {"return.student": mean, "return.teacher": known.get("teacher"), "retention": figures["retention"], "evaluation_steps": state.evaluation_steps, **found}


def _played(setup: Setup, state: State, student: Any, seeds: Seeds, shadow: Any) -> evaluation.Episodes:
    """The selecting episodes; where the teacher's showed that most of them are others again, one of each kind, which then stands for all of it."""
    if "kinds" not in state.baseline:
        return evaluation.play(student, setup.options, setup.config.select_episodes, seeds, shadow=shadow)
    kinds = np.asarray(state.baseline["kinds"])
    chosen, place = np.unique(kinds, return_inverse=True)
    played = evaluation.play(student, setup.options, len(chosen), replace(seeds, chosen=tuple(chosen.tolist())), shadow=shadow)
    return replace(played, returns=played.returns[place])


def _take_best(setup: Setup, state: State, learner: Refit, seeds: Seeds) -> None:
    """Of several fits of this round the one that plays best goes on, by successive halving (Karnin 2013, section 3): all play a few of the
    selecting seeds, the better half of them twice as many, until one is left or each has played all.
    """
    left, episodes = learner.candidates(), max(1, setup.config.select_episodes // 2)
    while len(left) > 1:
        played = [evaluation.play(s, setup.options, episodes, seeds) for s in left]
        state.evaluation_steps += sum(p.steps for p in played)
        order = np.argsort([-float(scaled(setup.spec, state.baseline, p.returns, seeds).mean()) for p in played], kind="stable")
        done = episodes >= setup.config.select_episodes
        left = [left[i] for i in order[: 1 if done else (len(left) + 1) // 2]]
        episodes = min(2 * episodes, setup.config.select_episodes)
    learner.take(left[0])


def _on_one_scale(setup: Setup, state: State, random: Any, teacher: Any) -> tuple[Any, Any]:
    """The episodes of both, and of several tasks the scale that all returns of the run are brought to."""
    if not setup.spec.tasks:
        return random, teacher
    seeds = Seeds(setup.config.seed, "select")
    scale = scale_of(random.returns, teacher.returns, numbers_of(seeds, len(random.returns), setup.spec))
    if scale is not None:
        state.baseline |= {"scale": [list(scale.random), list(scale.teacher)], "random": 0.0}
    one, other = (replace(e, returns=scaled(setup.spec, state.baseline, e.returns, seeds)) for e in (random, teacher))
    return one, other


def _tasks(setup: Setup, count: int) -> np.ndarray:
    return numbers_of(Seeds(setup.config.seed, "select"), count, setup.spec)


def _figures(setup: Setup, state: State, returns: np.ndarray, agreement: float | None) -> dict[str, Any]:
    """What an aim can be about; retention is None where the teacher isn't shown to be better than a random policy. Of several tasks ``tasks`` has each one's."""
    mean = float(returns.mean())
    scale = state.baseline["teacher"] - state.baseline["random"] if state.baseline["apart"] else None
    each = means(returns, _tasks(setup, len(returns))) if scale and setup.spec.tasks else None
    return {"return": mean, "agreement": agreement, "retention": (mean - state.baseline["random"]) / scale if scale else None, "tasks": each}


def _reaches(goal: tuple[str, float] | None, figures: Mapping[str, Any]) -> bool:
    """Whether the aim is reached; retention by every task."""
    if goal is None:
        return False
    value = min(figures["tasks"]) if goal[0] == "retention" and figures["tasks"] else figures[goal[0]]
    return value is not None and value >= goal[1]


def _unsure(setup: Setup, state: State, returns: np.ndarray) -> bool:
    """Whether so few episodes leave the student's distance from its teacher open: its standard error, paired by seed, is above UNSURE, in some task."""
    if "teacher_returns" not in state.baseline or not state.baseline["apart"]:
        return False
    apart, tasks = returns - np.asarray(state.baseline["teacher_returns"]), _tasks(setup, len(returns))
    errors = [x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else 0.0 for k in range(int(tasks.max()) + 1) for x in (apart[tasks == k],)]
    return bool(max(errors) > UNSURE * abs(state.baseline["teacher"] - state.baseline["random"]))


def _confirmed(setup: Setup, state: State, student: Any, returns: np.ndarray) -> np.ndarray:
    """Returns on CONFIRMED times as many selecting seeds, less what they are kinder to the teacher than the first ones: the
    best of many candidates by few episodes, or the first to reach an aim, is mostly the luckiest.
    """
    count = setup.config.select_episodes
    further = tuple(range(count, CONFIRMED * count))
    seeds = Seeds(setup.config.seed, "select", further)
    more = evaluation.play(student, setup.options, len(further), seeds)
    state.evaluation_steps += more.steps
    returns = np.concatenate([returns, scaled(setup.spec, state.baseline, more.returns, seeds)])
    if setup.judge is None:
        return returns
    tasks = _tasks(setup, len(returns))
    if "teacher_further" not in state.baseline:
        state.baseline["teacher_further"] = means(scaled(setup.spec, state.baseline, evaluation.play(setup.judge, setup.options, len(further), seeds).returns, seeds), tasks[count:])
    first = means(np.asarray(state.baseline["teacher_returns"]), tasks[:count])
    kinder = (np.array(state.baseline["teacher_further"]) - np.array(first)) * (CONFIRMED - 1) / CONFIRMED
    return np.asarray(returns - kinder[tasks])


def _keep_best(state: State, student: Any, mean: float, reached: bool) -> None:
    """Keep the student if it is the best so far: by its starts where it was judged by them (hardcases.py), else one that reached the aim
    before one that didn't (of agreement, that isn't always the one that earns most), and then by its mean.
    """
    judged = state.hard["judged"]
    if judged is not None:
        better = hardcases.better(judged, state.best)
    else:
        better = state.best is None or (state.best["judged"] is None and (reached, mean) >= (state.best["reached"], state.best["mean"]))
    if better:
        tensors = {k: v.clone() for k, v in student.artifact_tensors().items()}
        state.best = {"mean": mean, "round": state.progress.round, "tensors": tensors, "header": student.header(), "judged": judged, "reached": reached}


def settled(config: Config, state: State) -> bool:
    """Whether the run has what it looked for: its aim on average, and then on as many starts as were asked for."""
    judged = state.hard["judged"]
    return bool(judged and judged["passed"]) if _searches(config, state) else state.reached


def _searches(config: Config, state: State) -> bool:
    """Whether bad starts are looked for: it was asked for, and there is a teacher to compare with."""
    return bool(config.worst_of) and "teacher_worst" in state.baseline
