"""Atari: ids, seeds, replays, what is clipped, single games with their memory, and teachers of stacked frames."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ale_py")

from distillrl import atari, config, envs, students, teachers
from distillrl.actions import Categorical, Deterministic
from distillrl.beginning import begin
from distillrl.config import Config
from distillrl.distillation import distill
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import DistillError
from distillrl.evaluation import Random, evaluate, play
from distillrl.evidence import paired_returns
from distillrl.policies import ACTION
from distillrl.records import ActionSpace, Group, Prediction, Spec
from distillrl.settling import settle
from distillrl.states import Who

PONG = EnvOptions("ALE/Pong-v5")


def actions(count, n, seed=0):
    return np.random.default_rng(seed).integers(0, 6, (count, n))


def test_ids_old_and_new_name_a_game():
    assert [atari.game(i) for i in ("ALE/Pong-v5", "PongNoFrameskip-v4", "ALE/MsPacman-v5", "UpNDownDeterministic-v0", "CartPole-v1", None)] == [
        "pong", "pong", "ms_pacman", "up_n_down", None, None
    ]  # fmt: skip
    with pytest.raises(DistillError, match="'pong'"):
        envs.make(EnvOptions("ALE/Pomg-v5"), 1, Seeds(0, "dry"))
    with pytest.raises(DistillError, match="sticky"):
        envs.make(EnvOptions("ALE/Pong-v5", {"stiky": 0.25}), 1, Seeds(0, "dry"))
    with pytest.raises(DistillError, match="is none"):
        envs.make(EnvOptions("CartPole-v1", backend="ale"), 1, Seeds(0, "dry"))
    with pytest.raises(DistillError, match="single environments"):
        envs.make(EnvOptions("ALE/Pong-v5", backend="ale", adds=frozenset({"ram"})), 1, Seeds(0, "dry"))


def test_an_open_episode_comes_back_from_its_seed_and_its_actions():
    options = EnvOptions("ALE/Breakout-v5", {"sticky": 0.25})
    vector = envs.make(options, 3, Seeds(7, "train"))
    assert envs.arrange(options, 3) == vector.backend == "ale"
    vector.reset()
    played, began, ended = [], np.zeros(3, int), np.zeros(3, bool)
    for t, a in enumerate(actions(170, 3) % 4):
        begins = ended
        began[begins] = t + 1
        _, _, terminated, truncated = vector.step(a)
        ended = terminated | truncated
        played.append(a)
    index = vector.index
    assert index.max() > 2, "an episode ended and the next one has its own seed"
    again = envs.make(options, 3, Seeds(7, "train"))
    again.restore(index, [np.array([row[i] for row in played[began[i] :]]) for i in range(3)], ended)
    for a in actions(40, 3, seed=5) % 4:
        mine, theirs = vector.step(a), again.step(a)
        assert np.array_equal(mine[0]["obs"], theirs[0]["obs"])
        assert all(np.array_equal(x, y) for x, y in zip(mine[1:], theirs[1:], strict=True))
    for v in (vector, again):
        v.close()


def test_slots_play_their_episodes_and_rest():
    options = EnvOptions("ALE/Breakout-v5", max_episode_steps=20)
    vector = envs.make(options, 2, Seeds(0, "verdict"), episodes=3)
    vector.reset()
    ends = 0
    for a in actions(120, 2) % 4:
        _, reward, terminated, truncated = vector.step(a)
        ends += int((terminated | truncated).sum())
    assert ends == 3
    assert not reward.any()
    assert (vector.playing() >= 3).all()
    vector.close()


@pytest.mark.parametrize("backend", ["ale", "gymnasium:1"])
def test_rewards_are_clipped_in_training_alone(backend):
    options = EnvOptions("ALE/Phoenix-v5", {"noop_max": 0}, backend)
    found = {}
    for name, episodes in (("train", None), ("select", None), ("train", 2)):
        vector = envs.make(options, 2, Seeds(0, name), episodes)
        vector.reset()
        found[name, episodes] = np.concatenate([vector.step(a)[1] for a in actions(150, 2) % 8])
        vector.close()
    assert set(np.unique(found["train", None])) == {0.0, 1.0}
    assert found["select", None].max() > 1
    assert found["train", 2].max() > 1, "seeds of training that are played for their score"


def test_further_returns_of_a_game_are_played_in_one_go():
    class Still(Random):
        def act(self, obs, memory, starts, wants=frozenset()):
            return Prediction(Deterministic(torch.zeros(len(obs["obs"]), dtype=torch.long))), memory

    options = EnvOptions("ALE/Pong-v5", {}, "ale", max_episode_steps=20)
    vector = envs.make(options, 1, Seeds(0, "dry"))
    assert paired_returns(Still(vector.spec, torch.Generator()), options, 3, Seeds(0, "verdict")) == [0.0] * 3
    vector.close()


def test_single_games_see_almost_what_the_vector_sees_and_give_their_memory():
    one = envs.make(EnvOptions("ALE/Pong-v5", {"noop_max": 0}, "gymnasium:1", None, frozenset({"ram"})), 1, Seeds(0, "dry"))
    other = envs.make(EnvOptions("ALE/Pong-v5", {"noop_max": 0}, "ale"), 1, Seeds(0, "dry"))
    assert one.spec.observations["ram"].shape == (128,)
    a, b = one.reset(), other.reset()
    for action in actions(40, 1):
        a, b = one.step(action)[0], other.step(action)[0]
        assert a["obs"].shape == b["obs"].shape == (1, 1, 84, 84)
        assert np.abs(a["obs"].astype(int) - b["obs"]).mean() < 1.0
    assert a["ram"].any()
    for v in (one, other):
        v.close()


def test_the_student_sees_four_frames_and_the_teacher_its_own_stack():
    def teacher(obs):
        return torch.nn.functional.one_hot((obs["ram"][:, 54].long() > 100) * 3, 6).float() if isinstance(obs, dict) else torch.zeros(len(obs), 6) + obs[:, 54:55]

    setup = settle(Config(student="cnn:4-8:8", slots=2, teacher_sees="ram"), teacher, "ALE/Pong-v5")
    assert setup.config.see == "group=obs, stack=4"
    assert setup.config.backend.startswith("gymnasium")
    assert settle(Config(student="gru:8", slots=2), lambda obs: torch.zeros(len(obs), 6), "ALE/Pong-v5").config.see is None
    state = begin(setup)
    try:
        with torch.inference_mode():
            rollout = state.drive.collect(6, Who(0.5), setup.teacher, state.student, ACTION, setup.seen)
        assert rollout.obs["obs"].shape == (7, 2, 1, 84, 84)
        assert state.student.spec.observations.keys() == {"obs"}
    finally:
        state.drive.vector.close()
    assert students.make("cnn:rusu-7", setup.spec, torch.Generator(), see="group=obs, stack=4").body[0].shape == (4, 84, 84)


class Reader:
    """A rule that reads memory and remembers, as a user writes one."""

    spec = Spec({"ram": Group((128,), "uint8", (), 0.0, 255.0)}, ActionSpace("discrete", n=6))
    gives = frozenset({"action", "distribution"})
    info: ClassVar = {"format": "a rule"}

    def init(self, n):
        return {"row": torch.zeros(n)}

    def act(self, obs, memory, starts, wants=ACTION):
        row = obs["ram"][:, 54].float()
        logits = torch.nn.functional.one_hot((row > memory["row"]).long() * 2, 6) * 5.0
        return Prediction(Categorical(logits)), {"row": row}


def test_a_policy_of_ones_own_is_given_the_groups_that_it_names(tmp_path):
    config = Config(
        teacher="test_atari:Reader", env="ALE/Pong-v5", student="mlp:4", see="group=obs, resize=6", slots=2, env_steps=140,
        until="none", select_episodes=1, verdict_episodes=1, max_episode_steps=10, backend="gymnasium:1",
    )  # fmt: skip
    run = distill(config=config, out=tmp_path / "run")
    assert run.policy.spec.observations.keys() == {"obs"}
    beside = evaluate(run.folder / "student.safetensors", "ALE/Pong-v5", "test_atari:Reader", episodes=1, max_episode_steps=10, backend="gymnasium:1")
    assert beside["teacher"]["return"]["mean"] == run.verdict["teacher"]["return"]["mean"]
    for word, says in (("test_atari:Reade", "did you mean"), ("test_atari:Spec", "without arguments"), ("no_such:Rule", "No module")):
        with pytest.raises(DistillError, match=says):
            settle(Config(teacher=word, slots=1), None, "ALE/Pong-v5")
    with pytest.raises(DistillError, match="only obs"):
        settle(Config(teacher="test_atari:Reader", slots=2, student="mlp:4"), None, "CartPole-v1")


def test_games_that_begin_after_other_idle_steps_are_not_one_episode():
    short = EnvOptions("ALE/Pong-v5", max_episode_steps=40)
    first = Categorical(torch.eye(6)[0] * 9)

    class Still(Reader):
        spec = Spec({"obs": Group((1, 84, 84), "uint8", (), 0.0, 255.0)}, ActionSpace("discrete", n=6))

        def act(self, obs, memory, starts, wants=ACTION):
            return Prediction(Categorical(first.logits.expand(len(obs["obs"]), 6))), memory

    assert not play(Still(), short, 6, Seeds(0, "verdict")).alike
    assert play(Still(), EnvOptions("ALE/Pong-v5", {"noop_max": 0}, max_episode_steps=40), 3, Seeds(0, "verdict")).alike


def test_bare_weights_that_take_four_frames_see_the_last_four(tmp_path):
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten()]
    agent = nn.ModuleDict({"network": nn.Sequential(*convolutions, nn.Linear(3136, 512), nn.ReLU()), "actor": nn.Linear(512, 6), "critic": nn.Linear(512, 1)})
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    spec = Spec({"obs": Group((1, 84, 84), "uint8", (), 0.0, 255.0)}, ActionSpace("discrete", n=6))
    policy = teachers.load(tmp_path / "agent.pt", teachers.Options(env="ALE/Pong-v5"), spec)
    assert not envs.differences(policy.spec, spec)
    memory, frames = policy.init(2), torch.randint(0, 256, (6, 2, 1, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for t, frame in enumerate(frames):
        mine, memory = policy.act({"obs": frame}, memory, torch.tensor([t == 0, t in (0, 3)]))
        begins = torch.tensor([0, 0 if t < 3 else 3])
        stack = torch.stack([torch.cat([frames[i, n] if i >= begins[n] else torch.zeros_like(frame[0]) for i in range(t - 3, t + 1)]) for n in range(2)])
        want = agent["actor"](agent["network"](stack.float() / 255))
        assert torch.allclose(mine.action.logits.log_softmax(-1), want.log_softmax(-1), atol=1e-4)


def test_the_worked_examples_teacher_of_pong_reads_what_frames_show_and_nothing_else(monkeypatch):
    root = Path(__file__).resolve().parent.parent
    monkeypatch.chdir(root)
    player = teachers.load("scripts.pong_player:Player")
    played = play(player, EnvOptions("ALE/Pong-v5", {}, "gymnasium:1", max_episode_steps=60), 1, Seeds(0, "verdict"))
    assert 30 < played.lengths[0] <= 60
    ram = torch.randint(0, 256, (64, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = torch.randint(0, 256, (64, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    seen = [49, 50, 54, 56, 58, 60]
    other[:, seen] = ram[:, seen]
    mine, theirs = (player.act({"ram": x}, player.init(64), torch.ones(64, dtype=torch.bool))[0].action.logits for x in (ram, other))
    assert torch.equal(mine, theirs)
    assert set(mine.argmax(-1).tolist()) <= {0, 2, 3}


def test_the_worked_examples_settings_are_settings():
    examples = Path(__file__).resolve().parent.parent / "examples"
    given = config.build(config.read(examples / "pong.toml"))
    assert given.env_steps == 400_000
    assert given.phase[0].terms["hint"]["always"]
    assert config.build(config.read(examples / "lunar_pixels.toml")).phase[0].by == "episode"
