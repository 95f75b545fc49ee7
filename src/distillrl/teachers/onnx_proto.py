"""Reading an ONNX file's bytes: sizes checked before memory is taken, and no file opened but its own weights' beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Failed, Missing
from distillrl.teachers.graph import MAX_NODES

MAX_BYTES = 1 << 30
MAX_NUMBERS = 1 << 28
ITEM_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
"""Bits of one number by TensorProto.DataType; others (text, complex, 4-bit) are refused."""
FIELDS = {1: "float_data", 11: "double_data", 7: "int64_data", 12: "uint64_data", 13: "uint64_data"}
DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


@dataclass(frozen=True)
class Value:
    """An input: its shape (None where a dimension is free), and whether its first axis is the batch."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    batched: bool

    @property
    def state(self) -> tuple[int, ...]:
        """The shape of one state."""
        return tuple(d for d in (self.shape[1:] if self.batched else self.shape) if d is not None)


@dataclass(frozen=True)
class OnnxNode:
    """One operator; tensors among its options are torch's."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A checked file: its graph in plain records, and the proto itself for onnxruntime."""

    proto: Any
    inputs: Mapping[str, Value]
    outputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    """Of one state, without the batch."""
    output_shapes: Mapping[str, tuple[int | None, ...]]
    constants: Mapping[str, Tensor]
    nodes: tuple[OnnxNode, ...]
    opset: int
    producer: str
    metadata: Mapping[str, str]
    batch_free: bool
    values: frozenset[str] = field(default_factory=frozenset)
    """The names that nodes give."""

    def with_outputs(self, names: Iterable[str]) -> bytes:
        """The file with these values as its outputs."""
        import onnx

        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return copy.SerializeToString()


def read_model(path: Path) -> Model:
    """Read and check a file. Raises Failed for anything damaged or hostile, Missing without the package onnx."""
    try:
        import onnx
        from google.protobuf.message import DecodeError, EncodeError
    except ImportError:
        raise Missing("reading an ONNX file needs the packages onnx and onnxruntime: pip install 'distillrl[onnx]'") from None
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise Failed(f"{path} is {size:,} bytes, more than the {MAX_BYTES:,} that are allowed for an ONNX file")
        proto = onnx.ModelProto.FromString(path.read_bytes())
        if not proto.graph.node and not proto.graph.output:
            raise Failed(f"{path} is damaged: it holds no ONNX graph")
        return _checked(onnx, path, proto)
    except OSError as error:
        raise Failed(f"{path} can't be read: {error.strerror or error}") from None
    except (DecodeError, EncodeError, RecursionError, UnicodeDecodeError) as error:
        raise Failed(f"{path} is damaged: not an ONNX file ({str(error)[:120]})") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        raise Failed(f"{path} is damaged: {type(error).__name__}: {str(error)[:160]}") from None


