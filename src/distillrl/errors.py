"""The three ways things go wrong for a user; the command line shows them without a traceback, exit code 2.

Each message is a sentence that says where, what was given, what would be right, and the nearest name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DistillError(Exception):
    """The common parent, so that a caller can catch all three; never raised itself."""


class Misconfigured(DistillError):
    """The user's options are wrong or don't go together."""


class Missing(DistillError):
    """A stage lacks what another one gives (knowledge, an observation group, an optional package)."""


class Failed(DistillError):
    """The world: a damaged file, a full disk, a dead server, a NaN."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return « (did you mean 'x'?)» for the nearest known name, else « (known: …)»; for the end of a sentence."""
    names = sorted({str(k) for k in known})
    lowered = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {lowered[close[0]]!r}?)"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f" (known: {shown})" if names else ""
