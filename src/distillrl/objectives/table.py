"""The rows: one an objective. Importing it imports no torch; a row names its function or module as ``module:name``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distillrl.objectives.options import ANY_NUMBER, INNER, NOT_NEGATIVE, POSITIVE, SHARE, Check, count, flag, layer, one_of

Options = dict[str, tuple[Any, Check]]
CHOICES = frozenset({"discrete", "multidiscrete", "multibinary"})
DISCRETE = frozenset({"discrete"})
ALL = CHOICES | {"box"}


@dataclass(frozen=True)
class Objective:
    """One row."""

    name: str
    source: str
    """``module:name`` in this folder: a function, or with ``learns`` an nn.Module with layers of its own."""
    title: str
    """When to choose it, in one line."""
    paper: str
    wants: frozenset[str]
    """See the words in ``distillrl.objectives``."""
    options: Mapping[str, tuple[Any, Check]] = field(default_factory=dict)
    """name → (default, check)"""
    kinds: frozenset[str] = ALL
    """The kinds of action that it can do."""
    wants_box: frozenset[str] | None = None
    """What it wants where the action is a box, if that differs."""
    wants_if: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """What it wants besides, under an ``option=value``."""
    per_state: bool = True
    """False: it is one number about the whole batch."""
    learns: bool = False
    random: str = ""
    """``option=value`` or ``option>0`` under which it draws numbers, from the generator that ``make`` is given."""

    def needs(self, kind: str) -> frozenset[str]:
        """What it wants for actions of this kind."""
        return self.wants_box if kind == "box" and self.wants_box is not None else self.wants


def _wants(*words: str) -> frozenset[str]:
    return frozenset(words)


_TEMPERATURES: Options = {"teacher_temperature": (1.0, POSITIVE), "student_temperature": (1.0, POSITIVE)}
_SAMPLED: Options = {"samples": (0, count(0)), **_TEMPERATURES}
_NUMBERS: Options = {"scale": ("range", one_of("range", "std", "none")), "clip": (True, flag), "centre": (True, flag)}
_SCALE: Options = {"scale": (1.0, POSITIVE)}
_SIZED: Options = {"scale": (0.0, NOT_NEGATIVE)}
"""0: as large as the teacher's own figures; else in units of reward."""
_LAYERS: Options = {"layer": ("last", layer), "student_layer": ("last", layer)}
_BASELINE: Options = {"baseline": ("mean", one_of("mean", "max"))}
_CLIP: Options = {"clip": (0.2, POSITIVE)}
_MIXED = _wants("teacher.distribution|teacher.q|teacher.action", "student.distribution|student.q")
_SOFT = _wants("teacher.distribution|teacher.q", "student.distribution|student.q")
_BOTH = _wants("teacher.distribution", "student.distribution")
_Q = _wants("teacher.q", "student.q")
_FEATURES = _wants("teacher.features[layer]", "student.features[layer]")
_PLAYED = _wants("student.distribution", "action", "behaviour_log_prob")
_TD = _wants("student.q", "action", "next", "next_target")
_QUANTILES = _wants("teacher.quantiles", "student.quantiles")

_POLICY = (
    Objective("nll", "policy:nll", "behaviour cloning: the teacher's action alone is known, or all that is wanted", "Pomerleau 1991",
              _wants("teacher.action", "student.distribution|student.q"), {"of": ("mode", one_of("mode", "sample", "expectation")), **_TEMPERATURES},
              wants_box=_wants("teacher.action", "student.distribution"), random="of=sample"),
    Objective("cross_entropy", "policy:cross_entropy", "as forward KL with the teacher's entropy left in: in nats, to compare with nll",
              "Hinton 2015 (1503.02531)", _MIXED, _TEMPERATURES, wants_box=_wants("teacher.distribution|teacher.action", "student.distribution")),
    Objective("forward_kl", "policy:forward_kl", "the usual choice: covers all that the teacher does", "Rusu 2016 (1511.06295)",
              _MIXED, {**_TEMPERATURES, "clip": (False, flag)}, wants_box=_BOTH),
    Objective("reverse_kl", "policy:reverse_kl", "a student too small for all that the teacher does: it settles on one thing", "Czarnecki 2019 (1902.02186)",
              _SOFT, {**_TEMPERATURES, "clip": (False, flag)}, wants_box=_BOTH),
    Objective("jensen_shannon", "policy:jensen_shannon", "between forward and reverse KL; bounded, so that odd states don't rule", "Agarwal 2024 (2306.13649)",
              _MIXED, {"beta": (0.5, INNER), **_SAMPLED}, wants_box=_BOTH, random="samples>0"),
    Objective("skewed_kl", "policy:skewed_kl", "forward KL with bounded gradients, for a student that is far off", "Ko 2024 (2402.03898)",
              _MIXED, {"alpha": (0.1, INNER), **_SAMPLED}, wants_box=_BOTH, random="samples>0"),
    Objective("skewed_reverse_kl", "policy:skewed_reverse_kl", "reverse KL with bounded gradients; also for a teacher that is sure", "Ko 2024 (2402.03898)",
              _MIXED, {"alpha": (0.1, INNER), **_SAMPLED}, wants_box=_BOTH, random="samples>0"),
    Objective("total_variation", "policy:total_variation", "the share of actions that differ; robust, slow to end", "Wen 2023 (2307.15190)",
              _MIXED, _SAMPLED, wants_box=_BOTH, random="samples>0"),
    Objective("decoupled_kl", "policy:decoupled_kl", "forward KL, where what a sure teacher thinks of the other actions is to count too", "Zhao 2022 (2203.08679)",
              _SOFT, {"alpha": (1.0, NOT_NEGATIVE), "beta": (1.0, NOT_NEGATIVE), **_TEMPERATURES}, DISCRETE),
    Objective("entropy_aware", "policy:entropy_aware", "a teacher that is sure in some states and undecided in others", "Jin 2026 (2603.07079)",
              _SOFT, {"threshold": (0.5, SHARE), **_TEMPERATURES}, wants_box=_BOTH),
    Objective("mse", "policy:mse", "continuous actions where teacher or student has no distribution; logits of discrete ones",
              "Ba & Caruana 2014 (1312.6184); Jülg 2025 (2503.05833)", _SOFT, _NUMBERS, wants_box=_wants("teacher.action")),
    Objective("huber", "policy:huber", "as mse, where some of the teacher's actions are outliers", "Huber 1964",
              _SOFT, {"delta": (1.0, POSITIVE), **_NUMBERS}, wants_box=_wants("teacher.action")),
    Objective("spread_mse", "policy:spread_mse", "beside mse: a student whose samples scatter as its teacher's do", "Avé 2024 (Sensors 24, 4876)", _BOTH, kinds=frozenset({"box"})),
)  # fmt: skip

