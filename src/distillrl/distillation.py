"""The loop: rounds of drive → choose → label → learn, the best student kept, and a verdict at the end."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import distillrl
from distillrl import artifact, config as configuration, envs, evaluation, learn, methods, objectives, stats, students, teachers, weights
from distillrl.actions import Gaussian
from distillrl.config import Config, Phase
from distillrl.dataset import Dataset
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import DistillError, Failed, Misconfigured
from distillrl.policies import ACTION, Player, Policy, acting_parameters, agreement
from distillrl.records import Batch, Prediction, Progress, Rollout, Spec, over_states
from distillrl.runs import Folder
from distillrl.senses import Normalise
from distillrl.states import Drive, Who

Show = Callable[[Mapping[str, Any]], None]
FREE_EVALUATIONS = 4
"""Evaluations before their steps are held to a fifth of all: a run of a few thousand steps needs them all the same."""


@dataclass(frozen=True)
class Run:
    """What a run gave: its folder, the student to play with, the verdict, and whether the aim was reached."""

    folder: Path
    policy: Player
    verdict: Mapping[str, Any]
    reached: bool


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


@dataclass
class State:
    """Where a run stands; everything that a checkpoint holds."""

    student: Any
    drive: Drive
    dataset: Dataset
    gradient: learn.Gradient
    progress: Progress = field(default_factory=Progress)
    phase_round: int = 0
    best: dict[str, Any] | None = None
    """{"mean", "round", "tensors", "header"} of the best evaluated student."""
    baseline: dict[str, float] = field(default_factory=dict)
    """Mean returns of teacher and random policy on the selecting seeds."""
    evaluations: int = 0
    evaluation_steps: int = 0
    evaluation_seconds: float = 0.0
    next_evaluation: int = 0
    seconds: float = 0.0
    lines: int = 0
    parts: int = 0
    saved_steps: int = 0
    ended: str = ""
    reached: bool = False


def distill(
    teacher: Any = None,
    env: Any = None,
    student: str | None = None,
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
    id, ``module:id``, a function that makes one, or a gymnasium vector environment. The rest of the options are the
    command line's; ``config`` holds all of them. ``show`` is called with each round's metrics; a KeyboardInterrupt
    ends the run after its round, to be resumed.

    Raises Misconfigured, Missing or Failed; never leaves a folder that can't be read.
    """
    if resume is not None:
        folder = Folder.open(resume)
        settled = folder.read_config()
    else:
        given = {"method": method, "seed": seed, "until": until, "env_steps": env_steps, "labels": labels, "seconds": seconds, "init": init, "student": student}
        given |= {"teacher": str(teacher) if isinstance(teacher, str | Path) else None, "env": env if isinstance(env, str) else None}
        settled = configuration.with_changes(config or Config(), given)
    with _threads(settled.threads):
        setup = _settle(settled, teacher, env)
        if resume is None:
            folder = Folder.create(out, envs.name_of(setup.options))
        folder.write_config(setup.config)
        return _run(setup, folder, show or (lambda metrics: None), resume is not None)


def expanded(config: Config) -> Config:
    """The configuration with everything settled: the method's phases, the backend, the environment that the teacher names."""
    return _settle(config, None, None).config


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


