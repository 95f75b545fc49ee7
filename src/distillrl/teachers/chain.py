"""A graph that is a plain chain of layers becomes a ``students.networks.Network``; any other stays a GraphPolicy.

As a Network its normaliser is a sense, its layers have names and can give features, and it exports like a student.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import Head
from distillrl.records import Group, Spec
from distillrl.senses import Normalise, Pick, Sense, one_hot_where_needed
from distillrl.students.networks import Network
from distillrl.teachers.fitting import Reading, Seen
from distillrl.teachers.graph import (
    Graph,
    GraphModule,
    Node,
    Ref,
    difference,
    refs,
    uses,
)
from distillrl.teachers.graphpolicy import GraphPolicy, decode, head_kind
from distillrl.teachers.operators import ACTIVATIONS
from distillrl.teachers.sb3layers import described, named

UNCLIPPED = 3.4028234663852886e38
TOLERANCE = 1e-5
SAME = frozenset({"identity", "contiguous", "detach", "detach_", "clone", "alias", "dropout", "feature_dropout", "view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "float"})  # fmt: skip


class Affine(nn.Module):
    """x · scale + shift, each [F]."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., F]"""
        return torch.addcmul(self.shift, x, self.scale)


@dataclass(frozen=True)
class Columns:
    """Keep columns first to last of the features."""

    first: int
    last: int


Element = Affine | Columns | nn.Module


def dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear with these numbers, frozen; without a bias it gets one of zeros."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias.reshape(-1)) if bias is not None else layer.bias.zero_()
    return layer.requires_grad_(False)


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
    if not graph.shapes:
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
    body = nn.Sequential(OrderedDict(named(elements[:last])))
    told = {**info, "layers": [described(e) for e in elements], "activation": _activation_of(elements), "normaliser": _told(moments, clip)}
    network = Network(spec, Sense(spec.observations, steps), body, out, Head.of(kind, spec.action), log_std=log_std, log_std_bounds=bounds, value=value, info=told)
    return network.requires_grad_(False).eval()


def _activation_of(elements: Sequence[Any]) -> str:
    return next((described(e) for e in elements if not isinstance(e, (nn.Linear, Affine))), "none")


def _normaliser(moments: Affine, clip: float, observations: Mapping[str, Group]) -> Normalise:
    names = sorted(observations)
    widths = [max(1, math.prod(observations[n].shape)) for n in names]
    total = sum(widths)
    step = Normalise({n: observations[n].shape for n in names}, min(clip, UNCLIPPED))
    scales, shifts = moments.scale.expand(total).split(widths), moments.shift.expand(total).split(widths)
    for i, name in enumerate(names):
        getattr(step, f"scale{i}").copy_(scales[i].reshape(observations[name].shape))
        getattr(step, f"shift{i}").copy_(shifts[i].reshape(observations[name].shape))
    return step


def _told(moments: Affine | None, clip: float) -> str:
    if moments is None:
        return "none"
    return f"(x − mean) / std inside the file, {'not clipped' if clip >= UNCLIPPED else f'clipped to ±{clip:g}'}"


def chain(graph: Graph, value: str, shapes: Mapping[str, Any]) -> list[Element] | None:
    """The layers from the only input to ``value``, in order; None where the way isn't a single line of layers."""
    producer = {name: node for node in graph.nodes for name in node.outputs}
    (start,) = graph.inputs
    backwards: list[Element] = []
    while value != start:
        node = producer.get(value)
        if node is None or len(backwards) > 1000:
            return None
        step = _element(node, value, graph, shapes, producer)
        if step is None:
            return None
        value, element = step
        if value not in shapes or shapes[value][0][:1] != (graph.trial,):
            return None
        if element is not None:
            backwards.append(element)
    return _joined(list(reversed(backwards)))


