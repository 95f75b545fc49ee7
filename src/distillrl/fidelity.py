"""How like its teacher a student is: on the student's states and on the teacher's, state by state.

Agreement and divergences with intervals over episodes (states of one episode are no independent sample), calibration,
critical states, the first divergence in an episode, and the states where the two differ most with what follows from
there. Everything comes as plain data, for ``evidence.json`` and the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl.actions import Categorical, Deterministic, Gaussian
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import DistillError, Missing
from distillrl.policies import ACTION, Policy, agreement
from distillrl.records import Prediction
from distillrl.traces import Trace, as_jpeg, can_rerun, from_there, record

CRITICAL = 0.1
"""Share of states that count as critical: those where the teacher's choice matters most."""
BINS = 10
POINTS = 1_500
"""States kept for the pictures."""
STRANGE = 6
"""States shown where the two differ most."""
SLIGHT = 0.01
"""A difference below it isn't shown as one."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def measure(
    student: Policy, teacher: Policy, options: EnvOptions, episodes: int = 20, seed: int = 0, stream: str = "verdict", shown: int = STRANGE
) -> dict[str, Any]:
    """Play ``episodes`` with each at the wheel and compare what both say; plain data, null where a thing doesn't apply.

    ``shown``: how many of the states where they differ most are played again. Keys: ``states`` {student, teacher} (agreement and divergences with intervals on each one's states), ``calibration``,
    ``critical``, ``first_divergence``, ``strange`` (where they differ most), ``actions`` (confusion or pairs), ``map``
    (a two-dimensional projection), ``episodes``, ``seed``, ``notes``.
    """
    seeds = Seeds(seed, stream)
    wants = ACTION | ({"q"} & teacher.gives)
    traces = {who: record(who, teacher, student, options, episodes, seeds, wants) for who in ("student", "teacher")}
    notes: list[str] = []
    mine = traces["student"]
    spread = _spread(traces["teacher"])
    return {
        "episodes": episodes,
        "seed": seed,
        "stream": stream,
        "returns": {who: [round(float(x), 6) for x in t.returns] for who, t in traces.items()},
        "states": {who: on_states(t, spread, seed) for who, t in traces.items()},
        "calibration": calibration(mine),
        "critical": critical(mine, spread, seed),
        "first_divergence": first_divergence(mine, spread),
        "strange": strange(mine, teacher, options, seeds, spread, notes, shown),
        "actions": actions(mine),
        "map": projection(traces, spread, seed),
        "notes": notes,
    }


# ── state by state ────────────────────────────────────────────────────────────────────────────────────────────────


def agrees(trace: Trace, spread: Tensor | None = None) -> np.ndarray:
    """[S] bool: whether both choose the same action (DESIGN's word: for a box, within 5 % of the range or spread)."""
    return agreement(trace.student, trace.teacher, spread).numpy()


def distance(trace: Trace, spread: Tensor | None = None) -> np.ndarray:
    """[S] how far apart they are, 0 to 1.

    Total variation of two Categoricals, else the RMS difference of the most likely actions in shares of the range (or
    of ``spread``), else 0 or 1.
    """
    mine, theirs = trace.student.action, trace.teacher.action
    if isinstance(mine, Categorical) and isinstance(theirs, Categorical):
        return (0.5 * (mine.log_probs.exp() - theirs.log_probs.exp()).abs().sum(-1)).numpy()
    if (width := _width(trace.teacher, spread)) is not None:
        assert mine is not None
        assert theirs is not None
        return ((mine.mode - theirs.mode) / width).square().mean(-1).sqrt().clamp(max=1).numpy()
    return 1.0 - agrees(trace).astype(np.float64)


def divergences(trace: Trace, spread: Tensor | None = None) -> dict[str, np.ndarray]:
    """{name: [S]}: forward_kl = KL(teacher‖student) and reverse_kl in nats, and what else both records allow."""
    mine, theirs = trace.student.action, trace.teacher.action
    found: dict[str, np.ndarray] = {"distance": distance(trace, spread)}
    pairs: tuple[tuple[str, Callable[[], Tensor]], ...] = (
        ("forward_kl", lambda: theirs.kl(mine)),  # type: ignore[union-attr, arg-type]  # a record that can't says so
        ("reverse_kl", lambda: mine.kl(theirs)),  # type: ignore[union-attr, arg-type]  # as above
    )
    for name, value in pairs:
        try:
            found[name] = value().numpy()
        except Missing:
            continue
    if isinstance(mine, Categorical) and isinstance(theirs, Categorical):
        p, q = theirs.log_probs, mine.log_probs
        middle = torch.logaddexp(p, q) - math.log(2)
        found["js"] = (0.5 * ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1))).numpy()
    if (width := _width(trace.teacher, spread)) is not None:
        found["action_mse"] = ((mine.mode - theirs.mode).square().mean(-1)).numpy()  # type: ignore[union-attr]  # both are there
        if isinstance(mine, Gaussian) and isinstance(theirs, Gaussian) and not mine.squashed and not theirs.squashed:
            gap = (mine.mean - theirs.mean).square() + (mine.log_std.exp() - theirs.log_std.exp()).square()
            found["wasserstein"] = (gap / width.square()).sum(-1).sqrt().numpy()
    return found


