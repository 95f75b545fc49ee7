"""Objectives on reward: golden values by hand, and that their gradients are the ones that they claim."""

import math

import pytest
import torch

from distillrl import objectives
from distillrl.actions import Bernoulli, Categorical, Deterministic, Gaussian, MultiCategorical
from distillrl.errors import Missing
from distillrl.objectives import policy, reward
from distillrl.records import Batch, Prediction

ONE = torch.tensor([1.0], dtype=torch.float64)


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def half():
    return Prediction(Categorical(t(0.0, 0.0).unsqueeze(0)))  # ½, ½


def played(advantage, old, **more):
    """One state in which action 0 was done."""
    return Batch({}, Prediction(), action=torch.tensor([0]), behaviour_log_prob=t(old), extra={"advantage": t(advantage)}, **more)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss"),
    [
        (2.0, 1.5, -2.4),  # min(3, 1.2 · 2)
        (2.0, 0.5, -1.0),  # min(1, 0.8 · 2)
        (-1.0, 1.5, 1.5),  # min(−1.5, −1.2)
        (-1.0, 0.5, 0.8),  # min(−0.5, −0.8)
    ],
)
def test_ppo_golden_values(advantage, ratio, loss):
    batch = played(advantage, math.log(0.5 / ratio))
    assert reward.ppo_clip(half(), batch, standardise=False).item() == pytest.approx(loss)


def test_a2c_and_return_golden_values():
    assert reward.a2c(half(), played(3.0, 0.0)).item() == pytest.approx(3 * math.log(2))
    batch = Batch({}, Prediction(), extra={"return": t(4.0)})
    assert reward.return_mse(Prediction(value=t(1.0)), batch, scale=3.0).item() == pytest.approx(1.0)


def test_advantages_are_standardised_over_states_that_count():
    batch = Batch({}, Prediction(), torch.tensor([1.0, 2.0, 0.0]), extra={"advantage": t(1.0, 3.0, 100.0)}, action=torch.tensor([0, 0, 0]))
    student = Prediction(Categorical(torch.zeros(3, 2, dtype=torch.float64)))
    # Of 1 and 3: mean 2, deviation 1
    assert reward.a2c(student, batch, standardise=True)[:2].tolist() == pytest.approx([-math.log(2), math.log(2)])


def test_entropy_golden_values():
    assert reward.entropy(half(), played(0.0, 0.0)).item() == pytest.approx(-math.log(2))
    gaussian = Gaussian(t(0.3), t(0.0), -ONE, ONE)
    assert reward.entropy(Prediction(gaussian), played(0.0, 0.0)).item() == pytest.approx(-0.5 * math.log(2 * math.pi * math.e))
    squashed = Gaussian(t(0.3), t(-0.5), -ONE, 2 * ONE, True)
    many = Gaussian(squashed.mean.expand(200000, 1), squashed.log_std.expand(200000, 1), -ONE, 2 * ONE, True)
    sampled = many.log_prob(many.sample(torch.Generator().manual_seed(0))).mean().item()
    assert reward.entropy(Prediction(squashed), played(0.0, 0.0)).item() == pytest.approx(sampled, abs=1e-2)
    wide = Gaussian(t(0.0), t(8.0), -ONE, ONE, True)  # E log(1 − tanh²u) ≈ log 4 − 2 E|u| far out
    golden = -(8 + 0.5 * math.log(2 * math.pi * math.e) + math.log(4) - 2 * math.exp(8) * math.sqrt(2 / math.pi))
    assert reward.entropy(Prediction(wide), played(0.0, 0.0)).item() == pytest.approx(golden, rel=2e-3)


