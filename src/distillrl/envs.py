"""Environments: any gymnasium id, ``module:id``, factory or vector, made into slots that step together."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from distillrl import atari, tasks, texts
from distillrl.episodes import STREAMS, Queue, Seeds
from distillrl.errors import Misconfigured, Missing, nearest
from distillrl.rendering import RENDER, drawing
from distillrl.spaces import differences, spec_of
from distillrl.vectors import EnvOptions, EnvPool, Given, InProcess, Observations, TwoProcesses, Vector

__all__ = ["ON_DEMAND", "STREAMS", "EnvOptions", "EnvPool", "Given", "InProcess", "Observations", "Seeds", "TwoProcesses", "Vector", "arrange", "differences", "known", "make", "name_of", "shown", "slots_of", "spec_of", "texts_of"]

ON_DEMAND = frozenset({RENDER, atari.RAM})
"""Groups that an environment gives only where someone reads them."""
_WORTH_A_TRY = 200e-6
"""Seconds of stepping that a second process could save in a tick, below which it isn't tried: its messages take as long."""


def make(options: EnvOptions, n: int, seeds: Seeds, episodes: int | None = None) -> Vector:
    """``n`` slots of an environment; with ``episodes``, the slots share out so many and then rest (gymnasium only).

    Raises Misconfigured (unknown id, the nearest named), Missing (a package that the environment needs) or Failed.
    """
    if options.demanded and (isinstance(options.id, gymnasium.vector.VectorEnv) or options.backend == "envpool"):
        raise Misconfigured(f"{', '.join(sorted(options.demanded))} is given on demand by single environments, not by {'EnvPool' if options.backend == 'envpool' else 'a vector environment'}; --backend gymnasium can")
    if isinstance(options.id, gymnasium.vector.VectorEnv):
        return Given(options.id, seeds)
    if options.backend in {"envpool", "ale"} and tasks.several(options.id):
        raise Misconfigured(f"--backend {options.backend} steps one environment; several tasks side by side are stepped by gymnasium: --backend auto")
    if options.backend == "envpool":
        return EnvPool(options, n, seeds)
    if _by_ale(options):
        return atari.Atari(options, n, seeds, episodes)
    maker = _maker(options, atari.training(seeds, episodes))
    if options.words:
        maker = texts.reading(maker, options.words)
    probe, _ = _probe(maker, options)
    processes = _processes(options, n)
    makers = [_once(probe, maker), *[maker] * (n - 1)]
    if processes == 2:
        return TwoProcesses(makers, seeds, episodes)
    return InProcess(makers, seeds, 0, n, None if episodes is None else Queue(n, 1, episodes))


def _by_ale(options: EnvOptions) -> bool:
    """Whether ale_py's own vector steps it: an Atari game of which nothing is wanted that only single environments give."""
    if options.backend == "ale" and options.adds:
        raise Misconfigured(f"{', '.join(sorted(options.adds))} is given by single environments; --backend gymnasium can")
    return options.backend == "ale" or (options.backend == "auto" and not options.adds and atari.game(options.id) is not None)


def shown(options: EnvOptions, *policies: Any) -> EnvOptions:
    """The environment, asked for what these policies read that it gives on demand only."""
    groups = {name: group for p in policies if p is not None for name, group in p.spec.observations.items()}
    return replace(options, adds=ON_DEMAND & set(groups), words=texts.read_by(groups))


def texts_of(options: EnvOptions, wanted: Iterable[str]) -> frozenset[str]:
    """Which of these names are groups of text in a single environment that gymnasium makes; raises Misconfigured where one is, of several tasks."""
    names = frozenset(wanted)
    for task, title in zip(several := tasks.several(options.id), tasks.names(several), strict=True) if names else ():
        name, own = tasks.arguments(task) if isinstance(task, str) else (task, {})
        if read := texts_of(replace(options, id=name, kwargs={**options.kwargs, **own}), names):
            raise Misconfigured(f"{' and '.join(sorted(read))} of {title} is words, which are read in one task alone: name that task by itself with --env, or don't name the words")
    single = not isinstance(options.id, gymnasium.vector.VectorEnv) and not tasks.several(options.id) and options.backend.startswith(("auto", "gymnasium"))
    if not names or not single or atari.game(options.id) is not None:
        return frozenset()
    env, _ = _probe(_maker(options), options)
    try:
        return names & set(texts.of(env.observation_space))
    finally:
        env.close()


def slots_of(options: EnvOptions, wanted: int) -> int:
    """How many slots there will be: what is wanted, but a user's own vector has its own number."""
    return options.id.num_envs if isinstance(options.id, gymnasium.vector.VectorEnv) else wanted


def name_of(options: EnvOptions) -> str:
    """The environment's name for people and files."""
    if isinstance(options.id, str):
        return options.id
    if several := tasks.several(options.id):
        return ",".join(tasks.names(several))
    spec = getattr(options.id, "spec", None)
    return str(getattr(spec, "id", None) or getattr(options.id, "__name__", None) or type(options.id).__name__)


def _once(env: gymnasium.Env[Any, Any], maker: Callable[[], Any]) -> Callable[[], Any]:
    waiting = [env]
    return lambda: waiting.pop() if waiting else maker()


