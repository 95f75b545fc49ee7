"""JavaScript: one ES module without any dependency, and, for CartPole, a page where it plays."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distillrl.targets import plan as steps
from distillrl.targets.c_activations import RATIONAL
from distillrl.targets.js_page import CARTPOLE
from distillrl.targets.plan import NOISE, Plan

FUNCTIONS = {
    "dense": """function dense(x, w, b, y) {
  const n = x.length, m = y.length;
  for (let j = 0, at = 0; j < m; j++) {
    let a = b[j], c = 0, d = 0, e = 0, i = 0;
    for (; i + 4 <= n; i += 4, at += 4) {
      a += x[i] * w[at]; c += x[i + 1] * w[at + 1]; d += x[i + 2] * w[at + 2]; e += x[i + 3] * w[at + 3];
    }
    for (; i < n; i++, at++) a += x[i] * w[at];
    y[j] = a + c + d + e;
  }
}""",
    "sigmoid": "const sigmoid = (v) => 0.5 * Math.tanh(0.5 * v) + 0.5;",
    "softplus": "const softplus = (v) => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));",
    "erf": f"""const ERF_P = {list(RATIONAL['erf'][1][::-1])}, ERF_Q = {list(RATIONAL['erf'][2][::-1])};
function erf(v) {{
  const x = Math.min(Math.max(v, -4), 4), s = x * x;
  return x * ERF_P.reduce((sum, c) => sum * s + c, 0) / ERF_Q.reduce((sum, c) => sum * s + c, 0);
}}""",
    "norm": """function norm(x, w, b, epsilon, y) {
  let mean = 0, variance = 0;
  for (const v of x) mean += v / x.length;
  for (const v of x) variance += (v - mean) ** 2 / x.length;
  for (let i = 0; i < x.length; i++) y[i] = (x[i] - mean) / Math.sqrt(variance + epsilon) * w[i] + b[i];
}""",
    "best": """function best(x, from, to) {
  let at = from;
  for (let i = from + 1; i < to; i++) if (x[i] > x[at]) at = i;
  return at - from;
}""",
    "resample": """function resample(x, before, after, places, weights, whole, pixels, y) {
  const m = y.length / (before * after), n = x.length / (before * after), taps = places.length / m;
  for (let b = 0; b < before; b++) for (let i = 0; i < m; i++) for (let a = 0; a < after; a++) {
    let sum = 0;
    for (let k = 0; k < taps; k++) sum += weights[k * m + i] * x[(b * n + places[k * m + i]) * after + a];
    y[(b * m + i) * after + a] = pixels ? Math.floor(sum / whole + 0.5) : sum / whole;
  }
}""",
    "pool": """function pool(x, [channels, height, width], [kh, kw], [sy, sx], [py, px], y, [, rows, columns]) {
  let to = 0;
  for (let i = 0; i < channels; i++) for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
    let most = -Infinity;
    for (let u = Math.max(0, r * sy - py); u < Math.min(height, r * sy - py + kh); u++)
      for (let v = Math.max(0, c * sx - px); v < Math.min(width, c * sx - px + kw); v++) most = Math.max(most, x[(i * height + u) * width + v]);
    y[to++] = most;
  }
}""",
    "conv": """function conv(x, [channels, height, width], w, b, [kh, kw], [sy, sx], y, [out, rows, columns]) {
  let to = 0;
  for (let o = 0; o < out; o++) for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
    let sum = b[o], at = o * channels * kh * kw;
    for (let i = 0; i < channels; i++) for (let u = 0; u < kh; u++) {
      const from = (i * height + r * sy + u) * width + c * sx;
      for (let v = 0; v < kw; v++, at++) sum += x[from + v] * w[at];
    }
    y[to++] = sum;
  }
}""",
}
ACTIVATE = {
    "tanh": "Math.tanh(v)",
    "relu": "v < 0 ? 0 : v",
    "sigmoid": "sigmoid(v)",
    "silu": "v * sigmoid(v)",
    "exp": "Math.exp(v)",
    "log": "Math.log(v)",
    "sqrt": "Math.sqrt(v)",
    "reciprocal": "1 / v",
    "erf": "erf(v)",
    "step": "v > 0 ? 1 : 0",
    "softplus": "softplus(v)",
    "mish": "v * Math.tanh(softplus(v))",
    "round": "Math.floor(v + 0.5)",
    "elu": "v > 0 ? v : {first} * Math.expm1(v)",
    "gelu": "0.5 * v * (1 + erf(v * Math.SQRT1_2))",
    "gelu_tanh": "0.5 * v * (1 + Math.tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)))",
    "leaky": "v > 0 ? v : v * {first}",
    "clip": "v < {first} ? {first} : v > {second} ? {second} : v",
}


def write(plan: Plan, passport: Mapping[str, Any], folder: Path, name: str) -> tuple[list[Path], dict[str, Any]]:
    """Write NAME.js, and NAME.html where the passport's environment is a CartPole."""
    files = [folder / f"{name}.js"]
    module = source(plan, passport)
    files[0].write_text(module, encoding="utf-8")
    if str(passport.get("env", "")).rpartition(":")[2].startswith("CartPole") and plan.action_size == 1 and [g.size for g in plan.inputs] == [4]:
        files.append(folder / f"{name}.html")
        # The module lies inside of the page: a page opened as a file may not import another file.
        inside = module.replace("export class", "class").replace("export const", "const").replace("</", "<\\/")
        files[1].write_text(CARTPOLE.replace("/*POLICY*/", inside), encoding="utf-8")
    return files, {}


