"""ONNX's operators in the words of ``operators``: one function for each, from a node to what is written down.

The meaning of each is ONNX's operator specification (onnx.ai/onnx/operators), opsets 7 to 25. An operator or an option
that isn't here raises Missing, and the file is run by onnxruntime instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distillrl.errors import Missing
from distillrl.teachers.graph import Ref
from distillrl.teachers.tracing import Tracer


@dataclass
class Step:
    """One ONNX node on its way: its inputs (None where left out), options and the names of its outputs."""

    tracer: Tracer
    op: str
    inputs: list[Ref | None]
    options: Mapping[str, Any]
    outputs: tuple[str, ...]
    opset: int
    integers: dict[str, list[int]] = field(default_factory=dict)
    """Values that are known lists of integers (shapes and what is computed of them)."""

    def x(self, index: int = 0) -> Ref:
        """A required input."""
        if index >= len(self.inputs) or self.inputs[index] is None:
            raise Missing(f"the ONNX operator {self.op} lacks its input {index}")
        return self.inputs[index]  # type: ignore[return-value]  # checked above

    def maybe(self, index: int) -> Ref | None:
        """An optional input."""
        return self.inputs[index] if index < len(self.inputs) else None

    def tensor(self, index: int) -> Tensor:
        """An input that must be a constant."""
        ref = self.x(index)
        if ref.name not in self.tracer.constants:
            raise Missing(f"the ONNX operator {self.op} has an input {ref.name!r} that isn't constant")
        return self.tracer.constants[ref.name]

    def ints(self, index: int) -> list[int] | None:
        """An input that is a known list of integers."""
        ref = self.maybe(index)
        if ref is None:
            return None
        if ref.name in self.integers:
            return self.integers[ref.name]
        return [int(v) for v in self.tensor(index).reshape(-1).tolist()]

    def call(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Write the last operator of this node down, under the node's own output names."""
        return self.tracer.call(op, *args, outputs=self.outputs, **kwargs)

    def middle(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Write an operator down that isn't the node's last."""
        return self.tracer.call(op, *args, **kwargs)

    def known(self, values: Sequence[int]) -> None:
        """The node's output is this list of integers."""
        self.integers[self.outputs[0]] = [int(v) for v in values]
        self.tracer.constant(torch.tensor([int(v) for v in values]), self.outputs[0])


def _unary(op: str) -> Callable[[Step], None]:
    def lower(s: Step) -> None:
        s.call(op, s.x())

    return lower


def _binary(op: str) -> Callable[[Step], None]:
    def lower(s: Step) -> None:
        a, b = s.x(0), s.x(1)
        known = [s.integers.get(r.name) for r in (a, b)]
        if op in {"mul", "add", "sub"} and any(k is not None for k in known) and all(k is not None or r.name in s.tracer.constants for k, r in zip(known, (a, b), strict=True)):
            left, right = (k if k is not None else s.tracer.constants[r.name].reshape(-1).tolist() for k, r in zip(known, (a, b), strict=True))
            if len(right) == 1:
                right = right * len(left)
            return s.known([{"mul": x * y, "add": x + y, "sub": x - y}[op] for x, y in zip(left, right, strict=False)])
        s.call(op, a, b, **({"rounding_mode": "trunc"} if op == "div" and not s.tracer.values[a.name].is_floating_point() else {}))

    return lower


def _mod(s: Step) -> None:
    if s.options.get("fmod", 0):
        raise Missing("the ONNX operator Mod with fmod is not a simple one")
    a, b = s.x(0), s.x(1)
    known = [s.integers.get(r.name) for r in (a, b)]
    left, right = (k if k is not None else s.tracer.constants[r.name].reshape(-1).tolist() if r.name in s.tracer.constants else None for k, r in zip(known, (a, b), strict=True))
    if any(k is not None for k in known) and left and right and 0 not in right:
        return s.known([x % right[i if len(right) > 1 else 0] for i, x in enumerate(left)])
    s.call("remainder", a, b)


def _gemm(s: Step) -> None:
    a, alpha, beta = s.x(0), float(s.options.get("alpha", 1.0)), float(s.options.get("beta", 1.0))
    if s.options.get("transA", 0):
        a = s.middle("t", a)
    if s.x(1).name in s.tracer.constants:
        w = s.tensor(1) if s.options.get("transB", 0) else s.tensor(1).T
        weight = s.tracer.constant((w * alpha).contiguous())
        bias = s.maybe(2)
        if bias is not None and bias.name in s.tracer.constants and s.tracer.constants[bias.name].numel() in {1, w.shape[0]}:
            b = (s.tracer.constants[bias.name].reshape(-1) * beta).expand(w.shape[0]).contiguous()
            s.call("linear", a, weight, s.tracer.constant(b))
        elif bias is None:
            s.call("linear", a, weight)
        else:
            s.call("add", s.middle("linear", a, weight), s.middle("mul", bias, beta))
        return
    right = s.x(1) if not s.options.get("transB", 0) else s.middle("t", s.x(1))
    product = s.middle("mul", s.middle("matmul", a, right), alpha)
    s.call("identity", product) if s.maybe(2) is None else s.call("add", product, s.middle("mul", s.x(2), beta))


def _matmul(s: Step) -> None:
    if s.x(1).name in s.tracer.constants and s.tensor(1).dim() == 2:
        s.call("linear", s.x(0), s.tracer.constant(s.tensor(1).T.contiguous()))
    else:
        s.call("matmul", s.x(0), s.x(1))


def _clip(s: Step) -> None:
    if s.opset < 11:
        low, high = s.options.get("min"), s.options.get("max")
    else:
        low, high = (float(s.tensor(i)) if s.maybe(i) is not None else None for i in (1, 2))
    s.call("clamp", s.x(), low, high)


def _softmax(op: str) -> Callable[[Step], None]:
    def lower(s: Step) -> None:
        axis = int(s.options.get("axis", 1 if s.opset < 13 else -1))
        rank = len(s.tracer.shape(s.x()))
        if s.opset < 13 and axis % rank != rank - 1:
            raise Missing("an old Softmax over several axes")
        s.call(op, s.x(), axis)

    return lower


def _cast(s: Step) -> None:
    code = int(s.options["to"])
    dtype = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}.get(code)
    if dtype is None:
        raise Missing(f"the ONNX type {code}")
    if s.x().name in s.integers and dtype in {torch.int32, torch.int64}:
        return s.known(s.integers[s.x().name])
    s.call("to", s.x(), dtype)


