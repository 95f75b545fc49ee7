"""What a run's page says, part by part: figures and tables of plain data, before they become HTML.

Each builder takes a Reading and gives a Section, or None where the run has nothing to say of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillrl import pictures, stats
from distillrl.reading import AIMS, Reading, first_at, look, number

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PLAYERS = ("teacher", "student", "random")
_ROUGH = 4_000
"""Resamples of the figures beside the mean."""


@dataclass(frozen=True)
class Cell:
    """One cell: what is written, what it is sorted by, a small addition, whether few episodes stand behind it."""

    text: str
    key: float | None = None
    more: str = ""
    few: bool = False
    code: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first cell of a row names it. ``words``: prose, left-aligned."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    sortable: bool = True
    words: bool = False


@dataclass(frozen=True)
class Figure:
    """A picture (inline SVG, or a data address) with what it shows, in a sentence."""

    title: str
    caption: str = ""
    svg: str = ""
    image: str = ""
    alt: str = ""
    video: str = ""
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Block:
    """Text to copy: a command, a configuration."""

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    lead: str = ""
    said: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    blocks: tuple[Block, ...] = ()


# ── numbers in words ──────────────────────────────────────────────────────────────────────────────────────────────


def short(value: float | None, digits: int = 4) -> str:
    """A number for people; – for none."""
    if value is None:
        return "–"
    if abs(value) >= 10 ** max(4, digits) or (value == int(value) and abs(value) < 1e15):
        return f"{value:,.0f}".replace("-", "−")
    if abs(value) < 1e-4:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa}·10".replace("-", "−") + str(int(power)).translate(_RAISED)
    return f"{value:.{digits}g}".replace("-", "−")


def with_interval(interval: Any, share: bool = False, few: bool = False) -> Cell:
    """«251.3 (248.1 … 254.0)» of {value or mean, low, high}."""
    value = number(look(interval, "value")) if number(look(interval, "value")) is not None else number(look(interval, "mean"))
    if value is None:
        return Cell("–")
    low, high = number(look(interval, "low")), number(look(interval, "high"))
    show = (lambda v: f"{v:.1%}".replace("-", "−")) if share else short
    return Cell(show(value), value, "" if low is None or high is None else f"{show(low)} … {show(high)}", few)


def plain(value: Any, digits: int = 4) -> Cell:
    """A number, or – where there is none."""
    found = number(value)
    return Cell(short(found, digits), found)


def interval_of(x: stats.Interval) -> dict[str, float]:
    """As plain data."""
    return {"value": x.value, "low": x.low, "high": x.high}


# ── the parts ─────────────────────────────────────────────────────────────────────────────────────────────────────


def returns(run: Reading) -> Section | None:
    """Every episode as a dot, and the table of means, quartiles and tails."""
    samples = {who: values for who in PLAYERS if (values := run.returns(who))}
    found = {who: _measures(np.asarray(values)) for who, values in samples.items()}
    rows: list[tuple[Cell, ...]] = []
    for who in PLAYERS:
        if who in samples:
            rows.append(_played(run, who, np.asarray(samples[who]), found[who]))
        elif (known := look(run.verdict, who, "return")) is not None:
            rows.append(_reported(who, known))
        if who != "random" and (sampled := look(run.verdict, who, "return_sampled")) is not None:
            rows.append(_reported(f"{who}, sampled", sampled))
    if not rows:
        return None
    columns: tuple[str, ...] = ("who plays", "mean", "median", "interquartile mean", "worst 5 %", "worst episode", "episodes", "success")
    if all(row[-1].key is None for row in rows):  # the environment doesn't tell
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    figures = (*_dots(samples, {who: (m.value, m.low, m.high) for who, (m, _, _) in found.items()}), *_differences(run))
    return Section("return", "Return", "", tuple(_pair(run)), figures, (Table(columns, tuple(rows)),))


def _measures(x: np.ndarray) -> tuple[stats.Interval, stats.Interval, stats.Interval]:
    """Mean, interquartile mean, mean of the worst 5 %."""
    return stats.mean_interval(x, 0), stats.iqm_interval([x], 0, resamples=_ROUGH), stats.statistic_interval([x], stats.cvar, 0, resamples=_ROUGH)


def _played(run: Reading, who: str, x: np.ndarray, measures: tuple[stats.Interval, stats.Interval, stats.Interval]) -> tuple[Cell, ...]:
    """A row of the table from all of a player's episodes."""
    few = len(x) < stats.FEW
    average, middle, tail = (with_interval(interval_of(i), few=few) for i in measures)
    won = with_interval(look(run.verdict, who, "return", "success"), share=True)
    return (Cell(who), average, plain(np.median(x)), middle, tail, plain(x.min()), plain(len(x)), won)


