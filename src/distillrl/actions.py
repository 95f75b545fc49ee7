"""What a policy says of its action: frozen distributions over one leading shape ``[...]``, tensors only.

Each has ``mode``, ``sample``, ``log_prob``, ``entropy`` and ``kl``; ``kl`` is KL(self ‖ other), 0 at equality, summed
over action dimensions. ``Head`` says how a network's raw output becomes one of them, and is what an artifact stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillrl.errors import Missing
from distillrl.records import STATIC, ActionSpace

FORBIDDEN = -1e9
"""The logit of an action that the mask forbids: finite, so that 0 · log 0 is 0 in every divergence."""
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def gumbel(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise: the argmax of log-probabilities with it is a sample (Gumbel 1954; Maddison 2014, 1411.0030)."""
    return torch.empty(*shape).exponential_(generator=generator).log_().neg_()


@dataclass(frozen=True)
class Categorical:
    """One of A actions. ``logits`` [..., A], any scale; ``mask`` [..., A] bool, true where an action is legal."""

    logits: Tensor
    mask: Tensor | None = None

    @property
    def log_probs(self) -> Tensor:
        """[..., A]"""
        logits = self.logits.float() if self.logits.dtype == torch.float16 else self.logits
        return F.log_softmax(logits if self.mask is None else logits.masked_fill(~self.mask, FORBIDDEN), -1)

    @property
    def mode(self) -> Tensor:
        """[...] int64"""
        return (self.logits if self.mask is None else self.log_probs).argmax(-1)

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """[...] int64, by the Gumbel trick, which takes a generator at any leading shape; ``noise`` [..., A] is ``gumbel``'s, where it is drawn already."""
        logits = self.logits if self.mask is None and self.logits.dtype != torch.float16 else self.log_probs
        return (logits + (gumbel(logits.shape, generator) if noise is None else noise).to(logits.device)).argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] of an action [...] int."""
        return self.log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """[...] in nats."""
        log_probs = self.log_probs
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """[...] KL(self ‖ other), exact."""
        _same_family(self, other)
        mine = self.log_probs
        return (mine.exp() * (mine - other.log_probs)).sum(-1)

    def tempered(self, temperature: float) -> Categorical:
        """The distribution proportional to p^(1/τ): τ < 1 sharpens, τ > 1 softens."""
        return Categorical(self.logits / temperature, self.mask)


@dataclass(frozen=True)
class MultiCategorical:
    """Several independent choices. ``logits`` [..., Σ nvec]; an action is [..., len(nvec)] int64."""

    logits: Tensor
    nvec: tuple[int, ...] = field(metadata=STATIC)
    mask: Tensor | None = None

    @property
    def parts(self) -> tuple[Categorical, ...]:
        """One Categorical a choice."""
        logits = self.logits.split(list(self.nvec), -1)
        masks = (None,) * len(self.nvec) if self.mask is None else self.mask.split(list(self.nvec), -1)
        return tuple(Categorical(x, m) for x, m in zip(logits, masks, strict=True))

    @property
    def mode(self) -> Tensor:
        """[..., len(nvec)] int64"""
        return torch.stack([p.mode for p in self.parts], -1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """[..., len(nvec)] int64"""
        return torch.stack([p.sample(generator) for p in self.parts], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """[...]"""
        return _total([p.log_prob(a) for p, a in zip(self.parts, action.unbind(-1), strict=True)])

    def entropy(self) -> Tensor:
        """[...] in nats."""
        return _total([p.entropy() for p in self.parts])

    def kl(self, other: MultiCategorical) -> Tensor:
        """[...] KL(self ‖ other), exact: the sum over the choices."""
        _same_family(self, other)
        return _total([p.kl(q) for p, q in zip(self.parts, other.parts, strict=True)])

    def tempered(self, temperature: float) -> MultiCategorical:
        """Each choice proportional to p^(1/τ)."""
        return MultiCategorical(self.logits / temperature, self.nvec, self.mask)


@dataclass(frozen=True)
class Bernoulli:
    """Several independent switches. ``logits`` [..., A] of being on; an action is [..., A] int64 of 0 and 1."""

    logits: Tensor

    @property
    def mode(self) -> Tensor:
        """[..., A] int64; on where its probability is above one half, as torch and SB3 round."""
        return (self.logits > 0).long()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """[..., A] int64"""
        return (torch.empty_like(self.logits).uniform_(generator=generator) < self.logits.sigmoid()).long()

    def log_prob(self, action: Tensor) -> Tensor:
        """[...]"""
        return -F.binary_cross_entropy_with_logits(self.logits, action.to(self.logits.dtype), reduction="none").sum(-1)

    def entropy(self) -> Tensor:
        """[...] in nats."""
        return F.binary_cross_entropy_with_logits(self.logits, self.logits.sigmoid(), reduction="none").sum(-1)

    def kl(self, other: Bernoulli) -> Tensor:
        """[...] KL(self ‖ other), exact."""
        _same_family(self, other)
        p = self.logits.sigmoid()
        on = F.logsigmoid(self.logits) - F.logsigmoid(other.logits)
        off = F.logsigmoid(-self.logits) - F.logsigmoid(-other.logits)
        return (p * on + (1 - p) * off).sum(-1)

    def tempered(self, temperature: float) -> Bernoulli:
        """Each switch proportional to p^(1/τ)."""
        return Bernoulli(self.logits / temperature)


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian, ``mean`` and ``log_std`` [..., A], over actions between ``low`` and ``high`` [A].

    Not squashed: the density is of the unbounded action, and ``mode`` is the mean clipped to the bounds (what SB3's
    PPO plays). Squashed: the Gaussian is of u, and the action is low + (tanh(u) + 1)/2 · (high − low) (SAC;
    Haarnoja 2018, appendix C); mean and log_std are u's.
    """

    mean: Tensor
    log_std: Tensor
    low: Tensor = field(metadata=STATIC)
    high: Tensor = field(metadata=STATIC)
    squashed: bool = field(default=False, metadata=STATIC)

    @property
    def mode(self) -> Tensor:
        """[..., A] inside the bounds; for a squashed one the image of the mean, which is the action SAC plays."""
        return self._to_action(self.mean) if self.squashed else self.mean.clamp(self.low, self.high)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """[..., A]; may lie outside of the bounds where not squashed (the environment clips), so that log_prob holds."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        latent = self.mean + self.log_std.exp() * noise
        return self._to_action(latent) if self.squashed else latent

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] density of an action [..., A], the change of variables counted in."""
        if not self.squashed:
            return self._latent_log_prob(action)
        unit = (2 * (action - self.low) / (self.high - self.low) - 1).clamp(-1 + 1e-6, 1 - 1e-6)
        u = torch.atanh(unit)
        # log|da/du| = log((high − low)/2) + log(1 − tanh²u), the latter in its stable form.
        jacobian = ((self.high - self.low) / 2).log() + 2 * (math.log(2) - u - F.softplus(-2 * u))
        return self._latent_log_prob(u) - jacobian.sum(-1)

    def entropy(self) -> Tensor:
        """[...] in nats; of a squashed one there is no closed form, so it is refused."""
        if self.squashed:
            raise Missing("a squashed Gaussian has no closed-form entropy; estimate it as −log_prob of samples")
        return (self.log_std + 0.5 + _HALF_LOG_2PI).sum(-1)

    def kl(self, other: Gaussian) -> Tensor:
        """[...] KL(self ‖ other), exact; squashing keeps it, as both pass through the same map."""
        _same_family(self, other)
        if self.squashed != other.squashed:
            raise Missing("no closed-form KL between a tanh-squashed Gaussian and one that is not; use nll or mse")
        ratio = (2 * (self.log_std - other.log_std)).exp()
        distance = ((self.mean - other.mean) / other.log_std.exp()).square()
        return (0.5 * (ratio + distance - 1) + other.log_std - self.log_std).sum(-1)

    def tempered(self, temperature: float) -> Gaussian:
        """Proportional to p^(1/τ): the variance is multiplied by τ."""
        return Gaussian(self.mean, self.log_std + 0.5 * math.log(temperature), self.low, self.high, self.squashed)

    def _to_action(self, latent: Tensor) -> Tensor:
        return self.low + (torch.tanh(latent) + 1) * 0.5 * (self.high - self.low)

    def _latent_log_prob(self, x: Tensor) -> Tensor:
        return (-0.5 * ((x - self.mean) / self.log_std.exp()).square() - self.log_std - _HALF_LOG_2PI).sum(-1)


