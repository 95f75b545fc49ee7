"""numpy's own files, with the size held against the header before memory is taken, and no pickled objects."""

from __future__ import annotations

import math
import re

import numpy as np

from distillrl.errors import Failed

_HEADER = re.compile(
    r"\{'descr': '([<>|=][biuf?]\d{0,2})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,12}L?,? ?){0,16})\),? ?\}\s*"
)


def npy(data: bytes, where: str) -> np.ndarray:
    """The array of a .npy file's bytes; raises Failed where it is damaged, lies about its size, or holds objects."""
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise Failed(f"{where} is no array of numpy")
    wide = data[6] > 1
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], "little")
    header = _HEADER.fullmatch(data[start : start + min(length, 10_000)].decode("latin-1"))
    if header is None:
        raise Failed(f"{where} is no array of numbers")
    kind, fortran, sizes = header.groups()
    try:
        dtype = np.dtype(kind)
    except TypeError:
        raise Failed(f"{where} is no array of numbers") from None
    shape = tuple(int(n) for n in re.findall(r"\d+", sizes))
    rest = data[start + length :]
    if math.prod(shape) * dtype.itemsize != len(rest):
        raise Failed(f"{where} is refused: it claims {list(shape)} of {dtype}, and holds {len(rest)} bytes")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran == "True" else "C")
