"""The table of objectives, and those on what a policy does: golden values by hand, gradients, properties."""

import importlib
import inspect
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillrl import objectives
from distillrl.actions import Bernoulli, Categorical, Deterministic, Gaussian, MultiCategorical
from distillrl.errors import Misconfigured, Missing
from distillrl.objectives import matching, policy
from distillrl.records import Batch, Prediction

LOW, HIGH = torch.tensor([-1.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
ONE = torch.tensor([1.0], dtype=torch.float64)
DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "skewed_reverse_kl", "total_variation", "entropy_aware")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def batch_of(action, **more):
    return Batch({}, Prediction(action, **more))


def categorical(*probabilities):
    return Categorical(torch.tensor(probabilities, dtype=torch.float64).log())


def normal(mean, std, squashed=False):
    return Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64).log(), -ONE, ONE, squashed)


def of(kind, seed):
    """Three states' actions of a kind, drawn at random."""
    x, y = randn(3, 5, seed=seed), randn(3, 2, seed=seed + 100)
    return {
        "categorical": lambda: Categorical(x),
        "multicategorical": lambda: MultiCategorical(x, (2, 3)),
        "bernoulli": lambda: Bernoulli(x),
        "gaussian": lambda: Gaussian(x[:, :2], 0.5 * y, LOW, HIGH),
        "squashed": lambda: Gaussian(x[:, :2], 0.5 * y, LOW, HIGH, True),
        "deterministic": lambda: Deterministic(x[:, :2], LOW, HIGH),
    }[kind]()


FAMILIES = ("categorical", "multicategorical", "bernoulli", "gaussian", "squashed")


# -- golden values ----------------------------------------------------------------------------------------------------
def test_discrete_golden_values():
    teacher, student = batch_of(categorical(3 / 4, 1 / 4)), Prediction(categorical(1 / 2, 1 / 2))
    golden = {
        "nll": math.log(2),  # −log S(0) = −log ½
        "cross_entropy": math.log(2),  # every action has probability ½
        "forward_kl": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),  # Σ T log(T/S) = 0.1308
        "reverse_kl": 0.5 * math.log(2 / 3) + 0.5 * math.log(2),  # Σ S log(S/T) = 0.1438
        # M = (5/8, 3/8): ½ (¾ log 6/5 + ¼ log 2/3) + ½ (½ log 4/5 + ½ log 4/3) = ½ · 0.035375 + ½ · 0.032269
        "jensen_shannon": 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)) + 0.25 * (math.log(4 / 5) + math.log(4 / 3)),
        # M = 0.1 T + 0.9 S = (0.525, 0.475)
        "skewed_kl": 0.75 * math.log(0.75 / 0.525) + 0.25 * math.log(0.25 / 0.475),
        # M = 0.9 T + 0.1 S = (0.725, 0.275)
        "skewed_reverse_kl": 0.5 * math.log(0.5 / 0.725) + 0.5 * math.log(0.5 / 0.275),
        "total_variation": 0.25,  # ½ (¼ + ¼)
        "entropy_aware": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),  # H(T)/log 2 = 0.811 ≥ 0.5: the forward one
        # Logits log ¾, log ¼, centred: ±½ log 3; the student's 0: 2 · (½ log 3)²
        "mse": 0.5 * math.log(3) ** 2,
        "huber": 0.25 * math.log(3) ** 2,  # both residuals, 0.549, are below δ = 1
    }
    for name, value in golden.items():
        assert objectives.make(name, {}, student, teacher, generator())(student, teacher).item() == pytest.approx(value, abs=1e-12), name


