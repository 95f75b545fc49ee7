"""Where a run stands: its state is made from what was settled, and each phase's learner is made and tried out as it is entered."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from distillrl import (
    artifact,
    choosing,
    envs,
    heads,
    inheriting,
    learn,
    objectives,
    offline,
    phases,
    seeing,
    senses,
    students,
    teachers,
    weights,
)
from distillrl.actions import Gaussian
from distillrl.config import Phase
from distillrl.dataset import NEXT, Dataset
from distillrl.envs import Seeds
from distillrl.errors import Misconfigured
from distillrl.policies import ACTION, as_words
from distillrl.recorded import Recorded
from distillrl.records import TASKS, Batch, Progress, over_states
from distillrl.refit import Refit
from distillrl.settling import Setup
from distillrl.states import Drive, Who

INHERITING = 64
"""Steps of each environment by which inherited neurons are weighed."""


@dataclass
class State:
    """Where a run stands; everything that a checkpoint holds."""

    student: Any
    drive: Drive
    dataset: Dataset
    gradient: learn.Gradient
    committee: list[learn.Gradient] = field(default_factory=list)
    """The learners of further students, whose disagreement chooses what is asked."""
    chooser: torch.Generator = field(default_factory=torch.Generator)
    """Breaks ties between states that could be asked about."""
    asked: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Keys of the states that were, where they are chosen (choosing.py)."""
    progress: Progress = field(default_factory=Progress)
    phase_round: int = 0
    best: dict[str, Any] | None = None
    """{"mean", "round", "tensors", "header", "judged", "reached"} of the best evaluated student."""
    baseline: dict[str, Any] = field(default_factory=dict)
    """Mean returns of teacher and random policy on the selecting seeds."""
    hard: dict[str, Any] = field(default_factory=lambda: {"next": 0, "steps": 0, "found": 0, "known": [], "bad": [], "length": 0, "judged": None})
    """The search for bad starts (hardcases.py): the stream's next one, steps played, bad ones, and how this student was judged by them."""
    imitability: dict[str, Any] | None = None
    """What can't be imitated, as it was estimated from the first rollout (imitability.py)."""
    evaluations: int = 0
    evaluation_steps: int = 0
    evaluation_seconds: float = 0.0
    next_evaluation: int = 0
    held: dict[str, float] = field(default_factory=dict)
    """{"loss", "agreement", "round"} of the student that was best on held-out recorded episodes."""
    seconds: float = 0.0
    lines: int = 0
    parts: int = 0
    first_part: int = 0
    """The part that the data set begins with; what came before was of a phase that kept otherwise."""
    saved_steps: int = 0
    ended: str = ""
    reached: bool = False


    @property
    def recorded(self) -> Recorded:
        """Of a run on recorded play, what stands in the driver's place."""
        assert isinstance(self.drive, Recorded)
        return self.drive


def generator(seed: int, part: str) -> torch.Generator:
    """A part's own generator: adding a part changes no other's numbers."""
    mixed = sum(ord(c) * 31**i for i, c in enumerate(part)) % (1 << 31)
    return torch.Generator().manual_seed((seed * 1_000_003 + mixed) % (1 << 63))


def begin(setup: Setup) -> State:
    """Make the environments, the student and the learner of the first phase, and try all of it out."""
    config = setup.config
    drive = _driver(setup)
    if config.init is not None:
        header, tensors = artifact.load(Path(config.init))
        student = students.build(header, tensors, setup.own, learning=True)
        if found := envs.differences(student.spec, setup.spec):
            raise Misconfigured(f"--init {config.init} does not fit: " + "; ".join(found))
        if seeing.running(config.see) and not any(getattr(step, "running", False) for step in student.sense.steps):
            raise Misconfigured(f"--init {config.init}: its normaliser was frozen, and --see {config.see!r} asks for a running one; leave normalise=running out")
    else:
        student = students.make(config.student, setup.spec, generator(config.seed, "student"), None, config.see, setup.own)
        drive.begin(setup.teacher, student)
        head = _head(setup, drive)
        if head is not None:
            student = students.make(config.student, setup.spec, generator(config.seed, "student"), head, config.see, setup.own)
        if config.inherit is not None:
            _inherit(setup, student)
    drive.begin(setup.teacher, student)
    state = State(student, drive, Dataset(), None, chooser=generator(config.seed, "choose"))  # type: ignore[arg-type]  # enter_phase makes the learner
    for number in reversed(range(len(config.phase))):  # each is tried out before round 0, the first last
        enter_phase(setup, state, number)
    return state


