"""What RLlib's new stack does to observations before the module: MeanStdFilter's statistics, out of the checkpoint's connectors.

A checkpoint of a whole algorithm has them in ``env_runner/env_to_module_connector``; a module's folder alone has none.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Failed
from distillrl.teachers import pickles
from distillrl.teachers.archives import read_file
from distillrl.teachers.arrays import npy
from distillrl.teachers.pickles import Global, shown

MAX_BYTES = 64 << 20
PLACE = "env_runner/env_to_module_connector"
KNOWN = frozenset({
    "MeanStdFilter", "AddObservationsFromEpisodesToBatch", "AddTimeDimToBatchAndZeroPad", "AddStatesFromEpisodesToBatch", "BatchIndividualItems", "NumpyToTensor",
    "AgentToModuleMapping", "FlattenObservations",
})  # fmt: skip
"""Connectors that leave a plain observation as it is, or are heeded here."""


@dataclass(frozen=True)
class Filter:
    """clip((x − mean) / std, ±clip), of all observations or of an agent's."""

    mean: Tensor
    std: Tensor
    clip: float | None


def found(path: Path) -> tuple[Filter | None, list[str]]:
    """The filter of the checkpoint that a folder belongs to, and words about connectors that are not heeded. Raises Failed."""
    place = next((p / PLACE for p in (path, *path.resolve().parents[:4]) if (p / PLACE).is_dir()), None)
    if place is None:
        return None, []
    file = place / "class_and_ctor_args.pkl"
    words = [f"RLlib's connector {name} changes observations, which is not done here: this teacher may play badly" for name in _names(file) if name not in KNOWN] if file.is_file() else []
    state = place / "MeanStdFilter" / "state.pkl"
    return (_read(state), words) if state.is_file() and not state.is_symlink() else (None, words)


def _names(file: Path) -> list[str]:
    tree = pickles.entries(pickles.read(read_file(file, MAX_BYTES), str(file))) or {}
    given = tree.get("ctor_args_and_kwargs")
    arguments = pickles.entries(given[1]) if isinstance(given, tuple) and len(given) == 2 else None
    listed = (arguments or {}).get("connectors")
    classes = [one[0] for one in listed if isinstance(one, tuple) and one] if isinstance(listed, list) else []
    return [shown(kind.name).rpartition(".")[2] for kind in classes if isinstance(kind, Global)]


def _read(file: Path) -> Filter:
    agents = pickles.entries(pickles.read(read_file(file, MAX_BYTES), str(file))) or {}
    kept = pickles.entries(next(iter(agents.values()), None)) or {}
    stats = kept.get("running_stats")
    one = pickles.entries(stats[0]) if isinstance(stats, list) and len(stats) == 1 and len(agents) == 1 else None
    if one is None:
        raise Failed(f"{file}: the statistics of MeanStdFilter are of several agents or groups, or damaged, which is not known here")
    count = one.get("num_pushes")
    if type(count) is not int or count < 2:
        raise Failed(f"{file} is damaged: its statistics are of {str(count)[:20]} observations")
    mean = _array(one, "mean_array", file)
    summed = _array(one, "sum_sq_diff_array" if "sum_sq_diff_array" in one else "std_array", file)
    if mean.shape != summed.shape or not (np.isfinite(mean).all() and np.isfinite(summed).all()) or (summed < 0).any():
        raise Failed(f"{file} is damaged: its statistics don't fit each other, or hold NaN, infinity or a negative variance")
    std = np.sqrt((summed / (count - 1)).astype(np.float32)) + 1e-6 if kept.get("de_std_to_one", True) else np.ones_like(summed)
    mean = mean if kept.get("de_mean_to_zero", True) else np.zeros_like(mean)
    clip = kept.get("clip_by_value")
    return Filter(torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32)), float(clip) if isinstance(clip, (int, float)) and clip > 0 else None)


def _array(stats: Mapping[Any, Any], name: str, file: Path) -> np.ndarray:
    """An array that RLlib packed: numpy's own bytes, zlib, base64."""
    text = stats.get(name)
    if not isinstance(text, str):
        raise Failed(f"{file} is damaged: it lacks {name}")
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), MAX_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise Failed(f"{file} is damaged: {name} can't be unpacked ({error})") from None
    if unpacker.unconsumed_tail:
        raise Failed(f"{file} is refused: {name} unpacks to more than {MAX_BYTES:,} bytes")
    return npy(data, f"{file}: {name}").astype(np.float64)
