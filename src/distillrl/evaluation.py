"""What policies earn: unbiased returns on known seeds, agreement, latency, and the verdict over all three players."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

import distillrl
from distillrl import artifact, envs, repeats, stats, students, tasks, taskwise
from distillrl.acting import acting
from distillrl.actions import Bernoulli, Categorical, Deterministic, MultiCategorical
from distillrl.agreeing import Agreed
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Failed, Misconfigured
from distillrl.policies import ACTION, Memory, Player, Policy, acting_parameters, played, to_environment
from distillrl.records import Prediction, Spec
from distillrl.tasks import TASK

MAX_SLOTS = 64
"""Environments side by side; with many episodes an eighth of them, twice as many at most (``_slots``)."""
_ROUGH = 2_000
"""Resamples of the figures beside the mean."""
ENDLESS = 200_000
"""Ticks after which an episode that hasn't ended is taken for one that never will."""


@dataclass(frozen=True)
class Episodes:
    """Episodes in the order of their seeds: returns and lengths [episodes], what they cost, agreement with a shadow."""

    returns: np.ndarray
    lengths: np.ndarray
    steps: int
    seconds: float
    agreement: float | None = None
    success: np.ndarray | None = None
    """[episodes] 0 to 1; None where the environment doesn't tell."""
    alike: bool = False
    """Whether the first episodes all began alike, and stayed so for as long as the same was done in them."""
    same: np.ndarray | None = None
    """[episodes] steps in which the shadow would have done the same."""
    numbers: np.ndarray | None = None
    """[episodes] alike for episodes that are one and the same (repeats.py); None where that can't be."""
    cut: np.ndarray | None = None
    """[episodes] whether it was broken off by a limit of steps."""


