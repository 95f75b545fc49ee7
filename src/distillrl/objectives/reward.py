"""Losses on the environment's reward, or on reward made of the teacher's opinion, so that a student can pass its teacher.

Each is ``(student, batch, *, options) → Tensor[...]``, one number per state, to be minimised; the mean over states has the
policy gradient as its gradient. Beside ``batch.teacher`` they read what the docstring says:

    batch.action, behaviour_log_prob    what was done (a sample, not clipped), and its log-probability when it was done
    extra['advantage'], extra['return'] GAE and λ-return of the reward, by the student's value (with_advantages)
    batch.next, batch.next_target       the next state's Prediction by the student and by its slow copy
    extra['n_step_return'], ['n_step_discount']  Σ_{k<n} γ^k r, cut at an end, and γ^n (0 after a termination); then
                                        batch.next and next_target are of the state n steps on, or the episode's last
    extra['distillation_return']        ``to_go`` of ``distillation_rewards`` along the student's own episode
    extra['future_kl']                  ``to_go`` of the states' reverse KL from the next state on
    extra['teacher_next_value']         the teacher's value of the next state
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distillrl.actions import Categorical, Gaussian
from distillrl.errors import Missing
from distillrl.objectives.matching import expected_log_jacobian, inside, needs_distribution, pair, student_distribution
from distillrl.objectives.policy import reverse_kl
from distillrl.objectives.value import STUDENT, state_value
from distillrl.records import Batch, Prediction, need


def ppo_clip(student: Prediction, batch: Batch, *, clip: float = 0.2, standardise: bool = True) -> Tensor:
    """[...] −min(ρA, clip(ρ, 1 − ε, 1 + ε)A), ρ = S(a) / behaviour(a) (Schulman 2017, 1707.06347, eq. 7). Reads action, behaviour_log_prob, advantage.

    ``standardise``: advantages of mean 0 and deviation 1 over the batch's counted states.
    """
    advantage = _advantage(batch, "ppo_clip", standardise)
    return _clipped(_log_prob(student, batch, "ppo_clip"), _field(batch, "behaviour_log_prob", "ppo_clip"), advantage, clip)


def a2c(student: Prediction, batch: Batch, *, standardise: bool = False) -> Tensor:
    """[...] −log S(a) · A (Mnih 2016, 1602.01783, section 4). Reads action and advantage; the states must be the student's own, played just now."""
    return -_log_prob(student, batch, "a2c") * _advantage(batch, "a2c", standardise)


def distral(student: Prediction, batch: Batch, *, kl: float = 0.1, entropy: float = 0.01, clip: float = 0.2) -> Tensor:
    """[...] the clipped policy gradient of the task's policy π_i + ``kl`` · KL(π_i ‖ π₀) − ``entropy`` · H(π_i) (Distral, Teh 2017, 1707.04175, eq. 1 and 9).

    π₀ is the student, π_i = softmax(α h + f_i) with h its logits, f_i the task's column and α = kl / (kl + entropy). The KL's gradient by π₀'s logits, kl · (π₀ − π_i),
    is what distils the tasks' policies into the shared one; regularisers count in the state at hand, the reward by its advantage. Reads
    action, behaviour_log_prob (of π_i, which drives) and advantage, standardised in each task.
    """
    shared = student_distribution(student, "distral")
    assert isinstance(shared, Categorical)
    own = task_policy(shared, student.features["column"], kl / (kl + entropy))
    gain = _clipped(own.log_prob(_field(batch, "action", "distral")), _field(batch, "behaviour_log_prob", "distral"), _advantage(batch, "distral", True), clip)
    return gain + kl * own.kl(shared) - entropy * own.entropy()


def task_policy(shared: Categorical, column: Tensor, alpha: float) -> Categorical:
    """π_i ∝ exp(``alpha`` · h + f_i), ``column`` [..., A] being f_i (Teh 2017, eq. 6); a shift of h changes nothing."""
    return Categorical(alpha * shared.log_probs + column, shared.mask)


def return_mse(student: Prediction, batch: Batch, *, scale: float = 1.0) -> Tensor:
    """[...] (V_S(s) − return)² / scale²: the critic that ``ppo_clip`` and ``a2c`` stand on. Reads extra['return']."""
    value = need(student, "value", "return_mse", STUDENT)
    return ((value - extra(batch, "return", "return_mse")) / scale).square()


def entropy(student: Prediction, batch: Batch) -> Tensor:
    """[...] −H(S), in nats: a positive weight keeps the student trying (Williams & Peng 1991). Exact; of a squashed Gaussian by quadrature."""
    action = student_distribution(student, "entropy")
    if isinstance(action, Gaussian) and action.squashed:
        latent = Gaussian(action.mean, action.log_std, action.low, action.high)
        return -(latent.entropy() + expected_log_jacobian(action))
    return -action.entropy()


