"""The intermediate form that every code target is generated from: what a policy computes, as a short list of numpy-only steps.

A plan is straight-line: each step reads named values and writes one new value. A value is a vector of float32 in
C order (images keep their shape beside it, in ``shapes``); inputs have their own types. ``tracing.trace`` makes a plan of a policy,
``running.run`` runs it in numpy, and the targets print it as C, JavaScript, Python or ONNX. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ACTIVATIONS = ("tanh", "relu", "sigmoid", "silu", "elu", "gelu", "gelu_tanh", "leaky", "clip", "exp", "round", "log", "sqrt", "reciprocal", "erf", "step", "softplus", "mish")
"""Elementwise functions that every code target has; ``leaky`` has a slope (one, or one of each entry), ``elu`` an alpha, ``clip`` two ends; ``step`` is 1 above 0, else 0; ``round`` is to the nearest whole number, halves up, within ± its first parameter."""
NOISE = {"argmax": "gumbel", "multi": "gumbel", "threshold": "logistic", "clip": "normal", "tanh": "normal"}
"""The distribution of the noise that makes a most likely action a sampled one (Gumbel 1954: the argmax of logits plus Gumbel noise)."""


@dataclass(frozen=True)
class Input:
    """An observation group as the environment gives it. ``wide`` keeps float64: a float64 normaliser reads it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    categories: tuple[int, ...] = ()
    wide: bool = False

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def held(self) -> str:
        """The numpy type that exported code takes it in: int64 becomes int32, bool uint8, float64 float32 unless wide."""
        if self.categories:
            return "int32"
        kept = {"uint8", "int8", "int16", "uint16", "int32", "float32"}
        return "float64" if self.wide else self.dtype if self.dtype in kept else {"bool": "uint8", "int64": "int32"}.get(self.dtype, "float32")


@dataclass(frozen=True)
class State:
    """Memory of ``size`` floats, all 0 where an episode starts: ``before`` is its value's name, ``after`` that of the next step's."""

    name: str
    before: str
    after: str
    size: int


@dataclass(frozen=True)
class OneHot:
    """Category numbers → 0 and 1, the entries side by side; a number outside of its range is bad input."""

    out: str
    x: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Affine:
    """clip(x · scale + shift, low, high) of each entry, in float64 where ``wide``; scale and shift have the value's size, or one number."""

    out: str
    x: str
    scale: NDArray[Any]
    shift: NDArray[Any]
    low: float = -math.inf
    high: float = math.inf
    wide: bool = False


@dataclass(frozen=True)
class Concat:
    """Values side by side, as float32."""

    out: str
    xs: tuple[str, ...]


@dataclass(frozen=True)
class Combine:
    """x + y, or x · y where ``kind`` is multiply, entry by entry."""

    out: str
    x: str
    y: str
    kind: str


@dataclass(frozen=True)
class Take:
    """Entries of a value: out[k] = x[indices[k]]."""

    out: str
    x: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Whole:
    """How a dense layer is one of whole numbers: q = round(``x`` · inverse + zero) in [-half, half - 1], weight = codes · scale [m, 1] · inverse.

    ``x`` is the value before it was rounded; the steps between it and the layer say the same in floats.
    """

    x: str
    half: int
    inverse: Floats
    zero: Floats
    codes: NDArray[np.int8]
    scale: Floats


@dataclass(frozen=True)
class Dense:
    """weight [m, n] · x [n] + bias [m]; ``whole`` where its inputs and weights lie on grids."""

    out: str
    x: str
    weight: Floats
    bias: Floats
    whole: Whole | None = None


@dataclass(frozen=True)
class Activate:
    """An elementwise function; ``first`` and ``second`` are its parameters (see ACTIVATIONS)."""

    out: str
    x: str
    kind: str
    first: float | Floats = 0.0
    second: float = 0.0


@dataclass(frozen=True)
class LayerNorm:
    """(x − mean(x)) / √(var(x) + epsilon) · weight + bias over the whole value."""

    out: str
    x: str
    weight: Floats
    bias: Floats
    epsilon: float


@dataclass(frozen=True)
class Branches:
    """A decision tree's leaf: from node 0 on, node m asks whether x[feature[m]] ≤ threshold[m] and goes to branches[m, 0], else to [m, 1].

    A leaf's branches lead to itself; ``value`` [M, V] has its outputs. ``depth`` is how many tests there are in a row at most.
    """

    out: str
    x: str
    feature: NDArray[np.int32]
    threshold: Floats
    branches: NDArray[np.int32]
    value: Floats
    depth: int


@dataclass(frozen=True)
class GruGate:
    """torch.nn.GRUCell's gates: h' from ``gi`` [3H] = W_i x + b_i, ``gh`` [3H] = W_h h + b_h (reset, update, new) and h [H]."""

    out: str
    gi: str
    gh: str
    h: str


@dataclass(frozen=True)
class LstmCell:
    """c' = σ(f)·c + σ(i)·tanh(g), from ``gates`` [4H] (input, forget, cell, output, as torch.nn.LSTM) and c [H]."""

    out: str
    gates: str
    c: str


@dataclass(frozen=True)
class LstmOut:
    """h' = σ(o)·tanh(c'), from the same ``gates`` [4H] and c' [H]."""

    out: str
    gates: str
    c: str


@dataclass(frozen=True)
class Conv:
    """A 2-d convolution of an image [C, H, W] with weight [O, C, kh, kw], without padding; out is [O, H', W']."""

    out: str
    x: str
    weight: Floats
    bias: Floats
    stride: tuple[int, int]


@dataclass(frozen=True)
class Pad:
    """An image [C, H, W] with ``rows`` lines of zeros above and below, and ``columns`` on both sides."""

    out: str
    x: str
    rows: int
    columns: int


