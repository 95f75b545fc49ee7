"""A search that was stopped goes on: what it was asked for, and where it stands, in its folder; to the same bytes as one that wasn't stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distillrl import config as configuration
from distillrl import stats, students
from distillrl.artifact import write_bytes
from distillrl.beginning import State, example_batch, label_words
from distillrl.cohort import reseated
from distillrl.config import Config
from distillrl.errors import Failed, Misconfigured
from distillrl.limits import Limits
from distillrl.racing import Entry, Race
from distillrl.records import Progress
from distillrl.retaining import Finding
from distillrl.runs import VERDICT, Folder
from distillrl.settling import Setup

ASKED, CONFIG = "search.json", "search.toml"
HEADING = "# What a search was asked for, beside search.json; distillrl search --resume THIS-FOLDER goes on."


def create(out: str | Path | None, env: str) -> Folder:
    """A new folder; raises Misconfigured where it holds a search or a run."""
    if out is not None and (Path(out) / ASKED).exists():
        raise Misconfigured(f"--out {out} already holds a search: go on with --resume {out}, or name another folder")
    return Folder.create(out, env)


def note(folder: Folder, config: Config, sizes: tuple[str, ...], retention: float, limits: Limits, episodes: int) -> None:
    """Write what was asked for."""
    asked = {"sizes": list(sizes), "retention": retention, "episodes": episodes, "limits": dataclasses.asdict(limits)}
    write_bytes(folder.path / CONFIG, configuration.dumps(config, HEADING).encode())
    write_bytes(folder.path / ASKED, (json.dumps(asked, indent=1) + "\n").encode())


def asked(path: str | Path) -> tuple[Folder, Config, tuple[str, ...], float, Limits, int]:
    """What the search of a folder was asked for; raises Misconfigured where there is none that goes on, Failed where it is damaged."""
    folder = Folder(Path(path))
    if not (folder.path / ASKED).is_file():
        raise Misconfigured(f"--resume {path}: no search was begun there (it has no {ASKED})")
    if (folder.path / VERDICT).exists() or json.loads(_read(folder.path / "frontier.json") or "{}").get("ended"):
        raise Misconfigured(f"--resume {path}: this search has ended; its outcome is in {folder.path / 'frontier.json'}")
    try:
        given = json.loads((folder.path / ASKED).read_text(encoding="utf-8"))
        settled = configuration.build(configuration.read(folder.path / CONFIG), str(folder.path / CONFIG))
        return folder, settled, tuple(given["sizes"]), float(given["retention"]), Limits(**given["limits"]), int(given["episodes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failed(f"{folder.path / ASKED} is damaged ({type(error).__name__}: {error}): begin the search anew") from None


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError):
        return ""
    return text


def save(race: Race) -> None:
    """Write what has come since the last checkpoint, and where the race stands."""
    state = race.state
    part: dict[str, Any] = state.dataset.since(state.saved_steps) if state.dataset.keep == "all" else {}
    state.parts, state.saved_steps = state.parts + 1, state.dataset.steps
    values = {
        "parts": state.parts,
        "lines": state.lines,
        "seconds": state.seconds,
        "evaluation_steps": state.evaluation_steps,
        "progress": dataclasses.asdict(state.progress),
        "drive": state.drive.state_dict(),
        "cohort": [learner.state_dict() for learner in race.cohort.learners],
        "turn": race.cohort.turn,
        "order": [race.entries.index(e) for e in race.order],
        "entries": [_entry(e) for e in race.entries],
        "next_look": race.next_look,
        "looking": race.looking,
        "referee": {"steps": race.referee.steps, "returns": {who: torch.from_numpy(v.copy()) for who, v in race.referee.returns.items()}},
    }
    race.folder.checkpoint(values, part, state.parts - 1)


def _entry(entry: Entry) -> dict[str, Any]:
    own = None if not entry.racing else (entry.policy.header(), {k: v.clone() for k, v in entry.policy.artifact_tensors().items()})
    found = None if entry.found is None else dataclasses.asdict(entry.found)
    return {"word": entry.word, "cost": dict(entry.cost), "left": entry.left, "passed": entry.passed, "found": found, "saved": entry.saved, "history": entry.history, "own": own}


def costs(folder: Folder) -> dict[str, Mapping[str, float]]:
    """What each size cost where the search began: a latency is not measured twice."""
    saved = folder.read_checkpoint()
    return {} if saved is None else {e["word"]: e["cost"] for e in saved[0]["entries"]}


def restore(race: Race) -> None:
    """Bring a race that was just begun to where the last checkpoint was; nothing to do where there is none."""
    saved = race.folder.read_checkpoint()
    if saved is None:
        return
    values, parts = saved
    setup, state = race.setup, race.state
    for entry, own in zip(race.entries, values["entries"], strict=True):
        entry.cost, entry.left, entry.passed, entry.history = own["cost"], own["left"], own["passed"], own["history"]
        entry.found = None if own["found"] is None else Finding(**{**own["found"], "retention": stats.Interval(**own["found"]["retention"])})
        entry.saved = None if own["saved"] is None else (own["saved"][0], own["saved"][1])
        entry.policy = None if own["own"] is None else students.build(own["own"][0], own["own"][1], learning=True)
    race.cohort = reseated(setup, state, [race.entries[i].policy for i in values["order"]], values["cohort"], values["turn"])
    race.reorder()
    _go_on(setup, state, values, parts)
    race.next_look, race.looking = values["next_look"], values["looking"]
    race.referee.steps = values["referee"]["steps"]
    race.referee.returns = {who: v.numpy() for who, v in values["referee"]["returns"].items()}


def _go_on(setup: Setup, state: State, values: Mapping[str, Any], parts: list[dict[str, Any]]) -> None:
    state.progress = Progress(**values["progress"])
    state.drive.load_state_dict(values["drive"])
    like = example_batch(setup, state, label_words(setup, state)).teacher
    state.dataset.restore([p for p in parts if p], like)
    state.saved_steps, state.parts, state.lines = state.dataset.steps, values["parts"], values["lines"]
    state.seconds, state.evaluation_steps = values["seconds"], values["evaluation_steps"]


def clear(folder: Folder) -> None:
    """The checkpoint of a search that has ended goes."""
    shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)
