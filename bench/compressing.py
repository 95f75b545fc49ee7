"""The table of docs/shipping.md on compression: students of real teachers pruned and quantised as far as they hold.

    PYTHONPATH=src python bench/compressing.py run ../shared/teachers/ppo_lunar.zip LunarLander-v3 --seed 0 --out cells/lunar-0.json
    PYTHONPATH=src python bench/compressing.py of runs/pruned runs/int3 --teacher ../shared/teachers/ppo_lunar.zip --env LunarLander-v3 --out cells/lunar-1.json
    PYTHONPATH=src python bench/compressing.py page cells/*.json          # into docs/shipping.md, between its markers

A run distils the student, compresses it, and keeps the steps that were measured; a few minutes each. ``of`` takes folders that `distillrl compress` wrote, one made from the other.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

PAGE = Path(__file__).parents[1] / "docs" / "shipping.md"
MARKS = ("<!-- compression -->", "<!-- end of compression -->")


def run(given: argparse.Namespace) -> None:
    """One cell: distil, compress, write what each step was."""
    from distillrl import compression, distillation
    from distillrl.config import Config
    from distillrl.loading import load

    kwargs = {"continuous": True} if given.env == "LunarLanderContinuous-v3" else {}
    env = "LunarLander-v3" if kwargs else given.env
    base = Config(seed=given.seed, env_kwargs=kwargs, env_steps=given.env_steps)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(seed=given.seed, env_kwargs=kwargs, env_steps=2 * given.env_steps, until="none", verdict_episodes=10)
        distillation.distill(given.teacher, env, student=given.student, config=config, out=Path(folder) / "run")
        made = compression.compress(
            Path(folder) / "run" / "student.safetensors", given.teacher, env, prune=given.prune, sparse=given.sparse, quantise=given.quantise or None,
            retention=given.retention, out=Path(folder) / "small", config=base, show=lambda m: print(m["note"], flush=True) if "note" in m else None,
        )  # fmt: skip
    print("\n".join(compression.sentences(made)))
    told = {"teacher": named(Path(given.teacher)), "teacher_parameters": load(given.teacher).policy.acting_parameters(), "env": given.env, "seed": given.seed, "student": given.student}
    told |= {"prune": given.prune, "sparse": given.sparse, "quantise": given.quantise, "retention": given.retention, "env_steps": given.env_steps}
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    Path(given.out).write_text(json.dumps({**told, "steps": list(made.steps), "reached": made.reached}, indent=1) + "\n", encoding="utf-8")


def named(teacher: Path) -> str:
    """Of a zoo's model.zip the folder tells who it is."""
    return "-".join(teacher.parts[-3:-1]) if teacher.name == "model.zip" else teacher.name


def of(given: argparse.Namespace) -> None:
    """The cell of folders that the command line wrote; the start of all but the first is left out, it is the end of the one before."""
    from distillrl.loading import load

    steps = []
    for folder in given.folders:
        own = json.loads((folder / "compression.json").read_text(encoding="utf-8"))["steps"]
        steps += own if not steps else own[1:]
    told = {"teacher": named(given.teacher), "teacher_parameters": load(given.teacher).policy.acting_parameters(), "env": given.env, "seed": given.seed, "sparse": False}
    given.out.write_text(json.dumps({**told, "steps": steps}, indent=1) + "\n", encoding="utf-8")


def table(cells: list[dict]) -> str:
    """One row for each step of a teacher, all seeds in it: those that came so far, by the try that ended the step."""
    rows = ["| teacher, environment | step | parameters | of the teacher's | file, bytes | of these tensors | retention, by seed | lowest end of 95 % | held |", "|---|---|---|---|---|---|---|---|---|"]
    for who in dict.fromkeys((c["teacher"].removesuffix(".zip"), c["env"], c["sparse"]) for c in cells):
        own = [c for c in cells if (c["teacher"].removesuffix(".zip"), c["env"], c["sparse"]) == who]
        for label in dict.fromkeys(step["step"] for c in own for step in c["steps"]):
            tried = [[s for s in c["steps"] if s["step"] == label] for c in own]
            last = [steps[-1] for steps in tried if steps]
            again = sum(bool(s["held"]) and s["attempt"] > 1 for s in last)
            held = f"{sum(bool(s['held']) for s in last)} of {len(last)}" + (f", {again} at the 2nd try" if again else "")
            shares = " / ".join(f"{s['retention']['value']:.1%}" for s in last)
            numbers = [_range([s[key] for s in last]) for key in ("parameters", "bytes", "tensor_bytes")]
            share = max(s["parameters"] for s in last) / own[0]["teacher_parameters"]
            kind = " (weights)" if who[2] and "out" in label and "weights" not in label else ""
            rows.append(f"| {who[0]}, {who[1]} | {label}{kind} | {numbers[0]} | {share:.2%} | {numbers[1]} | {numbers[2]} | {shares} | {min(s['retention']['low'] for s in last):.1%} | {held} |")
    return "\n".join(rows)


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def page(given: argparse.Namespace) -> None:
    """Put the table of these cells between the page's markers."""
    cells = sorted((json.loads(Path(c).read_text(encoding="utf-8")) for c in given.cells), key=lambda c: (c["env"], c["sparse"], c["seed"]))
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    PAGE.write_text(f"{text[:start]}\n{table(cells)}\n{text[end:]}", encoding="utf-8")
    print(table(cells))


def main() -> None:
    """Run a cell, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("run")
    one.set_defaults(work=run)
    one.add_argument("teacher")
    one.add_argument("env")
    one.add_argument("--student", default="mlp:64x64")
    one.add_argument("--prune", type=float, default=0.9)
    one.add_argument("--sparse", action="store_true")
    one.add_argument("--quantise", default="int2")
    one.add_argument("--retention", type=float, default=0.97)
    one.add_argument("--env-steps", type=int, default=30_000, help="of a step; the student is distilled with twice as many")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", required=True)
    made = verbs.add_parser("of")
    made.set_defaults(work=of)
    made.add_argument("folders", nargs="+", type=Path)
    made.add_argument("--teacher", type=Path, required=True)
    made.add_argument("--env", required=True)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, required=True)
    both = verbs.add_parser("page")
    both.set_defaults(work=page)
    both.add_argument("cells", nargs="+")
    given = parser.parse_args()
    given.work(given)


if __name__ == "__main__":
    main()
