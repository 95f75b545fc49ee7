"""Expressions over the observation that choose a teacher: ``level<3:0, else:1``; parsed with ``ast``, never evaluated by Python.

Allowed are the names of observation groups, an element of one (``obs[3]``), numbers, + − * / // %, comparisons, ``and``,
``or``, ``not`` and brackets. Without a colon the whole is one expression whose value is the teacher's number.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distillrl.errors import Misconfigured, nearest
from distillrl.records import Group

MAX_LENGTH = 2000
_ARITHMETIC: dict[type, Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add, ast.Sub: torch.sub, ast.Mult: torch.mul, ast.Div: torch.div, ast.Mod: torch.remainder, ast.FloorDiv: torch.floor_divide,
}  # fmt: skip
_COMPARISONS: dict[type, Callable[[Tensor, Tensor], Tensor]] = {ast.Lt: torch.lt, ast.LtE: torch.le, ast.Gt: torch.gt, ast.GtE: torch.ge, ast.Eq: torch.eq, ast.NotEq: torch.ne}


@dataclass(frozen=True)
class Dispatch:
    """A parsed expression: ``cases`` are (condition, teacher's number), the last one without a condition; or one ``index``."""

    text: str
    cases: tuple[tuple[ast.expr | None, int], ...] = ()
    index: ast.expr | None = None
    names: tuple[str, ...] = ()
    """The observation groups that it reads."""

    lists: frozenset[str] = frozenset()
    """Those of them that are lists of one number."""

    def __call__(self, obs: Mapping[str, Tensor], count: int) -> Tensor:
        """[...] int64: which of ``count`` teachers is asked for each state; Misconfigured where that one isn't there."""
        seen = {name: obs[name].squeeze(-1) if name in self.lists else obs[name] for name in self.names}
        if self.index is not None:
            chosen = _value(self.index, seen, obs).round().long()
        else:
            chosen = torch.tensor(self.cases[-1][1])
            for condition, number in reversed(self.cases[:-1]):
                assert condition is not None  # only the last one has none
                chosen = torch.where(_value(condition, seen, obs) != 0, number, chosen)
        if bool(((chosen < 0) | (chosen >= count)).any()):
            wrong = int(chosen.max() if chosen.max() >= count else chosen.min())
            raise Misconfigured(f"dispatch {self.text!r} gives teacher {wrong}; there are {count}, counted from 0")
        return chosen


def parse(text: str, groups: Mapping[str, Group], count: int) -> Dispatch:
    """The dispatch of a text; raises Misconfigured where it has anything but what is allowed, or a name that isn't a group."""
    if len(text) > MAX_LENGTH:
        raise Misconfigured(f"dispatch: {len(text)} characters were given, at most {MAX_LENGTH} are read")
    parts = [part.strip() for part in text.split(",")]
    names: set[str] = set()
    if len(parts) == 1 and ":" not in text:
        index = _expression(text.strip(), text, groups, names)
        return _made(text, (), index, names, groups)
    cases: list[tuple[ast.expr | None, int]] = []
    for part in parts:
        condition, colon, number = part.rpartition(":")
        if not colon or not number.strip().isdigit() or int(number) >= count:
            raise Misconfigured(f"dispatch {text!r}: {part!r} was given; CONDITION:TEACHER is right, the teacher a number from 0 to {count - 1}")
        otherwise = condition.strip() == "else"
        if otherwise != (part is parts[-1]):
            raise Misconfigured(f"dispatch {text!r}: the last case is else:TEACHER, and only that one")
        cases.append((None if otherwise else _expression(condition.strip(), text, groups, names), int(number)))
    return _made(text, tuple(cases), None, names, groups)


def _made(text: str, cases: tuple[tuple[ast.expr | None, int], ...], index: ast.expr | None, names: set[str], groups: Mapping[str, Group]) -> Dispatch:
    if not names:
        raise Misconfigured(f"dispatch {text!r}: it reads no observation group; there are {', '.join(groups)}")
    return Dispatch(text, cases, index, tuple(sorted(names)), frozenset(n for n in names if groups[n].shape == (1,)))


def _expression(text: str, whole: str, groups: Mapping[str, Group], names: set[str]) -> ast.expr:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Misconfigured(f"dispatch {whole!r}: {text!r} is no expression, such as level<3 or obs[2] > 0.5") from None
    _check(tree, whole, groups, names, 0)
    return tree


def _check(node: ast.AST, whole: str, groups: Mapping[str, Group], names: set[str], depth: int) -> None:
    if depth > 50:
        raise Misconfigured(f"dispatch {whole!r}: it is nested too deeply")
    if isinstance(node, ast.Name):
        group = groups.get(node.id)
        if group is None:
            raise Misconfigured(f"dispatch {whole!r}: there is no observation group {node.id!r}{nearest(node.id, groups)}")
        if group.shape not in {(), (1,)}:
            raise Misconfigured(f"dispatch {whole!r}: {node.id} has the shape {list(group.shape)}; name one element, such as {node.id}[0]")
        names.add(node.id)
        return
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant) and type(node.slice.value) is int:
        group = groups.get(node.value.id)
        if group is None or len(group.shape) != 1 or not 0 <= node.slice.value < group.shape[0]:
            raise Misconfigured(f"dispatch {whole!r}: {node.value.id}[{node.slice.value}] is no element of {node.value.id} {group or '(no such group)'}")
        names.add(node.value.id)
        return
    allowed = (
        (isinstance(node, ast.Constant) and type(node.value) in (int, float, bool))
        or (isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC)
        or (isinstance(node, ast.Compare) and all(type(op) in _COMPARISONS for op in node.ops))
        or isinstance(node, ast.BoolOp)
        or (isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.UAdd)))
    )  # fmt: skip
    if not allowed:
        raise Misconfigured(f"dispatch {whole!r}: {type(node).__name__} has no place in it; names of groups, numbers, comparisons, and, or, not are right")
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            _check(child, whole, groups, names, depth + 1)


def _value(node: ast.expr, seen: Mapping[str, Tensor], obs: Mapping[str, Tensor]) -> Tensor:
    """[...] of a checked expression, as float64 (so that no category number is rounded); ``seen`` has one number a state."""
    if isinstance(node, ast.Name):
        return seen[node.id].double()
    if isinstance(node, ast.Subscript):
        assert isinstance(node.value, ast.Name)
        assert isinstance(node.slice, ast.Constant)
        assert isinstance(node.slice.value, int)
        return obs[node.value.id][..., node.slice.value].double()
    if isinstance(node, ast.Constant):
        return torch.tensor(float(node.value), dtype=torch.float64)  # type: ignore[arg-type]  # checked: a number
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_value(node.left, seen, obs), _value(node.right, seen, obs))
    if isinstance(node, ast.BoolOp):
        join = torch.logical_and if isinstance(node.op, ast.And) else torch.logical_or
        return functools.reduce(join, [_value(v, seen, obs) for v in node.values]).double()
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, seen, obs)
        return (inner == 0).double() if isinstance(node.op, ast.Not) else -inner if isinstance(node.op, ast.USub) else inner
    assert isinstance(node, ast.Compare)
    sides = [_value(side, seen, obs) for side in (node.left, *node.comparators)]
    holds = [_COMPARISONS[type(op)](left, right) for op, left, right in zip(node.ops, sides, sides[1:], strict=False)]
    return functools.reduce(torch.logical_and, holds).double()
