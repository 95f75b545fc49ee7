"""A small forest for a person; see telling.py."""

from __future__ import annotations

from torch import Tensor

from distillrl.students.fitted import Fitted, called
from distillrl.students.formulas import chosen, decided
from distillrl.students.tree import Tree
from distillrl.students.tree_drawing import drawing, page
from distillrl.students.tree_text import PYTHON, C, code, lines, passed, signature


def as_text(policy: Fitted) -> str:
    """Each tree with what its leaves give; the action is that of their mean."""
    names = called(policy)
    parts = [[f"tree {i + 1}", *("  " + line for line in lines(tree, names, lambda node, tree=tree: _value(tree, node)))] for i, tree in enumerate(policy.model.trees)]  # type: ignore[misc]  # a loop's own tree
    what = "the largest of the mean shares" if policy.spec.action.kind == "discrete" else "the mean"
    return "\n".join([*(line for part in parts for line in part), f"action: {what} of the {len(parts)} trees"])


def path(policy: Fitted, x: Tensor) -> list[str]:
    """Every tree's tests and value, and what follows."""
    said: list[str] = []
    for i, tree in enumerate(policy.model.trees):
        tests, node = passed(tree, called(policy), x)
        said += [f"tree {i + 1}: {', '.join([*tests, _value(tree, node)])}"]
    return [*said, decided(policy, x)]


def as_python(policy: Fitted) -> str:
    """``act(x)`` in plain Python, each tree a function."""
    said: list[str] = []
    for i, tree in enumerate(policy.model.trees):
        said += [f"def tree_{i + 1}(x):", *code(tree, PYTHON, lambda node, tree=tree: [f"return {tree.value[node].tolist()!r}"]), ""]  # type: ignore[misc]  # a loop's own tree
    count = len(policy.model.trees)
    calls = ", ".join(f"tree_{i + 1}(x)" for i in range(count))
    body = [f"values = [sum(part) / {count} for part in zip({calls})]", *chosen(policy.spec.action, [f"values[{i}]" for i in range(_outputs(policy))], True)]
    return "\n".join([*said, *signature(policy, PYTHON), *("    " + line for line in body)]) + "\n"


def as_c(policy: Fitted) -> str:
    """``act`` in C, each tree a function that adds its values."""
    said: list[str] = []
    for i, tree in enumerate(policy.model.trees):
        adding = lambda node, tree=tree: [*[f"values[{k}] += {v!r}f;" for k, v in enumerate(tree.value[node].tolist()) if v], "return;"]  # noqa: E731  # used once, of this tree
        said += [f"static void tree_{i + 1}(const float *x, float *values) {{", *code(tree, C, adding), "}"]
    outputs, count = _outputs(policy), len(policy.model.trees)
    body = [f"float values[{outputs}] = {{0}};", *[f"tree_{i + 1}(x, values);" for i in range(count)]]
    body += chosen(policy.spec.action, [f"values[{k}] / {count}" for k in range(outputs)], False)
    return "\n".join([*said, *signature(policy, C), *("    " + line for line in body), "}"]) + "\n"


def as_svg(policy: Fitted) -> str:
    """The trees, one under another."""
    top, width, inside = 0.0, 0.0, []
    for tree in policy.model.trees:
        drawn = drawing(tree, called(policy), lambda node, tree=tree: _value(tree, node))  # type: ignore[misc]  # a loop's own tree
        size = [float(n) for n in drawn.partition('viewBox="0 0 ')[2].partition('"')[0].split()]
        inside.append(f'<g transform="translate(0 {top:g})">{drawn.partition(">")[2].removesuffix("</svg>")}</g>')
        top, width = top + size[1], max(width, size[0])
    return page(width, top, "".join(inside))


def _outputs(policy: Fitted) -> int:
    return int(policy.model.trees[0].outputs)


def _value(tree: Tree, node: int) -> str:
    value = tree.value[node].tolist()
    if tree.space.kind != "discrete":
        return f"[{', '.join(f'{v:.3g}' for v in value)}]"
    return ", ".join(f"{100 * v:.0f} % {i + tree.space.start}" for i, v in enumerate(value) if v >= 0.005)
