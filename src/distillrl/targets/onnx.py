"""ONNX: one file with a dynamic batch, built from the plan, checked by onnx, with the passport in its metadata."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distillrl.errors import Missing
from distillrl.targets import plan as steps
from distillrl.targets.c_header import NOISES
from distillrl.targets.plan import NOISE, Plan

OPSET = 28
"""The newest operator set that onnxruntime 1.32 runs; an older onnx writes its own newest."""
ROWS = "batch"
CONTRACT = (
    "Inputs are observations as the environment gives them, [batch, ...]; action is the most likely one, in the environment's units. Rows don't "
    "depend on each other. Nothing is checked: a row with NaN or infinity gives NaN in its logits or mean, and for a discrete action some action "
    "that exists; a category outside of its range counts as none. Memory, where there is any, goes in as NAME_in and comes out as NAME_out: give "
    "zeros where an episode starts."
)


def write(plan: Plan, passport: Mapping[str, Any], folder: Path, name: str) -> tuple[list[Path], dict[str, Any]]:
    """Write NAME.onnx; raises Missing without the package onnx."""
    model = build(plan, passport)
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return [path], {"opset": model.opset_import[0].version, "inputs": [i.name for i in model.graph.input], "outputs": [o.name for o in model.graph.output]}


def build(plan: Plan, passport: Mapping[str, Any]) -> Any:
    """The checked onnx.ModelProto."""
    try:
        import onnx
        from onnx import helper
    except ImportError:
        raise Missing("export --to onnx needs the package onnx: pip install 'distillrl[onnx]'") from None
    printer = _Printer(plan)
    for op in plan.ops:
        PRINTERS[type(op)](printer, op)
    printer.node("Identity", [printer.names[plan.raw]], plan.decode.raw_name)
    _decode(printer)
    for state in plan.states:
        printer.node("Identity", [printer.names[state.after]], f"{state.name}_out")
    decoded = np.dtype(plan.decode.dtype if not plan.decode.discrete else "int64")
    lead = [] if plan.decode.kind == "argmax" else list(plan.decode.shape)
    outputs = [printer.described("action", decoded, lead), printer.described(plan.decode.raw_name, np.dtype("float32"), [plan.raw_size])]
    outputs += [printer.described(f"{s.name}_out", np.dtype("float32"), [s.size]) for s in plan.states]
    graph = helper.make_graph(printer.nodes, "policy", printer.inputs, outputs, printer.constants)
    version = min(OPSET, onnx.defs.onnx_opset_version())
    opset = [helper.make_opsetid("", version)]
    model = helper.make_model(graph, opset_imports=opset, producer_name="distillrl", ir_version=helper.find_min_ir_version_for(opset))
    helper.set_model_props(model, {"passport": json.dumps(passport, sort_keys=True), "contract": CONTRACT + (f" The action is a sample: {_noise(plan)}." if plan.noise else ""), "log_std": _log_std(plan)})
    onnx.checker.check_model(model, full_check=True)
    return model


def _noise(plan: Plan) -> str:
    """What the caller gives, in words."""
    return f"give the input {plan.noise} {NOISES[NOISE[plan.decode.kind]]}"


def _log_std(plan: Plan) -> str:
    return "null" if plan.log_std is None else json.dumps([float(f"{v:.9g}") for v in plan.log_std.tolist()])


class _Printer:
    """Nodes, constants and inputs so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        taken = {"action", plan.decode.raw_name} | {op.out for op in plan.ops}
        self.inputs: list[Any] = []
        self.names = {op.out: op.out for op in plan.ops}
        for given in plan.inputs:
            name = f"{given.name}_in" if given.name in taken else given.name
            self.inputs.append(self.described(name, np.dtype(given.dtype), list(given.shape)))
            self.names[given.name] = name if len(given.shape) == 1 else self.flat(name, given.size)
        for state in plan.states:
            self.inputs.append(self.described(f"{state.name}_in", np.dtype("float32"), [state.size]))
            self.names[state.before] = f"{state.name}_in"

    def described(self, name: str, dtype: np.dtype, shape: list[int]) -> Any:
        from onnx import helper

        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), [ROWS, *shape])

    def node(self, kind: str, inputs: list[str], out: str | None = None, **attributes: Any) -> str:
        """Add a node; the name of its (only) output."""
        from onnx import helper

        out = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def constant(self, values: Any, dtype: str = "float32") -> str:
        from onnx import numpy_helper

        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def flat(self, name: str, size: int) -> str:
        return self.node("Reshape", [name, self.constant([-1, size], "int64")])

    def floats(self, value: str) -> str:
        """A value as float32."""
        given = next((g for g in self.plan.inputs if g.name == value), None)
        name = self.names[value]
        return name if given is None or given.dtype == "float32" else self.node("Cast", [name], to=1)

    def slice(self, name: str, start: int, stop: int) -> str:
        ends = [self.constant([v], "int64") for v in (start, stop, -1)]
        return self.node("Slice", [name, *ends])


