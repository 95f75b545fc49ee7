"""What a report rests on: traces, fidelity, disturbances, physics, robustness, generalisation."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from evidence_cases import SENSORS, Levels, Memoriser, Sides, linear, parity, sides, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st

from distillrl import costs, evaluation, fidelity, generalisation, physics, repeats, robustness, selecting, stats, teachers, traces
from distillrl.actions import Categorical, Deterministic, Gaussian
from distillrl.config import Config
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Failed, Misconfigured
from distillrl.perturbations import KINDS, Perturbed
from distillrl.policies import ACTION, Player
from distillrl.records import Prediction
from distillrl.traces import Trace

SIDES = EnvOptions(Sides, {}, "gymnasium:1")


def perturbed(policy, kind, level, scale=1.0, seed=0):
    return Perturbed(policy, kind, level, {"obs": torch.full((SENSORS,), scale)}, torch.Generator().manual_seed(seed))


def trace(student, teacher, episodes=2, reward=None):
    """A trace of given predictions, the states shared out evenly over the episodes."""
    count = len(student.mode)
    length = count // episodes
    return Trace(
        "student", Prediction(teacher), Prediction(student), torch.arange(count * 2.0).reshape(count, 2), ("a", "b"), student.mode,
        np.ones(count) if reward is None else reward, np.repeat(np.arange(episodes), length), np.tile(np.arange(length), episodes),
        np.full(episodes, float(length)), np.full(episodes, length),
    )  # fmt: skip


# ── traces ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trace_holds_the_episodes_that_evaluation_plays():
    student, teacher, seeds = sides(1), sides(), Seeds(3, "verdict")
    found = traces.record("student", teacher, student, SIDES, 7, seeds)
    played = evaluation.play(student, SIDES, 7, seeds)
    assert found.returns.tolist() == played.returns.tolist()
    assert found.lengths.tolist() == played.lengths.tolist() == [20] * 7
    assert found.states == 140
    assert found.episode.tolist() == sorted(found.episode.tolist())
    assert found.step.reshape(7, 20).tolist() == [list(range(20))] * 7
    assert found.seen.shape == (140, SENSORS)


def test_going_on_from_a_state_earns_what_was_earned_there():
    teacher, seeds = sides(), Seeds(0, "verdict")
    always = linear(Sides, np.zeros((2, SENSORS)), [0.0, 1.0])  # plays 1, right half of the time
    found = traces.record("student", teacher, always, SIDES, 3, seeds)
    state = 20 + 12
    assert traces.from_there(always, found, state, SIDES, seeds)[0] == found.reward[32:40].sum()
    gained, frame = traces.from_there(teacher, found, state, SIDES, seeds, pictures=True)
    assert gained == 8
    assert frame.shape == (40, 60, 3)
    assert traces.as_jpeg(frame).startswith("data:image/jpeg;base64,")


def test_an_episode_that_does_not_come_back_says_nothing():
    seeds = Seeds(0, "verdict")
    found = traces.record("student", sides(), sides(), SIDES, 2, seeds)
    other = replace(found, reward=found.reward + 1)
    assert traces.from_there(sides(), other, 5, SIDES, seeds) == (None, None)


# ── fidelity ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_policy_differs_nowhere():
    found = fidelity.measure(sides(), sides(), SIDES, 5)
    for who in ("student", "teacher"):
        states = found["states"][who]
        assert states["agreement"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert abs(states["forward_kl"]["value"]) < 1e-6
        assert states["distance"]["value"] == 0
    assert found["calibration"]["ece"] == pytest.approx(0, abs=1e-6)
    assert found["strange"] == []
    assert found["first_divergence"]["never"] == 5
    assert found["critical"]["agreement"]["value"] == 1
    assert np.trace(np.array(found["actions"]["counts"])) == 100


def test_divergences_by_hand():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.75, 0.25], [0.9, 0.1]]).log()
    found = fidelity.divergences(trace(Categorical(q), Categorical(p)))
    forward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert found["forward_kl"] == pytest.approx([forward, 0], abs=1e-6)
    assert found["reverse_kl"] == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0], abs=1e-6)
    assert found["distance"] == pytest.approx([0.25, 0], abs=1e-6)
    m = (0.625, 0.375)
    js = 0.5 * (0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1]) + 0.75 * math.log(0.75 / m[0]) + 0.25 * math.log(0.25 / m[1]))
    assert found["js"] == pytest.approx([js, 0], abs=1e-6)


def test_numbers_are_compared_in_shares_of_their_range():
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
    mine = Gaussian(torch.tensor([[0.0, 1.0], [0.5, 2.0]]), torch.zeros(2, 2), low, high)
    theirs = Gaussian(torch.tensor([[0.2, 1.0], [0.5, 2.0]]), torch.zeros(2, 2), low, high)
    found = fidelity.divergences(trace(mine, theirs))
    assert found["distance"] == pytest.approx([math.sqrt(0.1**2 / 2), 0], abs=1e-6)
    assert found["action_mse"] == pytest.approx([0.02, 0], abs=1e-6)
    assert found["forward_kl"] == pytest.approx([0.02, 0], abs=1e-6)
    assert found["wasserstein"] == pytest.approx([0.1, 0], abs=1e-6)
    assert fidelity.agrees(trace(mine, theirs)).tolist() == [False, True]


def test_a_deterministic_teacher_has_no_divergence_but_is_agreed_with():
    mine = Categorical(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    found = trace(mine, Deterministic(torch.tensor([0, 0])))
    assert "forward_kl" not in fidelity.divergences(found)
    assert fidelity.agrees(found).tolist() == [True, False]
    assert fidelity.calibration(found)["bins"][0]["chosen"] == 0.5


def test_calibration_by_hand():
    # Sure of 0.9 where the teacher gives 0.6, and of 0.6 where it gives 0.6: gaps 0.3 and 0, half of the states each.
    q, p = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log(), torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    found = fidelity.calibration(trace(Categorical(q), Categorical(p)))
    assert found["ece"] == pytest.approx(0.15, abs=1e-6)
    assert found["ece_choice"] == pytest.approx((0.1 + 0.4) / 2, abs=1e-6)


def test_equal_gaussians_cover_each_other():
    low, high = torch.tensor([-1.0]), torch.tensor([1.0])
    same = Gaussian(torch.randn(100, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(100, 1), low, high)
    found = fidelity.calibration(trace(same, same))
    assert found["ece"] == pytest.approx(0, abs=1e-5)
    wide = fidelity.calibration(trace(replace(same, log_std=torch.ones(100, 1)), same))
    assert all(row["inside"] > row["level"] for row in wide["levels"])


def test_intervals_are_over_episodes_not_states():
    # Two episodes, one all agreement and one none: whatever the number of states, nothing is known between 0 and 1.
    mine = Categorical(torch.tensor([[1.0, 0.0]]).repeat(200, 1))
    theirs = Categorical(torch.cat([torch.tensor([[1.0, 0.0]]).repeat(100, 1), torch.tensor([[0.0, 1.0]]).repeat(100, 1)]))
    share = fidelity.on_states(trace(mine, theirs), None, 0)["agreement"]
    assert share == {"value": 0.5, "low": 0.0, "high": 1.0}


def test_where_they_differ_most_and_what_follows():
    always = linear(Sides, np.zeros((2, SENSORS)), [0.0, 1.0])
    found = fidelity.measure(always, sides(), SIDES, 4)
    assert len(found["strange"]) == 4
    for row in found["strange"]:
        rest = row["length"] - row["step"]
        assert row["teacher_from_there"] == rest
        assert row["student_from_there"] < rest
        assert row["picture"].startswith("data:image/jpeg")
    assert len({row["episode"] for row in found["strange"]}) == 4
    assert found["notes"] == []


def test_a_vector_that_cannot_be_replayed_goes_without_what_follows():
    vector = gymnasium.vector.SyncVectorEnv([Sides] * 3)
    always = linear(Sides, np.zeros((2, SENSORS)), [0.0, 1.0])
    found = fidelity.measure(always, sides(), EnvOptions(vector), 3)
    assert all(row["teacher_from_there"] is None for row in found["strange"])
    assert any("don't come back" in note for note in found["notes"])


# ── disturbances ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [k for k in KINDS if "delay" not in k])
def test_level_zero_changes_nothing(kind):
    options, seeds = SIDES, Seeds(0, "verdict")
    assert evaluation.play(perturbed(sides(), kind, 0), options, 4, seeds).returns.tolist() == [20.0] * 4


@given(st.integers(0, 4), st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_delay_shows_what_came_k_steps_ago_or_the_episodes_first(k, steps):
    class Echo:
        gives, info, spec = ACTION, {}, spec_of(Sides)

        def init(self, n):
            return {}

        def act(self, obs, memory, starts, wants=ACTION):
            return Prediction(Deterministic(obs["obs"][:, 0])), memory

    policy = perturbed(Echo(), "observation delay", k)
    memory, episode = policy.init(1), []
    for i, (value, new) in enumerate(steps):
        begins = new or i == 0
        episode = [value] if begins else [*episode, value]
        prediction, memory = policy.act({"obs": torch.full((1, SENSORS), float(value))}, memory, torch.tensor([begins]))
        assert prediction.action.value.item() == episode[max(0, len(episode) - 1 - k)]


def test_an_action_delay_plays_what_was_chosen_before():
    policy, memory = perturbed(sides(), "action delay", 1), {}
    played = []
    for value, start in ((1.0, True), (-1.0, False), (-1.0, False), (1.0, True)):
        prediction, memory = policy.act({"obs": torch.full((1, SENSORS), value)}, memory, torch.tensor([start]))
        played.append(int(prediction.action.mode))
    assert played == [1, 1, 0, 1]


def test_a_certainly_sticky_action_never_changes_within_an_episode():
    policy, memory, played = perturbed(sides(), "sticky actions", 1.0), {}, []
    for value, start in ((1.0, True), (-1.0, False), (-1.0, False), (-1.0, True), (1.0, False)):
        prediction, memory = policy.act({"obs": torch.full((1, SENSORS), value)}, memory, torch.tensor([start]))
        played.append(int(prediction.action.mode))
    assert played == [1, 1, 1, 0, 0]


def test_lost_sensors_read_zero():
    policy = perturbed(sides(1), "sensor dropout", 1.0)
    prediction, _ = policy.act({"obs": torch.ones(5, SENSORS)}, {}, torch.ones(5, dtype=torch.bool))
    assert prediction.action.log_probs.exp().tolist() == [[0.5, 0.5]] * 5


def test_the_worst_case_stays_within_reach_and_finds_it():
    seen = {}
    student = sides(SENSORS, 4.0)
    original = student.act

    def spy(obs, memory, starts, wants=ACTION):
        seen["obs"] = obs["obs"].detach().clone()
        return original(obs, memory, starts, wants)

    student.act = spy
    prediction, _ = perturbed(student, "worst case", 0.5, scale=2.0).act({"obs": torch.full((3, SENSORS), 0.9)}, {}, None)
    assert prediction.action.mode.tolist() == [0, 0, 0]  # 0.9 − 0.5 · 2 is below 0
    assert (seen["obs"] - 0.9).abs().max() <= 1.0 + 1e-5
    assert seen["obs"].mean() == pytest.approx(-0.1, abs=1e-5)


def test_an_attack_needs_no_gradient():
    class Steps:
        gives, info, spec = ACTION, {}, spec_of(Sides)

        def init(self, n):
            return {}

        def act(self, obs, memory, starts, wants=ACTION):
            return Prediction(Deterministic((obs["obs"].mean(-1) > 0).long())), memory

    with torch.inference_mode():
        prediction, _ = perturbed(Steps(), "worst case", 8.0).act({"obs": torch.full((64, SENSORS), 0.05)}, {}, None)
    assert prediction.action.mode.float().mean() < 0.2


def test_noise_on_an_image_stays_an_image():
    class Pixels:
        gives, info = ACTION, {}
        spec = replace(
            spec_of(Sides), observations={"obs": replace(spec_of(Sides).observations["obs"], dtype="uint8", low=0.0, high=255.0)}
        )

        def init(self, n):
            return {}

        def act(self, obs, memory, starts, wants=ACTION):
            assert obs["obs"].dtype == torch.uint8
            return Prediction(Deterministic(obs["obs"].float().mean(-1).long())), memory

    perturbed(Pixels(), "observation noise", 1.0, scale=300.0).act({"obs": torch.full((4, SENSORS), 255, dtype=torch.uint8)}, {}, None)


def test_bounds_that_are_not_true_clip_nothing():
    student = sides()
    student.spec = replace(student.spec, observations={"obs": replace(student.spec.observations["obs"], low=0.0, high=1.0)})
    for kind in ("observation noise", "worst case"):
        prediction, _ = perturbed(student, kind, 0.01).act({"obs": torch.full((2, SENSORS), -3.0)}, {}, None)
        assert prediction.action.logits[:, 1].tolist() == pytest.approx([-12, -12], rel=0.02)


def test_unknown_disturbances_and_half_steps_are_refused():
    with pytest.raises(Misconfigured, match="did you mean 'sensor dropout'"):
        perturbed(sides(), "sensor drop", 0.1)
    with pytest.raises(Misconfigured, match="a number of steps"):
        perturbed(sides(), "action delay", 1.5)


# ── physics ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_walkers_gravity_outlasts_a_reset():
    change = next(c for c in physics.changes_for(EnvOptions("BipedalWalker-v3")) if c.name == "gravity")
    env = physics.changed(EnvOptions("BipedalWalker-v3"), change, 1.5).id()
    env.reset(seed=0)
    env.reset(seed=1)
    assert tuple(env.unwrapped.world.gravity) == (0, -15)
    env.close()


def test_the_games_of_a_namespace_have_their_own_physics():
    assert [c.target for c in physics.changes_for(EnvOptions("games:MinAtar/SpaceInvaders-v1"))] == ["sticky_action_prob"]


def test_physics_by_keyword_attribute_and_scale():
    change = physics.Change("Sides", "flip", (-1.0,), 1.0, way="kwarg", target="flip")
    turned = physics.changed(EnvOptions(Sides), change, -1.0)
    assert evaluation.play(sides(), turned, 3, Seeds(0)).returns.tolist() == [20.0] * 3
    pole = next(c for c in physics.PHYSICS if c.name == "pole mass")
    env = physics.changed(EnvOptions("CartPole-v1"), pole, 0.4).id()
    assert (env.unwrapped.masspole, env.unwrapped.total_mass, env.unwrapped.polemass_length) == (0.4, 1.4, 0.2)
    scaled = physics.Change("CartPole*", "force", (2.0,), 1.0, way="scale", target="force_mag")
    assert physics.changed(EnvOptions("CartPole-v1"), scaled, 2.0).id().unwrapped.force_mag == 20


def test_an_attribute_that_is_not_there_is_named():
    change = physics.Change("CartPole*", "wind", (1.0,), 0.0, target="wind_speed")
    with pytest.raises(Misconfigured, match="wind_speed"):
        physics.changed(EnvOptions("CartPole-v1"), change, 1.0).id()


def test_the_table_finds_its_environments():
    names = {c.name for c in physics.changes_for(EnvOptions("LunarLanderContinuous-v3"))}
    assert names == {"gravity", "wind"}
    assert physics.changes_for(EnvOptions("LunarLander-v3", backend="envpool")) == ()


def test_a_users_rows_are_read_and_stand_in_for_ours(tmp_path):
    path = tmp_path / "physics.toml"
    path.write_text('[[change]]\nenv = "CartPole*"\nname = "gravity"\nattribute = "gravity"\nusual = 9.8\nvalues = [1, 2]\n')
    rows = {c.name: c for c in physics.changes_for(EnvOptions("CartPole-v1"), physics.read(path))}
    assert rows["gravity"].values == (1.0, 2.0)
    assert "pole mass" in rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[change]]\nenv = 'A'\nname = 'x'\nattribut = 'y'\nvalues = [1]", "did you mean 'attribute'"),
        ("[[change]]\nenv = 'A'\nname = 'x'\nvalues = [1]", "exactly one of kwarg, attribute and scale"),
        ("[[change]]\nenv = 'A'\nname = 'x'\nscale = 'y'\nvalues = []", "finite numbers"),
        ("[[change]]\nname = 'x'\nscale = 'y'\nvalues = [1]", "env"),
        ("change = 1", r"tables \[\[change\]\]"),
        ("[[", "not TOML"),
    ],
)
def test_wrong_rows_are_named(tmp_path, text, says):
    path = tmp_path / "physics.toml"
    path.write_text(text)
    with pytest.raises(Misconfigured, match=says):
        physics.read(path)
    with pytest.raises(Failed, match="can't be read"):
        physics.read(tmp_path / "none.toml")


# ── robustness and generalisation ─────────────────────────────────────────────────────────────────────────────────


def test_a_student_that_looks_at_one_sensor_is_more_brittle_than_its_teacher():
    levels = {"sensor dropout": (0.3,), "observation noise": (0.2,)}
    found = robustness.measure(sides(1), sides(), SIDES, episodes=20, levels=levels, random_mean=10.0)
    curves = {c["name"]: c for c in found["curves"]}
    assert curves["sensor dropout"]["brittle"]
    assert "More brittle than its teacher under sensor dropout: at 0.3" in curves["sensor dropout"]["sentence"]
    assert not curves["observation noise"]["brittle"]
    assert [p["level"] for p in curves["sensor dropout"]["points"]] == [0.0, 0.3]
    assert found["scale"] == 10.0


def test_a_policy_is_not_more_brittle_than_itself():
    found = robustness.measure(sides(), sides(), SIDES, episodes=20, random_mean=10.0)
    assert {c["name"] for c in found["curves"]} == set(KINDS)
    assert not any(c["brittle"] for c in found["curves"])
    delayed = next(c for c in found["curves"] if c["name"] == "action delay")
    assert delayed["points"][1]["teacher"]["value"] < 15  # a late action is a guess
    assert found["left_out"] == []


def test_time_that_runs_out_leaves_out_and_says_what():
    found = robustness.measure(sides(), sides(), SIDES, episodes=2, seconds=0.0)
    assert len(found["curves"]) == 1
    assert "sticky actions 0.5" in found["left_out"]


def test_physics_that_a_user_gives_is_measured_first():
    mine = physics.Change("Sides", "flip", (-1.0, 1.0), 1.0, way="kwarg", target="flip")
    found = robustness.measure(sides(), sides(), SIDES, episodes=2, physics=(*physics.PHYSICS, mine), seconds=0.0)
    assert [c["name"] for c in found["curves"]] == ["physics: flip"]


def test_physics_that_breaks_the_environment_is_a_note():
    change = physics.Change("Sides", "nothing", (1.0,), 0.0, target="nothing_here")
    found = robustness.measure(sides(), sides(), SIDES, episodes=2, levels={}, physics=(change,))
    assert found["curves"] == []
    assert "nothing at 1 was not measured" in found["notes"][0]


def test_the_scale_of_each_number_is_measured():
    scale = robustness.observation_scale(sides(), SIDES, 0)
    assert scale["obs"].numpy() == pytest.approx(np.ones(SENSORS), abs=0.05)


class Clock(gymnasium.Env):
    """It sees how many steps have gone; episodes are 2 to 5 long."""

    observation_space, action_space = gymnasium.spaces.Box(0, 9, (1,), np.float32), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.at, self.end = 0, 2 + seed % 4
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.at += 1
        return np.full(1, self.at, np.float32), 0.0, self.at == self.end, False, {}


def test_a_policy_that_remembers_begins_anew_with_an_episode_while_the_scale_is_measured():
    class Looks(evaluation.Random):
        def act(self, obs, memory, starts, wants=ACTION):
            assert torch.equal(starts, obs["obs"][:, 0] == 0)
            return super().act(obs, memory, starts, wants)

    robustness.observation_scale(Looks(spec_of(Clock), torch.Generator()), EnvOptions(Clock, {}, "gymnasium:1"), 0, slots=8)


def test_a_memoriser_of_ten_levels_is_overfitted_and_its_teacher_is_not():
    seen, unseen = EnvOptions(Levels, {"levels": 10}, "gymnasium:1"), EnvOptions(Levels, {}, "gymnasium:1")
    spec = spec_of(Levels)
    teacher = teachers.load(parity, teachers.Options(), spec)
    found = generalisation.measure(Memoriser(spec, 10), teacher, seen, unseen, episodes=60, random_mean=5.0)
    assert found["overfitted"]
    assert 0.7 < found["gap"]["value"] < 1.3
    same = generalisation.measure(teacher, teacher, seen, unseen, episodes=20, random_mean=5.0)
    assert not same["overfitted"]
    assert same["sentence"] is None


# ── cost ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_multiply_adds_by_hand():
    assert costs.multiply_adds(sides()) == SENSORS * 2
    from distillrl import students

    wide = students.make("mlp:16x8", spec_of(Sides), torch.Generator().manual_seed(0))
    assert costs.multiply_adds(wide) == SENSORS * 16 + 16 * 8 + 8 * 2


def test_latencies_are_in_order():
    found = costs.measure(sides(), seconds=0.02)["latency_us"]
    assert list(found) == ["1", "64", "1024"]
    assert all(0 < row["min"] <= row["p50"] <= row["p99"] for row in found.values())


def test_envpools_later_episodes_have_seeds_too():
    pytest.importorskip("envpool", reason="EnvPool is not installed: pip install 'distillrl[envpool]'")
    from distillrl import envs
    from distillrl.evidence import paired_returns

    options, seeds = EnvOptions("CartPole-v1", {}, "envpool"), Seeds(0, "verdict")
    spec = envs.make(options, 1, seeds).spec
    still = Fixed(spec)
    first, again = paired_returns(still, options, 70, seeds), paired_returns(still, options, 70, seeds)
    assert first == again
    assert first[64:] == evaluation.play(still, options, 6, Shifted()).returns.tolist()


class Fixed:
    """Pushes to the right, whatever it sees."""

    gives, info = ACTION, {}

    def __init__(self, spec):
        self.spec = spec

    def init(self, n):
        return {}

    def act(self, obs, memory, starts, wants=ACTION):
        return Prediction(Deterministic(torch.ones(len(obs["obs"]), dtype=torch.int64))), memory


class Shifted:
    """The verdict's stream from episode 64 on."""

    def __call__(self, index):
        return Seeds(0, "verdict")(64 + index)


