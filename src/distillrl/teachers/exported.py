"""Programs of ``torch.export.save`` (``.pt2``): a zip with the operators as JSON and the weights as plain bytes.

Read without torch.export, which would unpickle parts of it. Both layouts are known: the archive of PyTorch 2.8 and
newer (``models/model.json``, ``data/weights/…``), and the older ``serialized_exported_program.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillrl.errors import Failed, Missing
from distillrl.records import Spec
from distillrl.teachers import tensorfiles
from distillrl.teachers.archives import Archive, names_in, read_file, read_json
from distillrl.teachers.converting import policy_of
from distillrl.teachers.fitting import read, see
from distillrl.teachers.graph import Graph, Ref, State, outputs_of
from distillrl.teachers.tracing import Kept, Tracer, settled

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "torch.export"
MAX_BYTES = 1 << 30
MAX_JSON = 64 << 20
OLD = "serialized_exported_program.json"
DTYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
"""torch._export.serde.schema.ScalarType."""
IGNORED = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking", "copy"})
SILENT = frozenset({"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size"})


@dataclass(frozen=True)
class Program:
    """What was read: the JSON of the graph, tensors by the name of the graph's input, inputs and outputs of the user."""

    graph: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    buffers: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]
    mutations: Mapping[str, str]
    """graph input of a buffer → value that it becomes."""


