"""Words as a sense: what they become, that a student needs them, that its file speaks in its own vocabulary, and what is wrong is said."""

import shutil

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import distillrl
from distillrl import evaluation, exporting, loading, seeing, texts
from distillrl.config import Config
from distillrl.envs import EnvOptions, Seeds, make, texts_of
from distillrl.errors import Misconfigured
from distillrl.policies import as_groups
from distillrl.records import Group, Spec

CONFIG = Config(student="mlp:16", slots=8, env_steps=1000, select_episodes=4, verdict_episodes=12, until="retention=0.95", backend="gymnasium:1")


class Missions(spaces.Space):
    """As MiniGrid's: which texts there are is said by a function and what it is given."""

    def __init__(self, told=True):
        super().__init__(dtype=str)
        self.ordered_placeholders = [["red", "green", "blue"], ["ball", "key"]] if told else None
        self.mission_func = lambda colour="", thing="": f"Fetch the {colour} {thing}!"

    def contains(self, x):
        return isinstance(x, str)

    def __eq__(self, other):
        return isinstance(other, Missions)

    __hash__ = None


class Fetch(gymnasium.Env):
    """Its mission alone says which of six actions is rewarded; ``place`` says nothing."""

    def __init__(self, told=True):
        self.observation_space = spaces.Dict({"place": spaces.Box(-1, 1, (2,), np.float32), "mission": Missions(told)})
        self.action_space = spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._next(), {}

    def step(self, action):
        reward, self.t = float(int(action) == self.right), self.t + 1
        return self._next(), reward, False, self.t >= 10, {}

    def _next(self):
        self.right = int(self.np_random.integers(6))
        colours, things = ("red", "green", "blue"), ("ball", "key")
        return {"place": self.np_random.uniform(-1, 1, 2).astype(np.float32), "mission": f"Fetch the {colours[self.right // 2]} {things[self.right % 2]}!"}


WORDS = ("ball", "blue", "fetch", "green", "key", "red", "the")