def _element(node: Node, value: str, graph: Graph, shapes: Mapping[str, Any], producer: Mapping[str, Node]) -> tuple[str, Element | None] | None:
    moving = [name for name in dict.fromkeys(uses(node)) if name not in graph.constants and not name.startswith("·")]
    if node.op == "mul" and len(moving) == 2:
        return _silu(node, moving, producer)
    if len(moving) != 1:
        return None
    (x,) = moving
    width = math.prod(shapes[x][0][1:]) if x in shapes else -1
    if node.op in SAME:
        return (x, None) if math.prod(shapes[value][0]) == math.prod(shapes[x][0]) else None
    for make in (_linear, _arithmetic, _normalisation, _columns, _activation):
        element = make(node, x, value, width, graph)
        if element is not None:
            return x, element
    if node.op in {"to", "_to_copy", "type_as"} and shapes[value][1] == shapes[x][1]:
        return x, None
    return None


def _constant(argument: Any, graph: Graph) -> Tensor | None:
    if isinstance(argument, Ref):
        return graph.constants.get(argument.name)
    return torch.tensor(float(argument)) if isinstance(argument, (int, float)) and not isinstance(argument, bool) else None


def _silu(node: Node, moving: list[str], producer: Mapping[str, Node]) -> tuple[str, Element] | None:
    for x, gate in (moving, moving[::-1]):
        made = producer.get(gate)
        if made is not None and made.op == "sigmoid" and refs(made.args) == [x]:
            return x, nn.SiLU()
    return None


