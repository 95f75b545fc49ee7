"""Heads that a student is lent while it learns: a critic, Q-values, quantiles. They are cut off in the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.advantages import Critic
from distillrl.columns import Columns
from distillrl.config import Phase
from distillrl.objectives import TABLE
from distillrl.objectives.layers import linear
from distillrl.records import Rollout, Spec

CAN_BE_ADDED = frozenset({"value", "q", "quantiles", "column"})
QUANTILES = 32
"""Quantiles of a head where the teacher doesn't say how many."""


def could_give(student: Any, spec: Spec) -> frozenset[str]:
    """What a student gives with the heads that can be added to it; a family that is no network takes none."""
    if not hasattr(student, "training_heads"):
        return frozenset(student.gives)
    found = CAN_BE_ADDED if spec.action.kind == "discrete" else {"value", "quantiles"}
    return student.gives | (found if spec.tasks else found - {"column"})


def add(student: Any, wanted: Mapping[str, tuple[int, ...]], spec: Spec, generator: torch.Generator) -> None:
    """Add the heads {name: size} that aren't there, their weights drawn from ``generator``; () is the size that suits the spec."""
    for name, size in wanted.items():
        if name in student.gives:
            continue
        width = student.out.in_features
        if name == "value":
            student.training_heads[name] = Critic(width, generator, len(spec.tasks))
        elif name == "column":
            student.training_heads[name] = Columns(width // student.heads - 1 if student.heads else width, len(spec.tasks), spec.action.n, generator)
        elif name == "q":
            student.training_heads[name] = linear(width, spec.action.n, generator)
        else:
            actions, count = size or (max(1, spec.action.n), QUANTILES)
            student.training_heads[name] = nn.Sequential(linear(width, actions * count, generator), nn.Unflatten(-1, (actions, count)))


@torch.no_grad()
def centre(student: Any, rollout: Rollout, wants: frozenset[str]) -> bool:
    """Begin the student's Q-values and values at the mean of what the teacher says of a rollout, where terms compare the two; whether anything was begun so.

    Else most of the learning goes into an offset: of a teacher whose Q-values lie about 100 they differ by 1 between good and bad actions.
    """
    told, known = rollout.teacher, rollout.labelled & rollout.valid
    if told is None or not bool(known.any()) or not hasattr(student, "training_heads"):
        return False
    heads, found = student.training_heads, False
    if told.q is not None and {"teacher.q", "student.q"} <= wants:
        lent, acts = "q" in heads, not student.heads and student.head.kind == "greedy"  # of several tasks each has a head
        found |= (lent or acts) and _begin_at(heads["q"] if lent else student.out, told.q[known].mean(0))
    if told.value is not None and {"teacher.value", "student.value"} <= wants and "value" in heads:
        found |= _begin_at(heads["value"].layers[-1], told.value[known].mean().unsqueeze(0))
    return found


def _begin_at(layer: Any, mean: Tensor) -> bool:
    if not isinstance(layer, nn.Linear) or layer.bias.shape != mean.shape or not bool(mean.isfinite().all()):
        return False
    layer.bias.copy_(mean)
    return True


def acts_by_q(phases: Sequence[Phase], spec: Spec) -> bool:
    """Whether a student must act by its Q-values: some term is on them, and none on its probabilities."""
    wants = _wants(phases, spec)
    return spec.action.kind == "discrete" and any("student.q" in w for w in wants) and not any("student.distribution" in w for w in wants)


def acts_surely(phases: Sequence[Phase], spec: Spec) -> bool:
    """Whether a box student has no distribution: no term would teach it its spread, so that its samples would mean nothing."""
    return spec.action.kind == "box" and not any("student.distribution" in w for w in _wants(phases, spec))


def _wants(phases: Sequence[Phase], spec: Spec) -> list[frozenset[str]]:
    return [TABLE[name].needs(spec.action.kind) for phase in phases for name in phase.terms if name in TABLE]
