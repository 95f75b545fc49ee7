"""What a policy sees: the words, the steps, and that nothing leaks."""

import dataclasses
import signal

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

import distillrl
from distillrl import seeing, students
from distillrl.config import Config
from distillrl.errors import Misconfigured
from distillrl.normalising import Normalise
from distillrl.records import ActionSpace, Group, Spec
from distillrl.senses import Sense

EIGHT = {"obs": Group((8,), "float32")}
TWO = {"critic": Group((5,), "float32"), "policy": Group((3,), "float32")}


def see(text, x, groups=EIGHT, starts=None):
    sense = seeing.parse(text, groups)
    out, _ = sense({next(iter(groups)): x} if not isinstance(x, dict) else x, sense.init(2) if starts is not None else {}, starts)
    return out


def test_pick_and_drop_say_the_same_thing():
    x = torch.arange(16.0).view(2, 8)
    assert torch.equal(see("drop=2,3,5", x)["obs"], x[:, [0, 1, 4, 6, 7]])
    assert torch.equal(see("pick=0,1,4,6-7", x)["obs"], x[:, [0, 1, 4, 6, 7]])
    assert torch.equal(see("pick=7,0", x)["obs"], x[:, [7, 0]])


def test_clip_and_quantise_by_hand():
    x = torch.tensor([[-3.0, 0.26, 0.24, 9, 0, 0, 0, 0]])
    assert see("clip=2", x)["obs"][0, :4].tolist() == [-2, pytest.approx(0.26), pytest.approx(0.24), 2]
    assert see("quantise=0.5", x)["obs"][0, :4].tolist() == [-3, 0.5, 0, 9]


def test_a_delay_shows_what_was_and_begins_anew_with_an_episode():
    sense = seeing.parse("pick=0, delay=2", EIGHT)
    memory, seen = sense.init(1), []
    for t in range(6):
        x = torch.full((1, 8), float(t))
        out, memory = sense({"obs": x}, memory, torch.tensor([t in (0, 4)]))
        seen.append(float(out["obs"]))
    assert seen == [0, 0, 0, 1, 4, 4]


def test_a_sequence_is_seen_as_its_steps_are():
    sense = seeing.parse("pick=0,1, stack=3, delay=1", EIGHT)
    x, starts = torch.randn(7, 2, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(7, 2, dtype=torch.bool)
    starts[0], starts[4, 1] = True, True
    whole, _ = sense({"obs": x}, {}, starts)
    memory, steps = sense.init(2), []
    for t in range(7):
        out, memory = sense({"obs": x[t]}, memory, starts[t])
        steps.append(out["obs"])
    assert torch.equal(whole["obs"], torch.stack(steps))


def test_noise_has_its_size_and_is_the_same_for_the_same_state():
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1))
    noise = see("noise=0.1", x)["obs"] - x
    assert torch.equal(see("noise=0.1", x)["obs"] - x, noise)
    assert abs(float(noise.mean())) < 0.003
    assert abs(float(noise.std()) - 0.1) < 0.003
    assert abs(float(torch.corrcoef(noise.T)[0, 1])) < 0.06


@given(st.lists(st.integers(0, 7), min_size=1, max_size=7, unique=True), st.integers(0, 1000))
def test_what_must_not_be_seen_changes_nothing(hidden, seed):
    sense = seeing.parse(f"drop={','.join(map(str, hidden))}, noise=0.1, stack=2", EIGHT)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    other = x.clone()
    other[:, hidden] = torch.randn(3, len(hidden), generator=torch.Generator().manual_seed(seed + 1))
    a, b = (sense({"obs": v}, sense.init(3), torch.ones(3, dtype=torch.bool))[0]["obs"] for v in (x, other))
    assert torch.equal(a, b)


def test_a_student_of_one_group_needs_no_other():
    spec = Spec(TWO, ActionSpace("discrete", n=3))
    student = students.make("mlp:4", spec, torch.Generator().manual_seed(0), see="group=policy")
    assert list(student.spec.observations) == ["policy"]
    one, _ = student.act({"policy": torch.ones(2, 3)}, {}, None)
    two, _ = student.act({"policy": torch.ones(2, 3), "critic": torch.full((2, 5), 7.0)}, {}, None)
    assert torch.equal(one.action.logits, two.action.logits)


