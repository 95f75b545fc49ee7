"""What a run shows while it works: a live table in a terminal, plain lines elsewhere, and the verdict in words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

FEW = 20
"""As stats.FEW, which would import numpy."""


class Display:
    """Shows each round's metrics: ``with Display(...) as show: distill(..., show=show)``."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live: Any = None  # rich is imported late
        self.table_rows: list[Mapping[str, Any]] = []
        self.terminal = sys.stderr.isatty() and not quiet
        self.last_return: float | None = None
        self.rounds = 0
        self.said: set[str] = set()

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
        """A round's metrics, or {"note": sentence}."""
        for key in ("note", "warning"):
            if key in metrics and metrics[key] not in self.said:  # a warning that holds for many rounds is given once
                self.said.add(metrics[key])
                self._say(f"{key}: {metrics[key]}")
        if "round" not in metrics or self.quiet:
            return
        self.rounds += 1
        self.last_return = metrics.get("return.student", self.last_return)
        if self.live is not None:
            self.table_rows = [*self.table_rows[-7:], metrics]
            self.live.update(self._table())
        elif "return.student" in metrics or self.rounds in (1, 2, 4, 8, 16) or self.rounds % 32 == 0:
            print(_line(metrics), file=sys.stderr, flush=True)

    def _say(self, sentence: str) -> None:
        if self.live is not None:
            self.live.console.print(sentence, style="yellow", markup=False)
        elif not self.quiet:
            print(sentence, file=sys.stderr, flush=True)

    def _table(self) -> Any:
        from rich.table import Table

        terms = sorted(k for k in self.table_rows[-1] if k.startswith("term."))
        table = Table(box=None, padding=(0, 1), header_style="bold")
        for name in ("round", "steps", "/s", *(t[5:] for t in terms), "agree", "return", "teacher", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.table_rows:
            table.add_row(
                str(row["round"]),
                f"{row['env_steps']:,}",
                f"{row['steps_per_second']:,.0f}",
                *(f"{row.get(t, float('nan')):.4f}" for t in terms),
                f"{row['agreement']:.3f}",
                _number(row.get("return.student")),
                _number(row.get("return.teacher")),
                _left(row),
            )
        return table


def _line(row: Mapping[str, Any]) -> str:
    terms = "  ".join(f"{k[5:]} {v:.4f}" for k, v in sorted(row.items()) if k.startswith("term."))
    reached = f"  return {_number(row['return.student'])} (teacher {_number(row['return.teacher'])})" if row.get("return.student") is not None else ""
    return f"round {row['round']:>4}  {row['env_steps']:>8,} steps  {row['steps_per_second']:>7,.0f}/s  {terms}  agreement {row['agreement']:.3f}{reached}  {_left(row)} left"


def _left(row: Mapping[str, Any]) -> str:
    """Seconds left at most: until the budget of steps or of time is spent."""
    spent, steps = row.get("seconds") or 0.0, row["env_steps"]
    left = spent * max(0, row.get("budget", steps) - steps) / max(1, steps)
    if row.get("limit_seconds"):
        left = min(left, max(0.0, row["limit_seconds"] - spent))
    return f"≤ {left:.0f} s"


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
        cells = [cell(verdict[who]) for who in columns]
        if any(c is not None for c in cells):
            table.add_row(name, *[c or "–" for c in cells])
    console.print(table)
    if any(verdict[who]["return"]["episodes"] < FEW for who in columns):
        console.print(f"* rests on fewer than {FEW} episodes")
    for sentence in sentences(verdict):
        console.print(sentence, markup=False, highlight=False)


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict in words."""
    said = []
    if (kept := verdict.get("retention")) is not None:
        said.append(f"retention {kept['value']:.1%} of what the teacher earns above random ({kept['low']:.1%} … {kept['high']:.1%}, {verdict['student']['return']['episodes']} fresh episodes{', the same for both' if verdict.get('paired', True) else ''})")
    if (test := verdict.get("non_inferiority")) is not None:
        said.append(test["sentence"])
    if verdict.get("agreement") is not None:
        said.append(f"agreement {verdict['agreement']:.1%} of the student's own states")
    if verdict.get("env_steps") is not None:
        said.append(f"{verdict['env_steps']:,} environment steps, {verdict['teacher_labels']:,} labels, {verdict['seconds']['work']:.2f} s of work (+ {verdict['seconds']['selecting']:.2f} s selecting)")
    if verdict.get("starts"):
        from distillrl.hardcases import sentence

        said.append(sentence(verdict["starts"]))
    return said + list(verdict.get("notes", []))
