"""Does it help a student to start from its teacher's weights: none of them, those chosen at once («direct»), or by stages of ever smaller networks («iterative»)?

All have the same number of environment steps; the iterative ones share theirs out evenly over the stages, each of which inherits from the
student of the stage before. Each line: retention on fresh episodes, seed by seed, and the mean. One process, some seconds a run.

    python bench/inherit.py examples/ppo_lunar.zip=LunarLander-v3 --stages 96x96,36x36,16x16 --steps 3000 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import distillrl
from distillrl.config import Config

WAYS = ("none", "direct", "iterative")


def distilled(teacher: str, env: str, sizes: list[str], steps: int, seed: int, inherit: str | None) -> dict[str, object]:
    """The verdict of the last of these students; each gets as many steps, and inherits from the one before (the first from ``inherit``)."""
    with tempfile.TemporaryDirectory() as place:
        for i, size in enumerate(sizes):
            config = Config(student=f"mlp:{size}", seed=seed, until="none", env_steps=steps // len(sizes), inherit=inherit, verdict_episodes=100, backend="gymnasium:1")
            verdict = dict(distillrl.distill(teacher, env, config=config, out=Path(place) / str(i)).verdict)
            inherit = str(Path(place) / str(i) / "student.safetensors")
    return verdict


def main() -> None:
    """Every way for every seed, then a summary of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", help="TEACHER=ENVIRONMENT")
    parser.add_argument("--stages", default="96x96,36x36,16x16", help="sizes of the iterative way; the last is every way's student")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    teacher, _, env = given.pair.rpartition("=")
    stages = given.stages.split(",")
    for way in WAYS:
        sizes = stages if way == "iterative" else stages[-1:]
        kept = []
        for seed in range(given.seeds):
            verdict = distilled(teacher, env, sizes, given.steps, seed, None if way == "none" else "teacher")
            kept.append(round(verdict["retention"]["value"], 4))  # type: ignore[index]  # a mapping
        print(json.dumps({"env": env, "steps": given.steps, "student": stages[-1], "inherits": way, "retention": kept, "mean": round(sum(kept) / len(kept), 4)}), flush=True)


if __name__ == "__main__":
    main()