def _driver(setup: Setup) -> Drive:
    """The environments; or the recording, which has the same face."""
    config = setup.config
    if setup.recording is not None:
        return offline.driver(setup, generator(config.seed, "recorded"))  # type: ignore[return-value]  # the same face
    vector = envs.make(setup.options, envs.slots_of(setup.options, config.slots), Seeds(config.seed, "train"))
    return Drive(vector, setup.spec, generator(config.seed, "drive"))


def _inherit(setup: Setup, student: Any) -> None:
    """Weights of the teacher, or of a file, for an untrained student; neurons are weighed by states that the teacher drives through."""
    config = setup.config
    if config.inherit == "teacher" and setup.judge is None:
        raise Misconfigured("--inherit teacher needs a teacher, and none was given: name its file, or another network's")
    source = setup.judge if config.inherit == "teacher" else teachers.load(str(config.inherit), teachers.Options(), setup.spec)
    if setup.recording is not None:
        some = {k: torch.from_numpy(v[: INHERITING * config.slots]) for k, v in setup.recording.obs.items()}
        inheriting.inherit(student, source, some, generator(config.seed, "inherit"))
        return
    vector = envs.make(setup.options, envs.slots_of(setup.options, config.slots), Seeds(config.seed, "dry"))
    try:
        drive = Drive(vector, setup.spec, generator(config.seed, "inherit states"))
        drive.begin(setup.teacher, student)
        with torch.inference_mode():
            seen = drive.collect(INHERITING, Who(1.0), setup.teacher, student, ACTION, frozenset(setup.spec.observations))
    finally:
        vector.close()
    obs = {k: v[:-1][seen.valid].clone() for k, v in seen.obs.items()}
    inheriting.inherit(student, source, obs, generator(config.seed, "inherit"))


def _head(setup: Setup, drive: Drive) -> str | None:
    """What suits the terms: Q-values to act by, an action without a spread, a squashed Gaussian for a squashed teacher, so
    that their divergence is exact; else the space's own head.
    """
    if heads.acts_by_q(setup.config.phase, setup.spec):
        return "greedy"
    if heads.acts_surely(setup.config.phase, setup.spec):
        return "deterministic"
    with torch.inference_mode():
        prediction = drive.label(setup.teacher, ACTION)
    return "squashed" if isinstance(prediction.action, Gaussian) and prediction.action.squashed else None


def enter_phase(setup: Setup, state: State, number: int) -> State:
    """Make the learner of a phase, after its dry run."""
    phase = setup.config.phase[number]
    wants = phase_wants(setup, state, number)
    phases.fits(phase, number, wants, state.student)
    choosing.check(phase, state.student, setup.teacher, wants)
    if getattr(state.student, "grown", False):
        return _enter_growing(setup, state, number)
    heads.add(state.student, wanted_heads(setup, state), setup.spec, generator(setup.config.seed, "heads"))
    state.gradient = _learner(setup, state, number, f"learn{number}", phase.updates)
    state.committee = _committee(setup, state, number)
    state.dataset.keep = phase.keep
    state.dataset.sense = state.student.sense if senses.window_of(state.student) else None
    state.gradient.try_out(example_batch(setup, state, all_wants(state.gradient.terms)), state.progress)
    return state


def _learner(setup: Setup, state: State, number: int, name: str, updates: int) -> learn.Gradient:
    phase = setup.config.phase[number]
    return learn.Gradient(
        state.student,
        make_terms(setup, state, phase, number),
        lr=phase.lr,
        batch=phase.batch,
        updates=updates,
        average=phase.average,
        train=phase.train,
        generator=generator(setup.config.seed, name),
    )


