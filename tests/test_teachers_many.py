"""Several teachers as one: golden values by hand, properties, memory, and expressions that choose."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillrl import teachers
from distillrl.actions import Bernoulli, Categorical, Deterministic, Gaussian, MultiCategorical
from distillrl.errors import Misconfigured, Missing
from distillrl.records import ActionSpace, Group, Prediction, Spec
from distillrl.teachers.dispatching import parse
from distillrl.teachers.many import combine

DATA = Path(__file__).parent / "data" / "sb3"
LOW, HIGH = torch.tensor([-1.0]), torch.tensor([1.0])
SPACES = {
    "discrete": ActionSpace("discrete", n=2),
    "multidiscrete": ActionSpace("multidiscrete", (2,), nvec=(2, 3)),
    "multibinary": ActionSpace("multibinary", (2,)),
    "box": ActionSpace("box", (1,), low=(-1.0,), high=(1.0,), dtype="float32"),
}


@dataclass
class Says:
    """A teacher that always says the same."""

    kind: str
    action: Any
    value: torch.Tensor | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        return Spec({"obs": Group((1,), "float32")}, SPACES[self.kind])

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"action"} | (set() if isinstance(self.action, Deterministic) else {"distribution"}) | (set() if self.value is None else {"value"}))

    def init(self, n: int) -> dict[str, torch.Tensor]:
        return {"steps": torch.zeros(n)}

    def act(self, obs: Any, memory: Any, starts: Any, wants: Any = frozenset()) -> Any:
        return Prediction(self.action, value=self.value), {"steps": memory["steps"] + 1}


OBS = {"obs": torch.zeros(1, 1)}
WANTS = frozenset({"action", "uncertainty", "value"})


def asked(*each: Says, way: str = "average", **options: Any) -> Prediction:
    """What the combination says of one state."""
    many = combine(each, way, **options)
    prediction, memory = many.act(OBS, many.init(1), None, WANTS)
    assert set(memory) == {f"{i}.steps" for i in range(len(each))}
    assert all(float(v) == 1 for v in memory.values())
    return prediction


def categorical(*probabilities: float) -> Categorical:
    """One state's distribution."""
    return Categorical(torch.tensor([probabilities]).log())


def gaussian(mean: float, std: float, squashed: bool = False) -> Gaussian:
    """One state's distribution."""
    return Gaussian(torch.tensor([[float(mean)]]), torch.tensor([[math.log(std)]]), LOW, HIGH, squashed)


def test_average_of_categoricals() -> None:
    """(0.9, 0.1) and (0.3, 0.7): the mixture is (0.6, 0.4), the disagreement the Jensen–Shannon divergence."""
    prediction = asked(Says("discrete", categorical(0.9, 0.1), torch.tensor([1.0])), Says("discrete", categorical(0.3, 0.7), torch.tensor([3.0])))
    assert torch.allclose(prediction.action.log_probs.exp(), torch.tensor([[0.6, 0.4]]))
    divergence = 0.5 * (0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4) + 0.3 * math.log(0.3 / 0.6) + 0.7 * math.log(0.7 / 0.4))
    assert float(prediction.uncertainty) == pytest.approx(divergence, abs=1e-6)
    assert float(prediction.value) == pytest.approx(2.0)


def test_product_of_categoricals() -> None:
    """(0.9, 0.1)·(0.3, 0.7) ∝ (0.27, 0.07)."""
    prediction = asked(Says("discrete", categorical(0.9, 0.1)), Says("discrete", categorical(0.3, 0.7)), way="product")
    assert torch.allclose(prediction.action.log_probs.exp(), torch.tensor([[0.27, 0.07]]) / 0.34)


def test_gaussians() -> None:
    """N(0, 1) and N(2, 2): the mixture has mean 1 and variance (1 + 4)/2 + 1 = 3.5; the product mean 0.4 and variance 0.8."""
    pair = (Says("box", gaussian(0, 1)), Says("box", gaussian(2, 2)))
    average = asked(*pair).action
    assert float(average.mean) == pytest.approx(1.0)
    assert float(average.log_std.exp()) == pytest.approx(math.sqrt(3.5))
    prediction = asked(*pair, way="product")
    assert float(prediction.action.mean) == pytest.approx(0.4)
    assert float(prediction.action.log_std.exp()) == pytest.approx(math.sqrt(0.8))
    assert float(prediction.uncertainty) == pytest.approx(0.25)  # modes 0 and 1 (clipped), half from the mean, of a range of 2


def test_confidence_weighs_by_entropy() -> None:
    """Weights softmax(−entropy / τ)."""
    sure, unsure = categorical(0.99, 0.01), categorical(0.5, 0.5)
    a, b = float(sure.entropy()), float(unsure.entropy())
    w = math.exp(-a / 0.5) / (math.exp(-a / 0.5) + math.exp(-b / 0.5))
    probability = asked(Says("discrete", sure), Says("discrete", unsure), way="confidence", temperature=0.5).action.log_probs.exp()[0, 0]
    assert float(probability) == pytest.approx(w * 0.99 + (1 - w) * 0.5)


