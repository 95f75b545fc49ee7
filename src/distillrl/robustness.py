"""Return under disturbance, teacher and student side by side on the same episodes, and whether the student is more brittle.

Brittle is said where, at some level, the student loses more than its teacher: the paired difference of their losses lies
above 5 % of the scale (the teacher's return above random play) with 99 % confidence, so that among some twenty levels a
sound student is seldom accused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl import envs, evaluation, stats
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import DistillError
from distillrl.perturbations import KINDS, Perturbed, applies
from distillrl.physics import PHYSICS, Change, changed, changes_for
from distillrl.policies import ACTION, Policy, played, to_environment

LEVELS: Mapping[str, tuple[float, ...]] = {
    "observation noise": (0.1, 0.05, 0.2, 0.4),
    "action delay": (1, 2, 4),
    "sensor dropout": (0.1, 0.05, 0.2),
    "observation delay": (1, 2, 4),
    "sticky actions": (0.25, 0.1, 0.5),
    "action noise": (0.1, 0.2, 0.4),
    "worst case": (0.1, 0.05, 0.2, 0.4),
}
"""Levels of each kind, the most telling first: where time runs out, that one has been measured of every kind."""
WORSE = 0.05
CERTAIN = 0.99


@dataclass(frozen=True)
class _Condition:
    """One level of one disturbance."""

    group: str
    unit: str
    level: float
    usual: float
    change: Change | None = None


def measure(
    student: Policy,
    teacher: Policy,
    options: EnvOptions,
    *,
    episodes: int = 20,
    seed: int = 0,
    stream: str = "verdict",
    levels: Mapping[str, tuple[float, ...]] = LEVELS,
    physics: tuple[Change, ...] = PHYSICS,
    random_mean: float | None = None,
    clean: Mapping[str, np.ndarray] | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Curves of return against the level of each disturbance; plain data.

    ``random_mean`` is the random policy's return, the foot of the scale; ``clean`` {student, teacher} the returns of the
    same episodes undisturbed, where they are known already. After ``seconds`` of the processor's time no level but the first is begun, and those
    left out are named. Keys: ``curves`` [{name, unit, usual, points [{level, student, teacher, excess,
    teacher_lost}], brittle, sentence}], ``left_out``, ``episodes``, ``notes``; ``excess`` is what the student loses more
    than its teacher and ``teacher_lost`` what that loses, in shares of ``scale``.
    """
    began, seeds = time.process_time(), Seeds(seed, stream)  # the processor's: a busy machine measures as much as an idle one
    notes: list[str] = []
    scale = observation_scale(teacher, options, seed)
    players = {"student": student, "teacher": teacher}
    if clean is None:
        clean = {who: evaluation.play(p, options, episodes, seeds).returns for who, p in players.items()}
    foot = 0.0 if random_mean is None else random_mean
    size = abs(float(clean["teacher"].mean()) - foot) or 1.0
    found: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    harmed: dict[tuple[str, float], dict[str, np.ndarray]] = {}
    forgetful = not any(p.init(1) for p in players.values())
    levels = {kind: values for kind, values in levels.items() if all(applies(kind, p.spec) for p in players.values())}
    for condition in _conditions(options, levels, physics):
        if found and seconds is not None and time.process_time() - began > seconds:
            left_out.append(f"{condition.group} {condition.level:g}")
            continue
        # To a policy without memory a late observation is a late action: it is played once.
        late = ("delay" if forgetful and condition.group.endswith("delay") else condition.group, condition.level)
        try:
            if late not in harmed:
                harmed[late] = {who: _returns(p, condition, options, episodes, seeds, scale, seed) for who, p in players.items()}
        except DistillError as error:
            notes.append(f"{condition.group} at {condition.level:g} was not measured: {error}")
            continue
        curve = found.setdefault(condition.group, _curve(condition, clean, seed))
        curve["points"].append(_point(condition.level, clean, harmed[late], size, seed))
    return {
        "episodes": episodes,
        "seed": seed,
        "stream": stream,
        "scale": size,
        "curves": [_judged(curve, clean) for curve in found.values()],
        "left_out": left_out,
        "notes": notes,
    }


