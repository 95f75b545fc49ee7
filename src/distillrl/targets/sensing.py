"""What a policy sees, as steps of a plan: the builder of a plan, and a function for each step of a sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distillrl.errors import Misconfigured
from distillrl.filters import Choose, Clip
from distillrl.images import LUMA, ONE, Background, Crop, Grey, Jitter, Resize, channels
from distillrl.normalising import Normalise
from distillrl.records import Group
from distillrl.senses import ChannelsFirst, OneHot, Pick, Scale, Stack
from distillrl.targets import plan as steps
from distillrl.targets.plan import Input, Op, State
from distillrl.wrapping import First, Join, Played, RemainingTime

CODE = "c, c-int8, compiled, js, onnx and python"


class Builder:
    """The steps so far, and the shapes of their values."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], ops: list[Op]) -> None:
        self.shapes, self.ops = shapes, ops
        self.wide: set[str] = set()
        self.bytes: set[str] = set()
        """Groups whose numbers are pixels of 8 bits, at the step of the sense that is printed: what is made of such is rounded."""
        self.states: list[State] = []
        self.scales: dict[int, Any] = {}
        """id of a rounded layer → the size of a step of each of its outputs' weights."""

    def name(self) -> str:
        """A new value's name."""
        return f"v{len(self.ops)}"

    def add(self, op: Op, shape: tuple[int, ...]) -> str:
        """One step more; its output's name."""
        self.ops.append(op)
        self.shapes[op.out] = shape
        return op.out

    def memory(self, name: str, size: int) -> str:
        """A new part of the memory: the name of its value before this step; ``remember`` says what it is after."""
        before = f"before.{name}"
        self.shapes[before] = (size,)
        return before

    def remember(self, name: str, before: str, after: str) -> None:
        """Say which value a part of the memory has after this step."""
        self.states.append(State(name, before, after, self.size(before)))

    def size(self, value: str) -> int:
        """How many numbers a value has."""
        return int(np.prod(self.shapes[value], dtype=int))


def sense(b: Builder, policy: Any) -> dict[str, str]:
    """Run the sense's steps; group → value."""
    values, groups = {}, dict(policy.spec.observations)
    for name, group in groups.items():
        b.shapes[name] = group.shape
        values[name] = name
    for i, step in enumerate(policy.sense.steps):
        if type(step) not in SENSES:
            known = ", ".join(getattr(s, "kind", s.__name__) for s in SENSES)
            raise Misconfigured(
                f"the sense's step {i} ({getattr(step, 'kind', type(step).__name__)}) can't be exported as code: {CODE} carry {known}; the target torch carries any"
            )
        b.bytes = {name for name, group in groups.items() if group.dtype == "uint8"}
        values, groups = SENSES[type(step)](b, step, values), step.after(groups)
    return values


def _pick(b: Builder, step: Pick, values: Mapping[str, str]) -> dict[str, str]:
    return {name: values[name] for name in step.groups}


def _one_hot(b: Builder, step: OneHot, values: Mapping[str, str]) -> dict[str, str]:
    made = {name: b.add(steps.OneHot(b.name(), values[name], counts), (sum(counts),)) for name, counts in step.categories.items() if name in values}
    return {**values, **made}


