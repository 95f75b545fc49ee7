"""The run folder: ``config.toml``, ``metrics.jsonl``, ``student.safetensors``, ``verdict.json``, and while it runs ``checkpoint/``.

Every file is replaced in one step or appended to in whole lines, so that the folder can be read at any moment.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillrl import config as configuration
from distillrl.artifact import write_bytes
from distillrl.config import Config
from distillrl.errors import Failed, Misconfigured

CONFIG, METRICS, STUDENT, VERDICT = "config.toml", "metrics.jsonl", "student.safetensors", "verdict.json"
HEADING = "# distillrl distill --config THIS-FILE runs the same again."


@dataclass(frozen=True)
class Folder:
    """A run's folder."""

    path: Path

    @staticmethod
    def create(out: str | Path | None, env: str) -> Folder:
        """A new one, or an empty one; raises Misconfigured where it holds a run, Failed where it can't be written."""
        name = f"{env.replace('/', '-').replace(':', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
        path = Path(out) if out is not None else Path("runs") / name
        if out is None:
            for n in range(2, 1000):
                if not path.exists():
                    break
                path = path.with_name(f"{name}-{n}")
        if (path / CONFIG).exists():
            raise Misconfigured(f"--out {path} already holds a run: go on with --resume {path}, or name another folder")
        folder = Folder(path)
        write_bytes(path / METRICS, b"")
        return folder

    def withdraw(self) -> None:
        """Delete what a run that never began has written, and the folder if nothing else is in it."""
        for name in (CONFIG, METRICS):
            (self.path / name).unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    @staticmethod
    def open(path: str | Path) -> Folder:
        """One that holds a run; raises Misconfigured where it doesn't."""
        folder = Folder(Path(path))
        if not (folder.path / CONFIG).is_file():
            raise Misconfigured(f"{path} is no run folder: it has no {CONFIG}")
        return folder

    @property
    def student(self) -> Path:
        """The artifact's place."""
        return self.path / STUDENT

    def write_config(self, config: Config) -> None:
        """All that was chosen, defaults too."""
        write_bytes(self.path / CONFIG, configuration.dumps(config, HEADING).encode())

    def read_config(self) -> Config:
        """Raises Failed or Misconfigured."""
        return configuration.build(configuration.read(self.path / CONFIG), str(self.path / CONFIG))

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append a round's line."""
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(metrics)) + "\n")
        except OSError as error:
            raise Failed(f"{self.path / METRICS} can't be written: {error.strerror or error}") from None

    def write_told(self, student: Any) -> None:
        """Beside the student of a family that a person can read: what it does as text, as if/else in Python and C, and as a drawing."""
        from distillrl.students.telling import teller

        told = teller(student)
        if told is not None:
            for ending, form in (("txt", told.as_text), ("py", told.as_python), ("c", told.as_c), ("svg", told.as_svg)):
                write_bytes(self.student.with_suffix(f".{ending}"), (form(student).rstrip("\n") + "\n").encode())

    def write_verdict(self, verdict: Mapping[str, Any]) -> None:
        """The last file of a run; the checkpoint goes."""
        write_bytes(self.path / VERDICT, (json.dumps(dict(verdict), indent=1) + "\n").encode())
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def read_verdict(self) -> dict[str, Any] | None:
        """None where the run hasn't ended."""
        path = self.path / VERDICT
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Failed(f"{path} is damaged: {error}") from None
        return dict(data)

    def checkpoint(self, state: Mapping[str, Any], part: Mapping[str, Any], number: int) -> None:
        """Write the new part of the data set, then the state that counts it in: killed in between, the old state holds."""
        import torch

        for name, value in ((f"data-{number:05d}.pt", part), ("state.pt", state)):
            buffer = io.BytesIO()
            torch.save(dict(value), buffer)
            write_bytes(self.path / "checkpoint" / name, buffer.getvalue())

    def read_checkpoint(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """State and parts of the last checkpoint, metrics cut back to it; None where there is none yet."""
        import torch

        path = self.path / "checkpoint" / "state.pt"
        if not path.exists():
            write_bytes(self.path / METRICS, b"")
            return None
        try:
            state = torch.load(path, weights_only=True)
            parts = [torch.load(path.parent / f"data-{k:05d}.pt", weights_only=True) for k in range(state["parts"])]
            lines = (self.path / METRICS).read_bytes().splitlines(keepends=True)[: state["lines"]]
        except Exception as error:  # torch.load raises what it likes on a damaged file
            raise Failed(f"the checkpoint in {path.parent} is damaged ({type(error).__name__}): begin anew with --config {self.path / CONFIG}") from None
        write_bytes(self.path / METRICS, b"".join(lines))
        return state, parts

    def save_states(self, states: Mapping[str, Any], round_number: int) -> Path:
        """Keep what led to a NaN, for whoever looks into it."""
        import torch

        path = self.path / f"failed-round-{round_number}.pt"
        buffer = io.BytesIO()
        torch.save(dict(states), buffer)
        write_bytes(path, buffer.getvalue())
        return path
