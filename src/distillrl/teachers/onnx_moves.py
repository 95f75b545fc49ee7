"""ONNX's operators that move numbers and compute nothing of them: shapes, slices, joins; and the arithmetic on shapes that exporters leave behind."""

from __future__ import annotations

from collections.abc import Callable

import torch

from distillrl.errors import Missing
from distillrl.teachers.onnx_step import Step


def _cast(s: Step) -> None:
    code = int(s.options["to"])
    dtype = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}.get(code)
    if dtype is None:
        raise Missing(f"the ONNX type {code}")
    if s.x().name in s.integers and dtype in {torch.int32, torch.int64}:
        return s.known(s.integers[s.x().name])
    s.call("to", s.x(), dtype)


def _concat(s: Step) -> None:
    parts = [s.x(i) for i in range(len(s.inputs))]
    if all(p.name in s.integers or (p.name in s.tracer.constants and not s.tracer.constants[p.name].is_floating_point()) for p in parts) and any(p.name in s.integers for p in parts):
        return s.known([v for i in range(len(parts)) for v in s.ints(i) or []])
    s.call("cat", tuple(parts), int(s.options["axis"]))


def _slice(s: Step) -> None:
    rank = len(s.tracer.shape(s.x()))
    if s.opset < 10:
        starts, ends, axes, steps = list(s.options["starts"]), list(s.options["ends"]), s.options.get("axes"), None
    else:
        starts, ends, axes, steps = s.ints(1) or [], s.ints(2) or [], s.ints(3), s.ints(4)
    axes = list(range(len(starts))) if axes is None else [a % rank for a in axes]
    steps = steps or [1] * len(starts)
    if s.x().name in s.integers:
        return s.known(s.integers[s.x().name][starts[0] : ends[0] : steps[0]])
    value = s.x()
    for i, (axis, start, end, step) in enumerate(zip(axes, starts, ends, steps, strict=True)):
        arguments = (value, axis, start, None if abs(end) > 1 << 31 else end, step)
        value = s.call("slice", *arguments) if i == len(axes) - 1 else s.middle("slice", *arguments)


def _split(s: Step) -> None:
    axis = int(s.options.get("axis", 0))
    sizes = list(s.options["split"]) if "split" in s.options else s.ints(1)
    length = s.tracer.shape(s.x())[axis]
    if sizes is None:
        each = -(-length // len(s.outputs))
        sizes = [min(each, length - i * each) for i in range(len(s.outputs))]
    s.call("split", s.x(), tuple(sizes), axis)


def _reshape(s: Step) -> None:
    target, shape = s.ints(1), s.tracer.shape(s.x())
    if target is None:
        target = list(s.options["shape"])
    if not s.options.get("allowzero", 0):
        target = [shape[i] if d == 0 and i < len(shape) else d for i, d in enumerate(target)]
    s.call("reshape", s.x(), tuple(target))


def _flatten(s: Step) -> None:
    axis = int(s.options.get("axis", 1))
    shape = s.tracer.shape(s.x())
    if axis in {1, 1 - len(shape)}:
        s.call("flatten", s.x(), 1) if len(shape) > 1 else s.call("unsqueeze", s.x(), 1)
    elif axis in {0, -len(shape)}:
        s.call("reshape", s.x(), (1, -1))
    else:
        head = s.middle("flatten", s.x(), 0, axis % len(shape) - 1)
        s.call("flatten", head, 1)


def axes_of(s: Step) -> list[int] | None:
    """The axes that a node names, as an option (older files) or as an input; None where it names none."""
    return [int(a) for a in s.options["axes"]] if "axes" in s.options else s.ints(1)


def _squeeze(s: Step) -> None:
    if s.x().name in s.integers:
        return s.known(s.integers[s.x().name])
    axes = axes_of(s)
    s.call("squeeze", s.x()) if axes is None else s.call("squeeze", s.x(), tuple(axes))


def _unsqueeze(s: Step) -> None:
    if s.x().name in s.integers:
        return s.known(s.integers[s.x().name])
    axes = axes_of(s) or []
    rank = len(s.tracer.shape(s.x())) + len(axes)
    ordered, value = sorted(a % rank for a in axes), s.x()
    for i, axis in enumerate(ordered):
        value = s.call("unsqueeze", value, axis) if i == len(ordered) - 1 else s.middle("unsqueeze", value, axis)


def _transpose(s: Step) -> None:
    rank = len(s.tracer.shape(s.x()))
    s.call("permute", s.x(), tuple(s.options.get("perm", range(rank - 1, -1, -1))))


def _gather(s: Step) -> None:
    axis = int(s.options.get("axis", 0))
    if s.x().name in s.integers:
        values = s.integers[s.x().name]
        return s.known([values[int(i)] for i in s.tensor(1).reshape(-1).tolist()])
    index = s.tensor(1)
    length = s.tracer.shape(s.x())[axis]
    positions = torch.where(index < 0, index + length, index).long()
    if index.dim() == 0:
        s.call("select", s.x(), axis, int(positions))
    elif index.dim() == 1:
        s.call("index_select", s.x(), axis, s.tracer.constant(positions))
    else:
        raise Missing("a Gather with a table of indices")


def _shape(s: Step) -> None:
    shape = s.tracer.shape(s.x())
    s.known(shape[int(s.options.get("start", 0)) : s.options.get("end")])


def _constant_of_shape(s: Step) -> None:
    value = s.options.get("value")
    number = 0.0 if value is None else value.reshape(-1)[0].item()
    made = s.middle("full", tuple(s.ints(0) or ()), float(number))
    s.call("to", made, value.dtype if value is not None else torch.float32)


def _expand(s: Step) -> None:
    want, shape = s.ints(1) or [], s.tracer.shape(s.x())
    shape = [1] * (len(want) - len(shape)) + shape
    want = [1] * (len(shape) - len(want)) + want
    s.call("expand", s.x(), tuple(max(a, b) if 0 not in (a, b) else 0 for a, b in zip(shape, want, strict=True)))


def _identity(s: Step) -> None:
    if s.x().name in s.integers:
        return s.known(s.integers[s.x().name])
    s.call("identity", s.x())


def _pad(s: Step) -> None:
    pads = s.ints(1) if s.opset >= 11 else list(s.options["pads"])
    if s.options.get("mode", b"constant") not in {b"constant", "constant"} or pads is None or s.maybe(3) is not None:
        raise Missing("a Pad of another kind")
    half = len(pads) // 2
    value = float(s.tensor(2)) if s.maybe(2) is not None else float(s.options.get("value", 0.0))
    s.call("pad", s.x(), tuple(v for i in range(half - 1, -1, -1) for v in (pads[i], pads[half + i])), "constant", value)


MOVES: dict[str, Callable[[Step], None]] = {
    "Cast": _cast, "Concat": _concat, "Slice": _slice, "Split": _split, "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Transpose": _transpose, "Gather": _gather, "Shape": _shape, "ConstantOfShape": _constant_of_shape,
    "Expand": _expand, "Pad": _pad, "Identity": _identity, "Dropout": _identity,
}  # fmt: skip
"""Operator type → what is written down."""
