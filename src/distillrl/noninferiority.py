"""What may be said of a student against its teacher, in plain words: the test of non-inferiority, and what must stand beside a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from distillrl.bootstrap import Floats, as_returns, both

FEW = 20
"""Figures that rest on fewer episodes are marked."""
MARGIN = 0.02
"""How much worse than its teacher a student may be, in shares of the teacher's return above random play."""
DEPTH = 0.25
"""How far below its teacher, in shares of that one's mean return above random play, an episode counts as a fall."""
_NORMAL = NormalDist()


@dataclass(frozen=True)
class NonInferiority:
    """Whether the student was shown to be no more than the margin worse than its teacher."""

    shown: bool
    p: float | None
    """One-sided; None where the differences have no spread, so that there is no test."""
    episodes: int
    needed: int | None
    """Episodes in all that would show it with 80 % power; None where it is shown, or where more would not help."""
    sentence: str


def non_inferiority(
    student: ArrayLike,
    teacher: ArrayLike,
    margin: float = MARGIN,
    random: ArrayLike | None = None,
    paired: bool = True,
    alike: bool = False,
) -> NonInferiority:
    """Test that the student's mean return is no more than ``margin`` (0.02 = 2 %) worse than the teacher's.

    The margin is of the teacher's distance to random play where ``random`` is given (so it is about retention), else of
    the teacher's return's size. One-sided t-test at 5 % on student − teacher + margin · scale, in which the scale's own
    uncertainty is counted, since it is linear in the same means. ``alike``: all episodes begin alike, so that equal returns
    are those of one and the same episode, and show nothing.
    """
    s, t = both(student, teacher, paired)
    r = as_returns(random, "the random policy's returns") if random is not None else np.zeros(1)
    sign = 1.0 if random is not None or t.mean() >= 0 else -1.0
    parts = [s - (1 - margin * sign) * t] if paired else [s, -(1 - margin * sign) * t]
    if random is not None:
        parts.append(-margin * r)
    lead = float(sum(p.mean() for p in parts))
    variance = [float(p.var(ddof=1)) / p.size if p.size > 1 else 0.0 for p in parts]
    n, error = min(s.size, t.size), math.sqrt(sum(variance))
    claim = f"no more than {100 * margin:g} % worse than the teacher"
    own = variance if random is None else variance[:-1]  # the random policy's spread says nothing of these two
    if n < 2 or math.sqrt(sum(own)) <= 1e-12 * max(1.0, abs(float(t.mean()))):
        return _without_spread(s, t, lead, n, claim, alike)
    freedom = sum(variance) ** 2 / sum(v**2 / max(1, p.size - 1) for v, p in zip(variance, parts, strict=True))
    p = _student_tail(lead / error, freedom)
    if p < 0.05:
        return NonInferiority(True, p, n, None, f"The student is {claim} ({_p(p)}, {n} episodes).")
    if p > 0.95:
        return NonInferiority(
            False, p, n, None, f"The student is more than {100 * margin:g} % worse than the teacher ({_p(1 - p)}, {n} episodes)."
        )
    scale = margin * abs(float(t.mean()) - float(r.mean()))
    effect = lead if lead > 0.1 * scale else scale
    needed = max(n + 1, math.ceil(n * ((_NORMAL.inv_cdf(0.95) + _NORMAL.inv_cdf(0.8)) * error / effect) ** 2)) if effect > 0 else None
    more = f"; about {needed:,} episodes would tell" if needed else ""
    if needed and effect is not lead:
        more += ", if it is really as good"
    return NonInferiority(False, p, n, needed, f"{n} episodes don't show that the student is {claim} ({_p(p)}){more}.")


