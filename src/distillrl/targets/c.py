"""C99: one .h and .c pair without malloc, libraries or undefined behaviour; the header is the contract."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distillrl.targets import c_header, c_images
from distillrl.targets import plan as steps
from distillrl.targets.c_header import STACK_LIMIT
from distillrl.targets.c_kernels import printed
from distillrl.targets.plan import Floats, Plan

FLT_MAX = float(np.finfo(np.float32).max)
COMPILE = "cc -std=c99 -O3 -march=native -ffp-contract=fast -c {name}.c"


def write(plan: Plan, passport: Mapping[str, Any], folder: Path, name: str) -> tuple[list[Path], dict[str, Any]]:
    """Write NAME.h and NAME.c; returns the files, and what memory they take by our count."""
    return write_with(plan, passport, folder, name, dense)


def write_with(plan: Plan, passport: Mapping[str, Any], folder: Path, name: str, how: Callable[[Printer, steps.Dense], None]) -> tuple[list[Path], dict[str, Any]]:
    """As ``write``, with dense layers printed by ``how`` (the int8 target has its own)."""
    name = c_header.identifier(name)
    printer = Printer(plan, name, c_header.fields(plan))
    for state in plan.states:
        printer.where[state.before] = (f"memory->{printer.fields[state.name]}", 0)
    for op in plan.ops:
        printer.lines.append(f"    /* {type(op).__name__}: {' '.join(map(str, plan.shapes[op.out]))} */")
        if isinstance(op, steps.Dense):
            how(printer, op)
        else:
            PRINTERS[type(op)](printer, op)
    body = "".join(f"{line}\n" for line in printer.lines)
    facts = {"flash_constants": printer.bytes, "ram_static": 0, "stack": printer.scratch * 4 + printer.more_stack + 160}
    if printer.scratch * 4 > STACK_LIMIT:
        facts.update(ram_static=printer.scratch * 4, stack=printer.more_stack + 160)
    facts["memory_struct"] = 4 * sum(steps.padded(s.size) for s in plan.states)
    source = _source(printer, body)
    header = c_header.text(plan, passport, name, facts, COMPILE.format(name=name))
    files = [folder / f"{name}.h", folder / f"{name}.c"]
    files[0].write_text(header, encoding="utf-8")
    files[1].write_text(source, encoding="utf-8")
    return files, facts


@dataclass
class Printer:
    """What has been printed so far: where values lie, constants, the functions that are needed, and the lines of the body."""

    plan: Plan
    name: str
    fields: Mapping[str, str]
    where: dict[str, tuple[str, int]] = field(default_factory=dict)
    """value → the array that holds it, and from which entry on."""
    constants: list[str] = field(default_factory=list)
    needed: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    tiles: set[int] = field(default_factory=set)
    """Of how many columns convolutions are needed."""
    bytes: int = 0
    scratch: int = 0
    more_stack: int = 0
    """Bytes that a needed function takes on the stack."""

    def __post_init__(self) -> None:
        places, self.scratch = steps.places(self.plan)
        self.blocks = steps.blocks(self.plan)
        self.where.update({given.name: (f"input->{self.fields[given.name]}", 0) for given in self.plan.inputs})
        self.where.update({value: ("s", at) for value, at in places.items()})

    def pointer(self, value: str, offset: int = 0) -> str:
        """An expression for the array that holds a value, from its entry ``offset`` on."""
        array, start = self.where[value]
        start += offset
        return f"{array} + {start}" if start else array

    def item(self, value: str, index: str | int) -> str:
        """An expression for one entry of a value."""
        array, start = self.where[value]
        if isinstance(index, int):
            return f"{array}[{start + index}]"
        return f"{array}[{start} + {index}]" if start else f"{array}[{index}]"

    def constant(self, values: np.ndarray, kind: str = "float") -> str:
        """The name of a new constant array."""
        name = f"k{len(self.constants)}"
        digits = {"float": "{:.9g}f", "double": "{:.17g}"}.get(kind, "{:d}")
        texts = [_decimal(digits.format(v), kind) for v in values.ravel().tolist()]
        rows = [", ".join(texts[i : i + 12]) for i in range(0, len(texts), 12)]
        self.constants.append(f"static const {kind} {name}[{len(texts)}] = {{\n    " + ",\n    ".join(rows) + "\n};\n")
        self.bytes += len(texts) * {"double": 8, "int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2}.get(kind, 4)
        return name

    def loop(self, value: str, expression: str) -> None:
        """A loop that sets each entry of a value; ``expression`` is of ``i``."""
        self.lines.append(f"    for (i = 0; i < {self.plan.size(value)}; i++) {self.item(value, 'i')} = {expression};")


def _decimal(text: str, kind: str) -> str:
    number = text.rstrip("f") if kind == "float" else text
    if kind in {"float", "double"} and not re.search(r"[.e]", number):
        number += ".0"
    return number + ("f" if kind == "float" else "")


def panels(weight: Floats) -> np.ndarray:
    """[m, n] as ``dense`` reads it: panels of 8 outputs, [m // 8, n, 8], then the rows that are left."""
    m, n = weight.shape
    whole = m - m % 8
    return np.concatenate([weight[:whole].reshape(whole // 8, 8, n).transpose(0, 2, 1).ravel(), weight[whole:].ravel()])


SPARSE = 0.5
"""A layer of which at most this share isn't zero is printed without its zeros, each weight with its place."""


def sparse(p: Printer, weight: np.ndarray) -> tuple[str, str]:
    """Places of the weights that aren't zero, and how many each row has: the arguments ``at`` and ``count``, and the width of a place."""
    kind = "8" if weight.shape[1] <= 256 else "16"
    return f"{p.constant(np.nonzero(weight)[1], f'uint{kind}_t')}, {p.constant(np.count_nonzero(weight, 1), 'uint16_t')}", kind


def is_sparse(weight: np.ndarray, share: float = SPARSE) -> bool:
    """Whether it is smaller without its zeros: places have 16 bits at most, and a row has no more weights than those count."""
    return 0 < int(np.count_nonzero(weight)) <= share * weight.size and weight.shape[1] < 1 << 16


def dense(p: Printer, op: steps.Dense) -> None:
    """A dense layer in float32."""
    if is_sparse(op.weight):
        _sparse_dense(p, op)
        return
    p.needed.add("dense")
    parts = p.blocks.get(op.out, 1)
    n, rows = op.weight.shape[1], len(op.weight) // parts
    for k in range(parts):
        weight, bias = op.weight[k * rows : (k + 1) * rows], op.bias[k * rows : (k + 1) * rows]
        to = p.pointer(op.out, k * steps.padded(rows))
        p.lines.append(f"    dense({p.pointer(op.x)}, {p.constant(panels(weight))}, {p.constant(bias)}, {to}, {n}, {rows});")


def _sparse_dense(p: Printer, op: steps.Dense) -> None:
    parts = p.blocks.get(op.out, 1)
    rows = len(op.weight) // parts
    for k in range(parts):
        weight, bias = op.weight[k * rows : (k + 1) * rows], op.bias[k * rows : (k + 1) * rows]
        # A row without a weight is none to C, where an array has at least one entry: it keeps a zero.
        values = weight[weight != 0] if weight.any() else np.zeros(1, np.float32)
        places, kind = sparse(p, weight) if weight.any() else (f"{p.constant(np.zeros(1, int), 'uint8_t')}, {p.constant(np.zeros(rows, int), 'uint16_t')}", "8")
        p.needed.add(f"sparse{kind}")
        to = p.pointer(op.out, k * steps.padded(rows))
        p.lines.append(f"    sparse{kind}_({p.pointer(op.x)}, {p.constant(values)}, {places}, {p.constant(bias)}, {to}, {rows});")


def _activate(p: Printer, op: steps.Activate) -> None:
    size = p.plan.size(op.out)
    padded = steps.padded(size)
    p.needed.add(op.kind)
    if op.x not in {o.out for o in p.plan.ops}:  # an input: its end is not padded
        p.loop(op.out, p.item(op.x, "i"))
        source = p.pointer(op.out)
    else:
        source = p.pointer(op.x)
    arguments = ""
    if op.kind in {"elu", "clip", "round"}:
        arguments = f", {_number(op.first)}" + (f", {_number(op.second)}" if op.kind == "clip" else "")
    elif op.kind == "leaky":
        slopes = np.zeros(padded, np.float32)
        slopes[:size] = op.first
        arguments = f", LOAD({p.constant(slopes)} + i)" if isinstance(op.first, np.ndarray) else f", SPLAT({_number(op.first)})"
    p.lines.append(f"    for (i = 0; i < {padded}; i += LANES) STORE({p.pointer(op.out)} + i, {op.kind}_(LOAD({source} + i){arguments}));")


def _number(value: float | Floats) -> str:
    return _decimal(f"{float(np.float32(value)):.9g}f", "float")


def _one_hot(p: Printer, op: steps.OneHot) -> None:
    p.loop(op.out, "0.0f")
    at = 0
    for entry, count in enumerate(op.counts):
        p.lines.append(f"    {p.item(op.out, f'{at} + {p.item(op.x, entry)}')} = 1.0f;")
        at += count


def _affine(p: Printer, op: steps.Affine) -> None:
    size = p.plan.size(op.out)
    kind, digits = ("double", ".17g") if op.wide else ("float", ".9g")
    low, high = max(op.low, -FLT_MAX), min(op.high, FLT_MAX)
    numbers = [np.asarray(v, np.float64 if op.wide else np.float32) for v in (op.scale, op.shift)]
    scale, shift = (_decimal(f"{v[0]:{digits}}{'' if op.wide else 'f'}", kind) if v.size == 1 else f"{p.constant(v, kind)}[i]" for v in numbers)
    p.lines.append(f"    for (i = 0; i < {size}; i++) {{")
    p.lines.append(f"        const {kind} v = ({kind}){p.item(op.x, 'i')} * {scale} + {shift};")
    ends = [_decimal(f"{v:{digits}}" + ("" if op.wide else "f"), kind) for v in (low, high)]
    value = f"v < {ends[0]} ? {ends[0]} : v > {ends[1]} ? {ends[1]} : v" if op.wide or op.low > -FLT_MAX or op.high < FLT_MAX else "v"
    p.lines.append(f"        {p.item(op.out, 'i')} = {f'(float)({value})' if op.wide else value};")
    p.lines.append("    }")


def _concat(p: Printer, op: steps.Concat) -> None:
    at = 0
    for x in op.xs:
        p.lines.append(f"    for (i = 0; i < {p.plan.size(x)}; i++) {p.item(op.out, f'{at} + i' if at else 'i')} = (float){p.item(x, 'i')};")
        at += p.plan.size(x)


def _combine(p: Printer, op: steps.Combine) -> None:
    p.loop(op.out, f"{p.item(op.x, 'i')} {'+' if op.kind == 'add' else '*'} {p.item(op.y, 'i')}")


def _take(p: Printer, op: steps.Take) -> None:
    order = np.asarray(op.indices)
    runs = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)
    if len(runs) <= max(4, len(order) // 8):  # some stretches: a loop each, without a table
        at = 0
        for run in runs:
            source, to = (p.item(v, f"{k} + i" if k else "i") for v, k in ((op.x, int(run[0])), (op.out, at)))
            p.lines.append(f"    for (i = 0; i < {len(run)}; i++) {to} = (float){source};")
            at += len(run)
        return
    indices = p.constant(np.asarray(op.indices), "int32_t")
    p.loop(op.out, f"(float){p.item(op.x, f'{indices}[i]')}")


def _gru(p: Printer, op: steps.GruGate) -> None:
    p.needed |= {"sigmoid", "tanh"}
    size = steps.padded(p.plan.size(op.out))
    gi, gh = ([f"LOAD({p.pointer(v, k * size)} + i)" for k in range(3)] for v in (op.gi, op.gh))
    p.lines.append(f"    for (i = 0; i < {size}; i += LANES) {{")
    p.lines.append(f"        const vec reset = sigmoid_({gi[0]} + {gh[0]}), update = sigmoid_({gi[1]} + {gh[1]});")
    p.lines.append(f"        const vec fresh = tanh_({gi[2]} + reset * {gh[2]});")
    p.lines.append(f"        STORE({p.pointer(op.out)} + i, fresh + update * (LOAD({p.pointer(op.h)} + i) - fresh));\n    }}")


def _lstm_cell(p: Printer, op: steps.LstmCell) -> None:
    p.needed |= {"sigmoid", "tanh"}
    size = steps.padded(p.plan.size(op.out))
    into, forget, cell = (f"LOAD({p.pointer(op.gates, k * size)} + i)" for k in range(3))
    value = f"sigmoid_({forget}) * LOAD({p.pointer(op.c)} + i) + sigmoid_({into}) * tanh_({cell})"
    p.lines.append(f"    for (i = 0; i < {size}; i += LANES) STORE({p.pointer(op.out)} + i, {value});")


def _lstm_out(p: Printer, op: steps.LstmOut) -> None:
    p.needed |= {"sigmoid", "tanh"}
    size = steps.padded(p.plan.size(op.out))
    value = f"sigmoid_(LOAD({p.pointer(op.gates, 3 * size)} + i)) * tanh_(LOAD({p.pointer(op.c)} + i))"
    p.lines.append(f"    for (i = 0; i < {size}; i += LANES) STORE({p.pointer(op.out)} + i, {value});")


def _branches(p: Printer, op: steps.Branches) -> None:
    width = op.value.shape[1]
    feature, branches = p.constant(op.feature, "int32_t"), p.constant(op.branches, "int32_t")
    threshold, value = p.constant(op.threshold), p.constant(op.value)
    p.lines.append("    {\n        int32_t node = 0;")
    asked = p.item(op.x, f"{feature}[node]")
    p.lines.append(f"        while ({branches}[2 * node] != node) node = {branches}[2 * node + ({asked} > {threshold}[node])];")
    p.lines.append(f"        for (i = 0; i < {width}; i++) {p.item(op.out, 'i')} = {value}[node * {width} + i];\n    }}")


def _layer_norm(p: Printer, op: steps.LayerNorm) -> None:
    p.needed.add("norm")
    weights = f"{p.constant(op.weight)}, {p.constant(op.bias)}, {_number(op.epsilon)}"
    p.lines.append(f"    norm_({p.pointer(op.x)}, {weights}, {p.pointer(op.out)}, {p.plan.size(op.out)});")


PRINTERS: dict[type, Callable[[Printer, Any], None]] = {
    steps.OneHot: _one_hot,
    steps.Affine: _affine,
    steps.Concat: _concat,
    steps.Combine: _combine,
    steps.Take: _take,
    steps.Activate: _activate,
    steps.LayerNorm: _layer_norm,
    steps.Branches: _branches,
    steps.GruGate: _gru,
    steps.LstmCell: _lstm_cell,
    steps.LstmOut: _lstm_out,
    **c_images.PRINTERS,
}


def _checks(p: Printer) -> list[str]:
    """Conditions that are true for bad input."""
    found = []
    for given in p.plan.inputs:
        where = p.pointer(given.name)
        if given.held in {"float32", "float64"}:
            test = "finite_wide" if given.held == "float64" else "finite"
            p.needed.add(test)
            found.append(f"!{test}_({where}, {given.size})")
        found += [f"{where}[{i}] < 0 || {where}[{i}] >= {n}" for i, n in enumerate(given.categories)]
    return found


def _decide(p: Printer) -> str:
    """The body of decide(): raw outputs → action."""
    rule, size = p.plan.decode, p.plan.raw_size
    if rule.kind == "argmax":
        p.needed.add("best")
        start = f" + {rule.start}" if rule.start > 0 else f" - {-rule.start}" if rule.start else ""
        return f"    output->action = best_(from, {size}){start};\n"
    if rule.kind == "multi":
        p.needed.add("best")
        ends = np.cumsum([0, *rule.nvec])
        return "".join(f"    output->action[{k}] = best_(from + {ends[k]}, {n});\n" for k, n in enumerate(rule.nvec))
    if rule.kind == "threshold":
        return f"    int i;\n    for (i = 0; i < {size}; i++) output->action[i] = from[i] > 0.0f;\n"
    low, high = (np.clip(np.asarray(v, np.float32), -FLT_MAX, FLT_MAX) for v in (rule.low, rule.high))
    lows, highs = p.constant(low), p.constant(high)
    text = f"    int i;\n    for (i = 0; i < {size}; i++) {{\n        const float low = {lows}[i], high = {highs}[i];\n"
    if rule.kind == "tanh":
        p.needed.add("tanh")
        text += "        float v[8] = {from[i]};\n        STORE(v, tanh_(LOAD(v)));\n        v[0] = low + (v[0] + 1.0f) * 0.5f * (high - low);\n"
    else:
        text += "        const float v[1] = {from[i]};\n"
    return text + "        output->action[i] = v[0] < low ? low : v[0] > high ? high : v[0];\n    }\n"


def _source(p: Printer, body: str) -> str:
    plan, upper = p.plan, p.name.upper()
    raw, size = plan.decode.raw_name, plan.raw_size
    checks, decide = _checks(p), _decide(p)
    p.needed.add("finite")
    memory = f"{p.name}_memory *memory, " if plan.states else ""
    storage = "static ALIGNED float" if p.scratch * 4 > STACK_LIMIT else "ALIGNED float"
    refuse = f"    if ({' || '.join(checks)}) return refuse(output, {upper}_BAD_INPUT);\n" if checks else ""
    keep = ""
    for state in plan.states:
        target = p.pointer(state.before)
        keep += f"    for (i = 0; i < {state.size}; i++) {target}[i] = {p.item(state.after, 'i')};\n"
    finite = f"!finite_(output->{raw}, {size})" + (f" || !finite_({p.pointer(plan.source)}, {size})" if plan.source != plan.raw else "")
    finite += "".join(f" || !finite_({p.pointer(s.after)}, {s.size})" for s in plan.states)
    reset = (
        f"void {p.name}_reset({p.name}_memory *memory)\n{{\n    static const {p.name}_memory empty;\n    *memory = empty;\n}}\n\n" if plan.states else ""
    )
    # Elementwise steps run to the end of the last vector: nothing there may be read before it is written.
    loose = [op.x for op in plan.ops if isinstance(op, steps.Activate)] + [op.out for op in plan.ops if isinstance(op, steps.GruGate | steps.LstmCell)]
    zeros = " = {0}" if storage == "ALIGNED float" and any(plan.size(value) % 8 for value in loose) else ""
    return (
        f'/* {p.name}.c: made by distillrl. See {p.name}.h for the contract. */\n#include "{p.name}.h"\n\n#include <stddef.h>\n\n'
        + "\n".join(p.constants)
        + printed(p.needed, p.name, p.tiles)
        + f"\n/* Raw outputs to action. */\nstatic void decide(const float *from, {p.name}_output *output)\n{{\n{decide}}}\n\n"
        + f"static int refuse({p.name}_output *output, int status)\n{{\n    int i;\n"
        + f"    for (i = 0; i < {size}; i++) output->{raw}[i] = 0.0f;\n    decide(output->{raw}, output);\n    return status;\n}}\n\n"
        + reset
        + f"int {p.name}_act({memory}const {p.name}_input *input, {p.name}_output *output)\n{{\n    {storage} s[{max(8, p.scratch)}]{zeros};\n    int i;\n"
        + refuse
        + body
        + f"    for (i = 0; i < {size}; i++) output->{raw}[i] = {p.item(plan.raw, 'i')};\n"
        + f"    if ({finite}) return refuse(output, {upper}_OVERFLOW);\n"
        + keep
        + f"    decide({f'output->{raw}' if plan.source == plan.raw else p.pointer(plan.source)}, output);\n    return {upper}_OK;\n}}\n"
    )
