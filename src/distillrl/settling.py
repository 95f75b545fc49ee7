"""Before round 0: load the teacher, make the environment, hold them against each other, expand the method, try everything out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from distillrl import (
    artifact,
    atari,
    choosing,
    envs,
    evaluation,
    heads,
    inheriting,
    learn,
    methods,
    objectives,
    offline,
    phases,
    seeing,
    senses,
    students,
    tasks,
    teachers,
    texts,
    weights,
)
from distillrl import config as configuration
from distillrl.actions import Gaussian
from distillrl.config import Config, Phase
from distillrl.dataset import NEXT, Dataset
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Misconfigured
from distillrl.policies import ACTION, Policy, as_words
from distillrl.recordings import Recording
from distillrl.records import TASKS, Batch, Progress, Spec, over_states
from distillrl.refit import Refit, weighed_by
from distillrl.states import Drive, Who

WORST_OF = 500
"""Starts that a grown student, such as a tree, must do well on before its run ends."""


INHERITING = 64
"""Steps of each environment by which inherited neurons are weighed."""


@dataclass(frozen=True)
class Setup:
    """All that is settled before round 0."""

    config: Config
    options: EnvOptions
    teacher: Policy
    teacher_digest: str | None
    teacher_bytes: int | None
    spec: Spec
    seen: frozenset[str]
    """The observation groups that the student reads, and so are stored."""
    notes: tuple[str, ...] = ()
    own: Any = None
    """The student's class where it is the user's own: the class, or its name; None for our families."""
    recording: Recording | None = None
    """What is learnt from where nothing is driven; ``teacher`` is then whoever labels it."""
    other: Policy | None = None
    """With a recording: the teacher that was named, if one was."""
    alone: bool = False
    """Whether there is no teacher, and all is learnt by reward; ``teacher`` then stands in its place and gives nothing."""

    @property
    def judge(self) -> Policy | None:
        """The teacher that the student is compared with."""
        return self.teacher if self.recording is None and not self.alone else self.other

    @property
    def plays(self) -> bool:
        """Whether there is an environment."""
        return self.options.id != ""

    @property
    def title(self) -> str:
        """The environment's name, or the recording's."""
        return envs.name_of(self.options) if self.recording is None or self.plays else Path(self.recording.source).name


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
    """{"mean", "round", "tensors", "header"} of the best evaluated student."""
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


def settle(config: Config, teacher: Any, env: Any, student: Any = None) -> Setup:
    """Load the teacher, make the environment once, hold them against each other, expand the method."""
    students.check(config.student, student)
    source = teacher if teacher is not None else list(config.teachers) or config.teacher
    if config.data is not None:
        return _settle_recorded(config, source, env, student)
    if source is None:
        _refuse_alone(config)
    wished = teachers.options_of(config)
    target = env if env is not None else config.env
    if isinstance(target, list | tuple) and all(isinstance(t, str) for t in target):
        target = ",".join(target)
    if target is None and source is not None and not callable(source):
        target = teachers.load(source, wished).info.get("environment")
    if target is None:
        raise Misconfigured("no environment was given, and the teacher's file names none: --env takes an id such as LunarLander-v3")
    if config.labels is not None and config.labels < config.slots:
        raise Misconfigured(f"labels = {config.labels} is less than one step of all slots asks for: slots = {config.labels} or fewer, or more labels, would do")
    theirs = config.teacher_sees.removeprefix("group=") if config.teacher_sees else ""
    source = teachers.named(source)
    own_words = frozenset(source.spec.observations) if teachers.is_policy(source) else frozenset()
    wanted = seeing.named(config.see) | {name.strip() for name in theirs.split(",") if name.strip()} | own_words
    options = EnvOptions(target, config.env_kwargs, config.backend, config.max_episode_steps, envs.ON_DEMAND & wanted)
    own_texts = texts.read_by(source.spec.observations) if own_words else {}
    options = replace(options, words={name: own_texts.get(name) or (seeing.words(config.see, name), 0) for name in envs.texts_of(options, wanted - envs.ON_DEMAND)})
    adds = options.demanded
    spec, backend = environment(options, tasks.even(config.slots, count) if (count := len(tasks.several(target))) else config.slots)
    config = _shared_out(config, spec)
    config = replace(config, see=_student_sees(config, spec, adds, options))
    left = {k: g for k, g in spec.observations.items() if k not in adds - own_words}
    own = replace(spec, observations=left) if left and not config.teacher_sees else spec
    policy = _nobody(spec) if source is None else teachers.load(source, replace(wished, env=envs.name_of(options)), own)
    if found := envs.differences(policy.spec, spec):
        raise Misconfigured(f"the teacher does not fit {envs.name_of(options)}: " + "; ".join(found))
    grown = students.grown(config.student, student)
    found_phases = _phases(replace(config, method="viper-tree" if config.method == "auto" and grown else config.method), policy.gives, spec, student)
    if any(p.weigh != "none" for p in found_phases):
        raise Misconfigured(f"--method {config.method} weighs recorded play: name it with --data (weigh is of recorded play)")
    worst_of = (WORST_OF if grown else 0) if config.worst_of is None else config.worst_of
    config = replace(config, phase=found_phases, terms=None, choose=None, finetune=False, worst_of=worst_of, backend=backend, env=target if isinstance(target, str) else config.env)
    sense = getattr(policy, "sense", None)
    seen = seeing.needed(config.see, spec.observations) | frozenset(getattr(sense, "reads", spec.observations)) | ({tasks.TASK} if spec.tasks else set())
    notes = tuple(policy.info.get("notes", ())) + ((weighed_by(config.student, policy.gives, spec.action.kind),) if grown else ())
    return Setup(config, replace(options, backend=backend), policy, teachers.digest(source), teachers.size(source), spec, seen, notes, student or students.of_the_user(config.student), alone=source is None)


def _refuse_alone(config: Config) -> None:
    """Raise Misconfigured unless the run needs no teacher."""
    goal = configuration.aim(config.until)
    if config.method not in methods.WITHOUT_TEACHER:
        raise Misconfigured(f"no teacher was given: distillrl distill TEACHER --env ENVIRONMENT; by the reward alone learn --method {' and '.join(methods.WITHOUT_TEACHER)}")
    if goal is not None and goal[0] != "return":
        raise Misconfigured(f"--until {config.until} can't be measured without a teacher: --until return=400, or none, is right")


def _nobody(spec: Spec) -> Policy:
    """In a teacher's place where there is none: it acts at random, and gives no objective anything."""
    made = evaluation.Random(spec, torch.Generator())
    made.gives = frozenset()
    return made


