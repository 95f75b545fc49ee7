"""The report's pictures: each a small SVG for inlining, drawn by matplotlib, coloured by the page's own CSS variables.

All are drawn at one size, so that they can be set side by side and stay readable on a phone. What tells lines and dots
apart is shape and dash before it is colour: the teacher is a square and dashed, the student a circle and solid, the
random policy a triangle and dotted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distillrl.canvas import COLOURS, DASHES, MARKERS, SERIES, as_svg, drawing

_MOST_DOTS = 400
_STRENGTHS = ("heat1", "heat2", "heat3", "heat4", "student")
_EDGES = (0.01, 0.05, 0.15, 0.4)
"""Between the five strengths of a difference in a map."""


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, title: str, roles: bool = False, log: bool = False
) -> str:
    """Lines over a common x; with ``roles`` the names are teacher, student, random and are drawn as such."""
    with drawing() as (fig, ax):
        for i, (name, (xs, ys)) in enumerate(series.items()):
            colour = COLOURS[name] if roles else COLOURS["student" if i == 0 else "teacher" if i == 1 else "ink"]
            few = len(xs) <= 30
            ax.plot(
                xs,
                ys,
                color=colour,
                linestyle=DASHES[name] if roles else SERIES[i % len(SERIES)],
                marker=(MARKERS[name] if roles else "o") if few else None,
                label=name,
            )
        if log and all(v > 0 for _, ys in series.values() for v in ys):
            ax.set_yscale("log")
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        _thousands(ax)
        if len(series) > 1 or roles:
            _legend(ax)
        return as_svg(fig, title)


def dots(samples: Mapping[str, Sequence[float]], intervals: Mapping[str, tuple[float, float, float]], x: str, title: str) -> str:
    """Each player's episodes as dots in a row of its own, the mean with its interval as a bar below them."""
    with drawing() as (fig, ax):
        rng = np.random.default_rng(0)
        for i, (who, values) in enumerate(samples.items()):
            shown = np.asarray(values, dtype=float)
            shown = shown if len(shown) <= _MOST_DOTS else np.sort(shown)[np.linspace(0, len(shown) - 1, _MOST_DOTS).round().astype(int)]
            height = -i + rng.uniform(-0.02, 0.34, len(shown))
            _cloud(ax, shown, height, COLOURS[who], 2.6)
            if who in intervals:
                value, low, high = intervals[who]
                ax.plot([low, high], [-i - 0.2] * 2, color=COLOURS["ink"], linewidth=2.2, solid_capstyle="butt")
                ax.plot([value], [-i - 0.2], marker=MARKERS[who], color=COLOURS["ink"], markersize=5)
        ax.set_xlabel(x)
        ax.grid(visible=False, axis="y")
        _thousands(ax)
        ax.set_yticks([-i for i in range(len(samples))], list(samples))
        ax.set_ylim(-len(samples) + 0.5, 0.55)
        return as_svg(fig, title)


def confusion(counts: Sequence[Sequence[float]], names: Sequence[str], title: str) -> str:
    """The teacher's choices in rows, the student's in columns; each row in shares of its sum, which is written where there is room."""
    with drawing() as (fig, ax):
        table = np.asarray(counts, dtype=float)
        share = table / np.maximum(table.sum(1, keepdims=True), 1)
        size = len(table)
        for row in range(size):
            for column in range(size):
                level = min(4, int(share[row, column] * 5))
                ax.add_patch(_rectangle(column - 0.5, row - 0.5, COLOURS[f"heat{level}"]))
                if size <= 8 and table[row].sum():
                    text = f"{share[row, column]:.0%}" if size <= 6 else f"{100 * share[row, column]:.0f}"
                    ax.text(column, row, text, ha="center", va="center", fontsize=7, color=COLOURS["paper" if level >= 3 else "ink"])
        ax.set_xlim(-0.5, size - 0.5)
        ax.set_ylim(size - 0.5, -0.5)
        ax.grid(visible=False)
        step = max(1, size // 9)
        ax.set_xticks(range(0, size, step), [names[i] for i in range(0, size, step)])
        ax.set_yticks(range(0, size, step), [names[i] for i in range(0, size, step)])
        ax.set_xlabel("the student chooses")
        ax.set_ylabel("the teacher chooses")
        return as_svg(fig, title)


def pairs(
    teacher: Sequence[float], student: Sequence[float], title: str, axes: tuple[str, str] = ("the teacher’s action", "the student’s")
) -> str:
    """The student's number against the teacher's, with the line of equality."""
    with drawing() as (fig, ax):
        both = np.concatenate([np.asarray(teacher), np.asarray(student)])
        ends = [float(both.min()), float(both.max())]
        ax.plot(ends, ends, color=COLOURS["muted"], linestyle=(0, (1, 1.5)), linewidth=1)
        _cloud(ax, np.asarray(teacher), np.asarray(student), COLOURS["student"], 2.2)
        ax.set_xlabel(axes[0])
        ax.set_ylabel(axes[1])
        _thousands(ax)
        return as_svg(fig, title)


def reliability(xs: Sequence[float], lines: Mapping[str, Sequence[float]], x: str, y: str, title: str) -> str:
    """Calibration: on the dotted diagonal, confidence means what it says."""
    with drawing() as (fig, ax):
        ax.plot([0, 1], [0, 1], color=COLOURS["muted"], linestyle=(0, (1, 1.5)), linewidth=1, label="what it should be")
        for i, (name, ys) in enumerate(lines.items()):
            ax.plot(xs, ys, color=COLOURS["student" if i == 0 else "teacher"], linestyle=SERIES[i], marker="os"[i % 2], label=name)
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.02, 1.02)
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        ax.legend(loc="best")
        return as_svg(fig, title)


