"""Ship it or not: the evidence of a run in one answer and three sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distillrl import stats
from distillrl.errors import DistillError
from distillrl.reading import Reading, look, number

SEVERE = 0.15
"""What it may lose more than its teacher under a disturbance that leaves the teacher half of its return."""
RETURNS, MOST_RETURNS = 200, 2_000
"""Episodes of return in a full measurement: at least, and at most where fewer would not decide on non-inferiority."""
PLAYERS = ("student", "teacher", "random")
HEADLINES = {"ship": "Ship it.", "no": "Don’t ship it.", "unknown": "Not shown yet."}


@dataclass(frozen=True)
class Judgement:
    """The answer, why, and what must be said beside it."""

    answer: str
    """ship, no or unknown."""
    sentences: tuple[str, ...]
    """Three at most: the return; robustness and generalisation; the cost, or what to do."""
    cautions: tuple[str, ...]
    non_inferiority: stats.NonInferiority | None
    measured: bool
    """Whether robustness was measured at every level."""

    @property
    def headline(self) -> str:
        """A few words."""
        return "Ship it, as far as measured." if self.answer == "ship" and not self.measured else HEADLINES[self.answer]


def judge(run: Reading, margin: float = stats.MARGIN) -> Judgement:
    """Ship where non-inferiority by ``margin`` was shown and nothing measured speaks against; never raises for a gap.

    «No» where the student was shown to be worse, severely more brittle than its teacher, or overfitted; «unknown» where
    the figures don't decide.
    """
    # What the verdict says of the spread of its own returns is said anew below, of all returns that are known by now.
    cautions = [
        *run.problems,
        *(n for n in _texts(run.verdict, "notes") if not n.startswith(("the teacher policy:", "the student policy:"))),
    ]
    for part in ("fidelity", "robustness", "generalisation"):
        cautions += _texts(look(run.evidence, part), "notes")
    cautions += _texts(run.evidence, "notes")
    test, first = _return(run, margin, cautions)
    against = _tasks_against(run, margin) + _against(run)
    fallen = _falls(run)
    if fallen is not None and fallen.sentence:
        cautions.append(f"{fallen.sentence[:-1]}; distillrl watch with --episode {fallen.episodes[0]}{_seed(run)} films the deepest fall")
    worse = test is not None and test.p is not None and test.p > 0.95
    no_spread = test is not None and test.p is None and not test.shown and test.episodes >= stats.FEW and not look(run.verdict, "alike")
    if against or worse or no_spread:
        answer = "no"
    else:
        answer = "ship" if test is not None and test.shown else "unknown"
    third = _cost(run) if answer == "ship" else _advice(run, answer, test, bool(against))
    if against and test is not None and test.shown:
        against = [f"But {against[0][0].lower()}{against[0][1:]}", *against[1:]]
    second = fallen.sentence if fallen is not None and fallen.sentence and answer == "no" and not against else _second(run, against, fallen)
    said = tuple(re.sub(r"(?<=\w)'(?=\w)", "’", s) for s in (first, second, third) if s)
    return Judgement(answer, said, tuple(dict.fromkeys(cautions)), test, _measured(run))


def _measured(run: Reading) -> bool:
    return bool(look(run.evidence, "robustness", "curves")) and not look(run.evidence, "robustness", "left_out")


def _return(run: Reading, margin: float, cautions: list[str]) -> tuple[stats.NonInferiority | None, str]:
    student, teacher, random = (run.returns(who) for who in PLAYERS)
    if not student or not teacher:
        there = "teacher" if teacher else "student" if student else None
        only = f"only the {there}’s returns are known" if there else "no returns were measured"
        return None, f"Nothing can be said of the student against its teacher: {only}."
    paired = run.paired
    if random and not stats.above(teacher, random):
        cautions.append(
            "the teacher isn’t shown to be better than a random policy here, so there is no retention, and this environment shows nothing of the student"
        )
        random = []
        if look(run.verdict, "random") is not None:
            return None, "The teacher itself isn’t shown to be better than a random policy here, so there is nothing to keep."
    try:
        alike = bool(look(run.verdict, "alike"))
        test = stats.non_inferiority(student, teacher, margin, random or None, paired, alike)
    except DistillError as error:
        return None, f"The returns can’t be compared: {error}."
    for who, values in (("the student", student), ("the teacher", teacher)):
        if said := stats.caution(values, who, alike):
            cautions.append(said)
    means = f"{sum(student) / len(student):.4g} against {sum(teacher) / len(teacher):.4g}".replace("-", "−")
    return test, f"{test.sentence[:-1]}: {means} on average{', on the same episodes' if paired else ''}."


def _against(run: Reading) -> list[str]:
    """What was measured that forbids shipping."""
    found = []
    if look(run.evidence, "generalisation", "overfitted"):
        found.append(str(look(run.evidence, "generalisation", "sentence")))
    for curve in look(run.evidence, "robustness", "curves") or []:
        if severe(curve):
            found.append(str(curve.get("sentence") or f"It is more brittle than its teacher under {curve.get('name')}."))
    return found


def _tasks_against(run: Reading, margin: float) -> list[str]:
    """Tasks of several in which the student was shown to be worse: the mean over all of them hides one."""
    found = []
    for task in look(run.verdict, "tasks") or []:
        student, teacher, random = (look(task, who, "returns") or [] for who in PLAYERS)
        try:
            apart = bool(random) and stats.above(teacher, random)
            test = stats.non_inferiority(student, teacher, margin, random, run.paired, bool(look(run.verdict, "alike"))) if apart else None
        except DistillError:
            continue  # the table shows what there is
        if test is not None and test.p is not None and test.p > 0.95:
            means = f"{sum(student) / len(student):.4g} against {sum(teacher) / len(teacher):.4g}".replace("-", "−")
            found.append(f"In {task['name']} it is worse than its teacher by more than {100 * margin:g} %: {means} on average.")
    return found


def severe(curve: Mapping[str, Any]) -> bool:
    """Whether, at some level that leaves the teacher half of its return, the student surely loses far more than it."""
    for point in (curve.get("points") or []) if curve.get("brittle") else []:
        low, lost = number(look(point, "excess", "low")), number(look(point, "teacher_lost"))
        if low is not None and lost is not None and low > SEVERE and lost < 0.5:
            return True
    return False


def _falls(run: Reading) -> stats.Falls | None:
    """The episodes that the student plays far worse than its teacher; None where they aren't the same, or nothing is known of random play."""
    student, teacher, random = (run.returns(who) for who in PLAYERS)
    if not (student and teacher and random and run.paired) or not stats.above(teacher, random):
        return None
    return stats.falls(student, teacher, random)