def test_gaussian_golden_values():
    teacher, student = batch_of(normal(0.0, 1.0)), Prediction(normal(1.0, 2.0))
    # KL(N(0,1) ‖ N(1,2)) = log 2 + (1 + 1)/8 − ½;   KL(N(1,2) ‖ N(0,1)) = −log 2 + (4 + 1)/2 − ½
    assert policy.forward_kl(student, teacher).item() == pytest.approx(math.log(2) - 0.25)
    assert policy.reverse_kl(student, teacher).item() == pytest.approx(2 - math.log(2))
    # −log S(0) = log 2 + ½ log 2π + (0 − 1)²/8; the expectation has (1 + 1)/8 in place of 1/8
    assert policy.nll(student, teacher).item() == pytest.approx(math.log(2) + 0.5 * math.log(2 * math.pi) + 0.125)
    assert policy.nll(student, teacher, of="expectation").item() == pytest.approx(math.log(2) + 0.5 * math.log(2 * math.pi) + 0.25)
    # Variance · τ: the teacher's becomes N(0, 2): equal spreads leave (0 − 1)²/8
    assert policy.forward_kl(student, teacher, teacher_temperature=4.0).item() == pytest.approx(0.125)
    # ½ ∫|N(0,1) − N(1,1)| = 2Φ(½) − 1
    shifted = Prediction(normal(1.0, 1.0))
    assert policy.total_variation(shifted, teacher).item() == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=2e-3)
    assert policy.mse(student, teacher).item() == pytest.approx(1.0)
    assert policy.huber(student, teacher, delta=0.5).item() == pytest.approx(0.5 * (1 - 0.25))
    assert policy.spread_mse(student, teacher).item() == pytest.approx(math.log(2) ** 2)  # σ of 1 and 2; the means don't count


def test_quadrature_agrees_with_a_fine_sum():
    for mean, std in ((0.3, 0.8), (-1.0, 0.4), (2.0, 1.0), (0.0, 0.25), (0.5, 0.02), (9.0, 3.0)):
        t, s = normal(0.0, 1.0), normal(mean, std)
        x = torch.linspace(-20, 30, 400001, dtype=torch.float64)
        p = (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)
        q = (-0.5 * ((x - mean) / std).square()).exp() / (std * math.sqrt(2 * math.pi))
        m = 0.5 * (p + q)
        exact = (0.5 * (torch.xlogy(p, p / m.clamp_min(1e-300)) + torch.xlogy(q, q / m.clamp_min(1e-300)))).sum().item() * 50 / 400000
        assert policy.jensen_shannon(Prediction(s), batch_of(t)).item() == pytest.approx(exact, abs=2e-4)


def test_temperature_sharpens_q_values_as_rusu_does():
    # Q differ by 0.02; at τ = 0.01 the logits differ by 2, so T = (1, e²)/(1 + e²); KL to a uniform student is log 2 − H(T).
    q = torch.tensor([1.0, 1.02], dtype=torch.float64)
    teacher = batch_of(Deterministic(q.argmax(-1)), q=q)
    p = math.exp(2) / (1 + math.exp(2))
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    loss = policy.forward_kl(Prediction(categorical(0.5, 0.5)), teacher, teacher_temperature=0.01)
    assert loss.item() == pytest.approx(math.log(2) - entropy)
    # A student that is greedy on Q of its own is softmax(Q): logits (0, 2) are at equality.
    own = torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert policy.forward_kl(Prediction(Deterministic(own.argmax(-1)), q=own), teacher, teacher_temperature=0.01).item() == pytest.approx(
        0.0, abs=1e-12
    )


def test_a_deterministic_discrete_teacher_is_sure():
    student = Prediction(categorical(1 / 4, 1 / 2, 1 / 4))
    teacher = batch_of(Deterministic(torch.tensor(1)))
    for name in ("nll", "cross_entropy", "forward_kl"):
        assert getattr(policy, name)(student, teacher).item() == pytest.approx(math.log(2)), name  # −log ½
    assert policy.total_variation(student, teacher).item() == pytest.approx(0.5)
    # M = (1/8, 3/4, 1/8): ½ log(4/3) + ½ (2 · ¼ log 2 + ½ log 2/3)
    assert policy.jensen_shannon(student, teacher).item() == pytest.approx(
        0.5 * math.log(4 / 3) + 0.5 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    )
    multi = Prediction(MultiCategorical(torch.tensor([0.5, 0.5, 0.25, 0.5, 0.25]).log(), (2, 3)))
    assert policy.forward_kl(multi, batch_of(Deterministic(torch.tensor([0, 1])))).item() == pytest.approx(2 * math.log(2))
    switches = Prediction(Bernoulli(torch.tensor([0.0, math.log(3)])))  # ½, ¾ on
    assert policy.forward_kl(switches, batch_of(Deterministic(torch.tensor([1, 0])))).item() == pytest.approx(math.log(2) + math.log(4))