def sniff(path: Path) -> bool:
    """Whether the file is a zip with an exported program."""
    return any(n.endswith(("models/model.json", OLD)) for n in names_in(path))


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of an exported program. Raises Failed (damaged, hostile), Misconfigured (another environment), Missing (an operator)."""
    who = f"{path.name} (torch.export)"
    try:
        program = read_program(path)
        graph = traced(program)
    except Missing as reason:
        raise Missing(f"{path} can't be turned into a network: {reason}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, RecursionError) as error:
        raise Failed(f"{path} is damaged: its program makes no sense ({type(error).__name__}: {str(error)[:120]})") from None
    seen = see(graph.inputs, spec, options.sees, who)
    reading = read(outputs_of(graph), spec.action if spec else None, who)
    return policy_of(graph, seen, reading, {"format": TITLE, "notes": []}, len(spec.observations) if spec else 1)


def read_program(path: Path) -> Program:
    """The graph and its tensors."""
    archive = Archive(read_file(path, MAX_BYTES), str(path))
    old = next((n for n in archive.members if n.endswith(OLD)), None)
    if old is not None:
        program, weights = _old(archive, old, path)
    else:
        model = next((n for n in archive.members if n.endswith("models/model.json")), None)
        if model is None:
            raise Failed(f"{path} is no exported program: it lacks models/model.json")
        program = read_json(archive.read(model, MAX_JSON), str(path))
        root = model.removesuffix("models/model.json")
        weights = {**_weights(archive, root, "weights", "model_weights_config.json", path), **_weights(archive, root, "constants", "model_constants_config.json", path)}
    return _program(program["graph_module"], weights, path)


def _old(archive: Archive, name: str, path: Path) -> tuple[Any, dict[str, Tensor]]:
    root = name.removesuffix(OLD)
    weights: dict[str, Tensor] = {}
    for part in ("serialized_state_dict.pt", "serialized_constants.pt"):
        if root + part in archive and (data := archive.read(root + part)):
            found = tensorfiles.tree(data, f"{path}: {part}")
            weights.update({k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {})
    return read_json(archive.read(name, MAX_JSON), str(path)), weights


def _weights(archive: Archive, root: str, folder: str, config: str, path: Path) -> dict[str, Tensor]:
    place = f"{root}data/{folder}/"
    if place + config not in archive:
        return {}
    made = {}
    for name, told in read_json(archive.read(place + config, MAX_JSON), str(path))["config"].items():
        if told.get("use_pickle"):
            found = tensorfiles.tree(archive.read(place + told["path_name"]), f"{path}: {name}")
            if isinstance(found, Tensor):
                made[name] = found
        else:
            made[name] = _tensor(archive.read(place + told["path_name"]), told["tensor_meta"], f"{path}: the tensor {name!r}")
    return made


def _sizes(items: Any) -> list[int]:
    return [int(i["as_int"]) for i in items]


def _tensor(data: bytes, meta: Mapping[str, Any], what: str) -> Tensor:
    dtype = DTYPES.get(meta["dtype"])
    if dtype is None:
        raise Failed(f"{what} is of a type that a policy has no use for")
    shape, strides, offset = _sizes(meta["sizes"]), _sizes(meta["strides"]), int(meta["storage_offset"]["as_int"])
    stored = len(data) // dtype.itemsize
    last = offset + sum((s - 1) * t for s, t in zip(shape, strides, strict=True)) if math.prod(shape) else 0
    if min([0, offset, *shape, *strides]) < 0 or len(shape) > 16 or math.prod(shape) > stored or last >= max(stored, 1):
        raise Failed(f"{what} claims the shape {shape[:8]} and has {len(data)} bytes")
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[: stored * dtype.itemsize]), dtype=dtype).as_strided(shape, strides, offset).clone()


def _program(module: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> Program:
    tensors: dict[str, Tensor] = {}
    buffers, inputs = {}, []
    for spec in module["signature"]["input_specs"]:
        ((kind, told),) = spec.items()
        if kind == "user_input":
            inputs.append(told["arg"]["as_tensor"]["name"] if "as_tensor" in told["arg"] else "")
        elif kind in {"parameter", "buffer", "tensor_constant"}:
            name = told.get("parameter_name") or told.get("buffer_name") or told.get("tensor_constant_name")
            if name not in weights:
                raise Failed(f"{path} is damaged: it lacks the tensor {str(name)[:80]!r}")
            tensors[told["arg"]["name"]] = weights[name]
            if kind == "buffer":
                buffers[name] = told["arg"]["name"]
    outputs: list[tuple[str, str]] = []
    mutations: dict[str, str] = {}
    for spec in module["signature"]["output_specs"]:
        ((kind, told),) = spec.items()
        if kind == "user_output" and "as_tensor" in told["arg"]:
            outputs.append((f"output_{len(outputs)}" if outputs else "output", told["arg"]["as_tensor"]["name"]))
        elif kind == "buffer_mutation":
            mutations[buffers[told["buffer_name"]]] = told["arg"]["name"]
    if not [i for i in inputs if i] or not outputs:
        raise Failed(f"{path} holds no policy: it has {len(inputs)} inputs and {len(outputs)} outputs")
    return Program(module["graph"], tensors, frozenset(buffers.values()), tuple(i for i in inputs if i), tuple(outputs), mutations)


def traced(program: Program) -> Graph:
    """The program as a graph that is free in its batch. Raises Missing, Failed."""
    taken = {d for t in program.tensors.values() for d in t.shape} | set(range(5))
    for name in program.inputs:
        taken |= {int(s["as_int"]) for s in program.graph["tensor_values"][name]["sizes"] if "as_int" in s}
    return settled(lambda batch, free, states: _trace(program, batch, free, states), taken)


def _trace(program: Program, batch: int, free: bool, states: Mapping[str, Kept]) -> tuple[Graph, dict[str, Tensor]]:
    tracer = Tracer(batch, free)
    inputs = {}
    for name in program.inputs:
        told = program.graph["tensor_values"][name]
        shape = tuple(int(s["as_int"]) if "as_int" in s else batch for s in told["sizes"])[1:]
        inputs[name] = (shape, DTYPES.get(told["dtype"], torch.float32))
        tracer.input(name, (batch, *shape), inputs[name][1])
    for name, tensor in program.tensors.items():
        if name in states:
            kept, axis = states[name]
            tracer.input(name, tuple(batch if i == axis else d for i, d in enumerate(kept.shape)), kept.dtype)
        else:
            tracer.constant(tensor, name)
    walk = _Walk(tracer, program.buffers)
    for node in program.graph["nodes"]:
        walk.node(node)
    written = {**{b: walk.now(Ref(v)).name for b, v in program.mutations.items()}, **walk.written}
    outputs = {name: walk.now(Ref(value)).name for name, value in program.outputs}
    kept_states = tuple(State(b, b, written[b], torch.zeros_like(t), a) for b, (t, a) in states.items())
    return tracer.graph(inputs, outputs, kept_states), {b: program.tensors[b] for b in written}


class _Walk:
    """Follows the nodes in order; ``written``: buffers that were copied into."""

    def __init__(self, tracer: Tracer, buffers: frozenset[str]) -> None:
        self.tracer, self.buffers = tracer, buffers
        self.written: dict[str, str] = {}
        self.plain: dict[str, Any] = {}
        self.alias: dict[str, str] = {}

    def now(self, ref: Ref) -> Ref:
        """The value under this name, after writes into it."""
        seen = 0
        name = ref.name
        while name in self.alias and seen < 1000:
            name, seen = self.alias[name], seen + 1
        return Ref(name)

    def node(self, node: Mapping[str, Any]) -> None:
        """Write one node down."""
        target = str(node["target"])
        op = target.removeprefix("torch.ops.aten.").split(".")[0]
        if op in SILENT:
            return
        args = [self.argument(i["arg"]) for i in node["inputs"] if i.get("kind", 1) == 1]
        kwargs = {i["name"]: self.argument(i["arg"]) for i in node["inputs"] if i.get("kind", 1) != 1 and i["name"] not in IGNORED}
        names = _names(node["outputs"])
        if op in {"sym_size", "item"} or target.startswith("_operator."):
            self.plain[names[0]] = self._number(target, op, args)
            return
        if not target.startswith("torch.ops.aten."):
            raise Missing(f"the operator {target!r} is not among those that may be run")
        if op == "copy_":
            self._copy(args[0], args[1], names)
        elif op == "slice" and args[0].name in self.buffers and _whole(args):
            self.alias[names[0]] = args[0].name
        else:
            self._record(op, args, kwargs, names)

    def _record(self, op: str, args: list[Any], kwargs: dict[str, Any], names: tuple[str, ...]) -> None:
        in_place = op.endswith("_") and not op.startswith("_")
        result = self.tracer.call(op.rstrip("_") if in_place else op, *args, outputs=names, **kwargs)
        made = result if isinstance(result, list) else [result]
        if in_place:
            if args[0].name in self.buffers:
                self.written[args[0].name] = made[0].name
            self.alias[args[0].name] = made[0].name

    def _copy(self, target: Ref, source: Ref, names: tuple[str, ...]) -> None:
        if target.name not in self.buffers:
            raise Missing("the program writes into a part of a tensor")
        if self.tracer.shape(source) != self.tracer.shape(target):
            source = self.tracer.call("expand", source, tuple(self.tracer.shape(target)))
        self.written[target.name] = source.name
        self.alias[target.name] = source.name
        if names:
            self.alias[names[0]] = source.name

    def _number(self, target: str, op: str, args: list[Any]) -> Any:
        if op == "sym_size":
            return self.tracer.shape(args[0])[args[1]]
        known = {"_operator.add": lambda a, b: a + b, "_operator.mul": lambda a, b: a * b, "_operator.sub": lambda a, b: a - b, "_operator.floordiv": lambda a, b: a // b}
        if target in known and all(isinstance(a, (int, float)) for a in args):
            return known[target](*args)
        if target in {"_operator.ge", "_operator.le", "_operator.eq", "_operator.lt", "_operator.gt", "_operator.ne"}:
            return True
        raise Missing(f"the operator {target!r} is not among those that may be run")

    def argument(self, arg: Mapping[str, Any]) -> Any:
        """An argument's value: a Ref, a number, a dtype, a list or None."""
        ((kind, value),) = arg.items()
        if kind == "as_tensor":
            return self.now(Ref(value["name"]))
        if kind in {"as_tensors", "as_optional_tensors"}:
            items = [v if kind == "as_tensors" else v.get("as_tensor") for v in value]
            return tuple(self.now(Ref(v["name"])) if v else None for v in items)
        if kind in {"as_int", "as_float", "as_bool", "as_string"}:
            return value if kind != "as_float" else float(value)
        if kind in {"as_ints", "as_floats", "as_bools"}:
            return tuple(value)
        if kind in {"as_sym_int", "as_sym_bool", "as_sym_float"}:
            return self._symbol(value)
        if kind == "as_sym_ints":
            return tuple(self._symbol(v) for v in value)
        if kind == "as_scalar_type":
            return DTYPES.get(value, torch.float32)
        if kind in {"as_none", "as_device", "as_layout", "as_memory_format"}:
            return None
        raise Missing(f"an argument of the kind {kind!r} is not known")

    def _symbol(self, value: Mapping[str, Any]) -> Any:
        return self.plain[value["as_name"]] if "as_name" in value else value["as_int"]


def _whole(args: list[Any]) -> bool:
    start, end, step = (args + [None] * 5)[2:5]
    return start in {None, 0} and (end is None or end >= 1 << 31) and step in {None, 1}


def _names(outputs: Any) -> tuple[str, ...]:
    found: list[str] = []
    for output in outputs:
        ((kind, value),) = output.items()
        if kind == "as_tensor":
            found.append(value["name"])
        elif kind == "as_tensors":
            found += [v["name"] for v in value]
        elif kind in {"as_sym_int", "as_sym_bool", "as_sym_float"}:
            found.append(value.get("as_name", ""))
        elif kind == "as_none":
            found.append("")
    return tuple(found)
