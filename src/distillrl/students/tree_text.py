"""A tree for a person: as text, as Python and C, as a drawing (tree_drawing.py), and why it did what it did.

``lines``, ``passed`` and ``code`` take what is said at a leaf, so that other families of trees use them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from distillrl.records import ActionSpace
from distillrl.students.fitted import Fitted, called
from distillrl.students.tree import Tree
from distillrl.students.tree_drawing import drawing

Leaf = Callable[[int], str]
PYTHON = ("if x[{}] <= {!r}:", "else:", "")
C = ("if (x[{}] <= {!r}f) {{", "} else {", "}")


def as_text(policy: Fitted) -> str:
    """One line a test and a leaf, indented; the first branch under a test is «yes»."""
    return "\n".join(lines(policy.model, called(policy), lambda node: _said(policy.model, node)))


def path(policy: Fitted, x: Tensor) -> list[str]:
    """Why: the tests that the numbers x [F] (as the sense gives them) passed, and the action at the end."""
    tests, node = passed(policy.model, called(policy), x)
    return [*tests, _said(policy.model, node)]


def as_python(policy: Fitted) -> str:
    """A function ``act(x)`` of the numbers that the tree reads, float32, in plain Python."""
    return function(policy, PYTHON, lambda node: [f"return {action(policy.model.space, policy.model.value[node])}"])


def as_c(policy: Fitted) -> str:
    """A function ``act`` of the numbers that the tree reads, in C."""
    return function(policy, C, lambda node: c_action(policy.model.space, [f"{float(v)!r}f" for v in policy.model.value[node]] if policy.model.space.kind == "box" else None, policy.model.value[node]))


def as_svg(policy: Fitted) -> str:
    """A drawing, from left to right."""
    return drawing(policy.model, called(policy), lambda node: f"action {action(policy.model.space, policy.model.value[node], 3)}")


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def is_leaf(tree: Tree, node: int) -> bool:
    """Whether a node is one."""
    return int(tree.branches[node, 0]) == node


def action(space: ActionSpace, value: Tensor, digits: int = 9) -> str:
    """A leaf's action, as the environment counts it."""
    if space.kind == "discrete":
        return str(int(value.argmax()) + space.start)
    whole = space.kind != "box"
    return f"[{', '.join(str(int(v)) if whole else f'{v:.{digits}g}' for v in value.tolist())}]"


def c_action(space: ActionSpace, quantities: Sequence[str] | None, value: Tensor) -> list[str]:
    """C that gives an action: a number of a discrete one, else its numbers written to ``action``."""
    if space.kind == "discrete":
        return [f"return {int(value.argmax()) + space.start};"]
    given = quantities if quantities is not None else [str(int(v)) for v in value.tolist()]
    return [*[f"action[{i}] = {v};" for i, v in enumerate(given)], "return;"]


def _said(tree: Tree, node: int) -> str:
    share = f" ({100 * float(tree.value[node].max()):.0f} % of the states here)" if tree.space.kind == "discrete" else ""
    return f"action {action(tree.space, tree.value[node])}{share}"


def lines(tree: Tree, names: Sequence[str], leaf: Leaf) -> list[str]:
    """The tree's tests and leaves, indented."""
    said: list[str] = []
    stack = [(0, 0, "")]
    while stack:
        node, depth, word = stack.pop()
        text = leaf(node) if is_leaf(tree, node) else f"{names[int(tree.feature[node])]} <= {float(tree.threshold[node]):.6g}?"
        first, *more = text.split("\n")
        said += ["  " * depth + word + first, *["  " * depth + " " * len(word) + line for line in more]]
        if not is_leaf(tree, node):
            yes, no = tree.branches[node].tolist()
            stack += [(no, depth + 1, "no: "), (yes, depth + 1, "yes: ")]
    return said


def passed(tree: Tree, names: Sequence[str], x: Tensor) -> tuple[list[str], int]:
    """The tests on the way of x [F], as sentences, and the leaf at its end."""
    said, node = [], 0
    while not is_leaf(tree, node):
        feature, threshold = int(tree.feature[node]), float(tree.threshold[node])
        no = bool(x[feature] > tree.threshold[node])
        said.append(f"{names[feature]} = {float(x[feature]):.6g} {'>' if no else '<='} {threshold:.6g}")
        node = int(tree.branches[node, int(no)])
    return said, node


def signature(policy: Fitted, style: tuple[str, str, str], name: str = "act") -> list[str]:
    """The head of a function: what each number is called, and its first line."""
    read = [f"x[{i}] is {name}" for i, name in enumerate(called(policy))]
    if style is PYTHON:
        return [f"def {name}(x):", *(f"    # {line}" for line in read)]
    kind = "int" if policy.spec.action.kind == "discrete" else "void"
    out = "" if kind == "int" else f", {'float' if policy.spec.action.kind == 'box' else 'int'} *action"
    needs = [] if kind == "int" else ["#include <math.h>"]
    return [*needs, *(f"/* {line} */" for line in read), f"static {kind} {name}(const float *x{out}) {{"]


def function(policy: Fitted, style: tuple[str, str, str], leaf: Callable[[int], list[str]]) -> str:
    """A function of nested tests."""
    tree = getattr(policy.model, "tree", policy.model)
    end = [] if style is PYTHON else ["}"]
    return "\n".join([*signature(policy, style), *code(tree, style, leaf), *end]) + "\n"


def code(tree: Tree, style: tuple[str, str, str], leaf: Callable[[int], list[str]]) -> list[str]:
    """Nested tests; the tree is walked with a stack, as it may be deep."""
    test, otherwise, close = style
    said: list[str] = []
    stack: list[tuple[int | str, int]] = [(0, 1)]
    while stack:
        node, depth = stack.pop()
        space = "    " * depth
        if isinstance(node, str):
            said += [space + node] if node else []
        elif is_leaf(tree, node):
            said += [space + line for line in leaf(node)]
        else:
            yes, no = tree.branches[node].tolist()
            said.append(space + test.format(int(tree.feature[node]), float(tree.threshold[node])))
            stack += [(close, depth), (no, depth + 1), (otherwise, depth), (yes, depth + 1)]
    return said
