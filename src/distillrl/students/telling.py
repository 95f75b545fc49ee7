"""A fitted policy for a person: as text, as Python and C, as a drawing, and why it did what it did.

To tell of another model, add a file with the five functions and a row in TELLERS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from distillrl.students import forest_text, leaf_linear_text, polynomial_text, tree_text
from distillrl.students.fitted import Fitted
from distillrl.students.forest import Forest
from distillrl.students.leaf_linear import LeafLinear
from distillrl.students.polynomial import Polynomial
from distillrl.students.tree import Tree

READABLE = 128
"""Leaves, or weights, up to which one is shown whole."""


class Teller(Protocol):
    """A module that tells of one kind of model."""

    def as_text(self, policy: Fitted) -> str:
        """What it does, in lines."""

    def path(self, policy: Fitted, x: Tensor) -> list[str]:
        """Why it does what it does of the numbers x [F], as the sense gives them."""

    def as_python(self, policy: Fitted) -> str:
        """A function ``act(x)`` in plain Python."""

    def as_c(self, policy: Fitted) -> str:
        """A function ``act(x)``, or ``act(x, action)`` where an action has several numbers, in C."""

    def as_svg(self, policy: Fitted) -> str:
        """A drawing."""


TELLERS: Mapping[type, Any] = {Tree: tree_text, Forest: forest_text, LeafLinear: leaf_linear_text, Polynomial: polynomial_text}


def teller(policy: Any) -> Teller | None:
    """Who tells of a policy; None for what no one can read, such as a network."""
    return TELLERS.get(type(policy.model)) if isinstance(policy, Fitted) else None


def readable(policy: Any) -> bool:
    """Whether a policy can be told of, and is small enough to be read whole."""
    return teller(policy) is not None and policy.model.size() <= READABLE


def why(policy: Fitted, obs: Mapping[str, Tensor]) -> list[str]:
    """Why it does what it does of one observation {group: [*shape]}."""
    x, _ = policy.see({k: v.unsqueeze(0) for k, v in obs.items()}, policy.init(1), None)
    found = teller(policy)
    assert found is not None
    return found.path(policy, x[0])