def _committee(setup: Setup, state: State, number: int) -> list[learn.Gradient]:
    """Students like the first, each with weights of its own and half of its updates, where their disagreement is looked at."""
    phase, mine, seed = setup.config.phase[number], state.student, setup.config.seed
    members = []
    for i in range(phase.committee if phase.choose == "disagreement" else 0):
        header = mine.header()
        student = students.make(header["family"], setup.spec, generator(seed, f"member{i}"), header.get("head"), setup.config.see, setup.own)
        if hasattr(mine, "sense"):
            student.sense = copy.deepcopy(mine.sense)
        own = replace(state, student=student)
        heads.add(student, wanted_heads(setup, own), setup.spec, generator(seed, f"member{i} heads"))
        members.append(_learner(setup, own, number, f"member{i} learn{number}", max(1, phase.updates // 2)))
    return members


def _enter_growing(setup: Setup, state: State, number: int) -> State:
    """A phase of a family that is fitted anew, not descended: its terms are not read."""
    learner = Refit(state.student, setup.teacher.gives, generator(setup.config.seed, f"learn{number}"))
    learner.try_out(example_batch(setup, state, all_wants(learner.terms)), state.progress)
    state.gradient, state.dataset.keep = learner, setup.config.phase[number].keep  # type: ignore[assignment]  # the same face
    return state


def make_terms(setup: Setup, state: State, phase: Phase, number: int) -> list[learn.Term]:
    """The phase's objectives with their weights and options, each checked against what teacher and student give."""
    made = []
    for name, given in phase.terms.items():
        options = dict(given) if isinstance(given, Mapping) else {"weight": given}
        weight = weights.parse(options.pop("weight", 1))
        wants = _wants(setup, state, name, options)
        example = example_batch(setup, state, wants)
        with torch.no_grad():
            prediction, _ = state.student.act(example.obs, {}, None, as_words(wants, "student"))
        loss = objectives.make(name, options, prediction, example, generator(setup.config.seed, f"{name}{number}"))
        made.append(learn.Term(name, weight, loss, wants))
    if not made:
        raise Misconfigured(f"phase {number + 1} has no terms: name at least one objective, such as forward_kl")
    return made


def example_batch(setup: Setup, state: State, wants: frozenset[str]) -> Batch:
    """The states at hand, labelled: what the dry run learns from."""
    with torch.inference_mode():
        label = state.drive.label(setup.teacher, as_words(wants, "teacher"))
    assert label.action is not None
    n, obs = state.drive.n, {k: v.clone() for k, v in state.drive.obs.items()}
    none, never = torch.zeros(n), torch.zeros(n, dtype=torch.bool)
    extra = {w.removeprefix("extra."): none for w in wants if w.startswith("extra.")}
    if setup.spec.tasks:
        extra[TASKS] = torch.zeros(n, len(setup.spec.tasks))
    if wants & {"next", "next_target"}:
        extra |= {NEXT + k: v for k, v in obs.items()}
    return Batch(
        obs,
        over_states(torch.clone, label),
        action=label.action.mode.clone(),
        reward=none,
        terminated=never,
        truncated=never,
        behaviour_log_prob=none,
        extra=extra,
        progress=state.progress,
    )


def label_wants(setup: Setup, state: State) -> frozenset[str]:
    """What the teacher is asked for, in a policy's words; by all phases that keep all states, so that a later one can learn from them too."""
    return as_words(label_words(setup, state), "teacher")


def label_words(setup: Setup, state: State) -> frozenset[str]:
    """As ``label_wants``, in the words of objectives."""
    together = [all_wants(state.gradient.terms), phases.driver_wants(setup.config.phase[state.progress.phase], setup.teacher.gives)]
    if state.dataset.keep == "all":
        together += [phase_wants(setup, state, i) for i, p in enumerate(setup.config.phase) if p.keep == "all"]
    return frozenset().union(*together)


def asks_teacher(setup: Setup, state: State, number: int) -> bool:
    """Whether a phase asks the teacher anything."""
    return phases.asks(setup.config.phase[number], phase_wants(setup, state, number), getattr(state.student, "grown", False))


def phase_wants(setup: Setup, state: State, number: int) -> frozenset[str]:
    """What the terms of a phase read, in the words of objectives."""
    found: set[str] = set()
    if getattr(state.student, "grown", False):
        return frozenset()  # its learner reads no terms
    for name, given in setup.config.phase[number].terms.items():
        options = {k: v for k, v in given.items() if k != "weight"} if isinstance(given, Mapping) else {}
        found |= _wants(setup, state, name, options)
    return frozenset(found) | phases.driver_wants(setup.config.phase[number], setup.teacher.gives)


def all_wants(terms: list[learn.Term] | tuple[learn.Term, ...]) -> frozenset[str]:
    """What the terms read, in the words of objectives."""
    return frozenset().union(*(t.wants for t in terms))


def wanted_heads(setup: Setup, state: State) -> dict[str, Any]:
    """{head: its size} of all phases' terms together, so that a resumed run has the same ones; sizes as the teacher's."""
    together = frozenset[str]().union(*(phase_wants(setup, state, i) for i in range(len(setup.config.phase))))
    found = {w.removeprefix("student.") for w in together if w.startswith("student.")}
    missing = found & heads.CAN_BE_ADDED - state.student.gives
    if "quantiles" in missing:
        quantiles = example_batch(setup, state, frozenset({"teacher.quantiles"})).teacher.quantiles
        sizes = {"quantiles": tuple(quantiles.shape[-2:]) if quantiles is not None else ()}
        return {name: sizes.get(name, ()) for name in sorted(missing)}
    return dict.fromkeys(sorted(missing), ())


def _wants(setup: Setup, state: State, name: str, options: Mapping[str, Any]) -> frozenset[str]:
    gives = heads.could_give(state.student, setup.spec)
    return objectives.wants(name, options, setup.spec.action.kind, setup.teacher.gives, gives)
