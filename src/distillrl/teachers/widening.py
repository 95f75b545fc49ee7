"""A network that was written down for a batch of one, made free in its batch: many states in one call, and the same numbers.

First the shapes that are written as numbers get the batch in its place. Where no choice of those does it (attention that folds the batch
into its heads, a state that is reshaped on its way), each operator is asked for all states together by torch's own rules of
vectorising (``torch.func.vmap``), which needs no shape to be changed. Either way it is held against the file's own answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from distillrl.errors import Failed, Missing
from distillrl.teachers.graph import (
    BATCH,
    OPERATOR_ERRORS,
    Graph,
    GraphModule,
    Node,
    difference,
    free_number,
    numbers_in,
    random_inputs,
    renamed,
    trial_run,
)

SHAPERS = frozenset({"view", "reshape", "expand", "zeros", "ones", "full", "new_zeros", "repeat", "_unsafe_view"})
TOLERANCE = 1e-5


def batched(single: Graph) -> Graph:
    """The graph of one state as one that takes any number of them; raises Missing where neither way gives the same numbers."""
    for wide in _candidates(single):
        if agrees(wide, single) <= TOLERANCE:
            return wide
    alone = each(single)
    if agrees(alone, single) > TOLERANCE:
        raise Missing("its batch of one can't be widened")
    return alone


def each(single: Graph) -> Graph:
    """The same graph, to be asked about states one by one, all of them in one call."""
    values = trial_run(single, 1)
    return renamed(single, shapes={name: (tuple(t.shape), t.dtype) for name, t in values.items()}, trial=1, alone=True)


def widen(graph: Graph) -> Graph | None:
    """The graph with a batch fixed at one made free: shapes written as numbers get the batch in its place.

    A file made for one state says reshape(x, [1, 48]); here the 1 that stands for the batch becomes the batch. Returns
    None where no choice gives outputs that grow with the batch; whether the numbers are right is tested by ``agrees``.
    """
    return next(_candidates(graph), None)


def _candidates(graph: Graph) -> Iterator[Graph]:
    if graph.shapes and _grows(graph):
        yield graph
    trial = free_number(numbers_in(graph))
    for axis in (None, 0, 1):
        changed = graph if axis is None else renamed(graph, nodes=tuple(_freed(node, axis) for node in graph.nodes))
        try:
            values = trial_run(changed, trial)
        except Failed:
            continue
        changed = renamed(changed, shapes={name: (tuple(t.shape), t.dtype) for name, t in values.items()}, trial=trial)
        if _grows(changed):
            yield changed


def _grows(graph: Graph) -> bool:
    """Whether each output has the batch as its first axis, and each state comes out as it went in."""
    shapes = graph.shapes
    if not all(shapes[value][0][:1] == (graph.trial,) for value in graph.outputs.values() if value in shapes):
        return False
    return all(shapes[s.write][0] == shapes[s.read][0] for s in graph.states)


def _freed(node: Node, axis: int) -> Node:
    if node.op not in SHAPERS:
        return node
    place = 0 if node.op in {"zeros", "ones", "full"} else 1
    if len(node.args) <= place or not isinstance(node.args[place], tuple):
        return node
    shape = list(node.args[place])
    at = axis if axis < len(shape) and shape[axis] == 1 else 0
    if not shape or shape[at] != 1:
        return node
    shape[at] = BATCH if node.op != "repeat" else 1
    return dataclasses.replace(node, args=(*node.args[:place], tuple(shape), *node.args[place + 1 :]))


def agrees(wide: Graph, single: Graph, n: int = 3) -> float:
    """How far a widened graph lies from the file's own, asked one state at a time on random inputs; infinite where it can't take them."""
    inputs = random_inputs(wide, n)
    wanted = frozenset(wide.outputs.values()) | {s.write for s in wide.states}
    axes = {s.read: s.axis for s in wide.states}
    out_axes = {s.write: s.axis for s in wide.states}
    with torch.inference_mode():
        try:
            together = GraphModule(wide)(inputs, n, wanted)
        except OPERATOR_ERRORS:
            return float("inf")
        alone = GraphModule(single)
        worst = 0.0
        for i in range(n):
            one = {name: x.narrow(axes.get(name, 0), i, 1) for name, x in inputs.items()}
            values = alone(one, 1, wanted)
            names = sorted(wanted)
            worst = max(worst, difference([together[v].narrow(out_axes.get(v, 0), i, 1) for v in names], [values[v] for v in names]))
    return worst
