"""One ONNX node on its way into torch's operators: what it reads, and where what is written down goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distillrl.errors import Missing
from distillrl.teachers.graph import Ref
from distillrl.teachers.tracing import Tracer


@dataclass
class Step:
    """One ONNX node on its way: its inputs (None where left out), options and the names of its outputs."""

    tracer: Tracer
    op: str
    inputs: list[Ref | None]
    options: Mapping[str, Any]
    outputs: tuple[str, ...]
    opset: int
    integers: dict[str, list[int]] = field(default_factory=dict)
    """Values that are known lists of integers (shapes and what is computed of them)."""

    def x(self, index: int = 0) -> Ref:
        """A required input."""
        if index >= len(self.inputs) or self.inputs[index] is None:
            raise Missing(f"the ONNX operator {self.op} lacks its input {index}")
        return self.inputs[index]  # type: ignore[return-value]  # checked above

    def maybe(self, index: int) -> Ref | None:
        """An optional input."""
        return self.inputs[index] if index < len(self.inputs) else None

    def tensor(self, index: int) -> Tensor:
        """An input that must be a constant."""
        ref = self.x(index)
        if ref.name not in self.tracer.constants:
            raise Missing(f"the ONNX operator {self.op} has an input {ref.name!r} that isn't constant")
        return self.tracer.constants[ref.name]

    def ints(self, index: int) -> list[int] | None:
        """An input that is a known list of integers."""
        ref = self.maybe(index)
        if ref is None:
            return None
        if ref.name in self.integers:
            return self.integers[ref.name]
        return [int(v) for v in self.tensor(index).reshape(-1).tolist()]

    def call(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Write the last operator of this node down, under the node's own output names."""
        return self.tracer.call(op, *args, outputs=self.outputs, **kwargs)

    def middle(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Write an operator down that isn't the node's last."""
        return self.tracer.call(op, *args, **kwargs)

    def known(self, values: Sequence[int]) -> None:
        """The node's output is this list of integers."""
        self.integers[self.outputs[0]] = [int(v) for v in values]
        self.tracer.constant(torch.tensor([int(v) for v in values]), self.outputs[0])
