"""A grown tree while its leaves are tuned by the reward: its tests stay, and each leaf has a score for every action, which gradients move.

What a tree of few leaves does is a rough copy of its teacher, and the copy's own mistakes are no longer the teacher's to correct: which
action is best in a leaf is for the reward to say. As a policy this is a table over the leaves (state aggregation; Singh 1995), learnt
by the same PPO as a network. What is kept is a tree as before, whose leaves hold the scores' shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import Head
from distillrl.errors import Misconfigured
from distillrl.policies import ACTION, Memory
from distillrl.records import ActionSpace, Prediction, Spec
from distillrl.senses import Sense
from distillrl.students.fitted import Fitted
from distillrl.students.tree import Tree

LEAST = 0.01
"""Share of an action that no state of a leaf was labelled with: it can be tried all the same."""
STEP = 20.0
"""A leaf's scores move so many times as far as a network's weights do at the same rate: few states move each of them."""
FAR = 5.0
"""Where what the critic reads is cut off, in deviations of the tests' thresholds."""


class Tuned(nn.Module):
    """The tree ``fitted`` with scores [M, V] / STEP that learn; training heads read each number in units of its tests' thresholds."""

    grown = False

    def __init__(self, fitted: Fitted) -> None:
        super().__init__()
        self.fitted = fitted
        tree: Any = fitted.model
        self.scores = nn.Parameter(tree.value.clamp_min(LEAST).log() / STEP)
        centre, scale = _units(tree)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.head = Head.of("categorical", fitted.spec.action)
        self.training_heads = nn.ModuleDict()
        self.heads = 0
        self.family, self.info = fitted.family, fitted.info

    @property
    def spec(self) -> Spec:
        """The tree's."""
        return self.fitted.spec

    @property
    def sense(self) -> Sense:
        """The tree's."""
        return self.fitted.sense

    @property
    def width(self) -> int:
        """Numbers that training heads read."""
        return len(self.get_buffer("centre"))

    @property
    def gives(self) -> frozenset[str]:
        """What it can be asked for."""
        return frozenset({"action", "distribution", *self.training_heads})

    def init(self, n: int) -> Memory:
        """The sense's."""
        return self.fitted.init(n)

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See Policy.act."""
        x, memory = self.fitted.see(obs, memory, starts)
        tree: Any = self.fitted.model
        value = None
        if "value" in wants and "value" in self.training_heads:
            read = ((x - self.get_buffer("centre")) * self.get_buffer("scale")).clamp(-FAR, FAR)
            value = self.training_heads["value"](read).squeeze(-1)
        return Prediction(self.head.decode(STEP * self.scores[tree.leaf_of(x)]), value=value), memory

    def acting_parameters(self) -> int:
        """The tree's."""
        return self.fitted.acting_parameters()

    def header(self) -> dict[str, Any]:
        """The tree's."""
        return self.fitted.header()

    def artifact_tensors(self) -> dict[str, Tensor]:
        """The tree's, its leaves with the shares of their scores."""
        shares = torch.softmax(STEP * self.scores.detach(), -1)
        return {k: shares.cpu().contiguous() if k == "model.value" else v for k, v in self.fitted.artifact_tensors().items()}


def _units(tree: Tree) -> tuple[Tensor, Tensor]:
    """[F] each: the mean of each number's thresholds, and 1 / their deviation; 0 where no two tests are of it."""
    feature, threshold, branches = (tree.get_buffer(name) for name in ("feature", "threshold", "branches"))
    tests = branches[:, 0] != torch.arange(len(branches))
    centre, scale = torch.zeros(tree.width), torch.zeros(tree.width)
    for f in range(tree.width):
        own = threshold[tests & (feature == f)]
        if len(own):
            centre[f] = own.mean()
        if len(own) > 1 and float(own.std()) > 0:
            scale[f] = 1 / own.std()
    return centre, scale


def tuned(student: Any) -> Tuned:
    """The tree, to be tuned; itself where it is tuned already."""
    return student if isinstance(student, Tuned) else Tuned(student)


def untuned(student: Any) -> Any:
    """The tree as it was grown; anything else as it is."""
    return student.fitted if isinstance(student, Tuned) else student


def check(word: str, space: ActionSpace) -> None:
    """Raise Misconfigured for a fitted student that can't be tuned."""
    if not word.startswith("tree:") or space.kind != "discrete":
        raise Misconfigured(f"--finetune of a fitted student tunes the leaves of a tree of discrete actions; --student {word} on {space} is none: take tree:leaves=64 where actions are Discrete, or a network, such as mlp:16x16")
