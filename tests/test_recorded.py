"""Distilling from recorded play: lanes, weights worked out by hand, held-out episodes, resuming, and what is refused before round 0."""

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_distillation import Corridor, steer

import distillrl
from distillrl import methods, recorded, recordings, weighing
from distillrl.advantages import gae
from distillrl.config import Config, Phase
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.lanes import pack, rollout
from distillrl.methods import METHODS
from distillrl.recorded import Recorded, held_out, taken
from distillrl.recording import record
from distillrl.records import ActionSpace, Progress, Spec
from distillrl.settling import settle
from distillrl.weighing import Weighing, kept, of_advantages

KINDS = ("discrete", "box", "multidiscrete", "multibinary")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """{kind: a recording of 12 episodes of 20 steps each}."""
    folder = tmp_path_factory.mktemp("played")
    for kind in KINDS:
        record(steer(kind), lambda kind=kind: Corridor(kind), out=folder / kind, episodes=12, sampled=kind == "discrete")
    return folder


@pytest.fixture(autouse=True)
def quick_critic(monkeypatch):
    monkeypatch.setattr(weighing, "UPDATES", 160)


def small(data, **changes):
    return replace(Config(student="mlp:8", slots=4, verdict_episodes=12, select_episodes=8, rounds=25, data=str(data)), **changes)


def run(tmp_path, data, teacher=None, env=None, name="r", show=None, **changes):
    return distillrl.distill(teacher, env, config=small(data, **changes), out=tmp_path / name, show=show)


def made(lengths=(2, 1, 3), rewards=None, last=True):
    """A recording by hand: observations count the steps, the second episode terminates."""
    steps = sum(lengths)
    arrays = {
        "observations": np.arange(steps + (len(lengths) if last else 0), dtype=np.float32)[:, None],
        "actions": np.arange(steps) % 2,
        "episode_ends": np.cumsum(lengths),
        "terminals": np.array([i == 1 for i in range(len(lengths))]),
        "rewards": np.ones(steps, np.float32) if rewards is None else np.asarray(rewards, np.float32),
    }
    return recordings.settle(recordings.flat.cut(arrays, "made"), "made", "npz")


# ── lanes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_episodes_lie_in_lanes_as_a_vector_would_have_stepped_them():
    recording = made()
    lanes = pack(recording.lengths, 2)
    play = rollout(recording, lanes, frozenset({"obs"}))
    assert (lanes.rows, lanes.count) == (5, 2)  # 3 + 1 rows; 2 + 1 and 1 + 1 behind it
    assert play.obs["obs"].shape == (6, 2, 1)
    assert play.obs["obs"][:, 0, 0].tolist() == [5, 6, 7, 8, 0, 0]
    assert play.obs["obs"][:, 1, 0].tolist() == [0, 1, 2, 3, 4, 0]
    assert play.starts.T.tolist() == [[True, False, False, False, False], [True, False, False, True, False]]
    assert play.valid.T.tolist() == [[True, True, True, False, False], [True, True, False, True, False]]
    assert play.terminated.T.tolist() == [[False] * 5, [False, False, False, True, False]]
    assert play.truncated.T.tolist() == [[False, False, True, False, False], [False, True, False, False, False]]
    assert torch.equal(lanes.flat(play.action), torch.from_numpy(recording.action))


def test_lanes_are_nearly_full():
    rng = np.random.default_rng(0)
    for lengths in (rng.integers(1, 40, 100), np.array([500, 3, 3, 3]), np.array([7])):
        lanes = pack(lengths, 16)
        assert lanes.count == 1 or (lengths + 1).sum() >= 0.9 * lanes.rows * lanes.count
        assert len(set(lanes.steps.tolist()) | set(lanes.ends.tolist())) == lengths.sum() + len(lengths)


