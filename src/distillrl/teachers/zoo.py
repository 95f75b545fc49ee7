"""RL Zoo's and the Hub's folders: which file is the model, on what it was trained, behind which wrappers, with what return."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distillrl.errors import Failed, Misconfigured
from distillrl.teachers import environments, yamls
from distillrl.teachers.archives import Archive, read_file, read_json, regular
from distillrl.teachers.arrays import npy
from distillrl.teachers.pickles import shown

NORMALISERS = ("vecnormalize.pkl", "vec_normalize.pkl")
_NAME = re.compile(r"[\w:./]+(?:-[\w:./]+)*-v\d{1,3}")
_TIME = "TimeFeatureWrapper"
_STACK = "VecFrameStack"
_HARMLESS = ("Monitor", "TimeLimit", "RecordEpisodeStatistics", "VecMonitor", "VecTransposeImage")


@dataclass
class Found:
    """What lies around a model."""

    model: Path
    vecnormalize: Path | None = None
    trained_on: str | None = None
    environment: str | None = None
    """Today's id."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    algorithm: str | None = None
    stack: int = 0
    """Frames that VecFrameStack put together; 0 where none."""
    time: bool = False
    """TimeFeatureWrapper was there."""
    normalised: bool = False
    """The configuration says that observations were normalised."""
    wrappers: list[str] = field(default_factory=list)
    """Others, which only the environment can have."""
    recorded: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def resolve(path: Path) -> Path:
    """The path, or RL Zoo's newest numbered folder of that name (``ppo/Hopper-v3`` → ``ppo/Hopper-v3_2``)."""
    if path.exists() or not path.parent.is_dir():
        return path
    numbered = [(int(m.group(1)), p) for p in path.parent.iterdir() if (m := re.fullmatch(re.escape(path.name) + r"_(\d{1,5})", p.name)) and p.is_dir()]
    return max(numbered)[1] if numbered else path


def models(folder: Path) -> list[Path]:
    """The zips of a folder that may be its model, the likeliest first."""
    name = re.sub(r"_\d+$", "", folder.name)
    zips = sorted(p for p in folder.glob("*.zip") if p.name != "train_eval_metrics.zip")
    wanted = (f"{name}.zip", "model.zip", "best_model.zip", "final_model.zip", f"{folder.name}.zip")
    first = [p for w in wanted for p in zips if p.name == w]
    return first[:1] if first else zips


def locate(path: Path) -> Found:
    """Everything about the model at a file or folder. Raises Misconfigured where a folder has several, Failed for links out of it."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        choices = models(path)
        if len(choices) != 1:
            said = ", ".join(p.name for p in choices[:8])
            raise Misconfigured(f"{path} has {len(choices)} models ({said}): name one of them" if choices else f"{path} is a folder without a model (a .zip)")
        found = Found(_kept(choices[0], folder))
    else:
        found = Found(path)
    beside = _beside(folder, found.model, path.is_dir())
    for place in [folder, *beside]:
        _read_settings(place, folder, found)
        for name in (*NORMALISERS, *_checkpoint(found.model)):
            if found.vecnormalize is None and (place / name).is_file():
                found.vecnormalize = _kept(place / name, folder)
    if found.trained_on is None:
        found.trained_on = _from_names(found.model, folder)
    if found.trained_on is not None:
        found.environment, word = environments.today(found.trained_on)
        found.notes += [word] if word else []
    found.recorded = _recorded(folder, found)
    return found


def _beside(folder: Path, model: Path, whole: bool) -> list[Path]:
    """Folders in the model's folder that are about it: named like it or like the environment, or the only one with settings."""
    try:
        inside = [p for p in folder.iterdir() if p.is_dir() and any((p / n).is_file() for n in ("config.yml", "args.yml", *NORMALISERS))]
    except OSError as error:
        raise Failed(f"{folder} can't be read: {error.strerror or error}") from None
    named = [p for p in inside if p.name in {model.stem, re.sub(r"_\d+$", "", folder.name)}]
    return named or (inside if whole and len(inside) == 1 else [])


def _checkpoint(model: Path) -> tuple[str, ...]:
    """The normaliser's name that SB3's CheckpointCallback gives beside ``rl_model_1000_steps.zip``."""
    match = re.fullmatch(r"(.+)_(\d+)_steps", model.stem)
    return (f"{match.group(1)}_vecnormalize_{match.group(2)}_steps.pkl",) if match else ()


def _kept(path: Path, folder: Path) -> Path:
    """A file that was found, not named: a link may not lead out of the folder (but the Hub's cache links to its blobs)."""
    regular(path)
    real, home = path.resolve(), folder.resolve()
    hub = "snapshots" in home.parts and real.parent.name == "blobs" and real.parents[1] in home.parents
    if not real.is_relative_to(home) and not hub:
        raise Failed(f"{path} is refused: it is a link that leads out of its folder, to {real}; name that file itself")
    return path


def _read_settings(place: Path, folder: Path, found: Found) -> None:
    for name in ("args.yml", "config.yml", "env_kwargs.yml"):
        file = place / name
        if not file.is_file():
            continue
        try:
            said = yamls.read(read_file(_kept(file, folder), yamls.MAX_BYTES), str(file))
        except Failed as error:
            found.notes.append(f"{error}: its settings are not known")
            continue
        if name == "env_kwargs.yml":
            found.env_kwargs |= _plain(said)
            continue
        if isinstance(said.get("env"), str) and _NAME.fullmatch(said["env"]):
            found.trained_on = said["env"]
        found.algorithm = shown(said.get("algo") or "") or found.algorithm
        found.env_kwargs |= _plain(said.get("env_kwargs"))
        _read_wrappers(said, found)


