"""What a search of twelve sizes takes beside one of the largest alone: the same environment steps, in one process, by turns.

    PYTHONPATH=src python bench/search.py --teacher ../shared/teachers/ppo_lunar.zip --env LunarLander-v3

Seconds are of this process's CPU time, so that other work on the machine counts little; looks (playing to decide who goes on) stand apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from distillrl import search as searching
from distillrl.config import Config
from distillrl.limits import SIZES


def measured(teacher: str, env: str, sizes: tuple[str, ...], steps: int, seed: int) -> tuple[float, float, str]:
    """CPU seconds of learning, CPU seconds of looks and all else but the verdict, and who won."""
    spent = {"round": 0.0, "look": 0.0}
    plain = {"round": searching._round, "look": searching._look}

    def timed(name: str):
        def run(*given):
            began = time.process_time()
            plain[name](*given)
            spent[name] += time.process_time() - began

        return run

    searching._round, searching._look, episodes = timed("round"), timed("look"), searching.VERDICT_EPISODES
    searching.VERDICT_EPISODES = 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = searching.search(teacher, env, retention=2.0, sizes=sizes, episodes=2, out=Path(folder) / "run", config=Config(env_steps=steps, seed=seed, backend="gymnasium:1"))
    finally:
        searching._round, searching._look, searching.VERDICT_EPISODES = plain["round"], plain["look"], episodes
    return spent["round"], spent["look"], ", ".join(r["student"] for r in found.frontier if not r["left"])


def main() -> None:
    """Print the table; nobody can hold a retention of 2, so that none leaves the race for having won it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--env-steps", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=2, help="of both, by turns")
    given = parser.parse_args()
    words = tuple(w.strip() for w in SIZES.split(","))
    print("| | learning, CPU s | looks, CPU s | left at the end |\n|---|---|---|---|")
    ratios = []
    for seed in range(given.rounds):
        alone = measured(given.teacher, given.env, words[-1:], given.env_steps, seed)
        all_of_them = measured(given.teacher, given.env, words, given.env_steps, seed)
        ratios.append((all_of_them[0] / alone[0], (all_of_them[0] + all_of_them[1]) / (alone[0] + alone[1])))
        for name, row in (("largest alone", alone), ("twelve", all_of_them)):
            print(f"| {name} | {row[0]:.2f} | {row[1]:.2f} | {row[2]} |", flush=True)
    print("ratio of learning, and with looks: " + "; ".join(f"{a:.2f}, {b:.2f}" for a, b in ratios))


if __name__ == "__main__":
    main()
