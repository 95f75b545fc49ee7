"""Files and zip archives of strangers, opened for their bytes: bombs, links and tricky names are refused before anything is read."""

from __future__ import annotations

import io
import json
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from distillrl.errors import Failed

MAX_MEMBERS = 20_000
MAX_BYTES = 2 << 30
MAX_RATIO = 200
"""Networks' numbers hardly compress; what unpacks to more than this many times its size is a bomb."""
FREE_BYTES = 64 << 20
"""Up to here the ratio isn't looked at."""
MAX_JSON = 64 << 20
MAX_DIRECTORY = 8 << 20
"""Bytes of a zip's list of members."""
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, IndexError, OverflowError)
"""What ``zipfile`` raises for a damaged archive, each seen in fuzzing: its own two; OSError and ValueError for places before the file's beginning and names
that are no text; EOFError for a member that is cut; NotImplementedError for a compression or version that it doesn't know; RuntimeError for an encrypted
member; IndexError and OverflowError for a list of members that is nonsense. Nothing but zipfile's own calls stands where they are caught."""


def read_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """A file's bytes. Raises Failed where it can't be read, or is larger than ``limit``."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise Failed(f"{path} is {size:,} bytes, more than the {limit:,} that are allowed for such a file")
        if not path.is_file():
            raise Failed(f"{path} is no file")
        return path.read_bytes()
    except OSError as error:
        raise Failed(f"{path} can't be read: {error.strerror or error}") from None


class Archive:
    """The members of a zip file, held in memory or on disk; ``where`` names it in errors."""

    def __init__(self, data: bytes | Path, where: str) -> None:
        self.where = where
        _check_directory(data, where)
        try:
            self.file = zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else regular(data))
        except ZIP_ERRORS as error:
            raise Failed(f"{where} is damaged: no whole zip archive ({str(error)[:100]})") from None
        if _of_another(self.file):
            raise Failed(f"{where} is cut short: the only list of members in it is that of a zip file inside it")
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in self.file.infolist():
            self._admit(info)
        total = sum(info.file_size for info in self.members.values())
        if total > MAX_BYTES:
            raise Failed(f"{where} is refused: it would unpack to {total:,} bytes, more than the {MAX_BYTES:,} that are allowed")

    def _admit(self, info: zipfile.ZipInfo) -> None:
        name, where = info.filename, self.where
        if len(self.members) >= MAX_MEMBERS:
            raise Failed(f"{where} is refused: it holds more than {MAX_MEMBERS:,} members")
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts or "\0" in name or name[1:2] == ":":
            raise Failed(f"{where} is refused: its member {name[:80]!r} points outside of the archive")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise Failed(f"{where} is refused: its member {name[:80]!r} is a link")
        if name in self.members:
            raise Failed(f"{where} is refused: it holds two members named {name[:80]!r}")
        if info.file_size > FREE_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size):
            raise Failed(f"{where} is refused: {info.compress_size:,} bytes of {name[:80]!r} would unpack to {info.file_size:,}")
        if info.flag_bits & 1:
            raise Failed(f"{where} is encrypted, which is not read")
        self.members[name] = info

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        """A member's bytes. Raises Failed where it is missing, damaged or larger than ``limit``."""
        if name not in self.members:
            raise Failed(f"{self.where} is damaged: it lacks {name[:80]!r}")
        size = self.members[name].file_size
        if size > limit:
            raise Failed(f"{self.where} is refused: its member {name[:80]!r} is {size:,} bytes, more than the {limit:,} that are allowed")
        try:
            data = self.file.read(name)
        except ZIP_ERRORS as error:
            raise Failed(f"{self.where} is damaged: {name[:80]!r} can't be unpacked ({str(error)[:100]})") from None
        if len(data) != size:
            raise Failed(f"{self.where} is damaged: {name[:80]!r} has {len(data)} bytes and not {size}")
        return data


def _check_directory(data: bytes | Path, where: str) -> None:
    """Refuse a list of members that is too long, before zipfile makes an object of each (a large file may hold millions)."""
    if isinstance(data, bytes):
        tail = data[-(1 << 16) - 100 :]
    else:
        with regular(data).open("rb") as file:
            file.seek(max(0, data.stat().st_size - (1 << 16) - 100))
            tail = file.read()
    sizes = [int.from_bytes(tail[i + 12 : i + 16], "little") for i in _places(tail, b"PK\x05\x06")]
    sizes = [s for s in sizes if s != 0xFFFFFFFF] + [int.from_bytes(tail[i + 40 : i + 48], "little") for i in _places(tail, b"PK\x06\x06")]
    if max(sizes, default=0) > MAX_DIRECTORY:
        raise Failed(f"{where} is refused: its list of members has {max(sizes):,} bytes, more than the {MAX_DIRECTORY:,} that are allowed")


def _places(data: bytes, signature: bytes) -> list[int]:
    found: list[int] = []
    at = data.find(signature)
    while at >= 0 and len(found) < 1000:
        found.append(at)
        at = data.find(signature, at + 1)
    return found


def regular(path: Path) -> Path:
    """The path, where it is a regular file or a link to one: never a device or a pipe, which would not end. Raises Failed."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise Failed(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        raise Failed(f"{path} is no regular file")
    return path


def read_json(data: bytes, where: str) -> Any:
    """JSON of bearable size and depth; raises Failed."""
    if len(data) > MAX_JSON:
        raise Failed(f"{where} is refused: it has {len(data):,} bytes of JSON, more than the {MAX_JSON:,} that are allowed")
    try:
        return json.loads(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise Failed(f"{where} is damaged: it is no JSON ({type(error).__name__}: {str(error)[:100]})") from None


def _of_another(archive: zipfile.ZipFile) -> bool:
    """Whether the list of members found at the end lists none at the beginning: of a file that was cut off behind a zip file that it holds."""
    return min((info.header_offset for info in archive.infolist()), default=0) > 0


def names_in(path: Path) -> list[str]:
    """The names in a zip file, for recognising a format; empty where it is none, or damaged."""
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return []
        _check_directory(path, str(path))
        with zipfile.ZipFile(path) as archive:
            return [] if _of_another(archive) else archive.namelist()[:MAX_MEMBERS]
    except (Failed, *ZIP_ERRORS):
        return []