class Random:
    """Plays uniformly at random: the foot of the scale that retention is measured on."""

    gives: frozenset[str] = frozenset({"action"})

    def __init__(self, spec: Spec, generator: torch.Generator) -> None:
        name = TASK if spec.tasks else next(k for k in spec.observations if k not in envs.ON_DEMAND or len(spec.observations) == 1)
        self.spec, self.generator = replace(spec, observations={name: spec.observations[name]}), generator
        legal = tasks.legal(spec)
        self.legal = None if legal is None else torch.from_numpy(legal)
        self.info: Mapping[str, Any] = {"format": "random"}

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See Policy.act; an unbounded box is drawn from a standard normal, as gymnasium samples it."""
        name, group = next(iter(self.spec.observations.items()))
        lead = obs[name].shape[: obs[name].dim() - len(group.shape)]
        space = self.spec.action
        if space.kind == "box":
            low, high = torch.tensor(space.low), torch.tensor(space.high)
            bounded = low.isfinite() & high.isfinite()
            unit = torch.empty(*lead, space.dimensions).uniform_(generator=self.generator)
            normal = torch.empty(*lead, space.dimensions).normal_(generator=self.generator)
            return Prediction(Deterministic(torch.where(bounded, low + unit * (high - low), normal.clamp(low, high)))), memory
        logits = torch.zeros(*lead, space.size)
        uniform: dict[str, Any] = {"discrete": lambda: Categorical(logits, None if self.legal is None else self.legal[obs[name].long()]), "multidiscrete": lambda: MultiCategorical(logits, space.nvec)}
        distribution = uniform.get(space.kind, lambda: Bernoulli(logits))()
        return Prediction(Deterministic(distribution.sample(self.generator))), memory


def play(
    policy: Policy,
    options: EnvOptions,
    episodes: int,
    seeds: Seeds,
    *,
    sampled: bool = False,
    generator: torch.Generator | None = None,
    shadow: Policy | None = None,
    tell: Callable[[np.ndarray], None] | None = None,
) -> Episodes:
    """Play ``episodes`` whole episodes, number i on ``seeds(i)``, so that policies can be compared in pairs.

    All of them are played to their end, whichever slot takes which: to stop at so many that have ended would count the
    short ones too often. ``shadow`` is asked too, at every state, whether it would have done the same; ``tell`` is told, before the policy
    is asked, the number of each slot's episode. Raises Failed for an episode without end.
    """
    began = time.perf_counter()
    options = envs.shown(options, policy, shadow)
    n = envs.slots_of(options, _slots(episodes))
    vector = envs.make(options, n, seeds, episodes)
    try:
        with torch.inference_mode():
            return _play(policy, vector, episodes, sampled, generator, shadow, began, tell)
    finally:
        vector.close()


def _slots(episodes: int) -> int:
    """As many environments as pay: a policy is called once a tick however many there are, but the last episodes of each leave the others idle."""
    return min(episodes, max(MAX_SLOTS, min(2 * MAX_SLOTS, episodes // 8)))


def _play(policy: Policy, vector: envs.Vector, episodes: int, sampled: bool, generator: torch.Generator | None, shadow: Policy | None, began: float, tell: Callable[[np.ndarray], None] | None = None) -> Episodes:
    n, spec = vector.n, vector.spec
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    index = np.arange(n)
    success = np.full(episodes, np.nan)
    gained, taken = np.zeros(n), np.zeros(n, dtype=np.int64)
    ended, starts = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
    memory, shadow_memory = policy.init(n), shadow.init(n) if shadow is not None else {}
    agreed = Agreed(episodes)
    act, shadowing = acting(policy), acting(shadow) if shadow is not None else None
    obs = _tensors(vector.reset(), spec)
    alike = watched = n > 1 and _equal(obs)
    repeated, numbers, cut = repeats.Repeats(n, obs, alike), np.zeros(episodes, np.uint64), np.zeros(episodes, dtype=bool)
    while bool((playing := index < episodes).any()):
        begin = torch.from_numpy(starts)
        if tell is not None:
            tell(index)
        prediction, memory = act(obs, memory, begin)
        counted = playing & ~ended
        if shadowing is not None:
            other, shadow_memory = shadowing(obs, shadow_memory, begin)
            agreed.add(index, counted, prediction, other)
        action = to_environment(played(prediction, sampled, generator), spec)
        new, reward, terminated, truncated = vector.step(action)
        obs = _tensors(new, spec)
        repeated.step(obs, reward)
        if watched and (watched := bool((action[1:] == action[:1]).all() and not ended.any())):
            alike = watched = _equal(obs)  # what differs after equal actions is chance, such as a game's idle steps before it begins
        starts = ended & playing
        gained += np.where(counted, reward, 0.0)
        taken += counted
        ended = (terminated | truncated) & counted
        if ended.any():
            where = index[ended]
            returns[where], lengths[where], success[where] = gained[ended], taken[ended], vector.success[ended]
            numbers[where], cut[where] = repeated.take(ended), ~terminated[ended]
            gained[ended] = taken[ended] = 0
            index = following(vector, index, ended)
        if taken.max() > ENDLESS:
            raise Failed(f"an episode has not ended after {ENDLESS} steps; set --max-episode-steps")
    if not np.isfinite(returns).all():
        raise Failed(f"episode {int(np.flatnonzero(~np.isfinite(returns))[0])} has a return that is NaN or infinite")
    same = agreed.steps()
    share = float(same.sum() / lengths.sum()) if shadow is not None else None
    told = success if np.isfinite(success).all() else None
    return Episodes(returns, lengths, int(lengths.sum()), time.perf_counter() - began, share, told, alike, same if shadow is not None else None, numbers if repeated.watched else None, cut)


def _equal(obs: Mapping[str, Tensor]) -> bool:
    """Whether all slots see the same."""
    return all(bool((x[1:] == x[:1]).all()) for x in obs.values())


def following(vector: envs.Vector, index: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """[n] number of each slot's episode, where some [n] have just ended theirs: the queue's, or every n-th."""
    numbers = vector.playing()
    return index + vector.n * ended if numbers is None else numbers


def _tensors(obs: envs.Observations, spec: Spec) -> dict[str, Tensor]:
    return {k: torch.as_tensor(obs[k]) for k in spec.observations}


def latency_us(policy: Policy, budget: float = 0.05) -> float:
    """Microseconds for the action of one state, observation in and action out, the least of many calls."""
    obs = {k: torch.zeros(1, *g.shape, dtype=getattr(torch, g.dtype, torch.float32)) for k, g in policy.spec.observations.items()}
    memory, starts = policy.init(1), torch.zeros(1, dtype=torch.bool)
    act = acting(policy)
    best, until = float("inf"), time.perf_counter() + budget
    with torch.inference_mode():
        while (began := time.perf_counter()) < until or best == float("inf"):
            prediction, memory = act(obs, memory, starts)
            to_environment(played(prediction, False), policy.spec)
            best = min(best, time.perf_counter() - began)
    return best * 1e6


@dataclass(frozen=True)
class Results:
    """Everything measured of one player: most likely actions, samples (None for a deterministic one)."""

    likely: Episodes
    sampled: Episodes | None


def measure(policy: Policy, options: EnvOptions, episodes: int, seed: int, stream: str = "verdict", shadow: Policy | None = None) -> Results:
    """A policy's episodes with its most likely action and with samples, on the same seeds."""
    seeds = Seeds(seed, stream)
    likely = play(policy, options, episodes, seeds, shadow=shadow)
    if "distribution" not in policy.gives:
        return Results(likely, None)
    generator = torch.Generator().manual_seed(seed)
    return Results(likely, play(policy, options, episodes, seeds, sampled=True, generator=generator))


