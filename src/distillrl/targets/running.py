"""Run a plan in numpy, a batch at a time, with every value on the way: the yardstick of the code targets, and their calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillrl.targets import plan as steps
from distillrl.targets.plan import Decode, Floats, Op, Plan

_erf = np.vectorize(math.erf, otypes=[np.float32])


def run(
    plan: Plan,
    groups: Mapping[str, NDArray[Any]],
    memory: Mapping[str, Floats] | None = None,
    dense: Callable[[steps.Dense, Floats], Floats] | None = None,
) -> dict[str, NDArray[Any]]:
    """Every value of the plan for observations {group: [n, *shape]}, {value: [n, size]}; ``memory`` is {state: [n, size]}, zeros at first.

    ``dense`` computes dense layers in another way (in int8, say).
    """
    n = len(next(iter(groups.values())))
    values: dict[str, NDArray[Any]] = {}
    for given in plan.inputs:
        values[given.name] = np.asarray(groups[given.name]).reshape(n, given.size).astype(given.held, copy=False)
    for state in plan.states:
        values[state.before] = np.zeros((n, state.size), np.float32) if memory is None else memory[state.name]
    for op in plan.ops:
        if dense is not None and isinstance(op, steps.Dense):
            values[op.out] = dense(op, values[op.x].astype(np.float32, copy=False))
        else:
            values[op.out] = _step(op, values, plan)
    return values


def decode(rule: Decode, raw: Floats) -> NDArray[Any]:
    """Raw outputs [n, size] → actions [n] or [n, A], in the environment's units."""
    if rule.kind == "argmax":
        return raw.argmax(-1) + rule.start
    if rule.kind == "multi":
        parts = np.split(raw, np.cumsum(rule.nvec)[:-1], -1)
        return np.stack([part.argmax(-1) for part in parts], -1)
    if rule.kind == "threshold":
        return (raw > 0).astype(np.int64)
    low, high = np.asarray(rule.low, np.float32), np.asarray(rule.high, np.float32)
    if rule.kind == "tanh":
        raw = low + (np.tanh(raw) + np.float32(1)) * np.float32(0.5) * (high - low)
    return np.clip(raw, low, high)


def _step(op: Op, values: Mapping[str, NDArray[Any]], plan: Plan) -> NDArray[Any]:
    if isinstance(op, steps.Concat):
        return np.concatenate([values[x].astype(np.float32, copy=False) for x in op.xs], -1)
    if isinstance(op, steps.Combine):
        return values[op.x] + values[op.y] if op.kind == "add" else values[op.x] * values[op.y]
    if isinstance(op, steps.GruGate | steps.LstmCell | steps.LstmOut):
        return _gate(op, values)
    x = values[op.x]
    if isinstance(op, steps.Dense):
        return x.astype(np.float32, copy=False) @ op.weight.T + op.bias
    if isinstance(op, steps.Activate):
        return activate(op, x)
    if isinstance(op, steps.OneHot):
        return np.concatenate([np.eye(count, dtype=np.float32)[x[:, i]] for i, count in enumerate(op.counts)], -1)
    if isinstance(op, steps.Affine):
        kind = np.float64 if op.wide else np.float32
        return np.clip(x.astype(kind) * op.scale.astype(kind) + op.shift.astype(kind), op.low, op.high).astype(np.float32)
    if isinstance(op, steps.Branches):
        node = np.zeros(len(x), np.int32)
        for _ in range(op.depth):
            node = op.branches[node, (x[np.arange(len(x)), op.feature[node]] > op.threshold[node]).astype(int)]
        return op.value[node]
    if isinstance(op, steps.Take):
        return x[:, list(op.indices)]
    if isinstance(op, steps.Resample):
        return _resampled(op, x)
    if isinstance(op, steps.LayerNorm):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(op.epsilon)) * op.weight + op.bias
    return _image_step(op, x.reshape(len(x), *plan.shapes[op.x]))


