"""Reads a graph as a chain of layers: from its only input to an output, one line of Linear, activations, affine steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.teachers.graph import Graph, Node, Ref, refs, uses
from distillrl.teachers.operators import ACTIVATIONS

SAME = frozenset({"identity", "contiguous", "detach", "detach_", "clone", "alias", "dropout", "feature_dropout", "view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "float"})  # fmt: skip


class Affine(nn.Module):
    """x · scale + shift, each [F]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., F]"""
        return torch.addcmul(self.shift, x, self.scale)


class Log(nn.Module):
    """The natural logarithm (Brax's standard deviation is a softplus)."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., F]"""
        return x.log()


@dataclass(frozen=True)
class Columns:
    """Keep columns first to last of the features."""

    first: int
    last: int


Element = Affine | Columns | nn.Module


def dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear with these numbers, frozen; without a bias it gets one of zeros."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias.reshape(-1)) if bias is not None else layer.bias.zero_()
    return layer.requires_grad_(False)


def chain(graph: Graph, value: str, shapes: Mapping[str, Any]) -> list[Element] | None:
    """The layers from the only input to ``value``, in order; None where the way isn't a single line of layers."""
    producer = {name: node for node in graph.nodes for name in node.outputs}
    (start,) = graph.inputs
    backwards: list[Element] = []
    while value != start:
        node = producer.get(value)
        if node is None or len(backwards) > 1000:
            return None
        step = _element(node, value, graph, shapes, producer)
        if step is None:
            return None
        value, element = step
        if value not in shapes or shapes[value][0][:1] != (graph.trial,):
            return None
        if element is not None:
            backwards.append(element)
    return _joined(list(reversed(backwards)))


def _element(node: Node, value: str, graph: Graph, shapes: Mapping[str, Any], producer: Mapping[str, Node]) -> tuple[str, Element | None] | None:
    moving = [name for name in dict.fromkeys(uses(node)) if name not in graph.constants and not name.startswith("·")]
    if node.op == "mul" and len(moving) == 2:
        return _silu(node, moving, producer)
    if len(moving) != 1:
        return None
    (x,) = moving
    width = math.prod(shapes[x][0][1:]) if x in shapes else -1
    if node.op in SAME:
        return (x, None) if math.prod(shapes[value][0]) == math.prod(shapes[x][0]) else None
    for make in (_linear, _arithmetic, _normalisation, _columns, _activation):
        element = make(node, x, value, width, graph)
        if element is not None:
            return x, element
    if node.op in {"to", "_to_copy", "type_as"} and shapes[value][1] == shapes[x][1]:
        return x, None
    return None


def _constant(argument: Any, graph: Graph) -> Tensor | None:
    if isinstance(argument, Ref):
        return graph.constants.get(argument.name)
    return torch.tensor(float(argument)) if isinstance(argument, (int, float)) and not isinstance(argument, bool) else None


def _silu(node: Node, moving: list[str], producer: Mapping[str, Node]) -> tuple[str, Element] | None:
    for x, gate in (moving, moving[::-1]):
        made = producer.get(gate)
        if made is not None and made.op == "sigmoid" and refs(made.args) == [x]:
            return x, nn.SiLU()
    return None


def _linear(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    weight = bias = None
    args = node.args
    if node.op == "linear" and args[0] == Ref(x):
        weight = _constant(args[1], graph)
        bias = _constant(args[2], graph) if len(args) > 2 and args[2] is not None else None
    elif node.op in {"matmul", "mm"} and args[0] == Ref(x):
        weight = _constant(args[1], graph)
        weight = weight.T if weight is not None and weight.dim() == 2 else None
    elif node.op == "addmm" and len(args) == 3 and not node.kwargs and args[1] == Ref(x):
        bias, weight = _constant(args[0], graph), _constant(args[2], graph)
        weight = weight.T if weight is not None and weight.dim() == 2 else None
    if weight is None or weight.dim() != 2 or weight.shape[1] != width or (bias is not None and bias.numel() not in {weight.shape[0]}):
        return None
    return dense(weight.detach(), bias.detach() if bias is not None else None)


def _arithmetic(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    if node.op in {"add", "sub", "mul", "div", "rsub"} and len(node.args) == 2 and not node.kwargs:
        left, right = node.args
        first = left == Ref(x)
        other = _constant(right if first else left, graph)
        if other is None or not other.is_floating_point() or other.numel() not in {1, width}:
            return None
        other = other.detach().double().reshape(-1)
        one, zero = torch.ones(width).double(), torch.zeros(width).double()
        if node.op == "add":
            return _affine(one, zero + other)
        if node.op == "sub" or (node.op == "rsub" and first):
            forward = (node.op == "sub") == first
            return _affine(one, zero - other) if forward else _affine(-one, zero + other)
        if node.op == "mul":
            return _affine(one * other, zero)
        return _affine(one / other, zero) if node.op == "div" and first else None
    if node.op in {"clamp", "clip"} and not node.kwargs:
        low, high = (_constant(a, graph) if a is not None else None for a in (*node.args[1:], None, None)[:2])
        if low is not None and high is not None and low.numel() == high.numel() == 1:
            return nn.Hardtanh(float(low), float(high)) if float(low) < float(high) else None
    return None


def _affine(scale: Tensor, shift: Tensor) -> Affine:
    made = Affine(scale, shift)
    made.scale, made.shift = scale, shift  # in double precision until they are joined
    return made


def _normalisation(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    if node.op == "layer_norm" and list(node.args[1]) == [width] and len(node.args) > 3:
        weight, bias = (_constant(a, graph) if a is not None else None for a in node.args[2:4])
        layer = nn.LayerNorm(width, eps=float(node.args[4]) if len(node.args) > 4 else 1e-5)
        with torch.no_grad():
            layer.weight.copy_(weight) if weight is not None else layer.weight.fill_(1)
            layer.bias.copy_(bias) if bias is not None else layer.bias.fill_(0)
        return layer.requires_grad_(False)
    if node.op == "batch_norm":
        weight, bias, mean, var = (_constant(a, graph) if a is not None else None for a in node.args[1:5])
        eps = float(node.args[7]) if len(node.args) > 7 else 1e-5
        if mean is None or var is None or mean.numel() != width:
            return None
        scale = (1 if weight is None else weight.detach().double()) / (var.detach().double() + eps).sqrt()
        return _affine(scale, (0 if bias is None else bias.detach().double()) - mean.detach().double() * scale)
    return None


def _columns(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    args = [*node.args[1:], *[None] * 4]
    if node.op == "slice" and args[0] in {1, -1} and args[3] in {None, 1} and not node.kwargs:
        first, last, _ = slice(args[1], args[2]).indices(width)
        return Columns(first, last)
    if node.op in {"split", "split_with_sizes"} and args[1] in {1, -1} and not node.kwargs:
        sizes = list(args[0]) if isinstance(args[0], tuple) else [args[0]] * len(node.outputs)
        first = sum(sizes[: node.outputs.index(value)])
        return Columns(first, first + sizes[node.outputs.index(value)])
    if node.op == "chunk" and args[1] in {1, -1} and not node.kwargs:
        size = -(-width // args[0])
        first = size * node.outputs.index(value)
        return Columns(first, min(width, first + size))
    return None


def _activation(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    rest = list(node.args[1:])
    if node.op == "log" and not rest:
        return Log()
    if node.op not in ACTIVATIONS or any(isinstance(a, (Ref, tuple)) for a in rest):
        return None
    if node.op in {"softmax", "log_softmax"}:
        return ACTIVATIONS[node.op](-1) if rest and rest[0] in {1, -1} else None
    if node.op == "gelu":
        return nn.GELU(str(node.kwargs.get("approximate", rest[0] if rest else "none")))
    if node.op == "elu" and all(a == 1 for a in rest[1:]):
        return nn.ELU(float(rest[0]) if rest else 1.0)
    if node.op in {"leaky_relu", "hardtanh", "celu", "softplus"} and not node.kwargs:
        return ACTIVATIONS[node.op](*map(float, rest))
    return ACTIVATIONS[node.op]() if not rest and not node.kwargs else None


def _joined(elements: list[Any]) -> list[Element] | None:
    """Affine steps joined with each other and into the layer before; columns taken out of that layer."""
    made: list[Any] = []
    for element in elements:
        before = made[-1] if made else None
        if isinstance(element, Affine) and isinstance(before, Affine):
            made[-1] = _affine(before.scale * element.scale, before.shift * element.scale + element.shift)
        elif isinstance(element, Affine) and isinstance(before, nn.Linear):
            weight, bias = before.weight.double() * element.scale[:, None], before.bias.double() * element.scale + element.shift
            made[-1] = dense(weight.float(), bias.float())
        elif isinstance(element, nn.Linear) and isinstance(before, Affine) and len(made) > 1:
            weight, bias = element.weight.double(), element.bias.double() + element.weight.double() @ before.shift
            made[-1] = dense((weight * before.scale).float(), bias.float())
        elif isinstance(element, Columns):
            if isinstance(before, nn.Linear):
                made[-1] = dense(before.weight[element.first : element.last], before.bias[element.first : element.last])
            elif isinstance(before, nn.Module) and len(made) > 1 and isinstance(made[-2], nn.Linear) and type(before) in {nn.Tanh, nn.Hardtanh, nn.ReLU, nn.Sigmoid}:
                made[-2] = dense(made[-2].weight[element.first : element.last], made[-2].bias[element.first : element.last])
            else:
                return None
        else:
            made.append(element)
    return [Affine(e.scale, e.shift) if isinstance(e, Affine) else e for e in made]
