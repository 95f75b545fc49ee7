"""A plan of a policy: reads a Network's sense, layers, output and head, and refuses what no code target can carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillrl.actions import FORBIDDEN
from distillrl.errors import Misconfigured
from distillrl.packing import SCALE
from distillrl.students.cnn import Fused, Image, Points, Residual
from distillrl.students.compact import Rounded
from distillrl.students.fitted import Fitted
from distillrl.students.fused import Attention
from distillrl.students.networks import Network
from distillrl.targets import arithmetic, fitting, graphs, numbers, operators, recurrent, sensing
from distillrl.targets import plan as steps
from distillrl.targets.arithmetic import activate
from distillrl.targets.numbers import Value, combine, in_order, ungrouped, whole
from distillrl.targets.plan import Decode, Floats, Input, Plan
from distillrl.targets.sensing import CODE, Builder
from distillrl.tasks import TASK
from distillrl.teachers.chain import Affine
from distillrl.teachers.extractors import Combined, NatureCNN, Reorder
from distillrl.teachers.framed import Framed
from distillrl.teachers.graphpolicy import GraphPolicy
from distillrl.teachers.sb3layers import Renorm
from distillrl.teachers.sklearn import LogOf, Trees

HEADS = {
    "categorical": "argmax",
    "greedy": "argmax",
    "scores": "argmax",
    "multicategorical": "multi",
    "bernoulli": "threshold",
    "gaussian": "clip",
    "deterministic": "clip",
    "squashed": "tanh",
    "tanh": "tanh",
}


def trace(policy: Any, sampled: bool = False) -> Plan:
    """The plan of a policy: of its most likely action, or of a sample, with noise as an input more.

    Raises Misconfigured where it is no Network, has a layer or a sense that has no plan, or holds NaN.
    """
    if isinstance(policy, Fitted):
        return fitting.trace(policy, sampled)
    if isinstance(policy, GraphPolicy | Framed):
        return graphs.trace(policy, sampled, HEADS)
    if not isinstance(policy, Network):
        why = "".join(f"; {note}" for note in getattr(policy, "info", {}).get("notes", ()))
        other = "the target torch carries any torch policy" if isinstance(policy, nn.Module) else "a student distilled from it goes to all of them"
        raise Misconfigured(f"this policy ({type(policy).__name__}{why}) can't be exported as code: {CODE} carry networks, graphs of simple operators, trees and formulas; {other}")
    builder = Builder({}, [])
    if policy.compact is not None:
        builder.scales = {id(policy.get_submodule(name)): policy.compact.aux.get(f"{name}.weight{SCALE}") for name in policy.compact.rounded}
    groups = sensing.sense(builder, policy)
    x = sensing.flatten(builder, groups, policy.sense.groups)
    if policy.recurrent is not None:
        x = _recurrent(builder, x, policy.recurrent)
    for name, layer in policy.body.named_children():
        x = _layer(builder, x, layer, f"body.{name}")
    task = groups[TASK] if policy.heads else ""
    latent = _by_task(builder, x, task) if task else x
    raw = _legal(builder, _output(builder, latent, policy), task, policy)
    decided, noise = _sampled(builder, policy, latent, raw, task) if sampled else ("", None)
    used = {name for op in builder.ops for name in steps.reads(op)} | {raw}
    inputs = tuple(sensing.to_input(name, group, builder) for name, group in policy.spec.observations.items() if name in used)
    if not inputs:
        raise Misconfigured("this policy reads no observation at all, so there is nothing to export")
    inputs += (noise,) if noise is not None else ()
    log_std = None if policy.log_std is None or policy.sde or task else _floats(policy.log_std)
    return Plan(inputs, tuple(builder.states), tuple(builder.ops), raw, _decode(policy), builder.shapes, log_std, decided, noise.name if noise else "")


def _floats(tensor: Tensor) -> Floats:
    array: Floats = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    if not np.isfinite(array).all():
        raise Misconfigured("this policy can't be exported: its weights hold NaN or infinity")
    return array


def _recurrent(b: Builder, x: str, part: nn.Module) -> str:
    """An LSTM or a GRU of any depth, with layers before and after it, as teachers.recurrence has it."""
    x = _layer(b, x, getattr(part, "before", nn.Identity()), "recurrent.before")
    cell = getattr(part, "lstm", None) or getattr(part, "gru", None) or getattr(part, "cell", None)
    if isinstance(cell, nn.LSTMCell | nn.GRUCell):
        step = _lstm if isinstance(cell, nn.LSTMCell) else _gru
        return step(b, x, 0, (cell.weight_ih, cell.weight_hh), (cell.bias_ih, cell.bias_hh))
    if not isinstance(cell, nn.LSTM | nn.GRU) or cell.bidirectional or cell.proj_size:
        raise Misconfigured(f"the recurrent part ({_described(part)}) can't be exported as code: {CODE} carry an LSTM or a GRU; the target torch carries any")
    for i in range(cell.num_layers):
        named = dict(cell.named_parameters())
        weights = [named[f"weight_{k}_l{i}"] for k in ("ih", "hh")]
        biases = [named.get(f"bias_{k}_l{i}", torch.zeros(len(weights[0]))) for k in ("ih", "hh")]
        step = _lstm if isinstance(cell, nn.LSTM) else _gru
        x = step(b, x, i, weights, biases)
    return _layer(b, x, getattr(part, "after", nn.Identity()), "recurrent.after")


def _lstm(b: Builder, x: str, i: int, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str:
    size = weights[1].shape[1]
    h, c = b.memory(f"h{i}", size), b.memory(f"c{i}", size)
    out, after = recurrent.lstm_step(b, x, h, c, torch.cat(list(weights), 1), biases[0] + biases[1])
    b.remember(f"h{i}", h, out)
    b.remember(f"c{i}", c, after)
    return out


def _gru(b: Builder, x: str, i: int, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str:
    h = b.memory(f"h{i}", weights[1].shape[1])
    out = recurrent.gru_step(b, x, h, weights, biases)
    b.remember(f"h{i}", h, out)
    return out


def _layer(b: Builder, x: str, layer: nn.Module, where: str) -> str:
    """One layer, or the layers inside of a Sequential; the value that comes out."""
    if isinstance(layer, nn.Sequential):
        for name, inner in layer.named_children():
            x = _layer(b, x, inner, f"{where}.{name}")
        return x
    if isinstance(layer, nn.Identity | nn.Dropout | nn.Flatten):
        return x
    if isinstance(layer, nn.Unflatten | NatureCNN | Image):
        b.shapes[x] = tuple(layer.unflattened_size if isinstance(layer, nn.Unflatten) else layer.shape)
        return x if isinstance(layer, nn.Unflatten) else _layer(b, x, layer.layers, where)
    if isinstance(layer, Residual):
        changed = _layer(b, x, layer.layers, where)
        return b.add(steps.Combine(b.name(), x, changed, "add"), b.shapes[x])
    if isinstance(layer, Combined | Fused):
        parts = [_layer(b, _span(b, x, *span), inner, f"{where}.{i}") for i, (span, inner) in enumerate(zip(layer.spans, layer.layers, strict=True))]
        return b.add(steps.Concat(b.name(), tuple(parts)), (sum(b.size(v) for v in parts),))
    if type(layer) in PLAIN:
        return activate(b, x, PLAIN[type(layer)])
    if type(layer) in MADE:
        return MADE[type(layer)](b, x)
    convert = LAYERS.get(type(layer))
    made = convert(b, x, layer) if convert else None
    if made is None:
        raise Misconfigured(
            f"the layer {where} ({_described(layer)}) can't be exported as code: {CODE} carry Linear, Conv2d, MaxPool2d, LayerNorm, BatchNorm1d and the usual activations; "
            "the target torch carries any layer"
        )
    return made


def _attention(b: Builder, x: str, layer: Attention) -> str:
    """Tokens that look at one another (students.fused), in the words of a graph's operators."""
    token = whole(b, x, (1, layer.tokens, b.size(x) // layer.tokens))
    asked = operators.WRITE["linear"](b, token, layer.asks.weight, layer.asks.bias)
    query, key, value = (Value(asked.name, p) for p in asked.places.unflatten(-1, (3, layer.heads, -1)).movedim(-4, -2).unbind(-4))
    found = operators.WRITE["scaled_dot_product_attention"](b, query, key, value)
    found = Value(found.name, found.places.transpose(-2, -3).flatten(-2))
    said = operators.WRITE["linear"](b, found, layer.says.weight, layer.says.bias)
    return in_order(b, combine(b, "add", token, said))


def _span(b: Builder, x: str, start: int, stop: int) -> str:
    return b.add(steps.Take(b.name(), x, tuple(range(start, stop))), (stop - start,))


def _described(layer: nn.Module) -> str:
    text = str(layer).splitlines()[0]
    return text if len(text) < 80 else text[:77] + "…"


def _linear(b: Builder, x: str, layer: nn.Linear) -> str:
    weight = _floats(layer.weight)
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else _floats(layer.bias)
    return b.add(steps.Dense(b.name(), x, weight, bias), (len(weight),))


def _rounded(b: Builder, x: str, layer: Rounded) -> str:
    """Onto whole numbers and back, then a dense layer; with all that a target of whole numbers needs to do without the floats."""
    inverse, zero, weight, shape = _floats(layer.inverse), _floats(layer.zero), _floats(layer.weight), (b.size(x),)
    inside = b.add(steps.Affine(b.name(), x, inverse, zero, -float(layer.reach), layer.reach - 1.0), shape)
    whole = activate(b, inside, "round", float(layer.reach))
    back = b.add(steps.Affine(b.name(), whole, 1 / inverse, -zero / inverse), shape)
    made, scale = None, b.scales.get(id(layer))
    if scale is not None:
        codes = np.round(weight / inverse / _floats(scale)[:, None]) if len(inverse) > 1 else np.round(weight / _floats(scale)[:, None])
        step = _floats(scale) if len(inverse) > 1 else _floats(scale) / inverse
        made = steps.Whole(x, layer.reach, inverse, zero, codes.astype(np.int8), step)
    return b.add(steps.Dense(b.name(), back, weight, _floats(layer.bias), made), (len(weight),))


def _prelu(b: Builder, x: str, layer: nn.PReLU) -> str:
    slope = _floats(layer.weight)
    return activate(b, x, "leaky", float(slope[0]) if slope.size == 1 else slope)


def _batch_norm(b: Builder, x: str, layer: nn.BatchNorm1d) -> str | None:
    if layer.running_mean is None or layer.running_var is None:
        return None
    scale = 1 / (layer.running_var.double() + layer.eps).sqrt()
    shift = -layer.running_mean.double() * scale
    if layer.affine:
        scale, shift = scale * layer.weight.double(), shift * layer.weight.double() + layer.bias.double()
    return b.add(steps.Affine(b.name(), x, _floats(scale), _floats(shift)), b.shapes[x])


def _affine(b: Builder, x: str, layer: Any) -> str:
    return b.add(steps.Affine(b.name(), x, _floats(layer.scale), _floats(layer.shift)), b.shapes[x])


def _conv(b: Builder, x: str, layer: nn.Conv2d) -> str | None:
    """No dilation, padding of zeros; the weights of a grouped one are filled up with zeros."""
    shape = b.shapes[x]
    padding = layer.padding if isinstance(layer.padding, tuple) else ((0, 0) if layer.padding == "valid" else None)
    if len(shape) != 3 or padding is None or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        return None
    if padding != (0, 0):
        shape = (shape[0], shape[1] + 2 * padding[0], shape[2] + 2 * padding[1])
        x = b.add(steps.Pad(b.name(), x, *padding), shape)
    weight = ungrouped(_floats(layer.weight), layer.groups)
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else _floats(layer.bias)
    rows, columns = ((size - k) // stride + 1 for size, k, stride in zip(shape[1:], weight.shape[2:], layer.stride, strict=True))
    return b.add(steps.Conv(b.name(), x, weight, bias, (layer.stride[0], layer.stride[1])), (len(weight), rows, columns))


def _max_pool(b: Builder, x: str, layer: nn.MaxPool2d) -> str | None:
    kernel, stride, padding = ((v, v) if isinstance(v, int) else (v[0], v[1]) for v in (layer.kernel_size, layer.stride, layer.padding))
    shape = b.shapes[x]
    if len(shape) != 3 or layer.dilation not in {1, (1, 1)} or layer.ceil_mode or layer.return_indices:
        return None
    rows, columns = ((size + 2 * p - k) // s + 1 for size, k, s, p in zip(shape[1:], kernel, stride, padding, strict=True))
    return b.add(steps.MaxPool(b.name(), x, kernel, stride, padding), (shape[0], rows, columns))


def _points(b: Builder, x: str, layer: Points) -> str:
    channels, rows, columns = b.shapes[x]
    pixels = whole(b, x, (channels, rows * columns))
    places = in_order(b, numbers.dense(b, numbers.softmax(b, pixels, -1), layer.places.T, None))
    strongest = in_order(b, numbers.largest(b, pixels, [-1], True))
    name = b.add(steps.Concat(b.name(), (places, strongest)), (3 * channels,))
    order = torch.cat([torch.arange(2 * channels).view(channels, 2), 2 * channels + torch.arange(channels).view(channels, 1)], 1)
    return in_order(b, Value(name, order.flatten()))


def _trees(b: Builder, x: str, layer: Trees) -> str:
    """A scikit-learn tree or forest: its thresholds are float64, and no float32 number lies between one and the float32 below it."""
    total = ""
    for i in range(layer.count):
        feature, threshold, left, right, values = (getattr(layer, f"{n}{i}").cpu().numpy() for n in ("feature", "threshold", "left", "right", "values"))
        below = threshold.astype(np.float32)
        below = np.where(below > threshold, np.nextafter(below, np.float32(-np.inf)), below)
        branches = np.stack([left, right], -1).astype(np.int32)
        own = b.add(steps.Branches(b.name(), x, feature.astype(np.int32), below, branches, values, layer.depth), (layer.outputs,))
        total = own if not total else b.add(steps.Combine(b.name(), total, own, "add"), (layer.outputs,))
    if layer.count == 1:
        return total
    return b.add(steps.Affine(b.name(), total, np.full(1, 1 / layer.count, np.float32), np.zeros(1)), (layer.outputs,))


def _log_of(b: Builder, x: str, layer: LogOf) -> str:
    """Of one tree's probabilities: the logarithms are its leaves' then. Classes that aren't there read the first, times 0."""
    last = b.ops[-1]
    if isinstance(last, steps.Branches) and last.out == x:
        with torch.no_grad():
            b.ops[-1] = replace(last, value=_floats(layer(torch.from_numpy(last.value))))
        b.shapes[x] = (layer.n,)
        return x
    logs = arithmetic.logarithm(b, x, LEAST)
    known = layer.actions.tolist()
    if known == list(range(layer.n)):
        return logs
    spread = b.add(steps.Take(b.name(), logs, tuple(known.index(a) if a in known else 0 for a in range(layer.n))), (layer.n,))
    there = np.array([a in known for a in range(layer.n)])
    return arithmetic.affine(b, spread, there, np.where(there, 0.0, FORBIDDEN))


def _layer_norm(b: Builder, x: str, layer: nn.LayerNorm) -> str | None:
    if layer.normalized_shape != (b.size(x),):
        return None
    ones = torch.ones(layer.normalized_shape)
    weight = _floats(ones if layer.weight is None else layer.weight)
    bias = _floats(ones * 0 if layer.bias is None else layer.bias)
    return b.add(steps.LayerNorm(b.name(), x, weight, bias, float(layer.eps)), b.shapes[x])


LEAST = 1e-12
"""The smallest probability whose logarithm is taken (teachers.sklearn)."""
PLAIN: dict[type, str] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.Mish: "mish"}
MADE: dict[type, Callable[[Builder, str], str]] = {
    nn.SELU: arithmetic.selu,
    nn.LogSigmoid: arithmetic.log_sigmoid,
    nn.Softsign: arithmetic.softsign,
    nn.Hardswish: arithmetic.hard_swish,
    nn.Hardsigmoid: arithmetic.hard_sigmoid,
}
LAYERS: dict[type, Callable[[Builder, str, Any], str | None]] = {
    nn.Linear: _linear,
    Rounded: _rounded,
    nn.BatchNorm1d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.Conv2d: _conv,
    Trees: _trees,
    LogOf: _log_of,
    nn.MaxPool2d: _max_pool,
    Points: _points,
    Attention: _attention,
    Affine: _affine,
    Renorm: _affine,
    Reorder: lambda b, x, layer: b.add(steps.Take(b.name(), x, tuple(layer.order.tolist())), (len(layer.order),)),
    nn.PReLU: _prelu,
    nn.Softplus: lambda b, x, layer: arithmetic.softplus(b, x, float(layer.beta)),
    nn.CELU: lambda b, x, layer: arithmetic.celu(b, x, float(layer.alpha)),
    nn.ELU: lambda b, x, layer: activate(b, x, "elu", float(layer.alpha)),
    nn.GELU: lambda b, x, layer: activate(b, x, "gelu_tanh" if layer.approximate == "tanh" else "gelu"),
    nn.LeakyReLU: lambda b, x, layer: activate(b, x, "leaky", float(layer.negative_slope)),
    nn.Hardtanh: lambda b, x, layer: activate(b, x, "clip", float(layer.min_val), float(layer.max_val)),
    nn.ReLU6: lambda b, x, layer: activate(b, x, "clip", float(layer.min_val), float(layer.max_val)),
}


def _by_task(b: Builder, x: str, task: str) -> str:
    """The latent and a 1 in the place of the task's head, zeros in the others' (students/by_task.py)."""
    count, width = b.size(task), b.size(x)
    both = b.add(steps.Concat(b.name(), (x, task)), (width + count,))
    places = tuple(i for k in range(count) for i in (*range(width), width + k))
    repeated = b.add(steps.Take(b.name(), both, places), (len(places),))
    played = b.add(steps.Take(b.name(), task, tuple(k for k in range(count) for _ in range(width + 1))), (len(places),))
    return b.add(steps.Combine(b.name(), repeated, played, "multiply"), (len(places),))


def _legal(b: Builder, raw: str, task: str, policy: Network) -> str:
    """The raw outputs, those of actions that the task doesn't have far below all others."""
    if not task or policy.legal is None:
        return raw
    for k, row in enumerate(policy.legal.numpy()):
        if not row.all():
            played = b.add(steps.Take(b.name(), task, (k,) * len(row)), b.shapes[raw])
            penalty = b.add(steps.Affine(b.name(), played, np.where(row, 0.0, FORBIDDEN).astype(np.float32), np.zeros(1)), b.shapes[raw])
            raw = b.add(steps.Combine(b.name(), raw, penalty, "add"), b.shapes[raw])
    return raw


def _output(b: Builder, x: str, policy: Network) -> str:
    """The raw outputs; quantiles are averaged inside of the last layer, which is linear."""
    if not policy.quantiles:
        return _layer(b, x, policy.out, "out")
    if not isinstance(policy.out, nn.Linear):
        raise Misconfigured("a policy of quantiles can be exported as code only where its output is a linear layer; the target torch carries it")
    weight, bias = (v.detach().double().reshape(policy.quantiles, -1, *v.shape[1:]).mean(0) for v in (policy.out.weight, policy.out.bias))
    return b.add(steps.Dense(b.name(), x, _floats(weight), _floats(bias)), (len(bias),))


def _sampled(b: Builder, policy: Network, latent: str, raw: str, task: str) -> tuple[str, Input]:
    """The raw outputs with noise, whose decoding is a sample, and the input that the noise comes in by."""
    if "distribution" not in policy.gives:
        raise Misconfigured(f"this policy ({policy.head.kind}) has no distribution to sample from: export it without --sampled")
    if policy.sde:
        raise Misconfigured("gSDE's spread depends on the latent state in a way that no target carries: export this policy without --sampled")
    name = "noise"
    while name in policy.spec.observations:
        name += "_"
    b.shapes[name] = (b.size(raw),)
    value = name
    if policy.log_std is not None and task:
        stds = _floats(policy.log_std.exp().T)
        chosen = b.add(steps.Dense(b.name(), task, stds, np.zeros(len(stds), np.float32)), (len(stds),))
        value = b.add(steps.Combine(b.name(), chosen, name, "multiply"), b.shapes[name])
    elif policy.log_std is not None:
        std = _floats(policy.log_std.exp())
        value = b.add(steps.Affine(b.name(), name, std, np.zeros(1)), b.shapes[name])
    elif policy.log_std_layer is not None:
        log_std = _layer(b, latent, policy.log_std_layer, "log_std")
        low, high = policy.log_std_bounds
        std_value = activate(b, activate(b, log_std, "clip", low, high), "exp")
        value = b.add(steps.Combine(b.name(), std_value, name, "multiply"), b.shapes[name])
    decided = b.add(steps.Combine(b.name(), raw, value, "add"), b.shapes[raw])
    return decided, Input(name, b.shapes[name], "float32")


def _decode(policy: Network) -> Decode:
    space, kind = policy.spec.action, HEADS.get(policy.head.kind)
    if kind is None:
        raise Misconfigured(f"the head {policy.head.kind!r} can't be exported as code; the target torch carries any")
    return Decode(kind, space.shape, space.dtype, space.start, space.nvec if kind == "multi" else (), space.low, space.high)
