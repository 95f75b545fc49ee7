"""What holds for all phases of a run before round 0, what one asks of the teacher, and when one ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distillrl import config as configuration
from distillrl import objectives, weights
from distillrl.agreeing import spread
from distillrl.columns import TwoColumns
from distillrl.config import Phase
from distillrl.dataset import Dataset
from distillrl.errors import Misconfigured, Missing
from distillrl.policies import ACTION, Policy, agreement, distance, unbounded
from distillrl.records import Progress, Rollout, over_states
from distillrl.rescuing import Rescue
from distillrl.senses import window_of
from distillrl.states import Who

AGREEMENT_STATES = 1024
"""States whose agreement is measured at once."""
CRITIC = frozenset({"extra.return", "extra.advantage"})
"""What a term wants where there is a critic whose explained variance can be told."""


def check(phases: tuple[Phase, ...]) -> None:
    """Every schedule of every phase parses; raises Misconfigured that names the phase."""
    for number, phase in enumerate(phases):
        try:
            for text in (phase.beta, phase.noise, phase.late):
                if "gradients" in weights.parse(text).reads:
                    raise Misconfigured(f"schedule {text!r} balances terms against each other, which a driver has none of: a number or another schedule is right")
        except Misconfigured as error:
            raise Misconfigured(f"phase {number + 1}: {error}") from None
        if phase.choose != "all" and phase.rescue != "none":
            raise Misconfigured(f"phase {number + 1}: rescue = {phase.rescue!r} looks at the teacher in every state, so there are none left to choose: choose = 'all' is right")
        if not phase.rounds and number + 1 < len(phases) and not configuration.bounds(phase.until):
            raise Misconfigured(f"phase {number + 1} never ends, so that the next is never reached: give it rounds, or until")


def fits(phase: Phase, number: int, wants: frozenset[str], student: Any) -> None:
    """Whether a phase can be done by this student with these wants of its terms; raises Misconfigured or Missing, before round 0."""
    if getattr(student, "grown", False):
        if phase.train != "all":
            raise Misconfigured(f"phase {number + 1} trains {phase.train!r} alone, but a tree is grown, not descended: take a network, such as --student mlp:16x16")
        return
    if "explained_variance" in configuration.bounds(phase.until) and not wants & CRITIC:
        raise Misconfigured(f"phase {number + 1} ends by explained_variance, but none of its terms has a critic: add return_mse")


def asks(phase: Phase, wants: frozenset[str], grown: bool = False) -> bool:
    """Whether a phase asks the teacher anything: by its terms or its driver. Learning by the reward alone does not."""
    alone = phase.rescue == "none" and all(weights.parse(share) == weights.parse(0) for share in (phase.beta, phase.late))
    return grown or phase.critical or not alone or any(w.startswith("teacher.") for w in wants)


def over(phase: Phase, rounds: int, metrics: Mapping[str, Any], progress: Progress, spent: float, reached: bool) -> bool:
    """Whether a phase has ended after so many ``rounds`` of its own: by their number, or by one of the figures that ``until`` names.

    ``spent`` is the share of the run's budget, ``reached`` whether the run's aim is.
    """
    if phase.rounds and rounds >= phase.rounds:
        return True
    figures = {**metrics, "return": metrics.get("return.student"), "spent": spent}
    for name, bound in configuration.bounds(phase.until).items():
        value = figures.get(name)
        if reached if name == "aim" else value is not None and value >= bound:
            return True
    return False


def explained_variance(rollout: Rollout) -> float | None:
    """1 − Var(return − V) / Var(return) over a rollout's valid steps, as its critic was when it was driven: 1 knows all, 0 no more than
    the mean, below 0 less than that. The return is GAE's, A + V. None where no term has a critic.
    """
    if not {"return", "advantage"} <= set(rollout.extra):
        return None
    error, total = (_variance(rollout.extra[name][rollout.valid]) for name in ("advantage", "return"))
    return 1 - error / total if total > 0 else None


def who(phase: Phase, progress: Progress) -> Who:
    """How a round of a phase is driven."""
    beta, noise, late = (weights.parse(text)(progress) for text in (phase.beta, phase.noise, phase.late))
    given = configuration.rescue(phase.rescue)
    return Who(beta, phase.by, phase.sampled, noise, late, None if given is None else Rescue(*given))


def driven_by(phase: Phase, student: Any) -> Any:
    """Who plays for the student: of Distral's tasks each one's own policy, else the student itself."""
    if "distral" not in phase.terms:
        return student
    given = phase.terms["distral"]
    options = objectives.check("distral", {k: v for k, v in given.items() if k != "weight"} if isinstance(given, Mapping) else {})
    return TwoColumns(student, options["kl"] / (options["kl"] + options["entropy"]))


def driver_wants(phase: Phase, teacher_gives: frozenset[str]) -> frozenset[str]:
    """What the driver of a phase reads of the teacher beside its action; raises Missing."""
    given = configuration.rescue(phase.rescue)
    if given is None or given[0] != "value":
        return frozenset()
    found = [name for name in ("value", "q") if name in teacher_gives]
    if not found:
        raise Missing(f"rescue by value needs `value` or `q`, but this teacher gives only {' and '.join(f'`{g}`' for g in sorted(teacher_gives))}; rescue by agreement would do")
    return frozenset({f"teacher.{found[0]}"})


@torch.inference_mode()
def compared(student: Policy, rollout: Rollout, dataset: Dataset) -> dict[str, float]:
    """``agreement``, the share of the round's labelled states, the rollout just appended, in which student (as it was) and teacher choose the
    same, and ``error``: 1 minus it, or for a box how far apart their actions are (policies.distance, its root mean square).

    Empty without labels. A student that remembers without bound goes through the rollout in order, from the memory that it began with.
    """
    asked = (rollout.valid & rollout.labelled).flatten()
    if rollout.teacher is None or not bool(asked.any()):
        return {}
    wide = spread(over_states(lambda x: x.flatten(0, 1)[asked], rollout.teacher)) if unbounded(rollout.teacher) else None
    if window_of(student) is None:
        prediction, _ = student.act({k: v[:-1] for k, v in rollout.obs.items()}, dict(rollout.memory), rollout.starts, ACTION)
        return _figures([agreement(prediction, rollout.teacher, wide).flatten()], [distance(prediction, rollout.teacher)], asked)
    length, slots = rollout.valid.shape
    label = over_states(lambda x: x.flatten(0, 1), rollout.teacher)
    first, same, apart = (dataset.steps - length) * slots, list[Tensor](), list[Any]()
    for part in torch.arange(length * slots).split(AGREEMENT_STATES):
        obs = {k: v[:-1].flatten(0, 1)[part] for k, v in rollout.obs.items()}
        memory = dataset.remembered(first + part)
        prediction, _ = student.act(obs, memory, rollout.starts.flatten()[part] if memory else None, ACTION)
        theirs = over_states(lambda x, part=part: x[part], label)
        same.append(agreement(prediction, theirs, wide))
        apart.append(distance(prediction, theirs))
    return _figures(same, apart, asked)


def _figures(same: list[Tensor], apart: list[Any], asked: Tensor) -> dict[str, float]:
    share = float(torch.cat(same)[asked].float().mean())
    error = 1 - share if apart[0] is None else float(torch.cat([x.flatten() for x in apart])[asked].square().mean().sqrt())
    return {"agreement": round(share, 4), "error": round(error, 4)}


def at(progress: Progress, phase_round: int) -> Progress:
    """As a phase's own schedules see it, of its driver and of its terms: rounds counted from its beginning."""
    return replace(progress, round=phase_round, before=progress.round - phase_round)


def _variance(x: Tensor) -> float:
    return float(x.var(correction=0)) if len(x) else 0.0
