"""Sound as a sense: what the spectrogram says, that nothing leaks, and that a student learns by ear what its teacher sees."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import distillrl
from distillrl import seeing, students
from distillrl.config import Config
from distillrl.errors import Misconfigured
from distillrl.records import ActionSpace, Group, Spec

RATE = 256
GROUPS = {"state": Group((2,), "float32"), "sound": Group((RATE,), "int16"), "stereo": Group((RATE, 2), "int16")}


class Beeps(gymnasium.Env):
    """A tone of random phase and loudness, with noise, says which of three hands to raise; only ``state`` says it plainly. ``sound`` is 16-bit."""

    def __init__(self):
        low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
        self.observation_space = spaces.Dict({"state": spaces.Box(-1, 1, (2,), np.float32), "sound": spaces.Box(low, high, (RATE,), np.int16)})
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        reward, self.t = float(int(action) == self.right), self.t + 1
        return self._obs(), reward, False, self.t >= 10, {}

    def _obs(self):
        self.right = int(self.np_random.integers(3))
        pitch = (5, 17, 47)[self.right] * 2 * np.pi / RATE
        wave = self.np_random.uniform(0.3, 0.9) * np.sin(pitch * np.arange(RATE) + self.np_random.uniform(0, 6.28)) + self.np_random.normal(0, 0.05, RATE)
        state = np.array([self.right - 1, self.np_random.uniform(-1, 1)], np.float32)
        return {"state": state, "sound": (wave.clip(-1, 1) * 32767).astype(np.int16)}


def teacher(obs):
    x = obs[:, :1]
    return torch.cat([-8 * x - 4, torch.zeros_like(x), 8 * x - 4], -1)


def tone(pitch, dtype=torch.int16):
    return (torch.sin(2 * torch.pi * pitch * torch.arange(RATE) / RATE) * 20000).to(dtype)


def heard(text, obs, groups=GROUPS):
    sense = seeing.parse(text, groups)
    return sense({k: v.unsqueeze(0) for k, v in obs.items()}, {}, None)[0], sense.groups


def test_a_tone_lies_in_its_band_and_both_channels_are_heard():
    stereo = torch.stack([tone(6), tone(50)], -1)
    seen, groups = heard("group=stereo, spectrogram=64x8", {"stereo": stereo})
    assert groups["stereo"].shape == tuple(seen["stereo"].shape[1:]) == (2, 7, 8)
    low, high = seen["stereo"][0].mean(1).argmax(-1)
    assert low < high
    louder, _ = heard("group=sound, spectrogram=64x8", {"sound": tone(6)})
    softer, _ = heard("group=sound, spectrogram=64x8", {"sound": tone(6) // 4})
    assert float(louder["sound"].max()) > float(softer["sound"].max())


def test_whole_numbers_and_fractions_are_heard_alike():
    groups = {"sound": Group((RATE,), "float32")}
    whole, _ = heard("group=sound, spectrogram=32x4", {"sound": tone(9)})
    fractions, _ = heard("spectrogram=32x4", {"sound": tone(9).float() / 32767}, groups)
    assert torch.allclose(whole["sound"], fractions["sound"], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group=sound, spectrogram=512x8", "has only 256 samples"),
        ("group=sound, spectrogram=64x40", "1 to 32 are right"),
        ("group=sound, spectrogram=4x2", "whole number from 8"),
        ("group=state, spectrogram=64x8", "there are 0 among state"),
        ("spectrogram=noise:64x8", "no observation group 'noise' to hear"),
        ("spectrogram=state:64x8", r"a waveform \[samples\]"),
    ],
)
def test_what_can_not_be_heard_is_refused(text, said):
    with pytest.raises(Misconfigured, match=said):
        seeing.parse(text, GROUPS)


def test_what_the_student_must_not_see_changes_nothing():
    spec = Spec(GROUPS, ActionSpace("discrete", n=3))
    student = students.make("mlp:8", spec, torch.Generator().manual_seed(0), see="group=sound, spectrogram=64x8")
    assert list(student.spec.observations) == ["sound"]
    obs = {"sound": tone(7).unsqueeze(0), "state": torch.zeros(1, 2), "stereo": torch.zeros(1, RATE, 2, dtype=torch.int16)}
    other = {**obs, "state": torch.full((1, 2), 1e9), "stereo": obs["stereo"] + 9}
    assert torch.equal(student.act(obs, {}, None)[0].action.logits, student.act(other, {}, None)[0].action.logits)


def test_a_student_learns_by_ear_what_its_teacher_sees(tmp_path):
    config = Config(student="mlp:16", slots=16, env_steps=2100, verdict_episodes=10, select_episodes=6, see="group=sound, spectrogram=64x8", teacher_sees="state")
    result = distillrl.distill(teacher, Beeps, config=config, out=tmp_path / "r")
    assert result.verdict["retention"]["value"] > 0.95


def test_a_run_that_hears_nothing_says_so(tmp_path):
    class Mute(Beeps):
        def _obs(self):
            obs = super()._obs()
            return {**obs, "sound": obs["sound"] * 0}

    notes = []
    config = Config(student="mlp:4", slots=4, env_steps=300, until="none", verdict_episodes=2, select_episodes=2, see="group=sound, spectrogram=64x8", teacher_sees="state")
    for env in (Mute, Beeps):
        distillrl.distill(teacher, env, config=config, out=tmp_path / env.__name__, show=lambda shown: notes.append(str(shown.get("note", ""))))
        assert any("nothing is to be heard" in note for note in notes) == (env is Mute)
        notes.clear()


def test_vizdooms_audio_buffer_is_heard():
    pytest.importorskip("vizdoom.gymnasium_wrapper")
    env = gymnasium.make("VizdoomBasicAudio-v1")
    try:
        obs, _ = env.reset(seed=0)
        shape = obs["audio"].shape
        seen, groups = heard("spectrogram=audio:256x16", {"audio": torch.from_numpy(obs["audio"])}, {"audio": Group(shape, "int16")})
        assert groups["audio"].shape == tuple(seen["audio"].shape[1:])
        assert bool(seen["audio"].isfinite().all())
    finally:
        env.close()
