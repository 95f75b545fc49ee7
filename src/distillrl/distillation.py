"""The loop: rounds of drive → choose → label → learn, the best student kept, and a verdict at the end."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import distillrl
from distillrl import (
    artifact,
    checkpoints,
    diagnosis,
    envs,
    evaluation,
    hardcases,
    offline,
    phases,
    rounds,
    students,
    teachers,
)
from distillrl import config as configuration
from distillrl.beginning import State, asks_teacher, enter_phase
from distillrl.config import Config
from distillrl.dataset import Dataset
from distillrl.errors import DistillError, Misconfigured
from distillrl.policies import Player, acting_parameters
from distillrl.runs import Folder
from distillrl.selecting import evaluate_student, evaluation_due, settled, spent_budget, spent_share
from distillrl.settling import Setup, settle

Show = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """What a run gave: its folder, the student to play with, the verdict, and whether the aim was reached."""

    folder: Path
    policy: Player
    verdict: Mapping[str, Any]
    reached: bool


def distill(
    teacher: Any = None,
    env: Any = None,
    student: Any = None,
    *,
    method: str | None = None,
    seed: int | None = None,
    until: str | None = None,
    env_steps: int | None = None,
    labels: int | None = None,
    seconds: float | None = None,
    out: str | Path | None = None,
    config: Config | None = None,
    init: str | None = None,
    resume: str | Path | None = None,
    show: Show | None = None,
) -> Run:
    """Make a student of a trained policy.

    ``teacher``: a path, an nn.Module, a function of a batch of observations, a loaded SB3 model. ``env``: a gymnasium
    id, ``module:id``, a function that makes one, or a gymnasium vector environment. ``student``: a word such as
    ``mlp:16x16``, or a class of your own, called with the Spec (students/given.py). The rest of the options are the
    command line's; ``config`` holds all of them. ``show`` is called with {"folder"}, with {"note"}s, with each round's
    metrics and at last with {"verdict"}; a KeyboardInterrupt ends the run after its round, to be resumed.

    Raises Misconfigured, Missing or Failed; never leaves a folder that can't be read.
    """
    if resume is not None:
        folder = Folder.open(resume)
        if folder.read_verdict() is not None:
            raise Misconfigured(f"{folder.path} has ended: its verdict is in {folder.path / 'verdict.json'}")
        settled = folder.read_config()
    else:
        word = student if student is None or isinstance(student, str) else students.given.name_of(student)
        given = {"method": method, "seed": seed, "until": until, "env_steps": env_steps, "labels": labels, "seconds": seconds, "init": init, "student": word}
        given |= {"teacher": str(teacher) if isinstance(teacher, str | Path) else None, "env": env if isinstance(env, str) else None}
        settled = configuration.with_changes(config or Config(), given)
    with _threads(settled.threads):
        setup = settle(settled, teacher, env, None if isinstance(student, str) else student)
        if resume is None:
            folder = Folder.create(out, setup.title)
        folder.write_config(setup.config)
        teachers.keep_answers(setup.teacher, folder.path)
        return _run(setup, folder, show or _nothing, resume is not None)


def expanded(config: Config) -> Config:
    """The configuration with everything settled: the method's phases, the backend, the environment that the teacher names."""
    return settle(config, None, None).config


# ── before round 0 ────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Small networks are fastest on one thread (docs/speed.md); whoever called us gets their setting back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _nothing(metrics: Mapping[str, Any]) -> None:
    """Show nothing."""