@pytest.mark.parametrize("text", ["drop=2,3,5, stack=4", "delay=2, clip=5", "noise=0.1, quantise=0.01, normalise", "pick=0-3"])
def test_a_sense_comes_back_from_its_json(text):
    sense = seeing.parse(text, EIGHT)
    again = Sense.from_json(EIGHT, sense.to_json())
    assert again.to_json() == sense.to_json()
    assert again.groups == sense.groups


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("dorp=2", "drop"), ("drop=9", "0 to 7"), ("drop=0-7", "nothing is left"), ("pick=", "pick=0,1,4-7"), ("stack=1", "2 to 64"),
        ("group=polcy", "there is no"), ("clip=x", "number"), ("clip=nan", "number"), ("", "unknown step"), ("normalise=3", "running"), ("pick=3-1", "range"), ("5", "unknown step"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text, word):
    with pytest.raises(Misconfigured, match=word):
        seeing.parse(text, EIGHT)


def test_places_of_several_vectors_are_named():
    x = {"critic": torch.ones(1, 5), "policy": torch.arange(3.0).view(1, 3)}
    assert see("pick=policy:2", x, TWO)["policy"].tolist() == [[2]]
    with pytest.raises(Misconfigured, match="NAME:"):
        seeing.parse("pick=2", TWO)


@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
def test_statistics_stay_with_their_group_whatever_its_place(widths, tmp_path):
    """A dict observation need not come in alphabetical order, and an artifact's header does (EnvPool's quadrupeds: state, privileged_state)."""
    from distillrl import artifact, students
    from distillrl.records import ActionSpace, Spec

    first, second = widths
    spec = Spec({"state": Group((first,), "float32"), "privileged": Group((second,), "float32")}, ActionSpace("discrete", n=3))
    student = students.make("mlp:4", spec, torch.Generator().manual_seed(0))
    moments = {"state": (torch.full((first,), 5.0), torch.full((first,), 4.0)), "privileged": (torch.full((second,), -1.0), torch.full((second,), 9.0))}
    student.sense = student.sense.with_step(Normalise.from_moments(moments))
    obs = {"state": torch.full((1, first), 7.0), "privileged": torch.full((1, second), 2.0)}
    assert all(torch.allclose(x, torch.ones_like(x)) for x in student.sense(obs, {}, None)[0].values())
    path = tmp_path / "s.safetensors"
    artifact.write_bytes(path, artifact.dumps(student.header(), student.artifact_tensors()))
    again = students.build(*artifact.load(path))
    x = {name: torch.randn(6, *group.shape) for name, group in spec.observations.items()}
    assert torch.equal(again.act(x, {}, None)[0].action.logits, student.act(x, {}, None)[0].action.logits)


def test_a_running_normaliser_has_the_moments_of_all_that_was_seen():
    step = Normalise({"obs": (8,)}, running=True)
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3 + 5
    for part in (x[:40], x[40:250], x[250:]):
        step.follow({"obs": (part.mean(0), part.var(0, correction=0))}, len(part))
    seen = step({"obs": x.float()}, {}, None)["obs"]
    assert torch.allclose(step.mean0, x.mean(0))
    assert torch.allclose(step.variance0, x.var(0, correction=0))
    assert torch.allclose(seen, ((x - x.mean(0)) / x.std(0, correction=0)).float(), atol=1e-5)


class Drifting(gymnasium.Env):
    """The right hand is that of the number's sign; late episodes are far from the first ones' numbers."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        reward, self.t = float(int(action) == int(self.obs[0] > 0)), self.t + 1
        return self._obs(), reward, False, self.t >= 12, {}

    def _obs(self):
        self.obs = np.array([self.np_random.uniform(-1, 1), self.np_random.normal(100, 3), self.t], np.float32)
        return self.obs


def rightly(obs):
    return torch.cat([-9 * obs[:, :1], 9 * obs[:, :1]], -1)


def test_a_run_with_a_running_normaliser_resumes_to_the_same_bytes_and_its_statistics_grew(tmp_path):
    settings = Config(student="mlp:8", slots=4, env_steps=1200, see="drop=2, normalise=running", until="none", verdict_episodes=4, select_episodes=4, checkpoint_seconds=0)
    whole = distillrl.distill(rightly, Drifting, config=settings, out=tmp_path / "a")

    def interrupt(shown):
        if shown.get("round") == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        distillrl.distill(rightly, Drifting, config=settings, out=tmp_path / "b", show=interrupt)
    distillrl.distill(rightly, Drifting, resume=tmp_path / "b")
    one, two = ((tmp_path / name / "student.safetensors").read_bytes() for name in "ab")
    assert one == two
    step = whole.policy.policy.sense.steps[-1]
    assert float(step.count) > 800
    assert abs(float(step.mean0[1]) - 100) < 1
    with pytest.raises(Misconfigured, match="plain numbers"):
        distillrl.distill(rightly, Drifting, config=dataclasses.replace(settings, student="tree:leaves=4"), out=tmp_path / "c")
