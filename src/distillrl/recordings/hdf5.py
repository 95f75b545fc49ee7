"""HDF5 files of other libraries: D4RL's flat arrays, and d3rlpy's ``ReplayBuffer.dump`` (2.x, and its older flat form)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distillrl.errors import Failed, Missing
from distillrl.recordings.episodes import KNOWN, Raw, afford, joined
from distillrl.recordings.flat import cut

SUFFIXES = (".h5", ".hdf5", ".hdf")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, for reading; raises Missing without h5py, Failed for a damaged file."""
    try:
        import h5py
    except ImportError:
        raise Missing(f"{path} is HDF5, which h5py reads: pip install 'distillrl[data]'") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError) as error:
        raise Failed(f"{path} is damaged or no HDF5 file: {error}") from None


def leaves(group: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """{path: dataset} of a group, not read yet. A link to another file, or data that lies in one, is refused."""
    import h5py

    found: dict[str, Any] = {}
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink | h5py.SoftLink):
            raise Failed(f"{where}: {prefix}{name} is a link, arrays of its own are right")
        item = group[name]
        if isinstance(item, h5py.Group):
            found |= leaves(item, where, f"{prefix}{name}/")
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise Failed(f"{where}: {prefix}{name} lies in another file, arrays of its own are right")
            found[f"{prefix}{name}"] = item
    return found


def values(datasets: dict[str, Any], where: str) -> dict[str, np.ndarray]:
    """Those of them that are arrays of numbers, read; raises Failed where they would not fit into memory."""
    wanted = {k: d for k, d in datasets.items() if d.dtype.kind in "biuf" and d.shape is not None}
    afford(sum(int(np.prod(d.shape)) * d.dtype.itemsize for d in wanted.values()), where)
    return {k: d[()] for k, d in wanted.items()}


def is_hdf5(path: Path) -> bool:
    """By its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


def sniff(path: Path) -> bool:
    """Whether it is one."""
    return path.is_file() and (is_hdf5(path) or path.suffix in SUFFIXES)


def read(path: Path) -> Raw:
    """D4RL's ``observations, actions, rewards, terminals, timeouts``; d3rlpy's, which numbers its episodes."""
    with opened(path) as file:
        datasets = leaves(file, str(path))
        if "columns" in datasets and "num_episodes" in datasets:
            return _d3rlpy(datasets, str(path))
        arrays = values({k: d for k, d in datasets.items() if d.shape}, str(path))
    if "episode_terminals" in arrays and "timeouts" not in arrays and "terminals" in arrays:  # d3rlpy 1.x
        arrays["timeouts"] = (arrays.pop("episode_terminals").reshape(-1) > 0.5) & ~(arrays["terminals"].reshape(-1) > 0.5)
    arrays |= {f"teacher_{k}": arrays.pop(f"infos/teacher_{k}") for k in KNOWN if f"infos/teacher_{k}" in arrays}
    return cut(arrays, str(path))


def _d3rlpy(datasets: dict[str, Any], where: str) -> Raw:
    """d3rlpy 2.x: ``observations_0, actions_0, rewards_0, terminated_0, …``; a tuple of observations is ``observations_0_0, observations_0_1``."""
    count = int(datasets["num_episodes"][()])
    arrays = values({k: d for k, d in datasets.items() if k not in {"columns", "num_episodes", "version"}}, where)
    if count > len(arrays):
        raise Failed(f"{where} says that it has {count} episodes, and has {len(arrays)} arrays")

    def episodes() -> Iterator[dict[str, Any]]:
        for i in range(count):
            parts = list(itertools.takewhile(arrays.__contains__, (f"observations_{i}_{j}" for j in itertools.count())))
            lacking = [n for n in ("observations", "actions") if f"{n}_{i}" not in arrays and not (n == "observations" and parts)]
            if lacking:
                raise Failed(f"{where}: episode {i} has no {' and no '.join(lacking)}")
            obs = {str(j): arrays[n] for j, n in enumerate(parts)} or arrays[f"observations_{i}"]
            ended = arrays.get(f"terminated_{i}", np.zeros(1))
            yield {"obs": obs, "action": arrays[f"actions_{i}"], "reward": arrays.get(f"rewards_{i}"), "terminated": bool(np.any(ended))}

    return Raw(**joined(episodes(), where))
