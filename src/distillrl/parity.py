"""``check``: an exported policy against the policy it was made from, on visited states and by the return that it earns itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from distillrl import envs, evaluation, stats, teachers
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Misconfigured
from distillrl.exporting import Export, loaded_with_passport, opened
from distillrl.policies import ACTION, Memory, Policy, agreement
from distillrl.records import Prediction, Spec

CLEAR = 1e-4
"""Where the two best raw outputs differ by more, float32 arithmetic in another order must not change the choice."""
CHUNK = 25
"""Episodes played at a time until enough states were visited."""


@dataclass(frozen=True)
class Check:
    """How an exported policy compares; plain numbers.

    ``agreement``: the share of ``states`` where both choose the same (see policies.agreement); ``clear_disagreements``: among
    those where the two best differ by more than 1e-4 (always 0 for a faithful float export); ``raw_error`` and ``action_error``:
    the greatest difference of a logit or mean, and of a box action's component (None where there is none), which may be ``allowed`` at
    most. ``exported`` and ``policy``: the return of each on the same episodes, with its interval, and ``difference`` of both in pairs.
    """

    to: str
    states: int
    agreement: float
    clear_disagreements: int
    raw_error: float | None
    action_error: float | None
    exported: stats.Interval | None
    policy: stats.Interval | None
    difference: stats.Interval | None
    allowed: float = 0.0

    @property
    def same_return(self) -> bool:
        """Whether the interval of the difference holds 0, or the export's return lies in the policy's interval, or differs in float32's last digits (true where none was measured).

        Chaos makes another episode of a last digit, and a few episodes in pairs may then all differ to one side.
        """
        if self.difference is None or self.policy is None or self.exported is None:
            return True
        noise = abs(self.difference.value) <= NOISE * max(1.0, abs(self.policy.value))
        return noise or self.difference.low <= 0 <= self.difference.high or self.policy.low <= self.exported.value <= self.policy.high

    @property
    def same_actions(self) -> bool:
        """Whether it chooses the same: no clear choice differs, no component of a box by more than ``allowed``; int8 rounds, and is judged by its return."""
        return self.to == "c-int8" or (self.clear_disagreements == 0 and (self.action_error or 0.0) <= self.allowed)

    @property
    def same(self) -> bool:
        """Whether what was exported is the policy still: it chooses the same, and earns as much."""
        return self.same_return and self.same_actions

    def sentences(self) -> list[str]:
        """What was found, in words."""
        errors = [f"of {what} {value:.1e}" for what, value in (("a logit, mean or Q-value", self.raw_error), ("an action", self.action_error)) if value is not None]
        clear = "" if self.action_error is not None else f", {self.clear_disagreements} of the others where the two best differ by more than {CLEAR:g}"
        said = [f"agreement {self.agreement:.2%} of {self.states:,} visited states{clear}" + (f"; greatest error {', '.join(errors)}" if errors else "")]
        if self.exported is not None and self.policy is not None and self.difference is not None:
            said.append(f"return {_told(self.exported)} as played by the export, {_told(self.policy)} by the policy; difference on the same episodes {_told(self.difference)}")
        wrong = "its actions differ" if self.action_error is not None else "clear choices differ"
        return [*said, "the export is the policy" if self.same else "the export is NOT the policy: " + (wrong if not self.same_actions else "its return differs")]


CLOSE = 1e-5
"""How far an action of a box may be off, of the largest number that is computed for one."""
NOISE = 1e-4
"""A share of the return: less is no difference, but the sum of float32's last digits."""


def _told(value: stats.Interval) -> str:
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"


class Shadowed:
    """A policy that plays, while another is asked the same; adds up how they differ until ``wanted`` states were seen."""

    def __init__(self, policy: Policy, other: Any, wanted: int) -> None:
        self.policy, self.other, self.wanted = policy, other, wanted
        self.spec, self.gives, self.info = policy.spec, policy.gives, policy.info
        self.states = self.same = self.clear = 0
        self.raw_error = self.action_error = 0.0
        self.largest = 1.0
        self.has_raw = False
        self.seen: list[dict[str, np.ndarray]] = []

    def init(self, n: int) -> Memory:
        """Both memories, side by side."""
        theirs = {} if self.other is None else self.other.init(n)
        return {**self.policy.init(n), **{f"other.{k}": v for k, v in theirs.items()}}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """The policy's own answer."""
        own = {k: v for k, v in memory.items() if not k.startswith("other.")}
        mine, after = self.policy.act(obs, own, starts, wants)
        if self.other is None:
            self.seen.append({k: v.numpy().copy() for k, v in obs.items()})
            self.states += len(next(iter(obs.values())))
            return mine, after
        theirs, held = self.other.act(obs, {k[6:]: v for k, v in memory.items() if k.startswith("other.")}, starts)
        if self.states < self.wanted:
            self._compare(mine, theirs)
        return mine, {**after, **{f"other.{k}": v for k, v in held.items()}}

    def _compare(self, mine: Prediction, theirs: Prediction) -> None:
        assert mine.action is not None
        assert theirs.action is not None
        same = agreement(theirs, mine)
        self.states += len(same)
        self.same += int(same.sum())
        raw = raw_outputs(mine)
        if raw is not None:
            self.has_raw = True
            self.raw_error = max(self.raw_error, float((raw - torch.as_tensor(self.other.raw)).abs().max()))
        if self.spec.action.kind == "box":
            self.action_error = max(self.action_error, float((mine.action.mode - theirs.action.mode).abs().max()))
            self.largest = max(self.largest, *(float(v.abs().max()) for v in (mine.action.mode, raw) if v is not None))
        else:
            sure = torch.ones_like(same) if raw is None else margin(raw, self.spec) > CLEAR
            self.clear += int((~same & sure).sum())