def test_entropy_aware_takes_each_state_as_the_teacher_is():
    logits = torch.tensor([[0.0, 0.1], [0.0, 5.0]], dtype=torch.float64)  # undecided, sure
    teacher, student = batch_of(Categorical(logits)), Prediction(Categorical(torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)))
    loss = policy.entropy_aware(student, teacher)
    assert loss[0] == policy.forward_kl(student, teacher)[0]
    assert loss[1] == policy.reverse_kl(student, teacher)[1]
    # A Gaussian's share: e^h / range = √(2πe) σ / 2 over −1 … 1
    assert policy.entropy_share(normal(0.0, 0.1)).item() == pytest.approx(math.sqrt(2 * math.pi * math.e) * 0.1 / 2)


def test_box_means_are_scaled_and_clipped_to_the_range():
    low, high = torch.tensor([-2.0, -math.inf]), torch.tensor([2.0, math.inf])
    teacher = batch_of(Gaussian(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), low, high))
    student = Prediction(Deterministic(torch.tensor([0.0, -1.0]), low, high))
    assert policy.mse(student, teacher).item() == pytest.approx(0.25 + 4)  # (1/2)² by half the range, 2² where unbounded
    assert policy.mse(student, teacher, scale="none").item() == pytest.approx(1 + 4)
    assert policy.mse(student, teacher, scale="std").item() == pytest.approx(1 + 4 * math.exp(-2))
    beyond = batch_of(normal(3.0, 1.0))
    for mean, loss in ((0.0, 1.0), (1.0, 0.0), (2.0, 0.0), (5.0, 4.0)):  # up to the bound 1; between 1 and 3 it plays the same
        assert policy.mse(Prediction(normal(mean, 1.0)), beyond).item() == pytest.approx(loss)
    assert policy.mse(Prediction(normal(0.0, 1.0)), beyond, clip=False).item() == pytest.approx(9.0)
    # The same of a KL: ½ (1 − 0)² in place of ½ 3²
    assert policy.forward_kl(Prediction(normal(0.0, 1.0)), beyond, clip=True).item() == pytest.approx(0.5)
    assert policy.forward_kl(Prediction(normal(0.0, 1.0)), beyond).item() == pytest.approx(4.5)
    assert policy.reverse_kl(Prediction(normal(2.0, 1.0)), beyond, clip=True).item() == pytest.approx(0.0)


def test_logits_may_shift_unless_centre_is_off():
    logits = torch.tensor([1.0, 2.0, 3.0])
    student, teacher = Prediction(Categorical(logits + 5)), batch_of(Categorical(logits))
    assert policy.mse(student, teacher).item() == pytest.approx(0.0, abs=1e-9)
    assert policy.mse(student, teacher, centre=False).item() == pytest.approx(75.0)
    switches = Prediction(Bernoulli(torch.tensor([1.0, 2.0])))
    assert policy.mse(switches, batch_of(Bernoulli(torch.tensor([0.0, 0.0])))).item() == pytest.approx(5.0)


@pytest.mark.parametrize("name", [*DIVERGENCES, "mse", "huber", "cross_entropy"])
def test_a_mask_of_legal_actions_holds_for_both(name):
    mask = torch.tensor([True, True, False])
    legal = objectives.make(name, {}, Prediction(), Batch({}, Prediction()), generator())
    with_mask = legal(Prediction(Categorical(torch.tensor([0.3, 0.1, 9.0]))), batch_of(Categorical(torch.tensor([1.0, 0.5, 4.0]), mask)))
    without = legal(Prediction(Categorical(torch.tensor([0.3, 0.1]))), batch_of(Categorical(torch.tensor([1.0, 0.5]))))
    assert with_mask.item() == pytest.approx(without.item(), abs=1e-6)