def _plain(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {}
    return {shown(k): shown(v) if isinstance(v, str) else v for k, v in value.items() if v is None or isinstance(v, (bool, int, float, str))}


def _read_wrappers(said: Mapping[str, Any], found: Found) -> None:
    normalise = said.get("normalize")
    if normalise not in (None, False, "false", "False") and not re.search(r"norm_obs['\"]?\s*[=:]\s*False", str(normalise)):
        found.normalised = True
    stack = said.get("frame_stack")
    if isinstance(stack, int) and 1 < stack < 1000:
        found.stack = stack
    for key in ("env_wrapper", "vec_env_wrapper"):
        given = said.get(key)
        for one in given if isinstance(given, list) else [given] if given else []:
            name, options = next(iter(one.items())) if isinstance(one, Mapping) and one else (one, {})
            name = shown(name, 120)
            short = name.rsplit(".", 1)[-1]
            count = options.get("n_stack") if isinstance(options, Mapping) else None
            if short == _TIME:
                found.time = True
            elif short == _STACK and isinstance(count, int) and 1 < count < 1000:
                found.stack = count
            elif short not in _HARMLESS:
                found.wrappers.append(name)
                found.notes.append(f"it was trained behind the wrapper {name}, which changes the environment itself: put it around yours")


def _from_names(model: Path, folder: Path) -> str | None:
    for name in (model.stem, re.sub(r"_\d+$", "", folder.resolve().name)):
        if _NAME.fullmatch(name):
            stripped = re.sub(r"^(?:ppo|ppo_lstm|a2c|trpo|dqn|qrdqn|sac|td3|ddpg|tqc|ars|crossq|her|maskable|ppo_mask)-(?=.+-v\d)", "", name, flags=re.IGNORECASE)
            return stripped
    return None


# ── the recorded return ───────────────────────────────────────────────────────────────────────────────────────────


def _recorded(folder: Path, found: Found) -> dict[str, Any] | None:
    """{mean, std, episodes, source} of the first record that can be read; a damaged one is passed over."""
    for read in (_evaluations, _metrics, _results, _card, _benchmark):
        try:
            record = read(folder, found)
        except Failed:
            continue
        if record is not None and all(np.isfinite([record["mean"], record["std"] or 0.0])):
            return record
    return None


def _evaluations(folder: Path, found: Found) -> dict[str, Any] | None:
    file = folder / "evaluations.npz"
    return _of_npz(Archive(_kept(file, folder), str(file)), found, file.name) if file.is_file() else None


def _metrics(folder: Path, found: Found) -> dict[str, Any] | None:
    file = folder / "train_eval_metrics.zip"
    if not file.is_file():
        return None
    archive = Archive(_kept(file, folder), str(file))
    inner = next((n for n in archive.members if n.rsplit("/", 1)[-1] == "evaluations.npz"), None)
    return _of_npz(Archive(archive.read(inner, 64 << 20), f"{file}: {inner}"), found, file.name) if inner else None


def _of_npz(archive: Archive, found: Found, source: str) -> dict[str, Any] | None:
    """EvalCallback's record: results [evaluations, episodes]. The best one of a best_model, else the last."""
    results = npy(archive.read("results.npy", 64 << 20), source)
    if results.ndim != 2 or not results.size:
        return None
    row = int(results.mean(1).argmax()) if found.model.stem == "best_model" else -1
    return {"mean": float(results[row].mean()), "std": float(results[row].std()), "episodes": int(results.shape[1]), "source": source}


def _results(folder: Path, found: Found) -> dict[str, Any] | None:
    file = folder / "results.json"
    if not file.is_file():
        return None
    said = read_json(read_file(_kept(file, folder), 1 << 20), str(file))
    if not isinstance(said, Mapping) or not isinstance(said.get("mean_reward"), (int, float)):
        return None
    spread = said.get("std_reward")
    return {"mean": float(said["mean_reward"]), "std": float(spread) if isinstance(spread, (int, float)) else None, "episodes": said.get("n_eval_episodes"), "source": file.name}


def _card(folder: Path, found: Found) -> dict[str, Any] | None:
    """The Hub's model card: ``type: mean_reward``, ``value: 261.42 +/- 22.95``."""
    for file in sorted(folder.glob("*.md"))[:5]:
        text = read_file(_kept(file, folder), 1 << 20).decode("utf-8", errors="replace")
        near = text.find("mean_reward")
        match = re.search(r"value:\s{0,4}['\"]?(-?\d{1,9}(?:\.\d{1,9})?)\s{0,3}\+/-\s{0,3}(\d{1,9}(?:\.\d{1,9})?)", text[max(0, near - 300) : near + 300]) if near >= 0 else None
        if match:
            return {"mean": float(match.group(1)), "std": float(match.group(2)), "episodes": None, "source": file.name}
    return None


def _benchmark(folder: Path, found: Found) -> dict[str, Any] | None:
    """RL Zoo's benchmark.md above: | algo | env | mean | std | … |."""
    for above in (folder.parent, folder.parent.parent):
        file = above / "benchmark.md"
        if not file.is_file() or found.trained_on is None or found.algorithm is None:
            continue
        for line in read_file(_kept(file, above), 4 << 20).decode("utf-8", errors="replace").splitlines():
            cells = [re.sub(r"[`*\[\]]|\(.*?\)", "", c).strip() for c in line[:2000].strip().strip("|").split("|")]
            if len(cells) >= 4 and cells[0].lower() == found.algorithm.lower() and cells[1] == found.trained_on:
                try:
                    return {"mean": float(cells[2]), "std": float(cells[3]), "episodes": None, "source": file.name}
                except ValueError:
                    continue
    return None
