"""Record a policy's play as a data set that other tools read (Minari's format), with what the policy said of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import distillrl
from distillrl import envs, teachers
from distillrl.actions import Bernoulli, Categorical, Gaussian, MultiCategorical
from distillrl.envs import EnvOptions, Seeds, Vector
from distillrl.errors import Failed, Misconfigured
from distillrl.evaluation import ENDLESS, following
from distillrl.policies import ACTION, Player, Policy, played, to_environment
from distillrl.recordings.writing import Writer
from distillrl.records import Prediction
from distillrl.states import disturbed

SLOTS = 16
KEPT = frozenset({"value", "q"})
"""What a policy is asked for beside its action, where it gives it."""


@dataclass(frozen=True)
class Recorded:
    """What was written: the folder, episodes, steps, and the return of each episode."""

    path: Path
    episodes: int
    steps: int
    returns: tuple[float, ...]


@dataclass(frozen=True)
class Episode:
    """One played episode of L steps: obs {group: [L + 1, ...]}, actions in the environment's form, what the policy said [L, ...]."""

    number: int
    obs: Mapping[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    said: Mapping[str, np.ndarray]


def record(
    teacher: Any,
    env: Any = None,
    *,
    out: str | Path,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    sampled: bool = False,
    noise: float = 0.0,
    backend: str = "auto",
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    options: teachers.Options | None = None,
    show: Callable[[int, int], None] | None = None,
) -> Recorded:
    """Play whole episodes and write them to the folder ``out``: so many ``episodes``, or as many as it takes for ``steps``.

    ``sampled``: the teacher's samples are played, not its most likely actions. ``noise``: as a driver's, the share of
    random actions, or the deviation of what is added to a box's, in halves of its range; what the teacher said is of
    the undisturbed action. ``show`` is called with episodes and steps so far. Raises Misconfigured, Missing or Failed;
    leaves nothing behind then, nor on Ctrl-C.
    """
    if (episodes is None) == (steps is None):
        raise Misconfigured("say how much to record: --episodes N or --steps N, one of them")
    if (episodes or steps or 0) < 1:
        raise Misconfigured(f"--episodes or --steps is {episodes if steps is None else steps}: 1 or more is right")
    if not 0 <= noise < float("inf"):
        raise Misconfigured(f"--noise {noise}: 0 or more is right")
    policy, where = _settled(teacher, env, options or teachers.Options(), EnvOptions(env, dict(env_kwargs or {}), backend, max_episode_steps))
    if sampled and "distribution" not in policy.gives:
        raise Misconfigured(f"--sampled needs a policy with a distribution; this one gives {', '.join(sorted(policy.gives))}")
    seeds = Seeds(seed, "record")
    n = envs.slots_of(where, min(SLOTS, episodes or SLOTS))
    vector = envs.make(where, n, seeds, episodes if episodes is not None else n)
    play = _Play(policy, vector, torch.Generator().manual_seed(seed), sampled, noise)
    returns: list[float] = []
    try:
        observation, action, env_spec = _contract(vector, where)
        facts = _facts(policy, teacher, where, env_spec, {"seed": seed, "sampled": sampled, "noise": noise}, play)
        with Writer(Path(out), observation, action, facts) as writer, torch.inference_mode():
            for episode in play.episodes(episodes) if episodes is not None else play.until(int(steps or 0)):
                known = seeds(episode.number) if vector.replayable else None
                said = {f"teacher_{k}": v for k, v in episode.said.items()}
                writer.add(episode.obs, episode.action, episode.reward, episode.terminated, said, known)
                returns.append(float(episode.reward.sum()))
                if show is not None:
                    show(writer.episodes, writer.steps)
    finally:
        vector.close()
    return Recorded(Path(out), writer.episodes, writer.steps, tuple(returns))


def _settled(teacher: Any, env: Any, options: teachers.Options, where: EnvOptions) -> tuple[Policy, EnvOptions]:
    """The policy, fitted to the environment, and the environment with its backend settled."""
    first = None if callable(teacher) and not isinstance(teacher, Player) else teachers.load(teacher, options)
    target = env if env is not None else first.info.get("environment") if first is not None else None
    if target is None:
        raise Misconfigured("no environment was given, and the teacher's file names none: --env takes an id such as LunarLander-v3")
    where = replace(where, id=target)
    vector = envs.make(where, envs.slots_of(where, 1), Seeds(0, "dry"))
    spec = vector.spec
    vector.close()
    policy = teachers.fit(first or teachers.load(teacher, options, spec), spec, envs.name_of(where))
    if found := envs.differences(policy.spec, spec):
        raise Misconfigured(f"the teacher does not fit {envs.name_of(where)}: " + "; ".join(found))
    return policy, replace(where, backend=envs.arrange(where, SLOTS))


def _contract(vector: Any, where: EnvOptions) -> tuple[Any, Any, str | None]:
    """The spaces of one environment as gymnasium has them, and its spec as JSON where it has one that can be written."""
    inner = getattr(vector, "here", vector).vector
    spaces = (inner.observation_space, inner.action_space) if where.backend == "envpool" else (inner.single_observation_space, inner.single_action_space)
    if not isinstance(where.id, str) or where.backend == "envpool":
        return *spaces, None
    spec = gymnasium.spec(where.id.rpartition(":")[2])
    limit = where.max_episode_steps if where.max_episode_steps is not None else spec.max_episode_steps
    try:
        return *spaces, replace(spec, kwargs={**spec.kwargs, **where.kwargs}, max_episode_steps=limit).to_json()
    except (TypeError, ValueError):
        return *spaces, None


def _facts(policy: Policy, teacher: Any, where: EnvOptions, env_spec: str | None, how: Mapping[str, Any], play: _Play) -> dict[str, Any]:
    """What metadata.json says beside Minari's own: who played, where, and how."""
    ours = {
        "version": distillrl.__version__,
        "teacher": {"sha256": teachers.digest(teacher), "format": policy.info.get("format"), "algorithm": policy.info.get("algorithm")},
        "environment": envs.name_of(where),
        "env_kwargs": {k: v if isinstance(v, int | float | str | bool) else repr(v) for k, v in where.kwargs.items()},
        "squashed": play.squashed,
        **how,
    }
    algorithm = policy.info.get("algorithm")
    said = {"env_spec": env_spec, "algorithm_name": str(algorithm) if algorithm else None}
    return {k: v for k, v in said.items() if v is not None} | {"distillrl": ours}


class _Play:
    """A policy in a vector of environments, its episodes given in the order of their numbers."""

    def __init__(self, policy: Policy, vector: Vector, generator: torch.Generator, sampled: bool, noise: float) -> None:
        self.policy, self.vector, self.generator = policy, vector, generator
        self.sampled, self.noise = sampled, noise
        self.wants = ACTION | (policy.gives & KEPT)
        with torch.inference_mode():
            prediction, _ = policy.act(self._seen(vector.reset()), policy.init(vector.n), torch.ones(vector.n, dtype=torch.bool), self.wants)
        self.squashed = isinstance(prediction.action, Gaussian) and prediction.action.squashed

    def until(self, steps: int) -> Iterator[Episode]:
        """Whole episodes, one of each slot at a time, until there are so many steps."""
        first = taken = 0
        while taken < steps:
            for episode in self.episodes(self.vector.n, first):
                if taken < steps:
                    yield episode
                taken += len(episode.reward)
            first += self.vector.n

    def episodes(self, count: int, first: int = 0) -> Iterator[Episode]:
        """``count`` episodes from number ``first`` of the stream on, all of them to their end, so that none is favoured for its length."""
        n = self.vector.n
        obs, memory = self._seen(self.vector.reseed(first)), self.policy.init(n)
        index, began, due = np.arange(n), np.zeros(n, dtype=np.int64), 0
        ended, starts = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
        tape, waiting, tick = _Tape(), {}, 0
        while due < count:
            prediction, memory = self.policy.act(obs, memory, torch.from_numpy(starts), self.wants)
            action = played(prediction, self.sampled, self.generator)
            if self.noise:
                action = disturbed(action, self.noise, self.policy.spec.action, self.generator)
            given = to_environment(action, self.vector.spec)
            row = {**{f"obs.{k}": v.numpy() for k, v in obs.items()}, **{f"said.{k}": v for k, v in said(prediction).items()}, "action": given}
            new, reward, terminated, truncated = self.vector.step(given)
            tape.append({**row, "reward": reward, "terminated": terminated})
            tick += 1
            counted = (index < count) & ~ended
            obs, starts, ended = self._seen(new), ended, (terminated | truncated) & counted
            for slot in map(int, np.flatnonzero(ended)):  # once an episode, not once a step
                waiting[int(index[slot])] = _episode(first + int(index[slot]), tape, slot, int(began[slot]), tick, obs)
            if ended.any():
                index = following(self.vector, index + first, ended) - first
            began[ended] = tick + 1
            tape.forget(int(began[index < count].min(initial=tick)))
            if tick - began[index < count].min(initial=tick) > ENDLESS:
                raise Failed(f"an episode has not ended after {ENDLESS} steps; set --max-episode-steps")
            while due in waiting:
                yield waiting.pop(due)
                due += 1

    def _seen(self, obs: envs.Observations) -> dict[str, torch.Tensor]:
        return {k: torch.as_tensor(obs[k]).clone() for k in self.vector.spec.observations}


class _Tape:
    """Rows of all slots, [ticks, n, ...], in arrays that grow by doubling; what no open episode needs is forgotten."""

    def __init__(self) -> None:
        self.rows: dict[str, np.ndarray] = {}
        self.first = self.length = 0

    def append(self, row: Mapping[str, np.ndarray]) -> None:
        for name, value in row.items():
            array = self.rows.get(name)
            if array is None or len(array) == self.length:
                grown = np.empty((max(256, 2 * self.length), *value.shape), value.dtype)
                grown[: self.length] = array if array is not None else 0
                self.rows[name] = array = grown
            array[self.length] = value
        self.length += 1

    def take(self, slot: int, begin: int, end: int) -> dict[str, np.ndarray]:
        return {name: array[begin - self.first : end - self.first, slot].copy() for name, array in self.rows.items()}

    def forget(self, before: int) -> None:
        drop = before - self.first
        if drop > 256 and drop > self.length // 2:
            for array in self.rows.values():
                array[: self.length - drop] = array[drop : self.length].copy()
            self.first, self.length = before, self.length - drop


def _episode(number: int, tape: _Tape, slot: int, begin: int, end: int, last: Mapping[str, torch.Tensor]) -> Episode:
    rows = tape.take(slot, begin, end)
    obs = {k[4:]: np.concatenate([v, last[k[4:]][slot : slot + 1].numpy()]) for k, v in rows.items() if k.startswith("obs.")}
    reward = rows["reward"].astype(np.float64)
    finite = {**obs, "reward": reward}
    if wrong := [k for k, v in finite.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]:
        raise Failed(f"the environment gave {wrong[0]} that is NaN or infinite in episode {number}")
    return Episode(number, obs, rows["action"], reward, bool(rows["terminated"][-1]), {k[5:]: v for k, v in rows.items() if k.startswith("said.")})


def said(prediction: Prediction) -> dict[str, np.ndarray]:
    """What a policy said of its action, as arrays by plain names: logits (of legal actions only), or mean and std; value, q."""
    action, found = prediction.action, {}
    if isinstance(action, Categorical | MultiCategorical) and action.mask is not None:
        parts = (action,) if isinstance(action, Categorical) else action.parts
        found["logits"] = torch.cat([p.log_probs for p in parts], -1)
    elif isinstance(action, Categorical | MultiCategorical | Bernoulli):
        found["logits"] = action.logits
    elif isinstance(action, Gaussian):
        found["mean"], found["std"] = action.mean, action.log_std.exp()
    found |= {name: value for name in KEPT if (value := getattr(prediction, name)) is not None}
    return {name: value.float().numpy() for name, value in sorted(found.items())}


__all__ = ["Recorded", "record"]
