"""Python: a single file that needs numpy alone, for one state at a time or a batch."""

from __future__ import annotations

import base64
import itertools
import json
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distillrl.targets import plan as steps
from distillrl.targets.c_activations import RATIONAL
from distillrl.targets.plan import NOISE, Decode, Plan, last_reads

HELPERS = {
    "_sigmoid": "def _sigmoid(x):\n    return np.tanh(x * _HALF) * _HALF + _HALF\n",
    "_erf": f"""def _erf(v):
    x = np.clip(v, _f(-{RATIONAL['erf'][0]}), _f({RATIONAL['erf'][0]}))
    return x * np.polyval(_ERF_P, x * x) / np.polyval(_ERF_Q, x * x)


_ERF_P = np.array({[float(f'{c:.9g}') for c in RATIONAL['erf'][1][::-1]]}, np.float32)
_ERF_Q = np.array({[float(f'{c:.9g}') for c in RATIONAL['erf'][2][::-1]]}, np.float32)
""",
    "_norm": """def _norm(x, w, b, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + _f(epsilon)) * w + b
""",
    "_gru": """def _gru(gi, gh, h):
    n = h.shape[-1]
    gates = _sigmoid(gi[..., : 2 * n] + gh[..., : 2 * n])
    new = np.tanh(gi[..., 2 * n :] + gates[..., :n] * gh[..., 2 * n :])
    return new + gates[..., n:] * (h - new)
""",
    "_leaf": """def _leaf(x, feature, threshold, branches, depth):
    if x.ndim == 1:
        node = 0
        while branches[2 * node] != node:
            node = branches[2 * node + (x[feature[node]] > threshold[node])]
        return node
    node, rows = np.zeros(len(x), np.int32), np.arange(len(x))
    for _ in range(depth):
        node = branches[2 * node + (x[rows, feature[node]] > threshold[node])]
    return node
""",
    "_lstm_cell": """def _lstm_cell(gates, c):
    n = c.shape[-1]
    return _sigmoid(gates[..., n : 2 * n]) * c + _sigmoid(gates[..., :n]) * np.tanh(gates[..., 2 * n : 3 * n])
""",
    "_one_hot": """def _one_hot(x, counts):
    x = x.reshape(*x.shape[: x.ndim - 1], len(counts))
    return np.concatenate([np.eye(n, dtype=np.float32)[x[..., i]] for i, n in enumerate(counts)], -1)
""",
    "_pad": """def _pad(x, rows, columns):
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(rows, rows), (columns, columns)])
""",
    "_resample": """def _resample(x, before, after, places, weights, whole, pixels):
    x = x.reshape(*x.shape[:-1], before, -1, after)
    sums = sum(x[..., at, :].astype(np.float32) * w[:, None] for at, w in zip(places, weights)) / _f(whole)
    sums = np.floor(sums + _HALF) if pixels else sums
    return sums.reshape(*sums.shape[:-3], -1)
""",
    "_pool": """def _pool(x, kernel, stride, padding):
    edges = [(0, 0)] * (x.ndim - 2) + [(n, n) for n in padding]
    x = np.pad(x, edges, constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(x, kernel, (-2, -1))[..., :: stride[0], :: stride[1], :, :].max((-2, -1))
    return x.reshape(*x.shape[:-3], -1)
""",
    "_conv": """def _conv(x, w, b, stride):
    x = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (-2, -1))[..., :: stride[0], :: stride[1], :, :]
    return (np.einsum("...chwyx,ocyx->...ohw", x, w, optimize=True) + b[:, None, None]).astype(np.float32)
""",
}


def write(plan: Plan, passport: Mapping[str, Any], folder: Path, name: str) -> tuple[list[Path], dict[str, Any]]:
    """Write NAME.py; returns it, and its size."""
    path = folder / f"{name}.py"
    path.write_text(source(plan, passport), encoding="utf-8")
    return [path], {"bytes": path.stat().st_size}