# -- families ---------------------------------------------------------------------------------------------------------
def test_projection_keeps_mean_and_variance():
    narrow = matching.projected(normal(0.5, 1e-3, squashed=True), squashed=False)
    slope = 1 - math.tanh(0.5) ** 2
    assert narrow.mean.item() == pytest.approx(math.tanh(0.5), abs=1e-6)  # the delta method
    assert narrow.log_std.exp().item() == pytest.approx(1e-3 * slope, rel=1e-3)
    broad = matching.projected(normal(0.0, 50.0, squashed=True), squashed=False)
    assert broad.log_std.exp().item() == pytest.approx(1.0, abs=2e-2)  # a coin between both bounds
    # An unbounded Gaussian at 9 is always at the bound, which is taken at 0.999
    assert matching.projected(normal(9.0, 0.5), squashed=True).mean.item() == pytest.approx(math.atanh(0.999), abs=1e-6)
    back = matching.projected(narrow, squashed=True)
    assert back.mean.item() == pytest.approx(0.5, abs=1e-5)
    assert back.log_std.exp().item() == pytest.approx(1e-3, rel=1e-3)
    wide = normal(0.3, 1.5, squashed=True)
    x = torch.tanh(0.3 + 1.5 * randn(200000, seed=1))
    flat = matching.projected(wide, squashed=False)
    assert flat.mean.item() == pytest.approx(x.mean().item(), abs=4e-3)
    assert flat.log_std.exp().item() == pytest.approx(x.std().item(), abs=5e-3)


@pytest.mark.parametrize("squashed", [False, True])
def test_across_families_forward_kl_is_the_expected_nll_but_for_a_constant(squashed):
    teacher = Gaussian(torch.tensor([0.4], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64), -ONE, ONE, not squashed)
    first, second = Prediction(normal(0.1, 0.7, squashed)), Prediction(normal(0.6, 0.4, squashed))
    many = Gaussian(teacher.mean.expand(100000, 1), teacher.log_std.expand(100000, 1), -ONE, ONE, not squashed)
    sampled = [policy.nll(p, batch_of(many), of="sample", generator=generator(3)).mean() for p in (first, second)]
    exact = [policy.forward_kl(p, batch_of(teacher)) for p in (first, second)]
    assert (exact[0] - exact[1]).item() == pytest.approx((sampled[0] - sampled[1]).item(), abs=3e-2)


def test_squashing_changes_no_divergence_and_expectations_agree_with_samples():
    for name in DIVERGENCES[:-1]:
        plain, squashed = [
            getattr(policy, name)(Prediction(normal(0.5, 0.8, s)), batch_of(normal(-0.2, 0.5, s))).item() for s in (False, True)
        ]
        assert plain == pytest.approx(squashed, abs=1e-9)
    student, teacher = Prediction(normal(0.5, 0.8, True)), normal(-0.2, 0.5, True)
    many = Gaussian(teacher.mean.expand(100000, 1), teacher.log_std.expand(100000, 1), -ONE, ONE, True)
    sampled = policy.nll(student, batch_of(many), of="sample", generator=generator()).mean().item()
    assert policy.cross_entropy(student, batch_of(teacher)).item() == pytest.approx(sampled, abs=1e-2)


@pytest.mark.parametrize("name", ["jensen_shannon", "skewed_kl", "skewed_reverse_kl", "total_variation"])
@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_samples_are_unbiased_in_value_and_gradient(name, kind):
    if kind == "categorical":
        raw, teacher, build = torch.tensor([0.5, -0.5, 0.2], dtype=torch.float64), categorical(0.7, 0.2, 0.1), Categorical
    else:
        raw, teacher = torch.tensor([0.5], dtype=torch.float64), normal(0.0, 1.0)
        build = lambda x: Gaussian(x, torch.zeros_like(x), -ONE, ONE)  # noqa: E731  # one line of a test
    raw.requires_grad_()
    n = 1000
    exact = getattr(policy, name)(Prediction(build(raw)), batch_of(teacher))
    slope = torch.autograd.grad(exact, raw)[0]
    wide = Batch({}, Prediction(expanded(teacher, n)))
    estimate = getattr(policy, name)(Prediction(build(raw.expand(n, -1))), wide, samples=4, generator=generator(5)).mean()
    assert estimate.item() == pytest.approx(exact.item(), abs=2e-2)
    torch.testing.assert_close(torch.autograd.grad(estimate, raw)[0], slope, atol=4e-2, rtol=0)


