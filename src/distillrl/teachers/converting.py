"""A graph that is a plain chain of layers becomes a ``students.networks.Network``; any other stays a GraphPolicy.

As a Network its normaliser is a sense, its layers have names and can give features, and it exports like a student.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import Head
from distillrl.normalising import Normalise
from distillrl.records import Group, Spec
from distillrl.senses import Pick, Sense, one_hot_where_needed
from distillrl.students.networks import Network
from distillrl.teachers.chain import Affine, chain, dense
from distillrl.teachers.fitting import Reading, Seen, input_tensor
from distillrl.teachers.graph import Graph, GraphModule, Ref, difference, uses
from distillrl.teachers.graphpolicy import GraphPolicy, decode, head_kind
from distillrl.teachers.operators import ACTIVATIONS
from distillrl.teachers.sb3layers import described, named

UNCLIPPED = 3.4028234663852886e38
TOLERANCE = 1e-5


def policy_of(graph: Graph, seen: Seen, reading: Reading, info: Mapping[str, Any], groups: int = 1) -> Network | GraphPolicy:
    """The best policy of a graph: a Network where it is one chain, else a GraphPolicy. ``groups``: the environment has so many."""
    spec = Spec(seen.observations, reading.space)
    told = {**info, "notes": [*info.get("notes", ()), *seen.notes, *reading.notes], "parameters": _numbers(graph)}
    network = _network(graph, seen, reading, spec, told, groups)
    if network is not None:
        return network
    layers = [f"{node.op}" for node in graph.nodes if node.op in {"linear", "addmm", "matmul", "lstm", "gru", "lstm_cell", "gru_cell", "convolution", "conv2d"} or node.op in ACTIVATIONS]
    return GraphPolicy(spec, graph, seen, reading, {**told, "layers": layers[:64], "memory": [s.name for s in graph.states]})


def _numbers(graph: Graph) -> int:
    used = {name for node in graph.nodes for name in uses(node)} | set(graph.outputs.values())
    return sum(t.numel() for name, t in graph.constants.items() if name in used and t.is_floating_point())


def _network(graph: Graph, seen: Seen, reading: Reading, spec: Spec, info: Mapping[str, Any], groups: int) -> Network | None:
    if len(graph.inputs) != 1 or graph.states or reading.kind == "index" or next(iter(graph.inputs.values()))[1] != torch.float32:
        return None
    if any(group.categories for group in seen.observations.values()):
        return None
    if not graph.shapes or graph.alone:
        return None
    shapes = graph.shapes
    elements = chain(graph, graph.outputs[reading.action], shapes)
    if elements is None or not any(isinstance(e, nn.Linear) for e in elements):
        return None
    value = None
    moments, clip, rest = _leading(elements)
    if reading.value:
        theirs = chain(graph, graph.outputs[reading.value], shapes)
        start = _start_after(moments, clip, *_leading(theirs)[:2]) if theirs is not None else None
        if theirs is None or start is None:
            return None
        value = nn.Sequential(*start, *_leading(theirs)[2])
    log_std: Tensor | nn.Module | None = None
    if reading.spread:
        log_std = _constant_spread(graph, reading) if reading.kind == "gaussian" else None
        if log_std is None and reading.spread_is_log:
            log_std = _spread_layers(graph, reading, shapes, elements)
        if log_std is None:
            return None
    if reading.q and reading.q != reading.action:
        return None
    made = assemble(rest, moments, clip, reading, spec, info, groups, value=value, log_std=log_std)
    return made if made is not None and _check(made, graph, seen, reading) <= TOLERANCE else None


def assemble(
    elements: Sequence[Any],
    moments: Affine | None,
    clip: float,
    reading: Reading,
    spec: Spec,
    info: Mapping[str, Any],
    groups: int = 1,
    *,
    value: nn.Module | None = None,
    log_std: Tensor | nn.Module | None = None,
) -> Network | None:
    """A Network of a normaliser (x · scale + shift, clipped) and layers; None where there is no output layer."""
    elements = list(elements)
    kind = head_kind(reading)
    if reading.kind == "probabilities":
        if not isinstance(elements[-1], (nn.Softmax, nn.LogSoftmax)):
            return None
        elements = elements[:-1]
    last = max((i for i, e in enumerate(elements) if isinstance(e, nn.Linear)), default=-1)
    if last < 0:
        return None
    out: nn.Module = elements[last] if last == len(elements) - 1 else nn.Sequential(*elements[last:])
    bounds = (-math.inf, math.inf)
    if reading.split:
        if not isinstance(out, nn.Linear):
            return None
        half = out.out_features // 2
        log_std = dense(out.weight[half:], out.bias[half:])
        out = dense(out.weight[:half], out.bias[:half])
    steps: list[Any] = [Pick(tuple(spec.observations))] if groups > len(spec.observations) else []
    steps += one_hot_where_needed(spec.observations)
    if moments is not None:
        steps.append(_normaliser(moments, clip, spec.observations))
    body = _body(elements[:last])
    told = {**info, "layers": [described(e) for e in elements], "activation": _activation_of(elements), "normaliser": _told(moments, clip)}
    network = Network(spec, Sense(spec.observations, steps), body, out, Head.of(kind, spec.action), log_std=log_std, log_std_bounds=bounds, value=value, info=told)
    return network.requires_grad_(False).eval()


def _body(elements: Sequence[Any]) -> nn.Sequential:
    """Layers with the names that features are asked by; where two would share one, by number."""
    names = named(list(elements))
    return nn.Sequential(OrderedDict(names)) if len(names) == len(elements) else nn.Sequential(*elements)


def _activation_of(elements: Sequence[Any]) -> str:
    return next((described(e) for e in elements if not isinstance(e, (nn.Linear, Affine))), "none")


def _normaliser(moments: Affine, clip: float, observations: Mapping[str, Group]) -> Normalise:
    names = sorted(observations)
    widths = [max(1, math.prod(observations[n].shape)) for n in names]
    total = sum(widths)
    step = Normalise({n: observations[n].shape for n in names}, min(clip, UNCLIPPED))
    scales, shifts = torch.split(moments.scale.expand(total), widths), torch.split(moments.shift.expand(total), widths)
    for i, name in enumerate(names):
        getattr(step, f"scale{i}").copy_(scales[i].reshape(observations[name].shape))
        getattr(step, f"shift{i}").copy_(shifts[i].reshape(observations[name].shape))
    return step


def _told(moments: Affine | None, clip: float) -> str:
    if moments is None:
        return "none"
    return f"(x − mean) / std inside the file, {'not clipped' if clip >= UNCLIPPED else f'clipped to ±{clip:g}'}"


def _leading(elements: list[Any]) -> tuple[Affine | None, float, list[Any]]:
    """The normaliser at the start (moments, clip), and the rest."""
    if not elements or not isinstance(elements[0], Affine):
        return None, UNCLIPPED, elements
    second = elements[1] if len(elements) > 1 else None
    if isinstance(second, nn.Hardtanh) and second.min_val == -second.max_val:
        return elements[0], float(second.max_val), elements[2:]
    return elements[0], UNCLIPPED, elements[1:]


def _start_after(mine: Affine | None, clip: float, theirs: Affine | None, their_clip: float) -> list[nn.Module] | None:
    """What turns the policy's normalised input into the critic's; empty where they are the same, None where it can't be had."""
    same = (mine is None and theirs is None) or (mine is not None and theirs is not None and torch.equal(mine.scale, theirs.scale) and torch.equal(mine.shift, theirs.shift))
    if same and clip == their_clip:
        return []
    if clip < UNCLIPPED or (mine is not None and not bool(torch.count_nonzero(mine.scale) == mine.scale.numel())):
        return None
    reference = mine if mine is not None else theirs
    assert reference is not None or their_clip < UNCLIPPED
    one, zero = (torch.ones(1).double(), torch.zeros(1).double()) if reference is None else (torch.ones_like(reference.scale).double(), torch.zeros_like(reference.scale).double())
    a, b = (mine.scale.double(), mine.shift.double()) if mine is not None else (one, zero)
    c, d = (theirs.scale.double(), theirs.shift.double()) if theirs is not None else (one, zero)
    return [Affine(c / a, d - b * c / a), *([nn.Hardtanh(-their_clip, their_clip)] if their_clip < UNCLIPPED else [])]


