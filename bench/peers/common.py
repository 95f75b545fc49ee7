"""What the three peers share: the teacher, the clock, the counts, the evaluation and the line printed.

Runs in both virtual environments (stable-baselines3 2.2 with gymnasium 0.29, and 2.9 with 1.x).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

TEACHER = str(Path(__file__).resolve().parents[3] / "shared" / "teachers" / "ppo_lunar.zip")
STUDENT = [16, 16]
AIM = 0.99
# Disjoint streams of episode seeds. A run's seed moves each stream; training seeds are below 10^6.
SELECTING, VERDICT = 1_000_000, 2_000_000
STREAM = 1_000  # episodes a run may use of each stream
SLOTS = 20  # environments stepped side by side while evaluating


def arguments(peer: str, **defaults: Any) -> argparse.Namespace:
    """The options every peer has; `defaults` are the peer's own settings, each an option too."""
    parser = argparse.ArgumentParser(prog=peer, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads")
    parser.add_argument("--select-episodes", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=100, help="of the verdict")
    parser.add_argument("--max-seconds", type=float, default=240.0, help="of work; then the run gives up")
    parser.add_argument("--trace", action="store_true", help="each checkpoint on stderr")
    for name, value in defaults.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def env_id() -> str:
    """LunarLander-v3 where gymnasium has it, else v2: the same dynamics, and the same observations."""
    return "LunarLander-v3" if "LunarLander-v3" in gym.registry else "LunarLander-v2"


def make_env() -> gym.Env:
    """One environment, without gymnasium's checks of each step."""
    return gym.make(env_id(), disable_env_checker=True)


class CountingVecEnv(DummyVecEnv):
    """SB3's DummyVecEnv (SubprocVecEnv is slower here, see README.md) that counts its steps."""

    steps = 0

    def __init__(self, n: int, seed: int):
        super().__init__([make_env] * n)
        self.seed(seed * STREAM)

    def step_wait(self):
        """Step, and count."""
        self.steps += self.num_envs
        return super().step_wait()


class Teacher(ActorCriticPolicy):
    """The teacher's policy, which counts the states it is asked about."""

    labels = 0

    def predict(self, observation, *args, **kwargs):
        """Act, and count."""
        self.labels += len(observation)
        return super().predict(observation, *args, **kwargs)


def load_teacher(path: str, observation_space: gym.Space, action_space: gym.Space) -> Teacher:
    """Build the policy by the file's `policy_kwargs` and load its weights.

    `PPO.load` of SB3 2.2 can't unpickle what SB3 2.9 and gymnasium 1.x wrote (spaces and schedules), so
    the policy is built on the environment's spaces. Plain MlpPolicy files only.
    """
    with zipfile.ZipFile(path) as file:
        kwargs = json.loads(file.read("data"))["policy_kwargs"]
        weights = torch.load(io.BytesIO(file.read("policy.pth")), map_location="cpu", weights_only=True)
    teacher = Teacher(observation_space, action_space, lambda _: 0.0, net_arch=kwargs["net_arch"])
    teacher.load_state_dict(weights)
    teacher.set_training_mode(False)
    return teacher


def play(act: Callable[[np.ndarray], np.ndarray], seeds: list[int]) -> tuple[list[float], int]:
    """The return of one whole episode for each seed, and the steps; unbiased, as every episode ends."""
    envs = [make_env() for _ in range(min(SLOTS, len(seeds)))]
    todo = list(enumerate(seeds))[::-1]
    returns = [0.0] * len(seeds)
    slots: list[list[Any]] = []  # [environment, episode, observation]
    steps = 0
    for env in envs:
        episode, seed = todo.pop()
        slots.append([env, episode, env.reset(seed=seed)[0]])
    while slots:
        actions = act(np.stack([slot[2] for slot in slots]))
        for slot, action in zip(list(slots), actions, strict=True):
            slot[2], reward, terminated, truncated, _ = slot[0].step(int(action))
            returns[slot[1]] += float(reward)
            steps += 1
            if terminated or truncated:
                if todo:
                    slot[1], seed = todo.pop()
                    slot[2] = slot[0].reset(seed=seed)[0]
                else:
                    slots.remove(slot)
    for env in envs:
        env.close()
    return returns, steps


class Reached(Exception):
    """Raised from within a peer's training where its aim is reached, or its time is up."""


@dataclass
class Run:
    """One run of one peer: the clock of its work, and the evaluations that the clock leaves out."""

    peer: str
    options: argparse.Namespace
    teacher: Teacher
    venv: CountingVecEnv
    checkpoints: int = 0
    eval_seconds: float = 0.0
    eval_steps: int = 0
    _seconds: float = field(default=0.0, init=False)
    _cpu: float = field(default=0.0, init=False)
    _kept: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        began = time.perf_counter()
        first = SELECTING + self.options.seed * STREAM
        self._selecting = list(range(first, first + self.options.select_episodes))
        first = VERDICT + self.options.seed * STREAM
        self._verdict = list(range(first, first + self.options.episodes))
        self._ends = {}
        for name, seeds in (("selecting", self._selecting), ("verdict", self._verdict)):
            rng = np.random.default_rng(self.options.seed)
            random, _ = play(lambda obs, rng=rng: rng.integers(self.venv.action_space.n, size=len(obs)), seeds)
            teacher, _ = play(self._mode(self.teacher), seeds)
            self._ends[name] = (float(np.mean(random)), float(np.mean(teacher)))
        self.teacher.labels = 0
        self.baseline_seconds = time.perf_counter() - began

    def start(self) -> None:
        """The clock starts: everything is imported, the teacher is loaded, nothing is collected."""
        self._wall_from, self._cpu_from = time.perf_counter(), time.process_time()

    def pause(self) -> None:
        """The clock stops, for an evaluation."""
        self._seconds += time.perf_counter() - self._wall_from
        self._cpu += time.process_time() - self._cpu_from

    @staticmethod
    def _mode(policy: ActorCriticPolicy) -> Callable[[np.ndarray], np.ndarray]:
        return lambda obs: policy.predict(obs, deterministic=True)[0]

    def _retention(self, name: str, mean: float) -> float:
        random, teacher = self._ends[name]
        return (mean - random) / (teacher - random)

    def checkpoint(self, policy: ActorCriticPolicy) -> None:
        """Measure the student on the selecting seeds, off the clock; raises Reached at the aim."""
        self.pause()
        began = time.perf_counter()
        training = policy.training
        returns, steps = play(self._mode(policy), self._selecting)
        policy.set_training_mode(training)
        self.checkpoints += 1
        self.eval_steps += steps
        self.eval_seconds += time.perf_counter() - began
        retention = self._retention("selecting", float(np.mean(returns)))
        self._kept = {
            "reached": retention >= AIM,
            "work_seconds": round(self._seconds, 3),
            "work_cpu_seconds": round(self._cpu, 3),
            "env_steps": self.venv.steps,
            "labels": self.teacher.labels,
            "selecting_retention": round(retention, 4),
        }
        if self.options.trace:
            print(json.dumps(self._kept), file=sys.stderr, flush=True)
        if retention >= AIM or self._seconds > self.options.max_seconds:
            raise Reached
        self.start()

    def report(self, policy: ActorCriticPolicy) -> None:
        """The verdict on fresh seeds, and the one line that a run prints."""
        began = time.perf_counter()
        returns, steps = play(self._mode(policy), self._verdict)
        random, teacher = self._ends["verdict"]
        mean = float(np.mean(returns))
        skip = ("teacher", "seed", "threads", "trace", "episodes", "max_seconds")
        line = {
            "peer": self.peer,
            "seed": self.options.seed,
            **self._kept,
            "checkpoints": self.checkpoints,
            "eval_seconds": round(self.eval_seconds, 3),
            "eval_steps": self.eval_steps,
            "verdict_seconds": round(time.perf_counter() - began, 3),
            "verdict_steps": steps,
            "return_mean": round(mean, 2),
            "return_std": round(float(np.std(returns)), 2),
            "episodes": len(returns),
            "retention": round(self._retention("verdict", mean), 4),
            "teacher_return": round(teacher, 2),
            "random_return": round(random, 2),
            "student_parameters": sum(p.numel() for n, p in policy.named_parameters() if "value" not in n and "vf" not in n),
            "threads": self.options.threads,
            "load_average": round(os.getloadavg()[0], 2),
            "settings": {k: v for k, v in vars(self.options).items() if k not in skip},
            "versions": {p: version(p) for p in ("torch", "stable-baselines3", "gymnasium", "numpy")},
        }
        print(json.dumps(line), flush=True)
