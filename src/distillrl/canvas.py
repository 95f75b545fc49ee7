"""What the report's pictures are drawn on: matplotlib's axes in the page's style, and small SVGs out of them for inlining.

Colours are stand-ins that become the page's own CSS variables, fonts are the page's.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distillrl.errors import Missing

SIZE = (3.5, 2.5)
"""Inches; 252 × 180 units of the SVG."""
COLOURS = {
    "ink": "#010201",
    "muted": "#010202",
    "line": "#010203",
    "teacher": "#010204",
    "student": "#010205",
    "random": "#010206",
    "paper": "#010207",
    "heat0": "#010208",
    "heat1": "#010209",
    "heat2": "#01020a",
    "heat3": "#01020b",
    "heat4": "#01020c",
}
"""Stand-ins that matplotlib draws with; in the SVG each becomes ``var(--name)``."""
MARKERS = {"teacher": "s", "student": "o", "random": "^"}
DASHES: dict[str, Any] = {"teacher": (0, (4, 2)), "student": "-", "random": (0, (1, 1.5))}
SERIES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (2, 2)), (0, (6, 1, 1, 1, 1, 1)))
_MARGINS = {"left": 0.2, "right": 0.965, "bottom": 0.185, "top": 0.97}


@functools.cache
def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise Missing("the report's pictures need matplotlib: pip install 'distillrl[report]'") from None
    matplotlib.use("agg")
    from matplotlib import figure

    return matplotlib, figure


@contextmanager
def drawing() -> Iterator[tuple[Any, Any]]:
    """Figure and axes, of one size; raises Missing without matplotlib."""
    matplotlib, figure = _pyplot()
    c = COLOURS
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "distillrl",
        "text.parse_math": False,
        "path.simplify": False,
        "font.size": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "axes.edgecolor": c["line"],
        "axes.labelcolor": c["muted"],
        "text.color": c["ink"],
        "xtick.color": c["line"],
        "ytick.color": c["line"],
        "xtick.labelcolor": c["muted"],
        "ytick.labelcolor": c["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": c["line"],
        "grid.linewidth": 0.4,
        "grid.alpha": 0.6,
        "lines.linewidth": 1.5,
        "lines.markersize": 3.6,
        "legend.frameon": False,
        "legend.fontsize": 7,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(style):
        fig = figure.Figure(figsize=SIZE)
        fig.subplots_adjust(**_MARGINS)  # fixed: measuring the text first would take as long as drawing it
        yield fig, fig.add_subplot()


def as_svg(fig: Any, title: str) -> str:
    """The figure as inline SVG: no size of its own, colours and font from the page, a title for who can't see it."""
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">' + f"<title>{escape(title)}</title>", text, count=1
    )
    text = re.sub(
        r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|PathCollection|LineCollection|PolyCollection|FillBetweenPolyCollection|QuadMesh)_\d+"',
        "",
        text,
    )
    text = re.sub(r"font: ?(?:[a-z]+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    for name, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{name})")
    return re.sub(r">\s+<", "><", text).replace("xlink:href", "href")


def escape(text: str) -> str:
    """For text and attributes of HTML and SVG."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
