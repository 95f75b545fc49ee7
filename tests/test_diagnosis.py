"""Why a student stays below its aim: each cause by an artificial case, and none where all is well."""

from dataclasses import replace

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from test_distillation import Corridor, small, steer

from distillrl import diagnosis
from distillrl.actions import Categorical
from distillrl.beginning import begin
from distillrl.config import Phase
from distillrl.normalising import Normalise
from distillrl.records import Prediction, Progress
from distillrl.settling import settle

FULL = {"teacher": -5.0, "random": -20.0, "apart": 1.0}


def trained(teacher=None, env=None, rounds=6, **changes):
    """A run's state after a few rounds of the teacher's states."""
    from distillrl.rounds import play
    from distillrl.runs import Folder

    config = small(**{"slots": 8, "backend": "gymnasium:1", "phase": (Phase(beta="1", terms={"forward_kl": 1}),), **changes})
    setup = settle(config, teacher or steer("discrete"), env or (lambda: Corridor()))
    state = begin(setup)
    state.baseline = dict(FULL)
    for _ in range(rounds):
        play(setup, state, Folder)
        state.progress = replace(state.progress, round=state.progress.round + 1)
    return setup, state


class Hidden(gymnasium.Env):
    """Two numbers at random, of which the student is shown the second alone; the right action is the first one's sign."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), 0.0, False, self.t >= 20, {}

    def _obs(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


def test_nothing_is_said_where_all_is_well():
    assert diagnosis.diagnose(*trained()) == []


def test_what_the_student_cannot_see_is_told():
    setup, state = trained(lambda obs: torch.cat([9 * obs[:, :1], -9 * obs[:, :1]], -1), Hidden, rounds=2, see="drop=0")
    found = diagnosis.diagnose(setup, state)
    assert len(found) == 1
    assert found[0].startswith("not imitable")


def test_a_student_too_small_is_told():
    def bands(obs):
        return torch.cat([9 * torch.sin(6 * obs[:, :1]), torch.zeros_like(obs[:, :1]), -9 * torch.sin(6 * obs[:, :1])], -1)

    found = diagnosis.diagnose(*trained(bands, rounds=3, student="mlp:"))
    assert [f for f in found if f.startswith("too small")]


class Runaway:
    """Does as the teacher near 0, where the teacher soon is, and runs away from elsewhere."""

    gives = frozenset({"action"})

    def __init__(self, spec):
        self.spec, self.info = spec, {}

    def init(self, n):
        return {}

    def act(self, obs, memory, starts, wants=frozenset({"action"})):
        x = obs["obs"][..., :1]
        logits = steer("discrete")(obs["obs"].reshape(-1, 2)).reshape(*x.shape[:-1], 3)
        return Prediction(Categorical(torch.where(x.abs() < 1.6, logits, -logits))), memory


def test_a_lack_of_coverage_is_told():
    setup, state = trained(rounds=0)
    state.gradient.averaged = Runaway(setup.spec)
    found = diagnosis.diagnose(setup, state)
    assert len(found) == 1
    assert found[0].startswith("coverage")
    assert diagnosis.coverage(0.97, 0.95) is None
    assert diagnosis.coverage(0.5, 0.1) is None


def test_a_teacher_no_better_than_random_is_told():
    assert "can't be told apart" in diagnosis.no_better({"teacher": 1.0, "random": 1.1, "apart": 0.0})
    assert "it is worse than random play" in diagnosis.no_better({"teacher": -900.0, "random": -200.0, "apart": 0.0, "worse": 1.0})
    assert diagnosis.no_better(FULL) is None
    assert diagnosis.no_better({}) is None


def test_what_was_found_hidden_before_learning_is_told_after_it():
    floor = {"measure": "forward_kl", "student": 0.15, "everything": 0.09, "with_memory": 0.09, "states": 1024, "irreducible": 0.06}
    assert diagnosis.hidden(floor).startswith("not imitable: before anything was learnt")
    assert diagnosis.hidden({**floor, "student": 0.1}) is None
    assert diagnosis.hidden(None) is None
    setup, state = trained(rounds=1, student="mlp:")
    state.imitability = floor
    assert [f for f in diagnosis.diagnose(setup, state) if f.startswith("not imitable: before")]
    assert not [f for f in diagnosis.diagnose(setup, state) if f.startswith("too small")]


def test_wrong_normalising_is_told():
    setup, state = trained(rounds=1)
    rollout = diagnosis._driven(setup, state.student, 1.0)

    class Teacher:
        info = {"recorded_return": {"mean": 200.0, "std": 10.0, "source": "results.txt"}}
        sense = type("S", (), {"steps": [Normalise.from_moments({"obs": (torch.tensor([50.0, 1.0]), torch.tensor([1.0, 1.0]))})]})()

    found = diagnosis.normalising(Teacher(), rollout, 20.0, "E-v0")
    assert "far under the 200.0 that results.txt records" in found[0]
    assert "component 0 of 'obs' lies more than 8 deviations" in found[1]
    assert diagnosis.normalising(setup.teacher, rollout, 20.0, "E-v0") == []


def test_weights_100_to_1_are_told():
    setup, state = trained(rounds=6)
    state.progress = Progress(metrics={"share.hint": 0.9999, "share.forward_kl": 0.0001})
    assert any(f.startswith("weights: hint outweighs forward_kl") for f in diagnosis.diagnose(setup, state))


def test_diagnosing_changes_nothing_of_the_run():
    setup, state = trained(rounds=1)
    before = {k: v.clone() for k, v in state.student.state_dict().items()}, state.drive.generator.get_state().clone(), state.drive.obs["obs"].clone()
    diagnosis.diagnose(setup, state)
    assert all(torch.equal(v, before[0][k]) for k, v in state.student.state_dict().items())
    assert torch.equal(before[1], state.drive.generator.get_state())
    assert torch.equal(before[2], state.drive.obs["obs"])
