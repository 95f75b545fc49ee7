"""Does a small student learn sooner from its teacher's weights: anew, loaded directly, or by shrinking in steps (iterative)?

Each line: the mean retention over seeds (of 30 fresh episodes) after so many environment steps in all. ``direct`` starts the student
from the teacher's most important neurons; ``iterative`` goes by way of a student of the geometric mean width, which gets half of the steps.

    python bench/inherit.py examples/ppo_lunar.zip=LunarLander-v3 --width 16 --teacher-width 256 --steps 4000,8000
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from distillrl import distill
from distillrl.config import Config


def retained(way: str, teacher: str, env: str, widths: tuple[int, int], activation: str, steps: int, seed: int) -> float:
    """One seed."""
    folder = Path(tempfile.mkdtemp())
    base = {"teacher": teacher, "env": env, "seed": seed, "until": "none", "backend": "gymnasium:1", "select_episodes": 8, "verdict_episodes": 30}

    def run(name: str, width: int, share: int, inherit: str | None) -> float:
        config = Config(**base, student=f"mlp:{width}x{width}:{activation}", env_steps=share, inherit=inherit)
        return float(distill(config=config, out=folder / name).verdict["retention"]["value"])

    try:
        if way == "iterative":
            run("a", round((widths[0] * widths[1]) ** 0.5), steps // 2, "teacher")
            return run("b", widths[0], steps // 2, str(folder / "a" / "student.safetensors"))
        return run("a", widths[0], steps, "teacher" if way == "direct" else None)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """A line for each number of steps and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", help="TEACHER=ENVIRONMENT")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--teacher-width", type=int, default=256)
    parser.add_argument("--activation", default="tanh")
    parser.add_argument("--steps", default="4000,8000")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    teacher, _, env = given.pair.rpartition("=")
    for steps in map(int, given.steps.split(",")):
        for way in ("anew", "direct", "iterative"):
            found = [retained(way, teacher, env, (given.width, given.teacher_width), given.activation, steps, seed) for seed in range(given.seeds)]
            error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else None
            print(json.dumps({"env": env, "steps": steps, "way": way, "retention": round(statistics.mean(found), 4), "standard_error": error and round(error, 4), "each": [round(x, 3) for x in found]}), flush=True)


if __name__ == "__main__":
    main()
