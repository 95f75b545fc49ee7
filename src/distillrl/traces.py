"""Whole episodes with what both policies say at every step: what fidelity is measured on, and pictures are made from.

``record`` plays episodes as ``evaluation.play`` does (each slot its quota, episode i on ``seeds(i)``) and keeps both
predictions. ``Rerun`` brings one episode back from its seed and its actions, to look at a state or to go on from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from distillrl import envs
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Failed
from distillrl.evaluation import ENDLESS, MAX_SLOTS
from distillrl.policies import ACTION, Policy, played, to_environment
from distillrl.records import Prediction, Spec, over_states

WIDE = 256
"""Numbers of an observation that a trace keeps; a wider one (an image) is thinned out evenly."""


@dataclass(frozen=True)
class Trace:
    """Episodes that one policy drove, S states in the order of episode and step."""

    driver: str
    """"teacher" or "student"."""
    teacher: Prediction
    """[S]"""
    student: Prediction
    """[S]"""
    seen: Tensor
    """[S, F ≤ WIDE] float: the observation's numbers, thinned where there are more."""
    names: tuple[str, ...]
    """[F] what they are called: group and index."""
    action: Tensor
    """[S, ...] as it was played, in the policy's units."""
    reward: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    returns: np.ndarray
    """[E]"""
    lengths: np.ndarray
    """[E]"""

    @property
    def states(self) -> int:
        """S."""
        return len(self.episode)

    @property
    def episodes(self) -> int:
        """E."""
        return len(self.returns)


def record(
    driver: str, teacher: Policy, student: Policy, options: EnvOptions, episodes: int, seeds: Seeds, wants: frozenset[str] = ACTION
) -> Trace:
    """Play ``episodes`` with the most likely actions of one policy, ask both at every state.

    ``wants`` is the teacher's further knowledge (q, value). Raises Failed for an episode without end or a NaN.
    """
    vector = envs.make(options, envs.slots_of(options, min(episodes, MAX_SLOTS)), seeds, episodes)
    try:
        with torch.inference_mode():
            rows = _rows(driver, teacher, student, vector, episodes, wants)
    finally:
        vector.close()
    return _sorted(driver, rows, episodes, vector.spec)


def _rows(driver: str, teacher: Policy, student: Policy, vector: envs.Vector, episodes: int, wants: frozenset[str]) -> dict[str, list[Any]]:
    """What was seen, said and earned in each tick, counted slots only."""
    n, spec = vector.n, vector.spec
    index, step = np.arange(n), np.zeros(n, dtype=np.int64)
    ended, starts = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
    memory = {"teacher": teacher.init(n), "student": student.init(n)}
    rows: dict[str, list[Any]] = {k: [] for k in ("teacher", "student", "seen", "action", "reward", "episode", "step")}
    obs = {k: torch.as_tensor(v) for k, v in vector.reset().items()}
    while bool((playing := index < episodes).any()):
        begin = torch.from_numpy(starts)
        said: dict[str, Prediction] = {}
        said["teacher"], memory["teacher"] = teacher.act(obs, memory["teacher"], begin, wants)
        said["student"], memory["student"] = student.act(obs, memory["student"], begin, ACTION)
        counted = torch.from_numpy(playing & ~ended)
        action = played(said[driver], sampled=False)
        for who, prediction in said.items():
            rows[who].append(over_states(lambda x: x[counted].clone(), prediction))
        rows["seen"].append(thinned(obs, spec)[counted])
        rows["action"].append(action[counted].clone())
        rows["episode"].append(index[counted.numpy()].copy())
        rows["step"].append(step[counted.numpy()].copy())
        new, reward, terminated, truncated = vector.step(to_environment(action, spec))
        obs = {k: torch.as_tensor(v) for k, v in new.items()}
        rows["reward"].append(np.asarray(reward, dtype=np.float64)[counted.numpy()].copy())
        starts = ended & playing
        step = np.where(counted.numpy(), step + 1, 0)
        ended = (terminated | truncated) & counted.numpy()
        index = index + n * ended
        if step.max() > ENDLESS:
            raise Failed(f"an episode has not ended after {ENDLESS} steps; set --max-episode-steps")
    return rows


def _sorted(driver: str, rows: dict[str, list[Any]], episodes: int, spec: Spec) -> Trace:
    episode, step = np.concatenate(rows["episode"]), np.concatenate(rows["step"])
    order = np.lexsort((step, episode))
    reward = np.concatenate(rows["reward"])[order]
    if not np.isfinite(reward).all():
        raise Failed(f"episode {episode[order][~np.isfinite(reward)][0]} has a reward that is NaN or infinite")
    places = torch.from_numpy(order)
    both = {who: over_states(lambda x: x[places], over_states(lambda *x: torch.cat(x), *rows[who])) for who in ("teacher", "student")}
    return Trace(
        driver=driver,
        teacher=both["teacher"],
        student=both["student"],
        seen=torch.cat(rows["seen"])[places],
        names=names(spec),
        action=torch.cat(rows["action"])[places],
        reward=reward,
        episode=episode[order],
        step=step[order],
        returns=np.bincount(episode, np.concatenate(rows["reward"]), minlength=episodes),
        lengths=np.bincount(episode, minlength=episodes),
    )


def thinned(obs: Mapping[str, Tensor], spec: Spec) -> Tensor:
    """[n, F] float32 of all groups in their order, every k-th number of a group that is wider than its share."""
    share = max(1, WIDE // len(spec.observations))
    parts = []
    for name, group in spec.observations.items():
        flat = obs[name].reshape(len(obs[name]), -1)
        parts.append(flat[:, :: math.ceil(max(1, flat.shape[1]) / share)].float())
    return torch.cat(parts, -1)


def names(spec: Spec) -> tuple[str, ...]:
    """What ``thinned`` kept: «obs 3», «camera 1024»."""
    share, kept = max(1, WIDE // len(spec.observations)), []
    for name, group in spec.observations.items():
        width = max(1, math.prod(group.shape))
        kept += [f"{name} {i}" if width > 1 else name for i in range(0, width, math.ceil(width / share))]
    return tuple(kept)


class Rerun:
    """One episode in an environment of its own; only for gymnasium's, which come back from a seed and its actions."""

    def __init__(self, options: EnvOptions, seed: int, pictures: bool = False) -> None:
        """Raises Misconfigured or Missing where the environment can't be made, also where it can't render."""
        more = {"render_mode": "rgb_array"} if pictures else {}
        self.env: gymnasium.Env[Any, Any] = envs.one(EnvOptions(options.id, {**options.kwargs, **more}, "gymnasium", options.max_episode_steps))
        self.spec = envs.spec_of(self.env.observation_space, self.env.action_space)
        self.obs = self._groups(self.env.reset(seed=seed)[0])
        self.done, self.started = False, True
