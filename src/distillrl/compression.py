"""``compress``: a student made smaller step by step, each step retrained by its teacher on the student's own states and measured.

Steps are those of shrinking.ladder. A step is the normal loop, begun from the smaller student (``--init``), with the teacher asked in the
states that the student itself comes to; then the student plays until the interval of its retention is decided. The first step that doesn't
hold (after a second try, twice as long) ends it: the file before it is kept.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import distillrl
from distillrl import artifact, envs, evaluation, methods, shrinking, students
from distillrl import config as configuration
from distillrl.config import Config
from distillrl.distillation import distill
from distillrl.envs import Seeds
from distillrl.errors import DistillError, Failed, Misconfigured
from distillrl.policies import Player
from distillrl.retaining import Finding, Referee
from distillrl.runs import STUDENT, Folder
from distillrl.settling import Setup, settle
from distillrl.shrinking import Rung

LOG = "compression.json"
STEP_EPISODES = 10
"""Verdict episodes of a step's own run: it is measured anew, until its retention is decided."""
VERDICT_EPISODES = 50

Show = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Compression:
    """What came of it: the run folder, the smallest student that held (None where not even the given one did), the steps."""

    folder: Path
    policy: Player | None
    steps: tuple[Mapping[str, Any], ...]
    verdict: Mapping[str, Any]
    reached: bool
    """Whether all that was asked for was held."""


@dataclass
class _Work:
    """What the steps share, and what is known so far."""

    setup: Setup
    config: Config
    folder: Folder
    referee: Referee
    show: Show
    log: list[dict[str, Any]] = field(default_factory=list)
    grown: Any = None
    """The given student where it is a fitted one: such are made anew at each step."""
    kept: Path | None = None
    labels: list[str] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=lambda: {"env_steps": 0, "labels": 0, "rounds": 0})


def compress(
    student: str | Path,
    teacher: Any,
    env: Any = None,
    *,
    prune: float = 0.0,
    sparse: bool = False,
    quantise: str | None = None,
    retention: float = 0.98,
    episodes: int = 400,
    out: str | Path | None = None,
    config: Config | None = None,
    show: Show | None = None,
) -> Compression:
    """Make a student's file smaller for as long as it holds ``retention`` of its teacher, by the lower end of the interval.

    ``prune``: the share of its parameters to take out, as whole neurons (of a tree: leaves, of a formula: terms), or with ``sparse`` as single weights.
    ``quantise``: int8, int4, int3, int2, fp16 or bf16. ``episodes``: played at most to decide one step. ``config``: seed, budget of a
    step, slots, backend as in ``distill``. Raises Misconfigured, Missing or Failed.
    """
    if not 0 < retention <= 2:
        raise Misconfigured(f"compress --retention {retention}: a share of the teacher's return above random play is right, such as 0.98")
    path = Path(student)
    policy = shrinking.held_parameters(path)
    rungs = shrinking.ladder(policy, prune, sparse, quantise)
    settled = configuration.with_changes(config or Config(env_steps=60_000), {"teacher": str(teacher) if isinstance(teacher, str | Path) else None, "env": env if isinstance(env, str) else None})
    target = env if env is not None else settled.env or policy.info.get("environment")
    settled = settled if env is not None else _as_it_was(settled, policy)
    settled = replace(settled, student=policy.family, until="none", init=None, verdict_episodes=STEP_EPISODES)
    setup = settle(settled, teacher, target)
    if found := envs.differences(policy.spec, setup.spec):
        raise Misconfigured(f"the student {path} does not fit {envs.name_of(setup.options)}: " + "; ".join(found))
    folder = Folder.create(out, f"compress-{envs.name_of(setup.options)}")
    referee = Referee(setup.options, setup.spec, setup.teacher, settled.seed, retention, episodes)
    work = _Work(setup, settled, folder, referee, show or _nothing, grown=policy if getattr(policy, "grown", False) else None)
    began = time.perf_counter()
    try:
        reached = _climb(work, path, policy, rungs)
    except KeyboardInterrupt:
        said = "nothing was shown to hold yet"
        if work.kept is not None:
            _keep(work, path)
            said = f"the last file that held is {work.folder.student}, {work.labels[-1]}"
        raise KeyboardInterrupt(f"interrupted; {said}; its steps so far are in {work.folder.path / LOG}") from None
    return _close(work, path, began, reached)


