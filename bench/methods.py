"""make bench-methods: every method of `distillrl methods`, on real teachers, with one budget of environment steps and labels.

Each method that suits the teacher and the actions makes a student of the same size from the same number of steps, on seeds that
tuned nothing; the retention of the student that did best on selecting seeds is measured on 50 fresh episodes a seed. Cells are
kept in bench/cells/methods.jsonl, so that a stopped bench goes on; the table goes into docs/methods.md.

    python bench/methods.py                          # all cells, then the table
    python bench/methods.py --seconds 600            # stops beginning cells after ten minutes; call it again to go on
    python bench/methods.py --quick                  # two environments, a fifth of the steps, three seeds, about 5 minutes; the table is only printed
    python bench/methods.py --case DQN.zip=CartPole-v1 --seeds 3      # other teachers; the table is only printed
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import ROOT, TEACHERS, Cells, Facts, Job, between, count, digest, find, guarded, leave, plain, rounded, run, versions

FIRST_SEED = 101
SEEDS = 5
AIM = 0.95
MARGIN = 2.0
"""Points by which a method must beat `auto` to take its place."""
ENOUGH = 3
"""Seeds below which a method is not compared."""
TREE = "tree:leaves=128"
RESAMPLES = 10_000


@dataclass(frozen=True)
class Case:
    """A teacher, its environment, and what is learnt from it."""

    teacher: str
    env: str
    steps: int = 20_000
    student: str = "mlp:16x16"
    episodes: int = 50


CASES = (
    Case("ppo_cartpole.zip", "CartPole-v1", 10_000),
    Case("zoo/a2c/Pendulum-v1/model.zip", "Pendulum-v1", 10_000),
    Case("ppo_lunar.zip", "LunarLander-v3", 3_000),
    Case("ppo_lunarc.zip", "LunarLanderContinuous-v3", 8_000),
)
QUICK = (Case("ppo_cartpole.zip", "CartPole-v1", 4096, episodes=10), Case("zoo/a2c/Pendulum-v1/model.zip", "Pendulum-v1", 4096, episodes=10))


def baseline(facts: Facts) -> dict[str, Any]:
    """The teacher's and the random policy's returns on the verdict's episodes."""
    import torch

    from distillrl import envs, evaluation, loading
    from distillrl.envs import EnvOptions, Seeds

    torch.set_num_threads(1)
    options, seeds = EnvOptions(facts["env"], backend="gymnasium:1"), Seeds(facts["seed"], "verdict")
    vector = envs.make(options, 1, seeds)
    spec = vector.spec
    vector.close()
    players = {
        "teacher": loading.load(facts["_teacher"], spec=spec).policy,
        "random": evaluation.Random(spec, torch.Generator().manual_seed(facts["seed"] + 1)),
    }
    return {who: rounded(evaluation.play(p, options, facts["episodes"], seeds).returns) for who, p in players.items()}


def distilled(facts: Facts) -> dict[str, Any]:
    """One run to the end of its budget, and its kept student's returns on the verdict's episodes."""
    from distillrl import evaluation
    from distillrl.config import Config
    from distillrl.distillation import distill
    from distillrl.envs import EnvOptions, Seeds

    curve: list[list[float]] = []

    def show(metrics: Any) -> None:
        if metrics.get("retention") is not None:
            curve.append([metrics["env_steps"], round(metrics["retention"], 4)])

    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            teacher=facts["_teacher"],
            env=facts["env"],
            student=facts["student"],
            method=facts["_method"],
            seed=facts["seed"],
            until="none",
            env_steps=facts["steps"],
            labels=facts["steps"],
            backend="gymnasium:1",
            verdict_episodes=1,
            checkpoint_seconds=1e6,
        )
        done = distill(config=config, out=Path(folder) / "run", show=show)
    seconds = time.process_time() - began
    seeds = Seeds(facts["seed"], "verdict")
    played = evaluation.play(done.policy.policy, EnvOptions(facts["env"], backend="gymnasium:1"), facts["episodes"], seeds)
    verdict = done.verdict
    return {
        "returns": rounded(played.returns),
        "curve": curve,
        "env_steps": verdict["env_steps"],
        "labels": verdict["teacher_labels"],
        "rounds": verdict["rounds"],
        "kept_round": verdict["kept_round"],
        "parameters": verdict["student"]["parameters"],
        "seconds": round(seconds, 2),
    }


@dataclass(frozen=True)
class Plan:
    """What there is to measure of one case: a job a seed for the baseline and for each method, or why a method isn't for it."""

    case: Case
    baselines: list[Job]
    methods: dict[str, list[Job]]
    unsuited: dict[str, str]