# ── weights ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_best_episodes_are_a_share_of_the_steps():
    recording = made((2, 1, 3, 4), [5, 5, 20, 0, 0, 1, 2, 2, 2, 2])  # returns 10, 20, 1, 8
    assert kept(recording, Weighing("top", 0.1)).tolist() == [False, True, False, False]
    assert kept(recording, Weighing("top", 0.2)).tolist() == [True, True, False, False]
    assert kept(recording, Weighing("top", 0.5)).tolist() == [True, True, False, True]
    assert kept(recording, Weighing("top", 1.0)).all()
    assert kept(recording, Weighing("success", 8.0)).tolist() == [True, True, False, True]
    with pytest.raises(Misconfigured, match="success is|records no success: success"):
        kept(recording, Weighing("success", None))
    with pytest.raises(Misconfigured, match="the best return is 20"):
        kept(recording, Weighing("success", 21.0))
    told = replace(recording, success=np.array([False, True, False, True]))
    assert kept(told, Weighing("success", None)).tolist() == [False, True, False, True]
    with pytest.raises(Misconfigured, match="goes by rewards, and made has none"):
        kept(replace(recording, reward=None), Weighing("awr", 1.0))


def test_weights_of_advantages_by_hand():
    advantage = np.array([-1.0, 0.0, 1.0, 2.0])
    assert of_advantages(advantage, Weighing("crr", None)).tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(of_advantages(advantage, Weighing("crr_exp", 2.0)), np.exp([-0.5, 0, 0.5, 1]))
    np.testing.assert_allclose(of_advantages(10 * advantage, Weighing("crr_exp", 1.0)), [np.exp(-10), 1, 20, 20])
    np.testing.assert_allclose(of_advantages(10 * advantage, Weighing("awr", 1.0)), np.exp(advantage / advantage.std()))


def test_advantages_are_by_the_recorded_value_and_bootstrapped_where_an_episode_was_cut():
    recording = replace(made((2, 1)), known={"value": np.array([2.0, 1.5, 0.75], np.float32)})
    driver = recorded_driver(recording, Weighing("crr_exp", 1.0), hold_out=0.0, gamma=0.5, lam=1.0)
    play = driver.collect(1, None, recorded.Behaviour(recording, "action"), None, frozenset(), frozenset({"obs"}))
    # V behind the cut first episode is that of its last state, 1.5; the second terminated.
    returns = np.array([1 + 0.5 * (1 + 0.5 * 1.5), 1 + 0.5 * 1.5, 1])
    expected = np.exp(returns - np.array([2.0, 1.5, 0.75]))
    assert "by the teacher's value" in driver.note
    np.testing.assert_allclose(driver.parts[0].lanes.flat(play.weight).numpy(), expected / expected.mean(), rtol=1e-5)


def recorded_driver(recording, weigh=None, hold_out=0.3, gamma=0.99, lam=0.95, **changes):
    options = {"slots": 4, "label": "action", "labels": None, "advisor": None, "generator": torch.Generator().manual_seed(0)}
    return Recorded(recording, weigh=weigh, gamma=gamma, lam=lam, hold_out=hold_out, **{**options, **changes})


def test_q_of_the_recorded_policy_gives_crrs_own_advantage():
    known = {"q": np.array([[1.0, 3], [2, 0], [0, 1]], np.float32), "logits": np.zeros((3, 2), np.float32)}
    recording = replace(made((2, 1), rewards=[2, 1, 0.5]), known=known)  # actions 0, 1, 0
    driver = recorded_driver(recording, Weighing("crr_exp", 1.0), hold_out=0.0, gamma=0.0, label="distribution")
    play = driver.collect(1, None, recorded.Behaviour(recording, "distribution"), None, frozenset(), frozenset({"obs"}))
    expected = np.exp(np.array([1 - 2, 0 - 1, 0 - 0.5]))
    np.testing.assert_allclose(driver.parts[0].lanes.flat(play.weight).numpy(), expected / expected.mean(), rtol=1e-5)


def test_the_critic_explains_returns_of_episodes_that_it_never_saw(tmp_path, monkeypatch):
    monkeypatch.setattr(weighing, "UPDATES", 560)
    noisy = record(steer("discrete"), lambda: Corridor(), out=tmp_path / "noisy", episodes=40, noise=0.2)
    recording = recordings.read(noisy.path)
    driver = recorded_driver(recording, Weighing("awr", 1.0), gamma=0.9)
    play = driver.collect(1, None, recorded.Behaviour(recording, "action"), None, frozenset(), frozenset({"obs"}))
    assert "by a critic fitted to the recorded returns" in driver.note
    share = int(driver.note.split("explains ")[1].split("%")[0])
    assert share > 40
    weight, action = driver.parts[0].lanes.flat(play.weight), driver.parts[0].lanes.flat(play.action)
    right = steer("discrete")(driver.parts[0].lanes.flat(play.obs["obs"][:-1])).argmax(-1)
    assert weight[action == right].mean() > 1.3 * weight[action != right].mean()


