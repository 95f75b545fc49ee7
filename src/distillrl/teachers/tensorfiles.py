"""What ``torch.save`` wrote, read without ``torch.load``: the pickle stays inert, and each tensor's claims are held
against the bytes that are there (``torch.load(weights_only=True)`` believes a file's word about a storage's length).

Both layouts are read: the zip (PyTorch 1.6 and newer) and the older one of pickles in a row.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from distillrl.errors import Failed
from distillrl.teachers import pickles
from distillrl.teachers.archives import Archive
from distillrl.teachers.pickles import PLAIN, Global, Made

MAX_PICKLE = 64 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Storage:
    """A storage that the pickle speaks of: its bytes are looked up later."""

    __slots__ = ("dtype", "key", "length")

    def __init__(self, key: str, dtype: torch.dtype, length: int) -> None:
        self.key, self.dtype, self.length = key, dtype, length


class Module(dict[str, Any]):
    """An nn.Module that was pickled whole: its parameters, buffers and parts by name. None of its code is in the file, and none is run."""

    def __init__(self, kind: str, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind = kind
        """Its class, as the file says it."""
        self.facts = facts
        """Its plain settings, such as a convolution's stride."""


def state_dict(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors {name: tensor} of a saved state dict; raises Failed where it is anything else."""
    found = tree(data, where)
    if not isinstance(found, Mapping):
        raise Failed(f"{where} holds no state dict, but {describe(found)}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Failed(f"{where} holds no state dict: its entry {str(name)[:80]!r} is {describe(value)}")
    return dict(found)


def tree(data: bytes, where: str) -> Any:
    """Whatever was saved: dicts, lists, numbers and texts as they are, tensors as tensors, all else as inert ``Made``."""
    if data[:4] == b"PK\x03\x04":
        top, fetch = _zipped(data, where)
    else:
        top, fetch = _legacy(data, where)
    return _Builder(fetch, where).build(top, 0)


def _zipped(data: bytes, where: str) -> tuple[Any, Callable[[_Storage], bytes]]:
    archive = Archive(data, where)
    roots = [n.removesuffix("data.pkl") for n in archive.members if n.endswith("data.pkl") and n.count("/") <= 1]
    if len(roots) != 1:
        raise Failed(f"{where} is no file of tensors: it has {len(roots)} members data.pkl, one is right")
    root = roots[0]
    if root + "constants.pkl" in archive:
        raise Failed(f"{where} is a TorchScript file, a file of tensors is right here")
    for name, info in archive.members.items():
        if info.compress_type != 0:
            raise Failed(f"{where} is refused: its member {name[:80]} is packed, which torch never does")
    if root + "byteorder" in archive and archive.read(root + "byteorder", 64).strip() != b"little":
        raise Failed(f"{where} was saved on a big-endian machine, which is not read; save it again on a little-endian one")
    top = pickles.read(archive.read(root + "data.pkl", MAX_PICKLE), where, lambda i: _storage(i, where))
    return top, lambda storage: archive.read(f"{root}data/{storage.key}")


def _legacy(data: bytes, where: str) -> tuple[Any, Callable[[_Storage], bytes]]:
    file = io.BytesIO(data)
    if pickles.read_stream(file, where) != _LEGACY_MAGIC:
        raise Failed(f"{where} is no file that torch.save wrote")
    pickles.read_stream(file, where)  # the protocol's number
    about = pickles.read_stream(file, where)
    if isinstance(about, dict) and about.get("little_endian") is False:
        raise Failed(f"{where} was saved on a big-endian machine, which is not read; save it again on a little-endian one")
    storages: dict[str, _Storage] = {}

    def found(identifier: Any) -> _Storage:
        storage = _storage(identifier, where)
        return storages.setdefault(storage.key, storage)

    top = pickles.read_stream(file, where, found)
    keys = pickles.read_stream(file, where)
    places: dict[str, tuple[int, int]] = {}
    at = file.tell()
    for key in keys if isinstance(keys, list) else []:
        storage = storages.get(str(key))
        length = int.from_bytes(data[at : at + 8], "little")
        if storage is None or length != storage.length or at + 8 + length * storage.dtype.itemsize > len(data):
            raise Failed(f"{where} is damaged: the tensors behind its list don't fit it")
        places[str(key)] = (at + 8, at + 8 + length * storage.dtype.itemsize)
        at = places[str(key)][1]

    def fetch(storage: _Storage) -> bytes:
        if storage.key not in places:
            raise Failed(f"{where} is damaged: it lacks the storage {storage.key[:40]}")
        start, end = places[storage.key]
        return data[start:end]

    return top, fetch


def _storage(identifier: Any, where: str) -> _Storage:
    if isinstance(identifier, tuple) and len(identifier) >= 5 and identifier[0] == "storage":
        _, kind, key, _, length = identifier[:5]
        name = kind.name if isinstance(kind, Global) and kind.module in {"torch", "torch.storage"} else ""
        if name in _TYPES and isinstance(key, str) and type(length) is int and length >= 0 and "/" not in key and len(key) < 64:
            return _Storage(key, _TYPES[name], length)
    raise Failed(f"{where} is refused: it refers to something that is no storage of numbers")


class _Builder:
    """Turns the inert tree into plain data and tensors; a storage is read once, and its length checked."""

    def __init__(self, fetch: Callable[[_Storage], bytes], where: str) -> None:
        self.fetch, self.where = fetch, where
        self.storages: dict[str, Tensor] = {}
        self.built: dict[int, Any] = {}
        """By the identity of what it was built of: what stands in many places is built once."""

    def build(self, value: Any, depth: int) -> Any:
        if type(value) in PLAIN:
            return value
        if id(value) in self.built:
            if self.built[id(value)] is self:
                raise Failed(f"{self.where} is refused: something in it holds itself")
            return self.built[id(value)]
        if depth > pickles.MAX_DEPTH:
            raise Failed(f"{self.where} is refused: it is nested too deeply")
        self.built[id(value)] = self
        made = self._build(value, depth)
        self.built[id(value)] = made
        return made

    def _build(self, value: Any, depth: int) -> Any:
        pairs = pickles.entries(value)
        if pairs is not None:
            return {k: self.build(v, depth + 1) for k, v in pairs.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.build(v, depth + 1) for v in value)
        if isinstance(value, Made) and value.name.startswith("torch._utils._rebuild"):
            return self._tensor(value)
        if isinstance(value, Made) and value.name == "torch.Size" and value.args:
            return self.build(value.args[0], depth + 1)
        if isinstance(value, Made) and isinstance(value.state, dict) and "_modules" in value.state:
            return self._module(value, depth)
        return value

    def _module(self, value: Made, depth: int) -> Module:
        facts = {k: v for k, v in value.state.items() if type(k) is str and (type(v) in PLAIN or (type(v) is tuple and all(type(x) in PLAIN for x in v)))}
        made = Module(value.name or (str(value.args[0]) if value.args else ""), facts)
        for part in ("_parameters", "_buffers", "_modules"):
            inner = pickles.entries(value.state.get(part)) or {}
            made.update({str(k): self.build(v, depth + 1) for k, v in inner.items() if v is not None})
        return made

    def _tensor(self, made: Made) -> Tensor:
        name, args = made.name.rsplit(".", 1)[-1], made.args
        if name in {"_rebuild_parameter", "_rebuild_parameter_with_state"} and args and isinstance(args[0], Made) and args[0].name != made.name:
            return self._tensor(args[0])
        if name not in {"_rebuild_tensor_v2", "_rebuild_tensor"} or len(args) < 4 or not isinstance(args[0], _Storage):
            raise Failed(f"{self.where} is refused: it holds a tensor of a kind that is not read ({name[:60]})")
        storage, offset, shape, strides = args[:4]
        numbers = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 16 else (-1,)
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise Failed(f"{self.where} is damaged: a tensor's shape is no shape")
        last = offset + sum((s - 1) * step for s, step in zip(shape, strides, strict=True)) if math.prod(shape) else 0
        if math.prod(shape) > storage.length or last >= max(storage.length, 1):
            raise Failed(f"{self.where} is refused: a tensor claims the shape {list(shape)}, but its storage has {storage.length} numbers")
        return self._whole(storage).as_strided(shape, strides, offset)

    def _whole(self, storage: _Storage) -> Tensor:
        if storage.key not in self.storages:
            data = self.fetch(storage)
            if len(data) != storage.length * storage.dtype.itemsize:
                raise Failed(f"{self.where} is refused: a storage claims {storage.length} numbers, but {len(data)} bytes are there")
            self.storages[storage.key] = torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
        found = self.storages[storage.key]
        if found.dtype != storage.dtype:
            raise Failed(f"{self.where} is refused: a storage is claimed to be of two types")
        return found


def describe(value: Any) -> str:
    """A few words on what a tree's value is, for errors."""
    if isinstance(value, Made):
        return f"a {value.name or 'call'}"
    return f"a {type(value).__name__}"


def part(archive: Archive, member: str, folder: str, where: str) -> tuple[Any, Callable[[Made], Tensor]]:
    """One pickle of a zip whose storages lie in ``folder`` (TorchScript has two): its inert tree, and what makes a tensor of a ``Made`` of it."""
    top = pickles.read(archive.read(member, MAX_PICKLE), where, lambda i: _storage(i, where))
    return top, _Builder(lambda storage: archive.read(f"{folder}{storage.key}"), where)._tensor
