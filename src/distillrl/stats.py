"""Statistics of returns: intervals, retention, interquartile mean, probability of improvement, non-inferiority.

numpy alone. Every interval is a bootstrap (bootstrap.py: BCa) with a Generator of its own made from ``seed``, so the same call gives
the same figures. Returns are one number per episode (or per run, for figures over tasks), shape [n], in the environment's reward
units. NaN and infinity are refused with Failed: a mean over them would hide a broken episode. What is said of a student against its
teacher (noninferiority.py) can be had from here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from distillrl.bootstrap import CHUNK, Floats, Interval, as_returns, bca, both, means, paired_means, resampled, student_quantile
from distillrl.errors import Failed
from distillrl.noninferiority import FEW, MARGIN, Falls, NonInferiority, caution, falls, non_inferiority

__all__ = [
    "FEW", "MARGIN", "RESAMPLES", "Falls", "Interval", "NonInferiority", "Profile", "Statistic", "above", "as_returns", "caution", "cvar", "difference_interval", "falls", "iqm",
    "iqm_interval", "mean", "mean_interval", "median", "non_inferiority", "paired_difference", "performance_profile", "probability_of_improvement", "retention",
    "statistic_interval", "student_quantile", "told_apart", "wilson",
]  # fmt: skip

RESAMPLES = 10_000
_NORMAL = NormalDist()
Statistic = Callable[[Floats], Floats]
"""[..., n] → [...]"""


@dataclass(frozen=True)
class Profile:
    """Share of runs whose score is above each threshold, [K] each; the ends are pointwise, not a band."""

    thresholds: Floats
    value: Floats
    low: Floats
    high: Floats


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
    boot = means(np.random.default_rng(seed), values, resamples)
    return bca(float(values.mean()), boot, [values - values.mean()], level)


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
    boot = np.concatenate([statistic(chunk) for chunk in resampled(rng, parts, resamples)])
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
    return bca(value, boot, influence, level)


def iqm_interval(strata: Sequence[ArrayLike], seed: int, level: float = 0.95, resamples: int = RESAMPLES, method: str = "bca") -> Interval:
    """The interquartile mean over runs and tasks, stratified by task; see ``statistic_interval``."""
    return statistic_interval(strata, iqm, seed, level, resamples, method)


def paired_difference(student: ArrayLike, teacher: ArrayLike, seed: int, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Mean of student − teacher over the same episode seeds, [n] each; raises Failed where they aren't as many."""
    s, t = both(student, teacher, paired=True)
    return mean_interval(s - t, seed, level, resamples)


def difference_interval(x: ArrayLike, y: ArrayLike, seed: int, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """mean(x) − mean(y) of two unrelated samples, [n] and [m]."""
    a, b = as_returns(x), as_returns(y)
    rng = np.random.default_rng(seed)
    boot = means(rng, a, resamples) - means(rng, b, resamples)
    return bca(float(a.mean() - b.mean()), boot, [a - a.mean(), b.mean() - b], level)


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


def above(teacher: ArrayLike, random: ArrayLike, *, level: float = 0.95) -> bool:
    """Whether a teacher is shown to be better than random play: a share of what it earns above that would otherwise mean nothing, or reward the worse."""
    return told_apart(teacher, random, level=level) and float(as_returns(teacher).mean()) > float(as_returns(random).mean())


def retention(
    student: ArrayLike,
    teacher: ArrayLike,
    random: ArrayLike,
    seed: int,
    paired: bool = True,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """(student − random) / (teacher − random) of mean returns, or None where the teacher isn't shown to be better than random.

    ``paired``: student's and teacher's episodes [n] have the same seeds and are resampled together; the random policy's
    [m] are resampled apart from them.
    """
    s, t = both(student, teacher, paired)
    r = as_returns(random, "the random policy's returns")
    if not above(t, r, level=level):
        return None
    rng = np.random.default_rng(seed)
    if paired:
        boot_s, boot_t = paired_means(rng, s, t, resamples)
    else:
        boot_s, boot_t = means(rng, s, resamples), means(rng, t, resamples)
    boot_r = means(rng, r, resamples)
    gap = t.mean() - r.mean()
    value = float((s.mean() - r.mean()) / gap)
    denominator = boot_t - boot_r
    boot = (boot_s - boot_r) / np.where(denominator == 0, np.finfo(float).tiny, denominator)
    # The derivatives of the ratio by each mean, times each episode's distance from it (the delta method).
    by_s, by_t, by_r = (s - s.mean()) / gap, -value * (t - t.mean()) / gap, (value - 1) * (r - r.mean()) / gap
    return bca(value, boot, [by_s + by_t, by_r] if paired else [by_s, by_t, by_r], level)


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
        rows = max(1, CHUNK // levels.size)
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

    boot = np.concatenate([above(chunk) for chunk in resampled(np.random.default_rng(seed), parts, resamples)])
    low, high = np.quantile(boot, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Profile(tau, above(together[None])[0], low, high)


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """A rate with Wilson's score interval (1927), which stays inside 0 to 1 and has width at 0 and at n."""
    if n < 1 or not 0 <= successes <= n:
        raise Failed(f"a rate of {successes} in {n}: between 0 and n successes in at least one trial is right")
    z, share = _NORMAL.inv_cdf((1 + level) / 2), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0)


def _improvement(x: np.ndarray, y: np.ndarray, levels: int) -> Floats:
    """P(X > Y) + ½ P(X = Y) of each row, from ranks [R, n] and [R, m] below ``levels``."""
    base = np.arange(len(x))[:, None] * levels
    at = np.bincount((base + y).ravel(), minlength=len(y) * levels).reshape(len(y), levels)
    twice_below = 2 * np.cumsum(at, -1) - at
    return np.asarray(np.take_along_axis(twice_below, x, -1).sum(-1) / (2 * x.shape[-1] * y.shape[-1]))
