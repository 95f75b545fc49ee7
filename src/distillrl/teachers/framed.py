"""A network of another kind than layers behind a stack of frames: Atari's weights take four, its environment gives one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from distillrl.policies import ACTION, Memory, Policy
from distillrl.records import Prediction, Spec
from distillrl.senses import Sense, Stack
from distillrl.teachers.fitting import frames


class Framed(nn.Module):
    """A policy with a sense before it; what both remember is one memory."""

    def __init__(self, policy: Any, sense: Sense, note: str) -> None:
        super().__init__()
        self.policy, self.sense = policy, sense
        self.spec: Spec = replace(policy.spec, observations=dict(sense.observations))
        self.gives: frozenset[str] = policy.gives
        self.info: Mapping[str, Any] = {**policy.info, "notes": [*policy.info.get("notes", ()), note]}

    def init(self, n: int) -> Memory:
        """The frames, and what the policy remembers."""
        return {**self.sense.init(n), **self.policy.init(n)}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See policies.Policy."""
        mine = {k: v for k, v in memory.items() if k.startswith("sense.")}
        groups, mine = self.sense(obs, mine, starts)
        prediction, theirs = self.policy.act(groups, {k: v for k, v in memory.items() if k not in mine}, starts, wants)
        return prediction, {**mine, **theirs}


def fit(policy: Policy, spec: Spec) -> Policy:
    """The policy behind a stack of an environment's frames, where it takes several of them; else the policy itself."""
    (name, wanted), *more = policy.spec.observations.items()
    have = spec.observations.get(name)
    if more or have is None or not isinstance(policy, nn.Module) or not frames(have, wanted.shape):
        return policy
    count = wanted.shape[0] // have.shape[0]
    step = Stack(count, {name: have.shape}, {name: 0}, {name: have.dtype})
    return Framed(policy, Sense({name: have}, [step]), f"it sees the last {count} observations at once, which is concluded from the number of channels alone")
