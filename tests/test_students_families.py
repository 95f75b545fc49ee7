"""Every family of students end to end: a run that was broken off comes to the same bytes, and its file is loaded and evaluated."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import distillrl
from distillrl import evaluation, exporting, students
from distillrl.beginning import begin
from distillrl.config import Config, Phase
from distillrl.settling import settle
from distillrl.states import Who
from distillrl.teachers import Options

RECURRENT = Path(__file__).parent / "data" / "sb3" / "recurrent" / "model.zip"
FEW = Phase(beta="power(0.5)", terms={"forward_kl": 1}, first=16, steps=16, updates=4, batch=32)
CONFIG = Config(
    slots=4, env_steps=10_000, rounds=2, until="none", select_episodes=2, verdict_episodes=2, worst_of=2, checkpoint_seconds=0.0, backend="gymnasium:1", phase=(FEW,)
)


class Stripes(gymnasium.Env):
    """Numbers [2] whose signs say what to do, other numbers, and a picture of them; a reward where that is done."""

    def __init__(self):
        numbers = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Dict({"state": numbers, "other": numbers, "picture": spaces.Box(0, 255, (8, 8, 1), np.uint8)})
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._next(), {}

    def step(self, action):
        reward, self.t = float(int(action) == int((self.x > 0).sum())), self.t + 1
        return self._next(), reward, False, self.t >= 10, {}

    def _next(self):
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        picture = np.zeros((8, 8, 1), np.uint8)
        picture[:4], picture[4:] = (100 + 100 * self.x).reshape(2, 1, 1, 1).astype(np.uint8)
        return {"state": self.x, "other": self.x[::-1].copy(), "picture": picture}


class Four(gymnasium.Env):
    """What the recurrent fixture was made for: numbers [4], three actions; the reward is the action."""

    def __init__(self):
        self.observation_space = spaces.Box(np.array([-3, -1, 0, -2], np.float32), np.array([5, 1, 10, 2], np.float32))
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._next(), {}

    def step(self, action):
        self.t += 1
        return self._next(), float(action), False, self.t >= 10, {}

    def _next(self):
        return self.np_random.uniform(self.observation_space.low, self.observation_space.high).astype(np.float32)


class Own(nn.Sequential):
    """A class of the user's."""

    def __init__(self, spec):
        super().__init__(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, spec.action.size))


def count(obs):
    """How many of the state's two numbers are above 0, as logits [n, 3]."""
    above = 6 * obs["state"]
    return torch.stack([-above.amax(-1), above.prod(-1) / -6, above.amin(-1)], -1)


CASES = [
    ("mlp:4", "group=state"),
    ("cnn:2k3s2:4", "group=picture"),
    ("gru:4", "group=state, stack=2"),
    ("lstm:4:4", "group=state, normalise=running"),
    ("late:4:4", "group=state+other"),
    ("attention:4x2:4", "group=state+other"),
    ("tree:leaves=5,tries=3", "group=state, delay=1"),
    ("linear-tree:leaves=3", "group=state"),
    ("forest:trees=2,leaves=4", "group=state"),
    ("linear:terms=2", "group=state"),
    ("poly:degree=2,terms=4", "group=state"),
    (f"{__name__}:Own", "group=state"),
    ("gru:4", None),  # a teacher with memory too
]


def test_no_family_is_left_out():
    assert {word.partition(":")[0] for word, _ in CASES} == {*students.FAMILIES, __name__}


def stop(metrics):
    if metrics.get("round") == 0:
        raise KeyboardInterrupt