# ── how an evaluation counts ──────────────────────────────────────────────────────────────────────────────────────


class Goal(gymnasium.Env):
    """Ends after 2 to 9 steps by its seed; succeeds, and says so, where that is even; ``alike`` hides the seed from sight."""

    observation_space = gymnasium.spaces.Box(0, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    spec = None

    def __init__(self, told="is_success", alike=False):
        self.told, self.alike = told, alike

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length = 4 if self.alike else 2 + seed % 8
        return np.full(1, 0 if self.alike else self.length, np.float32), {}

    def step(self, action):
        self.left -= 1
        over = self.left == 0
        return np.zeros(1, np.float32), 1.0, over, False, {self.told: self.length % 2 == 0} if over and self.told else {}


@pytest.mark.parametrize("backend", ["gymnasium:1", "gymnasium:2"])
def test_every_episode_is_played_once_whichever_slot_takes_it(backend, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_SLOTS", 5)
    seeds = Seeds(3, "verdict")
    played = evaluation.play(linear(Goal, [[0.0], [0.0]]), EnvOptions(Goal, {}, backend), 37, seeds)
    right = [2 + seeds(i) % 8 for i in range(37)]
    assert played.returns.tolist() == right
    assert played.success.tolist() == [r % 2 == 0 for r in right]
    assert not played.alike


@pytest.mark.parametrize("told", ["success", None])
def test_success_is_counted_where_the_environment_tells_it(told):
    report = evaluation.evaluate(Player(linear(Goal, [[0.0], [0.0]])), Goal, episodes=30, env_kwargs={"told": told})
    share = report["student"]["return"]["success"]
    even = float(np.mean([(2 + Seeds(0, "verdict")(i) % 8) % 2 == 0 for i in range(30)]))
    assert share is None if told is None else share["value"] == even and share["low"] < even < share["high"]


def test_figures_beside_the_mean_and_a_mark_on_few_episodes():
    policy = Player(linear(Goal, [[0.0], [0.0]]))
    report = evaluation.evaluate(policy, Goal, policy, episodes=19)
    earned = report["student"]["return"]
    x = np.array(earned["returns"])
    assert earned["median"] == np.median(x)
    assert earned["iqm"]["value"] == float(stats.iqm(x))
    assert earned["cvar"]["value"] == x.min()
    assert earned["few"]
    assert report["paired"]
    assert report["retention"] is None  # whatever one does, it earns the same


class Waiting(gymnasium.Env):
    """Waits for as long as its seed says, and is then one of two games of ten rewards, of bytes; action 1 never ends it."""

    observation_space = gymnasium.spaces.Box(0, 255, (3, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)
    spec = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wait, self.game, self.t = seed // 2 % 5, seed % 2, 0
        return np.zeros((3, 3), np.uint8), {}

    def step(self, action):
        self.t += 1
        at = max(0, self.t - self.wait)
        left = action == 1 and self.game == 1
        return np.full((3, 3), (1 + self.game) * at, np.uint8), float(at > 0 and not left), at == 10 and not left, self.t == 20, {}


def test_games_that_only_waited_for_longer_are_the_same_again():
    never, goes = (Player(linear(Waiting, [[0.0] * 9] * 2, [0.0, bias])) for bias in (1.0, -1.0))
    report = evaluation.evaluate(never, Waiting, goes, episodes=30)
    assert report["teacher"]["return"]["different"] == 2
    assert any(n.startswith("the teacher policy: only 2 of the 30 episodes are different") for n in report["notes"])
    fallen = report["falls"]["episodes"]
    assert 0 < len(fallen) < 30
    assert any(n.startswith(f"{len(fallen)} of the {len(fallen)} episodes in which the student falls behind were broken off at the limit of 20 steps") for n in report["notes"])
    assert not any("broken off" in n for n in evaluation.evaluate(goes, Waiting, goes, episodes=30)["notes"])


def test_selecting_plays_games_that_are_the_same_again_once():
    goes = linear(Waiting, [[0.0] * 9] * 2, [0.0, -1.0])
    seeds, options = Seeds(0, "select"), EnvOptions(Waiting)
    every = evaluation.play(goes, options, 12, seeds)
    kinds = repeats.kinds(every.numbers)
    assert len(set(kinds)) == 2
    assert all(seeds(int(k)) % 2 == seeds(i) % 2 for i, k in enumerate(kinds))
    setup = SimpleNamespace(config=Config(select_episodes=12), options=options)
    never = linear(Waiting, [[0.0] * 9] * 2, [0.0, 1.0])
    all_of_them = evaluation.play(never, options, 12, seeds)
    of_each_kind = selecting._played(setup, SimpleNamespace(baseline={"kinds": kinds.tolist()}), never, seeds, None)
    assert of_each_kind.returns.tolist() == all_of_them.returns.tolist()
    assert of_each_kind.steps < all_of_them.steps / 4
    assert repeats.kinds(np.arange(12, dtype=np.uint64)) is None
    assert repeats.kinds(np.zeros(12, np.uint64)) is None


def test_a_deterministic_environment_is_said_to_be_so_and_shows_nothing():
    policy = Player(sides())
    report = evaluation.evaluate(policy, Same, policy, episodes=40)
    assert report["alike"]
    assert any("deterministic, so they are one episode" in note for note in report["notes"])
    assert not report["non_inferiority"]["shown"]
    assert "one episode is no evidence" in report["non_inferiority"]["sentence"]


class Same(Sides):
    """Sides that always come in the same order."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=7)


def test_a_policy_far_under_its_own_files_return_is_said_to_be_so():
    policy = sides()
    policy.info = {**policy.info, "recorded_return": {"mean": 100.0, "std": 1.0, "source": "the file"}}
    notes = evaluation.evaluate(Player(policy), Sides, Player(policy), episodes=20, env_kwargs={"flip": -1.0})["notes"]
    assert any(n.startswith("the teacher plays 20.0 here, far under the 100.0 that the file records") and "flip = -1.0" in n for n in notes), notes


# ── episodes that a mean hides ────────────────────────────────────────────────────────────────────────────────────


def test_falls_are_named_with_the_deepest_first():
    teacher, student = np.full(40, 100.0), np.full(40, 100.0)
    student[[3, 7, 9, 20, 30, 31]] = [40, -50, 74, 0, 76, 10]  # a quarter of 100 above random play's 0: below 75
    found = stats.falls(student, teacher, np.zeros(10))
    assert found.episodes == (7, 20, 31, 3, 9)
    assert (found.theirs, found.of) == (0, 40)
    assert found.more
    assert found.sentence.startswith("In 5 of 40 episodes the student earns far less than its teacher on the same seed")
    assert "(episodes 7, 20, 31, 3 and 9); the teacher never falls so far below the student." in found.sentence
    other = stats.falls(teacher, student, np.zeros(10))
    assert other.episodes == ()
    assert other.theirs == 6  # a quarter of 89: the one of 24 too
    assert other.sentence is None
    assert not other.more
    teacher[[0, 1, 2]] = -20
    assert not stats.falls(student, teacher, np.zeros(10)).more, "5 against 3 is chance"
    assert stats.falls(np.zeros(9), np.zeros(9), np.zeros(9)).episodes == ()


def test_falls_in_over_a_thousand_episodes_are_counted_too():
    assert stats.falls(np.zeros(1100), np.ones(1100), np.zeros(1100)).more


def test_an_evaluation_names_the_seeds_of_its_falls():
    sometimes = Player(linear(Sides, [[0.0] * SENSORS] * 2, [0.0, 1.0]))  # plays 1: about half right, and so far behind
    report = evaluation.evaluate(sometimes, Sides, Player(sides()), episodes=25)
    fallen = report["falls"]
    assert fallen["of"] == 25
    assert fallen["episodes"]
    assert fallen["seeds"] == [Seeds(0, "verdict")(i) for i in fallen["episodes"]]
    returns = np.array(report["student"]["return"]["returns"])
    assert fallen["episodes"][0] == int(returns.argmin())
    from distillrl.console import sentences

    assert fallen["sentence"] in sentences(report)


def test_a_late_observation_is_a_late_action_to_who_forgets_and_is_played_once(monkeypatch):
    asked = []
    original = robustness._returns
    monkeypatch.setattr(robustness, "_returns", lambda p, condition, *rest: asked.append(condition.group) or original(p, condition, *rest))
    levels = {"action delay": (1,), "observation delay": (1,)}
    found = robustness.measure(sides(), sides(), SIDES, episodes=4, levels=levels)["curves"]
    assert asked == ["action delay"] * 2
    assert found[0]["points"] == found[1]["points"]
    again = robustness._returns(sides(), robustness._Condition("observation delay", "steps", 1, 0.0), SIDES, 4, Seeds(0, "verdict"), robustness.observation_scale(sides(), SIDES, 0), 0)
    assert again.mean() == found[1]["points"][1]["student"]["value"]


def test_a_policy_in_numpy_is_attacked_by_corners():
    class Numpy:
        gives, info, spec = ACTION, {}, spec_of(Sides)

        def init(self, n):
            return {}

        def act(self, obs, memory, starts, wants=ACTION):
            return Prediction(Deterministic(torch.from_numpy((obs["obs"].numpy().mean(-1) > 0).astype(np.int64)))), memory

    prediction, _ = perturbed(Numpy(), "worst case", 8.0).act({"obs": torch.full((64, SENSORS), 0.05)}, {}, None)
    assert prediction.action.mode.float().mean() < 0.2


# ── environments that break ───────────────────────────────────────────────────────────────────────────────────────


class Diverges(Goal):
    """Its simulator gives up in every episode of an odd length, or says NaN."""

    def __init__(self, how="raises"):
        super().__init__()
        self.how = how

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if terminated and self.length % 2:
            if self.how == "raises":
                raise ValueError("the simulator diverged")
            reward = float("nan")
        return obs, reward, terminated, truncated, info


def test_a_broken_episode_is_a_sentence_that_names_its_seed():
    policy, seeds = linear(Goal, [[0.0], [0.0]]), Seeds(0, "verdict")
    with pytest.raises(Failed, match=r"the environment raised ValueError in its step, in the episode of seed (\d+): the simulator diverged") as said:
        evaluation.play(policy, EnvOptions(Diverges, {}, "gymnasium:1"), 8, seeds)
    assert any(f"seed {seeds(i)}:" in str(said.value) for i in range(8) if seeds(i) % 2)
    with pytest.raises(Failed, match="has a return that is NaN or infinite"):
        evaluation.play(policy, EnvOptions(Diverges, {"how": "nan"}, "gymnasium:1"), 8, seeds)


def test_what_can_not_be_measured_costs_nothing_of_what_can(tmp_path):
    import distillrl
    from distillrl.config import Config
    from distillrl.evidence import gather

    def teacher(obs):
        return torch.stack([-obs[:, 0], obs[:, 0]], -1)

    quick = Config(student="mlp:4", until="none", rounds=1, slots=4, backend="gymnasium:1", verdict_episodes=4, select_episodes=4)
    distillrl.distill(teacher, Goal, config=quick, out=tmp_path / "r")
    found = gather(tmp_path / "r", teacher=teacher, env=Diverges, full=False)
    assert "costs" in found
    assert [n.split(" was not measured")[0] for n in found["notes"]] == ["fidelity", "robustness"]
    assert all("the simulator diverged" in n for n in found["notes"])


class Bits(Sides):
    """Sides whose sensors say yes or no, as MinAtar's do."""

    observation_space = gymnasium.spaces.Box(0, 1, (SENSORS,), np.bool_)

    def _seen(self):
        return np.full(SENSORS, self.side > 0)


def test_what_is_yes_or_no_has_no_noise_and_no_attack_but_can_be_lost():
    teacher = teachers.load(lambda obs: (2 * obs.float().mean(-1, keepdim=True) - 1) * torch.tensor([-4.0, 4.0]), teachers.Options(), spec_of(Bits))
    found = robustness.measure(teacher, teacher, EnvOptions(Bits, {}, "gymnasium:1"), episodes=2)
    assert {c["name"] for c in found["curves"]} == set(KINDS) - {"observation noise", "worst case"}
    assert found["notes"] == []
    obs = {"obs": torch.ones(3, SENSORS, dtype=torch.bool)}
    prediction, _ = Perturbed(teacher, "worst case", 1.0, {"obs": torch.ones(SENSORS)}, torch.Generator()).act(obs, {}, None)
    assert prediction.action.mode.tolist() == [1, 1, 1]
