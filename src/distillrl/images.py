"""Steps of a sense for images: crop, grey, resize, colour jitter.

Each has the face of ``senses.Step``. An image is a group [H, W], [H, W, C] or [C, H, W]; where the channels are is told by
``channels``. Pixels of 8 bits stay pixels of 8 bits, and are reckoned in whole numbers that float32 holds exactly: the
same bytes on every machine, for every number of threads, in a batch or alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured, nearest
from distillrl.policies import Memory
from distillrl.records import Group

ONE = 1 << 12
"""The weights of a filter are whole numbers with this sum: 255 · 4096 is exact in float32, in any order of adding."""
LUMA = (77, 150, 29)
"""ITU-R BT.601's weights of red, green and blue, of 256."""
LEAST_SPREAD = 4.0
"""Grey levels that a background's rest is taken to differ by at least: what hardly moved in one round may move later."""
LARGEST = 4096
"""Pixels of a side that an image may be made."""
PART = 1 << 20
"""Numbers of large images that are worked on at a time."""


def is_image(group: Group) -> bool:
    """[H, W, C] or [C, H, W], not of categories; [H, W] of 8 bits or booleans."""
    rank = len(group.shape)
    return (rank == 3 or (rank == 2 and group.dtype in {"uint8", "bool"})) and not group.categories and min(group.shape) > 0


def channels(shape: tuple[int, ...]) -> int | None:
    """The axis of an image's channels: 0 where the first is the shortest, else -1; None for [H, W]."""
    if len(shape) == 2:
        return None
    return 0 if shape[0] < min(shape[1:]) else -1


def size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of an image's shape."""
    axis = channels(shape)
    if axis is None:
        return 1, shape[0], shape[1]
    return (shape[0], shape[1], shape[2]) if axis == 0 else (shape[2], shape[0], shape[1])


def with_size(shape: tuple[int, ...], height: int, width: int) -> tuple[int, ...]:
    """The same image's shape at another size."""
    axis = channels(shape)
    if axis is None:
        return height, width
    return (shape[0], height, width) if axis == 0 else (height, width, shape[2])


def images(groups: Mapping[str, Group], word: str) -> list[str]:
    """The names of the images among these; raises Misconfigured where there are none."""
    found = [name for name, group in groups.items() if is_image(group)]
    if not found:
        there = ", ".join(f"{k}: {g}" for k, g in groups.items())
        raise Misconfigured(f"{word} is for images, and there is only {there}; 'render' before it sees the pictures that an environment draws of itself")
    return found


def _image(groups: Mapping[str, Group], name: str, word: str) -> Group:
    if name not in groups:
        raise Misconfigured(f"there is no observation group {name!r}{nearest(name, groups)}")
    if not is_image(groups[name]):
        raise Misconfigured(f"{word} is for images; the group {name!r} is {groups[name]}")
    return groups[name]