def activate(op: steps.Activate, x: Floats) -> Floats:
    """An elementwise function."""
    if op.kind == "tanh":
        return np.tanh(x)
    if op.kind == "exp":
        return np.exp(x)
    if op.kind == "round":
        return np.floor(x + np.float32(op.first + 0.5)) - np.float32(op.first)
    if op.kind == "relu":
        return np.maximum(x, 0)
    if op.kind == "clip":
        return np.clip(x, np.float32(op.first), np.float32(op.second))
    if op.kind == "leaky":
        return np.where(x > 0, x, x * np.asarray(op.first, np.float32))
    if op.kind == "elu":
        return np.where(x > 0, x, np.float32(op.first) * np.expm1(np.minimum(x, 0)))
    if op.kind == "gelu":
        return x * np.float32(0.5) * (1 + _erf(x * np.float32(math.sqrt(0.5))))
    if op.kind == "gelu_tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        return x * np.float32(0.5) * (1 + np.tanh(inner))
    if op.kind in PLAIN:
        return PLAIN[op.kind](x)
    logistic = sigmoid(x)
    return x * logistic if op.kind == "silu" else logistic


PLAIN: dict[str, Callable[[Floats], Floats]] = {
    "log": np.log,
    "sqrt": np.sqrt,
    "reciprocal": np.reciprocal,
    "erf": _erf,
    "step": lambda x: (x > 0).astype(np.float32),
    "softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, np.float32(0))),
}


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^−x), by tanh, which never overflows."""
    return np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)


def _gate(op: steps.GruGate | steps.LstmCell | steps.LstmOut, values: Mapping[str, NDArray[Any]]) -> Floats:
    if isinstance(op, steps.GruGate):
        reset_i, update_i, new_i = np.split(values[op.gi], 3, -1)
        reset_h, update_h, new_h = np.split(values[op.gh], 3, -1)
        update = sigmoid(update_i + update_h)
        new = np.tanh(new_i + sigmoid(reset_i + reset_h) * new_h)
        return new + update * (values[op.h] - new)
    i, f, g, o = np.split(values[op.gates], 4, -1)
    if isinstance(op, steps.LstmCell):
        return sigmoid(f) * values[op.c] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(values[op.c])


def _resampled(op: steps.Resample, x: NDArray[Any]) -> Floats:
    images = x.reshape(len(x), op.before, -1, op.after)
    sums = np.einsum("nbkia,ki->nbia", images[:, :, op.places].astype(np.float32), op.weights)
    sums = np.floor(sums / np.float32(op.whole) + np.float32(0.5)) if op.pixels else sums / np.float32(op.whole)
    return sums.astype(np.float32).reshape(len(x), -1)


def _image_step(op: steps.Conv | steps.Pad | steps.Transpose | steps.MaxPool, x: NDArray[Any]) -> Floats:
    n = len(x)
    if isinstance(op, steps.MaxPool):
        edges = ((0, 0), (0, 0), (op.padding[0],) * 2, (op.padding[1],) * 2)
        padded = np.pad(x.astype(np.float32, copy=False), edges, constant_values=-np.inf)
        seen = np.lib.stride_tricks.sliding_window_view(padded, op.kernel, (2, 3))[:, :, :: op.stride[0], :: op.stride[1]]
        return np.ascontiguousarray(seen.max((-2, -1))).reshape(n, -1)
    if isinstance(op, steps.Transpose):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(n, -1)
    if isinstance(op, steps.Pad):
        return np.pad(x, ((0, 0), (0, 0), (op.rows,) * 2, (op.columns,) * 2)).reshape(n, -1)
    sy, sx = op.stride
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float32, copy=False), op.weight.shape[2:], (2, 3))[:, :, ::sy, ::sx]
    out = np.einsum("nchwyx,ocyx->nohw", windows, op.weight, optimize=True) + op.bias[:, None, None]
    return np.ascontiguousarray(out, np.float32).reshape(n, -1)
