"""The learner of what is grown, not descended: the student is fitted anew to all labelled states each round (VIPER, Bastani 2018)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from distillrl.agreeing import spread
from distillrl.dataset import Dataset
from distillrl.learn import Term
from distillrl.policies import agreement
from distillrl.records import Batch, Prediction, Progress
from distillrl.students import growing
from distillrl.students.fitted import Fitted
from distillrl.students.growing import Examples


class Refit:
    """Fits ``student`` to everything labelled so far. State: the student, and the generator of its ties and samples.

    A state weighs what a wrong action costs there: max Q − min Q of the teacher (Bastani 2018, algorithm 1), or of its
    log-probabilities where it has no Q; all alike for an action of quantities. Same face as ``learn.Gradient``.
    """

    def __init__(self, student: Fitted, gives: frozenset[str], generator: torch.Generator) -> None:
        self.student = self.averaged = student
        self.generator = generator
        self._given: Examples | None = None
        wants = frozenset({"teacher.q"}) if "q" in gives and student.counts.weight == "gap" else frozenset[str]()
        self.terms = (Term("refit", lambda _: 1.0, _error, wants),)

    def learn(self, dataset: Dataset, progress: Progress) -> dict[str, float]:
        """Fit anew; the share of states in which it errs, and what the model says of itself. Nothing where there are no labelled states."""
        if not len(dataset):
            return {}
        batch = dataset.at(dataset.rows)
        with torch.no_grad():
            if self.student.init(1):  # a sense that remembers sees everything in its order
                whole = dataset.in_order()
                x = self.student.see(whole.obs, {}, whole.starts)[0].flatten(0, 1)[dataset.rows]
            else:
                x, _ = self.student.see(batch.obs, {}, None)
            given = self._given = growing.examples(x, batch.teacher, self._weight(batch), self.student.spec.action)
            if self.student.counts.resample:
                given = growing.drawn(given, self.generator)
            self.student.model.fit(given, self.generator)
            wrong = ~agreement(self.student.judge(x), batch.teacher, spread(batch.teacher))
        return {"term.refit": float(wrong.float().mean()), **self.student.model.figures()}

    def candidates(self) -> list[Any]:
        """The student just fitted and, where it is to be tried several times, others fitted to samples of the same states (as in bagging, Breiman 1996)."""
        made: list[Any] = [self.student]
        while self._given is not None and len(made) < self.student.counts.tries:
            other = copy.deepcopy(self.student)
            other.model.fit(growing.drawn(self._given, self.generator, self.student.counts.resample), self.generator)
            made.append(other)
        return made

    def take(self, chosen: Fitted) -> None:
        """Go on with one of the candidates: it drives, and is the one that is kept."""
        self.student.model = chosen.model

    def try_out(self, batch: Batch, progress: Progress) -> None:
        """A look at the states at hand; the student stays as it is. Raises Missing where scikit-learn is not installed."""
        growing.sklearn("tree")
        self.student.act(batch.obs, {}, None)

    def _weight(self, batch: Batch) -> Tensor | None:
        if batch.weight is not None:  # a method's own, such as viper's: not weighed twice
            return batch.weight
        gap = _gap(batch.teacher) if self.student.counts.weight == "gap" else None
        return None if gap is None or float(gap.max()) <= 0 else gap / gap.mean()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {"student": self.student.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the student's buffers have the shapes of the state's."""
        self.student.load_state_dict(state["student"])
        self.student.settle()
        self.generator.set_state(state["generator"])


def weighed_by(word: str, gives: frozenset[str], kind: str) -> str:
    """By what states count for the student of a word, in words."""
    if "weight=none" in word.replace(" ", "") or kind != "discrete":
        return "all states count alike"
    if "q" in gives:
        return "states count by the gap of the teacher's Q-values"
    if "distribution" in gives:
        return "states count by the gap of the teacher's log-probabilities, as it has no Q-values"
    return "all states count alike, as the teacher gives neither Q-values nor probabilities"


def _error(student: Prediction, batch: Batch) -> Tensor:
    """[...] 1 where both choose differently."""
    return (~agreement(student, batch.teacher)).float()


def _gap(teacher: Prediction) -> Tensor | None:
    if teacher.q is not None:
        return teacher.q.max(-1).values - teacher.q.min(-1).values
    log_probs = getattr(teacher.action, "log_probs", None)
    if log_probs is None:
        return None
    mask = getattr(teacher.action, "mask", None)  # what isn't legal is no action that could be taken wrongly
    lowest = log_probs if mask is None else log_probs.masked_fill(~mask, torch.inf)
    return log_probs.max(-1).values - lowest.min(-1).values
