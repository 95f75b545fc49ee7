"""Recurrent layers of teachers, with a state for each environment: {"h": [n, layers, H], "c": [n, layers, H]}."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillrl.errors import Failed
from distillrl.policies import Memory
from distillrl.teachers.pickles import shown
from distillrl.teachers.sb3layers import Weights


class Recurrent(nn.Module):
    """An LSTM with layers before and after it: (x [n, F], memory, starts [n]) → ([n, H], memory), cleared where ``starts``.

    x may be a sequence [T, n, F] as well, with starts [T, n].
    """

    def __init__(self, before: Sequence[nn.Module], lstm: nn.LSTM, after: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.before, self.lstm, self.after = nn.Sequential(*before), lstm, nn.Sequential(*after)

    def init(self, n: int) -> Memory:
        """Zeros for n environments."""
        shape = (n, self.lstm.num_layers, self.lstm.hidden_size)
        return {"h": torch.zeros(shape), "c": torch.zeros(shape)}

    def forward(self, x: Tensor, memory: Memory, starts: Tensor | None) -> tuple[Tensor, Memory]:
        """One step, or a sequence of steps."""
        if x.dim() == 3:
            steps = []
            for t in range(len(x)):
                out, memory = self(x[t], memory, None if starts is None else starts[t])
                steps.append(out)
            return torch.stack(steps), memory
        memory = memory or {k: v.to(x.device) for k, v in self.init(len(x)).items()}
        state = [memory["h"], memory["c"]]
        if starts is not None:
            keep = (~starts).to(x.dtype).view(-1, 1, 1)
            state = [s * keep for s in state]
        out, (h, c) = self.lstm(self.before(x).unsqueeze(0), tuple(s.transpose(0, 1).contiguous() for s in state))
        return self.after(out.squeeze(0)), {"h": h.transpose(0, 1), "c": c.transpose(0, 1)}


def lstm(weights: Weights, prefix: str, width: int) -> nn.LSTM:
    """The torch LSTM whose tensors are at ``prefix``; ``width`` numbers come in."""
    layers = len({m.group(1) for name in weights.tensors if (m := re.match(re.escape(prefix) + r"\.weight_ih_l(\d{1,2})$", name))})
    hidden, biased = len(weights.take(f"{prefix}.weight_ih_l0", 2)) // 4, f"{prefix}.bias_ih_l0" in weights
    for layer in range(layers):  # before memory is taken for it: a small file must not make a large one
        shape = list(weights.take(f"{prefix}.weight_hh_l{layer}", 2).shape)
        if shape != [4 * hidden, hidden]:
            raise Failed(f"{weights.where}: {prefix}.weight_hh_l{layer} is {shape}, {[4 * hidden, hidden]} is right")
    made = nn.LSTM(width, hidden, num_layers=layers, bias=biased, device="meta")
    for name, target in list(made.named_parameters()):
        value = weights.take(f"{prefix}.{name}")
        if value.shape != target.shape:
            raise Failed(f"{weights.where}: {prefix}.{name} is {list(value.shape)}, {list(target.shape)} is right where {width} numbers come in")
        setattr(made, name, nn.Parameter(value, requires_grad=False))
    odd = [n for n in weights.left(()) if n.startswith(f"{prefix}.")]
    if odd:
        raise Failed(f"{weights.where}: {prefix} is an LSTM of a kind that is not read (it has {shown(', '.join(odd[:3]))})")
    return made
