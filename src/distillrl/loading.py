"""Any policy from a file, an address or an object: ``load`` to play with it, ``info`` to know what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillrl import teachers
from distillrl.policies import Player, acting_parameters
from distillrl.records import Spec
from distillrl.students.telling import readable, teller


def load(source: Any, options: teachers.Options | None = None, spec: Spec | None = None) -> Player:
    """A student's artifact, a teacher's file or a live object as a Player.

    ``spec`` is needed by what doesn't name its spaces (an nn.Module, a function). Raises Failed or Misconfigured; runs
    nothing inside a file.
    """
    return Player(teachers.load(source, options or teachers.Options(), spec))


def info(source: Any, options: teachers.Options | None = None, spec: Spec | None = None) -> dict[str, Any]:
    """What a policy is, as plain data: format, algorithm, spaces, layers, sizes, what knowledge it can give."""
    policy = teachers.load(source, options or teachers.Options(), spec)
    path = Path(source) if isinstance(source, str | Path) else None
    return {
        "file": str(source) if path is not None else " + ".join(map(str, source)) if isinstance(source, list | tuple) else type(source).__name__,
        **dict(policy.info),
        "observations": {name: str(group) for name, group in policy.spec.observations.items()},
        "action": str(policy.spec.action),
        "parameters": acting_parameters(policy),
        "bytes": path.stat().st_size if path is not None and path.is_file() else None,
        "gives": sorted(policy.gives),
        "sha256": teachers.digest(source),
        **_explained(policy),
    }


def _explained(policy: Any) -> dict[str, Any]:
    """What a person can read of a fitted policy: its figures, and all of it where that is not too much."""
    told = teller(policy)
    if told is None:
        return {}
    figures = {k: int(v) for k, v in policy.model.figures().items()}
    return {**figures, "decides": told.as_text(policy).splitlines() if readable(policy) else []}
