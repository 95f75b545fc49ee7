"""Students that see images: ``cnn:8-16-16:64``, convolutions and then dense layers.

A word has the convolutions, the dense sizes and the activation: ``cnn:16k8s4-32k4s2:256x64:relu``. A convolution is its
channels, ``k`` its kernel, ``s`` its stride, ``p`` its padding, ``d`` for depthwise and pointwise (Howard 2017, MobileNets);
kernels and strides that aren't given suit the image's size. ``points`` behind the last one, as in ``cnn:16k5s2-32k3s2-32k3-points:128``, has it say where on the
image it sees each of its things, and how clearly, in place of every pixel (``Points``). Presets stand for a word: see PRESETS. Numbers beside
images join behind the convolutions (late fusion).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import HEADS, Head
from distillrl.errors import Misconfigured, nearest
from distillrl.images import Background, channels, is_image, size
from distillrl.records import Group, Rollout, Spec
from distillrl.senses import SEEN, ChannelsFirst, Scale, Sense
from distillrl.students.networks import ACTIVATIONS, MAX_UNITS, Network, initialise, parse_mlp

PRESETS: dict[str, str] = {
    "nature": "32k8s4-64k4s2-64k3s1:512",
    "small": "16k8s4-32k4s2:256",
    "depthwise": "16k8s4-32k4s2d-32k3s1d:128",
    "impala": "16-32-32:256",
    "rusu-25": "16k8s4-32k4s2-32k3s1:256",
    "rusu-7": "16k8s4-16k4s2-16k3s1:128",
    "rusu-4": "16k8s4-16k4s2-16k3s1:64",
}
"""Mnih 2015's network and 2013's; depthwise; the residual one of Espeholt 2018 (IMPALA); Rusu 2016's students of 427,874, 113,346 and 61,954
parameters at 18 actions, 25, 7 and 4 % of DQN's 1,693,362 (table 3)."""
GRID = 32
"""An image of at most so many rows and columns is a grid of things, not a photograph: its numbers are measured, not divided by 255."""
USUAL = ((64, ((8, 4), (4, 2), (3, 1))), (33, ((4, 2), (3, 2), (3, 1))), (0, ((3, 1),)))
"""From which size on which kernels and strides are usual, layer by layer, the last one from there on."""
POINTS = "points"
_LAYER = re.compile(r"(\d{1,6})(?:k(\d{1,4}))?(?:s(\d{1,4}))?(?:p(\d{1,4}))?(d?)")


@dataclass(frozen=True)
class Layer:
    """One convolution; a kernel or stride of 0 is the usual one."""

    channels: int
    kernel: int = 0
    stride: int = 0
    padding: int = 0
    depthwise: bool = False


@dataclass(frozen=True)
class Shape:
    """What a word says."""

    layers: tuple[Layer, ...]
    dense: tuple[int, ...]
    activation: str
    residual: bool = False
    points: bool = False


def parse_cnn(text: str) -> Shape:
    """``8-16-16:64``, ``16k8s4-32k4s2:256x64:relu``, or a preset's name → Shape; raises Misconfigured."""
    name, _, rest = text.partition(":")
    if (preset := name.removesuffix(f"-{POINTS}")) in PRESETS:
        if rest or preset != name:
            raise Misconfigured(f"student cnn:{text}: {preset} is a whole network, {PRESETS[preset]!r}; write that out to change it")
        return replace(parse_cnn(PRESETS[name]), residual=name == "impala")
    layers = []
    convolutions, points, more = name.partition(f"-{POINTS}")
    for part in (name if more else convolutions).split("-"):
        found = _LAYER.fullmatch(part)
        if found is None:
            hint = nearest(name, PRESETS) if name and not name[0].isdigit() else ""
            raise Misconfigured(f"student cnn:{text}: {part!r} is no convolution{hint}; cnn:8-16-16:64, cnn:16k8s4-32k4s2:256 and cnn:{', cnn:'.join(PRESETS)} are right")
        numbers = [None if n is None else int(n) for n in found.groups()[:4]]
        if 0 in numbers[:3] or numbers[0] is None or numbers[0] > MAX_UNITS:
            raise Misconfigured(f"student cnn:{text}: {part!r} has a 0; channels (at most {MAX_UNITS}), kernels and strides count from 1")
        layers.append(Layer(numbers[0], numbers[1] or 0, numbers[2] or 0, numbers[3] or 0, bool(found[5])))
    if len(layers) > 32:
        raise Misconfigured(f"student cnn:{text}: {len(layers)} convolutions; at most 32 are right")
    dense, _, activation = rest.partition(":")
    try:
        sizes, activation = parse_mlp(f"{dense}:{activation or 'relu'}")
    except Misconfigured as error:
        raise Misconfigured(str(error).replace("student mlp:", f"student cnn:{text}: ", 1)) from None
    return Shape(tuple(layers), sizes, activation, points=bool(points))


