"""Students that remember learn by the reward too: what they said of each state is told again in order, and sequences begin with the memory that was kept."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from distillrl import advantages, distill
from distillrl.beginning import all_wants, begin, label_wants
from distillrl.config import Config
from distillrl.dataset import MEMORY
from distillrl.settling import settle
from distillrl.states import Who

STEPS = 5


class Cue(gymnasium.Env):
    """Which of two actions is right at the end is shown in the first observation alone: without memory half of the reward is all that can be had."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.right = 0, int(self.np_random.integers(2))
        return np.array([2 * self.right - 1, 0], dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        done = self.t == STEPS
        return np.array([0, self.t / STEPS], dtype=np.float32), float(done and action == self.right), done, False, {}


def started(student, **changes):
    config = Config(student=student, method="ppo", slots=4, seed=3, backend="gymnasium:1", until="none", env_steps=4000, **changes)
    setup = settle(config, None, Cue)
    return setup, begin(setup)


@pytest.mark.parametrize(("student", "see"), [("gru:8", None), ("lstm:4", None), ("mlp:8", "stack=3"), ("gru:8", "stack=2")])
def test_what_a_student_said_when_it_drove_is_told_again_and_begins_its_sequences(student, see):
    """ρ = S(a) / behaviour(a) is 1 in every state before anything was learnt: no memory is lost between episodes, rollouts or sequences."""
    setup, state = started(student, see=see)
    wants = all_wants(state.gradient.terms)
    for steps in (7, 9):  # neither is a whole number of episodes
        with torch.inference_mode():
            rollout = state.drive.collect(steps, Who(0.0, sampled=True), setup.teacher, state.student, label_wants(setup, state), setup.seen, False)
        rollout = advantages.enrich(rollout, wants, advantages.Horizon(0.9, 0.9, 3), state.drive, setup.teacher, state.student, state.student)
        state.dataset.append(rollout)
        assert any(k.startswith(MEMORY) for k in rollout.extra) == student.startswith(("gru", "lstm"))
        for _ in range(3):
            batch = state.gradient._draw(state.dataset, 4 * 64, state.progress)
            prediction = state.gradient._predict(batch)
            counted = torch.ones_like(batch.behaviour_log_prob, dtype=torch.bool) if batch.weight is None else batch.weight > 0
            assert counted.float().mean() > 0.7
            torch.testing.assert_close(prediction.action.log_prob(batch.action)[counted], batch.behaviour_log_prob[counted])


def test_ppo_with_a_memory_learns_what_only_the_first_observation_told(tmp_path):
    config = Config(student="gru:16", method="ppo", slots=16, seed=1, backend="gymnasium:1", until="return=0.99", env_steps=16_000, select_episodes=20, verdict_episodes=50)
    verdict = distill(config=config, env=Cue, out=tmp_path / "r").verdict
    assert verdict["reached"]
    assert verdict["student"]["return"]["mean"] > 0.95, "a student without memory earns a half"