def q_learning(student: Prediction, batch: Batch, *, gamma: float = 0.99, double: bool = True, delta: float = 1.0) -> Tensor:
    """[...] Huber(Q_S(s, a) − y), y = r + γ(1 − terminated) Q_slow(s', argmax Q_S(s', ·)) (double DQN, van Hasselt 2016, 1509.06461, eq. 4).

    Without ``double`` the slow copy chooses too. A truncated episode bootstraps. Reads action, reward, terminated, next, next_target.
    """
    reward, ended = _field(batch, "reward", "q_learning"), _field(batch, "terminated", "q_learning")
    target = reward + gamma * (1 - ended.to(reward.dtype)) * _next_q(batch, double, "q_learning")
    return _q_error(student, batch, target, delta, "q_learning")


def n_step_q_learning(student: Prediction, batch: Batch, *, double: bool = True, delta: float = 1.0) -> Tensor:
    """[...] as ``q_learning``, with y = n_step_return + n_step_discount · Q_slow (Sutton 1988; Rainbow, Hessel 2018, 1710.02298).

    n and γ are the wrapper's that made them. Reads action, extra['n_step_return'], extra['n_step_discount'], next, next_target.
    """
    who = "n_step_q_learning"
    target = extra(batch, "n_step_return", who) + extra(batch, "n_step_discount", who) * _next_q(batch, double, who)
    return _q_error(student, batch, target, delta, who)


def distillation_reward(
    student: Prediction, batch: Batch, *, scale: float = 1.0, discounted: bool = False, baseline: bool = True, clip: float = 0.2
) -> Tensor:
    """[...] policy gradient with the advantage ``scale`` · log T(a) − log S(a), clipped as in ``ppo_clip`` by the behaviour's log-probability.

    At ``scale`` 1 and discount 0 it is the reverse KL's gradient, by one sample; above 1 its aim is T^scale, sharper than
    the teacher: to reach past it (Yang 2026, 2602.12125, eq. 8, with a uniform reference). ``baseline`` subtracts what the
    state's actions earn on average, exactly, which changes no gradient's mean and takes most of its noise. ``discounted``: the advantage is
    extra['distillation_return'], which counts what the action leads to (discount above 0). Reads action, behaviour_log_prob.
    """
    who = "distillation_reward"
    log_prob = _log_prob(student, batch, who)
    if discounted:
        advantage = extra(batch, "distillation_return", who)
    else:
        advantage = distillation_rewards(student, batch.teacher, _field(batch, "action", who), scale=scale)
        advantage = advantage - _expected_reward(student, batch, scale) if baseline else advantage
    return _clipped(log_prob, _field(batch, "behaviour_log_prob", who), advantage, clip)


@torch.no_grad()
def _expected_reward(student: Prediction, batch: Batch, scale: float) -> Tensor:
    """[...] E_S[scale · log T − log S] = −scale · KL(S ‖ T) + (1 − scale) · H(S)."""
    divergence = -scale * reverse_kl(student, batch)
    return divergence if scale == 1 else divergence + (scale - 1) * entropy(student, batch)


def expected_entropy_regularised(student: Prediction, batch: Batch, *, baseline: bool = True, clip: float = 0.2) -> Tensor:
    """[...] KL(S ‖ T) + ρ · (Σ of KL(S ‖ T) in the states that follow): Czarnecki 2019 (1902.02186), expected entropy regularised distillation.

    Its gradient is the whole one of the KL summed along the student's own episodes: the first part by expectation over actions, the
    second for where its actions lead, which student-driven losses leave out, so that they follow no loss's gradient. ρ is S(a) / behaviour(a),
    clipped as in ``ppo_clip``: at ρ = 1 the gradient is log S(a)'s, and without the clip several updates on one rollout push S(a) to 0. ``baseline``
    subtracts the mean over the batch's counted states. Reads action, behaviour_log_prob and extra['future_kl']; the states must be the student's own.
    """
    who = "expected_entropy_regularised"
    future = extra(batch, "future_kl", who)
    if baseline:
        future = future - _mean(future, batch)
    return reverse_kl(student, batch) + _clipped(_log_prob(student, batch, who), _field(batch, "behaviour_log_prob", who), -future, clip)


def value_shaping(student: Prediction, batch: Batch, *, gamma: float = 0.99, standardise: bool = True, clip: float = 0.2) -> Tensor:
    """[...] ``ppo_clip`` with the advantage r + γ V_T(s')(1 − terminated) − V_T(s): the teacher's value says which step was a gain.

    It is the reward shaped by the teacher's value as potential (Ng 1999), at discount 0 after the step (Cheng 2021, 2106.02757, at λ = 0).
    Reads action, behaviour_log_prob, reward, terminated, extra['teacher_next_value'], teacher.value (or q).
    """
    who = "value_shaping"
    advantage = shaped_reward(
        _field(batch, "reward", who),
        state_value(batch.teacher, who),
        extra(batch, "teacher_next_value", who),
        _field(batch, "terminated", who),
        gamma,
    )
    advantage = _standardised(advantage, batch) if standardise else advantage
    return _clipped(_log_prob(student, batch, who), _field(batch, "behaviour_log_prob", who), advantage, clip)


