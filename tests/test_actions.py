"""Golden values worked out by hand; properties over random distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillrl.actions import Bernoulli, Categorical, Deterministic, Gaussian, Head, MultiCategorical
from distillrl.errors import Missing
from distillrl.records import ActionSpace, Prediction, over_states, tensors, with_tensors

LOG2, LOG3 = math.log(2), math.log(3)
BOX = ActionSpace("box", (2,), low=(-1.0, -2.0), high=(1.0, 2.0), dtype="float32")


def unbounded(mean, std):
    one = torch.ones(len(mean))
    return Gaussian(torch.tensor([mean]), torch.tensor([std]).log(), -100 * one, 100 * one)


def test_categorical_by_hand():
    p = Categorical(torch.tensor([[0.0, LOG3]]))  # 1/4, 3/4
    q = Categorical(torch.tensor([[0.0, 0.0]]))  # 1/2, 1/2
    assert p.mode.item() == 1
    assert p.log_prob(torch.tensor([1])).item() == pytest.approx(math.log(0.75))
    # KL(p‖q) = ¼ log ½ + ¾ log 3/2 = log 2 − H(p)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert p.entropy().item() == pytest.approx(entropy)
    assert p.kl(q).item() == pytest.approx(LOG2 - entropy)
    # τ = ½ squares the odds: 1/10, 9/10
    assert p.tempered(0.5).log_probs.exp()[0].tolist() == pytest.approx([0.1, 0.9])


def test_masked_actions_are_never_played_and_cost_nothing():
    mask = torch.tensor([[True, False, True]])
    p = Categorical(torch.tensor([[0.0, 50.0, 0.0]]), mask)
    assert p.mode.item() in {0, 2}
    assert p.entropy().item() == pytest.approx(LOG2)
    assert p.kl(Categorical(torch.zeros(1, 3), mask)).item() == pytest.approx(0.0, abs=1e-6)


def test_gaussian_by_hand():
    p, q = unbounded([0.0], [1.0]), unbounded([1.0], [2.0])
    # KL = log(2/1) + (1 + 1)/(2·4) − ½
    assert p.kl(q).item() == pytest.approx(LOG2 + 0.25 - 0.5)
    assert p.log_prob(torch.tensor([[0.0]])).item() == pytest.approx(-0.5 * math.log(2 * math.pi))
    assert p.entropy().item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e))


def test_clipped_and_squashed_modes():
    head = Head.of("gaussian", BOX)
    assert head.decode(torch.tensor([[5.0, -1.0]]), torch.zeros(2)).mode.tolist() == [[1.0, -1.0]]
    squashed = Head.of("squashed", BOX).decode(torch.tensor([[0.0, 100.0]]), torch.zeros(2))
    assert squashed.mode.tolist() == [[0.0, 2.0]]
    # density of a = low + (tanh u + 1)/2 · (high − low) at u = 0: N(0) per dimension over |da/du| = (high − low)/2 = 1 and 2
    at_zero = Head.of("squashed", BOX).decode(torch.zeros(1, 2), torch.zeros(2)).log_prob(torch.zeros(1, 2)).item()
    assert at_zero == pytest.approx(-math.log(2 * math.pi) - LOG2)


def test_squashed_density_integrates_to_one():
    space = ActionSpace("box", (1,), low=(-1.0,), high=(3.0,), dtype="float32")
    grid = torch.linspace(-0.9999, 2.9999, 20001, dtype=torch.float64).unsqueeze(-1)
    p = Gaussian(torch.full_like(grid, 0.3), torch.full_like(grid, -0.5), torch.tensor([-1.0]).double(), torch.tensor([3.0]).double(), True)
    assert torch.trapezoid(p.log_prob(grid).exp(), grid.squeeze(-1)).item() == pytest.approx(1.0, abs=1e-3)
    assert space.dimensions == 1


def test_bernoulli_by_hand():
    p, q = Bernoulli(torch.tensor([[LOG3, 0.0]])), Bernoulli(torch.zeros(1, 2))
    assert p.mode.tolist() == [[1, 0]]
    assert p.kl(q).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert p.log_prob(torch.tensor([[1, 0]])).item() == pytest.approx(math.log(0.75) + math.log(0.5))


def test_multicategorical_sums_its_parts():
    p = MultiCategorical(torch.tensor([[0.0, LOG3, 0.0, 0.0, 0.0]]), (2, 3))
    q = MultiCategorical(torch.zeros(1, 5), (2, 3))
    one = Categorical(torch.tensor([[0.0, LOG3]])).kl(Categorical(torch.zeros(1, 2)))
    assert p.kl(q).item() == pytest.approx(one.item())
    assert p.log_prob(torch.tensor([[1, 2]])).item() == pytest.approx(math.log(0.75 / 3))
    assert p.mode.shape == (1, 2)


def test_what_a_deterministic_action_cannot_say():
    action = Deterministic(torch.zeros(3, dtype=torch.int64))
    for ask in (lambda: action.entropy(), lambda: action.kl(action), lambda: action.log_prob(action.value)):
        with pytest.raises(Missing, match="deterministic"):
            ask()
    with pytest.raises(Missing, match="Categorical and a Bernoulli"):
        Categorical(torch.zeros(1, 2)).kl(Bernoulli(torch.zeros(1, 2)))


def test_samples_follow_the_distribution_and_the_generator():
    p = Categorical(torch.tensor([0.0, LOG3]).expand(20000, 2))
    a, b = (p.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.float().mean().item() == pytest.approx(0.75, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=3, max_size=3), st.lists(st.floats(-8, 8), min_size=3, max_size=3))
def test_divergences_are_never_negative_and_zero_at_equality(a, b):
    x, y = torch.tensor([a]).double(), torch.tensor([b]).double()
    low, high = -torch.ones(3).double(), torch.ones(3).double()
    pairs = [
        (Categorical(x), Categorical(y)),
        (Bernoulli(x), Bernoulli(y)),
        (Gaussian(x, 0.1 * x, low, high), Gaussian(y, 0.1 * y, low, high)),
        (Gaussian(x, 0.1 * x, low, high, True), Gaussian(y, 0.1 * y, low, high, True)),
    ]
    for p, q in pairs:
        assert p.kl(q).item() >= -1e-9
        assert p.kl(p).item() == pytest.approx(0.0, abs=1e-9)


def test_records_go_through_maps_unharmed():
    p = Prediction(Gaussian(torch.zeros(4, 2), torch.zeros(4, 2), -torch.ones(2), torch.ones(2)), value=torch.arange(4.0), features={"body.0": torch.ones(4, 3)})
    half = over_states(lambda x: x[:2], p)
    assert half.action.low.shape == (2,)
    assert half.features["body.0"].shape == (2, 3)
    assert set(tensors(p)) == {"action.mean", "action.log_std", "value", "features.body.0"}
    again = with_tensors(p, tensors(p))
    assert torch.equal(again.action.mean, p.action.mean)