def on_states(trace: Trace, spread: Tensor | None, seed: int) -> dict[str, Any]:
    """Means over a trace's states with intervals by resampling episodes (the ratio of two sums)."""
    out: dict[str, Any] = {"states": trace.states, "agreement": over_episodes(agrees(trace, spread).astype(np.float64), trace, seed)}
    for name, values in divergences(trace, spread).items():
        out[name] = over_episodes(values.astype(np.float64), trace, seed)
    return out


def over_episodes(values: np.ndarray, trace: Trace, seed: int, keep: np.ndarray | None = None) -> dict[str, float] | None:
    """Mean of [S] values with a percentile interval over resampled episodes; only states where ``keep`` [S]."""
    chosen = np.ones(len(values), dtype=bool) if keep is None else keep
    if not chosen.any():
        return None
    if not np.isfinite(values[chosen]).all():
        return None
    sums = np.bincount(trace.episode[chosen], values[chosen], minlength=trace.episodes)
    counts = np.bincount(trace.episode[chosen], minlength=trace.episodes)
    drawn = np.random.default_rng(seed).integers(0, trace.episodes, (2000, trace.episodes))
    many = counts[drawn].sum(-1)
    boot = sums[drawn].sum(-1)[many > 0] / many[many > 0]
    low, high = np.quantile(boot, [0.025, 0.975])
    return {"value": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}


# ── calibration ───────────────────────────────────────────────────────────────────────────────────────────────────


def calibration(trace: Trace) -> dict[str, Any] | None:
    """Whether the student's confidence means what the teacher's does; None for a student without a distribution.

    Choices: for states binned by the student's probability of its own choice, the teacher's mean probability of that
    choice, and how often the teacher chooses it; ``ece`` is the mean gap to the former, ``ece_choice`` to the latter
    (Naeini 2015, ECE of 10 bins). Numbers: the teacher's probability inside the student's central intervals.
    """
    mine, theirs = trace.student.action, trace.teacher.action
    if mine is None or theirs is None or isinstance(mine, Deterministic):
        return None
    if isinstance(mine, Gaussian):
        return _coverage(mine, theirs)
    choice = mine.mode
    confidence = mine.log_prob(choice).exp().double().numpy()
    same = agrees(trace).astype(np.float64)
    given = same if isinstance(theirs, Deterministic) else theirs.log_prob(choice).exp().double().numpy()
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins: list[dict[str, float]] = []
    for b in range(BINS):
        here = number == b
        if here.any():
            row = {"confidence": confidence[here].mean(), "teacher": given[here].mean(), "chosen": same[here].mean(), "share": here.mean()}
            bins.append({k: float(v) for k, v in row.items()})
    return {
        "kind": "choice",
        "bins": bins,
        "ece": float(sum(b["share"] * abs(b["confidence"] - b["teacher"]) for b in bins)),
        "ece_choice": float(sum(b["share"] * abs(b["confidence"] - b["chosen"]) for b in bins)),
        "confidence": {"student": float(confidence.mean()), "teacher": float(given.mean())},
    }


def _coverage(mine: Gaussian, theirs: Any) -> dict[str, Any] | None:
    """Share of the teacher's actions inside the student's central intervals of each level, over states and components."""
    if isinstance(theirs, Gaussian) and theirs.squashed != mine.squashed:
        return None
    rows = []
    for level in LEVELS:
        reach = mine.log_std.exp() * NormalDist().inv_cdf((1 + level) / 2)
        low, high = mine.mean - reach, mine.mean + reach
        if isinstance(theirs, Gaussian):
            std = theirs.log_std.exp()
            inside = torch.special.ndtr((high - theirs.mean) / std) - torch.special.ndtr((low - theirs.mean) / std)
        else:
            value = (
                torch.atanh((2 * (theirs.mode - mine.low) / (mine.high - mine.low) - 1).clamp(-1 + 1e-6, 1 - 1e-6))
                if mine.squashed
                else theirs.mode
            )
            inside = ((value > low) & (value < high)).float()
        rows.append({"level": level, "inside": float(inside.mean())})
    return {"kind": "interval", "levels": rows, "ece": float(np.mean([abs(r["level"] - r["inside"]) for r in rows]))}


