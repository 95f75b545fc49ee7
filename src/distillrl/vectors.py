"""Vectors of environments behind one face: gymnasium (one or two processes), EnvPool, or one that the user made.

All step the same way (gymnasium's NEXT_STEP): the step after an episode's end ignores its action and only resets, so
that the observation it ended with is seen once. Observations are dicts of arrays ``{group: [n, *shape]}``; a plain
observation is the group ``obs``.

With gymnasium every episode has a seed of its own, so an open episode can be replayed from its seed and actions. With
EnvPool and users' vectors only the whole vector can be seeded, which the loop does every few rounds.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

import gymnasium
import numpy as np

from distillrl.episodes import Queue, Seeded, Seeds, successes
from distillrl.errors import Failed, Misconfigured, Missing, nearest
from distillrl.records import Spec
from distillrl.spaces import spec_of

Observations = dict[str, np.ndarray]


@dataclass(frozen=True)
class EnvOptions:
    """Which environment and how it is stepped."""

    id: Any = ""
    """A gymnasium id, ``module:id``, a function that makes one, or a vector environment."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    """auto, gymnasium (auto arranges it), gymnasium:1 or gymnasium:2 (that many processes), envpool, ale (Atari)."""
    max_episode_steps: int | None = None
    adds: frozenset[str] = frozenset()
    """Groups that are given on demand only, because they cost: render, ram."""
    words: Mapping[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)
    """Groups of text that are given as numbers, on demand too: {name: its vocabulary and length (texts.py)}."""

    @property
    def demanded(self) -> frozenset[str]:
        """The names of all groups that are given on demand."""
        return self.adds | set(self.words)


class Vector(Protocol):
    """``n`` environments stepped in one call."""

    spec: Spec
    n: int
    replayable: bool
    """Whether an open episode comes back from its seed and its actions."""
    backend: str
    success: np.ndarray
    """[n] float: whether each slot's last episode succeeded; NaN where none ended or the environment doesn't tell."""

    def reset(self) -> Observations:
        """Begin the first episodes."""

    def step(self, action: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray]:
        """Observations, reward [n] float, terminated [n], truncated [n]; slots that ended before only reset."""

    def reseed(self, index: int) -> Observations:
        """Start all slots anew from episode ``index`` of the stream on."""

    def playing(self) -> np.ndarray | None:
        """[n] number of the episode that each slot plays, or begins at the next step; None where later ones have no number."""

    def restore(self, index: Sequence[int], actions: Sequence[np.ndarray], ended: np.ndarray) -> None:
        """Bring back open episodes: each slot's episode number, the actions played in it, whether it has ended."""

    def close(self) -> None:
        """Free it."""


# ── gymnasium ─────────────────────────────────────────────────────────────────────────────────────────────────────


class InProcess:
    """gymnasium's SyncVectorEnv in this process, an own seed for each episode."""

    replayable, backend = True, "gymnasium:1"

    def __init__(self, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]], seeds: Seeds, first: int, total: int, queue: Queue | None) -> None:
        def maker(i: int) -> Callable[[], Any]:
            return lambda: Seeded(makers[i](), seeds, first + i, total, queue)

        self.n, self.total, self.first, self.queue = len(makers), total, first, queue
        self.success = np.full(self.n, np.nan)
        self.vector = gymnasium.vector.SyncVectorEnv([maker(i) for i in range(self.n)], copy=False)
        self.spec = spec_of(self.vector.single_observation_space, self.vector.single_action_space)

    def reset(self) -> Observations:
        """See Vector."""
        return self.reseed(0)

    def step(self, action: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray]:
        """See Vector."""
        obs, reward, terminated, truncated, _ = self.vector.step(action)
        for slot in np.flatnonzero(terminated | truncated):  # once an episode, not once a step
            self.success[slot] = self.vector.envs[slot].success  # type: ignore[attr-defined]  # each is a Seeded
        return _as_groups(obs), reward, terminated, truncated

    def reseed(self, index: int) -> Observations:
        """See Vector."""
        env: Any
        for i, env in enumerate(self.vector.envs):
            env.index = index + self.first + i
        if self.queue is not None:
            self.queue.begin(index)
        return _as_groups(self.vector.reset()[0])

    def playing(self) -> np.ndarray | None:
        """See Vector; asked for where episodes come from a queue."""
        return np.fromiter((env.index for env in self.vector.envs), np.int64, self.n)  # type: ignore[attr-defined]  # as above

    def restore(self, index: Sequence[int], actions: Sequence[np.ndarray], ended: np.ndarray) -> None:
        """See Vector."""
        env: Any
        for env, number, played in zip(self.vector.envs, index, actions, strict=True):
            env.index = int(number)
            env.reset()
            for action in played:
                env.step(action)
        # SyncVectorEnv has no public way to say which slots reset at the next step.
        self.vector._autoreset_envs[:] = ended

    def close(self) -> None:
        """See Vector."""
        self.vector.close()