def fetch(words):
    """The teacher: what is meant by the words."""
    table = torch.zeros(len(words) + 2, 6)
    for i, word in enumerate(words, 2):
        for j in range(6):
            table[i, j] = 4.0 * (word in (("red", "green", "blue")[j // 2], ("ball", "key")[j % 2]))
    return lambda obs: table[obs["mission"].long()].sum(-2)


def test_words_are_numbers_of_what_the_space_declares():
    assert texts.vocabulary(Missions()) == (WORDS, 4)
    assert texts.vocabulary(Missions(told=False)) == ((), texts.LENGTH)
    assert texts.vocabulary(spaces.Text(5, charset="ab")) == (("a", "b"), 5)
    known = texts.numbered(WORDS)
    assert texts.encode("Fetch the PINK key now, please", known, 5).tolist() == [4, 8, 1, 6, 1]
    assert texts.encode("key", known, 4).tolist() == [6, 0, 0, 0]
    assert texts.encode("bcb", texts.numbered("ab"), 5).tolist() == [3, 1, 3, 0, 0]


def test_they_are_given_only_where_someone_reads_them():
    assert texts_of(EnvOptions(Fetch), {"mission", "place"}) == {"mission"}
    for words, wanted in (({}, {"place"}), ({"mission": ((), 0)}, {"place", "mission"})):
        vector = make(EnvOptions(Fetch, words=words, backend="gymnasium:1"), 2, Seeds(0, "dry"))
        assert set(vector.spec.observations) == wanted
        assert set(vector.reset()) == wanted
        vector.close()
    assert vector.spec.observations["mission"] == Group((4,), "int64", (9, 9, 9, 9), words=WORDS)
    assert Spec.from_json(vector.spec.to_json()) == vector.spec


def test_a_student_that_reads_learns_and_one_that_does_not_cannot(tmp_path):
    blind, reads = (
        distillrl.distill(fetch(WORDS), Fetch, config=Config(**{**vars(CONFIG), "see": see, "teacher_sees": "place,mission"}), out=tmp_path / see)
        for see in ("group=place", "group=place+mission")
    )
    assert reads.verdict["retention"]["value"] > 0.95 > 0.5 > blind.verdict["retention"]["value"]
    path = reads.folder / "student.safetensors"
    player = loading.load(path)
    said = {"place": np.zeros((2, 2), np.float32), "mission": np.array(["fetch the green key", "fetch the red ball"])}
    assert player.predict(said)[0].tolist() == [3, 0], "texts are taken as they are"
    assert player.predict({"place": np.zeros(2, np.float32), "mission": "Fetch the blue ball"})[0] == 4
    for to in ("python", *(["js"] if shutil.which("node") else [])):
        shipped = exporting.opened(exporting.export(player, to, tmp_path / to))
        assert shipped.act(as_groups(said, player.spec)[0], {}, None)[0].action.mode.tolist() == [3, 0]
    assert evaluation.evaluate(path, lambda: Fetch(told=False), episodes=12, seed=0)["student"]["return"]["mean"] == reads.verdict["student"]["return"]["mean"], "in its own words"


def test_words_that_nobody_declared_are_named(tmp_path):
    config = Config(**{**vars(CONFIG), "see": "group=mission, words=red+green+blue+ball+key", "teacher_sees": "place,mission"})
    run = distillrl.distill(fetch(("red", "green", "blue", "ball", "key")), lambda: Fetch(told=False), config=config, out=tmp_path / "r")
    assert run.verdict["retention"]["value"] > 0.95
    assert run.policy.spec.observations["mission"].words == ("red", "green", "blue", "ball", "key")


class Letters(gymnasium.Env):
    """Text alone: the right action is whether it begins with a b."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Text(3, charset="abc"), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._next(), {}

    def step(self, action):
        reward, self.t = float(int(action) == (self.said[0] == "b")), self.t + 1
        return self._next(), reward, False, self.t >= 10, {}

    def _next(self):
        self.said = "".join("abc"[i] for i in self.np_random.integers(3, size=self.np_random.integers(1, 4)))
        return self.said


def test_letters_alone_are_read_and_by_a_tree_too(tmp_path):
    pytest.importorskip("sklearn")
    config = Config(**{**vars(CONFIG), "see": "group=obs", "student": "tree:leaves=4", "env_steps": 1000, "worst_of": 0})
    run = distillrl.distill(lambda obs: torch.stack([torch.zeros(len(obs)), 8.0 * (obs[:, 0] == 3) - 4], -1), Letters, config=config, out=tmp_path / "r")
    assert run.verdict["retention"]["value"] == 1
    assert loading.load(run.folder / "student.safetensors").predict(np.array(["b", "ab", "bca"]))[0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("see", "told", "says"),
    [
        ("group=mission", False, "doesn't say which words.*words=mission:red"),
        ("group=mission, words=red++key", True, "words with \\+ between them"),
        ("group=mission, words=misson:red+key", True, "did you mean 'mission'"),
        ("group=misson", True, "did you mean|no observation group"),
        ("group=place, words=red+key", True, "words= is for a group of text"),
    ],
)
def test_what_is_wrong_is_a_sentence(see, told, says, tmp_path):
    with pytest.raises(Misconfigured, match=says):
        distillrl.distill(lambda obs: torch.zeros(len(obs), 6), lambda: Fetch(told), config=Config(**{**vars(CONFIG), "see": see}), out=tmp_path / "r")
    assert seeing.words("group=mission, words=red+key", "mission") == ("red", "key")


def test_words_are_for_one_task():
    with pytest.raises(Misconfigured, match="mission of Fetch is words, which are read in one task alone"):
        texts_of(EnvOptions([Fetch, Fetch]), {"mission"})
    assert not texts_of(EnvOptions([Fetch, Fetch]), {"place"})