def _settle(config: Config, teacher: Any, env: Any) -> Setup:
    """Load the teacher, make the environment once, hold them against each other, expand the method."""
    students.check(config.student)
    source = teacher if teacher is not None else config.teacher
    if source is None:
        raise Misconfigured("no teacher was given: distillrl distill TEACHER --env ENVIRONMENT")
    wished = teachers.Options(format=config.format, model=config.model, sees=config.teacher_sees, env=config.env, vecnormalize=config.vecnormalize)
    policy = None if callable(source) else teachers.load(source, wished)
    target = env if env is not None else config.env or (policy.info.get("environment") if policy is not None else None)
    if target is None:
        raise Misconfigured("no environment was given, and the teacher's file names none: --env takes an id such as LunarLander-v3")
    options = EnvOptions(target, config.env_kwargs, config.backend, config.max_episode_steps)
    spec, backend = environment(options, config.slots)
    if policy is None:
        policy = teachers.load(source, wished, spec)
    if found := envs.differences(policy.spec, spec):
        raise Misconfigured(f"the teacher does not fit {envs.name_of(options)}: " + "; ".join(found))
    phases = config.phase or methods.expand(config.method, policy.gives, spec)
    if config.terms is not None:
        phases = configuration.with_terms(phases, config.terms)
    config = replace(config, phase=phases, terms=None, backend=backend, env=target if isinstance(target, str) else config.env)
    size = Path(source).stat().st_size if isinstance(source, str | Path) and Path(source).is_file() else None
    seen = frozenset(spec.observations)
    return Setup(config, replace(options, backend=backend), policy, teachers.digest(source), size, spec, seen, tuple(policy.info.get("notes", ())))


def environment(options: EnvOptions, slots: int) -> tuple[Spec, str]:
    """The spec of an environment, and the backend that ``auto`` comes to for so many slots."""
    vector = envs.make(options, envs.slots_of(options, slots), Seeds(0, "dry"))
    try:
        return vector.spec, vector.backend if vector.backend != "given" else options.backend
    finally:
        vector.close()


def generator(seed: int, part: str) -> torch.Generator:
    """A part's own generator: adding a part changes no other's numbers."""
    mixed = sum(ord(c) * 31**i for i, c in enumerate(part)) % (1 << 31)
    return torch.Generator().manual_seed((seed * 1_000_003 + mixed) % (1 << 63))


def _begin(setup: Setup) -> State:
    config = setup.config
    seeds = Seeds(config.seed, "train")
    vector = envs.make(setup.options, envs.slots_of(setup.options, config.slots), seeds)
    drive = Drive(vector, setup.spec, generator(config.seed, "drive"))
    if config.init is not None:
        header, tensors = artifact.load(Path(config.init))
        student = students.build(header, tensors)
        if found := envs.differences(student.spec, setup.spec):
            raise Misconfigured(f"--init {config.init} does not fit: " + "; ".join(found))
    else:
        student = students.make(config.student, setup.spec, generator(config.seed, "student"), None)
        drive.begin(setup.teacher, student)
        head = _head(setup, drive)
        if head is not None:
            student = students.make(config.student, setup.spec, generator(config.seed, "student"), head)
    drive.begin(setup.teacher, student)
    return _phase(setup, State(student, drive, Dataset(), None), 0)  # type: ignore[arg-type]  # _phase makes the learner


def _head(setup: Setup, drive: Drive) -> str | None:
    """A tanh-squashed teacher gets a squashed student, so that their divergence is exact; else the space's own head."""
    with torch.inference_mode():
        prediction, _ = setup.teacher.act(drive.obs, drive.memory["teacher"], drive.starts, ACTION)
    return "squashed" if isinstance(prediction.action, Gaussian) and prediction.action.squashed else None


def _phase(setup: Setup, state: State, number: int) -> State:
    """Make the learner of a phase, after its dry run."""
    phase = setup.config.phase[number]
    terms = _terms(setup, state, phase, number)
    state.gradient = learn.Gradient(
        state.student,
        terms,
        lr=phase.lr,
        batch=phase.batch,
        updates=phase.updates,
        average=phase.average,
        train=phase.train,
        generator=generator(setup.config.seed, f"learn{number}"),
    )
    state.dataset.keep = phase.keep
    state.gradient.try_out(_example(setup, state, _wants(terms)), state.progress)
    return state


