"""Run folders → one self-contained HTML page: ``report`` for one run, ``compare`` for several. Opens offline."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import distillrl
from distillrl import artifact, findings, sections, stats
from distillrl.errors import DistillError, Misconfigured, Missing
from distillrl.judging import Judgement, judge
from distillrl.physics import PHYSICS, Change
from distillrl.reading import Reading, look, number, read
from distillrl.sections import Figure, Section, short, with_interval

SIGNS = {"ship": "✓", "no": "✕", "unknown": "?"}
MEASURES = ("quick", "full", "none")


def report(
    run_folder: str | Path,
    out: str | Path | None = None,
    *,
    measure: str = "quick",
    margin: float = stats.MARGIN,
    teacher: Any = None,
    env: Any = None,
    unseen: Mapping[str, Any] | None = None,
    physics: tuple[Change, ...] = PHYSICS,
    scratch: float | None = None,
    show: Callable[[Mapping[str, Any]], None] | None = None,
) -> Path:
    """Write the page of a run (by default ``report.html`` in its folder) and return its path.

    ``measure``: "quick" measures fidelity and robustness for some seconds where that wasn't done before (or ``unseen`` or ``physics`` is
    given), "full" all of it anew, "none" nothing. ``margin``: how much worse than its teacher a student may be, in shares of the teacher's
    return above random play. ``teacher``, ``env``, ``unseen``, ``physics``: see ``evidence.gather``. ``scratch``: train the same
    student from scratch too, by the reward alone, for so many times its environment steps at most (``show`` is told as in ``distill``). What is missing or
    damaged in the folder becomes a sentence on the page. Raises Misconfigured where it is no run folder, Missing without
    jinja2 or matplotlib.
    """
    if measure not in MEASURES:
        raise Misconfigured(f"measure={measure!r}: one of {', '.join(MEASURES)} is right")
    if not 0 < margin < 1:
        raise Misconfigured(f"--margin {margin}: a share between 0 and 1, such as 0.02, is right")
    if scratch is not None and (measure == "none" or not scratch > 0):
        raise Misconfigured(f"--scratch {scratch:g}: a number of times the student's steps above 0, such as 10, is right, and no --as-is, which measures nothing")
    template = _template()
    run = read(run_folder)
    trouble: tuple[str, ...] = ()
    if measure == "full" or (measure == "quick" and (not run.evidence or unseen or physics is not PHYSICS) and run.digest is not None):
        from distillrl.evidence import gather

        try:
            gather(run.path, full=measure == "full", teacher=teacher, env=env, unseen=unseen, physics=physics, margin=margin)
            run = read(run_folder)
        except DistillError as error:
            trouble = (f"fidelity and robustness were not measured: {error}",)
    if scratch is not None:
        from distillrl.evidence import from_scratch

        try:
            from_scratch(run.path, scratch, teacher=teacher, env=env, show=show)
            run = read(run_folder)
        except DistillError as error:
            trouble += (f"the student was not trained from scratch: {error}",)
    page = _page(run, judge(run, margin), trouble)
    path = Path(out) if out is not None else run.path / "report.html"
    artifact.write_bytes(path, template.render(**page).encode())
    return path


def _template() -> Any:
    try:
        import jinja2
    except ImportError:
        raise Missing("a report needs jinja2 and matplotlib: pip install 'distillrl[report]'") from None
    places = jinja2.PackageLoader("distillrl", "templates")
    return jinja2.Environment(loader=places, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False).get_template(
        "page.html.j2"
    )


def _page(run: Reading, judgement: Judgement, trouble: tuple[str, ...]) -> dict[str, Any]:
    """Everything that the template names."""
    builders = (
        sections.returns,
        findings.tasks,
        findings.fidelity,
        findings.strange,
        findings.robustness,
        findings.generalisation,
        sections.learning,
        sections.cost,
    )
    parts: list[Section] = [part for build in builders if (part := build(run)) is not None]
    cautions = (*judgement.cautions, *trouble)
    if cautions:
        parts.insert(0, Section("cautions", "What must be said beside it", said=tuple(_sentence(c) for c in cautions)))
    if (video := _video(run)) is not None:
        parts.append(video)
    parts.append(sections.passport(run))
    env = str(run.verdict.get("env") or run.config.get("env") or "an environment without a name")
    student = str(run.config.get("student") or look(run.header, "family") or "a student")
    return {
        "title": f"{judgement.headline} {run.name}",
        "name": run.name,
        "subtitle": f"{student} on {env}",
        "version": distillrl.__version__,
        "banner": {
            "answer": judgement.answer,
            "sign": SIGNS[judgement.answer],
            "headline": judgement.headline,
            "sentences": judgement.sentences,
        },
        "keys": _keys(run),
        "sections": parts,
        "few": any(cell.few for part in parts for table in part.tables for row in table.rows for cell in row),
    }


def _keys(run: Reading) -> list[dict[str, str]]:
    """The figures one looks for first."""
    found = []
    kept = with_interval(look(run.verdict, "retention"), share=True)
    if kept.key is not None:
        found.append({"name": "Retention", "value": kept.text, "more": kept.more})
    for who in ("student", "teacher"):
        earned = with_interval(look(run.verdict, who, "return"))
        if earned.key is not None:
            found.append({"name": f"{who.capitalize()}’s return", "value": earned.text, "more": earned.more})
    same = number(run.verdict.get("agreement"))
    if same is not None:
        found.append({"name": "Agreement", "value": f"{same:.1%}", "more": "of its own states"})
    for key, name, unit in (("parameters", "Parameters", ""), ("latency_us", "One state", " µs")):
        mine, theirs = number(look(run.verdict, "student", key)), number(look(run.verdict, "teacher", key))
        if mine is not None:
            found.append(
                {"name": name, "value": f"{short(mine)}{unit}", "more": f"teacher {short(theirs)}{unit}" if theirs is not None else ""}
            )
    if (steps := number(run.verdict.get("env_steps"))) is not None:
        work = number(look(run.verdict, "seconds", "work"))
        found.append(
            {
                "name": "Made with",
                "value": f"{steps:,.0f}",
                "more": "environment steps" + (f", {short(work, 3)} s" if work is not None else ""),
            }
        )
    return found


def _video(run: Reading) -> Section | None:
    if run.video is None:
        return None
    kind = "video/mp4" if run.video.suffix == ".mp4" else "image/gif"
    data = f"data:{kind};base64,{base64.b64encode(run.video.read_bytes()).decode()}"
    figure = (
        Figure("Teacher and student, the same episode", video=data)
        if kind == "video/mp4"
        else Figure("Teacher and student, the same episode", image=data, alt="Teacher and student side by side")
    )
    return Section("video", "Watch them", figures=(figure,))


def _sentence(text: str) -> str:
    text = text.strip()
    named = any(mark in text.split(" ", 1)[0] for mark in "./_")  # a file's or a metric's name stays as it is
    return (text if named else text[:1].upper() + text[1:]) + ("" if text.endswith((".", "!", "?")) else ".")


def compare(runs: Sequence[str | Path], out: str | Path = "compare.html") -> Path:
    """Write one page that sets several runs side by side: a table with intervals, the frontier, profiles; see comparing.py."""
    from distillrl import comparing

    if not runs:
        raise Misconfigured("compare needs at least one run folder: distillrl compare runs/*")
    template = _template()
    page = comparing.page([read(run) for run in runs])
    path = Path(out)
    artifact.write_bytes(path, template.render(**page, version=distillrl.__version__).encode())
    return path
