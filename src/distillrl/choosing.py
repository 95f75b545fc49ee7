"""Which states the teacher is asked about: all, or the share of a round's where the students know least (active labelling).

    all            every state
    random         drawn evenly: what the others are to be compared with
    entropy        mostly where the student's own distribution is most undecided (Lewis & Gale 1994)
    disagreement   mostly where students that learnt from different halves of the states differ most (query by committee, Seung 1992; EnsembleDAgger, Menda 2019)

By entropy and by disagreement states are drawn with chances proportional to the score, not taken from the top: the top of a round is
the same moment of many neighbours, and 300 labels taken so taught a third of what 300 drawn evenly did (docs/methods.md; Kirsch 2021,
2106.12059, "power": the top of log score + Gumbel noise is such a draw).

States in which the teacher drove are labelled anyway, as it was asked there for its action. Of the others none is asked about twice, nor
is one that looks the same as one that was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distillrl.actions import Action, Bernoulli, Categorical, Gaussian, MultiCategorical, gumbel
from distillrl.config import Phase
from distillrl.errors import Misconfigured, Missing
from distillrl.policies import ACTION, Memory, Policy
from distillrl.records import Prediction, Rollout, over_states
from distillrl.states import label_all, refuse_nan, told_in_order

SURE = 1e-9
"""The score below which none is told apart."""


def choose(how: str, rollout: Rollout, students: Sequence[Policy], budget: int, generator: torch.Generator, asked: Tensor) -> Tensor:
    """[T, N] bool: at most ``budget`` valid states that have no label yet, drawn in proportion to how unsure the students are of them.

    ``asked``: the ``keys`` of all states that have one.
    """
    known = keys(rollout)
    open_ = rollout.valid & ~rollout.labelled & ~torch.isin(known, asked) & ~torch.isin(known, known[rollout.labelled & rollout.valid])
    chance = gumbel(open_.shape, generator).double()
    unsure = SCORES[how](rollout, students) if how in SCORES else torch.ones_like(chance)
    ranked = unsure.double().clamp_min(SURE).log() + chance
    ranked = ranked.masked_fill(~open_, -torch.inf).flatten()
    order = ranked.argsort(descending=True, stable=True)
    place = torch.arange(len(order))
    group = known.flatten()[order].unique(return_inverse=True)[1]
    first = torch.full_like(place, len(place)).scatter_reduce(0, group, place, "amin")[group] == place
    chosen = torch.zeros(ranked.shape, dtype=torch.bool)
    chosen[order[first & ranked[order].isfinite()][: max(0, budget)]] = True
    return chosen.view_as(open_)


def keys(rollout: Rollout) -> Tensor:
    """[T, N] int64: alike where all stored observations are, and else different but for a chance of 1 in 2⁶⁴."""
    total = torch.zeros(rollout.valid.shape, dtype=torch.int64)
    for name in sorted(rollout.obs):
        x = rollout.obs[name][:-1].flatten(2) if rollout.obs[name].dim() > 2 else rollout.obs[name][:-1].unsqueeze(-1)
        whole = x.contiguous().view(_AS_WHOLE[x.dtype.itemsize]) if x.is_floating_point() else x
        odd = torch.randint(-(1 << 62), 1 << 62, (whole.shape[-1],), generator=torch.Generator().manual_seed(len(name))) * 2 + 1
        mixed = (whole.long() + 1) * odd
        total = total * 0x5851F42D4C957F2D + ((mixed ^ (mixed >> 29)) * 0x2545F4914F6CDD1D).sum(-1)
    return total


_AS_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def label(rollout: Rollout, chosen: Tensor, teacher: Policy, wants: frozenset[str]) -> Rollout:
    """The rollout with the teacher's labels in the chosen states too; it is asked about those alone. Raises Failed for a NaN."""
    if not bool(chosen.any()):
        return rollout
    at = chosen.nonzero(as_tuple=True)
    obs = {k: v[:-1][at].unsqueeze(1) for k, v in rollout.obs.items()}
    told = over_states(lambda x: x.squeeze(1), label_all(teacher, obs, wants))
    known = rollout.teacher
    if known is None:
        known = over_states(lambda x: x.new_zeros((*chosen.shape, *x.shape[1:])), told)
    known = over_states(lambda old, new: old.index_put(at, new.to(old.dtype)), known, told)
    labelled = rollout.labelled | chosen
    refuse_nan(known, labelled)
    return replace(rollout, teacher=known, labelled=labelled)


