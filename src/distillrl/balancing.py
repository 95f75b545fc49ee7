"""Weights that the learner finds itself: terms held in balance by their gradients' norms, or by the noise that each is taken to have.

    gradnorm      each round a term's weight moves so that the norm of its gradient comes near the mean of all, times the pace at which it has
                  learnt, to the power of α (Chen 2018, 1711.02257, eq. 1 and 2; here a fixed-point step a round in place of a gradient step an
                  update, over all weights that learn). Their factors sum to their number
    uncertainty   L becomes exp(−s) L + s / 2 with an s of each term that is learnt (Kendall 2018, 1705.07115, eq. 10); exp(−s) stays within
                  1/BOUND … BOUND, as a loss that goes to 0 would else weigh without end

Both multiply the weight that the term begins with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured

BOUND = 100.0
"""The largest factor by which a term may come to weigh more than it began, or less."""
PACE = 2.0
"""The most by which a factor changes in a round."""


class Balance:
    """The factors of those terms whose weight is gradnorm or uncertainty. ``weights``: {term: its schedule}. State: factors, first losses, s."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        kinds = {name: getattr(weight, "kind", "") for name, weight in weights.items()}
        self.alpha = {name: float(weights[name].values[1]) for name, kind in kinds.items() if kind == "gradnorm"}
        self.factors = dict.fromkeys(self.alpha, 1.0)
        self.first: dict[str, float] = {}
        self.log_variance = {name: nn.Parameter(torch.zeros(())) for name, kind in kinds.items() if kind == "uncertainty"}
        for kind, found in (("gradnorm", self.factors), ("uncertainty", self.log_variance)):
            if len(found) == 1:
                raise Misconfigured(f"{kind} is the weight of {next(iter(found))} alone: it balances two terms or more against each other")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser of the student learns beside it."""
        return list(self.log_variance.values())

    def factor(self, name: str) -> Tensor | float:
        """By what a term's weight is multiplied now."""
        return (-self.log_variance[name]).exp() if name in self.log_variance else self.factors.get(name, 1.0)

    def penalty(self, weights: Mapping[str, float]) -> Tensor | None:
        """What keeps each s from growing: the sum of s / 2, by the terms' own weights; None where there is none."""
        return torch.stack([0.5 * weights[name] * s for name, s in self.log_variance.items()]).sum() if self.log_variance else None

    @torch.no_grad()
    def hold(self) -> None:
        """After an update, keep every s within its bounds."""
        for s in self.log_variance.values():
            s.clamp_(-math.log(BOUND), math.log(BOUND))

    def after_round(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        """Move gradnorm's factors by the round's mean losses (without any weight) and the norms of the weighted gradients."""
        if not self.factors:
            return
        paces = {name: abs(losses[name]) / max(1e-12, abs(self.first.setdefault(name, losses[name]))) for name in self.factors}
        mean_pace, mean_norm = _mean(list(paces.values())), _mean([norms[name] for name in self.factors])
        if mean_norm <= 0 or mean_pace <= 0:
            return
        for name in self.factors:
            target = mean_norm * (paces[name] / mean_pace) ** self.alpha[name]
            moved = self.factors[name] * min(PACE, max(1 / PACE, target / max(1e-12, norms[name])))
            self.factors[name] = min(BOUND, max(1 / BOUND, moved))
        total = sum(self.factors.values()) / len(self.factors)
        self.factors = {name: factor / total for name, factor in self.factors.items()}

    def metrics(self) -> dict[str, float]:
        """``weight.NAME`` of each balanced term's factor."""
        return {f"weight.{name}": float(torch.as_tensor(self.factor(name)).detach()) for name in (*self.factors, *self.log_variance)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {"factors": dict(self.factors), "first": dict(self.first), "log_variance": {name: s.detach().clone() for name, s in self.log_variance.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.factors, self.first = dict(state["factors"]), dict(state["first"])
        for name, s in self.log_variance.items():
            s.copy_(state["log_variance"][name])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
