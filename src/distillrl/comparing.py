"""Several runs on one page: a table with intervals, the frontier of size, return and latency, profiles, and who is better.

Runs of the same method and student are a group; its runs of one environment are a stratum, as in rliable. What one run
lacks is left blank for it, and said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distillrl import pictures, stats
from distillrl.judging import Judgement, judge
from distillrl.reading import Reading, look, number
from distillrl.sections import Cell, Figure, Section, Table, interval_of, plain, with_interval

THRESHOLDS = np.linspace(0, 1.2, 49)
ANSWERS = {"ship": "✓ ship", "no": "✕ don’t", "unknown": "? not shown"}
COLUMNS = (
    *("run", "ship?", "environment", "method and student", "retention", "return", "worst episode", "agreement"),
    *("parameters", "µs a state", "steps", "labels", "seconds"),
)
_MOST_LINES = 6
ENOUGH = 3
"""Runs of a method below which nothing is said of its chances against another."""


def page(runs: Sequence[Reading]) -> dict[str, Any]:
    """Everything that the template names, without the version."""
    judged = [judge(run) for run in runs]
    count = {answer: sum(j.answer == answer for j in judged) for answer in ANSWERS}
    sentences = [f"Of {len(runs)} runs {count['ship']} may be shipped, {count['no']} may not, and of {count['unknown']} it was not shown."]
    parts = [_table(runs, judged), _frontiers(runs), _profiles(runs), _groups(runs), _problems(runs)]
    kept = [part for part in parts if part is not None]
    return {
        "title": f"{len(runs)} runs compared",
        "name": f"{len(runs)} runs",
        "subtitle": ", ".join(sorted({_env(run) for run in runs})),
        "banner": {"answer": "plain", "sign": "", "headline": _headline(runs, judged), "sentences": sentences},
        "keys": [],
        "sections": kept,
        "few": any(cell.few for part in kept for table in part.tables for row in table.rows for cell in row),
    }


def _headline(runs: Sequence[Reading], judged: Sequence[Judgement]) -> str:
    """The smallest student that may be shipped, where there is one and all are of one environment."""
    fit = [(number(look(r.verdict, "student", "parameters")), r) for r, j in zip(runs, judged, strict=True) if j.answer == "ship"]
    sized = [(size, r) for size, r in fit if size is not None]
    if not sized or len({_env(run) for run in runs}) > 1:
        return f"{len(runs)} runs side by side"
    size, best = min(sized, key=lambda x: x[0])
    return f"{best.name} is the smallest that may be shipped: {size:,.0f} parameters."


def _table(runs: Sequence[Reading], judged: Sequence[Judgement]) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for i, (run, judgement) in enumerate(zip(runs, judged, strict=True)):
        few = (number(look(run.verdict, "student", "return", "episodes")) or stats.FEW) < stats.FEW
        rows.append(
            (
                Cell(f"{i + 1}  {run.name}", float(i)),
                Cell(ANSWERS[judgement.answer]),
                Cell(_env(run)),
                Cell(_group(run)),
                with_interval(look(run.verdict, "retention"), share=True, few=few),
                with_interval(look(run.verdict, "student", "return"), few=few),
                plain(look(run.verdict, "student", "return", "worst")),
                _share(look(run.verdict, "agreement")),
                plain(look(run.verdict, "student", "parameters"), 9),
                plain(look(run.verdict, "student", "latency_us"), 3),
                plain(look(run.verdict, "env_steps"), 9),
                plain(look(run.verdict, "teacher_labels"), 9),
                plain(look(run.verdict, "seconds", "work"), 3),
            )
        )
    rows += _teachers(runs)
    return Section("table", "All of them", tables=(Table(COLUMNS, tuple(rows)),))


def _teachers(runs: Sequence[Reading]) -> list[tuple[Cell, ...]]:
    """A row for each environment's teachers, by what their files are."""
    found: dict[tuple[str, str], tuple[Cell, ...]] = {}
    for run in runs:
        known = look(run.verdict, "teacher")
        if look(known, "return") is None:
            continue
        sha = str(look(run.header, "provenance", "teacher", "sha256"))
        made = look(run.header, "provenance", "teacher")
        name = " ".join(str(x) for x in (look(made, "format"), look(made, "algorithm")) if x)
        earned, blank = look(known, "return"), Cell("")
        found.setdefault(
            (_env(run), sha),
            (
                Cell("teacher", float(len(runs) + len(found))),
                blank,
                Cell(_env(run)),
                Cell(name),
                blank,
                with_interval(earned),
                plain(look(earned, "worst")),
                blank,
                plain(look(known, "parameters"), 9),
                plain(look(known, "latency_us"), 3),
                *(blank for _ in range(3)),
            ),
        )
    return list(found.values())