@dataclass(frozen=True)
class Falls:
    """The episodes that one plays far worse than the other on the same seed: a mean hides a few of them."""

    episodes: tuple[int, ...]
    """Numbers of those in which the student falls so far below its teacher, the deepest first."""
    theirs: int
    """In how many the teacher falls so far below the student: what chance alone does."""
    of: int
    """Episodes played by both."""

    @property
    def more(self) -> bool:
        """Whether the student falls more often than chance would have it: a sign test at 5 % against the teacher's falls."""
        both_ways = len(self.episodes) + self.theirs
        return sum(math.comb(both_ways, k) for k in range(len(self.episodes), both_ways + 1)) * 20 < 2**both_ways

    @property
    def sentence(self) -> str | None:
        """In plain words; None where it never falls."""
        n = len(self.episodes)
        if not n:
            return None
        named = [str(e) for e in self.episodes[:5]]
        which = f"episode {named[0]}" if n == 1 else f"episodes {', '.join(named)} and {n - 5} more" if n > 5 else f"episodes {', '.join(named[:-1])} and {named[-1]}"
        against = f"the teacher falls so far below the student in {self.theirs}" if self.theirs else "the teacher never falls so far below the student"
        return f"In {n} of {self.of} episodes the student earns far less than its teacher on the same seed, by over a quarter of what that one earns above random play ({which}); {against}."


def falls(student: ArrayLike, teacher: ArrayLike, random: ArrayLike) -> Falls:
    """Which of the episodes [n], the same for both, the student plays worse by over ``DEPTH`` of teacher − random, by their means."""
    s, t = both(student, teacher, paired=True)
    deep = DEPTH * abs(float(t.mean()) - float(as_returns(random, "the random policy's returns").mean()))
    behind = t - s
    order = np.argsort(-behind, kind="stable")
    return Falls(tuple(int(i) for i in order if behind[i] > deep > 0), int((-behind > deep).sum()) if deep > 0 else 0, len(s))


def caution(x: ArrayLike, whose: str = "the student", alike: bool = False) -> str | None:
    """What must be said beside a figure of these returns: too few episodes, or all the same; None where nothing must.

    ``alike``: all of the episodes began with the same observation.
    """
    values = as_returns(x, f"{whose}'s returns")
    n = values.size
    if n == 1:
        return f"{whose}: one episode says nothing of the spread; at least {FEW} are right."
    if float(np.ptp(values)) == 0 and alike:
        return (
            f"{whose}: all {n} episodes begin alike and returned exactly {values[0]:g}: the environment is deterministic, so they are one episode, "
            "and an interval of width 0 is no evidence; disturbances (sticky actions, noise) tell more."
        )
    if float(np.ptp(values)) == 0:
        return (
            f"{whose}: all {n} episodes returned exactly {values[0]:g}, so the interval has width 0, which is no evidence: the environment may "
            f"give the same episode each time; {_three(n)}."
        )
    if n < FEW:
        return f"{whose}: these figures rest on {n} episodes, fewer than {FEW}, so take the interval as rough."
    return None


def _without_spread(s: Floats, t: Floats, lead: float, n: int, claim: str, alike: bool) -> NonInferiority:
    """The answer where every difference is the same, so that a test has nothing to stand on."""
    if alike and n > 1:
        once = f"the environment gives the same episode each time, in which the student earns {float(s.mean()):g} and the teacher {float(t.mean()):g}"
        return NonInferiority(False, None, n, None, f"It can't be shown that the student is {claim}: {once}; one episode is no evidence.")
    if n < FEW:
        few = f"{n} episodes without any spread don't show that the student is {claim}; at least {FEW} are right."
        return NonInferiority(False, None, n, FEW, few)
    same = f"the student's return differs from the teacher's by exactly {float(s.mean() - t.mean()):g} in each of {n} episodes"
    verdict = f"The student is {claim if lead > 0 else claim.replace('no more', 'more', 1)}"
    return NonInferiority(lead > 0, None, n, None, f"{verdict}: {same}; there is no spread to test, and {_three(n)}.")


def _three(n: int) -> str:
    """The rule of three: what n equal results bound (Hanley & Lippman-Hand 1983)."""
    return f"with 95 % confidence no more than {100 * (1 - 0.05 ** (1 / n)):.2g} % of episodes are otherwise"


def _student_tail(t: float, freedom: float) -> float:
    """P(T > t), by Wallace's transformation to a normal (1959), within 0.002 from 2 degrees of freedom on."""
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return _NORMAL.cdf(-math.copysign(z, t))


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
