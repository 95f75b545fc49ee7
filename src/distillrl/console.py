"""What a run shows while it works: a live curve in a terminal, plain lines elsewhere, and the verdict in words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

FEW = 20
"""As stats.FEW, which would import numpy."""


BLOCKS = "▁▂▃▄▅▆▇█"
HEIGHT = 5
"""Lines of the live curve."""


class Display:
    """Shows each round's metrics: ``with Display(...) as show: distill(..., show=show)``."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live: Any = None  # rich is imported late
        self.history: dict[str, list[float]] = {}
        self.said: set[str] = set()
        self.terminal = sys.stderr.isatty() and not quiet
        self.rounds = 0
        self.steps, self.work = 0, 0.0
        self.teacher: float | None = None

    def __enter__(self) -> Display:
        if self.terminal:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=8, transient=False)
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """A round's metrics, or {"note": sentence}; a sentence is said once."""
        for key in ("note", "warning"):
            if key in metrics and metrics[key] not in self.said:
                self.said.add(metrics[key])
                self._say(f"{key}: {metrics[key]}")
        if "round" not in metrics or self.quiet:
            return
        self.rounds += 1
        # Selecting isn't counted: it comes in lumps, and from the first of them the whole run would look far too long.
        self.steps += metrics["round_steps"]
        self.work += metrics["round_steps"] / max(1.0, metrics["steps_per_second"]) + metrics["learn_seconds"]
        for key in ("return.student", "agreement", *sorted(k for k in metrics if k.startswith("term."))):
            if isinstance(metrics.get(key), int | float):
                self.history.setdefault(key, []).append(float(metrics[key]))
        self.teacher = metrics.get("return.teacher", self.teacher)
        left = _left(metrics, self.work, self.steps, self.rounds)
        if self.live is not None:
            self.live.update("\n".join(picture({**metrics, "return.teacher": self.teacher}, self.history, left, self.live.console.width)))
        elif "return.student" in metrics or self.rounds in (1, 2, 4, 8, 16) or self.rounds % 32 == 0:
            print(_line(metrics, left), file=sys.stderr, flush=True)

    def _say(self, sentence: str) -> None:
        if self.live is not None:
            self.live.console.print(sentence, style="yellow", markup=False)
        elif not self.quiet:
            print(sentence, file=sys.stderr, flush=True)


