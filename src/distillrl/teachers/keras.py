"""Keras 3's ``.keras`` files: a zip with the layers as JSON and the weights as HDF5; Sequential and functional models.

Layers are rebuilt from a closed list; Lambda layers and registered classes, which hold code, are refused. Keras itself
isn't needed, h5py is (``pip install 'distillrl[keras]'``).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
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
from distillrl.teachers.tracing import Tracer

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "Keras 3"
MAX_BYTES = 1 << 30
MAX_WEIGHTS = 100_000
ACTIVATIONS = {
    "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "elu": "elu", "selu": "selu", "gelu": "gelu", "silu": "silu", "swish": "silu", "softplus": "softplus",
    "softsign": "softsign", "mish": "mish", "hard_sigmoid": "hardsigmoid", "hard_silu": "hardswish", "hard_swish": "hardswish", "relu6": "relu6", "exponential": "exp",
    "celu": "celu", "log_sigmoid": "logsigmoid",
}  # fmt: skip


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
        walk = _Walk(str(path), weights)
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
            layer = layer.decode() if isinstance(layer, bytes) else str(layer)
            found[layer] = [_array(item[k], where, total) for k in sorted(item, key=int)]
        elif isinstance(item, h5py.Group):
            _group(h5py, item, where, found, total, depth + 1)


def _array(item: Any, where: str, total: int) -> np.ndarray:
    if item.external or item.is_virtual or item.compression or item.dtype.kind not in "fiu" or item.size * item.dtype.itemsize > total:
        raise Failed(f"{where} is refused: a tensor of shape {list(item.shape)[:8]} lies outside of the file, is packed, or is larger than it")
    return np.asarray(item[()])


class _Walk:
    """Writes the layers down, in the words of ``operators``."""

    def __init__(self, where: str, weights: Mapping[str, list[np.ndarray]]) -> None:
        self.where, self.weights = where, weights
        taken = {d for arrays in weights.values() for a in arrays for d in a.shape} | set(range(5))
        self.tracer = Tracer(free_number(taken), True)
        self.inputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def model(self, config: Mapping[str, Any]) -> tuple[dict[str, tuple[tuple[int, ...], torch.dtype]], dict[str, str]]:
        """Inputs and outputs of a whole model."""
        kind, layers = config["class_name"], config["config"]["layers"]
        if kind == "Sequential":
            x: Ref | None = None
            for layer in layers:
                if layer["class_name"] != "InputLayer" and x is None:
                    x = self._input("obs", layer["build_config"]["input_shape"])
                x = self._input("obs", layer["config"]["batch_shape"]) if layer["class_name"] == "InputLayer" else self.layer(layer, [x])
            assert x is not None
            return self.inputs, {"output": x.name}
        if kind != "Functional":
            raise Missing(f"{self.where}: a Keras model of the class {kind!r} is not known here; Sequential and functional ones are (others hold code)")
        return self._functional(config["config"])

    def _functional(self, config: Mapping[str, Any]) -> tuple[dict[str, tuple[tuple[int, ...], torch.dtype]], dict[str, str]]:
        values: dict[str, Ref] = {}
        for layer in config["layers"]:
            name = layer.get("name") or layer["config"]["name"]
            if layer["class_name"] == "InputLayer":
                values[name] = self._input(name, layer["config"]["batch_shape"])
                continue
            if len(layer["inbound_nodes"]) != 1:
                raise Missing(f"{self.where}: the layer {name!r} is used {len(layer['inbound_nodes'])} times, which is not known here")
            sources = _histories(layer["inbound_nodes"][0]["args"])
            values[name] = self.layer(layer, [values[s] for s in sources])
        outputs = config["output_layers"]
        names = [outputs[0]] if isinstance(outputs[0], str) else [o[0] for o in (outputs.values() if isinstance(outputs, dict) else outputs)]
        return self.inputs, {n if len(names) > 1 else "output": values[n].name for n in names}

    def _input(self, name: str, shape: list[Any]) -> Ref:
        sizes = tuple(int(s) for s in shape[1:])
        self.inputs[name] = (sizes, torch.float32)
        return self.tracer.input(name, (self.tracer.batch, *sizes))

    def layer(self, layer: Mapping[str, Any], inputs: list[Any]) -> Ref:
        """Write one layer down."""
        kind, config = str(layer["class_name"]), layer["config"]
        make = LAYERS.get(kind)
        if make is None or str(layer.get("module", "keras.layers")).split(".")[0] != "keras":
            raise Missing(f"{self.where}: the layer {kind!r} is not known here{' (it holds code)' if kind == 'Lambda' else ''}; known are {', '.join(sorted(LAYERS))}")
        value = make(self, inputs, config, [torch.tensor(a, dtype=torch.float32) for a in self.weights.get(str(config.get("name")), [])])
        self.tracer.titles[value.name] = str(config.get("name"))
        return value

    def constant(self, tensor: Tensor) -> Ref:
        """A tensor of the file."""
        return self.tracer.constant(tensor.contiguous())

    def activated(self, x: Ref, name: Any) -> Ref:
        """An activation by Keras' name for it."""
        if isinstance(name, Mapping):
            name = name.get("config", name.get("class_name")) if not isinstance(name.get("config"), Mapping) else name.get("class_name")
        if name in {None, "linear"}:
            return x
        if name == "softmax":
            return self.tracer.call("softmax", x, -1)
        if name == "leaky_relu":
            return self.tracer.call("leaky_relu", x, 0.2)
        if name not in ACTIVATIONS:
            raise Missing(f"{self.where}: the activation {name!r} is not known here")
        return self.tracer.call(ACTIVATIONS[str(name)], x)