def source(plan: Plan, passport: Mapping[str, Any]) -> str:
    """The text of the file."""
    printer = _Printer(plan)
    for op in plan.ops:
        printer.line(f"{printer.names[op.out]} = {PRINTERS[type(op)](printer, op)}")
    forward = "\n".join(f"    {line}" for line in printer.lines)
    blob = base64.b64encode(b"".join(printer.blob)).decode()
    groups = [(g.name, g.shape, g.held, g.dtype, g.categories) for g in plan.inputs]
    arguments = ", ".join([printer.names[g.name] for g in plan.inputs] + [printer.names[s.before] for s in plan.states])
    results = ", ".join([printer.names[plan.raw], printer.names[plan.source]] + [printer.names[s.after] for s in plan.states])
    used = [code for helper, code in HELPERS.items() if any(f"{helper}(" in text for text in (forward, *(HELPERS[h] for h in HELPERS if f"{h}(" in forward)))]
    return TEMPLATE.format(
        passport=repr(json.dumps(passport, sort_keys=True)),
        groups=repr(groups),
        states=repr([(s.name, s.size) for s in plan.states]),
        raw_name=plan.decode.raw_name,
        raw_size=plan.raw_size,
        log_std=None if plan.log_std is None else [float(f"{v:.9g}") for v in plan.log_std.tolist()],
        blob="\n".join(f"    {line!r}" for line in textwrap.wrap(blob, 130) or [""]),
        constants="\n".join(printer.constants),
        helpers="\n\n".join(used),
        arguments=arguments,
        forward=forward or "    pass",
        results=results + ("" if "," in results else ","),
        decode=_decode(plan.decode),
        single=_single(plan),
        noise=repr(plan.noise),
        draw=DRAW[NOISE[plan.decode.kind]],
        numbers=NUMBERS,
        sampled=f"The action is a sample, drawn with Policy(seed); the noise of its own that run() takes is the group {plan.noise!r}." if plan.noise else "The action is the most likely one.",
    )


