"""A plain MLP's update by hand: the gradients that autograd gives, and only where nothing else is asked."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from distillrl import byhand, students
from distillrl.actions import Categorical, Gaussian
from distillrl.dataset import Dataset
from distillrl.learn import Gradient, Term
from distillrl.objectives.policy import forward_kl, huber, mse
from distillrl.records import ActionSpace, Group, Prediction, Progress, Rollout, Spec

BOX = ActionSpace("box", (2,), low=(-1.0, 0.0), high=(1.0, 4.0), dtype="float32")
FIVE = {"obs": Group((5,), "float32")}


def rollout(action: ActionSpace, weighted: bool) -> Rollout:
    """Thirty steps of four environments; teachers' means beyond the bounds among them."""
    g = torch.Generator().manual_seed(3)
    t, n = 30, 4
    raw = torch.randn(t, n, 3 if action.kind == "discrete" else 2, generator=g) * 2
    said = Categorical(raw) if action.kind == "discrete" else Gaussian(raw, torch.zeros_like(raw), torch.tensor(action.low), torch.tensor(action.high))
    flags = torch.zeros(t, n, dtype=torch.bool)
    return Rollout(
        obs={"obs": torch.randn(t + 1, n, 5, generator=g)}, action=said.mode, reward=torch.zeros(t, n), terminated=flags, truncated=flags, starts=flags, valid=~flags,
        driver=torch.zeros(t, n, dtype=torch.int8), labelled=~flags, teacher=Prediction(said), student=None, episode=torch.zeros(t, n, dtype=torch.int64), fresh=False, memory={},
        weight=torch.rand(t, n, generator=g) if weighted else None,
    )  # fmt: skip


def learnt(monkeypatch: pytest.MonkeyPatch, hand: bool, word: str, action: ActionSpace, term: Term, weighted: bool, head: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, float], int]:
    """The student after two rounds, what they logged, and how often it was done by hand."""
    made: list[byhand.ByHand] = []

    def of(*args: object) -> byhand.ByHand | None:
        found = WHOLE(*args) if hand else None  # type: ignore[arg-type]  # as it was called
        made.extend([found] if found is not None else [])
        return found

    monkeypatch.setattr(byhand, "of", of)
    student = students.make(word, Spec(FIVE, action), torch.Generator().manual_seed(1), head, None, None)
    learner = Gradient(student, [term], lr=1e-2, batch=32, updates=6, average=0.9, train="all", generator=torch.Generator().manual_seed(5))
    data = Dataset()
    data.append(rollout(action, weighted))
    for _ in range(2):
        logged = learner.learn(data, Progress())
    return copy.deepcopy(learner.averaged.state_dict()), logged, len(made)


WHOLE = byhand.of
TERMS = {"mse": mse, "std": partial(mse, scale="std"), "free": partial(mse, clip=False, scale="none"), "huber": partial(huber, delta=0.5), "kl": forward_kl}


@pytest.mark.parametrize(("word", "kind", "name", "head"), [
    ("mlp:8x6", "box", "mse", None), ("mlp:8:relu", "box", "std", None), ("mlp:", "box", "free", "deterministic"), ("mlp:8x8", "box", "huber", None), ("mlp:8x8", "box", "kl", None),
    ("mlp:8x8", "box", "mse", "tanh"), ("mlp:16:relu", "discrete", "kl", None), ("mlp:8", "discrete", "mse", "greedy"),
])  # fmt: skip
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_student_as_by_autograd(monkeypatch: pytest.MonkeyPatch, word: str, kind: str, name: str, head: str | None, weighted: bool) -> None:
    action = BOX if kind == "box" else ActionSpace("discrete", n=3)
    term = Term(name, lambda _: 0.7, TERMS[name], frozenset())
    (mine, logged, count), (theirs, told, none) = (learnt(monkeypatch, hand, word, action, term, weighted, head) for hand in (True, False))
    assert (count, none) == (2, 0)
    assert logged[f"term.{name}"] == pytest.approx(told[f"term.{name}"], rel=1e-5)
    for key, value in mine.items():
        assert torch.allclose(value, theirs[key], rtol=1e-4, atol=1e-6), key


def test_what_is_not_plain_is_left_to_autograd() -> None:
    """Other activations, memory, convolutions, knowledge beyond the action, frozen layers, hooks."""
    spec, g = Spec(FIVE, BOX), torch.Generator()
    for word in ("mlp:8:silu", "gru:8"):
        assert byhand.of(students.make(word, spec, g, None, None, None), frozenset({"action"}), 8) is None
    student = students.make("mlp:8", spec, g, None, None, None)
    assert byhand.of(student, frozenset({"action", "value"}), 8) is None
    assert byhand.of(student, frozenset({"action", "features.hidden1"}), 8) is None
    assert byhand.of(student, frozenset({"action"}), 8) is not None
    student.out.register_forward_hook(lambda *_: None)
    assert byhand.of(student, frozenset({"action"}), 8) is None
    frozen = students.make("mlp:8", spec, g, None, None, None)
    frozen.out.weight.requires_grad_(False)
    assert byhand.of(frozen, frozenset({"action"}), 8) is None
    half = students.make("mlp:8", spec, g, None, None, None)
    half.body = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.1), nn.Tanh())
    assert byhand.of(half, frozenset({"action"}), 8) is None