@dataclass(frozen=True)
class Transpose:
    """An image [H, W, C] → [C, H, W]."""

    out: str
    x: str


@dataclass(frozen=True)
class Resample:
    """One axis of x [before, n, after] made m long: y[b, i, a] = Σ_k weights[k, i] · x[b, places[k, i], a] / whole, rounded half up where ``pixels``.

    Weights are whole numbers with the sum ``whole``, so that sums of pixels of 8 bits are exact in float32. Colours made grey, images made smaller.
    """

    out: str
    x: str
    before: int
    after: int
    places: NDArray[np.int32]
    weights: Floats
    whole: float
    pixels: bool


@dataclass(frozen=True)
class MaxPool:
    """The largest number of each window of an image [C, H, W]; what lies beyond its edges, ``padding`` wide, is smaller than any."""

    out: str
    x: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


Op = OneHot | Affine | Concat | Combine | Take | Dense | Activate | LayerNorm | Branches | GruGate | LstmCell | LstmOut | Conv | Pad | Transpose | Resample | MaxPool


@dataclass(frozen=True)
class Decode:
    """How the raw outputs become the action, in the environment's units.

    ``kind``: argmax (plus ``start``), multi (an argmax of each part of ``nvec``), threshold (> 0), clip (between low and high [A]),
    tanh (low + (tanh(raw) + 1) / 2 · (high − low)). ``shape`` and ``dtype`` are the environment's; exported code gives it flat.
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "int64"
    start: int = 0
    nvec: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def discrete(self) -> bool:
        """Whether an action is whole numbers."""
        return self.kind in {"argmax", "multi", "threshold"}

    @property
    def raw_name(self) -> str:
        """What the raw outputs are called in exported code."""
        return "logits" if self.discrete else "mean"


@dataclass(frozen=True)
class Plan:
    """All that a policy computes from an observation to an action."""

    inputs: tuple[Input, ...]
    states: tuple[State, ...]
    ops: tuple[Op, ...]
    raw: str
    decode: Decode
    shapes: Mapping[str, tuple[int, ...]]
    """Of every value, inputs included."""
    log_std: Floats | None = None
    """[A] of a Gaussian whose spread is free of the state: exported beside it, for those who sample."""
    decided: str = ""
    """The value that the action is decoded from: the raw outputs, or for a sampled action these with noise; see ``source``."""
    noise: str = ""
    """The input that holds the noise of a sampled action, one number a raw output; empty where the action is the most likely one."""

    @property
    def source(self) -> str:
        """The value that the action is decoded from."""
        return self.decided or self.raw

    def size(self, value: str) -> int:
        """How many numbers a value has."""
        return math.prod(self.shapes[value])

    @property
    def raw_size(self) -> int:
        """How many raw outputs there are."""
        return self.size(self.raw)

    @property
    def action_size(self) -> int:
        """How many numbers an action has."""
        return {"argmax": 1, "multi": len(self.decode.nvec)}.get(self.decode.kind, self.raw_size)

    @property
    def parameters(self) -> int:
        """Numbers learned: of dense and convolution layers, and of layer norms."""
        return sum(op.weight.size + op.bias.size for op in self.ops if isinstance(op, Dense | Conv | LayerNorm))


def reads(op: Op) -> tuple[str, ...]:
    """The values that a step reads."""
    if isinstance(op, Concat):
        return op.xs
    if isinstance(op, Combine):
        return (op.x, op.y)
    if isinstance(op, GruGate):
        return (op.gi, op.gh, op.h)
    if isinstance(op, LstmCell | LstmOut):
        return (op.gates, op.c)
    return (op.x,)


def last_reads(plan: Plan) -> dict[str, int]:
    """Value → the index of the last step that reads it (len(ops) for raw outputs and memory)."""
    last = {name: i for i, op in enumerate(plan.ops) for name in reads(op)}
    end = len(plan.ops)
    return {**last, plan.raw: end, plan.source: end, **{state.after: end for state in plan.states}}


def places(plan: Plan) -> tuple[dict[str, int], int]:
    """Where each step's output lies in one scratch array of floats, and the array's length; buffers are used again once read.

    An activation may write over what it reads; other steps never do. Offsets are multiples of 8 floats.
    """
    split = blocks(plan)
    last = last_reads(plan)
    held: dict[str, tuple[int, int]] = {}
    found: dict[str, int] = {}
    total = 0
    for i, op in enumerate(plan.ops):
        held = {name: span for name, span in held.items() if last.get(name, -1) >= i}
        if isinstance(op, Activate) and op.x in held and last[op.x] == i:
            start = held.pop(op.x)[0]
        else:
            start = _gap(sorted(held.values()), _room(plan, op.out, split))
        held[op.out] = (start, start + _room(plan, op.out, split))
        found[op.out] = start
        total = max(total, held[op.out][1])
    return found, total


def blocks(plan: Plan) -> dict[str, int]:
    """Gate values → how many parts they have (3 or 4); in scratch each part begins at a multiple of 8 floats."""
    found: dict[str, int] = {}
    for op in plan.ops:
        if isinstance(op, GruGate):
            found |= {op.gi: 3, op.gh: 3}
        elif isinstance(op, LstmCell | LstmOut):
            found[op.gates] = 4
    return found


def _room(plan: Plan, value: str, split: Mapping[str, int]) -> int:
    parts = split.get(value, 1)
    return parts * padded(plan.size(value) // parts)


def _gap(spans: list[tuple[int, int]], size: int) -> int:
    start = 0
    for low, high in spans:
        if low - start >= size:
            break
        start = max(start, high)
    return start


def padded(size: int) -> int:
    """The next multiple of 8: how many floats a buffer of ``size`` has."""
    return -(-size // 8) * 8
