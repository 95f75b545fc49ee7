"""What grown families share: the examples that they are fitted to, and a tree's tensors from scikit-learn, imported late."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Misconfigured, Missing, nearest
from distillrl.records import ActionSpace, Prediction

TRIES = 256
"""Fits of a round at most."""
MOST = 1 << 16
"""Leaves, trees or terms that may be asked for."""


NEVER = -1e6
"""The score of an action that the teacher never chose."""


@dataclass(frozen=True)
class Counts:
    """How states count: ``weight`` "gap" is by what a wrong action costs there (Bastani 2018), "none" all alike;
    ``resample``: they are drawn by that weight instead of counted by it, as the paper does. ``tries``: so many are fitted a round, of
    which the one that plays best goes on.
    """

    weight: str = "gap"
    resample: bool = False
    tries: int = 1


def parse(family: str, text: str, whole: Mapping[str, tuple[int, int]]) -> tuple[dict[str, int], Counts]:
    """``leaves=64,weight=none,resample`` → ({"leaves": 64}, Counts("none", True)); ``whole``: {option: its least, its most}.

    Raises Misconfigured, with what would be right.
    """
    numbers: dict[str, int] = {}
    counts = Counts()
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if key not in whole and key not in {"weight", "resample", "tries"}:
            raise Misconfigured(f"student {family}:{text}: unknown option {key!r}{nearest(key, (*whole, 'weight', 'resample', 'tries'))}")
        if key == "resample" and not equals:
            counts = replace(counts, resample=True)
        elif key == "weight" and value in {"gap", "none"}:
            counts = replace(counts, weight=value)
        elif key == "tries" and value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= TRIES:
            counts = replace(counts, tries=int(value[:9]))
        elif key in whole and value.isascii() and value.isdigit() and whole[key][0] <= int(value[:9]) <= whole[key][1]:
            numbers[key] = int(value[:9])
        else:
            right = ", ".join(f"{k}= from {low} to {high}" for k, (low, high) in whole.items())
            raise Misconfigured(f"student {family}:{text}: {part!r} was given; {right}, tries= from 1 to {TRIES}, weight=gap or none, and resample are right")
    return numbers, counts


@dataclass(frozen=True)
class Examples:
    """What to imitate in N states."""

    x: Tensor
    """[N, F] what the sense gives, flat."""
    action: Tensor
    """What the teacher does: [N] int64 for a discrete space, [N, A] int64 or float for the others."""
    scores: Tensor | None
    """[N, V] for a discrete space: the teacher's Q-values, or its log-probabilities; None where it gives the action alone."""
    weight: Tensor | None
    """[N] how much each state counts, 1 on average; None where all count alike."""


def examples(x: Tensor, teacher: Prediction, weight: Tensor | None, space: ActionSpace) -> Examples:
    """The examples of labelled states."""
    assert teacher.action is not None
    mode = teacher.action.mode
    scores = teacher.q if teacher.q is not None else getattr(teacher.action, "log_probs", None)
    return Examples(x, mode.float() if space.kind == "box" else mode, scores if space.kind == "discrete" else None, weight)


def some(given: Examples, rows: Tensor) -> Examples:
    """Those of the rows."""
    return Examples(given.x[rows], given.action[rows], *(None if v is None else v[rows] for v in (given.scores, given.weight)))


def drawn(given: Examples, generator: torch.Generator, by_weight: bool = True) -> Examples:
    """As many examples drawn with replacement: by their weights, so that all count alike then, or uniformly, keeping them."""
    count = len(given.x)
    if by_weight and given.weight is not None:
        rows = torch.multinomial(given.weight, count, replacement=True, generator=generator)
        return replace(some(given, rows), weight=None)
    return some(given, torch.randint(count, (count,), generator=generator))


def sklearn(module: str) -> Any:
    """A module of scikit-learn; raises Missing, with the pip line, where it isn't installed."""
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError:
        raise Missing("trees and polynomials are fitted by scikit-learn, which is not installed: pip install 'distillrl[tree]'") from None


def tree(given: Examples, space: ActionSpace, leaves: int, depth: int, seed: int, grow: int = 0) -> dict[str, Tensor]:
    """A tree of at most ``leaves`` leaves (CART, best-first; Breiman 1984): feature [M], threshold [M], branches [M, 2], value [M, V].

    With ``grow`` it is grown to that many and cut back (see ``cut_back``): what a test is worth may show only in those below it.
    Node m asks whether x[feature] ≤ threshold and goes to branches[m, 0], else to [m, 1]; a leaf's branches are itself.
    ``value``: for a discrete action the (weighted) share of states in which the teacher chose each, else the action itself.
    """
    trees = sklearn("tree")
    kind = trees.DecisionTreeRegressor if space.kind == "box" else trees.DecisionTreeClassifier
    made = kind(max_leaf_nodes=max(leaves, grow), max_depth=depth or None, random_state=seed)
    made.fit(given.x.numpy(), given.action.double().numpy() if space.kind == "box" else given.action.numpy(), None if given.weight is None else given.weight.double().numpy())
    grown = made.tree_
    yes, no = cut_back(grown.children_left, grown.children_right, _errors(grown, space), leaves)
    kept = np.flatnonzero(_reached(yes, no))
    leaf, place = yes[kept] < 0, np.full(len(yes), -1)
    place[kept] = own = np.arange(len(kept))
    children = np.stack([np.where(leaf, own, place[yes[kept]]), np.where(leaf, own, place[no[kept]])], -1)
    return {
        "feature": torch.from_numpy(np.where(leaf, 0, grown.feature[kept]).astype(np.int64)),
        "threshold": torch.from_numpy(np.where(leaf, 0, floor32(grown.threshold[kept])).astype(np.float32)),
        "branches": torch.from_numpy(children.astype(np.int64)),
        "value": torch.from_numpy(_values(made, grown.value[kept], space)),
    }


