"""Spaces: what a gymnasium environment sees and does, as a Spec, and what of a policy's contract it breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from distillrl.errors import Misconfigured
from distillrl.records import ActionSpace, Group, Spec


def spec_of(observation: spaces.Space[Any], action: spaces.Space[Any]) -> Spec:
    """The Spec of a single environment's spaces; raises Misconfigured for a space that no policy here can take."""
    groups = {name: _group(space) for name, space in leaves(observation)}
    return Spec(groups, action_of(action), tasks=tuple(getattr(observation, "tasks", ())))


def leaves(space: spaces.Space[Any]) -> list[tuple[str, spaces.Space[Any]]]:
    """The observation groups by name; a plain observation is the group ``obs``."""
    if isinstance(space, spaces.Dict):
        return _seen([(str(k), s) for k, s in space.spaces.items()])
    if isinstance(space, spaces.Tuple):
        return _seen([(str(i), s) for i, s in enumerate(space.spaces)])
    return [("obs", space)]


def _seen(parts: list[tuple[str, spaces.Space[Any]]]) -> list[tuple[str, spaces.Space[Any]]]:
    """Without words (MiniGrid's ``mission``) beside numbers: who reads them names them, and has them as numbers (texts.py)."""
    return [part for part in parts if part[1].dtype not in (str, np.dtype(str))] or parts


def _group(space: spaces.Space[Any]) -> Group:
    if isinstance(space, spaces.Box):
        low, high = np.unique(space.low), np.unique(space.high)
        one = len(low) == len(high) == 1 and np.isfinite([low[0], high[0]]).all()
        return Group(tuple(space.shape), str(space.dtype), (), *((float(low[0]), float(high[0])) if one else (None, None)))
    if isinstance(space, spaces.Discrete):
        return Group((), str(space.dtype), _counted(space, [space.start], [space.n]))
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        return Group(tuple(space.shape), str(space.dtype), _counted(space, space.start, space.nvec), words=tuple(getattr(space, "words", ())))
    if isinstance(space, spaces.MultiBinary):
        return Group(tuple(space.shape), str(space.dtype))
    if isinstance(space, spaces.MultiDiscrete):
        raise Misconfigured(f"an observation of {space} can't be seen: a MultiDiscrete of one dimension is right (gymnasium.wrappers.ReshapeObservation, or FlattenObservation)")
    if space.dtype in (str, np.dtype(str)):
        raise Misconfigured("an observation of words alone can't be seen unless it is named: --see group=obs")
    raise Misconfigured(f"an observation of {space} can't be seen; Box, Discrete, MultiDiscrete, MultiBinary and Dict or Tuple of them can")


def _counted(space: spaces.Space[Any], start: Any, count: Any) -> tuple[int, ...]:
    """How many categories each number has, counted from 0: those below where it starts are there, and never seen."""
    if min(int(s) for s in start) < 0:
        raise Misconfigured(f"an observation of {space} can't be seen: its numbers begin below 0; a wrapper that counts from 0 is right")
    return tuple(int(s) + int(n) for s, n in zip(start, count, strict=True))


def action_of(space: spaces.Space[Any]) -> ActionSpace:
    """The record of an action space; raises Misconfigured for one that no policy here can choose from."""
    if isinstance(space, spaces.Discrete):
        return ActionSpace("discrete", n=int(space.n), start=int(space.start), dtype=str(space.dtype))
    if isinstance(space, spaces.MultiDiscrete) and np.any(space.start):
        raise Misconfigured(f"an action of {space} can't be chosen: its numbers don't begin at 0; a wrapper that adds {space.start.tolist()} is right (gymnasium.wrappers.TransformAction)")
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        return ActionSpace("multidiscrete", tuple(space.shape), nvec=tuple(int(n) for n in space.nvec), dtype=str(space.dtype))
    if isinstance(space, spaces.MultiBinary):
        return ActionSpace("multibinary", tuple(space.shape), dtype=str(space.dtype))
    if isinstance(space, spaces.Box):
        low, high = (tuple(float(v) for v in b.reshape(-1)) for b in (space.low, space.high))
        return ActionSpace("box", tuple(space.shape), low=low, high=high, dtype=str(space.dtype))
    raise Misconfigured(f"an action of {space} can't be chosen; Discrete, MultiDiscrete, MultiBinary and Box can")


def differences(policy: Spec, env: Spec) -> list[str]:
    """What of a policy's contract the environment breaks, a sentence each with both shown; empty where it fits."""
    found = []
    for name, group in policy.observations.items():
        other = env.observations.get(name)
        if other is None:
            there = ", ".join(f"{k}: {v}" for k, v in env.observations.items())
            found.append(f"observation {name!r}: the policy sees {group}, the environment has only {there}")
        elif other.shape != group.shape or other.categories != group.categories or other.words != group.words:
            found.append(f"observation {name!r}: the policy sees {group}, the environment gives {other}")
    mine, theirs = policy.action, env.action
    same_kind = (mine.kind, mine.n, mine.nvec, mine.dimensions) == (theirs.kind, theirs.n, theirs.nvec, theirs.dimensions)
    if not same_kind or not np.allclose(mine.low + mine.high, theirs.low + theirs.high, rtol=1e-4):
        found.append(f"action: the policy gives {mine}, the environment takes {theirs}")
    return found
