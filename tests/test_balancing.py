"""Weights that the learner finds: gradient norms that come level, an s for each term, both kept in a checkpoint and bounded."""

import math

import pytest
import torch
from test_distillation import run
from test_learn import collected, setup_of

from distillrl import weights
from distillrl.balancing import BOUND, Balance
from distillrl.beginning import begin
from distillrl.errors import Misconfigured
from distillrl.records import Progress


def of(*kinds):
    return Balance({f"t{i}": weights.parse(k) for i, k in enumerate(kinds)})


def test_gradnorm_by_hand():
    balance = of("gradnorm(1, 0)", "gradnorm(1, 0)", "5")
    balance.after_round({"t0": 1.0, "t1": 1.0, "t2": 1.0}, {"t0": 3.0, "t1": 1.0, "t2": 99.0})
    # The mean norm is 2: factors 2/3 and 2, made to sum to 2: 1/2 and 3/2.
    assert [balance.factor(f"t{i}") for i in range(3)] == pytest.approx([0.5, 1.5, 1.0])
    balance = of("gradnorm(1, 1)", "gradnorm(1, 1)")
    balance.after_round({"t0": 1.0, "t1": 1.0}, {"t0": 1.0, "t1": 1.0})
    balance.after_round({"t0": 0.5, "t1": 1.0}, {"t0": 1.0, "t1": 1.0})
    # Paces ½ and 1 of a mean of ¾: the slower term weighs twice as much.
    assert [balance.factor(f"t{i}") for i in range(2)] == pytest.approx([2 / 3, 4 / 3])
    for _ in range(99):
        balance.after_round({"t0": 1.0, "t1": 1.0}, {"t0": 1e9, "t1": 1e-9})
    assert balance.factor("t0") >= 1 / BOUND / 2


def test_uncertainty_comes_to_half_of_the_inverse_loss():
    balance = of("uncertainty", "uncertainty")
    optimiser = torch.optim.SGD(balance.parameters, lr=0.5)
    losses = torch.tensor([0.05, 5.0])
    for _ in range(150):
        total = sum(balance.factor(f"t{i}") * losses[i] for i in range(2)) + balance.penalty({"t0": 1.0, "t1": 1.0})
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        balance.hold()
    assert list(balance.metrics().values()) == pytest.approx([10, 0.1], rel=0.02)
    balance.log_variance["t0"].data.fill_(-99)
    balance.hold()
    assert balance.metrics()["weight.t0"] == pytest.approx(BOUND)
    other = of("uncertainty", "uncertainty")
    other.load_state_dict(balance.state_dict())
    assert float(other.factor("t0")) == pytest.approx(BOUND)


def test_gradnorm_brings_unlike_terms_level():
    state = begin(setup := setup_of(terms={"forward_kl": "gradnorm", "mse": {"weight": "gradnorm", "scale": "none"}}))
    collected(setup, state)
    first = state.gradient.learn(state.dataset, Progress())
    for i in range(12):
        last = state.gradient.learn(state.dataset, Progress(round=i + 1))

    def apart(m):
        return abs(math.log(m["share.forward_kl"] / m["share.mse"]))

    assert apart(last) < max(0.8, apart(first))
    assert last["weight.forward_kl"] + last["weight.mse"] == pytest.approx(2)
    fresh = begin(setup)
    fresh.gradient.load_state_dict(state.gradient.state_dict())
    assert fresh.gradient.balance.metrics() == state.gradient.balance.metrics()


def test_one_term_alone_or_a_driver_is_refused(tmp_path):
    with pytest.raises(Misconfigured, match="gradnorm is the weight of forward_kl alone"):
        begin(setup_of(terms={"forward_kl": "gradnorm", "mse": 1}))
    with pytest.raises(Misconfigured, match="balances terms against each other"):
        setup_of(terms={"forward_kl": 1}, beta="gradnorm")
    assert str(weights.parse("uncertainty")) == "uncertainty(1)"
    assert weights.parse("gradnorm").values == (1.0, 1.5)


def test_a_run_balanced_by_uncertainty_learns(tmp_path):
    result = run(tmp_path, terms="forward_kl: uncertainty, mse: uncertainty", until="retention=0.9", verdict_episodes=6, select_episodes=6, backend="gymnasium:1")
    assert result.verdict["retention"]["value"] > 0.85
