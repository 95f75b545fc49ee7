"""Recorded play: written as Minari's data sets, read from each format as the genuine libraries write it, refused where it is broken."""

import json
import os
import pickle
import resource
import signal
import sys

import gymnasium
import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces
from test_distillation import Corridor, gaussian_teacher, steer

from distillrl import recordings
from distillrl.envs import spec_of
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.recording import record
from distillrl.records import Spec

FILES = ("main_data.hdf5", "metadata.json")


def spec(kind="discrete"):
    env = Corridor(kind)
    return spec_of(env.observation_space, env.action_space)


def flat(steps=30, lengths=(10, 20), actions=None):
    """Arrays of two episodes, the first terminated, the second cut."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(lengths) - 1
    terminals, timeouts = np.zeros(steps, bool), np.zeros(steps, bool)
    terminals[ends[0]], timeouts[ends[1]] = True, True
    return {
        "observations": rng.normal(size=(steps, 2)).astype(np.float32),
        "actions": rng.integers(0, 3, steps) if actions is None else actions,
        "rewards": np.arange(steps, dtype=np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


# ── record ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["discrete", "box", "multidiscrete", "multibinary"])
def test_what_is_recorded_is_read_by_minari_and_by_us(tmp_path, kind):
    done = record(steer(kind), lambda: Corridor(kind), out=tmp_path / "play", episodes=5, seed=3)
    assert (done.episodes, done.steps) == (5, 100)
    theirs = minari.MinariDataset(str(tmp_path / "play" / "data"))
    ours = recordings.read(tmp_path / "play", spec(kind))
    assert (theirs.total_episodes, theirs.total_steps) == (5, 100) == (ours.episodes, ours.steps)
    assert theirs.action_space == Corridor(kind).action_space
    for i, episode in enumerate(theirs.iterate_episodes()):
        rows = slice(20 * i, 20 * i + 20)
        np.testing.assert_array_equal(episode.observations[:-1], ours.obs["obs"][rows])
        np.testing.assert_array_equal(episode.observations[-1], ours.last["obs"][i])
        np.testing.assert_array_equal(episode.actions + (1 if kind == "discrete" else 0), ours.action[rows])  # it starts at −1
        assert all(Corridor(kind).action_space.contains(a) for a in episode.actions)
        assert list(episode.truncations) == [False] * 19 + [True]
        assert not episode.terminations.any()
        assert episode.rewards.sum() == pytest.approx(done.returns[i])
    assert not ours.terminated.any()


def test_a_recorded_episode_is_what_its_seed_gives(tmp_path):
    record(steer("discrete"), lambda: Corridor(), out=tmp_path / "play", episodes=3)
    data = minari.MinariDataset(str(tmp_path / "play" / "data"))
    for episode, metadata in zip(data.iterate_episodes(), data.storage.get_episode_metadata(range(3)), strict=True):
        env = Corridor()
        seen = [env.reset(seed=metadata["seed"])[0]] + [env.step(a)[0] for a in episode.actions]
        np.testing.assert_array_equal(np.stack(seen), episode.observations)


def test_what_the_teacher_said_is_kept(tmp_path):
    record(steer("discrete"), lambda: Corridor(), out=tmp_path / "soft", episodes=2, sampled=True)
    soft = recordings.read(tmp_path / "soft")
    expected = steer("discrete")(torch.from_numpy(soft.obs["obs"]))
    np.testing.assert_allclose(soft.known["logits"], expected.numpy(), rtol=1e-6)
    record(gaussian_teacher(), lambda: Corridor("box"), out=tmp_path / "box", steps=30)
    box = recordings.read(tmp_path / "box")
    assert set(box.known) == {"mean", "std"}
    assert box.steps == 40  # whole episodes
    np.testing.assert_allclose(np.clip(box.known["mean"], -1, 1), box.action, atol=1e-6)
    facts = json.loads((tmp_path / "box" / "data" / "metadata.json").read_text())
    assert facts["distillrl"]["environment"] == "<lambda>"
    assert facts["distillrl"]["seed"] == 0


def test_noise_disturbs_what_is_played_and_not_what_is_said(tmp_path):
    record(gaussian_teacher(), lambda: Corridor("box"), out=tmp_path / "box", episodes=4, noise=0.3)
    noisy = recordings.read(tmp_path / "box")
    assert np.abs(np.clip(noisy.known["mean"], -1, 1) - noisy.action).mean() > 0.05
    assert np.abs(noisy.action).max() <= 1


def test_the_same_seed_records_the_same(tmp_path):
    digests = []
    for name in ("a", "b"):
        record(steer("discrete"), lambda: Corridor(), out=tmp_path / name, episodes=20, sampled=True, seed=1)
        digests.append(recordings.read(tmp_path / name).digest)
    assert digests[0] == digests[1]
    record(steer("discrete"), lambda: Corridor(), out=tmp_path / "c", episodes=20, sampled=True, seed=2)
    assert recordings.read(tmp_path / "c").digest != digests[0]


def test_episodes_of_unlike_lengths_are_whole_and_in_order(tmp_path):
    class Uneven(Corridor):
        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            return obs, reward, self.t >= 3 + int(5 * abs(self.first)), False, info

        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            self.first = obs[0]
            return obs, info

    record(steer("discrete"), Uneven, out=tmp_path / "play", episodes=40)
    made = recordings.read(tmp_path / "play")
    assert made.episodes == 40
    assert made.terminated.all()
    firsts = made.obs["obs"][made.begins, 0]
    np.testing.assert_array_equal(made.lengths, 3 + (5 * np.abs(firsts)).astype(int))
    assert len(set(made.lengths)) > 3


def test_a_full_disk_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(Failed, match="play can't be written: File too large"):
            record(steer("discrete"), lambda: Corridor(), out=tmp_path / "play", episodes=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_ctrl_c_leaves_nothing(tmp_path):
    def stop(episodes, steps):
        if episodes == 20:
            assert len(os.listdir(tmp_path)) == 1
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            record(steer("discrete"), lambda: Corridor(), out=tmp_path / "play", episodes=100, show=stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert os.listdir(tmp_path) == []


def test_record_refuses_what_can_not_be(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(Misconfigured, match="is not empty"):
        record(steer("discrete"), lambda: Corridor(), out=tmp_path / "there", episodes=1)
    with pytest.raises(Misconfigured, match="--episodes N or --steps N"):
        record(steer("discrete"), lambda: Corridor(), out=tmp_path / "p")
    with pytest.raises(Misconfigured, match="--sampled needs a policy with a distribution"):
        record(steer("box"), lambda: Corridor("box"), out=tmp_path / "p", episodes=1, sampled=True)
    with pytest.raises(Failed, match="NaN"):
        record(steer("discrete"), lambda: Corridor(nan_at=4), out=tmp_path / "p", episodes=1)
    assert os.listdir(tmp_path) == ["there"]


# ── Minari ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Everything(gymnasium.Env):
    """Dict observations with a picture, a category and numbers; ends after a few steps."""

    observation_space = spaces.Dict({"picture": spaces.Box(0, 255, (36, 36, 3), np.uint8), "where": spaces.Discrete(5), "speed": spaces.Box(-1, 1, (2,), np.float32)})
    action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {"success": False}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t >= 4, False, {"success": self.t >= 4}


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """A data set that minari itself wrote, in a local cache."""
    from minari.data_collector import EpisodeBuffer

    cache = tmp_path_factory.mktemp("cache")
    env, buffers = Everything(), []
    env.action_space.seed(0)
    for seed in range(3):
        seen, actions, over = [env.reset(seed=seed)[0]], [], False
        while not over:
            actions.append(env.action_space.sample())
            obs, _, over, _, _ = env.step(actions[-1])
            seen.append(obs)
        ends = [False] * 3 + [True]
        groups = {k: np.stack([o[k] for o in seen]) for k in seen[0]}
        infos = {"success": np.array([False, *ends])}
        buffers.append(EpisodeBuffer(seed, seed, None, groups, np.stack(actions), [1.0] * 4, ends, [False] * 4, infos))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(cache))
        made = {"observation_space": env.observation_space, "action_space": env.action_space, "algorithm_name": "random"}
        minari.create_dataset_from_buffers("things/everything-v0", buffers, **made)
    return cache


def test_a_genuine_minari_data_set_is_read_by_folder_and_by_id(genuine, monkeypatch):
    by_folder = recordings.read(genuine / "things" / "everything-v0")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(genuine))
    made = recordings.read("things/everything-v0")
    assert made.digest == by_folder.digest
    assert made.spec == spec_of(Everything.observation_space, Everything.action_space)
    data = minari.load_dataset("things/everything-v0")
    assert (made.episodes, made.steps) == (3, 12)
    assert made.terminated.all()
    assert made.success.tolist() == [True] * 3
    for i, episode in enumerate(data.iterate_episodes()):
        for name, array in episode.observations.items():
            np.testing.assert_array_equal(array[:-1], made.obs[name][4 * i : 4 * i + 4])
        np.testing.assert_array_equal(episode.actions, made.action[4 * i : 4 * i + 4])


def test_a_broken_minari_data_set_is_a_sentence(tmp_path):
    def fresh(name):
        record(steer("discrete"), lambda: Corridor(), out=tmp_path / name, episodes=2)
        return tmp_path / name / "data"

    truncated = fresh("truncated") / FILES[0]
    truncated.write_bytes(truncated.read_bytes()[:3000])
    with pytest.raises(Failed, match="damaged"):
        recordings.read(tmp_path / "truncated")
    (fresh("json") / FILES[1]).write_text("{")
    with pytest.raises(Failed, match=r"metadata.json is damaged"):
        recordings.read(tmp_path / "json")
    with h5py.File(fresh("ragged") / FILES[0], "a") as file:
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = np.zeros(7)
    with pytest.raises(Failed, match="episode 1 has 20 actions and 7 rewards"):
        recordings.read(tmp_path / "ragged")
    with h5py.File(fresh("nan") / FILES[0], "a") as file:
        file["episode_1/observations"][3, 0] = np.nan
    with pytest.raises(Failed, match="observation 'obs' is NaN or infinite at step 3 of episode 1"):
        recordings.read(tmp_path / "nan")
    with h5py.File(fresh("link") / FILES[0], "a") as file:
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(Failed, match="is a link"):
        recordings.read(tmp_path / "link")
    with h5py.File(fresh("external") / FILES[0], "a") as file:
        del file["episode_1/rewards"]
        file["episode_1"].create_dataset("rewards", (20,), "f8", external=[("/etc/passwd", 0, 160)])
    with pytest.raises(Failed, match="lies in another file"):
        recordings.read(tmp_path / "external")
    with h5py.File(fresh("huge") / FILES[0], "a") as file:
        del file["episode_1/rewards"]
        file["episode_1"].create_dataset("rewards", (10**13,), "f8", chunks=(1024,))
    with pytest.raises(Failed, match="GiB of memory"):
        recordings.read(tmp_path / "huge")
    with h5py.File(fresh("empty") / FILES[0], "a") as file:
        for name in list(file):
            del file[name]
    with pytest.raises(Failed, match="no episodes"):
        recordings.read(tmp_path / "empty")


# ── .npz ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def npz(tmp_path, arrays, name="play.npz"):
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


def test_npz_under_several_names(tmp_path):
    arrays = flat()
    made = recordings.read(npz(tmp_path, arrays))
    assert made.lengths.tolist() == [10, 20]
    assert made.terminated.tolist() == [True, False]
    assert str(made.spec.action) == "Discrete(3)"
    assert made.returns.tolist() == [45, 390]
    assert any("told from the data" in note for note in made.notes)
    renamed = {"obs": "observations", "acts": "actions", "rews": "rewards", "dones": "terminals", "truncations": "timeouts"}
    same = recordings.read(npz(tmp_path, {new: arrays[old] for new, old in renamed.items()}, "b.npz"))
    assert same.digest == made.digest
    starts = np.zeros(30, bool)
    starts[[0, 10]] = True
    expert = {"obs": arrays["observations"], "actions": arrays["actions"], "rewards": arrays["rewards"], "episode_starts": starts}  # stable-baselines 2
    assert recordings.read(npz(tmp_path, expert, "c.npz")).lengths.tolist() == [10, 20]
    ends = {"observations": arrays["observations"], "actions": arrays["actions"], "episode_ends": np.array([10, 30])}
    assert recordings.read(npz(tmp_path, ends, "d.npz")).lengths.tolist() == [10, 20]
    # imitation's: a row more of observations for each episode, an object array that is never looked at
    rows = np.random.default_rng(1).normal(size=(32, 2)).astype(np.float32)
    flattened = {"obs": rows, "acts": arrays["actions"], "rews": arrays["rewards"], "terminal": np.array([True, False]), "indices": np.array([10]), "infos": np.array([{}] * 30)}
    imitation = recordings.read(npz(tmp_path, flattened, "e.npz"))
    np.testing.assert_array_equal(imitation.last["obs"], rows[[10, 31]])
    np.testing.assert_array_equal(imitation.obs["obs"], np.delete(rows, [10, 31], 0))
    assert imitation.terminated.tolist() == [True, False]


def test_npz_says_its_doubts(tmp_path):
    arrays = {**flat(), "actions": flat()["actions"].astype(np.float32)}
    arrays["dones"] = arrays.pop("terminals") | arrays.pop("timeouts")
    made = recordings.read(npz(tmp_path, arrays))
    said = " ".join(made.notes)
    assert "dones is taken for terminations" in said
    assert "taken for choices" in said
    following = {**flat(), "next_observations": np.roll(flat()["observations"], -1, 0)}
    following["next_observations"][19] += 1
    del following["timeouts"]
    told = recordings.read(npz(tmp_path, following, "b.npz"))
    assert told.lengths.tolist() == [10, 10, 10]
    assert "told from next_observations" in " ".join(told.notes)


def test_npz_kinds_of_spaces_are_inferred(tmp_path):
    pictures = {**flat(), "observations": np.zeros((30, 8, 8, 3), np.uint8)}
    group = recordings.read(npz(tmp_path, pictures)).spec.observations["obs"]
    assert (group.dtype, group.low, group.high) == ("uint8", 0.0, 255.0)
    cell = recordings.read(npz(tmp_path, {**flat(), "observations": np.arange(30) % 7}))
    assert cell.spec.observations["obs"].categories == (7,)
    box = recordings.read(npz(tmp_path, flat(actions=np.linspace(-0.5, 0.7, 60).reshape(30, 2))))
    assert (box.spec.action.low, box.spec.action.high) == ((-1.0, -1.0), (1.0, 1.0))
    wide = recordings.read(npz(tmp_path, flat(actions=np.linspace(-4, 2, 30))))
    assert (wide.spec.action.low, wide.spec.action.high, wide.action.shape) == ((-4.0,), (2.0,), (30, 1))
    switches = recordings.read(npz(tmp_path, flat(actions=np.eye(3, dtype=np.int64)[np.arange(30) % 3])))
    assert switches.spec.action.kind == "multibinary"
    choices = recordings.read(npz(tmp_path, flat(actions=np.stack([np.arange(30) % 4, np.arange(30) % 2], -1))))
    assert choices.spec.action.nvec == (4, 2)
    two = {**flat(), "obs.eye": np.zeros((30, 4), np.float32), "obs.arm": np.ones((30, 2), np.float32)}
    del two["observations"]
    assert set(recordings.read(npz(tmp_path, two)).spec.observations) == {"eye", "arm"}


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/distillrl-was-here",)


def test_hostile_and_broken_npz_are_refused(tmp_path):
    bomb = np.empty(30, object)
    bomb[:] = [Bomb()] * 30
    with pytest.raises(Failed, match="Python objects, which would run code"):
        recordings.read(npz(tmp_path, {**flat(), "rewards": bomb}))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(Failed, match="damaged or no .npz"):
        recordings.read(tmp_path / "pickle.npz")
    assert not os.path.exists("/tmp/distillrl-was-here")
    whole = npz(tmp_path, flat()).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Failed, match="damaged or no .npz"):
        recordings.read(tmp_path / "half.npz")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rewards": np.full(30, np.inf)}, "the rewards is NaN or infinite at step 0 of episode 0"),
        ({"rewards": np.zeros(29)}, "30 actions and 29 numbers in rewards"),
        ({"observations": np.zeros((29, 2))}, "30 actions and 29 observations 'obs'"),
        ({"actions": np.full(30, -2)}, "count from 0"),
        ({"actions": np.array(["left"] * 30)}, "numbers are right"),
        ({"observations": None, "seen": np.zeros((30, 2))}, "has no observations: .* it has actions, rewards"),
        ({"actions": None}, "has no actions"),
        ({"terminals": None, "timeouts": None}, "does not say where an episode ends"),
        ({"terminals": None, "timeouts": None, "episode_ends": np.array([10, 40])}, "goes up to 40 of 30 steps"),
        ({k: v[:0] for k, v in flat().items()}, "holds no steps"),
    ],
)
def test_broken_arrays_are_sentences(tmp_path, changes, sentence):
    arrays = {k: v for k, v in {**flat(), **changes}.items() if v is not None}
    with pytest.raises(Failed, match=sentence):
        recordings.read(npz(tmp_path, arrays))


# ── HDF5 of d3rlpy and D4RL ───────────────────────────────────────────────────────────────────────────────────────


def test_d4rl_and_old_d3rlpy_files(tmp_path):
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        for name, array in flat(actions=np.linspace(-0.9, 0.9, 60, dtype=np.float32).reshape(30, 2)).items():
            file[name] = array
        file["infos/qpos"] = np.zeros((30, 5))
        file["metadata/algorithm"] = "SAC"
    made = recordings.read(tmp_path / "d4rl.hdf5")
    assert made.lengths.tolist() == [10, 20]
    assert made.terminated.tolist() == [True, False]
    assert made.action.shape == (30, 2)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        arrays = flat()
        file["episode_terminals"] = (arrays["terminals"] | arrays.pop("timeouts")).astype(np.float32)
        for name, array in arrays.items():
            file[name] = array
        file["version"] = "1.0"
    old = recordings.read(tmp_path / "old.h5")
    assert old.terminated.tolist() == [True, False]


def d3rlpy_file(path, episodes=3, tuples=False):
    """``ReplayBuffer.dump`` of d3rlpy 2.x, as its dataset/io.py writes it."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"], file["version"] = episodes, "2.1"
        for i in range(episodes):
            obs = rng.normal(size=(5 + i, 2)).astype(np.float32)
            for name, value in ((f"observations_{i}_0", obs), (f"observations_{i}_1", 2 * obs)) if tuples else ((f"observations_{i}", obs),):
                file[name] = value
            file[f"actions_{i}"] = rng.integers(0, 3, (5 + i, 1))
            file[f"rewards_{i}"] = np.ones((5 + i, 1), np.float32)
            file[f"terminated_{i}"] = i == 0
    return path


