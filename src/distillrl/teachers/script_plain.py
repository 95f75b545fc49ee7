"""What TorchScript's operators give on plain numbers and lists, and what can be asked of a tensor without its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def _constantly(value: Any) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        return value

    return run


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


QUESTIONS: dict[str, Callable[..., Any]] = {
    "dim": lambda x: x.dim(), "size": lambda x, d=None: list(x.shape) if d is None else x.shape[d], "len": len, "numel": lambda x: x.numel(),
    "dtype": lambda x: x.dtype, "is_floating_point": lambda x: x.is_floating_point(), "device": _constantly(None), "is_cuda": _constantly(False),
    "requires_grad": _constantly(False), "layout": _constantly(None), "ndim": lambda x: x.dim(), "shape": lambda x: list(x.shape), "sym_size": lambda x, d: x.shape[d],
}  # fmt: skip
"""What can be asked of a tensor without looking at its numbers."""
PLAIN: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b if not isinstance(a, (str, list)) else None, "div": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b, "remainder": lambda a, b: a % b, "neg": lambda a: -a, "eq": lambda a, b: a == b, "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b, "gt": lambda a, b: a > b, "le": lambda a, b: a <= b, "ge": lambda a, b: a >= b, "__not__": lambda a: not a,
    "__is__": lambda a, b: a is b, "__isnot__": lambda a, b: a is not b, "__contains__": lambda a, b: b in a, "__and__": lambda a, b: a and b,
    "__or__": lambda a, b: a or b, "len": len, "format": lambda *a: str(a[0]), "__getitem__": lambda a, b: a[b], "append": _append, "sqrt": math.sqrt,
    "log": math.log, "exp": math.exp, "max": max, "min": min, "NumToTensor": lambda a: a, "Int": int, "Float": float, "Bool": bool, "IntImplicit": int,
    "FloatImplicit": float, "ScalarImplicit": lambda a: a, "unchecked_cast": lambda a: a, "numel": _constantly(1), "list": list, "device": _constantly(None),
    "dtype": _constantly(None), "__round_to_zero_floordiv": lambda a, b: int(a / b), "floor_divide": lambda a, b: a // b, "is_grad_enabled": _constantly(False),
    "is_scripting": _constantly(True), "warn": _constantly(None), "get_device": _constantly(-1), "ceil": math.ceil, "floor": math.floor, "abs": abs,
}  # fmt: skip
"""torch's operators on plain numbers and lists."""
