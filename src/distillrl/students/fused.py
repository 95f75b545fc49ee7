"""Students of several senses: ``late:16:32`` and ``attention:16x2:32``; ``mlp:`` joins vectors early, as they come.

Each observation group goes through an encoder of its own into WIDTH numbers. Late: these stand side by side. Attention: they are
tokens that look at one another first (Vaswani 2017, one layer, with HEADS heads and a skip), so that how much each sense counts may
hang on what the others say. Then come the dense layers. Where images are among them their convolutions stand first:
``attention:8-16-16:16x2:64``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import HEADS, Head
from distillrl.errors import Misconfigured
from distillrl.records import Spec
from distillrl.senses import Sense
from distillrl.students.cnn import Fused, Shape, convolved, parse_cnn, seen_as, tower
from distillrl.students.networks import ACTIVATIONS, MAX_UNITS, Network, initialise, parse_mlp

EXAMPLES = {"late": "late:16:32, or late:8-16-16:16:32 with images", "attention": "attention:16x2:32, or attention:8-16-16:16x2:32 with images"}


@dataclass(frozen=True)
class Fusion:
    """What a word says: the convolutions of images, the numbers of a token, attention's heads (0: late), the dense layers behind."""

    images: Shape | None
    width: int
    heads: int
    dense: tuple[int, ...]
    activation: str


class Attention(nn.Module):
    """Tokens side by side, [..., G · D], each changed by what it finds in the others: the same shape (Vaswani 2017, eq. 1)."""

    def __init__(self, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.heads = tokens, heads
        self.asks, self.says = nn.utils.skip_init(nn.Linear, width, 3 * width), nn.utils.skip_init(nn.Linear, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """X + attention(x)."""
        token = x.unflatten(-1, (self.tokens, -1))
        query, key, value = self.asks(token).unflatten(-1, (3, self.heads, -1)).movedim(-4, -2).unbind(-4)
        share = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        found = (share @ value).transpose(-2, -3).flatten(-2)
        return (token + self.says(found)).flatten(-2)


def _parse(kind: str, text: str) -> Fusion:
    first, *rest = text.split(":")
    images = None
    if "-" in first or "k" in first:
        images, (first, *rest) = parse_cnn(f"{first}:"), rest or [""]
    width, cross, heads = first.partition("x")
    numbers = [width, heads] if kind == "attention" else [width]
    if any(not n.isascii() or not n.isdigit() or not 0 < int(n[:9]) <= MAX_UNITS for n in numbers) or bool(cross) != (kind == "attention"):
        raise Misconfigured(f"student {kind}:{text}: {EXAMPLES[kind]} is right")
    if kind == "attention" and int(width) % int(heads):
        raise Misconfigured(f"student {kind}:{text}: {width} numbers can't be shared out to {heads} heads evenly")
    dense, activation = parse_mlp(":".join(rest))
    return Fusion(images, int(width), int(heads) if heads else 0, dense, activation)


def parse_late(text: str) -> Fusion:
    """``16:32``, ``16:32x32:relu``, ``8-16-16:16:32`` with images; raises Misconfigured."""
    return _parse("late", text)


def parse_attention(text: str) -> Fusion:
    """``16x2:32``, ``8-16-16:16x2:32`` with images; raises Misconfigured."""
    return _parse("attention", text)


def _network(kind: str, text: str, spec: Spec, sense: Sense, head_kind: str) -> Network:
    asked, word, start = _parse(kind, text), f"{kind}:{text}", 0
    spans, parts = [], []
    for name in sorted(sense.groups):
        group = sense.groups[name]
        width, layers = max(1, math.prod(group.shape)), []
        spans.append((start, start + width))
        start += width
        if convolved(group, spec.observations.get(name, group)):
            if asked.images is None:
                raise Misconfigured(f"student {word}: {name!r} is an image, so its convolutions stand first: {EXAMPLES[kind].rpartition('or ')[2]}")
            seen, width = tower(asked.images, group.shape, name, word)  # type: ignore[arg-type]  # channels first by now
            layers.append(seen)
        parts.append(nn.Sequential(*layers, nn.utils.skip_init(nn.Linear, width, asked.width), ACTIVATIONS[asked.activation]()))
    if len(parts) < 2:
        raise Misconfigured(f"student {word} fuses several senses, and sees only {', '.join(sense.groups)}: mlp:16x16 or a cnn: is right for one")
    body: list[nn.Module] = [Fused(spans, parts), *([Attention(len(parts), asked.width, asked.heads)] if asked.heads else [])]
    for before, after in itertools.pairwise((len(parts) * asked.width, *asked.dense)):
        body += [nn.utils.skip_init(nn.Linear, before, after), ACTIVATIONS[asked.activation]()]
    head = Head.of(head_kind, spec.action)
    log_std = torch.full((spec.action.dimensions,), -1.0) if head.has_log_std else None
    out = nn.utils.skip_init(nn.Linear, (len(parts) * asked.width, *asked.dense)[-1], spec.action.size)
    return Network(spec, sense, nn.Sequential(*body), out, head, log_std=log_std, family=word)


def make(kind: str, text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Network:
    """An untrained student, ``kind`` late or attention; raises Misconfigured where there is one group only."""
    images: Sequence[str] = [name for name, group in sense.groups.items() if convolved(group, spec.observations.get(name, group))]
    for step in seen_as(sense, images):
        sense = sense.with_step(step)
    network = _network(kind, text, spec, sense, head_kind or HEADS[spec.action.kind])
    initialise(network, generator)
    return network


def build(kind: str, text: str, spec: Spec, header: Mapping[str, Any]) -> Network:
    """The network of an artifact's header, its tensors not yet loaded."""
    return _network(kind, text, spec, Sense.from_json(spec.observations, header["sense"]), str(header["head"]))
