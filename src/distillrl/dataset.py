"""Labelled rollouts in time order, in tensors that grow by doubling; batches are drawn from their valid, labelled states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distillrl.records import Batch, Prediction, Rollout, over_states, tensors, with_tensors

NEXT = "next_obs."
"""Before the name of an observation group in a batch's ``extra``: as it was in the state that followed."""


class Dataset:
    """Rows of time, ``[steps, N, ...]``: row t + 1 is what followed row t, except where ``starts``.

    ``keep`` is "all" (Ross 2011: aggregate) or "round" (nothing but the last rollout). State: the rows.
    """

    def __init__(self, keep: str = "all") -> None:
        self.keep = keep
        self.steps = 0
        self.rows = torch.empty(0, dtype=torch.int64)
        """Flat indices (step · N + slot) of the states that may be drawn."""
        self._store: dict[str, Tensor] = {}
        self._teacher: Prediction | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def append(self, rollout: Rollout) -> None:
        """Add a rollout after the last one (or in its place, where only the round is kept)."""
        assert rollout.teacher is not None
        self._teacher = rollout.teacher
        chunk = {f"obs.{k}": v for k, v in rollout.obs.items()}
        length, slots = rollout.valid.shape
        chunk.update({f"teacher.{k}": v for k, v in tensors(rollout.teacher).items()})
        for name in ("action", "reward", "terminated", "truncated", "starts", "weight", "behaviour_log_prob", "task"):
            if getattr(rollout, name) is not None:
                chunk[name] = getattr(rollout, name)
        chunk.update({f"extra.{k}": v for k, v in rollout.extra.items()})
        drawable = (rollout.valid & rollout.labelled).reshape(-1).nonzero().squeeze(-1)
        self._extend(chunk, drawable, length, slots, fresh=rollout.fresh)

    def _extend(self, chunk: Mapping[str, Tensor], drawable: Tensor, length: int, slots: int, fresh: bool) -> None:
        if self.keep == "round":
            self.steps, self.rows = 0, self.rows[:0]
        elif fresh and self.steps:
            self.steps += 1  # the row that holds the last observations of what was cut stays as it is, never drawn
        for name, value in chunk.items():
            self._room(name, value, self.steps + len(value))[self.steps : self.steps + len(value)] = value
        self.rows = torch.cat([self.rows, drawable + self.steps * slots])
        self.steps += length

    def _room(self, name: str, like: Tensor, rows: int) -> Tensor:
        old = self._store.get(name)
        if old is None or len(old) < rows:
            make = torch.ones if name == "weight" else torch.zeros  # states from before there were weights count once
            new = make((max(rows, 2 * (0 if old is None else len(old))), *like.shape[1:]), dtype=like.dtype)
            if old is not None:
                new[: len(old)] = old
            self._store[name] = old = new
        return old

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A batch of ``count`` states, uniformly and with replacement."""
        return self.at(self.rows[torch.randint(len(self.rows), (count,), generator=generator)])

    def at(self, rows: Tensor, ahead: bool = False) -> Batch:
        """The batch of these flat row numbers [B]; ``ahead``: with the next observations too, or those ``extra.next_offset`` steps on."""
        assert self._teacher is not None, "nothing was appended"
        taken = {name: value.flatten(0, 1).index_select(0, rows) for name, value in self._store.items()}
        teacher = with_tensors(self._teacher, {k[8:]: v for k, v in taken.items() if k.startswith("teacher.")})
        extra = {k[6:]: v for k, v in taken.items() if k.startswith("extra.")}
        if ahead:
            slots = next(iter(self._store.values())).shape[1]
            later = rows + slots * extra.get("next_offset", 1)
            extra |= {NEXT + k[4:]: v.flatten(0, 1).index_select(0, later) for k, v in self._store.items() if k.startswith("obs.")}
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
            extra=extra,
        )

    def sequences(self, length: int, count: int, burn_in: int, generator: torch.Generator) -> Batch:
        """``count`` stretches of consecutive steps, [T, B, ...] with T = ``length`` (or all, where there are fewer), drawn uniformly.

        Memory is zero at their beginning: the first ``burn_in`` steps don't count (their weight is 0) unless an episode
        began in the stretch before them (Kapturowski 2019, section 3); nor does what may not be drawn.
        """
        slots = self._store["starts"].shape[1]
        length = min(length, self.steps)
        begin = torch.randint(self.steps - length + 1, (count,), generator=generator)
        slot = torch.randint(slots, (count,), generator=generator)
        rows = (begin + torch.arange(length).unsqueeze(-1)) * slots + slot
        batch = over_states(lambda x: x.unflatten(0, (length, count)), self.at(rows.flatten()))
        assert batch.starts is not None
        drawable = torch.zeros(self.steps * slots)
        drawable[self.rows] = 1
        known = batch.starts.cumsum(0) > 0
        if length > burn_in:
            known[burn_in:] = True
        weight = drawable[rows] * known
        return replace(batch, weight=weight if batch.weight is None else weight * batch.weight)

    def in_order(self) -> Batch:
        """Everything, [steps, N, ...], also what may not be drawn."""
        slots = self._store["starts"].shape[1]
        return over_states(lambda x: x.unflatten(0, (self.steps, slots)), self.at(torch.arange(self.steps * slots)))

    def since(self, step: int) -> dict[str, Tensor]:
        """The rows from a step on, for an append-only checkpoint; ``restore`` takes all such parts in order."""
        part = {name: value[step : self.steps + name.startswith("obs.")].contiguous() for name, value in self._store.items()}
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
        """Sizes, for a log."""
        return {"states": len(self), "bytes": sum(v.numel() * v.element_size() for v in self._store.values())}