def test_q_learning_golden_values():
    student = Prediction(q=t(2.3, 0.0).unsqueeze(0))
    more = {
        "next": Prediction(q=t(1.0, 5.0).unsqueeze(0)),
        "next_target": Prediction(q=t(3.0, 2.0).unsqueeze(0)),
        "action": torch.tensor([0]),
    }
    batch = Batch({}, Prediction(), reward=t(1.0), terminated=torch.tensor([False]), **more)
    # Double: the student's choice is 1, the slow copy's 2: 1 + 0.9 · 2 = 2.8; ½ · 0.5²
    assert reward.q_learning(student, batch, gamma=0.9).item() == pytest.approx(0.125)
    # Plain: 1 + 0.9 · 3 = 3.7; beyond δ = 1: 1.4 − ½
    assert reward.q_learning(student, batch, gamma=0.9, double=False).item() == pytest.approx(0.9)
    ended = Batch({}, Prediction(), reward=t(1.0), terminated=torch.tensor([True]), **more)
    assert reward.q_learning(student, ended, delta=2.0).item() == pytest.approx(0.5 * 1.3**2)
    steps = Batch({}, Prediction(), extra={"n_step_return": t(1.3), "n_step_discount": t(0.5)}, **more)
    assert reward.n_step_q_learning(student, steps).item() == pytest.approx(0.0)  # 1.3 + ½ · 2 = 2.3
    mask = torch.tensor([[True, False]])
    legal = Prediction(Categorical(t(0.0, 0.0).unsqueeze(0), mask), q=more["next_target"].q)
    one_way = Batch({}, Prediction(), reward=t(1.0), terminated=torch.tensor([False]), **{**more, "next_target": legal})
    assert reward.q_learning(student, one_way, gamma=0.9).item() == pytest.approx(0.9)  # only action 0 is legal: 3


def test_distillation_reward_is_the_reverse_kls_gradient_and_extrapolates():
    logits, teacher = t(0.3, -0.2, 0.5).requires_grad_(), Prediction(Categorical(t(1.0, 0.0, -1.0)))
    reverse = torch.autograd.grad(policy.reverse_kl(Prediction(Categorical(logits)), Batch({}, teacher)), logits)[0]
    for scale, baseline in ((1.0, True), (3.0, True), (1.0, False), (3.0, False)):
        total = torch.zeros(3, dtype=torch.float64)
        for a in range(3):
            student = Prediction(Categorical(logits))
            log_prob = student.action.log_probs[a].detach()
            batch = Batch({}, teacher, action=torch.tensor(a), behaviour_log_prob=log_prob)
            loss = reward.distillation_reward(student, batch, scale=scale, baseline=baseline)
            total += log_prob.exp() * torch.autograd.grad(loss, logits)[0]
        aim = Prediction(Categorical(scale * teacher.action.logits))  # T^scale
        wanted = torch.autograd.grad(policy.reverse_kl(Prediction(Categorical(logits)), Batch({}, aim)), logits)[0]
        torch.testing.assert_close(total, wanted)
        if scale == 1.0:
            torch.testing.assert_close(total, reverse)


def test_distillation_reward_golden_values():
    teacher = Prediction(Categorical(t(3.0, 1.0).log()))  # ¾, ¼
    batch = Batch(
        {}, teacher, action=torch.tensor(0), behaviour_log_prob=t(math.log(0.5)).squeeze(), extra={"distillation_return": t(7.0).squeeze()}
    )
    student = Prediction(Categorical(t(0.0, 0.0)))
    assert reward.distillation_reward(student, batch, baseline=False).item() == pytest.approx(-math.log(1.5))
    twice = 2 * math.log(0.75) - math.log(0.5)
    assert reward.distillation_reward(student, batch, scale=2.0, baseline=False).item() == pytest.approx(-twice)
    # The other action would have earned log ½, or 2 log ¼ − log ½: half of the difference is what this one is better than the mean.
    assert reward.distillation_reward(student, batch).item() == pytest.approx(-(math.log(1.5) - math.log(0.5)) / 2)
    assert reward.distillation_reward(student, batch, scale=2.0).item() == pytest.approx(-(twice - (2 * math.log(0.25) - math.log(0.5))) / 2)
    assert reward.distillation_reward(student, batch, discounted=True).item() == pytest.approx(-7.0)
    sac = Prediction(Gaussian(t(0.0), t(0.0), -ONE, ONE, True))
    given = reward.distillation_rewards(Prediction(Gaussian(t(0.0), t(-1.0), -ONE, ONE)), sac, t(0.5))
    assert given.shape == ()
    with pytest.raises(Missing, match=r"distillation_reward needs the teacher's distribution"):
        reward.distillation_rewards(student, Prediction(Deterministic(torch.tensor(0))), torch.tensor(0))


