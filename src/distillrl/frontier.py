"""The picture of a search: what each size retains, by its parameters, with intervals, the aim and the winner."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillrl.artifact import write_bytes
from distillrl.errors import Missing

PASSED, RACED, AIM = "#0b6e4f", "#5b6470", "#b4462b"


def draw(data: Mapping[str, Any], folder: Path) -> None:
    """Write frontier.svg and frontier.png; ``data`` is frontier.json's. Raises Missing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise Missing("the frontier's picture needs matplotlib: pip install 'distillrl[report]'; frontier.json has its numbers") from None
    from matplotlib.figure import Figure

    rows = [r for r in data["sizes"] if r["retention"] is not None]
    fig = Figure(figsize=(7, 4.2), layout="constrained")
    ax = fig.subplots()
    # The lowest are cut off: a student that has learnt nothing must not press the rest together.
    lows = sorted(r["retention"]["low"] for r in rows) or [0.0]
    bottom = max(lows[0], min(data["aim"], lows[len(lows) // 2]) - 0.3)
    top = max([data["aim"], *(r["retention"]["high"] for r in rows)])
    floor = min(bottom, data["aim"]) - 0.15 * (top - bottom) - 0.01
    ax.set_ylim(floor, top + 0.08 * (top - bottom) + 0.005)
    for i, row in enumerate(rows):
        _mark(ax, row, row["student"] == data["winner"], floor, 0.03 * (top - floor), 9 * (i % 2))
    ax.axhline(data["aim"], color=AIM, linewidth=1, linestyle="--")
    ax.set_xscale("log")
    ax.margins(x=0.08)
    ax.set_xlabel("parameters")
    ax.set_ylabel("retention, 95 % interval")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"the smallest that holds {data['aim']:g} (dashed): {_name(data['winner'])}" if data["winner"] else f"no size holds {data['aim']:g} (dashed)", fontsize=10, loc="left")
    for kind, more in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160, "metadata": {"Software": None}})):
        out = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "distillrl"}):
            fig.savefig(out, format=kind, **more)
        write_bytes(folder / f"frontier.{kind}", out.getvalue())


def _mark(ax: Any, row: Mapping[str, Any], won: bool, floor: float, lift: float, lower: int) -> None:
    """One size: its interval, its mean, its name; a mean below the picture is an arrow at its foot, with the figure."""
    r, x, below = row["retention"], [row["parameters"]], row["retention"]["value"] < floor
    colour = PASSED if row["passed"] else RACED
    ax.vlines(x, [r["low"]], [r["high"]], color=colour, linewidth=1.4)
    face = colour if row["passed"] or below else "white"
    ax.plot(x, [floor + lift if below else r["value"]], "v" if below else "D" if won else "o", color=colour, markersize=8 if won else 5, markerfacecolor=face)
    name = f"{_name(row['student'])}: {r['value']:.0%}" if below else _name(row["student"])
    if r["low"] < floor:
        ax.annotate(name, (x[0], floor + lift if below else r["value"]), xytext=(6, 4 + lower if below else -3), textcoords="offset points", ha="left", fontsize=7)
    else:
        ax.annotate(name, (x[0], r["low"]), xytext=(0, -9 - lower), textcoords="offset points", ha="center", fontsize=7)


def _name(word: str) -> str:
    return word.removeprefix("mlp:") or "linear"