def raw_outputs(prediction: Prediction) -> Tensor | None:
    """[n, size] logits, means or Q-values, where a prediction has them."""
    for name in ("logits", "mean"):
        found = getattr(prediction.action, name, None)
        if found is not None:
            return found
    return prediction.q


def margin(raw: Tensor, spec: Spec) -> Tensor:
    """[n]: how far the best raw output is ahead of the second; the least of several choices; of switches the distance to 0."""
    if spec.action.kind == "multibinary":
        return raw.abs().amin(-1)
    parts = torch.split(raw, list(spec.action.nvec), -1) if spec.action.kind == "multidiscrete" else (raw,)
    gaps = [p.topk(2, -1).values for p in parts if p.shape[-1] > 1]
    return torch.stack([g[..., 0] - g[..., 1] for g in gaps], -1).amin(-1) if gaps else torch.full(raw.shape[:-1], np.inf)


def check(exported: Export, policy: Any, env: Any, *, states: int = 10_000, episodes: int = 100, seed: int = 0) -> Check:
    """Compare what was exported with the policy: on ``states`` that the policy visits, then on ``episodes`` that each plays itself.

    ``env`` is a gymnasium id, a function that makes one, or EnvOptions. ``episodes`` 0 plays none. Raises Missing where
    what runs the export isn't here, Misconfigured where it was made for what another environment gives.
    """
    if exported.sampled:
        raise Misconfigured("check compares most likely actions; this export samples, so export it once more without --sampled to check it")
    loaded = fitted(policy, env)
    options = envs.shown(_options(env), loaded)
    if found := envs.differences(exported.policy.spec, loaded.spec):
        raise Misconfigured(f"this was exported without its environment, which gives something else than the file says: export it with env={envs.name_of(options)!r}; " + "; ".join(found))
    other = opened(exported)
    shadowed = Shadowed(loaded, other, states)
    _visit(shadowed, options, states, seed)
    box = loaded.spec.action.kind == "box"
    played, own, gap = None, None, None
    if episodes:
        seeds = Seeds(seed, "verdict")
        theirs, mine = (evaluation.play(p, options, episodes, seeds).returns for p in (other, loaded))
        played, own, gap = stats.mean_interval(theirs, seed), stats.mean_interval(mine, seed), stats.paired_difference(theirs, mine, seed)
    return Check(
        exported.to,
        shadowed.states,
        shadowed.same / shadowed.states,
        shadowed.clear,
        shadowed.raw_error if shadowed.has_raw else None,
        shadowed.action_error if box else None,
        played,
        own,
        gap,
        CLOSE * shadowed.largest,
    )


def visited(policy: Any, env: Any, states: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """Observations {group: [n, *shape]} that a policy visits, n ≥ ``states``, in the order of visiting."""
    loaded = fitted(policy, env)
    watched = Shadowed(loaded, None, states)
    _visit(watched, envs.shown(_options(env), loaded), states, seed)
    return {name: np.concatenate([s[name] for s in watched.seen]) for name in loaded.spec.observations}


def fitted(policy: Any, env: Any) -> Policy:
    """The policy for what an environment gives, as ``teachers.fit`` has it; Misconfigured where the environment is another than the policy's."""
    loaded, _ = loaded_with_passport(policy)
    options = envs.shown(_options(env), loaded)
    if isinstance(options.id, VectorEnv):
        return loaded
    vector = envs.make(options, envs.slots_of(options, 1), Seeds(0, "dry"))
    spec = vector.spec
    vector.close()
    made = teachers.fit(loaded, spec, envs.name_of(options))
    if found := envs.differences(made.spec, spec):
        raise Misconfigured(f"the policy does not fit {envs.name_of(options)}: " + "; ".join(found))
    return made


def _options(env: Any) -> EnvOptions:
    return env if isinstance(env, EnvOptions) else EnvOptions(env)


def _visit(policy: Shadowed, options: EnvOptions, states: int, seed: int) -> None:
    """Play until enough states were seen; each chunk of episodes on seeds of its own, of the stream of training."""
    first = 0
    while policy.states < states:
        evaluation.play(policy, options, CHUNK, Seeds(seed, "train", first=first))
        first += CHUNK
