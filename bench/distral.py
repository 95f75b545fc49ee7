"""Distral on CartPole with poles of two lengths, by the reward alone: returns of the policy that they share, over seeds.

python bench/distral.py --seeds 3 --env-steps 30000
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import distillrl
from distillrl.config import Config


def pole(length: float) -> Callable[..., Any]:
    """CartPole whose pole is so long, in halves, as gymnasium counts."""

    def make(**more: Any) -> Any:
        env = gymnasium.make("CartPole-v1", **more)
        env.unwrapped.length, env.unwrapped.polemass_length = length, env.unwrapped.masspole * length  # type: ignore[attr-defined]  # CartPole's own
        return env

    make.__name__ = f"pole-{length}"
    return make


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--env-steps", type=int, default=30_000)
    given = parser.parse_args()
    poles = (pole(0.5), pole(0.3))
    for method, see in (("distral", "group=obs"), ("distral", None), ("ppo", None)):
        verdicts = []
        for seed in range(given.seeds):
            config = Config(method=method, student="mlp:32x32", see=see, seed=seed, env_steps=given.env_steps, until="return=495")
            with tempfile.TemporaryDirectory() as folder:
                verdicts.append(distillrl.distill(None, poles, config=config, out=Path(folder) / "run").verdict)
        means = [[round(v["tasks"][k]["student"]["mean"], 1) for v in verdicts] for k in range(2)]
        steps = [v["env_steps"] for v in verdicts]
        print(f"{method}, the student sees {see or 'all'}: {verdicts[0]['student']['parameters']:,} parameters, {np.mean(steps):,.0f} steps {steps}, {np.mean([v['seconds']['work'] for v in verdicts]):.1f} s; returns {means}", flush=True)


if __name__ == "__main__":
    main()