def _frontiers(runs: Sequence[Reading]) -> Section | None:
    """One picture an environment: parameters against retention, ring size by latency."""
    figures = []
    for env in sorted({_env(run) for run in runs}):
        rows = []
        for i, run in enumerate(runs):
            kept, size = look(run.verdict, "retention"), number(look(run.verdict, "student", "parameters"))
            if _env(run) == env and size and number(look(kept, "value")) is not None:
                rows.append(
                    {
                        "x": size,
                        "y": kept["value"],
                        "low": kept["low"],
                        "high": kept["high"],
                        "latency": number(look(run.verdict, "student", "latency_us")),
                        "label": i + 1,
                    }
                )
        rows += _squares(runs, env)
        if len(rows) > 1:
            svg = pictures.frontier(rows, "parameters", "retention", f"Size and retention on {env}")
            figures.append(
                Figure(
                    env,
                    "Numbers are the table’s runs, squares are teachers; a larger ring takes longer for one state. Up and to the left is better.",
                    svg,
                )
            )
    return Section("frontier", "What size buys", figures=tuple(figures)) if figures else None


def _squares(runs: Sequence[Reading], env: str) -> list[dict[str, Any]]:
    """An environment's teachers, by size and by name where they are several."""
    found: dict[float, tuple[float | None, str]] = {}
    for run in runs:
        size = number(look(run.verdict, "teacher", "parameters"))
        if _env(run) == env and size:
            found.setdefault(size, (number(look(run.verdict, "teacher", "latency_us")), str(look(run.header, "provenance", "teacher", "algorithm") or "")))
    names = [f"teacher {name}".strip() if len(found) > 1 else "teacher" for _, name in found.values()]
    return [{"x": size, "y": 1.0, "low": 1.0, "high": 1.0, "latency": slow, "label": name, "teacher": True} for (size, (slow, _)), name in zip(found.items(), names, strict=True)]


def _profiles(runs: Sequence[Reading]) -> Section | None:
    """Share of episodes above each score, run by run: what a mean hides."""
    figures = []
    for env in sorted({_env(run) for run in runs}):
        scores = {f"{i + 1}": found for i, run in enumerate(runs) if _env(run) == env and (found := _scores(run)) is not None}
        if len(scores) > 1:
            lines = {}
            for name, values in list(scores.items())[:_MOST_LINES]:
                profile = stats.performance_profile([values], THRESHOLDS, 0, resamples=500)
                lines[name] = (profile.value.tolist(), profile.low.tolist(), profile.high.tolist())
            svg = pictures.bands(
                THRESHOLDS.tolist(), lines, ("score τ (0 random, 1 teacher)", "episodes above τ"), f"Performance profiles on {env}"
            )
            more = f" The first {_MOST_LINES} of {len(scores)} runs." if len(scores) > _MOST_LINES else ""
            figures.append(
                Figure(env, f"The higher the line, the more episodes reach the score; bands are pointwise 95 % intervals.{more}", svg)
            )
    return Section("profiles", "Episode by episode", figures=tuple(figures)) if figures else None


def _groups(runs: Sequence[Reading]) -> Section | None:
    """Methods over environments and seeds: interquartile mean of retention, and the probability that one beats another."""
    groups: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        value = number(look(run.verdict, "retention", "value"))
        if value is not None:
            groups.setdefault(_group(run), {}).setdefault(_env(run), []).append(value)
    if len(groups) < 2:
        return None
    rows = []
    for name, tasks in sorted(groups.items()):
        many = sum(len(v) for v in tasks.values())
        middle = stats.iqm_interval(list(tasks.values()), 0, resamples=2_000)
        rows.append((Cell(name), with_interval(interval_of(middle), share=True, few=many < ENOUGH), plain(many), plain(len(tasks))))
    tables = [
        Table(
            ("method and student", "retention, interquartile mean", "runs", "environments"),
            tuple(rows),
            "Intervals by stratified bootstrap over runs; fewer than three runs say little.",
        )
    ]
    names, beats = sorted(groups), []
    for a in names:
        for b in names:
            common = sorted(t for t in set(groups[a]) & set(groups[b]) if min(len(groups[a][t]), len(groups[b][t])) >= ENOUGH)
            if a != b and common:
                better = stats.probability_of_improvement(
                    [groups[a][t] for t in common], [groups[b][t] for t in common], 0, resamples=2_000
                )
                beats.append((Cell(f"{a} over {b}"), with_interval(interval_of(better), share=True), plain(len(common))))
    if beats:
        tables.append(Table(("a run of one against a run of the other", "beats it with probability", "environments"), tuple(beats)))
    return Section("methods", "Methods and students", tables=tuple(tables))


def _problems(runs: Sequence[Reading]) -> Section | None:
    said = tuple(f"{run.name}: {problem}." for run in runs for problem in run.problems)
    return Section("problems", "What could not be read", said=said) if said else None


def _scores(run: Reading) -> np.ndarray | None:
    """Each episode's (return − random) / (teacher − random), by the means of those two; None where the teacher isn't shown to be better."""
    student, teacher, random = (run.returns(who) for who in ("student", "teacher", "random"))
    if not student or not teacher or not random or not stats.above(teacher, random):
        return None
    foot = float(np.mean(random))
    return (np.asarray(student) - foot) / (float(np.mean(teacher)) - foot)


def _env(run: Reading) -> str:
    return str(run.verdict.get("env") or run.config.get("env") or "an environment without a name")


def _group(run: Reading) -> str:
    method = str(run.verdict.get("method") or run.config.get("method") or "?")
    return f"{method}, {run.config.get('student') or look(run.header, 'family') or '?'}"


def _share(value: Any) -> Cell:
    found = number(value)
    return Cell("–" if found is None else f"{found:.1%}", found)