def test_value_weighs_and_best_chooses() -> None:
    """By the teachers' values of the state."""
    pair = (Says("discrete", categorical(0.9, 0.1), torch.tensor([1.0])), Says("discrete", categorical(0.2, 0.8), torch.tensor([2.0])))
    w = 1 / (1 + math.e)
    assert float(asked(*pair, way="value").action.log_probs.exp()[0, 0]) == pytest.approx(w * 0.9 + (1 - w) * 0.2)
    best = asked(*pair, way="best")
    assert float(best.action.log_probs.exp()[0, 0]) == pytest.approx(0.2)
    assert float(best.value) == 2.0


def test_the_other_kinds() -> None:
    """Several choices, switches, plain actions, votes, and mixtures of kinds."""
    multi = [Says("multidiscrete", MultiCategorical(torch.tensor([p]).log(), (2, 3))) for p in ([0.9, 0.1, 0.2, 0.3, 0.5], [0.5, 0.5, 0.6, 0.3, 0.1])]
    assert torch.allclose(torch.cat([p.log_probs.exp() for p in asked(*multi).action.parts], -1), torch.tensor([[0.7, 0.3, 0.4, 0.3, 0.3]]))
    assert asked(*multi, way="product").action.mode.shape == (1, 2)
    switches = [Says("multibinary", Bernoulli(torch.logit(torch.tensor([p])))) for p in ([0.9, 0.2], [0.5, 0.4])]
    assert torch.allclose(asked(*switches).action.logits.sigmoid(), torch.tensor([[0.7, 0.3]]))
    assert torch.allclose(asked(*switches, way="product").action.logits, sum(s.action.logits for s in switches))
    plain = [Says("box", Deterministic(torch.tensor([[x]]), LOW, HIGH)) for x in (-0.5, 0.5)]
    assert float(asked(*plain).action.mode) == 0.0
    assert float(asked(*plain).uncertainty) == pytest.approx(0.25)
    votes = [Says("discrete", Deterministic(torch.tensor([a]))) for a in (1, 0, 1)]
    assert asked(*votes).action.mode.tolist() == [1]
    assert float(asked(*votes).uncertainty) == pytest.approx(-(2 * math.log(2 / 3) + math.log(1 / 3)) / 3)
    assert asked(*votes[:2]).action.mode.tolist() == [0]
    beside = asked(Says("discrete", Deterministic(torch.tensor([1]))), Says("discrete", categorical(0.6, 0.4)))
    assert float(beside.action.log_probs.exp()[0, 1]) == pytest.approx(0.7, abs=1e-5)
    assert float(asked(Says("box", gaussian(0.5, 1)), plain[0]).action.mode) == 0.0
    assert isinstance(asked(Says("box", gaussian(0.5, 1)), Says("box", gaussian(0.5, 1, squashed=True))).action, Deterministic)
    many = [Says("multidiscrete", Deterministic(torch.tensor([[a, 0]]))) for a in (1, 0)]
    assert float(asked(*many).uncertainty) == pytest.approx(math.log(2))
    beside = asked(many[0], multi[0]).action
    assert float(beside.parts[0].log_probs.exp()[0, 1]) == pytest.approx(0.55, abs=1e-5)
    on = asked(Says("multibinary", Deterministic(torch.tensor([[1, 0]]))), switches[0]).action
    assert torch.allclose(on.logits.sigmoid(), torch.tensor([[0.95, 0.1]]), atol=1e-5)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine is no failure
@given(st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=2), min_size=2, max_size=5))
def test_agreeing_teachers_are_certain(logits: list[list[float]]) -> None:
    """Uncertainty is at least 0, and 0 where all say the same; an average is a distribution."""
    each = [Says("discrete", Categorical(torch.tensor([x]))) for x in logits]
    prediction = asked(*each)
    assert float(prediction.uncertainty) >= 0
    assert float(prediction.action.log_probs.exp().sum()) == pytest.approx(1, abs=1e-5)
    same = asked(*[each[0]] * len(each))
    assert float(same.uncertainty) == pytest.approx(0, abs=1e-6)
    assert torch.allclose(same.action.log_probs, each[0].action.log_probs, atol=1e-5)


def test_what_does_not_go_together() -> None:
    """Other actions, knowledge that is missing, too few, unknown ways."""
    with pytest.raises(Misconfigured, match="teacher 1 chooses in Box"):
        combine([Says("discrete", categorical(0.5, 0.5)), Says("box", gaussian(0, 1))])
    with pytest.raises(Missing, match="needs the value of each"):
        combine([Says("discrete", categorical(0.5, 0.5))] * 2, "best")
    with pytest.raises(Missing, match="needs the distribution of each"):
        combine([Says("discrete", Deterministic(torch.tensor([1])))] * 2, "product")
    with pytest.raises(Misconfigured, match="at least two"):
        combine([Says("discrete", categorical(0.5, 0.5))])
    with pytest.raises(Misconfigured, match="one of average"):
        combine([Says("discrete", categorical(0.5, 0.5))] * 2, "mean")


