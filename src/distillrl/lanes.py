"""Recorded episodes side by side, as a vector of environments would have stepped them: lanes of time, one episode behind the other."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillrl.recordings import Recording
from distillrl.records import Rollout

FULL = 0.9
"""Share of rows that hold a step, or an episode's end, below which fewer lanes are taken."""


@dataclass(frozen=True)
class Lanes:
    """Where each step of E episodes lies in a grid of T rows and N lanes; behind an episode comes a row that only resets."""

    rows: int
    count: int
    steps: Tensor
    """[S] int64: row · N + lane of each step."""
    ends: Tensor
    """[E] int64: of the row behind each episode's last step, which holds its last observation."""
    lengths: Tensor
    """[E] int64"""

    def grid(self, values: Tensor, behind: Tensor | None = None, extra_row: bool = False) -> Tensor:
        """[T, N, ...] (T + 1 with ``extra_row``) of values [S, ...], and of those behind each episode [E, ...]; 0 elsewhere."""
        flat = torch.zeros(((self.rows + extra_row) * self.count, *values.shape[1:]), dtype=values.dtype)
        flat[self.steps] = values
        if behind is not None:
            flat[self.ends] = behind.to(values.dtype)
        return flat.unflatten(0, (-1, self.count))

    def flat(self, grid: Tensor) -> Tensor:
        """[S, ...] of a grid: the inverse."""
        return grid.flatten(0, 1)[self.steps]


def pack(lengths: np.ndarray, most: int) -> Lanes:
    """Episodes in up to ``most`` lanes, the longest first and each into the emptiest lane (Graham 1969); as many lanes as are nearly full."""
    order = np.argsort(-lengths, kind="stable")
    for count in range(min(most, len(lengths)), 0, -1):
        filled = [(0, lane) for lane in range(count)]
        begin, lane_of = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
        for episode in order:
            row, lane = heapq.heappop(filled)
            begin[episode], lane_of[episode] = row, lane
            heapq.heappush(filled, (row + int(lengths[episode]) + 1, lane))
        rows = max(row for row, _ in filled)
        if count == 1 or int((lengths + 1).sum()) >= FULL * rows * count:
            break
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    steps = (np.repeat(begin, lengths) + within) * count + np.repeat(lane_of, lengths)
    return Lanes(rows, count, torch.from_numpy(steps), torch.from_numpy((begin + lengths) * count + lane_of), torch.from_numpy(lengths))


def rollout(recording: Recording, lanes: Lanes, keep: frozenset[str]) -> Rollout:
    """All of it as one rollout without labels; ``keep`` names the observation groups that are read."""
    ends = torch.from_numpy(np.cumsum(recording.lengths) - 1)
    over = torch.zeros(recording.steps, dtype=torch.bool)
    over[ends] = True
    terminated = over.clone()
    terminated[ends] = torch.from_numpy(recording.terminated)
    starts = torch.zeros(recording.steps, dtype=torch.bool)
    starts[torch.from_numpy(recording.begins)] = True
    reward = torch.zeros(recording.steps) if recording.reward is None else torch.from_numpy(recording.reward)
    valid = lanes.grid(torch.ones(recording.steps, dtype=torch.bool))
    number = torch.from_numpy(np.repeat(np.arange(recording.episodes), recording.lengths))
    return Rollout(
        obs={k: lanes.grid(torch.from_numpy(v), torch.from_numpy(recording.last[k]), extra_row=True) for k, v in recording.obs.items() if k in keep},
        action=lanes.grid(torch.from_numpy(recording.action)),
        reward=lanes.grid(reward),
        terminated=lanes.grid(terminated),
        truncated=lanes.grid(over & ~terminated),
        starts=lanes.grid(starts),
        valid=valid,
        driver=torch.zeros(valid.shape, dtype=torch.int8),
        labelled=valid,
        teacher=None,
        student=None,
        episode=lanes.grid(number),
        fresh=True,
    )
