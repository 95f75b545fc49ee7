"""Networks of no library: fully connected (or convolutional) layers in the order of the file, heads told by their names.

Only what leaves no layer over is taken: every weight belongs to the chain from observation to action, to a value, to a
spread, or to a target network. What the file doesn't hold, the activation above all, is said in the notes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from distillrl.errors import Missing
from distillrl.teachers.graph import Ref
from distillrl.teachers.writer import Weights, Writer

_VALUE = {"critic", "value", "values", "val", "v", "vf", "baseline", "valuenet", "qf", "qnet1", "qnet2"}
_TARGET = {"target", "targ", "old", "ema"}
_SPREAD = {"std", "logstd", "sigma", "logsigma", "logvar", "logscale"}
_ADVANTAGE = {"adv", "advantage", "advantages", "a"}
_Q = {"q", "dqn", "qnet", "qvalue", "qvalues", "qnetwork"}
_PIECES = re.compile(r"[._]|(?<=[a-z])(?=\d)|(?<=\d)(?=[a-z])|(?<=[a-z])(?=[A-Z])")


def words(name: str) -> set[str]:
    """The words of a dotted name, in small letters: ``value_head.0`` → {value, head, 0}."""
    parts = [p.lower() for p in _PIECES.split(name) if p]
    return {*parts, *("".join(pair) for pair in itertools.pairwise(parts))}


def layers(weights: Weights) -> list[str]:
    """Names of all layers with a ``weight``, in the file's order."""
    return [name.removesuffix(".weight").removesuffix("weight") for name, t in weights.tensors.items() if (name.endswith(".weight") or name == "weight") and t.dim() in {1, 2, 4}]


def chained(weights: Weights) -> bool:
    """Whether the file holds nothing but layers that follow one another, with heads at the end."""
    try:
        sort(weights)
    except Missing:
        return False
    return True


def is_dueling(weights: Weights) -> bool:
    """Whether there are a stream of the value and one of the advantage (Wang 2016)."""
    found = [words(n) for n in layers(weights)]
    return any(f & _ADVANTAGE for f in found) and any(f & _VALUE and not f & _ADVANTAGE for f in found) and not any(f & _TARGET for f in found)


class Sorted:
    """The layers of a file by what they are for."""

    def __init__(self) -> None:
        self.acting: list[str] = []
        self.value: list[str] = []
        self.spread: list[str] = []
        self.log_std: Tensor | None = None
        self.head_value = False


