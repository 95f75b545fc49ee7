"""Several tasks side by side as one environment: the episode's seed picks the task, so that every stream of seeds shares its episodes out evenly.

A task is written as a gymnasium id, with arguments of its own behind it where it has some: ``CartPole-v1, LunarLander-v3(gravity=-5)``.

What is seen: a group that all tasks have with the same space is shared; any other is ``TASK.GROUP``, zeros while another task is
played; and ``task`` is the number of the one that is played. What is done: the same action space where all have it; of Discrete spaces
the largest, whose surplus actions are masked (and count modulo the task's own number where they are played all the same); of Boxes the
longest, in the tasks' own units where their bounds agree, else each dimension from -1 to 1; surplus dimensions are not looked at.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from distillrl.errors import Misconfigured
from distillrl.records import ActionSpace, Spec, Task
from distillrl.spaces import action_of, leaves

TASK = "task"
"""The observation group that says which one is played, counted from 0."""
Maker = Callable[..., Any]


class Joined(spaces.Dict):
    """The observation space of several tasks; ``tasks`` says what belongs to which."""

    tasks: tuple[Task, ...] = ()


def several(env: Any) -> tuple[Any, ...]:
    """The tasks of ``A,B`` or of a list of ids and functions; empty where there is one alone."""
    if isinstance(env, (list, tuple)):
        return tuple(env) if len(env) > 1 else ()
    parts = [p.strip() for p in re.split(r",(?![^()]*\))", env)] if isinstance(env, str) and "," in env else []
    if parts and not all(parts):
        raise Misconfigured(f"--env {env!r}: a task between two commas is empty; write several as CartPole-v1,Acrobot-v1")
    return tuple(parts)


def arguments(task: str) -> tuple[str, dict[str, Any]]:
    """``LunarLander-v3(gravity=-5)`` → the id and its keyword arguments, in TOML's words; raises Misconfigured."""
    name, bracket, inside = task.partition("(")
    found: dict[str, Any] = {}
    if bracket and not inside.endswith(")"):
        raise Misconfigured(f"--env {task!r}: its bracket isn't closed; a task's arguments are written as LunarLander-v3(gravity=-5)")
    for part in inside[:-1].split(",") if inside[:-1].strip() else []:
        key, equals, value = (x.strip() for x in part.partition("="))
        if not equals or not key.isidentifier():
            raise Misconfigured(f"--env {task!r}: {part.strip()!r} was given; a task's arguments are written as LunarLander-v3(gravity=-5)")
        try:
            found[key] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return name.strip(), found


def names(tasks: Sequence[Any]) -> tuple[str, ...]:
    """A name for each, its id's or its function's; the second of two alike ends with #2."""
    plain = [t if isinstance(t, str) else str(getattr(getattr(t, "spec", None), "id", None) or getattr(t, "__name__", None) or type(t).__name__) for t in tasks]
    seen: Counter[str] = Counter()
    given = []
    for name in plain:
        seen[name] += 1
        given.append(f"{name}#{seen[name]}" if seen[name] > 1 else name)
    return tuple(given)


def joined(makers: Sequence[Maker], titles: Sequence[str]) -> Maker:
    """A maker of the environment of all these tasks; raises Misconfigured where they can't be joined."""
    known: list[_Layout] = []

    def make(**more: Any) -> Tasks:
        if not known:
            envs = [maker(**more) for maker in makers]
            known.append(_Layout.of(titles, envs))
            return Tasks(makers, known[0], more, envs)
        return Tasks(makers, known[0], more, [None] * len(makers))

    return make


class _Layout:
    """How the tasks' spaces lie in one."""

    def __init__(self, observation: Joined, action: spaces.Space[Any], splits: Sequence[Any], actions: Sequence[spaces.Space[Any]]) -> None:
        self.observation, self.action, self.splits, self.actions = observation, action, tuple(splits), tuple(actions)
        self.nothing = {name: np.zeros(space.shape or (), space.dtype) for name, space in observation.spaces.items()}
        bounded = isinstance(action, spaces.Box)
        self.scales = [unit(own, observation.tasks[k].action) if bounded else None for k, own in enumerate([action_of(action)] * len(actions))]

    @staticmethod
    def of(titles: Sequence[str], envs: Sequence[gymnasium.Env[Any, Any]]) -> _Layout:
        groups = [dict(leaves(env.observation_space)) for env in envs]
        shared = {name for name in groups[0] if name != TASK and all(name in g and g[name] == groups[0][name] for g in groups)}
        places: list[dict[str, str]] = [{(name if name in shared else f"{title}.{name}"): name for name in own} for title, own in zip(titles, groups, strict=True)]
        together = {place: own[name] for where, own in zip(places, groups, strict=True) for place, name in where.items()}
        observation = Joined({**together, TASK: spaces.Discrete(len(envs))})
        observation.tasks = tuple(Task(title, where, action_of(env.action_space)) for title, where, env in zip(titles, places, envs, strict=True))
        splits = [(type(env.observation_space), where) for env, where in zip(envs, places, strict=True)]
        return _Layout(observation, _joined_action(titles, [env.action_space for env in envs]), splits, [env.action_space for env in envs])

    def seen(self, k: int, obs: Any) -> dict[str, Any]:
        """An observation of task ``k`` as one of all."""
        kind, places = self.splits[k]
        if issubclass(kind, spaces.Dict):
            mine = {place: obs[name] for place, name in places.items()}
        elif issubclass(kind, spaces.Tuple):
            mine = {place: obs[int(name)] for place, name in places.items()}
        else:
            mine = dict.fromkeys(places, obs)
        return {**self.nothing, **mine, TASK: np.int64(k)}

    def done(self, k: int, action: Any) -> Any:
        """An action of all as one of task ``k``."""
        own = self.actions[k]
        if self.action == own:
            return action
        if isinstance(own, spaces.Discrete):
            return own.start + int(action) % int(own.n)
        assert isinstance(own, spaces.Box)
        value = np.asarray(action).reshape(-1)[: int(np.prod(own.shape))]
        if (scale := self.scales[k]) is not None:
            value = scale[0] + value * scale[1]
        return value.reshape(own.shape).astype(own.dtype)


