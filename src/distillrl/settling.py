"""Before round 0: load the teacher, make the environment, hold them against each other, expand the method, try everything out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distillrl import (
    atari,
    envs,
    evaluation,
    methods,
    offline,
    phases,
    seeing,
    students,
    tasks,
    teachers,
    texts,
)
from distillrl import config as configuration
from distillrl.config import Config, Phase
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Misconfigured
from distillrl.policies import Policy
from distillrl.recordings import Recording
from distillrl.records import Spec
from distillrl.refit import weighed_by

WORST_OF = 500
"""Starts that a grown student, such as a tree, must do well on before its run ends."""


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
    slots, select, verdict = (tasks.even(n, len(spec.tasks)) for n in (config.slots, config.select_episodes, config.verdict_episodes))
    return replace(config, slots=slots, select_episodes=select, verdict_episodes=verdict)


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
