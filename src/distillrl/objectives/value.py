"""Losses on how good things are: the student's Q-values, values and return distributions against the teacher's.

Each is ``(student, batch, *, options) → Tensor[...]``, one number per state, summed over actions. ``scale`` divides both
sides first, in units of reward, so that a return of hundreds doesn't drown the other terms; 0 takes the root mean square of what
the teacher says of the batch. Illegal actions don't count.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillrl.actions import Categorical, Deterministic
from distillrl.errors import Misconfigured, Missing
from distillrl.objectives.layers import chosen, linear
from distillrl.records import Batch, Prediction, need

STUDENT = "this student"


def q_mse(student: Prediction, batch: Batch, *, scale: float = 0.0) -> Tensor:
    """[...] Σ_a (Q_S(s, a) − Q_T(s, a))² / scale² (Rusu 2016, eq. 1): also how much is at stake, which a small student can't always hold."""
    gap = _q_difference(student, batch, "q_mse")
    return _sum_legal(gap.square(), batch) / sized(scale, batch.teacher.q, _legal(batch)) ** 2


def q_kl(student: Prediction, batch: Batch, *, teacher_temperature: float = 0.01, student_temperature: float = 1.0) -> Tensor:
    """[...] KL(softmax(Q_T/τ_T) ‖ softmax(Q_S/τ_S)) (Rusu 2016, eq. 3): τ_T = 0.01 sharpens; the student's Q become preferences.

    0 at equality only where both temperatures are equal. In Rusu's table 1 (Breakout, same size) 94.7 % of the teacher,
    where NLL gives 77.6 % and MSE 33.9 %.
    """
    q, target = _both_q(student, batch, "q_kl")
    mask = _legal(batch)
    return Categorical(target / teacher_temperature, mask).kl(Categorical(q / student_temperature, mask))


def value_mse(student: Prediction, batch: Batch, *, scale: float = 0.0) -> Tensor:
    """[...] (V_S(s) − V_T(s))² / scale². A teacher that gives only Q has V_T = Σ_a π_T(a) Q_T(s, a), the maximum where it is greedy."""
    mine = need(student, "value", "value_mse", STUDENT)
    theirs = state_value(batch.teacher, "value_mse")
    return ((mine - theirs) / sized(scale, theirs)).square()


def advantage_mse(student: Prediction, batch: Batch, *, scale: float = 0.0, baseline: str = "mean") -> Tensor:
    """[...] Σ_a (A_S(s, a) − A_T(s, a))² / scale² with A = Q − baseline: which action is better and by how much, not how good the state is.

    ``baseline``: 'mean' or 'max' of Q over legal actions, as in dueling networks (Wang 2016, 1511.06581, eq. 9 and 8).
    """
    (_, mine), (_, theirs) = _parts(student, batch, baseline, "advantage_mse")
    return _sum_legal((mine - theirs).square(), batch) / sized(scale, theirs, _legal(batch)) ** 2


def dueling_mse(
    student: Prediction,
    batch: Batch,
    *,
    scale: float = 0.0,
    baseline: str = "mean",
    value_weight: float = 1.0,
    advantage_weight: float = 1.0,
) -> Tensor:
    """[...] (value_weight · (V_S − V_T)² + advantage_weight · Σ_a (A_S − A_T)²) / scale², both parts of Q (Wang 2016, 1511.06581).

    V is the ``baseline`` of Q and A = Q − V. With 'mean', A actions, value_weight = A and advantage_weight = 1 it is ``q_mse``.
    """
    (v, a), (target_v, target_a) = _parts(student, batch, baseline, "dueling_mse")
    values = (v - target_v).squeeze(-1).square()
    return (value_weight * values + advantage_weight * _sum_legal((a - target_a).square(), batch)) / sized(scale, batch.teacher.q, _legal(batch)) ** 2