@pytest.mark.parametrize("text", ["awr(0)", "top(1.5)", "crr(1)", "awr(x)", "avr(1)", "top(", "awr(1) x", "success(nan)"])
def test_misspelt_weights_are_sentences(text):
    with pytest.raises(Misconfigured, match="weigh = "):
        weighing.parse(text)


# ── held-out episodes ─────────────────────────────────────────────────────────────────────────────────────────────


def test_held_out_episodes_are_never_learnt_from(tmp_path, played):
    recording = recordings.read(played / "discrete")
    driver = recorded_driver(recording)
    mine, theirs = (set(p.recording.obs["obs"][:, 0].tolist()) for p in driver.parts)
    assert not mine & theirs
    assert sum(p.recording.episodes for p in driver.parts) == 12
    assert driver.parts[1].recording.episodes == 4
    state = begun(played / "discrete")
    assert not theirs_in(state)


def begun(data, **changes):
    from distillrl.beginning import begin

    setup = settle(small(data, **changes), None, None)
    state = begin(setup)
    state.dataset.append(state.drive.collect(1, None, setup.teacher, state.student, frozenset({"action"}), setup.seen))
    return state


def theirs_in(state):
    stored = set(state.dataset.in_order().obs["obs"][..., 0].flatten().tolist())
    return stored & set(state.drive.parts[1].recording.obs["obs"][:, 0].tolist())


def test_an_episode_recorded_twice_is_on_one_side_with_its_twin(played):
    whole = recordings.read(played / "discrete")
    twice = replace(
        whole,
        obs={"obs": np.concatenate([whole.obs["obs"]] * 2)},
        last={"obs": np.concatenate([whole.last["obs"]] * 2)},
        action=np.concatenate([whole.action] * 2),
        reward=np.concatenate([whole.reward] * 2),
        lengths=np.concatenate([whole.lengths] * 2),
        terminated=np.concatenate([whole.terminated] * 2),
        known={},
    )
    for seed in range(4):
        apart = held_out(twice, 0.3, torch.Generator().manual_seed(seed))
        assert (apart[:12] == apart[12:]).all()
        assert apart.sum() == 8
    one = taken(twice, np.arange(24) % 12 == 0)
    with pytest.raises(Misconfigured, match=r"leaves 1 episode \(recorded more than once\)"):
        held_out(one, 0.1, torch.Generator())


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_no_teacher_and_no_environment(tmp_path, played, kind):
    result = run(tmp_path, played / kind, rounds=60, until="agreement=0.93")
    verdict = result.verdict
    assert result.reached
    assert verdict["retention"] is None
    assert any("retention is null: there was no environment" in note for note in verdict["notes"])
    assert verdict["teacher"] is None
    assert verdict["student"]["return"] is None
    assert verdict["env_steps"] == verdict["teacher_labels"] == 0
    assert verdict["recorded"]["held_out"]["agreement"] == verdict["agreement"] > 0.93
    obs = np.array([[1.5, 1.0], [-1.5, 1.0]], np.float32)
    actions, _ = distillrl.load(result.folder / "student.safetensors").predict(obs)
    pushed = {"discrete": lambda a: a, "box": lambda a: a[:, 0]}.get(kind, lambda a: a[:, 0].astype(int) - a[:, 1])(actions)
    assert pushed[0] < 0 < pushed[1]


def test_the_verdict_has_the_keys_that_it_always_has(tmp_path, played):
    alone = run(tmp_path, played / "discrete", rounds=2).verdict
    teacher, env = steer("discrete"), lambda: Corridor()
    usual = distillrl.distill(teacher, env, config=Config(student="mlp:8", env_steps=600, verdict_episodes=4, select_episodes=4, until="none"), out=tmp_path / "usual").verdict
    assert set(alone) - set(usual) == {"recorded"}
    assert set(usual) <= set(alone)
    assert set(alone["student"]) == set(usual["student"])