def _normalise(b: Builder, step: Normalise, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    wide = step.dtype == "float64"
    for i, name in enumerate(step.shapes):
        scale, shift = (getattr(step, f"{part}{i}").detach().cpu().numpy().ravel() for part in ("scale", "shift"))
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise Misconfigured(f"this policy can't be exported: the normaliser of {name!r} holds NaN or infinity")
        source = values[name]
        if wide and source == name:
            b.wide.add(name)
        made[name] = b.add(steps.Affine(b.name(), source, scale, shift, -step.clip, step.clip, wide), b.shapes[source])
    return made


def _scale(b: Builder, step: Scale, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name, divisor in step.divisors.items():
        made[name] = b.add(steps.Affine(b.name(), values[name], np.array([1 / divisor]), np.zeros(1)), b.shapes[values[name]])
    return made


def _background(b: Builder, step: Background, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name in step.shapes:
        scale, shift = (x.detach().cpu().numpy().ravel() for x in step.shift(name, b.shapes[values[name]][0]))
        made[name] = b.add(steps.Affine(b.name(), values[name], scale, shift), b.shapes[values[name]])
    return made


def _channels_first(b: Builder, step: ChannelsFirst, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name in step.groups:
        height, width, channels = b.shapes[values[name]]
        made[name] = b.add(steps.Transpose(b.name(), values[name]), (channels, height, width))
    return made


def _stack(b: Builder, step: Stack, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name, shape in step.shapes.items():
        axis, long = step.axes[name], step.long(name, step.window + 1)
        old = np.arange(int(np.prod(long))).reshape(long)
        new = np.arange(int(np.prod(shape))).reshape(shape) + old.size
        kept = np.split(old, [shape[axis]], axis)[1]
        order = np.concatenate([kept, new], axis).ravel()
        before = b.memory(f"stack_{name}", old.size)
        both = b.add(steps.Concat(b.name(), (before, values[name])), (old.size + new.size,))
        after = b.add(steps.Take(b.name(), both, tuple(order.tolist())), long)
        b.remember(f"stack_{name}", before, after)
        chosen = np.concatenate(np.split(old, step.window + 1, axis)[:: step.gap], axis)
        made[name] = after if step.gap == 1 else b.add(steps.Take(b.name(), after, tuple(chosen.ravel().tolist())), chosen.shape)
    return made


def _remaining_time(b: Builder, step: RemainingTime, values: Mapping[str, str]) -> dict[str, str]:
    before = b.memory("steps", 1)
    left = b.add(steps.Affine(b.name(), before, np.array([-1 / step.limit]), np.ones(1)), (1,))
    b.remember("steps", before, b.add(steps.Affine(b.name(), before, np.ones(1), np.ones(1)), (1,)))
    x = values[step.group]
    return {**values, step.group: b.add(steps.Concat(b.name(), (x, left)), (b.size(x) + 1,))}


def _choose(b: Builder, step: Choose, values: Mapping[str, str]) -> dict[str, str]:
    return {**values, step.group: b.add(steps.Take(b.name(), values[step.group], step.indices), (len(step.indices),))}


def _clip(b: Builder, step: Clip, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name in step.names:
        x = values[name]
        made[name] = b.add(steps.Affine(b.name(), x, np.ones(1), np.zeros(1), -step.limit, step.limit), b.shapes[x])
    return made


def _first(b: Builder, step: First, values: Mapping[str, str]) -> dict[str, str]:
    places = tuple(i if i < step.keep else 0 for i in range(step.width))
    taken = b.add(steps.Take(b.name(), values[step.group], places), (step.width,))
    kept = (np.arange(step.width) < step.keep).astype(np.float32)
    return {**values, step.group: b.add(steps.Affine(b.name(), taken, kept, np.zeros(1)), (step.width,))}


def _join(b: Builder, step: Join, values: Mapping[str, str]) -> dict[str, str]:
    parts = tuple(values[name] for name in step.groups)
    return {step.name: b.add(steps.Concat(b.name(), parts), (sum(b.size(x) for x in parts),))}


def _crop(b: Builder, step: Crop, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name in step.names:
        shape = b.shapes[values[name]]
        columns = (slice(*step.columns),) if step.columns else ()
        lead = (slice(None),) if channels(shape) == 0 else ()
        places = np.arange(b.size(values[name])).reshape(shape)[(*lead, slice(*step.rows), *columns)]
        made[name] = b.add(steps.Take(b.name(), values[name], tuple(places.ravel().tolist())), places.shape)
    return made


def _grey(b: Builder, step: Grey, values: Mapping[str, str]) -> dict[str, str]:
    made, luma = dict(values), np.array(LUMA, np.float32).reshape(3, 1)
    for name in step.names:
        shape = b.shapes[values[name]]
        first = channels(shape) == 0
        height, width = shape[1:] if first else shape[:2]
        axis = (1, height * width) if first else (height * width, 1)
        op = steps.Resample(b.name(), values[name], *axis, np.arange(3, dtype=np.int32).reshape(3, 1), luma, float(sum(LUMA)), name in b.bytes)
        made[name] = b.add(op, (1, height, width))
    return made


def _resize(b: Builder, step: Resize, values: Mapping[str, str]) -> dict[str, str]:
    """Rows, then columns."""
    made = dict(values)
    for name in step.names:
        axis, *filters = step.filters[name]
        for offset, (places, weights) in enumerate(filters):
            shape = list(b.shapes[made[name]])
            at = len(shape) + axis + offset
            before, after = (int(np.prod(part, dtype=int)) for part in (shape[:at], shape[at + 1 :]))
            shape[at] = places.shape[1]
            op = steps.Resample(b.name(), made[name], before, after, places.numpy().astype(np.int32), weights.numpy(), float(ONE), name in b.bytes)
            made[name] = b.add(op, tuple(shape))
    return made


def _played(b: Builder, step: Played, values: Mapping[str, str]) -> dict[str, str]:
    made = dict(values)
    for name, k in step.groups.items():
        x = values[name]
        on = b.add(steps.Take(b.name(), values[step.task], (k,) * b.size(x)), b.shapes[x])
        made[name] = b.add(steps.Combine(b.name(), x, on, "multiply"), b.shapes[x])
    return made


def _unchanged(b: Builder, step: Any, values: Mapping[str, str]) -> dict[str, str]:
    return dict(values)


SENSES: dict[type, Callable[[Builder, Any, Mapping[str, str]], dict[str, str]]] = {
    Pick: _pick,
    OneHot: _one_hot,
    Normalise: _normalise,
    Scale: _scale,
    ChannelsFirst: _channels_first,
    Stack: _stack,
    RemainingTime: _remaining_time,
    Choose: _choose,
    Clip: _clip,
    First: _first,
    Join: _join,
    Crop: _crop,
    Grey: _grey,
    Resize: _resize,
    Jitter: _unchanged,
    Background: _background,
    Played: _played,
}


def to_input(name: str, group: Group, b: Builder) -> Input:
    """An observation group as the plan takes it."""
    return Input(name, group.shape, group.dtype, group.categories, name in b.wide and group.dtype == "float64")


def flatten(b: Builder, values: Mapping[str, str], described: Mapping[str, Group]) -> str:
    """One float vector, in the order of policies.flatten."""
    names = sorted(values) if len(values) > 1 else list(values)
    chosen = tuple(values[name] for name in names)
    if len(chosen) == 1 and (chosen[0] not in described or described[chosen[0]].dtype == "float32"):
        return chosen[0]
    return b.add(steps.Concat(b.name(), chosen), (sum(b.size(v) for v in chosen),))
