"""A run folder as it was found: what can be read is kept, what can't becomes a sentence, and nothing is lost for it.

A folder may be half-written, of a newer version, without metrics, or hold NaN; only one that holds nothing of a run is
refused.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillrl import config as configuration
from distillrl.errors import DistillError, Misconfigured
from distillrl.runs import CONFIG, METRICS, STUDENT, VERDICT

EVIDENCE = "evidence.json"
AIMS = (0.9, 0.95, 0.99)
"""Shares of the teacher's return whose first time is told."""
VIDEOS = ("watch.mp4", "watch.gif")


@dataclass(frozen=True)
class Reading:
    """What a run folder says."""

    path: Path
    config: Mapping[str, Any]
    """config.toml as plain data, unknown keys too."""
    metrics: tuple[Mapping[str, Any], ...]
    """A round each; numbers that are NaN or infinite are left out."""
    verdict: Mapping[str, Any]
    evidence: Mapping[str, Any]
    header: Mapping[str, Any]
    """The artifact's."""
    digest: str | None
    """SHA-256 of the artifact's file."""
    video: Path | None
    problems: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.resolve().name

    @property
    def paired(self) -> bool:
        """Whether student and teacher played the same episodes, as many of each.

        Of EnvPool's, and of a vector that the user made, only each slot's first episode has a seed of its own.
        """
        from distillrl.evaluation import MAX_SLOTS

        many = len(self.returns("student"))
        if many != len(self.returns("teacher")):
            return False
        if not self.config or look(self.evidence, "returns") is not None:
            return True
        if isinstance(told := look(self.verdict, "paired"), bool):
            return told
        backend = str(self.config.get("backend", "auto"))
        seeded = backend.startswith("gymnasium") or (backend == "auto" and self.config.get("env") is not None)
        return seeded or (backend == "envpool" and many <= MAX_SLOTS)

    def returns(self, who: str) -> list[float]:
        """Each episode's return of "teacher", "student" or "random", most likely actions; empty where they weren't kept."""
        longer = look(self.evidence, "returns", who)
        values = longer if isinstance(longer, list) and longer else look(self.verdict, who, "return", "returns")
        return [float(x) for x in values if number(x) is not None] if isinstance(values, list) else []


def read(path: str | Path) -> Reading:
    """Read a folder; raises Misconfigured where it is no run's."""
    folder = Path(path)
    if not folder.is_dir():
        raise Misconfigured(f"{path} is no run folder: there is no such folder")
    if not any((folder / name).is_file() for name in (CONFIG, METRICS, VERDICT, STUDENT)):
        raise Misconfigured(f"{path} is no run folder: it has none of {CONFIG}, {METRICS}, {VERDICT} and {STUDENT}")
    problems: list[str] = []
    header, digest = _artifact(folder / STUDENT, problems)
    evidence = _json(folder / EVIDENCE, problems, None)
    if digest is not None and evidence.get("student", digest) != digest:
        problems.append(f"{EVIDENCE} was measured of another student than {STUDENT}, and was left aside")
        evidence = {}
    return Reading(
        path=folder,
        config=_config(folder / CONFIG, problems),
        metrics=_metrics(folder / METRICS, problems),
        verdict=_json(folder / VERDICT, problems, "the run has not ended, or was broken off: distillrl distill --resume goes on with it"),
        evidence=evidence,
        header=header,
        digest=digest,
        video=next((folder / v for v in VIDEOS if (folder / v).is_file()), None),
        problems=tuple(problems),
    )


def look(data: Any, *keys: str) -> Any:
    """``data[a][b]…``, or None where one of them is missing."""
    for key in keys:
        if not isinstance(data, Mapping) or key not in data:
            return None
        data = data[key]
    return data


def first_at(rows: Sequence[Mapping[str, Any]], aim: float) -> dict[str, float | None] | None:
    """Steps, labels, seconds and number of the first round after which at least ``aim`` of the teacher's return was kept; None if never."""
    for row in rows:
        kept = number(row.get("retention"))
        if kept is not None and kept >= aim:
            return {key: number(row.get(key)) for key in ("env_steps", "labels", "seconds", "round")}
    return None


def number(value: Any) -> float | None:
    """A finite number, or None."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def _config(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        problems.append(f"{path.name} is missing, so the command that repeats this run is not known")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} is damaged ({error}), so the command that repeats this run is not known")
        return {}
    try:
        configuration.build(data, path.name)
    except DistillError as error:
        problems.append(f"{error}; the run may be of another version of distillrl")
    return data


def _metrics(path: Path, problems: list[str]) -> tuple[Mapping[str, Any], ...]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        problems.append(f"{path.name} is missing, so there are no learning curves")
        return ()
    rows: list[Mapping[str, Any]] = []
    broken: dict[str, int] = {}
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            where = "its last line is cut off" if i == len(lines) - 1 else f"line {i + 1} is no JSON object"
            problems.append(f"{path.name}: {where}; the others are shown")
            continue
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                broken.setdefault(key, i)
        rows.append({k: v for k, v in row.items() if not (isinstance(v, float) and not math.isfinite(v))})
    problems.extend(
        f"{path.name}: {key} is NaN or infinite from round {rows[i].get('round', i)} on or now and then"
        for key, i in broken.items()
        if i < len(rows)
    )
    if not rows:
        problems.append(f"{path.name} holds no round yet, so there are no learning curves")
    return tuple(rows)


def _json(path: Path, problems: list[str], missing: str | None) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        if missing is not None:
            problems.append(f"{path.name} is missing: {missing}")
        return {}
    except ValueError as error:
        problems.append(f"{path.name} is damaged ({error})")
        return {}
    if not isinstance(data, dict):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    return data


def _artifact(path: Path, problems: list[str]) -> tuple[Mapping[str, Any], str | None]:
    import hashlib

    from distillrl import artifact

    if not path.is_file():
        problems.append(f"{path.name} is missing: there is no student yet")
        return {}, None
    try:
        header = artifact.load(path)[0]
    except DistillError as error:
        problems.append(str(error))
        header = {}
    return header, hashlib.sha256(path.read_bytes()).hexdigest()
