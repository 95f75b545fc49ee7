"""The steps of a compression: from a student's file to a smaller one that still has to be retrained, or to one that is ready."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distillrl import artifact, calibration, pruning, students
from distillrl.envs import EnvOptions
from distillrl.errors import Misconfigured, nearest
from distillrl.packing import HALVES, Form
from distillrl.students import compact
from distillrl.students.forest import Forest
from distillrl.students.networks import Network

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
FLOATS = {"fp16": "float16", "bf16": "bfloat16"}
GROWN = {"tree": "leaves", "linear-tree": "leaves", "forest": "leaves", "linear": "terms", "poly": "terms"}
"""What there is to take out of a fitted student: an option of its word."""
AT_ONCE = 0.6
"""Of what there is, at least this share is left by one step of pruning; more steps follow."""


@dataclass(frozen=True)
class Rung:
    """One step: its label, its kind (start, retrain, neurons, weights, size, bits, floats), how far it goes."""

    label: str
    kind: str
    amount: float | str = 0.0


def ladder(policy: Any, prune: float, sparse: bool, quantise: str | None) -> list[Rung]:
    """The steps that lead to what is wished, each a little further; raises Misconfigured where this student can't go there."""
    if not 0 <= prune < 1:
        raise Misconfigured(f"compress --prune {prune}: the share to be taken out is right, from 0 to below 1, such as 0.8")
    if quantise is not None and quantise not in {**BITS, **FLOATS}:
        raise Misconfigured(f"compress --quantise {quantise!r}{nearest(quantise, [*BITS, *FLOATS])}: there are {', '.join([*BITS, *FLOATS])}")
    if not prune and quantise is None:
        raise Misconfigured("compress: nothing was asked for: --prune 0.8 takes weights out, --quantise int8 makes them smaller")
    if sparse and not prune:
        raise Misconfigured("compress --sparse says how to prune: give --prune 0.8 with it")
    _possible(policy, prune, sparse, quantise)
    rungs = []
    count = max(1, math.ceil(math.log(1 - prune) / math.log(AT_ONCE) - 1e-9)) if prune else 0
    for k in range(1, count + 1):
        gone = 1 - (1 - prune) ** (k / count)
        kind = "size" if getattr(policy, "grown", False) else "weights" if sparse else "neurons"
        what = {"weights": "weights", "neurons": "parameters"}.get(kind) or GROWN[policy.family.partition(":")[0]]
        rungs.append(Rung(f"{gone:.0%} of the {what} out", kind, gone))
    if kinds := [q for q in BITS if quantise in BITS and BITS[q] >= BITS[quantise]]:
        rungs += [Rung(q, "bits", q) for q in kinds]
    elif quantise is not None:
        rungs.append(Rung(quantise, "floats", FLOATS[quantise]))
    return rungs


def _possible(policy: Any, prune: float, sparse: bool, quantise: str | None) -> None:
    if getattr(policy, "grown", False):
        if sparse or quantise is not None:
            what = GROWN.get(policy.family.partition(":")[0], "leaves")
            raise Misconfigured(f"a fitted student ({policy.family}) has no network's weights to leave out or to quantise; --prune takes out {what}, and networks (mlp, cnn, gru, lstm) take --sparse and --quantise")
        return
    if not isinstance(policy, Network) or not policy.family:
        raise Misconfigured(f"compress takes a student of distillrl's own (student.safetensors of a run), this is {type(policy).__name__}: distil one first")
    if policy.compact is not None and any(form.bits or form.dtype != "float32" for form in policy.compact.forms.values()):
        raise Misconfigured("this student is quantised already: compress the file that it was made from")
    if policy.compact is not None and prune and not sparse:
        raise Misconfigured("this student has zeros left out, whose neurons aren't taken out any more: --sparse goes on, --quantise too")
    if prune and not sparse:
        pruning.layers(policy)


