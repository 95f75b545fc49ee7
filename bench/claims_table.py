"""The page of bench/claims.py: one table, and where distilling does not help, each sentence by an interval or a count."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cells import Cells, Job, versions
from scratch import Recipe

AIM = 0.9
PLAYERS = ("distilled", "scratch", "scratch10")
ENOUGH = 3
"""Seeds below which nothing is said of a difference."""


@dataclass(frozen=True)
class Case:
    """An environment with its teacher, the student, the budget of steps, and PPO's settings for the small budget and the large one."""

    teacher: str
    env: str
    student: str
    steps: int
    small: Recipe
    large: Recipe
    episodes: int = 50
    changed: int = 20
    """Episodes of each changed condition."""
    others: Sequence[Recipe] = field(default=())
    """Settings that were tried too."""


@dataclass(frozen=True)
class Plan:
    """The jobs of a case, by player, one a seed; and the steps that the teacher was trained for, where its file says them."""

    case: Case
    jobs: Mapping[str, Sequence[Job]]
    teacher_steps: int | None


@dataclass(frozen=True)
class Seen:
    """What is known of one case: {player: {seed: cell}}."""

    plan: Plan
    cells: Mapping[str, Mapping[int, Mapping[str, Any]]]

    def returns(self, who: str, condition: str) -> dict[int, float]:
        """{seed: mean return}."""
        return {s: statistics.fmean(v["returns"][condition]) for s, v in self.cells[who].items() if condition in v["returns"]}

    def conditions(self) -> list[str]:
        """All that were measured of the teacher but the return itself."""
        first = next(iter(self.cells["teacher"].values()), None)
        return [c for c in first["returns"] if c not in {"unseen", "seen"}] if first else []

    def retention(self, who: str) -> dict[int, float]:
        """{seed: percent} on unseen episodes."""
        taught, found = self.cells["teacher"], {}
        for s, mean in self.returns(who, "unseen").items():
            if s in taught:
                foot = statistics.fmean(taught[s]["random"])
                found[s] = 100 * (mean - foot) / (statistics.fmean(taught[s]["returns"]["unseen"]) - foot)
        return found

    def gap(self, who: str) -> dict[int, float]:
        """{seed: return on episodes it was made on − return on unseen ones, beyond the teacher's own difference}."""
        mine, theirs = ({c: self.returns(w, c) for c in ("seen", "unseen")} for w in (who, "teacher"))
        return {s: (mine["seen"][s] - theirs["seen"][s]) - (mine["unseen"][s] - theirs["unseen"][s]) for s in mine["seen"] if s in theirs["seen"]}

    def reached(self, who: str) -> list[float | None]:
        """Steps after which each seed first reached the aim on the selecting episodes."""
        found: list[float | None] = []
        for s, v in self.cells[who].items():
            if s in self.cells["teacher"]:
                taught = self.cells["teacher"][s]
                foot = statistics.fmean(taught["random_select"])
                goal = foot + AIM * (statistics.fmean(taught["select"]) - foot)
                found.append(next((steps for steps, mean in v["curve"] if mean >= goal), None))
        return found


def look(cells: Cells, made: Plan) -> Seen:
    """What the file of cells holds of a plan."""
    return Seen(made, {who: {f["seed"]: v for (_, f), v in zip(jobs, cells.values(jobs), strict=True) if v is not None} for who, jobs in made.jobs.items()})


def interval(values: Mapping[int, float]) -> Any:
    """Mean over seeds with its 95 % interval; None where nothing is known."""
    from distillrl import stats

    return stats.mean_interval(list(values.values()), 0) if values else None


def gaps(seen: Seen, condition: str, other: str) -> dict[int, float]:
    """{seed: distilled − ``other``}."""
    mine, theirs = seen.returns("distilled", condition), seen.returns(other, condition)
    return {s: mine[s] - theirs[s] for s in mine if s in theirs}


def shown(seen: Seen, condition: str, other: str) -> Any:
    """The interval of that difference, or None where too few seeds are known to say anything."""
    pairs = gaps(seen, condition, other)
    return interval(pairs) if len(pairs) >= ENOUGH else None