def expanded(action, n):
    if isinstance(action, Categorical):
        return Categorical(action.logits.expand(n, -1))
    return Gaussian(action.mean.expand(n, -1), action.log_std.expand(n, -1), action.low, action.high)


def test_joint_divergence_of_several_dimensions_is_bounded_where_the_sum_is_not():
    far = torch.tensor([[9.0, -9.0, 9.0, -9.0]], dtype=torch.float64)
    student, teacher = Prediction(MultiCategorical(far, (2, 2))), batch_of(MultiCategorical(-far, (2, 2)))
    assert policy.jensen_shannon(student, teacher).item() == pytest.approx(2 * math.log(2), abs=1e-5)
    assert policy.jensen_shannon(student, teacher, samples=8, generator=generator()).item() == pytest.approx(math.log(2), abs=1e-5)
    assert policy.total_variation(student, teacher).item() == pytest.approx(2, abs=1e-5)
    assert policy.total_variation(student, teacher, samples=8, generator=generator()).item() == pytest.approx(1, abs=1e-5)


# -- properties -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", [*DIVERGENCES, "mse", "huber"])
def test_zero_at_equality_and_one_number_a_state(name, kind):
    action = of(kind, 1)
    loss = getattr(policy, name)(Prediction(action), batch_of(action), **({"clip": False} if name in {"mse", "huber"} else {}))
    assert loss.shape == (3,)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-9, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-6, 6), min_size=8, max_size=8),
    st.sampled_from(FAMILIES),
    st.floats(0.05, 0.95),
    st.floats(0.2, 5.0),
    st.floats(0.2, 5.0),
)
def test_divergences_are_not_negative_and_bounded(numbers, kind, share, own, theirs):
    x = torch.tensor(numbers, dtype=torch.float64)
    make = {
        "categorical": Categorical,
        "multicategorical": lambda v: MultiCategorical(v, (2, 2)),
        "bernoulli": Bernoulli,
        "gaussian": lambda v: Gaussian(v[:2], 0.3 * v[2:], -ONE, ONE),
        "squashed": lambda v: Gaussian(v[:2], 0.3 * v[2:], -ONE, ONE, True),
    }[kind]
    student, teacher = make(x[:4]), make(x[4:])
    dimensions = {"categorical": 1, "multicategorical": 2, "bernoulli": 4, "gaussian": 2, "squashed": 2}[kind]
    temperatures = {"teacher_temperature": theirs, "student_temperature": own}
    tolerance = 1e-9 if kind in {"categorical", "multicategorical", "bernoulli"} else 2e-3 * dimensions
    for name in DIVERGENCES:
        assert getattr(policy, name)(Prediction(student), batch_of(teacher), **temperatures).item() >= -tolerance, name
    one_way = policy.jensen_shannon(Prediction(student), batch_of(teacher)).item()
    assert one_way == pytest.approx(policy.jensen_shannon(Prediction(teacher), batch_of(student)).item(), abs=1e-9)
    assert one_way <= dimensions * math.log(2) + tolerance
    assert policy.total_variation(Prediction(student), batch_of(teacher)).item() <= dimensions + tolerance
    mirrored = policy.jensen_shannon(Prediction(teacher), batch_of(student), beta=1 - share).item()
    assert policy.jensen_shannon(Prediction(student), batch_of(teacher), beta=share).item() == pytest.approx(mirrored, abs=1e-9)
    assert policy.skewed_kl(Prediction(student), batch_of(teacher), alpha=share).item() <= -dimensions * math.log(share) + tolerance


