"""A cohort: several students that learn from one stream of labelled states, and drive by turns.

Each drives its share of the environments: a small student comes to states that a large one never sees, and must learn from them
(Ross 2011: the states of the student itself count). Small networks alike are one network while they learn (students/stacked.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distillrl.actions import Deterministic
from distillrl.beginning import State, all_wants, enter_phase, example_batch, generator
from distillrl.dataset import Dataset
from distillrl.errors import Failed
from distillrl.learn import Term
from distillrl.policies import ACTION, Memory, Policy
from distillrl.records import Batch, Prediction, Progress, Spec, over_states
from distillrl.settling import Setup
from distillrl.students.networks import Network
from distillrl.students.stacked import Stacked, alike

PLAIN = frozenset({"student.action", "student.distribution", "student.q"})
"""What terms may read of students that learn as one network."""


def together(terms: Sequence[Term], networks: Sequence[Any], batch: Batch) -> bool:
    """Whether these terms can be summed over stacked students: one number a state, of the action alone."""
    if len(networks) < 2 or not alike(networks) or any(isinstance(t.loss, torch.nn.Module) for t in terms):
        return False
    if any((w.startswith("student.") and w not in PLAIN) or w.startswith("extra.") or w in {"next", "next_target"} for w in all_wants(tuple(terms))):
        return False
    with torch.no_grad():
        prediction, _ = networks[0].act(batch.obs, {}, None)
        return all(t.loss(prediction, batch).dim() == 1 for t in terms)


class Together:
    """Stacked students and their one Adam: the same face as ``learn.Gradient``, with the same averages. State: weights, optimiser, generator."""

    def __init__(self, networks: Sequence[Network], terms: Sequence[Term], phase: Any, draw: torch.Generator) -> None:
        self.networks, self.terms, self.phase, self.generator = list(networks), tuple(terms), phase, draw
        self.stacked = Stacked(networks)
        self.averaged = copy.deepcopy(self.stacked)
        self.optimiser = torch.optim.Adam([self.stacked.weights], lr=phase.lr, fused=True)
        self.count = 0

    def learn(self, dataset: Dataset, progress: Progress) -> dict[str, float]:
        """One round of updates of all of them; the mean of each term over students."""
        phase, k = self.phase, len(self.networks)
        weights = [(t, t.weight(progress)) for t in self.terms]
        sums = torch.zeros(len(weights))
        rows = dataset.rows[torch.randint(len(dataset.rows), (phase.updates * phase.batch,), generator=self.generator)]
        drawn = replace(dataset.at(rows), progress=None)
        for u in range(phase.updates):
            batch = over_states(lambda x, u=u: x[u * phase.batch : (u + 1) * phase.batch], drawn)
            x = self.stacked.see(batch.obs, batch.memory, batch.starts)
            raw, log_std = self.stacked(x)
            many = replace(over_states(lambda v: v.expand(k, *v.shape).flatten(0, 1), replace(batch, obs={}, memory={})), progress=progress)
            losses = [w * _means(t.loss(self._prediction(raw, log_std), many), many.weight, k) for t, w in weights]
            total = torch.stack(losses).sum()
            self.optimiser.zero_grad(set_to_none=True)
            total.backward()
            self.optimiser.step()
            self._follow()
            sums += torch.stack([v.detach().mean() for v in losses])
        means = sums / phase.updates
        if not bool(torch.isfinite(means).all()):
            raise Failed("a term became NaN or infinite; a smaller --lr may help")
        return {f"term.{t.name}": float(m) for (t, _), m in zip(weights, means, strict=True)}

    def _prediction(self, raw: Tensor, log_std: Tensor | None) -> Prediction:
        flat = raw.flatten(0, 1)
        spread = None if log_std is None else log_std.expand(raw.shape).flatten(0, 1)
        return Prediction(self.stacked.head.decode(flat, spread), q=flat if self.stacked.head.kind == "greedy" else None)

    def _follow(self) -> None:
        self.count += 1
        decay = min(self.phase.average, (1 + self.count) / (10 + self.count)) if self.phase.average else 0.0
        with torch.no_grad():
            self.averaged.weights.lerp_(self.stacked.weights, 1 - decay)

    def choices(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None) -> Tensor:
        """[K, n, …]: what each would do."""
        raw, log_std = self.averaged(self.averaged.see(obs, memory, starts))
        action = self.averaged.head.decode(raw, log_std)
        return action.mode

    def settle(self) -> list[Network]:
        """The students with their averaged weights."""
        self.averaged.write_to(self.networks)
        return self.networks

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        weights = {"now": self.stacked.weights.detach().clone(), "averaged": self.averaged.weights.detach().clone()}
        return {"kind": "together", "students": len(self.networks), **weights, "optimiser": self.optimiser.state_dict(), "count": self.count, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of as many students alike."""
        with torch.no_grad():
            self.stacked.weights.copy_(state["now"])
            self.averaged.weights.copy_(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.count = int(state["count"])
        self.generator.set_state(state["generator"])

    def without(self, gone: set[int]) -> Together:
        """The others, with their moments, so that they learn on as if those had never been there."""
        kept = [k for k in range(len(self.networks)) if k not in gone]
        made = copy.copy(self)
        made.networks = [self.networks[k] for k in kept]
        stacks: dict[str, Stacked] = {}
        state = self.optimiser.state[self.stacked.weights]
        for name, values in (("now", self.stacked.weights), ("averaged", self.averaged.weights), ("first", state["exp_avg"]), ("second", state["exp_avg_sq"])):
            whole = copy.deepcopy(self.stacked)
            whole.weights.data = values.detach().clone()
            copies = [copy.deepcopy(n) for n in self.networks]
            whole.write_to(copies)
            stacks[name] = Stacked([copies[k] for k in kept])
        made.stacked, made.averaged = stacks["now"], stacks["averaged"]
        made.optimiser = torch.optim.Adam([made.stacked.weights], lr=self.phase.lr, fused=True)
        made.optimiser.state[made.stacked.weights] = {"step": state["step"].clone(), "exp_avg": stacks["first"].weights.data, "exp_avg_sq": stacks["second"].weights.data}
        return made


class Alone:
    """One student with a learner of its own, such as a tree's or a recurrent network's; the face of ``Together``."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def learn(self, dataset: Dataset, progress: Progress) -> dict[str, float]:
        """See learn.Gradient."""
        found: dict[str, float] = self.learner.learn(dataset, progress)
        return found

    def settle(self) -> list[Any]:
        """The student as it plays."""
        return [self.learner.averaged]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {"kind": "alone", "students": 1, "learner": self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.learner.load_state_dict(state["learner"])


class Cohort:
    """The students that are still in the race, as a policy: slot i is driven by student (i + turn) mod K. State: its learners'."""

    gives: frozenset[str] = ACTION

    def __init__(self, spec: Spec, learners: Sequence[Together | Alone]) -> None:
        self.spec, self.learners = spec, list(learners)
        self.info: Mapping[str, Any] = {"format": "cohort"}
        self.owners = torch.zeros(0, dtype=torch.int64)
        self.turn = 0

    @property
    def members(self) -> list[Any]:
        """The students, in the order of their learners."""
        return [s for learner in self.learners for s in (learner.networks if isinstance(learner, Together) else [learner.learner.student])]

    def settled(self) -> list[Any]:
        """The same, with the weights that they play with."""
        return [s for learner in self.learners for s in learner.settle()]

    def own(self, numbers: Any) -> None:
        """Say which episode each slot plays: student e mod K plays episode e."""
        self.owners = torch.as_tensor(numbers) % len(self.members)

    def drive(self, slots: int) -> None:
        """A round more: by turns where there are more students than slots."""
        count = len(self.members)
        self.owners = (torch.arange(slots) + self.turn) % count
        self.turn = (self.turn + slots) % count

    def init(self, n: int) -> Memory:
        """Of those that remember, by their number."""
        alone = [(i, x) for i, x in enumerate(self.learners) if isinstance(x, Alone)]
        return {f"{i}.{k}": v for i, x in alone for k, v in x.learner.averaged.init(n).items()}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """Each slot's action is its owner's."""
        found, after = [], dict(memory)
        for i, learner in enumerate(self.learners):
            if isinstance(learner, Together):
                found.append(learner.choices(obs, {}, starts))
                continue
            policy: Policy = learner.learner.averaged
            own = {k.partition(".")[2]: v for k, v in memory.items() if k.startswith(f"{i}.")}
            prediction, own = policy.act(obs, own, starts)
            assert prediction.action is not None
            after |= {f"{i}.{k}": v for k, v in own.items()}
            found.append(prediction.action.mode.unsqueeze(0))
        modes = found[0] if len(found) == 1 else torch.cat([f.to(found[0].dtype) for f in found])
        chosen = modes[self.owners, torch.arange(len(self.owners))]
        return Prediction(Deterministic(chosen)), after

    def without(self, gone: set[int]) -> None:
        """Leave students out, by their numbers."""
        kept: list[Together | Alone] = []
        at = 0
        for learner in self.learners:
            count = len(learner.networks) if isinstance(learner, Together) else 1
            mine = {g - at for g in gone if at <= g < at + count}
            at += count
            if len(mine) < count:
                kept.append(learner.without(mine) if mine and isinstance(learner, Together) else learner)
        self.learners, self.turn = kept, 0


def seated(setup: Setup, state: State, students: Sequence[Any]) -> Cohort:
    """The learners of these students: stacked where they are alike and the terms allow it, alone otherwise; each after its dry run."""
    learners: list[Together | Alone] = []
    left = list(students)
    phase = setup.config.phase[0]
    while left:
        kind = [s for s in left if alike([left[0], s])] if isinstance(left[0], Network) and alike([left[0]]) else left[:1]
        own = _alone(setup, state, kind[0])
        terms = own.gradient.terms
        if together(terms, kind, example_batch(setup, own, all_wants(terms))):
            learners.append(Together(kind, terms, phase, generator(setup.config.seed, "learn0")))
        else:
            learners += [Alone(_alone(setup, state, s).gradient) for s in kind]
        left = [s for s in left if all(s is not k for k in kind)]
    return Cohort(setup.spec, learners)


def reseated(setup: Setup, state: State, students: Sequence[Any], saved: Sequence[Mapping[str, Any]], turn: int) -> Cohort:
    """The cohort whose learners' states were saved; ``students`` in the order of its members."""
    learners: list[Together | Alone] = []
    left = list(students)
    for values in saved:
        mine, left = left[: values["students"]], left[values["students"] :]
        own = _alone(setup, state, mine[0])
        alone = values["kind"] == "alone"
        learner = Alone(own.gradient) if alone else Together(mine, own.gradient.terms, setup.config.phase[0], generator(setup.config.seed, "learn0"))
        learner.load_state_dict(values)
        learners.append(learner)
    made = Cohort(setup.spec, learners)
    made.turn = turn
    return made


def _alone(setup: Setup, state: State, student: Any) -> State:
    """A state of the same drive and data with another student, its learner made and tried out."""
    return enter_phase(replace(setup, config=replace(setup.config, student=student.family)), replace(state, student=student, gradient=None), 0)  # type: ignore[arg-type]  # enter_phase makes the learner


def _means(loss: Tensor, weight: Tensor | None, k: int) -> Tensor:
    """[K · B] → the sum over students of each one's mean."""
    each = loss.unflatten(0, (k, -1))
    if weight is None:
        return each.mean(1).sum()
    w = weight.unflatten(0, (k, -1))
    return ((each * w).sum(1) / w.sum(1).clamp_min(1e-8)).sum()