class Image(nn.Module):
    """An image [..., C·H·W], flat → [..., features] through layers that take [n, C, H, W]; ``shape`` is (C, H, W).

    While it learns it is laid out with the channels last, which a convolution's backward pass on a CPU likes better (docs/pixels.md).
    """

    def __init__(self, shape: tuple[int, ...], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.shape, self.layers = shape, nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Convolutions take one leading axis only, so others are joined for them."""
        image = x.reshape(-1, *self.shape)
        if torch.is_grad_enabled():
            image = image.contiguous(memory_format=torch.channels_last)
        return self.layers(image).reshape(*x.shape[:-1], -1)


class Fused(nn.Module):
    """Parts of [..., F], each through its own layers, side by side: ``spans`` are where each begins and ends."""

    def __init__(self, spans: Sequence[tuple[int, int]], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.spans, self.layers = tuple(spans), nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., features]"""
        return torch.cat([layer(x[..., a:b]) for (a, b), layer in zip(self.spans, self.layers, strict=True)], -1)


class Residual(nn.Module):
    """x + two convolutions of its ReLUs, of the same size (Espeholt 2018, figure 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), _conv(width, width, 3, 1, 1), nn.ReLU(), _conv(width, width, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W]"""
        return x + self.layers(x)


class Points(nn.Module):
    """[n, C, H, W] → [n, 3 C]: of each channel the mean column and row of a softmax over its pixels, from -1 to 1, and its largest value.

    The spatial softmax of Levine 2016 (1504.00702, section 5.2), and beside it how clearly a thing is there. What a dense layer must learn
    anew for every place it learns once: a lander of a few pixels, its lean and its speed (docs/pixels.md).
    """

    places: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        rows, columns = (torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in (height, width))
        self.register_buffer("places", torch.stack([columns.repeat(height), rows.repeat_interleave(width)], 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W]"""
        flat = x.flatten(2)
        return torch.cat([flat.softmax(-1) @ self.places, flat.amax(-1, keepdim=True)], -1).flatten(1)


def _conv(before: int, after: int, kernel: int, stride: int, padding: int, groups: int = 1) -> nn.Conv2d:
    return nn.utils.skip_init(nn.Conv2d, before, after, kernel, stride, padding, groups=groups)


def usual(index: int, side: int) -> tuple[int, int]:
    """Kernel and stride of a layer by its number, for an image whose shorter side is so long."""
    rows = next(rows for least, rows in USUAL if side >= least)
    return rows[min(index, len(rows) - 1)]


def tower(shape: Shape, image: tuple[int, int, int], name: str, word: str) -> tuple[Image, int]:
    """The convolutions of one image, and how many features come out; raises Misconfigured where a kernel is larger than what is left."""
    before, height, width = image
    side = min(height, width)
    made: list[nn.Module] = []
    for i, layer in enumerate(shape.layers):
        kernel, stride = layer.kernel or min(usual(i, side)[0], height, width), layer.stride or (usual(i, side)[1] if not layer.kernel else 1)
        if shape.residual:
            kernel, stride, padding = 3, 2, 1
        else:
            padding = layer.padding
        left = min(height, width) + 2 * padding
        if kernel > left:
            raise Misconfigured(f"student {word}: convolution {i + 1} has a kernel of {kernel}, but of {name!r} ({image[1]}×{image[2]}) only {height}×{width} is left there; take a smaller kernel, or fewer layers")
        made += _block(shape, layer, before, kernel, stride, padding)
        height, width = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
        before = layer.channels
    made += [ACTIVATIONS[shape.activation]()] if shape.residual else []
    if shape.points:
        return Image(image, [*made[:-1], Points(height, width)]), 3 * before
    return Image(image, [*made, nn.Flatten()]), before * height * width


def _block(shape: Shape, layer: Layer, before: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
    activation = ACTIVATIONS[shape.activation]
    if shape.residual:
        return [_conv(before, layer.channels, 3, 1, 1), nn.MaxPool2d(3, 2, 1), Residual(layer.channels), Residual(layer.channels)]
    if layer.depthwise:
        return [_conv(before, before, kernel, stride, padding, before), activation(), _conv(before, layer.channels, 1, 1, 0), activation()]
    return [_conv(before, layer.channels, kernel, stride, padding), activation()]


def _network(text: str, spec: Spec, sense: Sense, head_kind: str) -> Network:
    shape, word = parse_cnn(text), f"cnn:{text}"
    names = sorted(sense.groups) if len(sense.groups) > 1 else list(sense.groups)
    spans, parts, features, start = [], [], 0, 0
    for name in names:
        group = sense.groups[name]
        width = max(1, math.prod(group.shape))
        spans.append((start, start + width))
        start += width
        if convolved(group, spec.observations.get(name, group)):
            part, out = tower(shape, size(group.shape), name, word)
            parts.append(part)
            features += out
        else:
            parts.append(nn.Identity())  # type: ignore[arg-type]  # a part that stays as it is
            features += width
    body: list[nn.Module] = [parts[0] if len(parts) == 1 else Fused(spans, parts)]
    for before, after in itertools.pairwise((features, *shape.dense)):
        body += [nn.utils.skip_init(nn.Linear, before, after), ACTIVATIONS[shape.activation]()]
    head = Head.of(head_kind, spec.action)
    log_std = torch.full((spec.action.dimensions,), -1.0) if head.has_log_std else None
    out_layer = nn.utils.skip_init(nn.Linear, (features, *shape.dense)[-1], spec.action.size)
    return Network(spec, sense, nn.Sequential(*body), out_layer, head, log_std=log_std, family=word)


def make_cnn(text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Network:
    """An untrained student, initialised from ``generator``: orthogonal, the output small; raises Misconfigured where there is no image to see."""
    seen = [name for name, group in sense.groups.items() if convolved(group, spec.observations.get(name, group))]
    if not seen:
        there = ", ".join(f"{k}: {g}" for k, g in sense.groups.items())
        raise Misconfigured(f"student cnn:{text} needs an image, and sees only {there}; --see 'render, grey, resize=84, stack=4' shows it the pictures that the environment draws, mlp:16x16 needs none")
    for step in seen_as(sense, seen):
        sense = sense.with_step(step)
    network = _network(text, spec, sense, head_kind or HEADS[spec.action.kind])
    initialise(network, generator)
    return network


def convolved(group: Group, given: Group) -> bool:
    """Whether what a sense makes of a group is an image: pixels without channels are known by what was given."""
    return is_image(group) or (len(group.shape) == 2 and is_image(given))


def seen_as(sense: Sense, names: Sequence[str]) -> list[Any]:
    """The last steps of its sense: channels first, and pixels of photographs from 0 to 1."""
    turned = [name for name in names if channels(sense.groups[name].shape) == -1]
    scaled = {name: 255.0 for name in names if sense.groups[name].dtype == "uint8" and not is_grid(sense.groups[name])}
    return ([ChannelsFirst(turned)] if turned else []) + ([Scale(scaled)] if scaled else [])


def before_background(sense: Sense, rollout: Rollout) -> Sense:
    """The sense with the pixels of photographs seen against what is always there, as a rollout's valid states show it, in place of 0 to 1."""
    scales = [i for i, step in enumerate(sense.steps) if isinstance(step, Scale)]
    found = {} if not scales else {name: x for name in sense.steps[scales[-1]].divisors if (x := _frames(sense, name, rollout)) is not None}
    if not found:
        return sense
    steps: list[Any] = list(sense.steps)
    rest = {name: d for name, d in steps[scales[-1]].divisors.items() if name not in found}
    steps[scales[-1] : scales[-1] + 1] = [*([Scale(rest)] if rest else []), Background.of(found)]
    return Sense(sense.observations, steps)


def _frames(sense: Sense, name: str, rollout: Rollout) -> Tensor | None:
    """[states, c, H, W] the frames of which an image [C, H, W] is stacked; None where they have no axis of channels, or are no longer that when they come to the network."""
    stored = rollout.obs.get(SEEN + name, rollout.obs.get(name))
    if stored is None or not bool(rollout.valid.any()):
        return None
    frames = stored[:-1][rollout.valid]
    frames = frames.unsqueeze(1) if frames.dim() == 3 else frames
    if any(isinstance(step, ChannelsFirst) and name in step.groups for step in sense.steps):
        frames = frames.movedim(-1, -3)
    shape = sense.groups[name].shape
    fits = frames.dtype == torch.uint8 and len(shape) == 3 and frames.shape[2:] == shape[1:] and shape[0] % frames.shape[1] == 0
    return frames if fits else None


def is_grid(group: Group) -> bool:
    """Whether an image is so small that its numbers are things, such as MinAtar's and MiniGrid's."""
    return is_image(group) and max(size(group.shape)[1:]) <= GRID


def build_cnn(text: str, spec: Spec, header: Mapping[str, Any]) -> Network:
    """The network of an artifact's header, its tensors not yet loaded."""
    return _network(text, spec, Sense.from_json(spec.observations, header["sense"]), str(header["head"]))