def said(found: Any, n: int, sign: str = "") -> str:
    """A figure with its interval."""
    if found is None:
        return "–"
    digits = 3 if abs(found.value) < 1 and not sign else 1
    few = "" if n >= 5 else f", n={n}"
    if n < 2:
        return f"{found.value:{sign}.{digits}f} (n={n})"
    return f"{found.value:{sign}.{digits}f} ({found.low:{sign}.{digits}f} … {found.high:{sign}.{digits}f}{few})"


def steps_to_aim(reached: Sequence[float | None], more: int = 0) -> str:
    """Median of the steps with how many seeds got there."""
    there = sorted(r for r in reached if r is not None)
    if not reached:
        return "–"
    if len(there) * 2 <= len(reached):
        return f"not reached ({len(there)} of {len(reached)})"
    median = sorted(r if r is not None else float("inf") for r in reached)[len(reached) // 2]
    return f"{median + more:,.0f}" + ("" if len(there) == len(reached) else f" ({len(there)} of {len(reached)})")


def rows(seen: Seen) -> list[list[str]]:
    """The rows of a case: measure, teacher, distilled, PPO, PPO × 10, distilled − PPO × 10."""
    made, players = seen.plan, ("teacher", *PLAYERS)

    def counted(of: Any, *extra: Any) -> list[str]:
        return [said(interval(v := of(who, *extra)), len(v)) for who in players]

    lines = [["return, unseen episodes", *counted(seen.returns, "unseen"), difference(seen, "unseen")]]
    lines.append(["retention, %", "100", *[said(interval(v := seen.retention(who)), len(v)) for who in PLAYERS], ""])
    lines.append([f"steps to {AIM:.0%} of the teacher", "", *[steps_to_aim(seen.reached(who)) for who in PLAYERS], ""])
    taught = made.teacher_steps
    if taught is not None:
        lines.append(
            [
                "the same, with the teacher’s training",
                f"{taught:,}",
                steps_to_aim(seen.reached("distilled"), taught),
                *[steps_to_aim(seen.reached(who)) for who in PLAYERS[1:]],
                "",
            ]
        )
    lines.append(["seen − unseen episodes, beyond the teacher’s", "0", *[said(interval(v := seen.gap(who)), len(v), "+") for who in PLAYERS], ""])
    lines += [[condition, *counted(seen.returns, condition), difference(seen, condition)] for condition in seen.conditions()]
    spent = [statistics.median(v["seconds"] for v in seen.cells[who].values()) if seen.cells[who] else None for who in PLAYERS]
    lines.append(["processor seconds of the training, selecting included", "", *["–" if x is None else f"{x:.0f}" for x in spent], ""])
    for name, words in (("multiply_adds", "multiply-adds a decision"), ("latency_us", "latency, µs (the least)"), ("parameters", "parameters")):
        least = [min((v[name] for v in seen.cells[who].values() if v[name] is not None), default=None) for who in players]
        lines.append([words, *["–" if x is None else f"{x:,.0f}" for x in least], ""])
    return lines


def difference(seen: Seen, condition: str) -> str:
    """Distilled − PPO × 10, in bold where its interval excludes 0."""
    pairs = gaps(seen, condition, "scratch10")
    text, found = said(interval(pairs), len(pairs), "+"), shown(seen, condition, "scratch10")
    return f"**{text}**" if found is not None and (found.low > 0 or found.high < 0) else text


def table(seen: Sequence[Seen]) -> str:
    """One table over all cases."""
    head = ["", "teacher", "distilled, N steps", "PPO, N steps", "PPO, 10 N steps", "distilled − PPO, 10 N"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for case in seen:
        name, taught = case.plan.case.env.rpartition(":")[2], case.plan.teacher_steps
        told = f" (taught for {taught:,} steps)" if taught is not None else ""
        lines.append(f"| **{name}**, {case.plan.case.student}, N = {case.plan.case.steps:,}{told} |" + " |" * (len(head) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in rows(case)]
    return "\n".join(lines)


def no_help(seen: Sequence[Seen]) -> str:
    """Where distilling does not help, each sentence by an interval or a count of this table."""
    found = []
    for case in seen:
        name, conditions = case.plan.case.env.rpartition(":")[2], ["unseen", *case.conditions()]
        against = {c: g for c in conditions if (g := shown(case, c, "scratch10")) is not None}
        small = [c for c in conditions if (g := shown(case, c, "scratch")) is not None and g.high < 0]
        behind = {c: g for c in conditions if (g := shown(case, c, "teacher")) is not None}
        if small:
            found.append(f"{name}: even the network that PPO trained with as few steps is **better** under: {_named(small)}.")
        if worse := [c for c, g in against.items() if g.high < 0]:
            found.append(f"{name}: the network that PPO trained with ten times the steps is **better** under: {_named(worse)}.")
        if equal := [c for c, g in against.items() if g.low <= 0 <= g.high]:
            found.append(f"{name}: no difference to PPO with ten times the steps was shown under: {_named(equal)}.")
        if lost := [f"{_named([c])} ({g.value:+.1f})" for c, g in behind.items() if g.high < 0]:
            found.append(f"{name}: the student is below its teacher under: {', '.join(lost)}.")
        found += _budget(case, name)
    found.append("A decision costs exactly what the same network costs that was trained from scratch: the saving is the small network’s, not distilling’s.")
    return "\n".join(f"- {line}" for line in found)


def _named(conditions: Sequence[str]) -> str:
    return ", ".join("the usual conditions" if c == "unseen" else c for c in conditions)


def _budget(case: Seen, name: str) -> list[str]:
    """Whether distilling pays where its teacher has to be trained first."""
    taught, there = case.plan.teacher_steps, sorted(r for r in case.reached("scratch10") if r is not None)
    every = len(case.cells["scratch10"])
    if taught is None or every < ENOUGH:
        return []
    if len(there) * 2 <= every:
        return [f"{name}: with the teacher’s {taught:,} steps counted in, PPO’s 10 N are the smaller budget, and did not reach {AIM:.0%} of the teacher ({len(there)} of {every} seeds)."]
    if there[len(there) // 2] < taught:
        return [f"{name}: where there is no teacher yet, the small network reaches {AIM:.0%} of it from scratch in {there[len(there) // 2]:,.0f} steps, and the teacher’s training alone took {taught:,}."]
    return []


def heading(seen: Sequence[Seen], cells: Cells, seeds: Sequence[int]) -> str:
    """What was measured, in words."""
    jobs = [j for s in seen for group in s.plan.jobs.values() for j in group]
    known = sum(v is not None for v in cells.values(jobs))
    return (
        f"`make bench-claims` made this table: seeds {seeds[0]} to {seeds[-1]}, {known} of {len(jobs)} cells measured, {len(cells.stale(jobs))} of them with an earlier source; {', '.join(f'{k} {v}' for k, v in versions().items())}. "
        "Figures are means over seeds of each seed’s mean return, with 95 % intervals over seeds (so n is the number of seeds); differences are paired by seed, bold where the interval excludes 0.\n"
    )


def tried(cells: Cells, jobs: Sequence[Job]) -> str:
    """The best return on selecting episodes of every setting that was tried for PPO."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for job, value in zip(jobs, cells.values(jobs), strict=True):
        if value is not None:
            told = job[1]
            found.setdefault((told["env"], told["steps"], json.dumps(told["recipe"], sort_keys=True)), []).append(max(mean for _, mean in value["curve"]))
    lines = ["| environment | steps | settings | best return of a run, mean over tuning seeds |", "|---|---|---|---|"]
    for (env, steps, recipe), best in sorted(found.items(), key=lambda item: (item[0][0], item[0][1], -statistics.fmean(item[1]))):
        told = Recipe(**json.loads(recipe))
        manner = f"{told.envs} environments{', VecNormalize' if told.normalize else ''}, rate {'falling to 0' if told.linear else 'constant'}, "
        words = manner + ", ".join(f"{k} {v:g}" for k, v in told.settings.items())
        lines.append(f"| {env} | {steps:,} | {words} | {statistics.fmean(best):.1f} (n={len(best)}) |")
    return "\n".join(lines)