def verdict(
    options: EnvOptions,
    spec: Spec,
    episodes: int,
    seed: int,
    *,
    student: Policy | None,
    teacher: Policy | None,
    sizes: Mapping[str, int | None],
    margin: float = stats.MARGIN,
) -> dict[str, Any]:
    """Measure teacher, student and random policy on the same fresh seeds, as the ``verdict.json`` of every run has it.

    Keys: agreement, paired (whether both played the same episodes), alike (whether all began alike and went on so while the same was done), retention and difference {value, low, high}, non_inferiority {shown, p, margin, episodes, needed,
    sentence}, probability_of_improvement (over the teacher), falls {episodes, seeds, teacher, of, more, sentence}: those
    that the student plays far worse on the same seed, notes, and for each of teacher, student and random: return
    and return_sampled {mean, low, high, median, iqm, cvar (of the worst 5 %), worst, success, episodes, different (of them, where some may be the same again), few, returns},
    parameters, bytes, latency_us; null where a thing doesn't apply. ``sizes`` are the files' bytes, ``margin`` is how
    much worse than its teacher a student may be, in shares of the teacher's return above random play. Of several tasks: ``tasks``, a section
    for each, and all returns on one scale (taskwise.py).
    """
    randomly = Random(spec, torch.Generator().manual_seed(seed + 1))
    measured: dict[str, Results] = {}
    if teacher is not None:
        measured["teacher"] = measure(teacher, options, episodes, seed)
    if student is not None:
        measured["student"] = measure(student, options, episodes, seed, shadow=teacher)
    measured["random"] = measure(randomly, options, episodes, seed)
    by_task: list[dict[str, Any]] = []
    said: list[str] = []
    if spec.tasks:
        measured, by_task, said = taskwise.split(spec, measured, taskwise.numbers_of(Seeds(seed, "verdict"), episodes, spec), seed, _returns)
    report: dict[str, Any] = {
        "agreement": measured["student"].likely.agreement if student is not None else None,
        "paired": None,
        "alike": all(m.likely.alike for name, m in measured.items() if name != "random" or len(measured) == 1),
        "retention": None,
        "difference": None,
        "non_inferiority": None,
        "probability_of_improvement": None,
        "falls": None,
        "notes": said,
        **({"tasks": by_task} if by_task else {}),
    }
    if student is not None and teacher is not None:
        s, t, r = (measured[k].likely.returns for k in ("student", "teacher", "random"))
        against = _against(s, t, r, seed, margin, same_episodes(options, episodes), measured["teacher"].likely.alike)
        report |= {**against, "notes": said + against["notes"]}
        own, theirs = measured["student"].likely, measured["teacher"].likely
        circling = against["falls"] and repeats.circling(against["falls"]["episodes"], own.cut, theirs.cut, own.lengths)
        report["notes"] += [circling] if circling else []
    elif student is not None:
        report["notes"].append("retention is null: there is no teacher to compare with")
    for name, policy in (("teacher", teacher), ("student", student), ("random", randomly)):
        report[name] = None if policy is None else _player(name, policy, measured[name], seed, sizes.get(name))
        note = stats.caution(measured[name].likely.returns, f"the {name} policy", measured[name].likely.alike) if policy is not None and name != "random" else None
        same = repeats.sentence(measured[name].likely.numbers, f"the {name} policy") if policy is not None and name != "random" else None
        report["notes"] += [said for said in (note, same) if said]
        if policy is not None and name != "random" and not by_task and (short := _shortfall(policy, name, options, measured[name].likely.returns)):
            report["notes"].append(short)
    report["evaluation_steps"] = sum(e.steps for m in measured.values() for e in (m.likely, m.sampled) if e is not None)
    report["evaluation_seconds"] = round(sum(e.seconds for m in measured.values() for e in (m.likely, m.sampled) if e is not None), 3)
    return report


