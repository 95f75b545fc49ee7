"""Which neurons and weights a network can do without: importance on the states that it visits.

A neuron counts by how much it moves what reads it, std(activation) · ‖outgoing weights‖ (as Hu 2016 and Molchanov 2017 weigh activations); its mean
goes into the biases, and what reads the layer is fitted anew to what it gave before (He 2017, 1707.06168, eq. 1, by least squares).
A single weight counts by |weight| · std(input) (Sun 2023, Wanda, 2306.11695, eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distillrl import students
from distillrl.errors import Misconfigured
from distillrl.students.networks import Network, parse_mlp

GATES = {"gru": 3, "lstm": 4}
LEAST = 2
"""Neurons that each layer keeps; weights that each input and output of a layer keeps."""


@dataclass(frozen=True)
class Layer:
    """A hidden layer: whose rows it is, in how many gates; which layer reads it; and whether it reads itself."""

    name: str
    gates: int
    reader: str
    size: int


def layers(policy: Network) -> list[Layer]:
    """The hidden layers of an MLP, a GRU or an LSTM; raises Misconfigured for a family whose neurons can't be taken out."""
    kind, sizes, _ = _read(policy.family)
    names = [f"body.{2 * i}" for i in range(len(sizes))]
    readers = [*names[1:], "out"] if names else []
    found = [Layer(name, 1, reader, size) for name, reader, size in zip(names, readers, sizes, strict=True)]
    if kind in GATES:
        hidden = int(policy.family.split(":")[1])
        found.insert(0, Layer("recurrent.cell", GATES[kind], names[0] if names else "out", hidden))
    if not found:
        raise Misconfigured(f"compress --prune: a linear student ({policy.family}) has no neurons to take out; --sparse takes out single weights")
    return found


def _read(family: str) -> tuple[str, tuple[int, ...], str]:
    kind, _, text = family.partition(":")
    if kind not in {"mlp", *GATES}:
        raise Misconfigured(
            f"compress --prune can't take neurons out of a student of the family {kind} ({family}); out of mlp, gru and lstm it can, leaves out of a tree; "
            "--sparse takes single weights out of any network, --quantise makes them smaller"
        )
    return kind, *parse_mlp(text if kind == "mlp" else text.partition(":")[2])


def _word(policy: Network, sizes: list[int]) -> str:
    """The family word of the same network with other sizes."""
    kind, _, activation = _read(policy.family)
    if kind in GATES:
        inner = "x".join(map(str, sizes[1:]))
        return f"{kind}:{sizes[0]}" + (f":{inner}:{activation}" if inner else "")
    return f"mlp:{'x'.join(map(str, sizes))}:{activation}"


def narrowed(policy: Network, parameters: int, seen: Mapping[str, Tensor]) -> Network:
    """The network with its least important neurons taken out until it has at most ``parameters``.

    ``seen``: what each layer read on visited states (calibration.inputs). Raises Misconfigured where it can't become so small.
    """
    found, tensors = layers(policy), {k: v.clone() for k, v in policy.artifact_tensors().items()}
    scores = [_importance(layer, tensors, seen) for layer in found]
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
        _take_out(layer, sorted(keep), tensors, seen)
    made: Network = students.build({**policy.header(), "family": _word(policy, sizes)}, tensors)
    return made


def _importance(layer: Layer, tensors: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Tensor:
    """[size], of unit norm in each layer, so that layers compare."""
    outgoing = tensors[f"{layer.reader}.weight"].square().sum(0)
    if layer.gates > 1:
        outgoing = outgoing + tensors[f"{layer.name}.weight_hh"].square().sum(0)
    score = seen[layer.reader].std(0) * outgoing.sqrt()
    return score / score.norm().clamp_min(1e-12)


def _counter(policy: Network, found: list[Layer]) -> Callable[[list[int]], int]:
    """A function from the layers' sizes to the number of parameters."""
    first = f"{found[0].name}.weight" + ("_ih" if found[0].gates > 1 else "")
    before, outputs = int(policy.get_parameter(first).shape[1]), int(policy.get_parameter("out.weight").shape[0])

    def count(sizes: list[int]) -> int:
        total, width = 0, before
        for layer, size in zip(found, sizes, strict=True):
            total += size * (width + 1) if layer.gates == 1 else layer.gates * size * (width + size + 2)
            width = size
        return total + outputs * (width + 1)

    return count


def _take_out(layer: Layer, keep: list[int], tensors: dict[str, Tensor], seen: Mapping[str, Tensor]) -> None:
    rows = torch.cat([torch.tensor(keep) + gate * layer.size for gate in range(layer.gates)])
    gone = torch.tensor([j for j in range(layer.size) if j not in set(keep)], dtype=torch.int64)
    for name in [n for n in tensors if n.startswith(f"{layer.name}.")]:
        tensors[name] = tensors[name][rows].contiguous()
    if layer.gates > 1:
        tensors[f"{layer.name}.bias_hh"] = tensors[f"{layer.name}.bias_hh"] + tensors[f"{layer.name}.weight_hh"][:, gone] @ seen[layer.reader][:, gone].mean(0)
        tensors[f"{layer.name}.weight_hh"] = tensors[f"{layer.name}.weight_hh"][:, keep].contiguous()
    weight, bias = _fitted(seen[layer.reader], keep, tensors[f"{layer.reader}.weight"])
    tensors[f"{layer.reader}.weight"], tensors[f"{layer.reader}.bias"] = weight, tensors[f"{layer.reader}.bias"] + bias


def _fitted(x: Tensor, keep: list[int], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and what the bias gains, so that W' x[keep] + b' is nearest to W x; a little ridge holds W' to W where neurons say the same."""
    x, weight = x.double(), weight.double()
    mean, centred = x.mean(0), x - x.mean(0)
    gone = [j for j in range(x.shape[1]) if j not in set(keep)]
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
