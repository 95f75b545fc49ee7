"""ONNX's operators in the words of ``operators``: one function for each, from a node to what is written down.

The meaning of each is ONNX's operator specification (onnx.ai/onnx/operators), opsets 7 to 25. An operator or an option
that isn't here or in ``onnx_moves`` raises Missing, and the file is run by onnxruntime instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distillrl.errors import Missing
from distillrl.teachers.onnx_moves import MOVES, axes_of
from distillrl.teachers.onnx_step import Step


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


def _reduce(op: str) -> Callable[[Step], None]:
    def lower(s: Step) -> None:
        axes, keep = axes_of(s), bool(s.options.get("keepdims", 1))
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
    **MOVES,
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
    "Gemm": _gemm, "Mod": _mod, "MatMul": _matmul, "Clip": _clip, "Softmax": _softmax("softmax"), "LogSoftmax": _softmax("log_softmax"), "ReduceMean": _reduce("mean"), "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("amax"), "ReduceMin": _reduce("amin"), "ReduceL2": _reduce("norm"), "ArgMax": _argmax, "Conv": _conv, "MaxPool": _pool("max_pool2d"),
    "AveragePool": _pool("avg_pool2d"), "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm, "LSTM": _recurrent, "GRU": _recurrent,
    "Where": _where, "PRelu": _prelu, "Min": _many("minimum"), "Max": _many("maximum"), "Sum": _many("add"),
    "Elu": _with("elu", alpha=1.0), "LeakyRelu": _with("leaky_relu", alpha=0.01), "Celu": _with("celu", alpha=1.0), "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid, "Selu": _selu,
}  # fmt: skip
"""Operator type → what is written down."""