def test_an_environment_plays_the_student_and_a_teacher_labels_anew(tmp_path, played):
    asked = []

    def teacher(obs):
        if len(obs) > 15:
            asked.append(len(obs))
        return steer("discrete")(obs)

    result = run(tmp_path, played / "discrete", teacher, lambda: Corridor(), until="retention=0.95", rounds=60)
    assert result.reached
    assert result.verdict["retention"]["value"] > 0.9
    assert result.verdict["teacher_labels"] == 240 == sum(asked)
    assert result.verdict["env_steps"] == 0
    assert result.verdict["recorded"]["label"] == "teacher"
    without = run(tmp_path, played / "discrete", None, lambda: Corridor(), name="b", until="return=-15", rounds=60)
    assert without.reached
    assert without.verdict["retention"] is None
    assert "retention is null: there is no teacher to compare with" in without.verdict["notes"]


def test_an_agreement_reached_on_held_out_episodes_ends_a_run_that_was_not_played_yet(tmp_path, played):
    result = run(tmp_path, played / "discrete", env=lambda: Corridor("discrete"), until="agreement=0.2")
    assert result.verdict["ended_by"] == "aim"
    assert result.verdict["rounds"] < 8, "the first round to be played after"
    assert result.verdict["student"]["return"]["episodes"] == 12


def test_a_label_budget_asks_about_so_many_states(tmp_path, played):
    result = run(tmp_path, played / "discrete", steer("discrete"), labels=50, rounds=3)
    assert result.verdict["teacher_labels"] == 50
    state_labels = [json.loads(line)["labels"] for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert state_labels == [50, 50, 50]


@pytest.mark.parametrize("kind", ["discrete", "box"])
@pytest.mark.parametrize("method", methods.ON_RECORDED)
def test_every_method_for_recorded_play_learns_from_it(tmp_path, played, method, kind):
    if method == "policy-distillation" and kind == "box":
        with pytest.raises(Missing, match="policy-distillation needs"):
            run(tmp_path, played / kind, method=method)
        return
    tree = {"student": "tree:leaves=16"} if method == "viper-tree" else {}
    result = run(tmp_path, played / kind, None, lambda: Corridor(kind), method=method, rounds=20, until="return=-17", weigh="top(0.5)" if method == "percent-bc" else None, **tree)
    random = result.verdict["random"]["return"]["mean"]
    assert result.verdict["student"]["return"]["mean"] > 0.6 * random  # returns are below 0
    assert METHODS[method].driver.startswith(("teacher", "recorded"))


def test_advantage_weights_beat_plain_cloning_of_mixed_play(tmp_path):
    record(steer("discrete"), lambda: Corridor(), out=tmp_path / "mixed", episodes=40, noise=0.75)
    returns = {}
    for method in ("behaviour-cloning", "awr", "crr"):
        changes = {"label": "action"} if method == "behaviour-cloning" else {}
        verdict = run(tmp_path, tmp_path / "mixed", None, lambda: Corridor(), name=method, method=method, rounds=8, until="none", **changes).verdict
        returns[method] = verdict["student"]["return_sampled"]["mean"]
    assert returns["awr"] > 0.8 * returns["behaviour-cloning"]  # below 0: less is better
    assert returns["crr"] > 0.8 * returns["behaviour-cloning"]


@pytest.mark.parametrize("student", ["gru:8", "tree:leaves=8"])
def test_other_families_learn_from_recorded_sequences(tmp_path, played, student):
    result = run(tmp_path, played / "discrete", student=student, rounds=10, hold_out=0.3, phase=(Phase(beta="1", updates=16, lr=0.02, average=0.0, terms={"nll": "1"}),))
    assert result.verdict["agreement"] > 0.6
    obs = np.array([[1.5, 1.0], [-1.5, 1.0]], np.float32)
    assert result.policy.predict(obs)[0].tolist() == [-1, 1]


class Seen(gymnasium.Env):
    """A dict of a small picture, a category and numbers; the action is the category."""

    observation_space = spaces.Dict({"picture": spaces.Box(0, 255, (6, 6, 1), np.uint8), "where": spaces.Discrete(3), "speed": spaces.Box(-1, 1, (2,), np.float32)})
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t, self.seen = 0, self.observation_space.sample()
        return self.seen, {}

    def step(self, action):
        reward, self.t, self.seen = float(action == self.seen["where"]), self.t + 1, self.observation_space.sample()
        return self.seen, reward, self.t >= 15, False, {}


class Namer:
    """Names the category that it sees."""

    gives = frozenset({"action"})
    info = {"format": "test"}

    def __init__(self):
        from distillrl.envs import spec_of

        self.spec = spec_of(Seen.observation_space, Seen.action_space)

    def init(self, n):
        return {}

    def act(self, obs, memory, starts, wants=frozenset()):
        from distillrl.actions import Deterministic
        from distillrl.records import Prediction

        return Prediction(Deterministic(obs["where"].long())), memory


def test_dict_observations_with_pictures_and_categories(tmp_path):
    record(Namer(), Seen, out=tmp_path / "seen", episodes=20)
    result = run(tmp_path, tmp_path / "seen", None, Seen, rounds=60, until="return=14", see="group=where+speed")
    assert result.reached
    whole = run(tmp_path, tmp_path / "seen", rounds=3, name="all")
    assert set(whole.policy.spec.observations) == {"picture", "where", "speed"}


# ── resuming ──────────────────────────────────────────────────────────────────────────────────────────────────────


def interrupted(tmp_path, data, at, teacher=None, env=None, **changes):
    import signal

    def stop(metrics):
        if metrics.get("round") == at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data, teacher, env, name="cut", show=stop, **changes)


