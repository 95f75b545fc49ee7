"""Start a student from the weights of another network: whole layers where sizes agree, the most important neurons where it has fewer,
copies of neurons where it has more.

A neuron counts by how much it varies over states times the norm of what it gives on (Hu 2016, Molchanov 2017 weigh so); what is left out
gives its mean into the next layer's bias. A wider layer repeats neurons drawn at random, and shares out what they give on in unequal
parts, so that the function stays the same and the copies can part (Net2Net, Chen 2016, 1511.05641, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured
from distillrl.policies import flatten


@dataclass(frozen=True)
class Layers:
    """Dense layers: weights [out, in] and biases [out] of the hidden ones, activations between them, and of the output."""

    hidden: tuple[tuple[Tensor, Tensor], ...]
    activations: tuple[str, ...]
    out: tuple[Tensor, Tensor]


def layers_of(policy: Any, whose: str) -> Layers:
    """The dense layers of a network; raises Misconfigured where it has others."""
    body, out = getattr(policy, "body", None), getattr(policy, "out", None)
    if body is None or getattr(policy, "recurrent", None) is not None:
        raise Misconfigured(f"--inherit: {whose} is no network of dense layers ({getattr(policy, 'family', '') or type(policy).__name__}); a student of its own, without --inherit, is right")
    out = out[0] if isinstance(out, nn.Sequential) else out
    dense = [m for m in body if isinstance(m, nn.Linear)]
    between = [m for m in body if not isinstance(m, nn.Linear)]
    if not isinstance(out, nn.Linear) or len(between) != len(dense) or any(next(m.parameters(), None) is not None for m in between):
        raise Misconfigured(f"--inherit: {whose} has layers that are not dense ({', '.join(type(m).__name__ for m in body)}); only dense ones can be inherited")
    w, b = _pair(out)
    if count := getattr(policy, "quantiles", 0):  # the mean over quantiles is what it acts by
        w, b = w.unflatten(0, (count, -1)).mean(0), b.unflatten(0, (count, -1)).mean(0)
    return Layers(tuple(_pair(m) for m in dense), tuple(type(m).__name__ for m in between), (w, b))


@torch.no_grad()
def inherit(student: Any, source: Any, obs: dict[str, Tensor], generator: torch.Generator) -> str:
    """Give a student of dense layers the weights of ``source``, and what it sees; ``obs`` are states to weigh neurons by. A sentence on what was done.

    Raises Misconfigured where the two don't fit. Layers that the source has beyond the student's, and the other way round, are left out:
    the output is inherited where both have as many layers.
    """
    theirs, mine = layers_of(source, "the teacher or network given"), layers_of(student, f"--student {student.family}")
    if tuple(source.sense.groups) != tuple(student.sense.reads) or (theirs.hidden[:1] and mine.hidden and theirs.hidden[0][0].shape[1] != _width(source, obs)):
        raise Misconfigured(f"--inherit: the network given sees {', '.join(source.sense.groups)}, the student {', '.join(student.sense.reads)}: both must see the same")
    if theirs.activations and mine.activations and theirs.activations[0] != mine.activations[0]:
        word = student.family.split(":")
        raise Misconfigured(f"--inherit: the layers given are {theirs.activations[0]}, the student's {mine.activations[0]}: --student {word[0]}:{word[1]}:{_word(theirs.activations[0])} is right")
    student.sense = source.sense
    shared = min(len(theirs.hidden), len(mine.hidden))
    groups, _ = source.sense(obs, source.sense.init(len(next(iter(obs.values())))), None)
    x, activations = flatten(groups, source.sense.groups), []
    for (w, b), module in zip(theirs.hidden, [m for m in source.body if not isinstance(m, nn.Linear)], strict=True):
        x = module(x @ w.T + b)
        activations.append(x)
    kept, parts, said = None, None, []
    for i in range(shared):
        w, b = _narrowed(*theirs.hidden[i], kept, parts, activations[i - 1] if i else None)
        following = theirs.hidden[i + 1][0] if i + 1 < len(theirs.hidden) else theirs.out[0]
        size = len(mine.hidden[i][1])
        kept, parts = _neurons(following, activations[i], size, generator)
        mine.hidden[i][0].copy_(w[kept])
        mine.hidden[i][1].copy_(b[kept])
        said.append(f"{size} of {len(b)}" if size < len(b) else f"all {len(b)}" if size == len(b) else f"{size} for {len(b)}")
    if len(theirs.hidden) == len(mine.hidden) and theirs.out[0].shape[0] == mine.out[0].shape[0]:
        w, b = _narrowed(*theirs.out, kept, parts, activations[-1] if shared else None)
        mine.out[0].copy_(w)
        mine.out[1].copy_(b)
        said.append("the output")
    if isinstance(getattr(student, "log_std", None), Tensor) and isinstance(getattr(source, "log_std", None), Tensor) and student.log_std.shape == source.log_std.shape and not source.sde:
        student.log_std.copy_(source.log_std)
    return f"inherited, layer by layer: {', '.join(said) or 'nothing'}"


def _pair(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight.detach(), layer.bias.detach() if layer.bias is not None else torch.zeros(layer.out_features)


def _width(source: Any, obs: dict[str, Tensor]) -> int:
    groups, _ = source.sense(obs, source.sense.init(len(next(iter(obs.values())))), None)
    return int(flatten(groups, source.sense.groups).shape[-1])


def _neurons(following: Tensor, activation: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which neurons of a layer the student's ``size`` are, in order, and the share of each in what its original gives on."""
    width = activation.shape[-1]
    if size <= width:
        importance = activation.std(0, correction=0) * following.norm(dim=0)
        chosen = importance.topk(size).indices.sort().values if size < width else torch.arange(width)
        return chosen, torch.ones(size)
    chosen = torch.cat([torch.arange(width), torch.randint(width, (size - width,), generator=generator)])
    part = torch.empty(size).uniform_(0.5, 1.5, generator=generator)
    return chosen, part / torch.zeros(width).index_add_(0, chosen, part)[chosen]


def _narrowed(w: Tensor, b: Tensor, kept: Tensor | None, parts: Tensor | None, activation: Tensor | None) -> tuple[Tensor, Tensor]:
    """A layer that reads the neurons kept of the one before; the mean of those left out goes into its bias."""
    if kept is None or parts is None or activation is None:
        return w, b
    lost = torch.ones(w.shape[1], dtype=torch.bool)
    lost[kept] = False
    return w[:, kept] * parts, b + w[:, lost] @ activation.mean(0)[lost]


def _word(activation: str) -> str:
    return {"LeakyReLU": "leaky_relu"}.get(activation, activation.lower())


__all__ = ["Layers", "inherit", "layers_of"]