def quantile_huber(student: Prediction, batch: Batch, *, kappa: float = 1.0, scale: float = 1.0, drop: int = 0) -> Tensor:
    """[...] Σ_a mean over i, j of |τ_i − 1[u < 0]| L_κ(u) / κ, u = θ_T,j − θ_S,i, τ_i = (2i + 1)/2K (QR-DQN, Dabney 2018, 1710.10044, eq. 10).

    ``quantiles`` are [..., A, K], K free on both sides. Least, but not 0, at equality: ``quantile_distance`` is 0 there. ``drop``
    leaves out that many of the teacher's highest quantiles of each action (TQC, Kuznetsov 2020, 2005.04269, eq. 10) against optimism.
    """
    mine, theirs = _both_quantiles(student, batch, drop, "quantile_huber")
    k = mine.shape[-1]
    levels = (torch.arange(k, dtype=mine.dtype, device=mine.device) + 0.5) / k
    u = (theirs.unsqueeze(-2) - mine.unsqueeze(-1)) / scale
    huber = F.huber_loss(u, torch.zeros_like(u), reduction="none", delta=kappa) / kappa
    pinball = (levels.unsqueeze(-1) - (u.detach() < 0).to(u.dtype)).abs() * huber
    return _sum_legal(pinball.mean((-2, -1)), batch)


def quantile_distance(student: Prediction, batch: Batch, *, power: int = 1, scale: float = 1.0, drop: int = 0) -> Tensor:
    """[...] Σ_a ∫ |F_T⁻¹(ω) − F_S⁻¹(ω)|^p dω / scale^p: the Wasserstein distance (to the p) of the return distributions; 0 at equality.

    Exact for any numbers of quantiles, [..., A, K] and [..., A, K']. Dabney 2018 (1710.10044), eq. 3. ``drop`` as in ``quantile_huber``.
    """
    mine, theirs = _both_quantiles(student, batch, drop, "quantile_distance")
    widths, i, j = _common_steps(mine.shape[-1], theirs.shape[-1])
    gap = (mine.sort(-1).values[..., i] - theirs.sort(-1).values[..., j]).abs() / scale
    distance = (gap**power * torch.tensor(widths, dtype=gap.dtype, device=gap.device)).sum(-1)
    return _sum_legal(distance, batch)


def sized(scale: float, theirs: Tensor | None, counts: Tensor | None = None) -> Tensor | float:
    """What both sides are divided by: ``scale``, or where it is 0 the root mean square of the teacher's figures, so that a student that says 0 has a loss of 1 each.

    ``counts``: a mask of those that do.
    """
    if scale or theirs is None:
        return scale or 1.0
    known = theirs.detach() if counts is None or counts.shape[-1] != theirs.shape[-1] else theirs.detach()[counts.expand_as(theirs)]
    return known.square().mean().sqrt().clamp_min(1e-6)


class Distributional(nn.Module):
    """[...] Σ_a KL(Φ Z_T ‖ softmax of logits read from a student's layer): the teacher's return distribution in classes.

    Φ projects the teacher's quantiles (or its Q, or its value: one quantile each) linearly onto ``atoms`` points from ``low`` to
    ``high`` (C51, Bellemare 2017, 1707.06887, eq. 7; of a single value the two-hot form, Farebrother 2024, 2403.03950). The
    logits' layer is learnt and thrown away; the student keeps what it made its features learn. Returns outside
    low … high count as the nearest end.
    """

    points: Tensor

    def __init__(
        self,
        student: Prediction,
        batch: Batch,
        *,
        generator: torch.Generator,
        student_layer: str = "last",
        atoms: int = 51,
        low: float = -10.0,
        high: float = 10.0,
    ) -> None:
        super().__init__()
        if low >= high:
            raise Misconfigured(f"objective distributional: low = {low:g} and high = {high:g} were given; low must lie below high")
        self.student_layer, self.atoms = student_layer, atoms
        features = chosen(student, student_layer, "distributional", STUDENT, batch)
        self.actions = _as_quantiles(batch.teacher, "distributional").shape[-2]
        self.logits = linear(features.shape[-1], self.actions * atoms, generator).to(features)
        self.register_buffer("points", torch.linspace(low, high, atoms).to(features))

    def forward(self, student: Prediction, batch: Batch) -> Tensor:
        """[...]"""
        logits = self.logits(chosen(student, self.student_layer, "distributional", STUDENT, batch)).unflatten(
            -1, (self.actions, self.atoms)
        )
        target = projection(_as_quantiles(batch.teacher, "distributional"), self.points)
        divergence = (torch.xlogy(target, target) - target * logits.log_softmax(-1)).sum(-1)
        return _sum_legal(divergence, batch)