def test_skewed_and_jensen_shannon_tend_to_the_plain_ones():
    student, teacher = Prediction(of("categorical", 1)), batch_of(of("categorical", 2))
    torch.testing.assert_close(policy.skewed_kl(student, teacher, alpha=1e-9), policy.forward_kl(student, teacher), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        policy.skewed_reverse_kl(student, teacher, alpha=1e-9), policy.reverse_kl(student, teacher), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        policy.jensen_shannon(student, teacher, beta=1e-6) / 1e-6, policy.forward_kl(student, teacher), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", ["nll", "cross_entropy", *DIVERGENCES, "mse", "huber"])
def test_gradients(name, kind):
    teacher = batch_of(of(kind, 2))
    start = of(kind, 3)

    def loss(*raw):
        if isinstance(start, Gaussian):
            action = Gaussian(raw[0], raw[1], start.low, start.high, start.squashed)
        else:
            action = MultiCategorical(raw[0], (2, 3)) if kind == "multicategorical" else type(start)(raw[0])
        return getattr(policy, name)(Prediction(action), teacher)

    raw = (start.mean, start.log_std) if isinstance(start, Gaussian) else (start.logits,)
    if name in {"mse", "huber"} and isinstance(start, Gaussian):
        raw = (start.mean, start.log_std.detach())
        raw[0].requires_grad_()
        assert torch.autograd.gradcheck(lambda m: loss(m, raw[1]), raw[0])
        return
    for x in raw:
        x.requires_grad_()
    assert torch.autograd.gradcheck(loss, raw)


@pytest.mark.parametrize("mine", ["gaussian", "squashed"])
@pytest.mark.parametrize("theirs", ["gaussian", "squashed", "deterministic"])
def test_every_loss_that_can_pulls_any_box_student_to_any_teacher(mine, theirs):
    teacher_action = of(theirs, 4)
    names = ("nll", "mse", "huber", "cross_entropy") + (() if theirs == "deterministic" else DIVERGENCES)
    for name in names:
        mean = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        log_std = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([mean, log_std], lr=0.05)
        loss = objectives.make(name, {}, Prediction(), Batch({}, Prediction()), generator())
        first = None
        for _ in range(15):
            student = Prediction(Gaussian(mean, log_std.clamp(-3, 2), LOW, HIGH, mine == "squashed"))
            value = loss(student, batch_of(teacher_action)).sum()
            first = value.item() if first is None else first
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        assert value.item() < first, name


@pytest.mark.parametrize("kind", ["categorical", "multicategorical", "bernoulli"])
def test_every_loss_brings_a_discrete_student_to_the_teachers_choice(kind):
    teacher = of(kind, 5)
    for name in ("nll", "cross_entropy", *DIVERGENCES, "mse", "huber"):
        logits = torch.zeros_like(teacher.logits, requires_grad=True)
        optimiser = torch.optim.Adam([logits], lr=0.2)
        first = None
        for _ in range(40):
            action = MultiCategorical(logits, (2, 3)) if kind == "multicategorical" else type(teacher)(logits)
            loss = getattr(policy, name)(Prediction(action), batch_of(teacher)).sum()
            first = loss.item() if first is None else first
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert loss.item() < first, name
        if name == "total_variation":  # its gradient doesn't shrink near the aim, where near ties change places
            assert loss.item() < 0.25 * first
        else:
            assert torch.equal(action.mode, teacher.mode), name


# -- what can't be done is said ---------------------------------------------------------------------------------------
def test_what_cannot_be_done_is_a_sentence():
    box = Deterministic(torch.zeros(2), LOW.float(), HIGH.float())
    gaussian = Gaussian(torch.zeros(2), torch.zeros(2), LOW.float(), HIGH.float())
    with pytest.raises(Missing, match=r"forward_kl needs the teacher's distribution.*use nll, mse or huber"):
        policy.forward_kl(Prediction(gaussian), batch_of(box))
    with pytest.raises(Missing, match=r"reverse_kl needs the teacher's distribution.*forward_kl \(discrete\)"):
        policy.reverse_kl(Prediction(categorical(0.5, 0.5)), batch_of(Deterministic(torch.tensor(0))))
    with pytest.raises(Missing, match=r"nll needs a student with a distribution.*mse"):
        policy.nll(Prediction(box), batch_of(gaussian))
    with pytest.raises(Missing, match=r"mse on choices needs logits, but this teacher gives only an action; use nll"):
        policy.mse(Prediction(categorical(0.5, 0.5)), batch_of(Deterministic(torch.tensor(0))))
    with pytest.raises(Missing, match=r"scale='std' needs the teacher's standard deviation"):
        policy.mse(Prediction(gaussian), batch_of(box), scale="std")
    with pytest.raises(Missing, match=r"the teacher's action is a Categorical, the student's a Gaussian"):
        policy.forward_kl(Prediction(gaussian), batch_of(categorical(0.5, 0.5)))
    with pytest.raises(Misconfigured, match=r"must be given generator"):
        policy.jensen_shannon(Prediction(gaussian), batch_of(gaussian), samples=2)


def test_decoupled_kl_is_the_forward_kl_in_two_parts():
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    student, teacher = Prediction(Categorical(q.log())), batch_of(Categorical(p.log()))
    first = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    second = 2 / 3 * math.log((2 / 3) / (2 / 5)) + 1 / 3 * math.log((1 / 3) / (3 / 5))
    assert policy.decoupled_kl(student, teacher, alpha=2.0, beta=0.5).item() == pytest.approx(2 * first + 0.5 * second)
    assert policy.decoupled_kl(student, teacher, beta=0.3).item() == pytest.approx(policy.forward_kl(student, teacher).item())
    assert policy.decoupled_kl(student, batch_of(student.action)).item() == pytest.approx(0, abs=1e-12)
    masked = Categorical(torch.tensor([3.0, 9.0, 1.0], dtype=torch.float64), torch.tensor([True, False, True]))
    two = Categorical(torch.tensor([3.0, 1.0], dtype=torch.float64))
    x = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    assert policy.decoupled_kl(Prediction(Categorical(x)), batch_of(masked)).item() == pytest.approx(policy.decoupled_kl(Prediction(Categorical(x[[0, 2]])), batch_of(two)).item())
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: policy.decoupled_kl(Prediction(Categorical(z)), batch_of(Categorical(p.log().expand(4, 3)))), logits)
    sure = batch_of(Categorical(torch.tensor([60.0, 0.0, -60.0], dtype=torch.float64)))
    policy.decoupled_kl(Prediction(Categorical(x)), sure).backward()
    assert x.grad.isfinite().all()


