"""Schedules: golden values, texts that come back, bad input."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillrl.errors import Misconfigured
from distillrl.records import Progress
from distillrl.weights import KINDS, Schedule, parse

HALF = Progress(round=2, env_steps=50, budget=100)


@pytest.mark.parametrize(
    ("text", "golden"),
    [
        ("0.5", 0.5),
        ("constant(2)", 2.0),
        ("linear(1, 0.1)", 0.55),  # half of the budget is spent
        ("linear(1, 0.1, over=8)", 0.775),  # 2 of 8 rounds
        ("linear(1,0,over=1)", 0.0),  # over, and then it stays
        ("cosine(1, 0)", 0.5),
        ("cosine(1, 0, over=8)", 0.5 * (1 + math.cos(math.pi / 4))),
        ("exponential(1, 0.01)", 0.1),
        ("exponential(4, 1, over=4)", 2.0),
        ("power(0.9)", 0.81),
        ("power(0.5, 8)", 2.0),
        ("power(0)", 0.0),
    ],
)
def test_golden_values(text, golden):
    assert parse(text)(HALF) == pytest.approx(golden)


def test_ends():
    assert parse("linear(1, 0.1)")(Progress()) == 1.0  # no budget: it stays at the start
    assert parse("cosine(1, 0.2)")(Progress(env_steps=300, budget=100)) == pytest.approx(0.2)
    assert parse("power(0)")(Progress()) == 1.0  # DAgger's indicator: the teacher drives the first round alone


def test_agreement():
    falling = parse("agreement()")
    assert falling(Progress()) == 1.0
    assert falling(Progress(metrics={"agreement": 0.9})) == pytest.approx(0.1)
    assert parse("agreement(2, 1)")(Progress(metrics={"agreement": 0.25})) == pytest.approx(1.75)


def test_return_ratio():
    weight = parse("return_ratio(2)")
    assert weight(Progress()) == 2.0
    assert weight(Progress(returns={"student": 50.0, "teacher": 200.0})) == pytest.approx(1.5)  # 2 (1 − 50/200)
    assert weight(Progress(returns={"student": 250.0, "teacher": 200.0})) == 0.0
    assert weight(Progress(returns={"student": -90.0, "teacher": 200.0})) == 2.0
    # From a random policy's return: 1 − (−500 + 1200)/(−200 + 1200)
    assert weight(Progress(returns={"student": -500.0, "teacher": -200.0, "random": -1200.0})) == pytest.approx(0.6)
    assert weight(Progress(returns={"student": -500.0, "teacher": -200.0})) == 2.0  # no floor to count from: all, till it is passed
    assert weight(Progress(returns={"student": -100.0, "teacher": -200.0})) == 0.0
    until = parse("return_ratio(1, 0.5)")
    assert until(Progress(env_steps=49, budget=100)) == 1.0
    assert until(Progress(env_steps=50, budget=100)) == 0.0


def test_texts_come_back():
    for text in ("1.0", "linear(1, 0.1)", "cosine(1, 0, over=40)", "power(0.9, 1)", "agreement(1, 0)", "return_ratio(1, 0.5)"):
        assert str(parse(text)) == text
    assert parse(0.25) == parse("0.25") == Schedule("constant", (0.25,))
    assert parse(" linear ( 1 ,0.1 , over = 4 ) ") == Schedule("linear", (1.0, 0.1), 4)
    assert {parse("linear(1, 0)"), parse("linear(1,0)")} == {parse("linear(1.0, 0)")}


@given(
    st.sampled_from(sorted(KINDS)),
    st.floats(1e-6, 1),
    st.floats(1e-6, 1),
    st.none() | st.integers(1, 50),
    st.integers(0, 100),
    st.integers(0, 200),
    st.floats(-1000, 1000),
)
def test_never_negative_nor_above_its_ends_and_texts_come_back(kind, a, b, over, rounds, steps, reached):
    values = (a, b)[: len(KINDS[kind].names)]
    schedule = Schedule(kind, values, over if KINDS[kind].runs else None)
    assert parse(str(schedule)) == schedule
    progress = Progress(
        round=rounds, env_steps=steps, budget=100, returns={"student": reached, "teacher": 100.0}, metrics={"agreement": reached / 1000}
    )
    assert 0.0 <= schedule(progress) <= max(1.0, *schedule.values) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("linear(1, -1)", "last = -1 was given; a weight must not go negative"),
        ("-0.1", "weight = -0.1 was given; a weight must not go negative"),
        ("nan", "must not go negative or infinite"),
        ("inf", "must not go negative or infinite"),
        ("power(1.5)", "ratio = 1.5 was given; 0 to 1 is right"),
        ("return_ratio(1, 2)", "until = 2 was given; 0 to 1 is right"),
        ("exponential(1, 0)", "last = 0 can't be reached by factors; use linear or cosine"),
        ("liner(1, 0)", r"unknown kind 'liner' \(did you mean 'linear'\?\)"),
        ("linear", r"a number or one of constant.*did you mean 'linear'"),
        ("linear(1", "a number or one of"),
        ("linear(1)", r"linear takes \(first, last, over=ROUNDS\); 1 number was given"),
        ("linear(1, 2, 3)", "3 numbers were given"),
        ("linear(1, x)", r"'x' was given; \(first, last, over=ROUNDS\) is right"),
        ("linear(1, 0, rounds=3)", r"'rounds=3' was given"),
        ("linear(1, 0, over=0)", "over=0 was given; a whole number of rounds from 1"),
        ("linear(1, 0, over=1.5)", "a whole number of rounds is right"),
        ("linear(1, over=3, 0)", "'0' was given"),
        ("power(0.9, 1, over=3)", "over= is for linear, cosine, exponential"),
        ("", "a number or one of"),
    ],
)
def test_bad_input_is_a_sentence(text, sentence):
    with pytest.raises(Misconfigured, match=sentence):
        parse(text)


def test_what_it_reads():
    assert parse("1").reads == frozenset()
    assert parse("linear(1,0)").reads == {"budget"}
    assert parse("linear(1,0,over=3)").reads == {"round"}
    assert parse("agreement()").reads == {"agreement"}
    assert parse("return_ratio(1)").reads == {"returns"}
