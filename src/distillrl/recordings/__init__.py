"""Recorded play, in and out: ``read`` a data set of any known format, ``writing`` writes Minari's.

To add a format, add a file with ``sniff(path) -> bool`` and ``read(path) -> Raw``, and a row in FORMATS. Nothing inside
a file runs: no pickle, no link to another file.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from distillrl.errors import Failed, Misconfigured, nearest
from distillrl.recordings import flat
from distillrl.recordings.episodes import Raw, Recording
from distillrl.recordings.settled import settle
from distillrl.records import Spec


@dataclass(frozen=True)
class Format:
    """One row: its name, and the module that knows it."""

    name: str
    title: str
    module: str
    """``sniff(path)`` and ``read(path)`` are in it; imported when needed."""


FORMATS: tuple[Format, ...] = (
    Format("minari", "a Minari data set (a folder, or an id in the local cache)", "distillrl.recordings.minari"),
    Format("lerobot", "LeRobot's folder (meta/info.json and parquet)", "distillrl.recordings.lerobot"),
    Format("npz", "arrays (.npz)", "distillrl.recordings.npz"),
    Format("hdf5", "D4RL's or d3rlpy's HDF5 (.h5, .hdf5)", "distillrl.recordings.hdf5"),
)


def look(path: str | Path, form: str | None = None) -> tuple[Raw, str]:
    """What a data set holds, as it is written there, and its format's name; ``form`` names a row of FORMATS where looking doesn't tell.

    Raises Failed where it is damaged or none that is known.
    """
    place = Path(path)
    if form is not None and form not in {row.name for row in FORMATS}:
        raise Misconfigured(f"--data-format {form!r}{nearest(form, [row.name for row in FORMATS])}")
    for row in FORMATS:
        module = importlib.import_module(row.module)
        try:
            known = row.name == form if form is not None else module.sniff(place)
        except (OSError, ValueError) as error:
            raise Failed(f"{str(path)[:200]!r} can't be read: {getattr(error, 'strerror', None) or error}") from None
        if known:
            return module.read(place), row.name
    there = "" if place.exists() else "there is no "
    raise Failed(f"{there}{str(path)[:200]!r}{' is no data set that is known here' if not there else ''}; known are: {'; '.join(row.title for row in FORMATS)}")


def read(path: str | Path, spec: Spec | None = None, whose: str = "the environment", form: str | None = None) -> Recording:
    """A recording with settled spaces: those of ``spec``, ``whose``, where it is given and fits, the file's own, or inferred ones."""
    raw, name = look(path, form)
    return settle(raw, str(path), name, spec, whose)


__all__ = ["FORMATS", "Format", "Raw", "Recording", "flat", "look", "read", "settle"]