def _spread_layers(graph: Graph, reading: Reading, shapes: Mapping[str, Any], elements: Sequence[Any]) -> nn.Module | None:
    """A log_std that a layer of the same latent gives (SAC), as that layer."""
    theirs = chain(graph, graph.outputs[str(reading.spread)], shapes)
    last = max((i for i, e in enumerate(elements) if isinstance(e, nn.Linear)), default=-1)
    if theirs is None or len(theirs) <= last or not isinstance(theirs[last], nn.Linear):
        return None
    for mine, other in zip(elements[:last], theirs[:last], strict=True):
        if not isinstance(mine, nn.Module) or not isinstance(other, nn.Module):
            return None
        one, two = mine.state_dict(), other.state_dict()
        if type(mine) is not type(other) or any(not torch.equal(one[k], two[k]) for k in one):
            return None
    return nn.Sequential(*[e for e in theirs[last:] if isinstance(e, nn.Module)])


def _constant_spread(graph: Graph, reading: Reading) -> Tensor | None:
    """A log_std [A] that doesn't depend on the state, else None."""
    producer = {name: node for node in graph.nodes for name in node.outputs}
    value = graph.outputs[str(reading.spread)]
    undo = []
    while value not in graph.constants:
        node = producer.get(value)
        if node is None or not node.args or not isinstance(node.args[0], Ref) or node.op not in {"expand", "exp", "expand_as", "identity", "view", "reshape", "repeat"}:
            return None
        undo.append(node.op)
        value = node.args[0].name
    spread = graph.constants[value].detach().float().reshape(-1)
    for op in reversed(undo):
        spread = spread.exp() if op == "exp" else spread
    width = reading.space.dimensions
    if spread.numel() not in {1, width}:
        return None
    return (spread if reading.spread_is_log else spread.clamp_min(1e-12).log()).expand(width).clone()