def _histories(value: Any) -> list[str]:
    if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        return [str(value["config"]["keras_history"][0])]
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in _histories(item)]
    return []


def _dense(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    made = w.tracer.call("linear", x[0], w.constant(v[0].T), w.constant(v[1]) if c.get("use_bias", True) else None)
    return w.activated(made, c.get("activation"))


def _activation(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return w.activated(x[0], c["activation"])


def _named(op: str, option: str = "", default: float = 0.0) -> Callable[[_Walk, list[Ref], Mapping[str, Any], list[Tensor]], Ref]:
    def make(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
        return w.tracer.call(op, x[0], float(c.get(option, default))) if option else w.tracer.call(op, x[0])

    return make


def _softmax(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return w.tracer.call("softmax", x[0], int(c.get("axis", -1)))


def _relu(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    if c.get("threshold") or c.get("negative_slope"):
        raise Missing(f"{w.where}: a ReLU with a threshold or a slope is not known here")
    most = c.get("max_value")
    return w.tracer.call("relu", x[0]) if most is None else w.tracer.call("clamp", x[0], 0.0, float(most))


def _normalization(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    if c.get("invert"):
        raise Missing(f"{w.where}: an inverted Normalization is not known here")
    mean, variance = (torch.tensor(c["mean"]), torch.tensor(c["variance"])) if c.get("mean") is not None else v[:2]
    std = variance.float().reshape(-1).sqrt().clamp_min(1e-7)
    return w.tracer.call("div", w.tracer.call("sub", x[0], w.constant(mean.float().reshape(-1))), w.constant(std))


def _batch_normalization(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    parts = list(v)
    gamma = parts.pop(0) if c.get("scale", True) else torch.ones_like(v[-1])
    beta = parts.pop(0) if c.get("center", True) else torch.zeros_like(v[-1])
    mean, variance = parts
    if len(w.tracer.shape(x[0])) != 2:
        raise Missing(f"{w.where}: a BatchNormalization of images is not known here")
    return w.tracer.call("batch_norm", x[0], *(w.constant(t) for t in (gamma, beta, mean, variance)), False, 0.0, float(c.get("epsilon", 1e-3)))


def _layer_normalization(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    axis = c.get("axis", -1)
    if (axis if isinstance(axis, list) else [axis]) not in ([-1], [1]) or c.get("rms_scaling"):
        raise Missing(f"{w.where}: a LayerNormalization over other axes is not known here")
    parts, width = list(v), w.tracer.shape(x[0])[-1]
    gamma = parts.pop(0) if c.get("scale", True) else torch.ones(width)
    beta = parts.pop(0) if c.get("center", True) else torch.zeros(width)
    return w.tracer.call("layer_norm", x[0], (width,), w.constant(gamma), w.constant(beta), float(c.get("epsilon", 1e-3)))


def _rescaling(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return w.tracer.call("add", w.tracer.call("mul", x[0], float(c["scale"])), float(c.get("offset", 0.0)))


def _joined(op: str) -> Callable[[_Walk, list[Ref], Mapping[str, Any], list[Tensor]], Ref]:
    def make(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
        if op == "cat":
            return w.tracer.call("cat", tuple(x), int(c.get("axis", -1)))
        value = x[0]
        for other in x[1:]:
            value = w.tracer.call(op, value, other)
        return value

    return make


def _flatten(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return w.tracer.call("flatten", x[0], 1)


def _reshape(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    return w.tracer.call("reshape", x[0], (w.tracer.batch, *(int(s) for s in c["target_shape"])))


def _conv(w: _Walk, x: list[Ref], c: Mapping[str, Any], v: list[Tensor]) -> Ref:
    """Channels last, as Keras keeps them: permuted around the convolution."""
    if c.get("padding") != "valid" or c.get("data_format", "channels_last") != "channels_last" or c.get("groups", 1) != 1:
        raise Missing(f"{w.where}: a Conv2D with padding or channels first is not known here")
    first = w.tracer.call("permute", x[0], (0, 3, 1, 2))
    kernel = w.constant(v[0].permute(3, 2, 0, 1))
    bias = w.constant(v[1]) if c.get("use_bias", True) else None
    made = w.tracer.call("convolution", first, kernel, bias, tuple(c["strides"]), (0, 0), tuple(c.get("dilation_rate", (1, 1))), False, (0, 0), 1)
    return w.activated(w.tracer.call("permute", made, (0, 2, 3, 1)), c.get("activation"))


LAYERS: dict[str, Callable[[_Walk, list[Ref], Mapping[str, Any], list[Tensor]], Ref]] = {
    "Dense": _dense, "Activation": _activation, "ReLU": _relu, "LeakyReLU": _named("leaky_relu", "negative_slope", 0.3), "ELU": _named("elu", "alpha", 1.0),
    "Softmax": _softmax, "Normalization": _normalization, "BatchNormalization": _batch_normalization, "LayerNormalization": _layer_normalization,
    "Rescaling": _rescaling, "Dropout": _named("identity"), "GaussianNoise": _named("identity"), "GaussianDropout": _named("identity"),
    "ActivityRegularization": _named("identity"), "Identity": _named("identity"), "Flatten": _flatten, "Concatenate": _joined("cat"),
    "Add": _joined("add"), "Multiply": _joined("mul"), "Subtract": _joined("sub"), "Maximum": _joined("maximum"), "Minimum": _joined("minimum"),
    "Reshape": _reshape, "Conv2D": _conv,
}  # fmt: skip
"""Layers by Keras' class name."""
