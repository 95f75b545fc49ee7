"""Students from recorded play: what was recorded, how it is labelled, how it is weighed; a table of returns (docs/data.md).

    python bench/recorded.py --out runs/recorded --teachers ../shared/teachers [--seeds 3] [--rounds 80] [--only LunarLander]

Each cell is one run, kept as a line of cells.jsonl and not done again. Returns are of 50 fresh episodes, the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import distillrl
from distillrl import evaluation
from distillrl.config import Config
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import DistillError

CASES = {
    "CartPole-v1": ("ppo_cartpole.zip", "mlp:16x16"),
    "LunarLander-v3": ("ppo_lunar.zip", "mlp:64x64"),
    "Pendulum-v1": ("zoo/sac/Pendulum-v1/model.zip", "mlp:64x64"),
}
LABELS = ("action", "distribution", "teacher")
WEIGHTS = ("none", "awr(1)", "crr", "top(0.25)")
NOISE = 0.4


def main() -> None:
    """Fill the cells, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/recorded"))
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--only", default="")
    parser.add_argument("--show", action="store_true", help="only the tables of what is there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(options.out / "cells.jsonl")
    if not options.show:
        for seed in range(options.seeds):
            for env in (e for e in CASES if options.only in e):
                labels(options, cells, env, seed)
                mixed(options, cells, env, seed)
    print(table(cells))


def labels(options: argparse.Namespace, cells: Cells, env: str, seed: int) -> None:
    """From 10 and 50 recorded episodes of the teacher: its actions, its distribution, itself asked anew (once: it says the same)."""
    teacher, student = options.teachers / CASES[env][0], CASES[env][1]
    for episodes in (10, 50):
        data = recorded(options.out, teacher, env, episodes, seed, 0.0)
        for label in LABELS if episodes == 10 and seed == 0 else LABELS[:2]:
            run(options, cells, {"env": env, "data": f"{episodes} episodes", "label": label, "weigh": "none", "seed": seed}, data, teacher, student)


def mixed(options: argparse.Namespace, cells: Cells, env: str, seed: int) -> None:
    """From 50 episodes with much noise in the actions: recorded actions, weighed in several ways."""
    teacher, student = options.teachers / CASES[env][0], CASES[env][1]
    data = recorded(options.out, teacher, env, 50, seed, NOISE)
    for weigh in WEIGHTS:
        run(options, cells, {"env": env, "data": f"50 episodes, noise {NOISE}", "label": "action", "weigh": weigh, "seed": seed}, data, teacher, student)


def recorded(out: Path, teacher: Path, env: str, episodes: int, seed: int, noise: float) -> Path:
    """The recording, made once."""
    path = out / f"{env}-{episodes}-{seed}-{noise:g}"
    if not path.exists():
        distillrl.record(teacher, env, out=path, episodes=episodes, seed=seed, noise=noise)
    return path


def run(options: argparse.Namespace, cells: Cells, cell: dict[str, object], data: Path, teacher: Path, student: str) -> None:
    """One student, unless it is there."""
    if cells.has(cell):
        return
    label = str(cell["label"])
    weigh = None if cell["weigh"] == "none" else str(cell["weigh"])
    config = Config(data=str(data), student=student, label=label, weigh=weigh, until="none", rounds=options.rounds, seed=int(str(cell["seed"])), verdict_episodes=50, hold_out=0.2)
    folder = options.out / "-".join(str(v).replace(" ", "").replace(",", "-") for v in cell.values())
    try:
        distilled = distillrl.distill(teacher if label == "teacher" else None, config=config, out=folder)
        env, seeds = EnvOptions(str(cell["env"]), backend="gymnasium:1"), Seeds(config.seed, "verdict")
        played = evaluation.play(distilled.policy.policy, env, 50, seeds).returns.mean()
    except DistillError as error:
        cells.add({**cell, "error": str(error)})
        return
    held = distilled.verdict["recorded"]
    facts = {"return": float(played), "recorded": held["return"]["mean"], "agreement": held["held_out"]["agreement"]}
    cells.add({**cell, **facts, "rounds": distilled.verdict["rounds"], "seconds": distilled.verdict["seconds"]["work"]})


class Cells:
    """Lines of finished cells."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, object]] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has(self, cell: dict[str, object]) -> bool:
        """Whether it is done."""
        return any(all(row.get(k) == v for k, v in cell.items()) for row in self.rows)

    def add(self, row: dict[str, object]) -> None:
        """Keep it."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def table(cells: Cells) -> str:
    """A row for each kind of data, label and weight: mean return over seeds, the least and the most."""
    groups: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in cells.rows:
        groups.setdefault((row["env"], row["data"], row["label"], row["weigh"]), []).append(row)
    lines = ["| environment | recorded | its return | label | weights | student's return (seeds' least … most) | agreement, held out |", "|---|---|---|---|---|---|---|"]
    for (env, data, label, weigh), rows in groups.items():
        done = [r for r in rows if "error" not in r]
        if not done:
            lines.append(f"| {env} | {data} | | {label} | {weigh} | {rows[0]['error']} | |")
            continue
        returns, recorded_return, agreement = ([float(str(r[k])) for r in done] for k in ("return", "recorded", "agreement"))
        mean = statistics.mean
        lines.append(f"| {env} | {data} | {mean(recorded_return):.1f} | {label} | {weigh} | {mean(returns):.1f} ({min(returns):.1f} … {max(returns):.1f}) | {mean(agreement):.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
