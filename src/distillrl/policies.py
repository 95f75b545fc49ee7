"""What every policy can do, teacher or student, and ``predict`` for whoever just wants an action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distillrl import texts
from distillrl.actions import Bernoulli, Categorical, Gaussian, MultiCategorical
from distillrl.errors import Misconfigured
from distillrl.records import Group, Prediction, Spec

Memory = dict[str, Tensor]
ACTION: frozenset[str] = frozenset({"action"})


def as_words(wants: frozenset[str], whose: str) -> frozenset[str]:
    """An objective's ``teacher.features[pi]`` → ``features.pi``, a policy's word for it; those of ``whose`` alone, and the action."""
    mine = {w.removeprefix(f"{whose}.") for w in wants if w.startswith(f"{whose}.")}
    return frozenset(w.replace("features[", "features.").rstrip("]") for w in mine) | ACTION


class Policy(Protocol):
    """A policy: teacher and student give the same record for the same question."""

    spec: Spec
    gives: frozenset[str]
    """The knowledge that it can be asked for: action, distribution, q, quantiles, value, uncertainty, features.NAME."""
    info: Mapping[str, Any]
    """What a person wants to know of it: format, algorithm, layers, normaliser, notes; plain JSON data."""

    def init(self, n: int) -> Memory:
        """Memory for ``n`` environments, {name: [n, ...]}; empty for most."""

    def act(
        self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION
    ) -> tuple[Prediction, Memory]:
        """Predict for observations {group: [..., *shape]}; ``starts`` [...] is true where an episode begins."""


def acting_parameters(policy: Any) -> int | None:
    """Parameters on the path from observation to action (no critic, no training head); None where unknown."""
    count = getattr(policy, "acting_parameters", None)
    found = count() if callable(count) else None
    return None if found is None else int(found)


def played(prediction: Prediction, sampled: bool, generator: torch.Generator | None = None) -> Tensor:
    """The action that a prediction plays: its most likely one, or a sample."""
    assert prediction.action is not None
    return prediction.action.sample(generator) if sampled else prediction.action.mode


@dataclass
class Player:
    """A loaded policy with SB3's habits: ``action, memory = player.predict(obs, memory, starts)``."""

    policy: Policy
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def spec(self) -> Spec:
        """What it sees and does."""
        return self.policy.spec

    @property
    def info(self) -> Mapping[str, Any]:
        """What a person wants to know of it."""
        return self.policy.info

    def predict(
        self, obs: Any, memory: Memory | None = None, starts: Any = None, deterministic: bool = True
    ) -> tuple[Any, Memory]:
        """Action for one observation or a batch, as numpy in the environment's own units, and the memory for the next call.

        ``obs`` is an array (or a dict of arrays, for a dict observation), with or without a leading batch dimension;
        ``memory`` is None at first, then what the last call gave; ``starts`` [n] is true where an episode begins.
        Raises Misconfigured where the shape isn't the policy's.
        """
        groups, batched, n = as_groups(obs, self.spec)
        if memory is None:
            memory = self.policy.init(n)
        begin = torch.as_tensor(np.broadcast_to(np.asarray(False if starts is None else starts), (n,)).copy())
        with torch.inference_mode():
            prediction, memory = self.policy.act(groups, memory, begin)
            action = to_environment(played(prediction, not deterministic, self.generator), self.spec)
        return (action if batched else action[0]), memory


def as_groups(obs: Any, spec: Spec) -> tuple[dict[str, Tensor], bool, int]:
    """Tensors {group: [n, *shape]} of one observation or a batch, whether it was a batch, and n."""
    if isinstance(obs, tuple) and all(name.isdigit() for name in spec.observations):  # of a Tuple space
        obs = {str(i): part for i, part in enumerate(obs)}
    given = obs if isinstance(obs, Mapping) else {next(iter(spec.observations)): obs}
    if not isinstance(obs, Mapping) and len(spec.observations) > 1:
        raise Misconfigured(f"this policy sees the groups {', '.join(spec.observations)}: give a dict of arrays")
    groups, batched, n = {}, True, 1
    for name, group in spec.observations.items():
        if name not in given:
            raise Misconfigured(f"the observation lacks the group {name!r} ({group}); it has {', '.join(map(str, given))}")
        array = np.asarray(texts.given(given[name], group))
        if array.shape == group.shape:
            array, batched = array[None], False
        if array.shape[1:] != group.shape or array.ndim != len(group.shape) + 1:
            raise Misconfigured(
                f"observation {name!r}: shape {array.shape} was given, {group.shape} or (n, …) with those is right"
            )
        groups[name] = torch.as_tensor(np.ascontiguousarray(array).astype(group.dtype, copy=False))
        n = len(array)
    return groups, batched, n


