"""ONNX files with operators that aren't simple ones, run by onnxruntime, many states in one call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl.actions import Head
from distillrl.errors import Failed, Missing
from distillrl.policies import ACTION, Memory
from distillrl.records import Prediction, Spec
from distillrl.teachers.fitting import Reading, Seen, input_tensor, read, see
from distillrl.teachers.graph import difference
from distillrl.teachers.graphpolicy import decode, head_kind, knowledge, reshaped
from distillrl.teachers.onnx_proto import Model

ENDLESS = frozenset({"Loop", "Scan", "SequenceMap"})
GROWING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "RandomNormal", "RandomUniform", "EyeLike", "Resize", "Upsample", "Pad", "OneHot", "CenterCropPad"})
MAX_NUMBERS = 1 << 26


@dataclass
class RuntimePolicy:
    """See policies.Policy; ``one_by_one`` where the file's batch of one couldn't be widened."""

    spec: Spec
    gives: frozenset[str]
    info: Mapping[str, Any]
    session: Any
    model: Model
    seen: Seen
    reading: Reading
    states: Mapping[str, tuple[str, int]]
    """input → (output, batch axis)"""
    one_by_one: bool = False
    head: Head = field(init=False)

    def __post_init__(self) -> None:
        self.head = Head.of(head_kind(self.reading), self.reading.space)

    def init(self, n: int) -> Memory:
        """Zeros [n, ...] for each state."""
        return {name: torch.zeros(n, *_rest(self.model.inputs[name].shape, axis), dtype=self.model.inputs[name].dtype) for name, (_, axis) in self.states.items()}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See Policy.act."""
        first, group = next(iter(self.seen.observations.items()))
        lead = obs[first].shape[: obs[first].dim() - len(group.shape)]
        flat = {name: obs[name].reshape(-1, *g.shape) for name, g in self.seen.observations.items()}
        feed: dict[str, Tensor] = {}
        for name, value in self.model.inputs.items():
            if name in self.states:
                kept = memory[name]
                if starts is not None:
                    kept = kept.masked_fill(starts.bool().reshape(-1, *[1] * (kept.dim() - 1)), 0)
                feed[name] = kept.movedim(0, self.states[name][1])
            elif name in self.seen.sources:
                feed[name] = input_tensor(flat, self.seen.sources[name], self.seen.observations, value.state, value.dtype)
            else:
                feed[name] = torch.ones((lead.numel(), *value.state), dtype=value.dtype)
        names = [n for n in (self.reading.action, self.reading.spread, self.reading.value, self.reading.q) if n] + [o for o, _ in self.states.values()]
        outputs = run(self.session, self.model, feed, names, int(lead.numel()), self.states, self.one_by_one)
        reading = self.reading
        raw = outputs[reading.action]
        action = decode(reading, self.head, raw, outputs[reading.spread] if reading.spread else None)
        q = outputs[reading.q or reading.action].flatten(1) if (reading.q and "q" in wants) or reading.kind == "greedy" else None
        worth = outputs[reading.value].reshape(-1) if reading.value and "value" in wants else None
        prediction = Prediction(action, q=q, value=worth)
        if len(lead) != 1:
            prediction = reshaped(prediction, lead)
        return prediction, {name: outputs[out].movedim(axis, 0) for name, (out, axis) in self.states.items()}


def _rest(shape: tuple[int | None, ...], axis: int) -> list[int]:
    return [d or 1 for i, d in enumerate(shape) if i != axis]


def run(session: Any, model: Model, feed: Mapping[str, Tensor], names: list[str], n: int, states: Mapping[str, tuple[str, int]], one_by_one: bool) -> dict[str, Tensor]:
    """Outputs [N, ...] (states with their own axis) of inputs [N, ...]."""
    import onnxruntime

    from distillrl.teachers.onnx import runtime_errors

    known = {i.name for i in session.get_inputs()}
    wanted = list(dict.fromkeys(names))
    in_axis = {name: axis for name, (_, axis) in states.items()}
    out_axis = dict(states.values())
    with runtime_errors(onnxruntime):
        if not one_by_one:
            got = session.run(wanted, {k: v.contiguous().numpy() for k, v in feed.items() if k in known})
            return {k: torch.as_tensor(np.asarray(v)) for k, v in zip(wanted, got, strict=True)}
        rows = []
        for i in range(n):
            one = {k: v.narrow(in_axis.get(k, 0), i, 1).contiguous().numpy() for k, v in feed.items() if k in known}
            one = {k: v if model.inputs[k].batched else v[0] for k, v in one.items()}
            rows.append(session.run(wanted, one))
    made = {}
    for j, name in enumerate(wanted):
        parts = [torch.as_tensor(np.asarray(row[j])) for row in rows]
        axis = out_axis.get(name, 0)
        single = parts[0].dim() > axis and parts[0].shape[axis] == 1 and any(v.batched for v in model.inputs.values())
        made[name] = torch.cat(parts, axis) if single else torch.stack(parts, 0)
    return made