@dataclass(frozen=True)
class Deterministic:
    """An action and no distribution: ``value`` is [...] int64, or [..., A] (int64, or float in the space's units)."""

    value: Tensor
    low: Tensor | None = field(default=None, metadata=STATIC)
    high: Tensor | None = field(default=None, metadata=STATIC)

    @property
    def mode(self) -> Tensor:
        """The action, inside the bounds where it has bounds."""
        return self.value if self.low is None or self.high is None else self.value.clamp(self.low, self.high)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The action."""
        return self.mode

    def log_prob(self, action: Tensor) -> Tensor:
        """Refused: there is no density."""
        raise Missing("a deterministic policy gives no probability of an action; use mse, or a student with a distribution")

    def entropy(self) -> Tensor:
        """Refused: there is no density."""
        raise Missing("a deterministic policy has no entropy")

    def kl(self, other: Any) -> Tensor:
        """Refused: it would be infinite or undefined."""
        raise Missing("a deterministic action has no KL divergence to a distribution; use nll (of that action) or mse")

    def tempered(self, temperature: float) -> Deterministic:
        """Itself: sharper it can't be, and softer it doesn't know how."""
        return self


Action = Categorical | MultiCategorical | Bernoulli | Gaussian | Deterministic


@dataclass(frozen=True)
class Head:
    """How raw network outputs become an action record: the last step of a policy, stored in artifacts and exported.

    ``kind``: categorical, multicategorical, bernoulli, gaussian, squashed (Gaussian through tanh), deterministic
    (clipped), tanh (deterministic through tanh, scaled to the bounds), greedy (argmax of Q-values), scores (argmax of
    numbers that are no values).
    """

    kind: str
    space: ActionSpace
    low: Tensor
    high: Tensor

    @staticmethod
    def of(kind: str, space: ActionSpace) -> Head:
        """A head for a space; the bounds become tensors [A] once."""
        return Head(kind, space, torch.tensor(space.low, dtype=torch.float32), torch.tensor(space.high, dtype=torch.float32))

    @property
    def has_log_std(self) -> bool:
        """Whether decode() needs a log_std."""
        return self.kind in {"gaussian", "squashed"}

    def to(self, device: torch.device | str) -> Head:
        """The same on another device."""
        return Head(self.kind, self.space, self.low.to(device), self.high.to(device))

    def decode(self, raw: Tensor, log_std: Tensor | None = None, mask: Tensor | None = None) -> Action:
        """Raw outputs [..., space.size] → an action record; ``log_std`` [A] or [..., A] for Gaussians."""
        if self.kind == "categorical":
            return Categorical(raw, mask)
        if self.kind == "multicategorical":
            return MultiCategorical(raw, self.space.nvec, mask)
        if self.kind == "bernoulli":
            return Bernoulli(raw)
        if self.kind in {"greedy", "scores"}:
            return Deterministic(raw.argmax(-1))
        if self.kind == "tanh":
            return Deterministic(self.low + (torch.tanh(raw) + 1) * 0.5 * (self.high - self.low), self.low, self.high)
        if self.kind == "deterministic":
            return Deterministic(raw, self.low, self.high)
        assert log_std is not None, f"{self.kind} needs log_std"
        return Gaussian(raw, log_std.expand_as(raw), self.low, self.high, self.kind == "squashed")


HEADS = {"discrete": "categorical", "multidiscrete": "multicategorical", "multibinary": "bernoulli", "box": "gaussian"}
"""The head of a student, or of an actor-critic teacher, by kind of action space."""


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts, -1).sum(-1)


def _same_family(mine: Action, other: Action) -> None:
    if type(mine) is not type(other):
        raise Missing(
            f"no KL divergence between a {type(mine).__name__} and a {type(other).__name__} action; use nll or mse"
        )
