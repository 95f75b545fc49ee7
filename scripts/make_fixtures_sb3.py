#!/usr/bin/env python3
# ruff: noqa: C408 — options are written as the keyword arguments that they become
"""Make the genuine stable-baselines3 and sb3-contrib files that the tests of `teachers/` read.

Every file is written by the library's own `save`, from a model of 4 to 8 units whose weights, biases, log standard
deviations and running statistics were made random (a fresh model has zero biases, which would hide a bias that is
left out). It is then loaded again with the library's own `load`, and what *that* model says of 16 recorded
observations is kept beside it. The tests compare distillrl with these records; they need none of these libraries.

The virtual environment of its own, and the run (half a minute):

    python3 -m venv ../venvs/sb3
    ../venvs/sb3/bin/pip install torch==2.13.0 stable-baselines3==2.9.2 sb3-contrib==2.9.2 gymnasium==1.4.0
    ../venvs/sb3/bin/python scripts/make_fixtures_sb3.py                    # all, into tests/data/sb3
    ../venvs/sb3/bin/python scripts/make_fixtures_sb3.py --only 'ppo_*'     # some; --list names them

The numbers depend on the seed alone; the bytes of a zip don't (it holds times and memory addresses).

A folder of tests/data/sb3 holds:

    model.zip          the model
    vecnormalize.pkl   the statistics of VecNormalize, where there is one
    about.json         the versions, the spaces, what is special, the arrays of expected.npz; and `refuse`, a sentence,
                       where the file needs the user's own code, so that loading it without must be refused
    expected.npz       what the library says:

        obs | obs.KEY            observations [16, ...] as the environment gives them: before VecNormalize, images HWC
        obs_normalized[.KEY]     the same after VecNormalize
        actions                  model.predict(obs, deterministic=True)
        logits, probabilities    of discrete actions, normalised; those of several actions are side by side
        mean, std                of the Gaussian before squashing and clipping; with gSDE its spread in that state
        entropy, value           of each state, where the library gives them
        samples, log_prob        actions drawn from the policy (squashed, not yet rescaled or clipped), log-density;
                                 SB3 adds 1e-6 inside the logarithm of the squashing's correction
        q                        [16, A]
        quantiles                [16, A, K]
        q_at_action              [16, critics] at the deterministic action; `scaled_actions` is that action in [-1, 1]
        quantiles_at_action      [16, critics, K]
        masks                    which actions are legal; `actions`, `probabilities`, `entropy` heed it, the same with
                                 `_unmasked` don't

    Policies with memory, and stacked frames, are recorded over T steps of N environments: [T, N, ...], and `starts`
    says where an episode begins. `state_h`, `state_c` [T, layers, N, H] are the LSTM's memory after each step;
    `frames` are single frames, `obs` the stacked ones (normalised before stacking, where VecNormalize is there).
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import functools
import json
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from torch import nn

N, T, ENVS = 16, 12, 2  # observations of a memoryless policy; steps and environments of one that remembers
ALGORITHMS = {
    name.lower(): getattr(library, name)
    for library, names in (
        (stable_baselines3, ("PPO", "A2C", "DQN", "SAC", "TD3", "DDPG")),
        (sb3_contrib, ("TRPO", "QRDQN", "TQC", "ARS", "CrossQ", "MaskablePPO", "RecurrentPPO")),
    )
    for name in names
}
Arrays = dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------------ environments


class Sampled(gymnasium.Env):
    """Observations drawn from a space, episodes of five steps, a reward that depends on the action."""

    def __init__(self, observation_space: Space, action_space: Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Pay the sum of the action."""
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps == 5, False, {}

    def action_masks(self) -> np.ndarray:
        """For MaskablePPO: legal actions, at least one of each choice."""
        sizes = self.action_space.nvec if isinstance(self.action_space, MultiDiscrete) else [self.action_space.n]
        return legal(self.np_random, [int(size) for size in sizes])

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        """For HER: near the goal or not."""
        return -(np.linalg.norm(achieved - desired, axis=-1) > 0.5).astype(np.float32)


def legal(rng: np.random.Generator, sizes: list[int]) -> np.ndarray:
    """A random mask of legal actions, choice after choice, each with at least one."""
    parts = []
    for size in sizes:
        mask = rng.random(size) < 0.5
        mask[rng.integers(size)] = True
        parts.append(mask)
    return np.concatenate(parts)


