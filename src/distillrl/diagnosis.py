"""Why a student stays below its aim: measured causes as sentences, each with what would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distillrl import envs, imitability, learn
from distillrl.agreeing import spread
from distillrl.beginning import State, generator
from distillrl.envs import Seeds
from distillrl.normalising import Normalise
from distillrl.policies import ACTION, Policy, agreement, flatten
from distillrl.records import Prediction, Rollout, over_states
from distillrl.settling import Setup
from distillrl.states import Drive, Who
from distillrl.teachers.environments import shortfall

STEPS = 512
"""Environment steps that each of teacher and student drives to be looked at."""
FITS = 0.9
"""Agreement on the teacher's states from which the student is taken to have learnt them."""
APART = 0.1
"""Agreement lost on the student's own states that counts as lack of coverage."""
NEAR = 256
"""States that are compared with their nearest neighbours."""
BEYOND = 8.0
"""Standard deviations from a normaliser's mean beyond which it never was where this observation lies."""


def diagnose(setup: Setup, state: State) -> list[str]:
    """The causes found, the most basic first: a teacher no better than random, its normaliser, what the student can't see, its size,
    coverage, the weights of its terms. Empty where none is found. Plays about a thousand steps; changes nothing of the run.
    """
    student = state.gradient.averaged
    theirs, own = (_driven(setup, student, beta) for beta in (1.0, 0.0))
    on_teacher, on_own = agreed(student, theirs), agreed(student, own)
    unseen = hidden(state.imitability) or conflicts(setup.teacher, student, theirs)
    causes = [no_better(state.baseline), *normalising(setup.teacher, theirs, state.baseline.get("teacher"), envs.name_of(setup.options))]
    found = [c for c in causes if c]
    if unseen:
        found.append(unseen)
    elif on_teacher < FITS:
        found.append(
            f"too small, or trained too little: even on the teacher's own states the student agrees with it in only {on_teacher:.0%}; "
            "a larger --student, or more updates a round, is to be tried"
        )
    if lacking := coverage(on_teacher, on_own):
        found.append(lacking)
    if dominated := learn.dominated(dict(state.progress.metrics)):
        found.append(f"weights: {dominated}; change them with --terms")
    return found


def coverage(on_teacher: float, on_own: float) -> str | None:
    """Whether the student knows its teacher's states (agreement 0 … 1 there and on its own) and not those that it gets into itself."""
    if on_teacher < FITS or on_teacher - on_own < APART:
        return None
    return (
        f"coverage: the student agrees with its teacher in {on_teacher:.0%} of the teacher's states, but in {on_own:.0%} of its own; "
        "let the student drive (--method dagger), or drive with noise (--method dart)"
    )


def no_better(baseline: Mapping[str, float]) -> str | None:
    """Whether teacher and random policy could not be told apart on the selecting seeds, or the teacher was the worse one."""
    if not baseline or baseline.get("apart", 1.0):
        return None
    how = "it is worse than random play" if baseline.get("worse") else "they can't be told apart"
    return f"the teacher earns {baseline['teacher']:.1f} here, a random policy {baseline['random']:.1f}: {how}; is it the right file, environment and normaliser?"


def normalising(teacher: Policy, rollout: Rollout, mean: float | None, played_on: str) -> list[str]:
    """A return far under the recorded one, and observations far beyond the teacher's own statistics."""
    found = [said] if mean is not None and (said := shortfall(teacher.info, played_on, mean)) else []
    for step in getattr(getattr(teacher, "sense", None), "steps", ()):
        if not isinstance(step, Normalise):
            continue
        for i, name in enumerate(step.shapes):
            if name not in rollout.obs or tuple(rollout.obs[name].shape[2:]) != step.shapes[name]:
                continue
            seen = rollout.obs[name][:-1][rollout.valid].to(getattr(step, f"scale{i}").dtype)
            share = (seen * getattr(step, f"scale{i}") + getattr(step, f"shift{i}")).abs().gt(BEYOND).flatten(1).float().mean(0)
            if float(share.max()) > 0.05:
                found.append(
                    f"normalising: component {int(share.argmax())} of {name!r} lies more than {BEYOND:g} deviations from the mean that the teacher "
                    f"normalises by in {float(share.max()):.0%} of states; other units, another environment or the wrong statistics (--vecnormalize)"
                )
    return found


