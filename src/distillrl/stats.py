"""Statistics of returns: intervals, retention, interquartile mean, probability of improvement, non-inferiority.

numpy alone. Every interval is a bootstrap with a Generator of its own made from ``seed``, so the same call gives the same
figures. Returns are one number per episode (or per run, for figures over tasks), shape [n], in the environment's reward
units. NaN and infinity are refused with Failed: a mean over them would hide a broken episode.

Intervals are BCa (Efron 1987, "Better bootstrap confidence intervals", section 3) with Hesterberg's expansion for small
samples (2015, "What teachers should know about the bootstrap", section 5.3: the normal quantile becomes Student's, times
√(n/(n−1))), without which the intervals of 20 episodes are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillrl.errors import Failed

FEW = 20
"""Figures that rest on fewer episodes are marked."""
MARGIN = 0.02
"""How much worse than its teacher a student may be, in shares of the teacher's return above random play."""
RESAMPLES = 10_000
_CHUNK = 1 << 18
"""Numbers drawn at once: they stay in the processor's cache."""
_NORMAL = NormalDist()
Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""[..., n] → [...]"""


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its confidence interval, in the figure's own units."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """The way from low to high."""
        return self.high - self.low


@dataclass(frozen=True)
class Profile:
    """Share of runs whose score is above each threshold, [K] each; the ends are pointwise, not a band."""

    thresholds: Floats
    value: Floats
    low: Floats
    high: Floats


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


def as_returns(x: ArrayLike, what: str = "the returns") -> Floats:
    """Float64 [n] with n ≥ 1; raises Failed where empty, not one number per episode, NaN or infinite."""
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise Failed(f"{what}: an array of shape {values.shape} was given, one number per episode and at least one is right")
    broken = np.flatnonzero(~np.isfinite(values))
    if broken.size:
        raise Failed(
            f"{what}: {broken.size} of {values.size} are NaN or infinite (the first is {values[broken[0]]} at index {broken[0]}); "
            "a mean over them would mean nothing, so look at that episode's rewards"
        )
    return values


def mean(x: Floats) -> Floats:
    """[..., n] → [...]"""
    return np.asarray(x.mean(-1))


def median(x: Floats) -> Floats:
    """[..., n] → [...]"""
    return np.asarray(np.median(x, -1))


def iqm(x: Floats) -> Floats:
    """Interquartile mean [..., n] → [...]: ⌊n/4⌋ are cut off at each end (Agarwal 2021, section 4; as rliable does)."""
    n = x.shape[-1]
    cut = n // 4
    ordered = np.partition(x, (cut, n - cut - 1), -1) if cut else x
    return np.asarray(ordered[..., cut : n - cut].mean(-1))


def cvar(x: Floats, share: float = 0.05) -> Floats:
    """Mean of the worst ``share`` of episodes, at least one (conditional value at risk), [..., n] → [...]."""
    n = x.shape[-1]
    worst = max(1, math.ceil(share * n - 1e-9))
    return np.asarray(np.partition(x, worst - 1, -1)[..., :worst].mean(-1))


def mean_interval(x: ArrayLike, seed: int, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """The mean of [n] returns with its BCa interval; width 0 for one episode or equal values (see ``caution``)."""
    values = as_returns(x)
    boot = _means(np.random.default_rng(seed), values, resamples)
    return _bca(float(values.mean()), boot, [values - values.mean()], level)


def statistic_interval(
    strata: Sequence[ArrayLike], statistic: Statistic, seed: int, level: float = 0.95, resamples: int = RESAMPLES, method: str = "bca"
) -> Interval:
    """Any statistic of all values together, each stratum (task) resampled within itself: stratified bootstrap.

    ``strata`` holds one array [n_k] of scores a task, not necessarily as many each; ``statistic`` maps [..., Σ n_k] to
    [...]. ``method`` is "bca", or "percentile" for comparison with rliable's default.
    """
    parts = [as_returns(s, f"the scores of task {k}") for k, s in enumerate(strata)]
    if not parts:
        raise Failed("the scores: no task was given, at least one is right")
    rng, together = np.random.default_rng(seed), np.concatenate(parts)
    boot = np.concatenate([statistic(chunk) for chunk in _resampled(rng, parts, resamples)])
    value = float(statistic(together))
    if method == "percentile":
        low, high = np.quantile(boot, [(1 - level) / 2, (1 + level) / 2])
        return Interval(value, float(low), float(high))
    left_out = np.array([statistic(np.delete(together, i)) for i in range(together.size)]) if together.size > 1 else np.zeros(1)
    influence, at = [], 0
    for part in parts:
        mine = left_out[at : at + part.size]
        influence.append((part.size - 1) * (mine.mean() - mine))
        at += part.size
    return _bca(value, boot, influence, level)


def iqm_interval(strata: Sequence[ArrayLike], seed: int, level: float = 0.95, resamples: int = RESAMPLES, method: str = "bca") -> Interval:
    """The interquartile mean over runs and tasks, stratified by task; see ``statistic_interval``."""
    return statistic_interval(strata, iqm, seed, level, resamples, method)


def paired_difference(student: ArrayLike, teacher: ArrayLike, seed: int, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Mean of student − teacher over the same episode seeds, [n] each; raises Failed where they aren't as many."""
    s, t = _both(student, teacher, paired=True)
    return mean_interval(s - t, seed, level, resamples)


