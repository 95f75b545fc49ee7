"""The worst start: a student that is good on average and bad on some starts learns from these, and is judged on fresh ones."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import distillrl
from distillrl import checkpoints, envs, hardcases, rounds, selecting
from distillrl.beginning import begin
from distillrl.config import Config, Phase
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Misconfigured
from distillrl.runs import Folder
from distillrl.settling import settle

pytest.importorskip("sklearn")


class Trap(gymnasium.Env):
    """Go left or right as the first number says; on one start in twelve, where the second is above 0, the other way. 10 steps, a reward for each right one."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.trap = 0, self.np_random.random() < 1 / 12
        return self._obs(), {}

    def step(self, action):
        right = int((self.obs[0] > 0) != (self.obs[1] > 0))
        self.t += 1
        return self._obs(), float(int(action) == right), False, self.t >= 10, {}

    def _obs(self):
        second = self.np_random.uniform(0, 1) if self.trap else self.np_random.uniform(-1, 0)
        self.obs = np.array([self.np_random.uniform(-1, 1), second], np.float32)
        return self.obs


def teacher(obs):
    """Probabilities of one hand or the other."""
    x = 8.0 * torch.where((obs[:, 0] > 0) != (obs[:, 1] > 0), 1.0, -1.0).unsqueeze(-1)
    return torch.cat([-x, x], -1)


FEW = Phase(beta="power(0)", first=256, steps=128, terms={"forward_kl": "1"})


def config(**changes):
    settings = {"student": "tree:leaves=4,weight=none", "slots": 4, "env_steps": 20_000, "verdict_episodes": 10, "select_episodes": 12, "until": "retention=0.9", "phase": (FEW,), "worst_of": 120}
    return Config(**{**settings, **changes})


def run(tmp_path, name="r", **changes):
    return distillrl.distill(teacher, Trap, config=config(**changes), out=tmp_path / name)


def test_bad_starts_are_found_learnt_from_and_gone(tmp_path):
    result = run(tmp_path, seed=3)
    starts = result.verdict["starts"]
    assert starts["passed"]
    assert starts["starts"] >= 120
    assert starts["worst"] == 10
    assert result.verdict["ended_by"] == "aim"


def test_a_round_from_bad_starts_is_labelled_within_the_budget(tmp_path):
    setup = settle(config(student="mlp:4", labels=40, backend="gymnasium:1", phase=(Phase(choose="random", ask=0.5, terms={"forward_kl": "1"}),)), teacher, Trap)
    state = begin(setup)
    state.hard |= {"bad": [3, 4], "length": 10}
    rounds.play(setup, state, Folder.create(tmp_path / "r", "E"))
    assert state.hard["bad"] == []
    assert 0 < state.progress.labels <= 40
    state.drive.vector.close()


def test_the_search_can_be_turned_off_and_networks_have_it_off(tmp_path):
    assert run(tmp_path, worst_of=0).verdict["starts"] is None
    assert run(tmp_path, name="n", student="mlp:4", worst_of=None, rounds=2).verdict["starts"] is None
    with pytest.raises(Misconfigured, match="worst_of"):
        Config(worst_of=-1)


def test_a_budget_that_ends_first_says_so(tmp_path):
    """Two leaves can't know both hands."""
    result = run(tmp_path, student="tree:leaves=2", env_steps=6000, until="retention=0.5")
    starts = result.verdict["starts"]
    assert result.reached
    assert not starts["passed"]
    assert starts["bad"] > 0
    assert starts["found"] >= starts["bad"]
    assert "no student did well on 120" in hardcases.sentence(starts)


def test_an_interrupted_search_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    settings = {"student": "tree:leaves=2", "env_steps": 6000, "until": "retention=0.5"}
    whole = run(tmp_path, **settings)
    monkeypatch.setattr(checkpoints, "save", interrupting(checkpoints.save))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, name="s", checkpoint_seconds=1e-9, **settings)
    monkeypatch.undo()
    saved = torch.load(tmp_path / "s" / "checkpoint" / "state.pt", weights_only=True)
    assert saved["hard"]["bad"], "the checkpoint lies between finding and driving"
    again = distillrl.distill(teacher, Trap, resume=tmp_path / "s")
    assert (again.folder / "student.safetensors").read_bytes() == (whole.folder / "student.safetensors").read_bytes()
    assert json.loads((again.folder / "verdict.json").read_text())["starts"] == whole.verdict["starts"]


def interrupting(save):
    def until(state, folder):
        save(state, folder)
        if state.hard["bad"]:
            raise KeyboardInterrupt

    return until


def test_chosen_episodes_are_those_of_the_stream():
    seeds = Seeds(5, "hard")
    assert [Seeds(5, "hard", (7, 2))(i) for i in range(3)] == [seeds(7), seeds(2), seeds(7)]
    vector = envs.make(EnvOptions(Trap, backend="gymnasium:1"), 2, Seeds(5, "hard", (7, 2)))
    other = envs.make(EnvOptions(Trap, backend="gymnasium:1"), 8, seeds)
    assert np.array_equal(vector.reset()["obs"].copy(), other.reset()["obs"][[7, 2]])


def test_the_best_of_many_candidates_is_confirmed_on_more_seeds(tmp_path, monkeypatch):
    asked = []
    play = selecting.evaluation.play

    def counted(policy, options, episodes, seeds, **rest):
        if seeds.stream == "select":
            asked.append((episodes, seeds.chosen))
        return play(policy, options, episodes, seeds, **rest)

    monkeypatch.setattr(selecting.evaluation, "play", counted)
    run(tmp_path, env_steps=5000, worst_of=0, until="none")
    assert (36, tuple(range(12, 48))) in asked
    assert asked.count((12, ())) >= 3
