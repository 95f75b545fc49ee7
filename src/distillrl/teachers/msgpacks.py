"""msgpack as flax's ``to_bytes`` writes it: maps, lists, plain values and arrays, each size held against the bytes that are left.

An array is an extension of type 1: shape, dtype's name, bytes. Nothing else of the format's extensions is read.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
from torch import Tensor

from distillrl.errors import Failed

MAX_DEPTH = 32
MAX_ITEMS = 200_000
_TYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")}
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_WORDS = {0xC0: None, 0xC2: False, 0xC3: True}


def read(data: bytes, where: str) -> Any:
    """The value of a file's bytes. Raises Failed where it is damaged, cut, nested too deeply, or claims more than it has."""
    reader = _Reader(data, where)
    value = reader.value(0)
    if reader.at != len(data):
        raise Failed(f"{where} is damaged: {len(data) - reader.at:,} bytes are left over")
    return value


class _Reader:
    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at, self.items = data, where, 0, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise Failed(f"{self.where} is damaged: it is cut, or claims {count:,} bytes where {len(self.data) - self.at:,} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def length(self, code: int, first: int) -> int:
        return int(self.number((">B", ">H", ">I")[code - first]))

    def value(self, depth: int) -> Any:
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise Failed(f"{self.where} is refused: it is nested too deeply, or holds more than {MAX_ITEMS:,} values")
        code = self.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code < 0x90:
            return self.map(code & 15, depth)
        if code < 0xA0:
            return self.list(code & 15, depth)
        if code < 0xC0:
            return self.text(code & 31)
        if code in _WORDS:
            return _WORDS[code]
        if code in _NUMBERS:
            return self.number(_NUMBERS[code])
        return self.long(code, depth)

    def long(self, code: int, depth: int) -> Any:
        """What has its length in bytes of its own."""
        if code in _FIXED:
            return self.extension(_FIXED[code])
        if 0xC4 <= code <= 0xC6:
            return self.take(self.length(code, 0xC4))
        if 0xC7 <= code <= 0xC9:
            return self.extension(self.length(code, 0xC7))
        if 0xD9 <= code <= 0xDB:
            return self.text(self.length(code, 0xD9))
        if code in {0xDC, 0xDD}:
            return self.list(self.length(code, 0xDB), depth)
        if code in {0xDE, 0xDF}:
            return self.map(self.length(code, 0xDD), depth)
        raise Failed(f"{self.where} is damaged: the byte {code:#x} means nothing in msgpack")

    def text(self, count: int) -> str:
        return self.take(count).decode("utf-8", "replace")

    def list(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(self.bounded(count))]

    def map(self, count: int, depth: int) -> dict[str, Any]:
        return {str(self.value(depth + 1))[:200]: self.value(depth + 1) for _ in range(self.bounded(count))}

    def bounded(self, count: int) -> int:
        if count > len(self.data) - self.at:
            raise Failed(f"{self.where} is damaged: it claims {count:,} values where {len(self.data) - self.at:,} bytes are left")
        return count

    def extension(self, count: int) -> Any:
        kind, data = self.take(1)[0], self.take(count)
        if kind not in {1, 3}:
            return None
        inner = _Reader(data, self.where)
        told = inner.value(MAX_DEPTH - 2)
        if not isinstance(told, list) or len(told) != 3:
            raise Failed(f"{self.where} is damaged: an array without shape, type and bytes")
        return self.array(*told)

    def array(self, shape: Any, name: Any, data: Any) -> Tensor:
        dtype = _TYPES.get(name.decode("latin-1") if isinstance(name, bytes) else str(name))
        sizes = list(shape) if isinstance(shape, list) else []
        if dtype is None or not isinstance(data, bytes) or not all(type(s) is int and s >= 0 for s in sizes) or math.prod(sizes) * dtype.itemsize != len(data):
            raise Failed(f"{self.where} is damaged: an array claims the shape {str(shape)[:60]} of {str(name)[:20]!r} and has other bytes")
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(sizes) if data else torch.empty(sizes, dtype=dtype)
