"""Where the data set's rows lie: in memory, or in files that the system pages in, where they would take more than they may."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Failed, Misconfigured

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SHARE = 0.5
"""Of the memory that is free before a run, what its states may take where ``--memory`` says nothing."""
SMALL = 1 << 20
"""Bytes of a buffer that never goes to a file."""


@dataclass
class Storage:
    """Makes buffers of rows: zeros, in memory up to ``memory`` bytes in all, then in files in ``folder``; without a folder always in memory."""

    memory: int = 1 << 62
    folder: Path | None = None
    notes: tuple[str, ...] = ()
    """What the user is to know of it."""
    taken: int = 0

    def make(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros, no page of which is touched before it is written; raises Failed where the disk is full."""
        size = math.prod(shape) * dtype.itemsize
        plain = np.dtype({torch.bool: "bool", torch.bfloat16: "uint16"}.get(dtype, str(dtype).removeprefix("torch.")))
        if self.folder is None or size < SMALL or self.taken + size <= self.memory:
            self.taken += size
            return torch.from_numpy(np.zeros(shape, plain)).view(dtype)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-{math.prod(shape[:1])}.rows"
            return torch.from_numpy(np.memmap(path, plain, "w+", shape=shape)).view(dtype)
        except OSError as error:
            raise Failed(f"{self.folder}: no room for {said(size)} of states ({error.strerror or error}); free some, or take fewer --env-steps") from None

    def close(self) -> None:
        """Delete the files."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def parse(text: str | None) -> int | None:
    """``8GB``, ``500 MB`` or a number of bytes; raises Misconfigured."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size <= 0:
        raise Misconfigured(f"--memory {text!r}: write it as 4GB, 500MB or a number of bytes")
    return size


def available() -> int:
    """Bytes of memory that are free now; a great number where the system doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 1 << 62


def said(size: float) -> str:
    """``7.1 GB``."""
    for unit in ("TB", "GB", "MB", "kB"):
        if size >= _UNITS[unit[0].lower()]:
            return f"{size / _UNITS[unit[0].lower()]:.3g} {unit}"
    return f"{size:.0f} bytes"


def plan(wanted: int, limit: str | None, folder: Path) -> Storage:
    """The storage for a run whose states take up to ``wanted`` bytes; it notes where they go to the disk.

    Raises Misconfigured where ``--memory`` is more than the machine has, or neither memory nor disk can hold them.
    """
    given, free = parse(limit), available()
    if given is not None and given > free:
        raise Misconfigured(f"--memory {limit} is more than the {said(free)} that are free on this machine")
    memory = given if given is not None else int(SHARE * free)
    storage = Storage(memory, folder / "rows")
    if wanted <= memory:
        return storage
    try:
        disk = shutil.disk_usage(folder).free
    except OSError:
        disk = 0
    if wanted > memory + disk:
        raise Misconfigured(
            f"the states of this run take up to {said(wanted)}; there are {said(memory)} of memory and {said(disk)} of disk for them: "
            "fewer --env-steps, a smaller image (resize=) or --method on-policy, which keeps one round, take less"
        )
    storage.notes = (f"the states of this run take up to {said(wanted)}, more than {said(memory)} of memory: what is more goes to {storage.folder}",)
    return storage