def _reported(name: str, known: Mapping[str, Any]) -> tuple[Cell, ...]:
    """A row of the table from what the verdict says, where the episodes themselves weren't kept or aren't looked at."""
    few = (number(look(known, "episodes")) or stats.FEW) < stats.FEW
    cells = [with_interval(look(known, key) if key else known, few=few) for key in ("", "iqm", "cvar")]
    won = with_interval(look(known, "success"), share=True)
    return (Cell(name), cells[0], plain(look(known, "median")), cells[1], cells[2], plain(look(known, "worst")), plain(look(known, "episodes")), won)


def _dots(samples: Mapping[str, Sequence[float]], intervals: Mapping[str, tuple[float, float, float]]) -> tuple[Figure, ...]:
    if not samples:
        return ()
    means = ", ".join(f"{who} {short(value)} on average" for who, (value, _, _) in intervals.items())
    svg = pictures.dots(samples, intervals, "return of an episode", f"Returns of each episode: {means}")
    return (Figure("Every episode", "Each dot is an episode, the bar below it the mean with its 95 % interval. Most likely actions.", svg),)


def _pair(run: Reading) -> list[str]:
    student, teacher = run.returns("student"), run.returns("teacher")
    if not student or not teacher:
        return []
    said = []
    if run.paired:
        gap = stats.paired_difference(student, teacher, 0)
        said.append(
            f"On the same episodes the student’s return is {short(gap.value, 3)} above its teacher’s ({short(gap.low, 3)} … {short(gap.high, 3)})."
            if gap.value >= 0
            else f"On the same episodes the student’s return is {short(-gap.value, 3)} below its teacher’s ({short(-gap.high, 3)} … {short(-gap.low, 3)})."
        )
    better = stats.probability_of_improvement([student], [teacher], 0)
    said.append(
        f"An episode of the student’s beats one of the teacher’s with probability {better.value:.0%} ({better.low:.0%} … {better.high:.0%})."
    )
    tails = [float(stats.cvar(np.asarray(x))) for x in (student, teacher)]
    said.append(f"The worst 5 % of episodes return {short(tails[0])} on average, the teacher’s {short(tails[1])}.")
    return said


def _differences(run: Reading) -> tuple[Figure, ...]:
    student, teacher = run.returns("student"), run.returns("teacher")
    if not run.paired or len(student) < 2:
        return ()
    svg = pictures.pairs(
        teacher,
        student,
        "The student's return against the teacher's, episode by episode",
        ("the teacher’s return", "the student’s, same episode"),
    )
    return (
        Figure(
            "The same episode, twice",
            "On the dotted line both earn the same; dots below it are episodes that the student plays worse.",
            svg,
        ),
    )


