"""Small tasks whose best play is known: a point on a line that is pushed towards 0, forwards or backwards, seen and rewarded in several ways."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces


class Line(gymnasium.Env):
    """``flip``: the pushes go the other way; ``wide``: numbers seen; ``n``: choices, 0 for a Box of ``wide`` − 1 numbers up to ``reach``; rewards are −scale·|x|."""

    def __init__(self, flip=False, wide=2, n=3, scale=1.0, reach=1.0, start=0):
        self.observation_space = spaces.Box(-3, 3, (wide,), np.float32)
        self.action_space = spaces.Discrete(n, start=start) if n else spaces.Box(-reach, reach, (wide - 1,), np.float32)
        self.flip, self.wide, self.n, self.scale, self.reach, self.begin = flip, wide, n, scale, reach, start

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-2, 2)), 0
        return self._obs(), {}

    def step(self, action):
        if self.n:
            assert self.begin <= action < self.begin + self.n
            push = 1.0 if action == self.begin + self.n - 1 else -1.0 if action == self.begin else 0.0
        else:
            assert action.shape == (self.wide - 1,)
            assert abs(action).max() <= self.reach
            push = float(action[0]) / self.reach
        self.x, self.t = float(np.clip(self.x + (-0.5 if self.flip else 0.5) * push, -3, 3)), self.t + 1
        return self._obs(), -self.scale * abs(self.x), False, self.t >= 20, {}

    def _obs(self):
        return np.array([self.x, *[1.0] * (self.wide - 1)], np.float32)


def line(**options):
    def make():
        return Line(**options)

    make.__name__ = "Line"
    return make


def steer(flip=False, n=3, reach=1.0, wide=2):
    """A teacher of ``Line``: logits of its choices, or its action."""
    sign = -1.0 if flip else 1.0

    def choices(obs):
        x = sign * obs[:, :1]
        return torch.cat([4 * x, *[0.5 - x.abs()] * (n - 2), -4 * x], -1)

    def box(obs):
        push = (-2 * sign * obs[:, :1]).clamp(-1, 1) * reach
        return torch.cat([push, torch.zeros(len(obs), wide - 2)], -1)

    return choices if n else box
