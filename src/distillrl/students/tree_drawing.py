"""A tree as a drawing: from left to right, one row a leaf, so that a deep one can be read by scrolling down a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from distillrl.students.tree import Tree

ROW, LINE, GAP, LETTER, TOP = 24.0, 15.0, 34.0, 6.6, 30.0
"""Pixels: of a row, of a line more in it, between columns, of a letter at 12 pixels, above the first row."""
TEST = "#eef"
COLOURS = ("#d5ead0", "#fbe0c0", "#d3e3f5", "#f6d3d3", "#e5d8f0", "#f7f2b8", "#cfeceb", "#eadfd3")
"""Of leaves, one for each thing that they say; where there are more things than colours, all have the first."""


def drawing(tree: Tree, names: Sequence[str], leaf: Callable[[int], str]) -> str:
    """An SVG page: a test, to its right what comes of yes (above) and of no (below); ``leaf``: what is said at a leaf, in lines."""
    depth, order = _walk(tree)
    said = {node: (leaf(node) if node in order else f"{names[int(tree.feature[node])]} ≤ {float(tree.threshold[node]):.3g}").split("\n") for node in depth}
    height = ROW + LINE * (max(len(said[node]) for node in order) - 1)
    y = {node: TOP + height * (i + 0.5) for i, node in enumerate(order)}
    for node in reversed(list(depth)):  # children come after their parent
        if node not in y:
            yes, no = tree.branches[node].tolist()
            y[node] = (y[yes] + y[no]) / 2
    wide = {d: 14 + LETTER * max(len(line) for node in depth if depth[node] == d for line in said[node]) for d in range(tree.deepest + 1)}
    x = {d: 10 + sum(wide[k] + GAP for k in range(d)) for d in wide}
    things = list(dict.fromkeys("\n".join(said[node]) for node in order))
    colour = {thing: COLOURS[i] if len(things) <= len(COLOURS) else COLOURS[0] for i, thing in enumerate(things)}
    drawn = []
    for node, d in depth.items():
        if node not in order:
            drawn += _ways(x[d] + wide[d], y[node], [(x[d + 1], y[child]) for child in tree.branches[node].tolist()])
        drawn.append(_box(x[d], y[node], wide[d], said[node], colour["\n".join(said[node])] if node in order else TEST))
    head = f'<text x="10" y="18" fill="#555">{len(order)} {"leaves" if len(order) > 1 else "leaf"}; of a test that holds the upper way is taken, else the lower one</text>'
    return page(max(max(x.values()) + max(wide.values()) + 10, 430), TOP + height * len(order) + 10, head + "".join(drawn))


def _walk(tree: Tree) -> tuple[dict[int, int], dict[int, int]]:
    """{node: its depth}, a parent before its children, and {leaf: its row}."""
    depth: dict[int, int] = {}
    rows: dict[int, int] = {}
    stack = [(0, 0)]
    while stack:
        node, d = stack.pop()
        depth[node] = d
        yes, no = tree.branches[node].tolist()
        if yes == node:
            rows[node] = len(rows)
        else:
            stack += [(no, d + 1), (yes, d + 1)]
    return depth, rows


def _ways(x: float, y: float, ends: Sequence[tuple[float, float]]) -> list[str]:
    """Lines with corners from a test to what comes of it."""
    middle = x + GAP / 2
    return [f'<path d="M{x:.6g} {y:.6g}H{middle:.6g}V{end:.6g}H{right:.6g}" fill="none" stroke="#999"/>' for right, end in ends]


def _box(x: float, y: float, width: float, said: Sequence[str], colour: str) -> str:
    high = ROW - 4 + LINE * (len(said) - 1)
    rect = f'<rect x="{x:.6g}" y="{y - high / 2:.6g}" width="{width:.6g}" height="{high:g}" rx="4" fill="{colour}" stroke="#999"/>'
    first = y - LINE * (len(said) - 1) / 2 + 4
    return rect + "".join(f'<text x="{x + 7:.6g}" y="{first + LINE * i:.6g}">{escape(line)}</text>' for i, line in enumerate(said))


def page(width: float, height: float, inside: str) -> str:
    """An SVG document, white behind."""
    style = 'font-family="sans-serif" font-size="12"'
    paper = f'<rect width="{width:.6g}" height="{height:.6g}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.6g} {height:.6g}" width="{width:.6g}" height="{height:.6g}" {style}>{paper}{inside}</svg>'
