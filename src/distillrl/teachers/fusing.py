"""Activations that exporters write as several operators, as the one that they are: SiLU, and GELU by its error function."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distillrl.teachers.nodes import Node, Ref, uses


def fused(nodes: tuple[Node, ...], wanted: frozenset[str], constants: Mapping[str, Tensor]) -> list[Node]:
    """The nodes, x · sigmoid(x) and ½x(1 + erf(x/√2)) as one each, where nothing else reads the steps between."""
    readers = Counter(name for node in nodes for name in uses(node))
    makers = {n.outputs[0]: n for n in nodes if len(n.outputs) == 1 and not n.kwargs and readers[n.outputs[0]] == 1 and n.outputs[0] not in wanted}
    made, gone = [], set[str]()
    for node in nodes:
        found = _silu(node, makers) or _gelu(node, makers, constants)
        if found is not None:
            op, x, between = found
            node = dataclasses.replace(node, op=op, args=(x,))
            gone.update(between)
        made.append(node)
    return [node for node in made if node.outputs[0] not in gone]


def _silu(node: Node, makers: Mapping[str, Node]) -> tuple[str, Ref, list[str]] | None:
    for x, gate in _pairs(node, "mul"):
        made = makers.get(gate.name) if isinstance(gate, Ref) else None
        if made is not None and made.op == "sigmoid" and made.args == (x,) and isinstance(x, Ref):
            return "silu", x, [gate.name]
    return None


def _gelu(node: Node, makers: Mapping[str, Node], constants: Mapping[str, Tensor]) -> tuple[str, Ref, list[str]] | None:
    """(x · (1 + erf(x / √2))) · ½, as torch and TensorFlow write it."""
    for product, half in _pairs(node, "mul"):
        made = makers.get(product.name) if isinstance(product, Ref) else None
        if made is None or not _is(half, 0.5, constants):
            continue
        for x, one_more in _pairs(made, "mul"):
            plus = makers.get(one_more.name) if isinstance(one_more, Ref) else None
            error = next((makers.get(e.name) for e, one in _pairs(plus, "add") if isinstance(e, Ref) and _is(one, 1.0, constants)), None) if plus is not None else None
            scaled = makers.get(error.args[0].name) if error is not None and error.op == "erf" and isinstance(error.args[0], Ref) else None
            if plus is None or error is None or scaled is None or not isinstance(x, Ref) or len(scaled.args) != 2 or scaled.args[0] != x:
                continue
            if (scaled.op == "div" and _is(scaled.args[1], math.sqrt(2), constants)) or (scaled.op == "mul" and _is(scaled.args[1], math.sqrt(0.5), constants)):
                return "gelu", x, [made.outputs[0], plus.outputs[0], error.outputs[0], scaled.outputs[0]]
    return None


def _pairs(node: Node, op: str) -> tuple[tuple[Any, Any], ...]:
    """Both orders of the operands of an operator of two."""
    return (node.args, node.args[::-1]) if node.op == op and len(node.args) == 2 and not node.kwargs else ()


def _is(value: Any, number: float, constants: Mapping[str, Tensor]) -> bool:
    known = constants.get(value.name) if isinstance(value, Ref) else value
    if isinstance(known, Tensor):
        known = float(known) if known.numel() == 1 else None
    return isinstance(known, int | float) and abs(known - number) < 1e-6