def _terms(setup: Setup, state: State, phase: Phase, number: int) -> list[learn.Term]:
    made = []
    for name, given in phase.terms.items():
        options = dict(given) if isinstance(given, Mapping) else {"weight": given}
        weight = weights.parse(options.pop("weight", 1))
        wants = objectives.wants(name, options, setup.spec.action.kind, setup.teacher.gives, state.student.gives)
        example = _example(setup, state, _teacher_wants(wants))
        with torch.inference_mode():
            prediction, _ = state.student.act(example.obs, {}, None, ACTION)
        loss = objectives.make(name, options, prediction, example, generator(setup.config.seed, f"{name}{number}"))
        made.append(learn.Term(name, weight, loss, wants))
    if not made:
        raise Misconfigured(f"phase {number + 1} has no terms: name at least one objective, such as forward_kl")
    return made


def _example(setup: Setup, state: State, wants: frozenset[str]) -> Batch:
    """The states at hand, labelled: what the dry run learns from."""
    with torch.inference_mode():
        label, _ = setup.teacher.act(state.drive.obs, state.drive.memory["teacher"], state.drive.starts, wants)
    return Batch({k: v.clone() for k, v in state.drive.obs.items()}, over_states(torch.clone, label), progress=state.progress)


def _wants(terms: list[learn.Term] | tuple[learn.Term, ...]) -> frozenset[str]:
    return frozenset().union(*(_teacher_wants(t.wants) for t in terms)) | ACTION