def cut_back(yes: np.ndarray, no: np.ndarray, error: np.ndarray, leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """Both children [M] of each node (-1 at a leaf, else later nodes), with tests taken away until at most ``leaves`` leaves are left.

    First goes the test whose subtree lowers the error [M] (of a node, were it a leaf) least for each of its leaves: minimal
    cost-complexity pruning (Breiman 1984, section 3.3).
    """
    yes, no = yes.copy(), no.copy()
    count, below = np.ones(len(yes), np.int64), error.astype(np.float64).copy()
    parent = np.full(len(yes), -1)
    for m in range(len(yes) - 1, -1, -1):
        if yes[m] >= 0:
            parent[[yes[m], no[m]]] = m
            count[m], below[m] = count[yes[m]] + count[no[m]], below[yes[m]] + below[no[m]]
    worth: list[tuple[float, int, int]] = [(float(error[m] - below[m]) / int(count[m] - 1), int(m), int(count[m])) for m in np.flatnonzero(yes >= 0)]
    heapq.heapify(worth)
    while count[0] > leaves:
        _, m, then = heapq.heappop(worth)
        if yes[m] < 0 or count[m] != then or not _inside(m, parent, yes):
            continue  # it was cut, or is another subtree by now
        fewer, more = count[m] - 1, error[m] - below[m]
        yes[m] = no[m] = -1
        while m >= 0:
            count[m], below[m] = count[m] - fewer, below[m] + more
            if yes[m] >= 0:
                heapq.heappush(worth, (float(error[m] - below[m]) / int(count[m] - 1), m, int(count[m])))
            m = int(parent[m])
    return yes, no


def _inside(node: int, parent: np.ndarray, yes: np.ndarray) -> bool:
    """Whether no node above it was cut."""
    while (node := int(parent[node])) >= 0:
        if yes[node] < 0:
            return False
    return True


def _reached(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """[M] bool: whether a node can be come to from the first one."""
    there = np.zeros(len(yes), bool)
    there[0] = True
    for m in range(len(yes)):
        if there[m] and yes[m] >= 0:
            there[[yes[m], no[m]]] = True
    return there


def _errors(grown: Any, space: ActionSpace) -> np.ndarray:
    """[M] what a node would err were it a leaf: the weight of the states in which it chooses otherwise, or the sum of squares."""
    if space.kind == "box":
        return np.asarray(grown.impurity * grown.weighted_n_node_samples)
    shares = grown.value / grown.value.sum(-1, keepdims=True)
    return np.asarray((1 - shares.max(-1)).sum(-1) * grown.weighted_n_node_samples)


def linear(given: Examples, space: ActionSpace) -> tuple[Tensor, Tensor]:
    """Weight [V, F] and bias [V] of a linear model: logistic regression on discrete actions, ridge regression on quantities.

    Each number is standardised first, and the result put in its own units; an action that never occurs is never chosen.
    """
    models = sklearn("linear_model")
    x = given.x.double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 1e-9, spread, torch.ones_like(spread))
    scaled, weight = ((x - mean) / spread).numpy(), None if given.weight is None else given.weight.double().numpy()
    if space.kind == "box":
        made = models.Ridge(alpha=1.0).fit(scaled, given.action.double().numpy(), weight)
        slope, bias = np.atleast_2d(made.coef_), np.atleast_1d(made.intercept_)
    else:
        slope, bias = _logistic(models, scaled, given.action.numpy(), weight, space.n)
    return _in_own_units(torch.from_numpy(np.array(slope)), torch.from_numpy(np.array(bias)), mean, spread)


def _logistic(models: Any, x: np.ndarray, action: np.ndarray, weight: np.ndarray | None, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    slope, bias = np.zeros((outputs, x.shape[1])), np.full(outputs, NEVER)
    there = np.unique(action)
    if len(there) == 1:
        bias[there] = 0.0
        return slope, bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged to the last digit is no news to a user
        made = models.LogisticRegression(max_iter=200).fit(x, action, weight)
    if len(there) == 2:  # one row: for the second action, against the first
        slope[there[1]], bias[there] = made.coef_[0], (0.0, made.intercept_[0])
    else:
        slope[there], bias[there] = made.coef_, made.intercept_
    return slope, bias


def _in_own_units(slope: Tensor, bias: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    weight = slope / spread
    return weight.float().contiguous(), (bias - weight @ mean).float()  # as it comes back from a file, so that sums are the same


def floor32(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 that is at most the threshold: x ≤ t is then the same question for every float32 x."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)


def width(space: ActionSpace) -> int:
    """How many numbers a model gives: scores of a discrete action, else the action's own numbers."""
    return space.n if space.kind == "discrete" else space.dimensions


def _values(made: Any, value: np.ndarray, space: ActionSpace) -> np.ndarray:
    """scikit-learn's [M, outputs, classes] as [M, V]."""
    if space.kind == "box":
        return value[:, :, 0].astype(np.float32)
    if space.kind == "discrete":
        shares = np.zeros((len(value), space.n), dtype=np.float32)
        shares[:, made.classes_] = value[:, 0] / value[:, 0].sum(-1, keepdims=True)
        return shares
    classes = made.classes_ if isinstance(made.classes_, list) else [made.classes_]
    return np.stack([c[value[:, d, : len(c)].argmax(-1)] for d, c in enumerate(classes)], -1).astype(np.float32)
