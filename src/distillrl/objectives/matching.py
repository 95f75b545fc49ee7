"""Bringing teacher and student to the same family of distributions, so that a divergence between them is defined.

A greedy policy that gives Q-values is softmax(Q/τ); a discrete action without a distribution is the distribution that is
sure of it; a mask of legal actions holds for both; a Gaussian is projected onto the student's family (below).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from distillrl.actions import FORBIDDEN, Action, Bernoulli, Categorical, Deterministic, Gaussian, MultiCategorical
from distillrl.errors import Missing
from distillrl.records import Batch, Prediction, need

GRID = 20
"""Marks from −6 to 6 standard deviations of a Gaussian, and of what it is compared with, between which integrals are summed."""
MARGIN = 1e-3
"""An action at a bound has no finite latent under tanh; it is taken this far inside, as a share of half the range."""

Density = Callable[[Tensor, Tensor], Tensor]
"""(log p, log q) → the integrand of a divergence; homogeneous of degree 1 in (p, q), as every f-divergence is."""


def distribution(prediction: Prediction, temperature: float, who: str, whose: str) -> Action:
    """The distribution that a prediction acts by, tempered: p^(1/τ); softmax(Q/τ) of a greedy one that gives Q [..., A]."""
    if prediction.q is not None and (prediction.action is None or _is_greedy(prediction.action)):
        action: Action = Categorical(prediction.q)
    else:
        action = need(prediction, "action", who, whose)
    return action if temperature == 1.0 else action.tempered(temperature)


def pair(
    student: Prediction, batch: Batch, who: str, teacher_temperature: float = 1.0, student_temperature: float = 1.0
) -> tuple[Action, Action]:
    """Teacher's and student's distributions in one family; raises Missing with what would do where there is none."""
    mine = student_distribution(student, who, student_temperature)
    theirs = distribution(batch.teacher, teacher_temperature, who, "this teacher")
    if isinstance(theirs, Deterministic):
        theirs = sure(theirs, mine, who)
    if isinstance(theirs, Gaussian) and isinstance(mine, Gaussian):
        return (theirs if theirs.squashed == mine.squashed else projected(theirs, mine.squashed)), mine
    if type(theirs) is not type(mine):
        raise Missing(
            f"{who}: the teacher's action is a {type(theirs).__name__}, the student's a {type(mine).__name__}; both must act in one space"
        )
    return _with_one_mask(theirs, mine)


def student_distribution(student: Prediction, who: str, temperature: float = 1.0) -> Action:
    """The student's distribution; raises Missing where its action is deterministic."""
    mine = distribution(student, temperature, who, "this student")
    if isinstance(mine, Deterministic):
        raise Missing(
            f"{who} needs a student with a distribution, but this student's action is deterministic; use mse or huber, or another head"
        )
    return mine


def sure(action: Deterministic, like: Action, who: str) -> Action:
    """The distribution of ``like``'s family with all probability on one discrete action."""
    if isinstance(like, Gaussian):
        raise Missing(f"{who} needs the teacher's distribution, but this teacher gives only an action; use nll, mse or huber")
    if isinstance(like, Categorical):
        return Categorical(_one_hot_logits(action.value, like.logits.shape[-1], like.logits))
    if isinstance(like, MultiCategorical):
        parts = [_one_hot_logits(a, n, like.logits) for a, n in zip(action.value.unbind(-1), like.nvec, strict=True)]
        return MultiCategorical(torch.cat(parts, -1), like.nvec)
    return Bernoulli((1 - 2 * action.value.to(like.logits.dtype)) * FORBIDDEN)  # type: ignore[union-attr]  # Deterministic was refused


def is_sure(batch: Batch) -> bool:
    """Whether the teacher gives an action alone: neither a distribution nor Q-values."""
    action = batch.teacher.action
    return isinstance(action, Deterministic) and (batch.teacher.q is None or not _is_greedy(action))


def needs_distribution(batch: Batch, who: str) -> None:
    """Raise Missing where the teacher gives an action alone, from which the divergence would be infinite."""
    if is_sure(batch):
        raise Missing(
            f"{who} needs the teacher's distribution, but this teacher gives only an action; use nll, forward_kl (discrete) or mse"
        )


