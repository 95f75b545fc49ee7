"""Reading pickles without running them: a machine that knows the opcodes and builds only inert records.

``pickle`` calls whatever a file names. This machine never looks a name up: a global is a ``Global`` (two strings), a
call is a ``Made`` that says what would have been called with what. Numpy arrays are then made of their bytes by
``array``, which checks the sizes first. Nothing here imports a class of the file, so a hostile one has nothing to run.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from distillrl.errors import Failed

MAX_OPCODES = 1 << 19
MAX_DEPTH = 200
PLAIN = (str, int, float, bytes, bool, type(None))


def shown(text: object, limit: int = 80) -> str:
    """A file's own words as they may stand in a message: short, and nothing that a terminal would obey."""
    words = str(text)
    printable = "".join(c if c.isprintable() else "?" for c in words[:limit])
    return printable + ("…" if len(words) > limit else "")


class Global:
    """A name in a module: ``module`` and ``name`` as the pickle says them, looked up nowhere."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:400]


class Made:
    """What a call of ``what`` with ``args`` would have made; ``state`` and ``items`` were to be put into it."""

    __slots__ = ("args", "items", "state", "what")

    def __init__(self, what: Any, args: tuple[Any, ...]) -> None:
        self.what, self.args = what, args
        self.state: Any = None
        self.items: list[Any] = []
        """Appended values, or (key, value) pairs."""

    @property
    def name(self) -> str:
        """The full name of what is called, '' where it isn't a plain name; old pickles' copyreg is seen through."""
        if str(self.what) == "copyreg._reconstructor" or str(self.what) == "copy_reg._reconstructor":
            return str(self.args[0]) if self.args and isinstance(self.args[0], Global) else ""
        return str(self.what) if isinstance(self.what, Global) else ""


JOBLIB = "joblib.numpy_pickle.NumpyArrayWrapper"
_RAW = re.compile(r"[?bBhHiIlLqQefdFDuUSVc<>=|0-9]{1,12}")
"""Types whose arrays are their bytes: no objects."""


class _Refused(Exception):
    """Why the machine stopped."""


def read(data: bytes, where: str, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The inert tree of one pickle; ``where`` names it in errors. Raises Failed, runs nothing, whatever the bytes are."""
    return read_stream(io.BytesIO(data), where, persistent)


def read_stream(file: io.BytesIO, where: str, persistent: Callable[[Any], Any] | None = None) -> Any:
    """As ``read``, of the pickle at the file's position; the position is behind it afterwards."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools decodes old texts, whose odd escapes Python warns of
            return _Machine(persistent).run(file)
    except _Refused as error:
        raise Failed(f"{where} is refused: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, EOFError, MemoryError, RecursionError) as error:
        raise Failed(f"{where} is no whole pickle ({type(error).__name__}: {error})") from None


class _Machine:
    """A stack, marks and a memo."""

    def __init__(self, persistent: Callable[[Any], Any] | None) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent
        self.file: io.BytesIO | None = None

    def run(self, file: io.BytesIO) -> Any:
        """The value that the pickle ends with."""
        self.file = file
        for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            if count > MAX_OPCODES:
                raise _Refused(f"it has more than {MAX_OPCODES} steps")
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                self.stack.append(arg)
            elif name in _STEPS:
                _STEPS[name](self, arg)
            elif name not in {"PROTO", "FRAME"}:
                raise _Refused(f"its step {name} has no place in a file of numbers")
        raise _Refused("it has no end")

    def cut(self) -> list[Any]:
        """The values since the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, arg: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.cut()

    def pop_mark(self, arg: Any) -> None:
        self.cut()

    def mark(self, arg: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def tuples(self, count: int) -> None:
        values = tuple(self.stack[len(self.stack) - count :]) if count else ()
        if len(values) != count:
            raise _Refused("its stack is empty")
        del self.stack[len(self.stack) - count :]
        self.stack.append(values)

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target.items if isinstance(target, Made) else target).extend(values)

    def put_items(self, values: list[Any]) -> None:
        target, pairs = self.stack[-1], list(zip(values[::2], values[1::2], strict=True))
        if isinstance(target, Made):
            target.items.extend(pairs)
        else:
            for key, value in pairs:
                target[_key(key)] = value

    def make(self, what: Any, args: Any) -> None:
        if not isinstance(args, tuple):
            raise _Refused("it calls something with no list of arguments")
        self.stack.append(Made(what, args))

    def build(self, arg: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Made):
            target.state = state
            if target.name == JOBLIB:
                self.raw(target)

    def raw(self, target: Made) -> None:
        """Joblib's array, whose bytes stand in the file behind the step that fills its record in: as if numpy had pickled it."""
        told = target.state if isinstance(target.state, dict) else {}
        kind, shape = told.get("dtype"), told.get("shape")
        words = kind.args[0] if isinstance(kind, Made) and kind.name == "numpy.dtype" and kind.args else None
        if not isinstance(words, str) or not _RAW.fullmatch(words) or not isinstance(shape, tuple) or len(shape) > 16 or not all(type(n) is int and n >= 0 for n in shape):
            raise _Refused("an array of joblib's is of objects, or of no shape")
        assert self.file is not None
        if told.get("numpy_array_alignment_bytes") is not None:
            self.file.seek(int.from_bytes(self.file.read(1), "little"), io.SEEK_CUR)
        size = math.prod(shape) * np.dtype(words).itemsize
        data = self.file.read(min(size, self.file.getbuffer().nbytes))
        if len(data) != size:
            raise _Refused(f"an array of joblib's claims {size:,} bytes, which are not there")
        target.what, target.args = Global("numpy._core.multiarray", "_reconstruct"), ()
        target.state = (1, shape, kind, told.get("order") == "F", data)

    def name_on_stack(self, arg: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise _Refused("it names something by no text")
        self.stack.append(Global(module, name))

    def asked(self, identifier: Any) -> None:
        if self.persistent is None:
            raise _Refused("it refers to something outside of it")
        self.stack.append(self.persistent(identifier))


def _key(key: Any) -> Any:
    if isinstance(key, Global) or type(key) in PLAIN:
        return key
    if isinstance(key, tuple) and len(key) < 16 and all(type(part) in PLAIN for part in key):
        return key
    raise _Refused(f"a {type(key).__name__} is no name of an entry")


def _reduce(m: _Machine, arg: Any) -> None:
    args, what = m.stack.pop(), m.stack.pop()
    m.make(what, args)


def _new_with_names(m: _Machine, arg: Any) -> None:
    named, args, what = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.make(what, (*args, named) if named else args)


def _object(m: _Machine, arg: Any) -> None:
    what, *args = m.cut()
    m.make(what, tuple(args))


def _instance(m: _Machine, arg: str) -> None:
    m.make(Global(*arg.split(" ", 1)), tuple(m.cut()))


def _dict(m: _Machine, arg: Any) -> None:
    values = m.cut()
    m.stack.append({})
    m.put_items(values)


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: m.push(tuple(m.cut())),
    "TUPLE1": lambda m, _: m.tuples(1),
    "TUPLE2": lambda m, _: m.tuples(2),
    "TUPLE3": lambda m, _: m.tuples(3),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "LIST": lambda m, _: m.push(m.cut()),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.cut()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "DICT": _dict,
    "SETITEM": lambda m, _: m.put_items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.put_items(m.cut()),
    "EMPTY_SET": lambda m, _: m.stack.append([]),
    "ADDITEMS": lambda m, _: m.extend(m.cut()),
    "FROZENSET": lambda m, _: m.push(m.cut()),
    "GLOBAL": lambda m, arg: m.stack.append(Global(*arg.split(" ", 1))),
    "STACK_GLOBAL": _Machine.name_on_stack,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_with_names,
    "OBJ": _object,
    "INST": _instance,
    "BUILD": _Machine.build,
    "PERSID": lambda m, arg: m.asked(arg),
    "BINPERSID": lambda m, _: m.asked(m.stack.pop()),
    "PUT": lambda m, arg: m.memo.__setitem__(arg, m.stack[-1]),
    "BINPUT": lambda m, arg: m.memo.__setitem__(arg, m.stack[-1]),
    "LONG_BINPUT": lambda m, arg: m.memo.__setitem__(arg, m.stack[-1]),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "GET": lambda m, arg: m.stack.append(m.memo[arg]),
    "BINGET": lambda m, arg: m.stack.append(m.memo[arg]),
    "LONG_BINGET": lambda m, arg: m.stack.append(m.memo[arg]),
}