def source(plan: Plan, passport: Mapping[str, Any]) -> str:
    """The text of the module."""
    printer = _Printer(plan)
    for op in plan.ops:
        PRINTERS[type(op)](printer, op)
    checks = "\n".join(_check(printer, i) for i in range(len(plan.inputs)))
    keep = "\n".join(f"    this.{printer.names[s.before]}.set({printer.names[s.after]});" for s in plan.states)
    decide = _decide(plan)
    body = "\n".join(printer.lines)
    used = [code for name, code in FUNCTIONS.items() if f"{name}(" in body + decide]
    return TEMPLATE % {
        "passport": json.dumps(passport, sort_keys=True).replace("\u2028", "").replace("\u2029", ""),
        "log_std": json.dumps(None if plan.log_std is None else [float(f"{v:.9g}") for v in plan.log_std.tolist()]),
        "data": base64.b64encode(b"".join(printer.blob)).decode(),
        "constants": "\n".join(printer.constants),
        "functions": "\n\n".join(used),
        "buffers": "\n".join(f"    this.{name} = new {kind}({size});" for name, kind, size in printer.buffers),
        "forget": " ".join(f"this.{printer.names[s.before]}.fill(0);" for s in plan.states),
        "local": "".join(f"    const {name} = this.{name};\n" for name, _, _ in printer.buffers),
        "checks": checks,
        "body": body,
        "keep": keep,
        "raw": plan.decode.raw_name,
        "values": printer.names[plan.raw],
        "decided": printer.names[plan.source],
        "sampled": f"The action is a sample: its noise is drawn with Math.random, or given as the group {plan.noise}." if plan.noise else "The action is the most likely one.",
        "decide": decide,
        "takes": ", ".join(f"{g.name}: {list(g.shape)}" for g in plan.inputs),
        "gives": "a number" if plan.action_size == 1 and plan.decode.kind == "argmax" else f"an array of {plan.action_size} numbers",
    }


