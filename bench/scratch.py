"""The same small network trained from scratch by stable-baselines3's PPO: what distilling is held against.

It plays the training stream's episodes, is looked at as often as a distillation is (from 4,096 steps on, every 30 %) on the same
selecting episodes with its most likely actions, and the best of what was looked at is kept.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium

FIRST_LOOK, OFTEN = 4096, 1.3


@dataclass(frozen=True)
class Recipe:
    """How PPO is trained; ``settings`` are its constructor's, a learning rate falls linearly to 0 where ``linear``."""

    envs: int = 8
    normalize: bool = False
    linear: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


class Seeded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Every episode on its own seed of a stream, as in a distillation."""

    def __init__(self, env: gymnasium.Env[Any, Any], seeds: Any, slot: int, slots: int) -> None:
        super().__init__(env)
        self.seeds, self.index, self.slots = seeds, slot, slots

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The stream's next episode; the seed that is asked for is not listened to."""
        self.index += self.slots
        return self.env.reset(seed=self.seeds(self.index - self.slots), options=options)


def ppo(env: str, student: str, recipe: Recipe, seed: int) -> Any:
    """An untrained PPO whose policy has the student's layers; its critic, which nobody ships, has 64×64."""
    import stable_baselines3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    from distillrl.envs import Seeds

    seeds = Seeds(seed, "train")

    def maker(slot: int) -> Any:
        return lambda: Seeded(gymnasium.make(env, disable_env_checker=True), seeds, slot, recipe.envs)

    vector: Any = DummyVecEnv([maker(i) for i in range(recipe.envs)])
    settings = dict(recipe.settings)
    if recipe.normalize:
        vector = VecNormalize(vector, gamma=settings.get("gamma", 0.99))
    rate = settings.pop("learning_rate", 3e-4)
    layers = [int(w) for w in re.findall(r"\d+", student)]
    return stable_baselines3.PPO(
        "MlpPolicy",
        vector,
        seed=seed,
        device="cpu",
        learning_rate=(lambda left: left * rate) if recipe.linear else rate,
        policy_kwargs={"net_arch": {"pi": layers, "vf": [64, 64]}},
        **settings,
    )


def train(env: str, student: str, recipe: Recipe, steps: int, seed: int, episodes: int) -> tuple[Any, list[list[float]], int]:
    """The best policy (as distillrl loads it), the curve [[steps, mean return on the selecting episodes]], and the steps taken."""
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    from distillrl import evaluation, teachers
    from distillrl.envs import EnvOptions, Seeds

    torch.set_num_threads(1)
    options, seeds = EnvOptions(env, backend="gymnasium:1"), Seeds(seed, "select")
    curve: list[list[float]] = []

    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "model.zip"

        class Look(BaseCallback):
            best, due = float("-inf"), FIRST_LOOK

            def look(self) -> None:
                played = evaluation.play(teachers.load(self.model), options, episodes, seeds)
                mean = float(played.returns.mean())
                curve.append([self.num_timesteps, round(mean, 4)])
                if mean >= self.best:
                    self.best = mean
                    self.model.save(kept)
                    if (normaliser := self.model.get_vec_normalize_env()) is not None:
                        normaliser.save(str(kept.with_name("vecnormalize.pkl")))
                self.due = int(self.num_timesteps * OFTEN)

            def _on_rollout_start(self) -> None:
                if self.num_timesteps >= self.due:
                    self.look()

            def _on_step(self) -> bool:
                return True

            def _on_training_end(self) -> None:
                self.look()

        model = ppo(env, student, recipe, seed)
        model.learn(steps, callback=Look())
        model.env.close()
        return teachers.load(kept), curve, int(model.num_timesteps)