def sort(weights: Weights) -> Sorted:
    """What each layer is for, by its name and shape. Raises Missing where they don't follow one another, or something is left over."""
    found, used = Sorted(), set()
    for name in layers(weights):
        said = words(name)
        used |= {f"{name}.{part}" if name else part for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
        if said & _TARGET:
            continue
        (found.value if said & _VALUE else found.spread if said & _SPREAD else found.acting).append(name)
    for name, tensor in weights.tensors.items():
        if name not in used and words(name) & _SPREAD and tensor.numel() <= 4096:
            found.log_std = tensor.float().reshape(-1)
            used.add(name)
    left = [n for n, t in weights.tensors.items() if n not in used and t.dim() > 0 and not words(n) & (_TARGET | _VALUE)]
    sizes = {n: weights[f"{n}.weight" if n else "weight"].shape for n in (*found.acting, *found.value, *found.spread)}
    if left or not found.acting or not follow([sizes[n] for n in found.acting]):
        raise Missing(f"{weights.where}: its layers don't follow one another")
    latent = sizes[found.acting[-1]][1]
    found.head_value = len(found.value) == 1 and len(sizes[found.value[0]]) == 2 and sizes[found.value[0]][1] == latent and len(found.acting) > 1
    if len(found.spread) > 1 or (found.spread and sizes[found.spread[0]] != sizes[found.acting[-1]]):
        raise Missing(f"{weights.where}: its layers of a spread don't fit")
    return found


def follow(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether each layer takes what the one before gives; a flattened image is any multiple of its channels."""
    width, image = 0, False
    for i, shape in enumerate(shapes):
        if len(shape) == 1:
            if shape[0] != width or image:
                return False
            continue
        given = shape[1]
        if i and given != width and not (image and len(shape) == 2 and given % max(width, 1) == 0):
            return False
        if i and len(shape) == 4 and not image:
            return False
        width, image = int(shape[0]), len(shape) == 4
    return len(shapes[-1]) == 2


def _start(w: Writer, first: str) -> Ref:
    weight = w.weights[f"{first}.weight" if first else "weight"]
    if weight.dim() != 4:
        return w.observation(int(weight.shape[1]))
    w.notes.append("its images are taken to be 84×84, divided by 255")
    return w.tracer.call("div", w.observation(int(weight.shape[1]), 84, 84), 255.0)


def chain(w: Writer) -> None:
    """Layers in the file's order with the activation between them; spread and value from heads, or from networks of their own."""
    found = sort(w.weights)
    raw = _start(w, found.acting[0])
    latent = w.chain(raw, found.acting[:-1], open_end=True) if len(found.acting) > 1 else raw
    action = w.chain(latent, found.acting[-1:])
    log_std: Ref | Tensor | None = w.layer(latent, found.spread[0]) if found.spread else found.log_std
    if isinstance(log_std, Tensor) and log_std.numel() != w.tracer.shape(action)[-1]:
        log_std = None
    value = None
    if found.head_value:
        value = w.layer(latent, found.value[0])
    elif found.value and follow([w.weights[f"{n}.weight"].shape for n in found.value]) and w.weights[f"{found.value[0]}.weight"].shape[1:] == w.weights[f"{found.acting[0]}.weight" if found.acting[0] else "weight"].shape[1:]:
        value = w.chain(raw, found.value)
    if value is not None and w.tracer.shape(value)[-1] != 1:
        value = None
    w.notes.append(f"it is of no library known here: its layers are taken in the file's order ({', '.join(found.acting)}); whether observations were normalised outside of the network, the file doesn't tell")
    finish(w, action, log_std, value, bool(words(found.acting[-1]) & _Q or words(found.acting[0]) & _Q))


def finish(w: Writer, action: Ref, log_std: Ref | Tensor | None, value: Ref | None, is_q: bool) -> None:
    """The kind of action: by the environment's space where it is known, else by what else there is."""
    boxed = w.space.kind == "box" if w.space is not None else log_std is not None
    ends = next((n for n in w.tracer.nodes if action.name in n.outputs), None)
    if boxed and w.space is not None and ends is not None and ends.op == "tanh" and set(zip(w.space.low, w.space.high, strict=True)) != {(-1.0, 1.0)}:
        low, high = torch.tensor(w.space.low), torch.tensor(w.space.high)
        if bool(torch.isfinite(high - low).all()):
            w.notes.append("it ends in tanh, which is stretched to the environment's bounds")
            action = w.ranged(action, (high - low) / 2, (high + low) / 2)
    if boxed and w.ending:
        w.gives(action, "tanh", value=value)
    elif boxed:
        w.gives(action, "gaussian" if log_std is not None else "deterministic", log_std=log_std, value=value)
    else:
        if not is_q and value is None:
            w.notes.append("its outputs are taken as logits (if they are values of actions: --format plain_q)")
        w.gives(action, "greedy" if is_q else "categorical", value=value)


def q_values(w: Writer) -> None:
    """As ``chain``, and what comes out are values of actions (on the user's word)."""
    found = sort(w.weights)
    w.gives(w.chain(_start(w, found.acting[0]), found.acting), "greedy")


def dueling(w: Writer) -> None:
    """Q = V + A − mean A (Wang 2016, 1511.06581, eq. 9); of distributions over ``support`` or ``atoms`` (Hessel 2018) the expectation."""
    names = layers(w.weights)
    advantage = [n for n in names if words(n) & _ADVANTAGE]
    value = [n for n in names if words(n) & _VALUE and n not in advantage]
    trunk = [n for n in names if n not in advantage and n not in value]
    raw = _start(w, trunk[0] if trunk else value[0])
    latent = w.chain(raw, trunk, open_end=True) if trunk else raw
    v, a = w.chain(latent, value), w.chain(latent, advantage)
    call = w.tracer.call
    place = w.weights.first("support", "atoms")
    if place is None:
        q = call("add", call("sub", a, call("mean", a, (-1,), True)), v)
    else:
        atoms = w.weights[place].reshape(-1)
        a, v = call("unflatten", a, 1, (-1, int(atoms.numel()))), call("unflatten", v, 1, (1, int(atoms.numel())))
        chances = call("softmax", call("add", call("sub", a, call("mean", a, (1,), True)), v), -1)
        q = call("sum", call("mul", chances, w.constant(atoms)), (-1,))
    w.notes.append("a dueling network: Q = V + A − mean A")
    w.gives(q, "greedy")