def _seed(run: Reading) -> str:
    seed = number(run.config.get("seed"))
    return f" --seed {seed:.0f}" if seed else ""


def _second(run: Reading, against: list[str], fallen: stats.Falls | None) -> str:
    if against:
        more = len(against) - 1
        return against[0] + (f" ({more} more of the kind below.)" if more else "")
    if fallen is not None and fallen.more:
        return f"A caution: {str(fallen.sentence)[0].lower()}{str(fallen.sentence)[1:]}"
    curves = look(run.evidence, "robustness", "curves") or []
    mild = [str(c["sentence"]) for c in curves if c.get("brittle") and c.get("sentence")]
    gap = look(run.evidence, "generalisation", "gap", "value")
    outside = "" if number(gap) is None else " and on episodes that it was not distilled on"
    if mild:
        return f"A caution: {mild[0][0].lower()}{mild[0][1:]}"
    if curves:
        names = [str(c.get("name")).removeprefix("physics: ") for c in curves]
        under = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
        return f"It holds up as well as its teacher under {under if len(names) < 4 else f'all {len(names)} kinds of disturbance measured'}{outside}."
    return f"Its robustness was not measured{', but it holds up' + outside.removeprefix(' and') if outside else ''}."


def _cost(run: Reading) -> str:
    said = []
    for key, words, unit in (("parameters", "smaller", "parameters"), ("latency_us", "faster for one state", "µs")):
        mine, theirs = number(look(run.verdict, "student", key)), number(look(run.verdict, "teacher", key))
        if mine and theirs:
            ratio = theirs / mine
            size = f"{mine:,.0f} {unit}"
            said.append(f"{ratio:.3g} times {words} ({size})" if ratio >= 1.05 else f"not {words} ({size}, the teacher {theirs:,.0f})")
    if not said:
        return ""
    return f"It is {' and '.join(said)}{_saved(run)}."


def _saved(run: Reading) -> str:
    """How much sooner it had 95 % of the return than the same student trained from scratch, where that was tried."""
    reached = look(run.evidence, "scratch", "reached", "0.95")
    mine, alone = number(look(reached, "student", "env_steps")), number(look(reached, "scratch", "env_steps"))
    whole = number(look(run.evidence, "scratch", "env_steps"))
    if not mine or not (alone or whole):
        return ""
    ratio = (alone or whole or 0.0) / mine
    if alone is None:
        return f", and trained from scratch it had not reached 95 % of the return after {ratio:.3g} times as many steps"
    return f", and took {ratio:.3g} times fewer steps to 95 % of the return than from scratch" if ratio >= 1.05 else ", and from scratch it takes no more steps to 95 % of the return"


def _advice(run: Reading, answer: str, test: stats.NonInferiority | None, brittle: bool) -> str:
    if answer == "unknown":
        if test is None:
            return "To know, measure student and teacher: distillrl report RUN --teacher FILE --full."
        if wanted(test) <= test.episodes:
            return "More of these episodes would not decide it: a longer distillation (--env-steps) or a larger --student may."
        return f"Measure more: distillrl report {run.path} --full plays {wanted(test):,} episodes of each."
    if brittle:
        if look(run.evidence, "generalisation", "overfitted"):
            return "Distil it on more varied episodes (more seeds, levels or parameters), and measure again."
        return "Distil it under that disturbance, or take a larger --student, and measure again."
    reached = look(run.verdict, "reached")
    spent = {"env_steps": "--env-steps", "labels": "--labels", "seconds": "--seconds", "rounds": "--rounds"}.get(
        str(look(run.verdict, "ended_by"))
    )
    if reached is False and spent:
        return f"The run stopped short of its aim when {spent} was spent: give it more, or a larger --student."
    return "Distil for longer (--env-steps), or take a larger --student."


def wanted(test: stats.NonInferiority | None) -> int:
    """How many episodes of each a full measurement plays: as many as the test needs by what it says, within bounds."""
    return RETURNS if test is None else min(MOST_RETURNS, max(RETURNS, test.episodes, test.needed or 0))


def _texts(data: Any, key: str) -> list[str]:
    values = look(data, key)
    return [str(v) for v in values] if isinstance(values, list) else []