def _concat(s: Step) -> None:
    parts = [s.x(i) for i in range(len(s.inputs))]
    if all(p.name in s.integers or (p.name in s.tracer.constants and not s.tracer.constants[p.name].is_floating_point()) for p in parts) and any(p.name in s.integers for p in parts):
        return s.known([v for i in range(len(parts)) for v in s.ints(i) or []])
    s.call("cat", tuple(parts), int(s.options["axis"]))


def _slice(s: Step) -> None:
    rank = len(s.tracer.shape(s.x()))
    if s.opset < 10:
        starts, ends, axes, steps = list(s.options["starts"]), list(s.options["ends"]), s.options.get("axes"), None
    else:
        starts, ends, axes, steps = s.ints(1) or [], s.ints(2) or [], s.ints(3), s.ints(4)
    axes = list(range(len(starts))) if axes is None else [a % rank for a in axes]
    steps = steps or [1] * len(starts)
    if s.x().name in s.integers:
        return s.known(s.integers[s.x().name][starts[0] : ends[0] : steps[0]])
    value = s.x()
    for i, (axis, start, end, step) in enumerate(zip(axes, starts, ends, steps, strict=True)):
        arguments = (value, axis, start, None if abs(end) > 1 << 31 else end, step)
        value = s.call("slice", *arguments) if i == len(axes) - 1 else s.middle("slice", *arguments)


