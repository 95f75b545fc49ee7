"""SB3's feature extractors: flattening, NatureCNN (Mnih 2015), and CombinedExtractor for dict observations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillrl.errors import Failed, Misconfigured
from distillrl.teachers.pickles import PLAIN, Global, entries, shown
from distillrl.teachers.sb3facts import Facts
from distillrl.teachers.sb3layers import Weights, dense, said
from distillrl.teachers.spaces import Space

KNOWN = frozenset({"FlattenExtractor", "NatureCNN", "CombinedExtractor"})
STRIDES = ((8, 4), (4, 2), (3, 1))
"""Kernel and stride of NatureCNN's three convolutions."""


class Reorder(nn.Module):
    """x[..., order]: a dict's parts in the order that the file has them, out of the sorted one."""

    order: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(order))

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., F]"""
        return x.index_select(-1, self.order)

    def into(self, layer: nn.Linear) -> nn.Linear:
        """The Linear after it, its columns moved instead."""
        weight = torch.empty_like(layer.weight)
        weight[:, self.order] = layer.weight
        return dense(weight, layer.bias.detach())


class NatureCNN(nn.Module):
    """An image [..., C·H·W] flat → [..., features]: three convolutions and a Linear, ReLU after each."""

    def __init__(self, shape: tuple[int, ...], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.shape, self.layers = shape, nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Convolutions take one leading axis only, so others are joined for them."""
        return self.layers(x.reshape(-1, *self.shape)).reshape(*x.shape[:-1], -1)


