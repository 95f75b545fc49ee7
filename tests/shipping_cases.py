"""Environments of three kinds in which a student can be good, undertrained, brittle or overfitted by construction, and their teachers."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

STEPS = 20
SIZE = 8


class Shown(gymnasium.Env):
    """A number says what is right, and a step that is too far from it ends the episode; ``kind`` is what is seen and done: discrete,
    continuous or images.

    ``hidden=False``: sixteen slightly noisy sensors, or how bright the halves of a picture are, show the number, a new one each step: whoever
    looks at one of them alone does as well, until that one fails. ``hidden=True``: a level is a random vector or picture, seen as it is for the whole
    episode, and what is right a parity, which a small network learns by heart for ``levels`` levels and not otherwise.
    """

    def __init__(self, kind="discrete", hidden=False, levels=0):
        self.kind, self.hidden, self.levels = kind, hidden, levels
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8) if kind == "images" else spaces.Box(-4, 4, (16,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if kind == "continuous" else spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        number = seed % self.levels if self.levels else seed
        self.level = np.random.default_rng(number).choice([-1.0, 1.0], (SIZE, SIZE))
        return self._seen(), {}

    def step(self, action):
        off = abs(self.right - float(action[0])) if self.kind == "continuous" else float((int(action) == 1) != (self.right > 0))
        self.steps += 1
        return self._seen(), float(off <= 0.5), off > 0.5, self.steps == STEPS, {}

    def _seen(self):
        if self.hidden:
            shown = self.level
            self.right = parity(shown.reshape(-1)[None])[0]
        else:
            self.right = self.np_random.choice([-1.0, 1.0]) * self.np_random.uniform(0.5, 1)
            shown = self.right + self.np_random.normal(0, 0.15, (SIZE, SIZE))
            shown[:, SIZE // 2 :] *= -1 if self.kind == "images" else 1
        if self.kind == "images":
            return (127 + 60 * shown).clip(0, 255).astype(np.uint8)[..., None]
        return shown.reshape(-1)[:16].astype(np.float32)


def parity(signs):
    """[n] ±1: whether an even number of six of the first sixteen signs [n, ...] is negative."""
    return np.where((np.asarray(signs)[:, 3:9] < 0).sum(-1) % 2 == 0, 1.0, -1.0)


def teacher(kind, hidden=False):
    """A function of a batch that knows the rule; where nothing is hidden it goes by all that shows the side."""

    def side(obs):
        x = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if kind == "images":
            x = (x[..., 0] - 127) / 60
            x = x if hidden else torch.cat([x[..., : SIZE // 2], -x[..., SIZE // 2 :]], -1)
        x = x.reshape(len(x), -1)
        return torch.as_tensor(parity(x), dtype=torch.float32) if hidden else x.mean(-1)

    def logits(obs):
        s = 8 * side(obs)
        return torch.stack([-s, s], -1)

    return (lambda obs: side(obs).clamp(-1, 1)[:, None]) if kind == "continuous" else logits