def _checked(onnx: Any, path: Path, proto: Any) -> Model:
    proto = _inlined(onnx, path, proto)
    graph = proto.graph
    if len(graph.node) > MAX_NODES:
        raise Failed(f"{path} has {len(graph.node)} operators, more than the {MAX_NODES} that are allowed")
    if graph.sparse_initializer:
        raise Failed(f"{path} holds sparse tensors, which a policy has no use for")
    named = [n for node in graph.node for n in (node.op_type, node.domain, *node.input, *node.output)] + [t.name for t in graph.initializer]
    named += [v.name for v in (*graph.input, *graph.output)] + [proto.producer_name] + [t for p in proto.metadata_props for t in (p.key, p.value)]
    if not all(isinstance(n, str) for n in named):
        raise Failed(f"{path} is damaged: a name in it is no text")
    constants = {t.name: _tensor(onnx, t, path) for t in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.domain not in DOMAINS or node.op_type == "EPContext":
            raise Failed(f"{path} uses the operator {node.domain}.{node.op_type}, which isn't one of ONNX's own")
        options = {a.name: _option(onnx, a, path) for a in node.attribute}
        if node.op_type == "Constant" and node.output:
            constants[node.output[0]] = _constant(options)
        else:
            nodes.append(OnnxNode(node.op_type, node.domain, tuple(node.input), tuple(node.output), options))
    inputs = {v.name: _value(v, path) for v in graph.input if v.name not in constants}
    if not inputs:
        raise Failed(f"{path} has no input")
    shapes = {v.name: _dims(v) for v in graph.output}
    outputs = {v.name: (_state_shape(_dims(v)), DTYPES.get(v.type.tensor_type.elem_type, torch.float32)) for v in graph.output}
    opset = max((o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"}), default=1)
    first = [v for v in inputs.values() if v.batched]
    free = bool(first) and all(v.shape[0] is None for v in first)
    metadata = {p.key: p.value[:500] for p in proto.metadata_props}
    values = frozenset(name for node in nodes for name in node.outputs if name)
    return Model(proto, inputs, outputs, shapes, constants, tuple(nodes), opset, proto.producer_name, metadata, free, values)


def _inlined(onnx: Any, path: Path, proto: Any) -> Any:
    """Local functions put in place, after counting what would come of it."""
    if not proto.functions:
        return proto
    bodies = {(f.domain, f.name): [(n.domain, n.op_type) for n in f.node] for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], depth: int) -> int:
        if depth > 64:
            raise Failed(f"{path} holds functions that call each other without end")
        if key not in bodies:
            return 1
        if key not in sizes:
            sizes[key] = min(MAX_NODES + 1, sum(size(k, depth + 1) for k in bodies[key]))
        return sizes[key]

    total = sum(size((n.domain, n.op_type), 0) for n in proto.graph.node)
    if total > MAX_NODES:
        raise Failed(f"{path} grows to more than the {MAX_NODES} operators that are allowed")
    from onnx import inliner

    return inliner.inline_local_functions(proto)


def _dims(value: Any) -> tuple[int | None, ...]:
    dims = []
    for d in value.type.tensor_type.shape.dim:
        dims.append(int(d.dim_value) if d.HasField("dim_value") and d.dim_value > 0 else None)
    return tuple(dims)


def _state_shape(dims: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(d if d is not None else 1 for d in dims[1:])


def _value(info: Any, path: Path) -> Value:
    kind = info.type.tensor_type.elem_type
    if kind not in DTYPES:
        raise Failed(f"{path}: its input {info.name!r} is of ONNX type {kind}, which no observation is")
    dims = _dims(info)
    batched = len(dims) > 1 or (len(dims) == 1 and dims[0] is None)
    if math.prod(d or 1 for d in dims) > MAX_NUMBERS:
        raise Failed(f"{path}: its input {info.name!r} is {list(dims)}, too large for an observation")
    return Value(dims, DTYPES[kind], batched)


def _option(onnx: Any, attribute: Any, path: Path) -> Any:
    kinds = onnx.AttributeProto
    if attribute.type == kinds.TENSOR:
        return _tensor(onnx, attribute.t, path)
    if attribute.type in {kinds.SPARSE_TENSOR, kinds.SPARSE_TENSORS, kinds.TENSORS}:
        raise Failed(f"{path} holds a kind of tensor that a policy has no use for")
    if attribute.type in {kinds.GRAPH, kinds.GRAPHS}:
        for sub in [attribute.g, *attribute.graphs]:
            for tensor in sub.initializer:
                _tensor(onnx, tensor, path)
            for node in sub.node:
                for inner in node.attribute:
                    _option(onnx, inner, path)
        return None
    if attribute.ref_attr_name:
        return None
    return onnx.helper.get_attribute_value(attribute)


def _constant(options: Mapping[str, Any]) -> Tensor:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in options:
            value = options[name]
            return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64 if "int" in name else torch.float32)
    raise Failed("a Constant of the ONNX file holds text or nothing")


def _tensor(onnx: Any, tensor: Any, path: Path) -> Tensor:
    """A tensor whose bytes are as many as its shape says; external bytes only from a plain file beside the model."""
    dims, kind = list(tensor.dims), tensor.data_type
    if any(d < 0 for d in dims) or math.prod(dims) > MAX_NUMBERS:
        raise Failed(f"{path}: the tensor {tensor.name!r} claims the shape {dims[:8]}, more than the {MAX_NUMBERS:,} numbers that are allowed")
    if kind not in ITEM_BITS:
        raise Failed(f"{path}: the tensor {tensor.name!r} is of ONNX type {kind}, which a policy has no use for")
    count = math.prod(dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.raw_data = _external(tensor, path, count * ITEM_BITS[kind] // 8)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) * 8 != count * ITEM_BITS[kind]:
            raise Failed(f"{path}: the tensor {tensor.name!r} claims the shape {dims[:8]} and holds {len(tensor.raw_data)} bytes")
    elif len(getattr(tensor, FIELDS.get(kind, "int32_data"))) != count:
        raise Failed(f"{path}: the tensor {tensor.name!r} claims the shape {dims[:8]} and holds another number of values")
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype.name in {"uint16", "uint32", "uint64"}:
        array = array.astype(np.int64)
    elif array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array))


def _external(tensor: Any, path: Path, size: int) -> bytes:
    told = {e.key: e.value for e in tensor.external_data}
    name = told.get("location", "")
    if not name or name != Path(name).name or name in {".", ".."} or "\\" in name or "\0" in name:
        raise Failed(f"{path}: the tensor {tensor.name!r} asks for the file {name!r}; only a file beside the model itself is read")
    file = path.parent / name
    if file.is_symlink():
        raise Failed(f"{path}: the tensor {tensor.name!r} asks for {name!r}, which is a link to elsewhere")
    if not file.is_file():
        raise Failed(f"{path} keeps its weights in {name!r}, which must lie beside it and doesn't")
    try:
        offset, length = int(told.get("offset", "0")), int(told.get("length", str(size)))
    except ValueError:
        raise Failed(f"{path}: the tensor {tensor.name!r} has no number as its offset or length") from None
    if length != size or offset < 0 or offset + length > file.stat().st_size:
        raise Failed(f"{path}: the tensor {tensor.name!r} says that {length} bytes lie at {offset} of {name!r}; its shape needs {size}")
    with file.open("rb") as handle:
        handle.seek(offset)
        return handle.read(length)
