"""Keras 3's ``.keras`` files: a zip with the layers as JSON and the weights as HDF5; Sequential and functional models.

Layers are rebuilt from a closed list; Lambda layers and registered classes, which hold code, are refused. Keras itself
isn't needed, h5py is (``pip install 'distillrl[keras]'``).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Failed, Missing
from distillrl.records import Spec
from distillrl.teachers.archives import Archive, names_in, read_file, read_json
from distillrl.teachers.converting import policy_of
from distillrl.teachers.fitting import read, see
from distillrl.teachers.graph import Ref, fold, free_number, outputs_of
from distillrl.teachers.keras_layers import LAYERS, OPERATIONS
from distillrl.teachers.tracing import Tracer

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "Keras 3"
MAX_BYTES = 1 << 30
MAX_WEIGHTS = 100_000
MAX_DEPTH = 8
"""Models inside of models."""


def sniff(path: Path) -> bool:
    """Whether the file is a zip with a Keras configuration."""
    return {"config.json", "model.weights.h5"} <= set(names_in(path))


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of a .keras file. Raises Failed (damaged, hostile), Missing (a layer not known here, h5py), Misconfigured."""
    who = f"{path.name} (Keras)"
    try:
        archive = Archive(read_file(path, MAX_BYTES), str(path))
        config = read_json(archive.read("config.json"), str(path))
        weights = _weights(archive.read("model.weights.h5"), str(path))
        walk = Walk(str(path), weights)
        inputs, outputs = walk.model(config)
        graph = fold(walk.tracer.graph(inputs, outputs))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise Failed(f"{path} is damaged: its layers make no sense ({type(error).__name__}: {str(error)[:100]})") from None
    version = read_json(archive.read("metadata.json"), str(path)).get("keras_version", "?") if "metadata.json" in archive else "?"
    seen = see(graph.inputs, spec, options.sees, who)
    reading = read(outputs_of(graph), spec.action if spec else None, who)
    info = {"format": TITLE, "saved_by": f"keras {str(version)[:20]}", "notes": []}
    return policy_of(graph, seen, reading, info, len(spec.observations) if spec else 1)


def _weights(data: bytes, where: str) -> dict[str, list[np.ndarray]]:
    """Layer name → its arrays in order. Links, virtual and external data, and filters are refused."""
    try:
        import h5py
    except ImportError:
        raise Missing("reading a .keras file needs the package h5py: pip install 'distillrl[keras]'") from None
    found: dict[str, list[np.ndarray]] = {}
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            _group(h5py, file, where, found, len(data), 0)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, UnicodeError, MemoryError) as error:
        raise Failed(f"{where} is damaged: its weights can't be read ({str(error)[:100]})") from None
    return found


def _group(h5py: Any, group: Any, where: str, found: dict[str, list[np.ndarray]], total: int, depth: int) -> None:
    if depth > 16 or len(found) > MAX_WEIGHTS:
        raise Failed(f"{where} is refused: its weights are nested too deeply")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise Failed(f"{where} is refused: its weights hold a link to elsewhere ({str(name)[:40]!r})")
        item = group[name]
        if isinstance(item, h5py.Group) and name == "vars":
            layer = item.attrs.get("name", group.name.rsplit("/", 1)[-1])
            if group.name.endswith("/cell") and "vars" in group.parent:  # a recurrent layer's, whose own name is the one that is known
                layer = group.parent["vars"].attrs.get("name", layer)
            layer = layer.decode() if isinstance(layer, bytes) else str(layer)
            if len(item) == 0:
                continue
            found[layer] = [_array(item[k], where, total) for k in sorted(item, key=int)]
        elif isinstance(item, h5py.Group):
            _group(h5py, item, where, found, total, depth + 1)


def _array(item: Any, where: str, total: int) -> np.ndarray:
    if item.external or item.is_virtual or item.compression or item.dtype.kind not in "fiu" or item.size * item.dtype.itemsize > total:
        raise Failed(f"{where} is refused: a tensor of shape {list(item.shape)[:8]} lies outside of the file, is packed, or is larger than it")
    return np.asarray(item[()])


