"""A small environment of pixels for tests: a dot that moves, whose side of the middle is the right action."""

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 20


class Dot(gymnasium.Env):
    """Observation ``state`` [2] or an image [40, 48, 3]; a reward where action 1 is played exactly when the dot is right of the middle."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None, image=False, both=False):
        self.render_mode, self.image, self.both = render_mode, image, both
        picture, numbers = spaces.Box(0, 255, (40, 48, 3), np.uint8), spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Dict({"image": picture, "state": numbers}) if both else picture if image else numbers
        self.action_space = spaces.Discrete(2)
        self.drawn = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, float(self.np_random.uniform(-1, 1))
        return self._observation(), {}

    def step(self, action):
        reward = float(int(action) == int(self.x > 0))
        self.t, self.x = self.t + 1, float(self.np_random.uniform(-1, 1))
        return self._observation(), reward, False, self.t >= LENGTH, {}

    def _observation(self):
        numbers = np.array([self.x, self.t / LENGTH], np.float32)
        return {"image": self.render(), "state": numbers} if self.both else self.render() if self.image else numbers

    def render(self):
        self.drawn += 1
        picture = np.zeros((40, 48, 3), np.uint8)
        column = int((self.x + 1) / 2 * 43)
        picture[16:24, column : column + 5] = (250, 200, 150)
        return picture


def teacher(obs):
    """The right action of ``state`` [n, 2]."""
    state = obs["state"] if isinstance(obs, dict) else obs
    return np.stack([-4 * np.asarray(state)[:, 0], 4 * np.asarray(state)[:, 0]], -1).astype(np.float32)
