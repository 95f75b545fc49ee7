"""Answers of teachers that can only be asked, kept on disk as they come, so that no state is asked about twice."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Failed


@dataclass
class Answers:
    """A line of JSON for each question, by the hash of all of it; ``path`` None keeps them in memory alone."""

    path: Path | None
    known: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        if self.path is not None and self.path.is_file():
            data = self.path.read_bytes()
            self._cut = bool(data) and not data.endswith(b"\n")
            for line in data.splitlines():
                try:
                    told = json.loads(line)
                    self.known[str(told["question"])] = [str(a) for a in told["answers"]]
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # a line cut short when a run was killed: it is asked again
        else:
            self._cut = False

    def keep(self, question: str, answers: list[str]) -> None:
        """Remember an answer; raises Failed where the disk is full."""
        with self.lock:
            self.known[question] = answers
            if self.path is None:
                return
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(("\n" if self._cut else "") + json.dumps({"question": question, "answers": answers}) + "\n")
                self._cut = False
            except OSError as error:
                raise Failed(f"{self.path} can't be written: {error.strerror or error}") from None


def packed(rows: Mapping[str, Tensor], i: int) -> list[str]:
    """Row ``i`` of each tensor [N, width], as text: its name, its numbers' type and the numbers themselves."""
    made = []
    for name, x in rows.items():
        row = np.ascontiguousarray(x[i].numpy())
        made.append(f"{name} {row.dtype.name} {base64.b64encode(row.tobytes()).decode()}")
    return made


def unpacked(answers: list[str], names: Iterable[str]) -> dict[str, Tensor] | None:
    """One state's numbers [width] of each named output; None where one isn't there or is damaged: it is asked again then."""
    found = {}
    for text in answers:
        name, _, rest = text.partition(" ")
        kind, _, coded = rest.partition(" ")
        try:
            found[name] = torch.from_numpy(np.frombuffer(base64.b64decode(coded, validate=True), dtype=kind).copy())
        except (TypeError, ValueError):
            return None
    return {name: found[name] for name in names} if set(names) <= set(found) else None
