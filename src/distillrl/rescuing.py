"""When the teacher takes over from a driving student, and when it hands back: two bounds apart, so that it doesn't flicker.

The student drives until its trust falls below ``below``; then the teacher recovers for ``steps`` steps at least, and until trust is
``above`` again (LazyDAgger, Hoque 2021, 2104.00053, algorithm 1: switching by discrepancy with hysteresis).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillrl.errors import Missing
from distillrl.records import Prediction


@dataclass(frozen=True)
class Rescue:
    """``by`` agreement, or value; both bounds between 0 and 1."""

    by: str
    below: float
    above: float
    steps: int


def agreement(label: Prediction, own: Prediction) -> Tensor:
    """[n] from 0 to 1: the teacher's probability of the student's action beside that of its own (mean over several choices); for a box 1
    minus the largest difference of a component, in ranges; where the teacher gives an action alone, the share of choices that are alike.
    """
    theirs, mine = label.action, own.action
    assert theirs is not None
    assert mine is not None
    a, b = theirs.mode, mine.mode
    if a.is_floating_point():
        low, high = getattr(theirs, "low", None), getattr(theirs, "high", None)
        width = torch.ones_like(a[0]) if low is None or high is None else torch.where((high - low).isfinite(), high - low, torch.ones_like(high))
        return 1 - ((a - b).abs() / width).amax(-1).clamp_max(1)
    parts = getattr(theirs, "parts", (theirs,))
    if hasattr(theirs, "logits") and hasattr(parts[0], "log_probs"):
        chosen = b.unsqueeze(-1) if len(parts) == 1 and b.dim() == 1 else b
        ratios = [(p.log_prob(chosen[..., i]) - p.log_prob(p.mode)).exp() for i, p in enumerate(parts)]
        return torch.stack(ratios, -1).mean(-1)
    same = (a == b).float()
    return same if same.dim() == 1 else same.mean(-1)


def value(label: Prediction) -> Tensor:
    """[...] the teacher's value, or its best Q. Raises Missing where it gives neither."""
    if label.value is not None:
        return label.value
    if label.q is not None:
        return label.q.max(-1).values
    raise Missing("rescue by value needs the teacher's `value` or `q`; rescue by agreement would do")


def levels(label: Prediction, valid: Tensor, rescue: Rescue) -> Tensor:
    """[2] the values that the shares ``below`` and ``above`` of the valid states lie under."""
    seen = value(label)[valid].float()
    return torch.quantile(seen, torch.tensor([rescue.below, rescue.above]))


def taken(rescue: Rescue, trust: Tensor, bounds: Tensor, held: Tensor) -> Tensor:
    """[n] for how many more steps the teacher drives, from ``held``, how many it was to drive yet: 0 where the student does.

    ``bounds`` [2]: trust below the first takes over, trust from the second on hands back once those steps are over.
    """
    falls = (held == 0) & (trust < bounds[0])
    stays = (held == 1) & (trust < bounds[1])
    return torch.where(falls, torch.full_like(held, rescue.steps), torch.where(stays, held, (held - 1).clamp_min(0)))