def _dense(p: _Printer, op: steps.Dense) -> None:
    p.node("Gemm", [p.floats(op.x), p.constant(op.weight), p.constant(op.bias)], op.out, transB=1)


def _activate(p: _Printer, op: steps.Activate) -> None:
    x = p.floats(op.x)
    if op.kind == "silu":
        p.node("Mul", [x, p.node("Sigmoid", [x])], op.out)
    elif op.kind == "clip":
        p.node("Clip", [x, p.constant(op.first), p.constant(op.second)], op.out)
    elif op.kind == "leaky":
        p.node("PRelu", [x, p.constant(np.atleast_1d(op.first))], op.out)
    elif op.kind in {"gelu", "gelu_tanh"}:
        p.node("Gelu", [x], op.out, approximate="tanh" if op.kind == "gelu_tanh" else "none")
    elif op.kind == "round":
        p.node("Sub", [p.node("Floor", [p.node("Add", [x, p.constant(float(np.max(op.first)) + 0.5)])]), p.constant(op.first)], op.out)
    elif op.kind == "step":
        p.node("Cast", [p.node("Greater", [x, p.constant(0.0)])], op.out, to=1)
    elif op.kind == "elu":
        p.node("Elu", [x], op.out, alpha=float(op.first))
    else:
        p.node(PLAIN[op.kind], [x], op.out)


PLAIN = {
    "tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "erf": "Erf", "softplus": "Softplus", "mish": "Mish",
}  # fmt: skip


def _affine(p: _Printer, op: steps.Affine) -> None:
    kind = "float64" if op.wide else "float32"
    x = p.node("Cast", [p.names[op.x]], to=11) if op.wide else p.floats(op.x)
    x = p.node("Add", [p.node("Mul", [x, p.constant(op.scale, kind)]), p.constant(op.shift, kind)])
    if np.isfinite([op.low, op.high]).any():
        x = p.node("Clip", [x, p.constant(op.low, kind), p.constant(op.high, kind)])
    p.node("Cast", [x], op.out, to=1)


def _concat(p: _Printer, op: steps.Concat) -> None:
    p.node("Concat", [p.floats(x) for x in op.xs], op.out, axis=-1)


def _combine(p: _Printer, op: steps.Combine) -> None:
    p.node("Add" if op.kind == "add" else "Mul", [p.floats(op.x), p.floats(op.y)], op.out)


