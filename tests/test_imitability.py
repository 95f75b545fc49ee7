"""What can't be imitated: the estimate against what is known, and that a run says it before it learns."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import distillrl
from distillrl import imitability, students
from distillrl.actions import Categorical, Deterministic
from distillrl.config import Config
from distillrl.records import ActionSpace, Group, Prediction, Rollout, Spec

SPEC = Spec({"obs": Group((2,), "float32")}, ActionSpace("discrete", n=2))


def rollout(x, teacher, every=10):
    steps, slots = x.shape[0] - 1, x.shape[1]
    no = torch.zeros(steps, slots, dtype=torch.bool)
    starts = no.clone()
    starts[::every] = True
    return Rollout({"obs": x}, no.long(), no.float(), no, no, starts, ~no, no.to(torch.int8), ~no, teacher, None, no.long())


def seeing(see):
    return students.make("mlp:4", SPEC, torch.Generator().manual_seed(0), see=see)


def data(hidden):
    """The action is the sign of place ``hidden``: of this observation, or with "before" of the one before."""
    x = torch.rand(101, 16, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    told = torch.cat([x[:1, :, 0], x[:-1, :, 0]])[:-1] if hidden == "before" else x[:-1, :, hidden]
    return x, (told > 0).long()


def certain(action):
    return Prediction(Categorical(torch.nn.functional.one_hot(action, 2) * 12.0))


def test_a_coin_that_the_student_does_not_see_costs_the_entropy_of_a_coin():
    x, action = data(hidden=0)
    floor = imitability.estimate(seeing("drop=0"), rollout(x, certain(action)), False)
    assert floor.measure == "forward_kl"
    # The mean of 8 coins is not the coin's own: E[log(8 / heads)] lies a little above ln 2.
    assert 0.6 < floor.irreducible < 0.95
    assert floor.everything < 0.15
    said = imitability.sentence(floor, "mlp:4")
    assert "not all can be imitated" in said
    assert "--finetune" in said
    assert "memory" not in said


def test_what_is_seen_is_not_missed():
    x, action = data(hidden=1)
    floor = imitability.estimate(seeing("drop=0"), rollout(x, certain(action)), False)
    assert floor.irreducible < 0.02
    assert imitability.sentence(floor, "mlp:4") is None


def test_memory_is_offered_where_it_would_help():
    x = torch.zeros(121, 32, 2)
    g = torch.Generator().manual_seed(3)
    x[..., 0] = torch.randint(0, 2, (121, 32), generator=g).float()
    action = torch.cat([x[:1, :, 0], x[:-1, :, 0]])[:-1].long()
    starts = torch.zeros(120, 32, dtype=torch.bool)
    starts[::10] = True
    action[starts] = x[:-1, :, 0][starts].long()
    floor = imitability.estimate(seeing("pick=0"), rollout(x, certain(action)), True)
    assert floor.with_memory < 0.3 * floor.student
    assert "memory (gru:32, or --see stack=4)" in imitability.sentence(floor, "mlp:4")
    gru = students.make("gru:4", SPEC, torch.Generator().manual_seed(0), see="pick=0")
    assert imitability.estimate(gru, rollout(x, certain(action)), True).irreducible < 0.3 * floor.irreducible


def test_quantities_are_told_as_a_share_of_their_variance():
    x, _ = data(hidden=0)
    teacher = Prediction(Deterministic(x[:-1, :, :1].clone()))
    floor = imitability.estimate(seeing("drop=0"), rollout(x, teacher), False)
    assert floor.measure == "mse"
    assert floor.irreducible == pytest.approx(1, abs=0.2)


class Hidden(gymnasium.Env):
    """Two hands; the right one is the sign of the first number, new at every step."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        good, self.t = float(int(action) == int(self.obs[0] > 0)), self.t + 1
        return self._obs(), good, False, self.t >= 10, {}

    def _obs(self):
        self.obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.obs


def test_a_run_says_it_before_it_learns(tmp_path):
    said = []
    result = distillrl.distill(
        lambda obs: torch.cat([-9 * obs[:, :1], 9 * obs[:, :1]], -1),
        Hidden,
        config=Config(student="mlp:4", slots=16, env_steps=1100, verdict_episodes=4, select_episodes=4, see="drop=0"),
        out=tmp_path / "r",
        show=said.append,
    )
    assert any("not all can be imitated" in line.get("note", "") for line in said)
    assert result.verdict["imitability"]["irreducible"] > 0.3
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[0])["irreducible"] > 0.3