class Combined(nn.Module):
    """Each part of a dict through its own layers (an image's CNN) or as it is, side by side in the file's order."""

    def __init__(self, spans: Sequence[tuple[int, int]], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.spans, self.layers = tuple(spans), nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., features]"""
        return torch.cat([layer(x[..., start:end]) for (start, end), layer in zip(self.spans, self.layers, strict=True)], -1)


class Own(nn.Module):
    """The user's extractor: it gets each part in its shape, as SB3 gives it (images /255, categories one-hot), alone or in a dict."""

    def __init__(self, module: nn.Module, parts: dict[str, tuple[int, int, tuple[int, ...]]], alone: bool) -> None:
        super().__init__()
        self.module, self.parts, self.alone = module, parts, alone

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., features]"""
        flat = x.reshape(-1, x.shape[-1])
        given = {name: flat[:, start:end].reshape(-1, *shape) for name, (start, end, shape) in self.parts.items()}
        made: Tensor = self.module(next(iter(given.values())) if self.alone else given)
        return made.reshape(*x.shape[:-1], -1)


def extractor(facts: Facts, prefixes: tuple[str, ...]) -> tuple[list[nn.Module], int]:
    """The layers before the policy's own, from the sorted flat observation, and how many numbers come out.

    ``prefixes`` are where its weights may be, the first one that is there counts; copies of them elsewhere are taken
    for read. Raises Misconfigured for an extractor of the user's own.
    """
    prefix = next((p for p in prefixes if facts.weights.any(p)), None)
    kind = facts.kwargs.get("features_extractor_class")
    if facts.own_extractor is not None:
        return _own(facts, prefix)
    if kind is not None and not (isinstance(kind, Global) and kind.module == "stable_baselines3.common.torch_layers" and kind.name in KNOWN):
        raise Misconfigured(
            f"{facts.where}: its features extractor is {said(kind)}, a class that isn't one of SB3's; name yours with --model MODULE:CLASS, and its weights are put into it"
        )
    leaves = facts.observation.leaves()
    made = _combined(facts, prefix, leaves) if facts.observation.kind == "dict" else _single(facts, prefix, leaves["obs"])
    if prefix is not None:
        left = [n for n in facts.weights.left(()) if n.startswith(prefix)]
        if left:
            raise Misconfigured(
                f"{facts.where}: its features extractor has weights that SB3's own don't have ({shown(', '.join(left[:3]))}); name your class with --model MODULE:CLASS"
            )
        facts.weights.taken |= {n for n in facts.weights.tensors if n.startswith("features_extractor.")}
    return made


def _own(facts: Facts, prefix: str | None) -> tuple[list[nn.Module], int]:
    """The user's class, made as SB3 makes it, with the file's weights; the shape of what it gives is tried."""
    leaves, alone = facts.observation.leaves(), facts.observation.kind != "dict"
    parts, start = {}, 0
    for name in sorted(leaves):
        shape = (leaves[name].width,) if leaves[name].kind in {"discrete", "multidiscrete"} else leaves[name].shape
        parts[name] = (start, start + leaves[name].width, shape)
        start += leaves[name].width
    options = entries(facts.kwargs.get("features_extractor_kwargs") or {})
    if options is None or not all(type(v) in PLAIN or isinstance(v, (list, tuple)) for v in options.values()):
        raise Misconfigured(f"{facts.where}: the options of its features extractor aren't plain numbers and texts: set them as defaults in a subclass, and name that with --model")
    with torch.random.fork_rng(devices=[]):  # its initial numbers are overwritten, and must cost nobody else's
        try:
            module = facts.own_extractor(facts.observation.to_gymnasium(), **{str(k): v for k, v in options.items()})
            tensors = {n.removeprefix(prefix): facts.weights.take(n) for n in facts.weights.tensors if n.startswith(prefix)} if prefix else {}
            module.load_state_dict(tensors)
            layer = Own(module.eval(), {n: parts[n] for n in leaves}, alone)
            width = layer(torch.zeros(2, start)).shape[-1]
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise Misconfigured(f"--model: {getattr(facts.own_extractor, '__name__', 'the class')} doesn't fit {facts.where}: {str(error)[:300]}") from None
    facts.weights.taken |= {n for n in facts.weights.tensors if n.startswith("features_extractor.")}
    return [layer], int(width)


def _single(facts: Facts, prefix: str | None, space: Space) -> tuple[list[nn.Module], int]:
    if prefix is None or f"{prefix}cnn.0.weight" not in facts.weights:
        return [], space.width
    return _nature(facts.weights, prefix, space.shape)


def _combined(facts: Facts, prefix: str | None, leaves: dict[str, Space]) -> tuple[list[nn.Module], int]:
    spans, start = {}, 0
    for name in sorted(leaves):
        spans[name] = (start, start + leaves[name].width)
        start += leaves[name].width
    convolved = {n: f"{prefix}extractors.{n}." for n in leaves if prefix is not None and f"{prefix}extractors.{n}.cnn.0.weight" in facts.weights}
    if not convolved:
        order = [i for name in leaves for i in range(*spans[name])]
        return ([] if order == list(range(start)) else [Reorder(order)]), start
    layers: list[nn.Module] = []
    width = 0
    for name, space in leaves.items():
        if name in convolved:
            inner, size = _nature(facts.weights, convolved[name], space.shape)
            layers.append(inner[0])
        else:
            size = space.width
            layers.append(nn.Identity())
        width += size
    return [Combined([spans[name] for name in leaves], layers)], width


def _nature(weights: Weights, prefix: str, shape: tuple[int, ...]) -> tuple[list[nn.Module], int]:
    if len(shape) != 3:
        raise Failed(f"{weights.where}: {prefix}cnn convolves images, but the observation has the shape {list(shape)}")
    channels, height, width = shape
    layers: list[nn.Module] = []
    for i, (kernel, stride) in enumerate(STRIDES):
        weight, bias = weights.take(f"{prefix}cnn.{2 * i}.weight", 4), weights.take(f"{prefix}cnn.{2 * i}.bias", 1)
        if weight.shape[1:] != (channels, kernel, kernel) or len(bias) != len(weight) or min(height, width) < kernel:
            raise Failed(f"{weights.where}: {prefix}cnn.{2 * i}.weight is {list(weight.shape)}, [any, {channels}, {kernel}, {kernel}] is right for images {list(shape)}")
        layer = nn.Conv2d(channels, len(weight), kernel, stride, device="meta")
        layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        layers += [layer, nn.ReLU()]
        channels, height, width = len(weight), (height - kernel) // stride + 1, (width - kernel) // stride + 1
    linear = weights.linear(f"{prefix}linear.0", math.prod((channels, height, width)))
    return [NatureCNN(shape, [*layers, nn.Flatten(), linear, nn.ReLU()])], linear.out_features
