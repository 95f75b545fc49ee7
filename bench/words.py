"""make bench-words: what words are worth. MiniGrid's GoToDoor says in its mission which of four doors is meant.

The teacher is a rule on what is in view and the mission's words. Two students see the same picture: one reads the mission, one doesn't.

    python bench/words.py                      # three seeds; the table goes into docs/students.md
    python bench/words.py --seeds 1 --print
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from cells import ROOT, Cells, Facts, between, count, guarded, leave, run

FIRST_SEED = 101
LEVEL = "MiniGrid-GoToDoor-5x5-v0"
STUDENTS = {
    "reads": ("cnn:8-16:64", "group=image+mission"),
    "doesn't": ("cnn:8-16:64", "group=image"),
}
COLOURS = {"red": 0, "green": 1, "blue": 2, "purple": 3, "yellow": 4, "grey": 5}
EMPTY, DOOR = 1, 4
LEFT, RIGHT, FORWARD, DONE = 0, 1, 2, 6


def rule(words: tuple[str, ...]) -> Any:
    """A teacher: it turns until it sees the door that is meant, goes there, and says that it is done.

    ``image`` [n, 7, 7, 3] is what is before it (column, row, what and colour; it stands at column 3 of row 6), ``mission`` [n, length] the
    numbers of the words in ``words``, which count from 2.
    """
    colour = torch.tensor([-1, -1, *(COLOURS.get(w, -1) for w in words)])

    def act(obs: dict[str, torch.Tensor]) -> torch.Tensor:
        image, meant = obs["image"].long(), colour[obs["mission"].long()].amax(-1)
        there = (image[..., 0] == DOOR) & (image[..., 1] == meant.view(-1, 1, 1))
        place = there.flatten(1).long().argmax(-1)
        seen, aside, ahead = there.flatten(1).any(-1), place // 7 - 3, 6 - place % 7
        free = image[:, 3, 5, 0] == EMPTY
        action = torch.where(aside < 0, LEFT, RIGHT)
        action = torch.where((ahead > 0) & free, FORWARD, action)
        action = torch.where(aside.abs() + ahead == 1, DONE, action)
        return 6.0 * torch.nn.functional.one_hot(torch.where(seen, action, RIGHT), 7)

    return act


def vocabulary() -> tuple[str, ...]:
    """The words that the level's missions are made of."""
    import gymnasium
    import minigrid  # noqa: F401  # it registers its levels

    from distillrl import texts

    return texts.vocabulary(gymnasium.make(LEVEL).observation_space["mission"])[0]  # type: ignore[index]  # a Dict


def distilled(facts: Facts) -> dict[str, Any]:
    """One run, and its verdict's figures."""
    from distillrl.config import Config
    from distillrl.distillation import distill

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            student=facts["student"], see=facts["see"], teacher_sees="image,mission", env=f"minigrid:{LEVEL}", seed=facts["seed"], slots=16,
            env_steps=facts["steps"], backend="gymnasium:1", checkpoint_seconds=1e6, verdict_episodes=200,
        )  # fmt: skip
        verdict = distill(rule(vocabulary()), config=config, out=Path(folder) / "run").verdict
    kept = verdict["retention"]
    return {
        "retention": [round(kept[k], 5) for k in ("value", "low", "high")],
        "returns": [round(verdict[who]["return"]["mean"], 3) for who in ("teacher", "student", "random")],
        "agreement": round(verdict["agreement"], 4),
        "parameters": verdict["student"]["parameters"],
        "env_steps": verdict["env_steps"],
        "imitability": verdict["imitability"],
    }


def table(cells: Cells, work: dict[str, list[Any]]) -> str:
    """Markdown: a row a student."""
    from distillrl import stats

    lines = ["| the mission | `--student` | `--see` | parameters | retention (95 % interval over seeds) | each seed | steps, median |", "|---|---|---|---|---|---|---|"]
    for name, jobs in work.items():
        word, see = STUDENTS[name]
        found = [v for v in cells.values(jobs) if v is not None]
        if not found:
            continue
        kept = [100 * v["retention"][0] for v in found]
        interval = stats.mean_interval(kept, 0)
        steps = sorted(v["env_steps"] for v in found)[len(found) // 2]
        each = ", ".join(f"{k:.1f}" for k in kept)
        lines.append(f"| {name} | `{word}` | `{see}` | {found[0]['parameters']:,} | {interval.value:.1f} % ({interval.low:.1f} to {interval.high:.1f}) | {each} | {steps:,} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what isn't known, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--steps", type=count, default=12_000)
    parser.add_argument("--print", action="store_true", help="print the table, and leave the page as it is")
    parser.add_argument("--fresh", action="store_true", help="measure anew what another source of distillrl has measured")
    parser.add_argument("--cells", type=Path, default=ROOT / "bench" / "cells" / "words.jsonl")
    given = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
    work = {
        name: [(distilled, {"level": LEVEL, "student": word, "see": see, "seed": s, "steps": given.steps, "_name": f"{name} {s}"}) for s in seeds]
        for name, (word, see) in STUDENTS.items()
    }
    cells = Cells(given.cells)
    missing = run(cells, [job for jobs in work.values() for job in jobs], fresh=given.fresh)
    text = table(cells, work)
    print(text)
    if not given.print:
        between(ROOT / "docs" / "students.md", "bench-words", text)
    leave(missing)


if __name__ == "__main__":
    guarded(main)