def observations(space: Space, rng: np.random.Generator, count: int = N) -> Any:
    """`count` observations of a space; of a float Box the last quarter lie far outside of it."""
    if isinstance(space, Dict):
        return {key: observations(part, rng, count) for key, part in space.spaces.items()}
    if isinstance(space, Discrete):
        return rng.integers(0, space.n, count)
    if isinstance(space, MultiDiscrete):
        return rng.integers(0, space.nvec, (count, *space.shape))
    if isinstance(space, MultiBinary):
        return rng.integers(0, 2, (count, *space.shape)).astype(np.int8)
    if len(space.shape) == 3:  # an image: bars and a shade, which compress well
        ramp = np.linspace(0, 1, int(np.prod(space.shape))).reshape(space.shape)
        shade = rng.random((count, 1, 1, 1)) * np.roll(ramp, rng.integers(space.shape[0]), 0)
        bars = rng.random((count, space.shape[0], 1, 1)) < 0.3
        picture = np.round(np.where(bars, 1 - shade, shade) * 16) / 16
        return (picture * (space.high - space.low) + space.low).astype(space.dtype)
    low, high = np.nan_to_num(space.low, neginf=-2), np.nan_to_num(space.high, posinf=2)
    spread = np.where(np.arange(count) < count * 3 // 4, 1.0, 4.0).reshape(-1, *[1] * len(space.shape))
    middle = (low + high) / 2
    return (middle + spread * rng.uniform(-0.5, 0.5, (count, *space.shape)) * (high - low)).astype(space.dtype)


# ------------------------------------------------------------------------------------------- what a user might write


class Wave(nn.Module):
    """An activation that no library knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A sine."""
        return torch.sin(2 * x)


class Product(BaseFeaturesExtractor):
    """A features extractor that no library knows."""

    def __init__(self, observation_space: Box, features_dim: int = 4) -> None:
        super().__init__(observation_space, features_dim)
        self.left = nn.Linear(observation_space.shape[0], features_dim)
        self.right = nn.Linear(observation_space.shape[0], features_dim)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """The product of two linear maps."""
        return self.left(observations) * self.right(observations)


class Doubled(stable_baselines3.common.policies.ActorCriticPolicy):
    """A policy of the user's own, with weights that look like SB3's and actions that aren't."""

    def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Any:
        return super()._get_action_dist_from_latent(-2 * latent_pi)


# ------------------------------------------------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    """One fixture: an algorithm, the spaces, the policy's options and what is special about it."""

    algo: str
    note: str
    obs: Space
    act: Space
    net: dict[str, Any] = field(default_factory=dict)  # policy_kwargs
    policy: str | type = "MlpPolicy"
    settings: dict[str, Any] = field(default_factory=dict)
    normalize: dict[str, Any] | None = None  # options of VecNormalize
    stack: int = 0
    learn: bool = False  # for a few dozen steps: the optimizer's state and the last observations get into the file
    her: bool = False
    refuse: str = ""


def box(*shape: int, low: float = -1.0, high: float = 1.0, dtype: Any = np.float32) -> Box:
    """A Box of equal bounds."""
    return Box(low, high, shape, dtype)


def bounds(low: list[float], high: list[float]) -> Box:
    """A Box with bounds of its own for each component."""
    return Box(np.array(low, np.float32), np.array(high, np.float32))


FOUR = Box(np.array([-3, -1, 0, -2], np.float32), np.array([5, 1, 10, 2], np.float32))
UNEVEN = bounds([-2, -0.1], [0.5, 3])
SMALL_IMAGE = Box(0, 255, (6, 5, 3), np.uint8)  # HWC; too small for a CNN, so it is flattened
IMAGE = Box(0, 255, (36, 36, 1), np.uint8)  # the smallest that NatureCNN can take
MIXED = Dict([("speed", box(3, low=-4, high=4)), ("gear", Discrete(4)), ("map", box(2, 2)), ("bits", MultiBinary(2))])
PARTS = Dict([("z", box(2, low=-6, high=2)), ("a", box(3, low=0, high=9)), ("m", box(1, low=-1, high=50))])
GOAL = Dict({key: box(size, low=-2, high=2) for key, size in
             (("observation", 3), ("achieved_goal", 2), ("desired_goal", 2))})  # fmt: skip
TINY = dict(net_arch=[8])
SAC_TINY = dict(net_arch=dict(pi=[8], qf=[6]))


def activation(function: Any, note: str, **more: Any) -> Case:
    """PPO with another activation."""
    return Case("ppo", f"activation: {note}", FOUR, Discrete(3), dict(net_arch=[8, 6], activation_fn=function), **more)


CASES: dict[str, Case] = {
    # actor-critic, actions
    "ppo_defaults": Case("ppo", "no policy_kwargs at all: 64x64 tanh", FOUR, Discrete(3)),
    "ppo_discrete": Case("ppo", "Discrete actions", FOUR, Discrete(4), TINY, learn=True),
    "ppo_discrete_start": Case(
        "ppo", "Discrete(3, start=3): SB3 ignores the start; its actions are 0, 1, 2, not 3, 4, 5",
        FOUR, Discrete(3, start=3), TINY),
    "ppo_box": Case("ppo", "Box actions, uneven bounds: clipped", FOUR, UNEVEN, TINY, learn=True),
    "ppo_box_wide": Case(
        "ppo", "bounds of 1e6 (SB3 refuses infinite ones): never clipped", FOUR, box(2, low=-1e6, high=1e6), TINY),
    "ppo_box_2d": Case("ppo", "observations [2, 3] and actions [2, 2]", box(2, 3), box(2, 2, low=-0.5, high=0.5), TINY),
    "ppo_gsde": Case(
        "ppo", "gSDE: clipped; log_std is [latent, action]", FOUR, UNEVEN, TINY | dict(log_std_init=-2.0),
        settings=dict(use_sde=True, sde_sample_freq=4), learn=True),
    "ppo_gsde_squashed": Case(
        "ppo", "gSDE with squash_output: tanh, then rescaled", FOUR, UNEVEN, TINY | dict(squash_output=True),
        settings=dict(use_sde=True)),
    "ppo_gsde_thin": Case(
        "ppo", "gSDE with full_std=False (log_std [latent, 1]) and use_expln", FOUR, UNEVEN,
        TINY | dict(full_std=False, use_expln=True), settings=dict(use_sde=True)),
    "ppo_multidiscrete": Case("ppo", "MultiDiscrete actions", FOUR, MultiDiscrete([3, 2, 4]), TINY, learn=True),
    "ppo_multibinary": Case("ppo", "MultiBinary(3) actions", FOUR, MultiBinary(3), TINY),
    "a2c_discrete": Case("a2c", "A2C", FOUR, Discrete(3), TINY, learn=True),
    "a2c_box": Case("a2c", "A2C, Box actions, ReLU", FOUR, UNEVEN, TINY | dict(activation_fn=nn.ReLU)),
    "trpo_discrete": Case("trpo", "TRPO", FOUR, Discrete(3), TINY, learn=True),
    "trpo_box": Case("trpo", "TRPO, Box actions", FOUR, UNEVEN, TINY),
    # actor-critic, networks
    "ppo_net_empty": Case("ppo", "net_arch [] : linear", FOUR, Discrete(3), dict(net_arch=[])),
    "ppo_net_uneven": Case("ppo", "pi and vf differ", FOUR, Discrete(3), dict(net_arch=dict(pi=[8, 4], vf=[6]))),
    "ppo_net_pi_only": Case("ppo", "only pi is given: a linear critic", FOUR, UNEVEN, dict(net_arch=dict(pi=[8, 4]))),
    "ppo_net_old": Case(
        "ppo", "net_arch as before SB3 1.8, a list of one dict", FOUR, Discrete(3),
        dict(net_arch=[dict(pi=[8], vf=[6])])),
    "ppo_relu": activation(nn.ReLU, "ReLU"),
    "ppo_elu": activation(nn.ELU, "ELU"),
    "ppo_silu": activation(nn.SiLU, "SiLU"),
    "ppo_gelu": activation(nn.GELU, "GELU, exact"),
    "ppo_gelu_tanh": activation(functools.partial(nn.GELU, approximate="tanh"), "GELU, tanh form, a functools.partial"),
    "ppo_leaky_partial": activation(
        functools.partial(nn.LeakyReLU, negative_slope=0.3), "LeakyReLU, slope 0.3 in a functools.partial"),
    "ppo_prelu": activation(nn.PReLU, "PReLU: a learned slope, in policy_net.1.weight"),
    # what only the user's own code can read
    "own_activation": activation(
        Wave, "the user's own, pickled by value", refuse="the activation is a class of the user's own"),
    "own_features": Case(
        "ppo", "a features extractor of the user's own", FOUR, Discrete(3),
        TINY | dict(features_extractor_class=Product), refuse="the features extractor is a class of the user's own"),
    "own_policy": Case(
        "ppo", "a policy class of the user's own, whose weights look like SB3's", FOUR, Discrete(3), TINY,
        policy=Doubled, refuse="the policy is a class of the user's own"),
    # observations
    "ppo_obs_float64": Case("ppo", "float64 observations", box(4, low=-3, high=3, dtype=np.float64), UNEVEN, TINY),
    "ppo_obs_unbounded": Case("ppo", "unbounded observations", box(4, low=-np.inf, high=np.inf), Discrete(3), TINY),
    "ppo_obs_discrete": Case("ppo", "Discrete observations: one-hot", Discrete(6), Discrete(3), TINY),
    "ppo_obs_multidiscrete": Case(
        "ppo", "MultiDiscrete observations: one-hots side by side", MultiDiscrete([3, 5, 2]), Discrete(3), TINY),
    "ppo_obs_multibinary": Case("ppo", "MultiBinary observations", MultiBinary(5), Discrete(3), TINY),
    "ppo_obs_dict": Case(
        "ppo", "Dict of Box, Discrete, a matrix and MultiBinary, keys not in order", MIXED, Discrete(3), TINY,
        policy="MultiInputPolicy"),
    "ppo_image_flat": Case("ppo", "an image in an MlpPolicy: CHW, /255, flattened", SMALL_IMAGE, Discrete(3), TINY),
    "ppo_image_flat_raw": Case(
        "ppo", "the same, normalize_images=False: 0 to 255", SMALL_IMAGE, UNEVEN, TINY | dict(normalize_images=False)),
    "ppo_cnn": Case(
        "ppo", "CnnPolicy: NatureCNN, net_arch [] by default", IMAGE, Discrete(3),
        dict(features_extractor_kwargs=dict(features_dim=8)), policy="CnnPolicy"),
    "ppo_cnn_raw": Case(
        "ppo", "CnnPolicy on float images in [0, 1] with normalize_images=False, CHW, a head of its own",
        Box(0, 1, (1, 36, 36), np.float32), UNEVEN,
        dict(features_extractor_kwargs=dict(features_dim=6), normalize_images=False, net_arch=dict(pi=[5], vf=[4])),
        policy="CnnPolicy"),
    "dqn_cnn_dict": Case(
        "dqn", "DQN, MultiInputPolicy: NatureCNN on the image, the rest flattened",
        Dict([("vector", box(3)), ("image", IMAGE)]), Discrete(3),
        dict(features_extractor_kwargs=dict(cnn_output_dim=5), net_arch=[6]), policy="MultiInputPolicy"),
    # normalisers and frames
    "vecnormalize": Case("ppo", "VecNormalize", FOUR, Discrete(3), TINY, normalize=dict(), learn=True),
    "vecnormalize_options": Case(
        "a2c", "VecNormalize with clip_obs=1.5, epsilon=0.1", FOUR, UNEVEN, TINY,
        normalize=dict(clip_obs=1.5, epsilon=0.1, norm_reward=False)),
    "vecnormalize_off": Case(
        "ppo", "VecNormalize, norm_obs=False: no obs_rms at all", FOUR, UNEVEN, TINY, normalize=dict(norm_obs=False)),
    "vecnormalize_dict": Case(
        "ppo", "VecNormalize of a Dict, keys not in order", PARTS, UNEVEN, TINY, policy="MultiInputPolicy",
        normalize=dict()),
    "vecnormalize_some_keys": Case(
        "ppo", "VecNormalize of one key of two kinds", Dict([("x", PARTS["z"]), ("k", Discrete(3))]), Discrete(3), TINY,
        policy="MultiInputPolicy", normalize=dict(norm_obs_keys=["x"])),
    "vecnormalize_sac": Case("sac", "VecNormalize with SAC", FOUR, UNEVEN, SAC_TINY, normalize=dict()),
    "framestack": Case("ppo", "VecFrameStack of 3", box(2, low=-3, high=1), Discrete(3), TINY, stack=3),
    "framestack_normalized": Case(
        "ppo", "VecNormalize, then VecFrameStack of 3: the statistics are of one frame", box(2, low=-3, high=1), UNEVEN,
        TINY, normalize=dict(), stack=3),
    "framestack_image": Case(
        "ppo", "VecFrameStack of 2 RGB images: channels side by side", Box(0, 255, (8, 7, 3), np.uint8), Discrete(3),
        dict(net_arch=[4]), stack=2),
    # values of actions
    "dqn": Case("dqn", "DQN", FOUR, Discrete(3), TINY, learn=True),
    "dqn_dict": Case("dqn", "DQN on a Dict, ELU", PARTS, Discrete(3), TINY | dict(activation_fn=nn.ELU),
                     policy="MultiInputPolicy"),
    "dqn_linear": Case("dqn", "net_arch []", FOUR, Discrete(3), dict(net_arch=[])),
    "qrdqn": Case("qrdqn", "QR-DQN, 5 quantiles", FOUR, Discrete(3), TINY | dict(n_quantiles=5), learn=True),
    # deterministic and squashed actors
    "sac": Case("sac", "SAC, uneven bounds", FOUR, UNEVEN, SAC_TINY, learn=True),
    "sac_one_critic": Case("sac", "SAC, one critic, a fixed entropy coefficient, Tanh", FOUR, box(1, low=-2, high=2),
                           dict(net_arch=[8, 4], n_critics=1, activation_fn=nn.Tanh), settings=dict(ent_coef=0.1)),
    "sac_gsde": Case("sac", "SAC with gSDE: the mean is clamped to ±2 before tanh", FOUR, UNEVEN, SAC_TINY,
                     settings=dict(use_sde=True)),
    "sac_gsde_clip": Case("sac", "SAC with gSDE, clip_mean=0.5 (only policy_kwargs tells)", FOUR, UNEVEN,
                          SAC_TINY | dict(clip_mean=0.5), settings=dict(use_sde=True)),
    "sac_gsde_free": Case("sac", "SAC with gSDE, clip_mean=0: actor.mu is a plain Linear; use_expln", FOUR, UNEVEN,
                          SAC_TINY | dict(clip_mean=0.0, use_expln=True), settings=dict(use_sde=True)),
    "sac_her": Case("sac", "SAC with HerReplayBuffer on a goal environment", GOAL, box(2), SAC_TINY,
                    policy="MultiInputPolicy", her=True, learn=True),
    "td3": Case("td3", "TD3", FOUR, UNEVEN, SAC_TINY, learn=True),
    "ddpg": Case("ddpg", "DDPG: TD3's policy with one critic", FOUR, UNEVEN, dict(net_arch=[8, 4]), learn=True),
    "tqc": Case("tqc", "TQC, 2 critics of 5 quantiles", FOUR, UNEVEN, SAC_TINY | dict(n_quantiles=5)),
    "tqc_gsde": Case("tqc", "TQC with gSDE, 3 critics", FOUR, UNEVEN, SAC_TINY | dict(n_quantiles=4, n_critics=3),
                     settings=dict(use_sde=True)),
    "crossq": Case("crossq", "CrossQ: BatchRenorm before each layer; its running statistics are used", FOUR, UNEVEN,
                   dict(net_arch=dict(pi=[8, 4], qf=[6]))),
    "crossq_eps": Case("crossq", "CrossQ, batch_norm_eps=0.2 (only policy_kwargs tells)", FOUR, box(1, low=-2, high=2),
                       dict(net_arch=dict(pi=[8], qf=[6]), batch_norm_eps=0.2)),
    "crossq_gsde_plain": Case("crossq", "CrossQ with gSDE and batch_norm=False", FOUR, UNEVEN,
                              dict(net_arch=dict(pi=[8], qf=[6]), batch_norm=False), settings=dict(use_sde=True)),
    "ars_linear": Case("ars", "LinearPolicy: no bias, clipped", FOUR, UNEVEN, policy="LinearPolicy", learn=True),
    "ars_linear_squashed": Case("ars", "LinearPolicy with bias and tanh", FOUR, UNEVEN,
                                dict(with_bias=True, squash_output=True), policy="LinearPolicy"),
    "ars_linear_discrete": Case("ars", "LinearPolicy, Discrete actions", FOUR, Discrete(3), policy="LinearPolicy"),
    "ars_mlp": Case("ars", "MlpPolicy: tanh at the end, by default", FOUR, UNEVEN, TINY, learn=True),
    "ars_mlp_clipped": Case("ars", "MlpPolicy with squash_output=False: clipped", FOUR, UNEVEN,
                            TINY | dict(squash_output=False, activation_fn=nn.Tanh)),
    "ars_mlp_discrete": Case("ars", "MlpPolicy, Discrete actions, no biases", FOUR, Discrete(3),
                             TINY | dict(with_bias=False)),
    # masks and memory
    "maskable": Case("maskableppo", "MaskablePPO", FOUR, Discrete(5), TINY, learn=True),
    "maskable_multi": Case("maskableppo", "MaskablePPO, MultiDiscrete([3, 4])", FOUR, MultiDiscrete([3, 4]), TINY),
    "recurrent": Case("recurrentppo", "an LSTM each for actor and critic", FOUR, Discrete(3),
                      dict(net_arch=[6], lstm_hidden_size=5), policy="MlpLstmPolicy", learn=True),
    "recurrent_no_critic": Case(
        "recurrentppo", "enable_critic_lstm=False: a Linear for the critic; Box actions, two layers", FOUR, UNEVEN,
        dict(net_arch=dict(pi=[6], vf=[4]), lstm_hidden_size=4, n_lstm_layers=2, enable_critic_lstm=False),
        policy="MlpLstmPolicy"),
    "recurrent_shared": Case(
        "recurrentppo", "shared_lstm: the critic reads the actor's LSTM; net_arch []", FOUR, Discrete(3),
        dict(net_arch=[], lstm_hidden_size=5, shared_lstm=True, enable_critic_lstm=False), policy="MlpLstmPolicy"),
    "recurrent_dict": Case("recurrentppo", "MultiInputLstmPolicy on a Dict, no biases in the LSTM", PARTS, Discrete(3),
                           dict(net_arch=[6], lstm_hidden_size=4, lstm_kwargs=dict(bias=False)),
                           policy="MultiInputLstmPolicy"),
    "recurrent_normalized": Case("recurrentppo", "RecurrentPPO behind VecNormalize", FOUR, UNEVEN,
                                 dict(net_arch=[6], lstm_hidden_size=5), policy="MlpLstmPolicy", normalize=dict()),
}  # fmt: skip


# -------------------------------------------------------------------------------------------------- making a model

ON_POLICY = dict(n_steps=16, batch_size=16, n_epochs=1)
OFF_POLICY = dict(buffer_size=100, learning_starts=8, batch_size=8)
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": ON_POLICY, "maskableppo": ON_POLICY, "recurrentppo": ON_POLICY, "a2c": dict(n_steps=8),
    "trpo": dict(n_steps=16, batch_size=16), "ars": dict(n_delta=2, n_eval_episodes=1),
}  # fmt: skip