def plan(case: Case, path: Path, seeds: Sequence[int], only: Sequence[str]) -> Plan:
    """The jobs of a case, each method's phases in their key."""
    from distillrl import envs, loading, methods
    from distillrl.beginning import begin
    from distillrl.config import Config
    from distillrl.envs import EnvOptions, Seeds
    from distillrl.errors import DistillError, Misconfigured
    from distillrl.settling import settle

    vector = envs.make(EnvOptions(case.env, backend="gymnasium:1"), 1, Seeds(0, "dry"))
    spec = vector.spec
    vector.close()
    policy = loading.load(path, spec=spec).policy
    if found := envs.differences(policy.spec, spec):
        raise Misconfigured(f"{case.teacher} does not fit {case.env}: {'; '.join(found)}")
    gives = policy.gives
    shared = {"teacher": digest(str(path)), "env": case.env, "episodes": case.episodes, "_teacher": str(path)}
    made = Plan(case, [(baseline, {**shared, "what": "baseline", "seed": s, "_name": f"baseline {case.env} {s}"}) for s in seeds], {}, {})
    for name in only or [n for n, m in methods.METHODS.items() if m.driver != "recorded play"]:
        student = TREE if name == "viper-tree" else case.student
        try:
            phases = [plain(phase) for phase in methods.expand(name, gives, spec)]
            tried = settle(Config(teacher=str(path), env=case.env, student=student, method=name, backend="gymnasium:1"), None, None)
            begin(tried).drive.vector.close()
        except DistillError as error:
            made.unsuited[name] = str(error)
            continue
        facts = {**shared, "what": "method", "steps": case.steps, "student": student, "phases": phases, "_method": name}
        made.methods[name] = [(distilled, {**facts, "seed": s, "_name": f"{name} {case.env} {case.steps} {s}"}) for s in seeds]
    return made


def retentions(cells: Cells, made: Plan, name: str) -> dict[int, float]:
    """{seed: retention} of what is known."""
    found = {}
    for (_, facts), base, value in zip(made.methods[name], cells.values(made.baselines), cells.values(made.methods[name]), strict=True):
        if base is not None and value is not None:
            foot = statistics.fmean(base["random"])
            found[facts["seed"]] = (statistics.fmean(value["returns"]) - foot) / (statistics.fmean(base["teacher"]) - foot)
    return found


def entry(cells: Cells, made: Plan, name: str) -> str:
    """Retention in percent with its interval over seeds, the steps to the aim, seconds."""
    from distillrl import stats

    if name in made.unsuited:
        return "not for it"
    kept = list(retentions(cells, made, name).values())
    if not kept:
        return ""
    values = [v for v in cells.values(made.methods[name]) if v is not None]
    interval = stats.mean_interval([100 * k for k in kept], 0)
    reached = [next((steps for steps, share in v["curve"] if share >= AIM), None) for v in values]
    there = sorted(r for r in reached if r is not None)
    many = "" if len(there) == len(values) else f" ({len(there)} of {len(values)})"
    steps = f"{there[len(there) // 2]:,.0f}{many}" if there else "never"
    few = "" if len(kept) >= 5 else f", n={len(kept)}"
    return f"{interval.value:.1f} ({interval.low:.1f} … {interval.high:.1f}{few}); {steps}; {statistics.median(v['seconds'] for v in values):.0f} s"


def against_auto(cells: Cells, plans: Sequence[Plan], name: str) -> Any:
    """Points of retention above `auto`, paired by seed, stratified by environment; None where there is nothing to compare."""
    from distillrl import stats

    strata = []
    for made in plans:
        if name in made.methods and "auto" in made.methods:
            mine, theirs = retentions(cells, made, name), retentions(cells, made, "auto")
            pairs = [100 * (mine[s] - theirs[s]) for s in mine if s in theirs]
            if len(pairs) >= ENOUGH:
                strata.append(pairs)
    return stats.statistic_interval(strata, stats.mean, 0, resamples=RESAMPLES) if strata else None


def table(cells: Cells, plans: Sequence[Plan]) -> str:
    """Markdown: a row a method, a column an environment, and the difference to `auto` over all of them."""
    names = list(dict.fromkeys([*(n for p in plans for n in p.methods), *(n for p in plans for n in p.unsuited)]))
    lines = ["| method | " + " | ".join(f"{p.case.env}, {p.case.steps:,}" for p in plans) + " | against `auto`, points |", "|---|" + "---|" * (len(plans) + 1)]
    better = []
    for name in names:
        gap = None if name == "auto" else against_auto(cells, plans, name)
        if gap is not None and gap.low > 0 and gap.value > MARGIN:
            better.append(f"`{name}` (+{gap.value:.1f})")
        same = all(name in p.methods and "auto" in p.methods and p.methods[name][0][1]["phases"] == p.methods["auto"][0][1]["phases"] for p in plans)
        said = "" if gap is None else "the same" if same else f"{gap.value:+.1f} ({gap.low:+.1f} … {gap.high:+.1f})"
        lines.append(f"| `{name}` | " + " | ".join(entry(cells, p, name) for p in plans) + f" | {said} |")
    if all(against_auto(cells, plans, name) is None for name in names if name != "auto"):
        return "\n".join([*lines, "", f"Too few seeds so far to compare methods: {ENOUGH} of one environment are needed."])
    verdict = (
        f"**{', '.join(better)} beat `auto` by more than {MARGIN:g} points with an interval above 0.**"
        if better
        else f"No method beats `auto` by more than {MARGIN:g} points with an interval above 0, as far as they were compared (no correction for comparing many, which would only widen the intervals)."
    )
    return "\n".join([*lines, "", verdict])


