"""Weights and mixtures that change while learning: a number, or a schedule, Progress → float.

    constant(w), or just the number       w always
    linear(a, b)                          from a to b along a straight line
    cosine(a, b)                          from a to b along half a cosine: slow, fast, slow
    exponential(a, b)                     from a to b by the same factor each time
    power(r) or power(r, a)               a · r^round (DAgger's β, Ross 2011); a is 1
    agreement(a, b)                       a where student and teacher never agree, b where they always do; 1, 0 by default
    error(a) or error(a, first)           a · the student's error in the last round, first until it is known: 1 − agreement, or for a box the
                                          root mean square of action differences in half ranges (DART's noise, Laskey 2017)
    gradnorm or gradnorm(a, alpha)        a, times what holds this term's gradient in balance with those of the other gradnorm terms (balancing.py)
    uncertainty or uncertainty(a)         a, times what the learner finds for it beside the other uncertainty terms (balancing.py)
    return_ratio(a) or return_ratio(a, t) a · max(1 − G_student / G_teacher, 0), until the share t of the run (QDagger, Agarwal 2022)

linear, cosine and exponential run over the whole run's budget, or with ``over=ROUNDS`` over so many rounds, and then stay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from distillrl.errors import Misconfigured, nearest
from distillrl.records import Progress


@dataclass(frozen=True)
class Schedule:
    """A weight as a function of Progress, never negative; ``str()`` gives a text that ``parse`` reads back as its equal."""

    kind: str
    values: tuple[float, ...]
    over: int | None = None
    """Rounds that it runs over; None: the share of the budget that is spent."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise Misconfigured(f"unknown schedule {self.kind!r}{nearest(self.kind, KINDS)}")
        row = KINDS[self.kind]
        values = tuple(float(v) for v in self.values)
        if not row.fewest <= len(values) <= len(row.names):
            raise Misconfigured(
                f"schedule {self.kind} takes {row.signature}; {len(values)} number{'s were' if len(values) != 1 else ' was'} given"
            )
        values += row.defaults[len(values) - len(row.names) :] if len(values) < len(row.names) else ()
        object.__setattr__(self, "values", values)
        if self.over is not None and not row.runs:
            raise Misconfigured(f"schedule {self}: over= is for {', '.join(k for k, r in KINDS.items() if r.runs)}")
        if self.over is not None and (self.over < 1 or self.over != int(self.over)):
            raise Misconfigured(f"schedule {self}: over={self.over} was given; a whole number of rounds from 1 is right")
        for name, value, most in zip(row.names, values, row.most or (math.inf,) * len(values), strict=True):
            if not math.isfinite(value) or value < 0:
                raise Misconfigured(
                    f"schedule {self}: {name} = {value:g} was given; a weight must not go negative or infinite, so 0 or more is right"
                )
            if value > most:
                raise Misconfigured(f"schedule {self}: {name} = {value:g} was given; 0 to {most:g} is right")
            if value == 0 and self.kind == "exponential":
                raise Misconfigured(f"schedule {self}: {name} = 0 can't be reached by factors; use linear or cosine, or a small number")

    def __call__(self, progress: Progress) -> float:
        """The weight now, 0 or more."""
        return KINDS[self.kind].weight(self, progress)

    def __str__(self) -> str:
        if self.kind == "constant":
            return f"{self.values[0]!r}"
        given = [f"{v:g}" if float(f"{v:g}") == v else repr(v) for v in self.values]
        return f"{self.kind}({', '.join(given + ([f'over={self.over}'] if self.over is not None else []))})"

    @property
    def reads(self) -> frozenset[str]:
        """What of Progress it goes by: budget, round, agreement, returns; nothing for a constant."""
        row = KINDS[self.kind]
        return frozenset({"round"}) if row.runs and self.over is not None else row.reads

    def share(self, progress: Progress) -> float:
        """How far along it is, 0 to 1. Without a budget and without ``over`` it stays at 0."""
        return min(1.0, progress.round / self.over) if self.over is not None else progress.fraction