def scatter(at: Sequence[Sequence[float]], distance: Sequence[float], x: str, y: str, title: str) -> str:
    """States on two axes; the more the two differ, the darker, larger and higher up the dot lies."""
    with drawing() as (fig, ax):
        places, far = np.asarray(at, dtype=float), np.asarray(distance, dtype=float)
        level = np.searchsorted(_EDGES, far, side="right")
        for i in range(5):
            here = level == i
            if here.any():
                _cloud(ax, places[here, 0], places[here, 1], COLOURS[_STRENGTHS[i]], 1.9 + 0.7 * i)
                label = f"{(0, *_EDGES)[i]:g}–{(*_EDGES, 1)[i]:g}"
                ax.plot([], [], "o", color=COLOURS[_STRENGTHS[i]], markersize=1.9 + 0.7 * i, label=label)
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        fig.subplots_adjust(right=0.76)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="difference", title_fontsize=7, handletextpad=0.2, borderpad=0)
        ax.autoscale_view()
        return as_svg(fig, title)


def robustness(points: Sequence[Mapping[str, Any]], usual: float, x: str, title: str) -> str:
    """Teacher's and student's return against the level of a disturbance, intervals as bars, the usual level as a line."""
    with drawing() as (fig, ax):
        width = float(np.ptp([p["level"] for p in points])) or 1.0
        ax.axvline(usual, color=COLOURS["muted"], linewidth=0.7, linestyle=(0, (1, 1.5)))
        for who, shift in (("teacher", -0.008), ("student", 0.008)):
            xs = [p["level"] + shift * width for p in points]
            ys = [p[who]["value"] for p in points]
            ax.vlines(xs, [p[who]["low"] for p in points], [p[who]["high"] for p in points], color=COLOURS[who], linewidth=1)
            ax.plot(xs, ys, color=COLOURS[who], linestyle=DASHES[who], marker=MARKERS[who], label=who)
        ax.set_xlabel(x)
        ax.set_ylabel("return")
        _widen(ax, 0.1 * max(abs(float(v)) for v in ax.get_ylim()))
        _thousands(ax)
        _legend(ax)
        return as_svg(fig, title)


def steps(values: Sequence[float | None], lengths: Sequence[float], title: str) -> str:
    """The share of episodes in which student and teacher have not yet differed, by step."""
    with drawing() as (fig, ax):
        last = float(max(lengths, default=1))
        met = sorted(v for v in values if v is not None)
        xs, ys = [0.0], [1.0]
        for i, v in enumerate(met):
            xs += [float(v), float(v)]
            ys += [1 - i / len(values), 1 - (i + 1) / len(values)]
        ax.plot([*xs, last], [*ys, ys[-1]], color=COLOURS["student"])
        ax.set_ylim(-0.03, 1.03)
        _thousands(ax)
        ax.set_xlabel("step of the episode")
        ax.set_ylabel("episodes still alike")
        return as_svg(fig, title)


def frontier(rows: Sequence[Mapping[str, Any]], x: str, y: str, title: str) -> str:
    """Runs by cost (log) and return, with intervals; numbers stand for the table's rows, larger rings for slower ones."""
    with drawing() as (fig, ax):
        slowest = max((r.get("latency") or 0 for r in rows), default=0) or 1
        for row in rows:
            ax.vlines([row["x"]], [row["low"]], [row["high"]], color=COLOURS["teacher" if row.get("teacher") else "student"], linewidth=1)
            size = 3 + 7 * ((row.get("latency") or 0) / slowest) ** 0.5
            ax.plot(
                [row["x"]],
                [row["y"]],
                MARKERS["teacher" if row.get("teacher") else "student"],
                markersize=size,
                markerfacecolor="none",
                color=COLOURS["teacher" if row.get("teacher") else "student"],
            )
        ax.set_xscale("log")
        ax.margins(0.12)
        _widen(ax, 0.06)
        _labels(ax, [(row["x"], row["y"], str(row["label"])) for row in rows])
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        _thousands(ax)
        return as_svg(fig, title)


