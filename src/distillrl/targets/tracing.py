"""A plan of a policy: reads a Network's sense, layers, output and head, and refuses what no code target can carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured
from distillrl.records import Group
from distillrl.senses import ChannelsFirst, Normalise, OneHot, Pick, RemainingTime, Scale, Stack
from distillrl.students.networks import Network
from distillrl.targets import plan as steps
from distillrl.targets.plan import Decode, Floats, Input, Op, Plan, State
from distillrl.teachers.chain import Affine
from distillrl.teachers.extractors import Combined, NatureCNN, Reorder
from distillrl.teachers.sb3layers import Renorm

CODE = "c, c-int8, compiled, js, onnx and python"
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


def trace(policy: Any) -> Plan:
    """The plan of a policy; raises Misconfigured where it is no Network, or has a layer or a sense that has no plan."""
    if not isinstance(policy, Network):
        raise Misconfigured(
            f"this policy ({type(policy).__name__}) can't be exported as code: {CODE} carry networks; the target torch carries any torch policy"
        )
    builder = _Builder({}, [])
    groups = _sense(builder, policy)
    x = _flatten(builder, groups, policy.sense.groups)
    if policy.recurrent is not None:
        x = _recurrent(builder, x, policy.recurrent)
    for name, layer in policy.body.named_children():
        x = _layer(builder, x, layer, f"body.{name}")
    raw = _output(builder, x, policy)
    used = {name for op in builder.ops for name in steps.reads(op)} | {raw}
    inputs = tuple(_input(name, group, builder) for name, group in policy.spec.observations.items() if name in used)
    if not inputs:
        raise Misconfigured("this policy reads no observation at all, so there is nothing to export")
    log_std = None if policy.log_std is None or policy.sde else _floats(policy.log_std)
    return Plan(inputs, tuple(builder.states), tuple(builder.ops), raw, _decode(policy), builder.shapes, log_std)


class _Builder:
    """The steps so far, and the shapes of their values."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], ops: list[Op]) -> None:
        self.shapes, self.ops = shapes, ops
        self.wide: set[str] = set()
        self.states: list[State] = []

    def name(self) -> str:
        return f"v{len(self.ops)}"

    def add(self, op: Op, shape: tuple[int, ...]) -> str:
        self.ops.append(op)
        self.shapes[op.out] = shape
        return op.out

    def memory(self, name: str, size: int) -> str:
        """A new part of the memory: the name of its value before this step; ``remember`` says what it is after."""
        before = f"before.{name}"
        self.shapes[before] = (size,)
        return before

    def remember(self, name: str, before: str, after: str) -> None:
        self.states.append(State(name, before, after, self.size(before)))

    def size(self, value: str) -> int:
        return int(np.prod(self.shapes[value], dtype=int))


def _floats(tensor: Tensor) -> Floats:
    array: Floats = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    if not np.isfinite(array).all():
        raise Misconfigured("this policy can't be exported: its weights hold NaN or infinity")
    return array


def _sense(b: _Builder, policy: Network) -> dict[str, str]:
    """Run the sense's steps; group → value."""
    values = {}
    for name, group in policy.spec.observations.items():
        b.shapes[name] = group.shape
        values[name] = name
    for i, step in enumerate(policy.sense.steps):
        if type(step) not in SENSES:
            known = ", ".join(s.__name__ for s in SENSES)
            raise Misconfigured(
                f"the sense's step {i} ({getattr(step, 'kind', type(step).__name__)}) can't be exported as code: {CODE} carry {known}; the target torch carries any"
            )
        values = SENSES[type(step)](b, step, values)
    return values


def _pick(b: _Builder, step: Pick, values: Mapping[str, str]) -> dict[str, str]:
    return {name: values[name] for name in step.groups}


def _one_hot(b: _Builder, step: OneHot, values: Mapping[str, str]) -> dict[str, str]:
    made = {name: b.add(steps.OneHot(b.name(), values[name], counts), (sum(counts),)) for name, counts in step.categories.items() if name in values}
    return {**values, **made}