def make(case: Case, seed: int) -> tuple[Any, VecNormalize | None]:
    """A model whose weights are random, and its normaliser."""
    set_random_seed(seed)
    env: Any = DummyVecEnv([lambda: Sampled(case.obs, case.act)] * ENVS)
    normalizer = None
    if case.normalize is not None:
        env = normalizer = VecNormalize(env, **case.normalize)
    if case.stack:
        env = VecFrameStack(env, case.stack)
    settings = SETTINGS.get(case.algo, OFF_POLICY) | case.settings
    if case.her:
        settings |= dict(replay_buffer_class=stable_baselines3.HerReplayBuffer, learning_starts=20)
        settings |= dict(replay_buffer_kwargs=dict(n_sampled_goal=2, goal_selection_strategy="future"))
    if case.net:
        settings |= dict(policy_kwargs=copy.deepcopy(case.net))  # SB3 writes into it
    model = ALGORITHMS[case.algo](case.policy, env, seed=seed, device="cpu", **settings)
    if case.learn:
        model.learn(40)
    elif normalizer is not None:
        env.reset()
        for _ in range(20):
            env.step(np.stack([case.act.sample() for _ in range(ENVS)]))
    pictures = any(isinstance(module, nn.Conv2d) for module in model.policy.modules())
    if pictures and hasattr(model, "q_net_target"):  # equal, as after an update of the target: halves the file
        for own, target in zip(model.q_net.parameters(), model.q_net_target.parameters(), strict=True):
            target.data = own.data
    randomize(model, torch.Generator().manual_seed(seed))
    return model, normalizer