def arrange(options: EnvOptions, n: int) -> str:
    """The backend that ``auto`` and ``gymnasium`` come to for so many slots: two processes only where that measures faster."""
    if isinstance(options.id, gymnasium.vector.VectorEnv) or options.backend not in {"auto", "gymnasium"}:
        return options.backend
    if _by_ale(options):
        return "ale"
    env, seconds = _probe(_maker(options), options)
    env.close()
    if "fork" not in multiprocessing.get_all_start_methods() or n < 2 or (os.cpu_count() or 1) < 2 or n * seconds / 2 < _WORTH_A_TRY:
        return "gymnasium:1"
    times = {backend: _tick_seconds(replace(options, backend=backend), n) for backend in ("gymnasium:1", "gymnasium:2")}
    return min(times, key=times.__getitem__)


def _tick_seconds(options: EnvOptions, n: int) -> float:
    """Seconds of one step of all slots, the least of a few, with actions of zeros."""
    vector = make(options, n, Seeds(0, "dry"))
    try:
        vector.reset()
        action = np.zeros((n, *vector.spec.action.shape), dtype=vector.spec.action.dtype) + vector.spec.action.start
        times = []
        for _ in range(12):
            began = time.perf_counter()
            vector.step(action)
            times.append(time.perf_counter() - began)
        return min(times)
    finally:
        vector.close()


def _processes(options: EnvOptions, n: int) -> int:
    if options.backend in {"gymnasium:1", "gymnasium:2"}:
        return int(options.backend[-1]) if n > 1 else 1
    if options.backend not in {"auto", "gymnasium"}:
        raise Misconfigured(f"--backend {options.backend!r}{nearest(options.backend, ['auto', 'gymnasium', 'gymnasium:1', 'gymnasium:2', 'envpool', 'ale'])}")
    return 1


def _maker(options: EnvOptions, learnt: bool = False) -> Callable[[], gymnasium.Env[Any, Any]]:
    """Makes one; ``learnt``: for episodes that are learnt from, in which Atari's rewards are clipped."""
    if several := tasks.several(options.id):
        return tasks.joined([_task_maker(options, task, learnt) for task in several], tasks.names(several))
    if callable(options.id):
        made, kwargs = options.id, dict(options.kwargs)
        limit = options.max_episode_steps

        def own(**more: Any) -> gymnasium.Env[Any, Any]:
            env = made(**{**kwargs, **more})
            return env if limit is None else gymnasium.wrappers.TimeLimit(env, limit)

        return drawing(own, name_of(options)) if RENDER in options.adds else own
    if not isinstance(options.id, str) or not options.id:
        raise Misconfigured("no environment was given: --env takes a gymnasium id such as LunarLander-v3, or module:id")
    if (rom := atari.game(options.id)) is not None:
        given = atari.settings(options)

        def one(**more: Any) -> gymnasium.Env[Any, Any]:
            return atari.Game(rom, given, clipped=learnt, max_episode_steps=options.max_episode_steps, ram=atari.RAM in options.adds, **more)

        return drawing(one, options.id) if RENDER in options.adds else one
    known(options.id)

    def registered(**more: Any) -> gymnasium.Env[Any, Any]:
        return gymnasium.make(options.id, max_episode_steps=options.max_episode_steps, disable_env_checker=True, **{**options.kwargs, **more})

    return drawing(registered, options.id) if RENDER in options.adds else registered


def _task_maker(options: EnvOptions, task: Any, learnt: bool) -> Callable[..., gymnasium.Env[Any, Any]]:
    """Of one of several tasks, with its own arguments beside those of all."""
    name, own = tasks.arguments(task) if isinstance(task, str) else (task, {})
    return _maker(replace(options, id=name, kwargs={**options.kwargs, **own}), learnt)


def known(env_id: str) -> None:
    """Raise Misconfigured, naming the nearest, unless gymnasium knows the id; imports the module of ``module:id``."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise Misconfigured(f"--env {env_id!r}: the module {module!r} can't be imported ({error})") from None
    try:
        gymnasium.spec(name)
    except gymnasium.error.DeprecatedEnv as error:
        raise Misconfigured(f"--env {env_id!r}: {error}") from None
    except gymnasium.error.Error:
        raise Misconfigured(f"--env {env_id!r} is not known to gymnasium{nearest(name, gymnasium.registry)}") from None


def _probe(maker: Callable[[], gymnasium.Env[Any, Any]], options: EnvOptions) -> tuple[gymnasium.Env[Any, Any], float]:
    """One environment, and the seconds of its step; its first steps are not counted."""
    name = name_of(options)
    try:
        env = maker()
        if not isinstance(env, gymnasium.Env):
            raise Misconfigured(f"the environment function gave a {type(env).__name__}; a gymnasium.Env is right")
        env.reset(seed=0)
        env.action_space.seed(0)
        best = float("inf")
        for _ in range(8):
            began = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            best = min(best, time.perf_counter() - began)
            if terminated or truncated:
                env.reset(seed=0)
        return env, best
    except gymnasium.error.DependencyNotInstalled as error:
        extra = "box2d" if "box2d" in str(error).lower() else "mujoco" if "mujoco" in str(error).lower() else "atari"
        raise Missing(f"{name} needs a package that isn't installed ({error}): pip install 'distillrl[{extra}]'") from None
    except (TypeError, gymnasium.error.Error) as error:
        raise Misconfigured(f"{name} can't be made with {dict(options.kwargs)}: {error}") from None
