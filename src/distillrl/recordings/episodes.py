"""Recorded play as records: what a file holds (Raw), and what is learnt from once spaces are settled (Recording)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distillrl.errors import Failed
from distillrl.records import Spec

Arrays = Mapping[str, np.ndarray]
KNOWN = ("logits", "mean", "std", "value", "q")
"""What a recorded teacher said of a step beside its action, as files name it behind ``teacher_``."""


@dataclass(frozen=True)
class Raw:
    """What a file holds, as it is written there: S steps of E episodes, one behind the other."""

    obs: Arrays
    """{group: [S, ...]}: the observations in which something was done."""
    action: np.ndarray
    """[S, ...] in the environment's form."""
    lengths: np.ndarray
    """[E] int64: steps of each episode."""
    terminated: np.ndarray
    """[E] bool: ended by the task; else cut, by a time limit or by the recording's end."""
    last: Arrays | None = None
    """{group: [E, ...]}: the observation that each episode ended in, where it was kept."""
    reward: np.ndarray | None = None
    """[S]"""
    known: Arrays = field(default_factory=dict)
    """What the recorded policy said: some of KNOWN, [S, ...]; ``std`` is of ``mean``, of tanh's argument where ``squashed``."""
    squashed: bool = False
    success: np.ndarray | None = None
    """[E] bool, where the file says it."""
    spec: Spec | None = None
    """Where the file names its spaces."""
    environment: str | None = None
    notes: tuple[str, ...] = ()
    """Doubts: what had to be taken for granted."""


@dataclass(frozen=True)
class Recording:
    """Whole episodes with settled spaces; a discrete action counts from 0, a box action is flat, [S, A], in the environment's units."""

    source: str
    format: str
    spec: Spec
    obs: Arrays
    last: Arrays
    """{group: [E, ...]}; where it wasn't kept, the last observation that was acted in."""
    action: np.ndarray
    reward: np.ndarray | None
    lengths: np.ndarray
    terminated: np.ndarray
    known: Arrays
    squashed: bool
    success: np.ndarray | None
    environment: str | None
    digest: str
    """sha256 of what is in it, whatever the format."""
    notes: tuple[str, ...] = ()

    @property
    def episodes(self) -> int:
        """E"""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """S"""
        return int(self.lengths.sum())

    @property
    def begins(self) -> np.ndarray:
        """[E] the number of each episode's first step."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    @property
    def returns(self) -> np.ndarray | None:
        """[E] undiscounted, float64; None where no rewards were recorded."""
        return None if self.reward is None else np.add.reduceat(self.reward.astype(np.float64), self.begins)


def content(obs: Arrays, action: np.ndarray, reward: np.ndarray | None, lengths: np.ndarray, terminated: np.ndarray, known: Arrays) -> str:
    """The sha256 of recorded play."""
    digest = hashlib.sha256()
    parts = {**{f"obs.{k}": v for k, v in obs.items()}, "action": action, "lengths": lengths, "terminated": terminated, **{f"known.{k}": v for k, v in known.items()}}
    for name, array in sorted((parts if reward is None else {**parts, "reward": reward}).items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def groups(value: Any, where: str) -> dict[str, np.ndarray]:
    """Observations as {group: array}; a plain array is the group ``obs``."""
    if isinstance(value, Mapping):
        return {str(k): numbers(v, f"{where}, observation {k!r}") for k, v in value.items()}
    return {"obs": numbers(value, f"{where}, observations")}


def numbers(array: Any, where: str) -> np.ndarray:
    """An array of numbers; raises Failed for text, objects, ragged rows."""
    try:
        made = np.asarray(array)
    except ValueError:
        raise Failed(f"{where}: its rows differ in length; one shape for all steps is right") from None
    if made.dtype.kind not in "biuf":
        raise Failed(f"{where}: it holds {made.dtype}, numbers are right")
    if made.ndim == 0:
        raise Failed(f"{where}: it is a single number, an array with a row for each step is right")
    return made


def joined(episodes: Iterable[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Raw's arrays of episodes given one by one: {obs: {group: [L or L + 1, ...]}, action: [L, ...], reward, terminated, known: {}}.

    Raises Failed, naming the episode, where lengths differ or there is no episode.
    """
    rows = [_checked(e, i, where) for i, e in enumerate(episodes)]
    rows = [r for r in rows if r["length"]]
    if not rows:
        raise Failed(f"{where} holds no episodes with steps in them: nothing can be learnt from it")
    names = rows[0]["obs"].keys()
    for i, row in enumerate(rows):
        if row["obs"].keys() != names or row["known"].keys() != rows[0]["known"].keys():
            raise Failed(f"{where}: episode {i} has {', '.join([*row['obs'], *row['known']])}, episode 0 has {', '.join([*names, *rows[0]['known']])}")
    has_last = all(r["last"] is not None for r in rows)
    return {
        "obs": {k: _cat([r["obs"][k] for r in rows], f"{where}, observation {k!r}") for k in names},
        "last": {k: _cat([r["last"][k][None] for r in rows], where) for k in names} if has_last else None,
        "action": _cat([r["action"] for r in rows], f"{where}, actions"),
        "reward": None if any(r["reward"] is None for r in rows) else np.concatenate([r["reward"] for r in rows]),
        "lengths": np.array([r["length"] for r in rows], dtype=np.int64),
        "terminated": np.array([r["terminated"] for r in rows], dtype=bool),
        "known": {k: _cat([r["known"][k] for r in rows], f"{where}, teacher_{k}") for k in rows[0]["known"]},
        "success": None if any(r["success"] is None for r in rows) else np.array([r["success"] for r in rows], dtype=bool),
    }


def _checked(episode: Mapping[str, Any], number: int, where: str) -> dict[str, Any]:
    name = f"{where}: episode {number}"
    action = numbers(episode["action"], f"{name}, actions")
    length, obs = len(action), groups(episode["obs"], name)
    last = None
    if all(len(v) == length + 1 for v in obs.values()):
        last, obs = {k: v[-1] for k, v in obs.items()}, {k: v[:-1] for k, v in obs.items()}
    for k, v in obs.items():
        if len(v) != length:
            raise Failed(f"{name} has {length} actions and {len(v)} observations {k!r}; as many, or one more, is right")
    reward = episode.get("reward")
    if reward is not None:
        reward = numbers(reward, f"{name}, rewards").reshape(-1)
        if len(reward) != length:
            raise Failed(f"{name} has {length} actions and {len(reward)} rewards; as many is right")
    known = {k: numbers(v, f"{name}, teacher_{k}")[:length] for k, v in episode.get("known", {}).items()}
    for k, v in known.items():
        if len(v) != length:
            raise Failed(f"{name} has {length} actions and {len(v)} rows of teacher_{k}; as many is right")
    return {"obs": obs, "last": last, "action": action, "reward": reward, "length": length, "terminated": bool(episode["terminated"]), "known": known, "success": episode.get("success")}


def _cat(parts: Sequence[np.ndarray], where: str) -> np.ndarray:
    shapes = {p.shape[1:] for p in parts}
    if len(shapes) > 1:
        raise Failed(f"{where}: shapes differ from episode to episode ({', '.join(map(str, sorted(shapes, key=str)[:3]))}); one for all is right")
    return np.concatenate(parts)


def afford(size: int, where: str) -> None:
    """Raise Failed where so many bytes would not fit into this machine's memory; asked before anything is read."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > there // 2:
        raise Failed(f"{where} would take {size / 2**30:.1f} GiB of memory, of this machine's {there / 2**30:.1f}: record fewer episodes, or split it")
