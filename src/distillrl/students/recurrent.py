"""Students with memory: ``gru:32``, ``lstm:32``, and ``gru:32:16x16`` with layers behind the cell.

One step is one call of a torch cell, so that it exports as such; sequences [T, B] go step by step, cleared where an
episode begins, and are backpropagated through (truncated at the sequence's ends; Werbos 1990).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import HEADS, Head
from distillrl.errors import Misconfigured
from distillrl.policies import Memory
from distillrl.records import Spec
from distillrl.senses import Sense
from distillrl.students.networks import ACTIVATIONS, MAX_UNITS, Network, initialise, parse_mlp

CELLS: dict[str, type[nn.RNNCellBase]] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}

KEEPS = 1.0
"""What the gate that keeps the memory begins with above its drawn bias: an LSTM's forget gate (Jozefowicz 2015, section 2.2), a GRU's update gate."""


class Cell(nn.Module):
    """A GRU (Cho 2014) or an LSTM (Hochreiter 1997): (x [n, F], memory {"h", "c": [n, H]}, starts [n]) → ([n, H], memory).

    x may be a sequence [T, n, F], with starts [T, n]. Memory is zero where an episode begins.
    """

    def __init__(self, kind: str, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.names = hidden, ("h", "c") if kind == "lstm" else ("h",)
        self.cell = nn.utils.skip_init(CELLS[kind], width, hidden)

    def init(self, n: int) -> Memory:
        """Zeros for n environments."""
        return {name: torch.zeros(n, self.hidden) for name in self.names}

    def forward(self, x: Tensor, memory: Memory, starts: Tensor | None) -> tuple[Tensor, Memory]:
        """One step, or a sequence of steps."""
        if x.dim() == 3:
            return self._sequence(x, memory, starts)
        state = [memory[name] if memory else x.new_zeros(len(x), self.hidden) for name in self.names]
        if starts is not None:
            keep = (~starts).to(x.dtype).unsqueeze(-1)
            state = [s * keep for s in state]
        if len(state) == 2:
            h, c = self.cell(x, (state[0], state[1]))
            return h, {"h": h, "c": c}
        h = self.cell(x, state[0])
        return h, {"h": h}

    def _sequence(self, x: Tensor, memory: Memory, starts: Tensor | None) -> tuple[Tensor, Memory]:
        """[T, n, F] → [T, n, H]: torch's whole-sequence kernel between the steps at which an episode begins somewhere."""
        state = [memory[name] if memory else x.new_zeros(x.shape[1], self.hidden) for name in self.names]
        cuts = [] if starts is None else [int(t) for t in starts.any(-1).nonzero() if t > 0]
        weights = [self.cell.weight_ih, self.cell.weight_hh, self.cell.bias_ih, self.cell.bias_hh]
        outs = []
        for begin, end in itertools.pairwise([0, *cuts, len(x)]):
            if starts is not None:
                keep = (~starts[begin]).to(x.dtype).unsqueeze(-1)
                state = [s * keep for s in state]
            first = [s.unsqueeze(0) for s in state]
            if len(state) == 2:
                out, h, c = torch.lstm(x[begin:end], first, weights, True, 1, 0.0, self.training, False, False)
                state = [h[0], c[0]]
            else:
                out, h = torch.gru(x[begin:end], first[0], weights, True, 1, 0.0, self.training, False, False)
                state = [h[0]]
            outs.append(out)
        return torch.cat(outs), dict(zip(self.names, state, strict=True))


def parse_recurrent(text: str) -> tuple[int, tuple[int, ...], str]:
    """``32`` → (32, (), "tanh"); ``32:16x16:relu`` → (32, (16, 16), "relu"). Raises Misconfigured."""
    size, _, rest = text.partition(":")
    if not size.isascii() or not size.isdigit() or not 0 < int(size[:9]) <= MAX_UNITS:
        raise Misconfigured(f"a recurrent student with {size!r} units was asked for; gru:32, lstm:64 or gru:32:16x16 are right")
    return int(size), *parse_mlp(rest)


def _network(kind: str, text: str, spec: Spec, sense: Sense, head_kind: str) -> Network:
    hidden, sizes, activation = parse_recurrent(text)
    width = sum(max(1, math.prod(g.shape)) for g in sense.groups.values())
    layers: list[nn.Module] = []
    before = hidden
    for size in sizes:
        layers += [nn.utils.skip_init(nn.Linear, before, size), ACTIVATIONS[activation]()]
        before = size
    head = Head.of(head_kind, spec.action)
    log_std = torch.full((spec.action.dimensions,), -1.0) if head.has_log_std else None
    out = nn.utils.skip_init(nn.Linear, before, spec.action.size)
    return Network(spec, sense, nn.Sequential(*layers), out, head, log_std=log_std, recurrent=Cell(kind, width, hidden), family=f"{kind}:{text}")


def make(kind: str, text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Network:
    """An untrained student, ``kind`` gru or lstm."""
    network = _network(kind, text, spec, sense, head_kind or HEADS[spec.action.kind])
    initialise(network, generator)
    assert isinstance(network.recurrent, Cell)
    bound = 1 / math.sqrt(network.recurrent.hidden)
    with torch.no_grad():
        for weight in network.recurrent.parameters():
            weight.uniform_(-bound, bound, generator=generator)
        hidden = network.recurrent.hidden
        network.recurrent.cell.bias_ih[hidden : 2 * hidden] += KEEPS
    return network


def build(kind: str, text: str, spec: Spec, header: Mapping[str, Any]) -> Network:
    """The network of an artifact's header, its tensors not yet loaded."""
    return _network(kind, text, spec, Sense.from_json(spec.observations, header["sense"]), str(header["head"]))
