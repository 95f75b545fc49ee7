"""Vectors: spaces, seeds, autoreset, two processes, replay."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from distillrl import envs
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Failed, Misconfigured
from distillrl.spaces import spec_of


class Counting(gymnasium.Env):
    """Observation: [episode seed mod 97, step]; ends after ``length`` steps; reward is the step's number."""

    observation_space = spaces.Box(0, 1000, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length=3, truncate=False, broken=False):
        self.length, self.truncate, self.broken = length, truncate, broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed_seen, self.t = seed % 97, 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        if self.broken and self.t == 2:
            raise RuntimeError("the wheel came off")
        over = self.t >= self.length
        return self._obs(), float(self.t), over and not self.truncate, over and self.truncate, {}

    def _obs(self):
        return np.array([self.seed_seen, self.t], np.float32)


@pytest.mark.parametrize("backend", ["gymnasium:1", "gymnasium:2"])
@pytest.mark.parametrize("truncate", [False, True])
def test_the_step_after_an_end_only_resets(backend, truncate):
    vector = envs.make(EnvOptions(lambda: Counting(2, truncate), backend=backend), 4, Seeds(5))
    first = vector.reset()["obs"].copy()
    action = np.zeros(4, np.int64)
    obs, reward, terminated, truncated = (x.copy() if not isinstance(x, dict) else x["obs"].copy() for x in vector.step(action))
    assert obs[:, 1].tolist() == [1] * 4
    obs, reward, terminated, truncated = (x.copy() if not isinstance(x, dict) else x["obs"].copy() for x in vector.step(action))
    assert obs[:, 1].tolist() == [2] * 4, "the last observation is seen"
    assert (truncated if truncate else terminated).all()
    assert not (terminated if truncate else truncated).any()
    obs, reward, terminated, truncated = (x.copy() if not isinstance(x, dict) else x["obs"].copy() for x in vector.step(action))
    assert obs[:, 1].tolist() == [0] * 4, "the next step resets"
    assert not terminated.any()
    assert reward.tolist() == [0] * 4
    assert not np.array_equal(obs[:, 0], first[:, 0]), "a new episode has a new seed"
    assert [Seeds(5)(4 + i) % 97 for i in range(4)] == obs[:, 0].astype(int).tolist()
    vector.close()


def test_one_process_and_two_give_the_same():
    seen = []
    for backend in ("gymnasium:1", "gymnasium:2"):
        vector = envs.make(EnvOptions("CartPole-v1", backend=backend), 5, Seeds(1))
        trace = [vector.reset()["obs"].copy()]
        for t in range(40):
            obs, *_ = vector.step(np.full(5, t % 2))
            trace.append(obs["obs"].copy())
        vector.close()
        seen.append(np.stack(trace))
    assert np.array_equal(*seen)


@pytest.mark.parametrize("backend", ["gymnasium:1", "gymnasium:2", "envpool"])
def test_reset_begins_the_same_episodes_again(backend):
    if backend == "envpool":
        pytest.importorskip("envpool")
    vector = envs.make(EnvOptions("CartPole-v1", backend=backend), 4, Seeds(3))
    first = vector.reset()["obs"].copy()
    vector.step(np.zeros(4, np.int64))
    assert np.array_equal(first, vector.reset()["obs"])
    vector.close()


@pytest.mark.parametrize("backend", ["gymnasium:1", "gymnasium:2"])
def test_open_episodes_are_replayed(backend):
    def make():
        return envs.make(EnvOptions("CartPole-v1", backend=backend), 3, Seeds(2))

    one, other = make(), make()
    one.reset()
    actions = [np.array([t % 2, (t + 1) % 2, 1]) for t in range(8)]
    for a in actions:
        one.step(a)
    other.reset()
    other.restore([0, 1, 2], [np.array([a[i] for a in actions]) for i in range(3)], np.zeros(3, bool))
    a, b = one.step(actions[0]), other.step(actions[0])
    assert np.array_equal(a[0]["obs"], b[0]["obs"])
    one.close()
    other.close()


def test_slots_rest_once_all_episodes_are_begun():
    vector = envs.make(EnvOptions(lambda: Counting(2)), 2, Seeds(0), episodes=3)
    vector.reset()
    ends = np.zeros(2, int)
    for _ in range(12):
        _, _, terminated, _ = vector.step(np.zeros(2, np.int64))
        ends += terminated
    assert ends.tolist() == [2, 1]
    vector.close()