def hidden(floor: Mapping[str, Any] | None) -> str | None:
    """Not imitable, as it was estimated before anything was learnt (imitability.py); None where that found nothing, or wasn't asked."""
    if floor is None or not imitability.matters(imitability.of_json(floor)):
        return None
    return (
        f"not imitable: before anything was learnt, states that look alike to the student were {floor['student']:.2g} apart in what the teacher does "
        f"({floor['measure']}), against {floor['everything']:.2g} where all that can be observed is alike; let the student see more (--see), or remember (stack=4, or a recurrent student)"
    )


def conflicts(teacher: Policy, student: Any, rollout: Rollout) -> str | None:
    """Not imitable: states that are alike to the student and in which the teacher acts otherwise, more of them than among states that are alike to the teacher.

    A nearest-neighbour test on up to NEAR states: the share whose nearest neighbour by the student's view has another action. A teacher
    that remembers sees more than any one observation, so there the share alone decides.
    """
    kept = rollout.valid.flatten().nonzero().squeeze(-1)
    kept = kept[torch.linspace(0, len(kept) - 1, min(NEAR, len(kept))).long()]
    obs = {k: v[:-1].flatten(0, 1)[kept] for k, v in rollout.obs.items()}
    assert rollout.teacher is not None
    label = over_states(lambda x: x.flatten(0, 1)[kept], rollout.teacher)
    sense = getattr(student, "sense", None)
    if sense is None or student.init(1):
        return None
    groups, _ = sense(obs, {}, None)
    seen = flatten(groups, sense.groups)
    everything = torch.cat([v.reshape(len(v), -1).float() for v in obs.values()], -1)
    mine = _disagreeing(seen, label)
    theirs = 0.0 if teacher.init(1) else _disagreeing(everything, label)
    if mine < 0.2 or mine < 2 * theirs + 0.05:
        return None
    return (
        f"not imitable: in {mine:.0%} of states that look alike to the student the teacher acts otherwise"
        + (" (it remembers; the student does not)" if teacher.init(1) else f", against {theirs:.0%} where all that can be observed is alike")
        + "; let the student see more (--see), or remember (stack=4, or a recurrent student)"
    )


@torch.no_grad()
def agreed(student: Policy, rollout: Rollout) -> float:
    """Share of a rollout's valid states in which the student would do as the teacher."""
    lead = rollout.valid.shape
    assert rollout.teacher is not None
    wide = spread(rollout.teacher)
    if student.init(1):
        memory, parts = student.init(lead[1]), []
        for t in range(lead[0]):
            prediction, memory = student.act({k: v[t] for k, v in rollout.obs.items()}, memory, rollout.starts[t], ACTION)
            at_once: Any = over_states(lambda x, t=t: x[t], rollout.teacher)
            parts.append(agreement(prediction, at_once, wide))
        same = torch.stack(parts).flatten()
    else:
        prediction, _ = student.act({k: v[:-1].flatten(0, 1) for k, v in rollout.obs.items()}, {}, None, ACTION)
        same = agreement(prediction, over_states(lambda x: x.flatten(0, 1), rollout.teacher), wide)
    return float(same[rollout.valid.flatten()].float().mean())


def _driven(setup: Setup, student: Any, beta: float) -> Rollout:
    slots = envs.slots_of(setup.options, setup.config.slots)
    vector = envs.make(setup.options, slots, Seeds(setup.config.seed, "dry"))
    try:
        drive = Drive(vector, setup.spec, generator(setup.config.seed, "diagnosis"))
        drive.begin(setup.teacher, student)
        with torch.inference_mode():
            return drive.collect(max(8, STEPS // drive.n), Who(beta), setup.teacher, student, ACTION, frozenset(setup.spec.observations))
    finally:
        vector.close()


def _disagreeing(seen: Tensor, label: Prediction) -> float:
    """Share of states whose nearest other state, by standardised distance, has another teacher action."""
    seen = seen.flatten(1).float()
    apart = _distances((seen - seen.mean(0)) / seen.std(0).clamp_min(1e-6))
    near = apart.fill_diagonal_(float("inf")).argmin(1)
    same = agreement(label, over_states(lambda x: x[near], label), spread(label))
    return 1 - float(same.float().mean())


def _distances(x: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, x)