class TwoProcesses:
    """The first half of the slots here, the second in a forked child: both cores step, one message each way a tick.

    Arrays live in memory shared with the child. The child ends when its pipe closes, so also when this process is
    killed.
    """

    replayable, backend = True, "gymnasium:2"

    def __init__(self, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]], seeds: Seeds, episodes: int | None) -> None:
        self.n = len(makers)
        half = self.n // 2
        # Each process has a queue of its own, every other episode, so that who plays what never hangs on the clock.
        queues = [None if episodes is None else Queue(self.n + i, 2, episodes) for i in range(2)]
        self.here = InProcess(makers[:half], seeds, 0, self.n, queues[0])
        self.spec, self.half = self.here.spec, half
        context = multiprocessing.get_context("fork")
        self._layout = [(name, (self.n, *g.shape), np.dtype(g.dtype)) for name, g in self.spec.observations.items()]
        self._obs = {name: _shared(context, shape, dtype) for name, shape, dtype in self._layout}
        action = self.spec.action
        self._action = _shared(context, (self.n, *action.shape), np.dtype(action.dtype))
        self._reward = _shared(context, (self.n,), np.dtype(np.float64))
        self._ended = _shared(context, (2, self.n), np.dtype(np.bool_))
        self.success = _shared(context, (self.n,), np.dtype(np.float64))
        self.success[:] = np.nan
        self._playing = _shared(context, (self.n,), np.dtype(np.int64))
        self._pipe, other = context.Pipe()
        self._child = context.Process(target=_child, args=(other, self._pipe, makers[half:], seeds, half, self.n, queues[1], self), daemon=True)
        self._child.start()
        other.close()

    def reset(self) -> Observations:
        """See Vector."""
        return self.reseed(0)

    def reseed(self, index: int) -> Observations:
        """See Vector."""
        self._send(("reseed", index))
        self._keep(self.here.reseed(index))
        self._receive()
        return self._obs

    def step(self, action: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray]:
        """See Vector."""
        half = self.half
        self._action[half:] = action[half:]
        self._send(None)
        obs, reward, terminated, truncated = self.here.step(action[:half])
        self._keep(obs)
        self._reward[:half], self._ended[0, :half], self._ended[1, :half] = reward, terminated, truncated
        self.success[:half] = self.here.success
        self._receive()
        return self._obs, self._reward, self._ended[0], self._ended[1]

    def playing(self) -> np.ndarray | None:
        """See Vector."""
        self._playing[: self.half] = self.here.playing()
        return self._playing.copy()

    def restore(self, index: Sequence[int], actions: Sequence[np.ndarray], ended: np.ndarray) -> None:
        """See Vector."""
        half = self.half
        self._send(("restore", list(index[half:]), list(actions[half:]), ended[half:]))
        self.here.restore(index[:half], actions[:half], ended[:half])
        self._receive()

    def close(self) -> None:
        """See Vector."""
        self._pipe.close()
        self._child.join(5)
        self.here.close()

    def _keep(self, obs: Observations) -> None:
        for name, array in obs.items():
            self._obs[name][: self.half] = array

    def _send(self, message: tuple[Any, ...] | None) -> None:
        try:
            self._pipe.send_bytes(b"" if message is None else pickle.dumps(message))
        except OSError:
            raise Failed("the process that steps half of the environments has died (out of memory?); try --backend gymnasium:1") from None

    def _receive(self) -> None:
        try:
            answer = self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise Failed("the process that steps half of the environments has died (out of memory?); try --backend gymnasium:1") from None
        if answer:
            raise Failed(f"the environment raised an error: {answer.decode(errors='replace')}")


