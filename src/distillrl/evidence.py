"""Measure what a report rests on, and keep it in the run folder: ``evidence.json``.

``gather`` loads the run's student, teacher and environment from its folder and measures fidelity and robustness, and
with ``full`` also longer returns and generalisation. What can't be measured is a sentence under ``notes``; nothing
that was measured is lost for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillrl import artifact, costs, envs, evaluation, fidelity, generalisation, robustness, stats, students, teachers
from distillrl import config as configuration
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import DistillError, Misconfigured
from distillrl.judging import judge, wanted
from distillrl.physics import PHYSICS, Change
from distillrl.policies import Policy
from distillrl.reading import EVIDENCE, Reading, look, number, read
from distillrl.runs import CONFIG, STUDENT
from distillrl.settling import settle

QUICK_SECONDS = 5.0
"""Of the processor's time, after which a quick measurement begins nothing new."""
KEPT = ("scratch",)
"""What a new measurement leaves as it was."""
COMPARED, GENERALISATION = 50, 100
"""Episodes in a full measurement: of fidelity and each level of a disturbance, of seen and unseen ones; for those of return see judging.wanted."""


def gather(
    run_folder: str | Path,
    *,
    full: bool = False,
    teacher: Any = None,
    env: Any = None,
    unseen: Mapping[str, Any] | None = None,
    physics: tuple[Change, ...] = PHYSICS,
    margin: float = stats.MARGIN,
) -> dict[str, Any]:
    """Measure a run, write ``evidence.json``, return it.

    ``teacher`` and ``env``: where they lie now, by default where the run's configuration says. ``unseen``: keyword
    arguments of the environment that the student was not distilled on. ``margin`` decides how many episodes are played
    for the return. Raises Misconfigured, Missing or Failed where
    student, teacher or environment can't be had at all.
    """
    run = read(run_folder)
    began, notes = time.perf_counter(), list[str]()
    student, master, options = players(run, teacher, env, notes)
    hardest = EnvOptions(options.id, {**options.kwargs, **unseen}, options.backend, options.max_episode_steps) if unseen else None
    found: dict[str, Any] = {"full": full, "student": run.digest, **{k: run.evidence[k] for k in KEPT if k in run.evidence}}
    parts = _parts(run, student, master, options, hardest, physics, margin, full, found)
    if student.spec.tasks:
        notes.append("robustness and generalisation are measured of one task's return, and this student plays several: the verdict has each task's figures")
        parts = {name: parts[name] for name in ("costs", "fidelity")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small networks are fastest so
    try:
        for name, measure in parts.items():
            try:
                found[name] = measure()
            except DistillError as error:
                notes.append(f"{name} was not measured: {error}")
    finally:
        torch.set_num_threads(threads)
    found |= {"notes": notes, "seconds": round(time.perf_counter() - began, 3)}
    artifact.write_bytes(run.path / EVIDENCE, json.dumps(found).encode())
    return found


def _parts(
    run: Reading, student: Policy, master: Policy, options: EnvOptions, hardest: EnvOptions | None, physics: tuple[Change, ...], margin: float, full: bool, found: Mapping[str, Any]
) -> dict[str, Callable[[], Any]]:
    """What is measured, in this order, by its key; ``found`` is what those before it have given by then."""
    seed, foot = int(number(run.config.get("seed")) or 0), number(look(run.verdict, "random", "return", "mean"))
    episodes, worked = COMPARED if full else 20, time.process_time()

    def robust() -> dict[str, Any]:
        left = None if full else max(0.0, QUICK_SECONDS - (time.process_time() - worked))
        return robustness.measure(student, master, options, episodes=episodes, seed=seed, physics=physics, random_mean=foot, clean=_clean(found), seconds=left)

    def returns() -> dict[str, list[float]]:
        count = wanted(judge(run, margin).non_inferiority)
        return {who: paired_returns(p, options, count, Seeds(seed, "verdict")) for who, p in (("student", student), ("teacher", master))}

    def general() -> dict[str, Any]:
        return generalisation.measure(student, master, options, hardest, episodes=GENERALISATION if full else 20, seed=seed, random_mean=foot)

    return {
        "costs": lambda: {"student": costs.measure(student), "teacher": costs.measure(master)},
        "fidelity": lambda: fidelity.measure(student, master, options, episodes, seed, shown=6 if full else 3),
        "robustness": robust,
        **({"returns": returns} if full else {}),
        **({"generalisation": general} if full or hardest is not None else {}),
    }


def from_scratch(run_folder: str | Path, times: float, *, teacher: Any = None, env: Any = None, show: Any = None) -> None:
    """Train the run's student from scratch too (scratch.py), and put what came of it beside the rest of ``evidence.json``."""
    from distillrl import scratch

    run = read(run_folder)
    found = scratch.measure(run, times, teacher=teacher, env=env, show=show)
    artifact.write_bytes(run.path / EVIDENCE, json.dumps({"student": run.digest, **run.evidence, "scratch": found}).encode())


def paired_returns(policy: Policy, options: EnvOptions, episodes: int, seeds: Seeds) -> list[float]:
    """Each episode's return, number i on ``seeds(i)`` for whoever plays.

    Where only a vector's first episodes have seeds of their own (EnvPool's), it is made anew for every slotful.
    """
    if evaluation.same_episodes(options, episodes):
        return [float(x) for x in evaluation.play(policy, options, episodes, seeds).returns.round(6)]
    returns: list[float] = []
    while len(returns) < episodes:
        many = min(envs.slots_of(options, evaluation.MAX_SLOTS), episodes - len(returns))
        returns += [float(x) for x in evaluation.play(policy, options, many, replace(seeds, first=seeds.first + len(returns))).returns.round(6)]
    return returns


def players(run: Reading, teacher: Any, env: Any, notes: list[str]) -> tuple[Policy, Policy, EnvOptions]:
    """The run's student, its teacher and its environment; a teacher that isn't the one who taught is noted."""
    config = configuration.build(run.config, str(run.path / CONFIG))
    student: Policy = students.build(*artifact.load(run.path / STUDENT), students.of_the_user(config.student))
    if env is None and config.env is None:
        raise Misconfigured("the run’s environment was an object, not a name: give it with --env")
    if teacher is None and config.teacher is None and not config.teachers:
        raise Misconfigured("the run’s teacher was an object, not a file: give one with --teacher")
    setup = settle(config, teacher, env)
    teachers.keep_answers(setup.teacher, run.path)
    if found := envs.differences(student.spec, setup.spec):
        raise Misconfigured(f"the student does not fit {envs.name_of(setup.options)}: " + "; ".join(found))
    taught = look(run.header, "provenance", "teacher", "sha256")
    if taught is not None and setup.teacher_digest not in (None, taught):
        notes.append(f"{teacher or config.teacher} is not the file that taught this student (SHA-256 {str(taught)[:12]}… did)")
    return student, setup.teacher, setup.options


def _clean(found: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The undisturbed episodes, where fidelity has played as many as robustness needs (the same seeds)."""
    returns = look(found, "fidelity", "returns")
    return None if returns is None else {who: np.asarray(values) for who, values in returns.items()}
