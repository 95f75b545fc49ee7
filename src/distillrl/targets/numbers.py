"""Numbers on their way through a plan: a value of the plan, and where in it each number of a tensor lies.

What only moves numbers (a view, a slice, a transpose, a stack) is done to the places, with torch's own operator, and is
no step of the plan until a step needs its numbers in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Misconfigured
from distillrl.targets import arithmetic
from distillrl.targets import plan as steps
from distillrl.targets.plan import Floats
from distillrl.targets.sensing import CODE, Builder

MOST = 1 << 18
"""Numbers that one step made of products may have: beyond, the code would be slower than a library's."""


@dataclass(frozen=True)
class Value:
    """A tensor of one state: ``places`` [1, ...] says for each number which entry of the plan's value ``name`` it is."""

    name: str
    places: Tensor

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self.places.shape


def whole(b: Builder, name: str, shape: Sequence[int]) -> Value:
    """All of a plan's value, in order."""
    return Value(name, torch.arange(b.size(name)).reshape(list(shape)))


def refuse(what: str) -> Misconfigured:
    """The error for what no code target carries."""
    return Misconfigured(f"{what} can't be exported as code ({CODE}); the target torch carries it")


def floats(tensor: Tensor) -> Floats:
    """A constant's numbers; raises Misconfigured where they aren't finite."""
    array: Floats = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    if not np.isfinite(array).all():
        raise Misconfigured("this policy can't be exported: its weights hold NaN or infinity")
    return array


def in_order(b: Builder, x: Value) -> str:
    """The plan's value that holds these numbers, side by side."""
    flat = x.places.reshape(-1)
    if flat.numel() == b.size(x.name) and bool((flat == torch.arange(flat.numel())).all()):
        return x.name
    if flat.numel() > MOST:
        raise refuse(f"a step of {flat.numel():,} numbers")
    return b.add(steps.Take(b.name(), x.name, tuple(flat.tolist())), (flat.numel(),))


def each(b: Builder, x: Value, step: Any) -> Value:
    """An elementwise ``step(b, name)``: on all of the value it lies in, where that is no more than what is asked for."""
    if x.places.numel() >= b.size(x.name):
        return Value(step(b, x.name), x.places)
    return whole(b, step(b, in_order(b, x)), x.shape)


def constant(b: Builder, tensor: Tensor) -> Value:
    """Numbers that don't depend on the state, where a step must read them: 0 times some input, plus these."""
    first = next(iter(b.shapes))
    zero = b.add(steps.Take(b.name(), first, (0,) * max(1, tensor.numel())), (max(1, tensor.numel()),))
    return whole(b, arithmetic.affine(b, zero, 0.0, floats(tensor)), tensor.shape)


def affine(b: Builder, x: Value, scale: Any, shift: Any) -> Value:
    """X · scale + shift, broadcast; both are numbers or constant tensors."""
    one, other = (torch.as_tensor(v, dtype=torch.float32) for v in (scale, shift))
    if one.numel() == other.numel() == 1 and max(one.dim(), other.dim()) <= len(x.shape):
        return each(b, x, lambda b, name: arithmetic.affine(b, name, floats(one), floats(other)))
    shape = torch.broadcast_shapes(x.shape, one.shape, other.shape)
    one, other = (v.reshape(1) if v.numel() == 1 else v.expand(shape) for v in (one, other))
    name = in_order(b, Value(x.name, x.places.expand(shape)))
    return whole(b, arithmetic.affine(b, name, floats(one), floats(other)), shape)


def clip(b: Builder, x: Value, low: float | None, high: float | None) -> Value:
    """Between two numbers."""
    ends = (-np.inf if low is None else float(low), np.inf if high is None else float(high))
    return each(b, x, lambda b, name: arithmetic.affine(b, name, 1.0, 0.0, *ends))


def combine(b: Builder, kind: str, x: Value, y: Value) -> Value:
    """X + y or x · y, broadcast."""
    both = torch.broadcast_tensors(x.places, y.places)
    one, other = (in_order(b, Value(v.name, p)) for v, p in zip((x, y), both, strict=True))
    made = arithmetic.add(b, one, other) if kind == "add" else arithmetic.multiply(b, one, other)
    return whole(b, made, both[0].shape)


