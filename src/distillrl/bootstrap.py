"""The bootstrap under every interval: resampled means and statistics, and the ends that BCa reads off them.

BCa is Efron's (1987, "Better bootstrap confidence intervals", section 3) with Hesterberg's expansion for small samples (2015, "What
teachers should know about the bootstrap", section 5.3: the normal quantile becomes Student's, times √(n/(n−1))), without which the
intervals of 20 episodes are too narrow. numpy alone; whoever draws gives the Generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillrl.errors import Failed

CHUNK = 1 << 18
"""Numbers drawn at once: they stay in the processor's cache."""
_NORMAL = NormalDist()
Floats = NDArray[np.float64]


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


def both(student: ArrayLike, teacher: ArrayLike, paired: bool) -> tuple[Floats, Floats]:
    """[n] each of student and teacher; raises Failed where they are to be paired and aren't as many."""
    s, t = as_returns(student, "the student's returns"), as_returns(teacher, "the teacher's returns")
    if paired and s.size != t.size:
        raise Failed(
            f"the student's {s.size} returns and the teacher's {t.size} can't be paired: as many episodes of the same seeds are right "
            "(paired=False compares them unpaired)"
        )
    return s, t


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


def bca(value: float, boot: Floats, influence: Sequence[Floats], level: float) -> Interval:
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
    rows = max(1, CHUNK // n)
    for start in range(0, resamples, rows):
        yield rng.integers(0, n, (min(rows, resamples - start), n))


def means(rng: np.random.Generator, x: Floats, resamples: int) -> Floats:
    """Means [R] of resamples of x [n]."""
    return np.concatenate([x[i].mean(-1) for i in _indices(rng, x.size, resamples)])


def paired_means(rng: np.random.Generator, x: Floats, y: Floats, resamples: int) -> tuple[Floats, Floats]:
    """Means [R] of x and of y, the same episodes drawn for both."""
    both = [(x[i].mean(-1), y[i].mean(-1)) for i in _indices(rng, x.size, resamples)]
    return np.concatenate([a for a, _ in both]), np.concatenate([b for _, b in both])


def resampled(rng: np.random.Generator, parts: Sequence[Floats], resamples: int) -> Iterator[Floats]:
    """Blocks [rows, Σ n_k] of stratified resamples, R rows in all."""
    rows = max(1, CHUNK // sum(p.size for p in parts))
    for start in range(0, resamples, rows):
        many = min(rows, resamples - start)
        yield np.concatenate([p[rng.integers(0, p.size, (many, p.size))] for p in parts], -1)