def learning(run: Reading) -> Section | None:
    """The curves of the run: return, agreement, each weighted term, its share of the gradient."""
    rows = run.metrics
    if not rows:
        return None
    figures = []
    played = _series(rows, {"student": "return.student", "teacher": "return.teacher"})
    if played:
        figures.append(
            Figure(
                "Return on the selecting seeds",
                "These episodes chose the student that was kept; they don’t measure it.",
                pictures.curves(played, "environment steps", "return", "Return while learning", roles=True),
            )
        )
    for names, title, y, caption in (
        (
            {"agreement": "agreement"},
            "Agreement",
            "share of states",
            "How often the student would have done what its teacher did, on the round’s states.",
        ),
        (
            {"retention": "retention"},
            "Retention",
            "share of the teacher’s return",
            "(student − random) / (teacher − random) on the selecting seeds.",
        ),
    ):
        if found := _series(rows, names):
            figures.append(Figure(title, caption, pictures.curves(found, "environment steps", y, title)))
    terms = sorted({k[5:] for row in rows for k in row if k.startswith("term.")})
    for name in terms:
        if found := _series(rows, {name: f"term.{name}"}):
            figures.append(
                Figure(
                    f"Term: {name}",
                    "As weighted, the mean of each round’s updates.",
                    pictures.curves(found, "environment steps", "loss × weight", f"The term {name}", log=True),
                )
            )
    if shares := _series(rows, {k[6:]: k for row in rows for k in row if k.startswith("share.")}):
        figures.append(
            Figure(
                "Who moves the student",
                "Each term’s share of the gradient.",
                pictures.curves(shares, "environment steps", "share", "Shares of the gradient"),
            )
        )
    if not figures:
        return None
    return Section("learning", "How it learned", figures=tuple(figures), tables=_milestones(rows))


def _series(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, tuple[list[float], list[float]]]:
    found = {}
    for label, key in names.items():
        points = [(number(r.get("env_steps")), number(r.get(key))) for r in rows]
        known = [(x, y) for x, y in points if x is not None and y is not None]
        if known:
            found[label] = ([x for x, _ in known], [y for _, y in known])
    return found