def _split(s: Step) -> None:
    axis = int(s.options.get("axis", 0))
    sizes = list(s.options["split"]) if "split" in s.options else s.ints(1)
    length = s.tracer.shape(s.x())[axis]
    if sizes is None:
        each = -(-length // len(s.outputs))
        sizes = [min(each, length - i * each) for i in range(len(s.outputs))]
    s.call("split", s.x(), tuple(sizes), axis)


def _reshape(s: Step) -> None:
    target, shape = s.ints(1), s.tracer.shape(s.x())
    if target is None:
        target = list(s.options["shape"])
    if not s.options.get("allowzero", 0):
        target = [shape[i] if d == 0 and i < len(shape) else d for i, d in enumerate(target)]
    s.call("reshape", s.x(), tuple(target))


def _flatten(s: Step) -> None:
    axis = int(s.options.get("axis", 1))
    shape = s.tracer.shape(s.x())
    if axis in {1, 1 - len(shape)}:
        s.call("flatten", s.x(), 1) if len(shape) > 1 else s.call("unsqueeze", s.x(), 1)
    elif axis in {0, -len(shape)}:
        s.call("reshape", s.x(), (1, -1))
    else:
        head = s.middle("flatten", s.x(), 0, axis % len(shape) - 1)
        s.call("flatten", head, 1)


def _axes(s: Step) -> list[int] | None:
    return [int(a) for a in s.options["axes"]] if "axes" in s.options else s.ints(1)


def _squeeze(s: Step) -> None:
    if s.x().name in s.integers:
        return s.known(s.integers[s.x().name])
    axes = _axes(s)
    s.call("squeeze", s.x()) if axes is None else s.call("squeeze", s.x(), tuple(axes))


def _unsqueeze(s: Step) -> None:
    if s.x().name in s.integers:
        return s.known(s.integers[s.x().name])
    axes = _axes(s) or []
    rank = len(s.tracer.shape(s.x())) + len(axes)
    ordered, value = sorted(a % rank for a in axes), s.x()
    for i, axis in enumerate(ordered):
        value = s.call("unsqueeze", value, axis) if i == len(ordered) - 1 else s.middle("unsqueeze", value, axis)


def _transpose(s: Step) -> None:
    rank = len(s.tracer.shape(s.x()))
    s.call("permute", s.x(), tuple(s.options.get("perm", range(rank - 1, -1, -1))))


def _gather(s: Step) -> None:
    axis = int(s.options.get("axis", 0))
    if s.x().name in s.integers:
        values = s.integers[s.x().name]
        return s.known([values[int(i)] for i in s.tensor(1).reshape(-1).tolist()])
    index = s.tensor(1)
    length = s.tracer.shape(s.x())[axis]
    positions = torch.where(index < 0, index + length, index).long()
    if index.dim() == 0:
        s.call("select", s.x(), axis, int(positions))
    elif index.dim() == 1:
        s.call("index_select", s.x(), axis, s.tracer.constant(positions))
    else:
        raise Missing("a Gather with a table of indices")


def _shape(s: Step) -> None:
    shape = s.tracer.shape(s.x())
    s.known(shape[int(s.options.get("start", 0)) : s.options.get("end")])


def _constant_of_shape(s: Step) -> None:
    value = s.options.get("value")
    number = 0.0 if value is None else value.reshape(-1)[0].item()
    made = s.middle("full", tuple(s.ints(0) or ()), float(number))
    s.call("to", made, value.dtype if value is not None else torch.float32)


def _expand(s: Step) -> None:
    want, shape = s.ints(1) or [], s.tracer.shape(s.x())
    shape = [1] * (len(want) - len(shape)) + shape
    want = [1] * (len(shape) - len(want)) + want
    s.call("expand", s.x(), tuple(max(a, b) if 0 not in (a, b) else 0 for a, b in zip(shape, want, strict=True)))


def _reduce(op: str) -> Callable[[Step], None]:
    def lower(s: Step) -> None:
        axes, keep = _axes(s), bool(s.options.get("keepdims", 1))
        rank = len(s.tracer.shape(s.x()))
        where = tuple(axes) if axes else tuple(range(rank))
        if op == "norm":
            s.call("linalg_vector_norm", s.x(), 2, where, keep)
        else:
            s.call(op, s.x(), where, keep)

    return lower


def _argmax(s: Step) -> None:
    if s.options.get("select_last_index", 0):
        raise Missing("ArgMax with select_last_index")
    s.call("argmax", s.x(), int(s.options.get("axis", 0)), bool(s.options.get("keepdims", 1)))


def _conv(s: Step) -> None:
    weight = s.tensor(1)
    spatial = weight.dim() - 2
    pads = list(s.options.get("pads", [0] * 2 * spatial))
    if s.options.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID", "NOTSET", "VALID"} or pads[:spatial] != pads[spatial:]:
        raise Missing("a Conv with uneven padding")
    one = [1] * spatial
    s.call(
        "convolution", s.x(), s.x(1), s.maybe(2), tuple(s.options.get("strides", one)), tuple(pads[:spatial]), tuple(s.options.get("dilations", one)),
        False, (0,) * spatial, int(s.options.get("group", 1)),
    )  # fmt: skip


def _pool(op: str) -> Callable[[Step], None]:
    def lower(s: Step) -> None:
        size, pads = tuple(s.options["kernel_shape"]), list(s.options.get("pads", [0] * 4))
        plain = s.options.get("auto_pad", b"NOTSET") in {b"NOTSET", "NOTSET"} and not s.options.get("ceil_mode", 0) and not any(pads)
        if len(size) != 2 or not plain or len(s.outputs) != 1 or set(s.options.get("dilations", (1,))) != {1}:
            raise Missing("a pooling of another kind")
        s.call(op, s.x(), size, tuple(s.options.get("strides", (1, 1))))

    return lower


def _batch_norm(s: Step) -> None:
    s.call("batch_norm", s.x(), s.x(1), s.x(2), s.x(3), s.x(4), False, 0.0, float(s.options.get("epsilon", 1e-5)))


def _layer_norm(s: Step) -> None:
    shape = s.tracer.shape(s.x())
    axis = int(s.options.get("axis", -1)) % len(shape)
    s.call("layer_norm", s.x(), tuple(shape[axis:]), s.x(1), s.maybe(2), float(s.options.get("epsilon", 1e-5)))


def _gates(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    parts = tensor.chunk(len(order), 0)
    return torch.cat([parts[i] for i in order], 0).contiguous()


def _recurrent(s: Step) -> None:
    """LSTM: gates i, o, f, c → torch's i, f, g, o. GRU: z, r, h → r, z, n, the same only where linear_before_reset."""
    lstm, o = s.op == "LSTM", s.options
    plain = o.get("direction", b"forward") in {b"forward", "forward"} and not o.get("layout", 0) and "clip" not in o and not o.get("input_forget", 0)
    usual = "activations" not in o or [a.decode() if isinstance(a, bytes) else a for a in o["activations"]] == (["Sigmoid", "Tanh", "Tanh"] if lstm else ["Sigmoid", "Tanh"])
    if not plain or not usual or s.maybe(4) is not None or s.maybe(7) is not None or (not lstm and not o.get("linear_before_reset", 0)):
        raise Missing(f"an {s.op} with unusual options")
    order = (0, 2, 3, 1) if lstm else (1, 0, 2)
    w, r = _gates(s.tensor(1)[0], order), _gates(s.tensor(2)[0], order)
    hidden = r.shape[1]
    biases = s.tensor(3)[0].chunk(2) if s.maybe(3) is not None else (torch.zeros(w.shape[0]),) * 2
    params = tuple(s.tracer.constant(t) for t in (w, r, *(_gates(b, order) for b in biases)))
    batch = s.tracer.shape(s.x())[1]
    starts: list[Any] = [s.maybe(i) or s.middle("zeros", (1, batch, hidden)) for i in ((5, 6) if lstm else (5,))]
    states = tuple(starts) if lstm else starts[0]
    names = [*s.outputs, "", "", ""]
    y, *_ = s.tracer.call("lstm" if lstm else "gru", s.x(), states, params, True, 1, 0.0, False, False, False, outputs=("", names[1], names[2]))
    if names[0]:
        s.tracer.call("unsqueeze", y, 1, outputs=(names[0],))


def _identity(s: Step) -> None:
    if s.x().name in s.integers:
        return s.known(s.integers[s.x().name])
    s.call("identity", s.x())


def _where(s: Step) -> None:
    s.call("where", s.x(0), s.x(1), s.x(2))


def _prelu(s: Step) -> None:
    s.call("prelu", s.x(), s.tracer.constant(s.tensor(1).reshape(-1)))


def _many(op: str) -> Callable[[Step], None]:
    def lower(s: Step) -> None:
        value = s.x()
        if len(s.inputs) == 1:
            s.call("identity", value)
        for i in range(1, len(s.inputs)):
            value = s.call(op, value, s.x(i)) if i == len(s.inputs) - 1 else s.middle(op, value, s.x(i))

    return lower


def _pad(s: Step) -> None:
    pads = s.ints(1) if s.opset >= 11 else list(s.options["pads"])
    if s.options.get("mode", b"constant") not in {b"constant", "constant"} or pads is None or s.maybe(3) is not None:
        raise Missing("a Pad of another kind")
    half = len(pads) // 2
    value = float(s.tensor(2)) if s.maybe(2) is not None else float(s.options.get("value", 0.0))
    s.call("pad", s.x(), tuple(v for i in range(half - 1, -1, -1) for v in (pads[i], pads[half + i])), "constant", value)


def _with(op: str, **defaults: float) -> Callable[[Step], None]:
    def lower(s: Step) -> None:
        s.call(op, s.x(), *(float(s.options.get(name, value)) for name, value in defaults.items()))

    return lower


def _gelu(s: Step) -> None:
    how = s.options.get("approximate", b"none")
    s.call("gelu", s.x(), approximate=how.decode() if isinstance(how, bytes) else how)


def _hard_sigmoid(s: Step) -> None:
    s.call("clamp", s.middle("add", s.middle("mul", s.x(), float(s.options.get("alpha", 0.2))), float(s.options.get("beta", 0.5))), 0.0, 1.0)


def _selu(s: Step) -> None:
    if abs(s.options.get("alpha", 1.6732632) - 1.6732632) > 1e-5 or abs(s.options.get("gamma", 1.050701) - 1.050701) > 1e-5:
        raise Missing("a Selu with other numbers")
    s.call("selu", s.x())


LOWER: dict[str, Callable[[Step], None]] = {
    **{o: _unary(t) for o, t in {
        "Tanh": "tanh", "Relu": "relu", "Sigmoid": "sigmoid", "Softplus": "softplus", "Softsign": "softsign", "Mish": "mish", "HardSwish": "hardswish",
        "Swish": "silu", "Neg": "neg", "Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Abs": "abs", "Erf": "erf", "Reciprocal": "reciprocal", "Sin": "sin",
        "Cos": "cos", "Floor": "floor", "Ceil": "ceil", "Sign": "sign", "Not": "logical_not", "Round": "round", "Atanh": "atanh",
        "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh",
    }.items()},
    **{o: _binary(t) for o, t in {
        "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Equal": "eq", "Greater": "gt", "Less": "lt",
        "GreaterOrEqual": "ge", "LessOrEqual": "le", "And": "logical_and", "Or": "logical_or",
    }.items()},
    "Gemm": _gemm, "Mod": _mod, "MatMul": _matmul, "Clip": _clip, "Softmax": _softmax("softmax"), "LogSoftmax": _softmax("log_softmax"), "Cast": _cast, "Concat": _concat,
    "Slice": _slice, "Split": _split, "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Transpose": _transpose,
    "Gather": _gather, "Shape": _shape, "ConstantOfShape": _constant_of_shape, "Expand": _expand, "ReduceMean": _reduce("mean"), "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("amax"), "ReduceMin": _reduce("amin"), "ReduceL2": _reduce("norm"), "ArgMax": _argmax, "Conv": _conv, "MaxPool": _pool("max_pool2d"),
    "AveragePool": _pool("avg_pool2d"), "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "LSTM": _recurrent, "GRU": _recurrent,
    "Identity": _identity, "Dropout": _identity, "Where": _where, "PRelu": _prelu, "Min": _many("minimum"), "Max": _many("maximum"), "Sum": _many("add"),
    "Pad": _pad, "Elu": _with("elu", alpha=1.0), "LeakyRelu": _with("leaky_relu", alpha=0.01), "Celu": _with("celu", alpha=1.0), "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid, "Selu": _selu,
}  # fmt: skip
"""Operator type → what is written down."""
