"""A policy that runs a graph: whatever a plain chain of layers can't say (memory, several inputs, skip connections)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import Action, Deterministic, Head
from distillrl.policies import ACTION, Memory
from distillrl.records import Prediction, Spec, over_states
from distillrl.teachers.fitting import Reading, Seen, input_tensor
from distillrl.teachers.graph import Graph, GraphModule, State, refs, uses
from distillrl.teachers.operators import ACTIVATIONS, RECURRENT

FEATURE_OPERATORS = frozenset(ACTIVATIONS) | RECURRENT


def decode(reading: Reading, head: Head, raw: Tensor, spread: Tensor | None) -> Action:
    """The action record of raw outputs [N, ...]."""
    if reading.kind == "index":
        return Deterministic(raw.long().reshape(raw.shape[0]) if reading.space.kind == "discrete" else raw.long().reshape(raw.shape[0], -1))
    raw = raw.reshape(raw.shape[0], -1)
    if reading.kind == "probabilities":
        raw = raw.clamp_min(1e-12).log()
    if reading.split:
        raw, spread = raw.chunk(2, -1)
    elif spread is not None:
        spread = (spread if reading.spread_is_log else spread.clamp_min(1e-12).log()).reshape(-1, raw.shape[-1] if spread.numel() > 1 else 1)
    return head.decode(raw, spread)


def head_kind(reading: Reading) -> str:
    """The Head that a reading needs (probabilities become logits, an index needs none)."""
    return {"probabilities": "categorical", "index": "deterministic"}.get(reading.kind, reading.kind)


def knowledge(reading: Reading) -> set[str]:
    """What a policy with these outputs can be asked for, features left out."""
    known = {"action"}
    if reading.kind in {"categorical", "multicategorical", "bernoulli", "gaussian", "probabilities"}:
        known.add("distribution")
    if reading.q or reading.kind == "greedy":
        known.add("q")
    if reading.value:
        known.add("value")
    return known


class GraphPolicy(nn.Module):
    """A policy made of a graph; see policies.Policy. States are memory, one row for each environment."""

    def __init__(self, spec: Spec, graph: Graph, seen: Seen, reading: Reading, info: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec, self.reading, self.seen = spec, reading, seen
        self.network = GraphModule(graph)
        self.head = Head.of(head_kind(reading), spec.action)
        self.info: dict[str, Any] = dict(info)
        self._programs: dict[frozenset[str], frozenset[str]] = {}
        self.features = {f"features.{graph.title(value)}": value for value in feature_values(graph)}
        self.gives: frozenset[str] = frozenset(knowledge(reading) | set(self.features))
        for i, state in enumerate(graph.states):
            self.register_buffer(f"initial{i}", state.initial.movedim(state.axis, 0).contiguous())

    def init(self, n: int) -> Memory:
        """Each state's first value, [n, ...]."""
        return {s.name: getattr(self, f"initial{i}").expand(n, *[-1] * (s.initial.dim() - 1)).clone() for i, s in enumerate(self.network.graph.states)}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See Policy.act; states need the leading shape [N]."""
        graph, reading = self.network.graph, self.reading
        first, described = next(iter(self.seen.observations.items()))
        lead = obs[first].shape[: obs[first].dim() - len(described.shape)]
        one_axis = len(lead) == 1
        flat = obs if one_axis else {name: obs[name].reshape(-1, *group.shape) for name, group in self.seen.observations.items()}
        inputs = {
            name: input_tensor(flat, self.seen.sources[name], self.seen.observations, shape, dtype) for name, (shape, dtype) in graph.inputs.items()
        }
        for i, state in enumerate(graph.states):
            inputs[state.read] = self._remembered(i, state, memory, starts)
        wanted = self._programs.get(wants)
        if wanted is None:
            wanted = self._programs[wants] = self._wanted(wants)
        values = self.network.run(inputs, lead[0] if one_axis else int(lead.numel()), wanted)
        outputs = graph.outputs
        action = decode(reading, self.head, values[outputs[reading.action]], values[outputs[reading.spread]] if reading.spread else None)
        q = self._q(values) if "q" in wants or reading.kind == "greedy" else None
        value = values[outputs[reading.value]].reshape(-1) if reading.value and "value" in wants else None
        features = {} if wants is ACTION else {title[9:]: values[v].flatten(1) for title, v in self.features.items() if title in wants}
        prediction = Prediction(action, q=q, value=value, features=features)
        if not one_axis:
            prediction = reshaped(prediction, lead)
        return prediction, {s.name: values[s.write].movedim(s.axis, 0) for s in graph.states}

    def _wanted(self, wants: frozenset[str]) -> frozenset[str]:
        reading, graph = self.reading, self.network.graph
        names = {graph.outputs[reading.action]} | {s.write for s in graph.states} | {self.features[w] for w in wants if w in self.features}
        for output, when in ((reading.spread, True), (reading.value, "value" in wants), (reading.q, "q" in wants)):
            if output and when:
                names.add(graph.outputs[output])
        return frozenset(names)

    def _remembered(self, index: int, state: State, memory: Memory, starts: Tensor | None) -> Tensor:
        value = memory[state.name]
        if starts is not None:
            fresh = starts.bool().reshape(-1, *[1] * (value.dim() - 1))
            value = torch.where(fresh, getattr(self, f"initial{index}"), value)
        return value.movedim(0, state.axis)

    def _q(self, values: Mapping[str, Any]) -> Tensor | None:
        output = self.reading.q or (self.reading.action if self.reading.kind == "greedy" else None)
        return values[self.network.graph.outputs[output]].flatten(1) if output else None

    def acting_parameters(self) -> int:
        """Numbers on the path from observation to action."""
        graph = self.network.graph
        alive, total = {graph.outputs[self.reading.action]}, 0
        for node in reversed(graph.nodes):
            if alive.intersection(node.outputs):
                alive.update(uses(node))
        for name in alive & set(graph.constants):
            tensor = graph.constants[name]
            total += tensor.numel() if tensor.is_floating_point() else 0
        return total

    def to(self, *args: Any, **kwargs: Any) -> GraphPolicy:
        """Move it, the head's bounds too."""
        moved = super().to(*args, **kwargs)
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None:
            moved.head = moved.head.to(device)
        return moved


def feature_values(graph: Graph) -> list[str]:
    """The values that are features: what comes out of an activation or a recurrent layer, on the way to an output."""
    alive, found = set(graph.outputs.values()), []
    outputs = set(alive)
    for node in reversed(graph.nodes):
        if alive.intersection(node.outputs):
            alive.update(uses(node))
            if node.op in FEATURE_OPERATORS and node.outputs[0] not in outputs and refs(node.args[:1]):
                found.append(node.outputs[0])
    return list(reversed(found))


def reshaped(prediction: Prediction, lead: torch.Size) -> Prediction:
    """The same prediction with the leading shape ``lead`` in place of [N]."""
    def unflatten(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.reshape(*lead, *x.shape[1:])

    reshape: Callable[..., Any] = unflatten
    return over_states(reshape, prediction)