def _milestones(rows: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    found = []
    for aim in AIMS:
        first = first_at(rows, aim)
        if first is not None:
            found.append(
                (
                    Cell(f"{aim:.0%}", aim),
                    plain(first.get("env_steps")),
                    plain(first.get("labels")),
                    plain(first.get("seconds"), 3),
                    plain(first.get("round")),
                )
            )
    columns = ("retention reached", "environment steps", "teacher labels", "seconds", "round")
    return (
        (Table(columns, tuple(found), "When it first reached so much of its teacher’s return, on the selecting seeds."),) if found else ()
    )


def cost(run: Reading) -> Section | None:
    """What teacher and student take to run, and what the student took to make."""
    measured = [
        (name, number(look(run.verdict, "teacher", key)), number(look(run.verdict, "student", key)))
        for name, key in (("parameters", "parameters"), ("bytes of the file", "bytes"), ("µs for one state, the least", "latency_us"))
    ]
    known = look(run.evidence, "costs")
    adds = ("multiply_adds",)
    measured.append(("multiply-adds for one state", number(look(known, "teacher", *adds)), number(look(known, "student", *adds))))
    for batch, what in (("1", "p50"), ("1", "p99"), ("64", "p50"), ("1024", "p50")):
        name, place = f"µs for {'one state' if batch == '1' else f'{batch} states at once'}, {what}", ("latency_us", batch, what)
        measured.append((name, number(look(known, "teacher", *place)), number(look(known, "student", *place))))
    rows = [
        (Cell(name), plain(theirs, 9 if theirs and theirs > 1e4 else 4), plain(mine, 9 if mine and mine > 1e4 else 4), _ratio(theirs, mine))
        for name, theirs, mine in measured
        if mine is not None or theirs is not None
    ]
    tables = [Table(("", "teacher", "student", "teacher ÷ student"), tuple(rows), _busy(known), sortable=False)] if rows else []
    spent = [
        (Cell(name), plain(look(run.verdict, *keys), digits))
        for name, keys, digits in (
            ("environment steps", ("env_steps",), 9),
            ("teacher labels", ("teacher_labels",), 9),
            ("rounds", ("rounds",), 9),
            ("seconds of work", ("seconds", "work"), 3),
            ("seconds of selecting", ("seconds", "selecting"), 3),
            ("seconds in all, imports too", ("seconds", "with_imports"), 3),
        )
        if number(look(run.verdict, *keys)) is not None
    ]
    if spent:
        tables.append(Table(("spent on", ""), tuple(spent), sortable=False))
    said, saved = _saved(run)
    return Section("cost", "Cost", said=said, tables=(*tables, *saved)) if tables else None


def _saved(run: Reading) -> tuple[tuple[str, ...], tuple[Table, ...]]:
    """What training the same student from scratch takes, beside what its teacher let it do; or how to find out."""
    known = look(run.evidence, "scratch")
    if known is None:
        if number(run.verdict.get("env_steps")) is None or not run.metrics:
            return (), ()
        return (f"What the teacher saved is not known: distillrl report {run.path} --scratch 10 trains the same student from scratch, by the reward alone, for ten times as many steps at most.",), ()
    rows = []
    taken = number(look(known, "env_steps")), number(look(known, "seconds"))
    for aim in AIMS:
        mine, alone = look(known, "reached", f"{aim:g}", "student"), look(known, "reached", f"{aim:g}", "scratch")
        cells = [Cell(f"{aim:.0%}", aim)]
        for key, whole, digits in (("env_steps", taken[0], 9), ("seconds", taken[1], 3)):
            ours, theirs = number(look(mine, key)), number(look(alone, key))
            ratio = (theirs if theirs is not None else whole or 0.0) / ours if ours else None
            never = "> " if theirs is None else ""
            cells += [
                Cell(short(ours, digits) if ours is not None else "never", ours),
                Cell(f"{never}{short(theirs if theirs is not None else whole, digits)}", theirs if theirs is not None else whole),
                Cell(f"{never}{ratio:.3g} ×" if ratio else "–", ratio),
            ]
        rows.append(tuple(cells))
    columns = ("retention reached", "steps, distilled", "from scratch", "fewer", "seconds, distilled", "from scratch", "faster")
    kept = with_interval(look(known, "retention"), share=True)
    end = f" In the end it kept {kept.text} ({kept.more}) on fresh episodes." if kept.key is not None else ""
    caption = f"The same student trained from scratch by PPO, which the teacher told nothing, in {look(known, 'folder')}/; when each first reached so much on the selecting seeds, looked at from 4,096 steps on.{end}"
    return (), (Table(columns, tuple(rows), caption, sortable=False),)


def _busy(costs: Any) -> str:
    """Whether the machine had other work while latencies were measured, which the slowest calls then tell of."""
    for who in ("student", "teacher"):
        middle, slow = (number(look(costs, who, "latency_us", "1", key)) for key in ("p50", "p99"))
        if middle and slow and slow > 10 * middle:
            return "The machine had other work while this was measured (p99 is over ten times the median): the least is what to go by."
    return ""


def _ratio(theirs: float | None, mine: float | None) -> Cell:
    ratio = theirs / mine if mine and theirs else None
    return Cell(f"{ratio:.3g}" if ratio else "–", ratio)


def passport(run: Reading) -> Section:
    """What it is made of, and the command that makes it again."""
    made = look(run.header, "provenance") or {}
    kwargs = run.config.get("env_kwargs") or {}
    facts: list[tuple[str, Any, bool]] = [
        ("student", run.config.get("student") or look(run.header, "family"), True),
        ("student’s file, SHA-256", run.digest, True),
        ("teacher", run.config.get("teacher"), True),
        ("teacher’s file, SHA-256", look(made, "teacher", "sha256"), True),
        ("teacher’s format", " ".join(str(x) for x in (look(made, "teacher", "format"), look(made, "teacher", "algorithm")) if x), False),
        ("environment", run.verdict.get("env") or run.config.get("env"), True),
        ("its arguments", ", ".join(f"{k} = {v}" for k, v in kwargs.items()), True),
        ("method", run.verdict.get("method") or run.config.get("method"), False),
        ("seed", run.config.get("seed"), False),
        ("kept of round", run.verdict.get("kept_round"), False),
        ("ended by", run.verdict.get("ended_by"), False),
        *((f"{name} version", version, False) for name, version in (look(made, "versions") or {}).items()),
    ]
    rows = tuple((Cell(name), Cell(str(value), code=code)) for name, value, code in facts if value not in (None, ""))
    blocks = []
    if run.config:
        blocks.append(Block("The command that repeats it", f"distillrl distill --config {run.path / 'config.toml'}"))
        with contextlib.suppress(OSError):
            blocks.append(Block("config.toml", (run.path / "config.toml").read_text(encoding="utf-8"), folded=True))
    return Section("passport", "Passport", tables=(Table((), rows, sortable=False, words=True),), blocks=tuple(blocks))