def test_d3rlpy_files(tmp_path):
    made = recordings.read(d3rlpy_file(tmp_path / "dump.h5"))
    assert made.lengths.tolist() == [5, 6, 7]
    assert made.terminated.tolist() == [True, False, False]
    assert made.action.shape == (18,)
    assert made.returns.tolist() == [5, 6, 7]
    assert set(recordings.read(d3rlpy_file(tmp_path / "two.h5", tuples=True)).spec.observations) == {"0", "1"}
    with h5py.File(tmp_path / "dump.h5", "a") as file:
        del file["actions_1"]
    with pytest.raises(Failed, match="episode 1 has no actions"):
        recordings.read(tmp_path / "dump.h5")


# ── LeRobot ───────────────────────────────────────────────────────────────────────────────────────────────────────


def lerobot(path, version="v2.1", lengths=(4, 6)):
    """A folder as LeRobot's documentation lays it out, its parquet written by pyarrow."""
    features = {
        "observation.state": {"dtype": "float32", "shape": [3]},
        "observation.images.top": {"dtype": "video", "shape": [64, 64, 3]},
        "action": {"dtype": "float32", "shape": [2]},
        "next.reward": {"dtype": "float32", "shape": [1]},
        "next.done": {"dtype": "bool", "shape": [1]},
        "next.success": {"dtype": "bool", "shape": [1]},
        "episode_index": {"dtype": "int64", "shape": [1]},
    }
    (path / "meta").mkdir(parents=True)
    (path / "meta" / "info.json").write_text(json.dumps({"codebase_version": version, "features": features, "total_episodes": len(lengths)}))
    tables = []
    for i, length in enumerate(lengths):
        rng = np.random.default_rng(i)
        done = np.arange(length) == length - 1
        columns = {
            "observation.state": pa.array(list(rng.normal(size=(length, 3)).astype(np.float32)), pa.list_(pa.float32(), 3 if version == "v3.0" else -1)),
            "action": pa.array(list(rng.uniform(-1, 1, (length, 2)).astype(np.float32)), pa.list_(pa.float32())),
            "next.reward": pa.array(np.full(length, i, np.float32)),
            "next.done": pa.array(done),
            "next.success": pa.array(done & (i == 1)),
            "episode_index": pa.array(np.full(length, i)),
        }
        tables.append(pa.table(columns))
    chunk = path / "data" / "chunk-000"
    chunk.mkdir(parents=True)
    if version == "v3.0":
        pq.write_table(pa.concat_tables(tables), chunk / "file-000.parquet")
    else:
        for i, table in enumerate(tables):
            pq.write_table(table, chunk / f"episode_{i:06d}.parquet")
    return path


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_folders(tmp_path, version):
    made = recordings.read(lerobot(tmp_path / "robot", version))
    assert made.lengths.tolist() == [4, 6]
    assert made.success.tolist() == [False, True]
    assert made.returns.tolist() == [0, 6]
    np.testing.assert_array_equal(made.obs["obs"][:4], np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
    assert made.spec.action.dimensions == 2
    assert "observation.images.top is kept as pictures or video, and left out" in made.notes


def test_broken_lerobot_folders(tmp_path):
    folder = lerobot(tmp_path / "robot")
    file = folder / "data" / "chunk-000" / "episode_000001.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(Failed, match="parquet files are damaged"):
        recordings.read(folder)
    for path in folder.glob("data/chunk-000/*"):
        path.unlink()
    with pytest.raises(Failed, match="zero episodes"):
        recordings.read(folder)
    ragged = lerobot(tmp_path / "ragged", lengths=(4,))
    path = ragged / "data" / "chunk-000" / "episode_000000.parquet"
    table = pq.read_table(path).set_column(1, "action", pa.array([[0.1, 0.2]] * 3 + [[0.3]], pa.list_(pa.float32())))
    pq.write_table(table, path)
    with pytest.raises(Failed, match=r"7 numbers in 4 rows; meta/info.json says shape \[2\], so 8 are right"):
        recordings.read(ragged)


# ── spaces ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_other_spaces_than_the_environment_are_shown_with_both(tmp_path):
    record(steer("discrete"), lambda: Corridor(), out=tmp_path / "play", episodes=2)
    with pytest.raises(Misconfigured, match=r"does not fit the environment: action: the environment has Box\(-1, 1, \(1,\), float32\), the recording Discrete\(3, start=-1\)"):
        recordings.read(tmp_path / "play", spec("box"))
    lander = spec_of(spaces.Box(-1, 1, (8,), np.float32), spaces.Discrete(3, start=-1))
    with pytest.raises(Misconfigured, match=r"observation 'obs': the teacher has float32\[8\], the recording float32\[2\]"):
        recordings.read(tmp_path / "play", lander, "the teacher")
    path = npz(tmp_path, {**flat(), "actions": np.arange(30) % 5 - 1})
    with pytest.raises(Misconfigured, match=r"an action of 2 is recorded, Discrete\(3, start=-1\) is right"):
        recordings.read(path, Spec(spec().observations, spec().action))


def test_what_is_no_data_set_is_said(tmp_path):
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(Failed, match="is no data set that is known here; known are: a Minari data set"):
        recordings.read(tmp_path / "text.txt")
    with pytest.raises(Failed, match="there is no "):
        recordings.read(tmp_path / "nothing")
    with pytest.raises(Misconfigured, match="did you mean"):
        recordings.read(tmp_path / "text.txt", form="mnari")


def test_libraries_that_are_not_there_name_the_pip_line(tmp_path, monkeypatch):
    file, folder = d3rlpy_file(tmp_path / "dump.h5"), lerobot(tmp_path / "robot")
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for source in (file, folder):
        with pytest.raises(Missing, match=r"pip install 'distillrl\[data\]'"):
            recordings.read(source)
    with pytest.raises(Missing, match=r"pip install 'distillrl\[data\]'"):
        record(steer("discrete"), lambda: Corridor(), out=tmp_path / "p", episodes=1)