def _branches(p: _Printer, op: steps.Branches) -> None:
    x = p.floats(op.x)
    feature, branches = p.constant(op.feature, "int64"), p.constant(op.branches.ravel(), "int64")
    threshold, one, two = p.constant(op.threshold), p.constant([1], "int64"), p.constant(2, "int64")
    rows = p.slice(p.node("Shape", [x]), 0, 1)
    node = p.node("Expand", [p.constant(0, "int64"), rows])
    for _ in range(op.depth):
        column = p.node("Unsqueeze", [p.node("Gather", [feature, node]), one])
        seen = p.node("Squeeze", [p.node("GatherElements", [x, column], axis=1), one])
        no = p.node("Cast", [p.node("Greater", [seen, p.node("Gather", [threshold, node])])], to=7)
        node = p.node("Gather", [branches, p.node("Add", [p.node("Mul", [node, two]), no])])
    p.node("Gather", [p.constant(op.value), node], op.out, axis=0)


def _one_hot(p: _Printer, op: steps.OneHot) -> None:
    x = p.node("Cast", [p.names[op.x]], to=7)
    parts = []
    for i, count in enumerate(op.counts):
        column = p.node("Reshape", [p.slice(x, i, i + 1), p.constant([-1], "int64")])
        categories = p.constant(np.arange(count), "int64")
        parts.append(p.node("Cast", [p.node("Equal", [p.node("Unsqueeze", [column, p.constant([1], "int64")]), categories])], to=1))
    p.node("Concat", parts, op.out, axis=-1)


def _layer_norm(p: _Printer, op: steps.LayerNorm) -> None:
    p.node("LayerNormalization", [p.floats(op.x), p.constant(op.weight), p.constant(op.bias)], op.out, axis=-1, epsilon=float(op.epsilon))


def _gru(p: _Printer, op: steps.GruGate) -> None:
    n = p.plan.size(op.out)
    gi, gh, h = p.names[op.gi], p.names[op.gh], p.names[op.h]
    gates = p.node("Sigmoid", [p.node("Add", [p.slice(gi, 0, 2 * n), p.slice(gh, 0, 2 * n)])])
    kept = p.node("Mul", [p.slice(gates, 0, n), p.slice(gh, 2 * n, 3 * n)])
    new = p.node("Tanh", [p.node("Add", [p.slice(gi, 2 * n, 3 * n), kept])])
    p.node("Add", [new, p.node("Mul", [p.slice(gates, n, 2 * n), p.node("Sub", [h, new])])], op.out)


def _lstm_cell(p: _Printer, op: steps.LstmCell) -> None:
    n, gates = p.plan.size(op.out), p.names[op.gates]
    kept = p.node("Mul", [p.node("Sigmoid", [p.slice(gates, n, 2 * n)]), p.names[op.c]])
    new = p.node("Mul", [p.node("Sigmoid", [p.slice(gates, 0, n)]), p.node("Tanh", [p.slice(gates, 2 * n, 3 * n)])])
    p.node("Add", [kept, new], op.out)


def _lstm_out(p: _Printer, op: steps.LstmOut) -> None:
    n = p.plan.size(op.out)
    p.node("Mul", [p.node("Sigmoid", [p.slice(p.names[op.gates], 3 * n, 4 * n)]), p.node("Tanh", [p.names[op.c]])], op.out)


def _conv(p: _Printer, op: steps.Conv) -> None:
    image = p.node("Reshape", [p.floats(op.x), p.constant([-1, *p.plan.shapes[op.x]], "int64")])
    made = p.node("Conv", [image, p.constant(op.weight), p.constant(op.bias)], strides=list(op.stride))
    p.node("Reshape", [made, p.constant([-1, p.plan.size(op.out)], "int64")], op.out)


def _pad(p: _Printer, op: steps.Pad) -> None:
    image = p.node("Reshape", [p.floats(op.x), p.constant([-1, *p.plan.shapes[op.x]], "int64")])
    made = p.node("Pad", [image, p.constant([0, 0, op.rows, op.columns] * 2, "int64")])
    p.node("Reshape", [made, p.constant([-1, p.plan.size(op.out)], "int64")], op.out)


