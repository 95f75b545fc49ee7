"""VecNormalize's statistics out of its pickle, read inertly: nothing in the file runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillrl.errors import Failed
from distillrl.normalising import Normalise
from distillrl.teachers import pickles
from distillrl.teachers.archives import read_file
from distillrl.teachers.pickles import Made

MAX_BYTES = 256 << 20
CLASS = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"
STATISTICS = "stable_baselines3.common.running_mean_std.RunningMeanStd"


@dataclass(frozen=True)
class Normaliser:
    """clip((x − mean) / √(variance + epsilon), −clip, clip) of some groups; ``''`` names a plain observation. Without groups, norm_obs is off."""

    moments: dict[str, tuple[np.ndarray, np.ndarray]]
    clip: float
    epsilon: float
    count: float
    """How many observations the statistics are of."""

    def step(self, names: list[str]) -> Normalise:
        """The sense's step, in double precision as SB3 computes it; ``names`` are the observation's groups."""
        given = {(names[0] if key == "" else key): (torch.from_numpy(m), torch.from_numpy(v)) for key, (m, v) in self.moments.items()}
        return Normalise.from_moments(given, self.epsilon, self.clip, dtype="float64")

    def __str__(self) -> str:
        if not self.moments:
            return "norm_obs off: observations are left as they are"
        groups = "" if "" in self.moments else " of " + ", ".join(self.moments)
        return f"(x − mean) / √(variance + {self.epsilon:g}){groups}, clipped to ±{self.clip:g}, from {self.count:.0f} observations"


def read(path: Path) -> Normaliser:
    """The statistics of a vecnormalize.pkl. Raises Failed where it is anything else, damaged, or has a NaN."""
    tree = pickles.read(read_file(path, MAX_BYTES), str(path))
    if not isinstance(tree, Made) or tree.name != CLASS or not isinstance(tree.state, dict):
        said = tree.name if isinstance(tree, Made) else type(tree).__name__
        raise Failed(f"{path} holds no statistics of VecNormalize, but {said or 'something else'}")
    return of_state(tree.state, str(path))


def of_state(state: dict[Any, Any], where: str) -> Normaliser:
    """From VecNormalize's attributes."""
    clip, epsilon = _number(state, "clip_obs", 10.0, where), _number(state, "epsilon", 1e-8, where)
    if not state.get("norm_obs", True):
        return Normaliser({}, clip, epsilon, 0.0)
    statistics = state.get("obs_rms")
    found = pickles.entries(statistics)
    if found is None:
        found = {"": statistics}
    moments, count = {}, 0.0
    for key, one in found.items():
        inner = one.state if isinstance(one, Made) and one.name == STATISTICS else None
        if not isinstance(inner, dict):
            raise Failed(f"{where} is damaged: it lacks the statistics of {key or 'the observation'}")
        mean, variance = (pickles.array(inner.get(k), f"{where}: {k}").astype(np.float64) for k in ("mean", "var"))
        if mean.shape != variance.shape or not (np.isfinite(mean).all() and np.isfinite(variance).all()) or (variance + epsilon <= 0).any():
            raise Failed(f"{where} is damaged: its statistics of {key or 'the observation'} don't fit each other, or hold NaN, infinity or a negative variance")
        moments[str(key)] = (mean, variance)
        count = _number(inner, "count", 0.0, where)
    return Normaliser(moments, clip, epsilon, count)


def _number(state: dict[Any, Any], key: str, default: float, where: str) -> float:
    value = pickles.array(state.get(key, default), f"{where}: {key}")
    if value.size != 1 or not np.isfinite(value).all() or value.reshape(-1)[0] < 0:
        raise Failed(f"{where} is damaged: {key} is {str(value)[:40]}")
    return float(value.reshape(-1)[0])