def load_runtime(path: Path, model: Model, pairs: Mapping[str, str], sees: str | None, spec: Spec | None, info: Mapping[str, Any], trust: bool) -> RuntimePolicy:
    """A policy that onnxruntime runs. Raises Missing without it, Failed where the file could take memory or time without bound."""
    try:
        import onnxruntime
    except ImportError:
        raise Missing(f"{path.name} has operators that only onnxruntime can run: pip install 'distillrl[onnx]'") from None
    from distillrl.teachers.onnx import MASKS, open_session

    if not trust:
        bounded(path, model)
    states = {name: (out, 1 if len(model.inputs[name].shape) == 3 and model.inputs[name].shape[1] in {1, None} else 0) for name, out in pairs.items()}
    inputs = {n: (v.state, v.dtype) for n, v in model.inputs.items() if n not in states and not (MASKS.search(n) and len(model.inputs) > 1)}
    seen = see(inputs, spec, sees, f"{path.name} (ONNX)")
    makers = {o: n.op for n in model.nodes for o in n.outputs}
    reading = read({n: (*s, makers.get(n, "")) for n, s in model.outputs.items() if n not in pairs.values()}, spec.action if spec else None, f"{path.name} (ONNX)")
    session, one_by_one = _session(onnxruntime, open_session, model, states, inputs)
    notes = [*info["notes"], *seen.notes, *reading.notes]
    if one_by_one:
        notes.append("its batch of one couldn't be widened: states are asked about one by one, which is slow")
    made = Spec(seen.observations, reading.space)
    told = {**info, "notes": notes, "memory": list(states), "layers": [n.op for n in model.nodes][:64], "parameters": sum(t.numel() for t in model.constants.values() if t.is_floating_point())}
    return RuntimePolicy(made, frozenset(knowledge(reading)), told, session, model, seen, reading, states, one_by_one)


def bounded(path: Path, model: Model) -> None:
    """Refuse operators that can run without end, or give more numbers than can be foretold."""
    import onnx

    for op in [n.op for n in model.nodes] + [n.op_type for g in _subgraphs(model.proto.graph) for n in g.node]:
        if op in ENDLESS:
            raise Failed(f"{path} uses the operator {op}, which can run without end; --trust runs it all the same")
    try:
        inferred = onnx.shape_inference.infer_shapes(model.proto, strict_mode=False, data_prop=True)
    except Exception as error:  # onnx raises its own C++ errors here
        raise Failed(f"{path}: the shapes of its steps can't be worked out ({str(error).splitlines()[0][:120]})") from None
    sizes = {v.name: [d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim] if v.type.tensor_type.HasField("shape") else None for v in (*inferred.graph.value_info, *inferred.graph.output)}  # fmt: skip
    for node in model.nodes:
        for name in node.outputs:
            shape = sizes.get(name)
            if shape is not None and math.prod(d or 1 for d in shape) > MAX_NUMBERS:
                raise Failed(f"{path}: its step {node.op} would give {math.prod(d or 1 for d in shape):,} numbers")
            if node.op in GROWING and name and (shape is None or sum(d is None for d in shape) > 1):
                raise Failed(f"{path}: how much its step {node.op} gives can't be foretold; --trust runs it all the same")


def _subgraphs(graph: Any, depth: int = 0) -> list[Any]:
    found = []
    for node in graph.node:
        for attribute in node.attribute:
            for sub in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                found += [sub, *(_subgraphs(sub, depth + 1) if depth < 20 else [])]
    return found


def _session(onnxruntime: Any, open_session: Any, model: Model, states: Mapping[str, tuple[str, int]], inputs: Mapping[str, Any]) -> tuple[Any, bool]:
    """A session that takes any batch and agrees with the file's own, else the file's own, one by one."""
    single = open_session(onnxruntime, model.proto.SerializeToString())
    if all(v.batched for v in model.inputs.values()):
        try:
            wide = single if model.batch_free else open_session(onnxruntime, widened(model, states))
            if _agree(wide, single, model, states):
                return wide, False
        except Failed:
            pass
    return single, True


def widened(model: Model, states: Mapping[str, tuple[str, int]]) -> bytes:
    """The file with a free batch: dimensions of inputs and outputs, and the constant shapes that say 1."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    axes = {**{name: axis for name, (_, axis) in states.items()}, **dict(states.values())}
    for info in (*proto.graph.input, *proto.graph.output):
        dims = info.type.tensor_type.shape.dim
        if len(dims) > axes.get(info.name, 0):
            dims[axes.get(info.name, 0)].dim_param = "batch"
    del proto.graph.value_info[:]
    shapes = {name: t.tolist() for name, t in model.constants.items() if t.dtype == torch.int64 and t.dim() == 1}
    for index, node in enumerate(proto.graph.node):
        target = shapes.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
        if target and target[0] == 1:
            free = [0, *target[1:]] if -1 in target else [-1, *target[1:]]
            name = f"{node.input[1]}·{index}"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(free, np.int64), name))
            node.input[1] = name
    return proto.SerializeToString()


def _agree(wide: Any, single: Any, model: Model, states: Mapping[str, tuple[str, int]]) -> bool:
    generator, n = torch.Generator().manual_seed(0), 3
    feed = {}
    for name, value in model.inputs.items():
        axis = states[name][1] if name in states else 0
        shape = [n if i == axis else d or 1 for i, d in enumerate(value.shape)]
        feed[name] = torch.randn(shape, generator=generator).to(value.dtype)
    names = list(model.outputs)
    together = run(wide, model, feed, names, n, states, False)
    alone = run(single, model, feed, names, n, states, True)
    return all(together[k].shape == alone[k].shape and difference([together[k]], [alone[k]]) <= 1e-5 for k in names)