# ── expressions ───────────────────────────────────────────────────────────────────────────────────────────────────

GROUPS = {"level": Group((), "int64", (10,)), "task": Group((1,), "float32"), "obs": Group((4,), "float32")}
SEEN = {"level": torch.tensor([0, 3, 5]), "task": torch.tensor([[0.0], [1.0], [0.0]]), "obs": torch.arange(12.0).reshape(3, 4)}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("level<3:0, else:1", [0, 1, 1]),
        ("level<1:0, level<=3:1, else:2", [0, 1, 2]),
        ("task", [0, 1, 0]),
        ("task[0]", [0, 1, 0]),
        ("obs[2] > 5 and level != 3:2, else:0", [0, 0, 2]),
        ("not (level == 0) or task > 0:1, else:0", [0, 1, 1]),
        ("1 < obs[0] <= 4:1, else:0", [0, 1, 0]),
        ("level % 2", [0, 1, 1]),
        ("(level + 1) // 4", [0, 1, 1]),
        ("-level + 5 > 2 * task:1, else:0", [1, 0, 0]),
    ],
)
def test_dispatch(text: str, chosen: list[int]) -> None:
    """Expressions over groups and their elements."""
    assert parse(text, GROUPS, 3)(SEEN, 3).tolist() == chosen


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("levl<3:0, else:1", "did you mean 'level'"),
        ("obs<3:0, else:1", r"name one element, such as obs\[0\]"),
        ("obs[4]<3:0, else:1", r"obs\[4\] is no element"),
        ("level<3:0, else:7", "a number from 0 to 2"),
        ("level<3:0", "the last case is else"),
        ("else:0, level<3:1", "the last case is else"),
        ("level<3:0, task>0:1", "the last case is else"),
        ("1", "reads no observation group"),
        ("__import__('os').system('touch x')", "has no place|no expression|CONDITION"),
        ("level.real", "Attribute has no place"),
        ("[level for level in obs]", "has no place"),
        ("(lambda: 1)()", "no place|CONDITION"),
        ("level if level else task", "has no place"),
        ("'a' < level:0, else:1", "has no place"),
        ("obs[-1]", "has no place"),
        ("level <", "is no expression"),
        ("(" * 500 + "level" + ")" * 500, "no expression|nested"),
        ("-" * 200 + "level", "nested|no expression"),
        ("level" * 1000, "at most 2000"),
        ("2 ** level", "Pow|has no place"),
    ],
)
def test_dispatch_that_is_refused(text: str, says: str) -> None:
    """Nothing but what is allowed, and a sentence for the rest."""
    with pytest.raises(Misconfigured, match=says):
        parse(text, GROUPS, 3)


def test_dispatch_to_a_teacher_that_is_not_there() -> None:
    """A bare expression may give any number."""
    with pytest.raises(Misconfigured, match="gives teacher 5; there are 3"):
        parse("level", GROUPS, 3)(SEEN, 3)


def test_real_teachers_with_senses_of_their_own() -> None:
    """Two files, one with a normaliser, chosen by a group that neither sees; through load() with a list."""
    sources = [DATA / "vecnormalize" / "model.zip", DATA / "ppo_elu" / "model.zip"]
    first, second = (teachers.load(s) for s in sources)
    spec = Spec({"obs": first.spec.observations["obs"], "level": Group((), "int64", (5,))}, first.spec.action)
    policy = teachers.load(sources, teachers.Options(dispatch="level<3:0, else:1"), spec)
    obs = {"obs": torch.randn(4, 4), "level": torch.tensor([0, 4, 2, 3])}
    prediction, _ = policy.act(obs, policy.init(4), torch.ones(4, dtype=torch.bool), policy.gives)
    mine, theirs = (p.act(obs, {}, None, p.gives)[0] for p in (first, second))
    for i, one in enumerate((mine, theirs, mine, theirs)):
        assert torch.equal(prediction.action.logits[i], one.action.logits[i])
        assert torch.equal(prediction.value[i], one.value[i])
    assert prediction.uncertainty.shape == (4,)
    assert json.loads(json.dumps(policy.info)) == policy.info
    assert policy.acting_parameters() == first.acting_parameters() + second.acting_parameters()
    assert "+" in str(teachers.digest(sources))
    whole = {k: torch.stack([v, v]) for k, v in obs.items()}
    average = teachers.load(sources)
    assert average.act({"obs": whole["obs"]}, {}, None, average.gives)[0].uncertainty.shape == (2, 4)