def same_episodes(options: EnvOptions, episodes: int) -> bool:
    """Whether episode i is the same for whoever plays; of EnvPool and users' vectors only each slot's first has a seed."""
    seeded = options.backend != "envpool" and not isinstance(options.id, gymnasium.vector.VectorEnv)
    return seeded or episodes <= envs.slots_of(options, MAX_SLOTS)


def _against(s: np.ndarray, t: np.ndarray, r: np.ndarray, seed: int, margin: float, paired: bool, alike: bool) -> dict[str, Any]:
    """What student and teacher are to each other, by their returns, on the same episodes where ``paired``."""
    kept = stats.retention(s, t, r, seed, paired)
    test = stats.non_inferiority(s, t, margin, None if kept is None else r, paired, alike)
    return {
        "paired": paired,
        "retention": _interval(kept),
        "difference": _interval((stats.paired_difference if paired else stats.difference_interval)(s, t, seed)),
        "non_inferiority": None if kept is None else {**dataclasses.asdict(test), "margin": margin},
        "probability_of_improvement": _interval(stats.probability_of_improvement([s], [t], seed, resamples=_ROUGH)),
        "falls": _falls(stats.falls(s, t, r), seed) if paired and kept is not None else None,
        "notes": [] if kept is not None else ["retention is null: " + ("the teacher earns less than a random policy here" if stats.told_apart(t, r) else "teacher and random policy can't be told apart here")],
    }


def _falls(found: stats.Falls, seed: int) -> dict[str, Any]:
    """As plain data, with the environment's seed of each episode."""
    seeds = Seeds(seed, "verdict")
    return {"episodes": list(found.episodes), "seeds": [seeds(i) for i in found.episodes], "teacher": found.theirs, "of": found.of, "more": found.more, "sentence": found.sentence}


def _shortfall(policy: Policy, name: str, options: EnvOptions, returns: np.ndarray) -> str | None:
    """Whether it plays far under what its own file records, with the likely cause."""
    from distillrl.teachers.environments import shortfall

    said = shortfall(policy.info, envs.name_of(options), float(returns.mean()))
    if said is None:
        return None
    changed = ", ".join(f"{k} = {v}" for k, v in options.kwargs.items())
    return said.replace("the teacher", f"the {name}", 1) + (f"; or the environment's arguments here ({changed})" if changed else "")


def _player(name: str, policy: Policy, results: Results, seed: int, size: int | None) -> dict[str, Any]:
    known = name != "random"
    likely = _returns(results.likely, seed)
    return {
        "return": likely,
        "return_sampled": (_returns(results.sampled, seed) if results.sampled is not None else None) if known else likely,
        "parameters": acting_parameters(policy) if known else None,
        "bytes": size,
        "latency_us": round(latency_us(policy), 2) if known else None,
    }


