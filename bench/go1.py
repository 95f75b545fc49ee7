#!/usr/bin/env python3
"""The flagship: a published quadruped policy (190,860 parameters on the way to its action) as a student of 8,076 or fewer than 2,000.

    pip install 'distillrl[onnx,envpool]'
    python bench/go1.py ../shared/teachers/go1.onnx --students mlp:64x64,mlp:26x18 --seeds 0,1,2 --env-steps 102400

The file is MuJoCo Playground's ``go1_policy.onnx`` (google-deepmind/mujoco_playground, experimental/sim2sim/onnx). Each run is
what ``distillrl distill`` does with the same words; its folder is kept. The table gives, over the runs' fresh episodes of up to
1,000 steps, the return with a 95 % interval, what is retained of the teacher's return on the same seeds, and what it cost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

SETTINGS = "until = 'none'\nselect_episodes = {select}\nverdict_episodes = {verdict}\n"


def run(teacher: str, student: str, seed: int, steps: int, out: Path, env: str, settings: Path) -> dict[str, object]:
    """One run of the command line; its verdict."""
    words = ["distill", teacher, "--env", env, "--backend", "envpool", "--teacher-sees", "state", "--see", "group=state", "--student", student]
    words += ["--env-steps", str(steps), "--seed", str(seed), "--config", str(settings), "--out", str(out), "--quiet"]
    subprocess.run([sys.executable, "-m", "distillrl", *words], check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads((out / "verdict.json").read_text()))


def main() -> None:
    """Run all, print a line each as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--students", default="mlp:64x64,mlp:26x18")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--env-steps", type=int, default=102_400)
    parser.add_argument("--env", default="Go1JoystickFlatTerrain-v1")
    parser.add_argument("--select-episodes", type=int, default=8)
    parser.add_argument("--verdict-episodes", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/go1"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    settings = given.out / "settings.toml"
    settings.write_text(SETTINGS.format(select=given.select_episodes, verdict=given.verdict_episodes))
    print("| student | parameters | seed | return (95 %) | teacher | retention (95 %) | steps | work, s | worst episode |")
    print("|---|---|---|---|---|---|---|---|---|")
    for student in given.students.split(","):
        for seed in map(int, given.seeds.split(",")):
            folder = given.out / f"{student.replace(':', '-')}-{seed}-{given.env_steps}"
            if (folder / "verdict.json").exists():
                verdict = json.loads((folder / "verdict.json").read_text())
            else:
                verdict = run(given.teacher, student, seed, given.env_steps, folder, given.env, settings)
            mine, theirs, kept = verdict["student"], verdict["teacher"], verdict["retention"]
            print(
                f"| {student} | {mine['parameters']:,} | {seed} | {mine['return']['mean']:.2f} ({mine['return']['low']:.2f} … {mine['return']['high']:.2f}) "
                f"| {theirs['return']['mean']:.2f} | {kept['value']:.1%} ({kept['low']:.1%} … {kept['high']:.1%}) "
                f"| {verdict['env_steps']:,} | {verdict['seconds']['work']:.0f} | {mine['return']['worst']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
