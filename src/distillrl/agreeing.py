"""In how many steps of an episode a policy does what another would have done, counted while it plays."""

from __future__ import annotations

import numpy as np
import torch

from distillrl.actions import Deterministic
from distillrl.policies import agreement, unbounded
from distillrl.records import Prediction


class Agreed:
    """State: the steps so far, ``[episodes]``; of a box without bounds both actions of every step, as they are held against how far the other's spread."""

    def __init__(self, episodes: int) -> None:
        self._same = np.zeros(episodes, dtype=np.int64)
        self._later: list[tuple[np.ndarray, Prediction, Prediction]] = []

    def add(self, index: np.ndarray, counted: np.ndarray, mine: Prediction, theirs: Prediction) -> None:
        """A step of n slots: the episode of each [n], those that count [n], and what both policies say."""
        if unbounded(theirs):
            at = torch.from_numpy(counted)
            self._later.append((index[counted], _played(mine, at), _played(theirs, at)))
            return
        agree = agreement(mine, theirs).reshape(len(index), -1).all(-1).numpy()  # of two rules with several choices it has one for each
        np.add.at(self._same, index[counted], agree[counted])

    def steps(self) -> np.ndarray:
        """[episodes] in which both do the same."""
        if self._later:
            episode = np.concatenate([e for e, _, _ in self._later])
            mine, theirs = _together([m for _, m, _ in self._later]), _together([t for _, _, t in self._later])
            np.add.at(self._same, episode, agreement(mine, theirs, spread(theirs)).numpy())
            self._later = []
        return self._same


def spread(theirs: Prediction) -> torch.Tensor | None:
    """[A] the standard deviation, over all states [..., A], of a box's action where it has no bounds; None where it has, or for choices."""
    if not unbounded(theirs):
        return None
    assert theirs.action is not None
    return theirs.action.mode.flatten(0, -2).std(0, correction=0).clamp_min(1e-6)


def _played(prediction: Prediction, at: torch.Tensor) -> Prediction:
    action = prediction.action
    assert action is not None
    return Prediction(Deterministic(action.mode[at], getattr(action, "low", None), getattr(action, "high", None)))


def _together(parts: list[Prediction]) -> Prediction:
    first = parts[0].action
    assert isinstance(first, Deterministic)
    return Prediction(Deterministic(torch.cat([p.action.mode for p in parts if p.action is not None]), first.low, first.high))