def picture(row: Mapping[str, Any], history: Mapping[str, Sequence[float]], left: str, width: int) -> list[str]:
    """The live view, ``width`` columns at most: where the run stands, the return's curve, a line for each figure."""
    of = (row.get("limits") or {}).get("env_steps")
    said = [f"round {row['round']}", f"{row['env_steps']:,}{f' of {of:,}' if of else ''} steps", f"{row['steps_per_second']:,.0f}/s", f"{left} left"]
    lines = [""]
    for part in said:
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        lines = [*lines[:-1], joined] if len(joined) <= width else [*lines, part]
    main = "return.student" if len(history.get("return.student", ())) > 1 or "agreement" not in history else "agreement"
    names = {key: _named(key) for key in history}
    if main in history:
        lines += [f"{names[main]}{' on the selecting seeds' if main == 'return.student' else ' with the teacher'}"[:width], *curve(history[main], width, HEIGHT)]
    label = min(max(map(len, names.values()), default=0), max(8, width // 3))
    for key, values in history.items():
        now = _number(values[-1]) if key == "return.student" else f"{values[-1]:.4f}" if key.startswith("term.") else f"{values[-1]:.3f}"
        teacher = f" teacher {_number(row['return.teacher'])}" if key == "return.student" and row.get("return.teacher") is not None else ""
        room = width - label - len(now) - len(teacher) - 3
        lines.append(f"{names[key][:label]:<{label}} {spark(values, min(room, 40))} {now}{teacher}"[:width])
    return lines


def _named(key: str) -> str:
    return {"return.student": "return"}.get(key, key.removeprefix("term."))


def spark(values: Sequence[float], width: int) -> str:
    """A line of blocks, the least value the lowest; a long history is thinned out, its last value kept."""
    kept = _thinned(values, max(1, width))
    low, span = min(kept), max(kept) - min(kept)
    return "".join(BLOCKS[round(7 * (v - low) / span) if span else 3] for v in kept)


def curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """Columns of blocks on an axis from the least value to the largest, ``height`` lines of at most ``width`` columns."""
    low, high = min(values), max(values)
    ends = _number(high), _number(low)
    margin = max(map(len, ends)) + 2
    kept = _thinned(values, max(1, width - margin))
    wide = max(1, min(6, (width - margin) // len(kept)))
    levels = [1 + round((8 * height - 1) * (v - low) / (high - low)) if high > low else 4 * height for v in kept]
    lines = []
    for i in reversed(range(height)):
        cells = ((" " if n <= 8 * i else BLOCKS[min(8, n - 8 * i) - 1]) * wide for n in levels)
        mark = ends[0] if i == height - 1 else ends[1] if i == 0 else ""
        lines.append(f"{mark:>{margin - 2}} ┤" + "".join(cells).rstrip())
    return lines


def _thinned(values: Sequence[float], most: int) -> list[float]:
    n = len(values)
    return list(values) if n <= most else [values[n - 1 - (most - 1 - i) * (n - 1) // max(1, most - 1)] for i in range(most)]


def _line(row: Mapping[str, Any], left: str) -> str:
    same = f"  agreement {row['agreement']:.3f}" if row.get("agreement") is not None else ""  # a phase by reward asks no teacher
    terms = "  ".join(f"{k[5:]} {v:.4f}" for k, v in sorted(row.items()) if k.startswith("term."))
    teacher = f" (teacher {_number(row['return.teacher'])})" if row.get("return.teacher") is not None else ""
    reached = f"  return {_number(row['return.student'])}{teacher}" if row.get("return.student") is not None else ""
    return f"round {row['round']:>4}  {row['env_steps']:>8,} steps  {row['steps_per_second']:>7,.0f}/s  {terms}{same}{reached}  {left} left"


def _left(row: Mapping[str, Any], work: float, steps: int, rounds: int) -> str:
    """Seconds left at most, at the pace of so many rounds and steps: until a limit is reached; the aim may come sooner."""
    limits, pace = row.get("limits") or {}, work / max(1, steps)
    left = {"env_steps": pace * ((limits.get("env_steps") or 0) - row["env_steps"]), "rounds": work / rounds * ((limits.get("rounds") or 0) - row["round"] - 1)}
    left["labels"] = pace * ((limits.get("labels") or 0) - row.get("labels", 0)) * row["env_steps"] / max(1, row.get("labels", 0))
    left["seconds"] = (limits.get("seconds") or 0.0) - (row.get("seconds") or 0.0)
    known = [max(0.0, value) for name, value in left.items() if limits.get(name) is not None]
    return f"≤ {min(known):.0f} s" if known else "?"


def _figure(value: float | None) -> str | None:
    return None if value is None else _number(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


_ROWS: tuple[tuple[str, Callable[[Mapping[str, Any]], str | None]], ...] = (
    ("return", lambda p: _number(p["return"]["mean"]) + (" *" if p["return"]["episodes"] < FEW else "")),
    ("95 % interval", lambda p: f"{_number(p['return']['low'])} … {_number(p['return']['high'])}"),
    ("median", lambda p: _figure(p["return"].get("median"))),
    ("interquartile mean", lambda p: _figure((p["return"].get("iqm") or {}).get("value"))),
    ("worst 5 %", lambda p: _figure((p["return"].get("cvar") or {}).get("value"))),
    ("worst episode", lambda p: _number(p["return"]["worst"])),
    ("success", lambda p: f"{p['return']['success']['value']:.0%}" if p["return"].get("success") else None),
    ("return, sampled", lambda p: _number(p["return_sampled"]["mean"]) if p.get("return_sampled") else None),
    ("episodes", lambda p: str(p["return"]["episodes"])),
    ("parameters", lambda p: f"{p['parameters']:,}" if p["parameters"] is not None else None),
    ("bytes", lambda p: f"{p['bytes']:,}" if p["bytes"] is not None else None),
    ("latency, 1 state", lambda p: f"{p['latency_us']:.0f} µs" if p["latency_us"] is not None else None),
)
"""Rows of the verdict: a name, and a player's cell, None where it has none."""
_WITHOUT_PLAYING = ("parameters", "bytes", "latency, 1 state")
"""Those that are known where there was no environment to play in."""


def print_verdict(verdict: Mapping[str, Any]) -> None:
    """The verdict as a table: teacher, student, random; then retention, agreement and the test in words."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=not sys.stdout.isatty())
    table = Table(box=None, padding=(0, 1), header_style="bold")
    columns = [who for who in ("teacher", "student", "random") if verdict.get(who)]
    table.add_column("")
    for who in columns:
        table.add_column(who, justify="right")
    for name, cell in _ROWS:
        cells = [cell(verdict[who]) if verdict[who]["return"] or name in _WITHOUT_PLAYING else None for who in columns]
        if any(c is not None for c in cells):
            table.add_row(name, *[c or "–" for c in cells])
    console.print(table)
    if any(verdict[who]["return"] and verdict[who]["return"]["episodes"] < FEW for who in columns):
        console.print(f"* rests on fewer than {FEW} episodes")
    if verdict.get("tasks"):
        console.print(_by_task(verdict["tasks"]))
    for sentence in sentences(verdict):
        console.print(sentence, markup=False, highlight=False)


def _by_task(tasks: Sequence[Mapping[str, Any]]) -> Any:
    """A row for each task, in its own reward's units."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="bold")
    columns = [who for who in ("teacher", "student", "random") if who in tasks[0]]
    for name in ("task", *columns, "retention", "95 % interval", "agreement"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for task in tasks:
        kept = task["retention"]
        held = (f"{kept['value']:.1%}", f"{kept['low']:.1%} … {kept['high']:.1%}") if kept else ("–", "–")
        agreed = "–" if task["agreement"] is None else f"{task['agreement']:.1%}"
        table.add_row(task["name"], *[_number(task[who]["mean"]) for who in columns], *held, agreed)
    return table


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict in words."""
    said = []
    if (kept := verdict.get("retention")) is not None:
        said.append(f"retention {kept['value']:.1%} of what the teacher earns above random ({kept['low']:.1%} … {kept['high']:.1%}, {verdict['student']['return']['episodes']} fresh episodes{', the same for both' if verdict.get('paired', True) else ''})")
    if (test := verdict.get("non_inferiority")) is not None:
        said.append(test["sentence"])
    if (fallen := verdict.get("falls")) is not None and fallen["sentence"]:
        said.append(fallen["sentence"])
    if verdict.get("agreement") is not None:
        whose = "the student's own states" if verdict.get("env") is not None or not verdict.get("recorded") else "the states of held-out recorded episodes"
        said.append(f"agreement {verdict['agreement']:.1%} of {whose}")
    if verdict.get("env_steps") is not None:
        said.append(f"{verdict['env_steps']:,} environment steps, {verdict['teacher_labels']:,} labels, {verdict['seconds']['work']:.2f} s of work (+ {verdict['seconds']['selecting']:.2f} s selecting)")
    if verdict.get("starts"):
        from distillrl.hardcases import sentence

        said.append(sentence(verdict["starts"]))
    return said + list(verdict.get("notes", []))
