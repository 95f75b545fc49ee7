"""Objectives on values, Q-values and return distributions: golden values by hand, gradients, properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillrl import objectives
from distillrl.actions import Categorical, Deterministic
from distillrl.errors import Misconfigured, Missing
from distillrl.objectives import value
from distillrl.records import Batch, Prediction


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def quantiles(*rows):
    return torch.tensor([rows], dtype=torch.float64)  # one state, [1, A, K]


def generator():
    return torch.Generator().manual_seed(0)


def batch(**knowledge):
    return Batch({}, Prediction(**knowledge))


def test_q_golden_values():
    student, teacher = Prediction(q=t(1.0, 4.0)), batch(q=t(3.0, 1.0))
    assert value.q_mse(student, teacher, scale=1.0).item() == pytest.approx(4 + 9)
    assert value.q_mse(student, teacher, scale=2.0).item() == pytest.approx(13 / 4)
    # Means 2.5 and 2: advantages (−1.5, 1.5) and (1, −1)
    assert value.advantage_mse(student, teacher, scale=1.0).item() == pytest.approx(2 * 2.5**2)
    # Maxima 4 and 3: (−3, 0) and (0, −2)
    assert value.advantage_mse(student, teacher, baseline="max", scale=1.0).item() == pytest.approx(9 + 4)
    assert value.dueling_mse(student, teacher, scale=1.0).item() == pytest.approx(0.5**2 + 12.5)
    assert value.dueling_mse(student, teacher, value_weight=2.0, scale=1.0).item() == pytest.approx(value.q_mse(student, teacher, scale=1.0).item())
    assert value.dueling_mse(student, teacher, value_weight=0.0, advantage_weight=3.0, scale=1.0).item() == pytest.approx(37.5)
    # softmax((3, 1)/2) = (e, 1)/(e + 1), softmax((1, 4)) = (1, e³)/(1 + e³)
    p = math.e / (1 + math.e)
    golden = p * (math.log(p) + math.log(1 + math.exp(3))) + (1 - p) * (math.log(1 - p) - 3 + math.log(1 + math.exp(3)))
    assert value.q_kl(student, teacher, teacher_temperature=2.0).item() == pytest.approx(golden)
    assert value.q_kl(student, batch(q=student.q), teacher_temperature=1.0).item() == pytest.approx(0.0, abs=1e-12)


def test_without_a_scale_losses_are_as_large_as_the_teachers_figures():
    mask = torch.tensor([True, False, True])
    teacher = batch(q=t(300.0, 1e9, 100.0), action=Categorical(t(0.0, 0.0, 0.0), mask))
    nothing = Prediction(q=t(0.0, 0.0, 0.0))
    assert value.q_mse(nothing, teacher).item() == pytest.approx(2.0), "1 for each legal action"
    assert value.advantage_mse(nothing, teacher).item() == pytest.approx(2.0)
    assert value.dueling_mse(nothing, teacher, advantage_weight=0.0).item() == pytest.approx(200**2 / 50_000)
    values = torch.tensor([300.0, 100.0])
    assert value.value_mse(Prediction(value=torch.zeros(2)), batch(value=values)).tolist() == pytest.approx([1.8, 0.2])
    same = value.value_mse(Prediction(value=values / 2), batch(value=values))
    assert torch.allclose(same, value.value_mse(Prediction(value=50 * values), batch(value=100 * values))), "whatever the unit of reward"
    assert value.value_mse(Prediction(value=torch.ones(2)), batch(value=torch.zeros(2))).isfinite().all()


def test_value_golden_values():
    student = Prediction(value=t(1.0))
    assert value.value_mse(student, batch(value=t(4.0)), scale=3.0).item() == pytest.approx(1.0)
    greedy = batch(q=t(2.0, 5.0).unsqueeze(0), action=Deterministic(torch.tensor([1])))
    assert value.value_mse(student, greedy, scale=1.0).item() == pytest.approx(16.0)  # max Q = 5
    soft = batch(q=t(2.0, 6.0).unsqueeze(0), action=Categorical(t(0.0, 0.0).unsqueeze(0)))
    assert value.value_mse(student, soft, scale=1.0).item() == pytest.approx(9.0)  # the mean under ½, ½ is 4


def test_illegal_actions_do_not_count():
    mask = torch.tensor([True, False, True])
    teacher = batch(q=t(1.0, 100.0, 3.0), action=Categorical(t(0.0, 0.0, 0.0), mask))
    student = Prediction(q=t(2.0, -100.0, 5.0))
    assert value.q_mse(student, teacher, scale=1.0).item() == pytest.approx(1 + 4)
    assert value.advantage_mse(student, teacher, scale=1.0).item() == pytest.approx(0.25 + 0.25)  # (−1.5, 1.5) against (−1, 1)
    assert value.advantage_mse(student, teacher, baseline="max", scale=1.0).item() == pytest.approx(1.0)  # (−3, 0) against (−2, 0)
    assert value.q_kl(student, teacher, teacher_temperature=1.0).item() == pytest.approx(
        value.q_kl(Prediction(q=t(2.0, 5.0)), batch(q=t(1.0, 3.0)), teacher_temperature=1.0).item()
    )


def test_quantile_golden_values():
    one = Prediction(quantiles=quantiles([0.0]))
    # τ = ½, u = 2: ½ · (2 − ½);  with κ = 4: ½ · (½ · 4) / 4
    assert value.quantile_huber(one, batch(quantiles=quantiles([2.0]))).item() == pytest.approx(0.75)
    assert value.quantile_huber(one, batch(quantiles=quantiles([2.0])), kappa=4.0).item() == pytest.approx(0.25)
    # τ = ¼, ¾; u = ½, −½; |τ − 1[u<0]| = ¼ both; ⅛ each: mean ¼ · ⅛
    two = Prediction(quantiles=quantiles([0.0, 1.0]))
    assert value.quantile_huber(two, batch(quantiles=quantiles([0.5]))).item() == pytest.approx(1 / 32)
    # TQC: the highest of 0.5 and 99 is left out; two actions add up
    dropped = value.quantile_huber(two, batch(quantiles=quantiles([99.0, 0.5])), drop=1)
    assert dropped.item() == pytest.approx(1 / 32)
    both = value.quantile_huber(Prediction(quantiles=quantiles([0.0], [0.0])), batch(quantiles=quantiles([2.0], [2.0])))
    assert both.item() == pytest.approx(1.5)


def test_wasserstein_golden_values():
    # Steps (0, 2) at halves against (2, 1, 0), sorted, at thirds: |0−0|/3 + |0−1|/6 + |2−1|/6 + |2−2|/3
    student, teacher = Prediction(quantiles=quantiles([0.0, 2.0])), batch(quantiles=quantiles([2.0, 1.0, 0.0]))
    assert value.quantile_distance(student, teacher).item() == pytest.approx(1 / 3)
    assert value.quantile_distance(student, teacher, power=2, scale=0.5).item() == pytest.approx(4 / 3)
    assert value.quantile_distance(student, batch(quantiles=quantiles([2.0, 0.0]))).item() == pytest.approx(0.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=7), st.lists(st.floats(-9, 9), min_size=1, max_size=7), st.floats(-5, 5))
def test_wasserstein_is_a_distance_that_shifts(a, b, shift):
    x, y = Prediction(quantiles=quantiles(a)), Prediction(quantiles=quantiles(b))
    there, back = value.quantile_distance(x, Batch({}, y)).item(), value.quantile_distance(y, Batch({}, x)).item()
    assert there == pytest.approx(back, abs=1e-9)
    assert there >= abs(sum(a) / len(a) - sum(b) / len(b)) - 1e-9
    moved = Prediction(quantiles=quantiles([v + shift for v in a]))
    assert value.quantile_distance(moved, Batch({}, x)).item() == pytest.approx(abs(shift), abs=1e-9)


def test_the_quantile_loss_is_least_at_the_teachers_quantiles():
    target = quantiles([-1.0, 0.0, 2.0, 5.0])
    mine = torch.zeros_like(target, requires_grad=True)
    optimiser = torch.optim.Adam([mine], lr=0.1)
    for _ in range(200):
        loss = value.quantile_huber(Prediction(quantiles=mine), batch(quantiles=target), kappa=0.01).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert value.quantile_distance(Prediction(quantiles=mine), batch(quantiles=target)).item() < 0.2


def test_projection_shares_a_return_between_its_neighbours():
    points = t(-1.0, 0.0, 1.0)
    # ¼ lies ¾ by 0 and ¼ by 1; 9 counts as 1, −9 as −1
    assert value.projection(quantiles([0.25]), points).flatten().tolist() == pytest.approx([0.0, 0.75, 0.25])
    assert value.projection(quantiles([9.0, -9.0, -9.0, 0.0]), points).flatten().tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_distributional_learns_and_is_zero_where_the_student_tells_returns_apart():
    features = torch.eye(2, dtype=torch.float64)
    student, teacher = Prediction(features={"0": features}), Batch({}, Prediction(q=torch.tensor([[0.0, 4.0], [2.0, 0.0]])))
    loss = objectives.make("distributional", {"atoms": 5, "low": 0.0, "high": 4.0}, student, teacher, generator())
    assert loss(student, teacher).shape == (2,)
    with torch.no_grad():
        loss.logits.weight.zero_()
    # Uniform over 5 atoms: each action's certain return costs log 5
    torch.testing.assert_close(loss(student, teacher), torch.full((2,), 2 * math.log(5), dtype=torch.float64))
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.3)
    for _ in range(200):
        optimiser.zero_grad()
        loss(student, teacher).sum().backward()
        optimiser.step()
    assert loss(student, teacher).max().item() < 0.01
    values = objectives.make("distributional", {}, student, batch(value=t(0.0, 0.0)), generator())
    assert values(student, batch(value=t(0.0, 0.0))).shape == (2,)
    with pytest.raises(Misconfigured, match=r"low = 1 and high = 0 were given; low must lie below high"):
        objectives.make("distributional", {"low": 1.0, "high": 0.0}, student, teacher, generator())


def test_gradients():
    rng = torch.Generator().manual_seed(1)
    q, target = (torch.randn(3, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    q.requires_grad_()
    for function in (value.q_mse, value.q_kl, value.advantage_mse, value.dueling_mse):
        assert torch.autograd.gradcheck(lambda x, f=function: f(Prediction(q=x), batch(q=target)), q)
    z, goal = (torch.randn(2, 3, k, generator=rng, dtype=torch.float64) for k in (5, 4))
    z.requires_grad_()
    for function in (value.quantile_huber, value.quantile_distance):
        assert torch.autograd.gradcheck(lambda x, f=function: f(Prediction(quantiles=x), batch(quantiles=goal)), z)
    v = torch.randn(3, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: value.value_mse(Prediction(value=x), batch(value=target[:, 0])), v)


def test_what_is_missing_is_said():
    with pytest.raises(Missing, match=r"q_mse needs `q`, but this student gives only `value`"):
        value.q_mse(Prediction(value=t(0.0)), batch(q=t(0.0)))
    with pytest.raises(Missing, match=r"value_mse needs `value` or `q`, but this teacher gives neither"):
        value.value_mse(Prediction(value=t(0.0)), batch())
    with pytest.raises(Misconfigured, match=r"Q of 2 actions, the teacher of 3"):
        value.q_mse(Prediction(q=t(0.0, 1.0)), batch(q=t(0.0, 1.0, 2.0)))
    with pytest.raises(Misconfigured, match=r"drop = 2 was given, but the teacher has 2 quantiles"):
        value.quantile_huber(Prediction(quantiles=quantiles([0.0])), batch(quantiles=quantiles([0.0, 1.0])), drop=2)
    with pytest.raises(Misconfigured, match=r"quantiles of 1 actions, the teacher of 2"):
        value.quantile_distance(Prediction(quantiles=quantiles([0.0])), batch(quantiles=quantiles([0.0], [1.0])))
