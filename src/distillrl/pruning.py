"""Which neurons, channels and weights a network can do without: importance on the states that it visits.

A neuron (or a channel, which is one with many places) counts by how much it moves what reads it, std(activation) · ‖outgoing weights‖ (as Hu 2016 and Molchanov 2017 weigh activations); its mean
goes into the biases, and what reads the layer is fitted anew to what it gave before (He 2017, 1707.06168, eq. 1, by least squares).
A single weight counts by |weight| · std(input) (Sun 2023, Wanda, 2306.11695, eq. 1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distillrl import students
from distillrl.errors import Misconfigured
from distillrl.students.cnn import PRESETS, Fused, Image, Points, Residual, parse_cnn
from distillrl.students.networks import Network, parse_mlp

GATES = {"gru": 3, "lstm": 4}
LEAST = 2
"""Neurons that each layer keeps; weights that each input and output of a layer keeps."""


@dataclass(frozen=True)
class Layer:
    """A hidden layer: whose rows it is, in how many gates, of how many neurons (or channels); and which layer reads it.

    In the reader each neuron has ``columns`` columns side by side from ``start`` on (a channel's pixels, or its part of a kernel), beside
    ``rest`` columns that read something else. ``heads``: so many times one behind the other, each with a 1 at its end (students/by_task.py).
    """

    name: str
    gates: int
    reader: str
    size: int
    columns: int = 1
    start: int = 0
    rest: int = 0
    heads: int = 0

    def places(self) -> Tensor:
        """[size, n]: the reader's columns that read each neuron."""
        one = self.start + torch.arange(self.size * self.columns).reshape(self.size, self.columns)
        if not self.heads:
            return one
        return torch.cat([one + k * (self.size * self.columns + self.rest + 1) for k in range(self.heads)], 1)


def layers(policy: Network) -> list[Layer]:
    """The hidden layers of an MLP, a CNN, a GRU or an LSTM; raises Misconfigured for a family whose neurons can't be taken out."""
    kind = policy.family.partition(":")[0]
    if kind not in {"mlp", "cnn", *GATES}:
        raise Misconfigured(
            f"compress --prune can't take neurons out of a student of the family {kind} ({policy.family}); out of mlp, cnn, gru and lstm it can, leaves out of a tree; "
            "--sparse takes single weights out of any network, --quantise makes them smaller"
        )
    dense = [(f"body.{name}", layer) for name, layer in policy.body.named_children() if isinstance(layer, nn.Linear)]
    readers = [*(name for name, _ in dense[1:]), "out"] if dense else []
    found = [Layer(name, 1, reader, layer.out_features) for (name, layer), reader in zip(dense, readers, strict=True)]
    first = dense[0][0] if dense else "out"
    if kind in GATES:
        found.insert(0, Layer("recurrent.cell", GATES[kind], first, int(policy.family.split(":")[1])))
    if kind == "cnn":
        found = [*_channels(policy, first), *found]
    if not found:
        raise Misconfigured(f"compress --prune: a linear student ({policy.family}) has no neurons to take out; --sparse takes out single weights")
    return [replace(layer, heads=policy.heads) if layer.reader == "out" else layer for layer in found]


def _channels(policy: Network, behind: str) -> list[Layer]:
    """The convolutions of a CNN, each read by the next one, and the last by the layer ``behind`` them."""
    tower = policy.body[0]
    parts: list[nn.Module] = list(tower.layers) if isinstance(tower, Fused) else [tower]
    widths = [b - a for a, b in tower.spans] if isinstance(tower, Fused) else [0]
    images = [i for i, part in enumerate(parts) if isinstance(part, Image)]
    inside = next((part.layers for part in parts if isinstance(part, Image)), nn.Sequential())
    convs = [(name, layer) for name, layer in inside.named_children() if isinstance(layer, nn.Conv2d)]
    if len(images) != 1 or any(conv.groups > 1 for _, conv in convs) or any(isinstance(m, Residual | Points) for m in inside):
        raise Misconfigured(
            f"compress --prune takes channels out of plain convolutions of one image; {policy.family} has depthwise or residual ones, points, or more images: --sparse takes single weights out of any"
        )
    prefix = f"body.0.layers.{images[0]}.layers" if isinstance(tower, Fused) else "body.0.layers"
    before, beside = sum(widths[: images[0]]), sum(widths) - widths[images[0]]
    found = [Layer(f"{prefix}.{name}", 1, f"{prefix}.{after}", conv.out_channels, math.prod(reader.kernel_size)) for (name, conv), (after, reader) in itertools.pairwise(convs)]
    name, last = convs[-1]
    read = int(policy.get_parameter(f"{behind}.weight").shape[1])
    pixels = ((read // policy.heads - 1 if policy.heads and behind == "out" else read) - beside) // last.out_channels
    return [*found, Layer(f"{prefix}.{name}", 1, behind, last.out_channels, pixels, before, beside)]


def _word(policy: Network, sizes: list[int]) -> str:
    """The family word of the same network with other sizes."""
    kind, _, text = policy.family.partition(":")
    if kind == "cnn":
        name, _, _ = PRESETS.get(text, text).partition(":")
        convs = name.split("-")
        words = [f"{size}{conv.lstrip('0123456789')}" for size, conv in zip(sizes, convs, strict=False)]
        return f"cnn:{'-'.join(words)}:{'x'.join(map(str, sizes[len(convs) :]))}:{parse_cnn(text).activation}"
    if kind in GATES:
        inner, activation = "x".join(map(str, sizes[1:])), parse_mlp(text.partition(":")[2])[1]
        return f"{kind}:{sizes[0]}" + (f":{inner}:{activation}" if inner else "")
    return f"mlp:{'x'.join(map(str, sizes))}:{parse_mlp(text)[1]}"


PATCHES = 20_000
"""Patches of images that a convolution's weights are weighed by and fitted to."""


def _read(layer: Layer, policy: Network, seen: Mapping[str, Tensor]) -> Tensor:
    """[N, columns]: what the layer's reader is given, row by row; of a convolution patches of some of the images."""
    x, reader = seen[layer.reader], policy.get_submodule(layer.reader)
    if not isinstance(reader, nn.Conv2d):
        return x
    positions = math.prod((n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[2:], _pair(reader.padding), reader.kernel_size, reader.stride, strict=True))
    some = x[torch.linspace(0, len(x) - 1, min(len(x), max(1, PATCHES // positions))).long()].float()
    patches = nn.functional.unfold(some, reader.kernel_size, padding=_pair(reader.padding), stride=reader.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def _pair(value: str | tuple[int, ...]) -> tuple[int, int]:
    assert not isinstance(value, str)  # our own convolutions have numbers
    return value[0], value[1]


def narrowed(policy: Network, parameters: int, seen: Mapping[str, Tensor]) -> Network:
    """The network with its least important neurons taken out until it has at most ``parameters``.

    ``seen``: what each layer read on visited states (calibration.inputs). Raises Misconfigured where it can't become so small.
    """
    found, tensors = layers(policy), {k: v.clone() for k, v in policy.artifact_tensors().items()}
    read = {layer.name: _read(layer, policy, seen) for layer in found}
    scores = [_importance(layer, tensors, read[layer.name]) for layer in found]
    order = sorted((float(s), i, j) for i, score in enumerate(scores) for j, s in enumerate(score))
    kept = [set(range(layer.size)) for layer in found]
    count = _counter(policy, found)
    for _, i, j in order:
        if count([len(k) for k in kept]) <= parameters:
            break
        if len(kept[i]) > LEAST:
            kept[i].discard(j)
    sizes = [len(k) for k in kept]
    if count(sizes) > parameters:
        raise Misconfigured(f"compress --prune: {policy.family} can't have only {parameters} parameters; with {LEAST} neurons a layer it has {count([LEAST] * len(found))}")
    for layer, keep in zip(found, kept, strict=True):
        _take_out(layer, sorted(keep), tensors, read[layer.name])
    made: Network = students.build({**policy.header(), "family": _word(policy, sizes)}, tensors)
    return made


def _importance(layer: Layer, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """[size], of unit norm in each layer, so that layers compare."""
    outgoing = tensors[f"{layer.reader}.weight"].flatten(1).square().sum(0)
    if layer.gates > 1:
        outgoing = outgoing + tensors[f"{layer.name}.weight_hh"].square().sum(0)
    own = layer.places()
    score = (x.var(0) * outgoing)[own].sum(1).sqrt()
    return score / score.norm().clamp_min(1e-12)


def _counter(policy: Network, found: list[Layer]) -> Callable[[list[int]], int]:
    """A function from the layers' sizes to the number of parameters."""
    first = f"{found[0].name}.weight" + ("_ih" if found[0].gates > 1 else "")
    before, outputs = policy.get_parameter(first)[0].numel(), int(policy.get_parameter("out.weight").shape[0])

    def count(sizes: list[int]) -> int:
        total, width = 0, before
        for layer, size in zip(found, sizes, strict=True):
            total += size * (width + 1) if layer.gates == 1 else layer.gates * size * (width + size + 2)
            width = size * layer.columns + layer.rest
        return total + outputs * ((policy.heads or 1) * (width + 1) + (1 if policy.heads else 0))

    return count


def _take_out(layer: Layer, keep: list[int], tensors: dict[str, Tensor], x: Tensor) -> None:
    rows = torch.cat([torch.tensor(keep) + gate * layer.size for gate in range(layer.gates)])
    gone = torch.tensor([j for j in range(layer.size) if j not in set(keep)], dtype=torch.int64)
    for name in [n for n in tensors if n.startswith(f"{layer.name}.")]:
        tensors[name] = tensors[name][rows].contiguous()
    if layer.gates > 1:
        tensors[f"{layer.name}.bias_hh"] = tensors[f"{layer.name}.bias_hh"] + tensors[f"{layer.name}.weight_hh"][:, gone] @ x[:, gone].mean(0)
        tensors[f"{layer.name}.weight_hh"] = tensors[f"{layer.name}.weight_hh"][:, keep].contiguous()
    whole = tensors[f"{layer.reader}.weight"]
    lost = set(layer.places()[gone].flatten().tolist())
    weight, bias = _fitted(x, [c for c in range(x.shape[1]) if c not in lost], whole.flatten(1))
    tensors[f"{layer.reader}.weight"] = weight.reshape(len(whole), -1, *whole.shape[2:])
    tensors[f"{layer.reader}.bias"] = tensors[f"{layer.reader}.bias"] + bias


def _fitted(x: Tensor, keep: list[int], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and what the bias gains, so that W' x[keep] + b' is nearest to W x; a little ridge holds W' to W where neurons say the same."""
    x, weight = x.double(), weight.double()
    mean, centred = x.mean(0), x - x.mean(0)
    gone = sorted(set(range(x.shape[1])) - set(keep))
    inside = centred[:, keep]
    gram = inside.T @ inside
    gram += 1e-4 * gram.diagonal().mean().clamp_min(1e-9) * torch.eye(len(keep), dtype=gram.dtype)
    fitted = weight[:, keep] + torch.linalg.solve(gram, inside.T @ (centred[:, gone] @ weight[:, gone].T)).T
    bias = weight @ mean - fitted @ mean[keep]
    return fitted.float().contiguous(), bias.float()


def weights(policy: Network) -> dict[str, Tensor]:
    """The weights of its layers by name: what has rows of outputs. What the sense scales by is none."""
    kept = policy.artifact_tensors()
    return {name: kept[name] for name, p in policy.named_parameters() if p.dim() >= 2 and name in kept}


def _kept_whole(score: Tensor, weight: Tensor) -> Tensor:
    """The strongest ``LEAST`` weights of each input and of each output can't go: an input that rarely moves may be what the end hangs on."""
    if score.dim() != 2:
        return score
    kept = score.clone()
    for axis in (0, 1):
        top = score.topk(min(LEAST, score.shape[axis]), axis).indices
        kept.scatter_(axis, top, torch.inf)
    return torch.where(weight == 0, score, kept)


def thinned(policy: Network, share: float, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks {weight: [same shape] bool} that leave out the least important ``share`` of all weights (biases stay)."""
    scores: dict[str, Tensor] = {}
    for name, value in weights(policy).items():
        owner, _, which = name.rpartition(".")
        x = seen.get(f"{owner}.h" if which == "weight_hh" else owner)
        spread = torch.ones(value.shape[1]) if x is None or x.dim() != 2 else x.std(0)
        score = value.abs() * spread.reshape(1, -1, *[1] * (value.dim() - 2))
        scores[name] = _kept_whole(score / score.norm().clamp_min(1e-12) * math.sqrt(score.numel()), value)
    whole = torch.cat([s.flatten() for s in scores.values()])
    gone = min(len(whole) - 1, round(share * len(whole)))
    limit = whole.sort().values[gone - 1] if gone else torch.tensor(-1.0)
    limit = limit if bool(limit.isfinite()) else whole[whole.isfinite()].max()
    return {name: score > limit for name, score in scores.items()}