def _transpose(p: _Printer, op: steps.Transpose) -> None:
    image = p.node("Reshape", [p.floats(op.x), p.constant([-1, *p.plan.shapes[op.x]], "int64")])
    made = p.node("Transpose", [image], perm=[0, 3, 1, 2])
    p.node("Reshape", [made, p.constant([-1, p.plan.size(op.out)], "int64")], op.out)


def _resample(p: _Printer, op: steps.Resample) -> None:
    """A product with a matrix [n, m] that is zero but for the taps."""
    n, m = p.plan.size(op.x) // (op.before * op.after), op.places.shape[1]
    matrix = np.zeros((m, n), np.float32)
    np.add.at(matrix, (np.tile(np.arange(m), (len(op.places), 1)), op.places), op.weights)
    image = p.node("Reshape", [p.floats(op.x), p.constant([-1, op.before, n, op.after], "int64")])
    sums = p.node("Mul", [p.node("MatMul", [p.constant(matrix), image]), p.constant(1 / op.whole)])
    sums = p.node("Floor", [p.node("Add", [sums, p.constant(0.5)])]) if op.pixels else sums
    p.node("Reshape", [sums, p.constant([-1, p.plan.size(op.out)], "int64")], op.out)


def _max_pool(p: _Printer, op: steps.MaxPool) -> None:
    image = p.node("Reshape", [p.floats(op.x), p.constant([-1, *p.plan.shapes[op.x]], "int64")])
    made = p.node("MaxPool", [image], kernel_shape=list(op.kernel), strides=list(op.stride), pads=list(op.padding) * 2)
    p.node("Reshape", [made, p.constant([-1, p.plan.size(op.out)], "int64")], op.out)


PRINTERS: dict[type, Callable[[_Printer, Any], object]] = {
    steps.Dense: _dense,
    steps.Activate: _activate,
    steps.Affine: _affine,
    steps.Branches: _branches,
    steps.Concat: _concat,
    steps.Combine: _combine,
    steps.OneHot: _one_hot,
    steps.Take: lambda p, op: p.node("Gather", [p.floats(op.x), p.constant(op.indices, "int64")], op.out, axis=1),
    steps.LayerNorm: _layer_norm,
    steps.GruGate: _gru,
    steps.LstmCell: _lstm_cell,
    steps.LstmOut: _lstm_out,
    steps.Conv: _conv,
    steps.Pad: _pad,
    steps.Transpose: _transpose,
    steps.Resample: _resample,
    steps.MaxPool: _max_pool,
}


def _decode(p: _Printer) -> None:
    rule, raw = p.plan.decode, p.names[p.plan.source]
    if rule.kind == "argmax":
        best = p.node("ArgMax", [raw], axis=-1, keepdims=0)
        p.node("Add", [best, p.constant(rule.start, "int64")], "action")
        return
    if rule.kind == "multi":
        ends = np.cumsum([0, *rule.nvec]).tolist()
        chosen = p.node("Concat", [p.node("ArgMax", [p.slice(raw, a, b)], axis=-1, keepdims=1) for a, b in itertools.pairwise(ends)], axis=-1)
    elif rule.kind == "threshold":
        chosen = p.node("Cast", [p.node("Greater", [raw, p.constant(0.0)])], to=7)
    else:
        low, high = np.asarray(rule.low, np.float32), np.asarray(rule.high, np.float32)
        chosen = raw
        if rule.kind == "tanh":
            half = p.node("Mul", [p.node("Add", [p.node("Tanh", [raw]), p.constant(1.0)]), p.constant(0.5)])
            chosen = p.node("Add", [p.constant(low), p.node("Mul", [half, p.constant(high - low)])])
        chosen = p.node("Min", [p.node("Max", [chosen, p.constant(low)]), p.constant(high)])
        if rule.dtype != "float32":
            from onnx import helper

            chosen = p.node("Cast", [chosen], to=helper.np_dtype_to_tensor_dtype(np.dtype(rule.dtype)))
    p.node("Reshape", [chosen, p.constant([-1, *rule.shape], "int64")], "action")
