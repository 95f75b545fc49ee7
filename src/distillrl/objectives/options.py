"""Checks of an objective's options: a value → None where it is right, else what would be. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from distillrl.errors import nearest

Check = Callable[[Any], str | None]


def number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Check:
    """A finite number from ``low`` to ``high``; with ``above`` and ``below`` the ends themselves don't count."""
    first = f"{'above' if above else 'from'} {low:g}" if low > -math.inf else ""
    last = f"{'below' if below else 'to'} {high:g}" if high < math.inf else ""
    text = " ".join(["a number", first, *(["and"] if first and below else []), last]).strip().replace("  ", " ")

    def check(value: Any) -> str | None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return text
        right = (value > low if above else value >= low) and (value < high if below else value <= high)
        return None if right else text

    return check


def count(low: int) -> Check:
    """A whole number from ``low``."""
    return lambda value: None if isinstance(value, int) and not isinstance(value, bool) and value >= low else f"a whole number from {low}"


def one_of(*words: Any) -> Check:
    """One of these."""
    shown = "one of " + ", ".join(map(repr, words))
    return lambda value: (
        None if value in words and not isinstance(value, bool) else shown + (nearest(value, words) if isinstance(value, str) else "")
    )


def flag(value: Any) -> str | None:
    """True or false."""
    return None if isinstance(value, bool) else "true or false"


def layer(value: Any) -> str | None:
    """A layer's name; whether it is there is seen when teacher and student are known."""
    return None if isinstance(value, str) and value else "a layer's name as `distillrl info` lists it, or 'last',"


POSITIVE = number(0, above=True)
NOT_NEGATIVE = number(0)
ANY_NUMBER = number(-math.inf)
SHARE = number(0, 1)
INNER = number(0, 1, above=True, below=True)