def test_streams_of_seeds_are_disjoint():
    sets = [{Seeds(9, stream)(i) for i in range(3000)} for stream in envs.STREAMS]
    assert all(len(s) == 3000 for s in sets)
    assert len(set.union(*sets)) == 3000 * len(sets)
    assert max(max(s) for s in sets) < 2**31


def test_unknown_ids_name_the_nearest():
    with pytest.raises(Misconfigured, match="LunarLander-v3"):
        envs.make(EnvOptions("LunarLander-v9"), 1, Seeds(0))
    with pytest.raises(Misconfigured, match="can't be imported"):
        envs.make(EnvOptions("nowhere_at_all:CartPole-v1"), 1, Seeds(0))
    with pytest.raises(Misconfigured, match="gravitas"):
        envs.make(EnvOptions("LunarLander-v3", {"gravitas": 1}), 1, Seeds(0))
    with pytest.raises(Misconfigured, match="gymnasium"):
        envs.make(EnvOptions("CartPole-v1", backend="gimnasium"), 1, Seeds(0))


def test_an_error_in_the_other_process_is_a_sentence():
    vector = envs.make(EnvOptions(lambda: Counting(9), backend="gymnasium:2"), 2, Seeds(0))
    vector.close()
    made = iter([Counting(9), Counting(9), Counting(9, broken=True)])
    broken = envs.TwoProcesses([lambda: Counting(9), lambda: Counting(9, broken=True)], Seeds(0), None)
    broken.reset()
    broken.step(np.zeros(2, np.int64))
    with pytest.raises(Failed, match="the wheel came off"):
        broken.step(np.zeros(2, np.int64))
    broken.close()
    assert made


def test_a_users_vector_must_reset_by_the_next_step():
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    vector = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=mode)
    with pytest.raises(Misconfigured, match="NEXT_STEP"):
        envs.make(EnvOptions(vector), 2, Seeds(0))


def test_specs_and_their_differences():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(4), "c": spaces.MultiDiscrete([2, 3])})
    spec = envs.spec_of(space, spaces.Discrete(3, start=2))
    assert spec.observations["b"].categories == (4,)
    assert spec.from_json(spec.to_json()) == spec
    other = envs.spec_of(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    found = envs.differences(spec, other)
    assert len(found) == 4
    assert "Discrete(3, start=2)" in found[-1]
    assert "Box(-1, 1, (2,), float32)" in found[-1]
    with pytest.raises(Misconfigured, match="can't be seen"):
        envs.spec_of(spaces.Text(3), spaces.Discrete(2))


@pytest.mark.parametrize("backend", ["gymnasium:1", "gymnasium:2"])
def test_a_queue_begins_where_the_vector_is_reseeded(backend):
    vector = envs.make(EnvOptions(lambda: Counting(2), {}, backend), 2, Seeds(0), episodes=3)
    for first in (0, 3):
        vector.reseed(first)
        ends = 0
        for _ in range(12):
            _, _, terminated, _ = vector.step(np.zeros(2, np.int64))
            ends += int(terminated.sum())
        assert ends == 3
        assert set(vector.playing().tolist()) <= {first + 3, first + 4}
    vector.close()


def test_categories_that_begin_elsewhere_are_counted_from_0():
    space = spaces.Dict({"level": spaces.Discrete(3, start=2), "pair": spaces.MultiDiscrete([2, 3], start=[0, 1])})
    groups = spec_of(space, spaces.Discrete(2)).observations
    assert {k: g.categories for k, g in groups.items()} == {"level": (5,), "pair": (2, 4)}
    with pytest.raises(Misconfigured, match="begin below 0"):
        spec_of(spaces.Discrete(3, start=-1), spaces.Discrete(2))
    with pytest.raises(Misconfigured, match="a MultiDiscrete of one dimension is right"):
        spec_of(spaces.MultiDiscrete([[2, 3], [2, 2]]), spaces.Discrete(2))
    with pytest.raises(Misconfigured, match=r"adds \[0, 1\] is right"):
        spec_of(spaces.Discrete(3), spaces.MultiDiscrete([2, 3], start=[0, 1]))
