"""Environments with other physics: gravity, wind, masses, friction, forces. A table by environment that a user can extend.

A user's rows come from a TOML file::

    [[change]]
    env = "LunarLander*"          # a gymnasium id, * stands for anything
    name = "gravity"
    unit = "m/s²"
    kwarg = "gravity"             # a keyword argument of the environment; or
    # attribute = "model.opt.timestep"   an attribute of the unwrapped environment that is set; or
    # scale = "model.body_mass"          one that is multiplied
    usual = -10.0
    values = [-11.5, -8.0]
    also = {}                     # further keyword arguments that go with it
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from distillrl import envs
from distillrl.envs import EnvOptions
from distillrl.errors import Failed, Misconfigured, nearest

WAYS = ("kwarg", "attribute", "scale")


@dataclass(frozen=True)
class Change:
    """One row: which environments, what is changed, how, and to which values."""

    env: str
    name: str
    values: tuple[float, ...]
    usual: float
    unit: str = ""
    way: str = "attribute"
    """kwarg, attribute (set) or scale (multiply)."""
    target: str = ""
    also: Mapping[str, Any] = field(default_factory=dict)
    after: Callable[[Any], None] | None = None
    """Recomputes what the environment derived from the attribute when it was made."""


def _cartpole(env: Any) -> None:
    env.total_mass = env.masspole + env.masscart
    env.polemass_length = env.masspole * env.length


def _mujoco(pattern: str) -> tuple[Change, ...]:
    scales = (0.5, 0.75, 1.25, 1.5)
    return tuple(
        Change(pattern, name, scales, 1.0, "× usual", "scale", target)
        for name, target in (("gravity", "model.opt.gravity"), ("friction", "model.geom_friction"), ("mass", "model.body_mass"))
    )


_WALKERS = ("HalfCheetah-*", "Ant-*", "Hopper-*", "Walker2d-*", "Humanoid*", "Swimmer-*", "Inverted*Pendulum-*", "Reacher-*", "Pusher-*")
PHYSICS: tuple[Change, ...] = (
    Change("LunarLander*", "gravity", (-11.5, -8.5, -7.0, -5.0), -10.0, "m/s²", "kwarg", "gravity"),
    Change("LunarLander*", "wind", (5.0, 10.0, 15.0, 20.0), 0.0, "power", "kwarg", "wind_power", {"enable_wind": True}),
    Change("CartPole*", "pole length", (0.25, 0.75, 1.0, 1.5), 0.5, "m, half", "attribute", "length", after=_cartpole),
    Change("CartPole*", "pole mass", (0.05, 0.2, 0.5, 1.0), 0.1, "kg", "attribute", "masspole", after=_cartpole),
    Change("CartPole*", "force", (5.0, 7.5, 12.5, 15.0), 10.0, "N", "attribute", "force_mag"),
    Change("CartPole*", "gravity", (5.0, 7.5, 12.5, 15.0), 9.8, "m/s²", "attribute", "gravity"),
    Change("Pendulum*", "gravity", (7.0, 8.5, 11.5, 13.0), 10.0, "m/s²", "kwarg", "g"),
    Change("Pendulum*", "mass", (0.8, 0.9, 1.1, 1.2), 1.0, "kg", "attribute", "m"),
    Change("Pendulum*", "length", (0.8, 0.9, 1.1, 1.2), 1.0, "m", "attribute", "l"),
    Change("BipedalWalker*", "gravity", (0.7, 0.85, 1.15, 1.3), 1.0, "× usual", "scale", "world.gravity"),
    Change("MinAtar/*", "sticky actions of the game", (0.0, 0.2, 0.35, 0.5), 0.1, "probability", "kwarg", "sticky_action_prob"),
    Change("Acrobot*", "mass of the lower link", (0.5, 0.75, 1.25, 1.5), 1.0, "kg", "attribute", "LINK_MASS_2"),
    Change("MountainCar-*", "gravity", (0.0022, 0.0024, 0.0026, 0.0028), 0.0025, "", "attribute", "gravity"),
    Change("MountainCarContinuous-*", "power", (0.0012, 0.00135, 0.00165, 0.0018), 0.0015, "", "attribute", "power"),
    *(change for pattern in _WALKERS for change in _mujoco(pattern)),
)


def changes_for(options: EnvOptions, table: tuple[Change, ...] = PHYSICS) -> tuple[Change, ...]:
    """The rows for an environment; later rows of the same name stand in for earlier ones. Empty for a vector or EnvPool."""
    if options.backend == "envpool" or not (isinstance(options.id, str) or callable(options.id)):
        return ()
    name = envs.name_of(options).rpartition(":")[2]
    return tuple({c.name: c for c in table if fnmatch.fnmatch(name, c.env)}.values())


def changed(options: EnvOptions, change: Change, value: float) -> EnvOptions:
    """The environment with one thing changed; raises Misconfigured, when it is made, where it has no such thing."""
    if change.way == "kwarg":
        return EnvOptions(options.id, {**options.kwargs, **change.also, change.target: value}, options.backend, options.max_episode_steps)

    def make() -> gymnasium.Env[Any, Any]:
        env = (
            options.id(**options.kwargs) if callable(options.id) else gymnasium.make(options.id, disable_env_checker=True, **options.kwargs)
        )
        _apply(env.unwrapped, change, value)
        return env

    return EnvOptions(make, {}, options.backend, options.max_episode_steps)


def read(path: Path) -> tuple[Change, ...]:
    """The built-in table and a user's rows after it; raises Failed or Misconfigured, naming the row."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failed(f"{path} can't be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path} is not TOML: {error}") from None
    rows = data.get("change")
    if not isinstance(rows, list) or set(data) != {"change"}:
        raise Misconfigured(f"{path}: tables [[change]] and nothing else are right; it has {', '.join(data) or 'nothing'}")
    return PHYSICS + tuple(_row(row, f"{path}, change {i + 1}") for i, row in enumerate(rows))


def _row(row: Mapping[str, Any], where: str) -> Change:
    known = {"env", "name", "unit", "usual", "values", "also", *WAYS}
    for key in row:
        if key not in known:
            raise Misconfigured(f"{where}: unknown key {key!r}{nearest(key, known)}")
    ways = [w for w in WAYS if w in row]
    if len(ways) != 1:
        raise Misconfigured(f"{where}: exactly one of kwarg, attribute and scale is right; {' and '.join(ways) or 'none'} was given")
    try:
        values = tuple(float(v) for v in row["values"])
        usual = float(row.get("usual", 1.0 if ways[0] == "scale" else float("nan")))
        change = Change(
            str(row["env"]),
            str(row["name"]),
            values,
            usual,
            str(row.get("unit", "")),
            ways[0],
            str(row[ways[0]]),
            dict(row.get("also", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Misconfigured(f"{where}: env, name, usual and a list of values are right ({type(error).__name__}: {error})") from None
    if not values or not np.isfinite([*values, usual]).all():
        raise Misconfigured(f"{where}: values = {list(values)} and usual = {usual}: finite numbers are right")
    return change


def _apply(env: Any, change: Change, value: float) -> None:
    *path, last = change.target.split(".")
    try:
        for name in path:
            env = getattr(env, name)
        old = getattr(env, last)
    except AttributeError as error:
        raise Misconfigured(
            f"the physics {change.name!r} sets {change.target}, but the environment has no such attribute ({error})"
        ) from None
    if isinstance(old, np.ndarray):
        old[...] = old * value if change.way == "scale" else value
    else:
        setattr(env, last, old * value if change.way == "scale" else value)
    if change.after is not None:
        change.after(env)
