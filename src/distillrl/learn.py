"""The learner: gradient steps on weighted terms, with an averaged copy of the student."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.dataset import Dataset
from distillrl.errors import Failed
from distillrl.records import Batch, Prediction, Progress, over_states

DOMINATES = 100.0
"""Ratio of two terms' gradients above which a run warns."""


@dataclass(frozen=True)
class Term:
    """An objective in use: its weight as a function of progress, its options bound into ``loss``."""

    name: str
    weight: Callable[[Progress], float]
    loss: Callable[[Prediction, Batch], Tensor]
    wants: frozenset[str]


class Gradient:
    """Adam on the sum of the weighted terms, ``updates`` batches a round.

    ``average`` (0 to 1) is the decay of an exponential moving average of the weights (Polyak 1992), a student that is
    steadier than the last iterate; 0 is off. It is this copy that drives, is evaluated and kept. State: both networks,
    the optimiser, the losses' own weights, the generator.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Sequence[Term],
        *,
        lr: float,
        batch: int,
        updates: int,
        average: float,
        train: str,
        generator: torch.Generator,
    ) -> None:
        self.student, self.terms = student, tuple(terms)
        self.batch, self.updates, self.decay, self.generator = batch, updates, average, generator
        self.averaged = copy.deepcopy(student) if average else student
        self.count = 0
        modules = [loss for t in terms if isinstance(loss := t.loss, nn.Module)]
        named = [(n, p) for n, p in student.named_parameters() if _trains(train, n)]
        self._own = [p for _, p in named] + [p for m in modules for p in m.parameters()]
        fused = all(p.device.type in {"cpu", "cuda"} for p in self._own)
        self.optimiser = torch.optim.Adam(self._own, lr=lr, fused=fused)
        self._fast = [p.detach() for _, p in student.named_parameters()]
        self._slow = [p.detach() for _, p in self.averaged.named_parameters()]
        self._wants = frozenset(w.removeprefix("student.") for t in terms for w in t.wants if w.startswith("student.")) | {"action"}

    def learn(self, dataset: Dataset, progress: Progress) -> dict[str, float]:
        """One round of updates; the mean of each weighted term, and its share of the gradient where there are several.

        Raises Failed, naming the term, where a loss is NaN or infinite; nothing is stepped in that update.
        """
        weights = [(t, t.weight(progress)) for t in self.terms]
        sums = torch.zeros(len(weights))
        rows = dataset.rows[torch.randint(len(dataset.rows), (self.updates * self.batch,), generator=self.generator)]
        drawn = replace(dataset.at(rows), progress=progress)
        for u in range(self.updates):
            batch = _part(drawn, u * self.batch, (u + 1) * self.batch)
            losses = self._losses(batch, weights)
            total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
            self.optimiser.zero_grad(set_to_none=True)
            total.backward()
            self.optimiser.step()
            sums += torch.stack([x.detach() for x in losses])
            self._follow()
        means = sums / max(1, self.updates)
        if not bool(torch.isfinite(means).all()):
            bad = self.terms[int((~torch.isfinite(means)).nonzero()[0])].name
            raise Failed(f"the term {bad} became NaN or infinite in round {progress.round}; a smaller --lr may help")
        metrics = {f"term.{t.name}": float(m) for (t, _), m in zip(weights, means, strict=True)}
        if len(weights) > 1:
            metrics.update(self._shares(dataset, weights, progress))
        return metrics

    def try_out(self, batch: Batch, progress: Progress) -> None:
        """One forward and backward of every term, nothing stepped: a wrong combination fails here, with a sentence."""
        losses = self._losses(batch, [(t, t.weight(progress)) for t in self.terms])
        torch.stack(losses).sum().backward()
        self.optimiser.zero_grad(set_to_none=True)

    def _losses(self, batch: Batch, weights: Sequence[tuple[Term, float]]) -> list[Tensor]:
        prediction, _ = self.student.act(batch.obs, batch.memory, batch.starts, self._wants)  # type: ignore[operator]  # a Policy that is a module
        return [weight * _mean(term.loss(prediction, batch), batch.weight) for term, weight in weights]

    def _follow(self) -> None:
        if not self.decay:
            return
        self.count += 1
        # The ramp forgets the untrained start sooner than the decay would.
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self._slow, self._fast, 1 - decay)

    def _shares(self, dataset: Dataset, weights: Sequence[tuple[Term, float]], progress: Progress) -> dict[str, float]:
        losses = self._losses(replace(dataset.draw(self.batch, self.generator), progress=progress), weights)
        norms = []
        parameters = list(self.student.parameters())
        for loss in losses:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else []
            norms.append(float(torch.sqrt(sum((g.square().sum() for g in grads if g is not None), torch.zeros(())))))
        total = sum(norms) or 1.0
        return {f"share.{t.name}": n / total for (t, _), n in zip(weights, norms, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        modules = {t.name: t.loss.state_dict() for t in self.terms if isinstance(t.loss, nn.Module)}
        return {
            "student": self.student.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": modules,
            "count": self.count,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.student.load_state_dict(state["student"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        for term in self.terms:
            if isinstance(term.loss, nn.Module):
                term.loss.load_state_dict(state["losses"][term.name])
        self.count = state["count"]
        self.generator.set_state(state["generator"])


def dominated(metrics: dict[str, float]) -> str | None:
    """A sentence where one term's gradient outweighs another's more than a hundredfold."""
    shares = {k[6:]: v for k, v in metrics.items() if k.startswith("share.")}
    if len(shares) < 2 or min(shares.values()) * DOMINATES >= max(shares.values()):
        return None
    big, small = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
    return f"{big} outweighs {small} by more than {DOMINATES:.0f}:1 in the gradient; {small} teaches next to nothing"


def _mean(loss: Tensor, weight: Tensor | None) -> Tensor:
    if loss.dim() == 0:
        return loss
    if weight is None:
        return loss.mean()
    return (loss * weight).sum() / weight.sum().clamp_min(1e-8)


def _part(batch: Batch, begin: int, end: int) -> Batch:
    return replace(over_states(lambda x: x[begin:end], replace(batch, progress=None)), progress=batch.progress)


def _trains(train: str, name: str) -> bool:
    """``train`` is "all", or names of parts: value, body, out, …"""
    return train == "all" or any(name.startswith((part, f"training_heads.{part}")) for part in train.split(","))