class _Printer:
    """Names of values, and what was printed so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.names = {op.out: op.out for op in plan.ops}
        self.names |= {g.name: f"x{i}" for i, g in enumerate(plan.inputs)} | {s.before: f"h{i}" for i, s in enumerate(plan.states)}
        arrays = {"float64": "Float64Array", "float32": "Float32Array"}
        self.buffers = [(f"x{i}", arrays.get(g.held, "Int32Array"), g.size) for i, g in enumerate(plan.inputs)]
        self.buffers += [(f"h{i}", "Float32Array", s.size) for i, s in enumerate(plan.states)]
        self.buffers += [(op.out, "Float32Array", plan.size(op.out)) for op in plan.ops]
        self.constants: list[str] = []
        self.blob: list[bytes] = []
        self.lines: list[str] = []
        self.offset = 0

    def constant(self, values: Any, kind: str = "<f4") -> str:
        array = np.ascontiguousarray(values).astype(kind)
        data = array.tobytes() + b"\0" * (-array.nbytes % 8)
        name = f"K{len(self.constants)}"
        view = {"<f4": "Float32Array", "<f8": "Float64Array", "<i4": "Int32Array"}[kind]
        self.constants.append(f"const {name} = new {view}(DATA, {self.offset}, {array.size});")
        self.blob.append(data)
        self.offset += len(data)
        return name

    def each(self, out: str, expression: str, x: str = "") -> None:
        value = f"const v = {self.names[x]}[i]; " if x else ""
        self.lines.append(f"    for (let i = 0; i < {self.plan.size(out)}; i++) {{ {value}{out}[i] = {expression}; }}")


UNIFORM = "(Math.random() || 0.5)"
DRAW = {
    "gumbel": f"-Math.log(-Math.log({UNIFORM}))",
    "logistic": f"Math.log(1 / {UNIFORM} - 1)",
    "normal": f"Math.sqrt(-2 * Math.log({UNIFORM})) * Math.cos(2 * Math.PI * Math.random())",
}
"""Noise of a sampled action; Math.random is below 1, and may be 0."""


def _check(p: _Printer, i: int) -> str:
    given = p.plan.inputs[i]
    if given.name == p.plan.noise:
        drawn = DRAW[NOISE[p.plan.decode.kind]]
        return f"    take(x{i}, (one ? undefined : obs?.[{json.dumps(given.name)}]) ?? Array.from(x{i}, () => {drawn}), {json.dumps(given.name)});"
    lines = [f"    take(x{i}, one && {'true' if len(p.plan.inputs) - bool(p.plan.noise) == 1 else 'false'} ? obs : obs?.[{json.dumps(given.name)}], {json.dumps(given.name)});"]
    lines += [f'    if (x{i}[{k}] < 0 || x{i}[{k}] >= {n}) throw new RangeError("a category outside of 0 to {n - 1}");' for k, n in enumerate(given.categories)]
    return "\n".join(lines)


def _activate(p: _Printer, op: steps.Activate) -> None:
    first = f"{p.constant(op.first)}[i]" if isinstance(op.first, np.ndarray) else f"({op.first!r})"
    p.each(op.out, ACTIVATE[op.kind].format(first=first, second=f"({op.second!r})"), op.x)


def _one_hot(p: _Printer, op: steps.OneHot) -> None:
    p.lines.append(f"    {op.out}.fill(0);")
    for k, at in enumerate(np.cumsum([0, *op.counts[:-1]])):
        p.lines.append(f"    {op.out}[{at} + {p.names[op.x]}[{k}]] = 1;")


def _affine(p: _Printer, op: steps.Affine) -> None:
    kind = "<f8" if op.wide else "<f4"
    scale, shift = (_number(float(v[0])) if v.size == 1 else f"{p.constant(v, kind)}[i]" for v in (op.scale, op.shift))
    value = f"v * {scale} + {shift}"
    if np.isfinite([op.low, op.high]).any():
        value = f"Math.min(Math.max({value}, {_number(op.low)}), {_number(op.high)})"
    p.each(op.out, value, op.x)


def _number(value: float) -> str:
    return repr(value) if np.isfinite(value) else "-Infinity" if value < 0 else "Infinity"


def _concat(p: _Printer, op: steps.Concat) -> None:
    at = 0
    for x in op.xs:
        p.lines.append(f"    {op.out}.set({p.names[x]}, {at});")
        at += p.plan.size(x)


def _combine(p: _Printer, op: steps.Combine) -> None:
    p.each(op.out, f"v {'+' if op.kind == 'add' else '*'} {p.names[op.y]}[i]", op.x)


def _branches(p: _Printer, op: steps.Branches) -> None:
    feature, branches = p.constant(op.feature, "<i4"), p.constant(op.branches, "<i4")
    threshold, value, width = p.constant(op.threshold), p.constant(op.value), op.value.shape[1]
    p.lines.append("    {\n    let node = 0;")
    p.lines.append(f"    while ({branches}[2 * node] !== node) node = {branches}[2 * node + ({p.names[op.x]}[{feature}[node]] > {threshold}[node] ? 1 : 0)];")
    p.each(op.out, f"{value}[node * {width} + i]")
    p.lines.append("    }")


def _gru(p: _Printer, op: steps.GruGate) -> None:
    n, gi, gh = p.plan.size(op.out), p.names[op.gi], p.names[op.gh]
    reset, update = (f"sigmoid({gi}[{k}i] + {gh}[{k}i])" for k in ("", f"{n} + "))
    new = f"Math.tanh({gi}[{2 * n} + i] + {reset} * {gh}[{2 * n} + i])"
    p.each(op.out, f"({new}) * (1 - {update}) + {update} * v", op.h)


def _lstm_cell(p: _Printer, op: steps.LstmCell) -> None:
    n, g = p.plan.size(op.out), p.names[op.gates]
    p.each(op.out, f"sigmoid({g}[{n} + i]) * v + sigmoid({g}[i]) * Math.tanh({g}[{2 * n} + i])", op.c)


def _lstm_out(p: _Printer, op: steps.LstmOut) -> None:
    p.each(op.out, f"sigmoid({p.names[op.gates]}[{3 * p.plan.size(op.out)} + i]) * Math.tanh(v)", op.c)


def _conv(p: _Printer, op: steps.Conv) -> None:
    shapes = list(p.plan.shapes[op.x]), list(op.weight.shape[2:]), list(op.stride), list(p.plan.shapes[op.out])
    weights = f"{p.constant(op.weight)}, {p.constant(op.bias)}"
    p.lines.append(f"    conv({p.names[op.x]}, {shapes[0]}, {weights}, {shapes[1]}, {shapes[2]}, {op.out}, {shapes[3]});")


def _pad(p: _Printer, op: steps.Pad) -> None:
    (_, height, width), (_, rows, columns) = p.plan.shapes[op.x], p.plan.shapes[op.out]
    row, column = f"(Math.floor(i / {columns}) % {rows} - {op.rows})", f"(i % {columns} - {op.columns})"
    inside = f"{row} >= 0 && {row} < {height} && {column} >= 0 && {column} < {width}"
    p.each(op.out, f"{inside} ? {p.names[op.x]}[(Math.floor(i / {rows * columns}) * {height} + {row}) * {width} + {column}] : 0")


def _transpose(p: _Printer, op: steps.Transpose) -> None:
    height, width, channels = p.plan.shapes[op.x]
    p.each(op.out, f"{p.names[op.x]}[i % {height * width} * {channels} + Math.floor(i / {height * width})]")


def _layer_norm(p: _Printer, op: steps.LayerNorm) -> None:
    p.lines.append(f"    norm({p.names[op.x]}, {p.constant(op.weight)}, {p.constant(op.bias)}, {op.epsilon!r}, {op.out});")


def _resample(p: _Printer, op: steps.Resample) -> None:
    tables = f"{p.constant(op.places, '<i4')}, {p.constant(op.weights)}, {op.whole!r}, {json.dumps(op.pixels)}"
    p.lines.append(f"    resample({p.names[op.x]}, {op.before}, {op.after}, {tables}, {op.out});")


def _max_pool(p: _Printer, op: steps.MaxPool) -> None:
    shapes = list(p.plan.shapes[op.x]), list(op.kernel), list(op.stride), list(op.padding), list(p.plan.shapes[op.out])
    p.lines.append(f"    pool({p.names[op.x]}, {shapes[0]}, {shapes[1]}, {shapes[2]}, {shapes[3]}, {op.out}, {shapes[4]});")


PRINTERS: dict[type, Callable[[_Printer, Any], None]] = {
    steps.Dense: lambda p, op: p.lines.append(f"    dense({p.names[op.x]}, {p.constant(op.weight)}, {p.constant(op.bias)}, {op.out});"),
    steps.Activate: _activate,
    steps.OneHot: _one_hot,
    steps.Affine: _affine,
    steps.Branches: _branches,
    steps.Concat: _concat,
    steps.Combine: _combine,
    steps.Take: lambda p, op: p.each(op.out, f"{p.names[op.x]}[{p.constant(op.indices, '<i4')}[i]]"),
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


def _decide(plan: Plan) -> str:
    rule = plan.decode
    if rule.kind == "argmax":
        return f"    return best(raw, 0, {plan.raw_size}){f' + {rule.start}' if rule.start else ''};"
    if rule.kind == "multi":
        ends = np.cumsum([0, *rule.nvec]).tolist()
        return f"    return [{', '.join(f'best(raw, {a}, {b})' for a, b in itertools.pairwise(ends))}];"
    if rule.kind == "threshold":
        return "    return Array.from(raw, (v) => (v > 0 ? 1 : 0));"
    low, high = (f"[{', '.join(_number(float(v)) for v in ends)}]" for ends in (rule.low, rule.high))
    value = "low[i] + (Math.tanh(v) + 1) * 0.5 * (high[i] - low[i])" if rule.kind == "tanh" else "v"
    return (
        f"    const low = {low}, high = {high};\n"
        f"    return Array.from(raw, (v, i) => Math.fround(Math.min(Math.max({value}, low[i]), high[i])));"
    )


TEMPLATE = """// A policy, made by distillrl. An ES module without dependencies; normalising and all else is inside.
//
//   import { Policy } from "./policy.js";
//   const policy = new Policy();
//   const action = policy.act(observation);   // an array as the environment gives it, or {group: array}; takes %(takes)s, gives %(gives)s
//   policy.reset();                           // where an episode starts (matters for a policy with memory)
//
// %(sampled)s Arrays are flat, in row-major order. act throws a RangeError for a wrong length, NaN, infinity, or a category outside of its range;
// memory stays as it was then. policy.%(raw)s holds what the action was decided from.