class Crop(nn.Module):
    """Rows ``top`` up to ``bottom`` and columns ``left`` up to ``right`` of each named image, both ends excluded."""

    kind, shrinks = "crop", True

    def __init__(self, rows: Iterable[int], columns: Iterable[int] | None, names: Iterable[str]) -> None:
        super().__init__()
        self.rows, self.columns, self.names = tuple(rows), None if columns is None else tuple(columns), tuple(names)

    def options(self) -> dict[str, Any]:
        """The ranges, and of which groups."""
        return {"rows": list(self.rows), "columns": None if self.columns is None else list(self.columns), "names": list(self.names)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """Smaller images; raises Misconfigured where the range isn't in them."""
        out = dict(groups)
        self._axes: dict[str, int] = {}
        for name in self.names:
            group = _image(groups, name, "crop")
            _, height, width = size(group.shape)
            left, right = self.columns or (0, width)
            (top, bottom) = self.rows
            if not 0 <= top < bottom <= height or not 0 <= left < right <= width:
                raise Misconfigured(f"crop: rows {top} to {bottom - 1} and columns {left} to {right - 1} aren't in {name!r}, of {height} rows and {width} columns")
            out[name] = dataclasses.replace(group, shape=with_size(group.shape, bottom - top, right - left))
            self._axes[name] = -2 if channels(group.shape) in (None, 0) else -3
        return out

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """Views."""
        out = dict(groups)
        for name, axis in self._axes.items():
            x = groups[name].narrow(axis, self.rows[0], self.rows[1] - self.rows[0])
            out[name] = x if self.columns is None else x.narrow(axis + 1, self.columns[0], self.columns[1] - self.columns[0])
        return out


class Grey(nn.Module):
    """The brightness of coloured images, as one channel, which is the first axis: (77 R + 150 G + 29 B) / 256, rounded where pixels have 8 bits."""

    kind, shrinks = "grey", True

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def options(self) -> dict[str, Any]:
        """Which groups."""
        return {"names": list(self.names)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """One channel; raises Misconfigured where an image has not three."""
        out = dict(groups)
        self._axes: dict[str, int] = {}
        for name in self.names:
            group = _image(groups, name, "grey")
            axis = channels(group.shape)
            if axis is None or group.shape[axis] != 3:
                raise Misconfigured(f"grey is for images of red, green and blue; {name!r} is {group}")
            self._axes[name] = -3 if axis == 0 else -1
            out[name] = dataclasses.replace(group, shape=(1, *size(group.shape)[1:]), dtype=group.dtype if group.dtype == "uint8" else "float32")
        return out

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """[..., H, W, 3] or [..., 3, H, W] → [..., 1, H, W]"""
        out = dict(groups)
        for name, axis in self._axes.items():
            out[name] = _in_parts(_grey_last if axis == -1 else _grey_first, groups[name])
        return out


class Resize(nn.Module):
    """Images made ``height`` × ``width``: each pixel the mean of what it covers (``area``), or a triangle's (``bilinear``), both antialiased.

    Separable, the rows first. Pixels of 8 bits are rounded after the rows, and after the columns.
    """

    kind, shrinks = "resize", True

    def __init__(self, height: int, width: int, method: str, names: Iterable[str]) -> None:
        super().__init__()
        self.height, self.width, self.method, self.names = int(height), int(width), str(method), tuple(names)

    def options(self) -> dict[str, Any]:
        """The size, how, and of which groups."""
        return {"height": self.height, "width": self.width, "method": self.method, "names": list(self.names)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """Images of that size."""
        if self.method not in METHODS:
            raise Misconfigured(f"resize: unknown method {self.method!r}{nearest(self.method, METHODS)}")
        if not 0 < self.height <= LARGEST or not 0 < self.width <= LARGEST:
            raise Misconfigured(f"resize={self.height}x{self.width}: sizes from 1 to {LARGEST} are right")
        out = dict(groups)
        self.filters: dict[str, tuple[int, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = {}
        for name in self.names:
            group = _image(groups, name, "resize")
            _, height, width = size(group.shape)
            axis = -2 if channels(group.shape) in (None, 0) else -3
            self.filters[name] = (axis, taps(height, self.height, self.method), taps(width, self.width, self.method))
            dtype = group.dtype if group.dtype == "uint8" else "float32"
            out[name] = dataclasses.replace(group, shape=with_size(group.shape, self.height, self.width), dtype=dtype)
        return out

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """[..., H, W, C] → [..., height, width, C], or with the channels first."""
        out = dict(groups)
        for name, (axis, rows, columns) in self.filters.items():
            out[name] = _filtered(_filtered(groups[name], rows, axis), columns, axis + 1)
        return out


class Jitter(nn.Module):
    """Brightness and contrast of each image changed by a factor from 1 − ``share`` to 1 + ``share``, while it trains only (Laskin 2020, RAD).

    The factors are drawn from the number of calls so far, which is part of the state: a resumed run draws the same.
    """

    kind = "jitter"
    drawn: Tensor

    def __init__(self, share: float, names: Iterable[str]) -> None:
        super().__init__()
        self.share, self.names = float(share), tuple(names)
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def options(self) -> dict[str, Any]:
        """How much, and of which groups."""
        return {"share": self.share, "names": list(self.names)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The same groups; raises Misconfigured for what has not 8 bits."""
        if not 0 < self.share < 1:
            raise Misconfigured(f"jitter={self.share:g}: a share between 0 and 1, such as 0.2, is right")
        for name in self.names:
            if _image(groups, name, "jitter").dtype != "uint8":
                raise Misconfigured(f"jitter is for pixels of 8 bits; {name!r} is {groups[name]}")
        self._ranks = {name: len(groups[name].shape) for name in self.names}
        return dict(groups)

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """The same shapes."""
        if not self.training:
            return groups
        generator = torch.Generator().manual_seed(int(self.drawn) + 1)
        self.drawn += 1
        out = dict(groups)
        for name, rank in self._ranks.items():
            x = groups[name].float()
            pixels = tuple(range(-rank, 0))
            lead = x.shape[: x.dim() - rank]
            bright, contrast = (torch.rand((2, *lead), generator=generator) * 2 - 1) * self.share + 1
            mean = x.mean(pixels, keepdim=True)
            shape = (*lead, *[1] * rank)
            changed = (x - mean) * contrast.view(shape).to(x.device) + mean * bright.view(shape).to(x.device)
            out[name] = changed.round().clamp(0, 255).to(torch.uint8)
        return out


class Background(nn.Module):
    """(x − image) / spread of each named image [C, H, W] of 8 bits, as float32: what differs from what is always there.

    ``image`` is the mean of one frame, in bytes, as a round of play showed it, and is the same for each of the stacked frames, of which there are
    C / c; ``spread`` is the root mean square of the rest. Without it, a network must first learn to overlook what stays, which is brighter
    than what matters (LeCun 1998, «Efficient BackProp», section 4.3; docs/pixels.md has figures).
    """

    kind = "background"

    def __init__(self, shapes: Mapping[str, Iterable[int]]) -> None:
        super().__init__()
        self.shapes = {name: tuple(shapes[name]) for name in sorted(shapes)}
        for i, shape in enumerate(self.shapes.values()):
            self.register_buffer(f"image{i}", torch.zeros(shape, dtype=torch.uint8))
            self.register_buffer(f"spread{i}", torch.full((), 255.0))
        self._ready: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    @staticmethod
    def of(frames: Mapping[str, Tensor]) -> Background:
        """From {name: [states, c, H, W] uint8}."""
        step = Background({name: x.shape[1:] for name, x in frames.items()})
        for i, name in enumerate(step.shapes):
            x = frames[name]
            image = sum((part.sum(0, dtype=torch.int64) for part in x.split(256)), torch.zeros((), dtype=torch.int64)).double().div(len(x)).round()
            rest = sum(float((part.float() - image.float()).square().sum(dtype=torch.float64)) for part in x.split(256)) / x.numel()
            getattr(step, f"image{i}").copy_(image)
            getattr(step, f"spread{i}").fill_(max(math.sqrt(rest), LEAST_SPREAD))
        return step

    def options(self) -> dict[str, Any]:
        """The shapes of one frame."""
        return {"shapes": {name: list(shape) for name, shape in self.shapes.items()}}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The same shapes, as float32; raises Misconfigured where they aren't so many frames."""
        out = dict(groups)
        for name, (count, *pixels) in self.shapes.items():
            shape = _image(groups, name, "background").shape
            if len(shape) != 3 or list(shape[1:]) != pixels or not count or shape[0] % count:
                raise Misconfigured(f"the background of {name!r} is {[count, *pixels]}, the observation {groups[name]}")
            out[name] = Group(shape, "float32")
        return out

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def shift(self, name: str, count: int) -> tuple[Tensor, Tensor]:
        """1 / spread, and −image / spread of so many channels, [C, H, W]."""
        i = list(self.shapes).index(name)
        image, scale = self.get_buffer(f"image{i}"), 1 / self.get_buffer(f"spread{i}")
        return scale, (image.float() * -scale).repeat(count // len(image), 1, 1)

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """[..., C, H, W] each."""
        out = dict(groups)
        for i, name in enumerate(self.shapes):
            x, image, ready = groups[name], self._buffers[f"image{i}"], self._ready.get(name)
            assert image is not None
            if ready is None or ready[0] is not image or ready[2].shape != x.shape[-3:]:
                ready = (image, *self.shift(name, x.shape[-3]))
                if not torch.compiler.is_compiling():
                    self._ready[name] = ready  # made once: this stands on the way of every single step
            out[name] = torch.addcmul(ready[2], x.float(), ready[1])
        return out

    def _load_from_state_dict(self, *given: Any) -> None:
        self._ready.clear()
        super()._load_from_state_dict(*given)


METHODS = {"area": 0.5, "bilinear": 1.0}
"""Half the width of each filter, in pixels of the result (never narrower than in pixels of the source)."""


def taps(source: int, target: int, method: str) -> tuple[Tensor, Tensor]:
    """How each of ``target`` numbers is made of ``source``: places [K, target] int64, and whole weights [K, target] with the sum 4096."""
    ratio = source / target
    rows = []
    for i in range(target):
        weights = _area(i * ratio, (i + 1) * ratio, source) if method == "area" else _triangle((i + 0.5) * ratio, max(ratio, 1.0), source)
        total = sum(weights.values())
        whole = {j: round(ONE * w / total) for j, w in weights.items()}
        whole[max(whole, key=lambda j: (whole[j], -j))] += ONE - sum(whole.values())
        rows.append({j: w for j, w in whole.items() if w})
    count = max(map(len, rows))
    places, numbers = torch.zeros(count, target, dtype=torch.int64), torch.zeros(count, target)
    for i, row in enumerate(rows):
        for k, (j, w) in enumerate(sorted(row.items())):
            places[k, i], numbers[k, i] = j, w
    return places, numbers


def _area(begin: float, end: float, source: int) -> dict[int, float]:
    first, last = int(begin), min(source, math.ceil(end - 1e-9))
    return {j: min(end, j + 1) - max(begin, j) for j in range(first, max(last, first + 1))}


def _triangle(centre: float, half: float, source: int) -> dict[int, float]:
    first, last = max(0, math.floor(centre - half)), min(source, math.ceil(centre + half))
    return {j: w for j in range(first, last) if (w := 1 - abs(j + 0.5 - centre) / half) > 0}


def _in_parts(change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``change`` of [..., *image], a few images at a time where they are large: seven times as fast, for what is worked on stays in the cache."""
    count = max(1, PART // math.prod(x.shape[-3:]))
    lead = x.shape[:-3]
    if torch.compiler.is_exporting() or math.prod(lead) <= count:  # torch.export's graph must not hang on how many there are
        return change(x)
    return torch.cat([change(part) for part in x.flatten(0, -4).split(count)]).unflatten(0, lead)


def _grey_last(x: Tensor) -> Tensor:
    return _pixels((x.float() @ x.new_tensor(LUMA, dtype=torch.float32)).unsqueeze(-3), 256, x.dtype)


def _grey_first(x: Tensor) -> Tensor:
    red, green, blue = (c.float() * w for c, w in zip(x.unbind(-3), LUMA, strict=True))
    return _pixels((red + green + blue).unsqueeze(-3), 256, x.dtype)


def _filtered(x: Tensor, taps: tuple[Tensor, Tensor], axis: int) -> Tensor:
    """One axis of an image through a filter."""
    places, weights = (t.to(x.device) for t in taps)
    shape = (-1, *[1] * (-axis - 1))
    total: Tensor | None = None
    for place, weight in zip(places, weights, strict=True):
        part = x.index_select(x.dim() + axis, place).float().mul_(weight.view(shape))
        total = part if total is None else total.add_(part)
    assert total is not None
    return _pixels(total, ONE, x.dtype)


def _pixels(total: Tensor, whole: int, dtype: torch.dtype) -> Tensor:
    """The ``whole``-th part, rounded half up where pixels have 8 bits; ``total`` is written over."""
    if dtype != torch.uint8:
        return total.div_(whole)
    return total.add_(whole / 2).mul_(1 / whole).to(torch.uint8)  # whole is a power of two, so this too is exact
