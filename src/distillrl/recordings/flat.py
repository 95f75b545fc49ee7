"""Flat files: arrays over all steps under one of several usual names, cut into episodes (``.npz``, D4RL's HDF5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distillrl.errors import Failed
from distillrl.recordings.episodes import KNOWN, Arrays, Raw, numbers

NAMES: dict[str, tuple[str, ...]] = {
    "obs": ("observations", "observation", "obs", "states", "state"),
    "next": ("next_observations", "next_observation", "next_obs", "obs_next", "next_states", "next_state"),
    "action": ("actions", "action", "acts", "act"),
    "reward": ("rewards", "reward", "rews", "rew"),
    "terminal": ("terminals", "terminations", "terminated", "terminal", "dones", "done"),
    "timeout": ("timeouts", "truncations", "truncated", "truncateds", "timeout"),
    "begin": ("episode_starts",),
    "number": ("episode_index", "episode_ids", "episode_id", "episode", "traj_ids"),
    "end": ("episode_ends", "indices"),
    "length": ("episode_lengths", "lengths", "traj_lengths"),
    "success": ("success", "successes", "next_success"),
}
"""What an array is → the names that it goes by, the first found is taken. ``end``: the number of the step behind each episode's last."""


def known_name(what: str, there: Mapping[str, Any]) -> str | None:
    """The name that it goes by in this file."""
    return next((n for n in NAMES[what] if n in there), None)


def cut(arrays: Arrays, where: str) -> Raw:
    """Episodes of flat arrays; observations may be several groups, ``obs/NAME`` or ``obs.NAME``. Raises Failed, and says doubts in notes."""
    notes: list[str] = []
    obs, action = _observations(arrays, "obs", where), numbers(_needed(arrays, "action", where), f"{where}, actions")
    steps = len(action)
    if not steps:
        raise Failed(f"{where} holds no steps: nothing can be learnt from it")
    terminal, ends, last = _ends(arrays, obs, steps, where, notes)
    lengths = np.diff(np.concatenate([[0], ends + 1]))
    if all(len(v) == steps + len(ends) for v in obs.values()) and len(ends):
        rows = np.arange(steps) + np.repeat(np.arange(len(ends)), lengths)
        last = {k: v[ends + 1 + np.arange(len(ends))] for k, v in obs.items()}
        obs = {k: v[rows] for k, v in obs.items()}
    for name, array in obs.items():
        if len(array) != steps:
            raise Failed(f"{where}: {steps} actions and {len(array)} observations {name!r}; as many, or one more for each episode, is right")
    reward = known_name("reward", arrays)
    success = known_name("success", arrays)
    return Raw(
        obs=obs,
        action=action,
        lengths=lengths.astype(np.int64),
        terminated=terminal,
        last=last,
        reward=None if reward is None else _column(arrays, reward, steps, where),
        known={k: numbers(arrays[f"teacher_{k}"], f"{where}, teacher_{k}")[:steps] for k in KNOWN if f"teacher_{k}" in arrays},
        success=None if success is None else _success(arrays[success], ends, lengths, f"{where}, {success}"),
        notes=tuple(notes),
    )


def _observations(arrays: Arrays, what: str, where: str) -> dict[str, np.ndarray]:
    for name in NAMES[what]:
        if name in arrays:
            return {"obs": numbers(arrays[name], f"{where}, {name}")}
        inside = {k[len(name) + 1 :]: k for k in arrays if k.startswith((f"{name}/", f"{name}."))}
        if inside:
            return {k: numbers(arrays[full], f"{where}, {full}") for k, full in inside.items()}
    if what == "next":
        return {}
    raise Failed(f"{where} has no observations: {', '.join(NAMES['obs'])} are names that are known; it has {_listed(arrays)}")


def _needed(arrays: Arrays, what: str, where: str) -> np.ndarray:
    name = known_name(what, arrays)
    if name is None:
        raise Failed(f"{where} has no {what}s: {', '.join(NAMES[what])} are names that are known; it has {_listed(arrays)}")
    return arrays[name]


def _column(arrays: Arrays, name: str, steps: int, where: str) -> np.ndarray:
    column = numbers(arrays[name], f"{where}, {name}")
    if column.size != steps:
        raise Failed(f"{where}: {steps} actions and {column.size} numbers in {name}; as many is right")
    return column.reshape(steps)