def dense(b: Builder, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """X [..., n] times weight [m, n]ᵀ: a dense layer, or for several rows a convolution of one pixel."""
    m, n = weight.shape
    offset = np.zeros(m, np.float32) if bias is None else floats(bias.expand(m))
    lead, rows = x.shape[:-1], math.prod(x.shape[:-1])
    if rows == 1:
        name = in_order(b, x)
        return whole(b, b.add(steps.Dense(b.name(), name, floats(weight), offset), (m,)), (*lead, m))
    turned = in_order(b, Value(x.name, x.places.reshape(rows, n).T))
    image = _shaped(b, turned, (n, 1, rows))
    made = b.add(steps.Conv(b.name(), image, floats(weight).reshape(m, n, 1, 1), offset, (1, 1)), (m, 1, rows))
    return Value(made, torch.arange(m * rows).reshape(m, rows).T.reshape(*lead, m))


def _shaped(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    """A value with this shape, as printers ask for an image's: a copy where it has one of its own already, or is an input."""
    if b.shapes[name] == shape and any(op.out == name for op in b.ops):
        return name
    if len(b.shapes[name]) == 1 and any(op.out == name for op in b.ops):
        b.shapes[name] = shape
        return name
    return b.add(steps.Concat(b.name(), (name,)), shape)


def total(b: Builder, x: Value, dims: Sequence[int], keep: bool, mean: bool) -> Value:
    """The sum or the mean over some dimensions."""
    return _reduced(b, x, dims, keep, lambda b, name, rows, n: b.add(
        steps.Resample(b.name(), name, rows, 1, np.arange(n, dtype=np.int32).reshape(n, 1), np.ones((n, 1), np.float32), float(n) if mean else 1.0, False), (rows,)
    ))  # fmt: skip


def largest(b: Builder, x: Value, dims: Sequence[int], keep: bool) -> Value:
    """The maximum over some dimensions."""

    def step(b: Builder, name: str, rows: int, n: int) -> str:
        image = _shaped(b, name, (1, rows, n))  # a step of its own, which is named before this one
        return b.add(steps.MaxPool(b.name(), image, (1, n), (1, n), (0, 0)), (1, rows, 1))

    return _reduced(b, x, dims, keep, step)


def _reduced(b: Builder, x: Value, dims: Sequence[int], keep: bool, step: Any) -> Value:
    rank = len(x.shape)
    away = sorted({d % rank for d in dims})
    left = [d for d in range(rank) if d not in away]
    n = math.prod(x.shape[d] for d in away)
    rows = math.prod(x.shape[d] for d in left)
    name = in_order(b, Value(x.name, x.places.permute(*left, *away)))
    kept = [1 if d in away else x.shape[d] for d in range(rank)]
    return whole(b, step(b, name, rows, n), kept if keep else [x.shape[d] for d in left])


def product(b: Builder, x: Value, y: Value) -> Value:
    """X [..., r, k] times y [..., k, c]: products, then their sums."""
    one, other = torch.broadcast_tensors(x.places.unsqueeze(-2), y.places.transpose(-1, -2).unsqueeze(-3))
    if one.numel() > MOST:
        raise refuse(f"a product of two matrices that both depend on the state, of {one.numel():,} multiplications,")
    return total(b, combine(b, "multiply", Value(x.name, one), Value(y.name, other)), [-1], False, False)


def softmax(b: Builder, x: Value, dim: int, log: bool = False) -> Value:
    """e^(x − max) over its sum; its logarithm as x − max − log of the sum."""
    shifted = combine(b, "add", x, affine(b, largest(b, x, [dim], True), -1.0, 0.0))
    raised = each(b, shifted, lambda b, name: arithmetic.activate(b, name, "exp"))
    below = total(b, raised, [dim], True, False)
    if log:
        return combine(b, "add", shifted, affine(b, each(b, below, lambda b, name: arithmetic.activate(b, name, "log")), -1.0, 0.0))
    return combine(b, "multiply", raised, each(b, below, lambda b, name: arithmetic.activate(b, name, "reciprocal")))


def layer_norm(b: Builder, x: Value, size: int, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Value:
    """Over the last ``size`` numbers of each row."""
    scale, shift = (floats(torch.full((size,), fill) if v is None else v.reshape(-1)) for v, fill in ((weight, 1.0), (bias, 0.0)))
    rows = x.places.reshape(-1, size)
    made = []
    for row in rows:
        name = in_order(b, Value(x.name, row))
        made.append(b.add(steps.LayerNorm(b.name(), name, scale, shift, epsilon), (size,)))
    name = made[0] if len(made) == 1 else b.add(steps.Concat(b.name(), tuple(made)), (rows.numel(),))
    return whole(b, name, x.shape)


def convolution(b: Builder, x: Value, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], groups: int) -> Value:
    """Of an image [1, C, H, W], or [1, C, W] as one of a single row; padding of zeros."""
    spatial = weight.dim() - 2
    if spatial not in {1, 2} or x.places.dim() != spatial + 2:
        raise refuse(f"a convolution of {spatial} dimensions")
    one = spatial == 1
    kernel = floats(weight.unsqueeze(2) if one else weight)
    sy, sx = (1, stride[0]) if one else (stride[0], stride[-1])
    py, px = (0, padding[0]) if one else (padding[0], padding[-1])
    _, channels, *rest = x.shape
    height, width = (1, rest[0]) if one else rest
    image = _shaped(b, in_order(b, x), (channels, height, width))
    if py or px:
        height, width = height + 2 * py, width + 2 * px
        image = b.add(steps.Pad(b.name(), image, py, px), (channels, height, width))
    kernel = ungrouped(kernel, groups)
    rows, columns = ((size - k) // s + 1 for size, k, s in zip((height, width), kernel.shape[2:], (sy, sx), strict=True))
    offset = np.zeros(len(kernel), np.float32) if bias is None else floats(bias)
    made = b.add(steps.Conv(b.name(), image, kernel, offset, (sy, sx)), (len(kernel), rows, columns))
    return whole(b, made, (1, len(kernel), columns) if one else (1, len(kernel), rows, columns))


def ungrouped(weight: Floats, groups: int) -> Floats:
    """The weights of a grouped convolution, filled up with zeros."""
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    full = np.zeros((len(weight), inputs * groups, *weight.shape[2:]), np.float32)
    for g in range(groups):
        full[g * outputs : (g + 1) * outputs, g * inputs : (g + 1) * inputs] = weight[g * outputs : (g + 1) * outputs]
    return full


def pooled(b: Builder, x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Value:
    """The largest of each window of an image [1, C, H, W]."""
    if x.places.dim() != 4:
        raise refuse("a pooling of another kind")
    size, step, edge = ((int(v[0]), int(v[-1])) for v in (kernel, stride, padding))
    _, channels, *sides = x.shape
    image = _shaped(b, in_order(b, x), (channels, *sides))
    rows, columns = ((side + 2 * p - k) // s + 1 for side, k, s, p in zip(sides, size, step, edge, strict=True))
    return whole(b, b.add(steps.MaxPool(b.name(), image, size, step, edge), (channels, rows, columns)), (1, channels, rows, columns))
