"""``.npz``: numpy arrays over all steps. Objects are refused: reading them would run a pickle."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from distillrl.errors import Failed
from distillrl.recordings.episodes import Raw, afford
from distillrl.recordings.flat import NAMES, cut

DAMAGED = (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError, MemoryError)
"""What zipfile and numpy raise on a file that isn't whole, or was made to look like one."""


def sniff(path: Path) -> bool:
    """Whether it is one."""
    return path.is_file() and path.suffix == ".npz"


def read(path: Path) -> Raw:
    """Raises Failed for a damaged file, and for objects among what is needed of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            afford(sum(member.file_size for member in archive.infolist()), str(path))
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if _wanted(name)}
            others = [name for name in file.files if name not in arrays]
    except ValueError as error:
        reason = "it holds Python objects, which would run code; arrays of numbers are right" if "allow_pickle" in str(error) else str(error)
        raise Failed(f"{path}: {reason}") from None
    except DAMAGED as error:
        raise Failed(f"{path} is damaged or no .npz: {error}") from None
    return cut({**arrays, **{name: np.empty(0) for name in others if name not in arrays}}, str(path))


def _wanted(name: str) -> bool:
    plain = name.replace(".", "/").partition("/")[0]
    return name.startswith("teacher_") or any(plain in names for names in NAMES.values())