class Walk:
    """Writes the layers down, in the words of ``operators``."""

    def __init__(self, where: str, weights: Mapping[str, list[np.ndarray]]) -> None:
        self.where, self.weights = where, weights
        taken = {d for arrays in weights.values() for a in arrays for d in a.shape} | set(range(5))
        self.tracer = Tracer(free_number(taken), True, told=True)
        self.inputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def model(self, config: Mapping[str, Any]) -> tuple[dict[str, tuple[tuple[int, ...], torch.dtype]], dict[str, str]]:
        """Inputs and outputs of a whole model."""
        names, values = self._inside(config, None, 0)
        return self.inputs, {n if len(names) > 1 else "output": v.name for n, v in zip(names, values, strict=True)}

    def _inside(self, model: Mapping[str, Any], given: list[Ref] | None, depth: int) -> tuple[list[str], list[Ref]]:
        """A model's outputs by name; ``given`` are the inputs of one that is a layer of another."""
        kind = str(model["class_name"])
        if kind not in {"Sequential", "Functional", "Model"} or depth > MAX_DEPTH:
            raise Missing(f"{self.where}: a Keras model of the class {kind!r} is not known here; Sequential and functional ones are (others hold code)")
        return self._sequential(model["config"]["layers"], given, depth) if kind == "Sequential" else self._functional(model["config"], given, depth)

    def _sequential(self, layers: list[Any], given: list[Ref] | None, depth: int) -> tuple[list[str], list[Ref]]:
        x: Ref | None = given[0] if given else None
        for layer in layers:
            if layer["class_name"] == "InputLayer":
                x = x or self._input("obs", layer["config"]["batch_shape"])
                continue
            x = self.layer(layer, [x or self._input("obs", layer["build_config"]["input_shape"])], depth)
        assert x is not None
        return ["output"], [x]

    def _functional(self, config: Mapping[str, Any], given: list[Ref] | None, depth: int) -> tuple[list[str], list[Ref]]:
        """Each use of a layer as soon as what comes into it is there: a layer may be used several times."""
        values: dict[tuple[str, int], Ref] = {}
        entries = _histories(config["input_layers"])
        waiting: list[tuple[Mapping[str, Any], str, int]] = []
        for layer in config["layers"]:
            name = layer.get("name") or layer["config"]["name"]
            if layer["class_name"] == "InputLayer":
                place = [n for n, _ in entries].index(name) if given else 0
                values[name, 0] = given[place] if given else self._input(name, layer["config"]["batch_shape"])
            else:
                waiting += [(layer, name, i) for i in range(len(layer["inbound_nodes"]))]
        while waiting:
            ready = [w for w in waiting if all(h in values for h in _histories(w[0]["inbound_nodes"][w[2]]["args"]))]
            if not ready or len(waiting) > MAX_WEIGHTS:
                raise Failed(f"{self.where} is damaged: what comes into its layer {str(waiting[0][1])[:60]!r} is never made")
            for layer, name, node in ready:
                values[name, node] = self._used(layer, layer["inbound_nodes"][node], values, depth)
            waiting = [w for w in waiting if (w[1], w[2]) not in values]
        outputs = _histories(config["output_layers"])
        return [n for n, _ in outputs], [values[h] for h in outputs]

    def _used(self, layer: Mapping[str, Any], node: Mapping[str, Any], values: Mapping[tuple[str, int], Ref], depth: int) -> Ref:
        """One use of a layer, or of an operation of ``keras.ops`` on tensors and numbers."""
        if str(layer.get("module", "keras.layers")).startswith(("keras.src.ops", "keras.ops")):
            make = OPERATIONS.get(str(layer["class_name"]))
            if make is None:
                raise Missing(f"{self.where}: the operation {str(layer['class_name'])[:60]!r} of keras.ops is not known here; known are {', '.join(sorted(OPERATIONS))}")
            arguments = [_argument(a, values) for a in node["args"]]
            return make(self, arguments, {**layer["config"], **(node.get("kwargs") or {})})
        return self.layer(layer, [values[h] for h in _histories(node["args"])], depth)

    def _input(self, name: str, shape: list[Any]) -> Ref:
        sizes = tuple(int(s) for s in shape[1:])
        self.inputs[name] = (sizes, torch.float32)
        return self.tracer.input(name, (self.tracer.batch, *sizes))

    def layer(self, layer: Mapping[str, Any], inputs: list[Any], depth: int) -> Ref:
        """Write one layer down."""
        kind, config = str(layer["class_name"]), layer["config"]
        if kind in {"Sequential", "Functional"} and str(layer.get("module")).split(".")[0] == "keras":
            return self._inside(layer, inputs, depth + 1)[1][0]
        make = LAYERS.get(kind)
        if make is None or str(layer.get("module", "keras.layers")).split(".")[0] != "keras":
            raise Missing(f"{self.where}: the layer {kind!r} is not known here{' (it holds code)' if kind == 'Lambda' else ''}; known are {', '.join(sorted(LAYERS))}")
        value = make(self, inputs, config, [torch.tensor(a, dtype=torch.float32) for a in self.weights.get(str(config.get("name")), [])])
        self.tracer.titles[value.name] = str(config.get("name"))
        return value

    def constant(self, tensor: Tensor) -> Ref:
        """A tensor of the file."""
        return self.tracer.constant(tensor.contiguous())


def _histories(value: Any) -> list[tuple[str, int]]:
    """The uses of layers, (name, number of the use), that an argument names: tensors, or [name, use, output] and lists of them."""
    if isinstance(value, Mapping):
        return _histories(value["config"]["keras_history"]) if value.get("class_name") == "__keras_tensor__" else [h for v in value.values() for h in _histories(v)]
    if isinstance(value, (list, tuple)):
        if len(value) == 3 and isinstance(value[0], str):
            return [(value[0], int(value[1]))]
        return [h for item in value for h in _histories(item)]
    return []


def _argument(value: Any, values: Mapping[tuple[str, int], Ref]) -> Ref | float:
    """An operation's argument: a tensor or a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    (history,) = _histories(value)
    return values[history]
