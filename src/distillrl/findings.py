"""The page's parts on what was measured beyond the verdict: fidelity, robustness, generalisation, from ``evidence.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distillrl import pictures
from distillrl.judging import severe
from distillrl.reading import Reading, look, number
from distillrl.sections import Cell, Figure, Section, Table, plain, short, with_interval
from distillrl.stats import FEW

DIVERGENCES = {
    "agreement": ("agreement", True),
    "distance": ("difference, 0 to 1", False),
    "forward_kl": ("KL(teacher‖student), nats", False),
    "reverse_kl": ("KL(student‖teacher), nats", False),
    "js": ("Jensen–Shannon, nats", False),
    "action_mse": ("squared action difference", False),
    "wasserstein": ("Wasserstein-2, shares of the range", False),
}
"""Rows of the table: key of the evidence → its name, whether it is a share."""

TASK_PLAYERS = ("teacher", "student", "random")


def tasks(run: Reading) -> Section | None:
    """Of several tasks what each player earns in each, in its reward's own units."""
    rows = look(run.verdict, "tasks") or []
    if not rows:
        return None
    cells = []
    for task in rows:
        few = (number(look(task, "student", "episodes")) or FEW) < FEW
        earned = [with_interval(task[who], few=few) for who in TASK_PLAYERS if task.get(who) is not None]
        cells.append((Cell(str(task["name"])), *earned, with_interval(task["retention"], share=True, few=few), with_interval({"value": task["agreement"]}, share=True)))
    columns = ("task", *(who for who in TASK_PLAYERS if rows[0].get(who) is not None), "retention", "agreement")
    lead = "Mean returns in each task's own units, with 95 % intervals. Everywhere else on this page returns are shares of what each task's teacher earns above random play: 0 is random, 1 the teacher."
    return Section("tasks", "Task by task", lead, tables=(Table(columns, tuple(cells)),))


def fidelity(run: Reading) -> Section | None:
    """How like its teacher it is, state by state."""
    found = look(run.evidence, "fidelity")
    if not found:
        return None
    figures = [*_choices(found), *_calibration(found), *_map(found), *_first(found)]
    return Section(
        "fidelity",
        "Does it do what its teacher did?",
        f"{short(number(look(found, 'states', 'student', 'states')))} states of {short(number(look(found, 'episodes')))} episodes with the student at the wheel, "
        "and as many episodes with the teacher; intervals are over episodes.",
        tuple(_critical(found)),
        tuple(figures),
        _divergences(found),
    )


def strange(run: Reading) -> Section | None:
    """The states where the two differ most, with a picture where there is one, and what follows from there."""
    rows = look(run.evidence, "fidelity", "strange") or []
    figures = tuple(_state(row) for row in rows)
    if not figures:
        return None
    lead = "The student’s states in which the two are farthest apart, one an episode at most: what each would do, and what each earns from there to the end. Episodes are numbered as distillrl watch --episode counts them."
    return Section("states", "Where they differ most", lead, figures=figures)


def robustness(run: Reading) -> Section | None:
    """Return against each disturbance, teacher and student side by side."""
    found = look(run.evidence, "robustness")
    curves = look(found, "curves") or []
    if not curves:
        return None
    figures = []
    for curve in curves:
        name, points = str(curve["name"]), curve["points"]
        svg = pictures.robustness(points, float(curve["usual"]), str(curve["unit"]), f"Return under {name}")
        verdict = str(curve["sentence"]) if curve.get("brittle") else "No more brittle than its teacher."
        if name == "observation delay" and any(c["name"] == "action delay" and c["points"] == points for c in curves):
            verdict += " The same as late actions: so they are to a policy without memory."
        figures.append(Figure(name[0].upper() + name[1:], verdict, svg))
    episodes = short(number(look(found, "episodes")))
    said = [str(c["sentence"]) for c in curves if c.get("brittle") and not severe(c)]
    if left := look(found, "left_out"):
        said.append(
            f"{len(left)} further levels were not measured for lack of time (among them {', '.join(left[:4])}): distillrl report {run.path} --full measures all."
        )
    lead = f"{episodes} episodes at each level, the same for both; bars are 95 % intervals, the dotted line is the usual level."
    return Section("robustness", "What disturbs it", lead, tuple(said), tuple(figures), (_levels(curves),))


def generalisation(run: Reading) -> Section | None:
    """Episodes it was distilled on, against others."""
    found = look(run.evidence, "generalisation")
    if not found:
        return None
    rows = tuple(
        (Cell(words), with_interval(look(found, place, "teacher")), with_interval(look(found, place, "student")))
        for place, words in (("seen", "distilled on"), ("unseen", "never seen"))
    )
    gap = with_interval(look(found, "gap"), share=True)
    where = (
        "other seeds of the same environment" if look(found, "same_environment") else "the environment with other arguments, on other seeds"
    )
    said = str(
        look(found, "sentence")
        or f"No loss was shown: it falls behind its teacher by {gap.text} ({gap.more}) more on what it has never seen."
    )
    table = Table(
        ("episodes", "teacher", "student"),
        rows,
        f"{short(number(look(found, 'episodes')))} episodes of each; never seen: {where}.",
        sortable=False,
    )
    return Section("generalisation", "What it has never seen", said=(said,), tables=(table,))


