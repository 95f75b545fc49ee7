"""The learner: gradient steps on weighted terms, with an averaged copy of the student."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distillrl import byhand
from distillrl.balancing import Balance
from distillrl.dataset import NEXT, NEXT_MEMORY, Dataset
from distillrl.errors import Failed, Misconfigured
from distillrl.objectives.policy import mse, mse_targets
from distillrl.policies import as_words
from distillrl.records import Batch, Prediction, Progress, over_states
from distillrl.senses import window_of

DOMINATES = 100.0
"""Ratio of two terms' gradients above which a run warns."""
SEQUENCE = 64
"""Steps in time order that a student with memory learns from at once (truncated backpropagation through time). Of 32, it had learnt nothing of how its memory drifts
beyond them: in play it was twice as far from its teacher as where each 32 steps began with an empty memory (docs/students.md)."""
BURN_IN = 8
"""First steps of a sequence that only fill its memory, where it began in the middle of an episode."""
WIDER = 8
"""Times as many states in a batch of sequences: their steps go one after the other, so more of them side by side cost little, and neighbours tell little that is new.
Not for a policy gradient, which may go over its states only so often."""
SLOW = 0.005
"""Share by which the slow copy, of which ``next_target`` is asked, follows the student each update (Lillicrap 2016)."""


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
    steadier than the last iterate; 0 is off. It is this copy that drives, is evaluated and kept. A term that has an
    ``own_loss`` (an adversary) is stepped on it by an Adam of its own, after the student. State: the networks, the
    optimisers, the losses' own weights, the generators of the learner and of the terms that draw.
    """

    def __init__(
        self,
        student: Any,
        terms: Sequence[Term],
        *,
        lr: float,
        batch: int,
        updates: int,
        average: float,
        train: str,
        generator: torch.Generator,
    ) -> None:
        self.student: Any = student
        self.terms = tuple(terms)
        self.batch, self.updates, self.decay, self.generator = batch, updates, average, generator
        self.averaged: Any = copy.deepcopy(student) if average else student
        self.count = 0
        modules = [loss for t in terms if isinstance(loss := t.loss, nn.Module)]
        theirs = {t.name: list(t.loss.own_parameters()) for t in terms if hasattr(t.loss, "own_parameters")}
        apart = {id(p) for parameters in theirs.values() for p in parameters}
        named = [(n, p) for n, p in student.named_parameters() if _trains(train, n)]
        self.balance = Balance({t.name: t.weight for t in terms})
        self._own = [p for _, p in named] + [p for m in modules for p in m.parameters() if id(p) not in apart] + self.balance.parameters
        if not named:
            parts = sorted({n.split(".")[1] if n.startswith("training_heads.") else n.split(".")[0] for n, _ in student.named_parameters()})
            raise Misconfigured(f"train = {train!r} names no part of the student that learns; it has {', '.join(parts)}")
        self._adversaries = {name: torch.optim.Adam(parameters, lr=lr) for name, parameters in theirs.items()}
        self._train_only(train, [p for _, p in named])
        fused = all(p.device.type in {"cpu", "cuda"} for p in self._own)
        self.optimiser = torch.optim.Adam(self._own, lr=lr, fused=fused)
        self._fast = [p.detach() for _, p in student.named_parameters()]
        self._slow = [p.detach() for _, p in self.averaged.named_parameters()]
        self._wants = as_words(frozenset().union(*(t.wants for t in terms)), "student")
        self._ahead = frozenset(w for t in terms for w in t.wants if w in {"next", "next_target"})
        self._remembers = window_of(self.student) is None
        self._plain = not (modules or self._ahead or self.balance.parameters or self.balance.factors or train != "all")
        """Whether the losses have no weights of their own and look at nothing but a state."""
        if self._remembers and self._ahead:
            raise Misconfigured("a term that looks at the next state needs a student without memory; take an mlp, or other terms")
        self._target = copy.deepcopy(student) if "next_target" in self._ahead else None
        self._target_parameters = [] if self._target is None else [p.detach() for _, p in self._target.named_parameters()]

    def learn(self, dataset: Dataset, progress: Progress) -> dict[str, float]:
        """One round of updates; the mean of each weighted term, and its share of the gradient where there are several.

        Nothing where no state may be drawn: none of the round's was asked about. Raises Failed, naming the term, where a loss was NaN or
        infinite in some update; the student is broken then.
        """
        if not len(dataset):
            return {}
        weights = [(t, t.weight(progress)) for t in self.terms]
        sums = torch.zeros(len(weights))
        self.student.train()
        drawn = None if self._remembers or dataset.heavy else self._draw(dataset, self.updates * self.batch, progress)
        written = None if drawn is None or not self._plain else byhand.of(self.student, self._wants, self.batch)
        if written is not None:
            assert drawn is not None
            self._by_hand(written, drawn, weights, sums)
        for u in range(0 if written is not None else self.updates):
            if drawn is not None:
                batch = self._foreseen(_part(drawn, u * self.batch, (u + 1) * self.batch))
            else:
                batch = self._foreseen(self._draw(dataset, self.batch * (WIDER if self._remembers and not dataset.recalls else 1), progress))
            prediction = self._predict(batch)
            losses = self._weighted(prediction, batch, weights)
            total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
            if (penalty := self.balance.penalty({t.name: weight for t, weight in weights})) is not None:
                total = total + penalty
            self.optimiser.zero_grad(set_to_none=True)
            total.backward()
            self.optimiser.step()
            self.balance.hold()
            self._step_adversaries(prediction, batch)
            sums += torch.stack([x.detach() for x in losses])
            self._follow()
        self.student.eval()
        means = sums / max(1, self.updates)
        if not bool(torch.isfinite(means).all()):
            bad = self.terms[int((~torch.isfinite(means)).nonzero()[0])].name
            raise Failed(f"the term {bad} became NaN or infinite; a smaller --lr may help")
        metrics = {f"term.{t.name}": float(m) for (t, _), m in zip(weights, means, strict=True)}
        if len(weights) > 1:
            metrics.update(self._shares(dataset, weights, progress))
        return metrics | self.balance.metrics()

    def _by_hand(self, written: byhand.ByHand, drawn: Batch, weights: Sequence[tuple[Term, float]], sums: Tensor) -> None:
        """All of a round's updates of a plain MLP, its layers' gradients written out; of mse alone its own gradient too."""
        x = written.seen(drawn.obs)
        squares = self._squares(written, drawn, weights)
        for u in range(self.updates):
            part = slice(u * self.batch, (u + 1) * self.batch)
            if squares is not None:
                low, high, unit, share = squares
                unit = unit if unit.dim() < 2 else unit[part]
                losses = [written.squared(x[part], low[part], high[part], unit, share[part], weights[0][1])]
            else:
                losses = []
                batch = _part(drawn, part.start, part.stop)

                def total(prediction: Prediction, batch: Batch = batch, losses: list[Tensor] = losses) -> Tensor:
                    losses += self._weighted(prediction, batch, weights)
                    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

                written.step(x[part], total)
            self.optimiser.step()
            sums += torch.stack([loss.detach() for loss in losses])
            self._follow()

    @torch.no_grad()
    def _squares(self, written: byhand.ByHand, drawn: Batch, weights: Sequence[tuple[Term, float]]) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """(low, high, unit, share) of a round's states, where mse of a box action is all that is learnt from; else None."""
        loss = weights[0][0].loss
        options = loss.keywords if isinstance(loss, partial) and not loss.args else {}
        if len(weights) > 1 or (loss.func if isinstance(loss, partial) else loss) is not mse or written.student.head.kind not in {"gaussian", "deterministic"}:
            return None
        found = mse_targets(drawn.teacher, options.get("scale", "range"), options.get("clip", True))
        if found is None:
            return None
        low, high, unit = found
        share = torch.full((len(low), 1), 1 / self.batch)
        if drawn.weight is not None:
            sizes = drawn.weight.unflatten(0, (self.updates, self.batch))
            share = (sizes / sizes.sum(1, keepdim=True).clamp_min(1e-8)).reshape(-1, 1)
        return low, high, unit, share

    def copies(self) -> tuple[Any, ...]:
        """The student, and the copies of it that follow it: all that a running normaliser is part of."""
        return tuple({id(p): p for p in (self.student, self.averaged, self._target) if p is not None}.values())

    def try_out(self, batch: Batch, progress: Progress) -> None:
        """One forward and backward of every term, nothing stepped: a wrong combination fails here, with a sentence."""
        prediction = self._predict(batch)
        losses = self._weighted(prediction, self._foreseen(batch), [(t, t.weight(progress)) for t in self.terms])
        torch.stack(losses).sum().backward()
        self.optimiser.zero_grad(set_to_none=True)

    def _draw(self, dataset: Dataset, count: int, progress: Progress) -> Batch:
        """``count`` states, [B]; for a student that remembers about so many in sequences, [T, B]."""
        if self._remembers:
            batch = dataset.sequences(SEQUENCE, max(1, count // SEQUENCE), BURN_IN, self.generator)
        else:
            rows = dataset.rows[torch.randint(len(dataset.rows), (count,), generator=self.generator)]
            batch = dataset.at(rows, ahead=bool(self._ahead))
        return replace(batch, progress=progress)

    def _train_only(self, train: str, parameters: list[Tensor]) -> None:
        """The rest of the student is frozen while this learner is at work."""
        mine = {id(p) for p in parameters}
        for p in self.student.parameters():
            p.requires_grad_(train == "all" or id(p) in mine)

    def _predict(self, batch: Batch) -> Prediction:
        prediction, _ = self.student.act(batch.obs, batch.memory, batch.starts, self._wants)
        return prediction

    @torch.no_grad()
    def _foreseen(self, batch: Batch) -> Batch:
        """The batch with the student's and its slow copy's prediction of the next states, where a term wants them."""
        if not self._ahead:
            return batch
        obs = {name[len(NEXT) :]: value for name, value in batch.extra.items() if name.startswith(NEXT)}
        memory = {name[len(NEXT_MEMORY) :]: value for name, value in batch.extra.items() if name.startswith(NEXT_MEMORY)}
        mine = self.student.act(obs, memory, None, self._wants)[0]
        slow = None if self._target is None else self._target.act(obs, memory, None, self._wants)[0]
        return replace(batch, next=mine, next_target=slow)

    def _weighted(self, prediction: Prediction, batch: Batch, weights: Sequence[tuple[Term, float]]) -> list[Tensor]:
        return [weight * self.balance.factor(term.name) * _mean(term.loss(prediction, batch), batch.weight) for term, weight in weights]

    def _step_adversaries(self, prediction: Prediction, batch: Batch) -> None:
        for term in self.terms:
            if term.name in self._adversaries:
                optimiser = self._adversaries[term.name]
                optimiser.zero_grad(set_to_none=True)
                term.loss.own_loss(over_states(torch.Tensor.detach, prediction), batch).backward()  # type: ignore[attr-defined]  # it has own_parameters
                optimiser.step()

    def _follow(self) -> None:
        if self._target is not None:
            torch._foreach_lerp_(self._target_parameters, self._fast, SLOW)
        if not self.decay:
            return
        self.count += 1
        # The ramp forgets the untrained start sooner than the decay would.
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self._slow, self._fast, 1 - decay)

    def _shares(self, dataset: Dataset, weights: Sequence[tuple[Term, float]], progress: Progress) -> dict[str, float]:
        """Each term's share of the gradient; one that shares no parameter with another competes with none, and has no share."""
        batch = self._foreseen(self._draw(dataset, self.batch, progress))
        losses = self._weighted(self._predict(batch), batch, weights)
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        norms: dict[str, float] = {}
        touched: dict[str, set[int]] = {}
        for (term, _), loss in zip(weights, losses, strict=True):
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else []
            norms[term.name] = float(torch.sqrt(sum((g.square().sum() for g in grads if g is not None), torch.zeros(()))))
            touched[term.name] = {i for i, g in enumerate(grads) if g is not None}
        now = {t.name: float(loss.detach()) / max(1e-12, weight * float(torch.as_tensor(self.balance.factor(t.name)).detach())) for (t, weight), loss in zip(weights, losses, strict=True)}
        self.balance.after_round(now, norms)
        counts = [t.name for t, weight in weights if weight > 0]  # what a schedule has brought to 0 competes with none
        together = [name for name in counts if any(touched[name] & touched[other] for other in counts if other != name)]
        total = sum(norms[name] for name in together) or 1.0
        return {f"share.{name}": norms[name] / total for name in together}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        modules = {t.name: t.loss.state_dict() for t in self.terms if isinstance(t.loss, nn.Module)}
        return {
            "student": self.student.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": modules,
            "adversaries": {name: optimiser.state_dict() for name, optimiser in self._adversaries.items()},
            "target": {} if self._target is None else self._target.state_dict(),
            "count": self.count,
            "balance": self.balance.state_dict(),
            "generator": self.generator.get_state(),
            "generators": {t.name: g.get_state() for t in self.terms if (g := _generator(t)) is not None},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.student.load_state_dict(state["student"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        for term in self.terms:
            if isinstance(term.loss, nn.Module):
                term.loss.load_state_dict(state["losses"][term.name])
        for name, optimiser in self._adversaries.items():
            optimiser.load_state_dict(state["adversaries"][name])
        if self._target is not None:
            self._target.load_state_dict(state["target"])
        for term in self.terms:
            if (drawn_from := _generator(term)) is not None:
                drawn_from.set_state(state["generators"][term.name])
        self.count = state["count"]
        self.balance.load_state_dict(state["balance"])
        self.generator.set_state(state["generator"])


def dominated(metrics: dict[str, float]) -> str | None:
    """A sentence where one term's gradient outweighs another's more than a hundredfold."""
    shares = {k[6:]: v for k, v in metrics.items() if k.startswith("share.")}
    if len(shares) < 2 or min(shares.values()) * DOMINATES >= max(shares.values()):
        return None
    big, small = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
    return f"{big} outweighs {small} by more than {DOMINATES:.0f}:1 in the gradient; {small} teaches next to nothing"


def _generator(term: Term) -> torch.Generator | None:
    """The one that a term draws its samples from, if it does."""
    return term.loss.keywords.get("generator") if isinstance(term.loss, partial) else None


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