def heading(cells: Cells, plans: Sequence[Plan], seeds: Sequence[int]) -> str:
    """What was measured, in words."""
    where = ", ".join(f"{p.case.env} ({p.case.steps:,} steps, {p.case.student}, {p.case.teacher})" for p in plans)
    jobs = [j for p in plans for j in [*p.baselines, *(j for m in p.methods.values() for j in m)]]
    measured = sum(v is not None for v in cells.values(jobs))
    episodes = sorted({p.case.episodes for p in plans})
    return (
        f"`make bench-methods` made this table{'' if len(seeds) == SEEDS else f' (by `--seeds {len(seeds)}`)'} (seeds {seeds[0]} to {seeds[-1]}, which tuned nothing; {measured} of {len(jobs)} cells measured, {len(cells.stale(jobs))} of them with an earlier source; "
        f"{', '.join(f'{k} {v}' for k, v in versions().items())}).\n"
        f"{where}. `viper-tree` grows `{TREE}`. Each entry: retention in percent on {' or '.join(map(str, episodes))} fresh episodes a seed, with the 95 % interval over "
        f"seeds; the median of the steps after which the student first kept {AIM:.0%} on the 20 selecting episodes (looked at from 4,096 steps on, every 30 %); the median of the processor's seconds, selecting included.\n"
    )


def reasons(plans: Sequence[Plan]) -> str:
    """Why methods were left out."""
    lines = [f"- `{name}` on {p.case.env}: {why.partition(';')[0]}." for p in plans for name, why in p.unsuited.items()]
    return "\n".join(["", "Left out:", "", *lines]) if lines else ""


def main() -> None:
    """Measure what isn't known, and write the table."""
    from distillrl.methods import METHODS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, nargs="+", default=list(TEACHERS), help="folders in which the teachers are looked for")
    parser.add_argument("--case", action="append", metavar="TEACHER=ENV", help="these instead of the built-in ones; may be repeated")
    parser.add_argument("--method", action="append", help="these methods alone, and auto; may be repeated")
    parser.add_argument("--seeds", type=count, default=SEEDS)
    parser.add_argument("--steps", type=count, default=20_000, help="of a --case")
    parser.add_argument("--student", default="mlp:16x16", help="of a --case")
    parser.add_argument("--workers", type=count, default=1)
    parser.add_argument("--seconds", type=float, help="begin no cell after so long")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--print", action="store_true", help="print the table, and leave the page as it is")
    parser.add_argument("--fresh", action="store_true", help="measure anew what another source of distillrl has measured")
    parser.add_argument("--cells", type=Path, default=ROOT / "bench" / "cells" / "methods.jsonl")
    given = parser.parse_args()
    wrong = [c for c in given.case or [] if "=" not in c] + [m for m in given.method or [] if m not in METHODS]
    if wrong:
        parser.error(f"{wrong[0]!r}: a --case is TEACHER=ENV, a --method one of {', '.join(METHODS)}")
    cases = [Case(t, e, given.steps, given.student) for t, _, e in (c.rpartition("=") for c in given.case or [])] or list(QUICK if given.quick else CASES)
    seeds = range(FIRST_SEED, FIRST_SEED + (min(3, given.seeds) if given.quick else given.seeds))
    only = ["auto", *(m for m in given.method if m != "auto")] if given.method else []
    cells, plans = Cells(given.cells), []
    for case in cases:
        path = find(case.teacher, [Path.cwd(), *given.teachers])
        if path is None:
            print(f"{case.env} is left out: there is no {case.teacher} in {', '.join(map(str, given.teachers))} (--teachers names other folders)", file=sys.stderr)
            continue
        plans.append(plan(case, path, seeds, only))
    if not plans:
        raise SystemExit("no teacher was found, so there is nothing to measure")
    groups = [[p.baselines[i], *(jobs[i] for jobs in p.methods.values())] for i in range(len(seeds)) for p in plans]
    missing = run(cells, [job for group in groups for job in group], workers=given.workers, seconds=given.seconds, fresh=given.fresh)
    text = heading(cells, plans, seeds) + "\n" + table(cells, plans) + reasons(plans)
    print(text)
    if not (given.print or given.quick or given.case or given.method or len(plans) < len(CASES)):
        between(ROOT / "docs" / "methods.md", "bench-methods", text)
    leave(missing)


if __name__ == "__main__":
    guarded(main)
