"""Writing down a graph while it is tried on a few random states; each step's size is checked before it is taken."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from distillrl.errors import Failed, Missing
from distillrl.teachers import sizes
from distillrl.teachers.graph import (
    BATCH,
    MAX_NODES,
    Graph,
    Node,
    Ref,
    State,
    checked,
    fold,
    free_number,
)
from distillrl.teachers.operators import OPERATORS
from distillrl.teachers.widening import TOLERANCE, agrees, batched, widen


class Tracer:
    """Collects nodes; ``values`` holds what each gives for ``batch`` random states.

    ``free``: the batch is a number that nothing else in the file is, so that where it appears it stands for the batch.
    ``told``: the batch is named by ``BATCH`` wherever it is meant, and a number that happens to be equal is that number.
    """

    def __init__(self, batch: int, free: bool, told: bool = False) -> None:
        self.batch, self.free, self.told = batch, free, told
        self.values: dict[str, Any] = {BATCH.name: batch}
        self.generator = torch.Generator().manual_seed(0)
        self.constants: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.titles: dict[str, str] = {}
        self._count = 0

    def input(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Ref:
        """An input [batch, *shape], or a state of this whole shape where it is written so by the caller."""
        if math.prod(shape) > sizes.MAX_NUMBERS:
            raise Failed(f"the input {name!r} has the shape {list(shape)}: too large for an observation")
        x = torch.randn(shape, generator=self.generator)
        self.values[name] = x.to(dtype) if dtype.is_floating_point else x.abs().to(dtype)
        return Ref(name)

    def constant(self, tensor: Tensor, name: str = "") -> Ref:
        """A tensor of the file."""
        name = name or self.fresh("k")
        self.constants[name] = tensor
        self.values[name] = tensor
        return Ref(name)

    def fresh(self, stem: str) -> str:
        """A name that is not taken."""
        self._count += 1
        return f"{stem}·{self._count}"

    def call(self, op: str, *args: Any, outputs: tuple[str, ...] = (), **kwargs: Any) -> Any:
        """Write an operator down and return the Ref of its value, or a list of Refs.

        Raises Missing for an operator that isn't allowed, Failed where it can't take these shapes or gives too much.
        """
        if op not in OPERATORS:
            raise Missing(f"the operator {op!r} is not among those that may be run")
        if len(self.nodes) >= MAX_NODES:
            raise Failed(f"the network has more than the {MAX_NODES} steps that are allowed")
        node = Node(op, tuple(self._written(a) for a in args), ("",), {k: self._written(v) for k, v in kwargs.items()})
        result = checked(len(self.nodes), node, self.values)
        results = [result] if isinstance(result, Tensor) else list(result)
        names = tuple(outputs[i] if i < len(outputs) and outputs[i] else self.fresh(op) for i in range(len(results)))
        self.values.update(zip(names, results, strict=True))
        self.nodes.append(dataclasses.replace(node, outputs=names))
        return Ref(names[0]) if isinstance(result, Tensor) else [Ref(n) for n in names]

    def shape(self, ref: Ref) -> list[int]:
        """The shape of a value; the batch's number stands for the batch."""
        return list(self.values[ref.name].shape)

    def graph(self, inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]], outputs: Mapping[str, str], states: tuple[State, ...] = ()) -> Graph:
        """What was written down."""
        shapes = {name: (tuple(t.shape), t.dtype) for name, t in self.values.items() if isinstance(t, Tensor)} if self.free else {}
        return Graph(dict(inputs), self.constants, tuple(self.nodes), dict(outputs), states, self.titles, shapes, self.batch if self.free else 0)

    def _written(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(self._written(v) for v in value)
        if isinstance(value, int) and not isinstance(value, bool) and value == self.batch and self.free and not self.told:
            return BATCH
        return value


Kept = tuple[Tensor, int]
"""A buffer that is carried from step to step: as the file has it, and its batch axis."""


def settled(trace: Callable[[int, bool, Mapping[str, Kept]], tuple[Graph, dict[str, Tensor]]], taken: set[int]) -> Graph:
    """A graph that is free in its batch, of a network that was written down for a batch of one.

    ``trace(batch, free, states)`` writes the network down and says which buffers it changes; those become states, with
    each axis of length 1 tried as the batch's. What comes out gives the same numbers as the batch of one. Raises Missing.
    """
    single, written = trace(1, False, {})
    if not written:
        wide = _widened(trace, taken, {})
        return fold(wide if wide is not None and agrees(wide, single) <= TOLERANCE else batched(single))
    reason = ""
    for axis in (1, 0, 2):
        states = {path: (tensor, _axis(path, tensor, axis)) for path, tensor in written.items()}
        try:
            wide = _widened(trace, taken, states)
            if wide is not None and agrees(wide, trace(1, False, states)[0]) <= TOLERANCE:
                return fold(wide)
        except Failed as error:
            reason = f": {error}"
    raise Missing(f"the memory inside of it ({', '.join(written)}) can't be kept for each environment{reason}")


def _widened(trace: Callable[[int, bool, Mapping[str, Kept]], tuple[Graph, dict[str, Tensor]]], taken: set[int], states: Mapping[str, Kept]) -> Graph | None:
    try:
        return widen(trace(free_number(taken), True, states)[0])
    except Failed:
        if states:
            raise
        return None


def _axis(path: str, tensor: Tensor, wanted: int) -> int:
    ones = [i for i, d in enumerate(tensor.shape) if d == 1]
    if not ones:
        raise Missing(f"the buffer {path!r} of shape {list(tensor.shape)} changes and has no axis for the batch")
    return wanted if wanted in ones else ones[0]