def _as_it_was(config: Config, policy: Any) -> Config:
    """The environment made as it was for the student, where nothing else is said."""
    made_of = (policy.info.get("provenance") or {}).get("config") or {}
    kwargs = config.env_kwargs or made_of.get("env_kwargs") or {}
    return replace(config, env_kwargs=kwargs, max_episode_steps=config.max_episode_steps or made_of.get("max_episode_steps"))


def _nothing(metrics: Mapping[str, Any]) -> None:
    """Show nothing."""


def _climb(work: _Work, path: Path, policy: Any, rungs: list[Rung]) -> bool:
    """Measure the student, then go from rung to rung while it holds; whether the top was reached."""
    start = _place(work, "start")
    shutil.copyfile(path, start)
    count = _size(policy)
    if not _note(work, Rung("start", "start"), start, 0.0, 1) and not _step(work, Rung("retrained as it is", "retrain"), start, count):
        return False
    floats = work.kept
    for rung in rungs:
        base = floats if rung.kind in {"bits", "floats"} else work.kept
        assert base is not None
        if not _step(work, rung, base, count):
            return False
        floats = work.kept if rung.kind not in {"bits", "floats"} else floats
    return True


def _step(work: _Work, rung: Rung, base: Path, count: int) -> bool:
    """Two tries at one rung, the second from where the first ended and twice as long."""
    began = time.perf_counter()
    made, ready = _begun(work, rung, base, count)
    if ready and _note(work, rung, made, time.perf_counter() - began, 1):
        return True
    for attempt in (1, 2):
        if rung.kind == "floats":
            return False
        began = time.perf_counter()
        made = _retrained(work, rung, made, attempt)
        if _note(work, rung, made, time.perf_counter() - began, attempt):
            return True
    return False


def _begun(work: _Work, rung: Rung, base: Path, count: int) -> tuple[Path, bool]:
    """The file that a step starts from, and whether it may hold as it is."""
    policy = shrinking.held_parameters(base)
    where, seed = work.setup.options, work.config.seed
    if getattr(policy, "grown", False):
        return base, False  # fitted anew: nothing to begin from
    if rung.kind == "neurons":
        header, tensors, train = shrinking.narrower(policy, round(count * (1 - float(rung.amount))), where, seed)
    elif rung.kind == "weights":
        header, tensors, train = shrinking.sparser(policy, float(rung.amount), where, seed)
    else:
        header, tensors, train = shrinking.first_of(rung, policy, where, seed)
    path = _place(work, rung.label)
    artifact.save(path, {**header, "provenance": artifact.load(base)[0].get("provenance")}, tensors)
    return path, not train


def _retrained(work: _Work, rung: Rung, start: Path, attempt: int) -> Path:
    """The student that the normal loop makes of a start; the teacher labels what the student itself visits."""
    setup = work.setup
    out = _place(work, f"{rung.label} distilled").parent
    # The first try may end as soon as it looks as good as its teacher; the second takes all of its budget.
    config = replace(work.config, env_steps=work.config.env_steps * attempt, until="retention=1" if attempt == 1 else "none")
    if work.grown is not None:
        config = replace(config, student=shrinking.smaller_word(work.grown, float(rung.amount)))
    else:
        phases = methods.expand(work.config.method, setup.teacher.gives, setup.spec)
        config = replace(config, init=str(start), student=artifact.load(start)[0]["family"], phase=tuple(replace(p, beta="0") for p in phases))
    run = distill(config.teacher or setup.teacher, setup.options.id, config=config, out=out, show=work.show)
    for key, name in (("env_steps", "env_steps"), ("labels", "teacher_labels"), ("rounds", "rounds")):
        work.spent[key] += run.verdict[name]
    return run.folder / STUDENT


def _place(work: _Work, label: str) -> Path:
    """A new folder for a step, and the student's place in it."""
    number = len(list((work.folder.path / "steps").glob("*")))
    words = "".join(c if c.isalnum() else "-" for c in label.replace("%", "")).strip("-")
    path = work.folder.path / "steps" / f"{number:02d}-{words}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"{path} can't be made: {error.strerror or error}") from None
    return path / STUDENT


