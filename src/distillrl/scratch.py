"""The same student trained from scratch by the reward alone, and what its teacher saved it: steps and seconds to shares of the teacher's return."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distillrl import config as configuration
from distillrl.config import Config
from distillrl.distillation import distill
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.reading import AIMS, Reading, first_at, look, number, read
from distillrl.runs import CONFIG, Folder

FOLDER = "scratch"
METHOD = "ppo"
Show = Callable[[Mapping[str, Any]], None]


def measure(run: Reading, times: float, *, teacher: Any = None, env: Any = None, show: Show | None = None) -> dict[str, Any]:
    """Train the run's student anew by PPO for ``times`` as many environment steps at most, in RUN/scratch, a run like any other; plain data.

    Same seed, student, senses, environment and selecting episodes as the run; the teacher is asked nothing, and only says
    what its return is. It ends where the student keeps 99 %. ``reached`` {share: {student, scratch}} has the steps and
    seconds (selecting included) after which each first kept so much on the selecting episodes, null where it never did;
    both are looked at from 4,096 steps on, ever rarer. Raises Misconfigured or Missing where it can't be trained so.
    """
    spent = number(run.verdict.get("env_steps"))
    if not spent:
        raise Misconfigured("how many environment steps the student took isn't known (verdict.json has no env_steps, or it was distilled from recorded play)")
    if not times > 0:
        raise Misconfigured(f"--scratch {times:g}: a number of times the student's steps above 0, such as 10, is right")
    config = _config(configuration.build(run.config, str(run.path / CONFIG)), int(times * spent))
    folder = _train(run.path / FOLDER, config, teacher, env, show)
    other = read(folder)
    return {
        "times": times,
        "method": METHOD,
        "folder": FOLDER,
        "env_steps": other.verdict.get("env_steps"),
        "seconds": number(other.metrics[-1].get("seconds")) if other.metrics else None,
        "retention": look(other.verdict, "retention"),
        "return": {k: v for k, v in (look(other.verdict, "student", "return") or {}).items() if k != "returns"},
        "reached": {f"{aim:g}": {"student": first_at(run.metrics, aim), "scratch": first_at(other.metrics, aim)} for aim in AIMS},
    }


def _config(config: Config, steps: int) -> Config:
    """As the run was, but by the reward alone; nothing that a teacher or another network gives."""
    if config.data is not None:
        raise Misconfigured("the student was distilled from recorded play, which took no environment steps to compare with")
    return replace(
        config, method=METHOD, phase=(), until=f"retention={AIMS[-1]:g}", env_steps=steps, labels=None, rounds=None, last_round=None, seconds=None,
        terms=None, choose=None, finetune=False, init=None, inherit=None, worst_of=0,
    )  # fmt: skip


def _train(place: Path, config: Config, teacher: Any, env: Any, show: Show | None) -> Path:
    """The folder of the training, gone on with or taken as it is where it was begun with these very options."""
    if place.exists():
        try:
            before = Folder.open(place).read_config()
            same = _asked(before) == _asked(config)
            ended = Folder.open(place).read_verdict() is not None
        except (Misconfigured, Failed, Missing):
            before, same, ended = None, False, False
        if same and ended:
            return place
        if same:
            return distill(teacher, env, resume=place, show=show).folder
        if before is not None and before.method != METHOD:
            raise Misconfigured(f"{place} holds another run; move it away, so that the student can be trained from scratch there")
        shutil.rmtree(place)
    return distill(teacher, env, config=config, out=place, show=show).folder


def _asked(config: Config) -> str:
    """What decides how it goes, to be compared: what a run settles by itself (phases, backend, rounds that the clock ended) is left out."""
    known = {f: getattr(config, f) for f in ("teacher", "env", "student", "see", "seed", "env_steps", "slots", "select_episodes", "max_episode_steps", "until", "method")}
    return json.dumps({**known, "env_kwargs": dict(config.env_kwargs)}, sort_keys=True, default=str)