_VALUE = (
    Objective("q_mse", "value:q_mse", "a student that must know Q itself, as a critic or to learn on", "Rusu 2016 (1511.06295)", _Q, _SIZED, DISCRETE),
    Objective("q_kl", "value:q_kl", "a student of a DQN: sharpened Q-values as a policy", "Rusu 2016 (1511.06295)",
              _Q, {"teacher_temperature": (0.01, POSITIVE), "student_temperature": (1.0, POSITIVE)}, DISCRETE),
    Objective("value_mse", "value:value_mse", "a critic for the student, before it learns by reward", "Schmitt 2018 (1803.03835)",
              _wants("teacher.value|teacher.q", "student.value"), _SIZED),
    Objective("advantage_mse", "value:advantage_mse", "which action is better and by how much, without the state's own value", "Wang 2016 (1511.06581)",
              _Q, {**_SIZED, **_BASELINE}, DISCRETE),
    Objective("dueling_mse", "value:dueling_mse", "value and advantage of Q, weighed apart", "Wang 2016 (1511.06581)",
              _Q, {**_SIZED, **_BASELINE, "value_weight": (1.0, NOT_NEGATIVE), "advantage_weight": (1.0, NOT_NEGATIVE)}, DISCRETE),
    Objective("quantile_huber", "value:quantile_huber", "a return distribution, by the loss that it was trained with", "Dabney 2018 (1710.10044); Kuznetsov 2020 (2005.04269)",
              _QUANTILES, {"kappa": (1.0, POSITIVE), **_SCALE, "drop": (0, count(0))}),
    Objective("quantile_distance", "value:quantile_distance", "a return distribution, by a distance that is 0 at equality", "Dabney 2018 (1710.10044)",
              _QUANTILES, {"power": (1, one_of(1, 2)), **_SCALE, "drop": (0, count(0))}),
    Objective("distributional", "value:Distributional", "values as classes: a student whose features must tell returns apart", "Bellemare 2017 (1707.06887); Farebrother 2024 (2403.03950)",
              _wants("teacher.quantiles|teacher.q|teacher.value", "student.features[layer]"),
              {"student_layer": ("last", layer), "atoms": (51, count(2)), "low": (-10.0, ANY_NUMBER), "high": (10.0, ANY_NUMBER)}, learns=True),
)  # fmt: skip