class Interrupt:
    """Ctrl-C is noted, so that the round can be finished; a second one breaks it off. Only the main thread gets signals."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _run(setup: Setup, folder: Folder, show: Show, resumed: bool) -> Run:
    state = checkpoints.resume(setup, folder) if resumed else checkpoints.fresh(setup, folder)
    try:
        show({"folder": str(folder.path)})
        for note in setup.notes + _size_note(setup, state) + state.dataset.storage.notes:
            show({"note": note})
        with Interrupt() as interrupt:
            _rounds(setup, state, folder, show, interrupt)
        if not state.ended:
            raise KeyboardInterrupt(f"interrupted after round {state.progress.round - 1}; go on with: distillrl distill --resume {folder.path}")
        run = _finish(setup, state, folder)
        show({"verdict": run.verdict})
        return run
    finally:
        state.drive.vector.close()


def _rounds(setup: Setup, state: State, folder: Folder, show: Show, interrupt: Interrupt) -> None:
    """Rounds until the run ends, or the user breaks it off; a checkpoint is then written where the vector allows one."""
    saved = began = time.perf_counter()
    before = state.seconds
    limits = ("env_steps", "labels", "rounds", "seconds") if setup.recording is None else ("rounds", "seconds")
    while not state.ended and not interrupt.asked:
        had = state.progress.env_steps
        metrics = rounds.play(setup, state, folder)
        state.seconds = before + time.perf_counter() - began
        _end_of_round(setup, state, metrics)
        state.seconds = before + time.perf_counter() - began
        metrics["seconds"] = round(state.seconds, 4)
        folder.log(metrics)
        state.lines += 1
        show({**metrics, "round_steps": state.progress.env_steps - had, "limits": {name: getattr(setup.config, name) for name in limits}})
        due = interrupt.asked or time.perf_counter() - saved >= setup.config.checkpoint_seconds
        if not state.ended and due and (state.drive.vector.replayable or state.drive.due()):
            checkpoints.save(state, folder)
            saved = time.perf_counter()


# ── selecting ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _end_of_round(setup: Setup, state: State, metrics: dict[str, Any]) -> None:
    """Evaluate where it is time, decide whether the run ends, move on to the next round or phase."""
    config, progress = setup.config, state.progress
    phase, last, before = config.phase[progress.phase], progress.phase + 1 == len(config.phase), settled(config, state)
    state.phase_round += 1
    if setup.recording is not None:
        metrics.update(offline.look(setup, state))
    over = spent_budget(config, state)
    labelled = over == "labels" and not last and not asks_teacher(setup, state, progress.phase + 1)  # what follows needs none
    over = "" if labelled or (over == "labels" and not asks_teacher(setup, state, progress.phase)) else over
    known = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    ends = labelled or _phase_over(config, phase, state, known)
    over = over or ("phases" if ends and last else "")
    ended = bool(over) or (settled(config, state) and not before)  # by what held-out recorded episodes say
    if ended or evaluation_due(state):
        known |= (measured := evaluate_student(setup, state, ended))
        metrics.update(measured)
        ends = ends or _phase_over(config, phase, state, known)
    state.ended = "aim" if settled(config, state) and not before and (last or "aim" not in configuration.bounds(phase.until)) else over or ("phases" if ends and last else "")
    state.progress = replace(state.progress, round=progress.round + 1, metrics={k: v for k, v in known.items() if v is not None})
    if ends and not state.ended:
        _next_phase(setup, state)


def _phase_over(config: Config, phase: configuration.Phase, state: State, metrics: Mapping[str, Any]) -> bool:
    return phases.over(phase, state.phase_round, metrics, state.progress, spent_share(config, state.progress), settled(config, state))


def _next_phase(setup: Setup, state: State) -> None:
    """Go on from the averaged student, which is the one that was measured; what the next phase keeps otherwise begins empty."""
    state.student.load_state_dict(state.gradient.averaged.state_dict())
    state.progress, state.phase_round = replace(state.progress, phase=state.progress.phase + 1), 0
    if setup.config.phase[state.progress.phase].keep != state.dataset.keep:
        state.dataset, state.saved_steps, state.first_part = Dataset(expected=state.dataset.expected, storage=state.dataset.storage), 0, state.parts
    enter_phase(setup, state, state.progress.phase)


# ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _finish(setup: Setup, state: State, folder: Folder) -> Run:
    """Write the artifact, measure the verdict on fresh seeds, note where it ended."""
    config = setup.config
    assert state.best is not None
    if state.ended == "seconds":
        config = replace(config, last_round=state.progress.round, seconds=None)
        folder.write_config(config)
    header = {**state.best["header"], "provenance": provenance(setup, config, state.best["round"])}
    folder_bytes = artifact.dumps(header, state.best["tensors"])
    artifact.write_bytes(folder.student, folder_bytes)
    student = students.build(*artifact.load(folder.student), setup.own)
    folder.write_told(student)
    work = state.seconds - state.evaluation_seconds
    sizes = {"student": len(folder_bytes), "teacher": setup.teacher_bytes}
    if setup.plays:
        measured = evaluation.verdict(setup.options, setup.spec, config.verdict_episodes, config.seed, student=student, teacher=setup.judge, sizes=sizes)
    else:
        measured = offline.unplayed(setup, state, student, sizes)
    verdict = {
        "method": config.method,
        "seed": config.seed,
        "env": envs.name_of(setup.options) if setup.plays else None,
        "student_family": config.student,
        "env_steps": state.progress.env_steps,
        "teacher_labels": state.progress.labels,
        **({"teacher_cost": cost} if (cost := teachers.cost(setup.teacher)) else {}),
        "rounds": state.progress.round,
        "kept_round": state.best["round"],
        "ended_by": state.ended,
        "until": config.until,
        "reached": state.reached,
        "seconds": {"work": round(work, 4), "selecting": round(state.evaluation_seconds, 4), "with_imports": round(time.perf_counter() - distillrl.STARTED, 4)},
        "selecting_steps": state.evaluation_steps,
        "starts": hardcases.told(config, state),
        "imitability": state.imitability,
        **measured,
        **({"recorded": offline.facts(setup, state)} if setup.recording is not None else {}),
    }
    goal = configuration.aim(config.until)
    if goal is not None and not state.reached:
        found = offline.causes if setup.recording is not None else diagnosis.diagnose if not setup.alone else None
        verdict["diagnosis"] = found(setup, state) if found is not None else []
    folder.write_verdict(verdict)
    state.dataset.storage.close()
    return Run(folder.path, Player(student), verdict, goal is None or state.reached)


def provenance(setup: Setup, config: Config, round_number: int) -> dict[str, Any]:
    """What the student was made of; no time and no path, so that the same run gives the same bytes."""
    kept = dataclasses.asdict(config)
    for place in ("teacher", "init", "inherit", "seconds", "rounds", "last_round", "vecnormalize", "checkpoint_seconds", "teachers", "concurrency", "memory", "data"):
        kept.pop(place)
    kept["backend"] = config.backend.partition(":")[0]  # how many processes step changes nothing
    return {
        "teacher": {"sha256": setup.teacher_digest, "format": setup.teacher.info.get("format"), "algorithm": setup.teacher.info.get("algorithm")},
        "versions": {"distillrl": distillrl.__version__, "torch": torch.__version__},
        "round": round_number,
        "config": kept,
        **({} if setup.recording is None else {"recorded": {"sha256": setup.recording.digest, "format": setup.recording.format}}),
    }


def _size_note(setup: Setup, state: State) -> tuple[str, ...]:
    mine, theirs = acting_parameters(state.student), acting_parameters(setup.teacher)
    if mine is None or theirs is None or mine <= theirs:
        return ()
    return (f"the student has {mine:,} parameters, more than its teacher's {theirs:,}: it will not be smaller or faster",)


__all__ = ["DistillError", "Run", "distill"]
