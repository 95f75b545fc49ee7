"""What a policy sees of an observation: a chain of steps from the environment's groups to the network's.

A sense is part of the policy: it is saved in the artifact and exported with it. Each step is a module with its
statistics as buffers, ``options()`` as plain JSON, and ``after(groups)``, which says what comes out. Steps that
remember keep their part of the memory, cleared where ``starts``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillrl.errors import Misconfigured, nearest
from distillrl.filters import Choose, Clip, Delay, Noise, Quantise
from distillrl.images import Background, Crop, Grey, Jitter, Resize
from distillrl.normalising import Normalise
from distillrl.policies import Memory
from distillrl.records import Group
from distillrl.sounds import Spectrogram
from distillrl.wrapping import First, Join, Played, RemainingTime

SEEN = "seen."
"""Before the name of a group in what ``Sense.glance`` gives: an image already cropped, greyed and made small."""


class Step(Protocol):
    """One transformation of observation groups.

    A step that remembers only the last ``window`` observations has that attribute; one that makes images smaller, and
    whose result may be stored in their place, has ``shrinks``.
    """

    kind: str

    def options(self) -> dict[str, Any]:
        """Plain JSON that makes the same step again (its tensors come from the state dict)."""

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The groups that come out; raises Misconfigured where it can't take these."""

    def init(self, n: int) -> Memory:
        """Memory for n environments."""

    def __call__(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """Transform {group: [..., *shape]}; a step with memory changes its own entries of ``memory``."""


class Pick(nn.Module):
    """Keep only some groups."""

    kind = "pick"

    def __init__(self, groups: Iterable[str]) -> None:
        super().__init__()
        self.groups = tuple(groups)

    def options(self) -> dict[str, Any]:
        """The groups' names."""
        return {"groups": list(self.groups)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The kept groups."""
        for name in self.groups:
            if name not in groups:
                raise Misconfigured(f"there is no observation group {name!r}{nearest(name, groups)}")
        return {name: groups[name] for name in self.groups}

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """Drop the rest."""
        return {name: groups[name] for name in self.groups}


class OneHot(nn.Module):
    """Category numbers (Discrete and MultiDiscrete observations) as one-hot vectors, the others untouched."""

    kind = "one_hot"

    def __init__(self, categories: Mapping[str, Iterable[int]]) -> None:
        super().__init__()
        self.categories = {name: tuple(n) for name, n in categories.items()}

    def options(self) -> dict[str, Any]:
        """How many categories each entry has."""
        return {"categories": {k: list(v) for k, v in self.categories.items()}}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """Vectors of the summed numbers of categories."""
        out = dict(groups)
        for name, counts in self.categories.items():
            out[name] = Group((sum(counts),), "float32")
        return out

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """[...] or [..., E] int → [..., Σ categories] float."""
        out = dict(groups)
        for name, counts in self.categories.items():
            x = groups[name].long()
            parts = [x] if len(counts) == 1 and (x.dim() == 0 or x.shape[-1:] != (1,) or starts is None or x.dim() == starts.dim()) else None
            columns = parts if parts is not None else list(x.unbind(-1))
            out[name] = torch.cat([F.one_hot(c, n).float() for c, n in zip(columns, counts, strict=True)], -1)
        return out


class Scale(nn.Module):
    """x / divisor of each named group, as float32: an image's 0 to 255 becomes 0 to 1."""

    kind = "scale"

    def __init__(self, divisors: Mapping[str, float]) -> None:
        super().__init__()
        self.divisors = {name: float(d) for name, d in divisors.items()}

    def options(self) -> dict[str, Any]:
        """The divisors by group."""
        return {"divisors": dict(self.divisors)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The same shapes, as float32."""
        out = dict(groups)
        for name, divisor in self.divisors.items():
            low, high = (None if b is None else b / divisor for b in (groups[name].low, groups[name].high))
            out[name] = Group(groups[name].shape, "float32", (), low, high)
        return out

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """Divided float32 groups."""
        return {name: x.float() / self.divisors[name] if name in self.divisors else x for name, x in groups.items()}


class ChannelsFirst(nn.Module):
    """Images [..., H, W, C] → [..., C, H, W]."""

    kind = "channels_first"

    def __init__(self, groups: Iterable[str]) -> None:
        super().__init__()
        self.groups = tuple(groups)

    def options(self) -> dict[str, Any]:
        """The images' names."""
        return {"groups": list(self.groups)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The turned shapes."""
        out = dict(groups)
        for name in self.groups:
            height, width, channels = groups[name].shape
            out[name] = dataclasses.replace(groups[name], shape=(channels, height, width))
        return out

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """Turned images, as views."""
        return {name: x.movedim(-1, -3) if name in self.groups else x for name, x in groups.items()}


class Stack(nn.Module):
    """``count`` of the last observations of each named group side by side, ``gap`` steps apart, the newest last; zeros before an episode's start.

    ``axes``: along which axis of the observation, 0 or -1 (SB3's VecFrameStack: the channels of an image, else the last).
    """

    kind = "stack"

    def __init__(self, count: int, shapes: Mapping[str, Iterable[int]], axes: Mapping[str, int], dtypes: Mapping[str, str], gap: int = 1) -> None:
        super().__init__()
        self.count, self.gap = int(count), int(gap)
        self.window = (self.count - 1) * self.gap
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.axes, self.dtypes = dict(axes), dict(dtypes)

    def options(self) -> dict[str, Any]:
        """How many, of what, and how far apart where they aren't neighbours."""
        apart = {"gap": self.gap} if self.gap > 1 else {}
        return {"count": self.count, "shapes": {k: list(v) for k, v in self.shapes.items()}, "axes": self.axes, "dtypes": self.dtypes, **apart}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """Shapes ``count`` times as long along their axis."""
        out = dict(groups)
        for name, shape in self.shapes.items():
            if name not in groups or groups[name].shape != shape:
                raise Misconfigured(f"frames of {name!r} with the shape {shape} are stacked, the observation has {groups.get(name)}")
            out[name] = dataclasses.replace(groups[name], shape=self.long(name, self.count))
        return out

    def long(self, name: str, count: int) -> tuple[int, ...]:
        """The shape of so many observations side by side."""
        shape = list(self.shapes[name])
        shape[self.axes[name]] *= count
        return tuple(shape)

    def init(self, n: int) -> Memory:
        """The last ``window`` + 1 observations, {group: [n, *shape]}, those between the chosen ones too."""
        return {name: torch.zeros((n, *self.long(name, self.window + 1)), dtype=getattr(torch, self.dtypes[name])) for name in self.shapes}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """The newest put behind the others, [n, *shape] → [n, *stacked shape]."""
        out = dict(groups)
        for name, shape in self.shapes.items():
            x, old = groups[name], memory.get(name)
            if old is None:
                old = self.init(len(x))[name].to(x.device)
            if starts is not None:
                kept = ~starts.view(-1, *[1] * len(shape))
                # Of bytes a product is 25 times as fast as a choice, and comes to the same.
                old = old * kept if old.dtype == torch.uint8 else torch.where(kept, old, torch.zeros((), dtype=old.dtype))
            axis = self.axes[name] - len(shape) if self.axes[name] >= 0 else self.axes[name]
            new = torch.cat([old.narrow(axis, shape[axis], old.shape[axis] - shape[axis]), x.to(old.dtype)], axis)
            memory[name] = new
            out[name] = new if self.gap == 1 else torch.cat(new.split(shape[axis], axis)[:: self.gap], axis)
        return out


STEPS: dict[str, Any] = {step.kind: step for step in (Pick, OneHot, Normalise, Scale, ChannelsFirst, Stack, First, Join, RemainingTime, Choose, Delay, Clip, Noise, Quantise, Crop, Grey, Resize, Jitter, Background, Spectrogram, Played)}


class Sense(nn.Module):
    """A chain of steps; ``groups`` says what comes out of it."""

    def __init__(self, observations: Mapping[str, Group], steps: Iterable[Any] = ()) -> None:
        super().__init__()
        self.observations = dict(observations)
        self.steps: Any = nn.ModuleList(steps)
        groups, between = dict(observations), [dict(observations)]
        step: Any
        for step in self.steps:
            groups = step.after(groups)
            between.append(groups)
        self.groups = groups
        first = self.steps[0] if len(self.steps) else None
        self.reads = tuple(first.groups) if isinstance(first, Pick) else tuple(self.observations)
        """The environment's groups that it needs to be given."""
        chain: list[Any] = list(self.steps)
        remembering = [i for i, part in enumerate(chain) if part.init(1)]
        windows = [getattr(chain[i], "window", None) for i in remembering]
        self.window: int | None = None if None in windows else sum(w for w in windows if w is not None)
        """How many earlier observations its memory is made of; None where there is no bound."""
        begin = remembering[0] if remembering else len(self.steps)
        self.early = max((i + 1 for i, part in enumerate(chain[:begin]) if hasattr(part, "shrinks")), default=0)
        """How many of its first steps ``glance`` does."""
        self.glimpsed = {SEEN + name: group for name, group in between[self.early].items()} if self.early else {}
        """The groups that ``glance`` gives."""
        only = chain[remembering[0]] if len(remembering) == 1 else None
        self._stack = (remembering[0], only) if isinstance(only, Stack) and not any(only.axes.values()) else None

    def init(self, n: int) -> Memory:
        """Memory of all steps for n environments, named by step."""
        return {f"sense.{i}.{k}": v for i, step in enumerate(self.steps) for k, v in step.init(n).items()}

    def forward(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None) -> tuple[dict[str, Tensor], Memory]:
        """{group: [..., *shape]} through every step; the memory that comes out is a new dict where a step remembers.

        With ``starts`` [T, n] the observations are sequences [T, n, *shape]: a chain that remembers goes through them in order.
        """
        if starts is not None and starts.dim() == 2 and self.init(1):
            seen = []
            for t in range(len(starts)):
                now, memory = self({name: value[t] for name, value in obs.items()}, memory, starts[t])
                seen.append(now)
            return {name: torch.stack([now[name] for now in seen]) for name in self.groups}, memory
        groups, begin = self._given(obs)
        step: Any
        for i, step in enumerate(self.steps._modules.values()):  # its own calls, not a module's: this stands on the way of every single step
            if i < begin:
                continue
            own = {k.removeprefix(f"sense.{i}."): v for k, v in memory.items() if k.startswith(f"sense.{i}.")} if memory else {}
            groups = step.forward(groups, own, starts)
            if own:
                memory = {**memory, **{f"sense.{i}.{k}": v for k, v in own.items()}}
        return groups, memory

    def _given(self, obs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """The groups at hand, and the number of the step that comes next: what was glanced at already is not looked at again."""
        if self.early and next(iter(self.glimpsed)) in obs:
            return {name[len(SEEN) :]: obs[name] for name in self.glimpsed}, self.early
        return {name: obs[name] for name in self.reads}, 0

    def glance(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{seen.group: [..., *shape]} after its first ``early`` steps; ``forward`` takes this in place of the observation."""
        groups = {name: obs[name] for name in self.reads}
        for step in self.steps[: self.early]:
            groups = step(groups, {}, None)
        return {SEEN + name: value for name, value in groups.items()}

    def recall(self, before: Mapping[str, Tensor], starts: Tensor) -> Memory:
        """The memory with which it comes to a state, made of the ``window`` + 1 observations before it, the oldest first.

        ``before``: {group: [B, window + 1, *shape]}, which it may write over; ``starts`` [B, window + 1]: whether an episode begins at the
        observation after each of them.
        """
        if self._stack is None:
            memory: Memory = {}
            began = torch.ones_like(starts[:, 0])
            for t in range(starts.shape[1]):
                _, memory = self({name: value[:, t] for name, value in before.items()}, memory, began)
                began = starts[:, t]
            return memory
        number, stack = self._stack
        groups, begin = self._given(before)
        chain: Any = self.steps[begin:number]
        for step in chain:
            groups = step(groups, {}, None)
        gone = starts.flip(1).cumsum(1).flip(1) > 0
        found = {}
        for name in stack.shapes:
            frames = groups[name]
            frames[gone] = 0
            found[f"sense.{number}.{name}"] = frames.flatten(1, 2)
        return found

    def with_step(self, step: Any) -> Sense:
        """The same chain with one step more at its end."""
        return Sense(self.observations, [*self.steps, step])

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON of the steps; their tensors are in the state dict."""
        return [{"kind": step.kind, **step.options()} for step in self.steps]

    @staticmethod
    def from_json(observations: Mapping[str, Group], steps: Iterable[Mapping[str, Any]]) -> Sense:
        """The inverse of to_json; raises Misconfigured for a step that this version doesn't know."""
        made = []
        for step in steps:
            options = dict(step)
            kind = options.pop("kind", "?")
            if kind not in STEPS:
                raise Misconfigured(f"unknown sense {kind!r}{nearest(str(kind), STEPS)}")
            made.append(STEPS[kind](**options))
        return Sense(observations, made)


def window_of(policy: Any) -> int | None:
    """How many earlier observations a policy's memory is made of, 0 where it has none; None where there is no bound, as of a recurrent one."""
    memory, sense = policy.init(1), getattr(policy, "sense", None)
    if not memory:
        return 0
    return sense.window if isinstance(sense, Sense) and set(memory) == set(sense.init(1)) else None


def one_hot_where_needed(observations: Mapping[str, Group]) -> list[Any]:
    """The one-hot step for category numbers, where there are any."""
    categories = {name: group.categories for name, group in observations.items() if group.categories}
    return [OneHot(categories)] if categories else []
