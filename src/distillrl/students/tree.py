"""Decision trees as policies: ``tree:leaves=64``. A grown tree is four tensors; nothing but torch is needed to play it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Failed
from distillrl.records import ActionSpace, Spec
from distillrl.senses import Sense
from distillrl.students import growing
from distillrl.students.fitted import Fitted, seen
from distillrl.students.growing import Counts, Examples

WHOLE = {"leaves": (2, growing.MOST), "depth": (1, growing.MOST), "grow": (2, growing.MOST)}


class Tree(nn.Module):
    """A model that asks of one number after the other whether it is at most a threshold.

    Node m: ``feature`` [M] is the place in what the sense gives, ``threshold`` [M]; ``branches`` [M, 2] are the nodes for
    yes (x ≤ threshold) and no, the node itself at a leaf, else later ones; ``value`` [M, V]: for a discrete action the
    share of (weighted) states in which the teacher chose each of V actions, else the action itself. At most ``most``
    leaves, ``depth`` tests in a row (0: any number); ``grow``: leaves that it is grown to before it is cut back (0: no more than ``most``).
    """

    def __init__(self, space: ActionSpace, width: int, most: int, depth: int = 0, nodes: int = 1, grow: int = 0) -> None:
        super().__init__()
        self.space, self.width, self.most, self.depth, self.grow = space, width, most, depth, grow
        self.outputs = growing.width(space)
        self.register_buffer("feature", torch.zeros(nodes, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(nodes))
        self.register_buffer("branches", torch.arange(nodes).unsqueeze(-1).repeat(1, 2))
        self.register_buffer("value", torch.zeros(nodes, self.outputs))
        self.deepest = 0

    def fit(self, given: Examples, generator: torch.Generator) -> None:
        """See Model; ties are broken by the generator."""
        seed = int(torch.randint(1 << 31, (1,), generator=generator))
        self.become(**growing.tree(given, self.space, self.most, self.depth, seed, self.grow))

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

    def leaf_of(self, x: Tensor) -> Tensor:
        """[..., F] → the node number of its leaf, [...]."""
        node = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        for _ in range(self.deepest):
            read = x.gather(-1, self.feature[node].unsqueeze(-1)).squeeze(-1)
            no = (read > self.threshold[node]).long()
            node = self.branches[node, no]
        return node

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., V]"""
        return self.value[self.leaf_of(x)]

    def deciding(self) -> int:
        """Two numbers for a test, one for a leaf's action (one for each dimension of it)."""
        return 2 * (len(self.feature) - self.leaves) + self.leaves * (1 if self.space.kind == "discrete" else self.outputs)

    def sizes(self) -> dict[str, int]:
        """How many nodes."""
        return {"nodes": len(self.feature)}

    def size(self) -> int:
        """Its leaves."""
        return self.leaves

    def figures(self) -> dict[str, float]:
        """How many leaves."""
        return {"leaves": float(self.leaves)}


def parse_tree(text: str) -> tuple[dict[str, int], Counts]:
    """``leaves=64``, ``leaves=64,grow=400,depth=8,weight=none,resample``; raises Misconfigured."""
    return growing.parse("tree", text, WHOLE)


def _tree(text: str, spec: Spec, sense: Sense, nodes: int = 1) -> Fitted:
    numbers, counts = parse_tree(text)
    model = Tree(spec.action, seen(sense), numbers.get("leaves", 64), numbers.get("depth", 0), nodes, numbers.get("grow", 0))
    return Fitted(spec, sense, model, counts, f"tree:{text}")


def make_tree(text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Fitted:
    """A tree of one leaf, to be grown."""
    return _tree(text, spec, sense)


def build_tree(text: str, spec: Spec, header: Mapping[str, Any]) -> Fitted:
    """The tree of an artifact's header, its tensors not yet loaded."""
    return _tree(text, spec, Sense.from_json(spec.observations, header["sense"]), nodes_of(header))


def nodes_of(header: Mapping[str, Any]) -> int:
    """How many nodes an artifact's tree has; raises ValueError for what can't be."""
    nodes = int(header["sizes"]["nodes"])
    if not 1 <= nodes <= 2 * growing.MOST:
        raise ValueError(f"a tree of {nodes} nodes")
    return nodes