def _ends(arrays: Arrays, obs: Arrays, steps: int, where: str, notes: list[str]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray] | None]:
    """Whether each episode terminated [E], the number of its last step [E], and the observations that they ended in."""
    flags = {what: known_name(what, arrays) for what in NAMES}
    over, last = np.zeros(steps, dtype=bool), np.zeros(steps, dtype=bool)
    per_episode = flags["terminal"] is not None and numbers(arrays[flags["terminal"]], where).size != steps and (flags["end"] or flags["length"])
    if flags["terminal"] is not None and not per_episode:
        over = _column(arrays, flags["terminal"], steps, where) > 0.5
    if flags["timeout"] is not None:
        last |= _column(arrays, flags["timeout"], steps, where) > 0.5
    last |= _told(arrays, flags, steps, where)
    following = _observations(arrays, "next", where)
    told = any(flags[w] is not None for w in ("timeout", "begin", "number", "end", "length"))
    if following and not told:
        last[:-1] |= _breaks(obs, following, steps, where)
        notes.append(f"where an episode ends was told from {flags['next'] or 'the next observations'}, as no timeouts are recorded")
    elif not told and flags["terminal"] is not None and flags["terminal"].startswith("done"):
        notes.append(f"{flags['terminal']} is taken for terminations: time limits can't be told apart from them here")
    if not told and not following and flags["terminal"] is None:
        known = ", ".join(n for w in ("terminal", "timeout", "number", "end", "length", "begin") for n in NAMES[w])
        raise Failed(f"{where} does not say where an episode ends: {known} are names that are known; it has {_listed(arrays)}")
    last |= over
    last[-1] = True
    ends = np.flatnonzero(last)
    terminated = over[ends]
    if per_episode:
        theirs = numbers(arrays[str(flags["terminal"])], where).reshape(-1)
        if len(theirs) != len(ends):
            raise Failed(f"{where}: {len(ends)} episodes and {len(theirs)} numbers in {flags['terminal']}; as many, or one for each step, is right")
        terminated = theirs > 0.5
    return terminated, ends, {k: v[ends] for k, v in following.items()} or None


def _told(arrays: Arrays, flags: Mapping[str, str | None], steps: int, where: str) -> np.ndarray:
    """[S] true at the last step of an episode, by what names episodes outright."""
    last = np.zeros(steps, dtype=bool)
    if flags["begin"] is not None:
        last[:-1] |= _column(arrays, flags["begin"], steps, where)[1:] > 0.5
    if flags["number"] is not None:
        number = _column(arrays, flags["number"], steps, where)
        last[:-1] |= number[1:] != number[:-1]
    for what in ("end", "length"):
        name = flags[what]
        if name is None:
            continue
        given = numbers(arrays[name], f"{where}, {name}").reshape(-1).astype(np.int64)
        ends = given if what == "end" else np.cumsum(given)
        if len(ends) and ((np.diff(ends) <= 0).any() or ends[0] < 1 or ends[-1] > steps):
            raise Failed(f"{where}: {name} goes up to {ends.max()} of {steps} steps; growing numbers of steps, none beyond them, are right")
        last[ends - 1] = True
    return last


def _breaks(obs: Arrays, following: Arrays, steps: int, where: str) -> np.ndarray:
    """[S − 1] true where what followed a step isn't what the next one began with."""
    apart = np.zeros(steps - 1, dtype=bool)
    for name, array in following.items():
        if name not in obs or array.shape != obs[name].shape or len(array) != steps:
            raise Failed(f"{where}: observations {name!r} are {[list(v.shape) for k, v in obs.items() if k == name]}, the next ones {list(array.shape)}; the same is right")
        apart |= (array[:-1] != obs[name][1:]).reshape(steps - 1, -1).any(1)
    return apart


def _success(array: np.ndarray, ends: np.ndarray, lengths: np.ndarray, where: str) -> np.ndarray | None:
    flags = numbers(array, where).reshape(-1) > 0.5
    if len(flags) == len(ends):
        return flags
    if len(flags) != int(lengths.sum()):
        raise Failed(f"{where}: {len(flags)} numbers for {len(ends)} episodes of {int(lengths.sum())} steps; one for each of either is right")
    return np.logical_or.reduceat(flags, ends + 1 - lengths)


def _listed(arrays: Mapping[str, Any]) -> str:
    return ", ".join(sorted(arrays)[:12]) or "nothing"