def _is_greedy(action: Action) -> bool:
    """Whether the action is one choice without a distribution, so that Q-values of the choices can stand for it."""
    return isinstance(action, Deterministic) and not action.value.is_floating_point()


def projected(gaussian: Gaussian, squashed: bool) -> Gaussian:
    """The Gaussian of the other kind (tanh-squashed or not) that is nearest in forward KL: the same mean and variance.

    Of a squashed one these are the mean and variance of its actions; of an unbounded one those of the latent
    atanh(action), the action clipped to the range as the environment does. KL(T‖S) then differs from KL(projection‖S)
    by a constant that no student of that family could remove, so the gradient is the same and equality gives 0.
    By quadrature, within 1e-3 of a standard deviation.
    """
    low, high = gaussian.low.unsqueeze(-1), gaussian.high.unsqueeze(-1)
    if squashed:
        y, weights = _clipped_points(gaussian)
    else:
        u, weights = _latent_points(gaussian)
        y = low + (torch.tanh(u) + 1) * 0.5 * (high - low)
    mean = (y * weights).sum(-1)
    variance = ((y - mean.unsqueeze(-1)).square() * weights).sum(-1)
    return Gaussian(mean, 0.5 * variance.clamp_min(1e-12).log(), gaussian.low, gaussian.high, squashed)


