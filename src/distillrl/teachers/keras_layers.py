"""Keras' layers and operations, written down in the words of ``operators``: a function and a row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillrl.errors import Missing
from distillrl.teachers.graph import BATCH, Ref

if TYPE_CHECKING:
    from distillrl.teachers.keras import Walk

ACTIVATIONS = {
    "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "elu": "elu", "selu": "selu", "gelu": "gelu", "silu": "silu", "swish": "silu", "softplus": "softplus",
    "softsign": "softsign", "mish": "mish", "hard_sigmoid": "hardsigmoid", "hard_silu": "hardswish", "hard_swish": "hardswish", "relu6": "relu6", "exponential": "exp",
    "celu": "celu", "log_sigmoid": "logsigmoid", "hard_tanh": "hardtanh", "leaky_relu": "leaky_relu",
}  # fmt: skip
"""Keras' name of an activation → ours."""


def _dense(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    made = w.tracer.call("linear", x[0], w.constant(v[0].T), w.constant(v[1]) if c.get("use_bias", True) else None)
    return _activated(w, made, c.get("activation"))


def _activation(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return _activated(w, x[0], c["activation"])


def _activated(w: Walk, x: Ref, name: Any) -> Ref:
    """An activation by Keras' name for it."""
    if isinstance(name, Mapping):
        name = name.get("config", name.get("class_name")) if not isinstance(name.get("config"), Mapping) else name.get("class_name")
    if name in {None, "linear"}:
        return x
    if name == "softmax":
        return w.tracer.call("softmax", x, -1)
    if name == "leaky_relu":
        return w.tracer.call("leaky_relu", x, 0.2)
    if name == "tanh_shrink":
        return w.tracer.call("sub", x, w.tracer.call("tanh", x))
    if name not in ACTIVATIONS:
        raise Missing(f"{w.where}: the activation {str(name)[:60]!r} is not known here")
    return w.tracer.call(ACTIVATIONS[str(name)], x)


def _named(op: str, option: str = "", default: float = 0.0) -> Callable[[Walk, list[Ref], Mapping[str, Any], list[Tensor]], Ref]:
    def make(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
        return w.tracer.call(op, x[0], float(c.get(option, default))) if option else w.tracer.call(op, x[0])

    return make


def _softmax(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return w.tracer.call("softmax", x[0], int(c.get("axis", -1)))


def _relu(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    slope, most = float(c.get("negative_slope") or 0.0), c.get("max_value")
    if c.get("threshold") or (slope and most is not None):
        raise Missing(f"{w.where}: a ReLU with a threshold, or with a slope and a greatest value, is not known here")
    if slope:
        return w.tracer.call("leaky_relu", x[0], slope)
    return w.tracer.call("relu", x[0]) if most is None else w.tracer.call("clamp", x[0], 0.0, float(most))


def _normalization(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    if c.get("invert"):
        raise Missing(f"{w.where}: an inverted Normalization is not known here")
    mean, variance = (torch.tensor(c["mean"]), torch.tensor(c["variance"])) if c.get("mean") is not None else v[:2]
    std = variance.float().reshape(-1).sqrt().clamp_min(1e-7)
    return w.tracer.call("div", w.tracer.call("sub", x[0], w.constant(mean.float().reshape(-1))), w.constant(std))


def _batch_normalization(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    parts = list(v)
    gamma = parts.pop(0) if c.get("scale", True) else torch.ones_like(v[-1])
    beta = parts.pop(0) if c.get("center", True) else torch.zeros_like(v[-1])
    mean, variance = parts
    if c.get("axis", -1) not in {-1, len(w.tracer.shape(x[0])) - 1}:
        raise Missing(f"{w.where}: a BatchNormalization over another axis than the last is not known here")
    if len(w.tracer.shape(x[0])) != 2:
        scale = gamma / (variance + float(c.get("epsilon", 1e-3))).sqrt()
        return w.tracer.call("add", w.tracer.call("mul", x[0], w.constant(scale)), w.constant(beta - mean * scale))
    return w.tracer.call("batch_norm", x[0], *(w.constant(t) for t in (gamma, beta, mean, variance)), False, 0.0, float(c.get("epsilon", 1e-3)))


def _layer_normalization(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    axis = c.get("axis", -1)
    if (axis if isinstance(axis, list) else [axis]) not in ([-1], [1]) or c.get("rms_scaling"):
        raise Missing(f"{w.where}: a LayerNormalization over other axes is not known here")
    parts, width = list(v), w.tracer.shape(x[0])[-1]
    gamma = parts.pop(0) if c.get("scale", True) else torch.ones(width)
    beta = parts.pop(0) if c.get("center", True) else torch.zeros(width)
    return w.tracer.call("layer_norm", x[0], (width,), w.constant(gamma), w.constant(beta), float(c.get("epsilon", 1e-3)))


def _rescaling(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return w.tracer.call("add", w.tracer.call("mul", x[0], float(c["scale"])), float(c.get("offset", 0.0)))


def _joined(op: str) -> Callable[[Walk, list[Ref], Mapping[str, Any], list[Tensor]], Ref]:
    def make(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
        if op == "cat":
            return w.tracer.call("cat", tuple(x), int(c.get("axis", -1)))
        value = x[0]
        for other in x[1:]:
            value = w.tracer.call(op, value, other)
        return value

    return make


def _flatten(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return w.tracer.call("flatten", x[0], 1)


def _reshape(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return w.tracer.call("reshape", x[0], (BATCH, *(int(s) for s in c["target_shape"])))


def _conv(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    """Channels last, as Keras keeps them: permuted around the convolution."""
    if c.get("padding") not in {"valid", "same"} or c.get("data_format", "channels_last") != "channels_last" or c.get("groups", 1) != 1:
        raise Missing(f"{w.where}: a Conv2D in groups, or with channels first, is not known here")
    first = w.tracer.call("permute", x[0], (0, 3, 1, 2))
    if c["padding"] == "same":
        first = _same_size(w, first, c["kernel_size"], c["strides"], c.get("dilation_rate", (1, 1)))
    kernel = w.constant(v[0].permute(3, 2, 0, 1))
    bias = w.constant(v[1]) if c.get("use_bias", True) else None
    made = w.tracer.call("convolution", first, kernel, bias, tuple(c["strides"]), (0, 0), tuple(c.get("dilation_rate", (1, 1))), False, (0, 0), 1)
    return _activated(w, w.tracer.call("permute", made, (0, 2, 3, 1)), c.get("activation"))


def _same_size(w: Walk, x: Ref, kernel: list[int], strides: list[int], dilation: Any) -> Ref:
    """Zeros around an image [N, C, H, W] as TensorFlow pads it: the odd one at the end."""
    pads = []
    for size, k, s, d in zip(w.tracer.shape(x)[2:], kernel, strides, dilation, strict=True):
        whole = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pads.append((whole // 2, whole - whole // 2))
    (top, bottom), (left, right) = pads
    return x if not any((top, bottom, left, right)) else w.tracer.call("pad", x, (left, right, top, bottom))


def _pooled(op: str) -> Callable[[Walk, list[Ref], Mapping[str, Any], list[Tensor]], Ref]:
    def make(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
        if c.get("padding") != "valid" or c.get("data_format", "channels_last") != "channels_last":
            raise Missing(f"{w.where}: a pooling with padding, or with channels first, is not known here")
        made = w.tracer.call(op, w.tracer.call("permute", x[0], (0, 3, 1, 2)), tuple(c["pool_size"]), tuple(c.get("strides") or c["pool_size"]))
        return w.tracer.call("permute", made, (0, 2, 3, 1))

    return make


def _pooled_whole(op: str) -> Callable[[Walk, list[Ref], Mapping[str, Any], list[Tensor]], Ref]:
    def make(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
        return w.tracer.call(op, x[0], tuple(range(1, len(w.tracer.shape(x[0])) - 1)), bool(c.get("keepdims")))

    return make


def _recurrent(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    """An LSTM or GRU over a window [N, T, F] that is given whole; Keras' gates in torch's order."""
    gru = "reset_after" in c
    odd = [k for k in ("go_backwards", "stateful", "return_state") if c.get(k)] + (["reset_after=False"] if gru and not c["reset_after"] else [])
    if odd or c.get("activation") != "tanh" or c.get("recurrent_activation") != "sigmoid":
        raise Missing(f"{w.where}: a recurrent layer with {', '.join(odd) or 'other activations'} is not known here")
    kernel, inner = v[0].T, v[1].T
    hidden = inner.shape[1]
    bias = v[2].reshape(-1, len(kernel)) if c.get("use_bias", True) else torch.zeros(2, len(kernel))
    biases = [bias[0], bias[1] if len(bias) > 1 else torch.zeros(len(kernel))]
    params = [kernel, inner, *biases]
    if gru:  # Keras: update, reset, new; torch: reset, update, new
        order = torch.cat([torch.arange(hidden, 2 * hidden), torch.arange(hidden), torch.arange(2 * hidden, 3 * hidden)])
        params = [p[order] for p in params]
    zeros = w.constant(torch.zeros(1, 1, hidden))
    refs = tuple(w.constant(p) for p in params)
    out = w.tracer.call("gru" if gru else "lstm", x[0], zeros if gru else (zeros, zeros), refs, True, 1, 0.0, False, False, True)[0]
    return out if c.get("return_sequences") else w.tracer.call("select", out, 1, -1)


def _prelu(w: Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    if len(w.tracer.shape(x[0])) != 2:
        raise Missing(f"{w.where}: a PReLU of images is not known here")
    return w.tracer.call("prelu", x[0], w.constant(v[0].reshape(-1)))


LAYERS: dict[str, Callable[[Walk, list[Ref], Mapping[str, Any], list[Tensor]], Ref]] = {
    "Dense": _dense, "Activation": _activation, "ReLU": _relu, "LeakyReLU": _named("leaky_relu", "negative_slope", 0.3), "ELU": _named("elu", "alpha", 1.0),
    "Softmax": _softmax, "Normalization": _normalization, "BatchNormalization": _batch_normalization, "LayerNormalization": _layer_normalization,
    "Rescaling": _rescaling, "Dropout": _named("identity"), "GaussianNoise": _named("identity"), "GaussianDropout": _named("identity"),
    "ActivityRegularization": _named("identity"), "Identity": _named("identity"), "Flatten": _flatten, "Concatenate": _joined("cat"),
    "Add": _joined("add"), "Multiply": _joined("mul"), "Subtract": _joined("sub"), "Maximum": _joined("maximum"), "Minimum": _joined("minimum"),
    "Reshape": _reshape, "Conv2D": _conv, "MaxPooling2D": _pooled("max_pool2d"), "AveragePooling2D": _pooled("avg_pool2d"), "GlobalAveragePooling2D": _pooled_whole("mean"),
    "GlobalMaxPooling2D": _pooled_whole("amax"), "GlobalAveragePooling1D": _pooled_whole("mean"), "LSTM": _recurrent, "GRU": _recurrent, "PReLU": _prelu,
}  # fmt: skip
"""Layers by Keras' class name."""


# ── operations of keras.ops, which a functional model may hold beside layers ──


def _binary(op: str) -> Callable[[Walk, list[Any], Mapping[str, Any]], Ref]:
    def make(w: Walk, x: list[Any], c: Mapping[str, Any]) -> Ref:
        left, right = (a if isinstance(a, Ref) else w.constant(torch.tensor(a)) for a in x)
        return w.tracer.call(op, left, right)

    return make


def _unary(op: str) -> Callable[[Walk, list[Any], Mapping[str, Any]], Ref]:
    def make(w: Walk, x: list[Any], c: Mapping[str, Any]) -> Ref:
        return w.tracer.call(op, x[0])

    return make


def _reduced(op: str) -> Callable[[Walk, list[Any], Mapping[str, Any]], Ref]:
    def make(w: Walk, x: list[Any], c: Mapping[str, Any]) -> Ref:
        axis = c.get("axis")
        axes = tuple(int(a) for a in (axis if isinstance(axis, list) else [axis]) if a is not None)
        if not axes or 0 in axes:
            raise Missing(f"{w.where}: a mean, sum or extreme over all states is no policy's")
        return w.tracer.call(op, x[0], axes, bool(c.get("keepdims")))

    return make


OPERATIONS: dict[str, Callable[[Walk, list[Any], Mapping[str, Any]], Ref]] = {
    "Add": _binary("add"), "Subtract": _binary("sub"), "Multiply": _binary("mul"), "Divide": _binary("div"), "TrueDivide": _binary("div"), "Maximum": _binary("maximum"),
    "Minimum": _binary("minimum"), "Negative": _unary("neg"), "Exp": _unary("exp"), "Log": _unary("log"), "Square": _unary("square"), "Sqrt": _unary("sqrt"), "Absolute": _unary("abs"),
    "Tanh": _unary("tanh"), "Relu": _unary("relu"), "Sigmoid": _unary("sigmoid"), "Softplus": _unary("softplus"), "Silu": _unary("silu"), "Mean": _reduced("mean"), "Sum": _reduced("sum"),
    "Max": _reduced("amax"), "Min": _reduced("amin"),
}  # fmt: skip
"""Operations by the name of Keras' class for them."""
