"""The artifact: one safetensors file whose header, one key of canonical JSON, says what the tensors are.

It holds no time, path or latency, so that the same run gives the same bytes. Whatever isn't exactly as it was written is
refused: a truncated or altered file (its digest), an oversized header, a newer version. A header with a ``packing`` (packing.py) makes a
file of format 2, whose tensors are held in fewer bytes, and which readers of format 1 refuse; all others are of format 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillrl import packing
from distillrl.errors import Failed

KEY = "distillrl"
VERSION = 2
MAX_HEADER = 4 << 20
MAX_BYTES = 4 << 30


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def save(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the file in one step: it is whole or not there. Raises Failed (a full disk, a read-only folder)."""
    write_bytes(path, dumps(header, tensors))


def dumps(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of the file."""
    from safetensors.torch import save as to_bytes

    body = {**header, "version": VERSION if {"packing", "holding"} & set(header) else 1}
    held = packing.pack(tensors, *_forms(header, "the student"))
    body["digest"] = _digest(body, held)
    return to_bytes(held, metadata={KEY: canonical(body)})


def load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, unpacked; raises Failed, with a sentence, for anything that isn't whole, ours and of this version."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    text = header_text(path)
    try:
        body = json.loads(text)
        tensors = from_bytes(path.read_bytes())
    except (ValueError, RecursionError, SafetensorError, OSError) as error:
        raise Failed(f"{path} is damaged: {error}") from None
    if not isinstance(body, dict) or not isinstance(body.get("version"), int):
        raise Failed(f"{path} is damaged: its header is not one of distillrl's")
    if body["version"] > VERSION:
        raise Failed(f"{path} was written by a newer distillrl (format {body['version']}, this one reads up to {VERSION}): pip install -U distillrl")
    if body.pop("digest", None) != _digest(body, tensors):
        raise Failed(f"{path} was altered after it was written: its digest doesn't fit")
    return body, packing.unpack(tensors, *_forms(body, str(path)), str(path))


def _forms(header: Mapping[str, Any], where: str) -> tuple[dict[str, packing.Form], dict[str, int]]:
    """How tensors are held, and the entries of each rounded layer."""
    if "packing" not in header:
        return {}, {}
    try:
        forms = {str(name): packing.Form.of(form) for name, form in header["packing"].items()}
        rounded = {str(layer): int(entries) for layer, (_, entries) in header.get("rounded", {}).items()}
        if any(not 0 < entries <= packing.MOST for entries in rounded.values()):
            raise ValueError("a layer with a strange number of roundings")
        return forms, rounded
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Failed(f"{where} is damaged: its header's packing is not one ({type(error).__name__}: {error})") from None


def header_text(path: Path) -> str:
    """The raw header of our key, read before anything else is: raises Failed where the file isn't an artifact."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or size > MAX_BYTES or length > min(MAX_HEADER, size - 8):
                raise Failed(f"{path} is not a whole safetensors file: {size} bytes, and its header claims {length}")
            outer = json.loads(file.read(length))
    except OSError as error:
        raise Failed(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise Failed(f"{path} is damaged: its header is not JSON") from None
    metadata = outer.get("__metadata__") if isinstance(outer, dict) else None
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise Failed(f"{path} is a safetensors file, but no distillrl artifact (its metadata has no key {KEY!r})")
    return text


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file in one step; flushed to disk first, so that a crash leaves the old one or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise Failed(f"{path} can't be written: {error.strerror or error}") from None


def _digest(body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(canonical(dict(body)).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
