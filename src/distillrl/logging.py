"""A run's log for TensorBoard: scalars of each round, and at its end histograms, hyper-parameters and a film.

A ``Log`` is shown what a run shows (``distill(..., show=log)``): {"folder": path} at the beginning, each round's
metrics, {"verdict": …} at the end. Loaded with ``--log tensorboard``, not before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from distillrl.errors import DistillError, Misconfigured, Missing, nearest

KINDS = ("tensorboard",)


class Log:
    """Writes to ``FOLDER/tensorboard`` as the run goes; ``with Log("tensorboard") as log: distill(..., show=log)``."""

    def __init__(self, kind: str = "tensorboard", film: bool = True) -> None:
        """``film``: play an episode at the end and keep it. Raises Misconfigured for another kind, Missing without tensorboard."""
        if kind not in KINDS:
            raise Misconfigured(f"--log {kind!r}{nearest(kind, KINDS)}")
        try:
            import tensorboard  # noqa: F401  # asked for here, so that it is missed before the run and not in it
        except ImportError:
            raise Missing("--log tensorboard needs TensorBoard: pip install 'distillrl[tensorboard]'") from None
        self.film, self.steps = film, 0
        self.folder: Path | None = None
        self._writer: Any = None
        self._held: list[tuple[str, str]] = []

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """One message of a run; what has no place in a log is passed over."""
        if "folder" in metrics:
            self.close()
            self.folder = Path(str(metrics["folder"]))
        if self.folder is None:
            return
        if "round" in metrics:
            self._round(metrics)
        self._held += [(key, str(metrics[key])) for key in ("note", "warning") if key in metrics]
        while self._held and (self.steps or "verdict" in metrics):  # not before the first round: a resumed run begins at its own step
            self._writing().add_text(*self._held.pop(0), self.steps)
        if "verdict" in metrics:
            self._end(self.folder, metrics["verdict"])

    def close(self) -> None:
        """Write what is still held back."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _writing(self) -> Any:
        """The writer, opened by the first thing that is written: what a resumed run logged beyond there is forgotten."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            place = Path(self.folder or ".") / "tensorboard"
            self._writer = SummaryWriter(str(place), purge_step=self.steps if place.exists() else None)
        return self._writer

    def _round(self, metrics: Mapping[str, Any]) -> None:
        """Every number, over environment steps: ``term.forward_kl`` under «term», «agreement» under «run»."""
        self.steps = int(metrics.get("env_steps", self.steps))
        for key, value in metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                group, dot, name = key.partition(".")
                self._writing().add_scalar(f"{group}/{name}" if dot else f"run/{key}", value, self.steps)

    def _end(self, folder: Path, verdict: Mapping[str, Any]) -> None:
        writer = self._writing()
        figures: dict[str, float] = {}
        for who in ("teacher", "student", "random"):
            earned = (verdict.get(who) or {}).get("return") or {}
            if earned.get("returns"):
                import numpy as np

                writer.add_histogram(f"returns/{who}", np.asarray(earned["returns"]), self.steps)
            if earned.get("mean") is not None:
                figures[f"verdict/return of the {who}"] = float(earned["mean"])
        if verdict.get("retention"):
            figures["verdict/retention"] = float(verdict["retention"]["value"])
        self._weights(folder)
        writer.add_hparams(self._chosen(folder, verdict), figures, run_name=".")
        if self.film:
            self._film(folder)
        writer.flush()

    def _weights(self, folder: Path) -> None:
        """A histogram of each of the student's tensors."""
        from distillrl import artifact
        from distillrl.runs import STUDENT

        path = folder / STUDENT
        if path.is_file():
            for name, value in artifact.load(path)[1].items():
                self._writing().add_histogram(f"student/{name}", value, self.steps)

    def _chosen(self, folder: Path, verdict: Mapping[str, Any]) -> dict[str, Any]:
        """What was chosen for the run, plain values only."""
        from distillrl.runs import Folder

        chosen: dict[str, Any] = {k: verdict[k] for k in ("env", "method", "student_family") if verdict.get(k) is not None}
        try:
            config = Folder.open(folder).read_config()
        except DistillError:
            return chosen
        for phase in config.phase[:1]:
            chosen |= {k: getattr(phase, k) for k in ("beta", "keep", "lr", "batch", "updates", "steps", "average")}
        return chosen | {"seed": config.seed, "slots": config.slots}

    def _film(self, folder: Path) -> None:
        """An episode of both, as TensorBoard keeps films: a gif in an image's place. What can't be filmed is noted."""
        from distillrl.evidence import players
        from distillrl.reading import read
        from distillrl.watching import watch

        try:
            student, teacher, options = players(read(folder), None, None, [])
            with tempfile.TemporaryDirectory() as place:
                path = Path(place) / "film.gif"
                watch({"teacher": teacher, "student": student}, options, path)
                self._keep(path)
        except Exception as error:  # what an environment raises that can't render is its own, and a run isn't lost for its film
            self._writing().add_text("note", f"no film: {error}", self.steps)

    def _keep(self, path: Path) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as film:
            width, height = film.size
        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        self._writing().file_writer.add_summary(Summary(value=[Summary.Value(tag="film", image=picture)]), self.steps)
