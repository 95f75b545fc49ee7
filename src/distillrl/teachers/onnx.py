"""ONNX files: turned into torch where every operator is a simple one, else run by onnxruntime; never anything else.

A batch fixed at 1 is widened in the graph and tried against the file's own answers, one state at a time. States that go
in and out (h_in, h_out) become memory. Needs the packages onnx and onnxruntime (``pip install 'distillrl[onnx]'``).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.records import Spec
from distillrl.teachers.converting import TOLERANCE, policy_of
from distillrl.teachers.fitting import read, see
from distillrl.teachers.graph import (
    Graph,
    GraphModule,
    Ref,
    State,
    difference,
    fold,
    free_number,
    integers,
    outputs_of,
    random_inputs,
)
from distillrl.teachers.onnx_proto import Model, read_model
from distillrl.teachers.onnx_step import Step
from distillrl.teachers.onnx_to_torch import LOWER
from distillrl.teachers.tracing import Tracer
from distillrl.teachers.widening import batched, widen

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "ONNX"
MASKS = re.compile(r"action_masks?|masks?$")


def sniff(path: Path) -> bool:
    """Whether the file looks like ONNX: its name, or the first fields of a ModelProto."""
    if path.suffix.lower() == ".onnx":
        return True
    if not path.is_file() or path.suffix.lower() not in {"", ".bin", ".pb", ".model"}:
        return False
    with path.open("rb") as file:
        head = file.read(64)
    return head[:1] == b"\x08" and len(head) > 2 and head[1] < 20 and head[2:3] in {b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"}


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of an ONNX file. Raises Failed (damaged, hostile), Misconfigured (another environment), Missing (a package)."""
    model = read_model(path)
    who = f"{path.name} (ONNX)"
    pairs = pair_states(model)
    info = {"format": TITLE, "producer": model.producer, "opset": model.opset, "metadata": model.metadata, "operators": sorted({n.op for n in model.nodes})}
    notes: list[str] = []
    try:
        graph = _turned(model, pairs, spec, who, notes)
    except Missing as reason:
        from distillrl.teachers.onnx_runtime import load_runtime

        return load_runtime(path, model, pairs, options.sees, spec, {**info, "notes": [f"run by onnxruntime: {reason}"]}, options.trust)
    seen = see(graph.inputs, spec, options.sees, who)
    reading = read(outputs_of(graph), spec.action if spec else None, who)
    return policy_of(graph, seen, reading, {**info, "notes": notes}, len(spec.observations) if spec else 1)


def _turned(model: Model, pairs: Mapping[str, str], spec: Spec | None, who: str, notes: list[str]) -> Graph:
    """The graph of all outputs, or of those that are read where only the others (a sampled action, a version) can't be turned. Raises Missing."""
    try:
        return convert(model, pairs, notes)
    except Missing as reason:
        makers = {o: n.op for n in model.nodes for o in n.outputs}
        with contextlib.suppress(Misconfigured, Missing, Failed):
            reading = read({n: (*s, makers.get(n, "")) for n, s in model.outputs.items() if n not in pairs.values()}, spec.action if spec else None, who)
            kept = {reading.action, reading.spread, reading.value, reading.q, *pairs.values()}
            if any(name not in kept for name in model.outputs):
                graph = convert(replace(model, outputs={n: s for n, s in model.outputs.items() if n in kept}), pairs, notes)
                notes += [n for n in reading.notes if n.startswith("not read")]
                return graph
        raise reason from None


def convert(model: Model, pairs: Mapping[str, str], notes: list[str]) -> Graph:
    """The file's graph in torch's operators, free in its batch, every step compared with onnxruntime.

    Raises Missing where an operator, or its batch, can't be turned.
    """
    reasons: list[str] = []
    for axis in (1, 0) if any(len(model.inputs[name].shape) == 3 for name in pairs) else (0,):
        try:
            return _converted(model, pairs, notes, axis)
        except (Missing, Failed) as reason:
            reasons.append(str(reason))
    raise Missing(reasons[0])


def _converted(model: Model, pairs: Mapping[str, str], notes: list[str], state_axis: int) -> Graph:
    batch = free_number(_numbers(model)) if model.batch_free else 1
    tracer, inputs = Tracer(batch, model.batch_free), {}
    states = []
    for name, value in model.inputs.items():
        if name in pairs:
            axis = state_axis if len(value.shape) == 3 else 0
            shape = [1 if i == axis or d is None else d for i, d in enumerate(value.shape)]
            if model.batch_free is False and value.shape[axis] not in {1, None}:
                raise Missing(f"the state {name!r} has no axis for the batch")
            states.append(State(name, name, pairs[name], torch.zeros(shape, dtype=value.dtype), axis))
            tracer.input(name, tuple(batch if i == axis else d for i, d in enumerate(shape)), value.dtype)
        elif MASKS.search(name) and len(model.inputs) > 1:
            tracer.call("ones", (batch, *value.state), outputs=(name,))
        else:
            inputs[name] = (value.state, value.dtype)
            tracer.input(name, (batch, *value.state), value.dtype)
    for name, tensor in model.constants.items():
        tracer.constant(tensor, name)
    integers: dict[str, list[int]] = {}
    alive = _needed(model)
    for node in model.nodes:
        if not alive.isdisjoint(node.outputs):
            if node.op not in LOWER or node.domain not in {"", "ai.onnx"}:
                raise Missing(f"the ONNX operator {node.domain + '.' if node.domain else ''}{node.op} is not a simple one")
            refs = [None if not name else _ref(tracer, name) for name in node.inputs]
            before = len(tracer.nodes)
            LOWER[node.op](Step(tracer, node.op, refs, node.options, node.outputs, model.opset, integers))
            if all(ref is None or ref.name in tracer.constants for ref in refs) and len(tracer.nodes) > before:
                _settled(tracer, node.outputs, before, integers)
    outputs = {name: name for name in model.outputs if name not in pairs.values() and name in tracer.values}
    single = tracer.graph(inputs, outputs, tuple(states))
    _compared(model, single, 3 if model.batch_free else 1, notes)
    if not model.batch_free:
        return fold(batched(single))
    graph = widen(single)
    if graph is None:
        raise Missing("its batch can't be freed")
    return fold(graph)