def shaped_reward(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """[...] r + γ(1 − terminated) V(s') − V(s): potential-based shaping, which leaves the best policy the best (Ng 1999, theorem 1)."""
    return reward + gamma * (1 - terminated.to(reward.dtype)) * next_value - value


def distillation_rewards(student: Prediction, teacher: Prediction, action: Tensor, scale: float = 1.0) -> Tensor:
    """[...] ``scale`` · log T(a) − log S(a), without gradient, of actions done; both in one family (see ``matching``)."""
    frame = Batch(obs={}, teacher=teacher)
    needs_distribution(frame, "distillation_reward")
    with torch.no_grad():
        theirs, mine = pair(student, frame, "distillation_reward")
        return scale * theirs.log_prob(inside(action, theirs)) - mine.log_prob(inside(action, mine))


def to_go(reward: Tensor, ends: Tensor, discount: float, *, after: bool = False) -> Tensor:
    """[T, N] Σ_k discount^k reward[t + k] up to the step that ``ends`` [T, N] the episode; ``after``: from the next step on."""
    total = torch.zeros_like(reward[0])
    out = torch.empty_like(reward)
    for t in range(len(reward) - 1, -1, -1):
        follows = torch.where(ends[t].bool(), torch.zeros_like(total), total)
        total = reward[t] + discount * follows
        out[t] = follows if after else total
    return out


def extra(batch: Batch, name: str, who: str) -> Tensor:
    """What a wrapper added, or a sentence that says what is missing."""
    if name not in batch.extra:
        known = ", ".join(sorted(batch.extra)) or "nothing"
        raise Missing(f"{who} needs extra[{name!r}], which a wrapper of the driver adds; this batch has {known}")
    return batch.extra[name]


def _field(batch: Batch, name: str, who: str) -> Tensor:
    found: Tensor = need(batch, name, who, "this batch")
    return found


def _log_prob(student: Prediction, batch: Batch, who: str) -> Tensor:
    mine = student_distribution(student, who)
    return mine.log_prob(inside(_field(batch, "action", who), mine))


def _clipped(log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    ratio = (log_prob - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def _advantage(batch: Batch, who: str, standardise: bool) -> Tensor:
    advantage = extra(batch, "advantage", who)
    return _standardised(advantage, batch) if standardise else advantage


def _mean(x: Tensor, batch: Batch) -> Tensor:
    if batch.weight is None:
        return x.mean()
    counts = (batch.weight > 0).to(x.dtype)
    return (x * counts).sum() / counts.sum().clamp_min(1)


def _standardised(x: Tensor, batch: Batch) -> Tensor:
    if batch.task is not None:  # each task's rewards have a size of their own
        return _standardised_by_task(x, batch)
    centred = x - _mean(x, batch)
    return centred / (_mean(centred.square(), batch).sqrt() + 1e-8)


def _standardised_by_task(x: Tensor, batch: Batch) -> Tensor:
    assert batch.task is not None
    counts = torch.ones_like(x) if batch.weight is None else (batch.weight > 0).to(x.dtype)
    own = F.one_hot(batch.task.long().flatten()).to(x.dtype) * counts.flatten().unsqueeze(-1)
    centred = x - ((own * x.flatten().unsqueeze(-1)).sum(0) / own.sum(0).clamp_min(1))[batch.task.long()]
    deviation = ((own * centred.flatten().square().unsqueeze(-1)).sum(0) / own.sum(0).clamp_min(1)).sqrt()
    return centred / (deviation[batch.task.long()] + 1e-8)


def _next_q(batch: Batch, double: bool, who: str) -> Tensor:
    """[...] without gradient; illegal actions are not chosen."""
    slow = need(_next(batch, "next_target", who), "q", who, "the student's slow copy").detach()
    chooser = need(_next(batch, "next", who), "q", who, STUDENT).detach() if double else slow
    action = _next(batch, "next_target", who).action
    if isinstance(action, Categorical) and action.mask is not None:
        chooser = chooser.masked_fill(~action.mask, -torch.inf)
    return slow.gather(-1, chooser.argmax(-1, keepdim=True)).squeeze(-1)


def _next(batch: Batch, name: str, who: str) -> Prediction:
    found: Prediction = need(batch, name, who, "this batch")
    return found


def _q_error(student: Prediction, batch: Batch, target: Tensor, delta: float, who: str) -> Tensor:
    q = need(student, "q", who, STUDENT).gather(-1, _field(batch, "action", who).long().unsqueeze(-1)).squeeze(-1)
    return F.huber_loss(q, target, reduction="none", delta=delta)
