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
    for i, row in enumerate(rows):
        r, won = row["retention"], row["student"] == data["winner"]
        colour = PASSED if row["passed"] else RACED
        ax.vlines([row["parameters"]], [r["low"]], [r["high"]], color=colour, linewidth=1.4)
        ax.plot([row["parameters"]], [r["value"]], "D" if won else "o", color=colour, markersize=8 if won else 5, markerfacecolor=colour if row["passed"] else "white")
        ax.annotate(row["student"].removeprefix("mlp:") or "linear", (row["parameters"], r["low"]), xytext=(0, -9 - 9 * (i % 2)), textcoords="offset points", ha="center", fontsize=7)
    ax.axhline(data["aim"], color=AIM, linewidth=1, linestyle="--")
    ax.set_xscale("log")
    # The lowest are cut off: a student that has learnt nothing must not press the rest together.
    lows = sorted(r["retention"]["low"] for r in rows) or [0.0]
    bottom = max(lows[0], min(data["aim"], lows[len(lows) // 2]) - 0.3)
    top = max([data["aim"], *(r["retention"]["high"] for r in rows)])
    ax.set_ylim(min(bottom, data["aim"]) - 0.15 * (top - bottom) - 0.01, top + 0.08 * (top - bottom) + 0.005)
    ax.set_xlabel("parameters")
    ax.set_ylabel("retention, 95 % interval")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"the smallest that holds {data['aim']:g} (dashed): {data['winner']}" if data["winner"] else f"no size holds {data['aim']:g} (dashed)", fontsize=10, loc="left")
    for kind, more in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160, "metadata": {"Software": None}})):
        out = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "distillrl"}):
            fig.savefig(out, format=kind, **more)
        write_bytes(folder / f"frontier.{kind}", out.getvalue())
