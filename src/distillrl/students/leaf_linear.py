"""A tree with a linear model at each leaf: ``linear-tree:leaves=8`` (model trees, Quinlan 1992; Liu 2018, 1807.05887, for policies)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured
from distillrl.records import ActionSpace, Spec
from distillrl.senses import Sense
from distillrl.students import growing
from distillrl.students.fitted import Fitted, seen
from distillrl.students.growing import Counts, Examples
from distillrl.students.tree import WHOLE, Tree, nodes_of


class LeafLinear(nn.Module):
    """A model whose ``tree`` says which linear one holds: weight[leaf] [V, F] · x + bias[leaf] [V].

    The scores of a discrete action are those of a logistic regression, its quantities a ridge regression's.
    """

    def __init__(self, space: ActionSpace, tree: Tree) -> None:
        super().__init__()
        self.space, self.tree = space, tree
        nodes, outputs = len(tree.feature), tree.outputs
        self.register_buffer("weight", torch.zeros(nodes, outputs, tree.width))
        self.register_buffer("bias", torch.zeros(nodes, outputs))

    def fit(self, given: Examples, generator: torch.Generator) -> None:
        """See Model: first the tree, then a linear model on the states of each leaf."""
        self.tree.fit(given, generator)
        nodes, outputs = len(self.tree.feature), self.tree.outputs
        self.weight, self.bias = torch.zeros(nodes, outputs, self.tree.width), self.tree.value.clone()
        leaf = self.tree.leaf_of(given.x)
        for node in leaf.unique().tolist():
            rows = (leaf == node).nonzero().squeeze(-1)
            self.weight[node], self.bias[node] = growing.linear(growing.some(given, rows), self.space)

    def settle(self) -> None:
        """Check the tree; raises Failed."""
        self.tree.settle()

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., V]"""
        leaf = self.tree.leaf_of(x)
        return (self.weight[leaf] @ x.unsqueeze(-1)).squeeze(-1) + self.bias[leaf]

    @property
    def leaves(self) -> int:
        """How many linear models there are."""
        return self.tree.leaves

    def deciding(self) -> int:
        """Two numbers for a test, and a leaf's weights and bias."""
        return 2 * (len(self.tree.feature) - self.leaves) + self.leaves * self.tree.outputs * (self.tree.width + 1)

    def sizes(self) -> dict[str, int]:
        """The tree's."""
        return self.tree.sizes()

    def size(self) -> int:
        """Its weights."""
        return self.leaves * self.tree.outputs * self.tree.width

    def figures(self) -> dict[str, float]:
        """How many leaves."""
        return {"leaves": float(self.leaves)}


def parse_leaf_linear(text: str) -> tuple[dict[str, int], Counts]:
    """``leaves=8,depth=3``; raises Misconfigured."""
    return growing.parse("linear-tree", text, WHOLE)


def _leaf_linear(text: str, spec: Spec, sense: Sense, nodes: int = 1) -> Fitted:
    numbers, counts = parse_leaf_linear(text)
    if spec.action.kind not in {"discrete", "box"}:
        raise Misconfigured(f"student linear-tree:{text}: its leaves are for discrete actions and for quantities, not for {spec.action}; a plain tree: takes it")
    tree = Tree(spec.action, seen(sense), numbers.get("leaves", 8), numbers.get("depth", 0), nodes, numbers.get("grow", 0))
    return Fitted(spec, sense, LeafLinear(spec.action, tree), counts, f"linear-tree:{text}")


def make_leaf_linear(text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Fitted:
    """One leaf, to be grown."""
    return _leaf_linear(text, spec, sense)


def build_leaf_linear(text: str, spec: Spec, header: Mapping[str, Any]) -> Fitted:
    """The model tree of an artifact's header, its tensors not yet loaded."""
    return _leaf_linear(text, spec, Sense.from_json(spec.observations, header["sense"]), nodes_of(header))
