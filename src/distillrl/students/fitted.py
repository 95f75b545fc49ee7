"""A policy that is fitted to labelled states, not descended: a sense, and a model that maps what it gives to an action.

The models: tree.py, forest.py, leaf_linear.py, polynomial.py. scikit-learn fits them; torch alone plays them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distillrl.actions import Deterministic, Head
from distillrl.policies import ACTION, Memory, flatten
from distillrl.records import Prediction, Spec
from distillrl.senses import Sense
from distillrl.students.growing import Counts, Examples


class Model(Protocol):
    """What is fitted. Its buffers are its state; their sizes follow from the family's word and ``sizes()``."""

    def fit(self, given: Examples, generator: torch.Generator) -> None:
        """Become the model of these examples; raises Missing where scikit-learn is not installed."""

    def settle(self) -> None:
        """Check buffers that came from a file; raises Failed where they are no such model."""

    def __call__(self, x: Tensor) -> Tensor:
        """[..., F] → [..., V]: scores of a discrete action, else the action's own numbers."""

    def deciding(self) -> int:
        """How many numbers decide."""

    def sizes(self) -> dict[str, int]:
        """What ``build`` needs to make buffers of the right shapes."""

    def size(self) -> int:
        """Leaves, or weights: how much there is to read."""

    def figures(self) -> dict[str, float]:
        """What a round's log says of it, such as leaves."""


class Fitted(nn.Module):
    """A policy made of a sense and a model; ``counts`` says how states count where it is fitted."""

    grown = True
    gives: frozenset[str] = ACTION

    def __init__(self, spec: Spec, sense: Sense, model: Any, counts: Counts, family: str) -> None:
        super().__init__()
        self.spec, self.sense, self.model, self.counts, self.family = spec, sense, model, counts, family
        self.info: dict[str, Any] = {}
        self.head = Head.of("scores" if spec.action.kind == "discrete" else "deterministic", spec.action)

    def settle(self) -> None:
        """See Model."""
        self.model.settle()

    def init(self, n: int) -> Memory:
        """The sense's."""
        return self.sense.init(n)

    def see(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None) -> tuple[Tensor, Memory]:
        """What it reads: [..., F], flat, and the sense's memory after it."""
        groups, memory = self.sense(obs, memory, starts)
        return flatten(groups, self.sense.groups), memory

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See Policy.act."""
        x, memory = self.see(obs, memory, starts)
        return self.judge(x), memory

    def judge(self, x: Tensor) -> Prediction:
        """The action for what the sense gives, [..., F], flat."""
        value = self.model(x)
        if self.spec.action.kind in {"multidiscrete", "multibinary"}:
            return Prediction(Deterministic(value.long()))
        return Prediction(self.head.decode(value))

    def acting_parameters(self) -> int:
        """The numbers that decide."""
        return int(self.model.deciding())

    def header(self) -> dict[str, Any]:
        """What ``students.build`` needs beside the tensors; plain JSON."""
        return {"family": self.family, "spec": self.spec.to_json(), "sense": self.sense.to_json(), "head": self.head.kind, "sizes": self.model.sizes()}

    def artifact_tensors(self) -> dict[str, Tensor]:
        """All of its tensors."""
        return {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}


def seen(sense: Sense) -> int:
    """How many numbers a sense gives, flat."""
    return sum(max(1, math.prod(g.shape)) for g in sense.groups.values())


def called(policy: Fitted) -> list[str]:
    """What each number that it reads is called: obs[2], where ``pick`` or ``drop`` came first by its original place."""
    found: list[str] = []
    groups = policy.sense.groups
    for name in sorted(groups) if len(groups) > 1 else list(groups):
        places = list(range(max(1, math.prod(groups[name].shape))))
        for step in policy.sense.steps:
            if step.kind == "choose" and step.group == name and len(step.indices) == len(places):
                places = list(step.indices)
        found += [f"{name}[{i}]" for i in places]
    return found