def _teacher_wants(wants: frozenset[str]) -> frozenset[str]:
    """``teacher.features[pi]`` → ``features.pi``: an objective's words as a policy takes them."""
    mine = {w.removeprefix("teacher.").replace("features[", "features.").rstrip("]") for w in wants if w.startswith("teacher.")}
    return frozenset(mine) | ACTION


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _Interrupt:
    """Ctrl-C is noted, so that the round can be finished; a second one breaks it off. Only the main thread gets signals."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Interrupt:
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
    state = _resume(setup, folder) if resumed else _begin(setup)
    try:
        for note in setup.notes + _size_note(setup, state):
            show({"note": note})
        with _Interrupt() as interrupt:
            _rounds(setup, state, folder, show, interrupt)
        if not state.ended:
            raise KeyboardInterrupt(f"interrupted after round {state.progress.round - 1}; go on with: distillrl distill --resume {folder.path}")
        return _finish(setup, state, folder)
    finally:
        state.drive.vector.close()


def _rounds(setup: Setup, state: State, folder: Folder, show: Show, interrupt: _Interrupt) -> None:
    """Rounds until the run ends, or the user breaks it off; a checkpoint is then written where the vector allows one."""
    saved = began = time.perf_counter()
    before = state.seconds
    while not state.ended and not interrupt.asked:
        metrics = _round(setup, state, folder)
        state.seconds = before + time.perf_counter() - began
        _end_of_round(setup, state, metrics)
        state.seconds = before + time.perf_counter() - began
        metrics["seconds"] = round(state.seconds, 4)
        folder.log(metrics)
        state.lines += 1
        show({**metrics, "budget": setup.config.env_steps, "limit_seconds": setup.config.seconds})
        due = interrupt.asked or time.perf_counter() - saved >= setup.config.checkpoint_seconds
        if not state.ended and due and (state.drive.vector.replayable or state.drive.due()):
            _save(state, folder)
            saved = time.perf_counter()


def _round(setup: Setup, state: State, folder: Folder) -> dict[str, Any]:
    """Drive, label, learn; the round's metrics."""
    phase = setup.config.phase[state.progress.phase]
    drive, began = state.drive, time.perf_counter()
    playing = state.gradient.averaged
    if drive.due():
        drive.reseed(setup.teacher, playing)
    wanted = phase.first if state.progress.round == 0 and state.progress.phase == 0 else phase.steps
    steps = max(1, min(wanted, _room(setup.config, state.progress) // drive.n))
    beta = weights.parse(phase.beta)(replace(state.progress, round=state.phase_round))
    try:
        with torch.inference_mode():
            rollout = drive.collect(steps, Who(beta, phase.by, phase.sampled), setup.teacher, playing, _wants(state.gradient.terms), setup.seen)
        if state.progress.round == 0 and setup.config.init is None:
            _normalise(setup, state, rollout)
        collected = time.perf_counter()
        same = _agreement(state.gradient.averaged, rollout)
        state.dataset.append(rollout)
        count = int(rollout.valid.sum())
        state.progress = replace(state.progress, env_steps=state.progress.env_steps + count, labels=state.progress.labels + count, budget=setup.config.env_steps)
        learnt = state.gradient.learn(state.dataset, state.progress)
    except Failed as error:
        kept = folder.save_states({"obs": dict(drive.obs), "student": state.student.state_dict()}, state.progress.round)
        raise Failed(f"round {state.progress.round}: {error} (the states are kept in {kept})") from None
    if warning := learn.dominated(learnt):
        learnt = {**learnt, "warning": warning}  # type: ignore[dict-item]  # the one metric that is a sentence
    seconds = time.perf_counter() - began
    return {
        "phase": state.progress.phase,
        "round": state.progress.round,
        "env_steps": state.progress.env_steps,
        "labels": state.progress.labels,
        "steps_per_second": round(count / max(1e-9, collected - began), 1),
        "learn_seconds": round(seconds - (collected - began), 4),
        "beta": beta,
        "agreement": round(same, 4),
        **learnt,
    }


def _room(config: Config, progress: Progress) -> int:
    """Environment steps, and labels, that may still be taken."""
    room = config.env_steps - progress.env_steps
    return room if config.labels is None else min(room, config.labels - progress.labels)


def _normalise(setup: Setup, state: State, rollout: Rollout) -> None:
    """Measure the student's normaliser from the first rollout, and make the learner anew around it."""
    moments = {}
    for name, group in state.student.sense.groups.items():
        if name not in rollout.obs or group.shape != setup.spec.observations[name].shape or group.dtype == "uint8":
            continue
        seen = rollout.obs[name][:-1][rollout.valid].double()
        variance = seen.var(0)
        # What hardly moved in the first rollout may move later: it is not blown up.
        moments[name] = (seen.mean(0), torch.where(variance > 1e-6 * (1 + seen.mean(0).square()), variance, torch.ones_like(variance)))
    if moments:
        state.student.sense = state.student.sense.with_step(Normalise.from_moments(moments))
        _phase(setup, state, state.progress.phase)


@torch.inference_mode()
def _agreement(student: Policy, rollout: Rollout) -> float:
    """Share of the round's states in which student (as it was) and teacher choose the same; from memoryless predictions."""
    obs = {k: v[:-1].flatten(0, 1) for k, v in rollout.obs.items()}
    prediction, _ = student.act(obs, {}, None, ACTION)
    label: Prediction = over_states(lambda x: x.flatten(0, 1), rollout.teacher)
    same = agreement(prediction, label)
    return float(same[rollout.valid.flatten()].float().mean())


# ── selecting ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _end_of_round(setup: Setup, state: State, metrics: dict[str, Any]) -> None:
    """Evaluate where it is time, decide whether the run ends, move on to the next round or phase."""
    config, progress = setup.config, state.progress
    phase = config.phase[progress.phase]
    state.phase_round += 1
    over = _over(config, state)
    last_of_phase = bool(phase.rounds) and state.phase_round >= phase.rounds
    over = over or ("phases" if last_of_phase and progress.phase + 1 == len(config.phase) else "")
    if over or _evaluation_due(state):
        metrics.update(_evaluate(setup, state))
    state.ended = "aim" if state.reached else over
    state.progress = replace(progress, round=progress.round + 1, metrics={k: v for k, v in metrics.items() if isinstance(v, int | float)})
    if last_of_phase and not state.ended:
        state.progress, state.phase_round = replace(state.progress, phase=progress.phase + 1), 0
        _phase(setup, state, state.progress.phase)


def _over(config: Config, state: State) -> str:
    """Which budget is spent, if one is."""
    progress, slots = state.progress, state.drive.n
    if config.rounds is not None and progress.round + 1 >= config.rounds:
        return "rounds"
    if config.env_steps - progress.env_steps < slots:
        return "env_steps"
    if config.labels is not None and config.labels - progress.labels < slots:
        return "labels"
    return "seconds" if config.seconds is not None and state.seconds >= config.seconds else ""


def _evaluation_due(state: State) -> bool:
    if not state.baseline:
        return state.progress.env_steps >= 4096
    each = state.evaluation_steps / max(1, state.evaluations)
    affordable = state.evaluations < FREE_EVALUATIONS or (state.evaluations + 1 - FREE_EVALUATIONS) * each <= 0.25 * state.progress.env_steps
    return affordable and state.progress.env_steps >= state.next_evaluation


def _evaluate(setup: Setup, state: State) -> dict[str, Any]:
    """Play the selecting seeds; keep the student if it is the best so far; see whether the aim is reached."""
    config, seeds = setup.config, Seeds(setup.config.seed, "select")
    began = time.perf_counter()
    goal = configuration.aim(config.until)
    if not state.baseline:
        randomly = evaluation.Random(setup.spec, generator(config.seed, "random"))
        teacher, foot = (evaluation.play(p, setup.options, config.select_episodes, seeds) for p in (setup.teacher, randomly))
        state.baseline = {"teacher": float(teacher.returns.mean()), "random": float(foot.returns.mean()), "teacher_steps": float(teacher.steps)}
        apart = stats.told_apart(teacher.returns, foot.returns)
        state.baseline["apart"] = float(apart)
        if state.progress.env_steps < teacher.steps / 3 and not _over(config, state):
            state.next_evaluation = teacher.steps // 3  # an evaluation costs about as much as this one: learn for a while first
            state.evaluation_seconds += time.perf_counter() - began
            return {}
    student = state.gradient.averaged
    shadow = setup.teacher if goal is not None and goal[0] == "agreement" else None
    played = evaluation.play(student, setup.options, config.select_episodes, seeds, shadow=shadow)
    mean = float(played.returns.mean())
    state.evaluations += 1
    state.evaluation_steps += played.steps
    state.next_evaluation = int(state.progress.env_steps * 1.3)
    figures = {"return": mean, "agreement": played.agreement, "retention": None}
    if state.baseline["apart"]:
        figures["retention"] = (mean - state.baseline["random"]) / (state.baseline["teacher"] - state.baseline["random"])
    if state.best is None or mean >= state.best["mean"]:
        state.best = {"mean": mean, "round": state.progress.round, "tensors": student.artifact_tensors(), "header": student.header()}
        state.best["tensors"] = {k: v.clone() for k, v in state.best["tensors"].items()}
    if goal is not None:
        value = figures[goal[0]]
        state.reached = state.reached or (value is not None and value >= goal[1])
    state.evaluation_seconds += time.perf_counter() - began
    state.progress = replace(state.progress, returns={"teacher": state.baseline["teacher"], "student": mean})
    return {"return.student": mean, "return.teacher": state.baseline["teacher"], "retention": figures["retention"], "evaluation_steps": state.evaluation_steps}


# ── checkpoint, resume, end ───────────────────────────────────────────────────────────────────────────────────────

_PLAIN = ("phase_round", "baseline", "evaluations", "evaluation_steps", "evaluation_seconds", "next_evaluation", "seconds", "lines", "ended", "reached")


def _save(state: State, folder: Folder) -> None:
    part: dict[str, Any] = state.dataset.since(state.saved_steps) if state.dataset.keep == "all" else {}
    state.parts, state.saved_steps = state.parts + 1, state.dataset.steps
    folder.checkpoint(
        {
            **{name: getattr(state, name) for name in _PLAIN},
            "parts": state.parts,
            "progress": dataclasses.asdict(state.progress),
            "best": state.best,
            "header": state.student.header(),
            "drive": state.drive.state_dict(),
            "gradient": state.gradient.state_dict(),
        },
        part,
        state.parts - 1,
    )


def _resume(setup: Setup, folder: Folder) -> State:
    saved = folder.read_checkpoint()
    if (folder.read_verdict()) is not None:
        raise Misconfigured(f"{folder.path} has ended: its verdict is in {folder.path / 'verdict.json'}")
    state = _begin(setup)
    if saved is None:
        return state
    values, parts = saved
    state.student = students.build(values["header"], {k: v for k, v in values["gradient"]["student"].items() if k in _kept(state, values)})
    state.progress = Progress(**values["progress"])
    _phase(setup, state, state.progress.phase)
    state.gradient.load_state_dict(values["gradient"])
    state.drive.load_state_dict(values["drive"])
    like = _example(setup, state, _wants(state.gradient.terms)).teacher
    state.dataset.restore([p for p in parts if p], like)
    state.saved_steps, state.parts, state.best = state.dataset.steps, values["parts"], values["best"]
    for name in _PLAIN:
        setattr(state, name, values[name])
    return state


def _kept(state: State, values: Mapping[str, Any]) -> set[str]:
    return {k for k in values["gradient"]["student"] if not k.startswith(("value.", "training_heads."))}


def _finish(setup: Setup, state: State, folder: Folder) -> Run:
    """Write the artifact, measure the verdict on fresh seeds, note where it ended."""
    config = setup.config
    assert state.best is not None
    if state.ended == "seconds":
        config = replace(config, rounds=state.progress.round, seconds=None)
        folder.write_config(config)
    header = {**state.best["header"], "provenance": provenance(setup, config, state.best["round"])}
    folder_bytes = artifact.dumps(header, state.best["tensors"])
    artifact.write_bytes(folder.student, folder_bytes)
    student = students.build(*artifact.load(folder.student))
    work = state.seconds - state.evaluation_seconds
    measured = evaluation.verdict(
        setup.options,
        setup.spec,
        config.verdict_episodes,
        config.seed,
        student=student,
        teacher=setup.teacher,
        sizes={"student": len(folder_bytes), "teacher": setup.teacher_bytes},
    )
    verdict = {
        "method": config.method,
        "seed": config.seed,
        "env": envs.name_of(setup.options),
        "student_family": config.student,
        "env_steps": state.progress.env_steps,
        "teacher_labels": state.progress.labels,
        "rounds": state.progress.round,
        "kept_round": state.best["round"],
        "ended_by": state.ended,
        "until": config.until,
        "reached": state.reached,
        "seconds": {"work": round(work, 4), "selecting": round(state.evaluation_seconds, 4), "with_imports": round(time.perf_counter() - distillrl.STARTED, 4)},
        "selecting_steps": state.evaluation_steps,
        **measured,
    }
    folder.write_verdict(verdict)
    goal = configuration.aim(config.until)
    return Run(folder.path, Player(student), verdict, goal is None or state.reached)


def provenance(setup: Setup, config: Config, round_number: int) -> dict[str, Any]:
    """What the student was made of; no time and no path, so that the same run gives the same bytes."""
    kept = dataclasses.asdict(config)
    for place in ("teacher", "init", "seconds", "rounds", "vecnormalize", "checkpoint_seconds"):
        kept.pop(place)
    kept["backend"] = config.backend.partition(":")[0]  # how many processes step changes nothing
    return {
        "teacher": {"sha256": setup.teacher_digest, "format": setup.teacher.info.get("format"), "algorithm": setup.teacher.info.get("algorithm")},
        "versions": {"distillrl": distillrl.__version__, "torch": torch.__version__},
        "round": round_number,
        "config": kept,
    }


def _size_note(setup: Setup, state: State) -> tuple[str, ...]:
    mine, theirs = acting_parameters(state.student), acting_parameters(setup.teacher)
    if mine is None or theirs is None or mine <= theirs:
        return ()
    return (f"the student has {mine:,} parameters, more than its teacher's {theirs:,}: it will not be smaller or faster",)


__all__ = ["DistillError", "Run", "distill"]
