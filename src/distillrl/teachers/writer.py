"""Writes the network of bare weights down as a graph: layers by their names and shapes, in the words of a recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.records import ActionSpace, Spec
from distillrl.teachers.converting import policy_of
from distillrl.teachers.fitting import Reading, see, unbounded
from distillrl.teachers.graph import BATCH, Graph, Ref, State, fold, free_number
from distillrl.teachers.operators import ACTIVATIONS
from distillrl.teachers.pickles import shown
from distillrl.teachers.tracing import Tracer

if TYPE_CHECKING:
    from distillrl.teachers.tensorfiles import Module

STRIDES = {8: 4, 4: 2, 3: 1}
"""The Nature CNN's strides by kernel size; a state dict doesn't hold them."""


@dataclass
class Weights:
    """Tensors by full dotted name."""

    tensors: Mapping[str, Tensor]
    where: str
    layers: Mapping[str, Module] = field(default_factory=dict)
    """Modules that were saved whole, by name: their class and their settings are known then."""

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise Failed(f"{self.where} is damaged or of another kind: it lacks the tensor {name!r}")
        tensor = self.tensors[name]
        return tensor.float() if tensor.is_floating_point() else tensor

    def has(self, pattern: str) -> bool:
        """Whether a name matches."""
        return any(re.search(pattern, name) for name in self.tensors)

    def first(self, *names: str) -> str | None:
        """The first of these names that is there."""
        return next((n for n in names if n in self.tensors), None)

    def numbered(self, prefix: str) -> list[int]:
        """The numbers k for which PREFIXk.weight is there, in order."""
        found = {m.group(1) for n in self.tensors if (m := re.fullmatch(re.escape(prefix) + r"(\d{1,3})\.weight", n))}
        return sorted(int(k) for k in found)


@dataclass
class Writer:
    """A graph in the making. A recipe calls its methods and then ``gives``."""

    weights: Weights
    activation: str
    space: ActionSpace | None
    ending: str = ""
    """What the user says comes after the last layer of the action, such as tanh."""
    tracer: Tracer = field(init=False)
    inputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kind: str = ""

    def __post_init__(self) -> None:
        taken = {d for t in self.weights.tensors.values() for d in t.shape} | set(range(5))
        self.tracer = Tracer(free_number(taken), True, told=True)

    # ── parts ──

    def observation(self, *shape: int) -> Ref:
        """The input [N, *shape]."""
        self.inputs["obs"] = (shape, torch.float32)
        return self.tracer.input("obs", (self.tracer.batch, *shape))

    def width(self, prefix: str) -> int:
        """How many numbers the first layer below a prefix takes."""
        numbers = self.weights.numbered(prefix)
        return int(self.weights[f"{prefix}{numbers[0]}.weight" if numbers else f"{prefix}weight"].shape[1])

    def constant(self, value: Tensor) -> Ref:
        """A tensor of the file, or made of some."""
        return self.tracer.constant(value.contiguous())

    def linear(self, x: Ref, name: str) -> Ref:
        """NAME.weight and NAME.bias applied."""
        weight = self.weights[f"{name}.weight" if name else "weight"]
        if weight.dim() != 2 or self.tracer.shape(x)[-1] != weight.shape[1]:
            raise Failed(f"{self.weights.where}: {name}.weight is {list(weight.shape)}, what comes before it gives {self.tracer.shape(x)[-1]} numbers")
        bias = f"{name}.bias" if name else "bias"
        made = self.tracer.call("linear", x, self.constant(weight), self.constant(self.weights[bias]) if bias in self.weights else None)
        return self._titled(made, name)

    def _titled(self, made: Any, name: str) -> Any:
        self.tracer.titles[made.name] = name
        return made

    def act(self, x: Ref, name: str | None = None) -> Ref:
        """The activation, or this one."""
        name = name or self.activation
        if name == "gelu_tanh":
            return self.tracer.call("gelu", x, "tanh")
        return x if name in {"identity", "none"} else self.tracer.call(name, x)

    def sequential(self, x: Ref, prefix: str, *, open_end: bool = False) -> Ref:
        """The numbered layers below a prefix: one activation for each Linear or convolution, where a number is left out behind it, and at an open end."""
        numbers = self.weights.numbered(prefix)
        if not numbers:
            raise Failed(f"{self.weights.where} has no layers {prefix}0, {prefix}2, …")
        due = False
        for i, k in enumerate(numbers):
            weight = self.weights[f"{prefix}{k}.weight"]
            if weight.dim() == 2 and len(self.tracer.shape(x)) > 2:
                x = self.tracer.call("flatten", x, 1)
            x = self._layer(x, f"{prefix}{k}", weight)
            due = due or weight.dim() > 1
            following = numbers[i + 1] if i + 1 < len(numbers) else (k + 2 if open_end else k + 1)
            saved = self._behind(x, f"{prefix}{k}")
            if saved is not None:
                x = saved
            elif due and following > k + 1:
                x, due = self.act(x), False
        return x

    def _behind(self, x: Ref, name: str) -> Ref | None:
        """What stands behind a layer of a Sequential that was saved whole, up to its next layer with weights; None where that isn't known."""
        prefix, _, number = name.rpartition(".")
        if prefix not in self.weights.layers or not number.isdigit() or not self.weights.layers[prefix].kind.endswith(".Sequential"):
            return None
        j = int(number) + 1
        while (saved := self.weights.layers.get(f"{prefix}.{j}" if prefix else str(j))) is not None and not saved:
            x = self._saved(x, saved)
            j += 1
        return x

    def _saved(self, x: Ref, saved: Module) -> Ref:
        """A layer without weights that was saved whole; a softmax is left out, as logits are what is read."""
        kind = saved.kind.rpartition(".")[2]
        if not saved.kind.startswith("torch.nn.modules."):
            kind = ""
        if kind in {"Identity", "Dropout", "Flatten", "Softmax", "LogSoftmax"}:
            return x
        word = next((word for word, made in ACTIVATIONS.items() if made.__name__ == kind), None)
        setting = saved.facts.get({"LeakyReLU": "negative_slope", "ELU": "alpha", "CELU": "alpha"}.get(kind, ""))
        usual = {"approximate": "none", "beta": 1.0, "threshold": 20.0, "min_val": -1.0, "max_val": 1.0}
        if word is None or (kind != "ReLU6" and any(saved.facts.get(name, value) != value for name, value in usual.items())):
            raise Missing(f"{self.weights.where}: a layer {shown(saved.kind)} is not known here; give the network's class with --model module:Class")
        return self.tracer.call(word, x, float(setting)) if isinstance(setting, (int, float)) else self.act(x, word)

    def layer(self, x: Ref, name: str) -> Ref:
        """The layer of this name, whatever the shape of its weight says it is; an image is flattened before a matrix."""
        weight = self.weights[f"{name}.weight" if name else "weight"]
        if weight.dim() == 2 and len(self.tracer.shape(x)) > 2:
            x = self.tracer.call("flatten", x, 1)
        return self._layer(x, name, weight)

    def chain(self, x: Ref, names: list[str], *, open_end: bool = False) -> Ref:
        """Named layers in order, the activation after each but a normalisation's layer behind it, and not at a closed end."""
        for i, name in enumerate(names):
            x = self.layer(x, name)
            following = self.weights[f"{names[i + 1]}.weight"].dim() if i + 1 < len(names) else (2 if open_end else 1)
            saved = self._behind(x, name)
            x = saved if saved is not None else self.act(x) if following > 1 else x
        return x

    def _layer(self, x: Ref, name: str, weight: Tensor) -> Ref:
        if weight.dim() == 2:
            return self.linear(x, name)
        if weight.dim() == 4:
            saved = self.weights.layers.get(name)
            if saved is not None:
                return self._convolution(x, name, weight, saved.facts)
            stride = STRIDES.get(weight.shape[-1])
            if stride is None:
                raise Missing(f"{self.weights.where}: {name} is a convolution of {weight.shape[-1]}×{weight.shape[-1]}, whose stride the file doesn't tell; give the class with --model module:Class")
            bias = self.constant(self.weights[f"{name}.bias"])
            return self.tracer.call("convolution", x, self.constant(weight), bias, (stride, stride), (0, 0), (1, 1), False, (0, 0), 1)
        parts = [self.constant(weight), self.constant(self.weights[f"{name}.bias"])]
        if f"{name}.running_mean" in self.weights:
            mean, var = (self.constant(self.weights[f"{name}.running_{p}"]) for p in ("mean", "var"))
            return self.tracer.call("batch_norm", x, *parts, mean, var, False, 0.0, 1e-5)
        return self.tracer.call("layer_norm", x, (int(weight.shape[0]),), *parts, 1e-5)

    def _convolution(self, x: Ref, name: str, weight: Tensor, facts: Mapping[str, Any]) -> Ref:
        """A convolution that was saved whole, with its settings."""
        pairs = [facts.get(key) for key in ("stride", "padding", "dilation")]
        if not all(isinstance(p, tuple) and len(p) == 2 and all(type(v) is int and 0 <= v < 1 << 12 for v in p) for p in pairs) or facts.get("groups") != 1 or facts.get("padding_mode", "zeros") != "zeros":
            raise Missing(f"{self.weights.where}: {name} is a convolution of a kind that is not known here; give the class with --model module:Class")
        bias = self.constant(self.weights[f"{name}.bias"]) if f"{name}.bias" in self.weights else None
        return self.tracer.call("convolution", x, self.constant(weight), bias, *pairs, False, (0, 0), 1)

    def normalised(self, x: Ref, mean: Tensor, std: Tensor, clip: float | None) -> Ref:
        """(x − mean) / std, clipped."""
        width = self.tracer.shape(x)[-1]
        if mean.numel() != width or std.numel() != width:
            raise Failed(f"{self.weights.where}: its normaliser is for {mean.numel()} numbers, its layers take {width}")
        made = self.tracer.call("div", self.tracer.call("sub", x, self.constant(mean.reshape(-1))), self.constant(std.reshape(-1)))
        return made if clip is None else self.tracer.call("clamp", made, -clip, clip)

    def recurrent(self, x: Ref, prefix: str, name: str) -> Ref:
        """An LSTM or GRU of one step, its state carried under this name."""
        layers = sum(f"{prefix}weight_ih_l{i}" in self.weights for i in range(16))
        cell = layers == 0
        suffixes = [""] if cell else [f"_l{i}" for i in range(layers)]
        params = [self.weights[f"{prefix}{part}{s}"] for s in suffixes for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        hidden = int(params[1].shape[1])
        lstm = params[0].shape[0] == 4 * hidden
        refs = tuple(self.constant(p) for p in params)
        shape = (max(layers, 1), self.tracer.batch, hidden)
        kept = [self.tracer.input(f"{name}.{part}", shape) for part in (("h", "c") if lstm else ("h",))]
        out = self.tracer.call("lstm" if lstm else "gru", self.tracer.call("unsqueeze", x, 0), tuple(kept) if lstm else kept[0], refs, True, max(layers, 1), 0.0, False, False, False)
        for state, written in zip(kept, out[1:], strict=True):
            self.states.append(State(state.name, state.name, written.name, torch.zeros(max(layers, 1), 1, hidden), 1))
        self.tracer.titles[out[0].name] = name
        return self.tracer.call("squeeze", out[0], 0)

    def ranged(self, x: Ref, scale: Tensor, shift: Tensor) -> Ref:
        """X · scale + shift."""
        return self.tracer.call("add", self.tracer.call("mul", x, self.constant(scale.reshape(-1))), self.constant(shift.reshape(-1)))

    def stretched(self) -> tuple[Tensor, Tensor] | None:
        """(half range, middle) of an action with bounds other than ±1; None where it has none, or these."""
        space = self.space
        if space is None or space.kind != "box" or not all(map(math.isfinite, (*space.low, *space.high))) or set(zip(space.low, space.high, strict=True)) == {(-1.0, 1.0)}:
            return None
        low, high = torch.tensor(space.low, dtype=torch.float32), torch.tensor(space.high, dtype=torch.float32)
        return (high - low) / 2, (high + low) / 2

    def ended(self, action: Ref) -> Ref:
        """The action with the ending that the user says it has: tanh, stretched to the environment's bounds."""
        if not self.ending:
            return action
        action, bounds = self.tracer.call("tanh", action), self.stretched()
        return action if bounds is None else self.ranged(action, *bounds)

    # ── the end ──

    def gives_clipped(self, action: Ref, log_std: Ref | Tensor | None, value: Ref | None) -> None:
        """An action that its library clips to ±1 and stretches to the environment's bounds; a Gaussian where there is a spread."""
        bounds = self.stretched()
        if bounds is not None and self.tracer.shape(action)[-1] == len(bounds[0]):
            wider = bounds[0].clamp_min(1e-12).log()
            if log_std is None:
                action = self.tracer.call("clamp", action, -1.0, 1.0)
            else:
                log_std = self.tracer.call("add", log_std, self.constant(wider)) if isinstance(log_std, Ref) else log_std.reshape(-1) + wider
            action = self.ranged(action, *bounds)
        self.gives(action, "gaussian" if log_std is not None else "deterministic", log_std=log_std, value=value)

    def gives(self, action: Ref, kind: str, *, log_std: Ref | Tensor | None = None, value: Ref | None = None) -> None:
        """What comes out: ``kind`` as in actions.Head; a spread; the value of the state [N, 1]."""
        self.kind = kind
        self.outputs["action"] = action.name
        if log_std is not None:
            given = log_std if isinstance(log_std, Ref) else self.constant(log_std.reshape(-1))
            if not isinstance(log_std, Ref):
                given = self.tracer.call("expand", given, (BATCH, int(log_std.numel())))
            self.outputs["log_std"] = given.name
        if value is not None:
            self.outputs["value"] = value.name

    def graph(self) -> Graph:
        """What was written down, its constants folded."""
        return fold(self.tracer.graph(self.inputs, self.outputs, tuple(self.states)))


def policy(writer: Writer, spec: Spec | None, sees: str | None, who: str, info: Mapping[str, Any]) -> Any:
    """The policy of a finished writer. Raises Misconfigured where it is for another environment."""
    graph = writer.graph()
    width = math.prod(graph.shapes[graph.outputs["action"]][0][1:])
    kind, space = writer.kind, writer.space
    if space is None:
        space = ActionSpace("discrete", n=width) if kind in {"categorical", "greedy"} else unbounded(width)
    if space.kind == "multidiscrete" and kind == "categorical":
        kind = "multicategorical"
    if space.kind == "multibinary" and kind == "categorical":
        kind = "bernoulli"
    boxed = kind in {"gaussian", "deterministic", "squashed", "tanh"}
    if boxed != (space.kind == "box") or width != (space.dimensions if boxed else space.size):
        raise Misconfigured(f"{who} gives {width} numbers for {'a continuous' if boxed else 'a discrete'} action, the environment's action is {space}: this teacher is for another environment")
    if kind in {"squashed", "tanh"} and not all(math.isfinite(b) for b in (*space.low, *space.high)):
        raise Misconfigured(f"{who} plays between bounds that the file doesn't hold: give the environment with --env")
    reading = Reading("action", kind, space, "log_std" if "log_std" in graph.outputs else None, True, False, "value" if "value" in graph.outputs else None, None)
    seen = see(graph.inputs, spec, sees, who)
    return policy_of(graph, seen, reading, {**info, "notes": [*info.get("notes", ()), *writer.notes]}, len(spec.observations) if spec else 1)


def check_activation(name: str) -> str:
    """An activation's word, or Misconfigured with the nearest."""
    from distillrl.errors import nearest

    if name not in ACTIVATIONS and name not in {"identity", "none", "gelu_tanh"}:
        raise Misconfigured(f"--format: unknown activation {name!r}{nearest(name, ACTIVATIONS)}")
    return name
