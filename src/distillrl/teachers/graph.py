"""A network as a list of allowed operators: what ONNX, TorchScript and torch.export files are turned into.

Nothing in a graph is code: each node names a function of ``operators.OPERATORS``. A graph is first tried on a few
random states, and before each step ``sizes`` says what it would give and cost: too much is refused before it is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Failed, Missing, nearest
from distillrl.teachers import sizes
from distillrl.teachers.fusing import fused
from distillrl.teachers.nodes import BATCH as BATCH
from distillrl.teachers.nodes import Node as Node
from distillrl.teachers.nodes import Ref as Ref
from distillrl.teachers.nodes import refs as refs
from distillrl.teachers.nodes import uses as uses
from distillrl.teachers.operators import OPERATORS

MAX_NODES = 20_000
OPERATOR_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, OverflowError, NotImplementedError, AttributeError, AssertionError)
"""What one of torch's operators raises for arguments that a file made up, each seen in fuzzing: RuntimeError for shapes and types, TypeError and AttributeError
where a number or nothing stands for a tensor, ValueError and IndexError for axes, KeyError for a value that no step gives, OverflowError for integers beyond 64
bits, NotImplementedError for types that a kernel lacks, AssertionError from torch.nn.functional's checks. One operator's call alone stands where they are caught."""


@dataclass(frozen=True)
class State:
    """A value that is carried from step to step: read as ``read``, its next value is ``write``; ``axis`` counts states."""

    name: str
    read: str
    write: str
    initial: Tensor
    """One state's, with the batch axis at length 1."""
    axis: int