def projection(quantiles: Tensor, points: Tensor) -> Tensor:
    """[..., A, K] equally likely returns → [..., A, atoms] probabilities on evenly spaced ``points``, each shared by its two neighbours."""
    step = points[1] - points[0]
    position = ((quantiles - points[0]) / step).clamp(0, len(points) - 1)
    share = (1 - (position.unsqueeze(-1) - torch.arange(len(points), dtype=points.dtype, device=points.device)).abs()).clamp_min(0)
    return share.mean(-2)


def state_value(prediction: Prediction, who: str, whose: str = "this teacher") -> Tensor:
    """[...] the value, or where only Q [..., A] is given its mean under the policy's own distribution (the maximum where it is greedy)."""
    if prediction.value is not None:
        return prediction.value
    if prediction.q is None:
        raise Missing(f"{who} needs `value` or `q`, but {whose} gives neither")
    q = prediction.q
    if isinstance(prediction.action, Categorical):
        return (prediction.action.log_probs.exp() * q).sum(-1)
    return q.max(-1).values


def _both_q(student: Prediction, batch: Batch, who: str) -> tuple[Tensor, Tensor]:
    mine, theirs = need(student, "q", who, STUDENT), need(batch.teacher, "q", who)
    if mine.shape[-1] != theirs.shape[-1]:
        raise Misconfigured(f"{who}: the student gives Q of {mine.shape[-1]} actions, the teacher of {theirs.shape[-1]}; they must agree")
    return mine, theirs


def _q_difference(student: Prediction, batch: Batch, who: str) -> Tensor:
    mine, theirs = _both_q(student, batch, who)
    return mine - theirs


def _parts(student: Prediction, batch: Batch, baseline: str, who: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(baseline [..., 1], Q − baseline [..., A]) of the student and of the teacher."""
    mask = _legal(batch)

    def split(q: Tensor) -> tuple[Tensor, Tensor]:
        if baseline == "max":
            base = (q if mask is None else q.masked_fill(~mask, -math.inf)).max(-1, keepdim=True).values
        elif mask is None:
            base = q.mean(-1, keepdim=True)
        else:
            base = (q * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
        return base, q - base

    mine, theirs = _both_q(student, batch, who)
    return split(mine), split(theirs)


def _both_quantiles(student: Prediction, batch: Batch, drop: int, who: str) -> tuple[Tensor, Tensor]:
    mine, theirs = need(student, "quantiles", who, STUDENT), need(batch.teacher, "quantiles", who)
    if mine.shape[-2] != theirs.shape[-2]:
        raise Misconfigured(
            f"{who}: the student gives quantiles of {mine.shape[-2]} actions, the teacher of {theirs.shape[-2]}; they must agree"
        )
    if drop >= theirs.shape[-1]:
        raise Misconfigured(f"{who}: drop = {drop} was given, but the teacher has {theirs.shape[-1]} quantiles; fewer is right")
    return mine, theirs.sort(-1).values[..., : theirs.shape[-1] - drop] if drop else theirs


def _as_quantiles(prediction: Prediction, who: str) -> Tensor:
    """[..., A, K]: the quantiles, or Q-values as one each, or the value as one of one action."""
    if prediction.quantiles is not None:
        return prediction.quantiles
    if prediction.q is not None:
        return prediction.q.unsqueeze(-1)
    value: Tensor = need(prediction, "value", who)
    return value.unsqueeze(-1).unsqueeze(-1)


def _legal(batch: Batch) -> Tensor | None:
    action = batch.teacher.action
    return None if action is None or isinstance(action, Deterministic) else getattr(action, "mask", None)


def _sum_legal(per_action: Tensor, batch: Batch) -> Tensor:
    mask = _legal(batch)
    if mask is None or mask.shape[-1] != per_action.shape[-1]:
        return per_action.sum(-1)
    return torch.where(mask, per_action, torch.zeros_like(per_action)).sum(-1)


@lru_cache(maxsize=32)
def _common_steps(k: int, other: int) -> tuple[list[float], list[int], list[int]]:
    """The steps that two step functions of ``k`` and ``other`` equal steps share: widths, and the index into each."""
    marks = sorted({i * other for i in range(k + 1)} | {j * k for j in range(other + 1)})
    widths = [(b - a) / (k * other) for a, b in pairwise(marks)]
    return widths, [a // other for a in marks[:-1]], [a // k for a in marks[:-1]]
