"""Named layers' features of a Prediction, and the learnt layers that bring those of two sizes together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillrl.errors import Misconfigured, nearest
from distillrl.objectives import in_order
from distillrl.records import Batch, Prediction, need


def raw(prediction: Prediction, layer: str, who: str, whose: str) -> Tensor:
    """The features of a layer, [..., F] or a map [..., C, H, W]; 'last' is the last by name. Misconfigured lists those that there are."""
    features = need(prediction, "features", who, whose)
    names = in_order(features)
    name = names[-1] if layer == "last" and layer not in names else layer
    if name not in features:
        raise Misconfigured(f"objective {who}: {layer!r} is no layer of {whose}{nearest(layer, names)}; it has {', '.join(names)}")
    found: Tensor = features[name]
    return found


def chosen(prediction: Prediction, layer: str, who: str, whose: str, batch: Batch) -> Tensor:
    """The features of a layer as vectors [..., F], a map flattened; [...] is the batch's leading shape."""
    found, lead = raw(prediction, layer, who, whose), leading(batch)
    return found.flatten(lead) if found.dim() > lead + 1 else found


def leading(batch: Batch) -> int:
    """How many leading dimensions a state has: those of a field that has no others, or 1, [B], where there is none."""
    plain = (batch.weight, batch.starts, batch.reward, batch.terminated, batch.behaviour_log_prob)
    return next((x.dim() for x in plain if x is not None), 1)


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with uniform weights of ±1/√inputs, drawn from ``generator``, and no bias yet."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        layer.weight.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        layer.bias.zero_()
    return layer


def regressor(inputs: int, outputs: int, hidden: int, always: bool, generator: torch.Generator) -> nn.Module:
    """From one layer's size to another's: nothing where they agree (unless ``always``), linear, or with one hidden ReLU layer."""
    if hidden:
        return nn.Sequential(linear(inputs, hidden, generator), nn.ReLU(), linear(hidden, outputs, generator))
    return linear(inputs, outputs, generator) if always or inputs != outputs else nn.Identity()


class ByTask(nn.Module):
    """Of several tasks one network for each, of which the state's own is read: features [..., F] and tasks [...] → [..., F']."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, features: Tensor, task: Tensor) -> Tensor:
        """[..., F']"""
        own = F.one_hot(task.long(), len(self.networks)).to(features).unbind(-1)
        return torch.stack([which.unsqueeze(-1) * network(features) for which, network in zip(own, self.networks, strict=True)]).sum(0)


def counted(batch: Batch, *tensors: Tensor, most: int | None = None) -> list[Tensor]:
    """Tensors [..., F] → [n, F], only the states whose weight isn't 0, the first ``most`` of them."""
    flat = [t.flatten(0, leading(batch) - 1) for t in tensors]
    if batch.weight is not None:
        keep = batch.weight.flatten() > 0
        flat = [t[keep] for t in flat]
    return [t[:most] for t in flat]
