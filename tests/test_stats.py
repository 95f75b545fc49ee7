"""stats.py: known answers by hand, coverage of known truth, agreement with rliable, and what is refused."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillrl import stats
from distillrl.errors import Failed
from distillrl.stats import Interval


def scores() -> tuple[np.ndarray, np.ndarray]:
    """The case shared with rliable: ten and eight runs of five tasks."""
    rng = np.random.default_rng(42)
    return rng.normal(0.8, 0.3, (10, 5)).round(3), rng.normal(0.7, 0.4, (8, 5)).round(3)


def close(interval: Interval, value: float, low: float, high: float, slack: float) -> None:
    assert interval.value == pytest.approx(value, abs=1e-9)
    assert interval.low == pytest.approx(low, abs=slack)
    assert interval.high == pytest.approx(high, abs=slack)


# Golden figures of rliable 1.2.0 (arch 7.2.0, numpy 2.4.6), which can't be seeded, so that the slack is its own noise:
#   python -m venv v && v/bin/pip install rliable==1.2.0 "pandas<3" && v/bin/python
#   from rliable import library, metrics; a, b = scores()
#   library.get_interval_estimates({"a": a}, lambda x: np.array([metrics.aggregate_iqm(x), metrics.aggregate_mean(x)]), reps=50000)
#   … the same with method="bca"
#   library.get_interval_estimates({"ab": (a, b)}, metrics.probability_of_improvement, reps=20000)
#   library.create_performance_profile({"a": a}, np.array([.25, .5, .75, 1., 1.25]), reps=5000)
def test_agrees_with_rliable_on_iqm_and_mean() -> None:
    a, _ = scores()
    close(stats.iqm_interval(list(a.T), 0, method="percentile"), 0.843, 0.76523, 0.91065, 0.004)
    close(stats.statistic_interval(list(a.T), stats.mean, 0, method="percentile"), 0.82738, 0.76498, 0.88882, 0.004)


def test_stratified_bca_of_the_mean_is_near_rliables() -> None:
    a, _ = scores()  # ours has the expansion for small samples, rliable's not; its jackknife leaves out a run of every task at once
    close(stats.statistic_interval(list(a.T), stats.mean, 0), 0.82738, 0.7732, 0.89828, 0.013)


def test_agrees_with_rliable_on_probability_of_improvement() -> None:
    a, b = scores()
    close(stats.probability_of_improvement(list(a.T), list(b.T), 0), 0.67375, 0.555, 0.785, 0.005)


def test_agrees_with_rliable_on_profiles() -> None:
    a, _ = scores()
    profile = stats.performance_profile(list(a.T), [0.25, 0.5, 0.75, 1.0, 1.25], 0)
    assert profile.value == pytest.approx([0.98, 0.94, 0.66, 0.24, 0.02])
    assert profile.low == pytest.approx([0.94, 0.88, 0.54, 0.14, 0.0], abs=0.021)
    assert profile.high == pytest.approx([1.0, 1.0, 0.78, 0.36, 0.06], abs=0.021)


def test_agrees_with_scipys_bca_on_a_large_skewed_sample() -> None:
    # scipy 1.17.1: bootstrap((x,), np.mean, method="BCa", n_resamples=100000, rng=1) → 95.3563, 116.0140; ours is 0.9 % wider by design.
    rng = np.random.default_rng(42)
    rng.normal(0.8, 0.3, (10, 5)), rng.normal(0.7, 0.4, (8, 5))
    x = rng.gamma(2.0, 50, 200).round(2)
    close(stats.mean_interval(x, 0), 104.9109, 95.3563, 116.0140, 0.45)


@pytest.mark.parametrize(
    ("name", "draw", "truth", "n"),
    [
        ("normal", lambda g, n: g.normal(250, 20, n), 250.0, 30),
        ("skewed", lambda g, n: g.gamma(2.0, 50.0, n), 100.0, 60),
        ("crashes", lambda g, n: np.where(g.random(n) < 0.2, -100.0, 250.0) + g.normal(0, 15, n), 180.0, 60),
    ],
)
def test_the_95_percent_interval_of_the_mean_covers_the_truth(name: str, draw: object, truth: float, n: int) -> None:
    rng, covered = np.random.default_rng(11), 0
    for repeat in range(2000):
        interval = stats.mean_interval(draw(rng, n), repeat, resamples=600)  # type: ignore[operator]  # a lambda of the table above
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / 2000 <= 0.97, name


def test_retention_covers_the_truth() -> None:
    rng, covered = np.random.default_rng(3), 0
    for repeat in range(600):
        luck = rng.normal(0, 30, 60)
        student, teacher, random = 195 + luck + rng.normal(0, 10, 60), 200 + luck, rng.normal(-100, 80, 60)
        interval = stats.retention(student, teacher, random, repeat, resamples=600)
        assert interval is not None
        covered += interval.low <= 295 / 300 <= interval.high
    assert 0.92 <= covered / 600 <= 0.98


def test_retention_by_hand() -> None:
    interval = stats.retention([90.0, 110.0, 100.0], [110.0, 90.0, 100.0], [0.0, 0.0, 0.0], 0)
    assert interval is not None
    assert interval.value == 1.0
    assert interval.low < 1 < interval.high


def test_retention_of_identical_episodes_is_one_without_width() -> None:
    returns = np.arange(30.0) + 100
    interval = stats.retention(returns, returns, np.zeros(30), 0)
    assert interval is not None
    assert (interval.value, interval.low, interval.high) == pytest.approx((1, 1, 1))


def test_retention_is_none_where_teacher_and_random_cant_be_told_apart() -> None:
    rng = np.random.default_rng(0)
    assert stats.retention(rng.normal(size=50), rng.normal(size=50), rng.normal(size=50), 0) is None
    assert stats.retention([1.0], [1.0], [0.0], 0) is None
    worse = [-9.0, -9.5, -10.0, -9.2]
    assert stats.retention([-5.0, -5.1, -4.9, -5.0], worse, [-1.0, -1.2, -0.8, -1.0], 0) is None, "a share of what a teacher worse than random play earns would reward the worse"
    assert not stats.above(worse, [-1.0, -1.2, -0.8, -1.0])
    assert stats.above([-1.0, -1.2, -0.8, -1.0], worse)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 50, 100)
    student, teacher = 199 + luck + rng.normal(0, 2, 100), 200 + luck
    assert stats.paired_difference(student, teacher, 0).width < 0.1 * stats.difference_interval(student, teacher, 0).width


def test_point_statistics_by_hand() -> None:
    x = np.array([4.0, 1.0, 100.0, 2.0, 3.0, -50.0, 5.0, 6.0])
    assert stats.iqm(x) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert stats.iqm(np.array([1.0, 2.0, 9.0])) == pytest.approx(4)  # fewer than four: nothing is cut
    assert stats.median(x) == 3.5
    assert stats.cvar(np.arange(100.0)) == pytest.approx(2.0)  # mean of 0..4
    assert stats.cvar(np.array([3.0, 7.0])) == 3.0
    assert stats.cvar(np.arange(20.0), 0.1) == pytest.approx(0.5)


def test_probability_of_improvement_by_hand() -> None:
    # pairs (2,1) > , (2,2) = , (3,1) > , (3,2) > : 3.5 of 4
    assert stats.probability_of_improvement([[2.0, 3.0]], [[1.0, 2.0]], 0, resamples=100).value == pytest.approx(3.5 / 4)


def test_wilson_by_hand() -> None:
    # statsmodels 0.14 proportion_confint(8, 10, method="wilson")
    interval = stats.wilson(8, 10)
    assert (interval.low, interval.high) == pytest.approx((0.49016247, 0.94331785))
    none = stats.wilson(0, 20)
    assert (none.low, none.high) == pytest.approx((0.0, 0.16112516))
    with pytest.raises(Failed, match="between 0 and n"):
        stats.wilson(3, 2)


@pytest.mark.parametrize(
    ("probability", "freedom", "right"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 19, 2.0930), (0.95, 9, 1.8331)],
)
def test_student_quantiles(probability: float, freedom: float, right: float) -> None:
    assert stats.student_quantile(probability, freedom) == pytest.approx(right, rel=2e-3)


def test_non_inferiority_of_an_equal_student_is_shown() -> None:
    rng = np.random.default_rng(1)
    luck = rng.normal(0, 20, 200)
    answer = stats.non_inferiority(250 + luck + rng.normal(0, 5, 200), 250 + luck)
    assert answer.shown
    assert answer.sentence.startswith("The student is no more than 2 % worse than the teacher (p < 0.001, 200 episodes)")


def test_non_inferiority_says_how_many_episodes_are_needed() -> None:
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(250, 40, 20), rng.normal(250, 40, 20)
    answer = stats.non_inferiority(student, teacher, paired=False)
    assert not answer.shown
    assert answer.needed is not None
    assert answer.needed > 200
    assert "episodes would tell" in answer.sentence


def test_the_number_of_episodes_needed_is_enough_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    luck = rng.normal(0, 30, 5000)
    noise = rng.normal(0, 20, 5000)
    needed = math.ceil(20**2 * (1.6449 + 0.8416) ** 2 / 5**2)  # sd 20 of the difference, effect 2 % of 250
    shown = [
        stats.non_inferiority(250 + luck[i : i + needed] + noise[i : i + needed], 250 + luck[i : i + needed]).shown
        for i in range(0, 5000 - needed, needed)
    ]
    assert 0.65 <= np.mean(shown) <= 0.95


def test_non_inferiority_of_a_bad_student_says_it_is_worse() -> None:
    rng = np.random.default_rng(1)
    answer = stats.non_inferiority(rng.normal(100, 20, 50), rng.normal(250, 20, 50), random=rng.normal(-180, 50, 50))
    assert not answer.shown
    assert "is more than 2 % worse" in answer.sentence


def test_the_margin_of_negative_returns_is_of_their_size() -> None:
    rng = np.random.default_rng(1)
    teacher = rng.normal(-150, 10, 200)
    assert stats.non_inferiority(teacher - 1.0, teacher).shown  # 0.67 % worse
    assert not stats.non_inferiority(teacher - 5.0, teacher).shown  # 3.3 % worse


def test_non_inferiority_without_spread_claims_no_p_value() -> None:
    answer = stats.non_inferiority(np.full(100, 500.0), np.full(100, 500.0))
    assert answer.shown
    assert answer.p is None
    assert "no spread to test" in answer.sentence
    assert "no more than 3 % of episodes" in answer.sentence
    assert not stats.non_inferiority(np.full(100, 480.0), np.full(100, 500.0)).shown
    assert not stats.non_inferiority([500.0] * 5, [500.0] * 5).shown


def test_false_alarm_rate_of_non_inferiority() -> None:
    rng = np.random.default_rng(9)
    shown = [stats.non_inferiority(rng.normal(245, 20, 60), rng.normal(250, 20, 60)).shown for _ in range(2000)]
    assert 0.03 <= np.mean(shown) <= 0.07  # exactly 2 % worse: shown once in twenty


def test_cautions() -> None:
    assert "one episode says nothing" in (stats.caution([3.0]) or "")
    assert "width 0, which is no evidence" in (stats.caution(np.full(50, 500.0)) or "")
    assert "fewer than 20" in (stats.caution([1.0, 2.0, 3.0]) or "")
    assert stats.caution(np.arange(20.0)) is None


@pytest.mark.parametrize("bad", [[1.0, math.nan], [math.inf], [], [[1.0, 2.0]]])
def test_what_is_no_sample_is_refused(bad: list[float]) -> None:
    with pytest.raises(Failed):
        stats.mean_interval(bad, 0)


def test_the_broken_episode_is_named() -> None:
    with pytest.raises(Failed, match=r"1 of 3 are NaN or infinite .* at index 1"):
        stats.mean_interval([1.0, math.nan, 2.0], 0)


def test_unequal_pairs_are_refused() -> None:
    with pytest.raises(Failed, match="3 returns and the teacher's 2"):
        stats.paired_difference([1.0, 2.0, 3.0], [1.0, 2.0], 0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 2**32))
def test_an_interval_holds_its_figure_and_repeats_by_seed(values: list[float], seed: int) -> None:
    first = stats.mean_interval(values, seed, resamples=200)
    assert first == stats.mean_interval(values, seed, resamples=200)
    assert min(values) - 1e-6 <= first.low <= first.high <= max(values) + 1e-6
    if len(set(values)) == 1:
        assert first.width == 0


def test_the_global_generator_is_left_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # numpy types it as dict or tuple
    stats.mean_interval(np.arange(10.0), 0)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # as above


def test_ten_thousand_resamples_of_a_thousand_episodes_take_under_a_second() -> None:
    x = np.random.default_rng(0).normal(size=1000)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        stats.mean_interval(x, 0)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1