def randomize(model: Any, generator: torch.Generator) -> None:
    """Give every parameter and running statistic a random value; a target network is a bit off its network."""

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, value in model.policy.state_dict(keep_vars=True).items():
            if name.endswith("ra_var"):
                value.copy_(torch.exp(normal(value)))
            elif name.endswith("ra_mean") or name.endswith("bias") or ".bias_" in name:
                value.copy_(0.5 * normal(value))
            elif name.endswith("log_std"):
                value.copy_(normal(value) - 1)
            elif name.endswith("scale"):
                value.copy_(1 + 0.5 * normal(value))
            elif value.dim() >= 2:
                value.copy_(1.6 * normal(value) / value[0].numel() ** 0.5)
            elif value.is_floating_point():  # PReLU's slope
                value.copy_(0.3 + 0.1 * normal(value))
    if hasattr(model, "weights"):  # ARS keeps its parameters a second time
        model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


# ------------------------------------------------------------------------------------------- what the library says


def array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as numpy."""
    return tensor.detach().cpu().numpy()


def beside(parts: Any, name: str) -> torch.Tensor:
    """`logits` or `probs` of one distribution, or of several side by side."""
    return torch.cat([getattr(part, name) for part in (parts if isinstance(parts, list) else [parts])], dim=-1)


def describe(distribution: Any, sample: bool = True) -> Arrays:
    """The parameters of an SB3 distribution, and the density of a few actions drawn from it."""
    inner = getattr(distribution, "distribution", None) or distribution.distributions
    if isinstance(inner, torch.distributions.Normal):
        found = {"mean": inner.mean, "std": inner.stddev}
    else:
        found = {"logits": beside(inner, "logits"), "probabilities": beside(inner, "probs")}
    entropy = distribution.entropy()
    if entropy is not None:
        found["entropy"] = entropy
    if sample:
        found["samples"] = distribution.sample()
        if getattr(distribution, "bijector", None) or isinstance(distribution, SquashedDiagGaussianDistribution):
            found["samples"] = found["samples"].clamp(-0.99, 0.99)  # further out, atanh loses its digits
        found["log_prob"] = distribution.log_prob(found["samples"])
    return {name: array(value) for name, value in found.items()}


def say(model: Any, seen: Any) -> Arrays:
    """All that a memoryless model knows of a batch of observations."""
    policy = model.policy
    policy.set_training_mode(False)
    obs, _ = policy.obs_to_tensor(seen)
    known = {"actions": model.predict(seen, deterministic=True)[0]}
    with torch.no_grad():
        if hasattr(policy, "predict_values"):
            known |= describe(policy.get_distribution(obs)) | {"value": array(policy.predict_values(obs)[:, 0])}
        elif hasattr(policy, "q_net"):
            known["q"] = array(policy.q_net(obs))
        elif hasattr(policy, "quantile_net"):
            known["quantiles"] = array(policy.quantile_net(obs).transpose(1, 2))
            known["q"] = known["quantiles"].mean(-1)
        elif hasattr(policy, "actor"):
            known |= say_actor(policy, obs)
        elif isinstance(policy.action_space, Discrete):
            known["scores"] = array(policy.action_net(policy.extract_features(obs, policy.features_extractor)))
    return known


def say_actor(policy: Any, obs: Any) -> Arrays:
    """What an actor and its critics know: SAC, TQC, CrossQ; TD3, DDPG."""
    known = {}
    scaled = policy._predict(obs, deterministic=True)
    if hasattr(policy.actor, "get_action_dist_params"):
        mean, log_std, more = policy.actor.get_action_dist_params(obs)
        known |= describe(policy.actor.action_dist.proba_distribution(mean, log_std, **more))
    judged = policy.critic(obs, scaled)
    if isinstance(judged, tuple):
        known["q_at_action"] = array(torch.cat(judged, dim=1))
    else:
        known["quantiles_at_action"] = array(judged)
    return known | {"scaled_actions": array(scaled)}


def say_masked(model: Any, seen: Any, rng: np.random.Generator, space: Space) -> Arrays:
    """What MaskablePPO says with masks and without."""
    sizes = [int(size) for size in (space.nvec if isinstance(space, MultiDiscrete) else [space.n])]
    masks = np.stack([legal(rng, sizes) for _ in range(N)])
    known = {"masks": masks, "actions": model.predict(seen, deterministic=True, action_masks=masks)[0]}
    known["actions_unmasked"] = model.predict(seen, deterministic=True)[0]
    with torch.no_grad():
        obs, _ = model.policy.obs_to_tensor(seen)
        free = describe(model.policy.get_distribution(obs), sample=False)
        known |= {f"{name}_unmasked": value for name, value in free.items()}
        masked = describe(model.policy.get_distribution(obs, masks))
        known |= {name: value for name, value in masked.items() if name != "logits"}
        known["value"] = array(model.policy.predict_values(obs)[:, 0])
    return known


def say_sequence(model: Any, seen: Any) -> Arrays:
    """What RecurrentPPO says over T steps of a few environments, with episodes that begin in between."""
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    starts = np.zeros((T, ENVS), bool)
    starts[0], starts[5, 0], starts[8] = True, True, True
    policy, state, rows = model.policy, None, []
    zeros = torch.zeros(policy.lstm_hidden_state_shape[0], ENVS, policy.lstm_hidden_state_shape[2])
    both = RNNStates((zeros, zeros), (zeros, zeros))
    for t in range(T):
        now = {key: value[t] for key, value in seen.items()} if isinstance(seen, dict) else seen[t]
        obs, begins = policy.obs_to_tensor(now)[0], torch.as_tensor(starts[t], dtype=torch.float32)
        with torch.no_grad():
            row = describe(policy.get_distribution(obs, both.pi, begins)[0])
            row["value"] = array(policy.predict_values(obs, both.vf, begins)[:, 0])
            both = policy.forward(obs, both, begins, deterministic=True)[3]
        row["actions"], state = model.predict(now, state, starts[t], deterministic=True)
        rows.append(row | {"state_h": state[0], "state_c": state[1]})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {"starts": starts}


def play_stacked(model: Any, case: Case, normalizer: VecNormalize | None) -> Arrays:
    """What a policy of stacked frames says over T steps, beside the single frames."""
    raw = DummyVecEnv([lambda: Sampled(case.obs, case.act)] * ENVS)
    raw.seed(5)
    inner: Any = Remember(raw)
    if normalizer is not None:
        normalizer.set_venv(inner)
        normalizer.training = False
        inner = normalizer
    stacked = VecFrameStack(inner, case.stack)
    obs, starts, rows = stacked.reset(), np.ones(ENVS, bool), []
    for _ in range(T):
        known = say(model, obs)
        rows.append(known | {"frames": raw_frames(stacked), "obs": obs.copy(), "starts": starts.copy()})
        obs, _, starts, _ = stacked.step(known["actions"])
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Remember(stable_baselines3.common.vec_env.VecEnvWrapper):
    """Keeps the last observations as the environments gave them."""

    def reset(self) -> Any:
        """Begin episodes everywhere."""
        self.last = self.venv.reset().copy()
        return self.last.copy()

    def step_wait(self) -> Any:
        """Step everywhere."""
        obs, reward, done, info = self.venv.step_wait()
        self.last = obs.copy()
        return obs, reward, done, info


def raw_frames(env: Any) -> np.ndarray:
    """The frames that `Remember` keeps, below other wrappers."""
    while not isinstance(env, Remember):
        env = env.venv
    return env.last.copy()


def expect(case: Case, model: Any, normalizer: VecNormalize | None, seed: int) -> Arrays:
    """All the records of one case."""
    rng = np.random.default_rng(seed)
    set_random_seed(seed)
    if case.stack:
        return play_stacked(model, case, normalizer)
    sequence = case.algo == "recurrentppo"
    obs = observations(case.obs, rng, T * ENVS if sequence else N)
    if sequence:
        obs = map_parts(obs, lambda x: x.reshape(T, ENVS, *x.shape[1:])[:, ::-1])
    seen = obs if normalizer is None else normalizer.normalize_obs(obs)
    record = named("obs", obs)
    if normalizer is not None and normalizer.norm_obs:
        record |= named("obs_normalized", seen)
    if sequence:
        return record | say_sequence(model, seen)
    if case.algo == "maskableppo":
        return record | say_masked(model, seen, rng, case.act)
    return record | say(model, seen)


def map_parts(obs: Any, function: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The function of an observation, or of each of its parts."""
    return {key: function(part) for key, part in obs.items()} if isinstance(obs, dict) else function(obs)