# ── what an inert tree says ───────────────────────────────────────────────────────────────────────────────────────

_NUMPY = ("numpy.core.", "numpy._core.")
_DTYPES = frozenset("?bBhHiIlLqQefd")


def entries(value: Any) -> dict[Any, Any] | None:
    """A dict or an OrderedDict of a tree as a dict; None for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Made) and value.name == "collections.OrderedDict":
        pairs = list(value.items)
        if value.args and isinstance(value.args[0], list):
            pairs = [tuple(p) for p in value.args[0] if isinstance(p, (list, tuple)) and len(p) == 2] + pairs
        return {k: v for k, v in pairs if type(k) in PLAIN}
    return None


def dtype(value: Any) -> np.dtype[Any] | None:
    """The numpy type that a tree describes (numbers and bools alone), else None."""
    if not isinstance(value, Made) or value.name != "numpy.dtype" or not value.args or not isinstance(value.args[0], str):
        return None
    try:
        made = np.dtype(value.args[0])
    except (TypeError, ValueError):
        return None
    if made.char not in _DTYPES:
        return None
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    return made.newbyteorder(">") if order == ">" else made


def array(value: Any, where: str) -> np.ndarray:
    """The numpy array or number of a tree, its size checked before it is made. Raises Failed where it isn't one."""
    if isinstance(value, (bool, int, float)):
        return np.asarray(value)
    made: tuple[Any, Any, Any, str] | None = None
    if isinstance(value, Made) and value.name.startswith(_NUMPY):
        name = value.name.rsplit(".", 1)[-1]
        if name == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
            _, shape, kind, fortran, data = value.state
            made = (data, kind, shape, "F" if fortran else "C")
        elif name == "scalar" and len(value.args) == 2:
            made = (value.args[1], value.args[0], (), "C")
        elif name == "_frombuffer" and len(value.args) == 4:
            made = value.args
    if made is None:
        raise Failed(f"{where} is no array of numbers")
    data, kind, shape, order = made
    data, kind = _as_bytes(data), dtype(kind)
    if kind is None or data is None or not isinstance(shape, tuple) or not all(type(s) is int and s >= 0 for s in shape) or order not in ("C", "F"):
        raise Failed(f"{where} is no array of numbers")
    if len(shape) > 16 or math.prod(shape) * kind.itemsize != len(data):
        raise Failed(f"{where} claims the shape {list(shape)[:16]}, but holds {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C").astype(kind.newbyteorder("="))


def _as_bytes(data: Any) -> bytes | None:
    """The bytes of an array; protocols before 3 hold them as text that ``_codecs.encode`` would turn into bytes."""
    if isinstance(data, Made) and data.name in {"_codecs.encode", "builtins.bytearray", "builtins.bytes"} and data.args:
        data = data.args[0]
    if isinstance(data, str):
        try:
            return data.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return bytes(data) if isinstance(data, (bytes, bytearray)) else None
