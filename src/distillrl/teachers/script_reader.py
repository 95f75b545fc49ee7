"""Reads TorchScript's code as text and writes down the operators that it would use.

A TorchScript file holds its modules' methods as a small, typed subset of Python. Here the text is parsed into a syntax
tree and followed step by step, with the closed list of ``operators`` as the only things that can be called: nothing of
it is compiled or run by Python or by torch.jit. Branches are decided by shapes and constants; a branch that depends on
an observation's numbers, an unknown operator or a write into part of a buffer is refused (``--trust`` runs the file).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distillrl.errors import Failed, Missing
from distillrl.teachers.graph import Ref
from distillrl.teachers.operators import DTYPES, OPERATORS
from distillrl.teachers.script_plain import PLAIN, QUESTIONS
from distillrl.teachers.tracing import Tracer

MAX_CODE = 8 << 20
MAX_STATEMENTS = 100_000
MAX_DEPTH = 60


@dataclass(eq=False)
class Module:
    """An object of the file: its class by name, its attributes as data, and where it lies in the tree."""

    kind: str
    attributes: dict[str, Any]
    path: str = ""


@dataclass(frozen=True)
class Function:
    """A free function of the script, by its full name."""

    name: str


class _Return(Exception):
    """A method's value on its way out."""

    def __init__(self, value: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.value, self.names = value, names


@dataclass
class Code:
    """The syntax trees of an archive's code, parsed when they are needed."""

    text: Mapping[str, Callable[[], bytes]]
    """``__torch__.torch.nn.functional`` → its bytes."""
    parsed: dict[str, dict[str, ast.AST]] = field(default_factory=dict)

    def find(self, dotted: str) -> ast.AST | None:
        """The class or function of this full name."""
        module, _, name = dotted.rpartition(".")
        if module not in self.parsed:
            if module not in self.text:
                return None
            self.parsed[module] = _parsed(self.text[module](), module)
        return self.parsed[module].get(name)

    def method(self, kind: str, name: str) -> ast.FunctionDef:
        """A method of a class; raises Missing where the file has none."""
        found = self.find(kind)
        if isinstance(found, ast.ClassDef):
            for item in found.body:
                if isinstance(item, ast.FunctionDef) and item.name == name:
                    return item
        raise Missing(f"the script has no method {name!r} of {kind}")


def _parsed(data: bytes, module: str) -> dict[str, ast.AST]:
    try:
        tree = ast.parse(data.decode())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Failed(f"the code of {module} in the file is damaged: {str(error)[:100]}") from None
    return {item.name: item for item in tree.body if isinstance(item, (ast.ClassDef, ast.FunctionDef))}


class Reader:
    """Follows a method. ``states`` are buffers (by path) that are carried from step to step: Refs given by the caller."""

    def __init__(self, code: Code, tracer: Tracer, constants: tuple[Any, ...], states: Mapping[str, Ref]) -> None:
        self.code, self.tracer, self.file_constants = code, tracer, constants
        self.buffers: dict[str, Ref] = dict(states)
        self.written: dict[str, Ref] = {}
        self.home: dict[str, str] = {}
        """Value name → path of the buffer that it is."""
        self.changed: dict[str, Ref] = {}
        """Value name → what it became by an operator that works in place."""
        self.views: set[str] = set()
        self.statements = self.depth = 0
        for path, ref in self.buffers.items():
            self.home[ref.name] = path

    def call(self, module: Module, name: str, args: list[Any], kwargs: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
        """A method's value, and the names that its return statement gives to parts of it."""
        value = self._function(self.code.method(module.kind, name), [module, *args], kwargs)
        return value

    def _function(self, function: ast.FunctionDef, args: list[Any], kwargs: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Failed("the script calls itself too deeply")
        names = [a.arg for a in function.args.args]
        scope: dict[str, Any] = dict(zip(names, args, strict=False))
        scope.update(kwargs)
        for name, default in zip(names[::-1], function.args.defaults[::-1], strict=False):
            if name not in scope:
                scope[name] = self.value(default, {})
        if set(names) - set(scope):
            raise Failed(f"the script calls {function.name} without {', '.join(sorted(set(names) - set(scope)))}")
        try:
            self.block(function.body, scope)
        except _Return as done:
            return done.value, done.names
        finally:
            self.depth -= 1
        return None, ()

    # ── statements ──

    def block(self, body: list[ast.stmt], scope: dict[str, Any]) -> None:
        """Follow statements in order."""
        for statement in body:
            self.statements += 1
            if self.statements > MAX_STATEMENTS:
                raise Failed(f"the script takes more than {MAX_STATEMENTS:,} steps")
            self.statement(statement, scope)

    def statement(self, node: ast.stmt, scope: dict[str, Any]) -> None:
        """Follow one statement."""
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            self._assign(node.targets[0], self.value(node.value, scope), scope)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self.value(node.value, scope), scope)
        elif isinstance(node, ast.Expr):
            self.value(node.value, scope)
        elif isinstance(node, ast.Return):
            names = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            value = self.value(node.value, scope) if node.value is not None else None
            raise _Return(value, tuple(n.id if isinstance(n, ast.Name) else "" for n in names))
        elif isinstance(node, ast.If):
            self.block(node.body if self.decided(node.test, scope) else node.orelse, scope)
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            items = self.value(node.iter, scope)
            for item in items if isinstance(items, (list, tuple, range)) else self._no(node):
                scope[node.target.id] = item
                self.block(node.body, scope)
        elif isinstance(node, ast.While):
            while self.decided(node.test, scope):
                self.statements += 1
                self.block(node.body, scope)
        elif not isinstance(node, ast.Pass):
            self._no(node)

    def decided(self, test: ast.expr, scope: dict[str, Any]) -> bool:
        """A branch's condition, which must not depend on an observation."""
        value = self.value(test, scope)
        if isinstance(value, (Ref, Module)):
            raise Missing("the script decides by an observation's numbers which way it goes")
        return bool(value)

    def _assign(self, target: ast.expr, value: Any, scope: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (list, tuple)) and len(target.elts) == len(value):
            for part, item in zip(target.elts, value, strict=True):
                self._assign(part, item, scope)
        elif isinstance(target, ast.Attribute):
            owner = self.value(target.value, scope)
            if not isinstance(owner, Module) or not isinstance(value, Ref):
                raise Missing("the script changes an attribute that is no tensor")
            self._write(f"{owner.path}.{target.attr}".lstrip("."), value)
        else:
            self._no(target)

    def _write(self, path: str, value: Ref) -> None:
        self.written[path] = self.now(value)

    # ── expressions ──

    def now(self, value: Any) -> Any:
        """A value after the operators that worked on it in place."""
        seen = 0
        while isinstance(value, Ref) and value.name in self.changed and seen < 1000:
            value, seen = self.changed[value.name], seen + 1
        return value

    def value(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        """The value of an expression: a Ref, a number, a list, a Module or None."""
        kind = type(node).__name__
        follow = getattr(self, f"_expr_{kind.lower()}", None)
        return self.now(follow(node, scope) if follow is not None else self._no(node))

    def _expr_constant(self, node: ast.Constant, scope: dict[str, Any]) -> Any:
        return node.value

    def _expr_name(self, node: ast.Name, scope: dict[str, Any]) -> Any:
        if node.id in scope:
            return scope[node.id]
        if node.id in {"inf", "nan"}:
            return math.inf if node.id == "inf" else math.nan
        raise Missing(f"the script reads {node.id!r}, which it hasn't set")

    def _expr_tuple(self, node: ast.Tuple, scope: dict[str, Any]) -> Any:
        return tuple(self.value(e, scope) for e in node.elts)

    def _expr_list(self, node: ast.List, scope: dict[str, Any]) -> Any:
        return [self.value(e, scope) for e in node.elts]

    def _expr_dict(self, node: ast.Dict, scope: dict[str, Any]) -> Any:
        return {self.value(k, scope): self.value(v, scope) for k, v in zip(node.keys, node.values, strict=True) if k is not None}

    def _expr_unaryop(self, node: ast.UnaryOp, scope: dict[str, Any]) -> Any:
        value = self.value(node.operand, scope)
        if isinstance(node.op, ast.USub) and isinstance(value, (int, float)):
            return -value
        if isinstance(node.op, ast.Not) and not isinstance(value, (Ref, Module)):
            return not value
        return self._no(node)

    def _expr_subscript(self, node: ast.Subscript, scope: dict[str, Any]) -> Any:
        value, index = self.value(node.value, scope), self.value(node.slice, scope)
        if isinstance(value, (list, tuple, dict)) and isinstance(index, (int, str)):
            return value[index]  # type: ignore[index]  # a list's number or a dict's name
        return self._no(node)

    def _expr_attribute(self, node: ast.Attribute, scope: dict[str, Any]) -> Any:
        if isinstance(node.value, ast.Name) and node.value.id == "CONSTANTS" and node.attr[:1] == "c" and node.attr[1:].isdigit():
            value = self.file_constants[int(node.attr[1:])]
            return self.tensor(f"CONSTANTS.{node.attr}", value) if isinstance(value, Tensor) else value
        dotted = _dotted(node)
        if dotted is not None and dotted.startswith("__torch__."):
            return Function(dotted)
        return self.attribute(self.value(node.value, scope), node.attr)

    def attribute(self, owner: Any, name: str) -> Any:
        """An attribute of a module: a tensor of the file, a child, or plain data."""
        if not isinstance(owner, Module):
            raise Missing(f"the script reads .{name} of what is no module")
        path = f"{owner.path}.{name}".lstrip(".")
        if path in self.written:
            return self.written[path]
        if name not in owner.attributes:
            raise Missing(f"the script reads the attribute {path!r}, which the file doesn't have")
        return self._given(path, owner.attributes[name])

    def _given(self, path: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.tensor(path, value)
        if isinstance(value, Module):
            return Module(value.kind, value.attributes, path)
        if isinstance(value, (list, tuple)):
            return [self._given(f"{path}.{i}", v) for i, v in enumerate(value)]
        return value

    def tensor(self, path: str, value: Tensor) -> Ref:
        """A tensor of the file as a value, one for each path."""
        if path not in self.buffers:
            self.buffers[path] = self.tracer.constant(value, path if path not in self.tracer.values else "")
            self.home[self.buffers[path].name] = path
        return self.buffers[path]

    def _expr_call(self, node: ast.Call, scope: dict[str, Any]) -> Any:
        dotted = _dotted(node.func)
        if dotted == "getattr" and len(node.args) == 2:
            return self.attribute(self.value(node.args[0], scope), str(self.value(node.args[1], scope)))
        if dotted in {"annotate", "unchecked_cast"} and len(node.args) == 2:
            return self.value(node.args[1], scope)
        if dotted == "uninitialized":
            return None
        args = [self.value(a, scope) for a in node.args]
        kwargs = {k.arg: self.value(k.value, scope) for k in node.keywords if k.arg}
        if dotted is not None and dotted.startswith("__torch__."):
            return self._free(dotted, args, kwargs)
        if dotted is not None and dotted.startswith(("torch.", "ops.prim.", "ops.aten.")):
            return self.operator(dotted.rpartition(".")[2], args, kwargs)
        if dotted in {"int", "float", "bool", "str", "range", "tuple", "list"}:
            return self._plain(dotted, args)
        if isinstance(node.func, ast.Name) and isinstance(scope.get(node.func.id), Function):
            return self._free(scope[node.func.id].name, args, kwargs)
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value, scope)
            if isinstance(owner, Module):
                return self._method(owner, node.func.attr, args, kwargs)
        return self._no(node)

    def _free(self, dotted: str, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
        found = self.code.find(dotted)
        if isinstance(found, ast.FunctionDef):
            return self._function(found, args, kwargs)[0]
        raise Missing(f"the script makes a {dotted}")

    def _method(self, owner: Module, name: str, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
        value, _ = self.call(owner, name, args, kwargs)
        value = self.now(value)
        first = value
        while isinstance(first, (tuple, list)) and first:
            first = first[0]
        if isinstance(first, Ref) and owner.path:
            self.tracer.titles.setdefault(first.name, owner.path)
        return value

    def _plain(self, name: str, args: list[Any]) -> Any:
        if any(isinstance(a, (Ref, Module)) for a in args):
            if name in {"int", "float"} and isinstance(args[0], Ref) and args[0].name in self.tracer.constants:
                return {"int": int, "float": float}[name](self.tracer.constants[args[0].name])
            raise Missing(f"the script makes a plain {name} of an observation")
        if name == "range" and len(range(*args)) > MAX_STATEMENTS:
            raise Failed("the script counts without end")
        return {"int": int, "float": float, "bool": bool, "str": str, "range": range, "tuple": tuple, "list": list}[name](*args)

    def operator(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """What torch.NAME(...) gives: plain numbers are worked out, tensors' operators are written down."""
        if name in QUESTIONS and args and isinstance(args[0], Ref):
            return QUESTIONS[name](self.tracer.values[args[0].name], *args[1:])
        if name in {"device", "layout"}:
            return None
        if name == "RaiseException":
            raise Failed(f"the script refuses its input: {str(args[0])[:120] if args else ''}")
        if name == "tensor":
            return self._new_tensor(args[0])
        if name in PLAIN and any(type(a) is int for a in args) and not _any_ref(numbers := [self._number(a) for a in args]):
            args = numbers  # a size, which tracing keeps as a tensor: torch.mul(batch, CONSTANTS.c0)
            if name == "div" and kwargs.pop("rounding_mode", None) is not None:
                name = "__round_to_zero_floordiv"
        if not _any_ref(args) and not _any_ref(list(kwargs.values())):
            if name in PLAIN:
                return PLAIN[name](*args)
            if name not in {"zeros", "ones", "full", "scalar_tensor"}:
                raise Missing(f"the script uses torch.{name}, which is not among the operators that may be run")
        kwargs = {k: v for k, v in kwargs.items() if k not in {"layout", "device", "pin_memory", "memory_format", "out", "non_blocking", "copy"}}
        if name == "copy_":
            return self._copy(args[0], args[1])
        if name == "slice" and all(a is None or a in {0, 1, 9223372036854775807} for a in args[1:]) and _whole(args):
            return args[0]
        if name.endswith("_") and not name.endswith("__") and name.rstrip("_") in OPERATORS:
            return self._in_place(name.rstrip("_"), args, kwargs)
        if name in {"__isnot__", "__is__"}:
            return (args[0] is args[1]) == (name == "__is__") if None in args else self._unknown(name)
        return self._recorded(name, args, kwargs)

    def _number(self, value: Any) -> Any:
        """A whole number that the file keeps as a tensor without axes, else the value as it is."""
        known = self.tracer.constants.get(value.name) if isinstance(value, Ref) else None
        return int(known) if known is not None and known.dim() == 0 and not known.is_floating_point() else value

    def _recorded(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        args = [DTYPES.get(a, a) if name in {"to", "_to_copy"} and i and isinstance(a, int) and not isinstance(a, bool) else a for i, a in enumerate(args)]
        result = self.tracer.call(name, *args, **kwargs)
        if name in {"slice", "select", "narrow", "view", "unsqueeze", "squeeze", "transpose", "permute"}:
            self.views.update(r.name for r in (result if isinstance(result, list) else [result]))
        return result

    def _in_place(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if args[0].name in self.views:
            raise Missing("the script writes into a part of a tensor")
        result = self._recorded(name, args, kwargs)
        if args[0].name in self.home:
            self._write(self.home[args[0].name], result)
        self.changed[args[0].name] = result
        return result

    def _copy(self, target: Ref, source: Any) -> Any:
        if target.name not in self.home:
            raise Missing("the script writes into a part of a tensor")
        if not isinstance(source, Ref):
            raise Missing("the script writes a plain number into a buffer")
        if self.tracer.shape(source) != self.tracer.shape(target):
            source = self.tracer.call("expand", source, tuple(self.tracer.shape(target)))
        self._write(self.home[target.name], source)
        self.changed[target.name] = source
        return source

    def _new_tensor(self, value: Any) -> Any:
        if _any_ref([value]):
            raise Missing("the script makes a tensor of an observation's numbers")
        return self.tracer.constant(torch.tensor(value))

    def _unknown(self, name: str) -> Any:
        raise Missing(f"the script uses torch.{name} in a way that is not known")

    def _no(self, node: ast.AST) -> Any:
        raise Missing(f"the script has a {type(node).__name__} of a kind that is not followed")


def _whole(args: list[Any]) -> bool:
    """Whether slice(x, dim, start, end, step) keeps everything."""
    start, end, step = (args + [None] * 5)[2:5]
    return start in {None, 0} and end in {None, 9223372036854775807} and step in {None, 1}


def _any_ref(values: list[Any]) -> bool:
    return any(isinstance(v, Ref) or (isinstance(v, (list, tuple)) and _any_ref(list(v))) for v in values)


def _dotted(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *parts[::-1]]) if node.id in {"torch", "ops", "__torch__"} or not parts else None
