"""make bench-students: every family of students, with full and with narrowed sight, on real teachers.

A cell is one run, as `distillrl distill TEACHER --env ENV --student WORD --see … --env-steps N --seed S` makes it, and what its verdict
says on 50 fresh episodes. Cells are kept in bench/cells/students.jsonl, so that a stopped bench goes on; the tables go into
docs/students.md. Seeds are 101 and on, which tuned nothing.

    python bench/students.py                          # all cells, then the tables
    python bench/students.py --part blind             # one part of them: sight, blind, quantities or tree
    python bench/students.py --seconds 600            # stops beginning cells after ten minutes; call it again to go on
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import ROOT, TEACHERS, Cells, Facts, Job, between, count, digest, find, guarded, leave, run

FIRST_SEED = 101
LUNAR, CONTINUOUS = "ppo_lunar.zip", "ppo_lunarc.zip"


@dataclass(frozen=True)
class Row:
    """One student of one teacher, and how many seeds of it are measured."""

    part: str
    teacher: str
    env: str
    student: str
    see: str | None = None
    steps: int = 40_000
    seeds: int = 5
    until: str = "retention=0.99"
    worst_of: int | None = 0


BLIND = "drop=2,3,5"
ROWS = (
    *(Row("sight", LUNAR, "LunarLander-v3", word) for word in ("mlp:16x16", "gru:32", "lstm:32")),
    *(Row("blind", LUNAR, "LunarLander-v3", word, BLIND) for word in ("gru:32", "lstm:32", "mlp:32x32")),
    Row("blind", LUNAR, "LunarLander-v3", "mlp:32x32", f"{BLIND}, stack=4"),
    *(
        Row("quantities", teacher, env, word, seeds=3)
        for teacher, env in (("zoo/sac/Pendulum-v1/model.zip", "Pendulum-v1"), (CONTINUOUS, "LunarLanderContinuous-v3"))
        for word in ("tree:leaves=64", "tree:leaves=256", "linear-tree:leaves=8", "linear-tree:leaves=32", "forest:trees=5,leaves=64", "poly:degree=2,terms=20")
    ),
    Row("tree", LUNAR, "LunarLander-v3", "tree:leaves=100,grow=600,tries=8", seeds=3, until="retention=0.95"),
)


def distilled(facts: Facts) -> dict[str, Any]:
    """One run, and its verdict's figures."""
    import torch

    from distillrl.config import Config
    from distillrl.distillation import distill

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            teacher=facts["_teacher"],
            env=facts["env"],
            student=facts["student"],
            see=facts["see"],
            seed=facts["seed"],
            until=facts["until"],
            env_steps=facts["steps"],
            worst_of=facts["worst_of"],
            backend="gymnasium:1",
            checkpoint_seconds=1e6,
        )
        verdict = distill(config=config, out=Path(folder) / "run").verdict
    kept = verdict["retention"]
    return {
        "retention": None if kept is None else [round(kept[k], 5) for k in ("value", "low", "high")],
        "student": round(verdict["student"]["return"]["mean"], 3),
        "teacher": round(verdict["teacher"]["return"]["mean"], 3),
        "agreement": None if verdict["agreement"] is None else round(verdict["agreement"], 4),
        "parameters": verdict["student"]["parameters"],
        "env_steps": verdict["env_steps"],
        "ended_by": verdict["ended_by"],
        "seconds": round(verdict["seconds"]["work"], 1),
    }


def jobs(row: Row, path: Path) -> list[Job]:
    """A run a seed."""
    shared = {"teacher": digest(str(path)), "env": row.env, "student": row.student, "see": row.see, "steps": row.steps, "until": row.until, "worst_of": row.worst_of}
    return [(distilled, {**shared, "seed": s, "_teacher": str(path), "_name": f"{row.env} {row.student} {row.see or ''} {s}"}) for s in range(FIRST_SEED, FIRST_SEED + row.seeds)]


def kept(values: Sequence[dict[str, Any] | None]) -> list[float | None]:
    """Retention in percent by seed."""
    return [None if v is None or v["retention"] is None else 100 * v["retention"][0] for v in values]


