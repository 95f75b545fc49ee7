"""The frozen records that pass between stages, and ``need()``; nothing here computes.

Leading shapes: ``[...]`` is any batch shape, ``T`` steps, ``N`` environment slots, ``A`` actions or action
dimensions, ``K`` quantiles, ``F`` features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from distillrl.errors import Missing

if TYPE_CHECKING:
    from torch import Tensor

    from distillrl.actions import Action

STATIC: dict[str, bool] = {"static": True}
"""Field metadata: this field has no leading state shape, so it is neither flattened, indexed nor stored per state."""


@dataclass(frozen=True)
class Group:
    """One observation group: its shape, its numpy dtype name, and for category numbers how many each entry has."""

    shape: tuple[int, ...]
    dtype: str
    categories: tuple[int, ...] = ()
    """(n,) for a Discrete observation, nvec for a MultiDiscrete one, empty for numbers."""
    low: float | None = None
    high: float | None = None
    """The bounds where one number says them all (an image's 0 and 255), else None."""
    words: tuple[str, ...] = ()
    """Of a text given as numbers of its words, the words from number 2 on (texts.py)."""

    def __str__(self) -> str:
        if self.words:
            return f"{self.shape[0]} words out of {len(self.words)}"
        text = f"{self.dtype}{list(self.shape)}"
        return text + (f" of {'×'.join(map(str, self.categories))} categories" if self.categories else "")


@dataclass(frozen=True)
class ActionSpace:
    """What can be done: ``kind`` is discrete, multidiscrete, multibinary or box.

    Everywhere inside distillrl a discrete action counts from 0; ``start`` is added where the environment is stepped.
    A box action is flat, ``[..., A]``, in the environment's units.
    """

    kind: str
    shape: tuple[int, ...] = ()
    n: int = 0
    start: int = 0
    nvec: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    dtype: str = "int64"

    @property
    def size(self) -> int:
        """Width of a flat network output that decides on an action: logits, or one mean per dimension."""
        return {"discrete": self.n, "multidiscrete": sum(self.nvec)}.get(self.kind) or self.dimensions

    @property
    def dimensions(self) -> int:
        """How many numbers one action has (1 for discrete)."""
        return {"discrete": 1, "multidiscrete": len(self.nvec)}.get(self.kind) or _product(self.shape)

    def __str__(self) -> str:
        if self.kind == "discrete":
            return f"Discrete({self.n}" + (f", start={self.start})" if self.start else ")")
        if self.kind == "multidiscrete":
            return f"MultiDiscrete({list(self.nvec)})"
        if self.kind == "multibinary":
            return f"MultiBinary({self.dimensions})"
        return f"Box({_bounds(self.low)}, {_bounds(self.high)}, {self.shape}, {self.dtype})"


@dataclass(frozen=True)
class Task:
    """One of several tasks of an environment (tasks.py): its name, what of the observation is its own, its own action space."""

    name: str
    observations: Mapping[str, str]
    """A group of the environment → what the task alone calls it."""
    action: ActionSpace

    def spec(self, whole: Spec) -> Spec:
        """The task's own spec, taken out of that of all."""
        return Spec({own: whole.observations[name] for name, own in self.observations.items()}, self.action, whole.reward_scale)


@dataclass(frozen=True)
class Spec:
    """The contract between a policy and an environment: observation groups, action space, reward scale; the tasks, where there are several."""

    observations: Mapping[str, Group]
    action: ActionSpace
    reward_scale: float = 1.0
    tasks: tuple[Task, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; ``Spec.from_json`` gives an equal record."""
        data = dataclasses.asdict(dataclasses.replace(self, observations=dict(self.observations), tasks=()))
        tasks = [dataclasses.asdict(dataclasses.replace(t, observations=dict(t.observations))) for t in self.tasks]
        for action in (data["action"], *(t["action"] for t in tasks)):
            action |= {end: tuple(v if math.isfinite(v) else str(v) for v in action[end]) for end in ("low", "high")}  # JSON has no infinity
        del data["tasks"]
        for group in data["observations"].values():
            if not group["words"]:
                del group["words"]
        return {**data, "tasks": tasks} if tasks else data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Spec:
        """Rebuild a Spec; raises KeyError, TypeError or ValueError where the data isn't one."""
        groups = {
            str(name): Group(
                tuple(map(int, g["shape"])),
                str(g["dtype"]),
                tuple(map(int, g["categories"])),
                g["low"],
                g["high"],
                tuple(map(str, g.get("words", ()))),
            )
            for name, g in data["observations"].items()
        }
        tasks = tuple(Task(str(t["name"]), {str(k): str(v) for k, v in t["observations"].items()}, _action_of(t["action"])) for t in data.get("tasks", ()))
        return Spec(groups, _action_of(data["action"]), float(data["reward_scale"]), tasks)


@dataclass(frozen=True)
class Prediction:
    """What a policy says of states with leading shape ``[...]``; teacher and student give the same record."""

    action: Action | None = None
    q: Tensor | None = None
    """[..., A]"""
    quantiles: Tensor | None = None
    """[..., A, K]"""
    value: Tensor | None = None
    """[...]"""
    uncertainty: Tensor | None = None
    """[...]"""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """name → [..., F]"""


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments, ``[T, N, ...]``; ``obs`` is ``{name: [T + 1, N, ...]}``.

    After an episode's end comes one step that only resets: there ``valid`` is false, and it is neither labelled,
    trained on nor counted. ``obs[t + 1]`` of the ending step is the episode's last observation.
    """

    obs: Mapping[str, Tensor]
    action: Tensor
    """As it was played: int64, or float in the environment's units, unclipped."""
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    starts: Tensor
    valid: Tensor
    driver: Tensor
    """[T, N] int8: 0 the teacher, 1 + i student i."""
    labelled: Tensor
    teacher: Prediction | None
    """Defined where ``labelled``."""
    student: Prediction | None
    """As it was when it played."""
    episode: Tensor
    """[T, N] int64: the episode's number in its stream of seeds."""
    fresh: bool = False
    """All slots began anew at its first step, whatever was open before."""
    weight: Tensor | None = None
    behaviour_log_prob: Tensor | None = None
    """Of the action, under whoever drove; where a term asks for it."""
    task: Tensor | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    """The student's at the start of the rollout, {name: [N, ...]}."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """What wrappers add (advantages, returns)."""


TASKS = "tasks"
"""In the ``extra`` of the dry run's batch, of several tasks: [..., K], as wide as there are tasks."""


@dataclass(frozen=True)
class Batch:
    """Labelled states for one update: leading shape ``[B]``, or ``[T, B]`` for a student with memory."""

    obs: Mapping[str, Tensor]
    teacher: Prediction
    weight: Tensor | None = None
    """[...] float: 0 where a state must not count (burn-in, padding); None where all count alike."""
    action: Tensor | None = None
    reward: Tensor | None = None
    terminated: Tensor | None = None
    truncated: Tensor | None = None
    starts: Tensor | None = None
    behaviour_log_prob: Tensor | None = None
    task: Tensor | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    next: Prediction | None = None
    """The student's prediction of the next state."""
    next_target: Prediction | None = None
    """The slow copy's prediction of the next state."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    progress: Progress | None = None


@dataclass(frozen=True)
class Progress:
    """Where the run stands; schedules are functions of it."""

    phase: int = 0
    round: int = 0
    """Of the run; as schedules are asked, of its phase (phases.at)."""
    before: int = 0
    """Rounds of earlier phases that ``round`` leaves out."""
    env_steps: int = 0
    labels: int = 0
    budget: int = 0
    """Environment steps that the run may take at most; 0 where there is no bound."""
    rounds: int = 0
    """Rounds that a run may take at most which takes no environment steps; else 0."""
    returns: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Last round's."""

    @property
    def fraction(self) -> float:
        """Share of the budget spent, 0 to 1; 0 where there is no budget."""
        if self.rounds:
            return min(1.0, (self.before + self.round) / self.rounds)
        return min(1.0, self.env_steps / self.budget) if self.budget else 0.0


Record = TypeVar("Record")


def need(record: Any, field_name: str, who: str, whose: str = "this teacher") -> Any:
    """Return an optional field, or raise a sentence that names who needs it and what there is instead.

    >>> need(Prediction(value=1.0), "q", "q_kl")
    Traceback (most recent call last):
    distillrl.errors.Missing: q_kl needs `q`, but this teacher gives only `value`
    """
    value = getattr(record, field_name, None)
    if value is None or (isinstance(value, Mapping) and not value):
        given = [
            f"`{f.name}`"
            for f in dataclasses.fields(record)
            if getattr(record, f.name) is not None and not (isinstance(getattr(record, f.name), Mapping) and not getattr(record, f.name))
        ]
        raise Missing(f"{who} needs `{field_name}`, but {whose} gives only {' and '.join(given) or 'nothing'}")
    return value


def over_states(fn: Callable[..., Tensor], first: Record, *others: Record) -> Record:
    """Apply ``fn`` to every tensor of a record that has the leading state shape, also in nested records and mappings.

    Static fields (bounds, sizes) are kept from ``first``. All records must have the same structure.
    """
    if first is None:
        return first
    if isinstance(first, Mapping):
        return {k: over_states(fn, v, *(o[k] for o in others)) for k, v in first.items()}  # type: ignore[return-value, index]  # a mapping in, a mapping out
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        changed = {
            f.name: over_states(fn, getattr(first, f.name), *(getattr(o, f.name) for o in others))
            for f in dataclasses.fields(first)
            if not f.metadata.get("static")
        }
        return dataclasses.replace(first, **changed)
    return fn(first, *others)  # type: ignore[return-value]  # a tensor in, a tensor out


def tensors(record: Any, prefix: str = "") -> dict[str, Tensor]:
    """The state-shaped tensors of a record by dotted name, such as ``action.logits`` or ``features.body.0``."""
    if record is None:
        return {}
    if isinstance(record, Mapping):
        pairs = list(record.items())
    elif dataclasses.is_dataclass(record):
        pairs = [(f.name, getattr(record, f.name)) for f in dataclasses.fields(record) if not f.metadata.get("static")]
    else:
        return {prefix: record}
    found: dict[str, Tensor] = {}
    for name, value in pairs:
        found.update(tensors(value, f"{prefix}.{name}" if prefix else str(name)))
    return found


def with_tensors(record: Record, values: Mapping[str, Tensor], prefix: str = "") -> Record:
    """The same record with the tensors of ``values`` (named as ``tensors()`` names them) in place of its own."""
    if record is None:
        return record
    if isinstance(record, Mapping):
        return {k: with_tensors(v, values, f"{prefix}.{k}" if prefix else str(k)) for k, v in record.items()}  # type: ignore[return-value]  # a mapping in, a mapping out
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        changed = {
            f.name: with_tensors(getattr(record, f.name), values, f"{prefix}.{f.name}" if prefix else f.name)
            for f in dataclasses.fields(record)
            if not f.metadata.get("static")
        }
        return dataclasses.replace(record, **changed)
    return values[prefix]  # type: ignore[return-value]  # a tensor in, a tensor out


def _action_of(a: Mapping[str, Any]) -> ActionSpace:
    made = ActionSpace(
        str(a["kind"]),
        tuple(map(int, a["shape"])),
        int(a["n"]),
        int(a["start"]),
        tuple(map(int, a["nvec"])),
        tuple(map(float, a["low"])),
        tuple(map(float, a["high"])),
        str(a["dtype"]),
    )
    if made.kind not in {"discrete", "multidiscrete", "multibinary", "box"}:
        raise ValueError(f"unknown action kind {made.kind!r}")
    return made


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for s in shape:
        size *= s
    return size


def _bounds(values: tuple[float, ...]) -> str:
    distinct = sorted(set(values))
    return f"{distinct[0]:g}" if len(distinct) == 1 else "[" + ", ".join(f"{v:g}" for v in values[:6]) + ("…]" if len(values) > 6 else "]")