def to_latent(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The atanh of an action scaled to −1 … 1, at most ``1 − MARGIN`` so that it is finite."""
    return torch.atanh((2 * (action - low) / (high - low) - 1).clamp(-1 + MARGIN, 1 - MARGIN))


def inside(action: Tensor, family: Action) -> Tensor:
    """The action, moved off the bounds where ``family`` is a squashed Gaussian, whose density ends there."""
    if not isinstance(family, Gaussian) or not family.squashed:
        return action
    edge = 0.5 * MARGIN * (family.high - family.low)
    return action.clamp(family.low + edge, family.high - edge)


def expected_log_jacobian(gaussian: Gaussian) -> Tensor:
    """[...] E[log |da/du|] of a squashed Gaussian's map from latent u to action a, by quadrature."""
    u, weights = _latent_points(gaussian)
    per_dimension = 2 * ((math.log(2) - u - F.softplus(-2 * u)) * weights).sum(-1)
    return (((gaussian.high - gaussian.low) / 2).log() + per_dimension).sum(-1)


def integral(teacher: Action, student: Action, density: Density) -> Tensor:
    """[...] ∫ density(log p, log q) of each action dimension, summed over dimensions; p the teacher's, q the student's.

    Exact for discrete actions; for Gaussians by quadrature, within 2e-4 for smooth densities whatever the two spreads (2e-3
    for total variation, which has a kink). Both must be of one family. Squashing changes nothing.
    """
    if isinstance(teacher, Gaussian) and isinstance(student, Gaussian):
        return _gaussian_integral(teacher, student, density)
    parts = zip(_log_probs(teacher), _log_probs(student), strict=True)
    return torch.stack([density(p, q).sum(-1) for p, q in parts], -1).sum(-1)


def sampled_integral(teacher: Action, student: Action, density: Density, samples: int, generator: torch.Generator) -> Tensor:
    """[...] ∫ density(log p, log q) over whole actions, all dimensions jointly, from ``samples`` actions of each of the two.

    The actions come from the even mixture m of both, held fixed, and each counts density(p/m, q/m), which is bounded
    wherever the divergence is: the estimate and its gradient are unbiased, with a variance of order 1 / (2 · samples).
    """
    total = torch.zeros(())
    for source in (teacher, student):
        for _ in range(samples):
            action = source.sample(generator).detach()
            p, q = teacher.log_prob(action), student.log_prob(action)
            mixture = (torch.logaddexp(p, q) - math.log(2)).detach()
            total = total + density(p - mixture, q - mixture)
    return total / (2 * samples)


def _gaussian_integral(teacher: Gaussian, student: Gaussian, density: Density) -> Tensor:
    x, widths = _pieces(_marks(teacher), _marks(student))
    return (density(_log_density(teacher, x), _log_density(student, x)) * widths).sum((-2, -1))


def _latent_points(gaussian: Gaussian) -> tuple[Tensor, Tensor]:
    """Latents u [..., A, points] and weights that sum to 1: means over a Gaussian, also one far wider than tanh's bend."""
    bend = torch.linspace(-4, 4, GRID, dtype=gaussian.mean.dtype, device=gaussian.mean.device)
    u, widths = _pieces(_marks(gaussian), bend.expand(*gaussian.mean.shape, GRID))
    weights = _log_density(gaussian, u).exp() * widths
    return u, weights / weights.sum(-1, keepdim=True)


def _clipped_points(gaussian: Gaussian) -> tuple[Tensor, Tensor]:
    """The same of the latent atanh(action) of an unbounded Gaussian; what lies beyond a bound is a point just inside of it."""
    scale = 2 / (gaussian.high - gaussian.low)
    unit = Gaussian((gaussian.mean - gaussian.low) * scale - 1, gaussian.log_std + scale.log(), gaussian.low, gaussian.high)
    end = 1 - MARGIN
    bend = torch.linspace(-math.atanh(end), math.atanh(end), GRID, dtype=unit.mean.dtype, device=unit.mean.device)
    u, widths = _pieces(torch.atanh(_marks(unit).clamp(-end, end)), bend.expand(*unit.mean.shape, GRID))
    action = torch.tanh(u)
    inner = _log_density(unit, action).exp() * (1 - action.square()) * widths
    std = unit.log_std.exp()
    beyond = torch.special.ndtr(torch.stack([(-end - unit.mean) / std, (unit.mean - end) / std], -1))
    ends = torch.tensor([-1.0, 1.0], dtype=u.dtype, device=u.device).expand_as(beyond) * math.atanh(end)
    weights = torch.cat([inner, beyond], -1)
    return torch.cat([u, ends], -1), weights / weights.sum(-1, keepdim=True)


def _marks(gaussian: Gaussian) -> Tensor:
    """[..., A, GRID] from 6 standard deviations below the mean to 6 above."""
    marks = torch.linspace(-6, 6, GRID, dtype=gaussian.mean.dtype, device=gaussian.mean.device)
    return gaussian.mean.unsqueeze(-1) + gaussian.log_std.exp().unsqueeze(-1) * marks


def _pieces(marks: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Points and weights of two-point Gauss–Legendre on every piece between the marks of both, each seen at its own scale."""
    edges = torch.cat([marks, others], -1).sort(-1).values
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2
    return torch.cat([middle - half * 3**-0.5, middle + half * 3**-0.5], -1), torch.cat([half, half], -1)


def _log_density(gaussian: Gaussian, x: Tensor) -> Tensor:
    """Log-density of each dimension's Gaussian at x [..., A, points]."""
    log_std = gaussian.log_std.unsqueeze(-1)
    return -0.5 * ((x - gaussian.mean.unsqueeze(-1)) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)


def _log_probs(action: Action) -> list[Tensor]:
    """The log-probabilities of every choice, [..., number of options] each."""
    if isinstance(action, Categorical):
        return [action.log_probs]
    if isinstance(action, MultiCategorical):
        return [part.log_probs for part in action.parts]
    assert isinstance(action, Bernoulli)
    log_sigmoid = F.logsigmoid
    return list(torch.stack([log_sigmoid(-action.logits), log_sigmoid(action.logits)], -1).unbind(-2))


def _with_one_mask(teacher: Action, student: Action) -> tuple[Action, Action]:
    if isinstance(teacher, Bernoulli):
        return teacher, student
    assert isinstance(teacher, Categorical | MultiCategorical)
    assert isinstance(student, Categorical | MultiCategorical)
    masks = [m for m in (teacher.mask, student.mask) if m is not None]
    if not masks:
        return teacher, student
    mask = masks[0] & masks[-1]
    return _masked(teacher, mask), _masked(student, mask)


def _masked(action: Categorical | MultiCategorical, mask: Tensor) -> Action:
    return Categorical(action.logits, mask) if isinstance(action, Categorical) else MultiCategorical(action.logits, action.nvec, mask)


def _one_hot_logits(chosen: Tensor, n: int, like: Tensor) -> Tensor:
    logits = torch.full((*chosen.shape, n), FORBIDDEN, dtype=like.dtype, device=like.device)
    return logits.scatter(-1, chosen.long().unsqueeze(-1), 0.0)