@pytest.mark.parametrize("changes", [{}, {"method": "awr"}, {"student": "gru:8", "phase": (Phase(beta="1", terms={"nll": 1}, updates=8),)}, {"terms": "forward_kl: linear(1, 0.2), entropy: 0.01"}])
def test_a_resumed_run_gives_the_same_bytes(tmp_path, played, changes):
    whole = run(tmp_path, played / "discrete", name="whole", rounds=3, **changes)
    interrupted(tmp_path, played / "discrete", 1, rounds=3, **changes)
    cut = distillrl.distill(resume=tmp_path / "cut")
    assert (cut.folder / "student.safetensors").read_bytes() == (whole.folder / "student.safetensors").read_bytes()
    strip = [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in (cut.folder / "metrics.jsonl").read_text().splitlines()] == strip


def test_a_resumed_run_asks_no_state_twice_and_refuses_another_recording(tmp_path, played):
    asked = []

    def teacher(obs):
        asked.append(len(obs))
        return steer("discrete")(obs)

    record(steer("discrete"), lambda: Corridor(), out=tmp_path / "play", episodes=6)
    whole = run(tmp_path, tmp_path / "play", steer("discrete"), name="whole", rounds=6)
    interrupted(tmp_path, tmp_path / "play", 2, teacher, rounds=6)
    before = len([n for n in asked if n > 10])
    cut = distillrl.distill(teacher, resume=tmp_path / "cut")
    assert len([n for n in asked if n > 10]) == before
    assert (cut.folder / "student.safetensors").read_bytes() == (whole.folder / "student.safetensors").read_bytes()
    interrupted(tmp_path / "b", tmp_path / "play", 2, rounds=6)
    (tmp_path / "play").rename(tmp_path / "old")
    record(steer("discrete"), lambda: Corridor(), out=tmp_path / "play", episodes=6, seed=9)
    with pytest.raises(Failed, match="is not what it was when this run began"):
        distillrl.distill(resume=tmp_path / "b" / "cut")


def test_the_resolved_configuration_runs_the_same(tmp_path, played):
    first = run(tmp_path, played / "box", rounds=4, weigh="top(0.5)")
    from distillrl import config as configuration

    again = distillrl.distill(config=configuration.build(configuration.read(first.folder / "config.toml")), out=tmp_path / "again")
    assert (first.folder / "student.safetensors").read_bytes() == (again.folder / "student.safetensors").read_bytes()


