"""What terms on reward read beside the states: advantages and returns, n-step returns, what follows by the teacher's opinion.

``enrich`` adds to a rollout what the terms want of it: ``behaviour_log_prob`` and ``extra``. A terminated episode is worth
nothing after its end; a truncated one, and one that the rollout cuts, is worth what the student's value says of its
last observation. Steps that only reset (``valid`` false) follow an end, so nothing flows through them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distillrl.dataset import MEMORY
from distillrl.errors import Missing
from distillrl.objectives.layers import linear
from distillrl.objectives.matching import inside, pair
from distillrl.objectives.reward import distillation_rewards, to_go
from distillrl.objectives.value import state_value
from distillrl.policies import Policy, as_words
from distillrl.records import Batch, Prediction, Rollout, need, over_states
from distillrl.senses import window_of
from distillrl.states import Drive, label_all, told_in_order
from distillrl.tasks import TASK

HIDDEN = 64
"""Units of the critic that a student is lent while it learns."""


class Critic(nn.Module):
    """A value head on a student's latent: [..., L] → [..., 1], one hidden layer. ``scale`` is what rewards are divided by, 0 until measured; of several ``tasks`` [K]."""

    scale: Tensor

    def __init__(self, inputs: int, generator: torch.Generator, tasks: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(linear(inputs, HIDDEN, generator), nn.Tanh(), linear(HIDDEN, 1, generator))
        self.register_buffer("scale", torch.zeros((tasks,) if tasks else ()))

    def forward(self, latent: Tensor) -> Tensor:
        """[..., 1]"""
        return self.layers(latent)


@dataclass(frozen=True)
class Horizon:
    """How far reward reaches: discount ``gamma``, GAE's ``lam`` (λ), and ``n`` of n-step returns."""

    gamma: float
    lam: float
    n: int


def enrich(rollout: Rollout, wants: frozenset[str], horizon: Horizon, drive: Drive, teacher: Policy, playing: Policy, learning: Policy) -> Rollout:
    """The rollout with what these wants (of all terms together) name: ``behaviour_log_prob`` and ``extra.*``.

    ``playing`` is the student that drove; ``learning``, the one whose critic learns, is given the same scale of rewards. The
    scale is the deviation of the first rollout's discounted returns; it stays 1 where a term compares values with the teacher's.
    A student that remembers sees the rollout again in its order, from the memory with which it drove into it; where that memory has no bound, the one it came to each
    state with is kept (``extra``, under ``dataset.MEMORY``), for sequences to begin with (stored state, Kapturowski 2019). Raises Missing for a teacher in another family of distributions.
    """
    asked = {w.removeprefix("extra.") for w in wants if w.startswith("extra.")}
    if not asked and "behaviour_log_prob" not in wants:
        return rollout
    if drive.spec.tasks:
        rollout = replace(rollout, task=rollout.obs[TASK][:-1].clone())
    with torch.no_grad():
        own, kept = _own(playing, rollout, drive, as_words(wants, "student"))
        acted: Prediction = _first(own, len(rollout.action))
        if "behaviour_log_prob" in wants:
            rollout = replace(rollout, behaviour_log_prob=behaviour(rollout, acted))
        ends = rollout.terminated | rollout.truncated
        reward = rollout.reward * rollout.valid
        extra = {MEMORY + name: value[:-1] for name, value in kept.items()}
        if asked & {"advantage", "return"}:
            values = need(own, "value", "the advantage", "this student")
            scale = _scale(reward, ends, horizon.gamma, "teacher.value" in wants, (playing, learning), rollout.task)
            extra["advantage"] = gae(reward / scale, values, rollout.terminated, rollout.truncated, horizon.gamma, horizon.lam)
            extra["return"] = extra["advantage"] + values[:-1]
        if "n_step_return" in asked:
            extra["n_step_return"], extra["n_step_discount"], extra["next_offset"] = n_step(reward, rollout.terminated, rollout.truncated, horizon.gamma, horizon.n)
        if "teacher_next_value" in asked:
            last, _ = teacher.act(drive.obs, drive.memory["teacher"], drive.starts, as_words(wants, "teacher"))
            seen = [state_value(need_teacher(rollout), "value_shaping"), state_value(last, "value_shaping").unsqueeze(0)]
            extra["teacher_next_value"] = torch.cat(seen)[1:]
        if "distillation_return" in asked:
            opinions = distillation_rewards(acted, need_teacher(rollout), rollout.action) * rollout.valid
            extra["distillation_return"] = to_go(opinions, ends, horizon.gamma)
        if "future_kl" in asked:
            theirs, mine = pair(acted, Batch(obs={}, teacher=need_teacher(rollout)), "expected_entropy_regularised")
            extra["future_kl"] = to_go(mine.kl(theirs) * rollout.valid, ends, horizon.gamma, after=True)  # type: ignore[arg-type]  # one family
    return replace(rollout, extra={**rollout.extra, **extra})


def _own(playing: Policy, rollout: Rollout, drive: Drive, wants: frozenset[str]) -> tuple[Prediction, dict[str, Tensor]]:
    """[T + 1, N] what the student that drove says of a rollout's states and of the ones at its end; and what it remembered in each, where that has no bound."""
    if not playing.init(1):
        return label_all(playing, dict(rollout.obs), wants), {}
    starts = torch.cat([rollout.starts, drive.starts.unsqueeze(0)])
    own, kept = told_in_order(playing, rollout.obs, starts, dict(rollout.memory), wants)
    return own, kept if window_of(playing) is None else {}


def gae(reward: Tensor, value: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, lam: float) -> Tensor:
    """[T, N] Σ_k (γλ)^k δ[t + k] up to the episode's end, δ = r + γ V(s') (1 − terminated) − V(s) (Schulman 2016, 1506.02438, eq. 16).

    ``value`` is [T + 1, N]: that of row t + 1 is of the state that followed row t, the last one of an episode too.
    """
    total = torch.zeros_like(reward[0])
    out = torch.empty_like(reward)
    for t in range(len(reward) - 1, -1, -1):
        goes_on = 1 - terminated[t].to(reward.dtype)
        delta = reward[t] + gamma * value[t + 1] * goes_on - value[t]
        total = delta + gamma * lam * total * goes_on * (1 - truncated[t].to(reward.dtype))
        out[t] = total
    return out


def n_step(reward: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """[T, N] each: Σ_{k<m} γ^k r, γ^m (0 after a termination), and m ≤ n, the steps until the episode or the rollout ends (Sutton 1988)."""
    steps = len(reward)
    total, discount = torch.zeros_like(reward), torch.ones_like(reward)
    offset = torch.zeros(reward.shape, dtype=torch.int64)
    running = torch.ones(reward.shape, dtype=torch.bool)
    for k in range(n):
        left = steps - k
        if left <= 0:
            break
        now = running[:left].clone()
        total[:left] += torch.where(now, discount[:left] * reward[k:], 0)
        over = now & terminated[k:]
        discount[:left] = torch.where(over, 0, torch.where(now, discount[:left] * gamma, discount[:left]))
        offset[:left] += now
        running[:left] = now & ~terminated[k:] & ~truncated[k:]
    return total, discount, offset


def behaviour(rollout: Rollout, acted: Prediction) -> Tensor:
    """[T, N] log-probability of the action under whoever drove; where the teacher drove and gives none, the student's."""
    assert acted.action is not None
    mine = acted.action.log_prob(inside(rollout.action, acted.action))
    by_teacher = rollout.driver == 0
    if not bool(by_teacher.any()):
        return mine
    try:
        theirs, _ = pair(acted, Batch(obs={}, teacher=need_teacher(rollout)), "behaviour_log_prob")
        return torch.where(by_teacher, theirs.log_prob(inside(rollout.action, theirs)), mine)
    except Missing:
        return mine


def need_teacher(rollout: Rollout) -> Prediction:
    """The labels; every rollout that is learnt from has them."""
    assert rollout.teacher is not None
    return rollout.teacher


def _first(prediction: Prediction, rows: int) -> Prediction:
    return over_states(lambda x: x[:rows], prediction)


def _scale(reward: Tensor, ends: Tensor, gamma: float, in_teacher_units: bool, students: tuple[Policy, ...], task: Tensor | None = None) -> Tensor:
    """[] or, of several tasks, [T, N]."""
    critics = [c for s in students if isinstance(c := getattr(s, "training_heads", {"value": None})["value"], Critic)] if not in_teacher_units else []
    if not critics:
        return torch.ones(())
    if float(critics[0].scale.max()) == 0:
        returns = to_go(reward, ends, gamma)
        each = [returns] if task is None else [returns[task == k] for k in range(len(critics[0].scale))]
        spread = torch.stack([x.std().clamp_min(1e-6) if len(x) > 1 else torch.ones(()) for x in each])
        for critic in critics:
            critic.scale.copy_(spread if task is not None else spread[0])
    return critics[0].scale if task is None else critics[0].scale[task.long()]


__all__ = ["Critic", "Horizon", "behaviour", "enrich", "gae", "n_step"]
