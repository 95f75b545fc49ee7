"""``search``: the smallest student that holds its teacher's return, by the interval; all sizes learn at once from the same labels.

One pass of the environments and of the teacher feeds all of them (cohort.py). They race (racing.py): who is surely worse leaves, and once one holds
the aim all larger ones leave, so that what is left of the budget is for the smaller. The winner has a verdict on fresh episodes; where that disagrees, the
next larger one is judged. A search that was stopped goes on from its last checkpoint (pausing.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import distillrl
from distillrl import artifact, envs, evaluation, frontier, pausing, racing, seeing, students, weights
from distillrl import config as configuration
from distillrl.beginning import State, all_wants, begin, generator, label_wants
from distillrl.cohort import seated
from distillrl.config import Config
from distillrl.distillation import Interrupt, provenance
from distillrl.envs import Seeds
from distillrl.errors import Misconfigured, Missing
from distillrl.limits import SIZES, Limits, cost, fitting
from distillrl.policies import Player
from distillrl.racing import Entry, Race
from distillrl.records import Progress, Rollout
from distillrl.retaining import Finding, Referee
from distillrl.runs import Folder
from distillrl.selecting import spent_budget
from distillrl.settling import Setup, settle
from distillrl.states import Who

Show = Callable[[Mapping[str, Any]], None]
VERDICT_EPISODES = 100
CLOSELY = 100
"""Episodes at most to decide whether one holds while others still learn; at the end there are more."""


@dataclass(frozen=True)
class Found:
    """What a search gave: the run folder of the winner (None where no size passed), every size as it was last measured, the verdict."""

    folder: Path
    policy: Player | None
    frontier: tuple[Mapping[str, Any], ...]
    verdict: Mapping[str, Any]
    reached: bool


def search(
    teacher: Any = None,
    env: Any = None,
    *,
    retention: float = 0.99,
    sizes: tuple[str, ...] | None = None,
    limits: Limits | None = None,
    episodes: int = 400,
    out: str | Path | None = None,
    config: Config | None = None,
    resume: str | Path | None = None,
    show: Show | None = None,
) -> Found:
    """Find the smallest student whose retention's interval lies above ``retention``, within the limits.

    ``sizes``: students in ``distill``'s words; by default twelve MLPs. ``episodes``: played at most to decide on one. ``config``: seed, budget
    and method as in ``distill``. ``resume``: the folder of a search that was stopped, which goes on as it was asked for. Raises Misconfigured,
    Missing or Failed, and KeyboardInterrupt after the round in which Ctrl-C came; writes the winner as a run folder, with frontier.json and pictures.
    """
    if resume is not None:
        folder, base, given, retention, within, episodes = pausing.asked(resume)
        setup = settle(base, teacher, env)
    else:
        if not 0 < retention <= 2:
            raise Misconfigured(f"search --retention {retention}: a share of the teacher's return above random play is right, such as 0.99")
        given, within = sizes or tuple(w.strip() for w in SIZES.split(",")), limits or Limits()
        for word in given:
            students.check(word)
        base = configuration.with_changes(config or Config(env_steps=150_000), {"teacher": str(teacher) if isinstance(teacher, str | Path) else None, "env": env if isinstance(env, str) else None})
        lead = next((w for w in reversed(given) if not students.grown(w)), given[-1])  # what networks learn by, trees need not read
        setup = settle(replace(base, student=lead, until=f"retention={retention}"), teacher, env)
        folder = None
    before = torch.get_num_threads()
    torch.set_num_threads(setup.config.threads)
    try:
        return _search(setup, given, retention, within, episodes, out, folder, show or _nothing)
    finally:
        torch.set_num_threads(before)


def _nothing(metrics: Mapping[str, Any]) -> None:
    """Show nothing."""


def _search(setup: Setup, words: tuple[str, ...], aim: float, limits: Limits, episodes: int, out: str | Path | None, resumed: Folder | None, show: Show) -> Found:
    if len(setup.config.phase) > 1:
        raise Misconfigured(f"search trains by one phase, but the method {setup.config.method} has {len(setup.config.phase)}: dagger and on-policy have one")
    phase, usual = setup.config.phase[0], configuration.Phase()
    if unread := [name for name in ("late", "rescue", "choose", "critical", "train") if getattr(phase, name) != getattr(usual, name)]:
        raise Misconfigured(f"search trains all sizes on one stream of labelled states, and doesn't do what the method {setup.config.method} has of its own ({', '.join(unread)}): dagger and dart are right")
    state = begin(setup)
    try:
        if any(w.startswith("extra.") for w in all_wants(tuple(state.gradient.terms))):
            raise Misconfigured(f"search trains by imitation: the method {setup.config.method} has terms on reward")
        entries = _entered(setup, state, words, limits, {} if resumed is None else pausing.costs(resumed))
        folder = resumed or pausing.create(out, f"search-{envs.name_of(setup.options)}")
        if resumed is None:
            pausing.note(folder, setup.config, words, aim, limits, episodes)
        referee = Referee(setup.options, setup.spec, setup.teacher, setup.config.seed, aim, episodes)
        learning = [e for e in entries if e.racing]
        race = Race(setup, state, entries, seated(setup, state, [e.policy for e in learning]), referee, folder, show, limits)
        race.reorder()
        if resumed is not None:
            pausing.restore(race)
        with Interrupt() as interrupt:
            _run(race, interrupt)
        if not state.ended:
            _write(race, limits, None)
            raise KeyboardInterrupt(f"interrupted at {state.progress.env_steps:,} steps; what was measured so far is in {folder.path / 'frontier.json'}; go on with: distillrl search --resume {folder.path}")
        return _close(race, limits)
    finally:
        state.drive.vector.close()


def _entered(setup: Setup, state: State, words: tuple[str, ...], limits: Limits, known: Mapping[str, Mapping[str, float]]) -> list[Entry]:
    """An untrained student of each size, with what it costs (as ``known`` from before, or measured); those beyond the limits don't begin."""
    if seeing.running(setup.config.see):
        raise Misconfigured(f"--see {setup.config.see!r}: students that are searched for see through one normaliser, measured once; leave normalise=running out")
    head = getattr(getattr(state.student, "head", None), "kind", None)
    entries = []
    for word in words:
        policy = students.make(word, setup.spec, generator(setup.config.seed, "student"), None if students.grown(word) else head, setup.config.see)
        header = {**policy.header(), "provenance": provenance(setup, setup.config, 0)}
        entries.append(Entry(word, policy, known.get(word) or cost(policy, header, limits.measured_as, limits.latency is not None)))
    for word, why in fitting({e.word: e.cost for e in entries}, limits).items():
        next(e for e in entries if e.word == word).left = f"over the limit: {why}"
    return entries