def test_a_run_ends_when_the_held_out_loss_no_longer_falls(tmp_path, played):
    result = run(tmp_path, played / "box", rounds=400, student="mlp:", phase=(Phase(beta="1", terms={"mse": "1"}, average=0.0, lr=0.05, updates=4),))
    assert result.verdict["ended_by"] == "plateau"
    assert 20 <= result.verdict["rounds"] < 400
    assert result.verdict["kept_round"] < result.verdict["rounds"] - 19
    losses = [json.loads(line)["held_out.loss"] for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert int(np.argmin(losses)) == result.verdict["kept_round"]


# ── refusals, before round 0 ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"method": "dagger"}, Misconfigured, "dagger is driven by mixture, and --data has only what was recorded; these would do: behaviour-cloning"),
        ({"terms": "nll: 1, ppo_clip: 1"}, Misconfigured, "ppo_clip learns from what the student itself does"),
        ({"until": "retention=0.9"}, Misconfigured, "can't be measured without an environment: agreement=0.95 is"),
        ({"until": "return=3"}, Misconfigured, "can't be measured without an environment"),
        ({"label": "teacher"}, Misconfigured, "no teacher was given; there is distribution, action"),
        ({"label": "techer"}, Misconfigured, "did you mean 'teacher'"),
        ({"labels": 5}, Misconfigured, "labelled with the recorded distribution here"),
        ({"hold_out": 0.0}, Misconfigured, "leaves nothing to choose the student by"),
        ({"hold_out": 1.0}, Misconfigured, "a share from 0 to below 1 is right"),
        ({"weigh": "success"}, Misconfigured, "records no success"),
        ({"finetune": True}, Misconfigured, "recorded play is all that --data has"),
        ({"terms": "value_msee: 1"}, Misconfigured, "value_mse"),
    ],
)
def test_wrong_combinations_are_sentences(tmp_path, played, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        run(tmp_path, played / "discrete", **changes)
    assert not (tmp_path / "r").exists()


def test_weights_without_a_recording_are_refused():
    with pytest.raises(Misconfigured, match="are of recorded play: name it with --data"):
        Config(weigh="awr(1)")
    with pytest.raises(Misconfigured, match="weigh is of recorded play|weighs recorded play"):
        settle(Config(method="awr"), steer("discrete"), lambda: Corridor())


def test_spaces_that_differ_are_shown_with_both(tmp_path, played):
    with pytest.raises(Misconfigured, match=r"the environment has Box\(-1, 1, \(1,\), float32\), the recording Discrete\(3, start=-1\)"):
        run(tmp_path, played / "discrete", None, lambda: Corridor("box"))
    other = Namer()
    other.spec = Spec(recordings.read(played / "discrete").spec.observations, ActionSpace("discrete", n=7))
    with pytest.raises(Misconfigured, match=r"does not fit the teacher: action: the teacher has Discrete\(7\), the recording Discrete\(3, start=-1\)"):
        run(tmp_path, played / "discrete", other)


def test_one_episode_is_enough_only_where_there_is_an_environment(tmp_path):
    record(steer("discrete"), lambda: Corridor(), out=tmp_path / "one", episodes=1)
    with pytest.raises(Misconfigured, match="two or more are right"):
        run(tmp_path, tmp_path / "one")
    assert run(tmp_path, tmp_path / "one", None, lambda: Corridor(), rounds=2, name="env").verdict["recorded"]["held_out"]["episodes"] == 0


def test_causes_of_falling_short_are_told_apart(tmp_path, played):
    few = run(tmp_path, played / "box", name="few", until="agreement=1.0", phase=(Phase(beta="1", terms={"mse": "1"}, updates=1, rounds=1),))
    assert "too small, or the recorded actions are not one policy's" in few.verdict["diagnosis"][0]
    rng = np.random.default_rng(0)
    noise = {"obs": rng.normal(size=(200, 6)).astype(np.float32), "actions": rng.integers(0, 2, 200), "episode_ends": np.arange(10, 201, 10)}
    np.savez(tmp_path / "noise.npz", **noise)
    learnt = run(tmp_path, tmp_path / "noise.npz", name="noise", student="mlp:64x64", rounds=60, until="agreement=0.95", hold_out=0.3)
    assert "too few episodes" in learnt.verdict["diagnosis"][0]


def test_gae_of_a_grid_flows_through_no_reset():
    recording = made((2, 1))
    lanes = pack(recording.lengths, 1)
    play = rollout(recording, lanes, frozenset({"obs"}))
    value = torch.zeros(lanes.rows + 1, 1)
    advantage = lanes.flat(gae(play.reward, value, play.terminated, play.truncated, 0.5, 1.0))
    assert advantage.tolist() == [1.5, 1.0, 1.0]


def test_a_loss_that_falls_by_next_to_nothing_is_a_plateau():
    from types import SimpleNamespace

    from distillrl import offline

    held, losses = {}, [1.0, 0.5, *(0.1 - 1e-6 * i for i in range(60))]
    stopped = None
    for now, lost in enumerate(losses):
        held = {"loss": lost, **offline.fallen(held, lost, now)}
        if offline.stalled(SimpleNamespace(held=held, progress=Progress(round=now))):
            stopped = now
            break
    assert held["noted"] == 0.1
    assert stopped == 2 + offline.PATIENCE
