"""A tree for a person: as text, as Python and C, as a drawing, and why it did what it did."""

from __future__ import annotations

import itertools
import math
from html import escape

from torch import Tensor

from distillrl.students.tree import Tree


def names(tree: Tree) -> list[str]:
    """What each number that it reads is called: obs[2], where ``pick`` or ``drop`` came first by its original place."""
    found: list[str] = []
    groups = tree.sense.groups
    for name in sorted(groups) if len(groups) > 1 else list(groups):
        places = list(range(max(1, math.prod(groups[name].shape))))
        for step in tree.sense.steps:
            if step.kind == "choose" and step.group == name and len(step.indices) == len(places):
                places = list(step.indices)
        found += [f"{name}[{i}]" for i in places]
    return found


def _leaf(tree: Tree, node: int) -> bool:
    return int(tree.branches[node, 0]) == node


def _action(tree: Tree, node: int) -> str:
    if tree.spec.action.kind == "discrete":
        return str(int(tree.value[node].argmax()) + tree.spec.action.start)
    whole = tree.spec.action.kind != "box"
    values = [str(int(v)) if whole else f"{v:.9g}" for v in tree.value[node].tolist()]
    return f"[{', '.join(values)}]"


def _share(tree: Tree, node: int) -> str:
    if tree.spec.action.kind != "discrete":
        return ""
    return f" ({100 * float(tree.value[node].max()):.0f} % of the states here)"


def as_text(tree: Tree) -> str:
    """One line a test and a leaf, indented; the first branch under a test is «yes»."""
    called, lines = names(tree), []
    stack = [(0, 0, "")]
    while stack:
        node, depth, word = stack.pop()
        said = f"action {_action(tree, node)}{_share(tree, node)}" if _leaf(tree, node) else f"{called[int(tree.feature[node])]} <= {float(tree.threshold[node]):.6g}?"
        lines.append("  " * depth + word + said)
        if not _leaf(tree, node):
            yes, no = tree.branches[node].tolist()
            stack += [(no, depth + 1, "no: "), (yes, depth + 1, "yes: ")]
    return "\n".join(lines)


def path(tree: Tree, x: Tensor) -> list[str]:
    """Why: the tests that the numbers x [F] (as the sense gives them) passed, and the action at the end."""
    called, said, node = names(tree), [], 0
    while not _leaf(tree, node):
        feature, threshold = int(tree.feature[node]), float(tree.threshold[node])
        no = bool(x[feature] > tree.threshold[node])
        said.append(f"{called[feature]} = {float(x[feature]):.6g} {'>' if no else '<='} {threshold:.6g}")
        node = int(tree.branches[node, int(no)])
    return [*said, f"action {_action(tree, node)}{_share(tree, node)}"]


def as_python(tree: Tree) -> str:
    """A function ``act(x)`` of the numbers that the tree reads, float32, in plain Python."""
    lines = ["def act(x):", *(f"    # x[{i}] is {name}" for i, name in enumerate(names(tree)))]
    return "\n".join(lines + _code(tree, "if x[{}] <= {!r}:", "else:", "", "return {}")) + "\n"


def as_c(tree: Tree) -> str:
    """A function ``act`` of the numbers that the tree reads, in C; of quantities it gives the number of the leaf's row in ``values``."""
    head = [f"/* x[{i}] is {name} */" for i, name in enumerate(names(tree))]
    rows = []
    if tree.spec.action.kind != "discrete":
        leaves = [m for m in range(len(tree.feature)) if _leaf(tree, m)]
        body = ",\n".join("  {" + _action(tree, m)[1:-1] + "}" for m in leaves)
        rows = [f"static const float values[{len(leaves)}][{tree.outputs}] = {{", body, "};"]
    code = _code(tree, "if (x[{}] <= {!r}f) {{", "} else {", "}", "return {};", numbered=tree.spec.action.kind != "discrete")
    return "\n".join([*head, *rows, "static int act(const float *x) {", *code, "}"]) + "\n"


def _code(tree: Tree, test: str, otherwise: str, close: str, leaf: str, numbered: bool = False) -> list[str]:
    """Nested tests; the tree is walked with a stack, as it may be deep."""
    lines: list[str] = []
    number = itertools.count()
    order = {m: next(number) for m in range(len(tree.feature)) if _leaf(tree, m)}
    stack: list[tuple[int | str, int]] = [(0, 1)]
    while stack:
        node, depth = stack.pop()
        space = "    " * depth
        if isinstance(node, str):
            lines += [space + node] if node else []
        elif _leaf(tree, node):
            lines.append(space + leaf.format(order[node] if numbered else _action(tree, node)))
        else:
            yes, no = tree.branches[node].tolist()
            lines.append(space + test.format(int(tree.feature[node]), float(tree.threshold[node])))
            stack += [(close, depth), (no, depth + 1), (otherwise, depth), (yes, depth + 1)]
    return lines


def as_svg(tree: Tree) -> str:
    """A drawing: tests above, leaves below, «yes» to the left."""
    called, places, column = names(tree), {}, itertools.count()
    stack: list[tuple[int, int, bool]] = [(0, 0, False)]
    while stack:
        node, depth, done = stack.pop()
        if _leaf(tree, node):
            places[node] = (130.0 * next(column) + 65, 80.0 * depth + 30)
        elif done:
            yes, no = tree.branches[node].tolist()
            places[node] = ((places[yes][0] + places[no][0]) / 2, 80.0 * depth + 30)
        else:
            yes, no = tree.branches[node].tolist()
            stack += [(node, depth, True), (no, depth + 1, False), (yes, depth + 1, False)]
    width, height = 130 * tree.leaves, max(y for _, y in places.values()) + 30
    lines, boxes = [], []
    for node, (x, y) in sorted(places.items()):
        text = f"action {_action(tree, node)}" if _leaf(tree, node) else f"{called[int(tree.feature[node])]} ≤ {float(tree.threshold[node]):.3g}"
        colour = "#dff0d8" if _leaf(tree, node) else "#eef"
        boxes.append(f'<rect x="{x - 60:g}" y="{y - 14:g}" width="120" height="28" rx="5" fill="{colour}" stroke="#888"/><text x="{x:g}" y="{y + 4:g}">{escape(text)}</text>')
        if not _leaf(tree, node):
            for child in tree.branches[node].tolist():
                lines.append(f'<line x1="{x:g}" y1="{y + 14:g}" x2="{places[child][0]:g}" y2="{places[child][1] - 14:g}" stroke="#888"/>')
    style = 'font-family="sans-serif" font-size="12" text-anchor="middle"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}" {style}>{"".join(lines + boxes)}</svg>'
