"""Steps of a sense that choose and spoil numbers: pick, drop, delay, clip, noise, quantise.

Each has the face of ``senses.Step``; ``names`` are the groups that a step changes, the others pass untouched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured, nearest
from distillrl.policies import Memory
from distillrl.records import Group


class Choose(nn.Module):
    """Only some numbers of a vector group [..., F], by their places, in the order given: [..., len(indices)]."""

    kind = "choose"

    def __init__(self, group: str, indices: Iterable[int]) -> None:
        super().__init__()
        self.group, self.indices = group, tuple(int(i) for i in indices)
        self.register_buffer("places", torch.tensor(self.indices, dtype=torch.int64), persistent=False)

    def options(self) -> dict[str, Any]:
        """The group and the kept places."""
        return {"group": self.group, "indices": list(self.indices)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """As many numbers as places are named; raises Misconfigured for a place that isn't there."""
        before = _group(groups, self.group)
        if len(before.shape) != 1:
            raise Misconfigured(f"numbers are chosen by place from a vector; the group {self.group!r} is {before}")
        if not self.indices:
            raise Misconfigured(f"nothing is left of {self.group!r} to see: keep at least one of its {before.shape[0]} numbers")
        if bad := [i for i in self.indices if not 0 <= i < before.shape[0]]:
            raise Misconfigured(f"there is no number {bad[0]} in {self.group!r}: its places are 0 to {before.shape[0] - 1}")
        return {**groups, self.group: Group((len(self.indices),), before.dtype, (), before.low, before.high)}

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """[..., F] → [..., kept]"""
        return {**groups, self.group: groups[self.group].index_select(-1, self.get_buffer("places"))}


class Delay(nn.Module):
    """What was there ``steps`` steps ago; at an episode's beginning, its first observation until there is an older one."""

    kind = "delay"

    def __init__(self, steps: int, names: Iterable[str]) -> None:
        super().__init__()
        self.steps, self.names = int(steps), tuple(names)
        self.window = self.steps
        self._groups: dict[str, Group] = {}

    def options(self) -> dict[str, Any]:
        """How many steps, of which groups."""
        return {"steps": self.steps, "names": list(self.names)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The same groups."""
        _within("delay", self.steps, 1, 1000)
        self._groups = {name: _group(groups, name) for name in self.names}
        return dict(groups)

    def init(self, n: int) -> Memory:
        """{group: [n, steps, *shape]}, the oldest first."""
        return {name: torch.zeros((n, self.steps, *g.shape), dtype=getattr(torch, g.dtype)) for name, g in self._groups.items()}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """[n, *shape] → the oldest remembered, [n, *shape]; no memory is taken for the beginning of an episode."""
        out = dict(groups)
        for name in self.names:
            x, old = groups[name], memory.get(name)
            first = x.unsqueeze(1).expand(-1, self.steps, *x.shape[1:])
            if old is None:
                old = first
            elif starts is not None:
                old = torch.where(starts.view(-1, *[1] * x.dim()), first, old)
            out[name] = old[:, 0]
            memory[name] = torch.cat([old[:, 1:], x.unsqueeze(1)], 1)
        return out


class Clip(nn.Module):
    """Numbers cut off at ± ``limit``."""

    kind = "clip"

    def __init__(self, limit: float, names: Iterable[str]) -> None:
        super().__init__()
        self.limit, self.names = float(limit), tuple(names)

    def options(self) -> dict[str, Any]:
        """The limit, and of which groups."""
        return {"limit": self.limit, "names": list(self.names)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The same groups as float32."""
        _within("clip", self.limit, 1e-9, 1e9)
        return _floats(groups, self.names)

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """The same shapes."""
        return {k: x.float().clamp(-self.limit, self.limit) if k in self.names else x for k, x in groups.items()}


class Quantise(nn.Module):
    """Numbers rounded to whole multiples of ``step``, as a cheap sensor gives them."""

    kind = "quantise"

    def __init__(self, step: float, names: Iterable[str]) -> None:
        super().__init__()
        self.step, self.names = float(step), tuple(names)

    def options(self) -> dict[str, Any]:
        """The step, and of which groups."""
        return {"step": self.step, "names": list(self.names)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The same groups as float32."""
        _within("quantise", self.step, 1e-9, 1e9)
        return _floats(groups, self.names)

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """The same shapes."""
        return {k: (x.float() / self.step).round() * self.step if k in self.names else x for k, x in groups.items()}


class Noise(nn.Module):
    """Gaussian noise of standard deviation ``std``, drawn from a hash of what is seen (Box and Muller 1958).

    It needs neither memory nor a generator, so that a state looks the same when it is played, stored, replayed and
    resumed; two states that differ in one bit get unrelated noise, and equal ones the same.
    """

    kind = "noise"

    def __init__(self, std: float, names: Iterable[str]) -> None:
        super().__init__()
        self.std, self.names = float(std), tuple(names)

    def options(self) -> dict[str, Any]:
        """The standard deviation, and of which groups."""
        return {"std": self.std, "names": list(self.names)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The same groups as float32, without bounds."""
        _within("noise", self.std, 1e-9, 1e9)
        out = _floats(groups, self.names)
        self._rank = {name: len(g.shape) for name, g in out.items()}
        return {k: dataclasses.replace(g, low=None, high=None) if k in self.names else g for k, g in out.items()}

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """The same shapes."""
        return {k: self._noisy(x.float(), self._rank[k]) if k in self.names else x for k, x in groups.items()}

    def _noisy(self, x: Tensor, rank: int) -> Tensor:
        flat = x.flatten(x.dim() - rank) if rank else x.unsqueeze(-1)
        place = torch.arange(1, flat.shape[-1] + 1, device=x.device)
        bits = flat.contiguous().view(torch.int32).long()
        state = _mixed(bits + (place << 32)).sum(-1, keepdim=True)
        u, v = (_unit(_mixed(state + place * 2 + i)) for i in (0, 1))
        normal = (-2 * u.log()).sqrt() * (2 * torch.pi * v).cos()
        return x + self.std * normal.to(x.dtype).view(x.shape)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele 2014) in wrapping int64; shifts are made logical."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _unit(x: Tensor) -> Tensor:
    """In (0, 1), float64."""
    return (((x >> 11) & ((1 << 53) - 1)).double() + 0.5) / (1 << 53)


def _group(groups: Mapping[str, Group], name: str) -> Group:
    if name not in groups:
        raise Misconfigured(f"there is no observation group {name!r}{nearest(name, groups)}")
    return groups[name]


def _floats(groups: Mapping[str, Group], names: Iterable[str]) -> dict[str, Group]:
    return {**groups, **{name: dataclasses.replace(_group(groups, name), dtype="float32", categories=()) for name in names}}


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise Misconfigured(f"{name}={value:g}: a number from {low:g} to {high:g} is right")