def _returns(episodes: Episodes, seed: int) -> dict[str, Any]:
    x = episodes.returns
    interval = stats.mean_interval(x, seed)
    won = None if episodes.success is None else episodes.success > 0.5
    return {
        "mean": interval.value,
        "low": interval.low,
        "high": interval.high,
        "median": float(np.median(x)),
        "iqm": _interval(stats.iqm_interval([x], seed, resamples=_ROUGH)),
        "cvar": _interval(stats.statistic_interval([x], stats.cvar, seed, resamples=_ROUGH)),
        "worst": float(x.min()),
        "success": None if won is None else _interval(stats.wilson(int(won.sum()), len(won))),
        "episodes": len(x),
        "different": repeats.different(episodes.numbers),
        "few": len(x) < stats.FEW,
        "returns": [round(float(v), 6) for v in x],
    }


def _interval(interval: stats.Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}


def evaluate(
    policy: Any,
    env: Any = None,
    teacher: Any = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    backend: str = "auto",
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    options: Any = None,
    margin: float = stats.MARGIN,
) -> dict[str, Any]:
    """Measure any policy that can be loaded, beside its teacher where one is given; the shape of ``verdict.json``.

    ``policy`` and ``teacher``: a path, a live object, a Player. ``env``: as in ``distill``; by default the one that the
    file names. Raises Misconfigured where the spaces differ, both shown.
    """
    from distillrl import teachers

    began = time.perf_counter()
    wished = options or teachers.Options()
    policy, teacher, target = teachers.named(policy), teachers.named(teacher), env
    if target is None and not callable(policy):
        target = teachers.load(policy, wished).info.get("environment")
    if target is None:
        raise Misconfigured("no environment was given, and the policy's file names none: --env takes an id such as LunarLander-v3")
    where = EnvOptions(target, dict(env_kwargs or {}), backend, max_episode_steps)
    asking = _own_student(teacher)
    where = envs.shown(where, _own_student(policy), asking)
    vector = envs.make(where, envs.slots_of(where, 1), Seeds(seed, "dry"))
    spec = vector.spec
    own = replace(spec, observations={k: g for k, g in spec.observations.items() if k not in where.demanded - set(asking.spec.observations if asking else ())})
    vector.close()
    where = replace(where, backend=envs.arrange(where, _slots(episodes)))
    wished = replace(wished, env=envs.name_of(where))
    student = teachers.load(policy, wished, spec)
    other = None if teacher is None else teachers.load(teacher, wished, own)
    for name, one in (("policy", student), ("teacher", other)):
        if one is not None and (found := envs.differences(one.spec, spec)):
            raise Misconfigured(f"the {name} does not fit {envs.name_of(where)}: " + "; ".join(found))
    sizes = {"student": teachers.size(policy), "teacher": teachers.size(teacher)}
    measured = verdict(where, spec, episodes, seed, student=student, teacher=other, sizes=sizes, margin=margin)
    blank = dict.fromkeys(("method", "env_steps", "teacher_labels", "rounds", "kept_round", "ended_by", "until", "reached"))
    return {
        **blank,
        "seed": seed,
        "env": envs.name_of(where),
        "seconds": {"work": round(time.perf_counter() - began, 4), "selecting": None, "with_imports": round(time.perf_counter() - distillrl.STARTED, 4)},
        **measured,
    }


def _own_student(policy: Any) -> Policy | None:
    """The policy, where what it sees is known before there is an environment: a loaded one, or a student's file."""
    if isinstance(policy, str | Path):
        path = Path(policy)
        if path.suffix != ".safetensors" or not path.is_file():
            return None
        try:
            built: Policy = students.build(*artifact.load(path))
        except (Failed, Misconfigured):
            return None  # whoever loads it as a teacher says what it is
        return built
    policy = policy.policy if isinstance(policy, Player) else policy
    return policy if hasattr(policy, "act") and hasattr(policy, "spec") else None