def parse(text: str | float) -> Schedule:
    """``0.5``, ``linear(1, 0.1)``, ``cosine(1, 0, over=40)`` → Schedule; raises Misconfigured with what would be right."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return Schedule("constant", (float(text),))
    words = str(text).strip()
    if (number := _number(words)) is not None:
        return Schedule("constant", (number,))
    match = re.fullmatch(r"(\w+)\s*\(([^()]*)\)", f"{words}()" if words in KINDS and not KINDS[words].fewest else words)
    if match is None:
        raise Misconfigured(f"schedule {words!r}: a number or one of {_examples()} is right{_near(words)}")
    kind, inside = match.groups()
    if kind not in KINDS:
        raise Misconfigured(f"schedule {words!r}: unknown kind {kind!r}{nearest(kind, KINDS)}")
    values, over = [], None
    for argument in (a.strip() for a in inside.split(",") if a.strip()):
        name, equals, value = argument.rpartition("=")
        number = _number(value.strip())
        if number is None or (equals and name.strip() != "over") or (not equals and over is not None):
            raise Misconfigured(f"schedule {words!r}: {argument!r} was given; {KINDS[kind].signature} is right")
        if not equals:
            values.append(number)
        elif number == int(number):
            over = int(number)
        else:
            raise Misconfigured(f"schedule {words!r}: {argument!r} was given; a whole number of rounds is right")
    return Schedule(kind, tuple(values), over)


@dataclass(frozen=True)
class _Kind:
    """One row of the schedules: its numbers, those that may be left out, and how the weight is worked out."""

    names: tuple[str, ...]
    weight: Callable[[Schedule, Progress], float]
    defaults: tuple[float, ...] = ()
    runs: bool = False
    reads: frozenset[str] = frozenset()
    most: tuple[float, ...] = ()
    """The most that each number may be; none: no bound."""

    @property
    def fewest(self) -> int:
        return len(self.names) - len(self.defaults)

    @property
    def signature(self) -> str:
        shown = [*self.names[: self.fewest], *(f"{n}={d:g}" for n, d in zip(self.names[self.fewest :], self.defaults, strict=True))]
        return "(" + ", ".join(shown + (["over=ROUNDS"] if self.runs else [])) + ")"


def _constant(s: Schedule, progress: Progress) -> float:
    return s.values[0]


def _linear(s: Schedule, progress: Progress) -> float:
    a, b = s.values
    x = s.share(progress)
    return a * (1 - x) + b * x


def _cosine(s: Schedule, progress: Progress) -> float:
    a, b = s.values
    x = 0.5 * (1 + math.cos(math.pi * s.share(progress)))
    return a * x + b * (1 - x)


def _exponential(s: Schedule, progress: Progress) -> float:
    a, b = s.values
    return float(a * (b / a) ** s.share(progress))


def _power(s: Schedule, progress: Progress) -> float:
    r, a = s.values
    return float(a * r**progress.round)


def _agreement(s: Schedule, progress: Progress) -> float:
    """Until the first measurement, as if they never agreed."""
    a, b = s.values
    x = min(1.0, max(0.0, progress.metrics.get("agreement", 0.0)))
    return a * (1 - x) + b * x


def _error(s: Schedule, progress: Progress) -> float:
    a, first = s.values
    return min(1.0, a * progress.metrics["error"]) if "error" in progress.metrics else first


def _return_ratio(s: Schedule, progress: Progress) -> float:
    """Returns are counted from ``returns['random']`` where it is known (else from 0), so that negative ones make sense.

    Before student and teacher are both measured it is a; where the teacher is no better than that floor, a until the
    student has passed it. Between 0 and a.
    """
    a, until = s.values
    if progress.fraction >= until and until < 1:
        return 0.0
    student, teacher = progress.returns.get("student"), progress.returns.get("teacher")
    if student is None or teacher is None:
        return a
    floor = progress.returns.get("random", 0.0)
    if teacher <= floor:
        return a if student < teacher else 0.0
    return a * min(1.0, max(0.0, 1 - (student - floor) / (teacher - floor)))


KINDS: dict[str, _Kind] = {
    "constant": _Kind(("weight",), _constant),
    "linear": _Kind(("first", "last"), _linear, runs=True, reads=frozenset({"budget"})),
    "cosine": _Kind(("first", "last"), _cosine, runs=True, reads=frozenset({"budget"})),
    "exponential": _Kind(("first", "last"), _exponential, runs=True, reads=frozenset({"budget"})),
    "power": _Kind(("ratio", "first"), _power, (1.0,), reads=frozenset({"round"}), most=(1.0, math.inf)),
    "agreement": _Kind(("apart", "agreed"), _agreement, (1.0, 0.0), reads=frozenset({"agreement"})),
    "error": _Kind(("scale", "first"), _error, (0.2,), reads=frozenset({"error"}), most=(math.inf, 1.0)),
    "gradnorm": _Kind(("first", "alpha"), _constant, (1.0, 1.5), reads=frozenset({"gradients"})),
    "uncertainty": _Kind(("first",), _constant, (1.0,), reads=frozenset({"gradients"})),
    "return_ratio": _Kind(("first", "until"), _return_ratio, (1.0, 1.0), reads=frozenset({"returns"}), most=(math.inf, 1.0)),
}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _examples() -> str:
    return ", ".join(kind + row.signature for kind, row in KINDS.items())


def _near(words: str) -> str:
    return nearest(words.split("(")[0], KINDS) if words[:1].isalpha() else ""
