"""Does the return collapse when a distilled student goes on by reward, with the critic's warm-up and without?

Each line: the return (mean over seeds, of EPISODES episodes on seeds of their own) when distilling ended, the lowest and the last one
of those measured while PPO went on, as many rounds of it either way, and the share of seeds that fell below 80 % of where they began. One process, about a minute a seed.

    python bench/finetune.py examples/ppo_lunar.zip=LunarLander-v3 --student mlp:16x16 --distil 12000 --reward 40000
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from distillrl import evaluation, methods
from distillrl.beginning import State, begin
from distillrl.config import Config
from distillrl.distillation import _end_of_round, _round  # round by round, to measure in between
from distillrl.envs import Seeds
from distillrl.runs import Folder
from distillrl.settling import Setup, settle

EPISODES = 16
EVERY = 2
"""Rounds of PPO between two measurements."""


def curve(teacher: str, env: str, student: str, seed: int, distil: int, reward: int, changes: dict[str, float], warm: bool) -> dict[str, object]:
    """One seed: returns from the end of distilling on."""
    config = Config(teacher=teacher, env=env, student=student, seed=seed, until="none", env_steps=100 * (distil + reward), backend="gymnasium:1", threads=1)
    setup = settle(config, None, None)
    first, critic, last = methods.with_finetuning((replace(setup.config.phase[0], until=f"spent={distil / config.env_steps}"),))
    rounds = max(1, reward // (last.steps * config.slots))
    phases = (first, critic, replace(last, **changes, rounds=rounds))  # type: ignore[arg-type]  # numbers of the same kind
    setup = replace(setup, config=replace(setup.config, phase=phases if warm else (phases[0], phases[2])))
    state, found = begin(setup), []
    folder = Folder.create(Path(tempfile.mkdtemp()) / "r", "bench")
    rounds, steps = 0, 0
    while not state.ended:
        number = state.progress.phase
        _end_of_round(setup, state, _round(setup, state, folder))
        if number == 0 and state.progress.phase > 0:
            found.append(played(setup, state))
            steps = state.progress.env_steps
        elif number == len(setup.config.phase) - 1:
            rounds += 1
            if rounds % EVERY == 0:
                found.append(played(setup, state))
    state.drive.vector.close()
    return {"seed": seed, "warm": warm, "distilled_at": steps, "returns": [round(x, 1) for x in found]}


def played(setup: Setup, state: State) -> float:
    """The student's mean return now."""
    return float(evaluation.play(state.gradient.averaged, setup.options, EPISODES, Seeds(setup.config.seed, "dry")).returns.mean())


def main() -> None:
    """Seeds with and without the warm-up, then a summary of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", help="TEACHER=ENVIRONMENT")
    parser.add_argument("--student", default="mlp:16x16")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--distil", type=int, default=12_000)
    parser.add_argument("--reward", type=int, default=40_000)
    parser.add_argument("--lr", type=float, help="of PPO, in place of the method's")
    parser.add_argument("--updates", type=int, help="of PPO a round, in place of the method's")
    given = parser.parse_args()
    torch.set_num_threads(1)
    teacher, _, env = given.pair.rpartition("=")
    changes = {name: getattr(given, name) for name in ("lr", "updates") if getattr(given, name) is not None}
    for warm in (True, False):
        rows = []
        for seed in range(given.seeds):
            rows.append(curve(teacher, env, given.student, seed, given.distil, given.reward, changes, warm))
            print(json.dumps(rows[-1]), flush=True)
        runs = [[float(x) for x in r["returns"]] for r in rows]  # type: ignore[attr-defined]  # a list of numbers
        first, low, last = ([f(r) for r in runs] for f in (lambda r: r[0], min, lambda r: r[-1]))
        fell = [lo < b - 0.2 * abs(b) for lo, b in zip(low, first, strict=True)]
        mean = [round(sum(x) / len(x), 1) for x in (first, low, last)]
        print(json.dumps({"env": env, **changes, "warm": warm, "distilled": mean[0], "lowest": mean[1], "last": mean[2], "fell_below_80%": sum(fell) / len(fell)}), flush=True)


if __name__ == "__main__":
    main()
