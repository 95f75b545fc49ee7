"""Checkpoints: a run that was killed goes on from its last one, to the same bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

from distillrl import storage, students
from distillrl.beginning import State, asks_teacher, begin, enter_phase, example_batch, label_words
from distillrl.errors import DistillError
from distillrl.records import Prediction, Progress
from distillrl.runs import Folder
from distillrl.settling import Setup

ROOM = 1.06
"""Rows for which there is room at first, of those that are counted: steps that only reset take some more."""
_PLAIN = ("phase_round", "hard", "imitability", "baseline", "evaluations", "evaluation_steps", "evaluation_seconds", "next_evaluation", "held", "seconds", "lines", "ended", "reached", "first_part")


def save(state: State, folder: Folder) -> None:
    """Write what has come since the last checkpoint, and where the run stands."""
    part: dict[str, Any] = state.dataset.since(state.saved_steps) if state.dataset.keep == "all" else state.dataset.tail()
    state.parts, state.saved_steps = state.parts + 1, state.dataset.steps
    folder.checkpoint(
        {
            **{name: getattr(state, name) for name in _PLAIN},
            "parts": state.parts,
            "progress": dataclasses.asdict(state.progress),
            "best": state.best,
            "header": state.student.header(),
            "tensors": {k: v.clone() for k, v in state.student.artifact_tensors().items()},
            "drive": state.drive.state_dict(),
            "gradient": state.gradient.state_dict(),
            "committee": [member.state_dict() for member in state.committee],
            "chooser": state.chooser.get_state(),
            "asked": state.asked,
        },
        part,
        state.parts - 1,
    )


def resume(setup: Setup, folder: Folder) -> State:
    """The state of the last checkpoint, or of the beginning where there is none."""
    saved = folder.read_checkpoint()
    state = start(setup, folder)
    if saved is None:
        return state
    values, parts = saved
    state.student = students.build(values["header"], values["tensors"], setup.own, learning=True)
    state.progress = Progress(**values["progress"])
    enter_phase(setup, state, state.progress.phase)
    state.gradient.load_state_dict(values["gradient"])
    for member, own in zip(state.committee, values["committee"], strict=True):
        member.load_state_dict(own)
    state.chooser.set_state(values["chooser"])
    state.asked = values["asked"]
    state.drive.load_state_dict(values["drive"])
    like = example_batch(setup, state, label_words(setup, state)).teacher
    if setup.recording is not None:
        state.recorded.relabel(like, setup.seen)
    own = [p for p in parts[values["first_part"] :] if p]
    state.dataset.restore(own if state.dataset.keep == "all" else own[-1:], like if asks_teacher(setup, state, state.progress.phase) else Prediction())
    state.saved_steps, state.parts, state.best = state.dataset.steps, values["parts"], values["best"]
    for name in _PLAIN:
        setattr(state, name, values[name])
    return state


def fresh(setup: Setup, folder: Folder) -> State:
    """As ``start``, for a folder that was just made: what fails before round 0 leaves none behind, so that the same --out can be tried again."""
    try:
        return start(setup, folder)
    except DistillError:
        folder.withdraw()
        raise


def start(setup: Setup, folder: Folder) -> State:
    """A state before round 0, with room for its rows; raises Misconfigured where neither memory nor disk can hold them."""
    state = begin(setup)
    config, drive = setup.config, state.drive
    if setup.recording is not None:
        state.dataset.expected = state.recorded.parts[0].lanes.rows + 64
    elif all(phase.keep == "all" for phase in config.phase):
        state.dataset.expected = int(ROOM * config.env_steps / drive.n) + 64
    else:
        state.dataset.expected = max(max(phase.steps, phase.first) for phase in config.phase) + 64
    each = sum(v.numel() * v.element_size() for k, v in drive.obs.items() if k in setup.seen or k not in setup.spec.observations)
    try:
        state.dataset.storage = storage.plan(state.dataset.expected * each, config.memory, folder.path)
    except DistillError:
        drive.vector.close()
        raise
    return state
