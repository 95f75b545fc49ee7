"""A plan of a fitted policy: trees, forests, linear models at leaves, polynomials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distillrl.errors import Misconfigured
from distillrl.students.fitted import Fitted
from distillrl.students.forest import Forest
from distillrl.students.leaf_linear import LeafLinear
from distillrl.students.polynomial import Polynomial
from distillrl.students.tree import Tree
from distillrl.targets import plan as steps
from distillrl.targets import sensing
from distillrl.targets.plan import Decode, Floats, Plan
from distillrl.targets.sensing import Builder


def trace(policy: Fitted, sampled: bool) -> Plan:
    """The model gives scores of a choice, or the action itself, which is made scores where it is of whole numbers."""
    if sampled:
        raise Misconfigured("a fitted policy (a tree, a formula) has no distribution to sample from: export it without --sampled")
    b = Builder({}, [])
    x = sensing.flatten(b, sensing.sense(b, policy), policy.sense.groups)
    raw = MODELS[type(policy.model)](b, x, policy.model)
    space = policy.spec.action
    kind = {"discrete": "argmax", "multibinary": "threshold", "multidiscrete": "multi"}.get(space.kind, "clip")
    inputs = tuple(sensing.to_input(name, group, b) for name, group in policy.spec.observations.items() if any(name in steps.reads(op) for op in b.ops))
    decode = Decode(kind, space.shape, space.dtype, space.start, space.nvec if kind == "multi" else (), space.low, space.high)
    return Plan(inputs, tuple(b.states), tuple(b.ops), raw, decode, b.shapes)


def _tree(b: Builder, x: str, tree: Tree) -> str:
    value, space = _floats(tree.value), tree.space
    if space.kind == "multibinary":
        value = value - np.float32(0.5)
    elif space.kind == "multidiscrete":
        chosen = value.astype(int)
        value = np.concatenate([np.eye(n, dtype=np.float32)[chosen[:, k]] for k, n in enumerate(space.nvec)], 1)
    return _branches(b, x, tree, value)


def _branches(b: Builder, x: str, tree: Tree, value: Floats) -> str:
    """The row of ``value`` [M, V] of the leaf that x comes to."""
    feature, branches = (v.cpu().numpy().astype(np.int32) for v in (tree.feature, tree.branches))
    return b.add(steps.Branches(b.name(), x, feature, _floats(tree.threshold), branches, value, tree.deepest), (value.shape[1],))


def _forest(b: Builder, x: str, forest: Forest) -> str:
    total = ""
    for tree in forest.trees:
        value = _tree(b, x, tree)
        total = value if not total else b.add(steps.Combine(b.name(), total, value, "add"), b.shapes[value])
    count = np.full(1, 1 / len(forest.trees), np.float32)
    return b.add(steps.Affine(b.name(), total, count, np.zeros(1, np.float32)), b.shapes[total])


def _leaf_linear(b: Builder, x: str, model: LeafLinear) -> str:
    """The leaf's weights times x, entry by entry, summed by a matrix of ones; then its bias."""
    weight, bias = _floats(model.weight), _floats(model.bias)
    nodes, outputs, width = weight.shape
    own = _branches(b, x, model.tree, weight.reshape(nodes, -1))
    repeated = b.add(steps.Take(b.name(), x, tuple(range(width)) * outputs), (outputs * width,))
    products = b.add(steps.Combine(b.name(), own, repeated, "multiply"), (outputs * width,))
    ones: Floats = np.kron(np.eye(outputs), np.ones((1, width))).astype(np.float32)
    summed = b.add(steps.Dense(b.name(), products, ones, np.zeros(outputs, np.float32)), (outputs,))
    offset = _branches(b, x, model.tree, bias)
    return b.add(steps.Combine(b.name(), summed, offset, "add"), (outputs,))


def _polynomial(b: Builder, x: str, model: Polynomial) -> str:
    """Products of entries of z, a constant 1 among them, then a dense layer."""
    scale, mean = _floats(model.scale), _floats(model.mean)
    z = b.add(steps.Affine(b.name(), x, scale, -mean * scale), b.shapes[x])
    first = b.add(steps.Take(b.name(), x, (0,)), (1,))
    one = b.add(steps.Affine(b.name(), first, np.zeros(1, np.float32), np.ones(1, np.float32)), (1,))
    whole = b.add(steps.Concat(b.name(), (z, one)), (model.width + 1,))
    count, product = len(model.places), ""
    for d in range(model.degree):
        factor = b.add(steps.Take(b.name(), whole, tuple(model.places[:, d].tolist())), (count,))
        product = factor if not product else b.add(steps.Combine(b.name(), product, factor, "multiply"), (count,))
    return b.add(steps.Dense(b.name(), product, _floats(model.weight), _floats(model.bias)), (len(model.bias),))


def _floats(tensor: torch.Tensor) -> Floats:
    array: Floats = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    if not np.isfinite(array).all():
        raise Misconfigured("this policy can't be exported: its numbers hold NaN or infinity")
    return array


MODELS: dict[type, Callable[[Builder, str, Any], str]] = {Tree: _tree, Forest: _forest, LeafLinear: _leaf_linear, Polynomial: _polynomial}
