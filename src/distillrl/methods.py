"""The named methods of the literature, each a few lines of choices: who drives, what is kept, which terms.

A method is a function of what the teacher can give and how the action is represented; it returns phases. Any term can be
added to any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


def auto(gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """What was best over the environments of ``make bench-auto`` (docs/methods.md): aggregated states, the student soon
    driving alone; the teacher's distribution where there are choices, its action where there are quantities.
    """
    return dagger(gives, spec)


METHODS: dict[str, Method] = {
    "auto": Method(auto, "what suits the spaces and the teacher", "docs/methods.md", "teacher, then student", "action", "to begin with"),
    "behaviour-cloning": Method(behaviour_cloning, "behaviour cloning", "Pomerleau 1991", "teacher", "action", "the student must never drive"),
    "policy-distillation": Method(policy_distillation, "policy distillation", "Rusu 2016, 1511.06295", "teacher", "distribution or q", "the student must never drive, and the teacher tells its probabilities"),
    "dagger": Method(dagger, "dataset aggregation", "Ross 2011, 1011.0686", "mixture", "action", "the teacher can be asked anywhere"),
    "on-policy": Method(on_policy, "on-policy distillation", "Czarnecki 2019, 1902.02186", "student", "action", "steps are cheap, memory is dear"),
}


def expand(name: str, gives: frozenset[str], spec: Spec) -> tuple[Phase, ...]:
    """The phases of a method for this teacher; raises Misconfigured (unknown name) or Missing (the teacher lacks what it needs)."""
    if name not in METHODS:
        raise Misconfigured(f"--method {name!r}{nearest(name, METHODS)}")
    return METHODS[name].expand(gives, spec)


def _soft(gives: frozenset[str], who: str) -> dict[str, Any]:
    if "distribution" in gives:
        return {"forward_kl": "1"}
    if "q" in gives:
        return {"forward_kl": {"weight": "1", "teacher_temperature": 0.01}}
    others = ", ".join(name for name, m in METHODS.items() if m.needs == "action")
    raise Missing(f"{who} needs `distribution` or `q`, but this teacher gives only {' and '.join(f'`{g}`' for g in sorted(gives))}; these methods would do: {others}")


def _any(gives: frozenset[str], spec: Spec) -> dict[str, Any]:
    if spec.action.kind == "box":
        return {"mse": "1"}
    return _soft(gives, "") if gives & {"distribution", "q"} else {"nll": "1"}
