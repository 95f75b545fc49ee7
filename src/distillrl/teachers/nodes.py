"""What a graph is made of: one operator applied, and the values that it reads by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ref:
    """The value of this name."""

    name: str


BATCH = Ref("·batch")
"""How many states are asked about at once, as a number."""


@dataclass(frozen=True)
class Node:
    """One operator applied; arguments are numbers, Refs, or tuples of them."""

    op: str
    args: tuple[Any, ...]
    outputs: tuple[str, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def refs(value: Any) -> list[str]:
    """The names that an argument refers to, also inside tuples."""
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, (tuple, list)):
        return [name for item in value for name in refs(item)]
    return []


def uses(node: Node) -> list[str]:
    """The names that a node reads."""
    return refs(node.args) + refs(tuple(node.kwargs.values()))
