"""The learner of what is grown, not descended: a tree is fitted anew to all labelled states each round (VIPER, Bastani 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl.dataset import Dataset
from distillrl.errors import Missing
from distillrl.learn import Term
from distillrl.policies import agreement
from distillrl.records import Batch, Prediction, Progress
from distillrl.students.tree import Tree


class Refit:
    """Grows ``student`` on everything labelled so far. State: the tree, and the generator of its ties and samples.

    A state weighs what a wrong action costs there: max Q − min Q of the teacher (Bastani 2018, algorithm 1), or of its
    log-probabilities where it has no Q; all alike for an action of quantities. Same face as ``learn.Gradient``.
    """

    def __init__(self, student: Tree, gives: frozenset[str], generator: torch.Generator) -> None:
        self.student = self.averaged = student
        self.generator = generator
        wants = frozenset({"teacher.q"}) if "q" in gives and student.shape.weight == "gap" else frozenset[str]()
        self.terms = (Term("refit", lambda _: 1.0, _error, wants),)

    def learn(self, dataset: Dataset, progress: Progress) -> dict[str, float]:
        """Grow a new tree in the old one's place; its leaves, and the share of (weighted) states in which it errs."""
        batch = dataset.at(dataset.rows)
        with torch.no_grad():
            if self.student.init(1):  # a sense that remembers sees everything in its order
                whole = dataset.in_order()
                x = self.student.see(whole.obs, {}, whole.starts)[0].flatten(0, 1)[dataset.rows]
            else:
                x, _ = self.student.see(batch.obs, {}, None)
        target, weight = _target(batch.teacher, self.student.spec.action.kind), self._weight(batch)
        if weight is not None and self.student.shape.resample:
            drawn = torch.multinomial(weight, len(weight), replacement=True, generator=self.generator)
            self._grow(x[drawn], target[drawn], None)
        else:
            self._grow(x, target, weight)
        with torch.no_grad():
            wrong = ~agreement(self.student.judge(x), batch.teacher)
        return {"term.refit": float(wrong.float().mean()), "leaves": float(self.student.leaves)}

    def try_out(self, batch: Batch, progress: Progress) -> None:
        """One tree of the states at hand; the student stays as it is. Raises Missing where scikit-learn is not installed."""
        _sklearn()
        self.student.act(batch.obs, {}, None)

    def _weight(self, batch: Batch) -> Tensor | None:
        if batch.weight is not None:  # a method's own, such as viper's: not weighed twice
            return batch.weight
        gap = _gap(batch.teacher) if self.student.shape.weight == "gap" else None
        return None if gap is None or float(gap.max()) <= 0 else gap / gap.mean()

    def _grow(self, x: Tensor, target: Tensor, weight: Tensor | None) -> None:
        shape, space = self.student.shape, self.student.spec.action
        trees = _sklearn()
        kind = trees.DecisionTreeRegressor if space.kind == "box" else trees.DecisionTreeClassifier
        seed = int(torch.randint(1 << 31, (1,), generator=self.generator))
        made = kind(max_leaf_nodes=shape.leaves, max_depth=shape.depth or None, random_state=seed)
        made.fit(x.numpy(), target.numpy(), None if weight is None else weight.double().numpy())
        grown = made.tree_
        own = np.arange(grown.node_count)
        leaf = grown.children_left < 0
        children = np.stack([np.where(leaf, own, grown.children_left), np.where(leaf, own, grown.children_right)], -1)
        self.student.become(
            torch.from_numpy(np.where(leaf, 0, grown.feature).astype(np.int64)),
            torch.from_numpy(np.where(leaf, 0, _floor32(grown.threshold)).astype(np.float32)),
            torch.from_numpy(children.astype(np.int64)),
            torch.from_numpy(_values(made, grown.value, space.kind, self.student.outputs)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {"student": self.student.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the student has as many nodes as the state's."""
        self.student.load_state_dict(state["student"])
        self.student.settle()
        self.generator.set_state(state["generator"])


def _sklearn() -> Any:
    try:
        from sklearn import tree
    except ImportError:
        raise Missing("a tree is grown by scikit-learn, which is not installed: pip install 'distillrl[tree]'") from None
    return tree


def _error(student: Prediction, batch: Batch) -> Tensor:
    """[...] 1 where both choose differently."""
    return (~agreement(student, batch.teacher)).float()


def _gap(teacher: Prediction) -> Tensor | None:
    if teacher.q is not None:
        return teacher.q.max(-1).values - teacher.q.min(-1).values
    log_probs = getattr(teacher.action, "log_probs", None)
    return None if log_probs is None else log_probs.max(-1).values - log_probs.min(-1).values


def _target(teacher: Prediction, kind: str) -> Tensor:
    assert teacher.action is not None
    return teacher.action.mode.double() if kind == "box" else teacher.action.mode


def _floor32(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 that is at most the threshold: x ≤ t is then the same question for every float32 x."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)


def _values(made: Any, value: np.ndarray, kind: str, outputs: int) -> np.ndarray:
    """scikit-learn's [M, outputs, classes] as Tree.value [M, V]."""
    if kind == "box":
        return value[:, :, 0].astype(np.float32)
    if kind == "discrete":
        shares = np.zeros((len(value), outputs), dtype=np.float32)
        shares[:, made.classes_] = value[:, 0] / value[:, 0].sum(-1, keepdims=True)
        return shares
    classes = made.classes_ if isinstance(made.classes_, list) else [made.classes_]
    return np.stack([c[value[:, d, : len(c)].argmax(-1)] for d, c in enumerate(classes)], -1).astype(np.float32)
