"""Several MLPs of one sense, head and activation as one network: their first layers side by side in one product, all weights in one tensor.

Nothing is padded: what reads the observation is one matrix of all first layers, later layers are each student's own. One tensor of weights makes
the optimiser's step one operation, whatever the number of students; as every student's loss is added, each learns as it would alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.policies import flatten
from distillrl.students.networks import Network


def alike(networks: Sequence[Any]) -> bool:
    """Whether these can be stacked: MLPs without memory, heads for learning or for tasks, of one activation."""
    kinds = {type(m) for n in networks if isinstance(n, Network) for m in n.body if not isinstance(m, nn.Linear)}
    plain = all(isinstance(n, Network) and n.family.startswith("mlp:") and not n.init(1) and not len(n.training_heads) and not n.heads and n.compact is None for n in networks)
    return plain and len(kinds) <= 1 and all(isinstance(m, nn.Linear) or type(m) in kinds for n in networks for m in n.body)


class Stacked(nn.Module):
    """K students; ``forward`` maps what their sense gives, [B, F], to raw outputs [K, B, A]."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.sense, self.head, self.spec = networks[0].sense, networks[0].head, networks[0].spec
        layers: list[list[nn.Linear]] = [[m for m in n.body if isinstance(m, nn.Linear)] for n in networks]
        acts = [m for n in networks for m in n.body if not isinstance(m, nn.Linear)]
        self.activation = type(acts[0])() if acts else nn.Identity()
        self.wide = [k for k, own in enumerate(layers) if own]
        """Students that have a hidden layer at all."""
        self.widths = [layers[k][0].out_features for k in self.wide]
        first = [layers[k][0] for k in self.wide]
        parts: list[Tensor] = [torch.cat([m.weight for m in first]), torch.cat([m.bias for m in first])] if first else []
        self.rest: list[int] = []
        """How many layers each student has behind its first, the output's too."""
        for n, own in zip(networks, layers, strict=True):
            behind: list[Any] = [*own[1:], n.out]
            self.rest.append(len(behind))
            parts += [t for m in behind for t in (m.weight, m.bias)]
        self.spread = networks[0].log_std is not None
        if self.spread:
            parts.append(torch.stack([n.log_std for n in networks]))  # type: ignore[misc]  # all have one where the first has
        self.shapes = [p.shape for p in parts]
        self.sizes = [p.numel() for p in parts]
        self.weights = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parts]))

    def see(self, obs: Mapping[str, Tensor], memory: Mapping[str, Tensor], starts: Tensor | None) -> Tensor:
        """What all of them read: [B, F]."""
        groups, _ = self.sense(obs, dict(memory), starts)
        return flatten(groups, self.sense.groups)

    def _parts(self) -> list[Tensor]:
        return [p.view(s) for p, s in zip(torch.split(self.weights, self.sizes), self.shapes, strict=True)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw outputs [K, B, A], and log standard deviations [K, 1, A] where the head has such."""
        parts = self._parts()
        log_std = parts.pop().unsqueeze(1) if self.spread else None
        hidden: dict[int, Tensor] = {}
        at = 0
        if self.wide:
            both = self.activation(nn.functional.linear(x, parts[0], parts[1]))
            hidden, at = dict(zip(self.wide, both.split(self.widths, -1), strict=True)), 2
        raw = []
        for k, count in enumerate(self.rest):
            h = hidden.get(k, x)
            for i in range(count):
                h = nn.functional.linear(h, parts[at], parts[at + 1])
                at += 2
                if i + 1 < count:
                    h = self.activation(h)
            raw.append(h)
        return torch.stack(raw), log_std

    @torch.no_grad()
    def write_to(self, networks: Sequence[Network]) -> None:
        """Give the students, in the same order, the weights that they have here."""
        parts = self._parts()
        if self.spread:
            for n, value in zip(networks, parts.pop(), strict=True):
                n.log_std.copy_(value)  # type: ignore[union-attr]
        at = 0
        if self.wide:
            for k, w, b in zip(self.wide, parts[0].split(self.widths), parts[1].split(self.widths), strict=True):
                first = networks[k].body[0]
                assert isinstance(first, nn.Linear)
                first.weight.copy_(w)
                first.bias.copy_(b)
            at = 2
        for n, count in zip(networks, self.rest, strict=True):
            own: list[Any] = [m for m in n.body if isinstance(m, nn.Linear)]
            for m in [*own[len(own) - count + 1 :], n.out]:
                m.weight.copy_(parts[at])
                m.bias.copy_(parts[at + 1])
                at += 2