# ── where it matters, where it begins, where it is worst ──────────────────────────────────────────────────────────


def critical(trace: Trace, spread: Tensor | None, seed: int) -> dict[str, Any] | None:
    """Agreement on the tenth of the student's states where the teacher's choice matters most; None for numbers.

    By the gap between the best and the second-best Q-value where the teacher gives them, else between its two largest
    probabilities (Huang 2018, "Establishing appropriate trust via critical states").
    """
    theirs = trace.teacher.action
    if trace.teacher.q is not None and trace.teacher.q.dim() == 2 and trace.teacher.q.shape[-1] > 1:
        best, by = trace.teacher.q.topk(2, -1).values, "q"
    elif isinstance(theirs, Categorical) and theirs.logits.shape[-1] > 1:
        best, by = theirs.log_probs.exp().topk(2, -1).values, "probability"
    else:
        return None
    gap = (best[:, 0] - best[:, 1]).double().numpy()
    threshold = float(np.quantile(gap, 1 - CRITICAL))
    keep = gap >= threshold
    same = agrees(trace, spread).astype(np.float64)
    return {"by": by, "threshold": threshold, "states": int(keep.sum()), "agreement": over_episodes(same, trace, seed, keep)}


def first_divergence(trace: Trace, spread: Tensor | None) -> dict[str, Any]:
    """The step of each of the student's episodes at which the teacher would first have done another thing."""
    apart = ~agrees(trace, spread)
    steps: list[int | None] = []
    for e in range(trace.episodes):
        where = np.flatnonzero(apart[trace.episode == e])
        steps.append(int(where[0]) if where.size else None)
    some = [s for s in steps if s is not None]
    return {
        "steps": steps,
        "median": float(np.median(some)) if some else None,
        "never": len(steps) - len(some),
        "lengths": trace.lengths.tolist(),
    }


def strange(
    trace: Trace, teacher: Policy, options: EnvOptions, seeds: Seeds, spread: Tensor | None, notes: list[str], shown: int = STRANGE
) -> list[dict[str, Any]]:
    """The student's states where the two differ most (other choices before other chances), at most one an episode.

    With what each earns from there on:
    ``student_from_there`` is what it earned in that episode; ``teacher_from_there`` what the teacher earns when it
    takes over in that state (the episode is played again), null where episodes don't come back.
    """
    far = distance(trace, spread)
    chosen: list[int] = []
    used: set[int] = set()
    apart = ~agrees(trace, spread)
    for s in np.argsort(-far - apart, kind="stable").tolist():
        if (far[s] < SLIGHT and not apart[s]) or len(chosen) == shown:
            break
        if int(trace.episode[s]) not in used:
            used.add(int(trace.episode[s]))
            chosen.append(s)
    rows = [_strange(trace, s, float(far[s])) for s in chosen]
    if not can_rerun(options):
        notes.append(
            "what the teacher would earn from the states of disagreement is not known: this backend's episodes don't come back by seed"
        )
        return rows
    pictures = True
    for s, row in zip(chosen, rows, strict=True):
        try:
            if pictures:
                try:
                    row["teacher_from_there"], frame = from_there(teacher, trace, s, options, seeds, pictures=True)
                    row["picture"] = None if frame is None else as_jpeg(frame)
                    continue
                except Exception as error:  # what an environment raises that can't render (no display, no such mode) is its own
                    pictures = False
                    notes.append(f"the states come without pictures: {error if isinstance(error, DistillError) else f'drawing them raised {type(error).__name__}: {error}'}")
            row["teacher_from_there"], _ = from_there(teacher, trace, s, options, seeds)
        except DistillError as error:
            notes.append(f"step {row['step']} of episode {row['episode']} can't be played again: {error}")
    if any(row["teacher_from_there"] is None for row in rows):
        notes.append(
            "some states of disagreement don't come back when their episode is played again: the environment is not deterministic by seed"
        )
    return rows