def _normalise(b: _Builder, step: Normalise, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    wide = step.dtype == "float64"
    for i, name in enumerate(step.shapes):
        scale, shift = (getattr(step, f"{part}{i}").detach().cpu().numpy().ravel() for part in ("scale", "shift"))
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise Misconfigured(f"this policy can't be exported: the normaliser of {name!r} holds NaN or infinity")
        source = values[name]
        if wide and source == name:
            b.wide.add(name)
        made[name] = b.add(steps.Affine(b.name(), source, scale, shift, -step.clip, step.clip, wide), b.shapes[source])
    return made


def _scale(b: _Builder, step: Scale, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name, divisor in step.divisors.items():
        made[name] = b.add(steps.Affine(b.name(), values[name], np.array([1 / divisor]), np.zeros(1)), b.shapes[values[name]])
    return made


def _channels_first(b: _Builder, step: ChannelsFirst, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name in step.groups:
        height, width, channels = b.shapes[values[name]]
        made[name] = b.add(steps.Transpose(b.name(), values[name]), (channels, height, width))
    return made


def _stack(b: _Builder, step: Stack, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name, shape in step.shapes.items():
        stacked = list(shape)
        stacked[step.axes[name]] *= step.count
        old = np.arange(int(np.prod(stacked))).reshape(stacked)
        new = np.arange(int(np.prod(shape))).reshape(shape) + old.size
        kept = np.split(old, [shape[step.axes[name]]], step.axes[name])[1]
        order = np.concatenate([kept, new], step.axes[name]).ravel()
        before = b.memory(f"stack_{name}", old.size)
        both = b.add(steps.Concat(b.name(), (before, values[name])), (old.size + new.size,))
        made[name] = b.add(steps.Take(b.name(), both, tuple(order.tolist())), tuple(stacked))
        b.remember(f"stack_{name}", before, made[name])
    return made


def _remaining_time(b: _Builder, step: RemainingTime, values: Mapping[str, str]) -> dict[str, str]:
    before = b.memory("steps", 1)
    left = b.add(steps.Affine(b.name(), before, np.array([-1 / step.limit]), np.ones(1)), (1,))
    b.remember("steps", before, b.add(steps.Affine(b.name(), before, np.ones(1), np.ones(1)), (1,)))
    x = values[step.group]
    return {**values, step.group: b.add(steps.Concat(b.name(), (x, left)), (b.size(x) + 1,))}


SENSES: dict[type, Callable[[_Builder, Any, Mapping[str, str]], dict[str, str]]] = {
    Pick: _pick,
    OneHot: _one_hot,
    Normalise: _normalise,
    Scale: _scale,
    ChannelsFirst: _channels_first,
    Stack: _stack,
    RemainingTime: _remaining_time,
}


def _input(name: str, group: Group, b: _Builder) -> Input:
    return Input(name, group.shape, group.dtype, group.categories, name in b.wide and group.dtype == "float64")


def _flatten(b: _Builder, values: Mapping[str, str], described: Mapping[str, Group]) -> str:
    """One float vector, in the order of policies.flatten."""
    names = sorted(values) if len(values) > 1 else list(values)
    chosen = tuple(values[name] for name in names)
    if len(chosen) == 1 and (chosen[0] not in described or described[chosen[0]].dtype == "float32"):
        return chosen[0]
    return b.add(steps.Concat(b.name(), chosen), (sum(b.size(v) for v in chosen),))


def _recurrent(b: _Builder, x: str, part: nn.Module) -> str:
    """An LSTM or a GRU of any depth, with layers before and after it, as teachers.recurrence has it."""
    x = _layer(b, x, getattr(part, "before", nn.Identity()), "recurrent.before")
    cell = getattr(part, "lstm", None) or getattr(part, "gru", None)
    if not isinstance(cell, nn.LSTM | nn.GRU) or cell.bidirectional or cell.proj_size:
        raise Misconfigured(f"the recurrent part ({_described(part)}) can't be exported as code: {CODE} carry an LSTM or a GRU; the target torch carries any")
    for i in range(cell.num_layers):
        named = dict(cell.named_parameters())
        weights = [named[f"weight_{k}_l{i}"] for k in ("ih", "hh")]
        biases = [named.get(f"bias_{k}_l{i}", torch.zeros(len(weights[0]))) for k in ("ih", "hh")]
        step = _lstm if isinstance(cell, nn.LSTM) else _gru
        x = step(b, x, i, weights, biases)
    return _layer(b, x, getattr(part, "after", nn.Identity()), "recurrent.after")


def _lstm(b: _Builder, x: str, i: int, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str:
    size = weights[1].shape[1]
    h, c = b.memory(f"h{i}", size), b.memory(f"c{i}", size)
    both = b.add(steps.Concat(b.name(), (x, h)), (b.size(x) + size,))
    gates = b.add(steps.Dense(b.name(), both, _floats(torch.cat(list(weights), 1)), _floats(biases[0] + biases[1])), (4 * size,))
    after = b.add(steps.LstmCell(b.name(), gates, c), (size,))
    out = b.add(steps.LstmOut(b.name(), gates, after), (size,))
    b.remember(f"h{i}", h, out)
    b.remember(f"c{i}", c, after)
    return out


def _gru(b: _Builder, x: str, i: int, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str:
    size = weights[1].shape[1]
    h = b.memory(f"h{i}", size)
    gi, gh = (b.add(steps.Dense(b.name(), v, _floats(w), _floats(bias)), (3 * size,)) for v, w, bias in zip((x, h), weights, biases, strict=True))
    out = b.add(steps.GruGate(b.name(), gi, gh, h), (size,))
    b.remember(f"h{i}", h, out)
    return out


def _layer(b: _Builder, x: str, layer: nn.Module, where: str) -> str:
    """One layer, or the layers inside of a Sequential; the value that comes out."""
    if isinstance(layer, nn.Sequential):
        for name, inner in layer.named_children():
            x = _layer(b, x, inner, f"{where}.{name}")
        return x
    if isinstance(layer, nn.Identity | nn.Dropout | nn.Flatten):
        return x
    if isinstance(layer, nn.Unflatten | NatureCNN):
        b.shapes[x] = tuple(layer.unflattened_size if isinstance(layer, nn.Unflatten) else layer.shape)
        return x if isinstance(layer, nn.Unflatten) else _layer(b, x, layer.layers, where)
    if isinstance(layer, Combined):
        parts = [_layer(b, _span(b, x, *span), inner, f"{where}.{i}") for i, (span, inner) in enumerate(zip(layer.spans, layer.layers, strict=True))]
        return b.add(steps.Concat(b.name(), tuple(parts)), (sum(b.size(v) for v in parts),))
    if type(layer) in PLAIN:
        return _activate(b, x, PLAIN[type(layer)])
    convert = LAYERS.get(type(layer))
    made = convert(b, x, layer) if convert else None
    if made is None:
        raise Misconfigured(
            f"the layer {where} ({_described(layer)}) can't be exported as code: {CODE} carry Linear, Conv2d, LayerNorm, BatchNorm1d and the usual activations; "
            "the target torch carries any layer"
        )
    return made


def _span(b: _Builder, x: str, start: int, stop: int) -> str:
    return b.add(steps.Take(b.name(), x, tuple(range(start, stop))), (stop - start,))


def _described(layer: nn.Module) -> str:
    text = str(layer).splitlines()[0]
    return text if len(text) < 80 else text[:77] + "…"


def _linear(b: _Builder, x: str, layer: nn.Linear) -> str:
    weight = _floats(layer.weight)
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else _floats(layer.bias)
    return b.add(steps.Dense(b.name(), x, weight, bias), (len(weight),))


def _activate(b: _Builder, x: str, kind: str, first: float | Floats = 0.0, second: float = 0.0) -> str:
    return b.add(steps.Activate(b.name(), x, kind, first, second), b.shapes[x])


def _prelu(b: _Builder, x: str, layer: nn.PReLU) -> str:
    slope = _floats(layer.weight)
    return _activate(b, x, "leaky", float(slope[0]) if slope.size == 1 else slope)


def _batch_norm(b: _Builder, x: str, layer: nn.BatchNorm1d) -> str | None:
    if layer.running_mean is None or layer.running_var is None:
        return None
    scale = 1 / (layer.running_var.double() + layer.eps).sqrt()
    shift = -layer.running_mean.double() * scale
    if layer.affine:
        scale, shift = scale * layer.weight.double(), shift * layer.weight.double() + layer.bias.double()
    return b.add(steps.Affine(b.name(), x, _floats(scale), _floats(shift)), b.shapes[x])


def _affine(b: _Builder, x: str, layer: Any) -> str:
    return b.add(steps.Affine(b.name(), x, _floats(layer.scale), _floats(layer.shift)), b.shapes[x])


def _conv(b: _Builder, x: str, layer: nn.Conv2d) -> str | None:
    """Plain ones: no groups, no dilation, padding of zeros."""
    shape = b.shapes[x]
    padding = layer.padding if isinstance(layer.padding, tuple) else ((0, 0) if layer.padding == "valid" else None)
    if len(shape) != 3 or padding is None or layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        return None
    if padding != (0, 0):
        shape = (shape[0], shape[1] + 2 * padding[0], shape[2] + 2 * padding[1])
        x = b.add(steps.Pad(b.name(), x, *padding), shape)
    weight = _floats(layer.weight)
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else _floats(layer.bias)
    rows, columns = ((size - k) // stride + 1 for size, k, stride in zip(shape[1:], weight.shape[2:], layer.stride, strict=True))
    return b.add(steps.Conv(b.name(), x, weight, bias, (layer.stride[0], layer.stride[1])), (len(weight), rows, columns))


def _layer_norm(b: _Builder, x: str, layer: nn.LayerNorm) -> str | None:
    if layer.normalized_shape != (b.size(x),):
        return None
    ones = torch.ones(layer.normalized_shape)
    weight = _floats(ones if layer.weight is None else layer.weight)
    bias = _floats(ones * 0 if layer.bias is None else layer.bias)
    return b.add(steps.LayerNorm(b.name(), x, weight, bias, float(layer.eps)), b.shapes[x])


PLAIN: dict[type, str] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.SiLU: "silu"}
LAYERS: dict[type, Callable[[_Builder, str, Any], str | None]] = {
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.Conv2d: _conv,
    Affine: _affine,
    Renorm: _affine,
    Reorder: lambda b, x, layer: b.add(steps.Take(b.name(), x, tuple(layer.order.tolist())), (len(layer.order),)),
    nn.PReLU: _prelu,
    nn.ELU: lambda b, x, layer: _activate(b, x, "elu", float(layer.alpha)),
    nn.GELU: lambda b, x, layer: _activate(b, x, "gelu_tanh" if layer.approximate == "tanh" else "gelu"),
    nn.LeakyReLU: lambda b, x, layer: _activate(b, x, "leaky", float(layer.negative_slope)),
    nn.Hardtanh: lambda b, x, layer: _activate(b, x, "clip", float(layer.min_val), float(layer.max_val)),
    nn.ReLU6: lambda b, x, layer: _activate(b, x, "clip", float(layer.min_val), float(layer.max_val)),
}


def _output(b: _Builder, x: str, policy: Network) -> str:
    """The raw outputs; quantiles are averaged inside of the last layer, which is linear."""
    if not policy.quantiles:
        return _layer(b, x, policy.out, "out")
    if not isinstance(policy.out, nn.Linear):
        raise Misconfigured("a policy of quantiles can be exported as code only where its output is a linear layer; the target torch carries it")
    weight, bias = (v.detach().double().reshape(policy.quantiles, -1, *v.shape[1:]).mean(0) for v in (policy.out.weight, policy.out.bias))
    return b.add(steps.Dense(b.name(), x, _floats(weight), _floats(bias)), (len(bias),))


def _decode(policy: Network) -> Decode:
    space, kind = policy.spec.action, HEADS.get(policy.head.kind)
    if kind is None:
        raise Misconfigured(f"the head {policy.head.kind!r} can't be exported as code; the target torch carries any")
    return Decode(kind, space.shape, space.dtype, space.start, space.nvec if kind == "multi" else (), space.low, space.high)