def _shared_out(config: Config, spec: Spec) -> Config:
    """Of several tasks each gets as many slots and episodes."""
    if not spec.tasks:
        return config
    if config.worst_of:
        raise Misconfigured(f"worst_of = {config.worst_of}: bad starts are looked for in one task; with {len(spec.tasks)} of them leave it out")
    slots, select, verdict = (tasks.even(n, len(spec.tasks)) for n in (config.slots, config.select_episodes, config.verdict_episodes))
    return replace(config, worst_of=0, slots=slots, select_episodes=select, verdict_episodes=verdict)


def _settle_recorded(config: Config, source: Any, env: Any, student: Any) -> Setup:
    """As ``settle``, where states come from recorded play."""
    found = offline.prepare(config, source or None, env, student, environment)
    sense = getattr(found.labeller, "sense", None)
    seen = seeing.needed(config.see, found.spec.observations) | frozenset(getattr(sense, "reads", found.spec.observations))
    digest, size = (None, None) if source is None else (teachers.digest(source), teachers.size(source))
    return Setup(found.config, found.options, found.labeller, digest, size, found.spec, seen, found.notes, student or students.of_the_user(config.student), found.recording, found.judge)


def _phases(config: Config, gives: frozenset[str], spec: Spec, student: Any) -> tuple[Phase, ...]:
    """What the run will do: the method's phases or those given, with other terms, and fine-tuning behind them where it is asked for."""
    further = config.finetune or (config.method == "finetune" and not config.phase)
    if config.method in methods.BY_GRADIENT and students.grown(config.student, student):
        raise Misconfigured(f"--method {config.method} learns by gradients, but --student {config.student} is grown: these methods suit it: auto, viper-tree, viper, dagger, behaviour-cloning; or take a network, such as mlp:16x16")
    method = "dagger" if config.method == "finetune" else config.method
    found = config.phase or students.suited(config.student, methods.expand(method, gives, spec), student)
    if config.terms is not None:
        found = configuration.with_terms(found, config.terms)
    if config.choose is not None:
        found = tuple(replace(p, choose=config.choose) for p in found)
    found = methods.with_finetuning(found) if further else found
    if further and students.grown(config.student, student):
        raise Misconfigured(f"--finetune goes on by gradients, but --student {config.student} is grown: take a network, such as mlp:16x16")
    phases.check(found)
    return found


def _student_sees(config: Config, spec: Spec, adds: frozenset[str], options: EnvOptions) -> str | None:
    """What the student sees where nothing was said: not what was added for the teacher, and of an Atari game the last four frames, unless it remembers."""
    if config.see is not None:
        return config.see
    words = [f"group={'+'.join(k for k in spec.observations if k not in adds)}"] if adds else []
    played = [tasks.arguments(t)[0] if isinstance(t, str) else t for t in tasks.several(options.id)] or [options.id]
    if all(atari.game(game) is not None for game in played) and not config.student.startswith(("gru:", "lstm:")):
        words.append("stack=4")
    return ", ".join(words) or None


def environment(options: EnvOptions, slots: int) -> tuple[Spec, str]:
    """The spec of an environment, and the backend that ``auto`` comes to for so many slots."""
    vector = envs.make(options, envs.slots_of(options, slots), Seeds(0, "dry"))
    try:
        spec = vector.spec
    finally:
        vector.close()
    return spec, envs.arrange(options, slots)


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
