"""Torch layers out of the named tensors of an SB3 policy, each shape held against what comes before it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Failed, Misconfigured
from distillrl.teachers import pickles
from distillrl.teachers.pickles import Global, Made

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.Tanh, nn.ReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.LeakyReLU, nn.PReLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh,
        nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Identity,
    )
}  # fmt: skip
"""The activations that a file may name: they take numbers as options and hold no code of the file's."""


class Weights:
    """The tensors of a policy by name; what has been taken is remembered, so that nothing is silently left over."""

    def __init__(self, tensors: dict[str, Tensor], where: str) -> None:
        self.tensors, self.where = tensors, where
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def any(self, prefix: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(prefix) for name in self.tensors)

    def take(self, name: str, rank: int | None = None) -> Tensor:
        """A tensor as float32; raises Failed where it is missing, has another rank, or holds NaN or infinity."""
        if name not in self.tensors:
            raise Failed(f"{self.where} lacks the weights {name}; it has {pickles.shown(', '.join(list(self.tensors)[:8]), 200) or 'none'}")
        value = self.tensors[name]
        if rank is not None and value.dim() != rank:
            raise Failed(f"{self.where}: {name} has the shape {list(value.shape)}, {rank} axes are right")
        if value.numel() == 0 or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise Failed(f"{self.where}: the weights {name} hold NaN or infinity, or no numbers")
        self.taken.add(name)
        return value.float().contiguous()

    def linear(self, prefix: str, width: int | None = None, size: int | None = None) -> nn.Linear:
        """The Linear at ``prefix`` (a bias of zeros where it has none), of ``width`` inputs and ``size`` outputs where given."""
        weight = self.take(f"{prefix}.weight", 2)
        if width is not None and weight.shape[1] != width:
            raise Failed(f"{self.where}: {prefix}.weight is {list(weight.shape)}, but {width} numbers come into it")
        if size is not None and weight.shape[0] != size:
            raise Failed(f"{self.where}: {prefix}.weight is {list(weight.shape)}, but {size} numbers must come out of it")
        bias = self.take(f"{prefix}.bias", 1) if f"{prefix}.bias" in self else torch.zeros(len(weight))
        if len(bias) != len(weight):
            raise Failed(f"{self.where}: {prefix}.bias has {len(bias)} numbers, its weight {len(weight)} rows")
        return dense(weight, bias)

    def left(self, skipped: tuple[str, ...]) -> list[str]:
        """Names that were not taken and don't begin with one of ``skipped``."""
        return sorted(n for n in self.tensors if n not in self.taken and not n.startswith(skipped))