def to_environment(action: Tensor, spec: Spec) -> np.ndarray:
    """An action [n] or [n, A] in the environment's form: ``start`` added, clipped to a box, its shape and dtype."""
    space = spec.action
    array = action.cpu().numpy()
    if space.kind == "discrete":
        return array + space.start if space.start else array
    if space.kind == "box":
        array = np.clip(array, np.asarray(space.low, array.dtype), np.asarray(space.high, array.dtype))
    return array.reshape(len(array), *space.shape).astype(space.dtype, copy=False)


def flatten(groups: Mapping[str, Tensor], described: Mapping[str, Group]) -> Tensor:
    """One float vector [..., F] of all groups, in the sorted order of their names (as SB3's CombinedExtractor)."""
    names = sorted(groups) if len(groups) > 1 else list(groups)
    flat = [_flat(groups[name], len(described[name].shape)) for name in names]
    return flat[0] if len(flat) == 1 else torch.cat(flat, -1)


def _flat(x: Tensor, rank: int) -> Tensor:
    if rank == 0:
        x = x.unsqueeze(-1)
    elif rank > 1:
        x = x.flatten(x.dim() - rank)
    return x if x.dtype == torch.float32 else x.float()


def agreement(mine: Prediction, theirs: Prediction, spread: Tensor | None = None) -> Tensor:
    """[...] bool: whether both choose the same action.

    For a box, whether each component differs by at most 5 % of its range, or of ``spread`` [A] (the teacher's standard
    deviation over states) where it has no bounds; of 1, in its units, where the spread isn't known either.
    """
    assert mine.action is not None
    assert theirs.action is not None
    a, b = mine.action.mode, theirs.action.mode
    low, high = getattr(theirs.action, "low", None), getattr(theirs.action, "high", None)
    if low is None or high is None:
        same = a == b
        return same if same.dim() == _lead(theirs, mine) else same.all(-1)
    width = high - low
    width = torch.where(width.isfinite(), width, torch.ones_like(width) if spread is None else spread)
    return ((a - b).abs() <= 0.05 * width).all(-1)


def unbounded(prediction: Prediction) -> bool:
    """Whether its action is a box with a component that has no bounds."""
    low, high = getattr(prediction.action, "low", None), getattr(prediction.action, "high", None)
    return low is not None and high is not None and not bool((high - low).isfinite().all())


def distance(mine: Prediction, theirs: Prediction) -> Tensor | None:
    """[...] the root mean square, over components, of the difference between both actions of a box, in half ranges (in its units where there
    are no bounds); None where actions are choices.
    """
    assert mine.action is not None
    assert theirs.action is not None
    low, high = getattr(theirs.action, "low", None), getattr(theirs.action, "high", None)
    if low is None or high is None:
        return None
    half = torch.where((high - low).isfinite(), (high - low) / 2, torch.ones_like(high))
    apart: Tensor = (mine.action.mode - theirs.action.mode) / half
    return apart.square().mean(-1).sqrt()


def _lead(*predictions: Prediction) -> int:
    """How many leading dimensions their states have, as the first with logits tells: a rule's actions don't say whether they are one choice or several."""
    actions = [p.action for p in predictions]
    for action in actions:
        if isinstance(action, Categorical | MultiCategorical | Bernoulli):
            return action.logits.dim() - 1
    first = actions[0]
    assert first is not None
    return first.mode.dim() - (1 if isinstance(first, Gaussian) else 0)


def to_device(policy: Any, device: torch.device | str) -> Any:
    """Move a policy made of torch modules; others stay."""
    return policy.to(device) if isinstance(policy, nn.Module) else policy
