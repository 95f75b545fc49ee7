"""Choosing the student that is kept: when to evaluate on the selecting seeds, and whether the aim is reached."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from distillrl import config as configuration
from distillrl import evaluation, stats
from distillrl.config import Config
from distillrl.envs import Seeds
from distillrl.settling import Setup, State, generator

FREE_EVALUATIONS = 4
"""Evaluations before their steps are held to a fifth of all: a run of a few thousand steps needs them all the same."""


def spent_budget(config: Config, state: State) -> str:
    """Which budget is spent, if one is."""
    progress, slots = state.progress, state.drive.n
    if config.rounds is not None and progress.round + 1 >= config.rounds:
        return "rounds"
    if config.env_steps - progress.env_steps < slots:
        return "env_steps"
    if config.labels is not None and config.labels - progress.labels < slots:
        return "labels"
    return "seconds" if config.seconds is not None and state.seconds >= config.seconds else ""


def evaluation_due(state: State) -> bool:
    """Whether it is time: ever rarer, and once a few were free, at most a fifth of all steps."""
    if not state.baseline:
        return state.progress.env_steps >= 4096
    each = state.evaluation_steps / max(1, state.evaluations)
    affordable = state.evaluations < FREE_EVALUATIONS or (state.evaluations + 1 - FREE_EVALUATIONS) * each <= 0.25 * state.progress.env_steps
    return affordable and state.progress.env_steps >= state.next_evaluation


def evaluate_student(setup: Setup, state: State) -> dict[str, Any]:
    """Play the selecting seeds; keep the student if it is the best so far; see whether the aim is reached."""
    config, seeds = setup.config, Seeds(setup.config.seed, "select")
    began = time.perf_counter()
    goal = configuration.aim(config.until)
    if not state.baseline:
        randomly = evaluation.Random(setup.spec, generator(config.seed, "random"))
        teacher, foot = (evaluation.play(p, setup.options, config.select_episodes, seeds) for p in (setup.teacher, randomly))
        state.baseline = {"teacher": float(teacher.returns.mean()), "random": float(foot.returns.mean()), "teacher_steps": float(teacher.steps)}
        apart = stats.told_apart(teacher.returns, foot.returns)
        state.baseline["apart"] = float(apart)
        if state.progress.env_steps < teacher.steps / 3 and not spent_budget(config, state):
            state.next_evaluation = teacher.steps // 3  # an evaluation costs about as much as this one: learn for a while first
            state.evaluation_seconds += time.perf_counter() - began
            return {}
    student = state.gradient.averaged
    shadow = setup.teacher if goal is not None and goal[0] == "agreement" else None
    played = evaluation.play(student, setup.options, config.select_episodes, seeds, shadow=shadow)
    mean = float(played.returns.mean())
    state.evaluations += 1
    state.evaluation_steps += played.steps
    state.next_evaluation = int(state.progress.env_steps * 1.3)
    figures = {"return": mean, "agreement": played.agreement, "retention": None}
    if state.baseline["apart"]:
        figures["retention"] = (mean - state.baseline["random"]) / (state.baseline["teacher"] - state.baseline["random"])
    if state.best is None or mean >= state.best["mean"]:
        state.best = {"mean": mean, "round": state.progress.round, "tensors": student.artifact_tensors(), "header": student.header()}
        state.best["tensors"] = {k: v.clone() for k, v in state.best["tensors"].items()}
    if goal is not None:
        value = figures[goal[0]]
        state.reached = state.reached or (value is not None and value >= goal[1])
    state.evaluation_seconds += time.perf_counter() - began
    state.progress = replace(state.progress, returns={"teacher": state.baseline["teacher"], "student": mean})
    return {"return.student": mean, "return.teacher": state.baseline["teacher"], "retention": figures["retention"], "evaluation_steps": state.evaluation_steps}
