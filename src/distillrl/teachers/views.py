"""The sets of weights that a file may mean: all of it, or what lies below ``agent``, ``state_dict``, ``actor``, …

What wraps a network without being a layer is seen through: DataParallel's ``module.``, torch.compile's ``_orig_mod.``,
noisy layers (played by their means). Optimisers' tensors never count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from distillrl.teachers.tensorfiles import Module
from distillrl.teachers.writer import Weights

MAX_DEPTH = 3
_WRAPPERS = ("module", "_orig_mod")
_OTHER = re.compile(r"optim|target|scheduler|critic|normali|preproc|buffer|ema$|rms$", re.IGNORECASE)
_NOISE = re.compile(r"(weight|bias)_(sigma|epsilon|eps|noise)$")


def views(tree: Any, where: str) -> Iterator[Weights]:
    """The whole file first, then nested ones that hold tensors, from the outside to the inside."""
    level: list[tuple[Any, int]] = [(tree, 0)]
    for value, depth in level:
        tensors = tidy(dict(flat(value)))
        if tensors or value is tree:
            yield Weights(tensors, where, dict(layers(value)))
        if depth < MAX_DEPTH and isinstance(value, Mapping) and not isinstance(value, Module):
            level += [(inner, depth + 1) for name, inner in value.items() if isinstance(inner, Mapping) and not _OTHER.search(str(name))]


def flat(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested dicts and lists with its dotted name."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif depth < 12:
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
        for name, inner in items:
            yield from flat(inner, f"{prefix}.{name}" if prefix else str(name), depth + 1)


def layers(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Module]]:
    """Every module that was saved whole with its dotted name."""
    if isinstance(value, Mapping) and depth < 12:
        if isinstance(value, Module):
            yield clean(prefix), value
        for name, inner in value.items():
            yield from layers(inner, f"{prefix}.{name}" if prefix else str(name), depth + 1)


def clean(name: str) -> str:
    """A dotted name without the wrappers' parts."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def tidy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without wrappers' names, and noisy layers by their means."""
    noisy = any(name.endswith(".weight_mu") for name in tensors)
    made = {}
    for name, tensor in tensors.items():
        short = clean(name)
        if noisy and _NOISE.search(short):
            continue
        made[re.sub(r"\.(weight|bias)_mu$", r".\1", short) if noisy else short] = tensor
    return made