def _check(network: Network, graph: Graph, seen: Seen, reading: Reading) -> float:
    """The greatest difference between the network and the graph on random states."""
    generator = torch.Generator().manual_seed(1)
    obs = {name: torch.randn((16, *group.shape), generator=generator) * 2 for name, group in seen.observations.items()}
    (name, (shape, dtype)), = graph.inputs.items()
    x = input_tensor(obs, seen.sources[name], seen.observations, shape, dtype)
    wanted = frozenset(graph.outputs[o] for o in (reading.action, reading.spread, reading.value) if o)
    with torch.inference_mode():
        values = GraphModule(graph)({name: x}, 16, wanted)
        spread = values[graph.outputs[reading.spread]] if reading.spread else None
        theirs = decode(reading, network.head, values[graph.outputs[reading.action]], spread)
        prediction, _ = network.act(obs, network.init(16), None, frozenset({"action", "value"}))
        ours = prediction.action
        pairs = [(getattr(ours, f), getattr(theirs, f)) for f in ("logits", "mean", "log_std", "value") if isinstance(getattr(ours, f, None), Tensor)]
        if reading.kind == "probabilities":
            pairs = [(ours.log_probs.exp(), theirs.log_probs.exp())]  # type: ignore[union-attr]  # a Categorical
        if reading.kind == "greedy":
            pairs = [(prediction.q, values[graph.outputs[reading.action]])]
        if reading.value:
            pairs.append((prediction.value, values[graph.outputs[reading.value]].reshape(-1)))
    return difference([a for a, _ in pairs], [b for _, b in pairs])