class _Printer:
    """Names of values, and the constants and lines printed so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.names = {op.out: op.out for op in plan.ops}
        self.names |= {g.name: f"x{i}" for i, g in enumerate(plan.inputs)}
        self.names |= {s.before: f"h{i}" for i, s in enumerate(plan.states)}
        self.last = last_reads(plan)
        self.index = {op.out: i for i, op in enumerate(plan.ops)}
        self.constants: list[str] = []
        self.blob: list[bytes] = []
        self.lines: list[str] = []
        self.offset = 0

    def line(self, text: str) -> None:
        self.lines.append(text)

    def constant(self, values: np.ndarray, kind: str = "<f4") -> str:
        name = f"_K{len(self.constants)}"
        data = np.ascontiguousarray(values).astype(kind).tobytes()
        data += b"\0" * (-len(data) % 8)
        self.constants.append(f"{name} = np.frombuffer(_DATA, {kind!r}, {values.size}, {self.offset}).reshape({values.shape})")
        self.blob.append(data)
        self.offset += len(data)
        return name

    def owned(self, value: str, by: str) -> bool:
        """Whether a value may be written over: made by a step, and read by this one last."""
        return value in self.index and self.last[value] == self.index[by]


def _dense(p: _Printer, op: steps.Dense) -> str:
    p.line(f"{op.out} = {p.names[op.x]}.dot({p.constant(op.weight.T)})")
    p.line(f"{op.out} += {p.constant(op.bias)}")
    return op.out


def _activate(p: _Printer, op: steps.Activate) -> str:
    x = p.names[op.x]
    out = f", out={x}" if p.owned(op.x, op.out) else ""
    first = p.constant(op.first) if isinstance(op.first, np.ndarray) else f"_f({op.first!r})"
    return {
        "tanh": f"np.tanh({x}{out})",
        "relu": f"np.maximum({x}, _ZERO{out})",
        "sigmoid": f"_sigmoid({x})",
        "silu": f"{x} * _sigmoid({x})",
        "exp": f"np.exp({x})",
        "log": f"np.log({x})",
        "sqrt": f"np.sqrt({x})",
        "reciprocal": f"_f(1) / {x}",
        "erf": f"_erf({x})",
        "step": f"({x} > 0).astype(np.float32)",
        "softplus": f"np.logaddexp({x}, _ZERO)",
        "mish": f"{x} * np.tanh(np.logaddexp({x}, _ZERO))",
        "round": f"np.floor({x} + _f({float(np.max(op.first)) + 0.5!r})) - {first}",
        "elu": f"np.where({x} > 0, {x}, {first} * np.expm1(np.minimum({x}, _ZERO)))",
        "gelu": f"{x} * _HALF * (_erf({x} * _f(0.7071067811865476)) + _f(1))",
        "gelu_tanh": f"{x} * _HALF * (np.tanh(_f(0.7978845608028654) * ({x} + _f(0.044715) * {x} * {x} * {x})) + _f(1))",
        "leaky": f"np.where({x} > 0, {x}, {x} * {first})",
        "clip": f"np.clip({x}, {first}, _f({op.second!r}))",
    }[op.kind]


def _affine(p: _Printer, op: steps.Affine) -> str:
    kind = "<f8" if op.wide else "<f4"
    text = f"{p.names[op.x]} * {p.constant(op.scale, kind)} + {p.constant(op.shift, kind)}"
    if np.isfinite([op.low, op.high]).any():
        limits = ", ".join(f"{'np.float64' if op.wide else '_f'}({v!r})" if np.isfinite(v) else "None" for v in (op.low, op.high))
        text = f"np.clip({text}, {limits})"
    return f"({text}).astype(np.float32)"


def _branches(p: _Printer, op: steps.Branches) -> str:
    tables = f"{p.constant(op.feature, '<i4')}, {p.constant(op.threshold)}, {p.constant(op.branches.ravel(), '<i4')}, {op.depth}"
    return f"{p.constant(op.value)}[_leaf({p.names[op.x]}, {tables})]"


def _concat(p: _Printer, op: steps.Concat) -> str:
    parts = ", ".join(f"{p.names[x]}.astype(np.float32, copy=False)" for x in op.xs)
    return f"np.concatenate(({parts}), -1)" if len(op.xs) > 1 else parts


def _image(p: _Printer, value: str) -> str:
    return f"{p.names[value]}.reshape(*{p.names[value]}.shape[:-1], {', '.join(map(str, p.plan.shapes[value]))})"


def _conv(p: _Printer, op: steps.Conv) -> str:
    p.line(f"{op.out} = _conv({_image(p, op.x)}, {p.constant(op.weight)}, {p.constant(op.bias)}, {op.stride})")
    return f"{op.out}.reshape(*{op.out}.shape[:-3], -1)"


def _transpose(p: _Printer, op: steps.Transpose) -> str:
    return f"np.moveaxis({_image(p, op.x)}, -1, -3).reshape({p.names[op.x]}.shape)"


def _resample(p: _Printer, op: steps.Resample) -> str:
    return f"_resample({p.names[op.x]}, {op.before}, {op.after}, {p.constant(op.places, '<i4')}, {p.constant(op.weights)}, {op.whole!r}, {op.pixels})"


PRINTERS: dict[type, Callable[[_Printer, Any], str]] = {
    steps.Dense: _dense,
    steps.Activate: _activate,
    steps.Affine: _affine,
    steps.Branches: _branches,
    steps.Concat: _concat,
    steps.Combine: lambda p, op: f"{p.names[op.x]} {'+' if op.kind == 'add' else '*'} {p.names[op.y]}",
    steps.OneHot: lambda p, op: f"_one_hot({p.names[op.x]}, {op.counts})",
    steps.Take: lambda p, op: f"{p.names[op.x]}[..., {list(op.indices)}]",
    steps.LayerNorm: lambda p, op: f"_norm({p.names[op.x]}, {p.constant(op.weight)}, {p.constant(op.bias)}, {op.epsilon!r})",
    steps.GruGate: lambda p, op: f"_gru({p.names[op.gi]}, {p.names[op.gh]}, {p.names[op.h]})",
    steps.LstmCell: lambda p, op: f"_lstm_cell({p.names[op.gates]}, {p.names[op.c]})",
    steps.LstmOut: lambda p, op: f"_sigmoid({p.names[op.gates]}[..., {3 * p.plan.size(op.out)} :]) * np.tanh({p.names[op.c]})",
    steps.Conv: _conv,
    steps.Pad: lambda p, op: f"_pad({_image(p, op.x)}, {op.rows}, {op.columns}).reshape(*{p.names[op.x]}.shape[:-1], -1)",
    steps.Transpose: _transpose,
    steps.Resample: _resample,
    steps.MaxPool: lambda p, op: f"_pool({_image(p, op.x)}.astype(np.float32, copy=False), {op.kernel}, {op.stride}, {op.padding})",
}


NUMBERS = '''def _numbers(name, given, held):
    """An array of the type ``held``; pixels and categories must be such: an image that was scaled to 0 to 1 would be black."""
    x = np.asarray(given)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"observation {name!r}: numbers are right, {x.dtype} was given")
    with np.errstate(invalid="ignore", over="ignore"):
        made = x.astype(held, copy=False)
    if made.dtype.kind != "f" and made is not x and (made != x).any():
        raise ValueError(f"observation {name!r}: {x.dtype} was given that is not whole, NaN or out of range, {held} is right")
    return made
'''
"""Of a file's source: what numbers an observation may have."""
DRAW = {"gumbel": "generator.gumbel(size=shape)", "logistic": "generator.logistic(size=shape)", "normal": "generator.standard_normal(shape)"}


def _decode(rule: Decode) -> str:
    """The body of _decide(raw)."""
    if rule.kind == "argmax":
        return f"    return raw.argmax(-1){f' + {rule.start}' if rule.start else ''}"
    if rule.kind == "multi":
        ends = np.cumsum([0, *rule.nvec]).tolist()
        parts = ", ".join(f"raw[..., {a}:{b}].argmax(-1)" for a, b in itertools.pairwise(ends))
        return f"    return np.stack(({parts},), -1)"
    if rule.kind == "threshold":
        return "    return (raw > 0).astype(np.int64)"
    low, high = (f"np.array({[float(v) for v in ends]}, np.float32)".replace("inf", "np.inf") for ends in (rule.low, rule.high))
    text = f"    low, high = {low}, {high}\n"
    if rule.kind == "tanh":
        text += "    raw = low + (np.tanh(raw) + _f(1)) * _HALF * (high - low)\n"
    return text + "    return np.clip(raw, low, high)"