def line(row: Row, values: Sequence[dict[str, Any] | None]) -> str:
    """A row of the table."""
    from distillrl import stats

    known = [v for v in values if v is not None]
    figures = [k for k in kept(values) if k is not None]
    told = f"| `{row.student}` | {f'`{row.see}`' if row.see else 'all'} |"
    if not figures:
        return f"{told} not measured | | | |"
    interval = stats.mean_interval(figures, 0)
    each = ", ".join(f"{f:.1f}" for f in figures)
    return (
        f"{told} {statistics.median(v['parameters'] for v in known):,.0f} | {interval.value:.1f} % ({interval.low:.1f} to {interval.high:.1f}) | {each} | "
        f"{statistics.median(v['env_steps'] for v in known):,.0f} |"
    )


def difference(first: Sequence[dict[str, Any] | None], second: Sequence[dict[str, Any] | None]) -> str:
    """By how many points one student keeps more than another, paired by seed."""
    from distillrl import stats

    pairs = [a - b for a, b in zip(kept(first), kept(second), strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return ""
    interval = stats.mean_interval(pairs, 0)
    return f"{interval.value:+.1f} points ({interval.low:.1f} to {interval.high:.1f}, {len(pairs)} seeds in pairs)"


def tables(cells: Cells, found: Sequence[tuple[Row, list[Job]]]) -> str:
    """Markdown: a table for each teacher and part."""
    lines: list[str] = []
    head = None
    for row, work in found:
        title = (row.part, row.env, row.teacher)
        if title != head:
            head = title
            sight = " without velocities" if row.part == "blind" else ""
            lines += ["", f"**{row.env}{sight}**, `{row.teacher}`, at most {row.steps:,} steps.", "", "| `--student` | sees | parameters | retention (95 % interval over seeds) | each seed | steps, median |", "|---|---|---|---|---|---|"]
        lines.append(line(row, cells.values(work)))
    blind = {(row.student, row.see): cells.values(work) for row, work in found if row.part == "blind"}
    for word in ("gru:32", "lstm:32"):
        if (word, BLIND) in blind and ("mlp:32x32", BLIND) in blind and (told := difference(blind[word, BLIND], blind["mlp:32x32", BLIND])):
            lines += ["", f"Without velocities `{word}` keeps more than `mlp:32x32` does: {told}."]
    return "\n".join(lines)


def main() -> None:
    """Measure what isn't known, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, nargs="+", default=list(TEACHERS), help="folders in which the teachers are looked for")
    parser.add_argument("--part", action="append", choices=sorted({row.part for row in ROWS}), help="these parts alone; may be repeated")
    parser.add_argument("--workers", type=count, default=1)
    parser.add_argument("--seconds", type=float, help="begin no cell after so long")
    parser.add_argument("--print", action="store_true", help="print the tables, and leave the page as it is")
    parser.add_argument("--fresh", action="store_true", help="measure anew what another source of distillrl has measured")
    parser.add_argument("--cells", type=Path, default=ROOT / "bench" / "cells" / "students.jsonl")
    given = parser.parse_args()
    cells, found = Cells(given.cells), []
    for row in ROWS:
        path = find(row.teacher, [Path.cwd(), *given.teachers])
        if path is None:
            print(f"{row.env} is left out: there is no {row.teacher} in {', '.join(map(str, given.teachers))}", file=sys.stderr)
        else:
            found.append((row, jobs(row, path)))
    asked = [(row, work) for row, work in found if not given.part or row.part in given.part]
    most = max((len(work) for _, work in asked), default=0)
    missing = run(cells, [work[i] for i in range(most) for _, work in asked if i < len(work)], workers=given.workers, seconds=given.seconds, fresh=given.fresh)
    text = tables(cells, found)
    print(text)
    if not given.print:
        between(ROOT / "docs" / "students.md", "bench-students", text)
    leave(missing)


if __name__ == "__main__":
    guarded(main)
