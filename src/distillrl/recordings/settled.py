"""Spaces of recorded play: inferred where nothing names them, held against the environment's or the teacher's where one is given."""

from __future__ import annotations

import numpy as np

from distillrl.errors import Failed, Misconfigured
from distillrl.recordings.episodes import Arrays, Raw, Recording, content
from distillrl.records import ActionSpace, Group, Spec
from distillrl.spaces import differences

MOST_CHOICES = 4096
"""Whole numbers above this are quantities, not numbers of choices."""


def settle(raw: Raw, source: str, form: str, spec: Spec | None = None, whose: str = "the environment") -> Recording:
    """The recording with its spaces settled; ``spec``, ``whose``, is what it must fit. Raises Failed for NaN, Misconfigured for other spaces."""
    _refuse_nan(raw, source)
    notes = list(raw.notes)
    own = raw.spec or _inferred(raw, source, notes, free=spec is None)
    if spec is not None:
        own = _held(own, raw.spec is not None, spec, source, whose)
    obs = {k: _cast(raw.obs[k], g, f"{source}, observation {k!r}") for k, g in own.observations.items()}
    last = {k: _cast((raw.last or {k: raw.obs[k][np.cumsum(raw.lengths) - 1]})[k], g, source) for k, g in own.observations.items()}
    if raw.last is None and not raw.terminated.all():
        notes.append("the observation that a cut episode ended in is not recorded: the one before it stands for it")
    action = _actions(raw.action, own.action, source, notes)
    known = _known(raw.known, own, source)
    reward = None if raw.reward is None else np.asarray(raw.reward, np.float32)
    digest = content(obs, action, reward, raw.lengths, raw.terminated, known)
    return Recording(source, form, own, obs, last, action, reward, raw.lengths, raw.terminated, known, raw.squashed, raw.success, raw.environment, digest, tuple(notes))


def _refuse_nan(raw: Raw, source: str) -> None:
    arrays = {**{f"observation {k!r}": v for k, v in raw.obs.items()}, "the actions": raw.action, "the rewards": raw.reward}
    arrays |= {f"teacher_{k}": v for k, v in raw.known.items()} | {f"the last observation {k!r}": v for k, v in (raw.last or {}).items()}
    for name, array in arrays.items():
        if array is None or array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))[0])
        at = f"of episode {row}" if name.startswith("the last") else _at(row, raw.lengths)
        raise Failed(f"{source}: {name} is NaN or infinite {at}")


def _at(row: int, lengths: np.ndarray) -> str:
    ends = np.cumsum(lengths)
    episode = int(np.searchsorted(ends, row, side="right"))
    return f"at step {row - int(ends[episode] - lengths[episode])} of episode {episode}"


# ── inferring ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _inferred(raw: Raw, source: str, notes: list[str], free: bool) -> Spec:
    """Spaces as the data shows them; where they are not ``free``, others are given and only the kinds are looked at."""
    said: list[str] = []
    spec = Spec({k: _group(v) for k, v in raw.obs.items()}, _action(raw.action, source, said, free))
    if not free:
        return spec
    notes += said
    seen = ", ".join(f"{k}: {g}" for k, g in spec.observations.items())
    notes.append(f"no spaces are recorded; told from the data: {seen}; action {spec.action}")
    return spec


def _group(array: np.ndarray) -> Group:
    shape = array.shape[1:]
    if array.dtype == np.uint8 and len(shape) >= 2:
        return Group(shape, "uint8", low=0.0, high=255.0)
    if array.dtype.kind in "iub" and shape == () and array.min() >= 0 and array.max() < MOST_CHOICES:
        return Group((), "int64", (int(array.max()) + 1,))
    return Group(shape, "float32" if array.dtype.kind == "f" else str(array.dtype) if array.dtype.kind != "b" else "int8")


def _action(array: np.ndarray, source: str, notes: list[str], free: bool) -> ActionSpace:
    """Whole numbers are choices, others quantities; a column of whole floats is taken for choices too, and that is said."""
    flat = array.reshape(len(array), -1)
    whole = array.dtype.kind in "iub"
    if not whole and flat.shape[1] == 1 and (flat == np.round(flat)).all() and 0 <= flat.min() < flat.max() < 64:
        whole = True
        notes.append(f"actions are kept as floats, all whole and from 0 to {int(flat.max())}: they are taken for choices")
    if not whole:
        low, high = flat.min(0), flat.max(0)
        if low.min() >= -1 and high.max() <= 1:
            low, high = -np.ones_like(low), np.ones_like(high)
        notes.append("the bounds of actions are taken from what was recorded; with --env or a teacher theirs are taken")
        return ActionSpace("box", array.shape[1:], low=tuple(map(float, low)), high=tuple(map(float, high)), dtype="float32")
    if free and (flat.min() < 0 or flat.max() >= MOST_CHOICES):
        raise Failed(f"{source}: actions are whole numbers from {int(flat.min())} to {int(flat.max())}; numbers of choices count from 0, quantities are floats")
    if flat.shape[1] == 1:
        return ActionSpace("discrete", n=int(flat.max()) + 1)
    if flat.max() <= 1:
        return ActionSpace("multibinary", (flat.shape[1],), dtype="int8")
    return ActionSpace("multidiscrete", (flat.shape[1],), nvec=tuple(int(n) + 1 for n in flat.max(0)))