def test_expected_entropy_regularised_has_the_whole_gradient_of_the_summed_kl():
    # Two steps: from state 0 action a leads to state 1 + a. J = KL_0 + Σ_a S(a | 0) KL_{1 + a}.
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    teacher = Prediction(Categorical(torch.randn(3, 2, generator=rng, dtype=torch.float64)))
    kl = policy.reverse_kl(Prediction(Categorical(logits)), Batch({}, teacher))
    chances = logits[0].softmax(-1)
    whole = torch.autograd.grad(kl[0] + (chances * kl[1:]).sum(), logits, retain_graph=True)[0]
    without = torch.autograd.grad(kl[0] + (chances.detach() * kl[1:]).sum(), logits)[0]
    for baseline in (False, True):
        total = torch.zeros_like(logits)
        for first in range(2):
            for second in range(2):
                visited = torch.tensor([0, 1 + first])
                student = Prediction(Categorical(logits[visited]))
                seen = Batch({}, Prediction(Categorical(teacher.action.logits[visited])), action=torch.tensor([first, second]))
                own = policy.reverse_kl(student, seen).detach()
                future = reward.to_go(own.unsqueeze(1), torch.tensor([[False], [True]]), 1.0, after=True).squeeze(1)
                assert future.tolist() == [own[1].item(), 0.0]
                done = student.action.log_prob(seen.action).detach()
                batch = Batch({}, seen.teacher, action=seen.action, behaviour_log_prob=done, extra={"future_kl": future})
                chance = logits[0].softmax(-1)[first] * logits[1 + first].softmax(-1)[second]
                loss = reward.expected_entropy_regularised(student, batch, baseline=baseline).sum()
                total += chance.item() * torch.autograd.grad(loss, logits)[0]
        if not baseline:
            torch.testing.assert_close(total, whole)
    assert not torch.allclose(whole, without)


def test_expected_entropy_regularised_stops_where_the_policy_has_moved_far():
    # An action that leads to much KL, already half as likely as when it was done: nothing pushes it further down.
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    same = Prediction(Categorical(torch.zeros(1, 2, dtype=torch.float64)))
    batch = Batch({}, same, action=torch.tensor([0]), behaviour_log_prob=t(0.0), extra={"future_kl": t(3.0)})
    loss = reward.expected_entropy_regularised(Prediction(Categorical(logits)), batch, baseline=False)
    assert loss.item() == pytest.approx(0.8 * 3)  # KL 0, ρ = 0.5 clipped to 0.8
    assert torch.autograd.grad(loss.sum(), logits)[0].abs().max() == 0


def test_value_shaping_golden_value():
    batch = Batch(
        {},
        Prediction(value=t(2.0)),
        action=torch.tensor([0]),
        behaviour_log_prob=t(math.log(0.5)),
        reward=t(1.0),
        terminated=torch.tensor([False]),
        extra={"teacher_next_value": t(3.0)},
    )
    # 1 + 0.9 · 3 − 2 = 1.7, ratio 1
    assert reward.value_shaping(half(), batch, gamma=0.9, standardise=False).item() == pytest.approx(-1.7)
    assert reward.shaped_reward(t(1.0), t(2.0), t(3.0), torch.tensor([True]), 0.9).item() == pytest.approx(-1.0)


def test_to_go_golden_values():
    rewards, ends = t(1.0, 2.0, 3.0).unsqueeze(1), torch.tensor([[False], [True], [False]])
    assert reward.to_go(rewards, ends, 0.5).flatten().tolist() == [2.0, 2.0, 3.0]  # 1 + ½ · 2; an end; what is left
    assert reward.to_go(rewards, ends, 0.5, after=True).flatten().tolist() == [2.0, 0.0, 0.0]


def actions(kind):
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(4, 5, generator=rng, dtype=torch.float64)
    low, high = -torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    make = {
        "categorical": Categorical,
        "multicategorical": lambda v: MultiCategorical(v, (2, 3)),
        "bernoulli": Bernoulli,
        "gaussian": lambda v: Gaussian(v[:, :2], 0.3 * v[:, 2:4], low, high),
        "squashed": lambda v: Gaussian(v[:, :2], 0.3 * v[:, 2:4], low, high, True),
    }[kind]
    return x, make


