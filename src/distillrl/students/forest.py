"""Small ensembles of trees: ``forest:trees=5,leaves=32``. Each is grown on a sample of its own (Breiman 1996); their values are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured
from distillrl.records import Spec
from distillrl.senses import Sense
from distillrl.students import growing
from distillrl.students.fitted import Fitted, seen
from distillrl.students.growing import Counts, Examples
from distillrl.students.tree import Tree

WHOLE = {"trees": (2, 256), "leaves": (2, growing.MOST), "depth": (1, growing.MOST), "grow": (2, growing.MOST)}


class Forest(nn.Module):
    """A model that is the mean of ``trees``: of their shares of a discrete action, or of their quantities."""

    def __init__(self, trees: list[Tree]) -> None:
        super().__init__()
        self.trees: Any = nn.ModuleList(trees)

    def fit(self, given: Examples, generator: torch.Generator) -> None:
        """See Model; the sample of each tree is as large as the whole, drawn with replacement."""
        for tree in self.trees:
            tree.fit(growing.drawn(given, generator, by_weight=False), generator)

    def settle(self) -> None:
        """Check each tree; raises Failed."""
        for tree in self.trees:
            tree.settle()

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., V]"""
        return torch.stack([tree(x) for tree in self.trees]).mean(0)

    @property
    def leaves(self) -> int:
        """Of all trees together."""
        return sum(tree.leaves for tree in self.trees)

    def deciding(self) -> int:
        """Two numbers for a test, and all of a leaf's, as they are averaged."""
        return sum(2 * (len(t.feature) - t.leaves) + t.leaves * t.outputs for t in self.trees)

    def sizes(self) -> dict[str, Any]:
        """How many nodes each tree has."""
        return {"nodes": [len(tree.feature) for tree in self.trees]}

    def size(self) -> int:
        """Its leaves."""
        return self.leaves

    def figures(self) -> dict[str, float]:
        """How many leaves."""
        return {"leaves": float(self.leaves)}


def parse_forest(text: str) -> tuple[dict[str, int], Counts]:
    """``trees=5,leaves=32``; raises Misconfigured."""
    return growing.parse("forest", text, WHOLE)


def _forest(text: str, spec: Spec, sense: Sense, nodes: list[int] | None = None) -> Fitted:
    numbers, counts = parse_forest(text)
    if spec.action.kind not in {"discrete", "box"}:
        raise Misconfigured(f"student forest:{text}: trees are averaged for discrete actions and for quantities, not for {spec.action}; a single tree: takes it")
    count = numbers.get("trees", 5)
    sizes = nodes or [1] * count
    if len(sizes) != count:
        raise ValueError(f"{len(sizes)} trees in a forest of {count}")
    trees = [Tree(spec.action, seen(sense), numbers.get("leaves", 32), numbers.get("depth", 0), n, numbers.get("grow", 0)) for n in sizes]
    return Fitted(spec, sense, Forest(trees), counts, f"forest:{text}")


def make_forest(text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Fitted:
    """Trees of one leaf, to be grown."""
    return _forest(text, spec, sense)


def build_forest(text: str, spec: Spec, header: Mapping[str, Any]) -> Fitted:
    """The forest of an artifact's header, its tensors not yet loaded."""
    nodes = [int(n) for n in header["sizes"]["nodes"]]
    if not nodes or any(not 1 <= n <= 2 * growing.MOST for n in nodes):
        raise ValueError(f"trees of {nodes[:4]} nodes")
    return _forest(text, spec, Sense.from_json(spec.observations, header["sense"]), nodes)
