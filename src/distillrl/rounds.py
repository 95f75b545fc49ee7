"""One round of a run: drive, label, learn."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from distillrl import advantages, choosing, hardcases, heads, imitability, learn, phases, seeing, sounds, students
from distillrl import config as configuration
from distillrl.beginning import State, all_wants, asks_teacher, enter_phase, label_wants
from distillrl.config import Config
from distillrl.errors import Failed
from distillrl.policies import Policy
from distillrl.records import Progress, Rollout
from distillrl.runs import Folder
from distillrl.settling import Setup
from distillrl.states import Drive, Who, stakes


def play(setup: Setup, state: State, folder: Folder) -> dict[str, Any]:
    """Drive, label, learn; the round's metrics."""
    began = time.perf_counter()
    who = phases.who(setup.config.phase[state.progress.phase], phases.at(state.progress, state.phase_round))
    try:
        rollout = _driven(setup, state, who)
        _seen(setup, state, rollout)
        collected = time.perf_counter()
        noticed = _noticed(setup, state, rollout)
        state.dataset.append(rollout)
        compared, explained = phases.compared(state.gradient.averaged, rollout, state.dataset), phases.explained_variance(rollout)
        count = _counted(setup, state, rollout)
        now = phases.at(state.progress, state.phase_round)
        learnt: dict[str, Any] = dict(state.gradient.learn(state.dataset, now))
        for i, member in enumerate(state.committee):
            member.learn(state.dataset.half(i), now)
    except Failed as error:
        kept = folder.save_states({"obs": dict(state.drive.obs), "student": state.student.state_dict()}, state.progress.round)
        raise Failed(f"round {state.progress.round}: {error} (the states are kept in {kept})") from None
    if warning := learn.dominated(learnt):
        learnt["warning"] = warning
    seconds = time.perf_counter() - began
    return {
        "phase": state.progress.phase,
        "round": state.progress.round,
        "env_steps": state.progress.env_steps,
        "labels": state.progress.labels,
        "steps_per_second": round(count / max(1e-9, collected - began), 1),
        "learn_seconds": round(seconds - (collected - began), 4),
        "beta": who.beta,
        **compared,
        **noticed,
        **({} if explained is None else {"explained_variance": round(explained, 4)}),
        **learnt,
    }


def _driven(setup: Setup, state: State, who: Who) -> Rollout:
    """The round's states, labelled as its phase wants them: from the run's environments, or from those that begin where starts were bad."""
    phase = setup.config.phase[state.progress.phase]
    drive, playing = state.drive, phases.driven_by(phase, state.gradient.averaged)
    if drive.due():
        drive.reseed(setup.teacher, playing)
    ask = asks_teacher(setup, state, state.progress.phase)
    choosy = ask and phase.choose != "all"
    room = _room(setup.config, state.progress, ask and (who.asks or not choosy or bool(state.hard["bad"]))) // drive.n
    wanted = phase.first if state.progress.round == 0 and state.progress.phase == 0 else phase.steps
    with torch.inference_mode():
        wants = label_wants(setup, state)
        if state.hard["bad"]:
            rollout, drive = hardcases.collect(setup, state, room, who, wants, ask)
        else:
            rollout = drive.collect(max(1, min(wanted, room)), who, setup.teacher, playing, wants, setup.seen, ask and not choosy)
            rollout = _asked(setup, state, phase, rollout) if choosy else rollout
        return _enriched(setup, state, phase, rollout, drive, playing)


def _seen(setup: Setup, state: State, rollout: Rollout) -> None:
    """Normalise by what the first rollout showed, or by all that was seen so far where the sense says so."""
    if state.progress.round == 0 and setup.config.init is None and setup.config.inherit is None:
        _normalise(setup, state, rollout)
    elif seeing.running(setup.config.see) and setup.recording is None:
        students.follow([copy for learner in (state.gradient, *state.committee) for copy in learner.copies()], rollout)


def _noticed(setup: Setup, state: State, rollout: Rollout) -> dict[str, Any]:
    """What the first rollout tells of the whole run: what can't be imitated, a sense that hears nothing, what a recording lacks."""
    if state.progress.round > 0:
        return {}
    noticed: dict[str, Any] = {}
    if bool((rollout.labelled | ~rollout.valid).all()):
        state.imitability, noticed = imitability.first_look(setup.config, state.student, rollout, bool(setup.teacher.init(1)))
    mute = sounds.silent(getattr(state.student, "sense", None), rollout.obs)
    lacks = state.recorded.note if setup.recording is not None else ""
    said = [x for x in (noticed.get("note"), mute, lacks) if x]
    return {**noticed, "note": "; ".join(said)} if said else noticed


def _counted(setup: Setup, state: State, rollout: Rollout) -> int:
    """Count steps and labels in; the steps."""
    count, asked = int(rollout.valid.sum()), int((rollout.valid & rollout.labelled).sum())
    if setup.recording is not None:  # nothing was stepped; held-out states were labelled too
        count, asked = 0, state.recorded.asked if state.progress.round == 0 else 0
        state.progress = replace(state.progress, rounds=setup.config.rounds or 0)
    state.progress = replace(state.progress, env_steps=state.progress.env_steps + count, labels=state.progress.labels + asked, budget=setup.config.env_steps)
    return count


def _enriched(setup: Setup, state: State, phase: configuration.Phase, rollout: Rollout, drive: Drive, playing: Policy) -> Rollout:
    """With what terms on reward read, and how much each state counts."""
    horizon = advantages.Horizon(phase.gamma, phase.lam, phase.n)
    rollout = advantages.enrich(rollout, all_wants(state.gradient.terms), horizon, drive, setup.teacher, playing, state.student)
    if not phase.critical:
        return rollout
    weight = stakes(advantages.need_teacher(rollout), rollout.valid)
    return replace(rollout, weight=weight if rollout.weight is None else weight * rollout.weight)


def _asked(setup: Setup, state: State, phase: configuration.Phase, rollout: Rollout) -> Rollout:
    """With labels for the states in which the students are least sure, as far as the budget goes."""
    budget = math.ceil(phase.ask * int(rollout.valid.sum()))
    if setup.config.labels is not None:
        budget = min(budget, setup.config.labels - state.progress.labels - int((rollout.valid & rollout.labelled).sum()))
    pupils = [learner.averaged for learner in (state.gradient, *state.committee)]
    mask = choosing.choose(phase.choose, rollout, pupils, budget, state.chooser, state.asked)
    rollout = choosing.label(rollout, mask, setup.teacher, label_wants(setup, state))
    if rollout.teacher is None:  # every state looks like one that was asked about
        return replace(rollout, teacher=state.dataset.blank(*rollout.valid.shape))
    state.asked = torch.cat([state.asked, choosing.keys(rollout)[rollout.labelled & rollout.valid]])
    return rollout


def _room(config: Config, progress: Progress, labelling: bool) -> int:
    """Environment steps that may still be taken; where each is labelled, as many as labels."""
    room = config.env_steps - progress.env_steps
    return room if config.labels is None or not labelling else min(room, config.labels - progress.labels)


def _normalise(setup: Setup, state: State, rollout: Rollout) -> None:
    """Measure the student's normaliser from the first rollout, and where its values lie, and make the learner anew around it."""
    looked = students.look(state.student, rollout, seeing.running(setup.config.see))
    if heads.centre(state.student, rollout, all_wants(state.gradient.terms)) or looked:
        enter_phase(setup, state, state.progress.phase)
