"""Losses on what a policy does: the student's action, or its distribution over actions, against the teacher's.

Each is a pure function ``(student, batch, *, options) → Tensor[...]``, one number per state summed over action
dimensions; the teacher's Prediction is ``batch.teacher``, detached. Every kind of action works (discrete, MultiDiscrete,
MultiBinary, Gaussian, tanh-squashed, deterministic), and teacher and student may differ: see ``matching`` for how they
are brought together; where it can't be done, Missing says what would do. Temperatures temper as p^(1/τ): under 1
sharpens, over 1 softens (logits/τ; a Gaussian's variance · τ). They are not undone by a factor τ²; use the weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distillrl.actions import FORBIDDEN, Action, Bernoulli, Categorical, Deterministic, Gaussian, MultiCategorical
from distillrl.errors import Misconfigured, Missing
from distillrl.objectives.matching import (
    Density,
    distribution,
    expected_log_jacobian,
    inside,
    integral,
    is_sure,
    needs_distribution,
    pair,
    projected,
    sampled_integral,
    student_distribution,
)
from distillrl.records import Batch, Prediction

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def nll(
    student: Prediction,
    batch: Batch,
    *,
    of: str = "mode",
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[...] −log of the student's probability (density) of the teacher's action: behaviour cloning (Pomerleau 1991).

    ``of``: 'mode', the teacher's most likely action, inside the action range (the default; Rusu 2016's NLL);
    'sample', one action of its distribution, from ``generator``; 'expectation', the exact mean over all of them, which
    is ``cross_entropy`` and has none of the sample's variance. A deterministic teacher has one action: all three agree.
    """
    if of == "expectation":
        return cross_entropy(student, batch, teacher_temperature=teacher_temperature, student_temperature=student_temperature)
    mine = student_distribution(student, "nll", student_temperature)
    theirs = distribution(batch.teacher, teacher_temperature, "nll", "this teacher")
    action = theirs.sample(_given(generator, "nll")) if of == "sample" else theirs.mode
    return -mine.log_prob(inside(action, mine))


def cross_entropy(student: Prediction, batch: Batch, *, teacher_temperature: float = 1.0, student_temperature: float = 1.0) -> Tensor:
    """[...] H(T, S) = E_T[−log S(a)] (Hinton 2015, eq. 2): forward KL plus the teacher's entropy, so not 0 at equality.

    Exact. Of a Gaussian: Σ log σ_S + ½ log 2π + (σ_T² + (μ_T − μ_S)²) / 2σ_S²; of a squashed one that of the latents plus
    E_T[log |da/du|]. A deterministic teacher's is the negative log-likelihood of its action.
    """
    if is_sure(batch):
        return nll(student, batch, student_temperature=student_temperature)
    theirs, mine = pair(student, batch, "cross_entropy", teacher_temperature, student_temperature)
    if not isinstance(theirs, Gaussian):
        return theirs.kl(mine) + theirs.entropy()  # type: ignore[arg-type]  # pair() gives one family
    assert isinstance(mine, Gaussian)
    second_moment = (2 * theirs.log_std).exp() + (theirs.mean - mine.mean).square()
    latent = (mine.log_std + _HALF_LOG_2PI + 0.5 * second_moment * (-2 * mine.log_std).exp()).sum(-1)
    return latent + expected_log_jacobian(theirs) if mine.squashed else latent


def forward_kl(
    student: Prediction, batch: Batch, *, teacher_temperature: float = 1.0, student_temperature: float = 1.0, clip: bool = False
) -> Tensor:
    """[...] KL(teacher ‖ student) = E_T[log T − log S]: covers all that the teacher does; 0 at equality. Exact.

    Rusu 2016, eq. 3, with ``teacher_temperature`` = 0.01 on a DQN's Q-values, which sharpens them, and none on the student's.
    Of a discrete teacher that gives an action alone it is −log S(a). ``clip``: of an unbounded Gaussian, a teacher's mean beyond
    the action range asks the student's only to reach the bound (any mean at or beyond it plays the same action).
    """
    theirs, mine = pair(student, batch, "forward_kl", teacher_temperature, student_temperature)
    return _reached(theirs, mine, clip).kl(mine)  # type: ignore[arg-type]  # pair() gives one family


def reverse_kl(
    student: Prediction, batch: Batch, *, teacher_temperature: float = 1.0, student_temperature: float = 1.0, clip: bool = False
) -> Tensor:
    """[...] KL(student ‖ teacher) = E_S[log S − log T]: seeks one of the things the teacher does; 0 at equality. Exact.

    Czarnecki 2019 (1902.02186), table 1; Gu 2024 (MiniLLM). ``clip`` as in ``forward_kl``. Raises Missing for a teacher that
    gives an action alone: the divergence from it is infinite.
    """
    needs_distribution(batch, "reverse_kl")
    theirs, mine = pair(student, batch, "reverse_kl", teacher_temperature, student_temperature)
    return mine.kl(_reached(theirs, mine, clip))  # type: ignore[arg-type]  # pair() gives one family


