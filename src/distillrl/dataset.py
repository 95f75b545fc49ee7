"""Labelled rollouts in time order, each observation once; batches are drawn from their valid, labelled states.

What a student remembers of earlier observations (a stack of frames, a delay) is made when a state is drawn, of the rows
before it, so that a frame lies here once however many stacks it is part of.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distillrl.actions import Categorical
from distillrl.policies import Memory
from distillrl.records import Batch, Prediction, Rollout, over_states, tensors, with_tensors
from distillrl.senses import Sense
from distillrl.storage import Storage

NEXT = "next_obs."
"""Before the name of an observation group in a batch's ``extra``: as it was in the state that followed."""
NEXT_MEMORY = "next_memory."
"""Before the name of a part of the memory with which the student came to that state."""
MEMORY = "memory."
"""Before the name of a part of the memory with which a student that remembers without bound came to a state, in ``extra``, where it was kept."""
IMAGE = 1024
"""Bytes of a group of 8-bit numbers from which on it is an image: labels beside images are kept as float16."""
HALF = ("teacher.action.logits", "teacher.features.")


class Dataset:
    """Rows of time, ``[steps, N, ...]``: row t + 1 is what followed row t, except where ``starts``.

    ``keep`` is "all" (Ross 2011: aggregate) or "round" (nothing but the last rollout, and what its first states remember).
    ``expected``: how many rows there will be, for which room is made at once; more than that grow by doubling.
    ``sense``: the student's, where its memory is a function of the last observations. State: the rows.
    """

    def __init__(self, keep: str = "all", expected: int = 0, storage: Storage | None = None) -> None:
        self.keep, self.expected = keep, expected
        self.storage = storage or Storage()
        self.sense: Sense | None = None
        self.steps = 0
        self.rows = torch.empty(0, dtype=torch.int64)
        """Flat indices (step · N + slot) of the states that may be drawn."""
        self._store: dict[str, Tensor] = {}
        self._teacher: Prediction | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def append(self, rollout: Rollout) -> None:
        """Add a rollout after the last one (or in its place, where only the round is kept). One without any label is for terms that ask
        nothing of the teacher: there every valid state may be drawn.
        """
        self._teacher = rollout.teacher or Prediction()
        chunk = {f"obs.{k}": v for k, v in rollout.obs.items()}
        length, slots = rollout.valid.shape
        chunk.update({f"teacher.{k}": v for k, v in tensors(self._teacher).items()})
        for name in ("action", "reward", "terminated", "truncated", "starts", "weight", "behaviour_log_prob", "task"):
            if getattr(rollout, name) is not None:
                chunk[name] = getattr(rollout, name)
        chunk.update({f"extra.{k}": v for k, v in rollout.extra.items()})
        if self.heavy or any(v.dtype == torch.uint8 and v[0, 0].numel() >= IMAGE for v in rollout.obs.values()):
            one = isinstance(self._teacher.action, Categorical)
            chunk = {name: _half(value, one and name.endswith("logits")) if name.startswith(HALF) else value for name, value in chunk.items()}
        drawn = rollout.valid if rollout.teacher is None else rollout.valid & rollout.labelled
        drawable = drawn.reshape(-1).nonzero().squeeze(-1)
        self._extend(chunk, drawable, length, slots, fresh=rollout.fresh)

    def _extend(self, chunk: Mapping[str, Tensor], drawable: Tensor, length: int, slots: int, fresh: bool) -> None:
        if self.keep == "round":
            self._forget()
            self._store = {name: value for name, value in self._store.items() if name in chunk}
        elif fresh and self.steps:
            self.steps += 1  # the row that holds the last observations of what was cut stays as it is, never drawn
        if self.steps and set(chunk) - set(self._store) - {"weight"}:
            self.rows = self.rows[:0]  # the older states lack what is asked now
        for name, value in {**self._store, **chunk}.items():
            rows = self.steps + length + name.startswith("obs.")
            room = self._room(name, value, rows)
            if name in chunk:  # what only older states have has room, and is nothing here
                room[self.steps : rows] = value
        self.rows = torch.cat([self.rows, drawable + self.steps * slots])
        self.steps += length

    def _forget(self) -> None:
        """Keep only the last rows, which the next ones remember."""
        kept = self._remembering()
        for value in self._store.values():
            value[:kept] = value[self.steps - kept : self.steps].clone()
        self.steps, self.rows = kept, self.rows[:0]

    def _remembering(self) -> int:
        """How many of the last rows the first states of the next rollout remember."""
        return min(self.steps, (self.sense.window or 0) + 1) if self.sense is not None else 0

    def tail(self) -> dict[str, Tensor]:
        """For a checkpoint where only the round is kept: the last rows, which the next rollout's first states remember; empty where none are."""
        kept = self._remembering()
        if not kept:
            return {}
        return {**{name: value[self.steps - kept : self.steps].clone() for name, value in self._store.items()}, "rows": self.rows[:0].clone()}

    def _room(self, name: str, like: Tensor, rows: int) -> Tensor:
        old = self._store.get(name)
        if old is None or len(old) < rows:
            length = max(rows, self.expected if self.keep == "all" else 0, 0 if old is None else 2 * len(old))
            new = self.storage.make(name, (length, *like.shape[1:]), like.dtype)
            if name == "weight":
                new.fill_(1)  # states from before there were weights count once
            if old is not None:
                new[: len(old)] = old
            self._store[name] = old = new
        return old

    @property
    def heavy(self) -> bool:
        """Whether its observations are images, of which only a batch at a time is drawn."""
        return any(v.dtype == torch.uint8 and v[0, 0].numel() >= IMAGE for k, v in self._store.items() if k.startswith("obs."))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` states, uniformly and with replacement."""
        return self.at(self.rows[torch.randint(len(self.rows), (count,), generator=generator)])

    def at(self, rows: Tensor, ahead: bool = False) -> Batch:
        """The batch of these flat row numbers [B]; ``ahead``: with the next observations too, or those ``extra.next_offset`` steps on."""
        assert self._teacher is not None, "nothing was appended"
        taken = {name: value.flatten(0, 1).index_select(0, rows) for name, value in self._store.items()}
        taken = {name: value.float() if value.dtype == torch.float16 else value for name, value in taken.items()}
        teacher = with_tensors(self._teacher, {k[8:]: v for k, v in taken.items() if k.startswith("teacher.")})
        extra = {k[6:]: v for k, v in taken.items() if k.startswith("extra.")}
        if ahead:
            slots = next(iter(self._store.values())).shape[1]
            later = rows + slots * extra.get("next_offset", 1)
            extra |= {NEXT + k[4:]: v.flatten(0, 1).index_select(0, later) for k, v in self._store.items() if k.startswith("obs.")}
            extra |= {NEXT_MEMORY + k: v for k, v in self.remembered(later).items()}
        return Batch(
            obs={k[4:]: v for k, v in taken.items() if k.startswith("obs.")},
            teacher=teacher,
            weight=taken.get("weight"),
            action=taken.get("action"),
            reward=taken.get("reward"),
            terminated=taken.get("terminated"),
            truncated=taken.get("truncated"),
            starts=taken.get("starts"),
            behaviour_log_prob=taken.get("behaviour_log_prob"),
            task=taken.get("task"),
            memory=self.remembered(rows),
            extra=extra,
        )

    def remembered(self, rows: Tensor) -> Memory:
        """The memory with which the student comes to these states [B], {name: [B, ...]}; empty where it has none, or one without bound."""
        if self.sense is None or not self.sense.window:
            return {}
        back = torch.arange(-self.sense.window - 1, 1)
        slots = self._store["starts"].shape[1]
        places = torch.maximum(rows.unsqueeze(-1) + slots * back, (rows % slots).unsqueeze(-1))
        starts = self._store["starts"].flatten().index_select(0, places[:, 1:].flatten()).view(len(rows), -1)
        earlier = places[:, :-1].flatten()
        obs = {k[4:]: v.flatten(0, 1).index_select(0, earlier).unflatten(0, starts.shape) for k, v in self._store.items() if k.startswith("obs.")}
        return self.sense.recall(obs, starts)

    def sequences(self, length: int, count: int, burn_in: int, generator: torch.Generator) -> Batch:
        """``count`` stretches of consecutive steps, [T, B, ...] with T = ``length`` (or all, where there are fewer), drawn uniformly.

        They begin with the memory that was kept (``MEMORY``), or with zeros: then the first ``burn_in`` steps don't count (their weight is 0) unless
        an episode began in the stretch before them (Kapturowski 2019, section 3); nor does what may not be drawn.
        """
        slots = self._store["starts"].shape[1]
        length = min(length, self.steps)
        begin = torch.randint(self.steps - length + 1, (count,), generator=generator)
        slot = torch.randint(slots, (count,), generator=generator)
        rows = (begin + torch.arange(length).unsqueeze(-1)) * slots + slot
        batch = over_states(lambda x: x.unflatten(0, (length, count)), replace(self.at(rows.flatten()), memory={}))
        kept = {k[len(MEMORY) :]: v for k, v in batch.extra.items() if k.startswith(MEMORY)}
        batch = replace(batch, memory={k: v[0] for k, v in kept.items()}, extra={k: v for k, v in batch.extra.items() if not k.startswith(MEMORY)})
        drawable = torch.zeros(self.steps * slots)
        drawable[self.rows] = 1
        known = self._store["starts"].flatten()[rows].cumsum(0) > 0
        if kept or length > burn_in:
            known[0 if kept else burn_in :] = True
        weight = drawable[rows] * known
        return replace(batch, weight=weight if batch.weight is None else weight * batch.weight)

    def in_order(self) -> Batch:
        """Everything, [steps, N, ...], also what may not be drawn."""
        slots = self._store["starts"].shape[1]
        return over_states(lambda x: x.unflatten(0, (self.steps, slots)), replace(self.at(torch.arange(self.steps * slots)), memory={}))

    @property
    def recalls(self) -> bool:
        """Whether the memory with which a student came to each state was kept."""
        return any(name.startswith(f"extra.{MEMORY}") for name in self._store)

    def blank(self, steps: int, slots: int) -> Prediction:
        """Zeros [steps, slots, ...] in the shape of the labels that are here, for states without one."""
        return over_states(lambda x: x.new_zeros((steps, slots, *x.shape[1:])), self.at(self.rows[:1]).teacher)

    def half(self, member: int) -> Dataset:
        """The same states seen through one half of them, another for each member; a state's side never changes (bootstrap masks, Osband 2016)."""
        seen = copy.copy(self)
        mixed = (self.rows + 1) * 0x9E3779B1 + (member + 1) * 0x85EBCA77
        kept = self.rows[((mixed ^ (mixed >> 15)) * 0x2C1B3C6D >> 13) % 2 == 0]
        seen.rows = kept if len(kept) else self.rows
        return seen

    def since(self, step: int) -> dict[str, Tensor]:
        """The rows from a step on, for an append-only checkpoint; ``restore`` takes all such parts in order.

        Copies: a slice would be written with all that the run has room for.
        """
        part = {name: value[step : self.steps + name.startswith("obs.")].clone() for name, value in self._store.items()}
        slots = next(iter(self._store.values())).shape[1] if self._store else 1
        part["rows"] = self.rows[self.rows >= step * slots]
        return part

    def restore(self, parts: list[Mapping[str, Tensor]], like: Prediction) -> None:
        """Put the saved parts back; ``like`` has the structure of the teacher's predictions."""
        self._teacher = like
        for part in parts:
            values = {k: v for k, v in part.items() if k != "rows"}
            begin = self.steps
            length = len(next(v for k, v in values.items() if not k.startswith("obs.")))
            for name, value in values.items():
                self._room(name, value, begin + len(value))[begin : begin + len(value)] = value
            self.rows = torch.cat([self.rows, part["rows"]])
            self.steps = begin + length

    def summary(self) -> dict[str, Any]:
        """Sizes, for a log: the states that may be drawn, and the bytes of all rows so far."""
        rows = min(self.steps + 1, min(map(len, self._store.values()), default=0))
        return {"states": len(self), "bytes": sum(v[:rows].numel() * v.element_size() for v in self._store.values())}


def _half(value: Tensor, differences: bool) -> Tensor:
    """As float16; where only its differences count, the greatest is made 0 first."""
    if differences:
        value = value - value.amax(-1, keepdim=True)
    return value.clamp(-6e4, 6e4).half()
