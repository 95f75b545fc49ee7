"""Steps of a sense that do what wrappers around old environments did: time left, contact forces at zero, groups joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillrl.errors import Misconfigured
from distillrl.policies import Memory
from distillrl.records import Group


class First(nn.Module):
    """The first ``keep`` numbers of a group [..., F], then zeros up to ``width``: what came behind was always zero in training."""

    kind = "first"

    def __init__(self, group: str, keep: int, width: int) -> None:
        super().__init__()
        self.group, self.keep, self.width = group, int(keep), int(width)

    def options(self) -> dict[str, Any]:
        """The group and both numbers."""
        return {"group": self.group, "keep": self.keep, "width": self.width}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """``width`` numbers."""
        before = groups.get(self.group)
        if before is None or len(before.shape) != 1 or before.shape[0] < self.keep:
            raise Misconfigured(f"the first {self.keep} numbers of {self.group!r} are wanted; the observation has {before}")
        return {**groups, self.group: Group((self.width,), before.dtype)}

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """[..., F] → [..., width]"""
        return {**groups, self.group: F.pad(groups[self.group][..., : self.keep], (0, self.width - self.keep))}


class RemainingTime(nn.Module):
    """One number more at the end of a group [..., F]: the share of the episode's ``limit`` steps that is left, 1 at its start.

    (sb3-contrib's TimeFeatureWrapper; Pardo 2018.)
    """

    kind = "remaining_time"

    def __init__(self, group: str, limit: int) -> None:
        super().__init__()
        self.group, self.limit = group, int(limit)

    def options(self) -> dict[str, Any]:
        """The group and the limit in steps."""
        return {"group": self.group, "limit": self.limit}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """One entry more."""
        before = groups.get(self.group)
        if before is None or len(before.shape) != 1:
            raise Misconfigured(f"the remaining time goes into {self.group!r}, a list of numbers; the observation has {before}")
        return {**groups, self.group: Group((before.shape[0] + 1,), before.dtype)}

    def init(self, n: int) -> Memory:
        """The steps played so far, [n]."""
        return {"steps": torch.zeros(n)}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """[n, F] → [n, F + 1]"""
        x = groups[self.group]
        steps = memory.get("steps")
        if steps is None:
            steps = torch.zeros(len(x), device=x.device)
        if starts is not None:
            steps = torch.where(starts, torch.zeros(()), steps)
        left = 1 - steps.to(x.dtype) / self.limit
        memory["steps"] = steps + 1
        return {**groups, self.group: torch.cat([x, left.unsqueeze(-1)], -1)}


class Join(nn.Module):
    """Several groups [..., F] side by side as one group ``name``, in the order given; the others are dropped.

    (SB3's ObsDictWrapper of 1.0: the observation and the goal that is desired.)
    """

    kind = "join"

    def __init__(self, groups: Iterable[str], name: str) -> None:
        super().__init__()
        self.groups, self.name = tuple(groups), name

    def options(self) -> dict[str, Any]:
        """The groups in their order, and the joined one's name."""
        return {"groups": list(self.groups), "name": self.name}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """One group."""
        parts = [groups.get(name) for name in self.groups]
        if any(part is None or len(part.shape) != 1 for part in parts):
            raise Misconfigured(f"{', '.join(self.groups)} are joined, lists of numbers; the observation has {', '.join(f'{k}: {g}' for k, g in groups.items())}")
        return {self.name: Group((sum(part.shape[0] for part in parts if part is not None),), "float32")}

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """{name: [..., Σ F]}"""
        return {self.name: torch.cat([groups[name].float() for name in self.groups], -1)}


class Played(nn.Module):
    """Groups that belong to one of several tasks, zero again while another one is played: behind a normaliser, which moves zero elsewhere.

    ``groups``: name → the number of its task; ``task`` is the group that says, one-hot, which is played.
    """

    kind = "played"

    def __init__(self, groups: Mapping[str, int], task: str) -> None:
        super().__init__()
        self.groups, self.task = {name: int(k) for name, k in groups.items()}, task

    def options(self) -> dict[str, Any]:
        """The groups with their tasks."""
        return {"groups": dict(self.groups), "task": self.task}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The same groups."""
        known = groups.get(self.task)
        if known is None or len(known.shape) != 1 or any(name not in groups or not 0 <= k < known.shape[0] for name, k in self.groups.items()):
            raise Misconfigured(f"the groups {', '.join(self.groups)} of single tasks, and {self.task!r}, are wanted; the observation has {', '.join(groups)}")
        return dict(groups)

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """Each of the named groups [..., *shape] times whether its task is played [...]."""
        out, on = dict(groups), groups[self.task]
        for name, k in self.groups.items():
            x, mine = groups[name], on[..., k]
            out[name] = x * mine.reshape(*mine.shape, *[1] * (x.dim() - mine.dim())).to(x.dtype)
        return out