# -- the table --------------------------------------------------------------------------------------------------------
def test_the_table_is_read_without_torch():
    code = "import sys, distillrl.objectives as o, distillrl.weights; o.check('forward_kl', {}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False).returncode == 0


@pytest.mark.parametrize("row", objectives.TABLE.values(), ids=objectives.TABLE)
def test_a_row_says_what_its_function_takes(row):
    module, _, name = row.source.partition(":")
    function = getattr(importlib.import_module(f"distillrl.objectives.{module}"), name)
    keywords = {
        p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != "generator"
    }
    defaults = {key: default for key, (default, _) in row.options.items()}
    assert keywords.keys() == defaults.keys()
    assert keywords == defaults or row.name == "feature_regression"  # the hint's function with a hidden layer
    assert ("generator" in inspect.signature(function).parameters) == bool(row.random or row.learns)
    assert function.__doc__.startswith(("[...]", "Scalar"))
    assert function.__doc__.startswith("[...]") == row.per_state
    assert row.title
    assert row.paper
    assert row.kinds
    assert objectives.check(row.name, {}) == defaults


def test_names_and_options_are_checked_with_the_nearest():
    with pytest.raises(Misconfigured, match=r"unknown objective 'foward_kl' .did you mean 'forward_kl'"):
        objectives.get("foward_kl")
    with pytest.raises(Misconfigured, match=r"unknown option 'temperature' .did you mean '.*temperature'"):
        objectives.check("forward_kl", {"temperature": 1})
    with pytest.raises(Misconfigured, match=r"teacher_temperature = 0 was given; a number above 0 is right"):
        objectives.check("forward_kl", {"teacher_temperature": 0})
    with pytest.raises(Misconfigured, match=r"beta = 1.0 was given; a number above 0 and below 1 is right"):
        objectives.check("jensen_shannon", {"beta": 1.0})
    with pytest.raises(Misconfigured, match=r"of = 'mod' was given; one of .* .did you mean 'mode'.* is right"):
        objectives.check("nll", {"of": "mod"})
    with pytest.raises(Misconfigured, match=r"samples = True was given; a whole number from 0 is right"):
        objectives.check("jensen_shannon", {"samples": True})
    with pytest.raises(Misconfigured, match=r"entropy: unknown option 'x' .it has none"):
        objectives.check("entropy", {"x": 1})