class Tasks(gymnasium.Env[Any, Any]):
    """One environment for all tasks: ``reset(seed=s)`` begins an episode of task s modulo their number. Each is made when it is first played."""

    def __init__(self, makers: Sequence[Maker], layout: _Layout, more: Mapping[str, Any], envs: list[Any]) -> None:
        self.makers, self.layout, self.more, self.envs = tuple(makers), layout, dict(more), envs
        self.observation_space, self.action_space = layout.observation, layout.action
        self.render_mode = more.get("render_mode")
        self.playing = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode of the seed's task; without a seed the task is drawn."""
        super().reset(seed=seed)
        self.playing = int(self.np_random.integers(len(self.makers))) if seed is None else seed % len(self.makers)
        if self.envs[self.playing] is None:
            self.envs[self.playing] = self.makers[self.playing](**self.more)
        obs, info = self.envs[self.playing].reset(seed=seed, options=options)
        return self.layout.seen(self.playing, obs), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """One of the task's."""
        k = self.playing
        obs, reward, terminated, truncated, info = self.envs[k].step(self.layout.done(k, action))
        return self.layout.seen(k, obs), reward, terminated, truncated, info

    def render(self) -> Any:
        """What the task draws."""
        return self.envs[self.playing].render()

    def close(self) -> None:
        """Close those that were made."""
        for env in self.envs:
            if env is not None:
                env.close()


def _joined_action(titles: Sequence[str], own: Sequence[spaces.Space[Any]]) -> spaces.Space[Any]:
    if all(space == own[0] for space in own):
        return own[0]
    if all(isinstance(space, spaces.Discrete) for space in own):
        return spaces.Discrete(max(int(space.n) for space in own))  # type: ignore[attr-defined]  # each is a Discrete
    if not all(isinstance(space, spaces.Box) for space in own):
        said = ", ".join(f"{title}: {action_of(space)}" for title, space in zip(titles, own, strict=True))
        raise Misconfigured(f"these tasks can't be played by one policy, as their actions are of different kinds ({said}): all Discrete or all Box, or the very same space, is right")
    spans = [action_of(space) for space in own]
    longest = max(spans, key=lambda s: s.dimensions)
    if all(np.allclose(s.low, longest.low[: s.dimensions]) and np.allclose(s.high, longest.high[: s.dimensions]) for s in spans):
        return spaces.Box(np.array(longest.low, np.float32), np.array(longest.high, np.float32), dtype=np.float32)
    for title, span in zip(titles, spans, strict=True):
        if not np.isfinite(span.low + span.high).all():
            raise Misconfigured(f"the actions of {title} ({span}) have no bounds, and other tasks' have others: they can't be brought to one scale")
    return spaces.Box(-1.0, 1.0, (longest.dimensions,), np.float32)


# ── what a spec of several tasks says ─────────────────────────────────────────────────────────────────────────────


def unit(whole: ActionSpace, own: ActionSpace) -> tuple[np.ndarray, np.ndarray] | None:
    """(centre, half width) [A] by which a task's box action is centre + half · the joined one; None where it is the same."""
    low, high = np.array(own.low), np.array(own.high)
    if np.allclose(low, whole.low[: len(low)]) and np.allclose(high, whole.high[: len(high)]):
        return None
    return (low + high) / 2, (high - low) / 2


def legal(spec: Spec) -> np.ndarray | None:
    """[K, A] bool: which of the joined actions each task has; None where all have all, or there is one task."""
    if spec.action.kind != "discrete" or all(t.action.n == spec.action.n for t in spec.tasks):
        return None
    return np.array([np.arange(spec.action.n) < t.action.n for t in spec.tasks])


def owners(spec: Spec) -> dict[str, int]:
    """Group → the number of the task whose own it is; shared ones are left out."""
    counted = Counter(name for t in spec.tasks for name in t.observations)
    return {name: k for k, t in enumerate(spec.tasks) for name in t.observations if counted[name] == 1}


def even(count: int, tasks: int) -> int:
    """The next multiple of the number of tasks, so that each has as many."""
    return -(-count // tasks) * tasks