def _settled(tracer: Tracer, outputs: tuple[str, ...], before: int, integers: dict[str, list[int]]) -> None:
    """Whole numbers that follow from constants alone are constants: an exporter's arithmetic on shapes."""
    values = [tracer.values[name] for name in outputs if isinstance(tracer.values.get(name), Tensor)]
    if any(v.is_floating_point() or v.numel() > 64 or (tracer.free and tracer.batch in v.shape) for v in values):
        return
    del tracer.nodes[before:]
    for name, value in zip(outputs, values, strict=False):
        tracer.constant(value, name)
        integers[name] = [int(v) for v in value.reshape(-1).tolist()]


def _ref(tracer: Tracer, name: str) -> Any:
    if name not in tracer.values:
        raise Failed(f"the network reads {name!r}, which nothing gives")
    return Ref(name)


def _numbers(model: Model) -> set[int]:
    found = {d for v in model.inputs.values() for d in v.shape if d} | {d for t in model.constants.values() for d in t.shape}
    for tensor in model.constants.values():
        if not tensor.is_floating_point() and tensor.numel() <= 64:
            found.update(int(v) for v in tensor.reshape(-1).tolist())
    for node in model.nodes:
        found.update(integers(tuple(v for v in node.options.values() if not isinstance(v, Tensor))))
    return found


def _needed(model: Model) -> set[str]:
    alive = set(model.outputs)
    for node in reversed(model.nodes):
        if not alive.isdisjoint(node.outputs):
            alive.update(node.inputs)
    return alive


def _compared(model: Model, graph: Graph, n: int, notes: list[str]) -> None:
    """Run both on random inputs and compare each value; without onnxruntime nothing is compared."""
    try:
        import onnxruntime
    except ImportError:
        return
    made = random_inputs(graph, n)
    wanted = [name for node in graph.nodes for name in node.outputs if name in model.values]
    if not wanted:
        return
    try:
        session = open_session(onnxruntime, model.with_outputs(wanted), fast=True)
    except Failed as reason:
        if "NOT_IMPLEMENTED" not in str(reason):
            raise
        notes.append(f"not compared with onnxruntime, which can't run it in these numbers ({str(reason).rpartition(' : ')[2][:120]})")
        return
    feed = {}
    for item in session.get_inputs():
        value = made[item.name] if item.name in made else torch.ones((n, *model.inputs[item.name].state), dtype=model.inputs[item.name].dtype)
        feed[item.name] = value.reshape(model.inputs[item.name].state).numpy() if not model.inputs[item.name].batched else value.numpy()
    with runtime_errors(onnxruntime):
        theirs = session.run(wanted, feed)
    with torch.inference_mode():
        values = GraphModule(graph)(made, n, frozenset(wanted))
    for name, array in zip(wanted, theirs, strict=True):
        gap = difference([values[name]], [torch.as_tensor(np.asarray(array))])
        if gap > TOLERANCE * 10:
            raise Missing(f"turned into torch, the step {name!r} would differ from onnxruntime's by {gap:.2g}")


@contextlib.contextmanager
def runtime_errors(onnxruntime: Any) -> Any:
    """Onnxruntime's own exceptions as Failed, with their first line."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise _failed(error) from None
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            raise _failed(error) from None
        raise


def _failed(error: BaseException) -> Failed:
    text = str(error).splitlines()
    return Failed(f"onnxruntime can't run this file: {text[0][:240] if text else type(error).__name__}")


def open_session(onnxruntime: Any, data: bytes, fast: bool = False) -> Any:
    """A session on the processor; ``fast`` skips optimising the graph. Raises Failed."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    if fast:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with runtime_errors(onnxruntime):
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


_TOKENS = re.compile(r"(^|[_./-])(in|out|input|output|new|next|prev|previous|old|init|initial|n)(?=$|[_./-])")
_SHORT = re.compile(r"^([hc])[_]?[0nxt]$")


def _stem(name: str) -> str:
    text = name.lower().split(":")[0]
    text = _SHORT.sub(r"\1", text)
    for _ in range(3):
        text = _TOKENS.sub(r"\1", text).strip("_./-")
    text = re.sub(r"(?<=[a-z])(in|out)$", "", text)
    return re.sub(r"[_./-]+", "_", text).strip("_")


def pair_states(model: Model) -> dict[str, str]:
    """Inputs that come out again as outputs, by name and shape: {input: output}."""
    pairs: dict[str, str] = {}
    for name, value in model.inputs.items():
        fits = [o for o in model.outputs if o not in pairs.values() and _alike(value.shape, model.output_shapes[o]) and _stem(o) == _stem(name)]
        if len(fits) == 1 and name != fits[0]:
            pairs[name] = fits[0]
    return pairs if len(pairs) < len(model.inputs) else {}


def _alike(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> bool:
    return len(a) == len(b) and all(x == y or x is None or y is None for x, y in zip(a, b, strict=True))


def as_tensor(array: Any) -> Tensor:
    """A tensor of an array that onnxruntime gave."""
    return torch.as_tensor(np.asarray(array))