@pytest.mark.parametrize("kind", ["categorical", "multicategorical", "bernoulli", "gaussian", "squashed"])
@pytest.mark.parametrize("name", ["ppo_clip", "a2c", "entropy", "distillation_reward", "expected_entropy_regularised", "value_shaping"])
def test_gradients_for_every_kind_of_action(name, kind):
    x, make = actions(kind)
    rng = torch.Generator().manual_seed(4)
    done = make(x).sample(rng)
    numbers = torch.randn(4, generator=rng, dtype=torch.float64)
    batch = Batch(
        {},
        Prediction(make(x.flip(0)), value=numbers),
        action=done,
        behaviour_log_prob=make(x).log_prob(done) - 0.01,
        reward=numbers,
        terminated=torch.tensor([False, True, False, False]),
        extra={"advantage": numbers, "future_kl": numbers.abs(), "teacher_next_value": numbers.flip(0)},
    )
    loss = objectives.make(name, {}, Prediction(make(x)), batch, torch.Generator())
    assert loss(Prediction(make(x)), batch).shape == (4,)
    if name == "distillation_reward":  # its advantage holds log S without gradient, so numbers differ from it on purpose
        y = x.clone().requires_grad_()
        assert torch.autograd.grad(loss(Prediction(make(y)), batch).sum(), y)[0].isfinite().all()
        return
    assert torch.autograd.gradcheck(lambda v: loss(Prediction(make(v)), batch), x.clone().requires_grad_())


def test_what_is_missing_is_said():
    with pytest.raises(Missing, match=r"ppo_clip needs extra\['advantage'\], which a wrapper of the driver adds; this batch has nothing"):
        reward.ppo_clip(half(), Batch({}, Prediction()))
    with pytest.raises(Missing, match=r"ppo_clip needs `action`, but this batch gives only"):
        reward.ppo_clip(half(), Batch({}, Prediction(), extra={"advantage": t(1.0)}))
    with pytest.raises(Missing, match=r"q_learning needs `next_target`"):
        reward.q_learning(Prediction(q=t(1.0)), Batch({}, Prediction(), reward=t(1.0), terminated=torch.tensor([False])))
    with pytest.raises(Missing, match=r"a2c needs a student with a distribution"):
        reward.a2c(Prediction(Deterministic(torch.zeros(1, 2))), played(1.0, 0.0))


def test_distral_golden_values():
    # h = (0, 0), f = (log 3, 0), α = 0.1/0.2: π_i = (¾, ¼), π₀ = (½, ½); the ratio of action 0 is 1.
    student = Prediction(Categorical(torch.zeros(2, 2, dtype=torch.float64)), features={"column": t(math.log(3), 0.0).expand(2, 2)})
    batch = Batch({}, Prediction(), action=torch.tensor([0, 0]), behaviour_log_prob=t(math.log(0.75), math.log(0.75)), extra={"advantage": t(1.0, 3.0)})
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    found = reward.distral(student, batch, kl=0.1, entropy=0.1)
    assert found.tolist() == pytest.approx([1 + 0.1 * kl - 0.1 * entropy, -1 + 0.1 * kl - 0.1 * entropy])
    assert reward.task_policy(Categorical(t(2.0, 0.0)), t(0.0, 1.0), 0.5).logits.softmax(-1).tolist() == pytest.approx([0.5, 0.5]), "α h + f = (1, 1)"


def test_distral_distils_into_the_shared_policy():
    """Of the KL alone, π_i held fixed, the gradient by π₀'s logits is kl · (π₀ − π_i) (Teh 2017, eq. 9)."""
    h = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    own = Categorical(t(math.log(3), 0.0).unsqueeze(0))
    own.kl(Categorical(h)).sum().backward()
    assert h.grad.tolist() == [pytest.approx([0.5 - 0.75, 0.5 - 0.25])]


def test_advantages_of_several_tasks_are_standardised_in_each():
    batch = Batch({}, Prediction(), extra={"advantage": t(1.0, 3.0, 100.0, 300.0)}, action=torch.zeros(4, dtype=torch.int64), task=torch.tensor([0, 0, 1, 1]))
    student = Prediction(Categorical(torch.zeros(4, 2, dtype=torch.float64)))
    assert reward.a2c(student, batch, standardise=True).tolist() == pytest.approx([-math.log(2), math.log(2)] * 2)
