"""The tensor operators that a converted network may use: a closed list, each a function without side effects.

Files name operators (TorchScript and torch.export by ATen's names; ONNX's are put into these words); what isn't in
OPERATORS can't be run, so no file can reach a file, a socket, a random generator or an import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

DTYPES: dict[int, torch.dtype] = {
    0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64,
    5: torch.float16, 6: torch.float32, 7: torch.float64, 11: torch.bool, 15: torch.bfloat16,
}  # fmt: skip
"""ATen's numbers of dtypes, as TorchScript writes them."""


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate; a constant made for a batch of one is repeated for a larger one."""
    rank = tensors[0].dim()
    axis = dim % rank
    if rank == 2 and axis == 1 and all(t.dim() == 2 and t.shape[0] == tensors[0].shape[0] for t in tensors):
        return torch.cat(list(tensors), 1)
    if all(t.dim() == rank for t in tensors):
        lead = [max(t.shape[i] for t in tensors) for i in range(rank)]
        tensors = [t.expand([t.shape[i] if i == axis else lead[i] for i in range(rank)]) for t in tensors]
    return torch.cat(list(tensors), axis)


def _slice(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    length = x.shape[dim]
    first, last, stride = slice(start, None if end is None or end >= length else end, step).indices(length)
    if stride > 0:
        return x.narrow(dim, first, max(0, last - first))[(slice(None),) * (dim % x.dim()) + (slice(None, None, stride),)]
    return x.index_select(dim, torch.arange(first, last, stride, device=x.device))


def _split(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    return torch.split(x, sizes if isinstance(sizes, int) else list(sizes), dim)


def _flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    return x.flatten(start_dim, end_dim)


def _add(a: Any, b: Any, alpha: float = 1) -> Tensor:
    return a + b if alpha == 1 else a + b * alpha


def _sub(a: Any, b: Any, alpha: float = 1) -> Tensor:
    return a - b if alpha == 1 else a - b * alpha


def _div(a: Any, b: Any, rounding_mode: str | None = None) -> Tensor:
    return a / b if rounding_mode is None else torch.div(a, b, rounding_mode=rounding_mode)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    return F.linear(a, b.T, bias) if beta == 1 and alpha == 1 else torch.addmm(bias, a, b, beta=beta, alpha=alpha)


def _clamp(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    return x if min is None and max is None else torch.clamp(x, min, max)


def _convolution(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int, *ignored: Any
) -> Tensor:
    if transposed:
        raise ValueError("a transposed convolution isn't a policy's")
    return (F.conv1d, F.conv2d, F.conv3d)[w.dim() - 3](x, w, b, tuple(stride), tuple(padding), tuple(dilation), groups)


def _pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = 0.0) -> Tensor:
    return F.pad(x, list(pad), mode, value)


def _batch_norm(x: Tensor, w: Any, b: Any, mean: Any, var: Any, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *ignored: Any) -> Tensor:
    return F.batch_norm(x, mean, var, w, b, False, 0.0, eps)


def _for_batch(state: Tensor, x: Tensor, batch_first: bool) -> Tensor:
    """A recurrent state [layers, 1, F] that a file holds for a batch of one, repeated for the batch of x [T, B, F]."""
    if state.dim() != 3 or x.dim() != 3 or not isinstance(state.shape[1], int) or state.shape[1] != 1:  # no int: the batch of torch.export
        return state
    return state.expand(-1, x.shape[0 if batch_first else 1], -1).contiguous()


def _lstm(
    x: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], has_biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool
) -> tuple[Tensor, ...]:
    return torch.lstm(x, [_for_batch(h, x, batch_first) for h in hx], list(params), has_biases, layers, 0.0, False, bidirectional, batch_first)


def _gru(
    x: Tensor, hx: Tensor, params: Sequence[Tensor], has_biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool
) -> tuple[Tensor, ...]:
    return torch.gru(x, _for_batch(hx, x, batch_first), list(params), has_biases, layers, 0.0, False, bidirectional, batch_first)


def _lstm_cell(x: Tensor, hx: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> tuple[Tensor, Tensor]:
    return torch.lstm_cell(x, list(hx), w_ih, w_hh, b_ih, b_hh)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, dropout: float = 0.0, is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    """softmax(qkᵀ · scale + mask) v, written out: torch's own kernel can't be vectorised over states (Vaswani 2017, eq. 1)."""
    if enable_gqa:
        raise ValueError("grouped queries aren't a policy's")
    weights = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else weights + mask
    return weights.softmax(-1) @ v


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return F.elu(x, alpha) if scale == input_scale == 1 else scale * F.elu(x * input_scale, alpha)


def _softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    return F.softmax(x, dim)


def _log_softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    return F.log_softmax(x, dim)


def _to(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """Change the dtype; a device is ignored."""
    for value in (options.get("dtype"), *arguments):
        if isinstance(value, torch.dtype):
            return x.to(value)
        if isinstance(value, Tensor):
            return x.to(value.dtype)
        if isinstance(value, int) and not isinstance(value, bool) and value in DTYPES:
            return x.to(DTYPES[value])
    return x


def _same(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
    return x


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    return x.mean() if dim is None else x.mean(dim, keepdim)


def _sum(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    return x.sum() if dim is None else x.sum(dim, keepdim)


def _size(shape: Sequence[int]) -> list[int]:
    return [s if isinstance(s, torch.SymInt) else int(s) for s in shape]  # torch.export's batch is a SymInt, and no int


def _zeros(size: Sequence[int], **options: Any) -> Tensor:
    return torch.zeros(_size(size))


def _ones(size: Sequence[int], **options: Any) -> Tensor:
    return torch.ones(_size(size))


def _full(size: Sequence[int], value: float, **options: Any) -> Tensor:
    return torch.full(_size(size), float(value))


def _like(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, *value: Any, **options: Any) -> Tensor:
        return make(x, *value[: 1 if make is torch.full_like else 0])

    return run


def _scalar_tensor(value: float, **options: Any) -> Tensor:
    return torch.tensor(float(value))


def _new_zeros(x: Tensor, size: Sequence[int], *ignored: Any, **options: Any) -> Tensor:
    return x.new_zeros(_size(size))


def _squeeze(x: Tensor, dim: Any = None) -> Tensor:
    return x.squeeze() if dim is None else x.squeeze(dim if isinstance(dim, int) else tuple(dim))


def _expand(x: Tensor, size: Sequence[int], implicit: bool = False) -> Tensor:
    return x.expand(_size(size))


def _view(x: Tensor, size: Sequence[int]) -> Tensor:
    return x.reshape(_size(size))


def _argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return x.argmax(dim, keepdim) if dim is not None else x.argmax()


def _extreme(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, other: Any = None, keepdim: bool = False) -> Any:
        if isinstance(other, Tensor):
            return torch.maximum(x, other) if reduce is torch.max else torch.minimum(x, other)
        return reduce(x) if other is None else tuple(reduce(x, other, keepdim))

    return run


def _norm(x: Tensor, p: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    return torch.linalg.vector_norm(x, p, dim, keepdim)


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *ignored: Any) -> Tensor:
    return F.layer_norm(x, list(shape), weight, bias, eps)


def _pool(kind: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, size: Any, stride: Any = None, padding: Any = 0, *ignored: Any) -> Tensor:
        return kind(x, tuple(size), tuple(stride) if stride else None, tuple(padding) if padding else 0)

    return run


OPERATORS: dict[str, Callable[..., Any]] = {
    # layers
    "linear": F.linear, "addmm": _addmm, "matmul": torch.matmul, "mm": torch.matmul, "bmm": torch.matmul,
    "convolution": _convolution, "_convolution": _convolution, "conv1d": F.conv1d, "conv2d": F.conv2d,
    "batch_norm": _batch_norm, "layer_norm": _layer_norm, "max_pool2d": _pool(F.max_pool2d), "avg_pool2d": _pool(F.avg_pool2d),
    "lstm": _lstm, "gru": _gru, "lstm_cell": _lstm_cell, "gru_cell": torch.gru_cell, "dropout": _same, "feature_dropout": _same,
    "baddbmm": torch.baddbmm, "scaled_dot_product_attention": _attention,
    # activations
    "tanh": torch.tanh, "relu": F.relu, "elu": _elu, "selu": F.selu, "celu": F.celu, "gelu": _gelu, "silu": F.silu, "mish": F.mish,
    "sigmoid": torch.sigmoid, "leaky_relu": F.leaky_relu, "softplus": F.softplus, "softsign": F.softsign, "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "relu6": F.relu6, "prelu": F.prelu, "logsigmoid": F.logsigmoid, "log_sigmoid": F.logsigmoid,
    "softmax": _softmax, "log_softmax": _log_softmax, "_softmax": _softmax, "_log_softmax": _log_softmax,
    # arithmetic
    "add": _add, "sub": _sub, "rsub": lambda a, b, alpha=1: b - a * alpha, "mul": lambda a, b: a * b, "div": _div, "pow": torch.pow, "neg": torch.neg,
    "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "square": torch.square, "abs": torch.abs, "sign": torch.sign,
    "reciprocal": torch.reciprocal, "sin": torch.sin, "cos": torch.cos, "atan2": torch.atan2, "erf": torch.erf, "floor": torch.floor, "ceil": torch.ceil,
    "round": torch.round, "atanh": torch.atanh, "remainder": torch.remainder, "tan": torch.tan, "asin": torch.asin, "acos": torch.acos, "atan": torch.atan, "sinh": torch.sinh, "cosh": torch.cosh,
    "expm1": torch.expm1, "log1p": torch.log1p, "addcmul": torch.addcmul,
    "clamp": _clamp, "clip": _clamp, "clamp_min": _clamp, "clamp_max": lambda x, max: _clamp(x, None, max),
    "maximum": torch.maximum, "minimum": torch.minimum, "max": _extreme(torch.max), "min": _extreme(torch.min),
    "mean": _mean, "sum": _sum, "norm": _norm, "linalg_vector_norm": _norm, "cumsum": torch.cumsum, "prod": torch.prod,
    "argmax": _argmax, "amax": torch.amax, "amin": torch.amin, "logsumexp": torch.logsumexp, "nan_to_num": torch.nan_to_num,
    # comparison
    "eq": torch.eq, "ne": torch.ne, "gt": torch.gt, "lt": torch.lt, "ge": torch.ge, "le": torch.le, "where": torch.where, "logical_not": torch.logical_not,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or, "masked_fill": torch.masked_fill,
    # shapes
    "cat": _cat, "concat": _cat, "stack": lambda tensors, dim=0: torch.stack(list(tensors), dim), "slice": _slice, "select": torch.select, "narrow": torch.narrow,
    "split": _split, "split_with_sizes": _split, "chunk": torch.chunk, "unsafe_chunk": torch.chunk, "unsafe_split": _split, "unsafe_split_with_sizes": _split, "unbind": torch.unbind, "view": _view, "reshape": _view, "_unsafe_view": _view,
    "flatten": _flatten, "unflatten": lambda x, dim, sizes: x.unflatten(dim, _size(sizes)), "squeeze": _squeeze, "unsqueeze": torch.unsqueeze,
    "permute": lambda x, dims: x.permute(list(dims)), "transpose": torch.transpose, "t": lambda x: x.t(), "numpy_T": lambda x: x.permute(*reversed(range(x.dim()))),
    "expand": _expand, "expand_as": lambda x, other: x.expand_as(other), "view_as": lambda x, other: x.reshape(other.shape),
    "repeat": lambda x, sizes: x.repeat(_size(sizes)), "index_select": torch.index_select, "gather": torch.gather, "pad": _pad, "constant_pad_nd": _pad,
    "tile": lambda x, sizes: x.tile(_size(sizes)), "index": lambda x, indices: x[tuple(slice(None) if i is None else i.long() for i in indices)],
    # dtypes and nothing at all
    "to": _to, "_to_copy": _to, "type_as": lambda x, other: x.to(other.dtype), "float": lambda x: x.float(), "double": lambda x: x.double(),
    "long": lambda x: x.long(), "int": lambda x: x.int(), "bool": lambda x: x.bool(), "half": lambda x: x.half(),
    "contiguous": _same, "detach": _same, "detach_": _same, "clone": _same, "alias": _same, "lift_fresh_copy": _same, "identity": _same, "cpu": _same,
    # new tensors
    "zeros": _zeros, "ones": _ones, "full": _full, "new_zeros": _new_zeros, "zeros_like": _like(torch.zeros_like),
    "ones_like": _like(torch.ones_like), "full_like": _like(torch.full_like), "scalar_tensor": _scalar_tensor,
}  # fmt: skip

ACTIVATIONS: dict[str, Callable[..., torch.nn.Module]] = {
    "tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "elu": torch.nn.ELU, "selu": torch.nn.SELU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU, "mish": torch.nn.Mish,
    "sigmoid": torch.nn.Sigmoid, "leaky_relu": torch.nn.LeakyReLU, "softplus": torch.nn.Softplus, "softsign": torch.nn.Softsign, "hardtanh": torch.nn.Hardtanh,
    "celu": torch.nn.CELU, "relu6": torch.nn.ReLU6, "hardswish": torch.nn.Hardswish, "hardsigmoid": torch.nn.Hardsigmoid, "log_softmax": torch.nn.LogSoftmax,
    "softmax": torch.nn.Softmax,
}  # fmt: skip
"""Operators that are a layer without weights, and the layer."""

RECURRENT = frozenset({"lstm", "gru", "lstm_cell", "gru_cell"})