def named(name: str, obs: Any) -> Arrays:
    """An observation as named arrays."""
    return {f"{name}.{key}": part for key, part in obs.items()} if isinstance(obs, dict) else {name: obs}


# ------------------------------------------------------------------------------------------- is it worth testing?


def dull(case: Case, record: Arrays) -> str:
    """Why these records would let a wrong reader pass or a right one fail; empty where they don't."""
    actions = record["actions"].reshape(-1, *case.act.shape)
    for name in ("logits", "logits_unmasked", "q", "scores"):
        if name in record and isinstance(case.act, Discrete) and near(record[name]):
            return f"two actions are nearly equal in {name}"
    if not isinstance(case.act, Box):
        return "an action never changes" if (actions == actions[0]).all(0).any() else ""
    if actions.std(0).min() < 0.02:
        return "an action hardly changes"
    clipped = case.algo in ("ppo", "a2c", "trpo", "recurrentppo") and not case.net.get("squash_output")
    clipped |= case.algo == "ars" and not case.net.get("squash_output", case.policy != "LinearPolicy")
    if clipped and case.act.high.max() < 1e6:
        edge = (actions == case.act.low) | (actions == case.act.high)
        return "" if 0.1 < edge.mean() < 0.8 else "nothing is clipped, or nearly all"
    clamp = case.net.get("clip_mean", 2.0)
    if case.settings.get("use_sde") and "scaled_actions" in record and clamp:
        edge = np.abs(record["mean"]) == clamp
        return "" if 0.1 < edge.mean() < 0.8 else "no mean is clamped, or nearly all"
    if "scaled_actions" in record and np.median(np.abs(record["scaled_actions"])) > 0.97:
        return "tanh is saturated"
    return ""