def difference_interval(x: ArrayLike, y: ArrayLike, seed: int, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """mean(x) − mean(y) of two unrelated samples, [n] and [m]."""
    a, b = as_returns(x), as_returns(y)
    rng = np.random.default_rng(seed)
    boot = _means(rng, a, resamples) - _means(rng, b, resamples)
    return _bca(float(a.mean() - b.mean()), boot, [a - a.mean(), b.mean() - b], level)


def told_apart(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> bool:
    """Whether the means of two samples differ, by Welch's t-test; never with a single episode on either side."""
    a, b = as_returns(x), as_returns(y)
    if min(a.size, b.size) < 2:
        return False
    va, vb = float(a.var(ddof=1)) / a.size, float(b.var(ddof=1)) / b.size
    gap = abs(float(a.mean() - b.mean()))
    if va + vb == 0:
        return gap > 0
    freedom = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
    return gap > student_quantile((1 + level) / 2, freedom) * math.sqrt(va + vb)


def retention(
    student: ArrayLike,
    teacher: ArrayLike,
    random: ArrayLike,
    seed: int,
    paired: bool = True,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """(student − random) / (teacher − random) of mean returns, or None where teacher and random can't be told apart.

    ``paired``: student's and teacher's episodes [n] have the same seeds and are resampled together; the random policy's
    [m] are resampled apart from them.
    """
    s, t = _both(student, teacher, paired)
    r = as_returns(random, "the random policy's returns")
    if not told_apart(t, r, level=level):
        return None
    rng = np.random.default_rng(seed)
    if paired:
        boot_s, boot_t = _paired_means(rng, s, t, resamples)
    else:
        boot_s, boot_t = _means(rng, s, resamples), _means(rng, t, resamples)
    boot_r = _means(rng, r, resamples)
    gap = t.mean() - r.mean()
    value = float((s.mean() - r.mean()) / gap)
    denominator = boot_t - boot_r
    boot = (boot_s - boot_r) / np.where(denominator == 0, np.finfo(float).tiny, denominator)
    # The derivatives of the ratio by each mean, times each episode's distance from it (the delta method).
    by_s, by_t, by_r = (s - s.mean()) / gap, -value * (t - t.mean()) / gap, (value - 1) * (r - r.mean()) / gap
    return _bca(value, boot, [by_s + by_t, by_r] if paired else [by_s, by_t, by_r], level)


def probability_of_improvement(
    better: Sequence[ArrayLike], worse: Sequence[ArrayLike], seed: int, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """P(X > Y) + ½ P(X = Y), averaged over tasks (Mann–Whitney's U; Agarwal 2021, section 4.3), with a percentile interval.

    One array of scores a task on each side; a task's two arrays may differ in length.
    """
    if len(better) != len(worse) or not len(better):
        raise Failed(f"probability of improvement: {len(better)} and {len(worse)} tasks were given, the same tasks on both sides are right")
    rng, value, boot = np.random.default_rng(seed), 0.0, np.zeros(resamples)
    for k, (xs, ys) in enumerate(zip(better, worse, strict=True)):
        x, y = as_returns(xs, f"the scores of task {k}"), as_returns(ys, f"the other scores of task {k}")
        levels, rank = np.unique(np.concatenate([x, y]), return_inverse=True)
        rank_x, rank_y = rank[: x.size], rank[x.size :]
        value += float(_improvement(rank_x[None], rank_y[None], levels.size)[0])
        rows = max(1, _CHUNK // levels.size)
        for start in range(0, resamples, rows):
            many = min(rows, resamples - start)
            i, j = rng.integers(0, x.size, (many, x.size)), rng.integers(0, y.size, (many, y.size))
            boot[start : start + many] += _improvement(rank_x[i], rank_y[j], levels.size)
    low, high = np.quantile(boot / len(better), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value / len(better), float(low), float(high))


def performance_profile(
    strata: Sequence[ArrayLike], thresholds: ArrayLike, seed: int, level: float = 0.95, resamples: int = 2_000
) -> Profile:
    """Share of all runs with a score above each threshold [K] (Dolan & Moré 2002; Agarwal 2021, section 4.2)."""
    parts = [as_returns(s, f"the scores of task {k}") for k, s in enumerate(strata)]
    tau = as_returns(thresholds, "the thresholds")
    together = np.concatenate(parts)

    def above(x: Floats) -> Floats:
        ordered = np.sort(x, -1)
        return np.stack([1 - np.searchsorted(row, tau, side="right") / row.size for row in ordered])

    boot = np.concatenate([above(chunk) for chunk in _resampled(np.random.default_rng(seed), parts, resamples)])
    low, high = np.quantile(boot, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Profile(tau, above(together[None])[0], low, high)


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
    s, t = _both(student, teacher, paired)
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


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """A rate with Wilson's score interval (1927), which stays inside 0 to 1 and has width at 0 and at n."""
    if n < 1 or not 0 <= successes <= n:
        raise Failed(f"a rate of {successes} in {n}: between 0 and n successes in at least one trial is right")
    z, share = _NORMAL.inv_cdf((1 + level) / 2), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0)


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


def student_quantile(probability: float, freedom: float) -> float:
    """Student's t quantile, by the Cornish–Fisher expansion (Abramowitz & Stegun 26.7.5); exact at 1 and 2 degrees."""
    if freedom <= 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom <= 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = _NORMAL.inv_cdf(probability)
    g1, g2 = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3 + g4 / freedom**4


def _bca(value: float, boot: Floats, influence: Sequence[Floats], level: float) -> Interval:
    """Ends from the resampled statistic [R] and each sample's empirical influence values [n_k]."""
    n, samples = sum(i.size for i in influence), len(influence)
    largest = max(float(np.abs(i).max()) for i in influence)
    if n <= samples or largest == 0 or float(np.ptp(boot)) == 0:
        return Interval(value, value, value)
    # The acceleration has no unit: in shares of the largest, neither tiny nor huge returns leave a float's range.
    second = sum(float(((i / largest) ** 2).sum()) / i.size**2 for i in influence)
    third = sum(float(((i / largest) ** 3).sum()) / i.size**3 for i in influence)
    acceleration = third / (6 * second**1.5)
    below = (float((boot < value).mean()) + float((boot <= value).mean())) / 2
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / boot.size), 1 - 0.5 / boot.size))
    reach = student_quantile((1 + level) / 2, n - samples) * math.sqrt(n / (n - samples))
    ends = []
    for z in (bias - reach, bias + reach):
        shrunk = 1 - acceleration * z
        ends.append(_NORMAL.cdf(bias + z / shrunk) if shrunk > 0 else float(z > 0))
    low, high = np.quantile(boot, ends)
    return Interval(value, float(low), float(high))


def _indices(rng: np.random.Generator, n: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Blocks [rows, n] of R × n indices, a cache-full at a time."""
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        yield rng.integers(0, n, (min(rows, resamples - start), n))


def _means(rng: np.random.Generator, x: Floats, resamples: int) -> Floats:
    """Means [R] of resamples of x [n]."""
    return np.concatenate([x[i].mean(-1) for i in _indices(rng, x.size, resamples)])


def _paired_means(rng: np.random.Generator, x: Floats, y: Floats, resamples: int) -> tuple[Floats, Floats]:
    """Means [R] of x and of y, the same episodes drawn for both."""
    both = [(x[i].mean(-1), y[i].mean(-1)) for i in _indices(rng, x.size, resamples)]
    return np.concatenate([a for a, _ in both]), np.concatenate([b for _, b in both])


def _resampled(rng: np.random.Generator, parts: Sequence[Floats], resamples: int) -> Iterator[Floats]:
    """Blocks [rows, Σ n_k] of stratified resamples, R rows in all."""
    rows = max(1, _CHUNK // sum(p.size for p in parts))
    for start in range(0, resamples, rows):
        many = min(rows, resamples - start)
        yield np.concatenate([p[rng.integers(0, p.size, (many, p.size))] for p in parts], -1)


def _improvement(x: NDArray[np.int64], y: NDArray[np.int64], levels: int) -> Floats:
    """P(X > Y) + ½ P(X = Y) of each row, from ranks [R, n] and [R, m] below ``levels``."""
    base = np.arange(len(x))[:, None] * levels
    at = np.bincount((base + y).ravel(), minlength=len(y) * levels).reshape(len(y), levels)
    twice_below = 2 * np.cumsum(at, -1) - at
    return np.asarray(np.take_along_axis(twice_below, x, -1).sum(-1) / (2 * x.shape[-1] * y.shape[-1]))


def _both(student: ArrayLike, teacher: ArrayLike, paired: bool) -> tuple[Floats, Floats]:
    s, t = as_returns(student, "the student's returns"), as_returns(teacher, "the teacher's returns")
    if paired and s.size != t.size:
        raise Failed(
            f"the student's {s.size} returns and the teacher's {t.size} can't be paired: as many episodes of the same seeds are right "
            "(paired=False compares them unpaired)"
        )
    return s, t


def _without_spread(s: Floats, t: Floats, lead: float, n: int, claim: str, alike: bool) -> NonInferiority:
    """The answer where every difference is the same, so that a test has nothing to stand on."""
    if alike and n > 1:
        once = f"the environment gives the same episode each time, in which the student earns {float(s.mean()):g} and the teacher {float(t.mean()):g}"
        return NonInferiority(False, None, n, None, f"It can't be shown that the student is {claim}: {once}; one episode is no evidence.")
    if n < FEW:
        few = f"{n} episodes without any spread don't show that the student is {claim}; at least {FEW} are right."
        return NonInferiority(False, None, n, FEW, few)
    same = f"the student's return differs from the teacher's by exactly {float(s.mean() - t.mean()):g} in each of {n} episodes"
    verdict = f"The student is {claim}" if lead > 0 else f"The student is not {claim}"
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