def _single(plan: Plan) -> str:
    """How the action of one state is given back: an int, or an array of the environment's shape."""
    rule = plan.decode
    return "int(action)" if rule.kind == "argmax" else f"action.astype(np.{rule.dtype}, copy=False).reshape({rule.shape})"


TEMPLATE = '''"""A policy, made by distillrl; it needs numpy alone.

    policy = Policy()
    action = policy.act(observation)          # one state, as the environment gives it; the action as it takes it
    policy.reset()                            # where an episode starts (matters for a policy with memory)
    actions, {raw_name}, memory = run(observations, memory)     # a batch: arrays [n, ...] (dicts of them where there are several groups)

Normalising and all else is inside. {sampled} Raises ValueError for a wrong shape, NaN, infinity, or a category outside of its range.
A network whose sums overflow gives NaN in {raw_name}; the action is then action 0, or NaN for a box.
"""

import base64
import json

import numpy as np

PASSPORT = json.loads({passport})
GROUPS = {groups}
"""(name, shape, held as, given as, categories) of each observation group."""
STATES = {states}
"""(name, size) of each part of the memory."""
NOISE = {noise}
"""The group that holds the noise of a sampled action; empty where the action is the most likely one."""
LOG_STD = {log_std}
"""Of each action's Gaussian, for those who sample."""

_DATA = base64.b64decode(
{blob}
)
_f = np.float32
_ZERO, _HALF = _f(0), _f(0.5)
{constants}


{helpers}
def _forward({arguments}):
{forward}
    return {results}


def _decide(raw):
{decode}


def _drawn(generator, shape):
    return {draw}.astype(np.float32)


{numbers}

def _checked(given, name, shape, held, dtype, categories, lead):
    """One group as [..., size], of the type that it is computed in; ``lead`` is how many batch dimensions come first."""
    x = _numbers(name, given, held)
    if x.shape[lead:] != shape or x.ndim != lead + len(shape):
        raise ValueError(f"observation {{name!r}}: shape {{x.shape}} was given, {{'(n, …) with ' * lead}}{{shape}} is right")
    x = x.reshape(*x.shape[:lead], -1)
    if categories:
        if ((x < 0) | (x >= np.array(categories))).any():
            raise ValueError(f"observation {{name!r}}: a category outside of 0 to {{[n - 1 for n in categories]}}")
    elif held in ("float32", "float64"):
        if not np.isfinite(x).all():
            raise ValueError(f"observation {{name!r}} holds NaN or infinity")
    return x


def _groups(obs, lead, generator=None):
    given = obs if isinstance(obs, dict) else {{GROUPS[0][0]: obs}}
    if NOISE and NOISE not in given:
        shape = np.shape(given[GROUPS[0][0]])[:lead] + GROUPS[-1][1]
        given = {{**given, NOISE: _drawn(generator or np.random.default_rng(), shape)}}
    missing = [g[0] for g in GROUPS if g[0] not in given]
    if missing:
        raise ValueError(f"the observation lacks the groups {{missing}}")
    return [_checked(given[g[0]], *g, lead) for g in GROUPS]


def run(obs, memory=None):
    """Actions [n] or [n, A], {raw_name} [n, {raw_size}] and memory {{name: [n, size]}} for a batch of observations."""
    groups = _groups(obs, 1)
    n = len(groups[0]) if groups else 1
    if memory is None:
        memory = {{name: np.zeros((n, size), np.float32) for name, size in STATES}}
    raw, decided, *after = _forward(*groups, *(memory[name] for name, _ in STATES))
    return _decide(decided), raw, {{name: value for (name, _), value in zip(STATES, after)}}


class Policy:
    """Plays one environment."""

    def __init__(self, seed=None):
        self._generator = np.random.default_rng(seed) if NOISE else None
        self._plain = len(GROUPS) == 1 and not GROUPS[0][4] and GROUPS[0][2] == "float32" and len(GROUPS[0][1]) == 1
        self.reset()

    def reset(self):
        """Forget: an episode starts."""
        self.memory = [np.zeros(size, np.float32) for _, size in STATES]

    def act(self, obs):
        """The action for one observation."""
        if self._plain and type(obs) is np.ndarray and obs.shape == GROUPS[0][1]:
            x = obs if obs.dtype == np.float32 else obs.astype(np.float32)
            if b"\\0" in np.isfinite(x).tobytes():  # the quickest way to ask
                raise ValueError("the observation holds NaN or infinity")
            groups = (x,)
        else:
            groups = _groups(obs, 0, self._generator)
        self.{raw_name}, decided, *self.memory = _forward(*groups, *self.memory)
        action = _decide(decided)
        return {single}
'''
