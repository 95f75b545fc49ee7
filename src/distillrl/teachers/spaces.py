"""gym's and gymnasium's spaces out of an SB3 file, without either library: from the inert pickle, else from readable JSON."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distillrl.errors import Failed
from distillrl.records import ActionSpace, Group
from distillrl.teachers import pickles
from distillrl.teachers.pickles import Made

MAX_ENTRIES = 1 << 24
_KINDS = {"Box": "box", "Discrete": "discrete", "MultiDiscrete": "multidiscrete", "MultiBinary": "multibinary", "Dict": "dict", "Tuple": "tuple"}
_TYPES = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"})


@dataclass(frozen=True)
class Space:
    """One space: ``kind`` is box, discrete, multidiscrete, multibinary, dict or tuple; the rest is as gymnasium has it."""

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    n: int = 0
    start: int = 0
    nvec: tuple[int, ...] = ()
    parts: Mapping[str, Space] = field(default_factory=dict)

    @property
    def image(self) -> bool:
        """Whether SB3 takes it for an image: three axes, uint8, 0 to 255."""
        bounded = self.low is not None and self.high is not None and bool(np.all(self.low == 0) and np.all(self.high == 255))
        return self.kind == "box" and len(self.shape) == 3 and self.dtype == "uint8" and bounded

    @property
    def width(self) -> int:
        """How many numbers a network sees of it, categories as one-hot."""
        if self.kind == "dict":
            return sum(part.width for part in self.parts.values())
        return {"discrete": self.n, "multidiscrete": sum(self.nvec)}.get(self.kind) or math.prod(self.shape)

    def groups(self) -> dict[str, Group]:
        """The observation groups: the parts of a dict by name, in the file's order, or one group ``obs``."""
        return {name: part._group() for name, part in self.leaves().items()}

    def leaves(self) -> dict[str, Space]:
        """The parts of a dict, or the space itself as ``obs``."""
        return dict(self.parts) if self.kind == "dict" else {"obs": self}

    def _group(self) -> Group:
        if self.kind == "discrete":
            return Group((), self.dtype, (self.n,))
        if self.kind == "multidiscrete":
            return Group(self.shape, self.dtype, self.nvec)
        if self.kind == "box" and self.low is not None and self.high is not None:
            low, high = np.unique(self.low), np.unique(self.high)
            if len(low) == len(high) == 1 and np.isfinite([low[0], high[0]]).all():
                return Group(self.shape, self.dtype, (), float(low[0]), float(high[0]))
        return Group(self.shape, self.dtype)

    def action(self, where: str) -> ActionSpace:
        """As an action space; raises Failed where it can't be one."""
        if self.kind == "discrete":
            return ActionSpace("discrete", n=self.n, start=self.start, dtype=self.dtype)
        if self.kind == "multidiscrete" and len(self.shape) == 1:
            return ActionSpace("multidiscrete", self.shape, nvec=self.nvec, dtype=self.dtype)
        if self.kind == "multibinary" and len(self.shape) == 1:
            return ActionSpace("multibinary", self.shape, dtype=self.dtype)
        if self.kind == "box" and self.low is not None and self.high is not None:
            low, high = (tuple(float(v) for v in bound.reshape(-1)) for bound in (self.low, self.high))
            return ActionSpace("box", self.shape, low=low, high=high, dtype=self.dtype)
        raise Failed(f"{where}: an action of a {self.kind} space can't be chosen; Discrete, MultiDiscrete, MultiBinary and Box can")

    def to_gymnasium(self) -> Any:
        """The space as an object, for classes of the user's own that want one."""
        from gymnasium import spaces

        if self.kind == "dict":
            return spaces.Dict([(name, part.to_gymnasium()) for name, part in self.parts.items()])
        if self.kind == "box":
            assert self.low is not None
            assert self.high is not None
            return spaces.Box(self.low, self.high, self.shape, np.dtype(self.dtype).type)
        if self.kind == "discrete":
            return spaces.Discrete(self.n, start=self.start)
        return spaces.MultiDiscrete(list(self.nvec)) if self.kind == "multidiscrete" else spaces.MultiBinary(list(self.shape))

    def __str__(self) -> str:
        if self.kind == "dict":
            return "Dict(" + ", ".join(f"{k}: {v}" for k, v in self.parts.items()) + ")"
        if self.kind == "box":
            return f"Box({_bound(self.low)}, {_bound(self.high)}, {self.shape}, {self.dtype})"
        if self.kind == "discrete":
            return f"Discrete({self.n}" + (f", start={self.start})" if self.start else ")")
        return f"MultiDiscrete({list(self.nvec)})" if self.kind == "multidiscrete" else f"MultiBinary({list(self.shape)})"