export const passport = %(passport)s;
export const logStd = %(log_std)s; // of each action's Gaussian, for those who sample

const DATA = Uint8Array.from(atob("%(data)s"), (c) => c.charCodeAt(0)).buffer;
%(constants)s

%(functions)s

function take(into, given, name) {
  if (given === undefined || given === null || given.length !== into.length) {
    if (!(typeof given === "number" && into.length === 1)) throw new RangeError(`observation ${name}: ${into.length} numbers are right, ${given?.length ?? typeof given} were given`);
    given = [given];
  }
  const whole = !(into instanceof Float32Array || into instanceof Float64Array);
  for (let i = 0; i < into.length; i++) {
    if (!Number.isFinite(given[i])) throw new RangeError(`observation ${name} holds ${given[i]}`);
    into[i] = given[i];
    if (whole && into[i] !== given[i]) throw new RangeError(`observation ${name} holds ${given[i]}, which is not whole or out of range`);
  }
}

export class Policy {
  constructor() {
%(buffers)s
    this.%(raw)s = this.%(values)s;
  }

  reset() { %(forget)s }

  act(obs) {
    const one = typeof obs === "number" || obs?.length !== undefined;
%(local)s%(checks)s
%(body)s
%(keep)s
    return this.decide(%(decided)s);
  }

  decide(raw) {
%(decide)s
  }
}
"""
