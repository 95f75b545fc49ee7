"""How much an operator would give and cost, from its arguments' shapes alone: asked before it is run.

Elementwise operators give what their arguments broadcast to; the others that can give more than they take have a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from distillrl.errors import Failed

MAX_NUMBERS = 1 << 26
"""Numbers that one step may give in a trial of a few states: 256 MiB."""
MAX_WORK = 1 << 36
"""Multiplications that one step may need in a trial of a few states."""


class Visits:
    """Counts the steps of a walk through a file's tree: shared parts can make a small file an endless tree."""

    def __init__(self, where: str, most: int = 200_000, deepest: int = 100) -> None:
        self.where, self.left, self.deepest = where, most, deepest

    def one(self, depth: int) -> None:
        """One more step; raises Failed at too many, or too deep."""
        self.left -= 1
        if self.left < 0 or depth > self.deepest:
            raise Failed(f"{self.where} is refused: its parts are nested {'too deeply' if depth > self.deepest else 'without end'}")


def check(op: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise Failed where an operator with these arguments would give or cost more than a policy has use for."""
    rule = RULES.get(op)
    numbers, work = rule(args, kwargs) if rule is not None else (_broadcast((*args, *kwargs.values())), 1)
    if numbers > MAX_NUMBERS:
        raise Failed(f"the operator {op} would give {numbers:,} numbers, more than the {MAX_NUMBERS:,} that are allowed")
    if numbers * work > MAX_WORK:
        raise Failed(f"the operator {op} would need {numbers * work:,} multiplications, more than the {MAX_WORK:,} that are allowed")


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found += _tensors(arg)
    return found


def _broadcast(args: Sequence[Any]) -> int:
    shapes = [t.shape for t in _tensors(args)]
    if not shapes:
        return 1
    try:
        return math.prod(np.broadcast_shapes(*map(tuple, shapes)))
    except ValueError:
        return max(math.prod(s) for s in shapes)


def _argument(args: Sequence[Any], kwargs: dict[str, Any], index: int, name: str, default: Any = None) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def _numbers(sizes: Any) -> int:
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return math.prod(abs(int(s)) for s in sizes)


def _linear(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    x, w = args[0], args[1]
    return x.numel() // max(1, x.shape[-1]) * (w.shape[0] if w.dim() == 2 else 1), max(1, x.shape[-1])


def _matmul(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    a, b = [t for t in _tensors(args) if t.dim() > 0][-2:]
    rows, columns = (a.shape[-2] if a.dim() > 1 else 1), (b.shape[-1] if b.dim() > 1 else 1)
    try:
        lead = math.prod(np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2])))
    except ValueError:
        lead = 1  # refused when it is run
    return lead * rows * columns, max(1, a.shape[-1])


def _conv(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    x, w = args[0], args[1]
    padding = _argument(args, kwargs, 4, "padding", 0)
    pads = [padding] if isinstance(padding, int) else list(padding) if not isinstance(padding, str) else [max(w.shape)]
    spatial = [s + 2 * abs(int(pads[min(i, len(pads) - 1)])) for i, s in enumerate(x.shape[-(w.dim() - 2) :])]
    return x.shape[0] * w.shape[0] * math.prod(spatial), max(1, w[0].numel())


def _recurrent(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    x, weights = args[0], _tensors(args[1:])
    widest = max((w.shape[0] for w in weights if w.dim() == 2), default=1)
    return x.numel() // max(1, x.shape[-1]) * widest, max(1, sum(w.numel() for w in weights) // max(1, widest))


def _sum(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    parts = _tensors(args)
    return len(parts) * max((p.numel() for p in parts), default=0), 1


def _size_at(index: int, times: bool = False) -> Callable[[Sequence[Any], dict[str, Any]], tuple[int, int]]:
    def rule(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
        size = _argument(args, kwargs, index, "size", _argument(args, kwargs, index, "sizes", ()))
        if not times and index:
            size = [args[0].shape[i - len(size)] if s == -1 and len(size) - i <= args[0].dim() else s for i, s in enumerate(size)]
        return _numbers(size) * (args[0].numel() if times else 1), 1

    return rule


def _pad(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    x, pad = args[0], list(_argument(args, kwargs, 1, "pad", ()))
    shape = list(x.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] += max(0, int(pad[2 * i])) + max(0, int(pad[2 * i + 1]))
    return math.prod(shape), 1


def _indexed(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    x, indices = args[0], _tensors(args[1:])
    return x.numel() * max((t.numel() for t in indices), default=1), 1


def _attention(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    q, k = args[0], args[1]
    return q.numel() * max(1, k.shape[-2]), max(1, k.shape[-1])


def _pool(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    return 4 * args[0].numel(), _numbers(args[1])


RULES: dict[str, Callable[[Sequence[Any], dict[str, Any]], tuple[int, int]]] = {
    "linear": _linear, "addmm": _matmul, "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "baddbmm": _matmul, "convolution": _conv, "_convolution": _conv,
    "conv1d": _conv, "conv2d": _conv, "lstm": _recurrent, "gru": _recurrent, "lstm_cell": _recurrent, "gru_cell": _recurrent, "cat": _sum, "concat": _sum,
    "stack": _sum, "expand": _size_at(1), "repeat": _size_at(1, True), "tile": _size_at(1, True), "zeros": _size_at(0), "ones": _size_at(0), "full": _size_at(0),
    "new_zeros": _size_at(1), "pad": _pad, "constant_pad_nd": _pad, "index_select": _indexed, "gather": _indexed, "index": _indexed,
    "scaled_dot_product_attention": _attention, "max_pool2d": _pool, "avg_pool2d": _pool,
}  # fmt: skip
"""Operator → (numbers that it gives, multiplications for each)."""