def _choices(found: Mapping[str, Any]) -> list[Figure]:
    actions = look(found, "actions")
    kind = look(actions, "kind")
    if kind == "confusion":
        counts = actions["counts"]
        svg = pictures.confusion(counts, [str(i) for i in range(len(counts))], "Actions of teacher and student")
        return [
            Figure(
                "Which action for which",
                "Each row is what the student does where the teacher would do that; the diagonal is agreement.",
                svg,
            )
        ]
    if kind == "pairs":
        columns = list(zip(*actions["teacher"], strict=True)), list(zip(*actions["student"], strict=True))
        many = len(columns[0])
        return [
            Figure(
                f"Action {i + 1} of {many}" if many > 1 else "The action",
                f"On the dotted line they agree; R² = {actions['r2'][i]:.3f}.",
                pictures.pairs(t, s, f"Action {i + 1}"),
            )
            for i, (t, s) in enumerate(zip(*columns, strict=True))
        ][:6]
    return []


def _calibration(found: Mapping[str, Any]) -> list[Figure]:
    known = look(found, "calibration")
    if look(known, "kind") == "choice":
        bins = known["bins"]
        lines = {"teacher’s chance of it": [b["teacher"] for b in bins], "teacher’s first choice": [b["chosen"] for b in bins]}
        svg = pictures.reliability(
            [b["confidence"] for b in bins], lines, "the student’s confidence", "the teacher’s answer", "Calibration"
        )
        caption = f"On the dotted line the teacher is as sure of the student’s choice as the student is (expected calibration error {known['ece']:.3f}); dashed: how often it is the teacher’s first choice too."
        return [Figure("Is its confidence its teacher’s?", caption, svg)]
    if look(known, "kind") == "interval":
        rows = known["levels"]
        svg = pictures.reliability(
            [r["level"] for r in rows],
            {"teacher’s actions": [r["inside"] for r in rows]},
            "the student’s central interval",
            "share inside it",
            "Calibration",
        )
        return [
            Figure(
                "Is its spread its teacher’s?",
                f"Share of the teacher’s actions inside the student’s intervals; mean gap {known['ece']:.3f}. Above the line the student is less sure than its teacher.",
                svg,
            )
        ]
    return []


def _map(found: Mapping[str, Any]) -> list[Figure]:
    known = look(found, "map")
    if not known:
        return []
    shares = known["explained"]
    names = ["mostly " + ", ".join(a["name"] for a in axis[:2]) for axis in known["axes"]]
    figures = []
    for who in ("student", "teacher"):
        svg = pictures.scatter(known[who]["at"], known[who]["distance"], names[0], names[1], f"States of the {who}")
        caption = f"States with the {who} at the wheel on two axes ({shares[0]:.0%} and {shares[1]:.0%} of the variation); larger and stronger dots: the two differ more."
        figures.append(Figure(f"Where they differ: the {who}’s states", caption, svg))
    return figures


def _first(found: Mapping[str, Any]) -> list[Figure]:
    known = look(found, "first_divergence")
    steps = look(known, "steps")
    if not steps:
        return []
    middle = number(look(known, "median"))
    said = (
        "They never differ."
        if middle is None
        else f"In the median episode they first differ at step {short(middle)}; in {known['never']} of {len(steps)} never."
    )
    return [Figure("When they first differ", said, pictures.steps(steps, known["lengths"], "First difference"))]


def _critical(found: Mapping[str, Any]) -> list[str]:
    known = look(found, "critical")
    share = with_interval(look(known, "agreement"), share=True)
    if share.key is None:
        return []
    by = "the gap between its best two Q-values is largest" if look(known, "by") == "q" else "it prefers one action most clearly"
    return [f"In the tenth of states where the teacher’s choice matters most ({by}) they agree in {share.text} ({share.more})."]


def _divergences(found: Mapping[str, Any]) -> tuple[Table, ...]:
    rows = []
    for key, (name, share) in DIVERGENCES.items():
        cells = [with_interval(look(found, "states", who, key), share) for who in ("student", "teacher")]
        if any(c.key is not None for c in cells):
            rows.append((Cell(name), *cells))
    return (Table(("", "on the student’s states", "on the teacher’s states"), tuple(rows), sortable=False),) if rows else ()


def _state(row: Mapping[str, Any]) -> Figure:
    facts = [("student", _said(row["student"])), ("teacher", _said(row["teacher"])), ("from there", _follows(row))]
    facts.append(("state", ", ".join(f"{k}: {short(v, 3)}" for k, v in row["seen"].items())))
    title = f"Episode {row['episode']}, step {row['step']} of {row['length']}"
    return Figure(title, f"Difference {row['distance']:.2f}.", image=row.get("picture") or "", alt=title, facts=tuple(facts))


def _said(said: Mapping[str, Any]) -> str:
    action = said["action"]
    values = action if isinstance(action, list) else [action]
    text = "action " + ", ".join(short(v, 3) for v in values)
    chances = said.get("probabilities")
    if isinstance(chances, list) and isinstance(action, int) and len(chances) <= 64:
        text += f" ({chances[action]:.0%})"
    return text


def _follows(row: Mapping[str, Any]) -> str:
    student, teacher = number(row.get("student_from_there")), number(row.get("teacher_from_there"))
    return f"the student earned {short(student)}" + (f", the teacher would earn {short(teacher)}" if teacher is not None else "")


def _levels(curves: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for curve in curves:
        for point in curve["points"]:
            if point.get("excess") is None:
                continue
            name = str(curve["name"])
            excess = with_interval(point["excess"], share=True)
            rows.append((Cell(name), plain(point["level"]), with_interval(point["teacher"]), with_interval(point["student"]), excess))
    columns = ("disturbance", "level", "teacher", "student", "student loses more by")
    return Table(columns, tuple(rows), "The last column is in shares of the teacher’s return above random play, with 99 % intervals.")
