"""Tree alternating optimisation (Carreira-Perpiñán & Tavallali 2018): each test of a grown tree is chosen anew, given all others.

CART chooses a test by how pure it leaves two sets, before anything stands below it. Here a test is judged by what the leaves below it
then cost: a state is worth sending to one side as far as that side's leaf costs less than the other's. Tests are gone through from the
bottom up, leaves after each pass; the total cost only falls. The tree's shape stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillrl.records import ActionSpace
from distillrl.students.growing import Examples, floor32

LEAST = 1e-3
"""The share of the total cost that a pass must save for another one to follow."""


@dataclass(frozen=True)
class Costs:
    """What an action costs in N states: of a discrete one ``each`` [N, V], else the distance to ``target`` [N, A], or how many of it differ where ``whole``."""

    weight: np.ndarray
    """[N]"""
    each: np.ndarray | None = None
    target: np.ndarray | None = None
    whole: bool = False

    def of(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """[n] of the leaf values [n, V] in the states of the rows."""
        if self.each is not None:
            return np.asarray(self.each[rows, values.argmax(-1)] * self.weight[rows])
        assert self.target is not None
        apart = self.target[rows] - values
        return np.asarray(((apart != 0) if self.whole else apart**2).sum(-1) * self.weight[rows])

    def best(self, rows: np.ndarray) -> np.ndarray:
        """The leaf value [V] that costs least in these states; of a discrete action, how little each costs, of 1 in all."""
        weight = self.weight[rows]
        if self.each is not None:
            saved = self.each.max() - np.average(self.each[rows], 0, weight)
            return np.asarray(saved / max(saved.sum(), 1e-12))
        assert self.target is not None
        if not self.whole:
            return np.asarray(np.average(self.target[rows], 0, weight))
        return np.array([np.bincount(column.astype(np.int64), weight).argmax() for column in self.target[rows].T], np.float64)


def costs(given: Examples, space: ActionSpace) -> Costs:
    """What to imitate as costs. An action costs its regret, the best score less its own, up to the median state's gap between best and worst
    (what is beyond that is a mistake, however large the number); without scores 1 where it isn't the teacher's.
    """
    weight = np.ones(len(given.x)) if given.weight is None else given.weight.double().numpy()
    if not float(weight.sum()) > 0:
        weight = np.ones(len(given.x))
    if space.kind != "discrete":
        target = given.action.double().numpy().reshape(len(given.x), -1)
        return Costs(weight, target=target, whole=space.kind != "box")
    if given.scores is None:
        return Costs(weight, each=1.0 - torch.nn.functional.one_hot(given.action, space.n).double().numpy())
    scores = given.scores.double().clamp(min=-1e6)
    regret = scores.amax(-1, keepdim=True) - scores
    most = float(regret.amax(-1).median())
    return Costs(weight, each=(regret.clamp(max=most) if most > 0 else regret).numpy())


def alternate(tree: Mapping[str, Tensor], given: Examples, space: ActionSpace, passes: int) -> dict[str, Tensor]:
    """The tree (feature [M], threshold [M], branches [M, 2], value [M, V]; see growing.tree) after at most so many passes."""
    cost, x = costs(given, space), given.x.numpy()
    feature, threshold, value = (tree[k].numpy().copy() for k in ("feature", "threshold", "value"))
    branches = tree["branches"].numpy()
    before = np.inf
    for _ in range(passes):
        there = _states(x, feature, threshold, branches)
        for m in range(len(feature) - 1, -1, -1):  # children come after their parents
            if branches[m, 0] == m:
                if len(there[m]):
                    value[m] = cost.best(there[m])
            elif len(there[m]):
                yes, no = (value[_leaf(x[there[m]], feature, threshold, branches, side)] for side in branches[m])
                _choose(m, x[there[m]], cost.of(there[m], yes) - cost.of(there[m], no), feature, threshold)
        now = float(cost.of(np.arange(len(x)), value[_leaf(x, feature, threshold, branches, 0)]).sum())
        if now > before * (1 - LEAST):
            break
        before = now
    for m, rows in enumerate(_states(x, feature, threshold, branches)):
        if branches[m, 0] == m and len(rows):
            value[m] = cost.best(rows)
    return {**tree, "feature": torch.from_numpy(feature), "threshold": torch.from_numpy(threshold), "value": torch.from_numpy(value)}


def _states(x: np.ndarray, feature: np.ndarray, threshold: np.ndarray, branches: np.ndarray) -> list[np.ndarray]:
    """The rows of x that come by each node."""
    found = [np.arange(0)] * len(feature)
    found[0] = np.arange(len(x))
    for m, (yes, no) in enumerate(branches):
        if yes != m:
            holds = x[found[m], feature[m]] <= threshold[m]
            found[yes], found[no] = found[m][holds], found[m][~holds]
    return found


def _leaf(x: np.ndarray, feature: np.ndarray, threshold: np.ndarray, branches: np.ndarray, start: int) -> np.ndarray:
    """[n] the leaf below node ``start`` that each row of x comes to."""
    node, rows = np.full(len(x), start), np.arange(len(x))
    while bool((branches[node, 0] != node).any()):
        node = branches[node, (x[rows, feature[node]] > threshold[node]).astype(np.int64)]
    return node


def _choose(m: int, x: np.ndarray, more: np.ndarray, feature: np.ndarray, threshold: np.ndarray) -> None:
    """The test of node m that costs least, where ``more`` [n] is what a state costs more on the side of yes; the old one where none is better."""
    care = more != 0
    x, more = x[care], more[care]
    if not len(more):
        return
    order = np.argsort(x, 0, kind="stable")
    sorted_x = np.take_along_axis(x, order, 0)
    below = np.cumsum(more[order], 0)[:-1]  # what a test between a row and the next costs
    below[sorted_x[1:] == sorted_x[:-1]] = np.inf
    if not below.size:
        return
    row, best = np.unravel_index(int(below.argmin()), below.shape)
    if below[row, best] < more[x[:, feature[m]] <= threshold[m]].sum() - 1e-9:
        feature[m] = best
        threshold[m] = floor32(np.asarray(0.5 * float(sorted_x[row, best]) + 0.5 * float(sorted_x[row + 1, best])))
