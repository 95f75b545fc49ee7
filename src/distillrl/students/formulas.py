"""Formulas for a person and as code: the outputs of linear and polynomial models, and the action that follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from distillrl.records import ActionSpace
from distillrl.students.fitted import Fitted
from distillrl.students.growing import NEVER


def outputs(space: ActionSpace) -> list[str]:
    """What each output is called."""
    if space.kind == "discrete":
        return [f"score of action {i + space.start}" for i in range(space.n)]
    return [f"action[{i}]" for i in range(space.dimensions)]


def formula(weight: Tensor, bias: Tensor, names: Sequence[str], digits: int = 3) -> str:
    """``0.5·a - 2·b + 1``; "never" for an action that is never chosen."""
    if float(bias) <= NEVER:
        return "never"
    parts = [f"{float(w):+.{digits}g}·{name}" for w, name in zip(weight, names, strict=True) if float(w) != 0]
    return " ".join([*parts, f"{float(bias):+.{digits}g}"]).removeprefix("+")


def equations(space: ActionSpace, weight: Tensor, bias: Tensor, names: Sequence[str], digits: int = 3) -> list[str]:
    """One line an output."""
    return [f"{out} = {formula(w, b, names, digits)}" for out, w, b in zip(outputs(space), weight, bias, strict=True)]


def expression(weight: Tensor, bias: Tensor, names: Sequence[str], suffix: str = "") -> str:
    """The same as code: every digit that float32 has."""
    parts = [f"{float(w)!r}{suffix} * {name}" for w, name in zip(weight, names, strict=True) if float(w) != 0]
    return " + ".join([*parts, f"{float(bias)!r}{suffix}"])


def chosen(space: ActionSpace, values: Sequence[str], python: bool) -> list[str]:
    """Code that gives the action of these outputs."""
    if space.kind != "discrete":
        values = [_within(v, low, high, python) for v, low, high in zip(values, space.low, space.high, strict=True)]
    if python:
        if space.kind != "discrete":
            return [f"return [{', '.join(values)}]"]
        return [f"scores = [{', '.join(values)}]", f"return scores.index(max(scores)) + {space.start}"]
    if space.kind != "discrete":
        return [*[f"action[{i}] = {v};" for i, v in enumerate(values)], "return;"]
    setting = [f"const float scores[{len(values)}] = {{{', '.join(values)}}};", "int best = 0;"]
    return [*setting, f"for (int i = 1; i < {len(values)}; i++) if (scores[i] > scores[best]) best = i;", f"return best + {space.start};"]


def _within(value: str, low: float, high: float, python: bool) -> str:
    """Clipped to the bounds that there are."""
    most, least = ("max({}, {})", "min({}, {})") if python else ("fmaxf({}, {}f)", "fminf({}, {}f)")
    value = most.format(value, repr(low)) if math.isfinite(low) else value
    return least.format(value, repr(high)) if math.isfinite(high) else value


def inputs(count: int) -> list[str]:
    """What code calls the numbers that a policy reads."""
    return [f"x[{i}]" for i in range(count)]


def decided(policy: Fitted, x: Tensor) -> str:
    """The action of the numbers x [F], as the environment counts it."""
    mode = policy.judge(x).action.mode  # type: ignore[union-attr]  # it has one
    whole = int(mode) + policy.spec.action.start if policy.spec.action.kind == "discrete" else [round(v, 6) for v in mode.tolist()]
    return f"action {whole}"