def _child(pipe: Connection, others: Connection, makers: Any, seeds: Seeds, first: int, total: int, queue: Queue | None, shared: TwoProcesses) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to stop
    others.close()  # else this end would never see the pipe close when the parent is killed
    try:
        mine = InProcess(makers, seeds, first, total, queue)
        while True:
            message = pipe.recv_bytes()
            if not message:
                obs, shared._reward[first:], shared._ended[0, first:], shared._ended[1, first:] = mine.step(shared._action[first:])
            else:
                verb, *given = pickle.loads(message)  # our parent's own words
                obs = getattr(mine, verb)(*given) or {}
            for name, array in obs.items():
                shared._obs[name][first:] = array
            if queue is not None:
                shared._playing[first:], shared.success[first:] = mine.playing(), mine.success
            pipe.send_bytes(b"")
    except (EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:  # the environment's own code may raise anything: it is told in the parent's words
        pipe.send_bytes(f"{type(error).__name__}: {error} (in {traceback.extract_tb(error.__traceback__)[-1].name})".encode())
    os._exit(0)  # skip the parent's exit handlers, which this fork inherited


def _shared(context: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    count = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(context.RawArray("b", max(count, 1)), dtype=dtype, count=int(np.prod(shape))).reshape(shape)


# ── EnvPool, and vectors that the user made ───────────────────────────────────────────────────────────────────────


class EnvPool:
    """EnvPool's C++ vector; each slot has its seed, later episodes go on from its generator."""

    replayable, backend = False, "envpool"

    def __init__(self, options: EnvOptions, n: int, seeds: Seeds) -> None:
        try:
            import envpool
        except ImportError:
            raise Missing("--backend envpool needs EnvPool: pip install 'distillrl[envpool]'") from None
        known = envpool.list_all_envs()
        if options.id not in known:
            raise Misconfigured(f"EnvPool has no environment {options.id!r}{nearest(str(options.id), known)}")
        self._make, self.options, self.n, self.seeds = envpool.make_gymnasium, options, n, seeds
        self.success = np.full(n, np.nan)
        self._words = {**({} if options.max_episode_steps is None else {"max_episode_steps": options.max_episode_steps}), **options.kwargs}
        self.vector: Any = None
        try:
            known_spec = envpool.make_spec(options.id, **self._words)
        except (TypeError, ValueError) as error:
            raise Misconfigured(f"EnvPool's {options.id} does not take these arguments: {str(error).removeprefix('Config.__new__() ')}") from None
        self.spec = spec_of(known_spec.gymnasium_observation_space, known_spec.gymnasium_action_space)

    def reset(self) -> Observations:
        """See Vector."""
        return self.reseed(0)

    def reseed(self, index: int) -> Observations:
        """See Vector: EnvPool seeds only where it is made, which takes a millisecond for CartPole, and 70 for each quadruped."""
        self.close()
        seeds = [self.seeds(index + i) for i in range(self.n)]
        self.vector = self._make(self.options.id, num_envs=self.n, env_seed=seeds, num_threads=min(self.n, os.cpu_count() or 1), **self._words)
        return _as_groups(self.vector.reset()[0])

    def step(self, action: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray]:
        """See Vector."""
        obs, reward, terminated, truncated, info = self.vector.step(action)
        self.success = successes(info, self.n)
        return _as_groups(obs), reward, terminated, truncated

    def playing(self) -> np.ndarray | None:
        """See Vector."""
        return None

    def restore(self, index: Sequence[int], actions: Sequence[np.ndarray], ended: np.ndarray) -> None:
        """EnvPool can't: the loop reseeds where it resumes."""
        raise AssertionError("not replayable")

    def close(self) -> None:
        """See Vector."""
        if self.vector is not None:
            self.vector.close()


class Given:
    """A gymnasium vector environment that the user made; it must reset by the step after an end (NEXT_STEP)."""

    replayable, backend = False, "given"

    def __init__(self, vector: gymnasium.vector.VectorEnv[Any, Any, Any], seeds: Seeds) -> None:
        mode = vector.metadata.get("autoreset_mode", gymnasium.vector.AutoresetMode.NEXT_STEP)
        if str(getattr(mode, "name", mode)).upper() != "NEXT_STEP":
            raise Misconfigured(f"the vector environment resets by {mode}; make it with autoreset_mode=AutoresetMode.NEXT_STEP, gymnasium's default")
        self.vector, self.n, self.seeds = vector, vector.num_envs, seeds
        self.success = np.full(self.n, np.nan)
        self.spec = spec_of(vector.single_observation_space, vector.single_action_space)

    def reset(self) -> Observations:
        """See Vector."""
        return self.reseed(0)

    def reseed(self, index: int) -> Observations:
        """See Vector."""
        seeds: Any = [self.seeds(index + i) for i in range(self.n)]  # gymnasium's own vectors take one a slot
        return _as_groups(self.vector.reset(seed=seeds)[0])

    def step(self, action: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray]:
        """See Vector."""
        obs, reward, terminated, truncated, info = self.vector.step(action)
        self.success = successes(info, self.n)
        return _as_groups(obs), np.asarray(reward), terminated, truncated

    def playing(self) -> np.ndarray | None:
        """See Vector."""
        return None

    def restore(self, index: Sequence[int], actions: Sequence[np.ndarray], ended: np.ndarray) -> None:
        """A user's vector can't: the loop reseeds where it resumes."""
        raise AssertionError("not replayable")

    def close(self) -> None:
        """The vector is its maker's: it is left open."""


def _as_groups(obs: Any) -> Observations:
    if isinstance(obs, Mapping):
        return {name: part for name, part in obs.items() if isinstance(part, np.ndarray) and part.dtype.kind in "biuf"}
    if isinstance(obs, tuple):
        return {str(i): part for i, part in enumerate(obs) if isinstance(part, np.ndarray) and part.dtype.kind in "biuf"}
    return {"obs": obs}