def jensen_shannon(
    student: Prediction,
    batch: Batch,
    *,
    beta: float = 0.5,
    samples: int = 0,
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[...] β KL(T ‖ M) + (1 − β) KL(S ‖ M) with M = βT + (1 − β)S: GKD's JSD(β) (Agarwal 2024, 2306.13649, eq. 1).

    Symmetric and at most log 2 a dimension at β = ½; divided by β it tends to the forward KL as β → 0, divided by 1 − β to
    the reverse KL as β → 1. With ``samples`` = 0 the sum over action dimensions of each one's divergence: exact for discrete
    actions, by quadrature for Gaussians. With more, that of whole actions jointly, from so many sampled actions of each of
    teacher and student; unbiased, with a variance of order 1/samples (each sample counts at most log 2 / min(β, 1 − β)).
    """

    def density(p: Tensor, q: Tensor) -> Tensor:
        mixture = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
        return beta * p.exp() * (p - mixture) + (1 - beta) * q.exp() * (q - mixture)

    return _mixed(student, batch, "jensen_shannon", density, samples, generator, teacher_temperature, student_temperature)


def skewed_kl(
    student: Prediction,
    batch: Batch,
    *,
    alpha: float = 0.1,
    samples: int = 0,
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[...] KL(T ‖ αT + (1 − α)S): DistiLLM's skew KL (Ko 2024, 2402.03898, eq. 4); at most −log α a dimension.

    Its gradient stays bounded where the student gives an action no probability. ``samples`` as in ``jensen_shannon``.
    """

    def density(p: Tensor, q: Tensor) -> Tensor:
        return p.exp() * (p - torch.logaddexp(p + math.log(alpha), q + math.log1p(-alpha)))

    return _mixed(student, batch, "skewed_kl", density, samples, generator, teacher_temperature, student_temperature)


def skewed_reverse_kl(
    student: Prediction,
    batch: Batch,
    *,
    alpha: float = 0.1,
    samples: int = 0,
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[...] KL(S ‖ (1 − α)T + αS): DistiLLM's skew reverse KL (Ko 2024, 2402.03898, eq. 6); at most −log α a dimension.

    Finite for a discrete teacher that is sure of its action, where the reverse KL isn't. ``samples`` as in ``jensen_shannon``.
    """

    def density(p: Tensor, q: Tensor) -> Tensor:
        return q.exp() * (q - torch.logaddexp(p + math.log1p(-alpha), q + math.log(alpha)))

    return _mixed(student, batch, "skewed_reverse_kl", density, samples, generator, teacher_temperature, student_temperature)


def total_variation(
    student: Prediction,
    batch: Batch,
    *,
    samples: int = 0,
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[...] ½ ∫ |T − S|: the share of actions in which the two must differ, at most 1 a dimension.

    ``samples`` as in ``jensen_shannon``. Its gradient doesn't shrink near equality; with f-divergences in Wen 2023 (2307.15190).
    """

    def density(p: Tensor, q: Tensor) -> Tensor:
        return 0.5 * (p.exp() - q.exp()).abs()

    return _mixed(student, batch, "total_variation", density, samples, generator, teacher_temperature, student_temperature)


def decoupled_kl(
    student: Prediction, batch: Batch, *, alpha: float = 1.0, beta: float = 1.0, teacher_temperature: float = 1.0, student_temperature: float = 1.0
) -> Tensor:
    """[...] α KL(b_T ‖ b_S) + β KL(T̂ ‖ Ŝ): forward KL in its two parts, weighed apart (Zhao 2022, 2203.08679, eq. 7); 0 at equality.

    b is how likely the teacher's favourite action is and the rest together, T̂ and Ŝ the distributions over the others alone. Forward KL
    is α = 1 with β = 1 − T(favourite): a teacher that is sure teaches by it almost nothing of what it thinks of the other actions.
    """
    theirs, mine = pair(student, batch, "decoupled_kl", teacher_temperature, student_temperature)
    assert isinstance(theirs, Categorical)
    assert isinstance(mine, Categorical)
    favourite = F.one_hot(theirs.mode, theirs.logits.shape[-1]).bool()
    others = [Categorical(p.log_probs.masked_fill(favourite, FORBIDDEN)) for p in (theirs, mine)]
    both = [torch.stack([p.log_prob(theirs.mode), p.log_probs.masked_fill(favourite, FORBIDDEN).logsumexp(-1)], -1) for p in (theirs, mine)]
    return alpha * Categorical(both[0]).kl(Categorical(both[1])) + beta * others[0].kl(others[1])


def entropy_aware(
    student: Prediction, batch: Batch, *, threshold: float = 0.5, teacher_temperature: float = 1.0, student_temperature: float = 1.0
) -> Tensor:
    """[...] forward KL where the teacher is uncertain, reverse KL where it is sure; 0 at equality.

    A state is uncertain where the teacher's entropy, as a share of the uniform distribution's, is at least ``threshold`` (0 … 1).
    For Gaussians the share is e^h / range, the mean entropy h of a dimension against the range of actions (2 for a squashed
    latent, 1 where unbounded). After Jin 2026 (2603.07079), who add the forward KL there to the reverse one of all states.
    """
    needs_distribution(batch, "entropy_aware")
    theirs, mine = pair(student, batch, "entropy_aware", teacher_temperature, student_temperature)
    uncertain = entropy_share(theirs) >= threshold
    return torch.where(uncertain, theirs.kl(mine), mine.kl(theirs))  # type: ignore[arg-type]  # pair() gives one family


def mse(student: Prediction, batch: Batch, *, scale: str = "range", clip: bool = True, centre: bool = True) -> Tensor:
    """[...] Σ (student − teacher)², of actions where they are numbers (Box) and of logits where they are choices.

    Box: between the actions most likely (means, unsquashed or through tanh). ``scale``: 'range' divides each dimension by half
    of its range, so that actions run from −1 to 1 (unbounded dimensions are left); 'std' by the teacher's standard deviation;
    'none'. ``clip``: a teacher's mean beyond the range asks only for the bound to be reached (it plays the same action).
    Discrete: logits, over legal actions, each choice's mean subtracted with ``centre`` (a shift of all changes nothing).
    Ba & Caruana 2014 (logits); RPD, Jülg 2025 (2503.05833) and rsl_rl (means).
    """
    return _residuals(student, batch, "mse", scale, clip, centre).square().sum(-1)


def mse_targets(teacher: Prediction, scale: str, clip: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """``mse`` of a box action in other words: (low, high, unit), each [..., A] or [A], its residual being what the student's mean is outside of
    low … high, divided by unit. None where the teacher's action is no box's.
    """
    action = distribution(teacher, 1.0, "mse", "this teacher")
    if not _is_box(action):
        return None
    t = _mean(action)
    if not clip or action.low is None or action.high is None:  # type: ignore[union-attr]  # a box action has bounds, or None for them
        return t, t, _unit(action, scale, "mse")
    clipped = t.clamp(action.low, action.high)  # type: ignore[union-attr]  # a box action
    return torch.minimum(t, clipped), torch.maximum(t, clipped), _unit(action, scale, "mse")


def huber(student: Prediction, batch: Batch, *, delta: float = 1.0, scale: str = "range", clip: bool = True, centre: bool = True) -> Tensor:
    """[...] Σ of ½ r² where |r| ≤ δ, else δ(|r| − ½δ) (Huber 1964), r as in ``mse``: an outlier pulls no harder than δ."""
    r = _residuals(student, batch, "huber", scale, clip, centre)
    return F.huber_loss(r, torch.zeros_like(r), reduction="none", delta=delta).sum(-1)


def spread_mse(student: Prediction, batch: Batch) -> Tensor:
    """[...] Σ (log σ_T − log σ_S)²: the student's samples scatter as its teacher's do, whatever its means (see Avé 2024).

    Beside ``mse``, which leaves the spread alone. Of squashed Gaussians the spread is the latent's. Raises Missing for a
    teacher or a student without a Gaussian.
    """
    needs_distribution(batch, "spread_mse")
    theirs, mine = pair(student, batch, "spread_mse")
    assert isinstance(theirs, Gaussian)
    assert isinstance(mine, Gaussian)
    return (theirs.log_std - mine.log_std).square().sum(-1)


def entropy_share(action: Action) -> Tensor:
    """[...] 0 … 1: the entropy as a share of the uniform distribution's; for Gaussians see ``entropy_aware``."""
    if isinstance(action, Gaussian):
        width = action.high - action.low
        width = torch.full_like(width, 2.0) if action.squashed else torch.where(width.isfinite(), width, torch.ones_like(width))
        return (action.log_std + 0.5 + _HALF_LOG_2PI - width.log()).mean(-1).exp().clamp(max=1.0)
    if isinstance(action, Categorical):
        options = action.mask.sum(-1).clamp_min(2) if action.mask is not None else torch.tensor(max(2, action.logits.shape[-1]))
        return action.entropy() / options.to(action.logits.dtype).log()
    if isinstance(action, MultiCategorical):
        return action.entropy() / sum(math.log(max(2, n)) for n in action.nvec)
    return action.entropy() / (math.log(2) * action.logits.shape[-1])  # type: ignore[union-attr]  # Deterministic has no entropy


def _mixed(
    student: Prediction,
    batch: Batch,
    who: str,
    density: Density,
    samples: int,
    generator: torch.Generator | None,
    teacher_temperature: float,
    student_temperature: float,
) -> Tensor:
    theirs, mine = pair(student, batch, who, teacher_temperature, student_temperature)
    if samples:
        return sampled_integral(theirs, mine, density, samples, _given(generator, who))
    return integral(theirs, mine, density)


def _residuals(student: Prediction, batch: Batch, who: str, scale: str, clip: bool, centre: bool) -> Tensor:
    """Student less teacher, [..., number of action dimensions or logits]."""
    mine = distribution(student, 1.0, who, "this student")
    theirs = distribution(batch.teacher, 1.0, who, "this teacher")
    if _is_box(mine) and _is_box(theirs):
        s, t = _mean(mine), _mean(theirs)
        return (s - (_nearest_equal(t, s, theirs) if clip else t)) / _unit(theirs, scale, who)
    if isinstance(mine, Deterministic) or isinstance(theirs, Deterministic):
        whose = "teacher" if isinstance(theirs, Deterministic) else "student"
        raise Missing(
            f"{who} on choices needs logits, but this {whose} gives only an action; use nll, with a student that has a distribution"
        )
    theirs, mine = pair(student, batch, who)
    return _logits(mine, centre) - _logits(theirs, centre)


def _is_box(action: Action) -> bool:
    return isinstance(action, Gaussian) or (isinstance(action, Deterministic) and action.value.is_floating_point())


def _mean(action: Action) -> Tensor:
    """[..., A] the action at the centre, not clipped, so that a gradient comes back from beyond the bounds."""
    if isinstance(action, Gaussian):
        return action.mode if action.squashed else action.mean
    assert isinstance(action, Deterministic)
    return action.value


def _unit(action: Action, scale: str, who: str) -> Tensor:
    """[A] or [..., A] what a residual is divided by."""
    if scale == "std":
        if not isinstance(action, Gaussian):
            raise Missing(
                f"{who} with scale='std' needs the teacher's standard deviation, but this teacher gives only an action; use scale='range'"
            )
        return (projected(action, squashed=False) if action.squashed else action).log_std.exp()
    assert isinstance(action, Gaussian | Deterministic)
    if scale == "none" or action.low is None or action.high is None:
        return torch.ones(())
    half = (action.high - action.low) / 2
    return torch.where(half.isfinite() & (half > 0), half, torch.ones_like(half))


def _nearest_equal(target: Tensor, mine: Tensor, action: Action) -> Tensor:
    """The mean nearest to ``mine`` that lies between ``target`` and ``target`` clipped, all of which play the same action."""
    low, high = action.low, action.high  # type: ignore[union-attr]  # a box action has bounds, or None for them
    if low is None or high is None:
        return target
    clipped = target.clamp(low, high)
    return mine.detach().clamp(torch.minimum(target, clipped), torch.maximum(target, clipped))


def _reached(teacher: Action, student: Action, clip: bool) -> Action:
    if not clip or not isinstance(teacher, Gaussian) or teacher.squashed:
        return teacher
    return Gaussian(_nearest_equal(teacher.mean, _mean(student), teacher), teacher.log_std, teacher.low, teacher.high)


def _logits(action: Action, centre: bool) -> Tensor:
    """All choices' logits side by side. A switch's logit is relative to being off already, so it has nothing to centre."""
    if isinstance(action, Bernoulli):
        return action.logits
    if isinstance(action, Categorical):
        return _centred(action, centre)
    assert isinstance(action, MultiCategorical)
    return torch.cat([_centred(part, centre) for part in action.parts], -1)


def _centred(action: Categorical, centre: bool) -> Tensor:
    logits, mask = action.logits, action.mask
    if mask is None:
        return logits - logits.mean(-1, keepdim=True) if centre else logits
    legal = torch.where(mask, logits, torch.zeros_like(logits))
    mean = legal.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(mask, logits - mean, torch.zeros_like(logits)) if centre else legal


def _given(generator: torch.Generator | None, who: str) -> torch.Generator:
    if generator is None:
        raise Misconfigured(f"{who} samples actions, so it must be given generator=torch.Generator()")
    return generator