def check(phase: Phase, student: Any, teacher: Policy, wants: frozenset[str]) -> None:
    """Whether a phase can choose states so, before round 0; raises Misconfigured or Missing."""
    how = phase.choose
    if how == "all":
        return
    if teacher.init(1):
        raise Missing(f"choose = {how!r} needs a teacher without memory: one that remembers has to see every state anyway; choose = 'all' is right")
    if phase.critical:
        raise Misconfigured(f"choose = {how!r} and critical = true: what is at stake is only known of labelled states; one of both is right")
    on_way = sorted(w for w in wants if w.startswith("extra.") or w == "behaviour_log_prob")
    if on_way:
        raise Misconfigured(f"choose = {how!r} leaves states without a label, but a term of this phase learns from every state in turn ({', '.join(on_way)}); choose = 'all' is right")
    if how == "entropy" and (student.spec.action.kind == "box" or "distribution" not in student.gives):
        raise Misconfigured("choose = 'entropy' needs a student whose distribution widens where it is undecided; this one's doesn't: choose = 'disagreement' is right")
    if how == "disagreement" and getattr(student, "grown", False):
        raise Misconfigured("choose = 'disagreement' needs students that learn by gradients, such as --student mlp:16x16; for a tree, 'random' or 'all' is right")


def entropy(rollout: Rollout, students: Sequence[Policy]) -> Tensor:
    """[T, N] nats of the first student's distribution."""
    action = played_again(students[0], rollout, dict(rollout.memory)).action
    assert action is not None
    return action.entropy()


def disagreement(rollout: Rollout, students: Sequence[Policy]) -> Tensor:
    """[T, N] of several students: for choices the Jensen–Shannon divergence of their distributions, in nats, summed over the choices;
    for quantities the variance of their actions in half ranges (1 where there are no bounds), summed over the components.
    """
    told = [played_again(s, rollout, dict(rollout.memory) if i == 0 else s.init(rollout.valid.shape[1])).action for i, s in enumerate(students)]
    shares = [_shares(a, students[0].spec.action.n) for a in told]
    if shares[0] is None:
        return _spread([a for a in told if a is not None])
    total = torch.zeros(rollout.valid.shape)
    for choice in zip(*(s for s in shares if s is not None), strict=True):
        p = torch.stack(choice)
        total += _nats(p.mean(0)) - _nats(p).mean(0)
    return total


def played_again(student: Policy, rollout: Rollout, memory: Memory) -> Prediction:
    """What a student says of all states of a rollout, [T, N, ...]; one that remembers sees them in their order."""
    if not memory:
        return label_all(student, {k: v[:-1] for k, v in rollout.obs.items()}, ACTION)
    return told_in_order(student, rollout.obs, rollout.starts, memory, ACTION)[0]


SCORES: dict[str, Callable[[Rollout, Sequence[Policy]], Tensor]] = {"entropy": entropy, "disagreement": disagreement}


def _shares(action: Action | None, n: int) -> list[Tensor] | None:
    """Probabilities [..., A] of each choice; a choice without a distribution has one for the action that is played. None for quantities."""
    if isinstance(action, Categorical):
        return [action.log_probs.exp()]
    if isinstance(action, MultiCategorical):
        return [part.log_probs.exp() for part in action.parts]
    if isinstance(action, Bernoulli):
        on = action.logits.sigmoid()
        return list(torch.stack([on, 1 - on], -1).unbind(-2))
    if isinstance(action, Gaussian) or action is None or action.mode.is_floating_point():
        return None
    return [torch.nn.functional.one_hot(action.mode, n).float()]


def _spread(actions: Sequence[Action]) -> Tensor:
    modes = torch.stack([a.mode for a in actions])
    low, high = getattr(actions[0], "low", None), getattr(actions[0], "high", None)
    half = torch.ones(modes.shape[-1]) if low is None or high is None else (high - low) / 2
    half = torch.where(half.isfinite(), half, torch.ones_like(half))
    return (modes / half).var(0, correction=0).sum(-1)


def _nats(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


__all__ = ["SCORES", "check", "choose", "disagreement", "entropy", "label", "played_again"]