def broken_off(teacher, env, config, tmp_path):
    """The same run twice, the second one broken off after one round and resumed."""
    whole = distillrl.distill(teacher, env, config=config, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distillrl.distill(teacher, env, config=config, out=tmp_path / "cut", show=stop)
    return whole, distillrl.distill(teacher, env, resume=tmp_path / "cut")


@pytest.mark.parametrize(("word", "see"), CASES, ids=[word.partition(":")[0] if see else "recurrent-teacher" for word, see in CASES])
def test_it_is_distilled_resumed_saved_loaded_and_evaluated(word, see, tmp_path):
    teacher, env = (RECURRENT, Four) if see is None else (count, Stripes)
    if students.grown(word):
        pytest.importorskip("sklearn")
    whole, resumed = broken_off(teacher, env, replace(CONFIG, student=word, see=see), tmp_path)
    path = whole.folder / "student.safetensors"
    assert (resumed.folder / "student.safetensors").read_bytes() == path.read_bytes()
    own = Options(model=word) if students.of_the_user(word) else Options()
    again = distillrl.load(path, own).policy
    assert torch.equal(first_actions(again, env()), first_actions(whole.policy.policy, env()))
    verdict = evaluation.evaluate(path, env, episodes=2, seed=0, options=own)
    assert verdict["student"]["return"]["mean"] == whole.verdict["student"]["return"]["mean"]


def first_actions(policy, env):
    """What it does [12] of the first steps of a seed."""
    memory, done = policy.init(1), []
    obs, _ = env.reset(seed=1)
    for t in range(12):
        given = {k: torch.as_tensor(v)[None] for k, v in (obs if isinstance(obs, dict) else {"obs": obs}).items()}
        said, memory = policy.act({k: given[k] for k in policy.spec.observations}, memory, torch.tensor([t == 0]))
        done.append(said.action.mode)
        obs = env.step(0)[0]
    return torch.cat(done)


def test_a_teacher_with_memory_is_asked_with_its_own_whoever_drives():
    """RecurrentPPO: every label is what it says after all that it has seen of the episode, though the student drove most of it."""
    setup = settle(replace(CONFIG, student="lstm:8"), RECURRENT, Four)
    state = begin(setup)
    with torch.inference_mode():
        rollout = state.drive.collect(25, Who(0.3), setup.teacher, state.student, setup.teacher.gives, setup.seen)
        memory = setup.teacher.init(4)
        for t in range(25):
            said, memory = setup.teacher.act({"obs": rollout.obs["obs"][t]}, memory, rollout.starts[t])
            assert torch.allclose(said.action.logits, rollout.teacher.action.logits[t], atol=1e-6)
    assert {0, 1} == set(rollout.driver.unique().tolist())
    forgetful = setup.teacher.act({"obs": rollout.obs["obs"][8]}, setup.teacher.init(4), None)[0]
    assert not torch.allclose(forgetful.action.logits, rollout.teacher.action.logits[8], atol=1e-3), "the test would see it"


class Strange(gymnasium.Env):
    """A Tuple of a category that begins at 2 and numbers; actions without bounds, of which the first number is right."""

    observation_space = spaces.Tuple((spaces.Discrete(3, start=2), spaces.Box(-1, 1, (2,), np.float32)))
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._next(), {}

    def step(self, action):
        reward, self.t = -abs(float(action[0]) - float(self.x[0])), self.t + 1
        return self._next(), reward, False, self.t >= 10, {}

    def _next(self):
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return np.int64(self.np_random.integers(2, 5)), self.x


@pytest.mark.parametrize("word", ["mlp:4", "tree:leaves=16"])
def test_strange_spaces_come_through_the_file(tmp_path, word):
    run = distillrl.distill(lambda obs: obs["1"][:, :1], Strange, config=replace(CONFIG, phase=(), student=word), out=tmp_path / "r")
    assert run.verdict["agreement"] < 1  # of the teacher's spread, as there are no bounds
    student = distillrl.load(run.folder / "student.safetensors")
    assert student.spec.action.low == (-np.inf,)
    action, _ = student.predict((np.int64(4), np.array([0.5, 0.0], np.float32)))
    assert action.shape == (1,)
    assert exporting.export(run.folder / "student.safetensors", "python", tmp_path / "x").files