def first_of(rung: Rung, base: Any, options: EnvOptions, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor], bool]:
    """Header and tensors of the start of a step, and whether it has to be retrained before it is worth measuring.

    ``base``: the policy that the step begins from; for ``neurons`` and ``weights`` ``amount`` is the share of *the first* student's.
    """
    if rung.kind == "retrain":
        return base.header(), base.artifact_tensors(), True
    if rung.kind == "floats":
        forms = {name: Form(tuple(t.shape), 0, _sparse(base, name), str(rung.amount)) for name, t in base.artifact_tensors().items() if t.dtype == torch.float32}
        most = torch.finfo(HALVES[str(rung.amount)]).max
        if any(bool((t.abs() > most).any()) for t in base.artifact_tensors().values()):
            raise Misconfigured(f"compress --quantise: this student has weights beyond what {rung.amount} holds ({most:.0f}); bf16 holds them")
        return _with(base, compact.Compact(forms))
    seen = calibration.inputs(base, options, seed)
    if rung.kind == "bits":
        return _whole(base, BITS[str(rung.amount)], seen)
    raise AssertionError(rung.kind)


def smaller_word(policy: Any, gone: float) -> str:
    """The family word of a fitted student with this share of its leaves, or terms, out: ``tree:leaves=64`` → ``tree:leaves=13``."""
    kind, _, text = policy.family.partition(":")
    option = GROWN[kind]
    given = dict(p.partition("=")[::2] for p in text.split(",") if p)
    if option == "terms":
        there = int(given.get(option) or policy.model.size())
    else:
        trees = policy.model.trees if isinstance(policy.model, Forest) else [getattr(policy.model, "tree", policy.model)]
        there = max(tree.size() for tree in trees)
    given[option] = str(max(2 if option == "leaves" else 1, round(there * (1 - gone))))
    return f"{kind}:" + ",".join(f"{k}={v}" if v else k for k, v in given.items())


def narrower(base: Network, parameters: int, options: EnvOptions, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor], bool]:
    """The same with neurons taken out until it has at most so many parameters."""
    made = pruning.narrowed(base, parameters, calibration.inputs(base, options, seed))
    return made.header(), made.artifact_tensors(), True


def sparser(base: Network, share: float, options: EnvOptions, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor], bool]:
    """The same with this share of all weights left out."""
    masks = pruning.thinned(base, share, calibration.inputs(base, options, seed))
    made = copy.deepcopy(base)
    for name, mask in masks.items():
        made.get_parameter(name).data *= mask
    made.compact = compact.Compact({name: Form(tuple(mask.shape), 0, True) for name, mask in masks.items()}, packed=False)
    return made.header(), made.artifact_tensors(), True


def _sparse(base: Network, name: str) -> bool:
    return base.compact is not None and name in base.compact.forms and base.compact.forms[name].sparse


def _with(base: Network, how: compact.Compact) -> tuple[dict[str, Any], dict[str, torch.Tensor], bool]:
    made = copy.deepcopy(base)
    made.compact = how
    return made.header(), made.artifact_tensors(), False


def _whole(base: Network, bits: int, seen: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, torch.Tensor], bool]:
    """Weights of ``bits``, inputs of dense layers of 12: of 8 bits ready as it is, of fewer to be learnt on the grid."""
    made = copy.deepcopy(base)
    forms = {name: Form(tuple(t.shape), bits, _sparse(base, name)) for name, t in pruning.weights(base).items()}
    # A recurrent cell's own sums are not rounded: an error in its memory would be carried on.
    rounded = {} if made.init(1) else calibration.round_inputs(made, dict(seen))
    made.compact = compact.Compact(forms, rounded, packed=False)
    header, tensors = made.header(), made.artifact_tensors()
    if bits < 8:
        return header, tensors, True
    ready = students.build(header, tensors, learning=True)
    ready = students.build(ready.header(), ready.artifact_tensors())
    if rounded and not base.heads and all(isinstance(m, torch.nn.Linear) or not list(m.parameters()) for _, m in base.body.named_children()):
        calibration.correct_biases(ready, base, dict(seen))
    return ready.header(), ready.artifact_tensors(), False


def sizes(path: Path) -> dict[str, int]:
    """Bytes of a student's file: all of it, and what its tensors take."""
    whole = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return {"bytes": whole, "tensor_bytes": whole - 8 - header}


def held_parameters(path: Path) -> Any:
    """The policy of a file."""
    return students.build(*artifact.load(path))


__all__ = ["Rung", "first_of", "held_parameters", "ladder", "narrower", "replace", "sizes", "sparser"]
