"""The operators of a converted network (teachers.operators) as steps of a plan, a row each; what isn't here goes to torch only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distillrl.targets import arithmetic, numbers, recurrent
from distillrl.targets import plan as steps
from distillrl.targets.numbers import Value, affine, clip, combine, constant, dense, each, in_order, refuse, whole
from distillrl.targets.sensing import Builder
from distillrl.teachers.graph import fill, result_of
from distillrl.teachers.nodes import Node
from distillrl.teachers.operators import OPERATORS

MOVES = frozenset({
    "cat", "concat", "stack", "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "unbind", "view", "reshape",
    "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "numpy_T", "expand", "expand_as", "view_as", "repeat", "tile", "index_select", "index",
})  # fmt: skip
"""Operators that only say where numbers lie: done to their places."""
SAME = frozenset({"contiguous", "detach", "detach_", "clone", "alias", "lift_fresh_copy", "identity", "cpu", "dropout", "feature_dropout", "float", "double", "half", "bool"})
FAR = 1e30
"""In place of infinity, which a masked entry has before its softmax."""


class Best:
    """The place of the largest of some numbers: an action's number, which only the decoding of an action can read."""

    def __init__(self, of: Value) -> None:
        self.of = of


def take(b: Builder, node: Node, values: dict[str, Any]) -> None:
    """Write one node's steps, and keep what it gives; a node of constants is worked out."""
    args, kwargs = [fill(a, values) for a in node.args], {k: fill(v, values) for k, v in node.kwargs.items()}
    inside = list(_every((args, kwargs)))
    if any(isinstance(v, Best) for v in inside):
        made: Any = next(v for v in inside if isinstance(v, Best))
        if node.op not in SAME | {"to", "_to_copy", "long", "int", "squeeze", "unsqueeze", "view", "reshape", "flatten"}:
            raise refuse(f"what the operator {node.op!r} makes of an action's number")
    elif not any(isinstance(v, Value) for v in inside):
        made = result_of(node, values)
    elif node.op in MOVES:
        made = _moved(b, node.op, args, kwargs)
    elif node.op in SAME:
        made = args[0]
    elif node.op in WRITE:
        made = WRITE[node.op](b, *args, **kwargs)
    else:
        raise refuse(f"the operator {node.op!r} of this network")
    for name, value in zip(node.outputs, made if isinstance(made, (tuple, list)) else (made,), strict=False):
        values[name] = value


def _every(item: Any) -> Any:
    if isinstance(item, (list, tuple)):
        for part in item:
            yield from _every(part)
    elif isinstance(item, dict):
        yield from _every(list(item.values()))
    else:
        yield item