def test_wants_are_settled_or_missing_knowledge_is_named():
    student = frozenset({"action", "distribution", "value", "q", "features.0", "features.2", "features.10"})
    ppo = frozenset({"action", "distribution", "value", "features.pi.0", "features.pi.2"})
    assert objectives.wants("forward_kl", {}, "discrete", ppo, student) == {"teacher.distribution", "student.distribution"}
    dqn = frozenset({"action", "q"})
    assert objectives.wants("forward_kl", {}, "discrete", dqn, student) == {"teacher.q", "student.distribution"}
    assert objectives.wants("forward_kl", {}, "discrete", frozenset({"action"}), student) == {"teacher.action", "student.distribution"}
    assert objectives.wants("hint", {}, "discrete", ppo, student) == {"teacher.features[pi.2]", "student.features[10]"}
    assert objectives.wants("hint", {"layer": "pi.0"}, "box", ppo, student) == {"teacher.features[pi.0]", "student.features[10]"}
    with pytest.raises(Misconfigured, match=r"layer = 'pi.1' is no layer of the teacher .did you mean 'pi.*; it has pi.0, pi.2"):
        objectives.wants("hint", {"layer": "pi.1"}, "discrete", ppo, student)
    with pytest.raises(
        Missing,
        match=r"forward_kl needs the teacher's `distribution`, but this teacher gives only action; of this teacher's knowledge, nll",
    ):
        objectives.wants("forward_kl", {}, "box", frozenset({"action"}), student)
    with pytest.raises(Missing, match=r"q_kl needs the teacher's `q`.*would do"):
        objectives.wants("q_kl", {}, "discrete", ppo, student)
    with pytest.raises(Missing, match=r"value_mse needs the student's `value`"):
        objectives.wants("value_mse", {}, "discrete", ppo, frozenset({"action", "distribution"}))
    with pytest.raises(Misconfigured, match=r"q_kl is for discrete actions, not for box"):
        objectives.wants("q_kl", {}, "box", ppo, student)
    rewarded = objectives.wants("distillation_reward", {"discounted": True}, "discrete", ppo, student)
    assert "extra.distillation_return" in rewarded
    assert "extra.distillation_return" not in objectives.wants("distillation_reward", {}, "discrete", ppo, student)


def test_the_generator_is_given_where_it_is_drawn_from():
    assert not objectives.draws("nll", {})
    assert objectives.draws("nll", {"of": "sample"})
    assert objectives.draws("jensen_shannon", {"samples": 4})
    student, teacher = Prediction(of("gaussian", 1)), batch_of(of("gaussian", 2))
    first, second = (objectives.make("nll", {"of": "sample"}, student, teacher, generator(7))(student, teacher) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(Misconfigured):
        objectives.make("nll", {"of": "all"}, student, teacher, generator())


def test_what_suits_depends_on_kind_and_teacher():
    assert {"nll", "mse", "ppo_clip"} <= set(objectives.suitable("box", frozenset({"action"})))
    assert not {"forward_kl", "q_kl", "hint"} & set(objectives.suitable("box", frozenset({"action"})))
    assert {"forward_kl", "q_kl", "reverse_kl"} <= set(objectives.suitable("discrete", frozenset({"action", "q"})))
