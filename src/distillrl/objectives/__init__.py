"""Objectives: what a term of the loss is called, wants and takes. To add one, add a function and a row in ``table``.

Importing it imports no torch; ``make`` fetches the function. Wants are words:

    teacher.action, .distribution, .q, .quantiles, .value, .features[NAME]   what the teacher is asked for
    student.…                                                                training heads and layers that must be there
    next, next_target          the student's and its slow copy's Prediction of the next state
    action, reward, terminated, behaviour_log_prob                           fields of Batch
    extra.NAME                 what a wrapper of the driver adds

``a|b`` is a or b, the first that is given; ``[layer]`` stands for the layer that an option names.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from distillrl.errors import Misconfigured, Missing, nearest
from distillrl.objectives.table import TABLE, Objective

if TYPE_CHECKING:
    import torch

    from distillrl.records import Batch, Prediction

__all__ = ["TABLE", "Objective", "check", "draws", "get", "in_order", "make", "suitable", "wants"]


def get(name: str) -> Objective:
    """The row of an objective; raises Misconfigured with the nearest name."""
    if name not in TABLE:
        raise Misconfigured(f"unknown objective {name!r}{nearest(name, TABLE)}")
    return TABLE[name]


def check(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an objective, defaults filled in; raises Misconfigured for an unknown one or a value that isn't right."""
    row = get(name)
    for key in options:
        if key not in row.options:
            hint = nearest(key, row.options) if row.options else " (it has none)"
            raise Misconfigured(f"objective {name}: unknown option {key!r}{hint}")
    full = {key: options.get(key, default) for key, (default, _) in row.options.items()}
    for key, value in full.items():
        right = row.options[key][1](value)
        if right is not None:
            raise Misconfigured(f"objective {name}: {key} = {value!r} was given; {right} is right")
    return full


def wants(name: str, options: Mapping[str, Any], kind: str, teacher_gives: frozenset[str], student_gives: frozenset[str]) -> frozenset[str]:
    """What this objective will read, alternatives and layer names settled, for actions of this kind.

    ``gives`` are Policy.gives of teacher and student (the student's with the training heads that can be added to it).
    Raises Misconfigured for a kind it can't do or a layer that isn't there (those that are get listed), and Missing for
    knowledge that isn't given, with the objectives that would do.
    """
    row, full = get(name), check(name, options)
    if kind not in row.kinds:
        raise Misconfigured(
            f"objective {name} is for {' and '.join(sorted(row.kinds))} actions, not for {kind}{_would_do(kind, teacher_gives)}"
        )
    gives = {"teacher": teacher_gives, "student": student_gives}
    settled = set()
    for want in row.needs(kind).union(*(more for condition, more in row.wants_if.items() if _holds(condition, full))):
        choices = [_with_layer(choice, full, gives, name) for choice in want.split("|")]
        given = [choice for choice in choices if _is_given(choice, gives)]
        if not given:
            who = choices[0].split(".")[0]
            parts = " or ".join(f"`{choice.split('.', 1)[1]}`" for choice in choices)
            known = ", ".join(sorted(gives[who])) or "nothing"
            advice = _would_do(kind, teacher_gives) if who == "teacher" else ""
            raise Missing(f"objective {name} needs the {who}'s {parts}, but this {who} gives only {known}{advice}")
        settled.add(given[0])
    return frozenset(settled)


def draws(name: str, options: Mapping[str, Any]) -> bool:
    """Whether it draws random numbers with these options, and so is given the generator."""
    return _holds(get(name).random, check(name, options))


def make(name: str, options: Mapping[str, Any], student: Prediction, batch: Batch, generator: torch.Generator) -> Any:
    """The loss as a callable ``(student, batch) → Tensor``, its options and generator bound.

    One that ``learns`` is an nn.Module, sized by the example prediction and batch (of the dry run), its weights drawn from
    ``generator`` on the CPU. One that ``draws`` takes its samples from ``generator``, which must be on the student's device.
    Raises Misconfigured as ``check`` does.
    """
    row, full = get(name), check(name, options)
    module, _, attribute = row.source.partition(":")
    function = getattr(importlib.import_module(f"distillrl.objectives.{module}"), attribute)
    if row.learns:
        return function(student, batch, generator=generator, **full)
    return partial(function, **full, **({"generator": generator} if _holds(row.random, full) else {}))


def suitable(kind: str, teacher_gives: frozenset[str]) -> list[str]:
    """The objectives that this kind of action and this teacher's knowledge allow, in the table's order."""
    return [
        row.name
        for row in TABLE.values()
        if kind in row.kinds
        and all(
            any(_is_given(c, {"teacher": teacher_gives}) for c in want.split("|"))
            for want in row.needs(kind)
            if want.startswith("teacher.")
        )
    ]


def in_order(names: Iterable[str]) -> list[str]:
    """Layer names sorted with numbers as numbers: 2 before 10."""
    return sorted(names, key=lambda name: [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")])


def _holds(condition: str, options: Mapping[str, Any]) -> bool:
    """Whether ``option=value`` or ``option>0`` is so; an empty condition never is."""
    if condition.endswith(">0"):
        return bool(options[condition[:-2]] > 0)
    name, _, value = condition.partition("=")
    return bool(condition) and str(options[name]) == value


def _would_do(kind: str, teacher_gives: frozenset[str]) -> str:
    names = [name for name in suitable(kind, teacher_gives) if any(want.startswith("teacher.") for want in TABLE[name].needs(kind))]
    return f"; of this teacher's knowledge, {', '.join(names[:6])} would do" if names else ""


def _is_given(want: str, gives: Mapping[str, frozenset[str]]) -> bool:
    who, _, what = want.partition(".")
    if who not in gives:
        return True
    if what.startswith("features["):
        name = what[len("features[") : -1]
        return f"features.{name}" in gives[who] or (name == "layer" and any(given.startswith("features.") for given in gives[who]))
    return what in gives[who]


def _with_layer(want: str, options: Mapping[str, Any], gives: Mapping[str, frozenset[str]], name: str) -> str:
    """``teacher.features[layer]`` → ``teacher.features[NAME]``, NAME from the option ``layer`` (the student's: ``student_layer``)."""
    who, _, what = want.partition(".")
    if what != "features[layer]":
        return want
    option = "layer" if who == "teacher" else "student_layer"
    chosen = options[option]
    known = in_order(given[len("features.") :] for given in gives[who] if given.startswith("features."))
    if known and chosen != "last" and chosen not in known:
        raise Misconfigured(
            f"objective {name}: {option} = {chosen!r} is no layer of the {who}{nearest(chosen, known)}; it has {', '.join(known)}"
        )
    return f"{who}.features[{known[-1] if known and chosen == 'last' and chosen not in known else chosen}]"
