"""Which episodes are one and the same, but for how long they waited before they began.

A game without chance that only waits for a random while at its start is a few games, however many episodes are played: Pong's thirty ways to begin
are four games, for a step takes four frames. What is seen at the rewards tells them apart, for that doesn't hang on how long it waited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

ENOUGH = 8
"""Rewards of an episode from which on what was seen at them says which episode it is; of fewer, all that was seen does."""
_PRIME = np.uint64(0x100000001B3)


class Repeats:
    """Numbers of 64 bits for the episodes of n slots: equal ones went alike. Only where what is seen is of whole numbers (images, grids, bytes), or
    all slots begin alike: two episodes that begin with different real numbers are never the same.
    """

    def __init__(self, n: int, obs: Mapping[str, Tensor], alike: bool) -> None:
        self.watched = {k: x for k, x in obs.items() if not x.is_floating_point()} or (dict(obs) if alike else {})
        generator = np.random.default_rng(0)
        self._weights = {k: generator.integers(1, 2**63, -(-x[0].numel() * x.element_size() // 8), dtype=np.uint64) * 2 + 1 for k, x in self.watched.items()}
        self._order, self._rewarded, self._count = (np.zeros(n, np.uint64) for _ in range(3))

    def step(self, obs: Mapping[str, Tensor], reward: np.ndarray) -> None:
        """What a step of each slot showed and gave."""
        if not self.watched:
            return
        seen = sum((_digest(obs[k].numpy(), w) for k, w in self._weights.items()), np.zeros(len(reward), np.uint64))
        self._order = self._order * _PRIME + seen
        given = reward != 0
        if given.any():
            self._rewarded = np.where(given, self._rewarded * _PRIME + seen + reward.astype(np.float64).view(np.uint64), self._rewarded)
            self._count += given

    def take(self, which: np.ndarray) -> np.ndarray:
        """The numbers of the slots ``which`` [n] whose episodes have just ended; they begin anew."""
        numbers = np.where(self._count >= ENOUGH, self._rewarded, ~self._order)[which]
        for x in (self._order, self._rewarded, self._count):
            x[which] = 0
        return numbers


def different(numbers: np.ndarray | None) -> int | None:
    """How many episodes there are, the same ones once; None where nothing was watched."""
    return None if numbers is None else len(np.unique(numbers))


def kinds(numbers: np.ndarray | None) -> np.ndarray | None:
    """[episodes] of each the first one that is the same; None where under a third of them are others again, or all are one (which proves little)."""
    if numbers is None:
        return None
    _, first, place = np.unique(numbers, return_index=True, return_inverse=True)
    found: np.ndarray = first[place]
    return found if 1 < len(first) < 2 * len(numbers) / 3 else None


def sentence(numbers: np.ndarray | None, whose: str) -> str | None:
    """What must be said where over a third of the episodes are others again; None where nothing must."""
    if numbers is None or kinds(numbers) is None:
        return None
    return (
        f"{whose}: only {different(numbers)} of the {len(numbers)} episodes are different, the others the same again: nothing but the beginning is left to chance here. "
        "Disturbances tell more (of Atari games --env-kwargs sticky=0.25)."
    )


def circling(fallen: Sequence[int], cut: np.ndarray | None, theirs: np.ndarray | None, lengths: np.ndarray) -> str | None:
    """What is to be said where the student's worst episodes are some that it doesn't end, and the teacher does: a rally for ever, say."""
    if cut is None or theirs is None or not (endless := [e for e in fallen if cut[e] and not theirs[e]]):
        return None
    return (
        f"{len(endless)} of the {len(fallen)} episodes in which the student falls behind were broken off at the limit of {lengths[endless].max():,} steps, "
        "while the teacher's ended: it may go round in circles there."
    )


def _digest(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[n, ...] → a number of 64 bits for each row: a sum of its words, each with a weight of its own, that wraps around."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    if flat.shape[1] % 8:
        flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8)))
    total: np.ndarray = (flat.view(np.uint64) * weights).sum(1, dtype=np.uint64)
    return total
