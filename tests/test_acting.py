"""Acting by numpy gives what the network gives, and sees what it learns meanwhile."""

import numpy as np
import pytest
import torch

from distillrl import envs, states, students
from distillrl.acting import LARGEST, acting, picking
from distillrl.actions import Bernoulli, Categorical, Deterministic, MultiCategorical, gumbel
from distillrl.envs import EnvOptions, Seeds
from distillrl.policies import ACTION, agreement
from distillrl.records import ActionSpace, Group, Prediction, Spec
from distillrl.senses import Normalise
from distillrl.states import Drive, Who

SPECS = {
    "discrete": ActionSpace("discrete", n=4),
    "box": ActionSpace("box", shape=(2,), low=(-1.0, -2.0), high=(1.0, 2.0)),
}


def student(kind: str, text: str, normalised: bool = True):
    made = students.make(text, Spec({"obs": Group((6,), "float32")}, SPECS[kind]), torch.Generator().manual_seed(3))
    if normalised:
        made.sense = made.sense.with_step(Normalise.from_moments({"obs": (torch.arange(6.0), torch.full((6,), 0.3))}, clip=1.5))
    return made


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("text", ["mlp:", "mlp:16x16", "mlp:8x8:relu", "mlp:8:silu"])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_same_actions_as_the_networks_own(kind, text, normalised):
    made = student(kind, text, normalised)
    act = acting(made)
    assert hasattr(act, "func") == ("silu" in text), "only plain layers go by numpy"
    obs, starts = {"obs": 3 * torch.randn(16, 6, generator=torch.Generator().manual_seed(1))}, torch.zeros(16, dtype=torch.bool)
    with torch.inference_mode():
        for change in (0.0, 0.5):
            for parameter in made.parameters():
                parameter.add_(change)
            mine, _ = act(obs, {}, starts)
            theirs, _ = made.act(obs, {}, starts, ACTION)
            raw = "logits" if kind == "discrete" else "mode"
            torch.testing.assert_close(getattr(mine.action, raw), getattr(theirs.action, raw), rtol=1e-5, atol=1e-6)


def test_many_states_go_by_torch():
    made = student("discrete", "mlp:64x64")
    asked = []
    made.act = lambda *given: asked.append(given) or type(made).act(made, *given)
    act = acting(made)
    with torch.inference_mode():
        act({"obs": torch.zeros(16, 6)}, {}, None)
        assert not asked
        act({"obs": torch.zeros(LARGEST // 64**2 + 1, 6)}, {}, None)
    assert len(asked) == 1


def test_a_hook_or_another_layer_is_left_to_torch():
    made = student("discrete", "mlp:8x8")
    next(iter(made.body)).register_forward_hook(lambda *x: None)
    assert hasattr(acting(made), "func")


def test_noise_drawn_before_samples_as_often():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 3)
    drawn = Categorical(logits).sample(noise=gumbel((20_000, 3), torch.Generator().manual_seed(0)))
    found = np.bincount(drawn.numpy(), minlength=3) / 20_000
    np.testing.assert_allclose(found, torch.softmax(logits[0], -1).numpy(), atol=0.015)
    assert bool((drawn == Categorical(logits).sample(torch.Generator().manual_seed(0))).all())


@pytest.mark.parametrize("family", [MultiCategorical, Bernoulli])
def test_a_rule_of_several_choices_agrees_state_by_state(family):
    logits = torch.tensor([[2.0, -1.0, -3.0], [-2.0, 1.0, 3.0]])
    mine = Prediction(family(logits, (1, 2)) if family is MultiCategorical else family(logits))
    chosen = mine.action.mode
    other = chosen.clone()
    other[1, -1] = 1 - other[1, -1]
    assert agreement(mine, Prediction(Deterministic(other))).tolist() == [True, False]
    assert agreement(Prediction(Deterministic(other)), mine).tolist() == [True, False]


@pytest.mark.parametrize("sampled", [True, False])
def test_a_student_that_drives_alone_plays_what_it_plays_with_records(sampled, monkeypatch):
    vector = envs.make(EnvOptions("CartPole-v1", backend="gymnasium:1"), 4, Seeds(0))

    def rollout():
        student = students.make("mlp:8x8", vector.spec, torch.Generator().manual_seed(0))
        drive = Drive(vector, vector.spec, torch.Generator().manual_seed(0))
        drive.begin(student, student)
        with torch.inference_mode():
            return drive.collect(60, Who(0.0, sampled=sampled), student, student, ACTION, frozenset({"obs"}), labelling=False)

    alone = rollout()
    monkeypatch.setattr(states, "picking", lambda *_: None)
    with_records = rollout()
    assert torch.equal(alone.action, with_records.action)
    assert torch.equal(alone.obs["obs"], with_records.obs["obs"])
    assert alone.terminated.any(), "episodes end, and begin anew"


def test_only_a_small_network_of_one_choice_plays_without_records():
    assert picking(student("discrete", "mlp:16x16"), 16) is not None
    assert picking(student("discrete", "mlp:64x64"), LARGEST // 64**2 + 1) is None
    assert picking(student("box", "mlp:16x16"), 16) is None