def _moved(b: Builder, op: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The operator on places; several values are put side by side first."""
    if op in {"cat", "concat", "stack"}:
        args[0] = [v if isinstance(v, Value) else constant(b, v) for v in args[0]]
    parts = {v.name: v for v in _every((args, kwargs)) if isinstance(v, Value)}
    starts, at = {}, 0
    for name in parts:
        starts[name] = at
        at += b.size(name)

    def places(item: Any) -> Any:
        if isinstance(item, Value):
            return item.places + starts[item.name]
        return [places(v) for v in item] if isinstance(item, (list, tuple)) else item

    made = OPERATORS[op](*[places(a) for a in args], **{k: places(v) for k, v in kwargs.items()})
    name = next(iter(parts)) if len(parts) == 1 else b.add(steps.Concat(b.name(), tuple(parts)), (at,))
    return Value(name, made) if isinstance(made, Tensor) else tuple(Value(name, m) for m in made)


def _add(b: Builder, x: Any, y: Any, alpha: float = 1, sign: float = 1) -> Value:
    if isinstance(x, Value) and isinstance(y, Value):
        return combine(b, "add", x, y if alpha * sign == 1 else affine(b, y, alpha * sign, 0.0))
    if isinstance(x, Value):
        return affine(b, x, 1.0, torch.as_tensor(y, dtype=torch.float32) * alpha * sign)
    return affine(b, y, alpha * sign, x)


def _sub(b: Builder, x: Any, y: Any, alpha: float = 1) -> Value:
    return _add(b, x, y, alpha, -1)


def _mul(b: Builder, x: Any, y: Any) -> Value:
    if isinstance(x, Value) and isinstance(y, Value):
        return combine(b, "multiply", x, y)
    return affine(b, x, y, 0.0) if isinstance(x, Value) else affine(b, y, x, 0.0)


def _div(b: Builder, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        raise refuse("a division that is rounded")
    if not isinstance(y, Value):
        return affine(b, x, 1 / torch.as_tensor(y, dtype=torch.float64), 0.0)
    return _mul(b, x, _unary("reciprocal")(b, y))


def _pow(b: Builder, x: Any, y: Any) -> Value:
    power = float(y) if not isinstance(y, Tensor) or y.numel() == 1 else math.nan
    if not isinstance(x, Value) or power not in {2.0, 3.0, 0.5, -1.0, -0.5, 1.0}:
        raise refuse("a power that isn't 2, 3, ½, −½ or −1")
    if power in {2.0, 3.0}:
        square = combine(b, "multiply", x, x)
        return square if power == 2 else combine(b, "multiply", square, x)
    root = _unary("sqrt")(b, x) if abs(power) == 0.5 else x
    return _unary("reciprocal")(b, root) if power < 0 else root


def _unary(kind: str, first: float = 0.0) -> Callable[..., Value]:
    return lambda b, x, *_ignored, **_more: each(b, x, lambda b, name: arithmetic.activate(b, name, kind, first))


def _made(step: Callable[[Builder, str], str]) -> Callable[..., Value]:
    return lambda b, x, *_ignored, **_more: each(b, x, step)


def _elu(b: Builder, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    x = x if input_scale == 1 else affine(b, x, input_scale, 0.0)
    made = _unary("elu", float(alpha))(b, x)
    return made if scale == 1 else affine(b, made, scale, 0.0)


def _gelu(b: Builder, x: Value, approximate: str = "none") -> Value:
    return _unary("gelu_tanh" if approximate == "tanh" else "gelu")(b, x)


def _leaky(b: Builder, x: Value, slope: float = 0.01) -> Value:
    return _unary("leaky", float(slope))(b, x)


def _prelu(b: Builder, x: Value, weight: Tensor) -> Value:
    """A slope of all, or one of each channel (axis 1)."""
    if weight.numel() == 1:
        return _leaky(b, x, float(weight))
    slopes = weight.reshape(1, -1, *[1] * (len(x.shape) - 2)).expand(x.shape)
    name = in_order(b, x)
    return whole(b, arithmetic.activate(b, name, "leaky", numbers.floats(slopes).ravel()), x.shape)


def _softplus(b: Builder, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    return each(b, x, lambda b, name: arithmetic.softplus(b, name, float(beta)))


def _clamp(b: Builder, x: Value, min: Any = None, max: Any = None) -> Value:
    """Between numbers; ends that are one of each entry by maximum and minimum."""
    if any(isinstance(v, Value) or (isinstance(v, Tensor) and v.numel() > 1) for v in (min, max)):
        x = x if min is None else _maximum(b, x, min)
        return x if max is None else _minimum(b, x, max)
    return clip(b, x, None if min is None else float(min), None if max is None else float(max))


def _maximum(b: Builder, x: Any, y: Any) -> Value:
    """Y + max(x − y, 0)"""
    return _add(b, _unary("relu")(b, _sub(b, x, y)), y)


def _minimum(b: Builder, x: Any, y: Any) -> Value:
    """X − max(x − y, 0)"""
    return _sub(b, x, _unary("relu")(b, _sub(b, x, y)))


def _linear(b: Builder, x: Any, weight: Any, bias: Any = None) -> Value:
    if not isinstance(x, Value) or not isinstance(weight, Tensor) or isinstance(bias, Value):
        raise refuse("a layer whose weights depend on the state")
    return dense(b, x, weight, bias)


def _addmm(b: Builder, bias: Tensor, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Value:
    made = _matmul(b, x, y)
    return _add(b, made if alpha == 1 else affine(b, made, alpha, 0.0), bias if beta == 1 else _mul(b, bias, beta) if isinstance(bias, Value) else bias * beta)


def _matmul(b: Builder, x: Any, y: Any) -> Value:
    if isinstance(x, Value) and isinstance(y, Tensor) and y.dim() == 2:
        return dense(b, x, y.T.contiguous(), None)
    one, other = (v if isinstance(v, Value) else constant(b, v) for v in (x, y))
    return numbers.product(b, one, other)


def _dims(x: Value, dim: Any) -> list[int]:
    if dim is None:
        return list(range(len(x.shape)))
    return [int(dim)] if isinstance(dim, int) else [int(d) for d in dim]


def _reduce(mean: bool) -> Callable[..., Value]:
    return lambda b, x, dim=None, keepdim=False, _dtype=None: numbers.total(b, x, _dims(x, dim), keepdim, mean)


def _most(b: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Torch's max of two tensors, or over dimensions; the places of what it finds aren't given."""
    if isinstance(dim, (Value, Tensor)):
        return _maximum(b, x, dim)
    return (numbers.largest(b, x, _dims(x, dim), keepdim),)


def _least(b: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if isinstance(dim, (Value, Tensor)):
        return _minimum(b, x, dim)
    return (affine(b, numbers.largest(b, affine(b, x, -1.0, 0.0), _dims(x, dim), keepdim), -1.0, 0.0),)


def _norm(b: Builder, x: Value, p: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    if p != 2:
        raise refuse(f"a norm of order {p}")
    return _unary("sqrt")(b, numbers.total(b, combine(b, "multiply", x, x), _dims(x, dim), keepdim, False))


def _argmax(b: Builder, x: Value, dim: int | None = None, keepdim: bool = False) -> Best:
    if x.places.numel() != (x.shape[-1] if dim is not None and dim % len(x.shape) == len(x.shape) - 1 else x.places.numel()):
        raise refuse("an argmax that isn't over an action's numbers")
    return Best(x)


def _softmax(log: bool) -> Callable[..., Value]:
    return lambda b, x, dim=-1, *_ignored, **_more: numbers.softmax(b, x, int(dim), log)


def _log_sum_exp(b: Builder, x: Value, dim: Any, keepdim: bool = False) -> Value:
    dims = _dims(x, dim)
    most = numbers.largest(b, x, dims, True)
    raised = _unary("exp")(b, _sub(b, x, most))
    made = _add(b, _unary("log")(b, numbers.total(b, raised, dims, True, False)), most)
    return made if keepdim else Value(made.name, made.places.squeeze(tuple(dims)))


def _attention(b: Builder, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False) -> Value:
    """See teachers.operators."""
    size = q.shape[-1]
    turned = Value(k.name, k.places.transpose(-1, -2)) if isinstance(k, Value) else k.transpose(-1, -2)
    weights = _matmul(b, _mul(b, q, size**-0.5 if scale is None else scale), turned)
    if is_causal:
        mask = torch.ones(weights.shape[-2:], dtype=torch.bool).tril()
    if isinstance(mask, Tensor):
        weights = _masked_fill(b, weights, ~mask, -FAR) if mask.dtype == torch.bool else _add(b, weights, mask.clamp(-FAR, FAR))
    elif mask is not None:
        raise refuse("attention whose mask depends on the state")
    return _matmul(b, numbers.softmax(b, weights, -1), v)


def _batch_norm(b: Builder, x: Value, weight: Any, bias: Any, mean: Tensor, var: Tensor, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *ignored: Any) -> Value:
    scale = 1 / (var.double() + eps).sqrt() * (1 if weight is None else weight.double())
    shift = -mean.double() * scale + (0 if bias is None else bias.double())
    tail = [1] * (len(x.shape) - 2)
    return affine(b, x, scale.reshape(1, -1, *tail), shift.reshape(1, -1, *tail))


def _layer_norm(b: Builder, x: Value, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *ignored: Any) -> Value:
    return numbers.layer_norm(b, x, math.prod(shape), weight, bias, float(eps))


def _convolution(b: Builder, x: Value, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int, *ignored: Any) -> Value:
    if transposed or not isinstance(weight, Tensor) or set(_pair(dilation)) != {1} or isinstance(padding, str):
        raise refuse("a transposed or a dilated convolution")
    return numbers.convolution(b, x, weight, bias, _pair(stride), _pair(padding), int(groups))


def _conv(b: Builder, x: Value, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Value:
    return _convolution(b, x, weight, bias, stride, padding, dilation, False, 0, groups)


def _pair(value: Any) -> tuple[int, ...]:
    return (int(value),) * 2 if isinstance(value, int) else tuple(int(v) for v in value)


def _max_pool(b: Builder, x: Value, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False, *ignored: Any) -> Value:
    if ceil or set(_pair(dilation)) != {1}:
        raise refuse("a pooling of another kind")
    return numbers.pooled(b, x, _pair(size), _pair(stride or size), _pair(padding or 0))


def _mean_pool(b: Builder, x: Value, size: Any, stride: Any = None, padding: Any = 0, *ignored: Any) -> Value:
    kernel, channels = _pair(size), x.shape[1]
    if len(x.shape) != 4 or channels > 256:
        raise refuse("a pooling of another kind")
    weight = torch.full((channels, 1, *kernel), 1 / math.prod(kernel))
    return numbers.convolution(b, x, weight, None, _pair(stride or size), _pair(padding or 0), channels)


def _pad(b: Builder, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = 0.0) -> Value:
    if mode != "constant":
        return Value(x.name, OPERATORS["pad"](x.places.float(), pad, mode).long())
    fill_with = constant(b, torch.full((1,), float(value or 0.0)))
    at = b.size(x.name)
    both = b.add(steps.Concat(b.name(), (x.name, fill_with.name)), (at + 1,))
    return Value(both, torch.nn.functional.pad(x.places, list(pad), "constant", at))


def _greater(b: Builder, x: Any, y: Any) -> Value:
    """1 where x > y, else 0."""
    return _unary("step")(b, _sub(b, x, y))


def _not(b: Builder, x: Value) -> Value:
    return affine(b, x, -1.0, 1.0)


def _equal(b: Builder, x: Any, y: Any) -> Value:
    return _mul(b, _not(b, _greater(b, x, y)), _not(b, _greater(b, y, x)))


def _where(b: Builder, condition: Any, x: Any, y: Any) -> Value:
    """Y + condition · (x − y)"""
    if isinstance(condition, Tensor):
        chosen = condition.to(torch.float32)
        parts = [_mul(b, v, c) if isinstance(v, Value) else torch.as_tensor(v, dtype=torch.float32).clamp(-FAR, FAR) * c for v, c in ((x, chosen), (y, 1 - chosen))]
        return _add(b, parts[0], parts[1])
    x, y = (v if isinstance(v, Value) else torch.as_tensor(v, dtype=torch.float32).clamp(-FAR, FAR) for v in (x, y))
    apart = _sub(b, x, y) if isinstance(x, Value) or isinstance(y, Value) else x - y
    return _add(b, _mul(b, condition, apart), y)


def _masked_fill(b: Builder, x: Any, mask: Any, value: Any) -> Value:
    return _where(b, mask, torch.as_tensor(float(value)), x)


def _to(b: Builder, x: Value, *arguments: Any, **options: Any) -> Value:
    """Another number of digits is none here; whole numbers would be cut."""
    kind = OPERATORS["to"](torch.zeros(1), *[a.places.float() if isinstance(a, Value) else a for a in arguments], **options).dtype
    if not kind.is_floating_point and kind != torch.bool:
        raise refuse("a number that is cut to a whole one inside of the network")
    return x


WRITE: dict[str, Callable[..., Any]] = {
    "linear": _linear, "addmm": _addmm, "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "convolution": _convolution, "_convolution": _convolution, "conv1d": _conv, "conv2d": _conv,
    "batch_norm": _batch_norm, "layer_norm": _layer_norm, "max_pool2d": _max_pool, "avg_pool2d": _mean_pool, "lstm": recurrent.layers(True), "gru": recurrent.layers(False),
    "lstm_cell": recurrent.one_cell, "gru_cell": recurrent.one_cell, "scaled_dot_product_attention": _attention,
    **{op: _unary(op) for op in ("tanh", "relu", "silu", "mish", "sigmoid", "exp", "log", "sqrt", "reciprocal", "erf")},
    "elu": _elu, "gelu": _gelu, "leaky_relu": _leaky, "prelu": _prelu, "softplus": _softplus, "selu": _made(arithmetic.selu), "softsign": _made(arithmetic.softsign),
    "celu": lambda b, x, alpha=1.0: each(b, x, lambda b, name: arithmetic.celu(b, name, float(alpha))), "hardsigmoid": _made(arithmetic.hard_sigmoid),
    "hardswish": _made(arithmetic.hard_swish), "logsigmoid": _made(arithmetic.log_sigmoid), "log_sigmoid": _made(arithmetic.log_sigmoid), "abs": _made(arithmetic.absolute),
    "hardtanh": lambda b, x, low=-1.0, high=1.0: clip(b, x, low, high), "relu6": lambda b, x: clip(b, x, 0.0, 6.0),
    "softmax": _softmax(False), "_softmax": _softmax(False), "log_softmax": _softmax(True), "_log_softmax": _softmax(True), "logsumexp": _log_sum_exp,
    "add": _add, "sub": _sub, "rsub": lambda b, x, y, alpha=1: _sub(b, y, x, alpha), "mul": _mul, "div": _div, "pow": _pow, "neg": lambda b, x: affine(b, x, -1.0, 0.0),
    "square": lambda b, x: combine(b, "multiply", x, x), "rsqrt": lambda b, x: _pow(b, x, -0.5), "expm1": lambda b, x: affine(b, _unary("exp")(b, x), 1.0, -1.0),
    "log1p": lambda b, x: _unary("log")(b, affine(b, x, 1.0, 1.0)), "sign": lambda b, x: _sub(b, _greater(b, x, 0.0), _greater(b, 0.0, x)),
    "clamp": _clamp, "clip": _clamp, "clamp_min": _clamp, "clamp_max": lambda b, x, max: _clamp(b, x, None, max), "maximum": _maximum, "minimum": _minimum,
    "max": _most, "min": _least, "amax": lambda b, x, dim=None, keepdim=False: _most(b, x, dim, keepdim)[0], "amin": lambda b, x, dim=None, keepdim=False: _least(b, x, dim, keepdim)[0],
    "mean": _reduce(True), "sum": _reduce(False), "norm": _norm, "linalg_vector_norm": _norm, "argmax": _argmax, "pad": _pad, "constant_pad_nd": _pad,
    "gt": _greater, "lt": lambda b, x, y: _greater(b, y, x), "ge": lambda b, x, y: _not(b, _greater(b, y, x)), "le": lambda b, x, y: _not(b, _greater(b, x, y)),
    "eq": _equal, "ne": lambda b, x, y: _not(b, _equal(b, x, y)), "logical_not": _not, "logical_and": _mul, "logical_or": lambda b, x, y: _not(b, _mul(b, _not(b, x), _not(b, y))),
    "where": _where, "masked_fill": _masked_fill, "to": _to, "_to_copy": _to, "type_as": _to,
}  # fmt: skip
"""Operator → what it writes, from its arguments: Values, constant tensors and numbers."""
