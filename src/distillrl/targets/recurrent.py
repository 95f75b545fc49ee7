"""Recurrent layers of a converted network as steps of a plan: LSTM and GRU, of any depth, one step of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distillrl.targets import numbers
from distillrl.targets import plan as steps
from distillrl.targets.numbers import Value, constant, in_order, refuse, whole
from distillrl.targets.sensing import Builder


def layers(lstm: bool) -> Callable[..., Any]:
    """Torch's LSTM or GRU over one step, of any depth; the states are rows [layers, 1, H]."""

    def write(b: Builder, x: Value, hx: Any, params: Sequence[Tensor], has_biases: bool, count: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool) -> Any:
        if bidirectional or x.places.numel() != x.shape[-1]:
            raise refuse("a recurrent layer over several steps at once, or in both directions,")
        held = [v if isinstance(v, Value) else constant(b, v) for v in (hx if lstm else (hx,))]
        each_layer, value = (4 if has_biases else 2), in_order(b, x)
        kept: list[list[str]] = [[] for _ in held]
        for i in range(count):
            weights = [params[i * each_layer + k] for k in range(each_layer)]
            before = [in_order(b, Value(v.name, v.places.reshape(count, -1)[i])) for v in held]
            value, *after = _cell(b, value, before, weights)
            for names, name in zip(kept, (value, *after), strict=True):
                names.append(name)
        out = whole(b, value, (*x.shape[:-1], b.size(value)))
        states = []
        for names, v in zip(kept, held, strict=True):
            both = names[0] if len(names) == 1 else b.add(steps.Concat(b.name(), tuple(names)), (sum(b.size(n) for n in names),))
            states.append(whole(b, both, v.shape))
        return (out, *states)

    return write


def _cell(b: Builder, x: str, before: Sequence[str], weights: Sequence[Tensor]) -> tuple[str, ...]:
    """One layer's step: (h, c) after it, or (h,)."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:] if len(weights) == 4 else (torch.zeros(len(w_ih)),) * 2
    if len(before) == 2:
        h, c = before
        return lstm_step(b, x, h, c, torch.cat([w_ih, w_hh], 1), b_ih + b_hh)
    return (gru_step(b, x, before[0], (w_ih, w_hh), (b_ih, b_hh)),)


def lstm_step(b: Builder, x: str, h: str, c: str, weight: Tensor, bias: Tensor) -> tuple[str, str]:
    """(h, c) after a step; ``weight`` [4H, F + H] is of x and h side by side."""
    size = b.size(h)
    both = b.add(steps.Concat(b.name(), (x, h)), (b.size(x) + size,))
    gates = b.add(steps.Dense(b.name(), both, numbers.floats(weight), numbers.floats(bias)), (4 * size,))
    after = b.add(steps.LstmCell(b.name(), gates, c), (size,))
    return b.add(steps.LstmOut(b.name(), gates, after), (size,)), after


def gru_step(b: Builder, x: str, h: str, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str:
    """H after a step."""
    size = b.size(h)
    gi, gh = (b.add(steps.Dense(b.name(), v, numbers.floats(w), numbers.floats(bias)), (3 * size,)) for v, w, bias in zip((x, h), weights, biases, strict=True))
    return b.add(steps.GruGate(b.name(), gi, gh, h), (size,))


def one_cell(b: Builder, x: Value, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
    """Torch's LSTMCell, of states (h, c), or GRUCell."""
    many = isinstance(hx, (list, tuple))
    held = [v if isinstance(v, Value) else constant(b, v) for v in (hx if many else (hx,))]
    zero = torch.zeros(len(w_ih))
    made = _cell(b, in_order(b, x), [in_order(b, v) for v in held], (w_ih, w_hh, zero if b_ih is None else b_ih, zero if b_hh is None else b_hh))
    return tuple(whole(b, name, v.shape) for name, v in zip(made, held, strict=True)) if many else whole(b, made[0], held[0].shape)
