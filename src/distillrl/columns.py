"""Distral's two columns (Teh 2017, 1707.04175, section 3.2): a policy for each task beside the one that they share.

The shared policy π₀ = softmax(h) is the student; a task's own is π_i = softmax(α·h + f_i). ``Columns`` holds the f_i while the student learns,
``TwoColumns`` drives by π_i, and the artifact is π₀ alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillrl.actions import Categorical
from distillrl.objectives.layers import linear
from distillrl.objectives.reward import task_policy
from distillrl.policies import ACTION, Memory
from distillrl.records import Prediction

HIDDEN = 64
"""Units of each task's column."""


class Columns(nn.Module):
    """f_i on the student's latent: ([..., L], task [...] int) → [..., A], a hidden layer for each task; zero at first, so that π_i is near π₀."""

    def __init__(self, inputs: int, tasks: int, actions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.tasks = tasks
        self.first, self.last = linear(inputs, tasks * HIDDEN, generator), linear(tasks * HIDDEN, actions, generator)
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.bias.zero_()

    def forward(self, latent: Tensor, task: Tensor) -> Tensor:
        """[..., A]"""
        own = F.one_hot(task.long(), self.tasks).to(latent.dtype).unsqueeze(-1)
        return self.last((torch.tanh(self.first(latent)).unflatten(-1, (self.tasks, HIDDEN)) * own).flatten(-2))


class TwoColumns:
    """Plays each task by its own policy π_i; all else is the student's."""

    def __init__(self, student: Any, alpha: float) -> None:
        self.student, self.alpha = student, alpha
        self.spec, self.gives, self.info, self.training_heads = student.spec, student.gives, student.info, student.training_heads

    def init(self, n: int) -> Memory:
        """The student's."""
        found: Memory = self.student.init(n)
        return found

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See policies.Policy."""
        said, memory = self.student.act(obs, memory, starts, wants | {"column"})
        assert isinstance(said.action, Categorical)
        own = task_policy(said.action, said.features["column"], self.alpha)
        return Prediction(own, q=said.q, value=said.value, features=said.features), memory
