"""Who plays which episode: streams of seeds, an environment that gives every episode its own, and whether it succeeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from distillrl.errors import DistillError, Failed

STREAMS = {"train": 0, "select": 1, "hard": 2, "verdict": 3, "dry": 4, "record": 5, "race": 6}
_STREAM_BITS, _COUNTER = 28, (1 << 28) - 1


@dataclass(frozen=True)
class Seeds:
    """The seeds of one stream's episodes: disjoint between streams, none twice within a run."""

    seed: int
    stream: str = "train"
    chosen: tuple[int, ...] = ()
    """Only these episodes of the stream, over and over; empty for all of them."""
    first: int = 0
    """The number of the first episode in the stream."""
    share: int = 1
    """So many episodes in a row have the same seed: policies side by side, each on all seeds."""

    def __call__(self, index: int) -> int:
        """The seed of episode ``index``, below 2³¹ (as ALE and EnvPool need)."""
        index = self.first + index // self.share
        index = self.chosen[index % len(self.chosen)] if self.chosen else index
        offset = int(np.random.SeedSequence([self.seed, 7919]).generate_state(1)[0])
        return (STREAMS[self.stream] << _STREAM_BITS) | ((offset + index) & _COUNTER)


class Queue:
    """Numbers of the episodes that are still to be begun: a slot that is done takes the next, until ``end``.

    All of them are played to their end, so whichever slot plays which, short episodes don't count more often.
    """

    def __init__(self, first: int, step: int, total: int) -> None:
        self.first, self.step, self.total = first, step, total
        self.begin(0)

    def begin(self, index: int) -> None:
        """Share out ``total`` episodes from number ``index`` of the stream on."""
        self.next, self.end = index + self.first, index + self.total

    def take(self) -> int:
        """The next number; ``end`` or more where there is none left."""
        number, self.next = self.next, self.next + self.step
        return number


def told_success(info: Mapping[str, Any]) -> float:
    """What an episode's last info says of its success (``is_success`` or ``success``), 0 to 1; NaN where nothing."""
    told = info.get("is_success", info.get("success"))
    return float(told) if isinstance(told, bool | int | float | np.bool_ | np.number) else float("nan")


class Seeded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives every episode its own seed; with a queue it takes its episodes from there, and rests once that is empty."""

    def __init__(self, env: gymnasium.Env[Any, Any], seeds: Seeds, slot: int, n: int, queue: Queue | None) -> None:
        super().__init__(env)
        self.seeds, self.n, self.queue = seeds, n, queue
        self.index, self.success = slot, float("nan")
        self.last: Any = None

    def _rests(self) -> bool:
        return self.queue is not None and self.index >= self.queue.end

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As gymnasium's; the seed is the episode's own."""
        if self._rests():
            return self.last, {}
        try:
            self.last, _ = self.env.reset(seed=self.seeds(self.index))
        except DistillError:
            raise
        except Exception as error:  # the environment's own code may raise anything
            raise _told(error, "reset", self.seeds(self.index)) from error
        if self.queue is None:
            self.index += self.n
        return self.last, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As gymnasium's, without the infos; the last observation and no reward while it rests."""
        if self._rests():
            return self.last, 0.0, False, False, {}
        try:
            self.last, reward, terminated, truncated, info = self.env.step(action)
        except DistillError:
            raise
        except Exception as error:  # as above
            raise _told(error, "step", self.seeds(self.index if self.queue is not None else self.index - self.n)) from error
        if terminated or truncated:
            self.success = told_success(info)
            if self.queue is not None:
                self.index = self.queue.take()
        return self.last, reward, terminated, truncated, {}


def _told(error: Exception, what: str, seed: int) -> Failed:
    return Failed(f"the environment raised {type(error).__name__} in its {what}, in the episode of seed {seed}: {error}")


def successes(info: Mapping[str, Any], n: int) -> np.ndarray:
    """[n] of a vector's infos: NaN where a slot has none."""
    name = "is_success" if "is_success" in info else "success"
    told = np.asarray(info.get(name, np.nan))
    if told.shape != (n,) or told.dtype.kind not in "biuf":
        return np.full(n, np.nan)
    return np.where(np.broadcast_to(info.get(f"_{name}", True), (n,)), told.astype(np.float64), np.nan)