def _linear(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    weight = bias = None
    args = node.args
    if node.op == "linear" and args[0] == Ref(x):
        weight = _constant(args[1], graph)
        bias = _constant(args[2], graph) if len(args) > 2 and args[2] is not None else None
    elif node.op in {"matmul", "mm"} and args[0] == Ref(x):
        weight = _constant(args[1], graph)
        weight = weight.T if weight is not None and weight.dim() == 2 else None
    elif node.op == "addmm" and len(args) == 3 and not node.kwargs and args[1] == Ref(x):
        bias, weight = _constant(args[0], graph), _constant(args[2], graph)
        weight = weight.T if weight is not None and weight.dim() == 2 else None
    if weight is None or weight.dim() != 2 or weight.shape[1] != width or (bias is not None and bias.numel() not in {weight.shape[0]}):
        return None
    return dense(weight.detach(), bias.detach() if bias is not None else None)


def _arithmetic(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    if node.op in {"add", "sub", "mul", "div", "rsub"} and len(node.args) == 2 and not node.kwargs:
        left, right = node.args
        first = left == Ref(x)
        other = _constant(right if first else left, graph)
        if other is None or not other.is_floating_point() or other.numel() not in {1, width}:
            return None
        other = other.detach().double().reshape(-1)
        one, zero = torch.ones(width).double(), torch.zeros(width).double()
        if node.op == "add":
            return _affine(one, zero + other)
        if node.op == "sub" or (node.op == "rsub" and first):
            forward = (node.op == "sub") == first
            return _affine(one, zero - other) if forward else _affine(-one, zero + other)
        if node.op == "mul":
            return _affine(one * other, zero)
        return _affine(one / other, zero) if node.op == "div" and first else None
    if node.op in {"clamp", "clip"} and not node.kwargs:
        low, high = (_constant(a, graph) if a is not None else None for a in (*node.args[1:], None, None)[:2])
        if low is not None and high is not None and low.numel() == high.numel() == 1:
            return nn.Hardtanh(float(low), float(high)) if float(low) < float(high) else None
    return None


def _affine(scale: Tensor, shift: Tensor) -> Affine:
    made = Affine(scale, shift)
    made.scale, made.shift = scale, shift  # in double precision until they are joined
    return made


def _normalisation(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    if node.op == "layer_norm" and list(node.args[1]) == [width] and len(node.args) > 3:
        weight, bias = (_constant(a, graph) if a is not None else None for a in node.args[2:4])
        layer = nn.LayerNorm(width, eps=float(node.args[4]) if len(node.args) > 4 else 1e-5)
        with torch.no_grad():
            layer.weight.copy_(weight) if weight is not None else layer.weight.fill_(1)
            layer.bias.copy_(bias) if bias is not None else layer.bias.fill_(0)
        return layer.requires_grad_(False)
    if node.op == "batch_norm":
        weight, bias, mean, var = (_constant(a, graph) if a is not None else None for a in node.args[1:5])
        eps = float(node.args[7]) if len(node.args) > 7 else 1e-5
        if mean is None or var is None or mean.numel() != width:
            return None
        scale = (1 if weight is None else weight.detach().double()) / (var.detach().double() + eps).sqrt()
        return _affine(scale, (0 if bias is None else bias.detach().double()) - mean.detach().double() * scale)
    return None


def _columns(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    args = [*node.args[1:], *[None] * 4]
    if node.op == "slice" and args[0] in {1, -1} and args[3] in {None, 1} and not node.kwargs:
        first, last, _ = slice(args[1], args[2]).indices(width)
        return Columns(first, last)
    if node.op in {"split", "split_with_sizes"} and args[1] in {1, -1} and not node.kwargs:
        sizes = list(args[0]) if isinstance(args[0], tuple) else [args[0]] * len(node.outputs)
        first = sum(sizes[: node.outputs.index(value)])
        return Columns(first, first + sizes[node.outputs.index(value)])
    if node.op == "chunk" and args[1] in {1, -1} and not node.kwargs:
        size = -(-width // args[0])
        first = size * node.outputs.index(value)
        return Columns(first, min(width, first + size))
    return None


def _activation(node: Node, x: str, value: str, width: int, graph: Graph) -> Element | None:
    rest = [a for a in node.args[1:]]
    if node.op not in ACTIVATIONS or any(isinstance(a, (Ref, tuple)) for a in rest):
        return None
    if node.op in {"softmax", "log_softmax"}:
        return ACTIVATIONS[node.op](-1) if rest and rest[0] in {1, -1} else None
    if node.op == "gelu":
        return nn.GELU(str(node.kwargs.get("approximate", rest[0] if rest else "none")))
    if node.op == "elu" and all(a == 1 for a in rest[1:]):
        return nn.ELU(float(rest[0]) if rest else 1.0)
    if node.op in {"leaky_relu", "hardtanh", "celu", "softplus"} and not node.kwargs:
        return ACTIVATIONS[node.op](*map(float, rest))
    return ACTIVATIONS[node.op]() if not rest and not node.kwargs else None


def _joined(elements: list[Any]) -> list[Element] | None:
    """Affine steps joined with each other and into the layer before; columns taken out of that layer."""
    made: list[Any] = []
    for element in elements:
        before = made[-1] if made else None
        if isinstance(element, Affine) and isinstance(before, Affine):
            made[-1] = _affine(before.scale * element.scale, before.shift * element.scale + element.shift)
        elif isinstance(element, Affine) and isinstance(before, nn.Linear):
            weight, bias = before.weight.double() * element.scale[:, None], before.bias.double() * element.scale + element.shift
            made[-1] = dense(weight.float(), bias.float())
        elif isinstance(element, Columns):
            if isinstance(before, nn.Linear):
                made[-1] = dense(before.weight[element.first : element.last], before.bias[element.first : element.last])
            elif isinstance(before, nn.Module) and len(made) > 1 and isinstance(made[-2], nn.Linear) and type(before) in {nn.Tanh, nn.Hardtanh, nn.ReLU, nn.Sigmoid}:
                made[-2] = dense(made[-2].weight[element.first : element.last], made[-2].bias[element.first : element.last])
            else:
                return None
        else:
            made.append(element)
    return [Affine(e.scale, e.shift) if isinstance(e, Affine) else e for e in made]


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
    if clip < UNCLIPPED or (mine is not None and not bool((mine.scale != 0).all())):
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
        one, two = mine.state_dict(), other.state_dict()
        if type(mine) is not type(other) or any(not torch.equal(one[k], two[k]) for k in one):
            return None
    return nn.Sequential(*theirs[last:])


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
    from distillrl.teachers.fitting import input_tensor

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
            pairs = [(prediction.q, values[graph.outputs[reading.action]])]  # type: ignore[list-item]  # greedy heads give q
        if reading.value:
            pairs.append((prediction.value, values[graph.outputs[reading.value]].reshape(-1)))  # type: ignore[arg-type]  # it was asked for
    return difference([a for a, _ in pairs], [b for _, b in pairs])