def _strange(trace: Trace, s: int, far: float) -> dict[str, Any]:
    rest = (trace.episode == trace.episode[s]) & (trace.step >= trace.step[s])
    seen = trace.seen[s]
    return {
        "state": s,
        "episode": int(trace.episode[s]),
        "step": int(trace.step[s]),
        "length": int(trace.lengths[trace.episode[s]]),
        "distance": far,
        "seen": {name: round(float(v), 4) for name, v in zip(trace.names[:16], seen[:16].tolist(), strict=True)},
        "student": _said(trace.student, s),
        "teacher": _said(trace.teacher, s),
        "student_from_there": float(trace.reward[rest].sum()),
        "teacher_from_there": None,
        "picture": None,
    }


def _said(prediction: Prediction, s: int) -> dict[str, Any]:
    action = prediction.action
    assert action is not None
    said: dict[str, Any] = {"action": _rounded(action.mode[s])}
    if isinstance(action, Categorical):
        said["probabilities"] = _rounded(action.log_probs[s].exp())
    if isinstance(action, Gaussian):
        said["std"] = _rounded(action.log_std[s].exp())
    return said


# ── for the pictures ──────────────────────────────────────────────────────────────────────────────────────────────


def actions(trace: Trace) -> dict[str, Any] | None:
    """The student's choices against the teacher's on the student's states: counts [A, A] (teacher's rows), or pairs."""
    mine, theirs = trace.student.action, trace.teacher.action
    assert mine is not None
    assert theirs is not None
    a, b = theirs.mode, mine.mode
    if a.dim() == 1 and not a.is_floating_point():
        size = mine.logits.shape[-1] if isinstance(mine, Categorical) else int(max(a.max(), b.max())) + 1
        return {
            "kind": "confusion",
            "counts": torch.bincount(a.long() * size + b.long(), minlength=size * size).reshape(size, size).tolist(),
        }
    if not a.is_floating_point():
        return {"kind": "components", "agreement": [round(float(x), 4) for x in (a == b).double().mean(0)]}
    rows = _thin(trace.states, 400)
    r2 = 1 - (a - b).square().mean(0) / a.var(0, unbiased=False).clamp_min(1e-12)
    return {"kind": "pairs", "teacher": _rounded(a[rows], 3), "student": _rounded(b[rows], 3), "r2": [round(float(x), 4) for x in r2]}


def projection(traces: dict[str, Trace], spread: Tensor | None, seed: int) -> dict[str, Any] | None:
    """The states of both on the two main axes of the student's (principal components of standardised numbers)."""
    mine = traces["student"].seen.double().numpy()
    middle, scale = mine.mean(0), mine.std(0)
    moving = scale > 1e-9
    if moving.sum() < 2:
        return None
    clean = (mine[:, moving] - middle[moving]) / scale[moving]
    _, singular, axes = np.linalg.svd(clean[_thin(len(clean), 5000)], full_matrices=False)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # a sign that doesn't depend on the LAPACK
    named = [n for n, m in zip(traces["student"].names, moving, strict=True) if m]
    out: dict[str, Any] = {
        "explained": [round(float(x), 4) for x in (singular[:2] ** 2 / (singular**2).sum())],
        "axes": [[{"name": named[i], "weight": round(float(axis[i]), 3)} for i in np.argsort(-np.abs(axis))[:3]] for axis in axes[:2]],
    }
    for who, trace in traces.items():
        rows = _thin(trace.states, POINTS)
        at = (trace.seen.double().numpy()[rows][:, moving] - middle[moving]) / scale[moving] @ axes[:2].T
        out[who] = {"at": np.round(at, 2).tolist(), "distance": np.round(distance(trace, spread)[rows], 3).tolist()}
    return out


def _thin(n: int, most: int) -> np.ndarray:
    """At most ``most`` indices below n, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _width(prediction: Prediction, spread: Tensor | None) -> Tensor | None:
    """[A] range of a box action, the teacher's spread where it has none; None for choices."""
    action = prediction.action
    low, high = getattr(action, "low", None), getattr(action, "high", None)
    if low is None or high is None:
        return None
    width = high - low
    return torch.where(width.isfinite(), width, spread if spread is not None else torch.ones_like(width))


def _spread(trace: Trace) -> Tensor | None:
    """[A] standard deviation of the teacher's most likely action over its own states; None for choices."""
    action = trace.teacher.action
    if action is None or getattr(action, "low", None) is None:
        return None
    return action.mode.std(0, unbiased=False).clamp_min(1e-6)


def _rounded(x: Tensor, digits: int = 4) -> Any:
    return np.round(x.double().numpy(), digits).tolist() if x.is_floating_point() else x.tolist()
