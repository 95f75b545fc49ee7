"""One student of several tasks beside a student for each: retention by task over seeds, and parameters.

python bench/tasks.py --teachers cartpole.zip,acrobot.zip,lunar.zip --env CartPole-v1,Acrobot-v1,LunarLander-v3 --student mlp:64x64 --alone mlp:64x64
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import distillrl
from distillrl import tasks
from distillrl.config import Config
from distillrl.stats import mean_interval


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("teachers", None), ("env", None), ("student", "mlp:64x64"), ("alone", ""), ("method", "auto")):
        parser.add_argument(f"--{name}", default=default, required=default is None)
    for name, default in (("seeds", 3), ("env-steps", 100_000), ("episodes", 150)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    sources, ids = given.teachers.split(","), tasks.several(given.env)
    base = Config(method=given.method, env_steps=given.env_steps)
    many = replace(base, student=given.student, verdict_episodes=given.episodes)
    runs = [run(sources, given.env, replace(many, seed=seed)) for seed in range(given.seeds)]
    print(f"{given.student} of {len(ids)} tasks, {given.method}: {runs[0]['student']['parameters']:,} parameters, {mean(runs, 'env_steps'):,.0f} steps, {np.mean([r['seconds']['work'] for r in runs]):.1f} s of work")
    for k in range(len(ids)):
        tell(runs[0]["tasks"][k]["name"], [r["tasks"][k]["retention"]["value"] for r in runs])
    total = 0
    for source, one in zip(sources, ids, strict=True) if given.alone else ():
        alone = replace(base, student=given.alone, verdict_episodes=given.episodes // len(ids))
        own = [run(source, one, replace(alone, seed=seed)) for seed in range(given.seeds)]
        total += own[0]["student"]["parameters"]
        tell(f"{one} alone, {own[0]['student']['parameters']:,} parameters, {mean(own, 'env_steps'):,.0f} steps", [r["retention"]["value"] for r in own])
    if total:
        print(f"a student for each: {total:,} parameters together")


def run(teacher: object, env: str, config: Config) -> dict:
    """The verdict of one run, its folder thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return dict(distillrl.distill(teacher, env, config=config, out=Path(folder) / "run").verdict)


def mean(runs: Sequence[dict], key: str) -> float:
    """Of a figure over runs."""
    return float(np.mean([r[key] for r in runs]))


def tell(name: str, values: Sequence[float]) -> None:
    """A line."""
    i = mean_interval(values, 0)
    print(f"  {name}: retention {i.value:.1%} ({i.low:.1%} … {i.high:.1%} over {len(values)} seeds; {', '.join(f'{v:.1%}' for v in values)})", flush=True)


if __name__ == "__main__":
    main()