@torch.inference_mode()
def observation_scale(policy: Policy, options: EnvOptions, seed: int, ticks: int = 2048, slots: int = 16) -> dict[str, Tensor]:
    """{group: [...shape]} standard deviation of each number while ``policy`` plays; one for all of an image's pixels.

    Until every slot has seen an end (what moves only at the end of an episode must have moved), ``ticks`` at most.
    """
    options = envs.shown(options, policy)
    vector = envs.make(options, envs.slots_of(options, slots), Seeds(seed, "dry"))
    try:
        memory, starts = policy.init(vector.n), torch.ones(vector.n, dtype=torch.bool)
        obs = {k: torch.as_tensor(v) for k, v in vector.reset().items()}
        sums = {k: [torch.zeros(v.shape[1:], dtype=torch.float64) for _ in range(2)] for k, v in obs.items()}
        over, ended, count = np.zeros(vector.n, dtype=bool), np.zeros(vector.n, dtype=bool), 0
        while count < ticks and not over.all():
            count += 1
            for k, v in obs.items():
                sums[k][0] += v.double().sum(0)
                sums[k][1] += v.double().square().sum(0)
            prediction, memory = policy.act(obs, memory, starts, ACTION)
            new, _, terminated, truncated = vector.step(to_environment(played(prediction, sampled=False), vector.spec))
            starts, ended = torch.from_numpy(ended), terminated | truncated  # the step after an end only resets, and begins with what it ended in
            over |= ended
            obs = {k: torch.as_tensor(v) for k, v in new.items()}
    finally:
        vector.close()
    count *= vector.n
    spread = {k: (second / count - (first / count).square()).clamp_min(0).sqrt().float() for k, (first, second) in sums.items()}
    return {k: v.square().mean().sqrt().expand_as(v).clone() if v.dim() > 1 else v for k, v in spread.items()}


def _conditions(options: EnvOptions, levels: Mapping[str, tuple[float, ...]], physics: tuple[Change, ...]) -> Iterator[_Condition]:
    """The first level of every disturbance, then the second of every, …; physics that a user has given before all else."""
    known = changes_for(options, physics)
    own, changes = [c for c in known if c not in PHYSICS], [c for c in known if c in PHYSICS]
    for change in own:
        for value in change.values:
            yield _Condition(f"physics: {change.name}", change.unit, value, change.usual, change)
    for turn in range(max([len(v) for v in levels.values()] + [len(c.values) for c in changes], default=0)):
        for kind, values in levels.items():
            if turn < len(values):
                yield _Condition(kind, KINDS.get(kind, ""), values[turn], 0.0)
        for change in changes:
            if turn < len(change.values):
                yield _Condition(f"physics: {change.name}", change.unit, change.values[turn], change.usual, change)


def _returns(
    policy: Policy, condition: _Condition, options: EnvOptions, episodes: int, seeds: Seeds, scale: Mapping[str, Tensor], seed: int
) -> np.ndarray:
    if condition.change is not None:
        return evaluation.play(policy, changed(options, condition.change, condition.level), episodes, seeds).returns
    generator = torch.Generator().manual_seed(seed)
    return evaluation.play(Perturbed(policy, condition.group, condition.level, scale, generator), options, episodes, seeds).returns


def _curve(condition: _Condition, clean: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    usual = {
        "level": condition.usual,
        "excess": None,
        "teacher_lost": 0.0,
        **{who: _interval(stats.mean_interval(r, seed)) for who, r in clean.items()},
    }
    return {"name": condition.group, "unit": condition.unit, "usual": condition.usual, "points": [usual]}


def _point(level: float, clean: Mapping[str, np.ndarray], harmed: Mapping[str, np.ndarray], size: float, seed: int) -> dict[str, Any]:
    lost = {who: (clean[who] - harmed[who]) / size for who in clean}
    excess = stats.mean_interval(lost["student"] - lost["teacher"], seed, CERTAIN)
    means = {who: _interval(stats.mean_interval(r, seed)) for who, r in harmed.items()}
    return {"level": level, "excess": _interval(excess), "teacher_lost": float(lost["teacher"].mean()), **means}


def _judged(curve: dict[str, Any], clean: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The curve in order, and whether the student is more brittle there, in words."""
    points = sorted(curve["points"], key=lambda p: float(p["level"]))
    bad = [p for p in points if p["excess"] is not None and p["excess"]["low"] > WORSE]
    sentence = None
    if bad:
        worst = max(bad, key=lambda p: float(p["excess"]["value"]))
        student, teacher = (float(clean[who].mean()) for who in ("student", "teacher"))
        sentence = (
            f"More brittle than its teacher under {curve['name'].removeprefix('physics: ')}: at {worst['level']:g} ({curve['unit']}) its return falls "
            f"from {student:.4g} to {worst['student']['value']:.4g}, the teacher’s from {teacher:.4g} to {worst['teacher']['value']:.4g}."
        )
    return {**curve, "points": points, "brittle": bool(bad), "sentence": sentence}


def _interval(interval: stats.Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
