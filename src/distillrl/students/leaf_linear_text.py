"""A tree with linear models at its leaves, for a person; see telling.py."""

from __future__ import annotations

from torch import Tensor

from distillrl.students.fitted import Fitted, called
from distillrl.students.formulas import chosen, decided, equations, expression, inputs
from distillrl.students.tree_drawing import drawing
from distillrl.students.tree_text import PYTHON, C, function, is_leaf, lines, passed


def as_text(policy: Fitted) -> str:
    """Tests, and at each leaf its formulas."""
    head = "the largest of\n" if policy.spec.action.kind == "discrete" else ""
    return "\n".join(lines(policy.model.tree, called(policy), lambda node: head + "\n".join(_equations(policy, node))))


def path(policy: Fitted, x: Tensor) -> list[str]:
    """The tests passed, and the formulas with their results."""
    tests, node = passed(policy.model.tree, called(policy), x)
    results = policy.model.weight[node] @ x + policy.model.bias[node]
    return [*tests, *[f"{line} = {float(r):.6g}" for line, r in zip(_equations(policy, node), results, strict=True)], decided(policy, x)]


def as_python(policy: Fitted) -> str:
    """``act(x)`` in plain Python."""
    return function(policy, PYTHON, lambda node: chosen(policy.spec.action, _expressions(policy, node, ""), True))


def as_c(policy: Fitted) -> str:
    """``act`` in C."""
    return function(policy, C, lambda node: chosen(policy.spec.action, _expressions(policy, node, "f"), False))


def as_svg(policy: Fitted) -> str:
    """The tree, its leaves numbered from the left; their formulas are in the text."""
    tree = policy.model.tree
    order = [node for node in _from_the_left(policy) if is_leaf(tree, node)]
    return drawing(tree, called(policy), lambda node: f"formulas {order.index(node) + 1}")


def _from_the_left(policy: Fitted) -> list[int]:
    stack, found = [0], []
    while stack:
        node = stack.pop()
        found.append(node)
        if not is_leaf(policy.model.tree, node):
            yes, no = policy.model.tree.branches[node].tolist()
            stack += [no, yes]
    return found


def _equations(policy: Fitted, node: int) -> list[str]:
    return equations(policy.spec.action, policy.model.weight[node], policy.model.bias[node], called(policy))


def _expressions(policy: Fitted, node: int, suffix: str) -> list[str]:
    read = inputs(policy.model.tree.width)
    return [expression(w, b, read, suffix) for w, b in zip(policy.model.weight[node], policy.model.bias[node], strict=True)]
