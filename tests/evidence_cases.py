"""Environments of a few steps whose returns can be worked out by hand, and policies for them."""

import gymnasium
import numpy as np
import torch

from distillrl import envs, students
from distillrl.actions import Categorical
from distillrl.policies import ACTION
from distillrl.records import Prediction

SENSORS = 16


class Sides(gymnasium.Env):
    """Twenty steps; sixteen sensors all say +1 or −1, and the right action (1 for +1) earns 1. The side changes at random."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (SENSORS,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # gymnasium's own way

    def __init__(self, flip=1.0, render_mode=None):
        self.flip, self.render_mode = flip, render_mode

    def _seen(self):
        return np.full(SENSORS, self.side, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.side = 0, self.flip * self.np_random.choice([-1.0, 1.0])
        return self._seen(), {}

    def step(self, action):
        reward = float((action == 1) == (self.side > 0))
        self.steps += 1
        self.side = self.flip * self.np_random.choice([-1.0, 1.0])
        return self._seen(), reward, False, self.steps == 20, {}

    def render(self):
        return np.full((40, 60, 3), 255 if self.side > 0 else 40, np.uint8)


class Levels(gymnasium.Env):
    """Ten steps on one level, a random vector that is seen as it is; the right action is a parity of its signs."""

    observation_space = gymnasium.spaces.Box(-4, 4, (8,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, levels=0):
        self.levels = levels

    def reset(self, *, seed=None, options=None):
        number = seed % self.levels if self.levels else seed
        self.level = np.random.default_rng(number).normal(size=8).clip(-4, 4).astype(np.float32)
        self.steps = 0
        return self.level, {}

    def step(self, action):
        self.steps += 1
        return self.level, float(action == int((self.level[:6] < 0).sum() % 2 == 0)), False, self.steps == 10, {}


def parity(obs):
    """The teacher of Levels."""
    even = ((obs[..., :6] < 0).sum(-1) % 2 == 0).float()
    return 8 * torch.stack([1 - even, even], -1)


class Memoriser:
    """Plays ``parity`` on the levels that it knows, always 1 elsewhere."""

    gives, info = ACTION, {}

    def __init__(self, spec, levels):
        self.spec = spec
        self.known = torch.stack(
            [torch.tensor(np.random.default_rng(i).normal(size=8).clip(-4, 4).astype(np.float32)) for i in range(levels)]
        )

    def init(self, n):
        return {}

    def act(self, obs, memory, starts, wants=ACTION):
        x = obs["obs"]
        known = torch.cdist(x, self.known).min(-1).values < 1e-4
        logits = torch.where(known[:, None], parity(x), torch.tensor([0.0, 8.0]))
        return Prediction(Categorical(logits)), memory


def spec_of(env):
    made = env()
    return envs.spec_of(made.observation_space, made.action_space)


def linear(env, rows, bias=None):
    """A linear student with the given weights [actions, numbers]."""
    student = students.make("mlp:", spec_of(env), torch.Generator().manual_seed(0))
    with torch.no_grad():
        student.out.weight.copy_(torch.as_tensor(np.asarray(rows), dtype=torch.float32))
        student.out.bias.copy_(torch.zeros(len(rows)) if bias is None else torch.as_tensor(bias))
    return student


def sides(sensors=SENSORS, sure=4.0):
    """A policy for Sides that looks at so many of the sensors."""
    row = np.zeros(SENSORS)
    row[:sensors] = sure / sensors
    return linear(Sides, [-row, row])