_FEATURE = (
    Objective("hint", "feature:Hint", "the student's layer must hold what the teacher's does", "Romero 2015 (1412.6550)",
              _FEATURES, {**_LAYERS, "hidden": (0, count(0)), "always": (False, flag)}, learns=True),
    Objective("feature_regression", "feature:Hint", "as hint through a hidden layer: Actor-Mimic's, for several tasks or a much smaller student", "Parisotto 2016 (1511.06342)",
              _FEATURES, {**_LAYERS, "hidden": (128, count(1)), "always": (False, flag)}, learns=True),
    Objective("bilinear", "feature:Bilinear", "features from which the teacher's Q is a regularised bilinear form", "the mission's text",
              _wants("teacher.q|teacher.value", "student.features[layer]"),
              {"student_layer": ("last", layer), "penalty": (1e-3, NOT_NEGATIVE), **_SIZED}, learns=True),
    Objective("attention_transfer", "feature:attention_transfer", "convolutional teacher and student: look at the same places", "Zagoruyko 2017 (1612.03928)",
              _FEATURES, {**_LAYERS, "power": (2, count(1))}),
    Objective("rkd_distance", "feature:rkd_distance", "how far states are apart to the teacher; any sizes, nothing learnt", "Park 2019 (1904.05068)",
              _FEATURES, {**_LAYERS, "states": (128, count(2))}, per_state=False),
    Objective("rkd_angle", "feature:rkd_angle", "the angles between states to the teacher; any sizes, nothing learnt", "Park 2019 (1904.05068)",
              _FEATURES, {**_LAYERS, "states": (48, count(3))}, per_state=False),
    Objective("correlation", "feature:correlation", "which states go together to the teacher; any sizes, nothing learnt", "Peng 2019 (1904.01802)",
              _FEATURES, {**_LAYERS, "gamma": (0.4, POSITIVE), "states": (128, count(2))}, per_state=False),
    Objective("cka", "feature:cka", "the same features up to rotation and scale; any sizes, nothing learnt", "Kornblith 2019 (1905.00414)",
              _FEATURES, _LAYERS, per_state=False),
    Objective("crd", "feature:Contrastive", "what tells one state from the others, by a memory bank", "Tian 2020 (1910.10699)",
              _FEATURES, {**_LAYERS, "width": (64, count(1)), "bank": (1024, count(1)), "temperature": (0.1, POSITIVE)}, learns=True),
    Objective("adversarial", "feature:Adversarial", "the same distribution of features, without matching each state", "Chung 2020 (2002.01775); Mescheder 2018 (1801.04406)",
              _FEATURES, {**_LAYERS, "hidden": (64, count(1)), "penalty": (1.0, NOT_NEGATIVE)}, learns=True),
)  # fmt: skip

_REWARD = (
    Objective("ppo_clip", "reward:ppo_clip", "the environment's reward, so that the student can pass its teacher", "Schulman 2017 (1707.06347); Spigler 2024 (2407.15134)",
              _PLAYED | {"extra.advantage"}, {**_CLIP, "standardise": (True, flag)}),
    Objective("a2c", "reward:a2c", "the environment's reward, one update a rollout", "Mnih 2016 (1602.01783)",
              _wants("student.distribution", "action", "extra.advantage"), {"standardise": (False, flag)}),
    Objective("distral", "reward:distral", "several tasks by reward, whose policies are held to the one that they share, which is what is kept", "Teh 2017 (1707.04175)",
              _PLAYED | {"extra.advantage", "student.column"}, {"kl": (0.1, POSITIVE), "entropy": (0.01, NOT_NEGATIVE), **_CLIP}, DISCRETE),
    Objective("return_mse", "reward:return_mse", "the critic beside ppo_clip or a2c", "Mnih 2016 (1602.01783)", _wants("student.value", "extra.return"), _SCALE),
    Objective("entropy", "reward:entropy", "keeps the student trying", "Williams & Peng 1991", _wants("student.distribution|student.q"), wants_box=_wants("student.distribution")),
    Objective("q_learning", "reward:q_learning", "a student with Q-values that goes on by reward: QDagger", "van Hasselt 2016 (1509.06461); Agarwal 2022 (2206.01626)",
              _TD | {"reward", "terminated"}, {"gamma": (0.99, SHARE), "double": (True, flag), "delta": (1.0, POSITIVE)}, DISCRETE),
    Objective("n_step_q_learning", "reward:n_step_q_learning", "as q_learning, where reward is rare", "Hessel 2018 (1710.02298)",
              _TD | {"extra.n_step_return", "extra.n_step_discount"}, {"double": (True, flag), "delta": (1.0, POSITIVE)}, DISCRETE),
    Objective("distillation_reward", "reward:distillation_reward", "the teacher's opinion as reward; scale above 1 reaches past the teacher", "Yang 2026 (2602.12125)",
              _PLAYED | {"teacher.distribution|teacher.q"}, {"scale": (1.0, POSITIVE), "discounted": (False, flag), "baseline": (True, flag), **_CLIP},
              wants_box=_PLAYED | {"teacher.distribution"}, wants_if={"discounted=True": _wants("extra.distillation_return")}),
    Objective("expected_entropy_regularised", "reward:expected_entropy_regularised", "the student drives and its actions' consequences count: converges where plain ones need not",
              "Czarnecki 2019 (1902.02186)", _wants("teacher.distribution|teacher.q", "student.distribution", "action", "behaviour_log_prob", "extra.future_kl"), {"baseline": (True, flag), **_CLIP},
              wants_box=_BOTH | {"action", "behaviour_log_prob", "extra.future_kl"}),
    Objective("value_shaping", "reward:value_shaping", "sparse reward and a teacher that gives values", "Ng 1999; Cheng 2021 (2106.02757)",
              _PLAYED | {"teacher.value|teacher.q", "reward", "terminated", "extra.teacher_next_value"},
              {"gamma": (0.99, SHARE), "standardise": (True, flag), **_CLIP}),
)  # fmt: skip

TABLE: dict[str, Objective] = {row.name: row for row in (*_POLICY, *_VALUE, *_FEATURE, *_REWARD)}