# ── holding against what is given ─────────────────────────────────────────────────────────────────────────────────


def _held(own: Spec, named: bool, spec: Spec, source: str, whose: str) -> Spec:
    """The given spec, where the recording fits it; else both are shown. Numbers of choices that were only told from data may be fewer."""
    found = []
    for name, group in spec.observations.items():
        mine = own.observations.get(name)
        if mine is None:
            there = ", ".join(f"{k}: {g}" for k, g in own.observations.items())
            found.append(f"observation {name!r}: {whose} has {group}, the recording only {there}")
        elif mine.shape != group.shape or (named and mine.categories != group.categories) or (_kind(mine) != _kind(group) and not group.categories):
            found.append(f"observation {name!r}: {whose} has {group}, the recording {mine}")
    if not _alike(own.action, spec.action, named):
        found.append(f"action: {whose} has {spec.action}, the recording {own.action}")
    if found:
        raise Misconfigured(f"{source} does not fit {whose}: " + "; ".join(found))
    return spec


def _alike(mine: ActionSpace, theirs: ActionSpace, named: bool) -> bool:
    if named:
        return not differences(Spec({}, mine), Spec({}, theirs))
    switches = {mine.kind, theirs.kind} == {"multibinary", "multidiscrete"}
    return mine.dimensions == theirs.dimensions and (mine.kind == theirs.kind or switches or (theirs.kind == "discrete" and mine.dimensions == 1))


def _kind(group: Group) -> str:
    """Pictures stay pictures; all else are numbers."""
    return "uint8" if group.dtype == "uint8" else "numbers"


def _cast(array: np.ndarray, group: Group, where: str) -> np.ndarray:
    if array.shape[1:] != group.shape:
        raise Misconfigured(f"{where}: the recording has shape {list(array.shape[1:])}, {list(group.shape)} is right")
    if group.categories:
        outside = (array < 0) | (array >= np.asarray(group.categories).reshape((1,) * (array.ndim - len(group.shape)) + (-1,)[: len(group.shape)] or ()))
        if outside.any():
            raise Misconfigured(f"{where}: {array[outside].flat[0]} is recorded, {group} is right")
    return np.ascontiguousarray(array.astype(group.dtype, copy=False))


def _actions(array: np.ndarray, space: ActionSpace, source: str, notes: list[str]) -> np.ndarray:
    """Actions as they are inside: counted from 0, or flat quantities."""
    flat = array.reshape(len(array), -1)
    if flat.shape[1] != space.dimensions:
        raise Misconfigured(f"{source}: an action has {flat.shape[1]} numbers, {space} has {space.dimensions}")
    if space.kind == "box":
        quantities = flat.astype(np.float32)
        low, high = np.asarray(space.low, np.float32), np.asarray(space.high, np.float32)
        beyond = float(((quantities < low - 1e-4) | (quantities > high + 1e-4)).any(1).mean())
        if beyond:
            notes.append(f"{beyond:.1%} of recorded actions lie outside of {space}, and are clipped")
        return np.clip(quantities, low, high)
    if flat.dtype.kind == "f" and not (flat == np.round(flat)).all():
        raise Misconfigured(f"{source}: actions are quantities such as {flat[flat != np.round(flat)][0]:.3g}, {space} is right")
    made = flat.astype(np.int64) - space.start
    most = {"discrete": (space.n,), "multidiscrete": space.nvec}.get(space.kind, (2,) * space.dimensions)
    wrong = (made < 0) | (made >= np.asarray(most))
    if wrong.any():
        raise Misconfigured(f"{source}: an action of {int(made[wrong][0]) + space.start} is recorded, {space} is right")
    return made[:, 0] if space.kind == "discrete" else made


def _known(known: Arrays, spec: Spec, source: str) -> dict[str, np.ndarray]:
    """What the recorded policy said, float32, with the widths that the action space asks for."""
    space, made = spec.action, {}
    widths = {"logits": space.size, "mean": space.dimensions, "std": space.dimensions, "q": space.n, "value": 1}
    for name, array in known.items():
        flat = np.asarray(array, np.float32).reshape(len(array), -1)
        if flat.shape[1] != widths[name]:
            raise Misconfigured(f"{source}: teacher_{name} has {flat.shape[1]} numbers a step, {widths[name]} is right for {space}")
        made[name] = flat[:, 0] if name == "value" else flat
    if "std" in made and (made["std"] <= 0).any():
        raise Failed(f"{source}: teacher_std is 0 or less in places, above 0 is right")
    return made