def _run(race: Race, interrupt: Interrupt) -> None:
    """Rounds and looks until it ends, or the user breaks it off; a checkpoint is then written where the vector allows one."""
    state, config = race.state, race.setup.config
    saved = began = time.perf_counter()
    before = state.seconds
    while not interrupt.asked:
        if not any(e.racing for e in race.entries):
            state.ended = "aim" if any(e.passed for e in race.entries) else "none left"
            return
        _round(race)
        state.seconds = before + time.perf_counter() - began
        over = spent_budget(config, state)
        if over or state.progress.env_steps >= race.next_look:
            looked = time.perf_counter()
            _look(race, bool(over))
            race.looking += time.perf_counter() - looked
            state.seconds = before + time.perf_counter() - began
            race.next_look = max(2 * race.next_look, state.progress.env_steps + 1)
        state.progress = replace(state.progress, round=state.progress.round + 1)
        if over:
            state.ended = over
            return
        due = interrupt.asked or time.perf_counter() - saved >= config.checkpoint_seconds
        if due and any(e.racing for e in race.entries) and (state.drive.vector.replayable or state.drive.due()):
            pausing.save(race)
            saved = time.perf_counter()


def _round(race: Race) -> None:
    """Drive, label, and let everyone learn."""
    setup, state = race.setup, race.state
    phase, drive, config = setup.config.phase[0], state.drive, setup.config
    if drive.due():
        drive.reseed(setup.teacher, race.cohort)
    room = config.env_steps - state.progress.env_steps
    room = room if config.labels is None else min(room, config.labels - state.progress.labels)
    steps = max(1, min(phase.first if state.progress.round == 0 else phase.steps, room // drive.n))
    began = time.perf_counter()
    race.cohort.drive(drive.n)
    with torch.inference_mode():
        who = Who(weights.parse(phase.beta)(state.progress), phase.by, False, weights.parse(phase.noise)(state.progress))
        rollout = drive.collect(steps, who, setup.teacher, race.cohort, label_wants(setup, state), setup.seen)
    if state.progress.round == 0 and config.init is None:
        _normalise(race, rollout)
    collected = time.perf_counter()
    state.dataset.append(rollout)
    count, asked = int(rollout.valid.sum()), int((rollout.valid & rollout.labelled).sum())
    state.progress = replace(state.progress, env_steps=state.progress.env_steps + count, labels=state.progress.labels + asked, budget=config.env_steps)
    found: dict[str, float] = {}
    for learner in race.cohort.learners:
        found |= learner.learn(state.dataset, state.progress)
    row: dict[str, float] = {"round": state.progress.round, "env_steps": state.progress.env_steps, "labels": state.progress.labels, "students": len(race.order)}
    row |= {"steps_per_second": round(count / max(1e-9, collected - began), 1), "learn_seconds": round(time.perf_counter() - collected, 4), **found}
    race.folder.log(row)
    state.lines += 1
    race.show({**row, "round_steps": count, "limits": {name: getattr(config, name) for name in ("env_steps", "labels", "rounds", "seconds")}, "seconds": state.seconds})


def _normalise(race: Race, rollout: Rollout) -> None:
    """All see through one normaliser, measured on the first rollout."""
    changed = [students.look(entry.policy, rollout) for entry in race.order]
    if any(changed):
        turn = race.cohort.turn
        race.cohort = seated(race.setup, race.state, [e.policy for e in race.order])
        race.cohort.turn = turn
        race.reorder()


def _look(race: Race, last: bool) -> None:
    """Let all of them play the same episodes side by side, and see who goes on."""
    setup, referee = race.setup, race.referee
    racers = race.cohort.settled()
    count = racing.episodes_of(len(racers)) * max(1, len(setup.spec.tasks))
    played = evaluation.play(race.cohort, setup.options, count * len(racers), Seeds(setup.config.seed, "race", share=len(racers)), tell=race.cohort.own)
    returns = played.returns.reshape(count, len(racers)).T
    race.state.evaluation_steps += played.steps
    for entry, mine, policy in zip(race.order, returns, racers, strict=True):
        _note(race, entry, referee.finding(np.ascontiguousarray(mine)), policy)
    policies = {id(e): p for e, p in zip(race.order, racers, strict=True)}
    most, referee.most = referee.most, referee.most if last else min(referee.most, CLOSELY)
    for entry in racing.promising(race.entries, referee.aim):
        found = referee.judge(policies[id(entry)])
        _note(race, entry, found, policies[id(entry)])
        if found.held:
            entry.passed = True
            race.show({"note": f"{entry.word} holds: {found}, {entry.cost['parameters']:,} parameters"})
            break
    referee.most = most
    for entry in racing.outgrown(race.entries):
        entry.left = "a smaller one holds"
    for entry in [] if last else racing.beaten(race.entries, referee.aim):
        entry.left = "surely worse"
    gone = {k for k, e in enumerate(race.order) if not e.racing}
    race.show({"note": f"{race.state.progress.env_steps:,} steps: " + ", ".join(f"{e.word} {e.found.retention.value:.0%}" for e in race.order if e.found is not None)})
    if gone and len(gone) < len(race.order):
        race.cohort.without(gone)
        race.reorder()


def _note(race: Race, entry: Entry, found: Finding, policy: Any) -> None:
    entry.found = found
    entry.saved = ({**policy.header()}, {k: v.clone() for k, v in policy.artifact_tensors().items()})
    if getattr(policy, "grown", False):  # only what is grown has a size
        _weigh(race, entry, policy)
    entry.history.append({"env_steps": race.state.progress.env_steps, "round": race.state.progress.round, **found.to_json()})


def _weigh(race: Race, entry: Entry, policy: Any) -> None:
    """What a fitted student costs by now; over a limit it leaves. Its latency is measured once."""
    limits, known = race.limits, entry.cost.get("latency") if entry.history else None
    header = {**policy.header(), "provenance": provenance(race.setup, race.setup.config, 0)}
    found = cost(policy, header, limits.measured_as, limits.latency is not None and known is None)
    entry.cost = found if known is None else {**found, "latency": known}
    if (why := limits.over(entry.cost)) and entry.racing:
        entry.left = f"over the limit: {why}"


def _confirmed(race: Race) -> tuple[Entry, dict[str, Any]] | None:
    """The smallest that passed and whose verdict on fresh episodes lies at the aim too, with that verdict.

    The race looks at a student again and again, and takes the smallest of many: luck may pass one. Where its fresh episodes come out below the aim, the
    next larger one is judged, and so on; where none agrees, the one that came nearest is returned.
    """
    smallest = min((e for e in race.entries if e.passed), key=lambda e: e.order, default=None)
    if smallest is None:
        return None
    aim, tried = race.referee.aim, list[tuple[Entry, dict[str, Any]]]()
    for entry in sorted((e for e in race.entries if e.saved is not None and e.order >= smallest.order and not race.limits.over(e.cost)), key=lambda e: e.order):
        assert entry.saved is not None
        policy = students.build(*entry.saved)
        if not entry.passed:
            _note(race, entry, race.referee.judge(policy), policy)
            assert entry.found is not None
            if not entry.found.held:
                continue
        measured = _verdict(race, policy, entry)
        tried.append((entry, measured))
        if measured["retention"] is None or measured["retention"]["value"] >= aim:
            entry.passed, entry.left = True, ""
            return entry, measured
        entry.passed, entry.left = False, f"fresh episodes disagree: {measured['retention']['value']:.1%}"
        race.show({"note": f"{entry.word} held in the race, but has {measured['retention']['value']:.1%} on {VERDICT_EPISODES} fresh episodes: the next larger one is judged"})
    return max(tried, key=lambda pair: pair[1]["retention"]["value"])


def _verdict(race: Race, student: Any, entry: Entry) -> dict[str, Any]:
    setup = race.setup
    sizes = {"student": int(entry.cost["bytes"]), "teacher": setup.teacher_bytes}
    return evaluation.verdict(setup.options, setup.spec, VERDICT_EPISODES, setup.config.seed, student=student, teacher=setup.teacher, sizes=sizes)


def _close(race: Race, limits: Limits) -> Found:
    """The smallest that passed, as a run folder with its verdict; the frontier beside it."""
    work = race.state.seconds
    found = _confirmed(race)
    rows = _write(race, limits, found[0] if found is not None else None)
    if found is None:
        pausing.clear(race.folder)
        return Found(race.folder.path, None, rows, {}, False)
    winner, measured = found
    assert winner.saved is not None
    setup, config = race.setup, replace(race.setup.config, student=winner.word)
    header, tensors = winner.saved
    artifact.save(race.folder.student, {**header, "provenance": provenance(setup, config, winner.history[-1]["round"])}, tensors)
    measured["student"]["bytes"] = race.folder.student.stat().st_size
    race.folder.write_config(config)
    progress: Progress = race.state.progress
    verdict = {
        "method": f"search by {config.method}",
        "seed": config.seed,
        "env": envs.name_of(setup.options),
        "student_family": winner.word,
        "env_steps": progress.env_steps,
        "teacher_labels": progress.labels,
        "rounds": progress.round,
        "kept_round": winner.history[-1]["round"],
        "ended_by": race.state.ended,
        "until": config.until,
        "reached": winner.passed,
        "seconds": {"work": round(work - race.looking, 4), "selecting": round(race.looking, 4), "with_imports": round(time.perf_counter() - distillrl.STARTED, 4)},
        "selecting_steps": race.state.evaluation_steps + race.referee.steps,
        "search": {"sizes": len(race.entries), **_row(winner)},
        **measured,
    }
    race.folder.write_verdict(verdict)
    return Found(race.folder.path, Player(students.build(*artifact.load(race.folder.student))), rows, verdict, winner.passed)


def _write(race: Race, limits: Limits, winner: Entry | None) -> tuple[Mapping[str, Any], ...]:
    """frontier.json and its pictures; every size, the smallest first."""
    rows = tuple(_row(e) for e in sorted(race.entries, key=lambda e: e.order))
    data = {"aim": race.referee.aim, "ended": race.state.ended, "winner": winner.word if winner else None, "limits": {k: getattr(limits, k) for k in ("parameters", "bytes", "latency", "measured_as")}, "sizes": rows}
    artifact.write_bytes(race.folder.path / "frontier.json", (json.dumps(data, indent=1) + "\n").encode())
    try:
        frontier.draw(data, race.folder.path)
    except Missing as missing:
        race.show({"note": str(missing)})
    return rows


def _row(entry: Entry) -> dict[str, Any]:
    found = entry.found.to_json() if entry.found is not None else {"retention": None, "episodes": 0, "return": None, "held": None}
    return {"student": entry.word, **entry.cost, **found, "passed": entry.passed, "left": entry.left, "history": entry.history}


def sentences(found: Found) -> list[str]:
    """What came of it, in words."""
    disagreed = [r for r in found.frontier if str(r["left"]).startswith("fresh episodes disagree")]
    said = [f"{r['student']} held in the race, but not on {VERDICT_EPISODES} fresh episodes ({str(r['left']).rpartition(' ')[2]})." for r in disagreed]
    if found.policy is not None and found.reached:
        row = next(r for r in found.frontier if r["student"] == found.verdict["student_family"])
        return [*said, f"{row['student']} is the smallest that holds: {row['parameters']:,} parameters, {_shares(row)}."]
    if found.policy is not None:
        return [*said, f"No larger one held either: {found.verdict['student_family']}, which came nearest, is kept. Give more --env-steps, larger --sizes, or --episodes."]
    measured = [r for r in found.frontier if r["retention"] is not None]
    if not measured:
        return ["No size was measured: the budget ended before the first look."]
    best = max(measured, key=lambda r: r["retention"]["value"])
    return [f"No size holds it by its interval; the best is {best['student']} with {_shares(best)}. Give more --env-steps, larger --sizes, or --episodes."]


def _shares(row: Mapping[str, Any]) -> str:
    r = row["retention"]
    return f"{r['value']:.1%} of the teacher's return ({r['low']:.1%} to {r['high']:.1%}, {row['episodes']} episodes)"
