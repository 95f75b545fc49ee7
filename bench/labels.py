"""How much of its teacher a student keeps for so many labels: active labelling against asking about everything, or about states by chance.

Each line: the mean over seeds of retention (of fresh episodes) and agreement with it (in the states of those episodes), with its
standard error, for a budget of labels and a way to choose them. All ways have the same driver (the teacher's first round of 16 times --first states,
then the student), and all but ``all`` pass ten states for each that they ask about.

    python bench/labels.py examples/ppo_lunar.zip=LunarLander-v3 --student mlp:16x16 --budgets 1000,2000,4000
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from distillrl import distill
from distillrl.config import CHOICES, Config, Phase
from distillrl.settling import settle


def once(teacher: str, env: str, student: str, how: str, budget: int, seed: int, first: int, episodes: int) -> tuple[float, float]:
    """Retention and agreement of one run."""
    out = Path(tempfile.mkdtemp())
    base = Config(teacher=teacher, env=env, student=student, seed=seed, until="none", labels=budget, env_steps=100 * budget, backend="gymnasium:1", select_episodes=10, verdict_episodes=episodes)
    terms = settle(base, None, None).config.phase[0].terms
    phase = Phase(beta="power(0)", first=first, choose=how, terms=terms)
    try:
        verdict = distill(config=Config(**{**vars(base), "phase": (phase,)}), out=out / "r").verdict
        return float(verdict["retention"]["value"]), float(verdict["agreement"])
    finally:
        shutil.rmtree(out)


def main() -> None:
    """A line for each budget and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", help="TEACHER=ENVIRONMENT")
    parser.add_argument("--student", default="mlp:16x16")
    parser.add_argument("--budgets", default="1000,2000,4000")
    parser.add_argument("--ways", default=",".join(CHOICES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=16, help="steps of each of 16 slots that the teacher drives at first, all labelled")
    given = parser.parse_args()
    teacher, _, env = given.pair.rpartition("=")
    for budget in map(int, given.budgets.split(",")):
        for how in given.ways.split(","):
            found = [once(teacher, env, given.student, how, budget, seed, given.first, given.episodes) for seed in range(given.first_seed, given.first_seed + given.seeds)]
            columns = {name: list(column) for name, column in zip(("retention", "agreement"), zip(*found, strict=True), strict=True)}
            row = {name: [round(statistics.mean(c), 4), round(statistics.stdev(c) / len(c) ** 0.5, 4) if len(c) > 1 else None] for name, c in columns.items()}
            print(json.dumps({"env": env, "labels": budget, "choose": how, **row, "each": [round(r, 3) for r in columns["retention"]]}), flush=True)


if __name__ == "__main__":
    main()