@dataclass(frozen=True)
class Graph:
    """Inputs [N, ...] by name with the shape of one state, nodes in order, outputs by name → value."""

    inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    constants: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    outputs: Mapping[str, str]
    states: tuple[State, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    """Names for people (module paths) of values, where they have better ones than their own."""

    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    """Of every value in a trial of ``trial`` states, where there was one; ``trial`` is a number that nothing else in it is."""
    trial: int = 0
    alone: bool = False
    """Its numbers are one state's, the batch axis at length 1: several states are asked about through ``torch.func.vmap``, operator by operator."""

    def title(self, value: str) -> str:
        """What a value is called as a feature."""
        return self.titles.get(value, value)


def outputs_of(graph: Graph) -> dict[str, tuple[tuple[int, ...], torch.dtype, str]]:
    """Each output's shape of one state, dtype and the operator that gives it."""
    makers = {name: node.op for node in graph.nodes for name in node.outputs}
    return {name: (graph.shapes[value][0][1:], graph.shapes[value][1], makers.get(value, "")) for name, value in graph.outputs.items()}


def needed(graph: Graph, wanted: Iterable[str]) -> tuple[Node, ...]:
    """The nodes that the wanted values depend on, in order."""
    alive, kept = set(wanted), []
    for node in reversed(graph.nodes):
        if alive.intersection(node.outputs):
            kept.append(node)
            alive.update(uses(node))
    return tuple(reversed(kept))


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """An argument with its Refs replaced."""
    if isinstance(template, Ref):
        return values[template.name]
    if isinstance(template, tuple):
        return [fill(item, values) for item in template]
    return template


def result_of(node: Node, values: Mapping[str, Any]) -> Any:
    """Run one node; raises Missing for an operator that isn't in the table."""
    run = OPERATORS.get(node.op)
    if run is None:
        raise Missing(f"the operator {node.op!r} is not among those that may be run{nearest(node.op, OPERATORS)}")
    return run(*[fill(a, values) for a in node.args], **{k: fill(v, values) for k, v in node.kwargs.items()})


def apply(node: Node, values: dict[str, Any]) -> None:
    """Run one node and keep what it gives."""
    keep(node, result_of(node, values), values)


def keep(node: Node, result: Any, values: dict[str, Any]) -> None:
    """Put a node's result, one tensor or several, under its output names."""
    if isinstance(result, Tensor):
        values[node.outputs[0]] = result
    else:
        for name, value in zip(node.outputs, result, strict=False):
            values[name] = value


def trial_run(graph: Graph, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Every value for a few random states; each step's size is checked before it is taken.

    Raises Failed where a step can't take its shapes, or would give or cost too much.
    """
    if len(graph.nodes) > MAX_NODES:
        raise Failed(f"the network has {len(graph.nodes)} steps, more than the {MAX_NODES} that are allowed")
    values: dict[str, Any] = {**graph.constants, **random_inputs(graph, batch, seed)}
    values[BATCH.name] = batch
    for index, node in enumerate(graph.nodes):
        keep(node, checked(index, node, values), values)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def checked(index: int, node: Node, values: Mapping[str, Any]) -> Any:
    """``result_of``, its size checked before, its errors as Failed."""
    try:
        sizes.check(node.op, [fill(a, values) for a in node.args], {k: fill(v, values) for k, v in node.kwargs.items()})
        with torch.inference_mode(False), torch.no_grad():
            return result_of(node, values)
    except OPERATOR_ERRORS as error:
        raise Failed(f"step {index} of the network ({node.op}) can't be taken: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What an exception says, in a line."""
    text = str(error).splitlines()
    return text[0][:200] if text else type(error).__name__


def free_number(taken: Iterable[int]) -> int:
    """A small prime that is none of these: a batch size that can be told from every other number of a file."""
    numbers = set(taken)
    return next(p for p in (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 997, 7919) if p not in numbers)


def numbers_in(graph: Graph) -> set[int]:
    """Every dimension and integer that a graph names."""
    found = {d for shape, _ in graph.inputs.values() for d in shape} | {d for t in graph.constants.values() for d in t.shape}
    for node in graph.nodes:
        found.update(integers((node.args, tuple(node.kwargs.values()))))
    return found


def integers(value: Any) -> Iterator[int]:
    """The integers in an argument, also inside tuples."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from integers(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


class GraphModule(nn.Module):
    """Runs a graph; constants are buffers, so that it moves and is counted like any network."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.slots: dict[str, str] = {}
        used = {name for node in graph.nodes for name in uses(node)} | set(graph.outputs.values())
        for i, (name, tensor) in enumerate(graph.constants.items()):
            if name in used:
                self.slots[name] = f"c{i}"
                self.register_buffer(f"c{i}", tensor.contiguous())
        self.programs: dict[frozenset[str], list[Callable[[dict[str, Any]], None]]] = {}

    def forward(self, inputs: Mapping[str, Tensor], batch: int, wanted: frozenset[str]) -> dict[str, Any]:
        """As ``run``."""
        return self.run(inputs, batch, wanted)

    def run(self, inputs: Mapping[str, Tensor], batch: int, wanted: frozenset[str]) -> dict[str, Any]:
        """Values by name, the wanted ones among them, for inputs [N, ...] and states."""
        program = self.programs.get(wanted)
        if program is None:
            program = self.programs[wanted] = [_step(node) for node in fused(needed(self.graph, wanted), wanted, self.graph.constants)]
        if self.graph.alone and batch != 1:
            return self._each(inputs, wanted, program)
        values: dict[str, Any] = dict(inputs)
        values[BATCH.name] = batch
        buffers = self._buffers
        for name, slot in self.slots.items():
            values[name] = buffers[slot]
        for step in program:
            step(values)
        return values

    def _each(self, inputs: Mapping[str, Tensor], wanted: frozenset[str], program: list[Callable[[dict[str, Any]], None]]) -> dict[str, Any]:
        """The wanted values alone, each state's own as if it were the only one; all of them go through each operator together."""
        reads, writes = ({getattr(s, which): s.axis for s in self.graph.states} for which in ("read", "write"))
        kept = {name: self._buffers[slot] for name, slot in self.slots.items()}

        def one(given: dict[str, Tensor]) -> dict[str, Tensor]:
            values: dict[str, Any] = {BATCH.name: 1, **kept, **given}
            for step in program:
                step(values)
            return {name: values[name] for name in wanted}

        axes = {name: reads.get(name, 0) for name in inputs}
        made = torch.func.vmap(one, in_dims=(axes,))({name: x.unsqueeze(axes[name] + 1) for name, x in inputs.items()})
        return {name: x.select(writes[name] + 1, 0).movedim(0, writes[name]) if name in writes else x.flatten(0, 1) if x.dim() > 1 and x.shape[1] == 1 else x for name, x in made.items()}


def _step(node: Node) -> Callable[[dict[str, Any]], None]:
    """One node made ready: what doesn't change is filled in once, what does is looked up by name."""
    run, outputs = OPERATORS[node.op], node.outputs
    templates = (*node.args, *node.kwargs.values())
    if any(isinstance(t, tuple) and refs(t) and not all(isinstance(i, Ref) for i in t) for t in templates):
        return lambda values: apply(node, values)
    if (plain := _plain_step(node)) is not None:
        return plain
    count, words = len(node.args), list(node.kwargs)
    made = [None if refs(t) else fill(t, {}) for t in templates]
    changing = [(i, t.name if isinstance(t, Ref) else [r.name for r in t]) for i, t in enumerate(templates) if refs(t)]

    def step(values: dict[str, Any]) -> None:
        given = made.copy()
        for i, name in changing:
            given[i] = values[name] if isinstance(name, str) else [values[n] for n in name]
        result = run(*given[:count], **dict(zip(words, given[count:], strict=True))) if words else run(*given)
        if isinstance(result, Tensor):
            values[outputs[0]] = result
        else:
            values.update(zip(outputs, result, strict=False))

    return step


def _plain_step(node: Node) -> Callable[[dict[str, Any]], None] | None:
    """The commonest calls without a list of arguments made for each: f(x, numbers…), f(x, y), f(x, y, z); None for others."""
    run, outputs, names = OPERATORS[node.op], node.outputs, [a.name for a in node.args if isinstance(a, Ref)]
    leading, rest = len(names), node.args[len(names) :]
    if node.kwargs or not 0 < leading <= 3 or any(refs(a) for a in rest) or (rest and leading > 1):
        return None
    rest = tuple(fill(a, {}) for a in rest)

    def keep(values: dict[str, Any], result: Any) -> None:
        if isinstance(result, Tensor):
            values[outputs[0]] = result
        else:
            values.update(zip(outputs, result, strict=False))

    first, second, third = (*names, "", "")[:3]
    if leading == 1:
        return lambda values: keep(values, run(values[first], *rest))
    if leading == 2:
        return lambda values: keep(values, run(values[first], values[second]))
    return lambda values: keep(values, run(values[first], values[second], values[third]))


def renamed(graph: Graph, **changes: Any) -> Graph:
    """A copy with some fields changed."""
    return dataclasses.replace(graph, **changes)


def random_inputs(graph: Graph, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Numbers to try a graph with: inputs and states [N, ...] (states with their own axis), standard normal."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, (shape, dtype) in graph.inputs.items():
        x = torch.randn((batch, *shape), generator=generator)
        made[name] = x.to(dtype) if dtype.is_floating_point else x.abs().to(dtype)
    for state in graph.states:
        size = list(state.initial.shape)
        size[state.axis] = batch
        made[state.read] = (torch.randn(size, generator=generator) * 0.5).to(state.initial.dtype)
    return made


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The greatest difference, relative where numbers are above 1; infinite where shapes or NaNs differ."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.numel() != b.numel():
            return float("inf")
        x, y = a.double().flatten(), b.double().flatten()
        if x.numel():
            gap = ((x - y).abs() / y.abs().clamp_min(1)).nan_to_num(nan=float("inf"))
            gap[x.isnan() & y.isnan()] = 0
            gap[x == y] = 0
            worst = max(worst, float(gap.max()))
    return worst


def fold(graph: Graph) -> Graph:
    """The same graph with everything that depends on no input worked out; call it after a trial found it bounded."""
    constants = dict(graph.constants)
    kept = []
    for node in graph.nodes:
        names = uses(node)
        if BATCH.name in names or any(name not in constants for name in names):
            kept.append(node)
            continue
        values: dict[str, Any] = dict(constants)
        with torch.inference_mode(False), torch.no_grad():
            apply(node, values)
        for name in node.outputs:
            if isinstance(values.get(name), Tensor):
                constants[name] = values[name]
    return renamed(graph, constants=constants, nodes=tuple(kept))
