"""Decision trees as policies: ``tree:leaves=64``. A grown tree is four tensors; nothing but torch is needed to play it.

``refit.Refit`` grows them with scikit-learn; explanations are in ``tree_text.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import Deterministic, Head
from distillrl.errors import Failed, Misconfigured, nearest
from distillrl.policies import ACTION, Memory, flatten
from distillrl.records import Prediction, Spec
from distillrl.senses import Sense

MAX_LEAVES = 1 << 16


@dataclass(frozen=True)
class Shape:
    """What a tree may become: at most ``leaves`` leaves, ``depth`` tests in a row (0: any number), and how it is grown.

    ``weight``: "gap" weights a state by what a wrong action costs there (Bastani 2018), "none" counts all alike.
    ``resample``: draw states by that weight instead of counting them by it, as the paper does.
    """

    leaves: int = 64
    depth: int = 0
    weight: str = "gap"
    resample: bool = False


def parse_tree(text: str) -> Shape:
    """``leaves=64``, ``leaves=64,depth=8,weight=none,resample`` → Shape; raises Misconfigured."""
    given: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if key not in {"leaves", "depth", "weight", "resample"}:
            raise Misconfigured(f"student tree:{text}: unknown option {key!r}{nearest(key, ('leaves', 'depth', 'weight', 'resample'))}")
        if key == "resample" and not equals:
            given[key] = True
        elif key == "weight" and value in {"gap", "none"}:
            given[key] = value
        elif key in {"leaves", "depth"} and value.isascii() and value.isdigit() and (2 if key == "leaves" else 1) <= int(value[:9]) <= MAX_LEAVES:
            given[key] = int(value[:9])
        else:
            raise Misconfigured(f"student tree:{text}: {part!r} was given; leaves=64 (from 2 to {MAX_LEAVES}), depth=8, weight=gap or none, and resample are right")
    return Shape(**given)


class Tree(nn.Module):
    """A policy that asks of one number after the other whether it is at most a threshold.

    Node m: ``feature`` [M] is the place in what the sense gives, ``threshold`` [M]; ``branches`` [M, 2] are the nodes for
    yes (x ≤ threshold) and no, the node itself at a leaf, else later ones; ``value`` [M, V]: for a discrete action the
    share of (weighted) states in which the teacher chose each of V actions, else the action itself.
    """

    grown = True
    gives: frozenset[str] = ACTION

    def __init__(self, spec: Spec, sense: Sense, shape: Shape, family: str, nodes: int = 1) -> None:
        super().__init__()
        self.spec, self.sense, self.shape, self.family = spec, sense, shape, family
        self.info: dict[str, Any] = {}
        self.width = sum(max(1, math.prod(g.shape)) for g in sense.groups.values())
        space = spec.action
        self.outputs = space.n if space.kind == "discrete" else space.dimensions
        self.head = Head.of("scores" if space.kind == "discrete" else "deterministic", space)
        self.register_buffer("feature", torch.zeros(nodes, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(nodes))
        self.register_buffer("branches", torch.arange(nodes).unsqueeze(-1).repeat(1, 2))
        self.register_buffer("value", torch.zeros(nodes, self.outputs))
        self.deepest = 0

    def become(self, feature: Tensor, threshold: Tensor, branches: Tensor, value: Tensor) -> None:
        """Take the place of another tree; its tensors are as this class describes them."""
        self.feature, self.threshold, self.branches, self.value = feature, threshold, branches, value
        self.settle()

    def settle(self) -> None:
        """Check that every test reads a number that there is, and leads on; raises Failed for a damaged tree."""
        own = torch.arange(len(self.feature))
        leaf = (self.branches == own.unsqueeze(-1)).all(-1)
        onward = (self.branches > own.unsqueeze(-1)).all(-1) & (self.branches < len(own)).all(-1)
        if not bool((leaf | onward).all()) or not bool(((self.feature >= 0) & (self.feature < self.width)).all()):
            raise Failed("the artifact's tree is damaged: a node leads back, nowhere, or reads what isn't there")
        depth = [0] * len(own)
        for m, (yes, no) in enumerate(self.branches.tolist()):
            if yes != m:
                depth[yes] = depth[no] = depth[m] + 1
        self.deepest = max(depth)

    @property
    def leaves(self) -> int:
        """How many leaves it has."""
        return int((self.branches[:, 0] == torch.arange(len(self.branches))).sum())

    def init(self, n: int) -> Memory:
        """The sense's."""
        return self.sense.init(n)

    def leaf_of(self, x: Tensor) -> Tensor:
        """[..., F] as the sense gives it, flat → the node number of its leaf, [...]."""
        node = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        for _ in range(self.deepest):
            seen = x.gather(-1, self.feature[node].unsqueeze(-1)).squeeze(-1)
            no = (seen > self.threshold[node]).long()
            node = self.branches[node, no]
        return node

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
        value = self.value[self.leaf_of(x)]
        if self.spec.action.kind in {"multidiscrete", "multibinary"}:
            return Prediction(Deterministic(value.long()))
        return Prediction(self.head.decode(value))

    def acting_parameters(self) -> int:
        """The numbers that decide: two for a test, one for a leaf's action (one for each dimension of it)."""
        return 2 * (len(self.feature) - self.leaves) + self.leaves * (1 if self.spec.action.kind == "discrete" else self.outputs)

    def header(self) -> dict[str, Any]:
        """What ``build_tree`` needs beside the tensors; plain JSON."""
        return {"family": self.family, "spec": self.spec.to_json(), "sense": self.sense.to_json(), "head": self.head.kind, "nodes": len(self.feature)}

    def artifact_tensors(self) -> dict[str, Tensor]:
        """All of its tensors."""
        return {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}


def make_tree(text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Tree:
    """A tree of one leaf, to be grown."""
    return Tree(spec, sense, parse_tree(text), f"tree:{text}")


def build_tree(text: str, spec: Spec, header: Mapping[str, Any]) -> Tree:
    """The tree of an artifact's header, its tensors not yet loaded."""
    nodes = int(header["nodes"])
    if not 1 <= nodes <= 2 * MAX_LEAVES:
        raise ValueError(f"a tree of {nodes} nodes")
    return Tree(spec, Sense.from_json(spec.observations, header["sense"]), parse_tree(text), f"tree:{text}", nodes)
