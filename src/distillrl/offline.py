"""Runs on recorded play: what is settled before round 0, how the student is chosen by held-out episodes, when it ends, what the verdict says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from distillrl import config as configuration
from distillrl import envs, evaluation, methods, objectives, phases, recorded, recordings, stats, students, teachers, weighing
from distillrl.config import Config, Phase
from distillrl.envs import EnvOptions
from distillrl.errors import Misconfigured
from distillrl.policies import Policy, acting_parameters
from distillrl.recorded import Behaviour, Recorded
from distillrl.recordings import Recording
from distillrl.records import Spec

if TYPE_CHECKING:
    from distillrl.beginning import State
    from distillrl.settling import Setup

ROUNDS = 1000
"""Rounds at most where none are given; a grown student has all that there is after one."""
PATIENCE = 20
"""Rounds without a lower held-out loss after which a run ends, or half of those so far where that is more."""
FALLS = 1e-3
"""Share of the first round's held-out loss by which it must fall to count: a sure teacher's is learnt to any digit, for as long as one likes."""
FIRST_PLAYED, RARER = 8, 1.5
"""The round after which the student is played for the first time where there is an environment, and how much later each time is."""
OWN_PLAY = frozenset({"behaviour_log_prob", "extra.advantage", "extra.return", "extra.distillation_return", "extra.future_kl"})
"""Wants of terms that are about what the student itself does."""
FITS, APART = 0.9, 0.1
"""Agreement that counts as learnt, and its loss on held-out episodes that counts as too few of them."""


@dataclass(frozen=True)
class Prepared:
    """What is settled of a run on recorded play."""

    config: Config
    options: EnvOptions
    labeller: Policy
    judge: Policy | None
    """The teacher to compare with, where one was given."""
    recording: Recording
    spec: Spec
    notes: tuple[str, ...]


def prepare(config: Config, source: Any, env: Any, student: Any, look: Callable[[EnvOptions, int], tuple[Spec, str]]) -> Prepared:
    """Read the recording, hold environment and teacher against it, settle labels, phases and when it ends.

    ``look``: (options, slots) → the environment's spec, and its backend. Raises Failed, Misconfigured or Missing.
    """
    assert config.data is not None
    raw, form = recordings.look(config.data, config.data_format)
    target = env if env is not None else config.env
    options = EnvOptions("" if target is None else target, config.env_kwargs, config.backend, config.max_episode_steps)
    wished = teachers.options_of(config)
    if target is None:
        recording, backend = recordings.settle(raw, config.data, form), "none"
    else:
        spec, backend = look(options, config.slots)
        recording = recordings.settle(raw, config.data, form, spec)
    judge = None if source is None else teachers.load(source, replace(wished, env=config.env if target is None else envs.name_of(options)), recording.spec)
    if judge is not None and target is None:
        recording = recordings.settle(raw, config.data, form, judge.spec, "the teacher")
    elif judge is not None and (found := envs.differences(judge.spec, recording.spec)):
        raise Misconfigured(f"the teacher does not fit {envs.name_of(options)}: " + "; ".join(found))
    config = replace(config, env=target if isinstance(target, str) else config.env, backend=backend)
    label, chosen = _label(config, recording, judge)
    labeller: Any = judge if label == "teacher" else Behaviour(recording, label)
    config = replace(config, phase=_phases(config, labeller.gives, recording, chosen, student), terms=None, weigh=None, label=label, rounds=_rounds(config, student), worst_of=0)
    _enough(config, recording, options)
    config, notes = _aim(config, options, judge)
    notes = (*recording.notes, *notes, *(judge.info.get("notes", ()) if judge is not None else ()))
    return Prepared(config, replace(options, backend=backend), labeller, judge, recording, recording.spec, notes)


def _label(config: Config, recording: Recording, judge: Policy | None) -> tuple[str, str]:
    """What states are labelled with, and the word for how they are weighed ("" where the method's own phases say it)."""
    own = {"awr": "awr(1)", "crr": "crr", "percent-bc": "top(0.1)"}.get(config.method, "") if not config.phase else next((p.weigh for p in config.phase), "")
    word = config.weigh or own
    weigh = weighing.parse(word)
    soft = recorded.distribution(recording)
    there = ["teacher"] * (judge is not None) + ["distribution"] * soft + ["action"]
    label = config.label
    if label == "auto":
        label = "action" if weigh is not None and weigh.kind not in weighing.BY_EPISODE else there[0]
    if label not in there:
        lack = "no teacher was given" if label == "teacher" else f"{recording.source} keeps no distribution"
        raise Misconfigured(f"--label {label}: {lack}; there is {', '.join(there)}")
    if config.labels is not None and label != "teacher":
        raise Misconfigured(f"--labels {config.labels} bounds what a teacher is asked, but states are labelled with the recorded {label} here")
    return label, config.weigh or ""


def _phases(config: Config, gives: frozenset[str], recording: Recording, weigh: str, student: Any) -> tuple[Phase, ...]:
    """The method's phases, or those given, as they are on recorded play."""
    if config.worst_of:
        raise Misconfigured(f"--worst-of {config.worst_of} drives from the worst starts, and recorded play is all that --data has: no --data, or no --worst-of")
    if config.finetune:
        raise Misconfigured("--finetune goes on by playing, and recorded play is all that --data has: distil first, then go on with --init STUDENT and a teacher")
    grown = config.method == "auto" and students.grown(config.student, student)
    found = config.phase or students.suited(config.student, methods.expand_recorded("viper-tree" if grown else config.method, gives, recording.spec), student)
    if config.terms is not None:
        found = configuration.with_terms(found, config.terms)
    for p in found:
        if p.choose != "all" or p.rescue != "none" or p.late != "0":
            raise Misconfigured("choose, rescue and late are of a student that is driven, and --data has only what was recorded; --labels N asks a teacher about so many recorded states")
    found = tuple(replace(p, keep="all", weigh=weigh or p.weigh) for p in found)
    phases.check(found)
    if len({str(weighing.parse(p.weigh)) for p in found}) > 1:
        raise Misconfigured("recorded states are weighed once: weigh must be the same in all phases")
    for name in (name for p in found for name in p.terms):
        if objectives.get(name).wants & OWN_PLAY:
            raise Misconfigured(f"{name} learns from what the student itself does, and recorded play has none of that: --terms without it, or no --data")
    return found


def _enough(config: Config, recording: Recording, options: EnvOptions) -> None:
    """Raise Misconfigured where nothing is left to learn from, or nothing to choose the student by."""
    chosen = recorded.taken(recording, weighing.kept(recording, weighing.parse(config.phase[0].weigh)))
    if options.id == "" and config.hold_out == 0:
        raise Misconfigured("hold_out = 0 leaves nothing to choose the student by: hold some out, or name an --env to play it in")
    recorded.held_out(chosen, _share(config, chosen, options.id != ""), torch.Generator())


def _share(config: Config, chosen: Recording, plays: bool) -> float:
    """Of episodes that are held out; none where there is but one, and an environment chooses."""
    return 0.0 if plays and chosen.episodes == 1 else config.hold_out


def _rounds(config: Config, student: Any) -> int:
    return config.rounds or (1 if students.grown(config.student, student) else ROUNDS)


def _aim(config: Config, options: EnvOptions, judge: Policy | None) -> tuple[Config, tuple[str, ...]]:
    """The aim where it can be measured; the default one where it can't is none, and that is said."""
    goal = configuration.aim(config.until)
    lacking = "an environment" if options.id == "" else "a teacher" if judge is None else ""
    if goal is None or not lacking or goal[0] == "agreement" or (goal[0] == "return" and lacking == "a teacher"):
        return config, ()
    if config.until != Config.until:
        raise Misconfigured(f"--until {config.until} can't be measured without {lacking}: agreement=0.95 is, on held-out episodes" + (", or return=200" if options.id != "" else ""))
    return replace(config, until="none"), (f"no aim: retention can't be measured without {lacking}; the run ends when the loss on held-out episodes no longer falls",)


def driver(setup: Setup, generator: torch.Generator) -> Recorded:
    """The recording in its lanes, some episodes held out."""
    config, phase = setup.config, setup.config.phase[0]
    assert setup.recording is not None
    weigh = weighing.parse(phase.weigh)
    chosen = recorded.taken(setup.recording, weighing.kept(setup.recording, weigh))
    return Recorded(
        chosen,
        slots=config.slots,
        label=config.label,
        weigh=weigh,
        gamma=phase.gamma,
        lam=phase.lam,
        hold_out=_share(config, chosen, setup.plays),
        labels=config.labels,
        advisor=setup.judge,
        generator=generator,
    )


# ── choosing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def look(setup: Setup, state: State) -> dict[str, Any]:
    """Measure the student on the held-out episodes after a round; without an environment keep it if it is the best so far, and see whether the aim is reached."""
    play = state.recorded.held_out
    if play is None:
        return {}
    began, student = time.perf_counter(), state.gradient.averaged
    lost, same = recorded.measure(student, play)
    told = fallen(state.held, lost, state.progress.round)
    if not state.held or lost < state.held["loss"]:
        state.held = {"loss": lost, "agreement": same, "round": state.progress.round, **told}
        if not setup.plays:
            tensors = {k: v.clone() for k, v in student.artifact_tensors().items()}
            state.best = {"mean": -lost, "round": state.progress.round, "tensors": tensors, "header": student.header(), "judged": None}
    goal = configuration.aim(setup.config.until)
    if goal is not None and goal[0] == "agreement" and (not setup.plays or setup.judge is None) and same >= goal[1]:
        state.reached = True
        if not setup.plays:
            state.best = {"mean": -lost, "round": state.progress.round, "tensors": {k: v.clone() for k, v in student.artifact_tensors().items()}, "header": student.header(), "judged": None}
            state.held = {"loss": lost, "agreement": same, "round": state.progress.round, **told}
    state.evaluation_seconds += time.perf_counter() - began
    return {"agreement": round(same, 4), "held_out.loss": round(lost, 6)}


def fallen(held: Mapping[str, float], lost: float, now: int) -> dict[str, float]:
    """The first round's loss, and the last that lay noticeably below the one noted before, with its round: less than FALLS of the first is no progress."""
    if not held:
        return {"first": lost, "noted": lost, "noted_round": now}
    noted = {name: held[name] for name in ("first", "noted", "noted_round")}
    return {**noted, "noted": lost, "noted_round": now} if lost < noted["noted"] - FALLS * noted["first"] else noted


def stalled(state: State) -> bool:
    """Whether the loss on held-out episodes has not fallen noticeably for long."""
    now = state.progress.round
    return bool(state.held) and now - state.held["noted_round"] >= max(PATIENCE, now / 2)


def due(state: State) -> bool:
    """Whether the student is to be played in the environment after this round: ever rarer."""
    return state.progress.round + 1 >= max(FIRST_PLAYED, state.next_evaluation)


# ── at the end ────────────────────────────────────────────────────────────────────────────────────────────────────


def facts(setup: Setup, state: State) -> dict[str, Any]:
    """What the verdict says of the recording, and of the student on its held-out episodes."""
    recording: Any = setup.recording
    returns = recording.returns
    apart = state.recorded.parts[1].recording.episodes if len(state.recorded.parts) > 1 else 0
    interval = stats.mean_interval(returns, setup.config.seed) if returns is not None and len(returns) > 1 else None
    return {
        "source": recording.source,
        "format": recording.format,
        "sha256": recording.digest,
        "episodes": recording.episodes,
        "steps": recording.steps,
        "return": None if interval is None else {"mean": interval.value, "low": interval.low, "high": interval.high},
        "label": setup.config.label,
        "held_out": {"episodes": apart, "loss": state.held.get("loss"), "agreement": state.held.get("agreement")},
    }


def unplayed(setup: Setup, state: State, student: Policy, sizes: Mapping[str, int | None]) -> dict[str, Any]:
    """The keys of ``evaluation.verdict`` where there is no environment to play in: agreement is on held-out episodes, returns are null."""

    def player(name: str, policy: Policy) -> dict[str, Any]:
        return {"return": None, "return_sampled": None, "parameters": acting_parameters(policy), "bytes": sizes.get(name), "latency_us": round(evaluation.latency_us(policy), 2)}

    return {
        "agreement": state.held.get("agreement"),
        **dict.fromkeys(("paired", "retention", "difference", "non_inferiority", "probability_of_improvement", "falls")),
        "alike": False,
        "notes": ["retention is null: there was no environment to play in (--env names one); agreement is on held-out episodes"],
        "teacher": None if setup.judge is None else player("teacher", setup.judge),
        "student": player("student", student),
        "random": None,
        "evaluation_steps": 0,
        "evaluation_seconds": 0.0,
    }


def causes(setup: Setup, state: State) -> list[str]:
    """Why a student on recorded play stays below its aim: what is measured on the episodes that it learnt from, and on others."""
    play = replace(state.recorded.parts[0].play, teacher=None)
    whole = state.dataset.in_order()
    learnt = replace(play, teacher=whole.teacher, labelled=_drawable(state), weight=whole.weight)
    _, on_learnt = recorded.measure(state.gradient.averaged, learnt)
    held = state.held.get("agreement")
    if on_learnt < FITS:
        return [f"too small, or the recorded actions are not one policy's: even on the episodes that it learnt from the student agrees in only {on_learnt:.0%}; a larger --student, or --weigh top(0.1) or awr(1), is to be tried"]
    if held is not None and on_learnt - held >= APART:
        return [f"too few episodes: the student agrees in {on_learnt:.0%} of the states that it learnt from, in {held:.0%} of held-out ones; record more, or take a smaller --student"]
    if setup.plays and held is not None and held >= FITS:
        return [f"coverage: the student agrees in {held:.0%} of held-out recorded states, and still falls short when it plays: recorded play doesn't show how to recover; record with --noise, or let a teacher label the student's own states (no --data)"]
    return []


def _drawable(state: State) -> torch.Tensor:
    play = state.recorded.parts[0].play
    flat = torch.zeros(play.valid.numel(), dtype=torch.bool)
    flat[state.dataset.rows] = True
    return flat.view(play.valid.shape)