def _note(work: _Work, rung: Rung, path: Path, seconds: float, attempt: int) -> bool:
    """Measure a file, log it, keep it if it holds."""
    policy = shrinking.held_parameters(path)
    began = time.perf_counter()
    found: Finding = work.referee.judge(policy)
    sizes = shrinking.sizes(path)
    row = {"step": rung.label, "attempt": attempt, "family": policy.family, "parameters": _size(policy), **sizes, **found.to_json()}
    row |= {"seconds": round(seconds, 2), "measuring_seconds": round(time.perf_counter() - began, 2), "file": str(path.relative_to(work.folder.path))}
    work.log.append(row)
    _write(work.folder.path / LOG, {"retention": work.referee.aim, "steps": work.log})
    said = "holds" if found.held else "lost" if found.held is False else "not shown to hold"
    work.show({"note": f"{rung.label}: {row['parameters']:,} parameters, {sizes['bytes']:,} bytes, retention {found}: {said}"})
    if found.held:
        work.kept = path
        work.labels.append(rung.label)
    return bool(found.held)


def _size(policy: Any) -> int:
    return int(policy.acting_parameters())


def _write(path: Path, data: Any) -> None:
    artifact.write_bytes(path, (json.dumps(data, indent=1) + "\n").encode())


def _close(work: _Work, path: Path, began: float, reached: bool) -> Compression:
    """The kept file in the folder's own place, with a verdict on fresh episodes: a run folder as any other."""
    rows = tuple(work.log)
    if work.kept is None:
        return Compression(work.folder.path, None, rows, {}, False)
    kept = next(r for r in reversed(rows) if work.folder.path / r["file"] == work.kept)
    student = _keep(work, path)
    setup, bytes_ = work.setup, work.folder.student.stat().st_size
    measured = evaluation.verdict(setup.options, setup.spec, VERDICT_EPISODES, work.config.seed, student=student, teacher=setup.teacher, sizes={"student": bytes_, "teacher": setup.teacher_bytes})
    verdict = {
        "method": "compress",
        "seed": work.config.seed,
        "env": envs.name_of(setup.options),
        "student_family": student.family,
        "env_steps": int(work.spent["env_steps"]),
        "teacher_labels": int(work.spent["labels"]),
        "rounds": int(work.spent["rounds"]),
        "kept_round": None,
        "ended_by": "aim" if reached else f"retention at: {rows[-1]['step']}",
        "until": f"retention={work.referee.aim}",
        "reached": reached,
        "seconds": {"work": round(time.perf_counter() - began, 3), "selecting": round(sum(r["measuring_seconds"] for r in rows), 3), "with_imports": round(time.perf_counter() - distillrl.STARTED, 3)},
        "selecting_steps": work.referee.steps,
        "compression": {"from": {k: rows[0][k] for k in ("family", "parameters", "bytes")}, "to": {k: kept[k] for k in ("step", "parameters", "bytes", "tensor_bytes")}},
        **measured,
    }
    work.folder.write_verdict(verdict)
    return Compression(work.folder.path, Player(student), rows, verdict, reached)


def _keep(work: _Work, path: Path) -> Any:
    """Put the kept file, and what it was made by, in the folder's own place; the policy of it."""
    assert work.kept is not None
    header, tensors = artifact.load(work.kept)
    header["provenance"] = {**(header.get("provenance") or {}), "compressed": work.labels[1:]}
    artifact.save(work.folder.student, header, tensors)
    own = work.kept.parent / "config.toml"
    work.folder.write_config(Folder(own.parent).read_config() if own.exists() else replace(work.setup.config, init=str(path)))
    metrics = work.kept.parent / "metrics.jsonl"
    if metrics.exists():
        artifact.write_bytes(work.folder.path / "metrics.jsonl", metrics.read_bytes())
    return students.build(*artifact.load(work.folder.student))


def sentences(made: Compression) -> list[str]:
    """What came of it, in words."""
    first, last = made.steps[0], made.steps[-1]
    held = [r for r in made.steps if r["held"]]
    if not held:
        return [f"The student itself does not hold the retention (it has {_shares(last)}): distil a better one first, or ask for less."]
    kept = held[-1]
    said = [
        f"{first['parameters']:,} parameters in {first['bytes']:,} bytes became {kept['parameters']:,} in {kept['bytes']:,} "
        f"({kept['tensor_bytes']:,} of them weights), and hold {_shares(kept)}."
    ]
    if not made.reached:
        said.append(f"«{last['step']}» ({last['parameters']:,} parameters, {last['bytes']:,} bytes) did not hold: {_shares(last)}. The last file that did is kept.")
    return said


def _shares(row: Mapping[str, Any]) -> str:
    r = row["retention"]
    return f"{r['value']:.1%} of the teacher's return ({r['low']:.1%} to {r['high']:.1%}, {row['episodes']} episodes)"


__all__ = ["Compression", "DistillError", "Seeds", "compress", "sentences"]
