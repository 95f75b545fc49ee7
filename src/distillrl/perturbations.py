"""A policy with something in its way: noisy, missing or late observations, noisy, late or repeated actions, an attacker.

Each is a policy around a policy, so that whatever plays or measures policies can play and measure these, on any vector
environment. What it remembers is in its memory, cleared where ``starts``; what it draws comes from its own generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distillrl.actions import Action, Categorical, Deterministic, Gaussian
from distillrl.errors import Misconfigured, nearest
from distillrl.policies import ACTION, Memory, Policy
from distillrl.records import Prediction, Spec

KINDS = {
    "observation noise": "standard deviations",
    "sensor dropout": "share of readings lost",
    "observation delay": "steps",
    "action noise": "share of the range, or of random choices",
    "action delay": "steps",
    "sticky actions": "probability of repeating",
    "worst case": "ε, standard deviations",
}
"""Each kind of perturbation and the unit of its level."""
STEPS = 5
"""Gradient steps of the attack."""


def applies(kind: str, spec: Spec) -> bool:
    """Whether a perturbation can change anything: what is yes or no, or a category, is not nearly another, so no noise and no attack moves it."""
    if kind not in {"observation noise", "worst case"}:
        return True
    soft = [g for g in spec.observations.values() if not g.categories and g.dtype != "bool"]
    return any(kind == "observation noise" or g.dtype.startswith("float") or g.dtype == "uint8" for g in soft)


@dataclass
class Perturbed:
    """``policy`` with a perturbation of a kind and a level; ``scale`` {group: [...shape]} is one standard deviation of each number.

    Kinds: see KINDS. Noise is Gaussian (images are rounded and clipped to their range); a lost reading is 0; a delay of
    k shows the observation, or plays the action, of k steps ago (the episode's first until there is one); action noise
    is Gaussian in shares of half the range, or a uniformly random choice with that probability; a sticky action is the
    last one again with that probability (Machado 2018); the worst case is projected gradient ascent within ±ε of each
    number on the divergence from what the policy would have done (Madry 2018), or the worst of as many random corners
    where the policy has no gradient.
    """

    policy: Policy
    kind: str
    level: float
    scale: Mapping[str, Tensor]
    generator: torch.Generator
    gives: frozenset[str] = ACTION
    info: Mapping[str, Any] = field(default_factory=dict)
    spec: Spec = field(init=False)

    def __post_init__(self) -> None:
        self.spec = self.policy.spec
        if self.kind not in KINDS:
            raise Misconfigured(f"there is no perturbation {self.kind!r}{nearest(self.kind, KINDS)}")
        if self.level < 0 or (self.kind.endswith("delay") and self.level != int(self.level)):
            raise Misconfigured(f"{self.kind} of {self.level}: a number of {KINDS[self.kind]} from 0 on is right")

    def init(self, n: int) -> Memory:
        """The policy's memory, and the queue of a delay or the last action, empty until the first step."""
        return self.policy.init(n)

    def act(
        self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION
    ) -> tuple[Prediction, Memory]:
        """See Policy.act; leading shape [n] only. The action comes out as Deterministic where it was tampered with."""
        kept = {k: v for k, v in memory.items() if k.startswith("perturbed.")}
        own = {k: v for k, v in memory.items() if k not in kept}
        begin = starts if starts is not None else torch.zeros(len(next(iter(obs.values()))), dtype=torch.bool)
        seen = dict(obs)
        if self.kind == "observation noise":
            seen = {k: self._noisy(k, v) for k, v in seen.items()}
        elif self.kind == "sensor dropout":
            seen = {k: torch.where(self._uniform(v.shape) < self.level, torch.zeros_like(v), v) for k, v in seen.items()}
        elif self.kind == "observation delay":
            seen = {k: self._late(f"perturbed.{k}", v, begin, kept) for k, v in seen.items()}
        elif self.kind == "worst case" and self.level > 0:
            seen = self._attacked(seen, own, begin)
        prediction, own = self.policy.act(seen, own, starts, wants)
        if self.kind in {"action noise", "action delay", "sticky actions"}:
            assert prediction.action is not None
            action = self._tampered(prediction.action.mode, begin, kept)
            low, high = getattr(prediction.action, "low", None), getattr(prediction.action, "high", None)
            prediction = Prediction(Deterministic(action, low, high))
        return prediction, {**own, **kept}

    # ── observations ──────────────────────────────────────────────────────────────────────────────────────────────

    def _noisy(self, name: str, x: Tensor) -> Tensor:
        group = self.spec.observations[name]
        if group.categories or x.dtype == torch.bool:
            return x  # a category isn't nearly another one
        noise = torch.empty(x.shape).normal_(generator=self.generator) * self.scale[name] * self.level
        return _within(x.float() + noise, x, group.low, group.high)

    def _late(self, key: str, x: Tensor, starts: Tensor, kept: Memory) -> Tensor:
        """What came ``level`` steps ago; the queue [n, level, ...] begins full of the episode's first."""
        k = int(self.level)
        if not k:
            return x
        first = x.unsqueeze(1).expand(-1, k, *x.shape[1:])
        queue = kept.get(key)
        queue = first.clone() if queue is None else torch.where(starts.view(-1, *[1] * x.dim()), first, queue)
        kept[key] = torch.cat([queue[:, 1:], x.unsqueeze(1)], 1)
        return queue[:, 0]

    def _attacked(self, obs: dict[str, Tensor], memory: Memory, starts: Tensor) -> dict[str, Tensor]:
        """Projected gradient ascent, or random corners where the policy has no gradient."""
        soft = {k: v for k, v in obs.items() if v.is_floating_point() or v.dtype == torch.uint8}
        if not soft:
            return obs
        reach = {k: self.scale[k] * self.level for k in soft}
        with torch.inference_mode(False), torch.enable_grad():
            clean = {k: v.clone() for k, v in obs.items()}
            past = {k: v.clone() for k, v in memory.items()}
            begin = starts.clone()
            aim, _ = self.policy.act(clean, past, begin, ACTION)
            assert aim.action is not None
            target = _detached(aim.action)
            moved = {k: clean[k].float() + (self._uniform(v.shape) * 2 - 1) * reach[k] for k, v in soft.items()}
            for _ in range(STEPS):
                leaves = {k: v.detach().requires_grad_() for k, v in moved.items()}
                loss = self._loss({**clean, **leaves}, past, begin, target)
                if loss is None or not loss.requires_grad:
                    moved = self._corner(clean, past, begin, target, reach)
                    break
                grads = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
                for (k, leaf), grad in zip(leaves.items(), grads, strict=True):
                    step = torch.zeros_like(leaf) if grad is None else grad.sign()
                    near = clean[k].float()
                    ahead = leaf.detach() + 2.5 / STEPS * reach[k] * step
                    moved[k] = torch.maximum(torch.minimum(ahead, near + reach[k]), near - reach[k])
            fitted = {k: _within(v.detach(), clean[k], *self._range(k)) for k, v in moved.items()}
        return {**obs, **fitted}

    def _loss(self, obs: dict[str, Tensor], past: Memory, starts: Tensor, target: Action) -> Tensor | None:
        """[n] what the attack makes large, None where the policy gives it no gradient."""
        try:
            action = self.policy.act(obs, past, starts, ACTION)[0].action
        except RuntimeError:  # a policy in numpy, which torch gives no tensor that wants a gradient
            return None
        assert action is not None
        return _away(action, target)

    def _corner(
        self, clean: dict[str, Tensor], past: Memory, starts: Tensor, target: Action, reach: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Of as many random corners as there would be gradient steps, the one whose action lies farthest, state by state."""
        best = {k: clean[k].float() for k in reach}
        farthest = torch.full((len(starts),), -1.0)
        for _ in range(STEPS):
            tried = {k: clean[k].float() + (self._uniform(clean[k].shape) < 0.5).float().mul(2).sub(1) * reach[k] for k in reach}
            given = {k: _within(v, clean[k], *self._range(k)) for k, v in tried.items()}
            action = self.policy.act({**clean, **given}, past, starts, ACTION)[0].action
            assert action is not None
            gap = (action.mode != target.mode).float() if not target.mode.is_floating_point() else (action.mode - target.mode).abs()
            gap = gap.reshape(len(gap), -1).sum(-1)
            better = gap > farthest
            farthest = torch.where(better, gap, farthest)
            best = {k: torch.where(better.view(-1, *[1] * (v.dim() - 1)), tried[k], v) for k, v in best.items()}
        return best

    # ── actions ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _tampered(self, action: Tensor, starts: Tensor, kept: Memory) -> Tensor:
        if self.kind == "action delay":
            return self._late("perturbed.action", action, starts, kept)
        if self.kind == "sticky actions":
            last = kept.get("perturbed.action", action)
            again = (self._uniform((len(action),)) < self.level) & ~starts
            kept["perturbed.action"] = torch.where(again.view(-1, *[1] * (action.dim() - 1)), last, action)
            return kept["perturbed.action"]
        space = self.spec.action
        if space.kind == "box":
            low, high = torch.tensor(space.low), torch.tensor(space.high)
            half = torch.where((high - low).isfinite(), (high - low) / 2, torch.ones_like(low))
            return action + torch.empty(action.shape).normal_(generator=self.generator) * half * self.level
        many = torch.tensor({"discrete": (space.n,), "multidiscrete": space.nvec}.get(space.kind, (2,)), dtype=torch.float32)
        random = (self._uniform(action.shape) * (many[0] if action.dim() == 1 else many)).long()
        return torch.where(self._uniform(action.shape) < self.level, random, action)

    def _uniform(self, shape: Any) -> Tensor:
        return torch.empty(shape).uniform_(generator=self.generator)

    def _range(self, name: str) -> tuple[float | None, float | None]:
        return self.spec.observations[name].low, self.spec.observations[name].high


def _within(x: Tensor, like: Tensor, low: float | None, high: float | None) -> Tensor:
    """Numbers of the kind that the observation has; whole ones (an image) are rounded and stay inside their bounds.

    Real ones are not clipped: an environment's declared bounds are often not those of what it gives (EnvPool's aren't).
    """
    if like.is_floating_point():
        return x.to(like.dtype)
    x = x.round()
    return (x if low is None or high is None else x.clamp(low, high)).to(like.dtype)


def _detached(action: Action) -> Action:
    """The target of an attack: a constant."""
    if isinstance(action, Categorical):
        return Categorical(action.logits.detach(), action.mask)
    if isinstance(action, Gaussian):
        return Gaussian(action.mean.detach(), action.log_std.detach(), action.low, action.high, action.squashed)
    return Deterministic(action.mode.detach())


def _away(action: Action, target: Action) -> Tensor | None:
    """[n] what the attack makes large: −log p of the choice that was the most likely, or the squared way of the action."""
    if isinstance(action, Gaussian):
        goal = target.mean if isinstance(target, Gaussian) else target.mode
        return (action.mean - goal).square().sum(-1)
    if isinstance(action, Deterministic):
        return (action.value - target.mode).square().reshape(len(action.value), -1).sum(-1) if action.value.is_floating_point() else None
    return -action.log_prob(target.mode)