def dense(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen Linear of these numbers, made without initial ones: those would cost time and numbers of the global generator."""
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    layer.out_features, layer.in_features = weight.shape
    layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return layer


class Renorm(nn.Module):
    """CrossQ's BatchRenorm as it acts (its running statistics): x · scale + shift, [..., F] → [..., F]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())

    def forward(self, x: Tensor) -> Tensor:
        """One multiply-add."""
        return torch.addcmul(self.shift, x, self.scale)

    def into(self, layer: nn.Linear) -> nn.Linear:
        """The layer after it with this step inside, computed in double precision."""
        weight = layer.weight.double()
        bias = layer.bias.double() + weight @ self.shift.double()
        return dense((weight * self.scale.double()).float(), bias.float())


def stack(weights: Weights, prefix: str, width: int, activation: Callable[[], nn.Module], *, open_end: bool = False, eps: float = 1e-3) -> list[nn.Module]:
    """The layers ``prefix.0``, ``prefix.1``, … as ``create_mlp`` and ``MlpExtractor`` make them.

    An activation follows every Linear, but not the last one where ``open_end``. ``width`` numbers come in. An empty
    stack is an identity. ``eps`` is BatchRenorm's.
    """
    found = sorted({int(m.group(1)) for name in weights.tensors if (m := re.match(re.escape(prefix) + r"\.(\d{1,4})\.", name))})
    places = [i for i in found if not _is_slope(weights, f"{prefix}.{i}")]
    linears = [i for i in places if f"{prefix}.{i}.ra_mean" not in weights]
    layers: list[nn.Module] = []
    for i in places:
        here = f"{prefix}.{i}"
        if i not in linears:
            layers.append(renorm(weights, here, width, eps))
            continue
        linear = weights.linear(here, width)
        if layers and isinstance(layers[-1], Renorm):
            linear = layers.pop().into(linear)  # type: ignore[operator]  # a Renorm, as was just asked
        layers.append(linear)
        width = linear.out_features
        if not (open_end and i == linears[-1]):
            layers.append(_activated(weights, f"{prefix}.{i + 1}", activation()))
    return layers


def _is_slope(weights: Weights, place: str) -> bool:
    """A PReLU: one weight without a bias."""
    weight = weights.tensors.get(f"{place}.weight")
    return weight is not None and weight.dim() == 1 and f"{place}.bias" not in weights


def _activated(weights: Weights, place: str, made: nn.Module) -> nn.Module:
    if isinstance(made, nn.PReLU):
        made.weight = nn.Parameter(weights.take(f"{place}.weight", 1), requires_grad=False)
    return made


def renorm(weights: Weights, prefix: str, width: int, eps: float) -> Renorm:
    """A BatchRenorm at ``prefix``; its warm-up counter is of no use."""
    mean, variance, scale, bias = (weights.take(f"{prefix}.{k}", 1).double() for k in ("ra_mean", "ra_var", "scale", "bias"))
    if not len(mean) == len(variance) == len(scale) == len(bias) == width or bool((variance + eps <= 0).any()):
        raise Failed(f"{weights.where}: {prefix} has {len(mean)} numbers, but {width} come into it, or its variance is negative")
    weights.taken.add(f"{prefix}.steps")
    factor = scale / (variance + eps).sqrt()
    return Renorm(factor, bias - mean * factor)


def width_after(layers: list[nn.Module], width: int) -> int:
    """How many numbers come out of layers that ``width`` come into."""
    for layer in layers:
        width = layer.out_features if isinstance(layer, nn.Linear) else width
    return width


def named(layers: list[nn.Module]) -> dict[str, nn.Module]:
    """Layers with the names that features are asked by: linear1, hidden1 (after its activation), linear2, …"""
    names: dict[str, nn.Module] = {}
    number = 0
    for layer in layers:
        number += isinstance(layer, nn.Linear)
        word = "linear" if isinstance(layer, nn.Linear) else "renorm" if isinstance(layer, Renorm) else "hidden"
        names[f"{word}{number}"] = layer
    return names


def described(layer: nn.Module) -> str:
    """One word or two: «Linear 8→256», «Tanh», «Hardtanh ±2»."""
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features}→{layer.out_features}"
    if isinstance(layer, nn.Conv2d):
        return f"Conv2d {layer.in_channels}→{layer.out_channels}, {layer.kernel_size[0]}×{layer.kernel_size[1]}, stride {layer.stride[0]}"
    if isinstance(layer, nn.Hardtanh) and layer.min_val == -layer.max_val:
        return f"Hardtanh ±{layer.max_val:g}"
    options = layer.extra_repr()
    return type(layer).__name__ + (f" ({options})" if options and len(options) < 60 else "")


def activation(value: Any, default: type[nn.Module], where: str) -> Callable[[], nn.Module]:
    """The activation of ``activation_fn``: the inert tree of its class or of a functools.partial of it.

    Raises Misconfigured for a class of the user's own, of which a file holds only the code or the name.
    """
    if value is None:
        return default
    options: dict[str, Any] = {}
    positional: tuple[Any, ...] = ()
    kind = value
    if isinstance(value, Made) and value.name == "functools.partial":
        state = value.state if isinstance(value.state, tuple) and len(value.state) >= 3 else (None, (), {})
        kind, positional, options = state[0], state[1] or (), state[2] or {}
    name = kind.name if isinstance(kind, Global) and kind.module in {"torch.nn.modules.activation", "torch.nn.modules.linear", "torch.nn"} else None
    if name not in ACTIVATIONS:
        raise Misconfigured(
            f"{where}: its activation is {said(kind)}, a class that isn't one of torch's; name yours with --model MODULE:CLASS, and it is used in its place"
        )
    if not isinstance(options, dict) or not all(type(v) in pickles.PLAIN for v in (*options.values(), *positional)):
        raise Failed(f"{where}: the options of its activation {name} can't be read")
    try:
        ACTIVATIONS[name](*positional, **options)
    except (TypeError, ValueError) as error:
        raise Failed(f"{where}: its activation {name} is damaged ({error})") from None
    chosen = ACTIVATIONS[name]
    return lambda: chosen(*positional, **options)


def said(value: Any) -> str:
    """What an inert tree names, in a few words."""
    if isinstance(value, Global):
        return pickles.shown(value)
    if isinstance(value, Made):
        inner = next((a for a in value.args if isinstance(a, str) and a.isidentifier()), "")
        return f"one of the user's own ({inner})" if inner else "one of the user's own"
    return repr(value)[:60]