def bands(
    x: Sequence[float], lines: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]], names: tuple[str, str], title: str
) -> str:
    """Performance profiles: value, low and high of each over common thresholds."""
    with drawing() as (fig, ax):
        for i, (name, (value, low, high)) in enumerate(lines.items()):
            colour = COLOURS[("student", "teacher", "ink", "random", "muted")[i % 5]]
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            ax.plot(x, value, color=colour, linestyle=SERIES[i % len(SERIES)], label=name)
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel(names[0])
        ax.set_ylabel(names[1])
        _legend(ax)
        return as_svg(fig, title)


def _cloud(ax: Any, x: Any, y: Any, colour: str, size: float) -> None:
    """Many dots as one path of round caps: some twelve bytes each in the SVG, where markers take a hundred."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    ends = np.repeat(np.column_stack([x, y]).astype(float), 2, axis=0)
    codes = np.tile([Path.MOVETO, Path.LINETO], len(ends) // 2)
    patch = PathPatch(Path(ends, codes), fill=False, edgecolor=colour, linewidth=size, capstyle="round", alpha=0.55)
    patch.set_snap(False)
    ax.add_patch(patch)
    ax.update_datalim(ends)
    ax.autoscale_view()


_PLACES = [(dx, dy) for reach in (0, 9, 18, 27) for dx, dy in ((7, 4 + reach), (7, -10 - reach), (-7, 4 + reach), (-7, -10 - reach), (7 + 2 * reach, -3), (-7 - 2 * reach, -3))]
"""Where a label may stand from its dot, in points, the nearest first."""


def _labels(ax: Any, labels: Sequence[tuple[float, float, str]]) -> None:
    """Each label beside its dot, at the first place where it covers no dot, no other label and no edge; the axes must have their limits."""
    scale = 72 / ax.figure.dpi
    dots = [tuple(scale * v for v in ax.transData.transform((x, y))) for x, y, _ in labels]
    frame = [scale * v for v in ax.get_window_extent().extents]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    for (x, y), (at, height, text) in zip(dots, labels, strict=True):
        width, boxes = 4.3 * len(text), []
        for dx, dy in _PLACES:
            left = x + dx - (width if dx < 0 else 0)
            boxes.append((left, y + dy, left + width, y + dy + 7))
        hits = [sum(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in taken) + 9 * (a[0] < frame[0] or a[2] > frame[2] or a[1] < frame[1] or a[3] > frame[3]) for a in boxes]
        best = min(range(len(boxes)), key=hits.__getitem__)
        taken.append(boxes[best])
        line = {"arrowstyle": "-", "color": COLOURS["muted"], "linewidth": 0.4} if best > 5 else None  # farther than beside it
        ax.annotate(text, (at, height), _PLACES[best], textcoords="offset points", fontsize=7, ha="right" if _PLACES[best][0] < 0 else "left", arrowprops=line)


def _widen(ax: Any, least: float) -> None:
    """A y-axis of at least this span: a difference of a thousandth must not look like a gulf."""
    low, high = ax.get_ylim()
    if high - low < least:
        ax.set_ylim((low + high - least) / 2, (low + high + least) / 2)


def _legend(ax: Any) -> None:
    """Above the picture, where it covers nothing; as many rows as the names need."""
    names = ax.get_legend_handles_labels()[1]
    columns = max(1, min(len(names), 36 // (5 + max(map(len, names), default=1))))
    ax.figure.subplots_adjust(top=0.97 - 0.06 * -(-len(names) // columns))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=columns, borderaxespad=0.2, columnspacing=1.2)


def _rectangle(x: float, y: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=COLOURS["paper"], linewidth=0.6)


def _log_locator() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1, 2, 5))


def _thousands(ax: Any) -> None:
    """12,000 as 12k, so that labels never meet on a narrow picture; 0.001 and not a power of ten with a caret."""

    def short(value: float, position: int) -> str:
        if abs(value) >= 1e6:
            text = f"{value / 1e6:g}M"
        else:
            text = f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"
        return text.replace("-", "−")

    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        if axis.get_scale() == "log" and high < 30 * low:  # less than a power of ten or two: those alone would be too few marks
            axis.set_major_locator(_log_locator())
        axis.set_major_formatter(short)
        if axis.get_scale() == "log":
            axis.set_minor_formatter("")
    if ax.get_xscale() == "linear":
        ax.locator_params(axis="x", nbins=6)
