"""make bench-auto: does ``auto`` keep 97 % with an eighth of the parameters, on teachers that nobody tuned it on?

Each teacher folder or file under TEACHERS (made by scripts/train_teachers.py) is distilled with no other option than the
environment and the student, for three seeds; the median retention is the figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def student_for(parameters: int, inputs: int, outputs: int) -> str:
    """The widest two-layer student of at most an eighth of the teacher's parameters."""
    best = 2
    for width in range(2, 65):
        if (inputs + 1) * width + (width + 1) * width + (width + 1) * outputs <= parameters / 8:
            best = width
    return f"mlp:{best}x{best}"


def once(teacher: Path, env: str, student: str, seed: int) -> dict:
    """One run's verdict."""
    out = Path(tempfile.mkdtemp())
    try:
        subprocess.run([sys.executable, "-m", "distillrl", "distill", str(teacher), "--env", env, "--student", student, "--seed", str(seed), "--quiet", "--out", str(out / "r")], check=False, capture_output=True)
        return json.loads((out / "r" / "verdict.json").read_text())
    finally:
        shutil.rmtree(out)


def main() -> None:
    """A row for each teacher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teachers", nargs="+", help="TEACHER=ENVIRONMENT")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    for pair in given.teachers:
        path, _, env = pair.rpartition("=")
        told = json.loads(subprocess.run([sys.executable, "-m", "distillrl", "info", path, "--json"], capture_output=True, text=True, check=True).stdout)
        from distillrl.loading import load

        spec = load(path).spec
        inputs = sum(max(1, sum(g.shape)) if len(g.shape) < 2 else 0 for g in spec.observations.values())
        student = student_for(told["parameters"], inputs, spec.action.size)
        verdicts = [once(Path(path), env, student, seed) for seed in range(given.seeds)]
        kept = [v["retention"]["value"] for v in verdicts if v["retention"]]
        row = {
            "teacher": path,
            "env": env,
            "teacher_parameters": told["parameters"],
            "student": student,
            "student_parameters": verdicts[0]["student"]["parameters"],
            "retention": [round(k, 4) for k in kept],
            "median": round(statistics.median(kept), 4) if kept else None,
            "steps": [v["env_steps"] for v in verdicts],
            "work_s": [round(v["seconds"]["work"], 2) for v in verdicts],
            "teacher_return": round(verdicts[0]["teacher"]["return"]["mean"], 1),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