def serialized(value: Any, where: str) -> Any:
    """The inert tree of an entry ``{":type:", ":serialized:": base64 of a pickle, …}`` of SB3's JSON; raises Failed."""
    text = value.get(":serialized:") if isinstance(value, Mapping) else None
    if not isinstance(text, str):
        raise Failed(f"{where} has no pickle")
    try:
        return pickles.read(base64.b64decode(text, validate=False), where)
    except (binascii.Error, ValueError) as error:
        raise Failed(f"{where} is damaged ({error})") from None


def of_json(value: Any, where: str) -> Space:
    """The space of SB3's JSON entry: its inert pickle is exact; where that can't be read, the readable copies beside it."""
    if not isinstance(value, Mapping):
        raise Failed(f"{where} is missing or damaged: {str(value)[:80]!r}")
    try:
        return of_tree(serialized(value, where), where)
    except Failed as error:
        try:
            return _readable(value, where)
        except Failed:
            raise error from None


# ── from the inert pickle ─────────────────────────────────────────────────────────────────────────────────────────


def of_tree(value: Any, where: str, depth: int = 0) -> Space:
    """The space that an inert tree describes; raises Failed where it is none."""
    if not isinstance(value, Made) or value.name.split(".")[0] not in {"gym", "gymnasium", "shimmy"} or depth > 4:
        raise Failed(f"{where} is no space of gym or gymnasium")
    kind = _KINDS.get(value.name.rsplit(".", 1)[-1])
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    if kind is None or not isinstance(state, dict):
        raise Failed(f"{where} is a {pickles.shown(value.name)}, which no policy here can take")
    if kind in {"dict", "tuple"}:
        return _parts(kind, state.get("spaces"), where, depth)
    described = pickles.dtype(state.get("dtype"))
    made = Space(kind, dtype=described.name if described is not None else "int64")
    if kind == "discrete":
        return _checked(replace(made, n=_int(state.get("n"), where), start=_int(state.get("start", 0), where)), where)
    if kind == "multidiscrete":
        nvec = pickles.array(state.get("nvec"), where)
        return _checked(replace(made, shape=nvec.shape, nvec=tuple(int(n) for n in nvec.reshape(-1))), where)
    if kind == "multibinary":
        n = state.get("n")
        shape = tuple(n) if isinstance(n, (list, tuple)) else (_int(n, where),) if not isinstance(n, Made) else tuple(int(v) for v in np.atleast_1d(pickles.array(n, where)))
        return _checked(replace(made, shape=shape), where)
    low, high = (pickles.array(state.get(key), where) for key in ("low", "high"))
    said = state.get("_shape", state.get("shape"))
    return _checked(replace(made, shape=tuple(said) if isinstance(said, (list, tuple)) else low.shape, low=low, high=high), where)


def _parts(kind: str, spaces: Any, where: str, depth: int) -> Space:
    found = pickles.entries(spaces) if kind == "dict" else dict(enumerate(spaces)) if isinstance(spaces, (list, tuple)) else None
    if not found or len(found) > 1000:
        raise Failed(f"{where} is a {kind} space without parts")
    parts = {str(k): of_tree(v, f"{where}[{pickles.shown(k, 40)!r}]", depth + 1) for k, v in found.items()}
    if any(k != pickles.shown(k) for k in parts):
        raise Failed(f"{where} is refused: a name of its parts is too long or not printable")
    if any(p.kind in {"dict", "tuple"} for p in parts.values()):
        raise Failed(f"{where} is a {kind} space of {kind} spaces, which SB3 doesn't take either")
    return Space("dict", dtype="", parts=parts)


