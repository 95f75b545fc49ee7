"""Writes Minari's data sets (HDF5), episode by episode; the folder appears when all of it is on disk, or never."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from gymnasium import spaces

from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.recordings.minari import MAIN, METADATA, json_of

MINARI_VERSION = "0.5.0"
"""The version of Minari's layout that is written."""


class _Disk(io.FileIO):
    """A file whose writes never raise: HDF5 can't take a full disk without leaving its process in disorder. ``failed`` tells of it."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        size, view = len(data), memoryview(data)
        try:
            while self.failed is None and len(view):
                view = view[super().write(view) :]
        except OSError as error:
            self.failed = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failed = error
            return size or 0


class Writer:
    """``with Writer(out, …) as writer: writer.add(…)``. Whatever ends the block early (Ctrl-C, a full disk) leaves nothing at ``out``."""

    def __init__(self, out: Path, observation: spaces.Space[Any], action: spaces.Space[Any], facts: Mapping[str, Any]) -> None:
        """``facts`` go into metadata.json: env_spec, algorithm_name, distillrl, … Raises Misconfigured where ``out`` isn't free, Missing without h5py."""
        try:
            import h5py
        except ImportError:
            raise Missing("a recording is written as HDF5 by h5py, which is not installed: pip install 'distillrl[data]'") from None
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise Misconfigured(f"--out {out} is not empty: name a folder that isn't there yet")
        self.out, self.observation, self.action, self.facts = out, observation, action, facts
        self.episodes = self.steps = 0
        self._h5py, self._file = h5py, None
        self._folder = Path()
        self._disk: _Disk | None = None

    def __enter__(self) -> Writer:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=self.out.parent, prefix=f".{self.out.name}."))
            (self._folder / "data").mkdir()
            self._disk = _Disk(self._folder / "data" / MAIN, "w+")
            self._file = self._h5py.File(self._disk, "w", track_order=True)
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise Failed(f"{self.out} can't be written: {error.strerror or error}") from None
        return self

    def add(self, obs: Mapping[str, np.ndarray], action: np.ndarray, reward: np.ndarray, terminated: bool, infos: Mapping[str, np.ndarray], seed: int | None) -> None:
        """One episode: ``obs`` {group: [L + 1, ...]}, ``action`` and ``infos`` [L, ...] in the environment's form, ``reward`` [L]."""
        assert self._file is not None, "outside of its with block"
        length = len(reward)
        try:
            group = self._file.create_group(f"episode_{self.episodes}")
            group.attrs["id"], group.attrs["total_steps"] = self.episodes, length
            if seed is not None:
                group.attrs["seed"] = seed
            for name, array in self._named(obs).items():
                _keep(group, name, array)
            _keep(group, "actions", action)
            _keep(group, "rewards", reward.astype(np.float64))
            end = np.arange(length) == length - 1
            _keep(group, "terminations", end & terminated)
            _keep(group, "truncations", end & (not terminated))
            for name, array in infos.items():
                _keep(group, f"infos/{name}", array)
        except (OSError, RuntimeError, ValueError) as error:
            raise Failed(f"{self.out} can't be written: {error}") from None
        self._check()
        self.episodes, self.steps = self.episodes + 1, self.steps + length

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._close()
            if kind is None:
                self._check()
                self._publish()
        except (OSError, RuntimeError, ValueError) as failed:
            if kind is None:
                raise Failed(f"{self.out} can't be written: {getattr(failed, 'strerror', None) or failed}") from None
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _named(self, obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if isinstance(self.observation, spaces.Dict):
            return {f"observations/{k}": v for k, v in obs.items()}
        if isinstance(self.observation, spaces.Tuple):
            return {f"observations/_index_{k}": v for k, v in obs.items()}
        return {"observations": next(iter(obs.values()))}

    def _check(self) -> None:
        if self._disk is not None and self._disk.failed is not None:
            raise Failed(f"{self.out} can't be written: {self._disk.failed.strerror or self._disk.failed}")

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
        if self._disk is not None:
            self._disk.close()

    def _publish(self) -> None:
        """Metadata last; then the folder takes its name in one step."""
        main = self._folder / "data" / MAIN
        metadata = {
            "dataset_id": f"{re.sub(r'[^-_A-Za-z0-9]', '-', self.out.name).strip('-') or 'play'}-v0",
            "minari_version": MINARI_VERSION,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": json.dumps(json_of(self.observation)),
            "action_space": json.dumps(json_of(self.action)),
            "total_episodes": self.episodes,
            "total_steps": self.steps,
            "dataset_size": round(main.stat().st_size / 1e6, 1),
            **self.facts,
        }
        (self._folder / "data" / METADATA).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
        for path in (main, self._folder / "data" / METADATA):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.chmod(self._folder, 0o755)
        if self.out.is_dir():
            self.out.rmdir()  # an empty one
        os.replace(self._folder, self.out)


def _keep(group: Any, name: str, array: np.ndarray) -> None:
    """Pictures are compressed; the rest is small."""
    group.create_dataset(name, data=array, chunks=True if len(array) else None, compression="gzip" if array.dtype == np.uint8 else None)
