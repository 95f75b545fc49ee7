"""The little YAML that RL Zoo writes (``config.yml``, ``args.yml``), read by hand: lists, maps and plain values, never an object.

The files begin with ``!!python/object/apply:collections.OrderedDict``, which ``yaml.safe_load`` refuses and
``yaml.unsafe_load`` would run. Tags are skipped here, anchors and aliases are not followed.
"""

from __future__ import annotations

import re
from typing import Any

from distillrl.errors import Failed

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
_KEY = re.compile(r"""('[^']{0,200}'|"[^"]{0,200}"|[\w./ -]{1,200}?):(?:\s+|$)""")
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False, "True": True, "False": False, "None": None}


def read(data: bytes, where: str) -> dict[str, Any]:
    """The mapping of a file, or the pairs of its OrderedDict; raises Failed where it isn't one."""
    if len(data) > MAX_BYTES:
        raise Failed(f"{where} is refused: {len(data):,} bytes, more than {MAX_BYTES:,}")
    lines = [
        (len(line) - len(line.lstrip(" ")), line.strip())
        for line in data.decode("utf-8", errors="replace").splitlines()
        if line.strip() and not line.lstrip().startswith("#") and line.strip() != "---" and not line.startswith(("%", "!!"))
    ]
    if not lines:
        return {}
    try:
        value, rest = _block(lines, 0, lines[0][0], 0)
    except (RecursionError, IndexError, ValueError) as error:
        raise Failed(f"{where} can't be read ({error})") from None
    if rest != len(lines):
        raise Failed(f"{where} can't be read: line {lines[rest][1][:60]!r} is out of place")
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) and value[0] and isinstance(value[0][0], list):
        value = value[0]
    if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in value):
        value = dict(value)
    if not isinstance(value, dict):
        raise Failed(f"{where} can't be read: it is no list of names and values")
    return value


def _block(lines: list[tuple[int, str]], at: int, indent: int, depth: int) -> tuple[Any, int]:
    """The list, map or value that begins at line ``at``, and the line after it."""
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    text = lines[at][1]
    if text == "-" or text.startswith("- "):
        return _items(lines, at, indent, depth)
    if _KEY.match(text):
        return _pairs(lines, at, indent, depth)
    words = [text]
    at += 1
    while at < len(lines) and lines[at][0] >= indent and not lines[at][1].startswith("- ") and not _KEY.match(lines[at][1]):
        words.append(lines[at][1])
        at += 1
    return _value(" ".join(words)), at


def _items(lines: list[tuple[int, str]], at: int, indent: int, depth: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    while at < len(lines) and lines[at][0] == indent and (lines[at][1] == "-" or lines[at][1].startswith("- ")):
        inner = lines[at][1][1:].lstrip()
        if not inner or inner.startswith("!!"):
            if at + 1 < len(lines) and lines[at + 1][0] > indent:
                value, at = _block(lines, at + 1, lines[at + 1][0], depth + 1)
            else:
                value, at = None, at + 1
        else:
            inside = indent + len(lines[at][1]) - len(inner)
            lines[at] = (inside, inner)
            value, at = _nested(lines, at, inside, indent, depth)
        found.append(value)
    return found, at


def _nested(lines: list[tuple[int, str]], at: int, inside: int, indent: int, depth: int) -> tuple[Any, int]:
    """What stands behind a dash; a plain value may go on in lines that are further in than the dash."""
    if lines[at][1] == "-" or lines[at][1].startswith("- ") or _KEY.match(lines[at][1]):
        return _block(lines, at, inside, depth + 1)
    words = [lines[at][1]]
    at += 1
    while at < len(lines) and lines[at][0] > indent:
        words.append(lines[at][1])
        at += 1
    return _value(" ".join(words)), at


def _pairs(lines: list[tuple[int, str]], at: int, indent: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while at < len(lines) and lines[at][0] == indent and (match := _KEY.match(lines[at][1])):
        key, rest = match.group(1).strip("'\""), lines[at][1][match.end() :].strip()
        at += 1
        deeper = at < len(lines) and (lines[at][0] > indent or (lines[at][0] == indent and lines[at][1].startswith("- ")))
        if rest and not rest.startswith("!!") and rest not in {"|", ">", "|-", ">-"}:
            words = [rest]
            while at < len(lines) and lines[at][0] > indent:
                words.append(lines[at][1])
                at += 1
            found[key] = _value(" ".join(words))
        elif deeper:
            found[key], at = _block(lines, at, lines[at][0], depth + 1)
        else:
            found[key] = None
    return found, at


def _value(text: str) -> Any:
    """A plain value; flow lists ``[a, b]`` of plain values, everything else that is in brackets stays text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace("''", "'") if text[0] == "'" else text[1:-1]
    if re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d{1,18}\.?\d{0,18}|\.\d{1,18})([eE][-+]?\d{1,3})?", text):
        return float(text)
    if text.startswith("[") and text.endswith("]") and not any(c in text[1:-1] for c in "[]{}"):
        return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    return {} if text == "{}" else text