def _int(value: Any, where: str) -> int:
    if isinstance(value, Made):
        value = pickles.array(value, where).item()
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Failed(f"{where} is damaged: a whole number is right where {str(value)[:40]!r} stands")
    return value


def _checked(space: Space, where: str) -> Space:
    good = all(type(s) is int and s >= 0 for s in space.shape) and math.prod(space.shape) <= MAX_ENTRIES and space.dtype in _TYPES
    if space.kind == "box":
        good = good and space.low is not None and space.high is not None and space.low.shape == space.high.shape == space.shape
        good = good and not any(bound is None or np.isnan(bound).any() for bound in (space.low, space.high))
    if space.kind == "discrete":
        good = good and 0 < space.n <= MAX_ENTRIES
    if space.kind == "multidiscrete":
        good = good and len(space.nvec) > 0 and all(0 < n <= MAX_ENTRIES for n in space.nvec) and sum(space.nvec) <= MAX_ENTRIES
    if not good:
        raise Failed(f"{where} is damaged: its bounds, shape and type don't fit each other")
    return space


# ── from readable JSON ────────────────────────────────────────────────────────────────────────────────────────────


def _readable(value: Mapping[str, Any], where: str) -> Space:
    """From the attributes beside the pickle: numpy's own text of bounds, so to 8 digits."""
    match = re.search(r"gym(?:nasium)?\.spaces\.\w+\.(\w+)'", str(value.get(":type:")))
    kind = _KINDS.get(match.group(1)) if match else None
    dtype = str(value.get("dtype", "int64"))
    if kind == "discrete":
        return _checked(Space("discrete", dtype=dtype, n=_int(value.get("n"), where), start=_int(value.get("start", 0), where)), where)
    if kind == "multidiscrete":
        nvec = _whole(value.get("nvec"), where)
        return _checked(Space("multidiscrete", (len(nvec),), dtype, nvec=nvec), where)
    if kind == "multibinary":
        shape = _whole(value.get("n", value.get("_shape")), where)
        return _checked(Space("multibinary", shape, dtype), where)
    if kind == "box":
        shape = _whole(value.get("_shape", value.get("shape")), where)
        low, high = (_filled(value.get(key), shape, dtype, where) for key in ("low", "high"))
        return _checked(Space("box", shape, dtype, low, high), where)
    raise Failed(f"{where} is a {pickles.shown(value.get(':type:'))}, whose text doesn't say enough")


def _numbers(text: Any, where: str) -> list[float]:
    if isinstance(text, (list, tuple)):
        text = " ".join(map(str, text))
    try:
        return [float(part) for part in re.sub(r"[\[\](),]", " ", str(text)).split()]
    except ValueError:
        raise Failed(f"{where} is damaged: {str(text)[:80]!r} are no numbers") from None


def _whole(text: Any, where: str) -> tuple[int, ...]:
    numbers = _numbers(text, where)
    if not all(math.isfinite(n) and n == math.floor(n) for n in numbers):
        raise Failed(f"{where} is damaged: {pickles.shown(text)!r} are no whole numbers")
    return tuple(int(n) for n in numbers)


def _filled(text: Any, shape: tuple[int, ...], dtype: str, where: str) -> np.ndarray:
    """An array of numpy's text; of a long one, which numpy cuts with «...», only where all that is shown is equal."""
    count = math.prod(shape)
    shown = _numbers(str(text).replace("...", " "), where)
    if dtype not in _TYPES or count > MAX_ENTRIES:
        raise Failed(f"{where} is damaged: its type or its shape can't be")
    if len(shown) == count and "..." not in str(text):
        return np.array(shown, dtype).reshape(shape)
    if "..." in str(text) and shown and len(set(shown)) == 1:
        return np.full(shape, shown[0], dtype)
    raise Failed(f"{where} is damaged: its bounds are cut or don't fit its shape {list(shape)}")


def _bound(values: np.ndarray | None) -> str:
    if values is None:
        return "?"
    distinct = np.unique(values)
    if len(distinct) == 1:
        return f"{distinct[0]:g}"
    shown = [f"{v:g}" for v in values.reshape(-1)[:6]]
    return "[" + ", ".join(shown) + ("…]" if values.size > 6 else "]")
