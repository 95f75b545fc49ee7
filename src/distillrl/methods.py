"""The named methods of the literature, each a few lines of choices: who drives, what is kept, which terms.

A method is a function of what the teacher can give and how the action is represented; it returns phases. Any term can be
added to any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from distillrl.config import Phase
from distillrl.errors import Misconfigured, Missing, nearest
from distillrl.records import Spec


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    expand: Callable[[frozenset[str], Spec], tuple[Phase, ...]]
    title: str
    paper: str
    driver: str
    needs: str
    when: str


def behaviour_cloning(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The teacher drives; the likelihood of its actions is maximised (Pomerleau 1991)."""
    return (Phase(beta="1", terms={"nll": "1"}),)


def policy_distillation(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The teacher drives; KL to its distribution, or to softmax(Q/τ) with τ = 0.01, which sharpens (Rusu 2016, eq. 3)."""
    return (Phase(beta="1", terms=_soft(gives, "policy-distillation")),)


def dagger(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The teacher's share of the driving falls from 1, and all labelled states are kept (Ross 2011, algorithm 3.1)."""
    return (Phase(beta="power(0.7)", terms=_any(gives, spec)),)


def on_policy(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The student drives, samples, and learns only from where it has just been (Czarnecki 2019, section 3)."""
    return (Phase(beta="0", keep="round", sampled=spec.action.kind != "box", terms=_any(gives, spec)),)


def viper_tree(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The teacher drives the first round, the tree all later ones; it is grown anew on all states (Bastani 2018, algorithm 1)."""
    return (Phase(beta="power(0)", first=256, steps=256, terms=_any(gives, spec)),)


def dagger_by_episode(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """As dagger, but who drives is drawn once an episode, so that each stretch of states is one policy's own (Ross 2011, section 3.2)."""
    return (Phase(beta="power(0.7)", by="episode", terms=_any(gives, spec)),)


def dart(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The teacher drives with as much noise in its actions as the student errs, and its labels show how it recovers (Laskey 2017, algorithm 1, with one deviation for all components)."""
    return (Phase(beta="1", noise="error(1, 0.2)", terms=_any(gives, spec)),)


def active(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """After a first round of the teacher's the student drives; the teacher is asked where students disagree (Seung 1992; Menda 2019, section IV)."""
    return (Phase(beta="power(0)", first=16, choose="disagreement", terms=_any(gives, spec)),)


def late_start(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The teacher drives the first 0 to so many steps of each episode, ever fewer, then the student (Uchendu 2023, section 4; here labelled by the teacher)."""
    return (Phase(late="linear(100, 0, over=20)", terms=_any(gives, spec)),)


def lazy_dagger(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The student drives until it differs from its teacher, which drives until they are at one again (Hoque 2021, algorithm 1)."""
    return (Phase(rescue="agreement(below=0.5, above=0.9, steps=5)", terms=_any(gives, spec)),)


def thrifty_dagger(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The student drives until the teacher's value is among the lowest tenth seen, from where the teacher recovers (Hoque 2021, section 4.3; its risk, without its novelty)."""
    if not gives & {"value", "q"}:
        raise _lacks("`value` or `q`", gives, "thrifty-dagger")
    return (Phase(rescue="value(below=0.1, above=0.3, steps=10)", terms=_any(gives, spec)),)


def gkd(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """Half of the states the teacher's, half the student's, under the Jensen–Shannon divergence (Agarwal 2024, eq. 4)."""
    _box_needs_distribution(gives, spec, "gkd")
    return (Phase(beta="0.5", sampled=_samples(spec), terms={"jensen_shannon": "1"}),)


def reverse_kl(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The student drives, and settles on one of the things that the teacher does (Gu 2024, section 2.1; Czarnecki 2019)."""
    _soft(gives, "reverse-kl")
    _box_needs_distribution(gives, spec, "reverse-kl")
    sharp = {} if "distribution" in gives else {"teacher_temperature": 0.01}
    return (Phase(beta="0", keep="round", sampled=_samples(spec), terms={"reverse_kl": {"weight": "1", **sharp}}),)


def fitnets(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """As dagger, with the student's last layer held to the teacher's by a learnt map (Romero 2015, eq. 3)."""
    _features(gives, "fitnets")
    return (Phase(beta="power(0.7)", terms={**_any(gives, spec), "hint": {"weight": "0.1", "always": True}}),)


def actor_mimic(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The student drives: cross-entropy with the teacher's policy, and regression of its features (Parisotto 2016, eq. 4 and 5)."""
    _features(gives, "actor-mimic")
    policy = {"mse": "1"} if spec.action.kind == "box" else {"cross_entropy": next(iter(_any(gives, spec).values()))}
    return (Phase(beta="0", terms={**policy, "feature_regression": "0.01"}),)


def viper(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """As dagger, and states count by what is at stake in them (Bastani 2018, algorithm 1; made for trees)."""
    return (Phase(beta="power(0.7)", critical=True, terms=_any(gives, spec)),)


def kickstarting(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The student drives and learns by PPO, beside a policy distillation that fades (Schmitt 2018, eq. 4)."""
    return (_by_reward({name: _weighted(term, "linear(1, 0)") for name, term in _any(gives, spec).items()}, "0.1"),)


def ppd(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """Proximal policy distillation: PPO with a constant divergence to the teacher, on the student's own states (Spigler 2024, eq. 4)."""
    return (_by_reward({name: _weighted(term, "2") for name, term in _any(gives, spec).items()}, "0.1"),)


def qdagger(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """Q-learning beside a distillation that ends when the student earns what its teacher does (Agarwal 2022, eq. 4)."""
    if spec.action.kind != "discrete":
        raise Misconfigured(f"qdagger is for discrete actions, not for {spec.action.kind}: kickstarting and ppd learn by reward there")
    policy = {name: _weighted(term, "return_ratio(1)") for name, term in _any(gives, spec).items()}
    return (Phase(beta="power(0.7)", noise="0.05", terms={**policy, "q_learning": "0.1"}),)


def distillation_as_reward(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The student samples, and is rewarded by log T(a) − log S(a): the reverse KL by one sample (Yang 2026, eq. 8)."""
    _soft(gives, "distillation-as-reward")
    _box_needs_distribution(gives, spec, "distillation-as-reward")
    return (_student_drives({"distillation_reward": "1"}, average=0.9),)


def entropy_regularised(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """Reverse KL whose gradient counts where the student's actions lead (Czarnecki 2019, section 3.3)."""
    _soft(gives, "entropy-regularised")
    _box_needs_distribution(gives, spec, "entropy-regularised")
    return (_student_drives({"expected_entropy_regularised": "1"}, average=0.9, gamma=0.5),)


def ppo(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The reward alone from the first step on, the teacher asked nothing (Schulman 2017, eq. 7): what distilling is held against."""
    alone = _by_reward({}, "1")
    return (replace(alone, terms={**alone.terms, "entropy": "0.005"}, first=128, steps=128, lr=1e-3),)


def distral(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """Each task's own policy drives and learns by its reward, held to the one that they share; that one is the student (Teh 2017, eq. 1 and 9).

    The teacher is not asked: it is what the student is measured against. A term on it, such as ``+forward_kl: linear(1,0)``, kickstarts.
    """
    if not spec.tasks:
        raise Misconfigured("distral is for several tasks side by side: --env CartPole-v1,Acrobot-v1; kickstarting and ppd learn one by its reward")
    if spec.action.kind != "discrete":
        raise Misconfigured(f"distral is for discrete actions, not for {spec.action.kind}: kickstarting and ppd learn by reward there")
    return (replace(_student_drives({"distral": {"weight": "1", "kl": 0.1, "entropy": 0.01}, "return_mse": "0.5"}, average=0.0), steps=128, lr=1e-3),)


def finetune(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """Dagger; then the critic alone, the policy frozen; then PPO (Hanna 2017 and Uchendu 2023 on why the critic comes first)."""
    return with_finetuning(dagger(gives, spec))


def with_finetuning(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The phases, and after them the reward alone: the critic with the policy frozen until it explains half of the returns' variance, then PPO.

    The last phase given ends with the run's aim, or with half of the budget, unless it says when; the critic has 10 rounds or a quarter
    of the budget at most, and the λ of what follows (with λ = 1 in its place the return fell afterwards: docs/methods.md). PPO goes twice
    over a round's 2,048 steps (of 16 slots): eight times, at a lower rate, let the return fall later on, whatever the critic knew.
    """
    before = phases[-1]
    if not before.rounds and before.until == "none":
        before = replace(before, until="aim, spent=0.5")
    warm = Phase(beta="0", keep="round", sampled=True, terms={"return_mse": "1"}, train="value", rounds=10, until="explained_variance=0.5, spent=0.75", steps=128, average=0.0)
    return (*phases[:-1], before, warm, replace(_by_reward({}, "1"), steps=128, updates=16, lr=1e-3))


def recorded(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """What ``auto`` comes to on recorded play: the distribution where it is known, else the action, of every state."""
    return (Phase(beta="1", terms=_any(gives, spec)),)


def awr(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """Recorded actions, each counted by the exponential of its advantage (Peng 2019, eq. 9)."""
    return (Phase(beta="1", weigh="awr(1)", terms=_action(spec)),)


def crr(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """Recorded actions, only those that are better than their state is worth (Wang 2020, eq. 3, «binary»)."""
    return (Phase(beta="1", weigh="crr", terms=_action(spec)),)


def percent_bc(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """Behaviour cloning of the episodes with the highest returns, a tenth of all steps (Chen 2021, section 5)."""
    return (Phase(beta="1", weigh="top(0.1)", terms=_any(gives, spec)),)


def auto(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """What was best over the environments of ``make bench-auto`` (docs/methods.md): aggregated states, the student soon
    driving alone; the teacher's distribution where there are choices, its action where there are quantities. Quantities
    are driven with a tenth of their half range as noise, so that the student learns how its teacher recovers (Laskey 2017), and are
    averaged over longer once a run is long.
    """
    return tuple(replace(p, noise="0.1", average=0.999) if spec.action.kind == "box" else p for p in dagger(gives, spec))


METHODS: dict[str, Method] = {
    "auto": Method(auto, "what suits the spaces and the teacher", "docs/methods.md", "teacher, then student", "action", "to begin with"),
    "behaviour-cloning": Method(behaviour_cloning, "behaviour cloning", "Pomerleau 1991", "teacher", "action", "the student must never drive"),
    "policy-distillation": Method(policy_distillation, "policy distillation", "Rusu 2016, 1511.06295", "teacher", "distribution or q", "the student must never drive, and the teacher tells its probabilities"),
    "dagger": Method(dagger, "dataset aggregation", "Ross 2011, 1011.0686", "mixture", "action", "the teacher can be asked anywhere"),
    "viper-tree": Method(viper_tree, "a tree by imitation", "Bastani 2018, 1805.08328", "teacher, then student", "action", "the student is a tree"),
    "dagger-by-episode": Method(dagger_by_episode, "dataset aggregation by episode", "Ross 2011, 1011.0686", "mixture by episode", "action", "as dagger, where a state only makes sense along one policy's way"),
    "dart": Method(dart, "noise-injected teacher", "Laskey 2017, 1703.09327", "teacher with noise", "action", "the student must never drive, and errors must be unlearnt"),
    "active": Method(active, "active labelling", "Menda 2019, 1807.08364; Seung 1992", "teacher, then student", "action; no memory", "the teacher's answers are dear: with --labels, it is asked about the states that students disagree on"),
    "late-start": Method(late_start, "late starts", "Uchendu 2023, 2204.02372", "teacher, then student, in each episode", "action", "what matters lies deep in an episode, where the student alone doesn't get"),
    "lazy-dagger": Method(lazy_dagger, "teacher's rescue by agreement", "Hoque 2021, 2104.00053", "student, rescued by the teacher", "action", "the student must not stray far while it learns"),
    "thrifty-dagger": Method(thrifty_dagger, "teacher's rescue by value", "Hoque 2021, 2109.08273", "student, rescued by the teacher", "action and value or q", "danger counts, not difference"),
    "gkd": Method(gkd, "generalised knowledge distillation", "Agarwal 2024, 2306.13649", "half teacher, half student", "action; for a box: distribution", "odd states must not rule the loss"),
    "reverse-kl": Method(reverse_kl, "on-policy reverse KL", "Gu 2024, 2306.08543; Czarnecki 2019, 1902.02186", "student", "distribution or q; for a box: distribution", "the student is too small for all that the teacher does"),
    "fitnets": Method(fitnets, "hints", "Romero 2015, 1412.6550", "mixture", "action and features", "the teacher is a network whose layers are known"),
    "actor-mimic": Method(actor_mimic, "policy and feature regression", "Parisotto 2016, 1511.06342", "student", "action and features", "the student is to learn other tasks later"),
    "viper": Method(viper, "critical states first", "Bastani 2018, 1805.08328", "mixture", "action", "few states decide: trees, and students that are very small"),
    "kickstarting": Method(kickstarting, "kickstarting", "Schmitt 2018, 1803.03835", "student", "action", "the student may pass its teacher, and steps are cheap"),
    "ppd": Method(ppd, "proximal policy distillation", "Spigler 2024, 2407.15134", "student", "action", "as kickstarting, but it stays near its teacher"),
    "qdagger": Method(qdagger, "QDagger", "Agarwal 2022, 2206.01626", "mixture with noise", "action; discrete actions only", "the student is to know Q-values, and go on by Q-learning"),
    "distillation-as-reward": Method(distillation_as_reward, "the teacher's opinion as reward", "Yang 2026, 2602.12125", "student", "distribution or q; for a box: distribution", "to reach past the teacher, with scale above 1"),
    "entropy-regularised": Method(entropy_regularised, "expected entropy regularised distillation", "Czarnecki 2019, 1902.02186", "student", "distribution or q; for a box: distribution", "where the student's own actions lead must count"),
    "distral": Method(distral, "a policy for each task and one that they share", "Teh 2017, 1707.04175", "each task's own policy", "nothing: its return alone is the measure; several tasks, discrete actions", "several related tasks are to be learnt by reward, and what they have in common is wanted"),
    "finetune": Method(finetune, "dagger, critic, then PPO", "Uchendu 2023, 2204.02372", "mixture, then student", "action", "the student is to go on by reward after it was distilled"),
    "ppo": Method(ppo, "PPO from scratch", "Schulman 2017, 1707.06347", "student", "nothing: its return alone is the measure", "to know what the teacher saves (report --scratch)"),
    "awr": Method(awr, "advantage-weighted regression", "Peng 2019, 1910.00177", "recorded play", "action; rewards in the recording", "recorded play is of mixed quality, and its rewards say which"),
    "crr": Method(crr, "critic-regularised regression, binary filter", "Wang 2020, 2006.15134", "recorded play", "action; rewards in the recording", "as awr, where bad actions must not count at all"),
    "percent-bc": Method(percent_bc, "percentage behaviour cloning", "Chen 2021, 2106.01345", "recorded play", "action; rewards in the recording", "some recorded episodes are good from beginning to end"),
    "on-policy": Method(on_policy, "on-policy distillation", "Czarnecki 2019, 1902.02186", "student", "action", "steps are cheap, memory is dear"),
}


WITHOUT_TEACHER = ("ppo", "distral")
"""The methods that ask the teacher nothing, so that there may be none."""


BY_GRADIENT = ("reverse-kl", "fitnets", "actor-mimic", "kickstarting", "ppd", "qdagger", "distillation-as-reward", "entropy-regularised", "distral", "ppo", "on-policy")
"""The methods that are what they are by their loss, so that a student that is fitted anew each round can't follow them."""


def expand(name: str, gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The phases of a method for this teacher; raises Misconfigured (unknown name) or Missing (the teacher lacks what it needs)."""
    if name not in METHODS:
        raise Misconfigured(f"--method {name!r}{nearest(name, METHODS)}")
    return METHODS[name].expand(gives, spec)


ON_RECORDED = ("behaviour-cloning", "policy-distillation", "viper-tree", "awr", "crr", "percent-bc")
"""The methods in which the student never drives, so that recorded play will do."""


def expand_recorded(name: str, gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The phases of a method on recorded play; raises Misconfigured for one that lets the student drive."""
    if name == "auto":
        return recorded(gives, spec)
    phases = expand(name, gives, spec)
    if name not in ON_RECORDED:
        raise Misconfigured(f"--method {name} is driven by {METHODS[name].driver}, and --data has only what was recorded; these would do: {', '.join(ON_RECORDED)}")
    return phases


def _samples(spec: Spec) -> bool:
    return spec.action.kind != "box"


def _student_drives(terms: dict[str, Any], average: float = 0.99, gamma: float = 0.99) -> Phase:
    """Phase of a student that plays samples and learns from them alone, as policy gradients must."""
    return Phase(beta="0", keep="round", sampled=True, terms=terms, average=average, gamma=gamma)


def _by_reward(beside: dict[str, Any], weight: str) -> Phase:
    """PPO with its critic (Schulman 2017), beside other terms."""
    reward = {"ppo_clip": weight, "return_mse": "0.5", "entropy": "0.001"}
    return Phase(beta="0", keep="round", sampled=True, terms={**beside, **reward}, average=0.0)


def _weighted(term: Any, weight: str) -> dict[str, Any]:
    """The term with its own options, under another weight."""
    return {**(term if isinstance(term, dict) else {}), "weight": weight}


def _lacks(what: str, gives: frozenset[str], who: str) -> Missing:
    others = ", ".join(name for name, m in METHODS.items() if m.needs == "action")
    return Missing(f"{who} needs {what}, but this teacher gives only {' and '.join(f'`{g}`' for g in sorted(gives))}; these methods would do: {others}")


def _features(gives: frozenset[str], who: str) -> None:
    if not any(g.startswith("features.") for g in gives):
        raise _lacks("`features`", gives, who)


def _box_needs_distribution(gives: frozenset[str], spec: Spec, who: str) -> None:
    if spec.action.kind == "box" and "distribution" not in gives:
        raise _lacks("`distribution`", gives, who)


def _soft(gives: frozenset[str], who: str) -> dict[str, Any]:
    if "distribution" in gives:
        return {"forward_kl": "1"}
    if "q" in gives:
        return {"forward_kl": {"weight": "1", "teacher_temperature": 0.01}}
    raise _lacks("`distribution` or `q`", gives, who)


def _action(spec: Spec) -> dict[str, Any]:
    return {"mse" if spec.action.kind == "box" else "nll": "1"}


def _any(gives: frozenset[str], spec: Spec) -> dict[str, Any]:
    if spec.action.kind == "box":
        return {"mse": "1", "spread_mse": "0.1"} if "distribution" in gives else {"mse": "1"}
    return _soft(gives, "") if gives & {"distribution", "q"} else {"nll": "1"}