def near(scores: np.ndarray) -> bool:
    """Whether the best two differ by less than a rounding error might."""
    top = np.sort(scores, axis=-1)
    return bool((top[..., -1] - top[..., -2]).min() < 1e-3 * max(1.0, float(np.abs(scores).max())))


# ------------------------------------------------------------------------------------------------------- writing


def write(name: str, case: Case, out: Path) -> int:
    """Make one fixture; returns its size in bytes."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for seed in range(1, 100):
        model, normalizer = make(case, seed)
        model.save(folder / "model.zip")
        if normalizer is not None:
            normalizer.save(str(folder / "vecnormalize.pkl"))
        env = Sampled(case.obs, case.act) if case.her else None  # HER can't be loaded without one
        read = ALGORITHMS[case.algo].load(folder / "model.zip", env=env, device="cpu")
        if normalizer is not None:
            normalizer = pickle.loads((folder / "vecnormalize.pkl").read_bytes())  # our own file
        record = expect(case, read, normalizer, seed)
        reason = dull(case, record)
        if not reason:
            break
    else:
        raise SystemExit(f"{name}: no seed of 99 will do: {reason}")
    np.savez_compressed(folder / "expected.npz", **record)
    about = {
        "note": case.note, "refuse": case.refuse or None, "algo": ALGORITHMS[case.algo].__name__, "seed": seed,
        "policy": type(read.policy).__name__, "policy_kwargs": repr(case.net), "settings": repr(case.settings),
        "observation_space": str(case.obs), "action_space": str(case.act),
        "model_observation_space": str(read.observation_space),
        "vecnormalize": None if case.normalize is None else repr(case.normalize), "stack": case.stack,
        "expected": {key: f"{value.dtype} {list(value.shape)}" for key, value in record.items()},
        "versions": {m.__name__: m.__version__ for m in (stable_baselines3, sb3_contrib, gymnasium, torch, np)},
    }  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> int:
    """Parse the command line and write the fixtures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parents[1] / "tests" / "data" / "sb3"
    parser.add_argument("--out", type=Path, default=default, help="where the folders go (default: tests/data/sb3)")
    parser.add_argument("--only", default="*", help="a pattern of names, such as 'sac*'")
    parser.add_argument("--list", action="store_true", help="print the names, and end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    total = 0
    for name, case in CASES.items():
        if not fnmatch.fnmatch(name, options.only):
            continue
        if options.list:
            print(f"{name:24} {case.note}")
            continue
        size = write(name, case, options.out)
        total += size
        print(f"{name:24} {size:>8} bytes  {case.note}", flush=True)
    if not options.list:
        print(f"{'all':24} {total:>8} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
